//! Keyboard controller without keyboard and mouse: IBM PS/2 Technical Reference,
//! "Keyboard and auxiliary device controller", with port 0x92 (system control port A).
//!
//! It is here for two reasons: operating systems reset a PC through it, and their probes
//! must come to an end quickly. A command for a device that is not there is answered at
//! once as a real controller does after a time-out: byte 0xfe, with the time-out bit in
//! the status. The probe for an auxiliary port fails at its first step, so no driver waits
//! for a mouse.
//!
//! A20 is always open. Its bits in the output port and in port 0x92 are kept.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bitfield_struct::bitfield;
use inspect::Inspect;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::line::InterruptLine;
use crate::power::PowerEvent;
use crate::power::PowerEvents;
use crate::power::ResetSource;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::byte;

/// Data port.
pub const DATA_PORT: u16 = 0x60;
/// Status and command port.
pub const COMMAND_PORT: u16 = 0x64;
/// System control port A.
pub const CONTROL_PORT_A: u16 = 0x92;

/// Answer of the controller for a device that does not.
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
/// Clock line stuck low: nothing is connected.
const PORT_TEST_NO_CLOCK: u8 = 0x01;
/// Keyboard not locked, manufacturing jumper open.
const INPUT_PORT: u8 = 0xa0;
const RAM_SIZE: usize = 32;

mod region {
    pub(super) const DATA: usize = 0;
    pub(super) const COMMAND: usize = 1;
}

mod command {
    pub(super) const READ_RAM: u8 = 0x20;
    pub(super) const WRITE_RAM: u8 = 0x60;
    pub(super) const DISABLE_AUX: u8 = 0xa7;
    pub(super) const ENABLE_AUX: u8 = 0xa8;
    pub(super) const TEST_AUX: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub(super) const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub(super) const WRITE_AUX: u8 = 0xd4;
    pub(super) const PULSE: u8 = 0xf0;
}

/// The status register.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// The data port has a byte.
    pub output_full: bool,
    /// The controller has not taken the last write; never.
    pub input_full: bool,
    /// The self-test has passed.
    pub system: bool,
    /// The last write was a command.
    pub command: bool,
    /// The keyboard is not locked.
    pub unlocked: bool,
    /// The byte comes from the auxiliary port; never.
    pub aux: bool,
    /// The byte is there because a device did not answer.
    pub timeout: bool,
    /// The byte came with a wrong parity; never.
    pub parity: bool,
}

/// The command byte, which is byte 0 of the RAM.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
struct CommandByte {
    keyboard_interrupt: bool,
    aux_interrupt: bool,
    system: bool,
    ignore_lock: bool,
    keyboard_disabled: bool,
    aux_disabled: bool,
    translate: bool,
    reserved: bool,
}

/// The output port: 0 means reset.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
struct OutputPort {
    not_reset: bool,
    a20: bool,
    #[bits(6)]
    others: u8,
}

/// System control port A.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
struct ControlA {
    reset: bool,
    a20: bool,
    #[bits(6)]
    others: u8,
}

/// The controller.
#[derive(Inspect)]
pub struct I8042 {
    line: InterruptLine,
    #[inspect(skip)]
    power: Arc<dyn PowerEvents>,
    #[inspect(debug)]
    status: Status,
    #[inspect(hex)]
    output: u8,
    /// A command that waits for its byte at the data port; 0 for none.
    #[inspect(hex)]
    waiting: u8,
    #[inspect(hex)]
    ram: [u8; RAM_SIZE],
    #[inspect(debug)]
    output_port: OutputPort,
    #[inspect(debug)]
    control_a: ControlA,
}

const COMMAND_BYTE_AT_RESET: CommandByte = CommandByte::new()
    .with_keyboard_disabled(true)
    .with_aux_disabled(true);

impl I8042 {
    /// A controller as a reset leaves it.
    pub fn new(line: InterruptLine, power: Arc<dyn PowerEvents>) -> Self {
        let mut ram = [0; RAM_SIZE];
        ram[0] = COMMAND_BYTE_AT_RESET.into_bits();
        Self {
            line,
            power,
            status: Status::new().with_unlocked(true),
            output: 0,
            waiting: 0,
            ram,
            output_port: OutputPort::new().with_not_reset(true).with_a20(true),
            control_a: ControlA::new().with_a20(true),
        }
    }

    fn command_byte(&self) -> CommandByte {
        CommandByte::from_bits(self.ram[0])
    }

    fn change_command_byte(&mut self, change: impl FnOnce(CommandByte) -> CommandByte) {
        self.ram[0] = change(self.command_byte()).into_bits();
    }

    fn answer(&mut self, byte: u8) {
        self.output = byte;
        self.status.set_output_full(true);
        self.status.set_timeout(false);
    }

    fn no_device(&mut self) {
        self.answer(RESEND);
        self.status.set_timeout(true);
    }

    fn read_data(&mut self) -> u8 {
        self.status.set_output_full(false);
        self.status.set_timeout(false);
        self.output
    }

    fn write_command(&mut self, value: u8) {
        self.status.set_command(true);
        self.waiting = 0;
        match value {
            command::READ_RAM..=0x3f => {
                let byte = self.ram[usize::from(value) % RAM_SIZE];
                self.answer(byte);
            }
            command::WRITE_RAM..=0x7f
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_AUX_BUFFER
            | command::WRITE_AUX => self.waiting = value,
            command::DISABLE_AUX => self.change_command_byte(|b| b.with_aux_disabled(true)),
            command::ENABLE_AUX => self.change_command_byte(|b| b.with_aux_disabled(false)),
            command::TEST_AUX => self.answer(PORT_TEST_NO_CLOCK),
            command::SELF_TEST => {
                self.status.set_system(true);
                self.change_command_byte(|_| COMMAND_BYTE_AT_RESET.with_system(true));
                self.answer(SELF_TEST_PASSED);
            }
            command::TEST_KEYBOARD => self.answer(PORT_TEST_PASSED),
            command::DISABLE_KEYBOARD => {
                self.change_command_byte(|b| b.with_keyboard_disabled(true));
            }
            command::ENABLE_KEYBOARD => {
                self.change_command_byte(|b| b.with_keyboard_disabled(false));
            }
            command::READ_INPUT_PORT => self.answer(INPUT_PORT),
            command::READ_OUTPUT_PORT => self.answer(self.output_port.into_bits()),
            // The low bits say which lines are pulsed: 0 for those that are.
            command::PULSE..=0xff if value & 1 == 0 => self.reset_machine(),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.status.set_command(false);
        let waiting = std::mem::take(&mut self.waiting);
        match waiting {
            command::WRITE_RAM..=0x7f => {
                let index = usize::from(waiting) % RAM_SIZE;
                self.ram[index] = value;
                if index == 0 {
                    let system = self.command_byte().system();
                    self.status.set_system(system);
                }
            }
            command::WRITE_OUTPUT_PORT => {
                self.output_port = OutputPort::from_bits(value).with_not_reset(true);
                if !OutputPort::from_bits(value).not_reset() {
                    self.reset_machine();
                }
            }
            // What is looped through the auxiliary port comes without its mark: a
            // controller that has no such port.
            command::WRITE_KEYBOARD_BUFFER | command::WRITE_AUX_BUFFER => self.answer(value),
            // A byte for the keyboard or the mouse.
            _ => self.no_device(),
        }
    }

    fn write_control_a(&mut self, value: u8) {
        let before = self.control_a;
        self.control_a = ControlA::from_bits(value);
        if self.control_a.reset() && !before.reset() {
            self.power
                .power_event(PowerEvent::Reset(ResetSource::FastReset));
        }
    }

    fn reset_machine(&self) {
        self.power
            .power_event(PowerEvent::Reset(ResetSource::KeyboardController));
    }

    fn update_line(&mut self) {
        let asserted = self.status.output_full() && self.command_byte().keyboard_interrupt();
        self.line.set(asserted);
    }
}

impl Lifecycle for I8042 {
    fn reset(&mut self) {
        let new = Self::new(InterruptLine::unconnected(), self.power.clone());
        self.status = new.status;
        self.output = new.output;
        self.waiting = new.waiting;
        self.ram = new.ram;
        self.output_port = new.output_port;
        self.control_a = new.control_a;
        self.update_line();
    }

    fn save(&self) -> SavedState {
        let state = State {
            status: self.status.into_bits().into(),
            output: self.output.into(),
            waiting: self.waiting.into(),
            ram: self.ram.to_vec(),
            output_port: self.output_port.into_bits().into(),
            control_a: self.control_a.into_bits().into(),
        };
        SavedState::new(STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(STATE_VERSION)?;
        let ram = state
            .ram
            .as_slice()
            .try_into()
            .map_err(|_| RestoreError::Value {
                field: "ram",
                value: state.ram.len() as u64,
                expected: "32 bytes",
            })?;
        let status = Status::from_bits(byte("status", state.status)?);
        let output = byte("output", state.output)?;
        let waiting = byte("waiting", state.waiting)?;
        let output_port = byte("output_port", state.output_port)?;
        let control_a = byte("control_a", state.control_a)?;
        self.status = status
            .with_input_full(false)
            .with_unlocked(true)
            .with_aux(false)
            .with_parity(false);
        self.output = output;
        self.waiting = waiting;
        self.ram = ram;
        self.output_port = OutputPort::from_bits(output_port).with_not_reset(true);
        self.control_a = ControlA::from_bits(control_a);
        self.update_line();
        Ok(())
    }
}

impl Device for I8042 {
    fn regions(&self) -> Vec<Region> {
        [DATA_PORT, COMMAND_PORT, CONTROL_PORT_A]
            .map(|port| Region::byte_ports(port, 1))
            .to_vec()
    }

    fn read(&mut self, access: Access) -> u64 {
        let value = match access.region {
            region::DATA => self.read_data(),
            region::COMMAND => self.status.into_bits(),
            _ => self.control_a.into_bits(),
        };
        self.update_line();
        value.into()
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        let value = value as u8;
        match access.region {
            region::DATA => self.write_data(value),
            region::COMMAND => self.write_command(value),
            _ => self.write_control_a(value),
        }
        self.update_line();
        Written::Done
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042")
            .field("status", &self.status)
            .field("command_byte", &self.command_byte())
            .finish_non_exhaustive()
    }
}

const STATE_VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(uint32, tag = "2")]
    output: u32,
    #[prost(uint32, tag = "3")]
    waiting: u32,
    #[prost(bytes = "vec", tag = "4")]
    ram: Vec<u8>,
    #[prost(uint32, tag = "5")]
    output_port: u32,
    #[prost(uint32, tag = "6")]
    control_a: u32,
}

//! 16550A UART, as the PC16550D data sheet (National Semiconductor, June 1995) has it,
//! wired as on a PC: 1.8432 MHz, interrupt through OUT2.
//!
//! **Back-pressure.** Nothing is buffered beyond the two FIFOs, and neither overflows for
//! the backend's sake:
//! - Output leaves the FIFO when the backend takes it. Until then the guest sees a
//!   transmitter that is busy. A guest that writes to a full FIFO all the same (Linux
//!   does, 10 ms after it began to wait) finds its VP held up: [`Written::Stalled`].
//!   Output is never thrown away: a reset of the FIFO or of the machine comes long after
//!   the bytes would have left a real chip.
//! - Input is fetched when there is room, never in a guest's access but in
//!   [`Device::poll`]. So an interrupt handler that reads until the FIFO is empty ends,
//!   and the next bytes are a new edge of the interrupt line. A guest that has raised RTS
//!   once gets input only while it holds RTS raised.
//!
//! **What differs from the chip.** Bytes take no time on the wire: the transmitter is
//! empty as soon as the backend is willing. Time counts only for the character timeout of
//! the receive FIFO. All bytes have 8 bits and no parity errors, whatever LCR says (it
//! sets the length of a character in time). LSR and MSR cannot be written.

mod outside;
mod registers;
mod saved;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use inspect::Inspect;

pub use outside::ModemInputs;
pub use outside::SerialBackend;
pub use outside::UartCounters;
pub use registers::InterruptEnable;
pub use registers::InterruptId;
pub use registers::LineControl;
pub use registers::LineStatus;
pub use registers::ModemControl;
pub use registers::ModemStatus;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::line::InterruptLine;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::time::Clock;
use crate::time::VmTime;
use registers::Registers;

/// Bytes in each FIFO.
pub const FIFO_SIZE: usize = 16;
/// First port of COM1.
pub const COM1_BASE: u16 = 0x3f8;
/// First port of COM2.
pub const COM2_BASE: u16 = 0x2f8;

const PORTS: u16 = 8;
/// Clock of the baud rate generator divided by the 16 clocks of a bit.
const BITS_PER_SECOND: u64 = 115_200;
/// Character times without input or read after which a FIFO below its trigger level
/// causes an interrupt all the same.
const TIMEOUT_CHARACTERS: u32 = 4;

mod offset {
    pub(super) const DATA: u64 = 0;
    pub(super) const INTERRUPT_ENABLE: u64 = 1;
    pub(super) const INTERRUPT_ID: u64 = 2;
    pub(super) const LINE_CONTROL: u64 = 3;
    pub(super) const MODEM_CONTROL: u64 = 4;
    pub(super) const LINE_STATUS: u64 = 5;
    pub(super) const MODEM_STATUS: u64 = 6;
    pub(super) const SCRATCH: u64 = 7;
}

/// A byte in the receive FIFO, with the LSR bits that belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Received {
    byte: u8,
    errors: u8,
}

/// A UART.
#[derive(Inspect)]
#[inspect(extra = "Self::inspect_more")]
pub struct Uart {
    #[inspect(hex)]
    base: u16,
    #[inspect(skip)]
    clock: Arc<dyn Clock>,
    line: InterruptLine,
    #[inspect(skip)]
    backend: Box<dyn SerialBackend>,
    #[inspect(skip)]
    inputs: ModemInputs,
    #[inspect(flatten)]
    registers: Registers,
    // What a guest types is not shown, only how much of it waits.
    #[inspect(rename = "receive_bytes", with = "ArrayVec::len")]
    receive: ArrayVec<Received, FIFO_SIZE>,
    #[inspect(rename = "transmit_bytes", with = "ArrayVec::len")]
    transmit: ArrayVec<u8, FIFO_SIZE>,
    /// Last time that a byte came into the receive FIFO or was read from it.
    #[inspect(skip)]
    last_receive: VmTime,
    /// The backend may have bytes for which it will not ask for another poll.
    more_input: bool,
    /// A VP waits until there is room for its byte.
    stalled: bool,
    counters: UartCounters,
}

impl Uart {
    /// A UART at port `base`.
    pub fn new(
        base: u16,
        clock: Arc<dyn Clock>,
        line: InterruptLine,
        backend: Box<dyn SerialBackend>,
    ) -> Self {
        let inputs = ModemInputs::CONNECTED;
        Self {
            base,
            last_receive: clock.now(),
            clock,
            line,
            backend,
            inputs,
            registers: Registers::at_reset(inputs),
            receive: ArrayVec::new(),
            transmit: ArrayVec::new(),
            more_input: true,
            stalled: false,
            counters: UartCounters::default(),
        }
    }

    /// There is room for input: poll when the backend has some. While this is false a
    /// poll for input is in vain.
    pub fn wants_input(&self) -> bool {
        self.receives() && self.receive.len() < self.capacity()
    }

    /// Bytes wait for the backend, whatever the guest has done since: poll when it has
    /// room.
    pub fn wants_output(&self) -> bool {
        !self.transmit.is_empty()
    }

    /// What has passed through.
    pub fn counters(&self) -> UartCounters {
        self.counters
    }

    /// The modem's lines have changed.
    pub fn set_modem_inputs(&mut self, inputs: ModemInputs) {
        self.inputs = inputs;
        self.update_modem_status();
        self.update_line();
    }

    /// The other end sends a break. Returns false if the FIFO is full; try again after
    /// the guest has read.
    pub fn receive_break(&mut self) -> bool {
        if !self.wants_input() {
            return false;
        }
        self.advance();
        let errors = LineStatus::new().with_break_interrupt(true);
        // A break has no stop bit.
        let errors = errors.with_framing_error(true);
        self.push_received(0, errors.into_bits());
        self.update_line();
        true
    }

    fn inspect_more(&self, response: &mut inspect::Response<'_>) {
        response.debug("interrupt", &self.interrupt());
    }

    fn capacity(&self) -> usize {
        if self.registers.fifo_enabled {
            FIFO_SIZE
        } else {
            1
        }
    }

    /// The receiver listens to the backend.
    fn receives(&self) -> bool {
        let control = self.registers.modem_control;
        !control.loopback() && (control.rts() || !self.registers.rts_used)
    }

    /// Time on the wire of start bit, data, parity and stop bits. (1.5 stop bits count
    /// as 2.)
    fn character_time(&self) -> Duration {
        let control = self.registers.line_control;
        let bits = 1
            + 5
            + u64::from(control.word_length())
            + u64::from(control.parity())
            + 1
            + u64::from(control.two_stop_bits());
        let divisor = u64::from(self.registers.divisor.max(1));
        Duration::from_nanos(bits * divisor * 1_000_000_000 / BITS_PER_SECOND)
    }

    fn timeout_at(&self) -> Option<VmTime> {
        let counts = self.registers.fifo_enabled && !self.receive.is_empty();
        let runs = counts && !self.registers.timeout_pending;
        runs.then(|| {
            let wait = self.character_time() * TIMEOUT_CHARACTERS;
            self.last_receive.after(wait)
        })
    }

    /// Lets time pass.
    fn advance(&mut self) {
        if self.timeout_at().is_some_and(|at| at <= self.clock.now()) {
            self.registers.timeout_pending = true;
        }
    }

    fn interrupt(&self) -> InterruptId {
        let enable = self.registers.interrupt_enable;
        let trigger = usize::from(self.registers.trigger);
        let level = if self.registers.fifo_enabled {
            trigger
        } else {
            1
        };
        // In the order of the data sheet's table IV.
        if enable.line_status() && self.registers.line_errors.any_error() {
            InterruptId::LineStatus
        } else if enable.received() && self.receive.len() >= level {
            InterruptId::Received
        } else if enable.received() && self.registers.timeout_pending {
            InterruptId::Timeout
        } else if enable.transmitter_empty() && self.registers.empty_pending {
            InterruptId::TransmitterEmpty
        } else if enable.modem_status() && self.registers.modem_status.any_change() {
            InterruptId::ModemStatus
        } else {
            InterruptId::None
        }
    }

    /// Sets the line to what the registers say. On a PC the OUT2 pin gates it, and
    /// loopback deasserts the pin.
    fn update_line(&mut self) {
        let control = self.registers.modem_control;
        let gate = control.out2() && !control.loopback();
        self.line.set(gate && self.interrupt() != InterruptId::None);
    }

    /// Brings MSR to the levels of the lines, or of MCR in loopback.
    fn update_modem_status(&mut self) {
        let control = self.registers.modem_control;
        let inputs = if control.loopback() {
            ModemInputs {
                cts: control.rts(),
                dsr: control.dtr(),
                ri: control.out1(),
                dcd: control.out2(),
            }
        } else {
            self.inputs
        };
        self.registers.modem_status = self.registers.modem_status.changed_to(inputs);
    }

    /// Puts a byte into the receive FIFO, or loses one of two as the chip does.
    fn push_received(&mut self, byte: u8, errors: u8) {
        let new = Received { byte, errors };
        if self.receive.len() >= self.capacity() {
            self.registers.line_errors.set_overrun_error(true);
            if self.registers.fifo_enabled {
                // The FIFO stays as it is; the byte in the shift register is lost.
                return;
            }
            self.receive.clear();
        }
        self.receive.push(new);
        self.last_receive = self.clock.now();
        self.show_first();
    }

    /// The errors of the byte at the front appear in LSR.
    fn show_first(&mut self) {
        if let Some(first) = self.receive.first_mut() {
            let shown = self.registers.line_errors.into_bits() | first.errors;
            self.registers.line_errors = LineStatus::from_bits(shown);
            first.errors = 0;
        }
    }

    fn read_data(&mut self) -> u8 {
        let Some(byte) = self.receive.pop_at(0).map(|received| received.byte) else {
            // The buffer register keeps its last value in the chip; nobody may rely on it.
            return 0;
        };
        self.registers.timeout_pending = false;
        self.last_receive = self.clock.now();
        self.show_first();
        byte
    }

    fn write_data(&mut self, byte: u8) -> Written {
        if self.registers.modem_control.loopback() {
            self.push_received(byte, 0);
            self.registers.empty_pending = true;
            return Written::Done;
        }
        if !self.has_room() {
            self.send();
        }
        if !self.has_room() {
            self.stalled = true;
            self.counters.stalls += 1;
            return Written::Stalled;
        }
        self.transmit.push(byte);
        self.registers.empty_pending = false;
        // The line falls before it rises again, however quick the backend is: a handler
        // that answers the interrupt by a write waits for an edge.
        self.update_line();
        self.send();
        Written::Done
    }

    /// Gives output to the backend.
    fn send(&mut self) {
        while !self.transmit.is_empty() {
            let taken = self.backend.write(&self.transmit);
            let taken = taken.min(self.transmit.len());
            if taken == 0 {
                break;
            }
            self.transmit.drain(..taken);
            self.counters.sent += taken as u64;
            self.registers.empty_pending |= self.transmit.is_empty();
        }
        self.stalled &= !self.has_room();
    }

    /// A byte more can be written.
    fn has_room(&self) -> bool {
        self.transmit.len() < self.capacity()
    }

    /// All that was written is where it goes. In loopback that takes no time.
    fn is_sent(&self) -> bool {
        self.transmit.is_empty() || self.registers.modem_control.loopback()
    }

    /// Fetches input for which there is room.
    fn fetch(&mut self) {
        if !self.wants_input() {
            // Look again as soon as there is.
            self.more_input = true;
            return;
        }
        let room = self.capacity() - self.receive.len();
        let mut buffer = [0; FIFO_SIZE];
        let count = self.backend.read(&mut buffer[..room]).min(room);
        for &byte in &buffer[..count] {
            self.push_received(byte, 0);
        }
        self.counters.received += count as u64;
        self.more_input = count == room;
    }

    fn line_status(&self) -> LineStatus {
        let later = self.receive.iter().any(|received| received.errors != 0);
        let shown = self.registers.line_errors.any_character_error();
        self.registers
            .line_errors
            .with_data_ready(!self.receive.is_empty())
            .with_holding_empty(self.is_sent())
            .with_transmitter_empty(self.is_sent())
            .with_fifo_error(self.registers.fifo_enabled && (later || shown))
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let latch = self.registers.line_control.divisor_latch();
        let divisor = self.registers.divisor.to_le_bytes();
        match offset {
            offset::DATA if latch => divisor[0],
            offset::INTERRUPT_ENABLE if latch => divisor[1],
            offset::DATA => self.read_data(),
            offset::INTERRUPT_ENABLE => self.registers.interrupt_enable.into_bits(),
            offset::INTERRUPT_ID => {
                let interrupt = self.interrupt();
                if interrupt == InterruptId::TransmitterEmpty {
                    self.registers.empty_pending = false;
                }
                interrupt.register(self.registers.fifo_enabled)
            }
            offset::LINE_CONTROL => self.registers.line_control.into_bits(),
            offset::MODEM_CONTROL => self.registers.modem_control.into_bits(),
            offset::LINE_STATUS => {
                let status = self.line_status();
                self.registers.line_errors = LineStatus::new();
                status.into_bits()
            }
            offset::MODEM_STATUS => {
                let status = self.registers.modem_status;
                self.registers.modem_status = status.without_changes();
                status.into_bits()
            }
            offset::SCRATCH => self.registers.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) -> Written {
        let latch = self.registers.line_control.divisor_latch();
        let [low, high] = self.registers.divisor.to_le_bytes();
        match offset {
            offset::DATA if latch => self.registers.divisor = u16::from_le_bytes([value, high]),
            offset::INTERRUPT_ENABLE if latch => {
                self.registers.divisor = u16::from_le_bytes([low, value]);
            }
            offset::DATA => return self.write_data(value),
            offset::INTERRUPT_ENABLE => self.write_interrupt_enable(value),
            offset::INTERRUPT_ID => self.write_fifo_control(value),
            offset::LINE_CONTROL => self.registers.line_control = LineControl::from_bits(value),
            offset::MODEM_CONTROL => {
                let control = ModemControl::from_bits(value).existing();
                self.registers.modem_control = control;
                self.registers.rts_used |= control.rts();
                self.update_modem_status();
            }
            offset::SCRATCH => self.registers.scratch = value,
            // LSR is for factory tests; of MSR all bits come from outside.
            _ => {}
        }
        Written::Done
    }

    fn write_interrupt_enable(&mut self, value: u8) {
        let before = self.registers.interrupt_enable;
        let after = InterruptEnable::from_bits(value).existing();
        self.registers.interrupt_enable = after;
        // Enabling the interrupt of an empty transmitter causes it, told or not.
        let enabled = after.transmitter_empty() && !before.transmitter_empty();
        if enabled && self.is_sent() {
            self.registers.empty_pending = true;
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let control = registers::FifoControl::from_bits(value);
        let changed = control.enable() != self.registers.fifo_enabled;
        self.registers.fifo_enabled = control.enable();
        if changed {
            self.reset_receive();
            // The data sheet: "the transmitter interrupt after changing FCR0 will be
            // immediate, if it is enabled".
            self.registers.empty_pending |= self.is_sent();
            self.stalled &= !self.has_room();
        }
        // The other bits are programmed only together with the first.
        if !control.enable() {
            return;
        }
        if control.reset_receive() {
            self.reset_receive();
        }
        self.registers.trigger = control.trigger_level();
    }

    fn reset_receive(&mut self) {
        self.counters.discarded += self.receive.len() as u64;
        self.receive.clear();
        self.registers.timeout_pending = false;
        let overrun = self.registers.line_errors.overrun_error();
        self.registers.line_errors = LineStatus::new().with_overrun_error(overrun);
    }
}

impl Lifecycle for Uart {
    fn resume(&mut self) {
        self.poll();
    }

    fn start(&mut self) {
        self.poll();
    }

    fn reset(&mut self) {
        self.reset_receive();
        self.registers = Registers::at_reset(self.inputs);
        self.more_input = true;
        // The VP that waited has been reset as well.
        self.stalled = false;
        self.update_line();
    }

    fn save(&self) -> SavedState {
        self.save_state()
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        self.restore_state(state)
    }
}

impl Device for Uart {
    fn regions(&self) -> Vec<Region> {
        vec![Region::byte_ports(self.base, PORTS)]
    }

    fn read(&mut self, access: Access) -> u64 {
        self.advance();
        let value = self.read_register(access.offset);
        self.update_line();
        value.into()
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        self.advance();
        let written = self.write_register(access.offset, value as u8);
        self.update_line();
        written
    }

    fn poll(&mut self) {
        self.advance();
        self.send();
        self.fetch();
        self.update_line();
    }

    fn stalls(&self) -> bool {
        self.stalled
    }

    fn deadline(&self) -> Option<VmTime> {
        // Input is fetched into an empty FIFO only: a guest that reads slowly would
        // otherwise cost a poll for each byte.
        if self.more_input && self.receives() && self.receive.is_empty() {
            return Some(VmTime::ZERO);
        }
        let interrupt = self.registers.interrupt_enable.received();
        self.timeout_at().filter(|_| interrupt)
    }
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart")
            .field("base", &self.base)
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

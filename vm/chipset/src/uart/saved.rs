//! A UART's saved state.

use arrayvec::ArrayVec;

use super::FIFO_SIZE;
use super::InterruptEnable;
use super::LineControl;
use super::LineStatus;
use super::ModemControl;
use super::ModemInputs;
use super::ModemStatus;
use super::Received;
use super::Uart;
use super::registers::Registers;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::byte;
use crate::state::word;
use std::time::Duration;

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    interrupt_enable: u32,
    #[prost(uint32, tag = "2")]
    line_control: u32,
    #[prost(uint32, tag = "3")]
    modem_control: u32,
    #[prost(uint32, tag = "4")]
    scratch: u32,
    #[prost(uint32, tag = "5")]
    divisor: u32,
    #[prost(bool, tag = "6")]
    fifo_enabled: bool,
    #[prost(uint32, tag = "7")]
    trigger: u32,
    #[prost(uint32, tag = "8")]
    line_errors: u32,
    #[prost(uint32, tag = "9")]
    modem_status: u32,
    #[prost(bool, tag = "10")]
    empty_pending: bool,
    #[prost(bool, tag = "11")]
    timeout_pending: bool,
    #[prost(bool, tag = "12")]
    rts_used: bool,
    /// As the upper half of MSR.
    #[prost(uint32, tag = "13")]
    modem_inputs: u32,
    #[prost(bytes = "vec", tag = "14")]
    receive: Vec<u8>,
    /// LSR bits of each byte of `receive`.
    #[prost(bytes = "vec", tag = "15")]
    receive_errors: Vec<u8>,
    #[prost(bytes = "vec", tag = "16")]
    transmit: Vec<u8>,
    /// Nanoseconds since the receive FIFO changed last.
    #[prost(uint64, tag = "17")]
    idle_ns: u64,
}

impl Uart {
    pub(super) fn save_state(&self) -> SavedState {
        let registers = &self.registers;
        let idle = self.clock.now().since(self.last_receive);
        let state = State {
            interrupt_enable: registers.interrupt_enable.into_bits().into(),
            line_control: registers.line_control.into_bits().into(),
            modem_control: registers.modem_control.into_bits().into(),
            scratch: registers.scratch.into(),
            divisor: registers.divisor.into(),
            fifo_enabled: registers.fifo_enabled,
            trigger: registers.trigger.into(),
            line_errors: registers.line_errors.into_bits().into(),
            modem_status: registers.modem_status.into_bits().into(),
            empty_pending: registers.empty_pending,
            timeout_pending: registers.timeout_pending,
            rts_used: registers.rts_used,
            modem_inputs: ModemStatus::of_inputs(self.inputs).into_bits().into(),
            receive: self.receive.iter().map(|r| r.byte).collect(),
            receive_errors: self.receive.iter().map(|r| r.errors).collect(),
            transmit: self.transmit.to_vec(),
            idle_ns: u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX),
        };
        SavedState::new(VERSION, &state)
    }

    pub(super) fn restore_state(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(VERSION)?;
        let registers = registers(&state)?;
        let capacity = if state.fifo_enabled { FIFO_SIZE } else { 1 };
        let receive = received(&state, capacity)?;
        let transmit = fifo("transmit", &state.transmit, FIFO_SIZE)?;
        let inputs = ModemStatus::from_bits(byte("modem_inputs", state.modem_inputs)?);

        self.inputs = ModemInputs {
            cts: inputs.cts(),
            dsr: inputs.dsr(),
            ri: inputs.ri(),
            dcd: inputs.dcd(),
        };
        self.registers = registers;
        self.receive = receive;
        self.transmit = transmit;
        self.last_receive = self.clock.now().before(Duration::from_nanos(state.idle_ns));
        // The backend is another one.
        self.more_input = true;
        self.update_line();
        Ok(())
    }
}

fn registers(state: &State) -> Result<Registers, RestoreError> {
    let line_errors = LineStatus::from_bits(byte("line_errors", state.line_errors)?);
    let trigger = byte("trigger", state.trigger)?;
    if ![1, 4, 8, 14].contains(&trigger) {
        return Err(RestoreError::Value {
            field: "trigger",
            value: trigger.into(),
            expected: "1, 4, 8 or 14",
        });
    }
    let enable = InterruptEnable::from_bits(byte("interrupt_enable", state.interrupt_enable)?);
    let control = ModemControl::from_bits(byte("modem_control", state.modem_control)?);
    Ok(Registers {
        interrupt_enable: enable.existing(),
        line_control: LineControl::from_bits(byte("line_control", state.line_control)?),
        modem_control: control.existing(),
        scratch: byte("scratch", state.scratch)?,
        divisor: word("divisor", state.divisor)?,
        fifo_enabled: state.fifo_enabled,
        trigger,
        line_errors: LineStatus::new()
            .with_overrun_error(line_errors.overrun_error())
            .with_parity_error(line_errors.parity_error())
            .with_framing_error(line_errors.framing_error())
            .with_break_interrupt(line_errors.break_interrupt()),
        modem_status: ModemStatus::from_bits(byte("modem_status", state.modem_status)?),
        empty_pending: state.empty_pending,
        timeout_pending: state.timeout_pending,
        rts_used: state.rts_used,
    })
}

fn received(state: &State, capacity: usize) -> Result<ArrayVec<Received, FIFO_SIZE>, RestoreError> {
    let bytes = fifo("receive", &state.receive, capacity)?;
    if state.receive_errors.len() != bytes.len() {
        return Err(RestoreError::Value {
            field: "receive_errors",
            value: state.receive_errors.len() as u64,
            expected: "as many as bytes in receive",
        });
    }
    // Only the bits that belong to a byte.
    let mask = LineStatus::new()
        .with_parity_error(true)
        .with_framing_error(true)
        .with_break_interrupt(true)
        .into_bits();
    let pairs = bytes.into_iter().zip(&state.receive_errors);
    let received = pairs.map(|(byte, errors)| Received {
        byte,
        errors: errors & mask,
    });
    Ok(received.collect())
}

fn fifo(
    field: &'static str,
    bytes: &[u8],
    capacity: usize,
) -> Result<ArrayVec<u8, FIFO_SIZE>, RestoreError> {
    if bytes.len() > capacity {
        return Err(RestoreError::Value {
            field,
            value: bytes.len() as u64,
            expected: "at most the bytes of a FIFO",
        });
    }
    Ok(bytes.iter().copied().collect())
}

/// States that no UART saves, each with the field that is wrong.
#[cfg(test)]
pub(super) fn broken_states(uart: &Uart) -> Vec<(&'static str, SavedState)> {
    let good: State = uart.save_state().open(VERSION).expect("saved just now");
    let broken = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        SavedState::new(VERSION, &state)
    };
    vec![
        ("version", SavedState::new(VERSION + 1, &good)),
        ("version", SavedState::new(0, &good)),
        ("trigger", broken(|s| s.trigger = 2)),
        ("divisor", broken(|s| s.divisor = 0x1_0000)),
        ("scratch", broken(|s| s.scratch = 0x100)),
        ("modem_inputs", broken(|s| s.modem_inputs = u32::MAX)),
        ("receive", broken(|s| s.receive = vec![0; 17])),
        ("receive_errors", broken(|s| s.receive_errors = vec![0])),
        ("transmit", broken(|s| s.transmit = vec![0; 17])),
        (
            "receive",
            broken(|s| {
                s.fifo_enabled = false;
                s.receive = vec![0; 2];
            }),
        ),
    ]
}

//! Register layouts: data sheet, table II "Summary of registers".

use bitfield_struct::bitfield;
use inspect::Inspect;

use super::ModemInputs;

/// 9600 baud; the data sheet leaves the latch undefined after a reset.
const DIVISOR_AT_RESET: u16 = 12;

/// IER.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct InterruptEnable {
    /// Received data available, and character timeout.
    pub received: bool,
    /// Transmitter holding register empty.
    pub transmitter_empty: bool,
    /// Overrun, parity, framing, break.
    pub line_status: bool,
    /// Change of a modem line.
    pub modem_status: bool,
    #[bits(4)]
    absent: u8,
}

impl InterruptEnable {
    /// Without the bits that the chip does not have.
    pub const fn existing(self) -> Self {
        self.with_absent(0)
    }
}

/// What IIR identifies, by falling priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InterruptId {
    /// An error in the received data.
    LineStatus,
    /// Data, as much as the trigger level asks for.
    Received,
    /// Data, less than that, and nothing more for a while.
    Timeout,
    /// The transmitter has become empty.
    TransmitterEmpty,
    /// A modem line has changed.
    ModemStatus,
    /// Nothing.
    None,
}

impl InterruptId {
    /// The register's value: table IV "Interrupt control functions".
    pub(super) const fn register(self, fifo_enabled: bool) -> u8 {
        let id = match self {
            Self::LineStatus => 0b0110,
            Self::Received => 0b0100,
            Self::Timeout => 0b1100,
            Self::TransmitterEmpty => 0b0010,
            Self::ModemStatus => 0b0000,
            Self::None => 0b0001,
        };
        if fifo_enabled { id | 0xc0 } else { id }
    }
}

/// FCR.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(super) struct FifoControl {
    pub(super) enable: bool,
    pub(super) reset_receive: bool,
    /// Has no effect: what is in that FIFO is as good as sent.
    reset_transmit: bool,
    dma_mode: bool,
    #[bits(2)]
    reserved: u8,
    #[bits(2)]
    trigger: u8,
}

impl FifoControl {
    pub(super) const fn trigger_level(self) -> u8 {
        match self.trigger() {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }
}

/// LCR.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct LineControl {
    /// Data bits less five.
    #[bits(2)]
    pub word_length: u8,
    /// A second stop bit.
    pub two_stop_bits: bool,
    /// A parity bit.
    pub parity: bool,
    /// Even parity.
    pub even_parity: bool,
    /// Fixed parity.
    pub stick_parity: bool,
    /// Holds the output spacing.
    pub set_break: bool,
    /// Offsets 0 and 1 are the divisor.
    pub divisor_latch: bool,
}

/// MCR.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ModemControl {
    /// Data terminal ready.
    pub dtr: bool,
    /// Request to send.
    pub rts: bool,
    /// Not connected on a PC.
    pub out1: bool,
    /// On a PC: lets the interrupt out.
    pub out2: bool,
    /// Output comes back as input.
    pub loopback: bool,
    #[bits(3)]
    absent: u8,
}

impl ModemControl {
    /// Without the bits that the chip does not have.
    pub const fn existing(self) -> Self {
        self.with_absent(0)
    }
}

/// LSR.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct LineStatus {
    /// There is input.
    pub data_ready: bool,
    /// Input was lost.
    pub overrun_error: bool,
    /// The byte at the front has a wrong parity.
    pub parity_error: bool,
    /// The byte at the front has no stop bit.
    pub framing_error: bool,
    /// The byte at the front is a break.
    pub break_interrupt: bool,
    /// A whole FIFO can be written.
    pub holding_empty: bool,
    /// All is sent.
    pub transmitter_empty: bool,
    /// Some byte in the FIFO has an error.
    pub fifo_error: bool,
}

impl LineStatus {
    /// One of the bits that the line status interrupt is for.
    pub(super) const fn any_error(self) -> bool {
        self.overrun_error() || self.any_character_error()
    }

    /// One of the bits that belong to a byte.
    pub(super) const fn any_character_error(self) -> bool {
        self.parity_error() || self.framing_error() || self.break_interrupt()
    }
}

/// MSR.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ModemStatus {
    /// CTS has changed.
    pub cts_changed: bool,
    /// DSR has changed.
    pub dsr_changed: bool,
    /// RI has ended.
    pub ring_ended: bool,
    /// DCD has changed.
    pub dcd_changed: bool,
    /// Clear to send.
    pub cts: bool,
    /// Data set ready.
    pub dsr: bool,
    /// Ring.
    pub ri: bool,
    /// Carrier.
    pub dcd: bool,
}

impl ModemStatus {
    pub(super) const fn of_inputs(inputs: ModemInputs) -> Self {
        Self::new()
            .with_cts(inputs.cts)
            .with_dsr(inputs.dsr)
            .with_ri(inputs.ri)
            .with_dcd(inputs.dcd)
    }

    /// The status after the lines have gone to `inputs`.
    pub(super) const fn changed_to(self, inputs: ModemInputs) -> Self {
        Self::of_inputs(inputs)
            .with_cts_changed(self.cts_changed() || self.cts() != inputs.cts)
            .with_dsr_changed(self.dsr_changed() || self.dsr() != inputs.dsr)
            .with_ring_ended(self.ring_ended() || (self.ri() && !inputs.ri))
            .with_dcd_changed(self.dcd_changed() || self.dcd() != inputs.dcd)
    }

    pub(super) const fn without_changes(self) -> Self {
        Self::from_bits(self.into_bits() & 0xf0)
    }

    pub(super) const fn any_change(self) -> bool {
        self.into_bits() & 0x0f != 0
    }
}

/// Registers of which the guest knows all bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Inspect)]
pub(super) struct Registers {
    #[inspect(debug)]
    pub(super) interrupt_enable: InterruptEnable,
    #[inspect(debug)]
    pub(super) line_control: LineControl,
    #[inspect(debug)]
    pub(super) modem_control: ModemControl,
    #[inspect(hex)]
    pub(super) scratch: u8,
    pub(super) divisor: u16,
    pub(super) fifo_enabled: bool,
    /// Bytes in the FIFO that cause the receive interrupt.
    pub(super) trigger: u8,
    /// OE, PE, FE and BI as LSR shows them.
    #[inspect(debug)]
    pub(super) line_errors: LineStatus,
    /// Modem lines (or the loop) and what has changed there.
    #[inspect(debug)]
    pub(super) modem_status: ModemStatus,
    /// The transmitter has become empty, and the guest does not know yet.
    pub(super) empty_pending: bool,
    /// The character timeout has passed.
    pub(super) timeout_pending: bool,
    /// The guest knows RTS.
    pub(super) rts_used: bool,
}

impl Registers {
    pub(super) fn at_reset(inputs: ModemInputs) -> Self {
        Self {
            interrupt_enable: InterruptEnable::new(),
            line_control: LineControl::new(),
            modem_control: ModemControl::new(),
            scratch: 0,
            divisor: DIVISOR_AT_RESET,
            fifo_enabled: false,
            trigger: 1,
            line_errors: LineStatus::new(),
            modem_status: ModemStatus::of_inputs(inputs),
            empty_pending: false,
            timeout_pending: false,
            rts_used: false,
        }
    }
}

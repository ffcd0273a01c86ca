//! What is at the other end of a UART's cable.

use inspect::Inspect;

/// The other end of the cable.
///
/// Neither method blocks. Called with the device locked, on the VP's thread or the
/// poller's: must not call back into the device. A backend with nobody behind it takes
/// everything and gives nothing, for a full backend holds the guest up.
pub trait SerialBackend: Send {
    /// Takes bytes from the front of `bytes` and says how many; 0 if there is no room
    /// now.
    fn write(&mut self, bytes: &[u8]) -> usize;

    /// Puts bytes at the front of `buffer` and says how many; 0 if there are none now.
    fn read(&mut self, buffer: &mut [u8]) -> usize;
}

/// Levels of the modem's outputs, which are inputs of the UART.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModemInputs {
    /// Clear to send.
    pub cts: bool,
    /// Data set ready.
    pub dsr: bool,
    /// Ring.
    pub ri: bool,
    /// Carrier.
    pub dcd: bool,
}

impl ModemInputs {
    /// A null-modem cable with a listener.
    pub const CONNECTED: Self = Self {
        cts: true,
        dsr: true,
        ri: false,
        dcd: true,
    };
}

/// What has passed through a UART, for whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Inspect)]
pub struct UartCounters {
    /// Bytes given to the backend.
    #[inspect(counter)]
    pub sent: u64,
    /// Bytes taken from the backend.
    #[inspect(counter)]
    pub received: u64,
    /// Writes that held a VP up.
    #[inspect(counter)]
    pub stalls: u64,
    /// Bytes of input that the guest threw away by resetting the FIFO or the machine.
    #[inspect(counter)]
    pub discarded: u64,
}

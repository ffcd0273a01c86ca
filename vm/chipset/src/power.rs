//! What a guest asks of the machine as a whole.

/// A request to end or restart VTL0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerEvent {
    /// Power off (ACPI S5).
    PowerOff,
    /// Reset VTL0.
    Reset(ResetSource),
    /// A sleep type that no table of ours names; the guest goes on running.
    UnknownSleepType(u8),
}

/// The way in which a guest asked for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetSource {
    /// Keyboard controller: pulse of, or zero for, the reset bit of its output port.
    KeyboardController,
    /// Port 0x92, bit 0.
    FastReset,
    /// Port 0xcf9, which is also the reset register of the FADT.
    ResetControl,
}

/// Receives [`PowerEvent`]s.
///
/// Called with the device locked, from the thread of the VP that made the access:
/// remember the event and return, do not call back into a device.
pub trait PowerEvents: Send + Sync {
    /// The guest asked for `event`. More may follow until its VPs are stopped.
    fn power_event(&self, event: PowerEvent);
}

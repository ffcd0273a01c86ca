//! How a machine ended.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use vsm_host_defs::ExitReason;

/// How the QEMU process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The host left through `isa-debug-exit` and said why.
    Host(ExitReason),
    /// QEMU's own normal end: an ACPI power-off, a monitor's `quit`, or, because of
    /// `-no-reboot`, a reset or triple fault outside of any VTL.
    Normal,
    /// A status that the host never gives; 1 is QEMU's own refusal to start.
    Status(i32),
    /// A signal killed the process.
    Signal(i32),
}

impl Exit {
    /// Decodes the status of a QEMU process.
    pub fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::Normal,
            (Some(code), _) => {
                ExitReason::from_qemu_status(code).map_or(Self::Status(code), Self::Host)
            }
            (None, Some(signal)) => Self::Signal(signal),
            // Not reachable for a process that was waited for: it exited or was killed.
            (None, None) => Self::Status(-1),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(ExitReason::PowerOff) => f.write_str("VTL2 powered the machine off"),
            Self::Host(ExitReason::Vtl2Crash) => f.write_str("VTL2 crashed"),
            Self::Host(ExitReason::HostError) => f.write_str("vsm_host failed"),
            Self::Host(ExitReason::ImageRefused) => f.write_str("vsm_host refused the IGVM file"),
            Self::Host(ExitReason::Reset) => f.write_str("VTL2 asked for a reset"),
            Self::Host(ExitReason::GuestCrash) => f.write_str("the guest crashed"),
            Self::Normal => {
                f.write_str("QEMU ended normally: power-off, quit, or a reset outside of any VTL")
            }
            Self::Status(code) => write!(f, "QEMU exited with status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal} killed QEMU"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Exit {
        Exit::from_status(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn statuses_of_the_host_are_told_apart() {
        for reason in ExitReason::ALL {
            assert_eq!(exited(reason.qemu_status()), Exit::Host(reason));
        }
    }

    #[test]
    fn other_ends_are_not_taken_for_the_host() {
        assert_eq!(exited(0), Exit::Normal);
        assert_eq!(exited(1), Exit::Status(1));
        assert_eq!(exited(34), Exit::Status(34));
        assert_eq!(Exit::from_status(ExitStatus::from_raw(9)), Exit::Signal(9));
    }
}

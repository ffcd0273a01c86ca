//! How the bare-metal host and the machine that starts it talk.
//!
//! `vsm_host` is the one side; the QEMU library, tests and benches are the other. The
//! host logs to QEMU's debug console and leaves through `isa-debug-exit`.

#![no_std]
#![forbid(unsafe_code)]

/// I/O port of QEMU's `isa-debugcon`: one byte per write.
pub const DEBUG_CONSOLE_PORT: u16 = 0xe9;

/// I/O port of QEMU's `isa-debug-exit`.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Size in bytes of the `isa-debug-exit` port.
pub const DEBUG_EXIT_PORT_SIZE: u16 = 4;

/// Why the host ended the machine; the value that it writes to `DEBUG_EXIT_PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ExitReason {
    /// VTL2 asked for power-off.
    PowerOff = 0x10,
    /// VTL2 crashed: guest crash MSRs, triple fault or an access that it may not make.
    Vtl2Crash = 0x11,
    /// The host itself failed: a bug or a machine that it cannot run on.
    HostError = 0x12,
    /// The IGVM file was refused.
    ImageRefused = 0x13,
    /// VTL2 asked for a reset.
    Reset = 0x14,
    /// The guest in VTL0 cannot go on, and VTL2 does not want to know.
    GuestCrash = 0x15,
}

impl ExitReason {
    /// All reasons.
    pub const ALL: [Self; 6] = [
        Self::PowerOff,
        Self::Vtl2Crash,
        Self::HostError,
        Self::ImageRefused,
        Self::Reset,
        Self::GuestCrash,
    ];

    /// Exit status of the QEMU process: `isa-debug-exit` turns the value v into 2 v + 1.
    pub const fn qemu_status(self) -> i32 {
        (self as i32) << 1 | 1
    }

    /// The reason behind an exit status of the QEMU process.
    pub fn from_qemu_status(status: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.qemu_status() == status)
    }
}

/// First physical address of the host: its ELF image is linked here.
pub const HOST_MEMORY_BASE: u64 = 112 << 20;

/// Size in bytes of the memory that the host keeps for itself; it ends where an IGVM
/// image with a default base begins.
pub const HOST_MEMORY_SIZE: u64 = 16 << 20;

/// Host option on its command line (`-append`): bytes of VTL2 RAM, with suffix K, M or G.
/// Default: what the image requires.
pub const OPTION_VTL2_MEMORY: &str = "vtl2_memory=";

/// Host option: `park=off` runs VP 0 on QEMU's vCPU 0, which corrupts SVM state under
/// multi-threaded emulation; only for the test that shows it.
pub const OPTION_PARK: &str = "park=";

/// Ends the host's options; what follows becomes `/chosen/bootargs`.
pub const OPTION_BOOTARGS_SEPARATOR: &str = "--";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_round_trips() {
        for reason in ExitReason::ALL {
            assert_eq!(
                ExitReason::from_qemu_status(reason.qemu_status()),
                Some(reason)
            );
        }
        assert_eq!(ExitReason::from_qemu_status(0), None);
    }
}

//! Ends the machine.
//!
//! The kernel of VTL2 has no way of its own to power off: there is no ACPI, and it would
//! halt for ever. The hypervisor's `HvCallEnterSleepState` is the orderly way, reached
//! through the device of the `mshv_vtl` module.
#![expect(
    unsafe_code,
    reason = "hypercalls from usermode are ioctls that take structures by address"
)]

use hv_defs::hypercall::EnterSleepState;
use hv_defs::hypercall::HV_SLEEP_STATE_S5;
use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::hypercall::HypercallControl;
use hv_defs::hypercall::HypercallResult;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use thiserror::Error;
use zerocopy::IntoBytes;

/// The device through which usermode makes hypercalls.
const DEVICE: &str = "/dev/mshv_hvcall";

/// Type of the ioctls of `linux/mshv.h`.
const MSHV_IOCTL: u8 = 0xb8;

/// `struct mshv_vtl_hvcall_setup`.
#[repr(C)]
pub struct HvcallSetup {
    bitmap_size_bytes: u64,
    allow_bitmap: *const u8,
}

/// `struct mshv_vtl_hvcall`.
#[repr(C)]
pub struct Hvcall {
    control: u64,
    input_size: u64,
    input: *const u8,
    status: u64,
    output_size: u64,
    output: *mut u8,
}

nix::ioctl_write_ptr!(
    /// `MSHV_HVCALL_SETUP`: which hypercalls the descriptor may make.
    hvcall_setup,
    MSHV_IOCTL,
    0x1e,
    HvcallSetup
);
nix::ioctl_readwrite!(
    /// `MSHV_HVCALL`.
    hvcall,
    MSHV_IOCTL,
    0x1f,
    Hvcall
);

const _: () = assert!(size_of::<HvcallSetup>() == 16);
const _: () = assert!(size_of::<Hvcall>() == 48);

/// Why the hypervisor did not end the machine.
#[derive(Debug, Error)]
pub enum PowerOffError {
    /// The device is not there, because `mshv_vtl` is not loaded.
    #[error("{DEVICE} cannot be opened")]
    Open(#[source] io::Error),
    /// The kernel does not let the hypercall through.
    #[error("{DEVICE} refuses {step}")]
    Device {
        /// Which ioctl.
        step: &'static str,
        /// What the kernel says.
        source: Errno,
    },
    /// The hypervisor refuses.
    #[error("HvCallEnterSleepState(S5) gives status {0:?}, expected no return")]
    Hypervisor(HvStatus),
}

/// A way to the hypervisor that allows power-off and nothing else.
#[derive(Debug)]
pub struct PowerSwitch {
    device: File,
}

impl PowerSwitch {
    /// Opens the way. What can be missing is found here, while there is still a log.
    pub fn open() -> Result<Self, PowerOffError> {
        let device = File::options()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(PowerOffError::Open)?;
        let bitmap = allow_only(HypercallCode::ENTER_SLEEP_STATE);
        let setup = HvcallSetup {
            bitmap_size_bytes: bitmap.len() as u64,
            allow_bitmap: bitmap.as_ptr(),
        };
        // SAFETY: the kernel reads `bitmap_size_bytes` bytes at `allow_bitmap`, which are
        // those of `bitmap`; both outlive the call.
        unsafe { hvcall_setup(device.as_raw_fd(), &setup) }.map_err(|source| {
            PowerOffError::Device {
                step: "the list of hypercalls",
                source,
            }
        })?;
        Ok(Self { device })
    }

    /// Powers the machine off; it does not return if that works.
    pub fn press(&self) -> PowerOffError {
        let input = EnterSleepState {
            sleep_state: HV_SLEEP_STATE_S5,
        };
        let mut call = Hvcall {
            control: HypercallControl::new()
                .with_code(HypercallCode::ENTER_SLEEP_STATE.0)
                .into_bits(),
            input_size: size_of_val(&input) as u64,
            input: input.as_bytes().as_ptr(),
            status: 0,
            output_size: 0,
            output: std::ptr::null_mut(),
        };
        // SAFETY: the kernel reads `input_size` bytes at `input`, which are those of
        // `input`, writes no output because `output_size` is 0, and writes the status
        // into `call`; all of them outlive the call.
        match unsafe { hvcall(self.device.as_raw_fd(), &mut call) } {
            Ok(_) => {
                let result = HypercallResult::from_bits(call.status);
                PowerOffError::Hypervisor(HvStatus(result.status()))
            }
            Err(source) => PowerOffError::Device {
                step: "HvCallEnterSleepState",
                source,
            },
        }
    }
}

/// A bitmap of hypercall codes with one bit set, as long as it must be.
fn allow_only(code: HypercallCode) -> Vec<u8> {
    // The kernel copies into an array of longs and tests bits there: whole longs.
    const LONG_BITS: usize = u64::BITS as usize;
    let code = usize::from(code.0);
    let mut bitmap = vec![0u8; (code / LONG_BITS + 1) * size_of::<u64>()];
    bitmap[code / 8] = 1 << (code % 8);
    bitmap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_call_that_is_needed_is_allowed() {
        let bitmap = allow_only(HypercallCode::ENTER_SLEEP_STATE);
        assert_eq!(bitmap.len(), 24);
        let set: Vec<usize> = (0..bitmap.len() * 8)
            .filter(|bit| bitmap[bit / 8] & 1 << (bit % 8) != 0)
            .collect();
        assert_eq!(set, [0x84]);
    }

    #[test]
    fn ioctl_numbers_equal_the_kernels() {
        // _IOW(0xb8, 0x1e, 16 bytes) and _IOWR(0xb8, 0x1f, 48 bytes) as the macros of
        // asm-generic/ioctl.h compute them.
        assert_eq!(
            nix::request_code_write!(MSHV_IOCTL, 0x1e, size_of::<HvcallSetup>()),
            0x4010_b81e
        );
        assert_eq!(
            nix::request_code_readwrite!(MSHV_IOCTL, 0x1f, size_of::<Hvcall>()),
            0xc030_b81f
        );
    }

    #[test]
    fn power_off_without_the_driver_is_an_error_that_names_the_device() {
        // On a machine with the driver there is nothing to show.
        if std::path::Path::new(DEVICE).exists() {
            return;
        }
        let error = PowerSwitch::open().unwrap_err();
        assert_eq!(error.to_string(), "/dev/mshv_hvcall cannot be opened");
    }
}

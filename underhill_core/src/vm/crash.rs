//! The MSRs through which a guest tells of its own end (TLFS, "Guest Crash Enlightenment")
//! and asks for a reset ("HV_X64_MSR_RESET").

use std::sync::Mutex;
use std::sync::PoisonError;

/// HV_X64_MSR_RESET.
const RESET: u32 = 0x4000_0003;
/// HV_X64_MSR_CRASH_P0, the first of five parameters.
const PARAMETER_0: u32 = 0x4000_0100;
/// HV_X64_MSR_CRASH_P4.
const PARAMETER_4: u32 = 0x4000_0104;
/// HV_X64_MSR_CRASH_CTL.
const CONTROL: u32 = 0x4000_0105;

/// Bit 0 of the reset register: reset now.
const RESET_NOW: u64 = 1;
/// Bit 63 of the control register: the parameters are complete.
const NOTIFY: u64 = 1 << 63;
/// Bit 62: P3 and P4 are address and length of a text.
const MESSAGE: u64 = 1 << 62;

/// The guest's crash registers.
#[derive(Debug, Default)]
pub(crate) struct Crash(Mutex<[u64; 5]>);

/// What an access to an MSR comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done; for a read, this is the value.
    Value(u64),
    /// There is no such MSR.
    Unknown,
    /// The guest asks for a reset.
    Reset,
    /// The guest has crashed.
    Crashed {
        /// What it says.
        reason: String,
        /// Address and length of a text of its own; any values.
        message: Option<(u64, u64)>,
    },
}

impl Crash {
    /// RDMSR.
    pub(crate) fn read(&self, msr: u32) -> Answer {
        match msr {
            RESET => Answer::Value(0),
            PARAMETER_0..=PARAMETER_4 => Answer::Value(self.lock()[(msr - PARAMETER_0) as usize]),
            // What it can do.
            CONTROL => Answer::Value(NOTIFY | MESSAGE),
            _ => Answer::Unknown,
        }
    }

    /// WRMSR.
    pub(crate) fn write(&self, msr: u32, value: u64) -> Answer {
        match msr {
            RESET if value & RESET_NOW != 0 => Answer::Reset,
            RESET => Answer::Value(0),
            PARAMETER_0..=PARAMETER_4 => {
                self.lock()[(msr - PARAMETER_0) as usize] = value;
                Answer::Value(0)
            }
            CONTROL if value & NOTIFY != 0 => {
                let [p0, p1, p2, p3, p4] = *self.lock();
                Answer::Crashed {
                    reason: format!(
                        "guest crash, parameters {p0:#x} {p1:#x} {p2:#x} {p3:#x} {p4:#x}"
                    ),
                    message: (value & MESSAGE != 0).then_some((p3, p4)),
                }
            }
            CONTROL => Answer::Value(0),
            _ => Answer::Unknown,
        }
    }

    /// The guest starts anew.
    pub(crate) fn reset(&self) {
        *self.lock() = [0; 5];
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, [u64; 5]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_kept_until_the_guest_notifies() {
        let crash = Crash::default();
        for index in 0..5 {
            let written = crash.write(PARAMETER_0 + index, 0x10 + u64::from(index));
            assert_eq!(written, Answer::Value(0));
        }
        assert_eq!(crash.read(PARAMETER_4), Answer::Value(0x14));
        assert_eq!(crash.write(CONTROL, MESSAGE), Answer::Value(0));
        assert_eq!(
            crash.write(CONTROL, NOTIFY | MESSAGE),
            Answer::Crashed {
                reason: "guest crash, parameters 0x10 0x11 0x12 0x13 0x14".to_owned(),
                message: Some((0x13, 0x14)),
            }
        );
        crash.reset();
        assert_eq!(crash.read(PARAMETER_0), Answer::Value(0));
    }

    #[test]
    fn a_reset_wants_its_bit() {
        let crash = Crash::default();
        assert_eq!(crash.write(RESET, 2), Answer::Value(0));
        assert_eq!(crash.write(RESET, 1), Answer::Reset);
        assert_eq!(crash.read(RESET), Answer::Value(0));
    }

    #[test]
    fn other_msrs_are_unknown() {
        let crash = Crash::default();
        for msr in [0, 0x10, 0x4000_0002, 0x4000_0106, u32::MAX] {
            assert_eq!(crash.read(msr), Answer::Unknown);
            assert_eq!(crash.write(msr, u64::MAX), Answer::Unknown);
        }
    }
}

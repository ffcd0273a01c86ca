//! The clock that all stages of the boot share.
//!
//! Every process can read the time-stamp counter without asking anybody, so a moment is
//! kept as its value ([`Ticks`]). What it means in nanoseconds is worked out later, from
//! the pair of counter and reference time that the boot shim left in the device tree.
#![expect(unsafe_code, reason = "the counter is read by an instruction")]

use serde::Deserialize;
use serde::Serialize;

/// A value of the processor's counter. All processors of the machine have the same.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ticks(pub u64);

impl Ticks {
    /// Now.
    pub fn now() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: every 64-bit processor has the counter, and reading it has no effect.
            Self(unsafe { std::arch::x86_64::_rdtsc() })
        }
        #[cfg(target_arch = "aarch64")]
        {
            let ticks;
            // SAFETY: Linux lets every process read the virtual counter; it has no effect.
            unsafe {
                std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack));
            }
            Self(ticks)
        }
    }
}

/// A moment of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// What had been reached.
    pub name: String,
    /// When.
    pub ticks: Ticks,
}

impl Stamp {
    /// `name` is reached now.
    pub fn now(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ticks: Ticks::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_does_not_run_backwards() {
        let first = Ticks::now();
        assert!(Ticks::now() >= first);
    }
}

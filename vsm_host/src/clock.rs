//! Arithmetic of the clock: frequencies from two samples, and reference time.

use core::time::Duration;

/// Physical address of the HPET, which is the host's alone.
pub const HPET_BASE: u64 = 0xfed0_0000;

/// Size in bytes of what is kept from VTLs around [`HPET_BASE`].
pub const HPET_SIZE: u64 = 0x1000;

/// Three counters read at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// HPET main counter.
    pub hpet: u64,
    /// Time-stamp counter.
    pub tsc: u64,
    /// Ticks of the local APIC timer since it was started.
    pub lapic: u32,
}

/// What the machine's clocks run at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frequencies {
    /// Time-stamp counter.
    pub tsc_hz: u64,
    /// Timer of the local APIC, undivided.
    pub lapic_hz: u64,
}

impl Frequencies {
    /// From two samples and the period of the HPET. Samples of the same moment, which
    /// measure nothing, give frequencies of 1 Hz rather than a division by zero.
    pub fn from_samples(first: &Sample, last: &Sample, hpet_period_fs: u64) -> Self {
        let fs = u128::from(last.hpet.wrapping_sub(first.hpet)) * u128::from(hpet_period_fs);
        let per_second = |ticks: u64| {
            let hz = (u128::from(ticks) * 1_000_000_000_000_000)
                .checked_div(fs)
                .unwrap_or(1);
            u64::try_from(hz).unwrap_or(u64::MAX).max(1)
        };
        Self {
            tsc_hz: per_second(last.tsc.wrapping_sub(first.tsc)),
            lapic_hz: per_second(u64::from(last.lapic.wrapping_sub(first.lapic))),
        }
    }

    /// How long `ticks` of the TSC are.
    pub fn tsc_duration(&self, ticks: u64) -> Duration {
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_hz);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// The partition's reference time as a function of the TSC, in the form of the TLFS
/// "reference TSC page": 100 ns units = ((tsc * scale) >> 64) + offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReferenceTime {
    /// Scale, a fraction of 2^64.
    pub scale: u64,
    /// Offset in 100 ns units.
    pub offset: i64,
}

impl ReferenceTime {
    /// Reference time that is zero at `start_tsc`.
    pub fn new(tsc_hz: u64, start_tsc: u64) -> Self {
        let scale = (10_000_000_u128 << 64) / u128::from(tsc_hz.max(1));
        // Only a TSC slower than 10 MHz would not fit; its time then stands still at
        // the maximum, which is visible, instead of wrapping.
        let scale = u64::try_from(scale).unwrap_or(u64::MAX);
        let mut time = Self { scale, offset: 0 };
        time.offset = (time.at(start_tsc) as i64).wrapping_neg();
        time
    }

    /// Reference time in 100 ns units at a TSC value.
    pub fn at(&self, tsc: u64) -> u64 {
        let scaled = ((u128::from(tsc) * u128::from(self.scale)) >> 64) as u64;
        scaled.wrapping_add_signed(self.offset)
    }

    /// First TSC value at which reference time is at least `time`.
    pub fn tsc_at(&self, time: u64) -> u64 {
        // Below zero: before TSC zero.
        let ticks = (i128::from(time) - i128::from(self.offset)).max(0) as u128;
        let tsc = u64::try_from(ticks)
            .map(|ticks| (u128::from(ticks) << 64).div_ceil(u128::from(self.scale.max(1))));
        tsc.map_or(u64::MAX, |tsc| u64::try_from(tsc).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_from_the_hpet_period() {
        let first = Sample {
            hpet: 1_000,
            tsc: 5_000_000,
            lapic: 7,
        };
        // 10 ms at 100 MHz.
        let last = Sample {
            hpet: 1_000 + 1_000_000,
            tsc: 5_000_000 + 25_000_000,
            lapic: 7 + 10_000_000,
        };
        let frequencies = Frequencies::from_samples(&first, &last, 10_000_000);
        assert_eq!(frequencies.tsc_hz, 2_500_000_000);
        assert_eq!(frequencies.lapic_hz, 1_000_000_000);
        assert_eq!(
            frequencies.tsc_duration(2_500_000_000),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn equal_samples_do_not_divide_by_zero() {
        let sample = Sample {
            hpet: 1,
            tsc: 2,
            lapic: 3,
        };
        assert_eq!(
            Frequencies::from_samples(&sample, &sample, 10_000_000).tsc_hz,
            1
        );
    }

    #[test]
    fn reference_time_is_zero_at_the_start_and_counts_100_ns() {
        let start = 123_456_789_012;
        let time = ReferenceTime::new(2_500_000_000, start);
        assert_eq!(time.at(start), 0);
        let after_one_second = time.at(start + 2_500_000_000);
        assert!((9_999_999..=10_000_001).contains(&after_one_second));
    }

    #[test]
    fn the_tsc_of_a_time_is_the_first_that_has_it() {
        for (hz, start) in [(2_500_000_000, 123_456_789_012), (1_000_000_007, 0), (3, 5)] {
            let time = ReferenceTime::new(hz, start);
            for at in [0, 1, 2, 999, 10_000_000, 123_456_789_000] {
                let tsc = time.tsc_at(at);
                assert!(time.at(tsc) >= at || tsc == u64::MAX, "{hz} {at}");
                if tsc != 0 && tsc != u64::MAX {
                    assert!((time.at(tsc - 1) as i64) < at as i64, "{hz} {at}");
                }
            }
            assert_eq!(time.tsc_at(u64::MAX), u64::MAX);
        }
    }
}

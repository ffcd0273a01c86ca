//! The timer: section 11.5.4; deadlines 11.5.4.1.
//!
//! Its owner's clock counts "ticks" that never go back; the guest's TSC is ticks plus an
//! offset, and the timer's own clock ("bus") is a fixed fraction of it. Expirations are
//! kept in bus time, so that a periodic timer does not drift.

use x86_defs::apic::TimerMode;

/// Rates of the clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    tick_hz: u64,
    bus_hz: u64,
    shortest_period: u64,
}

impl Rates {
    /// So that no product of a time and a rate passes 128 bits.
    const POSSIBLE: core::ops::RangeInclusive<u64> = 1_000_000..=1 << 36;

    /// Ticks and undivided bus clocks per second (from 1 MHz to 64 GHz; others become the
    /// nearest of these). A periodic timer raises no interrupts closer together than
    /// `shortest_period` ticks: a guest cannot keep the host busy.
    pub fn new(tick_hz: u64, bus_hz: u64, shortest_period: u64) -> Self {
        let clamp = |hz: u64| hz.clamp(*Self::POSSIBLE.start(), *Self::POSSIBLE.end());
        Self {
            tick_hz: clamp(tick_hz),
            bus_hz: clamp(bus_hz),
            shortest_period,
        }
    }

    /// Bus time at a tick.
    fn bus(&self, tick: u64) -> u128 {
        u128::from(tick) * u128::from(self.bus_hz) / u128::from(self.tick_hz)
    }

    /// First tick at which bus time is at least this.
    fn tick(&self, bus: u128) -> u64 {
        // Saturates: no bus time of a running timer is near the end of 128 bits.
        let tick = bus
            .saturating_mul(u128::from(self.tick_hz))
            .div_ceil(u128::from(self.bus_hz));
        u64::try_from(tick).unwrap_or(u64::MAX)
    }
}

/// The timer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timer {
    rates: Rates,
    mode: TimerMode,
    divide: u8,
    initial: u32,
    /// Bus time at which the count reaches zero.
    zero_at: Option<u128>,
    /// Guest TSC to wait for; 0 is none.
    deadline: u64,
    tsc_offset: u64,
    /// Tick before which a periodic timer does not expire again.
    rest_until: u64,
}

impl Timer {
    pub(crate) fn new(rates: Rates) -> Self {
        Self {
            rates,
            mode: TimerMode::ONE_SHOT,
            divide: 0,
            initial: 0,
            zero_at: None,
            deadline: 0,
            tsc_offset: 0,
            rest_until: 0,
        }
    }

    /// As after reset; the TSC goes on.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            tsc_offset: self.tsc_offset,
            ..Self::new(self.rates)
        };
    }

    pub(crate) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    pub(crate) fn tsc_offset(&self) -> u64 {
        self.tsc_offset
    }

    fn counts(&self) -> bool {
        matches!(self.mode, TimerMode::ONE_SHOT | TimerMode::PERIODIC)
    }

    /// Bus clocks per count.
    fn divider(&self) -> u128 {
        let code = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u128 {
        u128::from(self.initial) * self.divider()
    }

    pub(crate) fn set_mode(&mut self, mode: TimerMode) {
        let counted = self.counts();
        self.mode = mode;
        if !(counted && self.counts()) {
            self.zero_at = None;
            self.deadline = 0;
        }
    }

    pub(crate) fn initial(&self) -> u32 {
        self.initial
    }

    pub(crate) fn set_initial(&mut self, count: u32, now: u64) {
        if !self.counts() {
            return;
        }
        self.initial = count;
        self.rest_until = 0;
        self.zero_at = (count != 0).then(|| self.rates.bus(now) + self.period());
    }

    pub(crate) fn divide(&self) -> u8 {
        self.divide
    }

    pub(crate) fn set_divide(&mut self, value: u8, now: u64) {
        let rest = self.current(now);
        let running = self.zero_at.is_some();
        self.divide = value & 0xb;
        if running {
            self.zero_at = Some(self.rates.bus(now) + u128::from(rest) * self.divider());
        }
    }

    /// The current count.
    pub(crate) fn current(&self, now: u64) -> u32 {
        let Some(zero_at) = self.zero_at else {
            return 0;
        };
        let bus = self.rates.bus(now);
        let rest = match zero_at.checked_sub(bus) {
            Some(rest) if rest != 0 => rest,
            _ if self.mode == TimerMode::PERIODIC && self.initial != 0 => {
                self.period() - (bus - zero_at) % self.period()
            }
            _ => 0,
        };
        u32::try_from(rest.div_ceil(self.divider())).unwrap_or(u32::MAX)
    }

    /// The TSC deadline, as the MSR shows it.
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline
    }

    pub(crate) fn set_deadline(&mut self, deadline: u64) {
        if self.mode == TimerMode::TSC_DEADLINE {
            self.deadline = deadline;
        }
    }

    /// Whether the timer has expired since it was last asked; several periods are one.
    pub(crate) fn poll(&mut self, now: u64) -> bool {
        if self.mode == TimerMode::TSC_DEADLINE {
            let expired = self.deadline != 0 && now.wrapping_add(self.tsc_offset) >= self.deadline;
            if expired {
                self.deadline = 0;
            }
            return expired;
        }
        let bus = self.rates.bus(now);
        let Some(zero_at) = self.zero_at.filter(|zero_at| *zero_at <= bus) else {
            return false;
        };
        if self.mode != TimerMode::PERIODIC || self.initial == 0 {
            self.zero_at = None;
            return true;
        }
        if now < self.rest_until {
            return false;
        }
        let missed = (bus - zero_at) / self.period();
        self.zero_at = Some(zero_at + (missed + 1) * self.period());
        self.rest_until = now.saturating_add(self.rates.shortest_period);
        true
    }

    /// Tick at which to poll next.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        if self.mode == TimerMode::TSC_DEADLINE {
            let left = self
                .deadline
                .saturating_sub(now.wrapping_add(self.tsc_offset));
            return (self.deadline != 0).then(|| now.saturating_add(left));
        }
        let zero_at = self.rates.tick(self.zero_at?);
        Some(if self.mode == TimerMode::PERIODIC {
            zero_at.max(self.rest_until)
        } else {
            zero_at
        })
    }

    /// Bus clocks until the count is zero.
    pub(crate) fn remaining(&self, now: u64) -> Option<u64> {
        let left = self.zero_at?.saturating_sub(self.rates.bus(now));
        Some(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// Puts back what was saved; the mode is known from the local vector.
    pub(crate) fn restore(
        &mut self,
        (mode, divide, initial): (TimerMode, u8, u32),
        remaining: Option<u64>,
        deadline: u64,
        now: u64,
    ) {
        self.mode = mode;
        self.divide = divide & 0xb;
        self.initial = initial;
        self.rest_until = 0;
        self.zero_at = remaining
            .filter(|_| self.counts())
            .map(|left| self.rates.bus(now) + u128::from(left));
        self.deadline = 0;
        self.set_deadline(deadline);
    }
}

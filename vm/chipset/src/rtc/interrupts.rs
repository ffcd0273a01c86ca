//! When the three flags are set: data sheet, "Interrupts".
//!
//! Flags are set lazily: [`Rtc::advance`] sets those of all that happened since it was
//! called last. It is called before each access, so a guest sees no difference; a
//! deadline is needed only for flags that will interrupt.

use std::time::Duration;

use super::Rtc;
use super::SECOND_NS;
use super::calendar::Civil;
use super::registers::ControlB;
use super::seconds;
use crate::time::VmTime;

const CRYSTAL_HZ: i128 = 32_768;
/// An alarm byte from here on matches anything.
const ANY: u8 = 0xc0;

impl Rtc {
    /// Sets the flags of what has happened.
    pub(super) fn advance(&mut self) {
        let (before, now) = (self.seen, self.now());
        self.seen = now;
        // The host's clock may have been set back: nothing has happened then.
        if now <= before || !self.control_a.divider_runs() {
            return;
        }
        if let Some(period) = self.control_a.period_ticks()
            && ticks(before).div_euclid(period) != ticks(now).div_euclid(period)
        {
            self.flags.set_periodic(true);
        }
        if !self.updates() {
            return;
        }
        if before.div_euclid(SECOND_NS) != now.div_euclid(SECOND_NS) {
            self.flags.set_update(true);
        }
        if !self.flags.alarm() && self.next_alarm(before).is_some_and(|at| at <= now) {
            self.flags.set_alarm(true);
        }
    }

    /// When a flag will be set that causes an interrupt, and is not set yet.
    pub(super) fn next_interrupt(&self) -> Option<VmTime> {
        if !self.control_a.divider_runs() {
            return None;
        }
        let control = self.control_b;
        let updates = self.updates();
        let periodic = control.periodic_interrupt() && !self.flags.periodic();
        let update = updates && control.update_interrupt() && !self.flags.update();
        let alarm = updates && control.alarm_interrupt() && !self.flags.alarm();
        let next = [
            periodic.then(|| self.next_period()).flatten(),
            update.then(|| next_second(self.seen)),
            alarm.then(|| self.next_alarm(self.seen)).flatten(),
        ];
        let next = next.into_iter().flatten().min()?;
        // A time that has come is due now; 584 years are for ever.
        let wait = (next - self.now()).clamp(0, u64::MAX.into()) as u64;
        Some(self.clock.now().after(Duration::from_nanos(wait)))
    }

    fn next_period(&self) -> Option<i128> {
        let period = self.control_a.period_ticks()?;
        let next = (ticks(self.seen).div_euclid(period) + 1) * period;
        // Rounded up: at that time the tick has come.
        Some((next * SECOND_NS + CRYSTAL_HZ - 1).div_euclid(CRYSTAL_HZ))
    }

    /// The end of the first second after `after` at which the alarm matches.
    fn next_alarm(&self, after: i128) -> Option<i128> {
        let first = next_second(after);
        let today = Civil::from_seconds(seconds(first));
        let start = (today.hour, today.minute, today.second);
        let midnight = Civil {
            hour: 0,
            minute: 0,
            second: 0,
            ..today
        };
        let in_day = |start| next_match(self.alarm, self.control_b, start);
        let second_of_day = in_day(start).or_else(|| Some(in_day((0, 0, 0))? + 86_400))?;
        Some(i128::from(midnight.to_seconds() + second_of_day) * SECOND_NS)
    }
}

/// Full ticks of the crystal until a time.
fn ticks(nanoseconds: i128) -> i128 {
    (nanoseconds * CRYSTAL_HZ).div_euclid(SECOND_NS)
}

fn next_second(after: i128) -> i128 {
    (after.div_euclid(SECOND_NS) + 1) * SECOND_NS
}

/// Second of the day at or after `start` at which the alarm bytes match the time's.
fn next_match(alarm: [u8; 3], control: ControlB, start: (u8, u8, u8)) -> Option<i64> {
    let [seconds, minutes, hours] = alarm;
    let second = |from: u8| (from..60).find(|s| seconds >= ANY || control.encode(*s) == seconds);
    let minute = |from: u8| (from..60).find(|m| minutes >= ANY || control.encode(*m) == minutes);
    let hour = |from: u8| (from..24).find(|h| hours >= ANY || control.encode_hour(*h) == hours);
    let join = |h: u8, m: u8, s: u8| i64::from(h) * 3600 + i64::from(m) * 60 + i64::from(s);

    // The earliest of: later in this minute, later in this hour, later in the day.
    let (h, m, s) = start;
    if hour(h) == Some(h) {
        if minute(m) == Some(m)
            && let Some(s) = second(s)
        {
            return Some(join(h, m, s));
        }
        if let (Some(m), Some(s)) = (minute(m + 1), second(0)) {
            return Some(join(h, m, s));
        }
    }
    Some(join(hour(h + 1)?, minute(0)?, second(0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(limit: u8) -> impl Strategy<Value = u8> {
        prop_oneof![Just(0xff), 0..limit, any::<u8>()]
    }

    proptest! {
        #[test]
        fn the_next_match_is_the_first_of_the_day(
            (second, minute, hour) in (field(0x60), field(0x60), field(0x24)),
            start in 0_i64..86_400,
            mode: u8,
        ) {
            let control = ControlB::from_bits(mode);
            let matches = |at: &i64| {
                let ok = |alarm: u8, encoded: u8| alarm >= ANY || alarm == encoded;
                ok(second, control.encode((at % 60) as u8))
                    && ok(minute, control.encode((at / 60 % 60) as u8))
                    && ok(hour, control.encode_hour((at / 3600) as u8))
            };
            let model = (start..86_400).find(matches);
            let start = (start / 3600, start / 60 % 60, start % 60);
            let start = (start.0 as u8, start.1 as u8, start.2 as u8);
            prop_assert_eq!(next_match([second, minute, hour], control, start), model);
        }
    }
}

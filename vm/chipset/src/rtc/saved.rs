//! The clock's saved state. Time is saved as a distance from the host's, so it goes on
//! while the machine does not.

use super::CMOS_SIZE;
use super::Rtc;
use super::SECOND_NS;
use super::registers::ControlA;
use super::registers::ControlB;
use super::registers::Flags;
use super::registers::TimeBytes;
use super::seconds;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::byte;

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint32, tag = "2")]
    control_a: u32,
    #[prost(uint32, tag = "3")]
    control_b: u32,
    #[prost(uint32, tag = "4")]
    flags: u32,
    /// Seconds, minutes, hours.
    #[prost(bytes = "vec", tag = "5")]
    alarm: Vec<u8>,
    /// All 128 bytes; those of the clock are zero.
    #[prost(bytes = "vec", tag = "6")]
    ram: Vec<u8>,
    /// Of the offset: full seconds, and nanoseconds beyond them.
    #[prost(sint64, tag = "7")]
    offset_s: i64,
    #[prost(uint32, tag = "11")]
    offset_ns: u32,
    #[prost(uint32, tag = "8")]
    weekday_shift: u32,
    /// Seconds, minutes, hours, weekday, day, month, year, century.
    #[prost(bytes = "vec", optional, tag = "9")]
    held: Option<Vec<u8>>,
    /// Guest's time up to which the flags are set, likewise.
    #[prost(sint64, tag = "10")]
    seen_s: i64,
    #[prost(uint32, tag = "12")]
    seen_ns: u32,
}

impl Rtc {
    pub(super) fn save_state(&self) -> SavedState {
        let held = self.held.map(|held| {
            vec![
                held.second,
                held.minute,
                held.hour,
                held.weekday,
                held.day,
                held.month,
                held.year,
                held.century,
            ]
        });
        let state = State {
            index: self.index.into(),
            control_a: self.control_a.into_bits().into(),
            control_b: self.control_b.into_bits().into(),
            flags: self.flags.into_bits().into(),
            alarm: self.alarm.to_vec(),
            ram: self.ram.to_vec(),
            offset_s: seconds(self.offset),
            offset_ns: self.offset.rem_euclid(SECOND_NS) as u32,
            weekday_shift: self.weekday_shift.into(),
            held,
            seen_s: seconds(self.seen),
            seen_ns: self.seen.rem_euclid(SECOND_NS) as u32,
        };
        SavedState::new(VERSION, &state)
    }

    pub(super) fn restore_state(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(VERSION)?;
        let index = byte("index", state.index)? & 0x7f;
        let control_a = ControlA::from_bits(byte("control_a", state.control_a)?);
        let control_b = ControlB::from_bits(byte("control_b", state.control_b)?);
        let flags = Flags::restored(byte("flags", state.flags)?);
        let alarm = array::<3>("alarm", &state.alarm)?;
        let ram = array::<CMOS_SIZE>("ram", &state.ram)?;
        let weekday_shift = byte("weekday_shift", state.weekday_shift)? % 7;
        let held = match &state.held {
            Some(bytes) => {
                let [second, minute, hour, weekday, day, month, year, century] =
                    array("held", bytes)?;
                Some(TimeBytes {
                    second,
                    minute,
                    hour,
                    weekday,
                    day,
                    month,
                    year,
                    century,
                })
            }
            None => None,
        };
        let offset = time("offset_s", state.offset_s, state.offset_ns)?;
        let seen = time("seen_s", state.seen_s, state.seen_ns)?;
        let runs = control_a.divider_runs() && !control_b.set();
        if runs == held.is_some() {
            return Err(RestoreError::Value {
                field: "held",
                value: held.is_some().into(),
                expected: "time registers exactly while the clock stands",
            });
        }

        self.index = index;
        self.control_a = control_a.with_update_in_progress(false);
        self.control_b = control_b;
        self.flags = flags;
        self.alarm = alarm;
        self.ram = ram;
        self.offset = offset;
        self.weekday_shift = weekday_shift;
        self.held = held;
        self.seen = seen;
        self.update_line();
        Ok(())
    }
}

/// Any date that the clock can show, and more; so that sums of two stay far from the
/// limits of the calendar.
const MAX_SECONDS: u64 = 1_000_000_000_000;

fn time(field: &'static str, seconds: i64, nanoseconds: u32) -> Result<i128, RestoreError> {
    if seconds.unsigned_abs() > MAX_SECONDS || i128::from(nanoseconds) >= SECOND_NS {
        return Err(RestoreError::Value {
            field,
            value: seconds.unsigned_abs(),
            expected: "at most 10^12 seconds, and less than one in nanoseconds",
        });
    }
    Ok(i128::from(seconds) * SECOND_NS + i128::from(nanoseconds))
}

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], RestoreError> {
    bytes.try_into().map_err(|_| RestoreError::Value {
        field,
        value: bytes.len() as u64,
        expected: "all bytes of the registers",
    })
}

/// States that no clock saves, each with the field that is wrong.
#[cfg(test)]
pub(super) fn broken_states(rtc: &Rtc) -> Vec<(&'static str, SavedState)> {
    let good: State = rtc.save_state().open(VERSION).expect("saved just now");
    let broken = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        SavedState::new(VERSION, &state)
    };
    vec![
        ("version", SavedState::new(VERSION + 1, &good)),
        ("index", broken(|s| s.index = 256)),
        ("flags", broken(|s| s.flags = 256)),
        ("alarm", broken(|s| s.alarm = vec![0; 2])),
        ("ram", broken(|s| s.ram = vec![0; 129])),
        ("held", broken(|s| s.held = Some(vec![0; 8]))),
        ("held", broken(|s| s.control_b |= 0x80)),
        (
            "held",
            broken(|s| {
                s.control_b |= 0x80;
                s.held = Some(vec![0; 7]);
            }),
        ),
        ("offset_s", broken(|s| s.offset_s = i64::MIN)),
        ("offset_s", broken(|s| s.offset_ns = 1_000_000_000)),
        ("seen_s", broken(|s| s.seen_s = i64::MAX)),
    ]
}

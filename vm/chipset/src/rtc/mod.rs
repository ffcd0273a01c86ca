//! Real-time clock and CMOS RAM: Motorola MC146818A data sheet, at ports 0x70 and 0x71,
//! with the century in CMOS byte 0x32 as the FADT says.
//!
//! **Time.** The guest's time is the host's time of day plus an offset. A guest that sets
//! the clock changes the offset, so its drift from the host is what it has set, and
//! survives a save. While the guest holds the clock (SET, or the divider in reset) the
//! time registers are plain memory.
//!
//! **Update cycle.** One second ends 1984 µs after the cycle begins, and UIP is set 244 µs
//! before that (table "Update cycle times", 32.768 kHz). Here the time changes at the
//! *end* of the cycle, together with the flag of the update-ended interrupt and the end of
//! UIP; in between the registers show the old second.
//!
//! What differs from the chip: daylight saving (DSE) is kept but does nothing; the square
//! wave has no pin; changing the data mode (DM, 24/12) converts the time registers, where
//! the chip leaves them to be set again. An alarm byte that no time can have never
//! matches, as in the chip.

mod calendar;
mod interrupts;
mod registers;
mod saved;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use inspect::Inspect;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::line::InterruptLine;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::time::Clock;
use crate::time::VmTime;
use crate::time::WallClock;
use calendar::Civil;
use registers::ControlA;
use registers::ControlB;
use registers::Flags;
use registers::TimeBytes;

/// Index port; the data port follows.
pub const INDEX_PORT: u16 = 0x70;
/// Bytes behind the index, clock included.
pub const CMOS_SIZE: usize = 128;
/// CMOS byte of the century: the FADT's CENTURY field.
pub const CENTURY_INDEX: u8 = 0x32;
/// First byte that is RAM.
pub const RAM_START: u8 = 14;

const SECOND_NS: i128 = 1_000_000_000;
/// UIP is set from here to the end of the second: 244 µs + 1984 µs.
const UPDATE_NS: i128 = 2_228_000;
/// Phase of the second after the divider's reset: the first update comes 500 ms later.
const PHASE_AFTER_RESET_NS: i128 = 500_000_000;

mod index {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const SECONDS_ALARM: u8 = 1;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const MINUTES_ALARM: u8 = 3;
    pub(super) const HOURS: u8 = 4;
    pub(super) const HOURS_ALARM: u8 = 5;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 10;
    pub(super) const B: u8 = 11;
    pub(super) const C: u8 = 12;
    pub(super) const D: u8 = 13;
}

/// The clock.
#[derive(Inspect)]
#[inspect(extra = "Self::inspect_more")]
pub struct Rtc {
    #[inspect(skip)]
    clock: Arc<dyn Clock>,
    #[inspect(skip)]
    wall: Arc<dyn WallClock>,
    line: InterruptLine,
    #[inspect(hex)]
    index: u8,
    #[inspect(debug)]
    control_a: ControlA,
    #[inspect(debug)]
    control_b: ControlB,
    #[inspect(debug)]
    flags: Flags,
    /// Alarm bytes: seconds, minutes, hours.
    #[inspect(hex)]
    alarm: [u8; 3],
    // A guest's own, like its memory.
    #[inspect(skip)]
    ram: [u8; CMOS_SIZE],
    /// Guest's time less the host's, in nanoseconds.
    #[inspect(skip)]
    offset: i128,
    /// The guest's weekday less that of its date.
    weekday_shift: u8,
    /// The time registers while the clock stands.
    #[inspect(with = "Option::is_some")]
    held: Option<TimeBytes>,
    /// Guest's time, in nanoseconds, up to which the flags are set.
    #[inspect(skip)]
    seen: i128,
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new(clock: Arc<dyn Clock>, wall: Arc<dyn WallClock>, line: InterruptLine) -> Self {
        let seen = wall.now().into();
        Self {
            clock,
            wall,
            line,
            index: 0,
            control_a: ControlA::AT_POWER_ON,
            control_b: ControlB::AT_POWER_ON,
            flags: Flags::new(),
            alarm: [0; 3],
            ram: [0; CMOS_SIZE],
            offset: 0,
            weekday_shift: 0,
            held: None,
            seen,
        }
    }

    /// A byte of CMOS RAM; 0 for those that belong to the clock or do not exist.
    pub fn ram(&self, index: u8) -> u8 {
        if is_ram(index) {
            self.ram[usize::from(index)]
        } else {
            0
        }
    }

    /// Sets a byte of CMOS RAM, as firmware would. The clock's own bytes stay.
    pub fn set_ram(&mut self, index: u8, value: u8) {
        if is_ram(index) {
            self.ram[usize::from(index)] = value;
        }
    }

    /// By how much the guest's clock is ahead of the host's, in nanoseconds.
    pub fn offset(&self) -> i128 {
        self.offset
    }

    fn inspect_more(&self, response: &mut inspect::Response<'_>) {
        response.unit("offset", inspect::Unit::Seconds, &seconds(self.offset));
        response.display("time", &Civil::from_seconds(seconds(self.now())));
    }

    /// The guest's time in nanoseconds since 1970, as its divider counts it.
    fn now(&self) -> i128 {
        i128::from(self.wall.now()) + self.offset
    }

    fn updates(&self) -> bool {
        self.control_a.divider_runs() && !self.control_b.set()
    }

    fn time_bytes(&self) -> TimeBytes {
        match self.held {
            Some(bytes) => bytes,
            None => {
                let civil = Civil::from_seconds(seconds(self.now()));
                TimeBytes::encode(civil, self.weekday_shift, self.control_b)
            }
        }
    }

    /// Makes `bytes` the time. The second goes on where it is.
    fn set_time(&mut self, bytes: TimeBytes) {
        let (civil, weekday) = bytes.decode(self.control_b);
        self.weekday_shift = (weekday + 7 - civil.weekday()) % 7;
        let phase = self.now().rem_euclid(SECOND_NS);
        let time = i128::from(civil.to_seconds()) * SECOND_NS + phase;
        self.offset = time - i128::from(self.wall.now());
        // What lies between the old time and the new one has not happened.
        self.seen = time;
    }

    /// Holds or releases the time registers after a change of A or B.
    fn update_hold(&mut self) {
        match (self.updates(), self.held) {
            (false, None) => self.held = Some(self.time_bytes()),
            (true, Some(bytes)) => {
                self.held = None;
                self.set_time(bytes);
            }
            _ => {}
        }
    }

    fn read_byte(&mut self, index: u8) -> u8 {
        match index {
            index::SECONDS_ALARM => self.alarm[0],
            index::MINUTES_ALARM => self.alarm[1],
            index::HOURS_ALARM => self.alarm[2],
            index::SECONDS..=index::YEAR | CENTURY_INDEX => self.time_bytes().get(index),
            index::A => {
                let phase = self.now().rem_euclid(SECOND_NS);
                let updating = self.updates() && phase >= SECOND_NS - UPDATE_NS;
                self.control_a.with_update_in_progress(updating).into_bits()
            }
            index::B => self.control_b.into_bits(),
            index::C => {
                let flags = self.flags.register(self.control_b);
                self.flags = Flags::new();
                flags
            }
            // Valid RAM and time: the battery is good.
            index::D => 0x80,
            _ => self.ram[usize::from(index)],
        }
    }

    fn write_byte(&mut self, index: u8, value: u8) {
        match index {
            index::SECONDS_ALARM => self.alarm[0] = value,
            index::MINUTES_ALARM => self.alarm[1] = value,
            index::HOURS_ALARM => self.alarm[2] = value,
            index::SECONDS..=index::YEAR | CENTURY_INDEX => {
                let mut bytes = self.time_bytes();
                bytes.set(index, value);
                if self.held.is_some() {
                    self.held = Some(bytes);
                } else {
                    self.set_time(bytes);
                }
            }
            index::A => {
                let ran = self.control_a.divider_runs();
                let control = ControlA::from_bits(value).with_update_in_progress(false);
                self.control_a = control;
                if !ran && control.divider_runs() {
                    let phase = self.now().rem_euclid(SECOND_NS);
                    self.offset += PHASE_AFTER_RESET_NS - phase;
                    self.seen = self.now();
                }
                self.update_hold();
            }
            index::B => {
                let control = ControlB::from_bits(value);
                // Data sheet: SET going high clears UIE.
                let rises = control.set() && !self.control_b.set();
                let control = control.with_update_interrupt(control.update_interrupt() && !rises);
                // Hold before and release after the data mode changes, so that bytes are
                // decoded as they were written.
                if rises {
                    self.held = Some(self.time_bytes());
                }
                self.control_b = control;
                self.update_hold();
            }
            index::C | index::D => {}
            _ => self.ram[usize::from(index)] = value,
        }
    }

    fn update_line(&mut self) {
        let asserted = self.flags.interrupt(self.control_b);
        self.line.set(asserted);
    }
}

/// Full seconds of a time. The years 0 to 9999 and any host's clock fit.
fn seconds(nanoseconds: i128) -> i64 {
    nanoseconds.div_euclid(SECOND_NS) as i64
}

fn is_ram(index: u8) -> bool {
    (RAM_START..CMOS_SIZE as u8).contains(&index) && index != CENTURY_INDEX
}

impl Lifecycle for Rtc {
    fn start(&mut self) {
        self.poll();
    }

    fn resume(&mut self) {
        self.poll();
    }

    /// The RESET pin: interrupts go, time and RAM stay.
    fn reset(&mut self) {
        self.advance();
        self.control_b = self.control_b.reset();
        self.flags = Flags::new();
        self.update_line();
    }

    fn save(&self) -> SavedState {
        self.save_state()
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        self.restore_state(state)
    }
}

impl Device for Rtc {
    fn regions(&self) -> Vec<Region> {
        vec![Region::byte_ports(INDEX_PORT, 2)]
    }

    fn read(&mut self, access: Access) -> u64 {
        // The index cannot be read back on a PC.
        if access.offset == 0 {
            return u64::MAX;
        }
        self.advance();
        let value = self.read_byte(self.index);
        self.update_line();
        value.into()
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        let value = value as u8;
        if access.offset == 0 {
            // Bit 7 masks the NMI of a PC, which has no source here.
            self.index = value & 0x7f;
            return Written::Done;
        }
        self.advance();
        self.write_byte(self.index, value);
        self.update_line();
        Written::Done
    }

    fn poll(&mut self) {
        self.advance();
        self.update_line();
    }

    fn deadline(&self) -> Option<VmTime> {
        self.next_interrupt()
    }
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc")
            .field("control_a", &self.control_a)
            .field("control_b", &self.control_b)
            .field("flags", &self.flags)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

//! Register layouts and the encoding of time: data sheet, "Time, calendar, and alarm
//! locations" and "Registers".

use bitfield_struct::bitfield;

use super::CENTURY_INDEX;
use super::Civil;
use super::index;

/// Register A.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(super) struct ControlA {
    #[bits(4)]
    pub(super) rate: u8,
    #[bits(3)]
    pub(super) divider: u8,
    pub(super) update_in_progress: bool,
}

impl ControlA {
    /// Divider for 32.768 kHz, 1024 Hz periodic rate: what PC firmware sets.
    pub(super) const AT_POWER_ON: Self = Self::from_bits(0x26);

    /// The chain counts. 11x is its reset, the values in between are factory tests; the
    /// first two are for faster crystals than a PC has, and are taken for the third.
    pub(super) const fn divider_runs(self) -> bool {
        self.divider() <= 2
    }

    /// Ticks of 32.768 kHz from one periodic interrupt to the next.
    pub(super) const fn period_ticks(self) -> Option<i128> {
        match self.rate() {
            0 => None,
            // The first two values repeat slower ones: 256 and 128 Hz.
            1 => Some(1 << 7),
            2 => Some(1 << 8),
            rate => Some(1 << (rate - 1)),
        }
    }
}

/// Register B.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(super) struct ControlB {
    pub(super) daylight_saving: bool,
    pub(super) hours_24: bool,
    pub(super) binary: bool,
    pub(super) square_wave: bool,
    pub(super) update_interrupt: bool,
    pub(super) alarm_interrupt: bool,
    pub(super) periodic_interrupt: bool,
    pub(super) set: bool,
}

impl ControlB {
    pub(super) const AT_POWER_ON: Self = Self::new().with_hours_24(true);

    pub(super) const fn reset(self) -> Self {
        self.with_periodic_interrupt(false)
            .with_alarm_interrupt(false)
            .with_update_interrupt(false)
            .with_square_wave(false)
    }

    /// A number as a time register has it.
    pub(super) const fn encode(self, value: u8) -> u8 {
        if self.binary() {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    /// The number in a time register, which may be anything.
    const fn decode(self, byte: u8) -> u8 {
        if self.binary() {
            byte
        } else {
            // At most 15 * 10 + 15.
            (byte >> 4) * 10 + (byte & 0xf)
        }
    }

    /// An hour from 0 to 23 as its register has it.
    pub(super) const fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24() {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        let hour = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(hour) | afternoon
    }

    const fn decode_hour(self, byte: u8) -> u8 {
        if self.hours_24() {
            return self.decode(byte);
        }
        let afternoon = if byte & 0x80 == 0 { 0 } else { 12 };
        self.decode(byte & 0x7f) % 12 + afternoon
    }
}

/// Register C, without the bit that follows from the others.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(super) struct Flags {
    #[bits(4)]
    absent: u8,
    pub(super) update: bool,
    pub(super) alarm: bool,
    pub(super) periodic: bool,
    absent_irq: bool,
}

impl Flags {
    /// The flags of a byte of saved state.
    pub(super) const fn restored(byte: u8) -> Self {
        Self::from_bits(byte & 0x70)
    }

    /// IRQF: some flag is set together with its enable bit, which is in the same place.
    pub(super) const fn interrupt(self, control: ControlB) -> bool {
        self.into_bits() & control.into_bits() & 0x70 != 0
    }

    pub(super) const fn register(self, control: ControlB) -> u8 {
        let irqf = if self.interrupt(control) { 0x80 } else { 0 };
        self.into_bits() | irqf
    }
}

/// The time registers, as the guest reads and writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct TimeBytes {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    pub(super) weekday: u8,
    pub(super) day: u8,
    pub(super) month: u8,
    pub(super) year: u8,
    pub(super) century: u8,
}

impl TimeBytes {
    pub(super) fn encode(civil: Civil, weekday_shift: u8, control: ControlB) -> Self {
        // Two digits each: the clock has no other centuries than 0 to 99.
        let year = civil.year.rem_euclid(10_000);
        Self {
            second: control.encode(civil.second),
            minute: control.encode(civil.minute),
            hour: control.encode_hour(civil.hour),
            weekday: control.encode((civil.weekday() + weekday_shift) % 7 + 1),
            day: control.encode(civil.day),
            month: control.encode(civil.month),
            year: control.encode((year % 100) as u8),
            century: control.encode((year / 100) as u8),
        }
    }

    /// The date, and the weekday from 0 for Sunday. Values beyond a field's range become
    /// the nearest in it; only the day may be one that the month does not have.
    pub(super) fn decode(self, control: ControlB) -> (Civil, u8) {
        let year = i64::from(control.decode(self.year).min(99));
        let century = i64::from(control.decode(self.century).min(99));
        let civil = Civil {
            year: century * 100 + year,
            month: control.decode(self.month).clamp(1, 12),
            day: control.decode(self.day).clamp(1, 31),
            hour: control.decode_hour(self.hour).min(23),
            minute: control.decode(self.minute).min(59),
            second: control.decode(self.second).min(59),
        };
        (civil, control.decode(self.weekday).clamp(1, 7) - 1)
    }

    pub(super) fn get(&self, index: u8) -> u8 {
        match index {
            index::SECONDS => self.second,
            index::MINUTES => self.minute,
            index::HOURS => self.hour,
            index::WEEKDAY => self.weekday,
            index::DAY => self.day,
            index::MONTH => self.month,
            index::YEAR => self.year,
            CENTURY_INDEX => self.century,
            _ => 0xff,
        }
    }

    pub(super) fn set(&mut self, index: u8, value: u8) {
        match index {
            index::SECONDS => self.second = value,
            index::MINUTES => self.minute = value,
            index::HOURS => self.hour = value,
            index::WEEKDAY => self.weekday = value,
            index::DAY => self.day = value,
            index::MONTH => self.month = value,
            index::YEAR => self.year = value,
            CENTURY_INDEX => self.century = value,
            _ => {}
        }
    }
}

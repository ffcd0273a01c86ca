//! Seconds since 1970 and the fields of a calendar clock, in the Gregorian calendar.

use std::fmt;

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;
/// Days from the first of March of year 0 to 1970.
const EPOCH_DAYS: i64 = 719_468;

/// A date and time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Civil {
    pub(super) year: i64,
    /// From 1.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl fmt::Display for Civil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
        )
    }
}

impl Civil {
    /// The date of a time.
    ///
    /// Years are counted from March, so that the leap day is the last: the months before
    /// a month then have (153 m + 2) / 5 days.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY) + EPOCH_DAYS;
        let of_day = seconds.rem_euclid(DAY);
        let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let (month_of_year, carry) = if month < 10 {
            (month + 3, 0)
        } else {
            (month - 9, 1)
        };
        // All of these are in the range of their field by construction.
        Self {
            year: era * 400 + year + carry,
            month: month_of_year as u8,
            day: (day_of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// The time of a date. A day or time of day beyond its month or day counts on.
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let (month, year) = if month > 2 {
            (month - 3, self.year)
        } else {
            (month + 9, self.year - 1)
        };
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = era * ERA_DAYS + year * 365 + year / 4 - year / 100 + day_of_year;
        let of_day =
            i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        (days - EPOCH_DAYS) * DAY + of_day
    }

    /// Day of the week, 0 for Sunday.
    pub(super) fn weekday(self) -> u8 {
        // 1970 began on a Thursday.
        (self.to_seconds().div_euclid(DAY) + 4).rem_euclid(7) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn civil(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Civil {
        Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
        }
    }

    #[test]
    fn known_dates() {
        // Seconds by `date -u -d … +%s`, weekdays by `+%w`.
        for (seconds, date, weekday) in [
            (0, civil(1970, 1, 1, 0, 0, 0), 4),
            (951_782_399, civil(2000, 2, 28, 23, 59, 59), 1),
            (951_782_400, civil(2000, 2, 29, 0, 0, 0), 2),
            (1_709_251_199, civil(2024, 2, 29, 23, 59, 59), 4),
            (1_795_246_200, civil(2026, 11, 21, 7, 30, 0), 6),
            (4_107_542_400, civil(2100, 3, 1, 0, 0, 0), 1),
            (-1, civil(1969, 12, 31, 23, 59, 59), 3),
        ] {
            assert_eq!(Civil::from_seconds(seconds), date);
            assert_eq!(date.to_seconds(), seconds);
            assert_eq!(date.weekday(), weekday, "{date:?}");
        }
    }

    proptest! {
        #[test]
        fn a_date_is_a_time_is_a_date(seconds in -70_000_000_000_i64..300_000_000_000) {
            let date = Civil::from_seconds(seconds);
            prop_assert_eq!(date.to_seconds(), seconds);
            prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
            prop_assert!(date < Civil::from_seconds(seconds + 1));
        }
    }
}

//! The time of day, from the machine's clock.
//!
//! Linux in VTL mode asks no clock for it and begins in 1970; the guest's clock follows
//! Linux's. A PC, and so QEMU, has an MC146818 at two ports, which are VTL2's on a machine
//! with a paravisor. On Hyper-V nobody answers there.
//!
//! The host says the time, so nothing that protects the VM may depend on it.
#![expect(unsafe_code, reason = "port I/O, and a date for the C library")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use std::fmt;
use thiserror::Error;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
/// Seconds, minutes, hours, day, month, year, century.
const TIME: [u8; 7] = [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32];

/// Register A: the time is about to change.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register B: numbers are binary, not decimal digits.
const BINARY: u8 = 1 << 2;
/// Register B: hours from 0 to 23.
const HOURS_24: u8 = 1 << 1;
/// Hours of the other kind: after noon.
const AFTER_NOON: u8 = 1 << 7;
/// All of register D if the clock is there and has had power.
const VALID: u8 = 1 << 7;

/// An update takes two milliseconds, and so does looking that often at least.
const TRIES: u32 = 20_000;
/// A second has begun at an unknown moment: half of one is the best guess.
const HALF_SECOND_NS: i64 = 500_000_000;

/// Why the time of day is not known.
#[derive(Debug, Error)]
pub enum WallClockError {
    /// The ports are not permitted.
    #[error("the ports of the machine's clock are not permitted")]
    Ports(#[source] Errno),
    /// The clock does not stop to change.
    #[error("the machine's clock was changing whenever it was read, {TRIES} times")]
    Restless,
    /// The registers hold no date.
    #[error("the machine's clock says {0}, expected a date")]
    NoDate(Date),
    /// The kernel does not take it.
    #[error("the kernel refuses the time of day")]
    Refused(#[source] Errno),
}

/// A date and time of day, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u16,
    /// From 1.
    month: u8,
    /// From 1.
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl fmt::Display for Date {
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

impl Date {
    fn is_one(&self) -> bool {
        (1..=12).contains(&self.month)
            && (1..=31).contains(&self.day)
            && self.hour < 24
            && self.minute < 60
            && self.second < 60
    }

    /// Seconds since 1970.
    fn seconds(&self) -> i64 {
        // SAFETY: a structure of integers and a pointer, all of which may be zero.
        let mut date: libc::tm = unsafe { core::mem::zeroed() };
        date.tm_year = i32::from(self.year) - 1900;
        date.tm_mon = i32::from(self.month) - 1;
        date.tm_mday = self.day.into();
        date.tm_hour = self.hour.into();
        date.tm_min = self.minute.into();
        date.tm_sec = self.second.into();
        // SAFETY: `date` is this function's own, and lives until the call returns.
        unsafe { libc::timegm(&raw mut date) }
    }
}

/// Sets the kernel's time of day; yields it, or `None` if the machine has no such clock.
pub fn set() -> Result<Option<Date>, WallClockError> {
    let Some(date) = now()? else {
        return Ok(None);
    };
    let time = TimeSpec::new(date.seconds(), HALF_SECOND_NS);
    nix::time::clock_settime(ClockId::CLOCK_REALTIME, time).map_err(WallClockError::Refused)?;
    Ok(Some(date))
}

#[cfg(target_arch = "x86_64")]
fn now() -> Result<Option<Date>, WallClockError> {
    read(&ports::Ports::acquire().map_err(WallClockError::Ports)?)
}

#[cfg(not(target_arch = "x86_64"))]
fn now() -> Result<Option<Date>, WallClockError> {
    Ok(None)
}

/// The clock's registers.
trait Registers {
    fn read(&self, index: u8) -> u8;
}

fn read(clock: &impl Registers) -> Result<Option<Date>, WallClockError> {
    if clock.read(REGISTER_D) != VALID {
        return Ok(None);
    }
    let format = clock.read(REGISTER_B);
    let look = || TIME.map(|index| clock.read(index));
    for _ in 0..TRIES {
        if clock.read(REGISTER_A) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        // An update may have begun in between.
        let time = look();
        if time == look() {
            let date = decode(time, format);
            return if date.is_one() {
                Ok(Some(date))
            } else {
                Err(WallClockError::NoDate(date))
            };
        }
    }
    Err(WallClockError::Restless)
}

fn decode(time: [u8; TIME.len()], format: u8) -> Date {
    let number = |value: u8| {
        if format & BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    };
    let [second, minute, hour, day, month, year, century] = time;
    let hour = if format & HOURS_24 != 0 {
        number(hour)
    } else {
        // 12 comes before 1.
        let of_half = number(hour & !AFTER_NOON) % 12;
        of_half + if hour & AFTER_NOON != 0 { 12 } else { 0 }
    };
    // Not every clock has one.
    let century = match number(century) {
        century @ 19..=99 => century,
        _ => 20,
    };
    Date {
        year: u16::from(century) * 100 + u16::from(number(year)),
        month: number(month),
        day: number(day),
        hour,
        minute: number(minute),
        second: number(second),
    }
}

#[cfg(target_arch = "x86_64")]
mod ports {
    use super::Registers;
    use nix::errno::Errno;
    use nix::libc;
    use std::arch::asm;

    /// Takes the number of a register; the next port is the register.
    const INDEX: u16 = 0x70;
    const DATA: u16 = INDEX + 1;
    const COUNT: libc::c_ulong = 2;

    /// The right of this thread to use the ports; given back when dropped. It stays with
    /// the thread that acquired it.
    pub(super) struct Ports(std::marker::PhantomData<*const ()>);

    impl Ports {
        pub(super) fn acquire() -> Result<Self, Errno> {
            permit(true)?;
            Ok(Self(std::marker::PhantomData))
        }
    }

    impl Drop for Ports {
        fn drop(&mut self) {
            // Taking a right away cannot fail.
            let _ = permit(false);
        }
    }

    impl Registers for Ports {
        fn read(&self, index: u8) -> u8 {
            let value;
            // SAFETY: `Ports` proves that both ports are permitted to this thread. They
            // select a register and read it, which changes nothing in memory.
            unsafe {
                asm!("out dx, al", in("dx") INDEX, in("al") index, options(nomem, nostack, preserves_flags));
                asm!("in al, dx", in("dx") DATA, out("al") value, options(nomem, nostack, preserves_flags));
            }
            value
        }
    }

    fn permit(on: bool) -> Result<(), Errno> {
        // SAFETY: the call only changes which ports this thread may use.
        let result = unsafe { libc::ioperm(INDEX.into(), COUNT, libc::c_int::from(on)) };
        Errno::result(result).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;

    const AT_NOON: [u8; 7] = [0x59, 0x58, 0x12, 0x29, 0x02, 0x24, 0x20];

    /// A clock that changes from one time to the next at some look at its registers.
    struct Fake {
        times: [[u8; 7]; 2],
        format: u8,
        valid: u8,
        /// Looks up to the change, and how many before it tell of it.
        change: (u32, u32),
        looks: Cell<u32>,
    }

    impl Fake {
        fn new(time: [u8; 7], format: u8) -> Self {
            Self {
                times: [time, time],
                format,
                valid: VALID,
                change: (0, 0),
                looks: Cell::new(0),
            }
        }
    }

    impl Registers for Fake {
        fn read(&self, index: u8) -> u8 {
            let look = self.looks.get();
            self.looks.set(look + 1);
            let (at, warning) = self.change;
            match index {
                REGISTER_A if look < at && at - look <= warning => 0xa6,
                REGISTER_A => 0x26,
                REGISTER_B => self.format,
                REGISTER_D => self.valid,
                _ => {
                    let which = TIME.iter().position(|it| *it == index).unwrap();
                    self.times[usize::from(look >= at)][which]
                }
            }
        }
    }

    fn said(clock: &Fake) -> String {
        read(clock).unwrap().unwrap().to_string()
    }

    #[test]
    fn all_ways_to_write_a_time_are_understood() {
        let said = |time, format| said(&Fake::new(time, format));
        assert_eq!(said(AT_NOON, HOURS_24), "2024-02-29 12:58:59");
        assert_eq!(said(AT_NOON, 0), "2024-02-29 00:58:59");
        let binary = [59, 58, 11 | AFTER_NOON, 29, 2, 24, 20];
        assert_eq!(said(binary, BINARY), "2024-02-29 23:58:59");
        let no_century = [59, 58, 12 | AFTER_NOON, 29, 2, 24, 0xff];
        assert_eq!(said(no_century, BINARY), "2024-02-29 12:58:59");
    }

    #[test]
    fn a_date_becomes_seconds() {
        let at = |time| {
            let date = read(&Fake::new(time, HOURS_24)).unwrap().unwrap();
            date.seconds()
        };
        assert_eq!(at([0, 0, 0, 1, 1, 0x70, 0x19]), 0);
        assert_eq!(at(AT_NOON), 1_709_211_539);
        assert_eq!(
            at([0x59, 0x59, 0x23, 0x31, 0x12, 0x99, 0x20]),
            4_102_444_799
        );
    }

    #[test]
    fn a_machine_without_the_clock_is_no_error() {
        let mut clock = Fake::new([0xff; 7], 0xff);
        for valid in [0xff, 0] {
            clock.valid = valid;
            assert!(read(&clock).unwrap().is_none());
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for wrong in [
            (4, 0x13),
            (4, 0),
            (3, 0x32),
            (2, 0x24),
            (1, 0x60),
            (0, 0xff),
        ] {
            let mut time = AT_NOON;
            time[wrong.0] = wrong.1;
            let result = read(&Fake::new(time, HOURS_24));
            assert!(
                matches!(result, Err(WallClockError::NoDate(_))),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn a_clock_that_never_rests_is_given_up() {
        let mut clock = Fake::new(AT_NOON, HOURS_24);
        clock.change = (u32::MAX, u32::MAX);
        assert!(matches!(read(&clock), Err(WallClockError::Restless)));
    }

    proptest! {
        #[test]
        fn no_mixture_of_two_times_is_taken(at in 0u32..40, warning in 0u32..3) {
            let mut clock = Fake::new(AT_NOON, HOURS_24);
            clock.times[1] = [0, 0, 0, 1, 3, 0x24, 0x20];
            clock.change = (at, warning);
            let said = said(&clock);
            prop_assert!(
                ["2024-02-29 12:58:59", "2024-03-01 00:00:00"].contains(&said.as_str()),
                "{said}"
            );
        }

        #[test]
        fn no_registers_are_too_much(time: [u8; 7], format: u8) {
            if let Ok(Some(date)) = read(&Fake::new(time, format)) {
                prop_assert!(date.is_one());
            }
        }
    }
}

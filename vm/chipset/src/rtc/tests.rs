//! The register interface, after the MC146818A data sheet (Motorola ADI 856).

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::bus::Width;
use crate::line::PinTarget;
use crate::line::Pins;
use crate::testing::SharedWorld;

mod interrupts;

const A: u8 = 10;
const B: u8 = 11;
const C: u8 = 12;
const D: u8 = 13;

const SET: u8 = 0x80;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
const UIP: u8 = 0x80;
/// A: the divider's reset.
const DIVIDER_RESET: u8 = 0x70;
/// A: what firmware sets.
const RUN: u8 = 0x26;

struct Fixture {
    world: SharedWorld,
    rtc: Rtc,
}

impl Fixture {
    /// 2026-11-21, a Saturday, 07:30:00 UTC.
    fn new() -> Self {
        let world = SharedWorld::default();
        let target: Arc<dyn PinTarget> = Arc::new(world.clone());
        let line = Pins::new(&target, 24).line(8).unwrap();
        let shared = Arc::new(world.clone());
        let rtc = Rtc::new(shared.clone(), shared, line);
        Self { world, rtc }
    }

    fn get(&mut self, index: u8) -> u8 {
        self.port(0, index);
        self.rtc.read(access(1)) as u8
    }

    fn set(&mut self, index: u8, value: u8) {
        self.port(0, index);
        self.port(1, value);
    }

    fn port(&mut self, offset: u64, value: u8) {
        assert_eq!(self.rtc.write(access(offset), value.into()), Written::Done);
    }

    /// Century, year, month, day, weekday, hours, minutes, seconds.
    fn time(&mut self) -> [u8; 8] {
        [CENTURY_INDEX, 9, 8, 7, 6, 4, 2, 0].map(|index| self.get(index))
    }

    fn set_time(&mut self, time: [u8; 8]) {
        for (index, value) in [CENTURY_INDEX, 9, 8, 7, 6, 4, 2, 0].into_iter().zip(time) {
            self.set(index, value);
        }
    }

    fn asserted(&self) -> bool {
        self.rtc.line.is_asserted()
    }

    fn advance(&self, time: Duration) {
        self.world.advance(time);
    }
}

fn access(offset: u64) -> Access {
    Access {
        region: 0,
        offset,
        width: Width::Byte,
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn values_at_power_on() {
    let mut rtc = Fixture::new();
    assert_eq!(rtc.get(A), 0x26);
    assert_eq!(rtc.get(B), HOURS_24);
    assert_eq!(rtc.get(C), 0);
    assert_eq!(rtc.get(D), 0x80);
    assert_eq!(rtc.rtc.read(access(0)) as u8, 0xff);
}

#[test]
fn time_is_the_hosts_in_every_data_mode() {
    let mut rtc = Fixture::new();
    assert_eq!(rtc.time(), [0x20, 0x26, 0x11, 0x21, 0x07, 0x07, 0x30, 0x00]);
    rtc.set(B, HOURS_24 | BINARY);
    assert_eq!(rtc.time(), [20, 26, 11, 21, 7, 7, 30, 0]);
    rtc.advance(seconds(9 * 3600));
    assert_eq!(rtc.get(4), 16);
    rtc.set(B, BINARY);
    assert_eq!(rtc.get(4), 0x84);
    rtc.set(B, 0);
    assert_eq!(rtc.get(4), 0x84);
}

#[test]
fn twelve_hours_have_no_zero() {
    // "Hours: 1 to 12 (AM), 81 to 92 (PM)" in BCD.
    let mut rtc = Fixture::new();
    for (hour, byte) in [
        (0, 0x12),
        (1, 0x01),
        (11, 0x11),
        (12, 0x92),
        (13, 0x81),
        (23, 0x91),
    ] {
        rtc.set(B, HOURS_24 | BINARY);
        rtc.set(4, hour);
        rtc.set(B, 0);
        assert_eq!(rtc.get(4), byte);
        rtc.set(4, 0x03);
        rtc.set(4, byte);
        rtc.set(B, HOURS_24 | BINARY);
        assert_eq!(rtc.get(4), hour);
    }
}

#[test]
fn the_clock_carries_into_the_century() {
    let mut rtc = Fixture::new();
    rtc.set_time([0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
    rtc.advance(seconds(1));
    assert_eq!(rtc.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
    // 2000 was a leap year, 2100 is none.
    rtc.set_time([0x20, 0x00, 0x02, 0x28, 0x02, 0x23, 0x59, 0x59]);
    rtc.advance(seconds(1));
    assert_eq!(rtc.time()[2..4], [0x02, 0x29]);
    rtc.set_time([0x21, 0x00, 0x02, 0x28, 0x01, 0x23, 0x59, 0x59]);
    rtc.advance(seconds(1));
    assert_eq!(rtc.time()[2..4], [0x03, 0x01]);
}

#[test]
fn the_years_0_and_9999_can_be_set() {
    let mut rtc = Fixture::new();
    for century_and_year in [[0x99, 0x99], [0x00, 0x00]] {
        let [century, year] = century_and_year;
        let time = [century, year, 0x06, 0x15, 0x03, 0x12, 0x34, 0x56];
        rtc.set(B, HOURS_24 | SET);
        rtc.set_time(time);
        rtc.set(B, HOURS_24);
        assert_eq!(rtc.time(), time);
    }
}

#[test]
fn what_is_set_stays_relative_to_the_host() {
    let mut rtc = Fixture::new();
    rtc.advance(Duration::from_millis(300));
    rtc.set(2, 0x45);
    assert_eq!(rtc.rtc.offset(), 15 * 60 * 1_000_000_000);
    rtc.advance(seconds(60));
    assert_eq!(rtc.get(2), 0x46);
    // The host corrects its clock, and so the guest's.
    rtc.world.lock().wall += 3600 * 1_000_000_000;
    assert_eq!(rtc.get(4), 0x08);
    // A save and a day of rest.
    let state = rtc.rtc.save();
    let mut later = Fixture::new();
    later.advance(seconds(86_400));
    later.rtc.restore(&state).unwrap();
    assert_eq!(
        later.time(),
        [0x20, 0x26, 0x11, 0x22, 0x01, 0x07, 0x45, 0x00]
    );
}

#[test]
fn while_set_is_one_time_is_memory() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | SET);
    let odd = [0x12, 0xff, 0x13, 0x40, 0x00, 0x99, 0x77, 0x60];
    rtc.set_time(odd);
    rtc.advance(seconds(5));
    assert_eq!(rtc.time(), odd);
    rtc.set_time([0x20, 0x30, 0x01, 0x02, 0x04, 0x03, 0x04, 0x05]);
    rtc.set(B, HOURS_24);
    rtc.advance(seconds(1));
    assert_eq!(rtc.time(), [0x20, 0x30, 0x01, 0x02, 0x04, 0x03, 0x04, 0x06]);
}

#[test]
fn set_leaves_the_second_where_it_is() {
    let mut rtc = Fixture::new();
    rtc.advance(Duration::from_millis(700));
    rtc.set(B, HOURS_24 | SET);
    rtc.set(0, 0x10);
    rtc.advance(Duration::from_millis(200));
    rtc.set(B, HOURS_24);
    rtc.advance(Duration::from_millis(99));
    assert_eq!(rtc.get(0), 0x10);
    rtc.advance(Duration::from_millis(1));
    assert_eq!(rtc.get(0), 0x11);
}

#[test]
fn the_first_update_is_half_a_second_after_the_dividers_reset() {
    let mut rtc = Fixture::new();
    rtc.set(A, DIVIDER_RESET);
    rtc.set(0, 0x10);
    rtc.advance(seconds(7));
    assert_eq!(rtc.get(0), 0x10);
    rtc.set(A, RUN);
    rtc.advance(Duration::from_millis(499));
    assert_eq!(rtc.get(0), 0x10);
    rtc.advance(Duration::from_millis(1));
    assert_eq!(rtc.get(0), 0x11);
    assert_eq!(rtc.get(C), 0x10 | 0x40);
}

#[test]
fn the_divider_can_be_released_under_set() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | SET);
    rtc.set(A, DIVIDER_RESET);
    rtc.set(0, 0x10);
    rtc.set(A, RUN);
    rtc.advance(Duration::from_millis(200));
    rtc.set(B, HOURS_24);
    rtc.advance(Duration::from_millis(299));
    assert_eq!(rtc.get(0), 0x10);
    rtc.advance(Duration::from_millis(1));
    assert_eq!(rtc.get(0), 0x11);
}

#[test]
fn impossible_values_become_near_ones_when_the_clock_runs() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | BINARY | SET);
    rtc.set_time([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    rtc.set(B, HOURS_24 | BINARY);
    assert_eq!(rtc.time(), [99, 99, 12, 31, 7, 23, 59, 59]);
    rtc.set_time([20, 26, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rtc.time()[2..], [1, 1, 1, 0, 0, 0]);
    // A day that the month lacks counts on.
    rtc.set(8, 2);
    rtc.set(7, 30);
    assert_eq!(rtc.time()[2..4], [3, 2]);
}

#[test]
fn the_weekday_is_the_guests() {
    let mut rtc = Fixture::new();
    rtc.set(6, 3);
    assert_eq!(rtc.get(6), 3);
    rtc.advance(seconds(86_400 * 5));
    assert_eq!(rtc.get(6), 1);
}

#[test]
fn uip_is_set_before_an_update_and_time_changes_as_it_ends() {
    let mut rtc = Fixture::new();
    let before = Duration::from_nanos(1_000_000_000 - 2_228_000);
    rtc.advance(before - Duration::from_nanos(1));
    assert_eq!(rtc.get(A) & UIP, 0);
    rtc.advance(Duration::from_nanos(1));
    assert_eq!(rtc.get(A), RUN | UIP);
    assert_eq!(rtc.get(0), 0x00);
    rtc.advance(Duration::from_nanos(2_227_999));
    assert_eq!(rtc.get(A) & UIP, UIP);
    assert_eq!(rtc.get(0), 0x00);
    rtc.advance(Duration::from_nanos(1));
    assert_eq!(rtc.get(A) & UIP, 0);
    assert_eq!(rtc.get(0), 0x01);
    // Not while the time stands.
    rtc.advance(before);
    rtc.set(B, HOURS_24 | SET);
    assert_eq!(rtc.get(A) & UIP, 0);
}

#[test]
fn uip_c_and_d_cannot_be_written() {
    let mut rtc = Fixture::new();
    rtc.set(A, 0xff);
    assert_eq!(rtc.get(A), 0x7f);
    rtc.set(C, 0xff);
    rtc.set(D, 0x00);
    assert_eq!((rtc.get(C), rtc.get(D)), (0x00, 0x80));
}

#[test]
fn set_clears_the_update_interrupt() {
    let mut rtc = Fixture::new();
    rtc.set(B, 0xff);
    assert_eq!(rtc.get(B), 0xef);
    rtc.set(B, 0xff);
    assert_eq!(rtc.get(B), 0xff, "only when it rises");
}

#[test]
fn ram_is_kept_across_resets_and_the_nmi_bit_is_no_address() {
    let mut rtc = Fixture::new();
    for index in (14..128).filter(|i| *i != CENTURY_INDEX) {
        rtc.set(index | 0x80, index ^ 0xff);
    }
    rtc.rtc.reset();
    for index in (14..128).filter(|i| *i != CENTURY_INDEX) {
        assert_eq!(rtc.get(index), index ^ 0xff);
        assert_eq!(rtc.rtc.ram(index), index ^ 0xff);
    }
    rtc.rtc.set_ram(0x40, 1);
    rtc.rtc.set_ram(A, 1);
    rtc.rtc.set_ram(200, 1);
    assert_eq!((rtc.get(0x40), rtc.get(A)), (1, RUN));
    assert_eq!((rtc.rtc.ram(A), rtc.rtc.ram(255)), (0, 0));
}

#[test]
fn a_reset_ends_interrupts_and_nothing_else() {
    let mut rtc = Fixture::new();
    rtc.set(2, 0x45);
    rtc.set(B, 0x7e);
    rtc.advance(seconds(1));
    rtc.rtc.poll();
    assert!(rtc.asserted());
    rtc.rtc.reset();
    assert!(!rtc.asserted());
    // PIE, AIE, UIE and SQWE go; the data mode stays.
    assert_eq!(rtc.get(B), 0x06);
    assert_eq!(rtc.get(C), 0);
    assert_eq!(rtc.get(2), 45);
}

#[test]
fn hostile_states_are_refused_by_name() {
    for (field, state) in saved::broken_states(&Fixture::new().rtc) {
        let mut rtc = Fixture::new();
        let error = rtc.rtc.restore(&state).unwrap_err();
        assert!(error.to_string().contains(field), "{field}: {error}");
        assert_eq!(rtc.rtc.save(), Fixture::new().rtc.save());
    }
}

proptest! {
    #[test]
    fn what_is_set_is_read_back(
        year in 0_i64..10_000, month in 1_u8..=12, day in 1_u8..=28,
        hour in 0_u8..24, minute in 0_u8..60, second in 0_u8..60, weekday in 1_u8..=7,
        mode in 0_u8..4, hold: bool,
    ) {
        let mut rtc = Fixture::new();
        let mode = mode << 1;
        let control = registers::ControlB::from_bits(mode);
        let time = [
            control.encode((year / 100) as u8),
            control.encode((year % 100) as u8),
            control.encode(month),
            control.encode(day),
            weekday,
            control.encode_hour(hour),
            control.encode(minute),
            control.encode(second),
        ];
        rtc.set(B, if hold { mode | SET } else { mode });
        rtc.set_time(time);
        rtc.set(B, mode);
        prop_assert_eq!(rtc.time(), time);
    }
}

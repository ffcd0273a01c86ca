//! Update-ended, alarm and periodic interrupts.

use super::*;

const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const IRQF: u8 = 0x80;
const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;

/// Seconds, minutes, hours.
const ALARM_AT: [u8; 3] = [1, 3, 5];

/// Jumps to the deadline and polls there. The time that has passed.
fn to_deadline(rtc: &mut Fixture) -> Option<Duration> {
    let deadline = rtc.rtc.deadline()?;
    let now = rtc.world.lock().clock;
    let wait = deadline.since(now);
    rtc.advance(wait);
    rtc.rtc.poll();
    Some(wait)
}

fn set_alarm(rtc: &mut Fixture, time: [u8; 3]) {
    for (index, value) in ALARM_AT.into_iter().zip(time) {
        rtc.set(index, value);
    }
}

#[test]
fn flags_are_set_without_their_interrupts_and_cleared_by_a_read() {
    let mut rtc = Fixture::new();
    set_alarm(&mut rtc, [0xff; 3]);
    rtc.get(C);
    rtc.advance(seconds(1));
    assert_eq!(rtc.get(C), PF | AF | UF);
    assert_eq!(rtc.get(C), 0);
    assert!(!rtc.asserted());
    assert_eq!(rtc.rtc.deadline(), None);
}

#[test]
fn an_enabled_flag_asserts_the_line_until_c_is_read() {
    for (enable, flag) in [(PIE, PF), (AIE, AF), (UIE, UF)] {
        let mut rtc = Fixture::new();
        set_alarm(&mut rtc, [0xff; 3]);
        rtc.set(B, HOURS_24 | enable);
        to_deadline(&mut rtc).unwrap();
        assert!(rtc.asserted());
        assert_eq!(rtc.rtc.deadline(), None, "nothing more to tell");
        let flags = rtc.get(C);
        assert_eq!(flags & (IRQF | flag), IRQF | flag);
        assert!(!rtc.asserted());
        assert!(rtc.rtc.deadline().is_some());
    }
}

#[test]
fn enabling_an_interrupt_of_a_set_flag_causes_it() {
    let mut rtc = Fixture::new();
    rtc.advance(seconds(1));
    rtc.set(B, HOURS_24 | UIE);
    assert!(rtc.asserted());
    rtc.set(B, HOURS_24);
    assert!(!rtc.asserted());
}

#[test]
fn updates_end_once_a_second() {
    let mut rtc = Fixture::new();
    rtc.advance(Duration::from_millis(250));
    rtc.set(B, HOURS_24 | UIE);
    assert_eq!(to_deadline(&mut rtc), Some(Duration::from_millis(750)));
    assert_eq!(rtc.get(C) & UF, UF);
    assert_eq!(to_deadline(&mut rtc), Some(seconds(1)));
    assert_eq!(rtc.get(0), 0x02);
}

#[test]
fn the_periodic_interrupt_has_the_rates_of_its_table() {
    // "Periodic interrupt rate and square-wave output frequency", 32.768 kHz.
    let rates = [
        256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2,
    ];
    for (select, rate) in (1..).zip(rates) {
        let mut rtc = Fixture::new();
        rtc.set(A, 0x20 | select);
        rtc.set(B, HOURS_24 | PIE);
        rtc.get(C);
        let mut total = Duration::ZERO;
        for _ in 0..rate {
            total += to_deadline(&mut rtc).unwrap();
            assert!(rtc.asserted());
            assert_eq!(rtc.get(C) & (IRQF | PF), IRQF | PF);
        }
        assert_eq!(total, seconds(1), "rate select {select}");
    }
}

#[test]
fn rate_zero_and_a_stopped_divider_have_no_periods() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | PIE);
    for control in [0x20, DIVIDER_RESET | 6, 0x36] {
        rtc.set(A, control);
        rtc.get(C);
        assert_eq!(rtc.rtc.deadline(), None);
        rtc.advance(seconds(3));
        assert_eq!(rtc.get(C) & PF, 0);
    }
}

#[test]
fn periods_go_on_under_set_and_updates_do_not() {
    let mut rtc = Fixture::new();
    set_alarm(&mut rtc, [0xff; 3]);
    rtc.set(B, HOURS_24 | SET | PIE | AIE);
    rtc.get(C);
    rtc.advance(seconds(3));
    assert_eq!(rtc.get(C), IRQF | PF);
}

#[test]
fn an_alarm_comes_at_its_time_of_day() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | AIE);
    set_alarm(&mut rtc, [0x05, 0x31, 0x07]);
    assert_eq!(to_deadline(&mut rtc), Some(seconds(65)));
    assert_eq!(rtc.get(C), IRQF | AF | PF | UF);
    assert_eq!(to_deadline(&mut rtc), Some(seconds(86_400)));
}

#[test]
fn an_alarm_bytes_two_high_bits_match_anything() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | AIE);
    for (alarm, wait) in [
        ([0xff, 0xff, 0xff], 1),
        ([0x59, 0xc0, 0xff], 58),
        ([0x00, 0x35, 0xff], 4 * 60 + 1),
        ([0x00, 0x00, 0x23], 15 * 3600 + 25 * 60),
    ] {
        set_alarm(&mut rtc, alarm);
        rtc.get(C);
        assert_eq!(to_deadline(&mut rtc), Some(seconds(wait)));
        assert_eq!(rtc.get(C) & AF, AF);
    }
}

#[test]
fn alarms_follow_the_data_mode() {
    let mut rtc = Fixture::new();
    rtc.set(B, BINARY | AIE);
    set_alarm(&mut rtc, [0, 0, 0x81]);
    assert_eq!(to_deadline(&mut rtc), Some(seconds(5 * 3600 + 1800)));
    assert_eq!(rtc.get(4), 0x81);
}

#[test]
fn an_alarm_that_no_time_matches_never_comes() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | AIE);
    for alarm in [[0x60, 0xff, 0xff], [0xff, 0x0a, 0xff], [0xff, 0xff, 0x24]] {
        set_alarm(&mut rtc, alarm);
        rtc.get(C);
        assert_eq!(rtc.rtc.deadline(), None);
        rtc.advance(seconds(100_000));
        assert_eq!(rtc.get(C) & AF, 0);
    }
}

#[test]
fn setting_the_time_past_an_alarm_does_not_ring() {
    let mut rtc = Fixture::new();
    set_alarm(&mut rtc, [0x00, 0x00, 0x08]);
    rtc.get(C);
    rtc.set(4, 0x09);
    assert_eq!(rtc.get(C) & AF, 0);
}

#[test]
fn an_alarm_during_a_save_rings_after_it() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | AIE);
    set_alarm(&mut rtc, [0x05, 0x31, 0x07]);
    let state = rtc.rtc.save();
    let mut later = Fixture::new();
    later.advance(seconds(1000));
    later.rtc.restore(&state).unwrap();
    assert!(!later.asserted());
    later.rtc.start();
    assert!(later.asserted());
}

#[test]
fn a_host_that_sets_its_clock_back_stops_nothing() {
    let mut rtc = Fixture::new();
    rtc.set(B, HOURS_24 | UIE);
    rtc.world.lock().wall -= 3600 * 1_000_000_000;
    assert_eq!(rtc.get(4), 0x06);
    assert_eq!(rtc.get(C) & UF, 0);
    assert_eq!(to_deadline(&mut rtc), Some(seconds(1)));
    assert!(rtc.asserted());
}

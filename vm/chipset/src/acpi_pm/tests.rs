//! The register interface, after the ACPI specification 6.5, chapter 4.8.

use proptest::prelude::*;

use super::*;
use crate::line::Pins;
use crate::testing::SharedWorld;

const STATUS: u64 = 0;
const ENABLE: u64 = 2;
const CONTROL: u64 = 4;
const TIMER: u64 = 8;

const TMR: u16 = 1 << 0;
const GBL: u16 = 1 << 5;
const RTC: u16 = 1 << 10;
const PWRBTN: u16 = 1 << 8;

struct Fixture {
    world: SharedWorld,
    pm: AcpiPm,
}

impl Fixture {
    fn new(width: TimerWidth) -> Self {
        let world = SharedWorld::default();
        let shared = Arc::new(world.clone());
        let target: Arc<dyn crate::line::PinTarget> = shared.clone();
        let line = Pins::new(&target, 24).line(9).unwrap();
        let pm = AcpiPm::new(DEFAULT_BASE, width, shared.clone(), line, shared);
        Self { world, pm }
    }

    fn read(&mut self, offset: u64, width: Width) -> u64 {
        self.pm.read(access(offset, width)) & width.mask()
    }

    fn word(&mut self, offset: u64) -> u16 {
        self.read(offset, Width::Word) as u16
    }

    fn timer(&mut self) -> u32 {
        self.read(TIMER, Width::Dword) as u32
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        assert_eq!(self.pm.write(access(offset, width), value), Written::Done);
    }

    fn set_word(&mut self, offset: u64, value: u16) {
        self.write(offset, Width::Word, value.into());
    }

    fn asserted(&self) -> bool {
        self.pm.line.is_asserted()
    }
}

fn access(offset: u64, width: Width) -> Access {
    let (region, offset) = match offset {
        0..=3 => (0, offset),
        4..=7 => (1, offset - 4),
        _ => (2, offset - 8),
    };
    Access {
        region,
        offset,
        width,
    }
}

/// The time of the given tick.
fn tick(count: u64) -> Duration {
    Duration::from_nanos((u128::from(count) * SECOND_NS).div_ceil(TIMER_HZ.into()) as u64)
}

#[test]
fn values_after_a_reset() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    assert_eq!(pm.word(STATUS), 0);
    assert_eq!(pm.word(ENABLE), 0);
    assert_eq!(pm.word(CONTROL), 1, "ACPI mode from the start");
    assert_eq!(pm.timer(), 0);
}

#[test]
fn the_timer_counts_at_its_frequency() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    pm.world.advance(Duration::from_secs(100));
    assert_eq!(pm.timer(), 357_954_500);
    pm.world.advance(tick(1));
    assert_eq!(pm.timer(), 357_954_501);
    // Reads of parts, and writes without effect.
    let bytes = 357_954_501_u32.to_le_bytes();
    assert_eq!(pm.read(TIMER + 1, Width::Byte), bytes[1].into());
    assert_eq!(pm.word(TIMER + 2), u16::from_le_bytes([bytes[2], bytes[3]]));
    pm.write(TIMER, Width::Dword, 0);
    assert_eq!(pm.timer(), 357_954_501);
}

#[test]
fn the_timer_wraps_at_its_width() {
    for (width, bits) in [(TimerWidth::Bits24, 24), (TimerWidth::Bits32, 32)] {
        let mut pm = Fixture::new(width);
        pm.world.advance(tick((1 << bits) - 1));
        assert_eq!(u64::from(pm.timer()), (1 << bits) - 1);
        pm.world.advance(tick(1));
        assert_eq!(pm.timer(), 0);
    }
}

#[test]
fn any_change_of_the_highest_bit_sets_the_status() {
    // 4.8.3.1.1: TMR_STS, "any time the most significant bit … changes".
    let mut pm = Fixture::new(TimerWidth::Bits24);
    pm.world.advance(tick((1 << 23) - 1));
    assert_eq!(pm.word(STATUS), 0);
    for _ in 0..3 {
        pm.world.advance(tick(1 << 23));
        assert_eq!(pm.word(STATUS), TMR);
        pm.set_word(STATUS, TMR);
        assert_eq!(pm.word(STATUS), 0);
    }
    assert!(!pm.asserted());
}

#[test]
fn an_enabled_timer_asserts_the_sci_in_time() {
    let mut pm = Fixture::new(TimerWidth::Bits24);
    assert_eq!(pm.pm.deadline(), None);
    pm.set_word(ENABLE, TMR);
    for change in 1..4 {
        let deadline = pm.pm.deadline().unwrap();
        let wait = deadline.since(pm.world.lock().clock);
        pm.world.advance(wait);
        pm.pm.poll();
        assert!(pm.asserted());
        assert_eq!(u64::from(pm.timer()), (change << 23) & 0xff_ffff);
        assert_eq!(pm.pm.deadline(), None);
        pm.set_word(STATUS, TMR);
        assert!(!pm.asserted());
    }
}

#[test]
fn the_power_button_asserts_the_sci_if_enabled() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    pm.pm.press_power_button();
    assert_eq!(pm.word(STATUS), PWRBTN);
    assert!(!pm.asserted());
    pm.set_word(ENABLE, PWRBTN);
    assert!(pm.asserted());
    pm.set_word(STATUS, PWRBTN);
    assert!(!pm.asserted());
    pm.pm.press_power_button();
    assert!(pm.asserted());
    pm.set_word(ENABLE, 0);
    assert!(!pm.asserted());
}

#[test]
fn status_bits_are_cleared_by_ones_and_one_by_one() {
    let mut pm = Fixture::new(TimerWidth::Bits24);
    pm.world.advance(tick(1 << 23));
    pm.pm.press_power_button();
    assert_eq!(pm.word(STATUS), TMR | PWRBTN);
    pm.set_word(STATUS, 0);
    assert_eq!(pm.word(STATUS), TMR | PWRBTN);
    pm.write(STATUS + 1, Width::Byte, 0xff);
    assert_eq!(pm.word(STATUS), TMR);
    pm.write(STATUS, Width::Byte, 0xff);
    assert_eq!(pm.word(STATUS), 0);
}

#[test]
fn only_events_that_exist_can_be_enabled() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    pm.write(STATUS, Width::Dword, 0xffff_ffff);
    assert_eq!(
        pm.read(STATUS, Width::Dword),
        u64::from(TMR | GBL | PWRBTN | RTC) << 16
    );
    pm.write(ENABLE, Width::Byte, 0);
    assert_eq!(pm.word(ENABLE), PWRBTN | RTC);
    pm.write(ENABLE + 1, Width::Byte, 0);
    assert_eq!(pm.word(ENABLE), 0);
}

#[test]
fn control_keeps_sleep_type_and_forgets_commands() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    // GBL_RLS and SLP_EN are write-only; SCI_EN cannot be cleared.
    pm.set_word(CONTROL, 0x1c06);
    assert_eq!(pm.word(CONTROL), 0x1c03);
    pm.write(CONTROL, Width::Byte, 0);
    assert_eq!(pm.word(CONTROL), 0x1c01);
    assert_eq!(pm.world.lock().power, []);
}

#[test]
fn s5_powers_off_and_other_types_are_reported() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    for sleep_type in 0..8 {
        pm.set_word(CONTROL, u16::from(sleep_type) << 10 | 1 << 13);
        let events = std::mem::take(&mut pm.world.lock().power);
        assert_eq!(
            events,
            [match sleep_type {
                5 => PowerEvent::PowerOff,
                other => PowerEvent::UnknownSleepType(other),
            }]
        );
        assert_eq!(pm.word(CONTROL) & 1 << 13, 0);
    }
    pm.write(CONTROL + 1, Width::Byte, 0x34);
    assert_eq!(pm.world.lock().power, [PowerEvent::PowerOff]);
}

#[test]
fn a_reset_clears_all() {
    let mut pm = Fixture::new(TimerWidth::Bits32);
    pm.world.advance(Duration::from_secs(5));
    pm.set_word(ENABLE, PWRBTN);
    pm.set_word(CONTROL, 0x1c00);
    pm.pm.press_power_button();
    pm.pm.reset();
    assert!(!pm.asserted());
    assert_eq!(
        (pm.word(STATUS), pm.word(ENABLE), pm.word(CONTROL)),
        (0, 0, 1)
    );
    assert_eq!(pm.timer(), 0);
}

#[test]
fn the_timer_goes_on_where_it_was_saved() {
    let pm = Fixture::new(TimerWidth::Bits24);
    pm.world
        .advance(tick((1 << 23) - 5) + Duration::from_nanos(100));
    let state = pm.pm.save();
    let mut later = Fixture::new(TimerWidth::Bits24);
    later.world.advance(Duration::from_secs(1000));
    later.pm.restore(&state).unwrap();
    assert_eq!(later.timer(), (1 << 23) - 5);
    later.world.advance(tick(5));
    assert_eq!(later.word(STATUS), TMR);
}

#[test]
fn a_change_that_nobody_saw_before_a_save_is_seen_after_it() {
    let mut pm = Fixture::new(TimerWidth::Bits24);
    pm.set_word(ENABLE, TMR);
    pm.world.advance(tick(1 << 23));
    let state = pm.pm.save();
    let mut later = Fixture::new(TimerWidth::Bits24);
    later.pm.restore(&state).unwrap();
    assert!(!later.asserted());
    later.pm.poll();
    assert!(later.asserted());
}

#[test]
fn hostile_states_are_refused_or_harmless() {
    let good = State::default();
    let broken = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        SavedState::new(STATE_VERSION, &state)
    };
    for (field, state) in [
        ("status", broken(|s| s.status = 0x1_0000)),
        ("enable", broken(|s| s.enable = 0x1_0000)),
        ("control", broken(|s| s.control = 0x1_0000)),
        ("elapsed_ns", broken(|s| s.elapsed_ns = 1_000_000_000)),
    ] {
        let mut pm = Fixture::new(TimerWidth::Bits32);
        let error = pm.pm.restore(&state).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
    let mut pm = Fixture::new(TimerWidth::Bits32);
    let old = broken(|s| {
        s.elapsed_s = u64::MAX;
        s.elapsed_ns = 999_999_999;
        s.enable = 1;
    });
    pm.pm.restore(&old).unwrap();
    pm.world.advance(Duration::from_secs(10));
    pm.timer();
    pm.pm.deadline();
    pm.pm.save();
}

proptest! {
    #[test]
    fn the_timer_is_exact_at_any_time(nanoseconds in 0_u64..u64::MAX / 4) {
        let mut pm = Fixture::new(TimerWidth::Bits32);
        pm.world.lock().clock = VmTime::from_nanos(1_000_000 + nanoseconds);
        let ticks = u128::from(nanoseconds) * 3_579_545 / 1_000_000_000;
        prop_assert_eq!(pm.timer(), ticks as u32);
    }
}

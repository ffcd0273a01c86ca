//! The timer: 11.5.4. A tick is half a bus clock.

use super::*;
use crate::timer::Timer;
use proptest::prelude::*;
use x86_defs::apic::TimerMode;

const VECTOR: u32 = 0xec;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;
/// Divider 1.
const UNDIVIDED: u32 = 0b1011;

fn with_timer(lvt: u32, divide: u32) -> LocalApic {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::LVT_TIMER, lvt);
    write(&mut apic, ApicRegister::TIMER_DIVIDE, divide);
    apic
}

fn count(apic: &mut LocalApic, now: u64) -> u64 {
    apic.read_mmio(0x390, 4, now)
}

/// Whether the timer has interrupted by `now`.
fn fired(apic: &mut LocalApic, now: u64) -> bool {
    apic.poll_timer(now);
    drain(apic) == [VECTOR as u8]
}

#[test]
fn one_shot_counts_down_and_fires_once() {
    let mut apic = with_timer(VECTOR, UNDIVIDED);
    assert_eq!(apic.next_deadline(0), None);
    let _ = apic.write_mmio(0x380, 4, 1000, 50);
    assert_eq!(apic.next_deadline(50), Some(2050));
    for (now, rest) in [
        (50, 1000),
        (51, 1000),
        (52, 999),
        (2048, 1),
        (2049, 1),
        (2050, 0),
    ] {
        assert_eq!(count(&mut apic, now), rest, "{now}");
    }
    assert!(!fired(&mut apic, 2049));
    assert!(fired(&mut apic, 2050));
    assert_eq!(apic.next_deadline(2050), None);
    assert!(!fired(&mut apic, 1 << 40));
    assert_eq!(count(&mut apic, 1 << 40), 0);
    assert_eq!(read(&mut apic, ApicRegister::TIMER_INITIAL), 1000);
}

#[test]
fn every_divider() {
    for (code, divider) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut apic = with_timer(VECTOR, code);
        let _ = apic.write_mmio(0x380, 4, 100, 0);
        assert_eq!(apic.next_deadline(0), Some(200 * divider));
        assert_eq!(count(&mut apic, 2 * divider), 99);
    }
}

#[test]
fn periodic_goes_on_without_drift_and_missed_periods_are_one() {
    let mut apic = with_timer(VECTOR | PERIODIC, UNDIVIDED);
    let _ = apic.write_mmio(0x380, 4, 100, 0);
    // Late each time, but the deadlines stay multiples.
    assert!(fired(&mut apic, 207));
    assert_eq!(apic.next_deadline(207), Some(400));
    assert_eq!(count(&mut apic, 250), 75);
    assert!(fired(&mut apic, 1999));
    assert!(!fired(&mut apic, 1999));
    assert_eq!(apic.next_deadline(1999), Some(2000));
    // The count is right although nobody has polled.
    assert_eq!(count(&mut apic, 4050), 75);
    let _ = apic.write_mmio(0x380, 4, 0, 4100);
    assert_eq!(apic.next_deadline(4100), None);
    assert_eq!(count(&mut apic, 4200), 0);
}

#[test]
fn a_short_period_does_not_keep_the_host_busy() {
    let mut apic = LocalApic::new(Config {
        rates: Rates::new(TICK_HZ, BUS_HZ, 10_000),
        ..config(0)
    });
    write(&mut apic, ApicRegister::SVR, 0x1ff);
    write(&mut apic, ApicRegister::LVT_TIMER, VECTOR | PERIODIC);
    let _ = apic.write_mmio(0x380, 4, 1, 0);
    let mut now = 0;
    let mut times = 0;
    while let Some(next) = apic.next_deadline(now).filter(|next| *next < 1_000_000) {
        assert!(next > now || times == 0);
        now = next;
        assert!(fired(&mut apic, now));
        times += 1;
    }
    assert!((90..=101).contains(&times), "{times}");
}

#[test]
fn a_masked_timer_counts_but_does_not_interrupt() {
    let mut apic = with_timer(VECTOR | MASKED, UNDIVIDED);
    let _ = apic.write_mmio(0x380, 4, 100, 0);
    assert_eq!(apic.next_deadline(0), None);
    assert_eq!(count(&mut apic, 100), 50);
    assert!(!fired(&mut apic, 1000));
    write(&mut apic, ApicRegister::LVT_TIMER, VECTOR);
    assert!(!fired(&mut apic, 2000));
}

#[test]
fn a_new_divider_applies_to_what_is_left() {
    let mut apic = with_timer(VECTOR, UNDIVIDED);
    let _ = apic.write_mmio(0x380, 4, 100, 0);
    let _ = apic.write_mmio(0x3e0, 4, 0, 100);
    assert_eq!(count(&mut apic, 100), 50);
    assert_eq!(apic.next_deadline(100), Some(300));
}

#[test]
fn tsc_deadline() {
    // 11.5.4.1.
    let mut apic = with_timer(VECTOR | TSC_DEADLINE, UNDIVIDED);
    apic.set_tsc_offset(1_000_000);
    assert_eq!(apic.write_msr(0x6e0, 1_000_500, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x6e0, 0), Ok(1_000_500));
    assert_eq!(apic.next_deadline(100), Some(500));
    assert!(!fired(&mut apic, 499));
    assert!(fired(&mut apic, 500));
    assert_eq!(apic.read_msr(0x6e0, 500), Ok(0));
    // The count registers do nothing.
    let _ = apic.write_mmio(0x380, 4, 77, 600);
    assert_eq!(count(&mut apic, 600), 0);
    assert_eq!(apic.read_mmio(0x380, 4, 600), 0);
    // A deadline that has passed fires at once, one of zero disarms.
    apic.write_msr(0x6e0, 5, 600).unwrap();
    assert_eq!(apic.next_deadline(600), Some(600));
    assert!(fired(&mut apic, 600));
    apic.write_msr(0x6e0, 2_000_000, 600).unwrap();
    apic.write_msr(0x6e0, 0, 600).unwrap();
    assert_eq!(apic.next_deadline(600), None);
    // Another mode disarms and hides it.
    apic.write_msr(0x6e0, 2_000_000, 600).unwrap();
    write(&mut apic, ApicRegister::LVT_TIMER, VECTOR);
    assert_eq!(apic.read_msr(0x6e0, 600), Ok(0));
    apic.write_msr(0x6e0, 5, 600).unwrap();
    assert!(!fired(&mut apic, 3_000_000));
}

#[test]
fn a_masked_deadline_passes_unheard() {
    let mut apic = with_timer(VECTOR | TSC_DEADLINE | MASKED, UNDIVIDED);
    apic.write_msr(0x6e0, 500, 0).unwrap();
    assert_eq!(apic.next_deadline(0), Some(500));
    assert!(!fired(&mut apic, 500));
    assert_eq!(apic.read_msr(0x6e0, 500), Ok(0));
}

#[test]
fn without_deadline_mode_its_msr_and_bit_do_not_exist() {
    let mut apic = LocalApic::new(Config {
        tsc_deadline: false,
        ..config(0)
    });
    assert!(apic.read_msr(0x6e0, 0).is_err());
    assert!(apic.write_msr(0x6e0, 1, 0).is_err());
    write(&mut apic, ApicRegister::LVT_TIMER, TSC_DEADLINE);
    assert_eq!(read(&mut apic, ApicRegister::LVT_TIMER), MASKED);
    apic.write_msr(0x1b, 0xfee0_0c00, 0).unwrap();
    assert!(apic.write_msr(0x832, TSC_DEADLINE.into(), 0).is_err());
}

#[test]
fn the_mode_that_is_not_defined_stops_the_timer() {
    let mut apic = with_timer(VECTOR, UNDIVIDED);
    let _ = apic.write_mmio(0x380, 4, 100, 0);
    write(&mut apic, ApicRegister::LVT_TIMER, VECTOR | 3 << 17);
    assert_eq!(apic.next_deadline(0), None);
    assert!(!fired(&mut apic, 1 << 50));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Count and expirations at arbitrary times are those of exact arithmetic.
    #[test]
    fn counts_and_expirations_follow_the_clock(
        (tick_hz, bus_hz) in (1_000_000u64..5_000_000_000, 1_000_000u64..2_000_000_000),
        start in 0u64..1 << 62,
        initial in 1u32..,
        divide in 0u8..16,
        periodic in any::<bool>(),
        steps in proptest::collection::vec((1u64..1 << 36, 0u8..4), 1..30),
    ) {
        let mut timer = Timer::new(Rates::new(tick_hz, bus_hz, 0));
        timer.set_mode(if periodic { TimerMode::PERIODIC } else { TimerMode::ONE_SHOT });
        timer.set_divide(divide, start);
        timer.set_initial(initial, start);
        let divider = 1u128 << ((u32::from(divide >> 1 & 4 | divide & 3) + 1) & 7);
        let bus = |tick: u64| u128::from(tick) * u128::from(bus_hz) / u128::from(tick_hz);
        let period = u128::from(initial) * divider;
        let mut now = start;
        let mut expired = 0;
        for (step, kind) in steps {
            let deadline = timer.next(now);
            // Also at the tick of the deadline, and just before.
            now = match (kind, deadline) {
                (0, Some(deadline)) => deadline.max(now),
                (1, Some(deadline)) => (deadline - 1).max(now),
                _ => now + step,
            };
            let elapsed = bus(now) - bus(start);
            let all = if periodic { elapsed / period } else { (elapsed / period).min(1) };
            let counted = elapsed / divider;
            let initial = u128::from(initial);
            let rest = match periodic {
                true => initial - counted % initial,
                false => initial.saturating_sub(counted),
            };
            prop_assert_eq!(u128::from(timer.current(now)), rest);
            // It fires exactly if its deadline has come.
            let due = deadline.is_some_and(|deadline| deadline <= now);
            prop_assert_eq!(due, all > expired);
            prop_assert_eq!(timer.poll(now), due);
            expired = all;
        }
    }
}

//! TLFS "Synthetic Timers".

use super::*;
use hv_defs::synic::TimerConfig;
use proptest::prelude::*;

const CONFIG: u32 = HV_X64_MSR_STIMER0_CONFIG;
const COUNT: u32 = CONFIG + 1;

fn message_mode() -> TimerConfig {
    TimerConfig::new().with_sint(3).with_enabled(true)
}

fn direct_mode() -> TimerConfig {
    let config = TimerConfig::new().with_direct(true).with_vector(0xe0);
    config.with_enabled(true)
}

fn start(synic: &mut Synic, memory: &Memory, config: TimerConfig, count: u64, now: u64) -> Raised {
    let _ = synic.write_msr(COUNT, count, now, memory).unwrap();
    synic.write_msr(CONFIG, config.into(), now, memory).unwrap()
}

/// Expiration and delivery time of the message in slot 3.
fn timer_message(memory: &Memory) -> (u64, u64) {
    let (message_type, _, payload) = memory.slot(3);
    assert_eq!((message_type, payload.len()), (0x8000_0010, 24));
    assert_eq!(payload[..8], [0; 8]);
    let time = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
    (time(8), time(16))
}

#[test]
fn one_shot_sends_a_message_and_is_disabled() {
    let (mut synic, memory) = guest();
    assert_eq!(
        start(&mut synic, &memory, message_mode(), 500, 100),
        Raised::default()
    );
    assert_eq!(synic.next_deadline(), Some(500));
    assert_eq!(synic.poll(499, &memory), Raised::default());
    assert!(synic.poll(510, &memory).interrupts.contains(0x53));
    assert_eq!(timer_message(&memory), (500, 510));
    assert_eq!(synic.next_deadline(), None);
    let config = TimerConfig::from(synic.read_msr(CONFIG).unwrap());
    assert!(!config.enabled());
    assert_eq!(synic.read_msr(COUNT), Ok(500));
}

#[test]
fn one_shot_in_the_past_expires_at_once() {
    let (mut synic, memory) = guest();
    let raised = start(&mut synic, &memory, direct_mode(), 500, 1000);
    assert!(raised.interrupts.contains(0xe0));
}

#[test]
fn auto_enable_starts_with_the_count_and_zero_stops() {
    let (mut synic, memory) = guest();
    let config = message_mode().with_enabled(false).with_auto_enable(true);
    let mut write = |msr, value: u64| {
        let _ = synic.write_msr(msr, value, 0, &memory).unwrap();
        (synic.next_deadline(), synic.read_msr(CONFIG).unwrap() & 1)
    };
    assert_eq!(write(CONFIG, config.into()), (None, 0));
    assert_eq!(write(COUNT, 700), (Some(700), 1));
    assert_eq!(write(COUNT, 0), (None, 0));
    assert_eq!(write(COUNT, 800), (Some(800), 1));
    assert_eq!(write(CONFIG, 0), (None, 0));
    // Without auto-enable the count does not start it.
    assert_eq!(write(COUNT, 800), (None, 0));
}

#[test]
fn source_zero_is_no_source_except_in_direct_mode() {
    let (mut synic, memory) = guest();
    let _ = start(&mut synic, &memory, message_mode().with_sint(0), 500, 0);
    assert_eq!(synic.read_msr(CONFIG), Ok(0));
    assert_eq!(synic.next_deadline(), None);
    let auto = TimerConfig::new().with_auto_enable(true);
    let _ = synic.write_msr(CONFIG, auto.into(), 0, &memory).unwrap();
    let _ = synic.write_msr(COUNT, 500, 0, &memory).unwrap();
    assert_eq!(synic.next_deadline(), None);
    let _ = start(&mut synic, &memory, direct_mode(), 500, 0);
    assert_eq!(synic.next_deadline(), Some(500));
}

#[test]
fn periodic_goes_on_without_drift() {
    let (mut synic, memory) = guest();
    let _ = start(
        &mut synic,
        &memory,
        direct_mode().with_periodic(true),
        10_000,
        500,
    );
    for n in 1..20 {
        let due = 500 + n * 10_000;
        assert_eq!(synic.next_deadline(), Some(due));
        // A little late.
        assert!(synic.poll(due + n * 13, &memory).interrupts.contains(0xe0));
    }
}

#[test]
fn periodic_waits_until_its_message_is_delivered() {
    let (mut synic, memory) = guest();
    let _ = start(
        &mut synic,
        &memory,
        message_mode().with_periodic(true),
        10_000,
        0,
    );
    assert!(synic.poll(10_000, &memory).interrupts.contains(0x53));
    // The slot is full: one expiration waits, and nobody is woken for more.
    assert_eq!(synic.poll(20_000, &memory), Raised::default());
    assert_eq!(synic.next_deadline(), None);
    assert_eq!(synic.poll(35_000, &memory), Raised::default());
    memory.empty_slot(3);
    let raised = synic.write_msr(HV_X64_MSR_EOM, 0, 36_000, &memory).unwrap();
    assert!(raised.interrupts.contains(0x53));
    assert_eq!(timer_message(&memory), (20_000, 36_000));
    assert_eq!(synic.next_deadline(), Some(30_000));
}

#[test]
fn a_timer_that_is_set_anew_forgets_what_was_not_delivered() {
    let (mut synic, memory) = guest();
    post(&mut synic, &memory, 3, b"full");
    let _ = start(&mut synic, &memory, message_mode(), 500, 0);
    let _ = synic.poll(600, &memory);
    let _ = start(&mut synic, &memory, message_mode(), 1000, 700);
    memory.empty_slot(3);
    assert_eq!(end_of_message(&mut synic, &memory), []);
    assert_eq!(synic.next_deadline(), Some(1000));
}

#[test]
fn a_timer_that_is_behind_catches_up_with_half_its_period() {
    let (mut synic, memory) = guest();
    let _ = start(
        &mut synic,
        &memory,
        direct_mode().with_periodic(true),
        10_000,
        0,
    );
    let mut now = 45_000;
    let mut times = Vec::new();
    while now < 100_000 {
        assert!(synic.poll(now, &memory).interrupts.contains(0xe0));
        times.push(now);
        now = synic.next_deadline().unwrap().max(now);
    }
    assert_eq!(
        times,
        [
            45_000, 50_000, 55_000, 60_000, 65_000, 70_000, 75_000, 80_000, 90_000
        ]
    );
}

#[test]
fn a_timer_that_is_far_behind_skips_and_a_lazy_one_skips_all() {
    let (mut synic, memory) = guest();
    let periodic = direct_mode().with_periodic(true);
    let _ = start(&mut synic, &memory, periodic, 10_000, 0);
    let _ = synic.poll(1_000_000, &memory);
    assert_eq!(synic.next_deadline(), Some(1_005_000));
    let (mut synic, memory) = guest();
    let lazy = periodic.with_lazy(true);
    let _ = start(&mut synic, &memory, lazy, 10_000, 0);
    assert!(!synic.poll(44_000, &memory).interrupts.is_empty());
    assert_eq!(synic.next_deadline(), Some(50_000));
    // Shortly before the next one it is not worth it.
    assert!(synic.poll(69_900, &memory).interrupts.is_empty());
    assert_eq!(synic.next_deadline(), Some(70_000));
}

#[test]
fn a_short_period_does_not_keep_the_host_busy() {
    let (mut synic, memory) = guest();
    let mut now = 0;
    let _ = start(
        &mut synic,
        &memory,
        direct_mode().with_periodic(true),
        1,
        now,
    );
    let mut wakes = 0;
    while now < 1_000_000 {
        now = synic.next_deadline().unwrap().max(now + 1);
        let _ = synic.poll(now, &memory);
        wakes += 1;
    }
    assert!(wakes <= 1_001, "{wakes}");
}

#[test]
fn all_timers_share_a_slot_in_order() {
    let (mut synic, memory) = guest();
    for index in 0..4 {
        let _ = synic.write_msr(COUNT + 2 * index, 400 - u64::from(index), 0, &memory);
        let _ = synic.write_msr(CONFIG + 2 * index, message_mode().into(), 0, &memory);
    }
    let _ = synic.poll(1000, &memory);
    for index in 0..4 {
        let (_, pending, payload) = memory.slot(3);
        assert_eq!((payload[0], pending), (index, u8::from(index < 3)));
        memory.empty_slot(3);
        end_of_message(&mut synic, &memory);
    }
    assert_eq!(memory.slot(3).0, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// A one-shot timer expires at its time; a periodic one that is polled in time as
    /// often as time divided by the period.
    #[test]
    fn expirations_are_those_of_the_model(
        begin in 0u64..1 << 60,
        period in 2 * SHORTEST_PERIOD..1 << 30,
        periodic in any::<bool>(),
        lazy in any::<bool>(),
        steps in proptest::collection::vec(0u64..1 << 20, 1..50),
    ) {
        let (mut synic, memory) = guest();
        let config = direct_mode().with_periodic(periodic).with_lazy(lazy);
        let count = if periodic { period } else { begin + period };
        let _ = start(&mut synic, &memory, config, count, begin);
        let mut now = begin;
        let mut expired = 0;
        for step in steps {
            // Never later than the deadline, as a host that has its timer.
            let deadline = synic.next_deadline().unwrap_or(u64::MAX);
            now = (now + step).min(deadline);
            let due = !synic.poll(now, &memory).interrupts.is_empty();
            prop_assert_eq!(due, now == deadline);
            expired += u64::from(due);
            let elapsed = (now - begin) / period;
            prop_assert_eq!(expired, if periodic { elapsed } else { elapsed.min(1) });
        }
    }
}

use super::*;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// One tick of the HPET is 40 of the TSC.
const RATES: Rates = Rates {
    tsc_hz: 4_000_000_000,
    hpet_period_fs: 10_000_000,
};
const TSC_PER_TICK: u64 = 40;

/// A machine whose time passes with each look at a clock.
struct Machine {
    tsc: Cell<u64>,
    /// TSC ticks per look at a clock.
    pace: u64,
    mask: u64,
    set: Option<(u32, u64)>,
    starts: u32,
    /// CPUs that an NMI waits for.
    nmis: RefCell<BTreeSet<u32>>,
}

impl Machine {
    fn new(pace: u64) -> Self {
        Self {
            tsc: Cell::new(1000),
            pace,
            mask: u64::MAX,
            set: None,
            starts: 0,
            nmis: RefCell::default(),
        }
    }

    fn pass(&self, ticks: u64) -> u64 {
        let before = self.tsc.get() / TSC_PER_TICK;
        self.tsc.set(self.tsc.get() + ticks);
        if let Some((apic_id, at)) = self.set {
            // For equality only: not if it was set too late.
            let ahead = at.wrapping_sub(before) & self.mask;
            if ahead != 0 && self.tsc.get() / TSC_PER_TICK - before >= ahead {
                self.nmis.borrow_mut().insert(apic_id);
            }
        }
        self.tsc.get()
    }

    fn take_nmis(&self) -> Vec<u32> {
        self.nmis.take().into_iter().collect()
    }
}

impl Comparator for Machine {
    fn tsc(&self) -> u64 {
        self.pass(self.pace)
    }

    fn counter(&self) -> u64 {
        (self.pass(self.pace) / TSC_PER_TICK) & self.mask
    }

    fn counter_mask(&self) -> u64 {
        self.mask
    }

    fn start(&mut self, apic_id: u32, at: u64) {
        self.pass(self.pace);
        self.starts += 1;
        self.set = Some((apic_id, at));
    }

    fn stop(&mut self) {
        self.set = None;
    }

    fn wake(&self, apic_id: u32) {
        self.nmis.borrow_mut().insert(apic_id);
    }
}

#[test]
fn a_deadline_brings_an_nmi_to_its_cpu_and_not_before() {
    let mut machine = Machine::new(1);
    let mut group = Group::new([7], RATES);
    assert!(!group.arm(0, Some(100_000), &mut machine));
    machine.pass(90_000);
    assert_eq!(machine.take_nmis(), []);
    machine.pass(9_200);
    assert_eq!(machine.take_nmis(), [7]);
    assert!(machine.tsc.get() >= 100_000);
    group.fired(0, &mut machine);
    assert_eq!(machine.starts, 1);
}

#[test]
fn a_deadline_that_has_passed_is_said_at_once() {
    let mut machine = Machine::new(1);
    let mut group = Group::new([7], RATES);
    assert!(group.arm(0, Some(3), &mut machine));
    assert_eq!(machine.starts, 0);
    // One that passes while the comparator is set.
    let mut slow = Machine::new(500);
    assert!(group.arm(0, Some(2_001), &mut slow));
    assert_eq!(slow.starts, 1);
}

#[test]
fn the_same_deadline_is_not_set_twice() {
    let mut machine = Machine::new(1);
    let mut group = Group::new([7], RATES);
    for _ in 0..3 {
        assert!(!group.arm(0, Some(100_000), &mut machine));
    }
    assert_eq!(machine.starts, 1);
    assert!(!group.arm(0, None, &mut machine));
    assert_eq!(machine.set, None);
}

#[test]
fn a_far_deadline_is_reached_in_steps() {
    let mut machine = Machine::new(1);
    let mut group = Group::new([7], RATES);
    let deadline = 3 * MAX_AHEAD * TSC_PER_TICK;
    assert!(!group.arm(0, Some(deadline), &mut machine));
    let mut steps = 0;
    while machine.tsc.get() < deadline {
        machine.pass(MAX_AHEAD * TSC_PER_TICK / 8);
        if machine.take_nmis() == [7] {
            group.fired(0, &mut machine);
            steps += 1;
        }
    }
    assert_eq!(steps, 3);
    assert!(group.arm(0, Some(u64::MAX), &mut machine) || machine.set.is_some());
}

#[test]
fn a_counter_of_32_bits_begins_again() {
    let mut machine = Machine::new(1);
    machine.mask = u32::MAX.into();
    let mut group = Group::new([7], RATES);
    // 1,000 ticks before its end, and at its end.
    for start in [(1 << 32) - 1_000, 2 << 32] {
        machine.tsc.set(start * TSC_PER_TICK);
        let deadline = machine.tsc.get() + 100_000;
        assert!(!group.arm(0, Some(deadline), &mut machine));
        machine.pass(90_000);
        assert_eq!(machine.take_nmis(), []);
        // Nothing has passed, though the counter is below what it is to reach, or above.
        let starts = machine.starts;
        group.fired(0, &mut machine);
        assert_eq!(machine.starts, starts);
        machine.pass(10_100);
        assert_eq!(machine.take_nmis(), [7]);
        group.fired(0, &mut machine);
        assert!(!group.arm(0, None, &mut machine));
    }
}

#[test]
fn a_shared_comparator_serves_the_earliest_and_wakes_the_others() {
    let mut machine = Machine::new(1);
    let mut group = Group::new([7, 8, 9], RATES);
    assert!(!group.arm(0, Some(100_000), &mut machine));
    assert!(!group.arm(1, Some(50_000), &mut machine));
    assert!(!group.arm(2, Some(50_001), &mut machine));
    machine.pass(60_000);
    assert_eq!(machine.take_nmis(), [8]);
    group.fired(1, &mut machine);
    assert_eq!(machine.take_nmis(), [9]);
    group.fired(2, &mut machine);
    machine.pass(60_000);
    assert_eq!(machine.take_nmis(), [7]);
}

proptest! {
    /// Members arm, time passes, NMIs are taken late: each deadline is noticed.
    #[test]
    fn no_deadline_is_lost(
        pace in 0u64..200,
        count in 1usize..4,
        steps in prop::collection::vec((0usize..4, 0u64..20_000, 0u64..20_000, any::<bool>()), 0..40),
    ) {
        let mut machine = Machine::new(pace);
        let mut group = Group::new(0..count as u32, RATES);
        let mut waits = vec![None; count];
        for (member, ahead, pause, off) in steps {
            let member = member % count;
            let deadline = (!off).then_some(machine.tsc.get() + ahead);
            let passed = group.arm(member, deadline, &mut machine);
            waits[member] = deadline.filter(|_| !passed);
            machine.pass(pause);
            // A CPU that has an NMI looks at its own clock, then at the comparator.
            loop {
                let nmis = machine.take_nmis();
                if nmis.is_empty() {
                    break;
                }
                for member in nmis {
                    let member = member as usize;
                    group.fired(member, &mut machine);
                    waits[member] = waits[member].filter(|at| *at > machine.tsc.get());
                    let deadline = waits[member];
                    if group.arm(member, deadline, &mut machine) {
                        waits[member] = None;
                    }
                }
            }
        }
        machine.pass(100_000);
        for _ in 0..20 {
            for member in machine.take_nmis() {
                let member = member as usize;
                group.fired(member, &mut machine);
                waits[member] = waits[member].filter(|at| *at > machine.tsc.get());
                if group.arm(member, waits[member], &mut machine) {
                    waits[member] = None;
                }
            }
            machine.pass(100_000);
        }
        prop_assert!(waits.iter().all(Option::is_none), "{waits:?}");
    }
}

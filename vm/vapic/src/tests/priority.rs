//! Which interrupt comes when: 11.8.3 and 11.8.4.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[test]
fn the_highest_class_comes_first_and_waits_for_lower_ends() {
    let mut apic = xapic();
    for vector in [0x31, 0x45, 0x38] {
        apic.request(vector, false);
    }
    assert_eq!(injected(&mut apic), interrupt(0x45));
    assert_eq!(injected(&mut apic), None);
    // A higher class interrupts it, the same class does not.
    apic.request(0x4f, false);
    apic.request(0x90, false);
    assert_eq!(injected(&mut apic), interrupt(0x90));
    let _ = apic.end_of_interrupt();
    assert_eq!(injected(&mut apic), None);
    let _ = apic.end_of_interrupt();
    assert_eq!(drain(&mut apic), [0x4f, 0x38, 0x31]);
}

#[test]
fn one_vector_can_be_requested_once_more_while_it_is_in_service() {
    let mut apic = xapic();
    apic.request(0x50, false);
    assert_eq!(injected(&mut apic), interrupt(0x50));
    apic.request(0x50, false);
    apic.request(0x50, false);
    assert_eq!(read(&mut apic, ApicRegister(0x12)), 1 << 16);
    assert_eq!(read(&mut apic, ApicRegister(0x22)), 1 << 16);
    let _ = apic.end_of_interrupt();
    assert_eq!(drain(&mut apic), [0x50]);
}

#[test]
fn the_processor_priority_is_the_greater_of_task_and_service() {
    let mut apic = xapic();
    apic.request(0x52, false);
    assert_eq!(injected(&mut apic), interrupt(0x52));
    for (tpr, ppr) in [(0, 0x50), (0x4f, 0x50), (0x53, 0x53), (0x60, 0x60)] {
        write(&mut apic, ApicRegister::TPR, tpr);
        assert_eq!(read(&mut apic, ApicRegister::PPR), ppr);
    }
}

#[test]
fn a_level_interrupt_tells_its_end() {
    let mut apic = xapic();
    apic.request(0x71, true);
    apic.request(0x33, false);
    assert_eq!(read(&mut apic, ApicRegister(0x1b)), 1 << 17);
    assert_eq!(injected(&mut apic), interrupt(0x71));
    assert_eq!(
        write(&mut apic, ApicRegister::EOI, 0),
        Effect::EndOfInterrupt { level: Some(0x71) }
    );
    assert_eq!(injected(&mut apic), interrupt(0x33));
    let none = Effect::EndOfInterrupt { level: None };
    assert_eq!(write(&mut apic, ApicRegister::EOI, 0), none);
    // Nothing is in service.
    assert_eq!(write(&mut apic, ApicRegister::EOI, 0), none);
    // The trigger mode is that of the last request.
    apic.request(0x71, false);
    assert_eq!(read(&mut apic, ApicRegister(0x1b)), 0);
}

#[test]
fn windows_say_what_the_guest_has_to_open() {
    let mut apic = xapic();
    let closed = CpuState::default();
    assert_eq!(apic.plan(closed, &mut ()), Plan::default());
    apic.request(0x62, false);
    let window = |priority| {
        Some(Window {
            priority,
            ignore_tpr: false,
        })
    };
    let plan = apic.plan(closed, &mut ());
    assert_eq!((plan.inject, plan.interrupt_window), (None, window(6)));
    // Held back by the task priority: the window has the priority that it waits for.
    write(&mut apic, ApicRegister::TPR, 0x60);
    assert_eq!(apic.plan(OPEN, &mut ()).interrupt_window, window(6));
    assert!(!apic.has_work());
    write(&mut apic, ApicRegister::TPR, 0);
    assert!(apic.has_work());
    // An event is there already.
    let occupied = CpuState {
        occupied: true,
        ..OPEN
    };
    let plan = apic.plan(occupied, &mut ());
    assert_eq!((plan.inject, plan.interrupt_window), (None, window(6)));
    apic.request(0x35, false);
    let plan = apic.plan(OPEN, &mut ());
    // The lower one waits for an end, which exits.
    assert_eq!(plan.inject, interrupt(0x62));
    assert_eq!(plan.interrupt_window, None);
    // So does one of the same class.
    apic.request(0x6a, false);
    assert_eq!(apic.plan(OPEN, &mut ()), Plan::default());
}

#[test]
fn an_nmi_comes_first_and_has_a_window_of_its_own() {
    let mut apic = xapic();
    let shared: Shared = Shared::new(apic.address());
    apic.request(0x62, false);
    assert!(!shared.post_nmi());
    let _ = apic.collect(&shared);
    let handling = CpuState {
        nmis: false,
        ..OPEN
    };
    let plan = apic.plan(handling, &mut ());
    assert!(plan.nmi_window);
    assert_eq!(plan.inject, interrupt(0x62));
    let plan = apic.plan(OPEN, &mut ());
    assert_eq!(plan.inject, Some(Injection::Nmi));
    assert!(!plan.nmi_window);
}

#[test]
fn an_8259_s_interrupt_ignores_priorities_and_is_never_in_service() {
    let mut apic = xapic();
    let shared: Shared = Shared::new(apic.address());
    write(&mut apic, ApicRegister::TPR, 0xff);
    assert!(!shared.post_extint(0x20));
    let _ = apic.collect(&shared);
    let plan = apic.plan(CpuState::default(), &mut ());
    let window = plan.interrupt_window.unwrap();
    assert!(window.ignore_tpr && plan.inject.is_none());
    assert_eq!(injected(&mut apic), interrupt(0x20));
    assert_eq!(read(&mut apic, ApicRegister(0x11)), 0);
}

#[test]
fn an_interrupt_with_auto_eoi_is_never_in_service() {
    let mut apic = xapic();
    apic.set_auto_eoi([0x80].into_iter().collect());
    apic.request(0x80, false);
    apic.request(0x40, false);
    let plan = apic.plan(OPEN, &mut ());
    assert_eq!(plan.inject, interrupt(0x80));
    // No end will exit: the next one needs a window.
    assert_eq!(plan.interrupt_window.map(|w| w.priority), Some(4));
    assert_eq!(injected(&mut apic), interrupt(0x40));
}

#[derive(Debug, Clone)]
enum Step {
    Request(u8, bool),
    Task(u8),
    Plan(bool),
    End,
}

fn steps() -> impl Strategy<Value = std::vec::Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<u8>(), any::<bool>()).prop_map(|(v, level)| Step::Request(v, level)),
        1 => any::<u8>().prop_map(Step::Task),
        3 => any::<bool>().prop_map(Step::Plan),
        3 => Just(Step::End),
    ];
    proptest::collection::vec(step, 0..200)
}

/// Requested vectors with their trigger mode, and a stack of what is in service.
#[derive(Default)]
struct Model {
    task: u8,
    requested: BTreeMap<u8, ()>,
    level: BTreeMap<u8, bool>,
    service: std::vec::Vec<u8>,
}

impl Model {
    fn take(&mut self, open: bool) -> Option<u8> {
        let (&vector, ()) = self.requested.last_key_value()?;
        let service = self.service.iter().max().map_or(0, |v| v / 16);
        if !open || vector / 16 <= service.max(self.task / 16) {
            return None;
        }
        self.requested.remove(&vector);
        self.service.push(vector);
        Some(vector)
    }

    fn end(&mut self) -> Option<u8> {
        self.service.sort_unstable();
        let vector = self.service.pop()?;
        self.level.get(&vector).copied()?.then_some(vector)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn priorities_are_those_of_the_model(steps in steps()) {
        let mut apic = xapic();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Request(vector, level) => {
                    apic.request(vector, level);
                    if vector >= 16 {
                        model.requested.insert(vector, ());
                        model.level.insert(vector, level);
                    }
                }
                Step::Task(tpr) => {
                    write(&mut apic, ApicRegister::TPR, tpr.into());
                    model.task = tpr;
                }
                Step::Plan(interrupts) => {
                    let plan = apic.plan(CpuState { interrupts, ..OPEN }, &mut ());
                    let expected = model.take(interrupts).map(Injection::Interrupt);
                    prop_assert_eq!(plan.inject, expected);
                }
                Step::End => {
                    let expected = Effect::EndOfInterrupt { level: model.end() };
                    prop_assert_eq!(write(&mut apic, ApicRegister::EOI, 0), expected);
                }
            }
            for index in 0..8u8 {
                let bits = |has: &dyn Fn(u8) -> bool| {
                    (0..32).filter(|b| has(32 * index + b)).fold(0u32, |set, b| set | 1 << b)
                };
                let irr = read(&mut apic, ApicRegister(0x20 + index));
                prop_assert_eq!(irr, bits(&|v| model.requested.contains_key(&v)));
                let isr = read(&mut apic, ApicRegister(0x10 + index));
                prop_assert_eq!(isr, bits(&|v| model.service.contains(&v)));
                let tmr = read(&mut apic, ApicRegister(0x18 + index));
                prop_assert_eq!(tmr, bits(&|v| model.level.get(&v) == Some(&true)));
            }
        }
    }
}

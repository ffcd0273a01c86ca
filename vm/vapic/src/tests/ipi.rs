//! Messages between processors and from devices: 11.6, TLFS HvCallAssertVirtualInterrupt.

use super::*;
use core::cell::RefCell;
use core::sync::atomic::AtomicU64;
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{AssertVirtualInterrupt, HvInterruptFlags, HvInterruptType};
use x86_defs::apic::DeliveryMode;

struct Machine {
    apics: Vec<LocalApic>,
    shared: Vec<Shared>,
    kicked: RefCell<Vec<u32>>,
}

impl Apics for Machine {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        self.shared.len() as u32
    }

    fn shared(&self, vp: u32) -> &Shared {
        &self.shared[vp as usize]
    }

    fn kick(&self, vp: u32) {
        self.kicked.borrow_mut().push(vp);
    }
}

impl Machine {
    fn new(count: u32, x2apic: bool) -> Self {
        let apics: Vec<_> = (0..count)
            .map(|id| {
                let mut apic = LocalApic::new(config(id));
                apic.set_startup(Startup::Running);
                write(&mut apic, ApicRegister::SVR, 0x1ff);
                write(&mut apic, ApicRegister::LDR, 1 << (24 + id % 8));
                if x2apic {
                    apic.write_msr(0x1b, 0xfee0_0c00, 0).unwrap();
                }
                apic
            })
            .collect();
        Self {
            shared: apics.iter().map(|a| Shared::new(a.address())).collect(),
            apics,
            kicked: RefCell::default(),
        }
    }

    /// VPs that have something to collect now; they collect it.
    fn reached(&mut self) -> Vec<usize> {
        let pending = |vp: &usize| self.shared[*vp].is_pending();
        let reached: Vec<_> = (0..self.shared.len()).filter(pending).collect();
        for &vp in &reached {
            let _ = self.apics[vp].collect(&self.shared[vp]);
        }
        reached
    }

    /// Writes the interrupt command of a VP.
    fn send(&mut self, vp: usize, icr: u64) -> Vec<usize> {
        let effect = self.apics[vp].write_msr(0x4000_0071, icr, 0).unwrap();
        if let Effect::Send(message) = effect {
            deliver(self, Some(vp as u32), &message);
        }
        self.reached()
    }
}

fn icr(destination: u8, low: u64) -> u64 {
    u64::from(destination) << 56 | low
}

#[test]
fn physical_destinations() {
    let mut machine = Machine::new(4, false);
    assert_eq!(machine.send(0, icr(2, 0x41)), [2]);
    assert_eq!(drain(&mut machine.apics[2]), [0x41]);
    assert_eq!(machine.send(0, icr(0xff, 0x41)), [0, 1, 2, 3]);
    assert_eq!(machine.send(0, icr(9, 0x41)), []);
    let mut machine = Machine::new(4, true);
    assert_eq!(machine.send(0, 3 << 32 | 0x41), [3]);
    // In x2APIC mode 255 is an id like others.
    assert_eq!(machine.send(0, 0xff << 32 | 0x41), []);
    assert_eq!(machine.send(0, 0xffff_ffff << 32 | 0x41), [0, 1, 2, 3]);
}

#[test]
fn logical_destinations_flat_and_in_clusters() {
    const LOGICAL: u64 = 0x841;
    let mut machine = Machine::new(4, false);
    assert_eq!(machine.send(0, icr(0b1010, LOGICAL)), [1, 3]);
    assert_eq!(machine.send(0, icr(0xff, LOGICAL)), [0, 1, 2, 3]);
    assert_eq!(machine.send(0, icr(0, LOGICAL)), []);
    // 11.6.2.2: cluster in the upper four bits.
    for (vp, logical) in [0x11, 0x12, 0x21, 0x24].into_iter().enumerate() {
        let apic = &mut machine.apics[vp];
        write(apic, ApicRegister::DFR, 0);
        write(apic, ApicRegister::LDR, logical << 24);
        machine.shared[vp].publish(machine.apics[vp].address());
    }
    assert_eq!(machine.send(0, icr(0x13, LOGICAL)), [0, 1]);
    assert_eq!(machine.send(0, icr(0x25, LOGICAL)), [2, 3]);
    assert_eq!(machine.send(0, icr(0x22, LOGICAL)), []);
    // A format that is not defined.
    write(&mut machine.apics[0], ApicRegister::DFR, 0x7000_0000);
    machine.shared[0].publish(machine.apics[0].address());
    assert_eq!(machine.send(0, icr(0x11, LOGICAL)), []);
    let mut machine = Machine::new(20, true);
    assert_eq!(machine.send(0, 0x0001_000a << 32 | LOGICAL), [17, 19]);
    assert_eq!(machine.send(0, 0x0000_8001 << 32 | LOGICAL), [0, 15]);
}

#[test]
fn shorthands() {
    let mut machine = Machine::new(3, false);
    const MYSELF: u64 = 1 << 18;
    const ALL: u64 = 2 << 18;
    const OTHERS: u64 = 3 << 18;
    assert_eq!(machine.send(1, ALL | 0x41), [0, 1, 2]);
    assert_eq!(machine.send(1, OTHERS | 0x41), [0, 2]);
    assert_eq!(drain(&mut machine.apics[1]), [0x41]);
    assert_eq!(machine.send(1, MYSELF | 0x51), []);
    assert_eq!(drain(&mut machine.apics[1]), [0x51]);
    // Table 11-4: only fixed interrupts go to the sender.
    for mode in [1, 4, 5, 6] {
        for shorthand in [MYSELF, ALL] {
            assert_eq!(machine.send(1, shorthand | mode << 8 | 0x41), []);
        }
    }
    assert_eq!(machine.send(1, OTHERS | 0x400), [0, 2]);
    assert_eq!(injected(&mut machine.apics[0]), Some(Injection::Nmi));
}

#[test]
fn a_command_with_an_illegal_vector_is_an_error_of_the_sender() {
    let mut machine = Machine::new(2, false);
    for low in [0x0f, 0x10f, 0x4_0000] {
        assert_eq!(machine.send(0, icr(1, low)), []);
        write(&mut machine.apics[0], ApicRegister::ESR, 0);
        assert_eq!(read(&mut machine.apics[0], ApicRegister::ESR), 0x20);
    }
    let mut apic = x2apic();
    apic.write_msr(0x83f, 7, 0).unwrap();
    apic.write_msr(0x828, 0, 0).unwrap();
    assert_eq!(apic.read_msr(0x828, 0), Ok(0x40));
    apic.write_msr(0x83f, 0x77, 0).unwrap();
    assert_eq!(drain(&mut apic), [0x77]);
}

#[test]
fn smis_and_undefined_modes_go_nowhere() {
    let mut machine = Machine::new(2, false);
    for mode in [2, 3, 7] {
        assert_eq!(machine.send(0, icr(1, mode << 8 | 0x41)), []);
    }
    // INIT de-assertion.
    assert_eq!(machine.send(0, icr(1, 0x8500)), []);
}

#[test]
fn the_lowest_priority_gets_it_and_equals_take_turns() {
    let mut machine = Machine::new(3, false);
    for (vp, tpr) in [(0, 0x50), (1, 0x20), (2, 0x30)] {
        write(&mut machine.apics[vp], ApicRegister::TPR, tpr);
        machine.shared[vp].publish(machine.apics[vp].address());
    }
    assert_eq!(machine.send(0, icr(0xff, 0x141)), [1]);
    // Those whose software is off do not take part.
    write(&mut machine.apics[1], ApicRegister::SVR, 0xff);
    machine.shared[1].publish(machine.apics[1].address());
    assert_eq!(machine.send(0, icr(0xff, 0x141)), [2]);
    let mut machine = Machine::new(3, false);
    let mut chosen: Vec<_> = (0x40..0x43)
        .flat_map(|vector| machine.send(0, icr(0xff, 0x100 | vector)))
        .collect();
    chosen.sort_unstable();
    assert_eq!(chosen, [0, 1, 2]);
}

#[test]
fn init_and_startup_start_a_processor() {
    let mut machine = Machine::new(2, false);
    let apic = &mut machine.apics[1];
    write(apic, ApicRegister::TPR, 0x55);
    apic.request(0x41, false);
    let init = Message {
        vector: 0,
        mode: DeliveryMode::INIT,
        destination: Destination::Physical(1),
        level: false,
    };
    let startup = |page| Message {
        vector: page,
        mode: DeliveryMode::STARTUP,
        ..init
    };
    let mut round = |messages: &[Message]| {
        for message in messages {
            assert_eq!(deliver(&machine, Some(0), message), 1);
        }
        let collected = machine.apics[1].collect(&machine.shared[1]);
        (collected.init, collected.start)
    };
    // Running: a start-up does nothing.
    assert_eq!(round(&[startup(8)]), (false, None));
    assert_eq!(round(&[init]), (true, None));
    assert_eq!(round(&[startup(8), startup(9)]), (false, Some(8)));
    assert_eq!(round(&[startup(9)]), (false, None));
    assert_eq!(
        round(&[init, startup(0x9f), startup(1)]),
        (true, Some(0x9f))
    );
    // The INIT comes after the start-up that it takes back.
    assert_eq!(round(&[startup(3), init]), (true, None));
    let apic = &mut machine.apics[1];
    assert_eq!(apic.startup(), Startup::WaitForStartup);
    assert_eq!(read(apic, ApicRegister::TPR), 0);
    assert_eq!(injected(apic), None);
}

#[test]
fn a_processor_that_waits_for_its_startup_takes_nothing_else() {
    let mut apic = LocalApic::new(config(1));
    let shared: Shared = Shared::new(apic.address());
    assert!(!shared.post_nmi() && !shared.post(0x50, false) && !shared.post_extint(8));
    let _ = apic.collect(&shared);
    assert_eq!(apic.plan(OPEN, &mut ()), Plan::default());
    assert!(!shared.post_startup(8));
    assert_eq!(apic.collect(&shared).start, Some(8));
    assert_eq!(injected(&mut apic), None);
}

#[test]
fn init_restarts_the_bootstrap_processor_and_keeps_the_mode() {
    let mut apic = x2apic();
    let shared: Shared = Shared::new(apic.address());
    assert!(!shared.post_init());
    let collected = apic.collect(&shared);
    assert_eq!((collected.init, collected.start), (true, None));
    assert_eq!(apic.startup(), Startup::Running);
    assert_eq!(apic.mode(), Mode::X2Apic);
    assert_eq!(apic.read_msr(0x80f, 0), Ok(0xff));
}

#[test]
fn an_apic_that_is_off_hears_nothing() {
    let mut machine = Machine::new(2, false);
    machine.apics[1].write_msr(0x1b, 0xfee0_0000, 0).unwrap();
    machine.shared[1].publish(machine.apics[1].address());
    assert_eq!(machine.send(0, icr(1, 0x41)), []);
    assert_eq!(machine.send(0, icr(0xff, 0x400)), [0]);
    assert_eq!(machine.send(1, icr(0, 0x41)), []);
}

fn assertion(
    interrupt_type: HvInterruptType,
    vector: u32,
    destination: u64,
) -> AssertVirtualInterrupt {
    AssertVirtualInterrupt {
        partition_id: u64::MAX,
        interrupt_type,
        flags: HvInterruptFlags::new(),
        destination,
        vector,
        target_vtl: 0,
        rsvd: [0; 3],
    }
}

#[test]
fn the_paravisor_asserts_interrupts() {
    let mut machine = Machine::new(3, false);
    let mut input = assertion(HvInterruptType::FIXED, 0x41, 2);
    input.flags.set_level_triggered(true);
    assert_eq!(assert_virtual_interrupt(&machine, &input), Ok(()));
    assert_eq!(machine.reached(), [2]);
    assert_eq!(injected(&mut machine.apics[2]), interrupt(0x41));
    assert_eq!(
        write(&mut machine.apics[2], ApicRegister::EOI, 0),
        Effect::EndOfInterrupt { level: Some(0x41) }
    );
    input = assertion(HvInterruptType::LOWEST_PRIORITY, 0x41, 0b110);
    input.flags.set_logical_destination(true);
    assert_eq!(assert_virtual_interrupt(&machine, &input), Ok(()));
    assert_eq!(machine.reached().len(), 1);
    // All bits of an 8-bit destination are everybody, and nobody is no error.
    for (destination, reached) in [(0xff, 3), (77, 0), (0x1_0000, 0)] {
        let input = assertion(HvInterruptType::NMI, 0, destination);
        assert_eq!(assert_virtual_interrupt(&machine, &input), Ok(()));
        assert_eq!(machine.reached().len(), reached);
    }
    for (interrupt_type, vector) in [
        (HvInterruptType::INIT, 0),
        (HvInterruptType::SIPI, 8),
        (HvInterruptType::EXTINT, 8),
        (HvInterruptType::LOCAL_INT0, 8),
        (HvInterruptType::LOCAL_INT1, 0),
    ] {
        let input = assertion(interrupt_type, vector, 1);
        assert_eq!(assert_virtual_interrupt(&machine, &input), Ok(()));
        assert_eq!(machine.reached(), [1], "{interrupt_type:?}");
    }
}

#[test]
fn assertions_that_mean_nothing_are_refused() {
    let machine = Machine::new(1, false);
    let fixed = assertion(HvInterruptType::FIXED, 0x41, 0);
    let level = HvInterruptFlags::new().with_level_triggered(true);
    for input in [
        assertion(HvInterruptType::FIXED, 0xf, 0),
        assertion(HvInterruptType::LOWEST_PRIORITY, 0x100, 0),
        assertion(HvInterruptType::FIXED, 0x41, 1 << 32),
        assertion(HvInterruptType::SMI, 0x41, 0),
        assertion(HvInterruptType::REMOTE_READ, 0x41, 0),
        assertion(HvInterruptType(10), 0x41, 0),
        assertion(HvInterruptType(u32::MAX), 0x41, 0),
        AssertVirtualInterrupt {
            rsvd: [0, 0, 1],
            ..fixed
        },
        AssertVirtualInterrupt {
            flags: HvInterruptFlags::from(4),
            ..fixed
        },
        AssertVirtualInterrupt {
            interrupt_type: HvInterruptType::NMI,
            flags: level,
            ..fixed
        },
        AssertVirtualInterrupt {
            interrupt_type: HvInterruptType::LOCAL_INT0,
            flags: level,
            ..fixed
        },
    ] {
        assert_eq!(
            assert_virtual_interrupt(&machine, &input),
            Err(HvStatus::INVALID_PARAMETER),
            "{input:?}"
        );
    }
    assert!(!machine.shared[0].is_pending());
}

#[test]
fn only_a_processor_that_is_away_is_kicked_and_once() {
    let machine = Machine::new(2, false);
    let input = assertion(HvInterruptType::FIXED, 0x41, 1);
    assert!(machine.shared[1].enter());
    for _ in 0..3 {
        assert_virtual_interrupt(&machine, &input).unwrap();
    }
    assert_eq!(machine.kicked.take(), [1]);
    assert!(machine.shared[1].leave());
    assert!(!machine.shared[1].enter());
    assert_virtual_interrupt(&machine, &input).unwrap();
    assert_eq!(machine.kicked.take(), [] as [u32; 0]);
}

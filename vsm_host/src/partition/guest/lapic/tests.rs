use super::*;
use crate::partition::tests::{FakeProcessor, GUEST_RAM, setup};
use hv_defs::msr::OverlayPage;
use proptest::prelude::*;
use vapic::Mode;
use x86_defs::apic::{ApicRegister, TSC_DEADLINE};
use x86_defs::msr::APIC_BASE;
use x86_defs::svm::ExitCode;

const X2APIC: u32 = 0x800;
const SVR: u32 = X2APIC + ApicRegister::SVR.0 as u32;
const EOI: u32 = X2APIC + ApicRegister::EOI.0 as u32;
const ICR: u32 = X2APIC + ApicRegister::ICR.0 as u32;
const TPR: u32 = X2APIC + ApicRegister::TPR.0 as u32;
const LVT_TIMER: u32 = X2APIC + ApicRegister::LVT_TIMER.0 as u32;
/// Where the code of VTL0 is, unpaged.
const CODE: u64 = GUEST_RAM.start();

/// A VP in VTL0, in 64-bit code that takes interrupts, with an x2APIC that is on.
fn guest() -> (Partition, Vp, FakeProcessor) {
    let (partition, mut vp, processor) = setup();
    let save = vp.vtls[Vtl::PARAVISOR.index()].vmcb.save.cs;
    vp.vtl = Vtl::GUEST;
    let block = &mut vp.vmcb_mut().save;
    block.cs = save;
    block.efer |= x86_defs::EFER_LMA | x86_defs::EFER_LME;
    block.cr0 = 1;
    block.rip = CODE;
    block.rflags = RFLAGS_IF | 2;
    write(&partition, &mut vp, &processor, APIC_BASE, 0xfee0_0d00);
    write(&partition, &mut vp, &processor, SVR, 0x1ff);
    (partition, vp, processor)
}

fn write(partition: &Partition, vp: &mut Vp, processor: &FakeProcessor, msr: u32, value: u64) {
    assert_eq!(write_msr(partition, vp, processor, msr, value), Ok(None));
}

/// The guest runs, and exits for another reason.
fn run(partition: &Partition, vp: &mut Vp, processor: &FakeProcessor) -> Entry {
    let entry = before_entry(partition, vp, processor);
    exit(partition, vp, processor, ExitCode::CPUID);
    entry
}

fn exit(partition: &Partition, vp: &mut Vp, processor: &FakeProcessor, code: ExitCode) {
    let state = &mut vp.vtls[GUEST];
    state.vmcb.control.event_injection = EventInjection::new();
    state.vmcb.control.exit_code = code;
    state.nmis.exited(&mut state.vmcb);
    after_exit(partition, vp, processor);
}

fn post(partition: &Partition, processor: &FakeProcessor, vp: u32, vector: u8, level: bool) {
    let apics = apics(partition, processor);
    if apics.shared(vp).post(vector, level) {
        apics.kick(vp);
    }
}

fn injected(vp: &Vp) -> Option<(u8, u8)> {
    let event = vp.vtls[GUEST].vmcb.control.event_injection;
    event.valid().then(|| (event.kind(), event.vector()))
}

fn intercepts(vp: &Vp) -> Intercepts3 {
    Intercepts3::from_bits(vp.vtls[GUEST].vmcb.control.intercepts3)
}

#[test]
fn what_others_post_is_injected_and_a_vp_that_runs_is_called() {
    let (partition, mut vp, processor) = guest();
    post(&partition, &processor, 0, 0x41, false);
    // The VP is not in VTL0 yet.
    assert!(processor.woken.borrow().is_empty());
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x41)));
    post(&partition, &processor, 0, 0x51, false);
    post(&partition, &processor, 0, 0x52, false);
    // By the physical id, once.
    assert_eq!(*processor.woken.borrow(), [1]);
    exit(&partition, &mut vp, &processor, ExitCode::NMI);
    post(&partition, &processor, 0, 0x53, false);
    assert_eq!(*processor.woken.borrow(), [1]);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x53)));
}

#[test]
fn an_interrupt_waits_for_the_flag_and_for_the_priority() {
    let (partition, mut vp, processor) = guest();
    let window = |vp: &Vp| {
        let control = &vp.vtls[GUEST].vmcb.control;
        assert_eq!(control.virtual_interrupt.irq(), intercepts(vp).vintr());
        (control.virtual_interrupt.irq(), control.intercept_cr != 0)
    };
    vp.vmcb_mut().save.rflags = 2;
    post(&partition, &processor, 0, 0x41, false);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!((injected(&vp), window(&vp)), (None, (true, true)));
    // mov cr8, rdx: the priority of what waits, a bad value, one less.
    let cr8 = |vp: &mut Vp, value| {
        let memory = partition.memory(Vtl::GUEST, &processor);
        memory.write(CODE, &[0x44, 0x0f, 0x22, 0xc2]).unwrap();
        exit(&partition, vp, &processor, ExitCode::CR8_WRITE);
        vp.gprs[gpr::RDX] = value;
        vp.vmcb_mut().save.rip = CODE;
        write_cr8(&partition, vp, &processor);
        (injected(vp), vp.vmcb().save.rip)
    };
    vp.vmcb_mut().save.rflags |= RFLAGS_IF;
    assert_eq!(cr8(&mut vp, 4), (None, CODE + 4));
    assert_eq!(
        read_msr(&partition, &mut vp, &processor, TPR).unwrap(),
        0x40
    );
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!((injected(&vp), window(&vp)), (None, (false, true)));
    assert_eq!(cr8(&mut vp, 0x10), (Some((3, 13)), CODE));
    assert_eq!(cr8(&mut vp, 3), (None, CODE + 4));
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(
        (injected(&vp), window(&vp)),
        (Some((0, 0x41)), (false, false))
    );
}

#[test]
fn the_register_and_cr8_are_one() {
    let (partition, mut vp, processor) = guest();
    write(&partition, &mut vp, &processor, TPR, 0x35);
    assert_eq!(vp.vmcb().control.virtual_interrupt.tpr(), 3);
    // Without an exit.
    vp.vmcb_mut().control.virtual_interrupt.set_tpr(7);
    exit(&partition, &mut vp, &processor, ExitCode::CPUID);
    assert_eq!(
        read_msr(&partition, &mut vp, &processor, TPR).unwrap(),
        0x70
    );
}

/// Stands at HLT behind STI, and something calls the CPU out.
fn called_out_at(code: ExitCode, vp: &mut Vp, partition: &Partition, processor: &FakeProcessor) {
    let memory = partition.memory(Vtl::GUEST, processor);
    memory.write(CODE, &[0xf4]).unwrap();
    let vmcb = vp.vmcb_mut();
    (vmcb.save.rip, vmcb.save.rflags) = (CODE, 2 | RFLAGS_IF);
    vmcb.control.interrupt_shadow = vmcb::SHADOW;
    vmcb.control.exit_code = code;
    partition.handle_exit(vp, processor);
}

#[test]
fn nothing_is_taken_between_sti_and_hlt() {
    let (partition, mut vp, processor) = guest();
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    post(&partition, &processor, 0, 0x41, false);
    called_out_at(ExitCode::NMI, &mut vp, &partition, &processor);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    // The handler returns behind the HLT that it has ended.
    assert_eq!(
        (injected(&vp), vp.vmcb().save.rip),
        (Some((0, 0x41)), CODE + 1)
    );
    // Without an interrupt it waits.
    called_out_at(ExitCode::NMI, &mut vp, &partition, &processor);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Idle);
    // An interrupt for VTL2 is no interrupt for the guest.
    vp.lapic.halted = false;
    called_out_at(ExitCode::INTR, &mut vp, &partition, &processor);
    assert_eq!((vp.vtl, vp.lapic.halted), (Vtl::PARAVISOR, true));
}

#[test]
fn a_shadow_that_vmrun_forgets_is_waited_for() {
    let (partition, mut vp, processor) = guest();
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    post(&partition, &processor, 0, 0x41, false);
    exit(&partition, &mut vp, &processor, ExitCode::NMI);
    // Behind MOV to SS.
    vp.vmcb_mut().control.interrupt_shadow = vmcb::SHADOW;
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert!(!intercepts(&vp).vintr() && injected(&vp).is_none());
    assert!(processor.timers.borrow()[&0].is_some());
    exit(&partition, &mut vp, &processor, ExitCode::NMI);
    vp.vmcb_mut().control.interrupt_shadow = 0;
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x41)));
}

#[test]
fn a_halted_vp_waits_for_an_interrupt_that_it_takes() {
    let (partition, mut vp, processor) = guest();
    halt(&mut vp);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Idle);
    post(&partition, &processor, 0, 0x41, false);
    assert_eq!(*processor.woken.borrow(), [1]);
    vp.waited(ExitCode::NMI);
    after_exit(&partition, &mut vp, &processor);
    vp.vmcb_mut().save.rflags = 2;
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Idle);
    vp.vmcb_mut().save.rflags |= RFLAGS_IF;
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x41)));
    exit(&partition, &mut vp, &processor, ExitCode::CPUID);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
}

#[test]
fn the_timer_is_armed_and_its_interrupt_comes_when_it_has_passed() {
    let (partition, mut vp, processor) = guest();
    write(&partition, &mut vp, &processor, LVT_TIMER, 0x4_0061);
    write(&partition, &mut vp, &processor, TSC_DEADLINE, 9_000);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(processor.timers.borrow()[&0], Some(9_000));
    processor.tsc.set(9_001);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x61)));
    assert_eq!(processor.timers.borrow()[&0], None);
    // One that has passed before it is set.
    exit(&partition, &mut vp, &processor, ExitCode::MSR);
    assert_eq!(write_msr(&partition, &mut vp, &processor, EOI, 0), Ok(None));
    write(&partition, &mut vp, &processor, TSC_DEADLINE, 8_000);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x61)));
}

#[test]
fn the_end_of_a_level_interrupt_is_told() {
    let (partition, mut vp, processor) = guest();
    post(&partition, &processor, 0, 0x41, true);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    let ended = write_msr(&partition, &mut vp, &processor, EOI, 0);
    assert_eq!(ended, Ok(Some(0x41)));
    let refused = write_msr(&partition, &mut vp, &processor, EOI, 1);
    assert_eq!(refused, Err(Exception::GeneralProtection));
}

#[test]
fn an_end_in_the_assist_page_needs_no_exit() {
    let (partition, mut vp, processor) = guest();
    vp.vtls[GUEST].assist = OverlayPage::new()
        .with_enabled(true)
        .with_page_number((GUEST_RAM.start() >> 12) + 2);
    post(&partition, &processor, 0, 0x41, false);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    let memory = partition.memory(Vtl::GUEST, &processor);
    let page = GUEST_RAM.start() + 0x2000;
    assert_eq!(memory.load_word(page), Ok(1));
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    memory.store_word(page, 0).unwrap();
    exit(&partition, &mut vp, &processor, ExitCode::CPUID);
    post(&partition, &processor, 0, 0x31, false);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((0, 0x31)));
}

#[test]
fn interrupts_between_processors_go_by_the_index_of_the_vp() {
    let (partition, mut vp, processor) = guest();
    let mut other = Vp::new(&partition, 2);
    other.vtl = Vtl::GUEST;
    write(&partition, &mut other, &processor, APIC_BASE, 0xfee0_0c00);
    write(&partition, &mut other, &processor, SVR, 0x1ff);
    let _ = before_entry(&partition, &mut other, &processor);
    write(&partition, &mut vp, &processor, ICR, 2 << 32 | 0x71);
    assert_eq!(*processor.woken.borrow(), [3]);
    after_exit(&partition, &mut other, &processor);
    assert!(other.lapic.apic.collect(&partition.slots[2].lapic) == Collected::default());
    assert!(other.lapic.apic.has_work());
}

#[test]
fn another_processor_waits_for_its_startup_and_begins_in_real_mode() {
    let (partition, mut vp, processor) = guest();
    let mut other = Vp::new(&partition, 1);
    other.vtl = Vtl::GUEST;
    assert_eq!(
        before_entry(&partition, &mut other, &processor),
        Entry::Idle
    );
    other.waited(ExitCode::NMI);
    after_exit(&partition, &mut other, &processor);
    other.gprs[gpr::RBX] = 5;
    other.vmcb_mut().save.cr3 = 0x5000;
    // INIT, its end, start-up at 0x9f000, and once more, which does not count.
    for low in [0xc500, 0x8500, 0x469f, 0x4612] {
        write(&partition, &mut vp, &processor, ICR, 1 << 32 | low);
    }
    assert_eq!(before_entry(&partition, &mut other, &processor), Entry::Run);
    let save = &other.vmcb().save;
    assert_eq!(
        (save.cs.selector, save.cs.base, save.rip),
        (0x9f00, 0x9_f000, 0)
    );
    assert_eq!((save.cr3, save.cr0 & 1, save.rflags), (0, 0, 2));
    assert_eq!((other.gprs[gpr::RBX], other.gprs[gpr::RDX]), (0, 1));
    assert_ne!(save.efer & x86_defs::EFER_SVME, 0);
}

#[test]
fn an_init_of_the_paravisor_comes_before_what_it_writes_and_leaves_its_own_registers() {
    let (partition, mut vp, processor) = guest();
    vp.vmcb_mut().control.virtual_interrupt.set_tpr(5);
    vp.vtl = Vtl::PARAVISOR;
    vp.gprs[gpr::RBX] = 5;
    halt(&mut vp);
    vp.vtls[GUEST].vmcb.control.tlb_control = 0;
    assert!(!partition.slots[0].lapic.post_init());
    sync_registers(&partition, &mut vp, &processor);
    assert_ne!(vp.vtls[GUEST].vmcb.control.tlb_control, 0);
    assert_eq!(vp.gprs[gpr::RBX], 5);
    vp.vtls[GUEST].vmcb.save.rip = 0x1234;
    vp.vtl = Vtl::GUEST;
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(vp.vmcb().save.rip, 0x1234);
    // The mode stays, the bootstrap processor runs.
    assert_eq!(vp.lapic.apic.mode(), Mode::X2Apic);
    assert_eq!(vp.vmcb().control.virtual_interrupt.tpr(), 0);
}

#[test]
fn an_nmi_waits_for_the_end_of_the_one_before() {
    let (partition, mut vp, processor) = guest();
    let nmi = |processor: &FakeProcessor| {
        let apics = apics(&partition, processor);
        let _ = apics.shared(0).post_nmi();
    };
    nmi(&processor);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((2, 2)));
    exit(&partition, &mut vp, &processor, ExitCode::CPUID);
    nmi(&processor);
    assert_eq!(run(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), None);
    assert!(intercepts(&vp).iret());
    assert_eq!(processor.timers.borrow()[&0], None);
    exit(&partition, &mut vp, &processor, ExitCode::IRET);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    // The IRET is still to come: look again soon.
    assert_eq!((injected(&vp), intercepts(&vp).iret()), (None, false));
    assert_eq!(processor.timers.borrow()[&0], Some(5_000 + 50_000));
    // What waited at the processor comes before the IRET.
    exit(&partition, &mut vp, &processor, ExitCode::NMI);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), None);
    vp.vmcb_mut().save.rip = CODE + 0x100;
    exit(&partition, &mut vp, &processor, ExitCode::NMI);
    assert_eq!(before_entry(&partition, &mut vp, &processor), Entry::Run);
    assert_eq!(injected(&vp), Some((2, 2)));
}

#[test]
fn the_page_is_there_in_xapic_mode_only() {
    let (partition, mut vp, processor) = guest();
    // mov ecx, [rax]; mov [rax], ecx
    let (load, store) = ([0x8b, 0x08], [0x89, 0x08]);
    let access = |vp: &mut Vp, bytes: &[u8], gpa, is_store| {
        vp.vmcb_mut().save.rip = CODE;
        let memory = partition.memory(Vtl::GUEST, &processor);
        memory.write(CODE, bytes).unwrap();
        mmio(&partition, vp, &processor, gpa, is_store)
    };
    assert_eq!(access(&mut vp, &load, 0xfee0_0020, false), Mmio::Foreign);
    write(&partition, &mut vp, &processor, APIC_BASE, 0xfee0_0100);
    write(&partition, &mut vp, &processor, APIC_BASE, 0xfee0_0900);
    vp.gprs[gpr::RCX] = u64::MAX;
    let done = Mmio::Done(None);
    assert_eq!(access(&mut vp, &load, 0xfee0_0030, false), done);
    assert_eq!(vp.gprs[gpr::RCX], 0x5_0014);
    assert_eq!(vp.vmcb().save.rip, CODE + 2);
    vp.gprs[gpr::RCX] = 0x50;
    assert_eq!(access(&mut vp, &store, 0xfee0_0080, true), done);
    assert_eq!(vp.vmcb().control.virtual_interrupt.tpr(), 5);
    // Behind it, and what is no MOV.
    assert_eq!(access(&mut vp, &load, 0xfee0_1000, false), Mmio::Foreign);
    assert_eq!(
        access(&mut vp, &[0x0f, 0xb6, 0], 0xfee0_0030, false),
        Mmio::Foreign
    );
    assert_eq!(access(&mut vp, &store, 0xfee0_0030, false), Mmio::Foreign);
    assert_eq!(vp.vmcb().save.rip, CODE);
}

proptest! {
    #[test]
    fn no_order_of_events_is_too_much(
        events in prop::collection::vec((0u8..8, any::<u32>(), any::<u64>()), 0..60),
    ) {
        let (partition, mut vp, processor) = guest();
        for (what, msr, value) in events {
            let now = processor.tsc.get();
            match what {
                0 => {
                    let _ = read_msr(&partition, &mut vp, &processor, X2APIC + (msr & 0x3f));
                }
                1 => {
                    let msr = X2APIC + (msr & 0x3f);
                    let _ = write_msr(&partition, &mut vp, &processor, msr, value & 0xffff_f7ff);
                }
                2 => {
                    let _ = write_msr(&partition, &mut vp, &processor, TSC_DEADLINE, value);
                }
                3 => post(&partition, &processor, 0, msr as u8, value & 1 == 0),
                4 => halt(&mut vp),
                5 => vp.vmcb_mut().save.rflags = value & RFLAGS_IF | 2,
                6 => vp.vmcb_mut().control.virtual_interrupt = value.into(),
                _ => processor.tsc.set(now.saturating_add(value >> 40)),
            }
            let entry = before_entry(&partition, &mut vp, &processor);
            if entry == Entry::Idle {
                prop_assert!(injected(&vp).is_none());
                prop_assert!(vp.lapic.halted() || vp.lapic.waits_for_startup());
            }
            exit(&partition, &mut vp, &processor, ExitCode::NMI);
        }
    }
}

use super::*;
use crate::guest_memory::RamAccess;
use crate::partition::tests::{CODE, FakeProcessor, injected, setup};
use crate::partition::{Next, guest};
use crate::svm::vmcb;
use x86_defs::RFLAGS_IF;
use x86_defs::svm::ExitCode;

/// VTL2 writes a register of its local APIC.
fn write(partition: &Partition, vp: &mut Vp, processor: &FakeProcessor, register: u64, value: u32) {
    let gpa = super::super::apic::LOCAL_APIC + register;
    assert!(partition.write_local_apic(vp, processor, gpa, value));
}

/// An NMI reaches the CPU of a VP in VTL2; what is injected when it goes on.
fn nmi(partition: &Partition, vp: &mut Vp, processor: &FakeProcessor) -> Option<u8> {
    vp.vmcb_mut().control.event_injection = 0.into();
    vp.vmcb_mut().control.exit_code = ExitCode::NMI;
    assert_eq!(partition.handle_exit(vp, processor), Next::Resume);
    assert_eq!(partition.prepare(vp, processor), guest::Entry::Run);
    injected(vp)
}

#[test]
fn nmis_that_vtl2_sends_reach_its_vps_and_no_others() {
    let (partition, mut vp, processor) = setup();
    let mut other = Vp::new(&partition, 2);
    for started in [0, 2] {
        assert!(
            partition.slots[started]
                .mailbox
                .start(|| false, |_| (), || ())
        );
    }
    let mut send = |high, low| {
        write(&partition, &mut vp, &processor, 0x310, high);
        write(&partition, &mut vp, &processor, 0x300, low);
        processor.woken.take()
    };
    // To the APIC with id 3, to all others, to one that has not been started.
    assert_eq!(send(3 << 24, 0x4400), [3]);
    assert_eq!(send(0, 0xc_4400), [3]);
    assert_eq!(send(2 << 24, 0x4400), []);
    // The APIC itself sends none of them.
    let written = processor.written.take();
    assert!(written.iter().all(|(gpa, _)| *gpa == 0xfee0_0310));
    // NMIs of the host are exits; VTL2's is injected, once.
    assert_eq!(nmi(&partition, &mut other, &processor), Some(2));
    assert_eq!(nmi(&partition, &mut other, &processor), None);
    assert_eq!(*processor.fired.borrow(), [2, 2]);
    assert_eq!(nmi(&partition, &mut vp, &processor), None);
}

#[test]
fn an_nmi_that_cannot_be_taken_yet_does_not_wait_for_an_exit_by_chance() {
    let (partition, mut vp, processor) = setup();
    assert!(partition.slots[0].mailbox.start(|| false, |_| (), || ()));
    // To itself.
    let send = |vp: &mut Vp| {
        write(&partition, vp, &processor, 0x310, 1 << 24);
        write(&partition, vp, &processor, 0x300, 0x4400);
    };
    let exit = |vp: &mut Vp, code, rip| {
        let block = vp.vmcb_mut();
        (block.control.exit_code, block.save.rip) = (code, rip);
        block.control.event_injection = 0.into();
        assert_eq!(partition.handle_exit(vp, &processor), Next::Resume);
    };
    let enter = |vp: &mut Vp| {
        assert_eq!(partition.prepare(vp, &processor), guest::Entry::Run);
        (injected(vp), processor.timers.take().get(&0).copied())
    };
    let soon = Some(Some(5_000 + 50_000));
    // An interrupt is being injected.
    send(&mut vp);
    vp.vmcb_mut().control.event_injection = (1 << 31 | 0x41).into();
    assert_eq!(enter(&mut vp), (Some(0x41), soon));
    exit(&mut vp, ExitCode::NMI, 0x1000);
    assert_eq!(enter(&mut vp), (Some(2), None));
    // The handler runs, and its IRET exits; the IRET itself is still to come then.
    send(&mut vp);
    exit(&mut vp, ExitCode::NMI, 0x2000);
    assert_eq!(enter(&mut vp), (None, None));
    exit(&mut vp, ExitCode::IRET, 0x2100);
    assert_eq!(enter(&mut vp), (None, soon));
    exit(&mut vp, ExitCode::NMI, 0x1000);
    assert_eq!(enter(&mut vp), (Some(2), None));
}

#[test]
fn logical_destinations_of_nmis_are_those_that_vtl2_has_set() {
    let (partition, mut vp, processor) = setup();
    let mut other = Vp::new(&partition, 1);
    assert!(partition.slots[1].mailbox.start(|| false, |_| (), || ()));
    write(&partition, &mut other, &processor, 0xd0, 4 << 24);
    for (set, woken) in [(6, &[2][..]), (3, &[])] {
        write(&partition, &mut vp, &processor, 0x310, set << 24);
        write(&partition, &mut vp, &processor, 0x300, 0x4c00);
        assert_eq!(processor.woken.take(), woken);
    }
}

#[test]
fn vtl2_is_not_called_out_between_sti_and_hlt() {
    let (partition, mut vp, processor) = setup();
    processor.ram.write_ram(CODE, &[0xf4]);
    let in_shadow = |vp: &mut Vp, rflags| {
        let vmcb = vp.vmcb_mut();
        (vmcb.save.rip, vmcb.save.rflags) = (CODE, rflags);
        vmcb.control.interrupt_shadow = vmcb::SHADOW;
        nmi(&partition, vp, &processor);
        (vp.vmcb().save.rip, vp.vmcb().control.interrupt_shadow)
    };
    // It goes on behind the HLT, as if its interrupt had come.
    assert_eq!(in_shadow(&mut vp, 2 | RFLAGS_IF), (CODE + 1, 0));
    // CLI; HLT is no such pair.
    assert_eq!(in_shadow(&mut vp, 2), (CODE, vmcb::SHADOW));
}

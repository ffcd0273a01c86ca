//! VPs whose VTL2 suspends itself and begins anew.

use super::*;
use crate::partition::apic::LOCAL_APIC;
use hv_defs::msr::*;
use std::cell::Cell;

const STATE: HvRegisterName = HvRegisterName::INTERNAL_ACTIVITY_STATE;
const STARTUP_SUSPEND: u64 = 1;
/// Where VTL2 begins for the second time.
const AGAIN: u64 = 0xffff_ffff_8123_4000;

/// Who waits for a start that has been, or comes when it sleeps.
struct UntilStarted<F>(F);

impl<F: FnMut()> Sleeper for UntilStarted<F> {
    fn sleep(&mut self) {
        (self.0)();
    }

    fn drain(&mut self) {}

    fn relax(&mut self) {
        panic!("nobody else is there");
    }
}

fn awake() -> impl Sleeper {
    UntilStarted(|| panic!("the VP was started"))
}

impl Guest {
    fn start_again(&mut self, vp: u32) -> HvStatus {
        let mut input = vp_vtl(vp, 2);
        input.vp_context.rip = AGAIN;
        let code = control(HypercallCode::START_VIRTUAL_PROCESSOR);
        self.call(code, input.as_bytes()).0
    }

    /// VP 2, which runs in VTL2.
    fn other(&mut self) -> Vp {
        let mut vp = Vp::new(&self.partition, 2);
        self.partition.enable_vp_vtl(2, Vtl::PARAVISOR).unwrap();
        let context = StartContext::new(linux_ap()).unwrap();
        self.partition
            .start_vp(2, Vtl::PARAVISOR, context, &self.processor)
            .unwrap();
        self.partition.wait_for_start(&mut vp, &mut awake());
        self.processor.woken.take();
        vp
    }

    fn set_apic(&self, vp: &mut Vp, on: bool) {
        let value = if on { 0x1ff } else { 0xff };
        let (partition, processor) = (&self.partition, &self.processor);
        assert!(partition.write_local_apic(vp, processor, LOCAL_APIC + 0xf0, value));
    }

    fn msr(&self, vp: &mut Vp, msr: u32, value: u64) {
        let written = self.partition.write_msr(vp, &self.processor, msr, value);
        assert_eq!(written, Ok(Next::Resume));
    }

    fn read_msr(&self, vp: &mut Vp, msr: u32) -> u64 {
        self.partition.read_msr(vp, &self.processor, msr).unwrap()
    }
}

#[test]
fn vp_that_runs_is_active_and_can_suspend_only_itself() {
    let mut guest = Guest::new();
    guest.processor.ram.0.borrow_mut()[OUTPUT as usize..][..16].fill(0xff);
    let (status, _) = guest.get(HvInputVtl::new(), &[STATE]);
    assert_eq!((status, guest.output()), (HvStatus::SUCCESS, [0; 16]));
    assert_eq!(guest.set(STATE, 0), HvStatus::SUCCESS);
    for wrong in [2, 3, 4, 1 << 63] {
        assert_eq!(guest.set(STATE, wrong), HvStatus::INVALID_REGISTER_VALUE);
    }
    let assoc = HvRegisterAssoc {
        name: STATE.0,
        pad: [0; 3],
        value: [STARTUP_SUSPEND, 0],
    };
    let set = control(HypercallCode::SET_VP_REGISTERS).with_rep_count(1);
    let mut input = registers_header(HvInputVtl::new(), 1);
    input.extend(assoc.as_bytes());
    assert_eq!(guest.call(set, &input).0, HvStatus::INVALID_VP_STATE);
}

#[test]
fn suspension_does_not_return() {
    let mut guest = Guest::new();
    let mut input = registers_header(HvInputVtl::new(), HV_VP_INDEX_SELF);
    for (name, value) in [(STATE, STARTUP_SUSPEND), (HvRegisterName(0xdead), 0)] {
        let assoc = HvRegisterAssoc {
            name: name.0,
            pad: [0; 3],
            value: [value, 0],
        };
        input.extend(assoc.as_bytes());
    }
    guest.processor.write_ram(INPUT, &input);
    let set = control(HypercallCode::SET_VP_REGISTERS).with_rep_count(2);
    let outcome = guest.raw(set.into(), INPUT, OUTPUT);
    assert_eq!(outcome, Outcome::Switched(Next::Suspend));
}

#[test]
fn vp_is_started_again_only_if_it_leaves_and_once() {
    let mut guest = Guest::new();
    let mut vp = guest.other();
    // Its APIC has never been on.
    assert_eq!(guest.start_again(2), HvStatus::INVALID_VP_STATE);
    guest.set_apic(&mut vp, true);
    assert_eq!(guest.start_again(2), HvStatus::INVALID_VP_STATE);
    guest.set_apic(&mut vp, false);
    assert_eq!(guest.start_again(2), HvStatus::SUCCESS);
    assert_eq!(guest.start_again(2), HvStatus::INVALID_VP_STATE);
    // It goes on until it suspends itself, and is not called.
    assert_eq!(*guest.processor.woken.borrow(), []);
    assert_eq!(vp.vmcb().save.rip, linux_ap().rip);
    guest.partition.suspend(&mut vp, &mut awake());
    assert_eq!(vp.vmcb().save.rip, AGAIN);
    assert_eq!(guest.start_again(2), HvStatus::INVALID_VP_STATE);
}

#[test]
fn vp_that_has_suspended_itself_is_called() {
    let mut guest = Guest::new();
    let mut vp = guest.other();
    guest.set_apic(&mut vp, false);
    let partition = &guest.partition;
    let (processor, naps) = (&guest.processor, Cell::new(0));
    let mut sleeper = UntilStarted(|| {
        naps.set(naps.get() + 1);
        // The first NMI is one of its timer's.
        if naps.get() == 2 {
            let mut context = linux_ap();
            context.rip = AGAIN;
            let context = StartContext::new(context).unwrap();
            let started = partition.start_vp(2, Vtl::PARAVISOR, context, processor);
            assert_eq!(started, Ok(()));
        }
    });
    partition.suspend(&mut vp, &mut sleeper);
    assert_eq!(naps.get(), 2);
    assert_eq!(*processor.woken.borrow(), [3]);
    assert_eq!((vp.vtl, vp.vmcb().save.rip), (Vtl::PARAVISOR, AGAIN));
}

#[test]
fn vtl2_begins_anew_and_vtl0_stays() {
    let mut guest = Guest::new();
    let mut vp = guest.other();
    for (msr, value) in [
        (HV_X64_MSR_VP_ASSIST_PAGE, 0x5001),
        (HV_X64_MSR_TSC_INVARIANT_CONTROL, 1),
        (HV_X64_MSR_SIMP, 0xc001),
        (HV_X64_MSR_SINT0 + 2, 0xf3),
        (HV_X64_MSR_SCONTROL, 1),
    ] {
        guest.msr(&mut vp, msr, value);
    }
    let own = Vtl::PARAVISOR.index();
    vp.vtls[own].register_page = OverlayPage::from_bits(0x6001);
    vp.vtls[own].vmcb.control.interrupt_shadow = 1;
    let lower = &mut vp.vtls[Vtl::GUEST.index()];
    lower.vmcb.save.rip = 0x1234;
    lower.vmcb.save.cr3 = 0x5000;
    lower.assist = OverlayPage::from_bits(0x1_0000_0001);
    lower.vmcb.control.virtual_interrupt.set_tpr(7);
    vp.lapic.set_halted(true);

    guest.set_apic(&mut vp, false);
    assert_eq!(guest.start_again(2), HvStatus::SUCCESS);
    guest.partition.suspend(&mut vp, &mut awake());

    let state = &vp.vtls[own];
    assert!(!state.assist.enabled() && !state.register_page.enabled());
    assert_eq!(state.vmcb.control.interrupt_shadow, 0);
    assert_eq!(guest.read_msr(&mut vp, HV_X64_MSR_SIMP), 0);
    assert_eq!(guest.read_msr(&mut vp, HV_X64_MSR_SCONTROL), 0);
    assert_eq!(guest.read_msr(&mut vp, HV_X64_MSR_SINT0 + 2), 1 << 16);
    assert_eq!(guest.read_msr(&mut vp, HV_X64_MSR_TSC_INVARIANT_CONTROL), 0);
    let lower = &vp.vtls[Vtl::GUEST.index()];
    assert_eq!((lower.vmcb.save.rip, lower.vmcb.save.cr3), (0x1234, 0x5000));
    assert_eq!(lower.assist.page_number(), 0x10_0000);
    assert_eq!(lower.vmcb.control.virtual_interrupt.tpr(), 7);
    assert!(vp.lapic.halted());
}

//! The register page, which VTL2 reads and writes in place of hypercalls.

use super::message::{gprs, segment};
use crate::partition::{Partition, Processor, Vp, VpVtl, gpr};
use crate::svm::nmi::Nmis;
use crate::svm::{context, vmcb};
use crate::vtl::Vtl;
use hv_defs::register_page::{HV_X64_REGISTER_PAGE_VERSION, HvX64RegisterPage, RegisterPageDirty};
use hv_defs::registers::{InterruptState, PendingInterruption};
use hv_defs::vp_context::HvX64SegmentRegister;
use x86_defs::svm::{EventInjection, Save, Segment};
use x86_defs::{EFER_SVME, RFLAGS_ALWAYS_ONE, RFLAGS_DEFINED, RFLAGS_VM, is_canonical};

/// The event that a block injects next, in the form of the TLFS.
pub(crate) fn pending_interruption(event: EventInjection) -> PendingInterruption {
    if !event.valid() {
        return PendingInterruption::new();
    }
    PendingInterruption::new()
        .with_pending(true)
        .with_kind(event.kind())
        .with_deliver_error_code(event.has_error_code())
        .with_vector(event.vector().into())
        .with_error_code(event.error_code())
}

/// What holds interrupts and NMIs back in a VTL.
pub(crate) fn interrupt_state(state: &VpVtl) -> InterruptState {
    InterruptState::new()
        .with_interrupt_shadow(state.vmcb.control.interrupt_shadow & vmcb::SHADOW != 0)
        .with_nmi_masked(state.nmis != Nmis::Open)
}

impl Partition {
    /// Shows the guest's registers to VTL2; the VP is still in the guest.
    #[inline(never)] // A page on the stack.
    pub(super) fn fill_register_page(&self, vp: &Vp, processor: &impl Processor) {
        let register = vp.vtls[Vtl::PARAVISOR.index()].register_page;
        if !register.enabled() {
            return;
        }
        let vmcb = vp.vmcb();
        let save = &vmcb.save;
        let page = HvX64RegisterPage {
            version: HV_X64_REGISTER_PAGE_VERSION,
            is_valid: 1,
            vtl: vp.vtl.number(),
            dirty: RegisterPageDirty::new(),
            gprs: gprs(vp),
            rip: save.rip,
            rflags: save.rflags,
            reserved: 0,
            // VTL2 has them in its registers; the host does not touch those.
            xmm: [[0; 2]; 6],
            segments: [
                save.es,
                save.cs,
                context::stack_segment(save),
                save.ds,
                save.fs,
                save.gs,
            ]
            .map(|register| segment(&register)),
            cr0: save.cr0,
            cr3: save.cr3,
            cr4: save.cr4,
            cr8: vmcb.control.virtual_interrupt.tpr().into(),
            efer: save.efer & !EFER_SVME,
            dr7: save.dr7,
            pending_interruption: pending_interruption(vmcb.control.event_injection),
            interrupt_state: interrupt_state(&vp.vtls[vp.vtl.index()]).into(),
            emulation_hints: 0,
        };
        // Checked when VTL2 named the page, and its memory only grows.
        let _ = self
            .memory(Vtl::PARAVISOR, processor)
            .write_as(register.page_number() << 12, &page);
    }

    /// Takes over what VTL2 has changed in the page. A bad value is not taken over: VTL2 has
    /// made the guest go on where it was. Nor is anything of a page from before an INIT: that
    /// goes on with an instruction that the VP has been torn away from.
    ///
    /// On the way to the guest, and before VTL2 names another page.
    #[inline(never)] // A page on the stack.
    pub(crate) fn take_register_page(&self, vp: &mut Vp, processor: &impl Processor) {
        let is_outdated = core::mem::take(&mut vp.guest.page_is_outdated);
        let register = vp.vtls[Vtl::PARAVISOR.index()].register_page;
        if is_outdated || !register.enabled() {
            return;
        }
        let memory = self.memory(Vtl::PARAVISOR, processor);
        let Ok(page) = memory.read_as::<HvX64RegisterPage>(register.page_number() << 12) else {
            return;
        };
        if page.is_valid == 0 || page.vtl != Vtl::GUEST.number() {
            return;
        }
        let vmcb = &mut vp.vtls[Vtl::GUEST.index()].vmcb;
        let save = &mut vmcb.save;
        if page.dirty.general_purpose() {
            // The others are shared by the VTLs.
            save.rsp = page.gprs[gpr::RSP];
        }
        if page.dirty.instruction_pointer() && is_canonical(page.rip) {
            save.rip = page.rip;
            vmcb.control.interrupt_shadow = 0;
        }
        if page.dirty.flags() {
            save.rflags = page.rflags & (RFLAGS_DEFINED | RFLAGS_VM) | RFLAGS_ALWAYS_ONE;
        }
        if page.dirty.segments() {
            take_segments(save, &page.segments);
        }
    }
}

fn take_segments(save: &mut Save, segments: &[HvX64SegmentRegister; 6]) {
    if !segments.iter().all(|register| is_canonical(register.base)) {
        return;
    }
    let [es, cs, ss, ds, fs, gs] = segments.map(|register| context::segment(&register));
    // SVM keeps the privilege level apart; the TLFS has it in SS.
    save.cpl = privilege_level(&ss);
    (save.es, save.cs, save.ss) = (es, cs, ss);
    (save.ds, save.fs, save.gs) = (ds, fs, gs);
}

fn privilege_level(ss: &Segment) -> u8 {
    (ss.attributes >> 5 & 3) as u8
}

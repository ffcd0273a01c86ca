//! From VTL2 to the guest and back.

use super::{Entry, lapic};
use crate::partition::debug::{put_aside, take_back};
use crate::partition::{Next, Partition, Processor, Vp, gpr};
use crate::svm::vmcb::Exception;
use crate::svm::{check, debug};
use crate::vtl::Vtl;
use core::mem::offset_of;
use hv_defs::intercept::{InvalidVpRegister, VtlEntryReason};
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::{HvMessage, HvMessageType};
use hv_defs::vsm::HvVpAssistPage;
use vsm_host_defs::ExitReason;
use zerocopy::IntoBytes;

/// Bit of the control word of a VTL return, which is in RAX then: RAX and RCX of the lower
/// VTL stay what they are.
const FAST_RETURN: u64 = 1;

/// Offsets in the VP assist page.
const REASON: u64 = offset_of!(HvVpAssistPage, vtl_entry_reason) as u64;
const RAX: u64 = offset_of!(HvVpAssistPage, vtl_ret_x64_rax) as u64;
const MESSAGE: u64 = offset_of!(HvVpAssistPage, intercept_message) as u64;

impl Partition {
    /// What the VP's CPU does next.
    pub fn prepare(&self, vp: &mut Vp, processor: &impl Processor) -> Entry {
        let entry = if vp.vtl == Vtl::GUEST {
            lapic::before_entry(self, vp, processor)
        } else {
            if self.inject_nmi(vp) {
                lapic::look_again_soon(self, vp, processor);
            }
            Entry::Run
        };
        debug::prepare(vp.vmcb_mut());
        entry
    }

    /// VTL return: VTL2, which stands at the VMMCALL, goes to the guest.
    ///
    /// # Errors
    /// The instruction faults: without an assist page there are no registers to go with.
    pub(crate) fn vtl_return(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
    ) -> Result<Next, Exception> {
        let assist = vp.vtls[Vtl::PARAVISOR.index()].assist;
        if vp.vtl != Vtl::PARAVISOR || !assist.enabled() {
            return Err(Exception::InvalidOpcode);
        }
        let fast = vp.vmcb().save.rax & FAST_RETURN != 0;
        let (mut rax, mut rcx) = (vp.vmcb().save.rax, vp.gprs[gpr::RCX]);
        if !fast {
            let memory = self.memory(Vtl::PARAVISOR, processor);
            [rax, rcx] = memory
                .read_as::<[u64; 2]>((assist.page_number() << 12) + RAX)
                .map_err(|_| Exception::InvalidOpcode)?;
        }
        self.take_register_page(vp, processor);
        let cr2 = vp.vmcb().save.cr2;
        put_aside(vp, processor);
        vp.vtl = Vtl::GUEST;
        take_back(vp, processor);
        vp.gprs[gpr::RCX] = rcx;
        let save = &mut vp.vmcb_mut().save;
        (save.rax, save.cr2) = (rax, cr2);
        exchange_tsc_aux(vp, processor);
        match check::make_consistent(&mut vp.vmcb_mut().save) {
            Ok(()) => Ok(self.tell_ready_sources(vp, processor)),
            Err(name) => Ok(self.invalid_register(vp, processor, name)),
        }
    }

    /// The guest cannot be entered because of this register.
    pub(super) fn invalid_register(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        name: HvRegisterName,
    ) -> Next {
        let payload = InvalidVpRegister {
            vp_index: vp.index,
            reserved: 0,
            name: name.0,
            reserved2: 0,
        };
        let kind = HvMessageType::INVALID_VP_REGISTER_VALUE;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    /// From the guest to VTL2, with a message.
    pub(super) fn intercepted(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        message_type: HvMessageType,
        payload: &[u8],
    ) -> Next {
        let message = HvMessage::new(message_type, payload);
        self.enter_paravisor(vp, processor, VtlEntryReason::INTERCEPT, Some(&message))
    }

    /// From the guest to VTL2, because an interrupt is there.
    pub(super) fn interrupted(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        self.enter_paravisor(vp, processor, VtlEntryReason::INTERRUPT, None)
    }

    fn enter_paravisor(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        reason: VtlEntryReason,
        message: Option<&HvMessage>,
    ) -> Next {
        let assist = vp.vtls[Vtl::PARAVISOR.index()].assist.page_number() << 12;
        let memory = self.memory(Vtl::PARAVISOR, processor);
        // The page was there when VTL2 left, and only the VP itself moves it.
        let written = memory
            .write_as(assist + REASON, &reason)
            .and_then(|()| match message {
                Some(message) => memory.write_as(assist + MESSAGE, message),
                None => Ok(()),
            });
        if let Err(error) = written {
            processor.log(format_args!("VP {}: assist page: {error}", vp.index));
            return Next::End(ExitReason::HostError);
        }
        self.fill_register_page(vp, processor);
        let (rax, cr2) = (vp.vmcb().save.rax, vp.vmcb().save.cr2);
        put_aside(vp, processor);
        vp.vtl = Vtl::PARAVISOR;
        take_back(vp, processor);
        let save = &mut vp.vmcb_mut().save;
        (save.rax, save.cr2) = (rax, cr2);
        exchange_tsc_aux(vp, processor);
        Next::Resume
    }
}

/// TSC_AUX of the VTL that comes in place of that of the one that goes.
fn exchange_tsc_aux(vp: &mut Vp, processor: &impl Processor) {
    vp.guest.other_tsc_aux = processor.exchange_tsc_aux(vp.guest.other_tsc_aux);
}

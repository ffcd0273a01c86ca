//! Debug registers that a VTL writes, and whose DR0 to DR3 are.
//!
//! The VTLs share DR0 to DR3, which stay in the processor. But a VTL whose breakpoints are on
//! finds its own at each entry: another cannot choose where it is interrupted.

use super::{Partition, Processor, Vp};
use crate::svm::debug;
use crate::svm::special::{self, Target, Write};
use crate::svm::vmcb::{self, Exception};
use crate::vtl::Vtl;
use x86_defs::{CR4_DE, DR6_AT_RESET, DR7_AT_RESET};

const LOW_32: u64 = 0xffff_ffff;

impl Partition {
    /// MOV to a debug register, at which the VP stands. The processor has checked the
    /// privilege level before the exit.
    pub(super) fn write_debug_register(&self, vp: &mut Vp, processor: &impl Processor) {
        let result = self.written_debug_register(vp, processor);
        let vmcb = vp.vmcb_mut();
        match result {
            Ok(next_rip) => vmcb::advance(vmcb, next_rip),
            Err(exception) => vmcb::inject(vmcb, exception),
        }
    }

    /// Executes it; RIP behind it.
    fn written_debug_register(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
    ) -> Result<u64, Exception> {
        let memory = self.memory(vp.vtl, processor);
        let Some(Write {
            target: Target::Debug(number),
            source,
            next_rip,
        }) = special::write_at(&memory, &vp.vmcb().save)
        else {
            return Err(Exception::InvalidOpcode);
        };
        let value = vp.register(source);
        let save = &mut vp.vmcb_mut().save;
        let size = if vmcb::is_64_bit(save) { !0 } else { LOW_32 };
        let value = value & size;
        let number = match number {
            4 | 5 if save.cr4 & CR4_DE != 0 => return Err(Exception::InvalidOpcode),
            4 | 5 => number + 2,
            _ => number,
        };
        match number {
            6 | 7 if value > LOW_32 => return Err(Exception::GeneralProtection),
            6 => save.dr6 = value | DR6_AT_RESET,
            7 => save.dr7 = value | DR7_AT_RESET,
            _ => {
                let mut addresses = processor.debug_addresses();
                addresses[usize::from(number)] = value;
                processor.set_debug_addresses(addresses);
            }
        }
        Ok(next_rip)
    }
}

/// DR0 to DR3 as `vtl` has them, or will find them.
pub(crate) fn addresses(vp: &Vp, vtl: Vtl, processor: &impl Processor) -> [u64; 4] {
    let aside = vp.vtls[vtl.index()].debug_addresses;
    aside.unwrap_or_else(|| processor.debug_addresses())
}

/// Sets one of them. What another VTL runs into meanwhile stays where it is.
pub(crate) fn set_address(
    vp: &mut Vp,
    vtl: Vtl,
    processor: &impl Processor,
    number: usize,
    value: u64,
) {
    let taken = vtl != vp.vtl && debug::is_on(vp.vmcb().save.dr7);
    let mut found = processor.debug_addresses();
    let aside = &mut vp.vtls[vtl.index()].debug_addresses;
    if taken || aside.is_some() {
        aside.get_or_insert(found)[number] = value;
    }
    if !taken {
        found[number] = value;
        processor.set_debug_addresses(found);
    }
}

/// The VTL goes.
pub(super) fn put_aside(vp: &mut Vp, processor: &impl Processor) {
    let state = &mut vp.vtls[vp.vtl.index()];
    let is_on = debug::is_on(state.vmcb.save.dr7);
    state.debug_addresses = is_on.then(|| processor.debug_addresses());
}

/// The VTL comes. What it does not have breakpoints with it finds as the other has left it.
pub(super) fn take_back(vp: &mut Vp, processor: &impl Processor) {
    let state = &mut vp.vtls[vp.vtl.index()];
    if let Some(addresses) = state.debug_addresses.take()
        && debug::is_on(state.vmcb.save.dr7)
    {
        processor.set_debug_addresses(addresses);
    }
}

//! The interrupt shadow, which the emulator forgets.
//!
//! STI holds interrupts back up to the end of the next instruction; so `STI; HLT` cannot
//! lose the interrupt that it waits for. QEMU (7.2 at least) tells of the shadow when a VTL
//! leaves, but VMRUN takes no notice of it: an interrupt would then be taken before the HLT,
//! which waits for ever. Where a VTL has been called out of such a pair, the host executes
//! the HLT in its place.

use super::fetch::{self, Instruction};
use super::vmcb::SHADOW;
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::RFLAGS_IF;
use x86_defs::svm::Vmcb;

/// RIP behind the HLT at which the block stands in the shadow of an STI, if it does.
pub fn behind_halt<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, vmcb: &Vmcb) -> Option<u64> {
    let save = &vmcb.save;
    let held = vmcb.control.interrupt_shadow & SHADOW != 0 && save.rflags & RFLAGS_IF != 0;
    (held && save.cpl == 0)
        .then(|| fetch::next_rip(memory, save, Instruction::Hlt))
        .flatten()
}

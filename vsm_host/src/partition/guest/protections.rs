//! Changes of what the guest may do with its memory, while it runs.

use crate::nested::{Access, NestedTables, ProtectError};
use crate::partition::{Partition, Processor};
use crate::vtl::Vtl;
use spin::MutexGuard;

/// A change of the guest's protections by a VP that is in VTL2. When this goes, the change
/// counts on all VPs.
pub(crate) struct Change<'a, P: Processor> {
    partition: &'a Partition,
    processor: &'a P,
    vp: u32,
    /// One VP at a time: a table that is given back may not be freed once more meanwhile.
    _turn: MutexGuard<'a, ()>,
}

impl<'a, P: Processor> Change<'a, P> {
    /// A change that `vp` is about to make.
    pub(crate) fn begin(partition: &'a Partition, processor: &'a P, vp: u32) -> Self {
        Self {
            partition,
            processor,
            vp,
            _turn: partition.protections.lock(),
        }
    }

    /// Sets what the guest may do with the page at `address`.
    pub(crate) fn protect(&self, address: u64, access: Access) -> Result<(), ProtectError> {
        match self.tables().protect(address, access) {
            Err(ProtectError::OutOfTables) => {
                // Some may only wait for the others to leave them.
                self.spread();
                self.tables().protect(address, access)
            }
            result => result,
        }
    }

    fn tables(&self) -> &NestedTables {
        self.partition.nested_tables(Vtl::GUEST)
    }

    /// Makes all VPs forget what was there before.
    fn spread(&self) {
        let others = (0..).zip(&self.partition.slots);
        let others = others.filter(|(vp, _)| *vp != self.vp);
        self.partition.changes.spread(
            others.map(|(_, slot)| (&slot.presence, slot.apic_id)),
            |apic_id| self.processor.wake(apic_id),
            core::hint::spin_loop,
        );
        self.tables().reclaim();
    }
}

impl<P: Processor> Drop for Change<'_, P> {
    fn drop(&mut self) {
        self.spread();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::guest::{Entry, lapic};
    use crate::partition::tests::{GUEST_RAM, setup};
    use crate::partition::{Next, Vp};
    use x86_defs::svm::ExitCode;

    #[test]
    fn a_vp_forgets_its_translations_after_a_change() {
        let (partition, mut vp, processor) = setup();
        vp.vtl = Vtl::GUEST;
        let mut enter = |flush| {
            vp.vmcb_mut().control.tlb_control = 0;
            assert_eq!(partition.prepare(&mut vp, &processor), Entry::Run);
            assert_eq!(vp.vmcb().control.tlb_control != 0, flush);
            vp.vmcb_mut().control.exit_code = ExitCode::NMI;
            lapic::after_exit(&partition, &mut vp, &processor);
        };
        enter(true);
        enter(false);
        let change = Change::begin(&partition, &processor, 1);
        change.protect(GUEST_RAM.start(), Access::NONE).unwrap();
        drop(change);
        enter(true);
        enter(false);
        assert!(processor.woken.borrow().is_empty());
    }

    #[test]
    fn what_is_to_be_forgotten_outlasts_a_wait() {
        let (partition, _, processor) = setup();
        let mut vp = Vp::new(&partition, 1);
        vp.vtl = Vtl::GUEST;
        // The CPU waits in place of the VP, which is started meanwhile.
        assert_eq!(partition.prepare(&mut vp, &processor), Entry::Idle);
        let presence = &partition.slots[1].presence;
        vp.known_change = presence.enter(&partition.changes);
        vp.waited(ExitCode::NMI);
        assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
        vp.lapic.set_waits_for_startup(false);
        assert_eq!(partition.prepare(&mut vp, &processor), Entry::Run);
        assert_ne!(vp.vmcb().control.tlb_control, 0);
    }
}

//! Non-maskable interrupts. They are the host's: by an NMI a CPU is called out of its VTL,
//! by another VP or by its timer. No VTL gets to see these.
//!
//! VTL2 sends NMIs too, to make a VP of its own stop or report. It sends them through its
//! local APIC, whose writes are the host's to carry out; so the host takes note whom they
//! are for, calls these VPs, and injects an NMI where VTL2 goes on. NMIs that VTL2 makes a
//! device or a pin send do not reach it: nobody could tell them from the host's.

use super::{Partition, Processor, Vp};
use crate::svm::nmi::Nmis;
use crate::vtl::Vtl;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vapic::{Address, Message};
use x86_defs::apic::DeliveryMode;
use x86_defs::apic::InterruptCommand;

/// What others must know of a VP's physical local APIC, which is VTL2's, to send it an NMI.
pub(super) struct Target {
    /// [`Address`] of the APIC.
    address: AtomicU64,
    /// An NMI for VTL2 has been sent.
    pending: AtomicBool,
}

impl Target {
    /// The APIC after reset.
    pub(super) fn new(apic_id: u32) -> Self {
        let address = Address::new()
            .with_id(apic_id)
            .with_format(0xf)
            .with_enabled(true);
        Self {
            address: AtomicU64::new(address.into_bits()),
            pending: AtomicBool::new(false),
        }
    }

    /// What was sent to VTL2 of the VP is not for the one that comes after it.
    pub(super) fn forget(&self) {
        self.pending.store(false, Ordering::Release);
    }

    fn address(&self) -> Address {
        Address::from_bits(self.address.load(Ordering::Acquire))
    }

    /// VTL2 has written the logical destination.
    pub(super) fn set_logical(&self, register: u32) {
        let address = self.address().with_logical((register >> 24) as u8);
        self.address.store(address.into_bits(), Ordering::Release);
    }

    /// VTL2 has written the format of logical destinations.
    pub(super) fn set_format(&self, register: u32) {
        let address = self.address().with_format((register >> 28) as u8);
        self.address.store(address.into_bits(), Ordering::Release);
    }
}

impl Partition {
    /// An NMI has reached the CPU of the VP.
    pub(super) fn nmi_exit(&self, vp: &Vp, processor: &impl Processor) {
        processor.timer_fired(vp.index);
    }

    /// Sends the NMI of a command of VTL2's, if it is one.
    pub(super) fn send_nmi(&self, vp: &Vp, processor: &impl Processor, low: u32) -> bool {
        let command = u64::from(vp.command_high) << 32 | u64::from(low);
        let command = InterruptCommand::from_bits(command);
        if DeliveryMode(command.mode()) != DeliveryMode::NMI {
            return false;
        }
        let Some(Message { destination, .. }) = Message::of_command(command, false) else {
            return true;
        };
        for (index, slot) in (0..).zip(&self.slots) {
            let is_sender = index == vp.index;
            // One that has not been started loses it, as any that waits for its start-up.
            if slot.mailbox.is_started() && destination.includes(slot.nmi.address(), is_sender) {
                slot.nmi.pending.store(true, Ordering::Release);
                if !is_sender {
                    processor.wake(slot.apic_id);
                }
            }
        }
        true
    }

    /// Whether an NMI waits for VTL2: a VP in VTL0 goes there.
    pub(crate) fn nmi_waits(&self, vp: &Vp) -> bool {
        let target = &self.slots[vp.index as usize].nmi;
        target.pending.load(Ordering::Acquire) && vp.vtls[Vtl::PARAVISOR.index()].nmis == Nmis::Open
    }

    /// To be called before each entry into VTL2: injects an NMI that waits for it, as soon
    /// as VTL2 can take one. True: it cannot yet, and no exit will come when it can.
    pub(crate) fn inject_nmi(&self, vp: &mut Vp) -> bool {
        let target = &self.slots[vp.index as usize].nmi;
        if !target.pending.load(Ordering::Acquire) {
            return false;
        }
        let state = &mut vp.vtls[Vtl::PARAVISOR.index()];
        let occupied = state.vmcb.control.event_injection.valid();
        match state.nmis {
            // The handler's IRET exits.
            Nmis::Handled => false,
            Nmis::Open if !occupied => {
                target.pending.store(false, Ordering::Release);
                state.nmis.inject(&mut state.vmcb);
                false
            }
            Nmis::Open | Nmis::Ending { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests;

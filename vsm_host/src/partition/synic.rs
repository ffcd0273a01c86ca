//! The SynICs of the VTLs: crate `synic`, and the VP that they belong to.
//!
//! They stand behind locks, because VTL2 posts to any VP from any other. The lock is held
//! while the VTL's pages are written; interrupts are sent afterwards, to VTL0's virtual
//! APIC or to VTL2's, which is the physical one. Time is the partition's reference time.
//!
//! VTL2's has no timers, and its sources do not end their interrupts themselves: no host
//! can end one of a physical APIC in its software's place.

use super::guest::lapic;
use super::{Partition, Processor, Vp, VpSlot};
use crate::guest_memory::{GuestMemory, RamAccess};
use crate::svm::vmcb::Exception;
use crate::vtl::Vtl;
use ::synic::{DirectEvent, DirectMessage, GuestPages, MsrError, NotMapped, Raised, Synic};
use alloc::boxed::Box;
use hv_defs::hypercall::HvStatus;
use hv_defs::msr::{HV_X64_MSR_STIMER0_CONFIG, HV_X64_MSR_STIMER3_COUNT};
use spin::Mutex;
use vapic::Apics;

impl<R: RamAccess + ?Sized> GuestPages for GuestMemory<'_, R> {
    fn load(&self, gpa: u64) -> Result<u32, NotMapped> {
        self.load_word(gpa).map_err(|_| NotMapped { gpa })
    }

    fn store(&self, gpa: u64, value: u32) -> Result<(), NotMapped> {
        self.store_word(gpa, value).map_err(|_| NotMapped { gpa })
    }

    fn set_bits(&self, gpa: u64, bits: u32) -> Result<u32, NotMapped> {
        self.set_word_bits(gpa, bits).map_err(|_| NotMapped { gpa })
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NotMapped> {
        GuestMemory::write(self, gpa, data).map_err(|_| NotMapped { gpa })
    }
}

impl VpSlot {
    fn synic(&self, vtl: Vtl) -> &Mutex<Box<Synic>> {
        if vtl == Vtl::GUEST {
            &self.synic
        } else {
            &self.paravisor_synic
        }
    }
}

/// Works on the SynIC of a VP at reference time, and sends what that has raised.
fn with<P: Processor, T, E>(
    partition: &Partition,
    processor: &P,
    (vp, vtl): (u32, Vtl),
    work: impl FnOnce(&mut Synic, u64, &GuestMemory<'_, P>) -> Result<(T, Raised), E>,
) -> Result<T, E> {
    let now = partition.reference_time(processor);
    let memory = partition.memory(vtl, processor);
    let (result, raised) = {
        let mut synic = partition.slots[vp as usize].synic(vtl).lock();
        work(&mut synic, now, &memory)?
    };
    if vtl == Vtl::PARAVISOR {
        for vector in raised.interrupts.iter() {
            partition.interrupt_paravisor(processor, vp, vector);
        }
        return Ok(result);
    }
    let apics = lapic::apics(partition, processor);
    // Proxied and intercepted arrivals are not offered to VTL2.
    for vector in raised.interrupts.iter() {
        if apics.shared(vp).post(vector, false) {
            apics.kick(vp);
        }
    }
    Ok(result)
}

/// As [`with`] for VTL0, where nothing can fail.
fn update<P: Processor>(
    partition: &Partition,
    processor: &P,
    vp: u32,
    work: impl FnOnce(&mut Synic, u64, &GuestMemory<'_, P>) -> Raised,
) {
    let done: Result<(), core::convert::Infallible> = with(
        partition,
        processor,
        (vp, Vtl::GUEST),
        |synic, now, memory| Ok(((), work(synic, now, memory))),
    );
    let Ok(()) = done;
}

/// Expires VTL0's timers of a VP.
pub fn poll(partition: &Partition, vp: &Vp, processor: &impl Processor) {
    update(partition, processor, vp.index, |synic, now, memory| {
        // Most VPs have none.
        match synic.next_deadline() {
            Some(deadline) if deadline <= now => synic.poll(now, memory),
            _ => Raised::default(),
        }
    });
}

/// TSC at which to [`poll`] next.
pub fn next_deadline(partition: &Partition, vp: &Vp) -> Option<u64> {
    let synic = partition.slots[vp.index as usize].synic.lock();
    let deadline = synic.next_deadline()?;
    Some(partition.time.tsc_at(deadline))
}

/// VTL0 has ended an interrupt: messages that wait get another chance.
pub fn end_of_interrupt(partition: &Partition, vp: &Vp, processor: &impl Processor) {
    update(partition, processor, vp.index, |synic, now, memory| {
        if synic.waits() {
            synic.end_of_interrupt(now, memory)
        } else {
            Raised::default()
        }
    });
}

/// Whether a VTL has this MSR of a SynIC.
pub fn owns_msr(vtl: Vtl, msr: u32) -> bool {
    let of_timer = matches!(msr, HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT);
    ::synic::owns_msr(msr) && (vtl == Vtl::GUEST || !of_timer)
}

/// RDMSR of an MSR for which [`owns_msr`] is true.
pub fn read_msr(partition: &Partition, vp: &Vp, vtl: Vtl, msr: u32) -> Result<u64, Exception> {
    let synic = partition.slots[vp.index as usize].synic(vtl).lock();
    let value = synic.read_msr(msr);
    value.map_err(|MsrError { .. }| Exception::GeneralProtection)
}

/// WRMSR of an MSR for which [`owns_msr`] is true.
pub fn write_msr(
    partition: &Partition,
    vp: &mut Vp,
    vtl: Vtl,
    processor: &impl Processor,
    (msr, value): (u32, u64),
) -> Result<(), Exception> {
    let target = (vp.index, vtl);
    let auto_eoi = with(partition, processor, target, |synic, now, memory| {
        let raised = synic.write_msr(msr, value, now, memory)?;
        Ok((synic.auto_eoi_vectors(), raised))
    })
    .map_err(|MsrError { .. }| Exception::GeneralProtection)?;
    if vtl == Vtl::GUEST {
        vp.lapic.set_auto_eoi(auto_eoi);
    }
    Ok(())
}

/// A message of the host to a VP: its type and sender, and what it says.
pub fn post(
    partition: &Partition,
    processor: &impl Processor,
    target: (u32, Vtl),
    sint: u8,
    header: (u32, u64),
    payload: &[u8],
) -> Result<(), HvStatus> {
    with(partition, processor, target, |synic, now, memory| {
        let raised = synic.post(sint, header, payload, now, memory)?;
        Ok(((), raised))
    })
}

/// VTL2 of the VP is gone, and with it where its SynIC writes.
pub fn reset_paravisor(partition: &Partition, vp: &Vp) {
    let synic = &partition.slots[vp.index as usize].paravisor_synic;
    synic.lock().reset();
}

/// HvCallPostMessageDirect to a VP.
pub fn post_direct(
    partition: &Partition,
    processor: &impl Processor,
    target: (u32, Vtl),
    direct: &DirectMessage,
) -> Result<(), HvStatus> {
    with(partition, processor, target, |synic, _, memory| {
        let raised = synic.post_direct(direct.sint, &direct.message, memory)?;
        Ok(((), raised))
    })
}

/// HvCallSignalEventDirect to a VP; true if the flag was clear.
pub fn signal_direct(
    partition: &Partition,
    processor: &impl Processor,
    target: (u32, Vtl),
    direct: &DirectEvent,
) -> Result<bool, HvStatus> {
    with(partition, processor, target, |synic, _, memory| {
        synic.signal(direct.sint, direct.flag, memory)
    })
}

/// VTL2 wants to hear when these sources of VTL0 can take a message.
pub fn await_ready(partition: &Partition, vp: &Vp, sints: u16) {
    partition.slots[vp.index as usize]
        .synic
        .lock()
        .await_ready(sints);
}

/// Which sources those are.
pub fn awaited(partition: &Partition, vp: &Vp) -> u16 {
    partition.slots[vp.index as usize].synic.lock().awaited()
}

/// Which of them can now, once.
pub fn take_ready(partition: &Partition, vp: &Vp, processor: &impl Processor) -> u16 {
    let memory = partition.memory(Vtl::GUEST, processor);
    let mut synic = partition.slots[vp.index as usize].synic.lock();
    if synic.awaited() != 0 {
        synic.take_ready(&memory)
    } else {
        0
    }
}

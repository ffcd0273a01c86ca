//! Interrupts of VTL2 to a set of VPs: physical ones for VTL2 itself, virtual ones for the
//! guest. Nothing is sent unless all of the input is right.

use super::calls::{Caller, check_zero, parse};
use crate::partition::Processor;
use crate::partition::guest::lapic;
use crate::vtl::Vtl;
use hv_defs::hypercall::{
    HV_VP_SET_ALL, HV_VP_SET_SPARSE, HvInputVtl, HvStatus, SendClusterIpi, SendClusterIpiEx,
};
use vapic::Apics;

/// Vectors below are exceptions.
const FIRST_VECTOR: u8 = 16;
/// VPs of a bank.
const BANK_SIZE: u32 = u64::BITS;

/// HvCallSendSyntheticClusterIpi.
pub(super) fn send<P: Processor>(caller: &Caller<'_, P>, input: &[u8]) -> Result<(), HvStatus> {
    let input = parse::<SendClusterIpi>(input)?;
    check_zero(&input.rsvd)?;
    let banks = [(0, input.processors)];
    to_set(caller, input.vector, input.target_vtl, banks.into_iter())
}

/// HvCallSendSyntheticClusterIpiEx; the banks are behind the header.
pub(super) fn send_ex<P: Processor>(caller: &Caller<'_, P>, input: &[u8]) -> Result<(), HvStatus> {
    let (header, list) = input
        .split_at_checked(size_of::<SendClusterIpiEx>())
        .ok_or(HvStatus::INVALID_HYPERCALL_INPUT)?;
    let header = parse::<SendClusterIpiEx>(header)?;
    check_zero(&header.rsvd)?;
    let (vector, vtl) = (header.vector, header.target_vtl);
    match header.format {
        HV_VP_SET_ALL => {
            let count = caller.partition.vp_count();
            let banks = (0..count.div_ceil(BANK_SIZE)).map(|bank| {
                let vps = (count - bank * BANK_SIZE).min(BANK_SIZE);
                (bank, u64::MAX >> (BANK_SIZE - vps))
            });
            to_set(caller, vector, vtl, banks)
        }
        HV_VP_SET_SPARSE => {
            let valid = header.valid_banks;
            let words = list.chunks_exact(size_of::<u64>());
            if words.len() != valid.count_ones() as usize {
                return Err(HvStatus::INVALID_HYPERCALL_INPUT);
            }
            let numbers = (0..u64::BITS).filter(|bank| valid & 1 << bank != 0);
            let banks = numbers.zip(words.map(|word| parse(word).unwrap_or(0)));
            to_set(caller, vector, vtl, banks)
        }
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

/// Sends to the VPs of these banks: number and members.
fn to_set<P: Processor>(
    caller: &Caller<'_, P>,
    vector: u32,
    vtl: HvInputVtl,
    banks: impl Iterator<Item = (u32, u64)> + Clone,
) -> Result<(), HvStatus> {
    let vector = u8::try_from(vector)
        .ok()
        .filter(|vector| *vector >= FIRST_VECTOR)
        .ok_or(HvStatus::INVALID_PARAMETER)?;
    let vtl = caller.target_vtl(vtl)?;
    let partition = caller.partition;
    let vps = banks.flat_map(|(bank, members)| {
        (0..BANK_SIZE)
            .filter(move |member| members & 1 << member != 0)
            .map(move |member| bank * BANK_SIZE + member)
    });
    if vps.clone().any(|vp| vp >= partition.vp_count()) {
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    let guest = lapic::apics(partition, caller.processor);
    for vp in vps {
        if vtl == Vtl::PARAVISOR {
            partition.interrupt_paravisor(caller.processor, vp, vector);
        } else if guest.shared(vp).address().accepts() && guest.shared(vp).post(vector, false) {
            guest.kick(vp);
        }
    }
    Ok(())
}

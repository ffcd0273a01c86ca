//! `TRANSLATE_VIRTUAL_ADDRESS`: VTL2 has the host walk the guest's page tables.

use super::calls::{Caller, check_partition};
use super::registers::check_self;
use crate::partition::Processor;
use crate::svm::paging::{self, Fault, Privilege, Request};
use hv_defs::HV_PAGE_SIZE;
use hv_defs::hypercall::{
    HvInputVtl, HvStatus, TranslateFlags, TranslateResult, TranslateVirtualAddress,
    TranslateVirtualAddressOutput,
};
use x86_defs::svm::Save;

/// Memory type of all RAM, as in PAT: write-back.
const WRITE_BACK: u8 = 6;

/// Highest privilege level: what the processor calls user mode.
const USER_MODE: u8 = 3;

/// Translates an address. A translation to where no memory is succeeds: devices are there.
pub(super) fn translate<P: Processor>(
    caller: &Caller<'_, P>,
    input: &TranslateVirtualAddress,
) -> Result<TranslateVirtualAddressOutput, HvStatus> {
    check_partition(input.partition_id)?;
    let flags = input.flags;
    let modes = [
        flags.privilege_exempt(),
        flags.supervisor_access(),
        flags.user_access(),
    ];
    if input.rsvd != 0
        || !flags.reserved_bits_are_zero()
        || modes.iter().filter(|mode| **mode).count() > 1
        || flags.enforce_smap() && flags.override_smap()
        || input.gva_page > u64::MAX / HV_PAGE_SIZE
    {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let vtl = caller.target_vtl(HvInputVtl::from_bits(flags.input_vtl()))?;
    let vp = caller.target_vp(input.vp_index)?;
    check_self(caller, vp)?;

    let save = &caller.vp.vtls[vtl.index()].vmcb.save;
    let request = request(flags, save);
    let memory = caller.partition.memory(vtl, caller.processor);
    let linear = input.gva_page * HV_PAGE_SIZE;
    let (result, gpa) = match paging::translate(&memory, save, linear, &request) {
        Ok(gpa) => {
            let held_back = memory.check(gpa, 1).is_ok().then(|| {
                let byte = &mut [0];
                if (request.read || request.execute) && memory.read(gpa, byte).is_err() {
                    TranslateResult::GPA_NO_READ_ACCESS
                } else if request.write && memory.check_writable(gpa, 1).is_err() {
                    TranslateResult::GPA_NO_WRITE_ACCESS
                } else {
                    TranslateResult::SUCCESS
                }
            });
            (held_back.unwrap_or(TranslateResult::SUCCESS), gpa)
        }
        Err(fault) => (result_of(fault), 0),
    };
    let translated = result == TranslateResult::SUCCESS;
    Ok(TranslateVirtualAddressOutput {
        result,
        cache_type: if translated { WRITE_BACK } else { 0 },
        overlay_page: 0,
        rsvd: [0; 2],
        gpa_page: if translated { gpa / HV_PAGE_SIZE } else { 0 },
    })
}

fn request(flags: TranslateFlags, save: &Save) -> Request {
    let user = flags.user_access() || save.cpl == USER_MODE && !flags.supervisor_access();
    let smap = match (flags.enforce_smap(), flags.override_smap()) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let privilege = if flags.privilege_exempt() {
        Privilege::Exempt
    } else if user {
        Privilege::User
    } else {
        Privilege::Supervisor {
            smap: paging::smap(save, smap),
        }
    };
    Request {
        read: flags.validate_read(),
        write: flags.validate_write(),
        execute: flags.validate_execute(),
        privilege,
        set_bits: flags.set_page_table_bits(),
    }
}

fn result_of(fault: Fault) -> TranslateResult {
    match fault {
        Fault::NotPresent => TranslateResult::PAGE_NOT_PRESENT,
        Fault::Privilege => TranslateResult::PRIVILEGE_VIOLATION,
        Fault::Reserved => TranslateResult::INVALID_PAGE_TABLE_FLAGS,
        Fault::Unmapped => TranslateResult::GPA_UNMAPPED,
        Fault::NoRead => TranslateResult::GPA_NO_READ_ACCESS,
        Fault::NoWrite => TranslateResult::GPA_NO_WRITE_ACCESS,
    }
}

//! What VTL2 may take from VTL0, and that it cannot give it anything.

use super::hypercalls::{SetRegister, expect};
use crate::abi::PAGE_SIZE;
use crate::ensure;
use crate::machine::console::Console;
use crate::machine::hypercall::{OWN_REGISTERS, Outcome, call, repeated};
use crate::machine::probe::Fault;
use crate::report::{CheckResult, Failure, Reporter};
use core::ops::Range;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::hypercall::{
    HvInputVtl, HvMapGpaFlags, HvStatus, HypercallCode, ModifyVtlProtectionMask,
};
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName};
use hv_defs::vsm::VsmPartitionConfig;
use vsm_host_defs::HOST_MEMORY_BASE;
use zerocopy::{Immutable, IntoBytes};

/// Pages of one call, which fill its input page.
const PAGES: usize = 510;
/// Pages of 2 MiB.
const LARGE: u64 = 512;
/// RAM that is VTL0's unless the image lies there; 2 MiB aligned.
const CANDIDATES: [u64; 2] = [32 << 20, 80 << 20];
/// Reading only.
const READ: HvMapGpaFlags = HvMapGpaFlags::new().with_readable(true);
const NOTHING: HvMapGpaFlags = HvMapGpaFlags::new();

/// Input of the call.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Input {
    header: ModifyVtlProtectionMask,
    pages: [u64; PAGES],
}

pub(super) fn run(r: &mut Reporter<Console>, image: &Range<u64>) {
    let free = |start: &u64| image.end <= *start || *start + (4 << 20) <= image.start;
    let lower = CANDIDATES.into_iter().find(free).unwrap_or_default() / PAGE_SIZE;
    let own = image.start / PAGE_SIZE;
    r.check("protections.have_to_be_enabled", || {
        let outcome = protect(READ, &[lower]);
        expect(outcome, HvStatus::INVALID_PARTITION_STATE)?;
        let config = VsmPartitionConfig::new().with_enable_vtl_protection(true);
        expect(configure(config), HvStatus::INVALID_REGISTER_VALUE)?;
        let all = config.with_default_vtl_protection_mask(0xf);
        done(configure(all), 1)?;
        expect(configure(config), HvStatus::INVALID_REGISTER_VALUE)
    });
    r.check("protections.of_the_guests_memory_are_set", || {
        for flags in [NOTHING, READ, HvMapGpaFlags::ALL] {
            done(protect(flags, &[lower, lower + LARGE + 7]), 2)?;
        }
        Ok(())
    });
    r.check("protections.of_whole_2_mib_need_no_room", || {
        let mut pages = [0; PAGES];
        for flags in [READ, HvMapGpaFlags::ALL] {
            for first in [lower, lower + PAGES as u64] {
                for (page, number) in pages.iter_mut().zip(first..) {
                    *page = number;
                }
                done(protect(flags, &pages), PAGES as u16)?;
            }
        }
        Ok(())
    });
    r.check("protections.give_the_guest_nothing", || {
        done(protect(NOTHING, &[own, lower]), 2)?;
        done(protect(HvMapGpaFlags::ALL, &[lower]), 1)?;
        for flags in [READ, HvMapGpaFlags::ALL] {
            let outcome = protect(flags, &[own]);
            expect(outcome, HvStatus::ACCESS_DENIED)?;
        }
        let nowhere = [HOST_MEMORY_BASE / PAGE_SIZE, 0xfee00, 1 << 40, u64::MAX];
        for page in nowhere {
            for flags in [NOTHING, HvMapGpaFlags::ALL] {
                expect(protect(flags, &[page]), HvStatus::INVALID_PARAMETER)
                    .map_err(|e| Failure::new(format_args!("{page:#x}: {}", e.0)))?;
            }
        }
        Ok(())
    });
    r.check("protections.that_no_processor_has_are_refused", || {
        for bits in [2, 4, 8, 5, 9, 0xe, 0x10, 1 << 31] {
            let outcome = protect(HvMapGpaFlags::from_bits(bits), &[lower]);
            expect(outcome, HvStatus::INVALID_PARAMETER)
                .map_err(|e| Failure::new(format_args!("{bits:#x}: {}", e.0)))?;
        }
        Ok(())
    });
}

/// Restricts what VTL0 may do with pages.
fn protect(map_flags: HvMapGpaFlags, pages: &[u64]) -> Result<Outcome, Fault> {
    let mut input = Input {
        header: ModifyVtlProtectionMask {
            partition_id: HV_PARTITION_ID_SELF,
            map_flags,
            target_vtl: HvInputVtl::new().with_use_target_vtl(true),
            rsvd: [0; 3],
        },
        pages: [0; PAGES],
    };
    input.pages[..pages.len()].copy_from_slice(pages);
    let code = HypercallCode::MODIFY_VTL_PROTECTION_MASK;
    call(repeated(code, pages.len() as u16), &input)
}

fn configure(config: VsmPartitionConfig) -> Result<Outcome, Fault> {
    let input = SetRegister {
        header: OWN_REGISTERS,
        assoc: HvRegisterAssoc {
            name: HvRegisterName::VSM_PARTITION_CONFIG.0,
            pad: [0; 3],
            value: [config.into_bits(), 0],
        },
    };
    call(repeated(HypercallCode::SET_VP_REGISTERS, 1), &input)
}

fn done(outcome: Result<Outcome, Fault>, reps: u16) -> CheckResult {
    let outcome = outcome?;
    ensure!(
        outcome.status == HvStatus::SUCCESS && outcome.reps == reps,
        "{outcome:?}, expected {reps} done"
    );
    Ok(())
}

//! Hypercalls, right and wrong.

use super::{Context, enable_hypercall_page};
use crate::ensure;
use crate::machine::hypercall::{
    GetThreeRegisters, OWN_REGISTERS, Outcome, call, get_registers, raw, repeated, simple,
};
use crate::machine::memory::ScratchPage;
use crate::machine::probe::Fault;
use crate::report::{CheckResult, Failure};
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::hypercall::{
    GetVpIndexFromApicId, HvInputVtl, HvStatus, HypercallCode, HypercallControl,
};
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName};
use hv_defs::vsm::{VsmCapabilities, VsmCodePageOffsets, VsmVpStatus};
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};
use zerocopy::{Immutable, IntoBytes};

/// Codes that this host does not offer: unused ones, and calls of other partitions.
const UNKNOWN_CODES: [u16; 12] = [
    0x0000, 0x0001, 0x0013, 0x0040, 0x0042, 0x004b, 0x0070, 0x00db, 0x7777, 0x8001, 0xfffe, 0xffff,
];
/// Three registers that every VTL can read.
const NAMES: [HvRegisterName; 3] = [
    HvRegisterName::VSM_VP_STATUS,
    HvRegisterName::VSM_CODE_PAGE_OFFSETS,
    HvRegisterName::VSM_CAPABILITIES,
];
/// A register that does not exist.
const NO_REGISTER: HvRegisterName = HvRegisterName(0x7777_7777);
/// What the output page holds before a call.
const UNTOUCHED: u64 = 0xdead_beef_dead_beef;
/// An APIC id that no VP has: that of the parked processor.
const PARKED_APIC_ID: u32 = 0;

/// Input of `GET_VP_INDEX_FROM_APIC_ID` with room for ids.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct ApicIds {
    header: GetVpIndexFromApicId,
    ids: [u32; 64],
}

/// Input of `SET_VP_REGISTERS` with one register.
#[repr(C)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
pub(super) struct SetRegister {
    pub header: hv_defs::hypercall::GetSetVpRegisters,
    pub assoc: HvRegisterAssoc,
}

pub(super) fn run(c: &mut Context<'_>) {
    let ids = c.parameters.apic_ids().unwrap_or_default();
    let r = &mut c.reporter;
    r.check("hypercalls.page_can_be_enabled", enable_hypercall_page);
    r.check("hypercalls.unknown_codes_are_refused", || {
        for code in UNKNOWN_CODES {
            let control = HypercallControl::new().with_code(code);
            expect(call(control, &[0u64; 8]), HvStatus::INVALID_HYPERCALL_CODE)
                .map_err(|e| Failure::new(format_args!("{code:#x}: {}", e.0)))?;
        }
        Ok(())
    });
    r.check("hypercalls.registers_can_be_read", read_registers);
    r.check("hypercalls.rep_start_is_respected", || {
        ScratchPage::OUTPUT.fill(UNTOUCHED);
        let control = repeated(HypercallCode::GET_VP_REGISTERS, 3).with_rep_start(2);
        let outcome = call(control, &names(NAMES))?;
        ensure!(
            outcome.status == HvStatus::SUCCESS && outcome.reps == 3,
            "{outcome:?}"
        );
        ensure!(
            ScratchPage::OUTPUT.read(0) == UNTOUCHED && ScratchPage::OUTPUT.read(4) != UNTOUCHED,
            "wrong elements were written"
        );
        Ok(())
    });
    r.check("hypercalls.failed_rep_is_counted", || {
        let outcome = call(
            repeated(HypercallCode::GET_VP_REGISTERS, 3),
            &names([NAMES[0], NO_REGISTER, NAMES[2]]),
        )?;
        ensure!(
            outcome.status == HvStatus::INVALID_PARAMETER && outcome.reps == 1,
            "{outcome:?}, expected INVALID_PARAMETER after 1"
        );
        Ok(())
    });
    malformed_control_words(r);
    r.check("hypercalls.header_is_checked", || {
        let control = repeated(HypercallCode::GET_VP_REGISTERS, 1);
        let mut input = names(NAMES);
        input.header.partition_id = 1;
        let outcome = call(control, &input)?;
        ensure!(
            outcome.status == HvStatus::INVALID_PARTITION_ID
                || outcome.status == HvStatus::ACCESS_DENIED,
            "other partition: {outcome:?}"
        );
        let mut input = names(NAMES);
        input.header.vp_index = 0x1000;
        expect(call(control, &input), HvStatus::INVALID_VP_INDEX)?;
        for vtl in [3, 15] {
            let mut input = names(NAMES);
            input.header.target_vtl = HvInputVtl::new()
                .with_target_vtl(vtl)
                .with_use_target_vtl(true);
            refused(call(control, &input))?;
        }
        Ok(())
    });
    addresses(r);
    r.check("hypercalls.apic_ids_are_translated", || {
        let mut input = apic_ids(&[]);
        input.ids[..ids.len()].copy_from_slice(&ids);
        ScratchPage::OUTPUT.fill(UNTOUCHED);
        let code = HypercallCode::GET_VP_INDEX_FROM_APIC_ID;
        let outcome = call(repeated(code, ids.len() as u16), &input)?;
        ensure!(
            outcome.status == HvStatus::SUCCESS && usize::from(outcome.reps) == ids.len(),
            "{outcome:?} for {} ids",
            ids.len()
        );
        for (index, id) in ids.iter().enumerate() {
            let word = ScratchPage::OUTPUT.read(index / 2);
            let found = (word >> (32 * (index % 2))) as u32;
            ensure!(
                found as usize == index,
                "APIC id {id} is VP {found}, expected {index}"
            );
        }
        Ok(())
    });
    r.check("hypercalls.apic_id_without_vp_is_refused", || {
        let code = HypercallCode::GET_VP_INDEX_FROM_APIC_ID;
        for id in [PARKED_APIC_ID, 0xff, u32::MAX] {
            if !ids.contains(&id) {
                refused(call(repeated(code, 1), &apic_ids(&[id])))?;
            }
        }
        let first = ids.first().copied().unwrap_or_default();
        let outcome = call(repeated(code, 2), &apic_ids(&[first, u32::MAX]))?;
        ensure!(
            outcome.status != HvStatus::SUCCESS && outcome.reps == 1,
            "{outcome:?}, expected a failure after 1"
        );
        Ok(())
    });
    r.check("hypercalls.unknown_register_cannot_be_written", || {
        let input = SetRegister {
            header: OWN_REGISTERS,
            assoc: HvRegisterAssoc {
                name: NO_REGISTER.0,
                pad: [0; 3],
                value: [0; 2],
            },
        };
        refused(call(repeated(HypercallCode::SET_VP_REGISTERS, 1), &input))
    });
    r.check("hypercalls.read_only_register_cannot_be_written", || {
        for name in [
            HvRegisterName::VP_INDEX,
            HvRegisterName::VSM_CAPABILITIES,
            HvRegisterName::VSM_VP_STATUS,
        ] {
            let input = SetRegister {
                header: OWN_REGISTERS,
                assoc: HvRegisterAssoc {
                    name: name.0,
                    pad: [0; 3],
                    value: [u64::MAX; 2],
                },
            };
            refused(call(repeated(HypercallCode::SET_VP_REGISTERS, 1), &input))?;
        }
        Ok(())
    });
    r.check("hypercalls.register_page_is_confined", || {
        for address in [HOST_MEMORY_BASE, 0x7f_ffff_f000, !0xfff] {
            let input = SetRegister {
                header: OWN_REGISTERS,
                assoc: HvRegisterAssoc {
                    name: HvRegisterName::REG_PAGE.0,
                    pad: [0; 3],
                    value: [address | 1, 0],
                },
            };
            refused(call(repeated(HypercallCode::SET_VP_REGISTERS, 1), &input))
                .map_err(|e| Failure::new(format_args!("{address:#x}: {}", e.0)))?;
        }
        Ok(())
    });
    r.check("hypercalls.sleep_state_is_checked", || {
        let code = HypercallCode::ENTER_SLEEP_STATE;
        for state in [0u32, 6, 0xffff_ffff] {
            refused(call(simple(code), &[state, 0]))?;
            refused(raw(simple(code).with_fast(true).into(), state.into(), 0))?;
        }
        Ok(())
    });
    super::protections::run(r, c.parameters.image);
    super::lower_registers::run(r);
    r.check("hypercalls.vtl_switch_without_vtl0_is_refused", || {
        // Either a status or #UD (the TLFS' answer to a VTL call that is not possible).
        for code in [HypercallCode::VTL_CALL, HypercallCode::VTL_RETURN] {
            if let Ok(outcome) = raw(simple(code).into(), 0, 0) {
                ensure!(
                    outcome.status != HvStatus::SUCCESS,
                    "{code:?} gave {outcome:?}"
                );
            }
        }
        Ok(())
    });
}

fn malformed_control_words(r: &mut crate::report::Reporter<crate::machine::console::Console>) {
    let get = || repeated(HypercallCode::GET_VP_REGISTERS, 1);
    let cases = [
        ("reserved_bits_low", get().into_bits() | 1 << 26),
        ("reserved_bits_middle", get().into_bits() | 1 << 44),
        ("reserved_bits_high", get().into_bits() | 1 << 63),
        ("nested", get().with_nested(true).into_bits()),
        (
            "variable_header",
            get().with_variable_header_size(1).into_bits(),
        ),
        ("zero_reps_of_rep_call", get().with_rep_count(0).into_bits()),
        ("start_behind_count", get().with_rep_start(1).into_bits()),
        (
            "reps_of_simple_call",
            repeated(HypercallCode::ENABLE_VP_VTL, 1).into_bits(),
        ),
    ];
    r.check("hypercalls.malformed_control_words_are_refused", || {
        ScratchPage::INPUT.write_bytes(names(NAMES).as_bytes());
        for (what, control) in cases {
            let outcome = raw(
                control,
                ScratchPage::INPUT.address(),
                ScratchPage::OUTPUT.address(),
            );
            expect(outcome, HvStatus::INVALID_HYPERCALL_INPUT)
                .map_err(|e| Failure::new(format_args!("{what}: {}", e.0)))?;
        }
        Ok(())
    });
}

/// Addresses of input and output that must be refused.
fn addresses(r: &mut crate::report::Reporter<crate::machine::console::Console>) {
    let control = repeated(HypercallCode::GET_VP_REGISTERS, 3).into_bits();
    let (input, output) = (ScratchPage::INPUT.address(), ScratchPage::OUTPUT.address());
    r.check("hypercalls.misaligned_blocks_are_refused", || {
        ScratchPage::INPUT.write_bytes(names(NAMES).as_bytes());
        for (input, output) in [
            (input + 4, output),
            (input, output + 1),
            (input + 1, output),
        ] {
            expect(raw(control, input, output), HvStatus::INVALID_ALIGNMENT)?;
        }
        Ok(())
    });
    r.check("hypercalls.blocks_across_pages_are_refused", || {
        for (input, output) in [(input + 0xff0, output), (input, output + 0xff8)] {
            expect(raw(control, input, output), HvStatus::INVALID_ALIGNMENT)?;
        }
        // So many repetitions that the list leaves the page.
        let many = repeated(HypercallCode::GET_VP_REGISTERS, 0xfff).into_bits();
        expect(raw(many, input, output), HvStatus::INVALID_ALIGNMENT)
    });
    let forbidden = [
        ("first host page", HOST_MEMORY_BASE),
        ("host page", HOST_MEMORY_BASE + 0x20_0000),
        (
            "last host page",
            HOST_MEMORY_BASE + HOST_MEMORY_SIZE - 0x1000,
        ),
        ("HPET", 0xfed0_0000),
        ("unmapped", 0x7f_ffff_f000),
        ("beyond 48 bits", 1 << 52),
        ("highest page", !0xfff),
        ("highest word", !7),
    ];
    r.check("hypercalls.forbidden_output_is_refused", || {
        ScratchPage::INPUT.write_bytes(names(NAMES).as_bytes());
        for (what, gpa) in forbidden {
            refused(raw(control, input, gpa))
                .map_err(|e| Failure::new(format_args!("{what}: {}", e.0)))?;
        }
        Ok(())
    });
    r.check("hypercalls.forbidden_input_is_refused", || {
        for (what, gpa) in forbidden {
            refused(raw(control, gpa, output))
                .map_err(|e| Failure::new(format_args!("{what}: {}", e.0)))?;
        }
        Ok(())
    });
}

fn names(names: [HvRegisterName; 3]) -> GetThreeRegisters {
    GetThreeRegisters {
        header: OWN_REGISTERS,
        names: names.map(|name| name.0),
        padding: 0,
    }
}

fn apic_ids(ids: &[u32]) -> ApicIds {
    let mut input = ApicIds {
        header: GetVpIndexFromApicId {
            partition_id: HV_PARTITION_ID_SELF,
            target_vtl: HvInputVtl::new(),
            rsvd: [0; 7],
        },
        ids: [0; 64],
    };
    input.ids[..ids.len()].copy_from_slice(ids);
    input
}

fn read_registers() -> CheckResult {
    ScratchPage::OUTPUT.fill(UNTOUCHED);
    let outcome = get_registers(NAMES, 3)?;
    ensure!(
        outcome.status == HvStatus::SUCCESS && outcome.reps == 3,
        "{outcome:?}"
    );
    let status = VsmVpStatus::from_bits(ScratchPage::OUTPUT.read(0));
    ensure!(status.active_vtl() == 2, "{status:?}");
    let offsets = VsmCodePageOffsets::from_bits(ScratchPage::OUTPUT.read(2));
    ensure!(
        offsets.call() != offsets.ret() && offsets.call() != 0 && offsets.ret() != 0,
        "{offsets:?}"
    );
    let capabilities = VsmCapabilities::from_bits(ScratchPage::OUTPUT.read(4));
    ensure!(capabilities.intercept_page_available(), "{capabilities:?}");
    ensure!(
        ScratchPage::OUTPUT.read(6) == UNTOUCHED,
        "written behind the third register"
    );
    Ok(())
}

pub(super) fn expect(outcome: Result<Outcome, Fault>, status: HvStatus) -> CheckResult {
    let outcome = outcome?;
    ensure!(
        outcome.status == status && outcome.reps == 0,
        "{outcome:?}, expected {status:?}"
    );
    Ok(())
}

fn refused(outcome: Result<Outcome, Fault>) -> CheckResult {
    let outcome = outcome?;
    ensure!(
        outcome.status != HvStatus::SUCCESS && outcome.reps == 0,
        "{outcome:?}, expected an error"
    );
    Ok(())
}

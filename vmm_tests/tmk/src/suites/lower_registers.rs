//! Registers of VTL0, which VTL2 sets.

use super::hypercalls::{SetRegister, expect};
use crate::ensure;
use crate::machine::console::Console;
use crate::machine::hypercall::{GetThreeRegisters, OWN_REGISTERS, Outcome, call, repeated};
use crate::machine::memory::ScratchPage;
use crate::machine::probe::Fault;
use crate::report::{CheckResult, Failure, Reporter};
use hv_defs::hypercall::{GetSetVpRegisters, HvInputVtl, HvStatus, HypercallCode};
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName as Name};

/// Values that a processor runs with.
const GOOD: [(Name, [u64; 2]); 10] = [
    (Name::RIP, [0xffff_8000_0000_1234, 0]),
    (Name::RSP, [0x7000, 0]),
    (Name::RFLAGS, [0x246, 0]),
    (Name::CR0, [0x8005_0033, 0]),
    (Name::CR4, [0x6f0, 0]),
    (Name::EFER, [0xd01, 0]),
    (Name::DR7, [0x400, 0]),
    (Name::CS, [0, 0xa09b_0010_ffff_ffff]),
    (Name::GS, [0xffff_8880_0000_0000, 0xc093_0000_ffff_ffff]),
    (Name::GDTR, [0x007f_0000_0000_0000, 0xffff_fe00_0000_1000]),
];
/// Values that must not reach one.
const BAD: [(Name, [u64; 2]); 14] = [
    (Name::EFER, [1 << 12, 0]),
    (Name::EFER, [1 << 63, 0]),
    (Name::CR0, [1 << 31, 0]),
    (Name::CR0, [1 << 29, 0]),
    (Name::CR3, [1 << 52, 0]),
    (Name::CR4, [1 << 40, 0]),
    (Name::DR7, [1 << 32, 0]),
    (Name::RIP, [1 << 60, 0]),
    (Name::RIP, [0, 1]),
    (Name::RFLAGS, [1 << 17, 0]),
    (Name::PAT, [2, 0]),
    (Name::CS, [0, 0x0f9b_0010_ffff_ffff]),
    (Name::CS, [0, 0xe09b_0010_ffff_ffff]),
    (Name::GDTR, [1, 0]),
];
/// Header for VTL0 of this VP.
const LOWER: GetSetVpRegisters = GetSetVpRegisters {
    target_vtl: HvInputVtl::new().with_use_target_vtl(true),
    ..OWN_REGISTERS
};

pub(super) fn run(r: &mut Reporter<Console>) {
    r.check("lower_registers.begin_as_after_a_reset", || {
        for (name, expected) in [
            (Name::RIP, [0xfff0, 0]),
            (Name::EFER, [0, 0]),
            (Name::CS, [0xffff_0000, 0x009b_f000_0000_ffff]),
        ] {
            holds(name, expected)?;
        }
        Ok(())
    });
    r.check("lower_registers.keep_what_is_written", || {
        for (name, value) in GOOD {
            let outcome = set(LOWER, name, value)?;
            ensure!(
                outcome.status == HvStatus::SUCCESS && outcome.reps == 1,
                "{name:?}: {outcome:?}"
            );
        }
        for (name, value) in GOOD {
            holds(name, value)?;
        }
        Ok(())
    });
    r.check("lower_registers.take_no_bad_value", || {
        for (name, value) in BAD {
            expect(set(LOWER, name, value), HvStatus::INVALID_REGISTER_VALUE)
                .map_err(|e| Failure::new(format_args!("{name:?} {value:x?}: {}", e.0)))?;
        }
        for (name, value) in GOOD {
            holds(name, value)?;
        }
        Ok(())
    });
    r.check("lower_registers.of_other_vps_are_out_of_reach", || {
        let other = GetSetVpRegisters {
            vp_index: 1,
            ..LOWER
        };
        let outcome = set(other, Name::RIP, [0; 2])?;
        ensure!(
            matches!(
                outcome.status,
                HvStatus::INVALID_VP_STATE | HvStatus::INVALID_VP_INDEX
            ),
            "{outcome:?}"
        );
        Ok(())
    });
}

fn set(header: GetSetVpRegisters, name: Name, value: [u64; 2]) -> Result<Outcome, Fault> {
    let assoc = HvRegisterAssoc {
        name: name.0,
        pad: [0; 3],
        value,
    };
    let input = SetRegister { header, assoc };
    call(repeated(HypercallCode::SET_VP_REGISTERS, 1), &input)
}

/// Whether a register of VTL0 holds a value.
fn holds(name: Name, expected: [u64; 2]) -> CheckResult {
    let input = GetThreeRegisters {
        header: LOWER,
        names: [name.0, 0, 0],
        padding: 0,
    };
    let outcome = call(repeated(HypercallCode::GET_VP_REGISTERS, 1), &input)?;
    let found = [ScratchPage::OUTPUT.read(0), ScratchPage::OUTPUT.read(1)];
    ensure!(
        outcome.status == HvStatus::SUCCESS && found == expected,
        "{name:?}: {outcome:?}, {found:x?}, expected {expected:x?}"
    );
    Ok(())
}

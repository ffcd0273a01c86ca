//! Hypercalls of the guest: the page, errors, and everything that would touch VTL2.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::hyperv::{GUEST_OS_ID, by_page, enable_hypercalls, raw};
use crate::machine::memory::Page;
use crate::machine::probe::{Fault, GP, Registers, UD, rdmsr, vmcall, wrmsr};
use crate::report::TestResult;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::hypercall::{HvInputVtl, HvStatus, HypercallCode as Code, HypercallControl};
use hv_defs::msr::{HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL};
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::SignalEvent;
use zerocopy::IntoBytes;

pub(super) const TESTS: &[Test] = &[
    test(
        "hypercalls.page_needs_an_identity",
        Needs::Host,
        page_needs_an_identity,
    ),
    test("hypercalls.page_works", Needs::Host, page_works),
    test(
        "hypercalls.malformed_calls_have_a_status",
        Needs::Host,
        malformed_calls,
    ),
    test(
        "hypercalls.vtl2s_registers_are_denied",
        Needs::Host,
        vtl2s_registers_are_denied,
    ),
    test(
        "hypercalls.vtl2s_protections_are_denied",
        Needs::Host,
        vtl2s_protections_are_denied,
    ),
    test(
        "hypercalls.vtl2s_vps_are_denied",
        Needs::Host,
        vtl2s_vps_are_denied,
    ),
    test(
        "hypercalls.vtl2s_interrupts_are_denied",
        Needs::Host,
        vtl2s_interrupts_are_denied,
    ),
    test(
        "hypercalls.vtl_switches_are_denied",
        Needs::Host,
        vtl_switches_are_denied,
    ),
    test("hypercalls.power_is_denied", Needs::Host, power_is_denied),
    test(
        "hypercalls.connections_do_not_exist",
        Needs::Host,
        connections_do_not_exist,
    ),
    test(
        "hypercalls.wild_calls_are_harmless",
        Needs::Host,
        wild_calls_are_harmless,
    ),
];

/// A code that no hypervisor has.
const NO_CODE: u16 = 0x0fff;
/// This VP, as an index.
const VP_SELF: u32 = 0xffff_fffe;
/// `HvCallEnablePartitionVtl`, which only this test needs.
const ENABLE_PARTITION_VTL: Code = Code(0x000d);
/// VTL2 as a target: number and "use it".
const VTL2: HvInputVtl = HvInputVtl::new()
    .with_target_vtl(2)
    .with_use_target_vtl(true);

/// Makes a call with these words as input.
fn words(code: Code, reps: u16, input: &[u64]) -> Result<HvStatus, Fault> {
    for (index, word) in input.iter().enumerate() {
        Page::INPUT.write(index, *word);
    }
    let control = HypercallControl::new()
        .with_code(code.0)
        .with_rep_count(reps);
    raw(
        control.into_bits(),
        Page::INPUT.address(),
        Page::OUTPUT.address(),
    )
}

/// VP and VTL in the second word of many inputs.
fn target(vp: u32, vtl: HvInputVtl) -> u64 {
    u64::from(vp) | (u64::from(vtl.into_bits()) << 32)
}

/// The call fails, and has written nothing to its output page.
fn denied(what: &str, code: Code, reps: u16, input: &[u64]) -> TestResult {
    const UNTOUCHED: u64 = 0x5a5a_5a5a_5a5a_5a5a;
    Page::OUTPUT.fill(UNTOUCHED);
    let status = words(code, reps, input)?;
    ensure!(status != HvStatus::SUCCESS, "{what} succeeds");
    for index in 0..4 {
        let found = Page::OUTPUT.read(index);
        ensure!(found == UNTOUCHED, "{what} gives {status:?} and {found:#x}");
    }
    Ok(())
}

fn page_needs_an_identity(_: &Machine<'_>) -> TestResult {
    wrmsr(HV_X64_MSR_HYPERCALL, 0)?;
    wrmsr(HV_X64_MSR_GUEST_OS_ID, 0)?;
    let wanted = crate::machine::hyperv::overlay(Page::HYPERCALL);
    let result = wrmsr(HV_X64_MSR_HYPERCALL, wanted);
    let found = rdmsr(HV_X64_MSR_HYPERCALL)?;
    ensure!(
        found & 1 == 0 || result.is_err(),
        "the page is enabled without an identity: {found:#x}"
    );
    enable_hypercalls()?;
    let found = rdmsr(HV_X64_MSR_GUEST_OS_ID)?;
    ensure!(found == GUEST_OS_ID, "identity is {found:#x}");
    Ok(())
}

fn page_works(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    let status = by_page(NO_CODE.into(), 0, 0)?;
    ensure!(
        status == HvStatus::INVALID_HYPERCALL_CODE,
        "page: {status:?}"
    );
    let status = raw(NO_CODE.into(), 0, 0)?;
    ensure!(
        status == HvStatus::INVALID_HYPERCALL_CODE,
        "instruction: {status:?}"
    );
    // The instruction of the other vendor is no way around.
    let result = vmcall(Registers {
        rcx: NO_CODE.into(),
        ..Default::default()
    });
    ensure!(
        result.is_ok() || result.is_err_and(|fault| matches!(fault.vector, UD | GP)),
        "VMCALL gives {result:x?}"
    );
    Ok(())
}

fn malformed_calls(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    let signal = HypercallControl::new()
        .with_code(Code::SIGNAL_EVENT.0)
        .into_bits();
    let post = HypercallControl::new()
        .with_code(Code::POST_MESSAGE.0)
        .into_bits();
    let input = Page::INPUT.address();
    for (what, control, address) in [
        ("reserved bits", signal | (1 << 27), input),
        ("reserved bits", signal | (1 << 60), input),
        ("repetitions of a simple call", signal | (1 << 32), input),
        ("a start of no repetitions", signal | (1 << 48), input),
        ("a misaligned input", signal, input + 4),
        ("an input across pages", post, input + 4096 - 8),
        ("an input that nobody has", signal, 0xffff_ffff_f000),
        ("an input beyond all addresses", signal, u64::MAX - 7),
    ] {
        let status = raw(control, address, 0)?;
        ensure!(status != HvStatus::SUCCESS, "{what}: {status:?}");
    }
    Ok(())
}

fn vtl2s_registers_are_denied(machine: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for vp in [
        VP_SELF,
        0,
        1,
        machine.tables.processors.len() as u32,
        u32::MAX,
    ] {
        let head = [HV_PARTITION_ID_SELF, target(vp, VTL2)];
        for name in [
            HvRegisterName::RIP,
            HvRegisterName::RSP,
            HvRegisterName::CR3,
            HvRegisterName::VSM_VP_STATUS,
            HvRegisterName::VSM_PARTITION_CONFIG,
            HvRegisterName::VSM_CAPABILITIES,
            HvRegisterName::REG_PAGE,
            HvRegisterName::VSM_CODE_PAGE_OFFSETS,
        ] {
            let name = u64::from(name.0);
            let get = [head[0], head[1], name];
            denied(
                "reading a register of VTL2",
                Code::GET_VP_REGISTERS,
                1,
                &get,
            )?;
            let set = [head[0], head[1], name, 0, 0x1000, 0];
            denied(
                "writing a register of VTL2",
                Code::SET_VP_REGISTERS,
                1,
                &set,
            )?;
        }
    }
    // Nor does it configure VTLs in its own name.
    for name in [
        HvRegisterName::VSM_PARTITION_CONFIG,
        HvRegisterName::REG_PAGE,
    ] {
        let own = target(VP_SELF, HvInputVtl::new());
        let set = [HV_PARTITION_ID_SELF, own, name.0.into(), 0, 1, 0];
        denied("configuring VTLs", Code::SET_VP_REGISTERS, 1, &set)?;
    }
    Ok(())
}

fn vtl2s_protections_are_denied(machine: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    let page = |address: u64| address >> 12;
    let pages = machine
        .options
        .forbidden()
        .map(|range| page(range.start))
        .chain([page(Page::ANY.address()), u64::MAX]);
    for page in pages {
        for vtl in [
            HvInputVtl::new(),
            VTL2,
            VTL2.with_target_vtl(1),
            VTL2.with_target_vtl(0),
        ] {
            // Everything is permitted, to the VTL given.
            let flags = 0xf | (u64::from(vtl.into_bits()) << 32);
            let input = [HV_PARTITION_ID_SELF, flags, page];
            denied(
                "changing protections",
                Code::MODIFY_VTL_PROTECTION_MASK,
                1,
                &input,
            )?;
        }
        let input = [
            HV_PARTITION_ID_SELF,
            target(VP_SELF, VTL2),
            // Read, and bits that a privileged caller would set.
            1,
            page,
        ];
        denied(
            "translating for VTL2",
            Code::TRANSLATE_VIRTUAL_ADDRESS,
            0,
            &input,
        )?;
    }
    Ok(())
}

fn vtl2s_vps_are_denied(machine: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    let count = machine.tables.processors.len() as u32;
    for vp in 0..=count {
        for vtl in [1u64, 2, 3] {
            let mut input = [0; 30];
            input[0] = HV_PARTITION_ID_SELF;
            input[1] = u64::from(vp) | (vtl << 32);
            for code in [Code::ENABLE_VP_VTL, Code::START_VIRTUAL_PROCESSOR] {
                denied("starting a VP in another VTL", code, 0, &input)?;
            }
        }
    }
    for vtl in [1, 2] {
        let input = [HV_PARTITION_ID_SELF, vtl];
        denied("enabling a VTL", ENABLE_PARTITION_VTL, 0, &input)?;
    }
    let input = [HV_PARTITION_ID_SELF, VTL2.into_bits().into(), 0];
    denied(
        "asking for VTL2's APICs",
        Code::GET_VP_INDEX_FROM_APIC_ID,
        1,
        &input,
    )
}

fn vtl2s_interrupts_are_denied(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for kind in [0u64, 1, 2, 4, 5, 6, 7] {
        for vtl in [0u64, 1, 2] {
            let input = [HV_PARTITION_ID_SELF, kind, 0, 0x40 | (vtl << 32)];
            denied(
                "asserting an interrupt",
                Code::ASSERT_VIRTUAL_INTERRUPT,
                0,
                &input,
            )?;
        }
    }
    for vtl in [0u64, 2] {
        // VP 0, its VTL, source 7, flag 0.
        let event = [HV_PARTITION_ID_SELF, vtl << 32, 7];
        denied(
            "signalling VTL2 directly",
            Code::SIGNAL_EVENT_DIRECT,
            0,
            &event,
        )?;
        let mut message = [0; 35];
        message[0] = HV_PARTITION_ID_SELF;
        message[1] = vtl << 32;
        message[2] = 7 | (1 << 32);
        denied(
            "posting to VTL2 directly",
            Code::POST_MESSAGE_DIRECT,
            0,
            &message,
        )?;
    }
    // Access types 7, intercept type I/O port, port 0x3f8.
    for kind in [0u64, 1, 2, 3] {
        let input = [HV_PARTITION_ID_SELF, 7 | (kind << 32), 0x3f8];
        denied(
            "installing an intercept",
            Code::INSTALL_INTERCEPT,
            0,
            &input,
        )?;
    }
    Ok(())
}

fn vtl_switches_are_denied(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for code in [Code::VTL_CALL, Code::VTL_RETURN] {
        for control in [u64::from(code.0), u64::from(code.0) | (1 << 16)] {
            for call in [raw, by_page] {
                match call(control, 0, 0) {
                    Err(Fault { vector: UD, .. }) => {}
                    Ok(status) => ensure!(status != HvStatus::SUCCESS, "{code:?} succeeds"),
                    Err(fault) => return Err(fault.into()),
                }
            }
        }
    }
    Ok(())
}

fn power_is_denied(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for state in 1..=5 {
        denied(
            "a sleep state of the whole machine",
            Code::ENTER_SLEEP_STATE,
            0,
            &[state],
        )?;
    }
    Ok(())
}

fn connections_do_not_exist(_: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    for connection in [0, 1, 4, 7, 0x1_0000, 0xff_ffff, u32::MAX] {
        let mut message = [0; 32];
        message[0] = connection.into();
        message[1] = 1 | (240 << 32);
        denied("posting a message", Code::POST_MESSAGE, 0, &message)?;
        for flag_number in [0, 2047, 2048, u16::MAX] {
            let event = SignalEvent {
                connection_id: connection,
                flag_number,
                rsvd: 0,
            };
            let mut bytes = [0; 8];
            bytes.copy_from_slice(event.as_bytes());
            denied(
                "signalling an event",
                Code::SIGNAL_EVENT,
                0,
                &[u64::from_le_bytes(bytes)],
            )?;
        }
    }
    Ok(())
}

fn wild_calls_are_harmless(machine: &Machine<'_>) -> TestResult {
    enable_hypercalls()?;
    let mut state = 3u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let forbidden = machine
        .options
        .forbidden()
        .next()
        .map_or(0, |range| range.start);
    for _ in 0..machine.options.count {
        for index in 0..36 {
            let value = match random() % 8 {
                0 => 0,
                1 => HV_PARTITION_ID_SELF,
                2 => target(VP_SELF, VTL2),
                3 => random() & 0xff,
                4 => forbidden >> 12,
                _ => random(),
            };
            Page::INPUT.write(index, value);
        }
        let code = random() % 0x100;
        let control = match random() % 4 {
            0 => code,
            1 => code | (1 << 32),
            2 => code | (random() & 0xffff << 32),
            _ => code | (random() << 16),
        };
        let address = match random() % 8 {
            0 => forbidden,
            1 => random(),
            _ => Page::INPUT.address(),
        };
        let output = match random() % 8 {
            0 => forbidden,
            _ => Page::OUTPUT.address(),
        };
        match raw(control, address, output) {
            Ok(_)
            | Err(Fault {
                vector: UD | GP, ..
            }) => {}
            Err(fault) => return Err(fault.into()),
        }
    }
    Ok(())
}

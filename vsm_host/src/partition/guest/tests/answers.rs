//! What the host answers of the guest, and what VTL2 answers.

use super::*;
use crate::partition::guest::lapic;
use crate::partition::tests::GUEST_RAM;
use hv_defs::msr::*;
use hv_defs::synic::TimerConfig;
use x86_defs::msr::{APIC_BASE, EFER, MTRR_CAP};
use x86_defs::{CR4_DE, CR4_OSXSAVE, EFER_LMA, RFLAGS_RF};

/// Where the guest's code is.
const GUEST_CODE: u64 = GUEST_RAM.start() + 0x1000;
const MESSAGES: u64 = GUEST_RAM.start() + 0x3000;
/// Slot of source 2 there.
const SLOT: u64 = MESSAGES + 2 * 256;
const GUEST_ASSIST: u64 = GUEST_RAM.start() + 0x5000;
const CS_LONG: u16 = 1 << 9;
const GP: u8 = 13;
const UD: u8 = 6;

const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];

impl Machine {
    /// The guest runs 64-bit code without paging tables.
    fn in_code() -> Self {
        let mut machine = Self::in_guest();
        machine.go_long();
        machine
    }

    /// VTL2 returns to it.
    fn back_in_code(&mut self) {
        self.vtl_return(0, 0);
        self.go_long();
    }

    /// No processor is in that mode, and a return does not leave it.
    fn go_long(&mut self) {
        let save = &mut self.vp.vtls[Vtl::GUEST.index()].vmcb.save;
        save.efer |= EFER_LMA;
        save.cs.attributes |= CS_LONG;
    }

    /// The guest executes an instruction.
    fn executes(&mut self, bytes: &[u8], code: ExitCode, info1: u64) {
        self.processor.write_ram(GUEST_CODE, bytes);
        let vmcb = self.vp.vmcb_mut();
        vmcb.save.rip = GUEST_CODE;
        vmcb.control.event_injection = EventInjection::new();
        assert_eq!(self.exit(code, info1, 0), Next::Resume);
    }

    /// VTL0 is entered.
    fn enter(&mut self) {
        let entry = self.partition.prepare(&mut self.vp, &self.processor);
        assert_eq!(entry, Entry::Run);
    }

    fn set_operands(&mut self, register: u32, value: u64) {
        self.vp.gprs[gpr::RCX] = register.into();
        self.vp.gprs[gpr::RDX] = value >> 32;
        self.vp.vmcb_mut().save.rax = value & 0xffff_ffff;
    }

    /// Vector of the exception that is injected, if the guest still runs.
    fn fault(&self) -> Option<u8> {
        assert_eq!(self.vp.vtl, Vtl::GUEST);
        let event = self.vp.vmcb().control.event_injection;
        event.valid().then(|| event.vector())
    }

    fn rdmsr(&mut self, msr: u32) -> Result<u64, u8> {
        self.set_operands(msr, 0);
        self.executes(RDMSR, ExitCode::MSR, 0);
        match self.fault() {
            Some(vector) => Err(vector),
            None => Ok(self.vp.gprs[gpr::RDX] << 32 | self.vp.vmcb().save.rax),
        }
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Option<u8> {
        self.set_operands(msr, value);
        self.executes(WRMSR, ExitCode::MSR, 1);
        self.fault()
    }

    fn install(&self, intercept_type: InterceptType, access: u32) {
        let input = InstallIntercept {
            partition_id: HV_PARTITION_ID_SELF,
            access: access.into(),
            intercept_type,
            parameter: 0,
        };
        self.partition.intercepts().install(&input).unwrap();
    }
}

#[test]
fn the_host_answers_for_the_interrupt_controllers() {
    let mut machine = Machine::in_code();
    assert_eq!(machine.rdmsr(APIC_BASE), Ok(0xfee0_0900));
    assert_eq!(machine.wrmsr(APIC_BASE, 0xfee0_0d00), None);
    // The APIC id, in x2APIC mode.
    assert_eq!(machine.rdmsr(0x802), Ok(0));
    assert_eq!(machine.wrmsr(0x80f, 0x1ff), None);
    assert_eq!(machine.wrmsr(HV_X64_MSR_SINT0 + 2, 0x42), None);
    assert_eq!(machine.rdmsr(HV_X64_MSR_SINT0 + 2), Ok(0x42));
    assert_eq!(machine.rdmsr(HV_X64_MSR_SVERSION), Ok(1));
    assert_eq!(machine.wrmsr(HV_X64_MSR_SVERSION, 1), Some(GP));
    assert_eq!(machine.rdmsr(HV_X64_MSR_VP_INDEX), Ok(0));
    assert_eq!(machine.rdmsr(HV_X64_MSR_TSC_FREQUENCY), Ok(1_000_000_000));
    assert_eq!(machine.rdmsr(MTRR_CAP), Ok(0x508));
}

#[test]
fn a_direct_timer_interrupts_and_asks_for_the_next_time() {
    let mut machine = Machine::in_code();
    machine.wrmsr(APIC_BASE, 0xfee0_0d00);
    machine.wrmsr(0x80f, 0x1ff);
    let config = TimerConfig::new()
        .with_auto_enable(true)
        .with_direct(true)
        .with_vector(0x51);
    assert_eq!(
        machine.wrmsr(HV_X64_MSR_STIMER0_CONFIG, config.into()),
        None
    );
    let now = machine.partition.reference_time(&machine.processor);
    machine.wrmsr(HV_X64_MSR_STIMER0_CONFIG + 1, now + 1_000);
    let deadline = crate::partition::synic::next_deadline(&machine.partition, &machine.vp);
    // 100 microseconds at 1 GHz.
    assert!(
        (100_000..110_000).contains(&deadline.unwrap()),
        "{deadline:?}"
    );
    // One that has passed interrupts at once.
    machine.wrmsr(HV_X64_MSR_STIMER0_CONFIG + 1, 1);
    machine.vp.vmcb_mut().save.rflags |= 1 << 9;
    let entry = machine
        .partition
        .prepare(&mut machine.vp, &machine.processor);
    assert_eq!(entry, Entry::Run);
    assert_eq!(machine.fault(), Some(0x51));
}

#[test]
fn unknown_msrs_fault_or_are_vtl2s() {
    let mut machine = Machine::in_code();
    for unknown in [0x1a0, 0xc001_0114, 0x4000_0fff, HV_X64_MSR_RESET + 0x10] {
        assert_eq!(machine.rdmsr(unknown), Err(GP), "{unknown:#x}");
        assert_eq!(machine.wrmsr(unknown, 0), Some(GP), "{unknown:#x}");
    }
    machine.install(InterceptType::X64_MSR, 3);
    machine.set_operands(0x1a0, 0);
    machine.executes(RDMSR, ExitCode::MSR, 0);
    let message: MsrIntercept = machine.message(HvMessageType::X64_MSR_INTERCEPT);
    assert_eq!((message.msr, message.header.rip), (0x1a0, GUEST_CODE));
    assert_eq!(message.header.access_type, AccessType::READ);
    assert_eq!(message.header.length_and_cr8.instruction_length(), 2);
    machine.back_in_code();
    // What the host serves stays the host's, and so does its own range.
    assert!(machine.rdmsr(EFER).is_ok());
    assert_eq!(machine.rdmsr(0x4000_0fff), Err(GP));
}

#[test]
fn a_guest_that_crashes_or_resets_tells_vtl2() {
    let mut machine = Machine::in_code();
    // Nobody wants to know: the crash is noted, the machine is not the guest's to reset.
    assert_eq!(machine.wrmsr(HV_X64_MSR_CRASH_P0, 7), None);
    assert_eq!(machine.rdmsr(HV_X64_MSR_CRASH_P0), Ok(7));
    assert_eq!(machine.wrmsr(HV_X64_MSR_CRASH_CTL, 1 << 63), None);
    let log = machine.processor.log.borrow().concat();
    assert!(log.contains("VTL0 reports a crash"), "{log}");
    assert_eq!(machine.wrmsr(HV_X64_MSR_RESET, 1), Some(GP));
    assert_eq!(machine.partition.crash_parameter(Vtl::PARAVISOR, 0), 0);
    machine.install(InterceptType::X64_MSR, 3);
    for (msr, value) in [(HV_X64_MSR_CRASH_CTL, 1 << 63), (HV_X64_MSR_RESET, 1)] {
        machine.set_operands(msr, value);
        machine.executes(WRMSR, ExitCode::MSR, 1);
        let message: MsrIntercept = machine.message(HvMessageType::X64_MSR_INTERCEPT);
        assert_eq!((message.msr, message.rdx << 32 | message.rax), (msr, value));
        assert_eq!(message.header.access_type, AccessType::WRITE);
        machine.back_in_code();
    }
}

#[test]
fn ports_that_nobody_wants_read_ones() {
    let mut machine = Machine::in_guest();
    machine.install_ports(0);
    let save = &mut machine.vp.vmcb_mut().save;
    (save.rip, save.rax) = (CODE, 0);
    let read = IoInfo::new()
        .with_is_in(true)
        .with_word(true)
        .with_port(0x3f8);
    assert_eq!(
        machine.exit(ExitCode::IOIO, read.into(), CODE + 1),
        Next::Resume
    );
    assert_eq!(machine.vp.vtl, Vtl::GUEST);
    let save = &machine.vp.vmcb().save;
    assert_eq!((save.rax, save.rip), (0xffff, CODE + 1));
}

#[test]
fn a_call_of_a_connection_becomes_a_message() {
    let mut machine = Machine::in_code();
    machine.install(InterceptType::UNKNOWN_SYNIC_CONNECTION, 4);
    // SIGNAL_EVENT, fast, connection 5.
    machine.set_operands(0x1_005d, 0);
    machine.vp.gprs[gpr::RDX] = 5;
    machine.executes(&VMMCALL, ExitCode::VMMCALL, 0);
    let message: HypercallIntercept = machine.message(HvMessageType::HYPERCALL_INTERCEPT);
    assert_eq!((message.rcx, message.rdx), (0x1_005d, 5));
    assert_eq!(message.header.rip, GUEST_CODE);
    assert_eq!(message.header.length_and_cr8.instruction_length(), 3);
}

#[test]
fn xcr0_is_the_guests() {
    let mut machine = Machine::in_code();
    let mut set = |register, value| {
        machine.set_operands(register, value);
        machine.executes(XSETBV, ExitCode::XSETBV, 0);
        (machine.fault(), machine.processor.xcr0.get())
    };
    assert_eq!(set(0, 3), (Some(UD), 1));
    machine.vp.vmcb_mut().save.cr4 |= CR4_OSXSAVE;
    let mut set = |register, value| {
        machine.set_operands(register, value);
        machine.executes(XSETBV, ExitCode::XSETBV, 0);
        (machine.fault(), machine.processor.xcr0.get())
    };
    // The fake processor has 0xd in every register of leaf 0xd: x87, AVX and no SSE.
    assert_eq!(set(0, 1), (None, 1));
    assert_eq!(set(0, 3), (Some(GP), 1));
    assert_eq!(set(1, 1), (Some(GP), 1));
    assert_eq!(set(0, 0), (Some(GP), 1));
    machine.vp.vmcb_mut().save.cpl = 3;
    machine.set_operands(0, 1);
    machine.executes(XSETBV, ExitCode::XSETBV, 0);
    assert_eq!(machine.fault(), Some(GP));
}

#[test]
fn int1_is_a_debug_exception_behind_it() {
    let mut machine = Machine::in_code();
    machine.executes(&[0xf1], ExitCode::ICEBP, 0);
    assert_eq!(machine.fault(), Some(1));
    assert_eq!(machine.vp.vmcb().save.rip, GUEST_CODE + 1);
    // Other bytes are none.
    machine.executes(&[0x90], ExitCode::ICEBP, 0);
    assert_eq!(machine.fault(), Some(UD));
}

#[test]
fn a_single_step_stops_behind_what_the_host_executes() {
    const TRAP: u64 = 1 << 8;
    let mut machine = Machine::in_code();
    machine.vp.vmcb_mut().save.rflags |= TRAP;
    machine.set_operands(HV_X64_MSR_VP_INDEX, 0);
    machine.executes(RDMSR, ExitCode::MSR, 0);
    assert_eq!(machine.fault(), Some(1));
    let save = &machine.vp.vmcb().save;
    assert_eq!((save.rip, save.dr6), (GUEST_CODE + 2, 0xffff_4ff0));
    // One that faults has not been executed.
    let unknown = machine.rdmsr(0x1a0);
    assert_eq!(unknown, Err(GP));
}

#[test]
fn debug_registers_hold_what_the_guest_writes() {
    let mut machine = Machine::in_code();
    let mov = |machine: &mut Machine, modrm: u8, value: u64| {
        machine.vp.gprs[gpr::RDX] = value;
        machine.executes(&[0x0f, 0x23, modrm], ExitCode::DR7_WRITE, 0);
        let save = &machine.vp.vmcb().save;
        let moved = save.rip == GUEST_CODE + 3;
        assert_eq!(moved, machine.fault().is_none());
        machine.fault()
    };
    // mov dr7, rdx; mov dr5, rdx; mov dr4, rdx; mov dr2, rdx
    assert_eq!(mov(&mut machine, 0xfa, 0x103), None);
    assert_eq!(machine.vp.vmcb().save.dr7, 0x503);
    assert_eq!(mov(&mut machine, 0xea, 0x30), None);
    assert_eq!(machine.vp.vmcb().save.dr7, 0x430);
    assert_eq!(mov(&mut machine, 0xe2, 1), None);
    assert_eq!(machine.vp.vmcb().save.dr6, 0xffff_0ff1);
    assert_eq!(mov(&mut machine, 0xd2, u64::MAX), None);
    assert_eq!(machine.processor.debug_addresses.get(), [0, 0, u64::MAX, 0]);
    // The upper half is reserved; DR4 and DR5 may be none.
    assert_eq!(mov(&mut machine, 0xfa, 1 << 32), Some(GP));
    machine.vp.vmcb_mut().save.cr4 |= CR4_DE;
    assert_eq!(mov(&mut machine, 0xea, 0), Some(UD));
    assert_eq!(machine.vp.vmcb().save.dr7, 0x430);
    // Other bytes, such as another VP may have put there.
    assert_eq!(mov(&mut machine, 0x3a, 0), None);
    machine.executes(&[0x90], ExitCode::DR7_WRITE, 0);
    assert_eq!(machine.fault(), Some(UD));
    machine.executes(&[0x44, 0x0f, 0x22, 0xc0], ExitCode::DR7_WRITE, 0);
    assert_eq!(machine.fault(), Some(UD));
}

#[test]
fn a_vtl_with_breakpoints_finds_its_own_addresses() {
    let mut machine = Machine::in_code();
    let addresses = |machine: &Machine| machine.processor.debug_addresses.get();
    // Nothing is on: they are shared.
    machine.processor.debug_addresses.set([1; 4]);
    machine.exit(ExitCode::INTR, 0, 0);
    assert_eq!(addresses(&machine), [1; 4]);
    // VTL2 gives the guest a breakpoint.
    machine.processor.debug_addresses.set([2; 4]);
    machine.vp.vtls[Vtl::GUEST.index()].vmcb.save.dr7 = 0x401;
    machine.back_in_code();
    assert_eq!(addresses(&machine), [2; 4]);
    // Then it has one itself, at other addresses.
    machine.exit(ExitCode::INTR, 0, 0);
    machine.processor.debug_addresses.set([3; 4]);
    machine.vp.vmcb_mut().save.dr7 = 0x401;
    machine.back_in_code();
    assert_eq!(addresses(&machine), [2; 4]);
    machine.vp.vmcb_mut().save.dr7 = 0x400;
    machine.processor.debug_addresses.set([4; 4]);
    machine.exit(ExitCode::INTR, 0, 0);
    assert_eq!(addresses(&machine), [3; 4]);
}

#[test]
fn a_breakpoint_is_held_back_at_one_instruction_only() {
    let mut machine = Machine::in_code();
    machine.vp.vmcb_mut().save.rflags |= RFLAGS_RF;
    machine.set_operands(HV_X64_MSR_VP_INDEX, 0);
    machine.executes(RDMSR, ExitCode::MSR, 0);
    assert_eq!(machine.vp.vmcb().save.rflags & RFLAGS_RF, 0);
}

#[test]
fn a_repair_of_flags_does_not_end_a_single_step() {
    // lock cmpxchg16b [rdi] has been stepped over, or a breakpoint is behind it.
    for (dr6, flags) in [(0xffff_4ff0, 0x142), (0xffff_0ff1, 0x42)] {
        let mut machine = Machine::in_code();
        let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0f];
        machine.processor.write_ram(GUEST_CODE - 5, &code);
        let save = &mut machine.vp.vmcb_mut().save;
        (save.rflags, save.dr6) = (0x2_4142, dr6);
        machine.executes(&[0x90], ExitCode::EXCEPTION_DB, 0);
        assert_eq!(machine.fault(), Some(1));
        assert_eq!(machine.vp.vmcb().save.rflags, flags);
    }
}

#[test]
fn vtl2_hears_when_a_source_can_take_a_message() {
    let mut machine = Machine::in_code();
    machine.wrmsr(HV_X64_MSR_SCONTROL, 1);
    machine.wrmsr(HV_X64_MSR_SIMP, MESSAGES | 1);
    machine.processor.store_word(SLOT, 1);
    machine.exit(ExitCode::INTR, 0, 0);
    crate::partition::synic::await_ready(&machine.partition, &machine.vp, 1 << 2);
    machine.back_in_code();
    assert_eq!(machine.vp.vtl, Vtl::GUEST);
    // The guest empties the slot and says so.
    machine.processor.store_word(SLOT, 0);
    machine.set_operands(HV_X64_MSR_EOM, 0);
    machine.executes(WRMSR, ExitCode::MSR, 1);
    let message: SintDeliverable = machine.message(HvMessageType::SYNIC_SINT_DELIVERABLE);
    assert_eq!(message.deliverable_sints, 1 << 2);
    // The guest stands behind its instruction.
    assert_eq!(machine.register_page().rip, GUEST_CODE + 2);
    // A source that is ready already is told at the return.
    crate::partition::synic::await_ready(&machine.partition, &machine.vp, 1 << 3);
    machine.back_in_code();
    let message: SintDeliverable = machine.message(HvMessageType::SYNIC_SINT_DELIVERABLE);
    assert_eq!(message.deliverable_sints, 1 << 3);
    machine.back_in_code();
    assert_eq!(machine.vp.vtl, Vtl::GUEST);
}

/// The slot of a source is full, and a timer's message waits for it.
fn with_a_message_that_waits() -> Machine {
    let mut machine = Machine::in_code();
    machine.wrmsr(HV_X64_MSR_SCONTROL, 1);
    machine.wrmsr(HV_X64_MSR_SIMP, MESSAGES | 1);
    machine.wrmsr(HV_X64_MSR_SINT0 + 2, 0x42);
    machine.processor.store_word(SLOT, 1);
    let config = TimerConfig::new().with_auto_enable(true).with_sint(2);
    machine.wrmsr(HV_X64_MSR_STIMER0_CONFIG, config.into());
    machine.wrmsr(HV_X64_MSR_STIMER0_CONFIG + 1, 1);
    machine.enter();
    assert_eq!(machine.processor.load_word(SLOT), 1);
    // The guest empties the slot, and does not write EOM.
    machine.processor.store_word(SLOT, 0);
    machine
}

#[test]
fn a_message_that_waits_comes_at_the_end_of_an_interrupt() {
    let expected = HvMessageType::TIMER_EXPIRED.0;
    let mut machine = with_a_message_that_waits();
    machine.wrmsr(HV_X64_MSR_EOI, 0);
    assert_eq!(machine.processor.load_word(SLOT), expected);
    // In the page of the APIC: mov [rax], ecx.
    let mut machine = with_a_message_that_waits();
    machine.processor.write_ram(GUEST_CODE, &[0x89, 0x08]);
    machine.vp.vmcb_mut().save.rip = GUEST_CODE;
    machine.exit(ExitCode::NPF, 1 << 32 | 2, 0xfee0_00b0);
    assert_eq!(machine.vp.vmcb().save.rip, GUEST_CODE + 2);
    assert_eq!(machine.processor.load_word(SLOT), expected);
}

#[test]
fn a_message_that_waits_comes_at_an_end_that_the_assist_page_tells() {
    let mut machine = with_a_message_that_waits();
    machine.wrmsr(APIC_BASE, 0xfee0_0d00);
    machine.wrmsr(0x80f, 0x1ff);
    machine.vp.vmcb_mut().save.rflags |= 1 << 9;
    machine.vp.vtls[Vtl::GUEST.index()].assist = OverlayPage::new()
        .with_enabled(true)
        .with_page_number(GUEST_ASSIST >> 12);
    let apics = lapic::apics(&machine.partition, &machine.processor);
    let _ = vapic::Apics::shared(&apics, 0).post(0x61, false);
    machine.enter();
    assert_eq!(machine.fault(), Some(0x61));
    machine.exit(ExitCode::VINTR, 0, 0);
    assert_eq!(machine.processor.load_word(SLOT), 0);
    machine.enter();
    assert_eq!(machine.processor.load_word(GUEST_ASSIST), 1);
    machine.processor.store_word(GUEST_ASSIST, 0);
    machine.exit(ExitCode::VINTR, 0, 0);
    let expected = HvMessageType::TIMER_EXPIRED.0;
    assert_eq!(machine.processor.load_word(SLOT), expected);
}

proptest! {
    #[test]
    fn any_msr_and_any_value_are_answered(
        accesses in prop::collection::vec((
            prop_oneof![
                any::<u32>(),
                0x4000_0000..0x4000_0120u32,
                0x800..0x840u32,
                Just(APIC_BASE),
                0x200..0x210u32,
            ],
            prop_oneof![any::<u64>(), 0..0x1000u64, (0..32u64).prop_map(|page| (GUEST_RAM.start() + page * 0x1000) | 1)],
            any::<bool>(),
        ), 0..24),
        told: bool,
    ) {
        let mut machine = Machine::in_code();
        if told {
            machine.install(InterceptType::X64_MSR, 3);
        }
        for (msr, value, write) in accesses {
            // What the machine does not hold it cannot fill.
            let page = value & !0xfff;
            let held = GUEST_RAM.start()..GUEST_RAM.start() + 0x2_0000;
            let value = if GUEST_RAM.contains(page) && !held.contains(&page) { 0 } else { value };
            // The crash text may be anywhere.
            if msr == HV_X64_MSR_CRASH_P4 {
                continue;
            }
            machine.set_operands(msr, value);
            let (bytes, info) = if write { (WRMSR, 1) } else { (RDMSR, 0) };
            machine.executes(bytes, ExitCode::MSR, info);
            if machine.vp.vtl == Vtl::PARAVISOR {
                prop_assert!(told);
                machine.back_in_code();
            }
            let _ = machine.partition.prepare(&mut machine.vp, &machine.processor);
        }
    }
}

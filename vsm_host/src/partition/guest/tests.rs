mod answers;

use super::{Entry, lapic};
use crate::guest_memory::RamAccess;
use crate::partition::tests::{CODE, FakeProcessor, setup};
use crate::partition::{Next, Partition, Vp, gpr};
use crate::vtl::Vtl;
use core::mem::offset_of;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::intercept::*;
use hv_defs::msr::OverlayPage;
use hv_defs::register_page::{HvX64RegisterPage, RegisterPageDirty};
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::{HvMessage, HvMessageType};
use hv_defs::vsm::HvVpAssistPage;
use proptest::prelude::*;
use x86_defs::svm::{EventInjection, ExitCode, IoInfo};
use x86_defs::{CR0_PE, CR0_PG, EFER_LMA, EFER_LME};
use zerocopy::{FromBytes, IntoBytes};

const ASSIST: u64 = 0x3000;
const REGISTERS: u64 = 0x4000;
/// VMMCALL, and the VTL return's code in ECX.
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
const VTL_RETURN: u64 = 0x12;

struct Machine {
    partition: Partition,
    vp: Vp,
    processor: FakeProcessor,
}

impl Machine {
    /// VTL2 has named its pages and wants all ports.
    fn new() -> Self {
        let (partition, mut vp, processor) = setup();
        let page = |address: u64| {
            OverlayPage::new()
                .with_enabled(true)
                .with_page_number(address >> 12)
        };
        partition
            .set_assist_page(&mut vp, &processor, page(ASSIST))
            .unwrap();
        vp.vtls[Vtl::PARAVISOR.index()].register_page = page(REGISTERS);
        let machine = Self {
            partition,
            vp,
            processor,
        };
        machine.install_ports(3);
        machine
    }

    /// VTL2 wants these accesses to all ports.
    fn install_ports(&self, access: u32) {
        let all_ports = InstallIntercept {
            partition_id: HV_PARTITION_ID_SELF,
            access: access.into(),
            intercept_type: InterceptType::X64_IO_PORT_RANGE,
            parameter: 0xffff_0000,
        };
        self.partition.intercepts().install(&all_ports).unwrap();
    }

    /// VTL2 has returned, and the guest runs.
    fn in_guest() -> Self {
        let mut machine = Self::new();
        machine.vtl_return(0x1111, 0x2222);
        assert_eq!(machine.vp.vtl, Vtl::GUEST);
        machine
    }

    fn vtl_return(&mut self, rax: u64, rcx: u64) -> Next {
        let at = ASSIST + offset_of!(HvVpAssistPage, vtl_ret_x64_rax) as u64;
        self.processor.ram.write_ram(at, [rax, rcx].as_bytes());
        self.processor.ram.write_ram(CODE, &VMMCALL);
        self.vp.gprs[gpr::RCX] = VTL_RETURN;
        let vmcb = self.vp.vmcb_mut();
        (vmcb.save.rip, vmcb.save.rax) = (CODE, 0);
        self.exit(ExitCode::VMMCALL, 0, 0)
    }

    fn exit(&mut self, code: ExitCode, info1: u64, info2: u64) -> Next {
        let control = &mut self.vp.vmcb_mut().control;
        control.exit_code = code;
        (control.exit_info1, control.exit_info2) = (info1, info2);
        self.partition.handle_exit(&mut self.vp, &self.processor)
    }

    fn assist(&self) -> HvVpAssistPage {
        let mut bytes = [0; size_of::<HvVpAssistPage>()];
        self.processor.ram.read_ram(ASSIST, &mut bytes);
        HvVpAssistPage::read_from_bytes(&bytes).unwrap()
    }

    fn register_page(&self) -> HvX64RegisterPage {
        let mut bytes = [0; size_of::<HvX64RegisterPage>()];
        self.processor.ram.read_ram(REGISTERS, &mut bytes);
        HvX64RegisterPage::read_from_bytes(&bytes).unwrap()
    }

    /// The message of an exit that VTL2 was entered for.
    fn message<T: FromBytes>(&self, message_type: HvMessageType) -> T {
        assert_eq!(self.vp.vtl, Vtl::PARAVISOR);
        let assist = self.assist();
        assert_eq!(assist.vtl_entry_reason, VtlEntryReason::INTERCEPT);
        let HvMessage { header, payload } = assist.intercept_message;
        assert_eq!(header.message_type, message_type);
        assert_eq!(usize::from(header.payload_size), size_of::<T>());
        T::read_from_prefix(&payload).unwrap().0
    }
}

#[test]
fn a_vtl_return_enters_the_guest_with_its_registers() {
    let mut machine = Machine::new();
    machine.vp.gprs[gpr::RBX] = 0x3333;
    machine.vp.vmcb_mut().save.cr2 = 0x4444;
    assert_eq!(machine.vtl_return(0x1111, 0x2222), Next::Resume);
    let vp = &machine.vp;
    assert_eq!(vp.vtl, Vtl::GUEST);
    let save = &vp.vmcb().save;
    assert_eq!((save.rax, vp.gprs[gpr::RCX]), (0x1111, 0x2222));
    assert_eq!((vp.gprs[gpr::RBX], save.cr2), (0x3333, 0x4444));
    // VTL2 goes on behind the call.
    let paravisor = &vp.vtls[Vtl::PARAVISOR.index()].vmcb.save;
    assert_eq!(paravisor.rip, CODE + 3);
    assert_eq!(machine.processor.tsc_aux.get(), 0);
}

#[test]
fn a_fast_return_takes_nothing_from_the_assist_page() {
    let mut machine = Machine::new();
    machine.processor.ram.write_ram(CODE, &VMMCALL);
    machine.vp.gprs[gpr::RCX] = VTL_RETURN;
    machine.vp.vmcb_mut().save.rax = 1;
    assert_eq!(machine.exit(ExitCode::VMMCALL, 0, 0), Next::Resume);
    assert_eq!(machine.vp.vtl, Vtl::GUEST);
    assert_eq!(machine.vp.vmcb().save.rax, 1);
}

#[test]
fn without_an_assist_page_there_is_no_return() {
    let mut machine = Machine::new();
    machine.vp.vtls[Vtl::PARAVISOR.index()].assist = OverlayPage::new();
    machine.vtl_return(0, 0);
    assert_eq!(machine.vp.vtl, Vtl::PARAVISOR);
    let event = machine.vp.vmcb().control.event_injection;
    assert_eq!((event.valid(), event.vector()), (true, 6));
}

#[test]
fn a_physical_interrupt_goes_to_vtl2_and_shows_the_registers() {
    let mut machine = Machine::in_guest();
    machine.processor.tsc_aux.set(9);
    let save = &mut machine.vp.vmcb_mut().save;
    (save.rax, save.rip, save.rsp, save.cr2) = (0x5555, 0x6666, 0x7777, 0x8888);
    assert_eq!(machine.exit(ExitCode::INTR, 0, 0), Next::Resume);
    let vp = &machine.vp;
    assert_eq!(vp.vtl, Vtl::PARAVISOR);
    assert_eq!(machine.assist().vtl_entry_reason, VtlEntryReason::INTERRUPT);
    // All registers are the guest's.
    assert_eq!((vp.vmcb().save.rax, vp.vmcb().save.cr2), (0x5555, 0x8888));
    let page = machine.register_page();
    assert_eq!(
        (page.rip, page.gprs[4], page.gprs[1]),
        (0x6666, 0x7777, 0x2222)
    );
    assert_eq!((page.is_valid, page.vtl), (1, 0));
    assert_eq!(machine.processor.tsc_aux.get(), 0);
    // And each VTL keeps its own TSC_AUX.
    machine.vtl_return(0, 0);
    assert_eq!(machine.processor.tsc_aux.get(), 9);
}

#[test]
fn what_is_dirty_in_the_register_page_is_taken_over() {
    let mut machine = Machine::in_guest();
    machine.exit(ExitCode::INTR, 0, 0);
    let mut page = machine.register_page();
    (page.rip, page.rflags, page.gprs[gpr::RSP]) = (0x1234, 0x246, 0x5678);
    page.segments[0].selector = 0x28;
    let show = |machine: &Machine, page: &HvX64RegisterPage| {
        machine.processor.ram.write_ram(REGISTERS, page.as_bytes());
    };
    show(&machine, &page);
    let before = machine.vp.vtls[0].vmcb.save.rip;
    machine.vtl_return(0, 0);
    assert_eq!(machine.vp.vmcb().save.rip, before, "nothing was dirty");

    machine.exit(ExitCode::INTR, 0, 0);
    page.dirty = RegisterPageDirty::new()
        .with_instruction_pointer(true)
        .with_flags(true)
        .with_general_purpose(true)
        .with_segments(true);
    show(&machine, &page);
    machine.vtl_return(0, 0);
    let save = &machine.vp.vmcb().save;
    assert_eq!((save.rip, save.rflags, save.rsp), (0x1234, 0x246, 0x5678));
    assert_eq!(save.es.selector, 0x28);
}

#[test]
fn the_stack_segment_is_shown_with_the_privilege_level() {
    // As behind a SYSRET: level 3, and the descriptor still says 0.
    let mut machine = Machine::in_guest();
    let save = &mut machine.vp.vmcb_mut().save;
    (save.cpl, save.ss.attributes, save.cr0) = (3, 0xc93, CR0_PE);
    machine.exit(ExitCode::INTR, 0, 0);
    let mut page = machine.register_page();
    assert_eq!(page.segments[2].attributes.dpl(), 3);
    // The level stays where VTL2 writes back what it has read.
    page.dirty = RegisterPageDirty::new().with_segments(true);
    machine.processor.ram.write_ram(REGISTERS, page.as_bytes());
    machine.vtl_return(0, 0);
    assert_eq!(machine.vp.vmcb().save.cpl, 3);
}

#[test]
fn an_init_outdates_the_register_page() {
    let mut machine = Machine::in_guest();
    machine.exit(ExitCode::INTR, 0, 0);
    let mut page = machine.register_page();
    (page.rip, page.rflags, page.gprs[gpr::RSP]) = (0x1234, 0x246, 0x5678);
    page.dirty = RegisterPageDirty::new()
        .with_instruction_pointer(true)
        .with_flags(true)
        .with_general_purpose(true)
        .with_segments(true);
    machine.processor.ram.write_ram(REGISTERS, page.as_bytes());
    // Another VP sends an INIT, then VTL2 looks at a register.
    let apics = lapic::apics(&machine.partition, &machine.processor);
    let _ = vapic::Apics::shared(&apics, 0).post_init();
    lapic::sync_registers(&machine.partition, &mut machine.vp, &machine.processor);
    machine.vtl_return(0, 0);
    let save = &machine.vp.vmcb().save;
    assert_eq!((save.rip, save.rflags, save.rsp), (0xfff0, 2, 0));
    // The next page is a new one.
    machine.exit(ExitCode::INTR, 0, 0);
    page = machine.register_page();
    page.rip = 0x2345;
    page.dirty = RegisterPageDirty::new().with_instruction_pointer(true);
    machine.processor.ram.write_ram(REGISTERS, page.as_bytes());
    machine.vtl_return(0, 0);
    assert_eq!(machine.vp.vmcb().save.rip, 0x2345);
}

#[test]
fn contradicting_registers_come_back_at_once() {
    let mut machine = Machine::new();
    machine.vp.vtls[0].vmcb.save.cr0 = CR0_PG;
    assert_eq!(machine.vtl_return(0, 0), Next::Resume);
    let message: InvalidVpRegister = machine.message(HvMessageType::INVALID_VP_REGISTER_VALUE);
    assert_eq!(message.name, HvRegisterName::CR0.0);
    assert_eq!(machine.vp.vmcb().save.rip, CODE + 3);
}

#[test]
fn ports_become_messages() {
    let mut machine = Machine::in_guest();
    let save = &mut machine.vp.vmcb_mut().save;
    (save.rip, save.rax, save.cr0) = (CODE, 0x41, CR0_PE);
    let out = IoInfo::new().with_byte(true).with_port(0x3f8);
    assert_eq!(
        machine.exit(ExitCode::IOIO, out.into(), CODE + 1),
        Next::Resume
    );
    let message: IoPortIntercept = machine.message(HvMessageType::X64_IO_PORT_INTERCEPT);
    assert_eq!((message.port, message.access.size()), (0x3f8, 1));
    assert_eq!(message.header.access_type, AccessType::WRITE);
    assert_eq!(message.header.length_and_cr8.instruction_length(), 1);
    assert_eq!((message.rax, message.header.rip), (0x41, CODE));
    assert!(message.header.execution_state.cr0_pe());
    // The instruction has not been executed: VTL2 does that.
    assert_eq!(machine.register_page().rip, CODE);
}

#[test]
fn an_address_that_is_not_there_becomes_a_message() {
    let mut machine = Machine::in_guest();
    const WRITE: u64 = 2;
    machine.exit(ExitCode::NPF, WRITE, 0xfec0_0010);
    let message: MemoryIntercept = machine.message(HvMessageType::UNMAPPED_GPA);
    assert_eq!(message.gpa, 0xfec0_0010);
    assert_eq!(message.header.access_type, AccessType::WRITE);
    machine.vtl_return(0, 0);
    // RAM of the guest: a protection.
    machine.exit(ExitCode::NPF, WRITE, 5 << 30);
    machine.message::<MemoryIntercept>(HvMessageType::GPA_INTERCEPT);
    machine.vtl_return(0, 0);
    // RAM of VTL2 is none of the guest's.
    machine.exit(ExitCode::NPF, WRITE, 0x1000);
    machine.message::<MemoryIntercept>(HvMessageType::UNMAPPED_GPA);
}

#[test]
fn an_interrupted_event_waits_for_the_guest() {
    let mut machine = Machine::in_guest();
    let event = EventInjection::new().with_vector(0x31).with_valid(true);
    machine.vp.vmcb_mut().control.exit_interrupt_info = event.into();
    machine.exit(ExitCode::INTR, 0, 0);
    let shown = machine.register_page().pending_interruption;
    assert_eq!((shown.pending(), shown.vector()), (true, 0x31));
    machine.vtl_return(0, 0);
    let event = machine.vp.vmcb().control.event_injection;
    assert_eq!((event.valid(), event.vector()), (true, 0x31));
}

#[test]
fn an_event_of_an_instruction_comes_again_with_the_instruction() {
    // INT 0x80; INT3, which one processor tells apart and another does not.
    for (kind, vector) in [(4, 0x80), (4, 3), (3, 3)] {
        let mut machine = Machine::in_guest();
        let event = EventInjection::new().with_kind(kind).with_vector(vector);
        let control = &mut machine.vp.vmcb_mut().control;
        control.exit_interrupt_info = event.with_valid(true).into();
        machine.exit(ExitCode::INTR, 0, 0);
        assert!(!machine.register_page().pending_interruption.pending());
    }
}

#[test]
fn vtl2_sees_that_an_nmi_is_handled() {
    let mut machine = Machine::in_guest();
    let state = &mut machine.vp.vtls[Vtl::GUEST.index()];
    state.nmis.set_handled(&mut state.vmcb, true);
    machine.exit(ExitCode::INTR, 0, 0);
    assert_eq!(machine.register_page().interrupt_state, 2);
}

#[test]
fn a_block_that_the_processor_refuses_has_forgotten_nothing() {
    let mut machine = Machine::in_guest();
    machine.vp.vmcb_mut().control.tlb_control = 1;
    machine.exit(ExitCode::INVALID, 0, 0);
    assert_eq!(machine.vp.vtls[0].vmcb.control.tlb_control, 1);
    machine.vtl_return(0, 0);
    machine.exit(ExitCode::INTR, 0, 0);
    assert_eq!(machine.vp.vtls[0].vmcb.control.tlb_control, 0);
}

#[test]
fn caches_are_not_thrown_away() {
    let mut machine = Machine::in_guest();
    let address = crate::partition::tests::GUEST_RAM.start();
    let memory = machine.partition.all_memory(Vtl::GUEST, &machine.processor);
    memory.write(address, &[0x0f, 0x08]).unwrap();
    let code = machine.vp.vtls[Vtl::PARAVISOR.index()].vmcb.save.cs;
    let save = &mut machine.vp.vmcb_mut().save;
    (save.cs, save.rip) = (code, address);
    (save.cr0, save.efer) = (CR0_PE, EFER_LME | EFER_LMA);
    assert_eq!(machine.exit(ExitCode::INVD, 0, 0), Next::Resume);
    let vp = &machine.vp;
    assert_eq!((vp.vtl, vp.vmcb().save.rip), (Vtl::GUEST, address + 2));
}

#[test]
fn exceptions_that_could_repeat_for_ever_come_by_and_go_on() {
    let mut machine = Machine::in_guest();
    let [guest, paravisor] = [Vtl::GUEST, Vtl::PARAVISOR].map(|vtl| {
        let vmcb = &machine.vp.vtls[vtl.index()].vmcb;
        vmcb.control.intercept_exceptions
    });
    assert_eq!((guest, paravisor), (1 << 1 | 1 << 17, 0));
    for (code, event) in [
        (ExitCode::EXCEPTION_DB, 0x8000_0301),
        (ExitCode::EXCEPTION_AC, 0x8000_0b11),
    ] {
        // An interrupt is being delivered, or the exception itself.
        for interrupted in [0, 0x8000_0041, event] {
            let vmcb = machine.vp.vmcb_mut();
            (vmcb.save.rip, vmcb.save.dr6) = (0x1234, 0xffff_4ff1);
            (vmcb.save.rflags, vmcb.save.dr7) = (0x1_0102, 0x403);
            vmcb.control.interrupt_shadow = 1;
            vmcb.control.exit_interrupt_info = interrupted;
            assert_eq!(machine.exit(code, 0, 0), Next::Resume);
            let vmcb = machine.vp.vmcb();
            assert_eq!(machine.vp.vtl, Vtl::GUEST);
            assert_eq!(vmcb.control.event_injection.into_bits(), event);
            assert_eq!(vmcb.control.interrupt_shadow, 0);
            assert_eq!((vmcb.save.rip, vmcb.save.dr6), (0x1234, 0xffff_4ff1));
            assert_eq!((vmcb.save.rflags, vmcb.save.dr7), (0x1_0102, 0x403));
        }
    }
}

#[test]
fn a_triple_fault_is_told_to_whoever_wants_to_know() {
    let mut machine = Machine::in_guest();
    assert_eq!(
        machine.exit(ExitCode::SHUTDOWN, 0, 0),
        Next::End(vsm_host_defs::ExitReason::GuestCrash)
    );
    let config = machine
        .partition
        .vsm_config()
        .with_intercept_unrecoverable_exception(true);
    machine.partition.set_vsm_config(config).unwrap();
    assert_eq!(machine.exit(ExitCode::SHUTDOWN, 0, 0), Next::Resume);
    machine.message::<InterceptHeader>(HvMessageType::UNRECOVERABLE_EXCEPTION);
}

#[test]
fn instructions_of_the_host_do_not_exist_in_the_guest() {
    for code in [ExitCode::VMRUN, ExitCode::STGI, ExitCode::VMSAVE] {
        let mut machine = Machine::in_guest();
        assert_eq!(machine.exit(code, 0, 0), Next::Resume);
        assert_eq!(machine.vp.vtl, Vtl::GUEST);
        assert_eq!(machine.vp.vmcb().control.event_injection.vector(), 6);
    }
}

#[test]
fn vtl_calls_and_returns_of_the_guest_fault() {
    for code in [0x11, 0x12] {
        let mut machine = Machine::in_guest();
        machine.vp.gprs[gpr::RCX] = code;
        // Its code is in memory that it does not have: nothing is believed of it.
        assert_eq!(machine.exit(ExitCode::VMMCALL, 0, 0), Next::Resume);
        assert_eq!(machine.vp.vtl, Vtl::GUEST);
        assert_eq!(machine.vp.vmcb().control.event_injection.vector(), 6);
    }
}

proptest! {
    #[test]
    fn any_exit_of_any_guest_is_contained(
        code in prop_oneof![
            any::<u64>(),
            prop::sample::select(vec![
                0x30, 0x35, 0x37, 0x41, 0x51, 0x60, 0x61, 0x72, 0x78, 0x7b, 0x7c, 0x7f, 0x80, 0x81,
                0x88, 0x8d, 0x400,
            ]),
        ],
        info1: u64, info2: u64, rip: u64, cr0: u64, cr3: u64, cr4: u64, efer: u64, rax: u64,
    ) {
        // A failed entry is an exit code of all ones.
        let mut machine = Machine::in_guest();
        let save = &mut machine.vp.vmcb_mut().save;
        (save.rip, save.cr0, save.cr3, save.cr4) = (rip, cr0, cr3, cr4);
        (save.efer, save.rax) = (efer, rax);
        let next = machine.exit(ExitCode(code), info1, info2);
        let known = matches!(
            code,
            0x30..=0x33 | 0x35 | 0x37 | 0x41 | 0x51 | 0x60 | 0x61 | 0x72 | 0x78 | 0x7a..=0x7c
                | 0x7f..=0x86 | 0x88 | 0x8d | 0x400 | u64::MAX
        );
        prop_assert_eq!(
            next == Next::Resume,
            known && code != 0x7f,
            "{:#x}: {:?}", code, next
        );
    }
}

//! What VTL2 has the host do for the guest: intercepts, translations.

use super::*;
use crate::partition::synic;
use hv_defs::hypercall::{TranslateFlags, TranslateResult};
use hv_defs::intercept::{AccessMask, InterceptType};
use hv_defs::msr::*;
use hv_defs::synic::HvInterruptType;
use x86_defs::{CR0_PG, CR0_WP};
use zerocopy::FromBytes;

/// Page tables in the guest's memory.
const TABLES: u64 = GUEST_RAM.start() + 0x8000;

fn install(guest: &mut Guest, intercept_type: InterceptType, parameter: u64) -> HvStatus {
    let input = InstallIntercept {
        partition_id: HV_PARTITION_ID_SELF,
        access: AccessMask::new().with_read(true).with_write(true),
        intercept_type,
        parameter,
    };
    let code = control(HypercallCode::INSTALL_INTERCEPT);
    guest.call(code, input.as_bytes()).0
}

#[test]
fn intercepts_are_installed() {
    let mut guest = Guest::new();
    let range = InterceptType::X64_IO_PORT_RANGE;
    assert_eq!(install(&mut guest, range, 0xffff_0000), HvStatus::SUCCESS);
    assert!(guest.partition.intercepts().ports(0x70, 1, true));
    let refused = install(&mut guest, InterceptType::X64_CPUID, 0);
    assert_eq!(refused, HvStatus::INVALID_PARAMETER);
    let msrs = install(&mut guest, InterceptType::X64_MSR, 0);
    assert_eq!(msrs, HvStatus::SUCCESS);
    assert!(guest.partition.intercepts().msr(false));
}

fn translate(guest: &mut Guest, vp_index: u32, flags: u64, gva_page: u64) -> HvStatus {
    let input = TranslateVirtualAddress {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index,
        rsvd: 0,
        flags: TranslateFlags::from_bits(flags).with_input_vtl(vtl(0).into_bits()),
        gva_page,
    };
    let code = control(HypercallCode::TRANSLATE_VIRTUAL_ADDRESS);
    guest.call(code, input.as_bytes()).0
}

/// Result and page.
fn translated(guest: &mut Guest, flags: u64, gva_page: u64) -> (TranslateResult, u64) {
    assert_eq!(
        translate(guest, HV_VP_INDEX_SELF, flags, gva_page),
        HvStatus::SUCCESS
    );
    let output = TranslateVirtualAddressOutput::read_from_bytes(&guest.output::<16>()).unwrap();
    (output.result, output.gpa_page)
}

/// A guest with four levels of tables; page 0 is read-only memory of the user, page 1 a
/// device, page 2 not present.
fn with_tables() -> Guest {
    let mut guest = Guest::new();
    let write = |address, value: u64| guest.processor.write_ram(address, &value.to_le_bytes());
    for level in 0..3 {
        let table = TABLES + level * 0x1000;
        write(table, (table + 0x1000) | 7);
    }
    write(TABLES + 0x3000, GUEST_RAM.start() | 5);
    write(TABLES + 0x3008, 0xfee0_0003);
    let save = &mut guest.vp.vtls[0].vmcb.save;
    save.cr0 = CR0_PG | CR0_WP | 1;
    save.cr4 = x86_defs::CR4_PAE;
    save.efer |= x86_defs::EFER_LME | x86_defs::EFER_LMA;
    save.cr3 = TABLES;
    guest
}

#[test]
fn addresses_of_the_guest_are_translated() {
    use TranslateResult as Result;
    let mut guest = with_tables();
    let ram_page = GUEST_RAM.start() >> 12;
    assert_eq!(translated(&mut guest, 1, 0), (Result::SUCCESS, ram_page));
    assert_eq!(translated(&mut guest, 1, 1), (Result::SUCCESS, 0xfee00));
    assert_eq!(translated(&mut guest, 1, 2), (Result::PAGE_NOT_PRESENT, 0));
    let (write, user) = (1 << 1, 1 << 7);
    let refused = (Result::PRIVILEGE_VIOLATION, 0);
    assert_eq!(translated(&mut guest, write, 0), refused);
    assert_eq!(translated(&mut guest, 1 | user, 1), refused);
    guest.vp.vtls[0].vmcb.save.cr3 = 0x1000;
    // Memory of VTL2.
    assert_eq!(translated(&mut guest, 1, 0), (Result::GPA_UNMAPPED, 0));
}

#[test]
fn protections_count_in_translations() {
    use TranslateResult as Result;
    let mut guest = with_tables();
    let config = VsmPartitionConfig::new()
        .with_enable_vtl_protection(true)
        .with_default_vtl_protection_mask(0xf);
    guest.partition.set_vsm_config(config).unwrap();
    let none = Access::new(0.into()).unwrap();
    let tables = guest.partition.nested_tables(Vtl::GUEST);
    tables.protect(GUEST_RAM.start(), none).unwrap();
    let refused = (Result::GPA_NO_READ_ACCESS, 0);
    assert_eq!(translated(&mut guest, 1, 0), refused);
    assert_eq!(translated(&mut guest, 0, 0).0, Result::SUCCESS);
    let tables = guest.partition.nested_tables(Vtl::GUEST);
    tables.protect(TABLES + 0x1000, none).unwrap();
    assert_eq!(translated(&mut guest, 0, 0), refused);
    let tables = guest.partition.nested_tables(Vtl::GUEST);
    let read = Access::new(1.into()).unwrap();
    tables.protect(TABLES + 0x1000, read).unwrap();
    let set_bits = 1 << 4;
    let refused = (Result::GPA_NO_WRITE_ACCESS, 0);
    assert_eq!(translated(&mut guest, set_bits, 0), refused);
}

#[test]
fn translations_of_a_bad_form_are_refused() {
    let mut guest = with_tables();
    for flags in [1 << 10, 1 << 55, 1 << 6 | 1 << 7, 1 << 8 | 1 << 9] {
        let status = translate(&mut guest, HV_VP_INDEX_SELF, flags, 0);
        assert_eq!(status, HvStatus::INVALID_PARAMETER, "{flags:#x}");
    }
    let too_far = translate(&mut guest, HV_VP_INDEX_SELF, 0, 1 << 52);
    assert_eq!(too_far, HvStatus::INVALID_PARAMETER);
    // Another VP's registers are in the hands of its CPU.
    assert_eq!(translate(&mut guest, 1, 0, 0), HvStatus::INVALID_VP_STATE);
    assert_eq!(translate(&mut guest, 9, 0, 0), HvStatus::INVALID_VP_INDEX);
}

/// Pages of the guest's SynIC.
const MESSAGES: u64 = GUEST_RAM.start() + 0x1_0000;
const EVENTS: u64 = GUEST_RAM.start() + 0x1_1000;

/// A guest whose VP 1 has switched its SynIC on; source 3 has vector 0x53.
fn with_synic() -> Guest {
    let guest = Guest::new();
    let mut vp = Vp::new(&guest.partition, 1);
    for (msr, value) in [
        (HV_X64_MSR_SCONTROL, 1),
        (HV_X64_MSR_SIMP, MESSAGES | 1),
        (HV_X64_MSR_SIEFP, EVENTS | 1),
        (HV_X64_MSR_SINT0 + 3, 0x53),
    ] {
        let (partition, processor) = (&guest.partition, &guest.processor);
        let written = (msr, value);
        synic::write_msr(partition, &mut vp, Vtl::GUEST, processor, written).unwrap();
    }
    guest
}

#[test]
fn vtl2_posts_messages_to_the_guest() {
    let mut guest = with_synic();
    let mut message = [0; 256];
    (message[0], message[4], message[16]) = (9, 1, 0x77);
    let mut input = PostMessageDirect {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: 1,
        vtl: 0,
        rsvd1: [0; 3],
        sint: 3,
        rsvd2: [0; 3],
        message,
        padding: [0; 4],
    };
    let code = control(HypercallCode::POST_MESSAGE_DIRECT);
    let mut post = |input: &PostMessageDirect| guest.call(code, input.as_bytes()).0;
    assert_eq!(post(&input), HvStatus::SUCCESS);
    assert_eq!(post(&input), HvStatus::OBJECT_IN_USE);
    (input.vp_index, input.sint) = (0, 3);
    assert_eq!(post(&input), HvStatus::INVALID_SYNIC_STATE);
    input.vtl = 1;
    assert_eq!(post(&input), HvStatus::INVALID_PARAMETER);
    let slot = MESSAGES + 3 * 256;
    assert_eq!(guest.processor.load_word(slot), 9);
    assert_eq!(guest.processor.load_word(slot + 16), 0x77);
    // Nobody writes to a page that VTL2 has taken from the guest.
    let tables = guest.partition.nested_tables(Vtl::GUEST);
    tables.protect(MESSAGES, Access::NONE).unwrap();
    (input.vp_index, input.vtl) = (1, 0);
    let refused = guest.call(code, input.as_bytes()).0;
    assert_eq!(refused, HvStatus::INVALID_SYNIC_STATE);
}

#[test]
fn vtl2_signals_events_to_the_guest() {
    let mut guest = with_synic();
    let input = SignalEventDirect {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: 1,
        vtl: 0,
        sint: 3,
        flag_number: 33,
    };
    let code = control(HypercallCode::SIGNAL_EVENT_DIRECT);
    for newly in [1, 0] {
        assert_eq!(guest.call(code, input.as_bytes()).0, HvStatus::SUCCESS);
        assert_eq!(guest.output::<8>(), [newly, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(guest.processor.load_word(EVENTS + 3 * 256 + 4), 2);
}

#[test]
fn vtl2_asserts_interrupts_of_the_guest() {
    let mut guest = Guest::new();
    let mut input = AssertVirtualInterrupt {
        partition_id: HV_PARTITION_ID_SELF,
        interrupt_type: HvInterruptType::FIXED,
        flags: Default::default(),
        destination: 0,
        vector: 0x41,
        target_vtl: 0,
        rsvd: [0; 3],
    };
    let code = control(HypercallCode::ASSERT_VIRTUAL_INTERRUPT);
    let mut assert = |input: &AssertVirtualInterrupt| guest.call(code, input.as_bytes()).0;
    assert_eq!(assert(&input), HvStatus::SUCCESS);
    input.vector = 3;
    assert_eq!(assert(&input), HvStatus::INVALID_PARAMETER);
    input.target_vtl = 2;
    assert_eq!(assert(&input), HvStatus::ACCESS_DENIED);
    input.partition_id = 1;
    assert_eq!(assert(&input), HvStatus::INVALID_PARTITION_ID);
    input = AssertVirtualInterrupt {
        partition_id: HV_PARTITION_ID_SELF,
        interrupt_type: HvInterruptType::INIT,
        vector: 0,
        target_vtl: 0,
        ..input
    };
    guest.vp.vtls[0].vmcb.save.rip = 0x1234;
    assert_eq!(guest.call(code, input.as_bytes()).0, HvStatus::SUCCESS);
    // VTL2 sees the registers as INIT leaves them.
    guest.get(vtl(0), &[HvRegisterName::RIP]);
    assert_eq!(guest.output::<8>(), 0xfff0_u64.to_le_bytes());
}

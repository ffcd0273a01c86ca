//! What VTL2 has the host do for the guest: intercepts, translations.

use super::*;
use hv_defs::hypercall::{TranslateFlags, TranslateResult};
use hv_defs::intercept::{AccessMask, InterceptType};
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

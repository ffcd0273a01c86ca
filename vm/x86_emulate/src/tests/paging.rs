//! The four formats of page tables, and their rights.

use super::*;
use crate::paging::walk;
use crate::{Access, TranslateError};
use x86_defs::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_NXE, RFLAGS_AC,
};

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const LARGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;
const ALL: u64 = PRESENT | WRITE | USER;

/// Page-fault error codes.
const F_PRESENT: u32 = 1;
const F_WRITE: u32 = 2;
const F_USER: u32 = 4;
const F_RESERVED: u32 = 8;
const F_FETCH: u32 = 16;

/// Eight pages of memory for tables.
fn tables() -> Machine {
    Machine::new(8 * 4096, 0)
}

fn set(machine: &mut Machine, at: u64, entry: u64) {
    machine.world[at as usize..at as usize + 8].copy_from_slice(&entry.to_le_bytes());
}

fn get(machine: &Machine, at: u64) -> u64 {
    let bytes = machine.world[at as usize..].first_chunk();
    u64::from_le_bytes(*bytes.expect("in memory"))
}

/// Four levels with these rights in the leaf, for address 0x1000.
fn four_levels(leaf: u64) -> Machine {
    let mut m = tables();
    m.cr3 = 0x1000;
    set(&mut m, 0x1000, 0x2000 | ALL);
    set(&mut m, 0x2000, 0x3000 | ALL);
    set(&mut m, 0x3000, 0x4000 | ALL);
    set(&mut m, 0x4008, 0xabc_d000 | leaf);
    m
}

fn fault(code: u32) -> Result<u64, TranslateError<std::convert::Infallible>> {
    Err(TranslateError::PageFault(code))
}

#[test]
fn four_and_five_levels_lead_to_the_page() {
    let mut m = four_levels(ALL);
    assert_eq!(walk(&mut m, 0x1234, Access::Read), Ok(0xabc_d234));
    m.cr4 |= CR4_LA57;
    set(&mut m, 0x5000 + 8, 0x1000 | ALL);
    m.cr3 = 0x5000 | 0x18;
    let linear = (1 << 48) | 0x1234;
    assert_eq!(walk(&mut m, linear, Access::Read), Ok(0xabc_d234));
}

#[test]
fn large_pages_end_the_walk() {
    let mut m = four_levels(ALL);
    set(&mut m, 0x3000, 0x20_0000 | ALL | LARGE);
    assert_eq!(walk(&mut m, 0x1_2345, Access::Read), Ok(0x21_2345));
    set(&mut m, 0x2000, 0x4000_0000 | ALL | LARGE);
    assert_eq!(walk(&mut m, 0x123_4567, Access::Read), Ok(0x4123_4567));
    // A large entry of the top is reserved.
    set(&mut m, 0x1000, 0x2000 | ALL | LARGE);
    let expected = fault(F_PRESENT | F_RESERVED);
    assert_eq!(walk(&mut m, 0, Access::Read), expected);
}

#[test]
fn pae_has_four_entries_without_rights_on_top() {
    let mut m = tables().protected_mode();
    m.cr4 = CR4_PAE;
    m.cr3 = 0x1020;
    // Entry 3 of the top: neither writable nor user.
    set(&mut m, 0x1020 + 24, 0x2000 | PRESENT);
    set(&mut m, 0x2000, 0x3000 | ALL);
    set(&mut m, 0x3000, 0x5000 | ALL);
    m.cpl = 3;
    assert_eq!(walk(&mut m, 0xc000_0678, Access::Write), Ok(0x5678));
    assert_eq!(walk(&mut m, 0, Access::Read), fault(F_USER));
}

#[test]
fn two_levels_have_entries_of_four_bytes() {
    let mut m = tables().protected_mode();
    m.cr4 = CR4_PSE;
    m.cr3 = 0x1000;
    set(&mut m, 0x1000 + 4, 0x2000 | ALL);
    set(&mut m, 0x2000 + 4 * 5, 0x1234_5000 | ALL);
    assert_eq!(walk(&mut m, 0x40_5678, Access::Read), Ok(0x1234_5678));
    // 4 MiB, with address bits 32 and 33 in bits 13 and 14.
    set(&mut m, 0x1000 + 8, 0x0080_6000 | ALL | LARGE);
    let target = 0x3_0080_0000 + 0x1_2345;
    assert_eq!(walk(&mut m, 0x81_2345, Access::Read), Ok(target));
}

#[test]
fn without_paging_addresses_are_the_same() {
    let mut m = tables().protected_mode();
    m.cr0 &= !CR0_PG;
    assert_eq!(walk(&mut m, 0x1234, Access::Write), Ok(0x1234));
}

#[test]
fn rights_of_all_levels_count() {
    for table in [0x1000, 0x2000, 0x3000, 0x4008] {
        let mut m = four_levels(ALL);
        m.cpl = 3;
        let entry = get(&m, table);
        set(&mut m, table, entry & !WRITE);
        let denied = fault(F_PRESENT | F_WRITE | F_USER);
        assert_eq!(walk(&mut m, 0x1000, Access::Write), denied);
        assert!(walk(&mut m, 0x1000, Access::Read).is_ok());
        set(&mut m, table, entry & !USER);
        let denied = fault(F_PRESENT | F_USER);
        assert_eq!(walk(&mut m, 0x1000, Access::Read), denied);
        set(&mut m, table, entry | NO_EXECUTE);
        let denied = fault(F_PRESENT | F_USER | F_FETCH);
        assert_eq!(walk(&mut m, 0x1000, Access::Execute), denied);
        m.efer &= !EFER_NXE;
        let reserved = fault(F_PRESENT | F_USER | F_RESERVED);
        assert_eq!(walk(&mut m, 0x1000, Access::Read), reserved);
        set(&mut m, table, entry & !PRESENT);
        assert_eq!(walk(&mut m, 0x1000, Access::Read), fault(F_USER));
    }
}

#[test]
fn supervisor_is_bound_by_wp_smep_and_smap() {
    let mut m = four_levels(PRESENT | USER);
    assert!(walk(&mut m, 0x1000, Access::Write).is_ok());
    m.cr0 |= CR0_WP;
    let denied = fault(F_PRESENT | F_WRITE);
    assert_eq!(walk(&mut m, 0x1000, Access::Write), denied);
    assert!(walk(&mut m, 0x1000, Access::Execute).is_ok());
    m.cr4 |= CR4_SMEP | CR4_SMAP;
    let denied = fault(F_PRESENT | F_FETCH);
    assert_eq!(walk(&mut m, 0x1000, Access::Execute), denied);
    assert_eq!(walk(&mut m, 0x1000, Access::Read), fault(F_PRESENT));
    m.rflags |= RFLAGS_AC;
    assert!(walk(&mut m, 0x1000, Access::Read).is_ok());
}

#[test]
fn accessed_and_dirty_are_set_when_the_access_is_permitted() {
    let mut m = four_levels(PRESENT);
    m.cr0 |= CR0_WP;
    assert!(walk(&mut m, 0x1000, Access::Write).is_err());
    assert_eq!(get(&m, 0x4008) & (ACCESSED | DIRTY), 0);
    assert!(walk(&mut m, 0x1000, Access::Read).is_ok());
    assert_eq!(get(&m, 0x4008) & (ACCESSED | DIRTY), ACCESSED);
    let mut m = four_levels(ALL);
    assert!(walk(&mut m, 0x1000, Access::Write).is_ok());
    assert_eq!(get(&m, 0x4008) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert_eq!(get(&m, 0x3000) & (ACCESSED | DIRTY), ACCESSED);
}

#[test]
fn tables_outside_memory_are_refused() {
    let mut m = four_levels(ALL);
    m.cr3 = 0x10_0000;
    let expected = Err(TranslateError::TableOutsideMemory(0x10_0000));
    assert_eq!(walk(&mut m, 0, Access::Read), expected);
}

//! Images that cannot stay where they were built for.

use super::image::*;
use super::load;
use crate::*;
use igvm::IgvmInitializationHeader;
use std::string::String;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// Walks the tables that were loaded; `None` if the address is not mapped.
fn translate(memory: &FakeMemory, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let entry = memory.read_u64(table + (address >> shift) % 512 * 8);
        if entry & 1 == 0 {
            return None;
        }
        let target = entry & 0x000f_ffff_ffff_f000;
        if level == 0 || entry & 0x80 != 0 {
            let offset_mask = (1 << shift) - 1;
            return Some(target & !offset_mask | address & offset_mask);
        }
        table = target;
    }
    None
}

fn error(image: &TestImage, machine: &MachineInfo) -> String {
    plan(&image.bytes(), machine, &Options::default())
        .map(|plan| plan.offset)
        .unwrap_err()
        .to_string()
}

/// A machine whose only large run of RAM begins at `start`.
fn machine_at(start: u64) -> MachineInfo {
    machine(&[(0, 0x9_f000), (MIB, 130 * MIB), (start, start + 64 * MIB)])
}

fn check_relocated(machine: &MachineInfo, new_base: u64) -> FakeMemory {
    let (context, memory, offset) = load(&image().bytes(), machine);
    let state = context.state;
    assert_eq!(offset, new_base as i64 - BASE as i64);
    assert_eq!(state.rip, new_base + (ENTRY - BASE));
    assert_eq!(state.gdtr.base, new_base + (GDT - BASE));
    assert_eq!(state.cr3, new_base + (PAGE_TABLES - BASE));
    assert_eq!(context.gprs[6], SHIM_PARAMETERS, "an offset does not move");
    for number in 0..CODE_PAGES {
        let expected = vec![number as u8 + 1; 4096];
        assert_eq!(memory.read(new_base + number * 4096, 4096), expected);
    }
    assert_eq!(
        memory.read(LOW_PAGE, 3),
        b"low",
        "what is not in a region stays"
    );
    assert_eq!(
        memory.read(new_base + (DEVICE_TREE - BASE), 4),
        [0xd0, 0x0d, 0xfe, 0xed]
    );
    for address in (new_base..new_base + SIZE).step_by(0x1_1000) {
        assert_eq!(translate(&memory, state.cr3, address), Some(address));
    }
    for address in [new_base - 1, new_base + SIZE] {
        assert_eq!(translate(&memory, state.cr3, address), None, "{address:#x}");
    }
    if !MemoryRange::new(new_base, new_base + SIZE).contains(BASE) {
        assert_eq!(translate(&memory, state.cr3, BASE), None);
        assert!(!memory.pages.contains_key(&BASE));
    }
    memory
}

#[test]
fn an_image_moves_to_the_lowest_place_that_fits() {
    check_relocated(&machine_at(200 * MIB), 200 * MIB);
}

#[test]
fn the_new_place_is_aligned_as_the_region_asks() {
    check_relocated(&machine_at(201 * MIB + 4096), 202 * MIB);
}

#[test]
fn an_image_moves_to_another_gigabyte() {
    // Needs other tables on two levels; the ones that became empty are used again.
    check_relocated(&machine_at(5 * GIB), 5 * GIB);
    check_relocated(&machine_at(700 * GIB), 700 * GIB);
}

#[test]
fn an_image_moves_across_a_gigabyte_boundary() {
    check_relocated(&machine_at(3 * GIB - 2 * MIB), 3 * GIB - 2 * MIB);
}

#[test]
fn an_image_moves_by_less_than_its_size() {
    let mut machine = small_machine();
    machine.busy = vec![MemoryRange::new(BASE, BASE + 4096)];
    check_relocated(&machine, BASE + 2 * MIB);
}

#[test]
fn memory_in_use_is_avoided_but_may_become_vtl2_memory() {
    let mut machine = small_machine();
    // Behind what is loaded, yet in the RAM that VTL2 gets.
    machine.busy = vec![MemoryRange::new(BASE + 2 * MIB, BASE + 3 * MIB)];
    assert_eq!(load(&image().bytes(), &machine).2, 0);
    machine.busy = vec![
        MemoryRange::new(140 * MIB, 150 * MIB),
        MemoryRange::new(BASE + MIB, BASE + MIB + 1),
        MemoryRange::new(131 * MIB, 133 * MIB),
    ];
    let offset = load(&image().bytes(), &machine).2;
    assert_eq!(BASE.wrapping_add_signed(offset), 134 * MIB);
}

#[test]
fn an_image_that_stays_may_lie_below_its_minimum() {
    let mut low = image();
    if let IgvmInitializationHeader::RelocatableRegion {
        minimum_relocation_gpa,
        ..
    } = &mut low.initializations[0]
    {
        *minimum_relocation_gpa = 256 * MIB;
    }
    assert_eq!(load(&low.bytes(), &small_machine()).2, 0);
    let machine = machine(&[(0, 100 * MIB), (150 * MIB, 512 * MIB)]);
    assert_eq!(load(&low.bytes(), &machine).2 as u64, 128 * MIB);
}

#[test]
fn no_place_is_named() {
    let tiny = machine(&[(0, 0x9_f000), (MIB, 130 * MIB)]);
    assert_eq!(
        error(&image(), &tiny),
        "initialization header 0 (RelocatableRegion): no place for the image, found no run of free RAM within the region's limits that is as long, expected at least 0x400000"
    );
    let mut limited = image();
    if let IgvmInitializationHeader::RelocatableRegion {
        maximum_relocation_gpa,
        ..
    } = &mut limited.initializations[0]
    {
        *maximum_relocation_gpa = 160 * MIB;
    }
    assert!(error(&limited, &machine_at(5 * GIB)).contains("no place for the image"));
}

#[test]
fn an_image_without_a_relocatable_region_cannot_move() {
    let mut fixed = image();
    fixed.initializations.clear();
    assert_eq!(load(&fixed.bytes(), &small_machine()).2, 0);
    assert_eq!(
        error(&fixed, &machine_at(5 * GIB)),
        "directive 0 (RequiredMemory): memory that is not RAM, found [0x8000000, 0x8400000), expected something within [0x100000, 0x7000000)"
    );
    // The host's own memory has its own message.
    let own = vsm_host_defs::HOST_MEMORY_BASE;
    let mut on_host = fixed.clone();
    on_host.directives.push(page(own + 4096, vec![1; 4096]));
    assert!(
        error(&on_host, &small_machine())
            .contains("(PageData): memory of the host, found [0x7001000")
    );
}

#[test]
fn two_regions_move_together() {
    let mut two = image();
    two.initializations[0] = relocatable(BASE, MIB / 2);
    let mut second = relocatable(BASE + 2 * MIB, MIB);
    if let IgvmInitializationHeader::RelocatableRegion {
        relocation_alignment,
        minimum_relocation_gpa,
        ..
    } = &mut second
    {
        *relocation_alignment = MIB;
        *minimum_relocation_gpa = 210 * MIB;
    }
    two.initializations.push(second);
    two.directives.push(page(BASE + 2 * MIB, vec![0x55; 4096]));
    let (context, memory, offset) = load(&two.bytes(), &machine_at(200 * MIB));
    // Lowest multiple of 2 MiB that puts the second region at or above 210 MiB.
    assert_eq!(offset as u64, 80 * MIB);
    assert_eq!(memory.read(BASE + 82 * MIB, 1), [0x55]);
    assert_eq!(context.state.rip, ENTRY + 80 * MIB);
}

/// The test image with another content of its page tables and another used size.
fn with_tables(tables: Vec<Vec<u8>>, pages: u64) -> TestImage {
    let mut image = image();
    let used = tables.len() as u64;
    image.directives.retain(|directive| {
        !matches!(directive, igvm::IgvmDirectiveHeader::PageData { gpa, .. }
            if (PAGE_TABLES..PAGE_TABLES + 16 * 4096).contains(gpa))
    });
    for (index, table) in tables.into_iter().enumerate() {
        let at = PAGE_TABLES + index as u64 * 4096;
        image.directives.insert(1, page(at, table));
    }
    if let IgvmInitializationHeader::PageTableRelocationRegion {
        size, used_size, ..
    } = &mut image.initializations[1]
    {
        (*size, *used_size) = (pages * 4096, used * 4096);
    }
    image
}

fn set(tables: &mut [Vec<u8>], table: usize, index: usize, entry: u64) {
    tables[table][index * 8..index * 8 + 8].copy_from_slice(&entry.to_le_bytes());
}

#[test]
fn tables_are_used_again_or_refused_if_there_are_too_few() {
    let tables = identity_map(BASE, BASE + SIZE);
    assert_eq!(tables.len(), 3);
    let exact = with_tables(tables, 3);
    assert_eq!(
        load(&exact.bytes(), &machine_at(5 * GIB)).2 as u64,
        5 * GIB - BASE
    );
    let error = error(&exact, &machine_at(3 * GIB - 2 * MIB));
    assert_eq!(
        error,
        "initialization header 1 (PageTableRelocationRegion): page tables: tables in the region, found 3, expected at least 0x4"
    );
}

#[test]
fn a_table_in_two_places_is_refused() {
    let mut tables = identity_map(BASE, BASE + SIZE);
    // The root points to itself, as for a recursive map.
    set(&mut tables, 0, 511, PAGE_TABLES | 3);
    let image = with_tables(tables, 8);
    assert_eq!(
        load(&image.bytes(), &small_machine()).2,
        0,
        "not looked at where it stays"
    );
    assert!(error(&image, &machine_at(5 * GIB)).contains("every table in one place only"));
}

#[test]
fn leaves_that_cannot_move_are_refused() {
    let machine = machine_at(5 * GIB + 64 * MIB);
    let tables = identity_map(BASE, BASE + SIZE);
    let mut odd = tables.clone();
    set(&mut odd, 2, 64, 0x0ca0_0000 | 0x83);
    assert!(error(&with_tables(odd, 8), &machine).contains("no identity mapping"));
    let mut huge = tables.clone();
    set(&mut huge, 1, 0, 0x83);
    assert!(error(&with_tables(huge, 8), &machine).contains("expected a multiple of 0x40000000"));
    let mut unused = tables;
    set(&mut unused, 1, 1, (PAGE_TABLES + 4 * 4096) | 3);
    assert!(error(&with_tables(unused, 8), &machine).contains("page tables: table"));
}

#[test]
fn a_leaf_larger_than_the_distance_stays() {
    let mut tables = identity_map(BASE, BASE + SIZE);
    tables.truncate(2);
    set(&mut tables, 1, 0, 0x83);
    let image = with_tables(tables, 4);
    let (context, memory, _) = load(&image.bytes(), &machine_at(200 * MIB));
    assert_eq!(context.state.cr3, PAGE_TABLES + 72 * MIB);
    for address in [BASE, 200 * MIB] {
        assert_eq!(
            translate(&memory, context.state.cr3, address),
            Some(address)
        );
    }
}

#[test]
fn attributes_of_a_leaf_move_with_it() {
    let mut tables = identity_map(BASE, BASE + SIZE);
    let attributes = 1 << 63 | 1 << 12 | 0x83;
    set(&mut tables, 2, 65, (BASE + 2 * MIB) | attributes);
    let image = with_tables(tables, 8);
    let (_, memory, _) = load(&image.bytes(), &machine_at(200 * MIB));
    let directory = 200 * MIB + MIB + 2 * 4096;
    assert_eq!(
        memory.read_u64(directory + 101 * 8),
        (202 * MIB) | attributes
    );
}

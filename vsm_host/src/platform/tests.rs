//! Start information and ACPI tables as QEMU makes them, right and spoilt.

use super::acpi::*;
use super::pvh::*;
use super::*;
use igvm_loader::{AcpiTables, IoApic};
use proptest::prelude::*;
use std::string::ToString;

/// Physical memory from 0; what lies behind cannot be read.
struct Memory(Vec<u8>);

impl PhysMemory for Memory {
    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        let size = out.len();
        let start = usize::try_from(address).ok();
        let bytes = start.and_then(|start| self.0.get(start..start.checked_add(size)?));
        out.copy_from_slice(bytes.ok_or(Unreadable { address, size })?);
        Ok(())
    }
}

impl Memory {
    fn put(&mut self, address: usize, bytes: &[u8]) {
        self.0[address..address + bytes.len()].copy_from_slice(bytes);
    }
}

/// A table with the right length and checksum.
fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = vec![0; 36];
    table[..4].copy_from_slice(signature);
    table.extend(body);
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    fix(&mut table);
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn fix(table: &mut [u8]) {
    table[9] = table[9].wrapping_sub(sum(table));
}

/// CPUs 0 to `count` - 1, the last one as x2APIC entry, a disabled one, and an IOAPIC.
fn madt(count: u8) -> Vec<u8> {
    let mut body = vec![0; 8];
    for id in 0..count - 1 {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([0, 8, 77, 77, 0, 0, 0, 0]);
    body.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    // An interrupt override, which is of no interest.
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend([9, 16, 0, 0, count - 1, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0]);
    table(b"APIC", &body)
}

/// APIC ids of a MADT.
fn apic_ids(madt: Vec<u8>) -> Vec<u32> {
    let tables = AcpiTables {
        madt,
        ..AcpiTables::default()
    };
    topology(&tables)
        .unwrap()
        .cpus
        .iter()
        .map(|cpu| cpu.apic_id)
        .collect()
}

/// CPU 1 and x2APIC CPU 3 are on node 1, as is RAM from 256 MiB.
fn srat() -> Vec<u8> {
    let mut body = vec![0; 12];
    body.extend([0, 16, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut x2apic = [0; 24];
    x2apic[..5].copy_from_slice(&[2, 24, 0, 0, 1]);
    (x2apic[8], x2apic[12]) = (3, 1);
    body.extend(x2apic);
    for (node, start, size, flags) in [(0, 0, 256, 1), (1, 256, 768, 1), (5, 0, 4096, 0)] {
        let mut memory = [0; 40];
        (memory[0], memory[1], memory[2]) = (1, 40, node);
        memory[8..16].copy_from_slice(&(start * MIB).to_le_bytes());
        memory[16..24].copy_from_slice(&(size * MIB).to_le_bytes());
        memory[28] = flags;
        body.extend(memory);
    }
    table(b"SRAT", &body)
}

const MIB: u64 = 1 << 20;
const RSDP: usize = 0xe_0040;
const START_INFO: usize = 0x1000;
const ROOT: usize = 0x8_0000;

/// 1 MiB with all tables; `xsdt`: ACPI 2.0.
fn memory(xsdt: bool, tables: &[Vec<u8>]) -> Memory {
    let mut memory = Memory(vec![0; MIB as usize]);
    let mut at = ROOT + 0x1000;
    let mut body = Vec::new();
    for table in tables {
        memory.put(at, table);
        body.extend_from_slice(&(at as u64).to_le_bytes()[..if xsdt { 8 } else { 4 }]);
        at += table.len().next_multiple_of(64);
    }
    memory.put(ROOT, &table(if xsdt { b"XSDT" } else { b"RSDT" }, &body));
    let mut rsdp = [0; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    if xsdt {
        rsdp[15] = 2;
        rsdp[20] = 36;
        rsdp[24..32].copy_from_slice(&(ROOT as u64).to_le_bytes());
    } else {
        rsdp[16..20].copy_from_slice(&(ROOT as u32).to_le_bytes());
    }
    rsdp[8] = rsdp[8].wrapping_sub(sum(&rsdp[..20]));
    rsdp[32] = rsdp[32].wrapping_sub(sum(&rsdp));
    memory.put(RSDP, &rsdp);
    memory
}

fn all_tables() -> Vec<Vec<u8>> {
    let (slit, pptt) = (table(b"SLIT", &[1; 20]), table(b"PPTT", &[2; 30]));
    vec![table(b"FACP", &[0; 10]), madt(4), srat(), slit, pptt]
}

fn memory_map() -> Vec<MemoryMapEntry> {
    [
        (0, 0x9_fc00, 1),
        (0x9_fc00, 0x10_0000, 2),
        (0x10_0000, 512 * MIB - 0x2_0000, 1),
        (512 * MIB - 0x2_0000, 512 * MIB, 2),
        (0xb000_0000, 0xc000_0000, 2),
        (0xfeff_c000, 0xff00_0000, 2),
        (0xfd_0000_0000, 0x100_0000_0000, 2),
        (4096 * MIB, 5120 * MIB, 1),
    ]
    .map(|(start, end, kind)| MemoryMapEntry {
        range: MemoryRange::new(start, end),
        kind: MemoryKind(kind),
    })
    .to_vec()
}

fn firmware(memory_map: &[MemoryMapEntry]) -> Firmware<'_> {
    const OWN: &[MemoryRange] = &[MemoryRange::new(112 * MIB, 128 * MIB)];
    Firmware {
        memory_map,
        rsdp: RSDP as u64,
        own: OWN,
        busy: &[],
        bsp_apic_id: 0,
        park: false,
        physical_address_bits: 40,
        entropy: &[1, 2, 3],
        com3: true,
    }
}

#[test]
fn the_machine_is_discovered_from_rsdt_or_xsdt() {
    let map = memory_map();
    for xsdt in [false, true] {
        let machine = discover(&memory(xsdt, &all_tables()), &firmware(&map)).unwrap();
        let cpus: Vec<_> = machine
            .vps
            .iter()
            .map(|cpu| (cpu.apic_id, cpu.node))
            .collect();
        assert_eq!(cpus, [(0, 0), (1, 1), (2, 0), (3, 1)]);
        let ram: Vec<_> = machine
            .ram
            .iter()
            .map(|ram| (ram.range.start(), ram.range.end(), ram.node))
            .collect();
        assert_eq!(
            ram,
            [
                (0, 0x9_f000, 0),
                (MIB, 112 * MIB, 0),
                (128 * MIB, 256 * MIB, 0),
                (256 * MIB, 512 * MIB - 0x2_0000, 1),
                (4096 * MIB, 5120 * MIB, 0),
            ]
        );
        assert_eq!(
            machine.io_apics,
            [IoApic {
                address: 0xfec0_0000,
                gsi_base: 0
            }]
        );
        assert_eq!(machine.tables.slit, Some(table(b"SLIT", &[1; 20])));
        assert_eq!(machine.tables.pptt, Some(table(b"PPTT", &[2; 30])));
        assert_eq!(
            machine.mmio,
            [
                MemoryRange::new(512 * MIB, 0xb000_0000),
                MemoryRange::new(5120 * MIB, 0xfd_0000_0000)
            ]
        );
    }
}

#[test]
fn the_first_cpu_is_not_a_vp_if_it_is_parked() {
    let map = memory_map();
    for (park, expected) in [(true, vec![1, 2, 3]), (false, vec![0, 1, 2, 3])] {
        let firmware = Firmware {
            park,
            ..firmware(&map)
        };
        let machine = discover(&memory(true, &all_tables()), &firmware).unwrap();
        let ids: Vec<_> = machine.vps.iter().map(|cpu| cpu.apic_id).collect();
        assert_eq!(ids, expected);
        assert_eq!(apic_ids(machine.tables.madt), expected);
    }
}

#[test]
fn a_machine_without_numa_has_one_node() {
    let map = memory_map();
    let machine = discover(&memory(false, &[madt(3)]), &firmware(&map)).unwrap();
    assert!(machine.vps.iter().all(|cpu| cpu.node == 0));
    assert!(machine.ram.iter().all(|ram| ram.node == 0));
    assert_eq!((machine.tables.srat, machine.tables.slit), (None, None));
}

#[test]
fn broken_tables_are_refused_by_name() {
    let map = memory_map();
    let error = |memory: &Memory| discover(memory, &firmware(&map)).unwrap_err().to_string();
    let spoilt = |at: usize, value: u8, fixed: bool| {
        let mut tables = all_tables();
        tables[1][at] = value;
        if fixed {
            fix(&mut tables[1]);
        }
        error(&memory(true, &tables))
    };
    assert!(spoilt(40, 1, false).contains("ACPI APIC: sum of all bytes, found 0x1, expected 0"));
    assert!(
        spoilt(4, 3, false).contains("ACPI APIC: length, found 0x3, expected its header to 1 MiB")
    );
    assert!(spoilt(6, 0xff, false).contains("ACPI APIC: length, found 0xff00"));
    // The first structure claims no length, a length behind the end, a short one.
    assert!(spoilt(45, 0, true).contains("length of a structure, found 0x0, expected 2 or more"));
    assert!(spoilt(45, 200, true).contains("length of a structure, found 0xc8"));
    assert!(
        spoilt(45, 4, true)
            .contains("length of a structure, found 0x4, expected the length of its type")
    );
    assert_eq!(
        error(&memory(true, &[srat()])),
        "ACPI: found no table APIC, expected one"
    );
    assert!(error(&Memory(vec![0; MIB as usize])).contains("found no table RSDP"));
    let mut no_root = memory(true, &all_tables());
    no_root.put(ROOT, b"NONE");
    assert!(
        error(&no_root)
            .contains("ACPI XSDT: signature at address, found 0x80000, expected the table's name")
    );
    let missing = discover(
        &memory(true, &all_tables()),
        &Firmware {
            bsp_apic_id: 9,
            ..firmware(&map)
        },
    );
    assert_eq!(missing, Err(PlatformError::BspMissing { apic_id: 9 }));
    let no_ram = discover(&memory(true, &all_tables()), &firmware(&[]));
    assert_eq!(no_ram, Err(PlatformError::NoRam));
}

#[test]
fn a_cpu_can_be_taken_out_of_the_tables() {
    let mut tables = AcpiTables {
        madt: madt(4),
        srat: Some(srat()),
        ..AcpiTables::default()
    };
    disable_cpu(&mut tables, 1);
    disable_cpu(&mut tables, 3);
    assert_eq!(sum(&tables.madt), 0);
    assert_eq!(sum(tables.srat.as_ref().unwrap()), 0);
    assert_eq!(apic_ids(tables.madt), [0, 2]);
    tables.madt = madt(4);
    let cpus = topology(&tables).unwrap().cpus;
    assert!(cpus.iter().all(|cpu| cpu.node == 0), "{cpus:?}");
    disable_cpu(&mut AcpiTables::default(), 0);
}

/// Start information with one module, a command line and the memory map.
fn start_info() -> Memory {
    let mut memory = memory(true, &all_tables());
    let (modules, text, map) = (0x2000u64, 0x2ff0u64, 0x4000u64);
    let mut raw = Vec::new();
    for word in [0x336e_c578u32, 1, 0, 1] {
        raw.extend(word.to_le_bytes());
    }
    for address in [modules, text, RSDP as u64, map] {
        raw.extend(address.to_le_bytes());
    }
    raw.extend((memory_map().len() as u32).to_le_bytes());
    memory.put(START_INFO, &raw);
    memory.put(0x2000, &(500 * MIB).to_le_bytes());
    memory.put(0x2008, &123u64.to_le_bytes());
    memory.put(0x2ff0, b"park=off -- a longer text across a page\0");
    for (index, entry) in memory_map().iter().enumerate() {
        let at = 0x4000 + index * 24;
        memory.put(at, &entry.range.start().to_le_bytes());
        memory.put(at + 8, &entry.range.size().to_le_bytes());
        memory.put(at + 16, &entry.kind.0.to_le_bytes());
    }
    memory
}

#[test]
fn start_information_is_read() {
    let info = StartInfo::read(&start_info(), START_INFO as u64).unwrap();
    assert_eq!(
        info.command_line,
        b"park=off -- a longer text across a page"
    );
    assert_eq!(info.modules, [MemoryRange::new(500 * MIB, 500 * MIB + 123)]);
    assert_eq!(info.memory_map, memory_map());
    assert_eq!(info.rsdp, RSDP as u64);
}

#[test]
fn wrong_start_information_is_refused_by_name() {
    let error = |at: usize, bytes: &[u8]| {
        let mut memory = start_info();
        memory.put(at, bytes);
        StartInfo::read(&memory, START_INFO as u64)
            .unwrap_err()
            .to_string()
    };
    assert!(error(START_INFO, &[1]).contains("magic, found 0x336ec501"));
    assert!(error(START_INFO + 4, &[0]).contains("version, found 0x0, expected at least 1"));
    assert!(
        error(START_INFO + 12, &[0, 8])
            .contains("length of a list, found 0x800, expected at most 1024")
    );
    assert!(error(START_INFO + 16, &[0xff; 8]).contains("cannot read 32 bytes"));
    assert!(error(START_INFO + 51, &[1]).contains("length of a list, found 0x1000008"));
    assert!(
        error(0x2008, &[0xff; 8])
            .contains("size of a module or memory range, found 0xffffffffffffffff")
    );
    assert!(error(0x2ff0, &[b'x'; 0x1_0000]).contains("length of the command line"));
}

proptest! {
    #[test]
    fn spoilt_tables_never_panic(
        changes in prop::collection::vec((0usize..0x400, any::<u8>()), 1..8),
        fixed in any::<bool>(),
    ) {
        let mut tables = all_tables();
        for (at, value) in changes {
            for table in &mut tables[1..3] {
                if let Some(byte) = table.get_mut(at) {
                    *byte = value;
                }
                if fixed && at >= 8 {
                    fix(table);
                }
            }
        }
        for table in &tables {
            let mut tables = AcpiTables { madt: table.clone(), srat: Some(table.clone()), ..AcpiTables::default() };
            let _ = topology(&tables);
            disable_cpu(&mut tables, 1);
        }
        let _ = discover(&memory(true, &tables), &firmware(&memory_map()));
    }

    #[test]
    fn spoilt_start_information_never_panics(
        changes in prop::collection::vec((0usize..0x4100 - START_INFO, any::<u8>()), 1..8),
    ) {
        let mut memory = start_info();
        for (at, value) in changes {
            memory.put(START_INFO + at, &[value]);
        }
        if let Ok(info) = StartInfo::read(&memory, START_INFO as u64) {
            let _ = discover(&memory, &firmware(&info.memory_map));
        }
    }
}

#[test]
fn the_firmwares_area_becomes_ram_and_nothing_else_does() {
    let entry = |start, end, kind| MemoryMapEntry {
        range: MemoryRange::new(start, end),
        kind,
    };
    const RESERVED: MemoryKind = MemoryKind(2);
    let mut map = vec![
        entry(0, 0x9_fc00, MemoryKind::RAM),
        entry(0x9_fc00, 0xa_0000, RESERVED),
        entry(0xf_0000, 0x10_0000, RESERVED),
        entry(0x10_0000, 0x4000_0000, MemoryKind::RAM),
    ];

    add_bios_area(&mut map);

    map.sort_by_key(|entry| entry.range.start());
    assert_eq!(
        map,
        [
            entry(0, 0x9_f000, MemoryKind::RAM),
            entry(0x9_f000, 0xa_0000, MemoryKind::RAM),
            entry(0xc_0000, 0x10_0000, MemoryKind::RAM),
            entry(0x10_0000, 0x4000_0000, MemoryKind::RAM),
        ]
    );
}

//! I/O ports, by every instruction that reaches them.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::clock::{spin, tsc, wait_for};
use crate::machine::console::COM1;
use crate::machine::memory::Page;
use crate::machine::ports::{inb, inl, inw, outb, outl, outw};
use crate::machine::probe::{self, Registers};
use crate::report::TestResult;

pub(super) const TESTS: &[Test] = &[
    test(
        "ports.unclaimed_ports_read_ones",
        Needs::Nothing,
        unclaimed_ports_read_ones,
    ),
    test(
        "ports.unclaimed_ports_read_ones_by_strings",
        Needs::Nothing,
        unclaimed_by_strings,
    ),
    test(
        "ports.registers_take_strings",
        Needs::Nothing,
        registers_take_strings,
    ),
    test(
        "ports.strings_go_backwards",
        Needs::Nothing,
        strings_go_backwards,
    ),
    test("ports.pci_has_no_devices", Needs::Host, pci_has_no_devices),
    test("ports.clock_has_a_date", Needs::Nothing, clock_has_a_date),
    test(
        "ports.clock_is_read_by_immediates",
        Needs::Nothing,
        clock_is_read_by_immediates,
    ),
    test("ports.pm_timer_counts", Needs::Nothing, pm_timer_counts),
    test(
        "ports.hosts_ports_are_not_reached",
        Needs::Host,
        hosts_ports_are_not_reached,
    ),
    test(
        "ports.wild_accesses_are_harmless",
        Needs::Host,
        wild_accesses_are_harmless,
    ),
];

/// Ports that no PC has.
const UNCLAIMED: [u16; 3] = [0x0ea0, 0x1234, 0xfff8];
/// A register of COM1 that only keeps a byte.
const SCRATCH: u16 = COM1 + 7;
/// CMOS: index, data.
const CMOS: (u16, u16) = (0x70, 0x71);
/// PCI configuration: address, data.
const PCI: (u16, u16) = (0xcf8, 0xcfc);
/// What our host writes its log to, and leaves by: not the guest's.
const HOSTS: [u16; 2] = [0xe9, 0xf4];

fn unclaimed_ports_read_ones(_: &Machine<'_>) -> TestResult {
    for port in UNCLAIMED {
        outb(port, 0x12);
        outw(port, 0x1234);
        outl(port, 0x1234_5678);
        let found = (inb(port), inw(port), inl(port));
        ensure!(
            found == (u8::MAX, u16::MAX, u32::MAX),
            "port {port:#x} reads {found:x?}"
        );
        // The upper bits of RAX: kept by narrow reads, cleared by the widest.
        let wide = Registers {
            rax: 0x1122_3344_5566_7788,
            rdx: port.into(),
            ..Default::default()
        };
        for (instruction, expected) in [
            (probe::in8 as probe::Instruction, 0x1122_3344_5566_77ff),
            (probe::in16, 0x1122_3344_5566_ffff),
            (probe::in32, 0xffff_ffff),
        ] {
            let found = instruction(wide)?.rax;
            ensure!(
                found == expected,
                "RAX is {found:#x}, expected {expected:#x}"
            );
        }
    }
    Ok(())
}

fn unclaimed_by_strings(_: &Machine<'_>) -> TestResult {
    const COUNT: u64 = 9;
    for (instruction, size) in [
        (probe::rep_insb as probe::Instruction, 1),
        (probe::rep_insw, 2),
        (probe::rep_insd, 4),
    ] {
        // Across the border of two pages, at an odd address.
        Page::ANY.fill(0);
        Page::OTHER.fill(0);
        let start = Page::OTHER.address() - 7;
        let r = instruction(Registers {
            rdi: start,
            rcx: COUNT,
            rdx: UNCLAIMED[0].into(),
            ..Default::default()
        })?;
        let end = start + COUNT * size;
        ensure!(
            r.rcx == 0 && r.rdi == end,
            "RCX is {:#x}, RDI is {:#x}, expected 0 and {end:#x}",
            r.rcx,
            r.rdi
        );
        for address in start - 8..end + 8 {
            let expected = if (start..end).contains(&address) {
                0xff
            } else {
                0
            };
            let found = crate::machine::memory::read8(address);
            ensure!(found == expected, "byte at {address:#x} is {found:#x}");
        }
    }
    Ok(())
}

fn registers_take_strings(_: &Machine<'_>) -> TestResult {
    for value in [0x00, 0x5a, 0xff, 0x81] {
        outb(SCRATCH, value);
        let found = inb(SCRATCH);
        ensure!(
            found == value,
            "scratch register is {found:#x}, expected {value:#x}"
        );
    }
    Page::ANY.write(0, u64::from_le_bytes(*b"abcdefgh"));
    let start = Page::ANY.address();
    let r = probe::rep_outsb(Registers {
        rsi: start,
        rcx: 5,
        rdx: SCRATCH.into(),
        ..Default::default()
    })?;
    ensure!(
        r.rcx == 0 && r.rsi == start + 5,
        "RCX {:#x}, RSI {:#x}",
        r.rcx,
        r.rsi
    );
    let found = inb(SCRATCH);
    ensure!(
        found == b'e',
        "scratch register is {found:#x}, expected that of `e`"
    );
    // No repetition at all is no access.
    probe::rep_outsb(Registers {
        rsi: start,
        rdx: SCRATCH.into(),
        ..Default::default()
    })?;
    let found = inb(SCRATCH);
    ensure!(
        found == b'e',
        "scratch register is {found:#x} after no output"
    );
    Ok(())
}

fn strings_go_backwards(_: &Machine<'_>) -> TestResult {
    Page::ANY.fill(0);
    outb(SCRATCH, 0x77);
    let start = Page::ANY.address() + 8;
    let r = probe::insb_backwards(Registers {
        rdi: start,
        rdx: SCRATCH.into(),
        ..Default::default()
    })?;
    ensure!(
        r.rdi == start - 1,
        "RDI is {:#x}, expected {:#x}",
        r.rdi,
        start - 1
    );
    let found = Page::ANY.read(1);
    ensure!(found == 0x77, "read {found:#x}, expected 0x77");
    Ok(())
}

fn pci_has_no_devices(_: &Machine<'_>) -> TestResult {
    for device in (0..32).chain([0x1fff]) {
        let address = 0x8000_0000 | (device << 11);
        outl(PCI.0, address);
        let found = inl(PCI.0);
        ensure!(
            found == address,
            "address is {found:#x}, expected {address:#x}"
        );
        let found = (inl(PCI.1), inw(PCI.1 + 2), inb(PCI.1 + 3));
        ensure!(
            found == (u32::MAX, u16::MAX, u8::MAX),
            "device {device} says {found:x?}"
        );
    }
    Ok(())
}

fn cmos(index: u8) -> u8 {
    outb(CMOS.0, index);
    inb(CMOS.1)
}

fn clock_has_a_date(_: &Machine<'_>) -> TestResult {
    // While it is updated, it may be anything.
    ensure!(wait_for(|| cmos(0x0a) & 0x80 == 0), "the update never ends");
    let binary = cmos(0x0b) & 4 != 0;
    for (index, range) in [(0, 0..60), (2, 0..60), (7, 1..32), (8, 1..13), (9, 0..100)] {
        let found = cmos(index);
        let value = match binary {
            true => found,
            false => found / 16 * 10 + found % 16,
        };
        ensure!(
            range.contains(&value) && (binary || found % 16 < 10),
            "register {index} is {found:#x}, expected one of {range:?}"
        );
    }
    ensure!(cmos(0x0d) & 0x80 != 0, "it has no power");
    Ok(())
}

fn clock_is_read_by_immediates(_: &Machine<'_>) -> TestResult {
    probe::out8_immediate(Registers {
        rax: 0x0d,
        ..Default::default()
    })?;
    let found = probe::in8_immediate(Registers::default())?.rax;
    ensure!(found & 0x80 != 0, "register D is {found:#x}");
    Ok(())
}

fn pm_timer_counts(machine: &Machine<'_>) -> TestResult {
    let port = machine.tables.pm_timer;
    ensure!(port != 0, "ACPI names no PM timer");
    let start = inl(port) & 0xff_ffff;
    let moved = wait_for(|| inl(port) & 0xff_ffff != start);
    ensure!(moved, "it stands still at {start:#x}");
    // Never backwards: differences are small, modulo its 24 bits.
    let mut last = inl(port);
    let begin = tsc();
    for _ in 0..100 {
        let now = inl(port);
        let step = now.wrapping_sub(last) & 0xff_ffff;
        ensure!(step < 0x80_0000, "it went from {last:#x} to {now:#x}");
        last = now;
    }
    ensure!(tsc() > begin, "the time stamp counter stands still");
    Ok(())
}

fn hosts_ports_are_not_reached(_: &Machine<'_>) -> TestResult {
    for port in HOSTS {
        for byte in b"GUEST-FORGED-THIS\n" {
            outb(port, *byte);
        }
        outl(port - 3, 0x1010_1010);
        outw(port - 1, 0x1010);
        probe::rep_outsd(Registers {
            rsi: Page::ANY.address(),
            rcx: 16,
            rdx: port.into(),
            ..Default::default()
        })?;
        let found = inb(port);
        ensure!(found == u8::MAX, "port {port:#x} reads {found:#x}");
    }
    Ok(())
}

fn wild_accesses_are_harmless(machine: &Machine<'_>) -> TestResult {
    let keep_away = [
        // COM1 carries the report; 0x60 to 0x92 and 0xcf9 can reset, 0x600 powers off.
        COM1..=COM1 + 7,
        0x60..=0x92,
        0xcf0..=0xcff,
        0x5f0..=0x61f,
    ];
    let mut state = 1u64;
    for _ in 0..machine.options.count.min(512) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let port = (state >> 40) as u16;
        let (first, last) = (port.saturating_sub(3), port.saturating_add(3));
        if keep_away
            .iter()
            .any(|range| *range.end() >= first && *range.start() <= last)
        {
            continue;
        }
        match state >> 60 & 7 {
            0 => outb(port, state as u8),
            1 => outw(port, state as u16),
            2 => outl(port, state as u32),
            3 => {
                inw(port);
            }
            4 => {
                inl(port);
            }
            _ => {
                inb(port);
            }
        }
    }
    spin(1000);
    Ok(())
}

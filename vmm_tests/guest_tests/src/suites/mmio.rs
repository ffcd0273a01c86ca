//! Memory-mapped registers, by every form of instruction that compilers and people use.

use super::environment::access;
use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::memory::{Page, read32, write32};
use crate::machine::probe::{self, Instruction, Registers};
use crate::report::{Failure, TestResult};

pub(super) const TESTS: &[Test] = &[
    test(
        "mmio.io_apic_tells_what_it_is",
        Needs::Nothing,
        io_apic_tells_what_it_is,
    ),
    test(
        "mmio.io_apic_entries_keep_their_bits",
        Needs::Nothing,
        io_apic_entries_keep_their_bits,
    ),
    test(
        "mmio.every_form_of_instruction_works",
        Needs::Nothing,
        every_form_of_instruction_works,
    ),
    test("mmio.strings_work", Needs::Nothing, strings_work),
    test(
        "mmio.unclaimed_memory_reads_ones",
        Needs::Host,
        unclaimed_memory_reads_ones,
    ),
];

/// Offset of the window.
const WINDOW: u64 = 0x10;
/// Index of the low half of the entry that the tests change: pin 20, which nothing uses.
const SPARE_PIN: u8 = 20;
/// An entry's low half that does nothing: masked.
pub(super) const MASKED: u32 = 1 << 16;
/// Addresses of which nobody answers.
const UNCLAIMED: [u64; 3] = [0xfed4_0000, 0xe000_0000, 0xfff0_0000];

/// The I/O APIC.
#[derive(Debug, Clone, Copy)]
pub(super) struct IoApic(u64);

impl IoApic {
    /// That of the machine.
    pub(super) fn find(machine: &Machine<'_>) -> Result<Self, Failure> {
        match machine.tables.io_apic {
            Some(address) => Ok(Self(address.into())),
            None => Err(Failure::new(format_args!("the MADT names no I/O APIC"))),
        }
    }

    /// Reads a register.
    pub(super) fn read(self, index: u8) -> u32 {
        write32(self.0, index.into());
        read32(self.0 + WINDOW)
    }

    /// Writes a register.
    pub(super) fn write(self, index: u8, value: u32) {
        write32(self.0, index.into());
        write32(self.0 + WINDOW, value);
    }

    /// Low half of a pin's entry.
    pub(super) fn entry(self, pin: u8) -> u32 {
        self.read(0x10 + 2 * pin)
    }

    /// Sends a pin's interrupts to the APIC with this id.
    pub(super) fn route(self, pin: u8, low: u32, apic_id: u32) {
        self.write(0x10 + 2 * pin, low | MASKED);
        self.write(0x11 + 2 * pin, apic_id << 24);
        self.write(0x10 + 2 * pin, low);
    }
}

fn io_apic_tells_what_it_is(machine: &Machine<'_>) -> TestResult {
    let version = IoApic::find(machine)?.read(1);
    ensure!(
        version >> 16 & 0xff == 23,
        "version is {version:#x}, expected 24 pins"
    );
    ensure!(
        matches!(version & 0xff, 0x11 | 0x20),
        "version is {version:#x}"
    );
    Ok(())
}

fn io_apic_entries_keep_their_bits(machine: &Machine<'_>) -> TestResult {
    let io_apic = IoApic::find(machine)?;
    let low = 0x10 + 2 * SPARE_PIN;
    for value in [MASKED | 0x30, MASKED | 0xa9ff, MASKED | 0x8755] {
        io_apic.write(low, value);
        let found = io_apic.read(low);
        // Bits 12 and 14 are read only.
        ensure!(
            found == value & !0x5000,
            "entry is {found:#x}, expected {value:#x}"
        );
    }
    io_apic.write(low + 1, 0x0300_0000);
    let found = io_apic.read(low + 1);
    ensure!(found == 0x0300_0000, "destination is {found:#x}");
    io_apic.write(low, MASKED);
    Ok(())
}

fn every_form_of_instruction_works(machine: &Machine<'_>) -> TestResult {
    let io_apic = IoApic::find(machine)?;
    let window = io_apic.0 + WINDOW;
    let low = 0x10 + 2 * SPARE_PIN;
    let expect = |what: &str, expected: u32| -> TestResult {
        let found = io_apic.read(low);
        ensure!(
            found == expected,
            "{what}: entry is {found:#x}, expected {expected:#x}"
        );
        Ok(())
    };
    let step = |instruction: Instruction, value: u64| access(instruction, window, value);

    write32(io_apic.0, low.into());
    step(probe::store32, u64::from(MASKED | 0x31))?;
    expect("MOV", MASKED | 0x31)?;
    step(probe::or32, 0x2)?;
    expect("OR", MASKED | 0x33)?;
    step(probe::and32, !1)?;
    expect("AND", MASKED | 0x32)?;
    let old = step(probe::xchg32, u64::from(MASKED | 0x45))?;
    expect("XCHG", MASKED | 0x45)?;
    ensure!(old == u64::from(MASKED | 0x32), "XCHG has read {old:#x}");
    step(probe::store_constant, 0)?;
    // 0x12345678 without what is reserved or read only, and unmasked: pin 20 is idle.
    let constant = io_apic.read(low);
    ensure!(
        constant & 0xff == 0x78,
        "MOV of a constant: entry is {constant:#x}"
    );
    io_apic.write(low, MASKED | 0x45);

    let value = u64::from(MASKED | 0x45);
    let one = [
        (probe::load32 as Instruction, 0, value, "MOV"),
        (probe::load_signed, u64::MAX, value, "MOVSXD"),
        (probe::xor32_load, 0x40, value ^ 0x40, "XOR"),
        (probe::cmp32, value, 1, "CMP"),
        (probe::cmp32, 0, 0, "CMP"),
        (probe::test32, 0x40, 1, "TEST"),
        (probe::test32, 0x2, 0, "TEST"),
        (probe::bt32, 0, 1, "BT"),
    ];
    for (instruction, rax, expected, what) in one {
        let found = step(instruction, rax)?;
        ensure!(
            found == expected,
            "{what} gives {found:#x}, expected {expected:#x}"
        );
    }
    expect("reading", MASKED | 0x45)?;
    io_apic.write(low, MASKED);
    Ok(())
}

fn strings_work(machine: &Machine<'_>) -> TestResult {
    let io_apic = IoApic::find(machine)?;
    let low = 0x10 + 2 * SPARE_PIN;
    let value = MASKED | 0x47;
    Page::ANY.write(0, value.into());
    // From memory to the register.
    write32(io_apic.0, low.into());
    let r = probe::rep_movsd(Registers {
        rsi: Page::ANY.address(),
        rdi: io_apic.0 + WINDOW,
        rcx: 1,
        ..Default::default()
    })?;
    ensure!(r.rcx == 0 && r.rsi == Page::ANY.address() + 4, "{r:x?}");
    let found = io_apic.read(low);
    ensure!(
        found == value,
        "MOVSD: entry is {found:#x}, expected {value:#x}"
    );
    // From the register to memory.
    Page::ANY.write(0, 0);
    probe::rep_movsd(Registers {
        rsi: io_apic.0 + WINDOW,
        rdi: Page::ANY.address(),
        rcx: 1,
        ..Default::default()
    })?;
    let found = Page::ANY.read(0);
    ensure!(
        found == value.into(),
        "MOVSD: read {found:#x}, expected {value:#x}"
    );
    probe::rep_stosd(Registers {
        rdi: io_apic.0 + WINDOW,
        rcx: 1,
        rax: MASKED.into(),
        ..Default::default()
    })?;
    let found = io_apic.read(low);
    ensure!(
        found == MASKED,
        "STOSD: entry is {found:#x}, expected {MASKED:#x}"
    );
    Ok(())
}

fn unclaimed_memory_reads_ones(_: &Machine<'_>) -> TestResult {
    for address in UNCLAIMED {
        for (store, load, ones) in SIZES {
            access(store, address, 0x1122_3344_5566_7788)?;
            let found = access(load, address, 0)?;
            ensure!(
                found == ones,
                "at {address:#x} is {found:#x}, expected {ones:#x}"
            );
        }
    }
    Ok(())
}

/// Stores and loads of every size, and what a load of nothing gives.
pub(super) const SIZES: [(Instruction, Instruction, u64); 4] = [
    (probe::store8, probe::load8, 0xff),
    (probe::store16, probe::load16, 0xffff),
    (probe::store32, probe::load32, 0xffff_ffff),
    (probe::store64, probe::load64, u64::MAX),
];

use super::*;
use crate::guest_memory::tests::FakeRam;
use crate::svm::context::tests::linux_ap;
use crate::vtl::Machine;
use hv_defs::msr::*;
use igvm_loader::MemoryRange;
use page_table::LeafSize;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use x86_defs::svm::ExitCode;
use x86_defs::{EFER_LME, EFER_SVME};

/// RAM of the machine; the upper half is not VTL2's (as the host's memory is).
const RAM: u64 = 0x2_0000;
pub(crate) const VTL2_END: u64 = 0x1_0000;
/// RAM that the guest has too; the fake machine holds the content of [`GUEST_HELD`] of it.
pub(crate) const GUEST_RAM: MemoryRange = MemoryRange::new(4 << 30, 6 << 30);
/// Bytes of the guest's RAM that have a content.
pub(crate) const GUEST_HELD: u64 = 0x2_0000;
/// Where the code is that exits, unpaged.
pub(crate) const CODE: u64 = 0x8000;

pub(crate) struct FakeProcessor {
    pub ram: FakeRam,
    /// Memory from the start of [`GUEST_RAM`].
    pub guest_ram: FakeRam,
    pub tsc: Cell<u64>,
    pub woken: RefCell<Vec<u32>>,
    /// Interrupts that were sent: APIC id and vector.
    pub interrupted: RefCell<Vec<(u32, u8)>>,
    /// Deadline of each VP that has set or taken back one.
    pub timers: RefCell<BTreeMap<u32, Option<u64>>>,
    /// VPs whose timers were said to have fired.
    pub fired: RefCell<Vec<u32>>,
    pub written: RefCell<Vec<(u64, u32)>>,
    pub tsc_aux: Cell<u64>,
    pub debug_addresses: Cell<[u64; 4]>,
    pub xcr0: Cell<u64>,
    pub log: RefCell<Vec<String>>,
}

impl FakeProcessor {
    /// The memory that these bytes are in, and where.
    fn at(&self, address: u64, size: u64) -> (&FakeRam, u64) {
        match address.checked_sub(GUEST_RAM.start()) {
            Some(offset) => {
                assert!(offset + size <= GUEST_HELD, "{address:#x}");
                (&self.guest_ram, offset)
            }
            None => {
                assert!(address + size <= VTL2_END, "{address:#x}");
                (&self.ram, address)
            }
        }
    }
}

impl RamAccess for FakeProcessor {
    fn read_ram(&self, address: u64, out: &mut [u8]) {
        let (ram, address) = self.at(address, out.len() as u64);
        ram.read_ram(address, out);
    }

    fn write_ram(&self, address: u64, data: &[u8]) {
        let (ram, address) = self.at(address, data.len() as u64);
        ram.write_ram(address, data);
    }

    fn load_word(&self, address: u64) -> u32 {
        let (ram, address) = self.at(address, 4);
        ram.load_word(address)
    }

    fn store_word(&self, address: u64, value: u32) {
        let (ram, address) = self.at(address, 4);
        ram.store_word(address, value);
    }

    fn set_word_bits(&self, address: u64, bits: u32) -> u32 {
        let (ram, address) = self.at(address, 4);
        ram.set_word_bits(address, bits)
    }
}

impl Processor for FakeProcessor {
    fn cpuid(&self, leaf: u32, _: u32) -> cpuid::Registers {
        [leaf; 4]
    }

    fn tsc(&self) -> u64 {
        self.tsc.get()
    }

    fn wake(&self, apic_id: u32) {
        self.woken.borrow_mut().push(apic_id);
    }

    fn interrupt(&self, apic_id: u32, vector: u8) {
        self.interrupted.borrow_mut().push((apic_id, vector));
    }

    fn arm_timer(&self, vp: u32, at_tsc: Option<u64>) -> bool {
        self.timers.borrow_mut().insert(vp, at_tsc);
        at_tsc.is_some_and(|at| at <= self.tsc())
    }

    fn timer_fired(&self, vp: u32) {
        self.fired.borrow_mut().push(vp);
    }

    fn write_device(&self, address: u64, value: u32) {
        self.written.borrow_mut().push((address, value));
    }

    fn exchange_tsc_aux(&self, value: u64) -> u64 {
        self.tsc_aux.replace(value)
    }

    fn debug_addresses(&self) -> [u64; 4] {
        self.debug_addresses.get()
    }

    fn set_debug_addresses(&self, addresses: [u64; 4]) {
        self.debug_addresses.set(addresses);
    }

    fn xcr0(&self) -> u64 {
        self.xcr0.get()
    }

    fn set_xcr0(&self, value: u64) {
        self.xcr0.set(value);
    }

    fn log(&self, text: fmt::Arguments<'_>) {
        self.log.borrow_mut().push(text.to_string());
    }
}

/// Four VPs with APIC ids 1 to 4, and VP 0 in 64-bit code without paging tables: CR0.PG
/// is clear, so that code and data are where their addresses say.
pub(crate) fn setup() -> (Partition, Vp, FakeProcessor) {
    setup_with(|_| {})
}

/// The same, with something changed.
pub(crate) fn setup_with(change: impl FnOnce(&mut Config)) -> (Partition, Vp, FakeProcessor) {
    let machine = Machine {
        ram: &[MemoryRange::new(0, VTL2_END), GUEST_RAM],
        vtl2_ram: MemoryRange::new(0, VTL2_END),
        address_limit: 1 << 40,
        max_leaf: LeafSize::Size1G,
    };
    let mut config = Config {
        apic_ids: vec![1, 2, 3, 4],
        spaces: VtlSpace::all(&machine, |_| 0x1000).unwrap(),
        frequencies: Frequencies {
            tsc_hz: 1_000_000_000,
            lapic_hz: 1_000_000,
        },
        start_tsc: 0,
        iopms: [0; VTL_COUNT],
        msrpm: 0,
        alone: false,
    };
    change(&mut config);
    let partition = Partition::new(config);
    let mut vp = Vp::new(&partition, 0);
    vp.begin(Vtl::PARAVISOR, &StartContext::new(linux_ap()).unwrap());
    let save = &mut vp.vmcb_mut().save;
    save.cr0 = 1;
    save.rip = CODE;
    partition.enable_vp_vtl(0, Vtl::PARAVISOR).unwrap();
    let processor = FakeProcessor {
        ram: FakeRam::new(RAM as usize),
        guest_ram: FakeRam::new(GUEST_HELD as usize),
        tsc: Cell::new(5_000),
        woken: RefCell::default(),
        interrupted: RefCell::default(),
        timers: RefCell::default(),
        fired: RefCell::default(),
        written: RefCell::default(),
        tsc_aux: Cell::new(0),
        debug_addresses: Cell::default(),
        xcr0: Cell::new(1),
        log: RefCell::default(),
    };
    (partition, vp, processor)
}

fn exit(vp: &mut Vp, processor: &FakeProcessor, code: ExitCode, info1: u64, bytes: &[u8]) {
    processor.ram.write_ram(CODE, bytes);
    let vmcb = vp.vmcb_mut();
    vmcb.save.rip = CODE;
    vmcb.control.event_injection = 0.into();
    vmcb.control.exit_interrupt_info = 0;
    vmcb.control.exit_code = code;
    vmcb.control.exit_info1 = info1;
    vmcb.control.exit_info2 = CODE + 2;
}

/// Vector that is injected, if one is.
pub(crate) fn injected(vp: &Vp) -> Option<u8> {
    let event = vp.vmcb().control.event_injection;
    event.valid().then(|| event.vector())
}

fn wrmsr(
    partition: &Partition,
    vp: &mut Vp,
    processor: &FakeProcessor,
    msr: u32,
    value: u64,
) -> Option<u8> {
    vp.gprs[gpr::RCX] = msr.into();
    vp.gprs[gpr::RDX] = value >> 32;
    vp.vmcb_mut().save.rax = value & 0xffff_ffff;
    exit(vp, processor, ExitCode::MSR, 1, &[0x0f, 0x30]);
    assert_eq!(partition.handle_exit(vp, processor), Next::Resume);
    injected(vp)
}

fn rdmsr(
    partition: &Partition,
    vp: &mut Vp,
    processor: &FakeProcessor,
    msr: u32,
) -> Result<u64, u8> {
    vp.gprs[gpr::RCX] = msr.into();
    exit(vp, processor, ExitCode::MSR, 0, &[0x0f, 0x32]);
    assert_eq!(partition.handle_exit(vp, processor), Next::Resume);
    match injected(vp) {
        Some(vector) => Err(vector),
        None => Ok(vp.gprs[gpr::RDX] << 32 | vp.vmcb().save.rax),
    }
}

const GP: u8 = 13;
const UD: u8 = 6;

#[test]
fn cpuid_goes_on_behind_the_instruction() {
    let (partition, mut vp, processor) = setup();
    vp.vmcb_mut().save.rax = 0x4000_0000;
    exit(&mut vp, &processor, ExitCode::CPUID, 0, &[0x0f, 0xa2]);
    assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
    assert_eq!(vp.vmcb().save.rip, CODE + 2);
    assert_eq!(vp.gprs[gpr::RBX], 0x7263_694d);
}

#[test]
fn an_exit_at_other_bytes_is_an_invalid_opcode() {
    let (partition, mut vp, processor) = setup();
    exit(&mut vp, &processor, ExitCode::CPUID, 0, &[0x90, 0x90]);
    assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
    assert_eq!((injected(&vp), vp.vmcb().save.rip), (Some(UD), CODE));
}

#[test]
fn svm_is_neither_seen_nor_set() {
    let (partition, mut vp, processor) = setup();
    let efer = rdmsr(&partition, &mut vp, &processor, 0xc000_0080).unwrap();
    assert_eq!(efer & EFER_SVME, 0);
    assert_eq!(
        wrmsr(
            &partition,
            &mut vp,
            &processor,
            0xc000_0080,
            efer | EFER_SVME
        ),
        Some(GP)
    );
    assert_eq!(
        wrmsr(&partition, &mut vp, &processor, 0xc000_0080, efer),
        None
    );
    assert_ne!(vp.vmcb().save.efer & EFER_SVME, 0);
    vp.vmcb_mut().save.cr0 |= 1 << 31;
    // Paging needs tables for the fetch; ask the function itself.
    assert!(
        partition
            .write_msr(&mut vp, &processor, 0xc000_0080, efer & !EFER_LME)
            .is_err()
    );
}

#[test]
fn msrs_of_the_host_do_not_exist() {
    let (partition, mut vp, processor) = setup();
    for msr in [
        0xc001_0114,
        0xc001_0117,
        0xc001_0111,
        0xc001_0020,
        0x79,
        0x10,
        0x802,
    ] {
        assert_eq!(
            rdmsr(&partition, &mut vp, &processor, msr),
            Err(GP),
            "{msr:#x}"
        );
        assert_eq!(
            wrmsr(&partition, &mut vp, &processor, msr, 0),
            Some(GP),
            "{msr:#x}"
        );
    }
    let mut lines = 0;
    partition.counters.summary(|_| lines += 1);
    assert_eq!(lines, 14);
}

#[test]
fn the_apic_stays_where_it_is() {
    let (partition, mut vp, processor) = setup();
    let base = rdmsr(&partition, &mut vp, &processor, 0x1b).unwrap();
    assert_eq!(base, 0xfee0_0900);
    assert_eq!(wrmsr(&partition, &mut vp, &processor, 0x1b, base), None);
    for other in [base & !(1 << 11), base | 1 << 10, 0xfed0_0900] {
        assert_eq!(
            wrmsr(&partition, &mut vp, &processor, 0x1b, other),
            Some(GP)
        );
    }
    let mut second = Vp::new(&partition, 1);
    let base = partition.read_msr(&mut second, &processor, 0x1b).unwrap();
    assert_eq!(base, 0xfee0_0800);
}

#[test]
fn the_hypercall_page_needs_an_identity_and_memory_of_the_vtl() {
    let (partition, mut vp, processor) = setup();
    let mut write = |msr, value| wrmsr(&partition, &mut vp, &processor, msr, value);
    assert_eq!(write(HV_X64_MSR_HYPERCALL, 0x2001), None);
    assert_eq!(processor.ram.0.borrow()[0x2000], 0);
    assert_eq!(write(HV_X64_MSR_GUEST_OS_ID, 1), None);
    assert_eq!(write(HV_X64_MSR_HYPERCALL, VTL2_END | 1), Some(GP));
    assert_eq!(write(HV_X64_MSR_HYPERCALL, 0x2001), None);
    assert_eq!(processor.ram.0.borrow()[0x2000..0x2003], [0x0f, 0x01, 0xd9]);
    assert_eq!(write(HV_X64_MSR_GUEST_OS_ID, 0), None);
    assert_eq!(processor.ram.0.borrow()[0x2000], 0);
    assert_eq!(
        rdmsr(&partition, &mut vp, &processor, HV_X64_MSR_HYPERCALL),
        Ok(0x2000)
    );
}

#[test]
fn a_crash_is_told_once_with_its_text() {
    let (partition, mut vp, processor) = setup();
    processor
        .ram
        .write_ram(0x3000, b"first\nKernel panic - not syncing: why\n");
    for (msr, value) in [(3, 0x3000), (4, 38), (5, 3 << 62)] {
        let msr = HV_X64_MSR_CRASH_P0 + msr;
        assert_eq!(wrmsr(&partition, &mut vp, &processor, msr, value), None);
    }
    exit(&mut vp, &processor, ExitCode::SHUTDOWN, 0, &[]);
    let end = Next::End(ExitReason::Vtl2Crash);
    assert_eq!(partition.handle_exit(&mut vp, &processor), end);
    let log = processor.log.borrow();
    assert!(log[0].starts_with("VTL2 reports a crash: P0"), "{log:?}");
    assert_eq!(log[1], "  | first");
    assert_eq!(
        log[3],
        "VTL2 crashed: Kernel panic - not syncing: why (VP 0: triple fault)"
    );
    let efer = log.iter().find_map(|line| line.split_once("efer "));
    assert_eq!(efer.map(|(_, value)| value), Some("0xd01"), "{log:?}");
}

#[test]
fn a_vp_cannot_flood_the_log() {
    let (partition, mut vp, processor) = setup();
    for _ in 0..100 {
        wrmsr(
            &partition,
            &mut vp,
            &processor,
            HV_X64_MSR_CRASH_CTL,
            1 << 63,
        );
    }
    assert_eq!(processor.log.borrow().len(), 8);
    let mut summary = String::new();
    partition
        .counters
        .summary(|line| summary += &line.to_string());
    assert_eq!(summary, "refused 92 times: further report of a VP");
    // The last report is still the one that the end is explained with.
    exit(&mut vp, &processor, ExitCode::SHUTDOWN, 0, &[]);
    let _ = partition.handle_exit(&mut vp, &processor);
    assert!(processor.log.borrow()[8].contains("no text (VP 0: triple fault)"));
}

#[test]
fn a_fetch_from_forbidden_memory_is_said_to_be_one() {
    let (partition, mut vp, processor) = setup();
    exit(&mut vp, &processor, ExitCode::NPF, 1 << 32 | 1 << 4, &[]);
    vp.vmcb_mut().control.exit_info2 = 0x0700_0000;
    let _ = partition.handle_exit(&mut vp, &processor);
    let expected = "VTL2 crashed: VP 0: executes at GPA 0x7000000, which it does not have";
    assert_eq!(processor.log.borrow()[0], expected);
}

#[test]
fn memory_that_is_not_mapped_ends_the_machine_with_the_address() {
    let (partition, mut vp, processor) = setup();
    exit(&mut vp, &processor, ExitCode::NPF, 2, &[]);
    vp.vmcb_mut().control.exit_info2 = 0x0700_0000;
    let end = Next::End(ExitReason::Vtl2Crash);
    assert_eq!(partition.handle_exit(&mut vp, &processor), end);
    assert_eq!(
        processor.log.borrow()[0],
        "VTL2 crashed: VP 0: writes to GPA 0x7000000, which it does not have"
    );
}

#[test]
fn a_corrupted_emulator_is_not_blamed_on_the_vtl() {
    let (partition, mut vp, processor) = setup();
    exit(&mut vp, &processor, ExitCode::NPF, 2, &[]);
    vp.vmcb_mut().save.cr3 = vsm_host_defs::HOST_MEMORY_BASE + 0x1000;
    let end = Next::End(ExitReason::HostError);
    assert_eq!(partition.handle_exit(&mut vp, &processor), end);
}

#[test]
fn ports_of_the_host_are_silent() {
    let (partition, mut vp, processor) = setup();
    vp.vmcb_mut().save.rax = 0x1234;
    // IN AL from 0xe9.
    exit(
        &mut vp,
        &processor,
        ExitCode::IOIO,
        0xe9 << 16 | 1 << 4 | 1,
        &[],
    );
    assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
    assert_eq!(vp.vmcb().save.rax, 0x12ff);
    assert_eq!(vp.vmcb().save.rip, CODE + 2);
    // OUTSB.
    exit(
        &mut vp,
        &processor,
        ExitCode::IOIO,
        0xe9 << 16 | 1 << 4 | 1 << 2,
        &[],
    );
    assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
    assert_eq!(injected(&vp), Some(GP));
}

#[test]
fn instructions_of_the_host_are_invalid_opcodes() {
    let (partition, mut vp, processor) = setup();
    for code in (0x80..=0x86)
        .chain([0x7a, 0x8d])
        .filter(|code| *code != 0x81)
    {
        exit(&mut vp, &processor, ExitCode(code), 0, &[]);
        assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
        assert_eq!(injected(&vp), Some(UD), "{code:#x}");
    }
}

#[test]
fn an_interrupted_delivery_is_repeated() {
    let (partition, mut vp, processor) = setup();
    exit(&mut vp, &processor, ExitCode::CPUID, 0, &[0x0f, 0xa2]);
    vp.vmcb_mut().control.exit_interrupt_info = 1 << 31 | 0x42;
    assert_eq!(partition.handle_exit(&mut vp, &processor), Next::Resume);
    assert_eq!(injected(&vp), Some(0x42));
}

proptest! {
    #[test]
    fn no_msr_access_harms_the_host(
        msr in prop_oneof![
            any::<u32>(), 0x4000_0000..0x4000_0130u32, 0u32..0x400, 0xc000_0080..0xc000_0084u32
        ],
        values in prop::collection::vec(any::<u64>(), 1..4),
        os_id: bool,
    ) {
        let (partition, mut vp, processor) = setup();
        if os_id {
            wrmsr(&partition, &mut vp, &processor, HV_X64_MSR_GUEST_OS_ID, 1);
        }
        for value in values {
            vp.gprs[gpr::RCX] = msr.into();
            vp.gprs[gpr::RDX] = value >> 32;
            vp.vmcb_mut().save.rax = value;
            exit(&mut vp, &processor, ExitCode::MSR, 1, &[0x0f, 0x30]);
            let next = partition.handle_exit(&mut vp, &processor);
            prop_assert!(next == Next::Resume || next == Next::End(ExitReason::Reset));
            let _ = rdmsr(&partition, &mut vp, &processor, msr);
            prop_assert_ne!(vp.vmcb().save.efer & EFER_SVME, 0);
        }
    }

    #[test]
    fn no_exit_panics(code: u64, known in 0x60u64..0x90, pick: bool, info1: u64, info2: u64, bytes: [u8; 15]) {
        let (partition, mut vp, processor) = setup();
        exit(&mut vp, &processor, ExitCode(if pick { known } else { code }), info1, &bytes);
        vp.vmcb_mut().control.exit_info2 = info2;
        let _ = partition.handle_exit(&mut vp, &processor);
    }
}

/// A write by the instruction itself, as the processor tells it.
const STORE: u64 = 1 << 32 | 0b110;

#[test]
fn apic_writes_are_carried_out_unless_they_start_cpus() {
    let (partition, mut vp, processor) = setup();
    let mut store = |gpa, ecx, bytes: &[u8]| {
        exit(&mut vp, &processor, ExitCode::NPF, STORE, bytes);
        vp.vmcb_mut().control.exit_info2 = gpa;
        vp.gprs[gpr::RCX] = ecx;
        (
            partition.handle_exit(&mut vp, &processor),
            vp.vmcb().save.rip,
        )
    };
    // mov dword ptr [rax], 7; mov [rax], ecx
    let number = [0xc7, 0x00, 7, 0, 0, 0];
    let register = [0x89, 0x08];
    let next = (Next::Resume, CODE + 2);
    assert_eq!(store(0xfee0_00b0, 0, &number), (Next::Resume, CODE + 6));
    assert_eq!(store(0xfee0_0310, 0x100_0000, &register), next);
    assert_eq!(store(0xfee0_0300, 0x4500, &register), next);
    assert_eq!(store(0xfee0_0300, 0x40fb, &register), next);
    // The high half of an entry of the IOAPIC, then INIT in the low one.
    assert_eq!(store(0xfec0_0000, 0x11, &register), next);
    assert_eq!(store(0xfec0_0010, 0x4500, &register), next);
    assert_eq!(store(0xfec0_0000, 0x10, &register), next);
    assert_eq!(store(0xfec0_0010, 0x4500, &register), next);
    let written = [
        (0xfee0_00b0, 7),
        (0xfee0_0310, 0x100_0000),
        (0xfee0_0300, 0x40fb),
        (0xfec0_0000, 0x11),
        (0xfec0_0010, 0x4500),
        (0xfec0_0000, 0x10),
    ];
    assert_eq!(*processor.written.borrow(), written);
    // Any other instruction is a crash, as is any other page.
    let end = Next::End(ExitReason::Vtl2Crash);
    assert_eq!(store(0xfee0_0300, 0, &[0x87, 0x08]).0, end);
    assert_eq!(store(0xfee0_1300, 0, &register).0, end);
}

#[test]
fn page_tables_in_the_apic_are_a_crash() {
    let (partition, mut vp, processor) = setup();
    // The walk writes, whatever the instruction is.
    exit(
        &mut vp,
        &processor,
        ExitCode::NPF,
        1 << 33 | 2,
        &[0x89, 0x08],
    );
    vp.vmcb_mut().control.exit_info2 = 0xfee0_00b0;
    let end = Next::End(ExitReason::Vtl2Crash);
    assert_eq!(partition.handle_exit(&mut vp, &processor), end);
    assert!(processor.written.borrow().is_empty());
}

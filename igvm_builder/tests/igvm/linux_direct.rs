//! Images without a paravisor, as the host's loader reads them.

use crate::synthetic::{EXECUTABLE, X86_64, elf, kernel_segments, pattern};
use igvm_builder::{LinuxDirect, LinuxDirectError};
use igvm_loader::{HostMemoryWriter, Options, plan, q35};
use std::collections::BTreeMap;
use vm_loader::x86_64::{LoadError, ZERO_PAGE_GPA};
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};

const MIB: u64 = 1 << 20;

#[derive(Default)]
struct Memory(BTreeMap<u64, u8>);

impl HostMemoryWriter for Memory {
    fn write(&mut self, address: u64, data: &[u8]) {
        self.0.extend((address..).zip(data.iter().copied()));
    }
    fn zero(&mut self, address: u64, size: u64) {
        self.0.extend((address..address + size).map(|at| (at, 0)));
    }
}

impl Memory {
    fn read(&self, address: u64, size: u64) -> Vec<u8> {
        let byte = |at| self.0.get(&at).copied().unwrap_or(0xaa);
        (address..address + size).map(byte).collect()
    }

    fn number(&self, address: u64, size: u64) -> u64 {
        let bytes = self.read(address, size);
        bytes
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte))
    }
}

fn kernel() -> Vec<u8> {
    elf(EXECUTABLE, X86_64, 0x100_0040, &kernel_segments())
}

fn direct<'a>(kernel: &'a [u8], initrd: &'a [u8]) -> LinuxDirect<'a> {
    LinuxDirect {
        kernel,
        initrd: Some(initrd),
        command_line: "console=ttyS0 quiet",
        memory: 512 * MIB,
        vps: 2,
        first_apic_id: 1,
    }
}

#[test]
fn host_finds_linux_where_the_boot_protocol_wants_it() {
    let (kernel, initrd) = (kernel(), pattern(0x3456, 11));
    let file = direct(&kernel, &initrd).build().expect("it fits");
    let machine = q35::machine(1, 2, 512 * MIB, file.len() as u64);
    let plan = plan(&file, &machine, &Options::default()).unwrap_or_else(|error| panic!("{error}"));
    let mut memory = Memory::default();
    plan.execute(&mut memory);

    assert_eq!(plan.vtl(), 0);
    let context = plan.context();
    assert_eq!(context.state().rip, 0x100_0040);
    assert_eq!(context.gprs[6], ZERO_PAGE_GPA);
    assert_eq!(memory.read(0x100_0000, 0x2100), pattern(0x2100, 3));
    assert_eq!(memory.read(0x100_9800, 0x2800), vec![0; 0x2800], "BSS");
    let ramdisk = memory.number(ZERO_PAGE_GPA + 0x218, 4);
    assert_eq!(memory.number(ZERO_PAGE_GPA + 0x21c, 4), 0x3456);
    assert_eq!(memory.read(ramdisk, 0x3456), initrd);
    let command_line = memory.number(ZERO_PAGE_GPA + 0x228, 4);
    assert_eq!(memory.read(command_line, 20), b"console=ttyS0 quiet\0");
    let rsdp = memory.number(ZERO_PAGE_GPA + 0x70, 8);
    assert_eq!(memory.read(rsdp, 8), b"RSD PTR ");
}

#[test]
fn guest_is_told_to_leave_the_hosts_memory_alone() {
    let (kernel, initrd) = (kernel(), pattern(0x1000, 11));
    let file = direct(&kernel, &initrd).build().expect("it fits");
    let machine = q35::machine(1, 2, 512 * MIB, file.len() as u64);
    let plan = plan(&file, &machine, &Options::default()).expect("it can be loaded");
    let mut memory = Memory::default();
    plan.execute(&mut memory);

    const RAM: u64 = 1;
    let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
    let entries = memory.number(ZERO_PAGE_GPA + 0x1e8, 1);
    let mut ram = 0;
    for entry in 0..entries {
        let at = ZERO_PAGE_GPA + 0x2d0 + entry * 20;
        let (start, size) = (memory.number(at, 8), memory.number(at + 8, 8));
        if memory.number(at + 16, 4) == RAM {
            assert!(
                start + size <= host.start || start >= host.end,
                "{start:#x}"
            );
            ram += size;
        }
    }
    assert!(ram > 490 * MIB, "{ram:#x}");
}

#[test]
fn same_guest_gives_the_same_file() {
    let (kernel, initrd) = (kernel(), pattern(0x1000, 11));
    let build = || direct(&kernel, &initrd).build().expect("it fits");
    assert!(build() == build());
}

#[test]
fn guest_that_does_not_fit_is_refused_by_name() {
    let (kernel, initrd) = (kernel(), pattern(64 << 20, 11));
    let small = LinuxDirect {
        memory: 96 * MIB,
        ..direct(&kernel, &initrd)
    };
    let error = small.build().expect_err("there is no room");
    let LinuxDirectError::Load(LoadError::InitrdDoesNotFit { .. }) = error else {
        panic!("{error}");
    };
    let garbage = small.kernel[..100].to_vec();
    let error = direct(&garbage, &[1]).build().expect_err("no kernel");
    assert!(error.to_string().starts_with("guest kernel:"), "{error}");
}

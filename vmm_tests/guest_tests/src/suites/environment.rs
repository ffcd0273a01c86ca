//! What the guest is told: memory map, ACPI, identity of the hypervisor.

use super::{Machine, Needs, Test, test};
use crate::ensure;
use crate::machine::memory::MAPPED_END;
use crate::machine::probe::{self, Registers, cpuid};
use crate::report::TestResult;
use hv_defs::cpuid::{HV_CPUID_INTERFACE, HV_CPUID_VENDOR, HV_INTERFACE, HV_VENDOR};
use loader_defs::linux::E820_RAM;

pub(super) const TESTS: &[Test] = &[
    test(
        "environment.probes_see_faults",
        Needs::Nothing,
        probes_see_faults,
    ),
    test(
        "environment.hypervisor_is_hyper_v",
        Needs::Host,
        hypervisor_is_hyper_v,
    ),
    test(
        "environment.virtualization_is_hidden",
        Needs::Host,
        virtualization_is_hidden,
    ),
    test(
        "environment.memory_map_is_in_order",
        Needs::Nothing,
        memory_map_is_in_order,
    ),
    test(
        "environment.memory_map_tells_no_secrets",
        Needs::Nothing,
        memory_map_tells_no_secrets,
    ),
    test(
        "environment.ram_keeps_what_is_written",
        Needs::Nothing,
        ram_keeps_what_is_written,
    ),
    test(
        "environment.apic_ids_are_vp_numbers",
        Needs::Nothing,
        apic_ids_are_vp_numbers,
    ),
];

/// CPUID 1, ECX: x2APIC.
pub(super) const X2APIC: u32 = 1 << 21;
/// CPUID 1, ECX: TSC deadline timer.
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID 1, ECX: VMX.
const VMX: u32 = 1 << 5;
/// CPUID 0x8000_0001, ECX: SVM.
const SVM: u32 = 1 << 2;
/// CPUID 0x8000_0001, ECX: SKINIT.
const SKINIT: u32 = 1 << 12;
/// What the kernel itself is in, and what lies below.
const OWN_END: u64 = 16 << 20;

fn probes_see_faults(_: &Machine<'_>) -> TestResult {
    let fault = probe::int3(Registers::default());
    ensure!(
        fault.is_err_and(|fault| fault.vector == 3),
        "INT3 gives {fault:?}"
    );
    Ok(())
}

fn hypervisor_is_hyper_v(_: &Machine<'_>) -> TestResult {
    let [max, vendor @ ..] = cpuid(HV_CPUID_VENDOR);
    ensure!(max >= 0x4000_0005, "highest leaf is {max:#x}");
    ensure!(vendor == HV_VENDOR, "vendor is {vendor:x?}");
    let [interface, ..] = cpuid(HV_CPUID_INTERFACE);
    ensure!(interface == HV_INTERFACE, "interface is {interface:#x}");
    let features = cpuid(1)[2];
    ensure!(
        features & X2APIC != 0,
        "x2APIC is not offered: {features:#x}"
    );
    ensure!(
        features & TSC_DEADLINE != 0,
        "TSC deadline is not offered: {features:#x}"
    );
    Ok(())
}

fn virtualization_is_hidden(_: &Machine<'_>) -> TestResult {
    let features = cpuid(1)[2];
    ensure!(features & VMX == 0, "VMX is offered: {features:#x}");
    let extended = cpuid(0x8000_0001)[2];
    ensure!(
        extended & (SVM | SKINIT) == 0,
        "SVM is offered: {extended:#x}"
    );
    let svm = cpuid(0x8000_000a);
    ensure!(svm == [0; 4], "the leaf of SVM has {svm:x?}");
    Ok(())
}

fn memory_map_is_in_order(machine: &Machine<'_>) -> TestResult {
    let map = &machine.boot.memory_map;
    let mut end = 0u64;
    for entry in map {
        ensure!(
            entry.start >= end && entry.size > 0,
            "{entry:x?} overlaps what ends at {end:#x}"
        );
        end = entry.start.saturating_add(entry.size);
    }
    let low = map
        .iter()
        .any(|entry| entry.kind == E820_RAM && entry.start < 0x1000);
    ensure!(low, "no RAM begins in page 0: {:x?}", map.first());
    Ok(())
}

fn memory_map_tells_no_secrets(machine: &Machine<'_>) -> TestResult {
    for range in machine.options.forbidden() {
        for entry in &machine.boot.memory_map {
            let end = entry.start.saturating_add(entry.size);
            ensure!(
                entry.kind != E820_RAM || end <= range.start || entry.start >= range.end,
                "RAM {entry:x?} overlaps {range:x?}"
            );
        }
    }
    Ok(())
}

fn ram_keeps_what_is_written(machine: &Machine<'_>) -> TestResult {
    let ram = machine
        .boot
        .memory_map
        .iter()
        .filter(|entry| entry.kind == E820_RAM);
    for entry in ram {
        let end = entry.start.saturating_add(entry.size).min(MAPPED_END) & !7;
        let start = entry.start.max(OWN_END).next_multiple_of(8);
        if end <= start {
            continue;
        }
        // The first and the last word, and some between; each gets its own address.
        let step = ((end - start) / 16).next_multiple_of(8);
        let addresses = || (start..end - 8).step_by(step as usize).chain([end - 8]);
        for address in addresses() {
            access(probe::store64, address, !address)?;
        }
        for address in addresses() {
            let found = access(probe::load64, address, 0)?;
            ensure!(found == !address, "at {address:#x} is {found:#x}");
        }
    }
    Ok(())
}

/// An access to memory at `address`; RAX afterwards.
pub(super) fn access(
    instruction: probe::Instruction,
    address: u64,
    value: u64,
) -> Result<u64, probe::Fault> {
    instruction(Registers {
        rbx: address,
        rax: value,
        ..Default::default()
    })
    .map(|registers| registers.rax)
}

fn apic_ids_are_vp_numbers(machine: &Machine<'_>) -> TestResult {
    ensure!(
        !machine.tables.processors.is_empty(),
        "the MADT lists no processor"
    );
    for (vp, apic_id) in machine.vps() {
        ensure!(
            apic_id as usize == vp,
            "VP {vp} has APIC id {apic_id} in the MADT"
        );
    }
    if let Some(expected) = machine.options.vps {
        let found = machine.tables.processors.len();
        ensure!(
            found == expected as usize,
            "{found} processors, expected {expected}"
        );
    }
    Ok(())
}

//! Each register and rule after the manuals; priorities and timer against models; posting
//! under loom; and guests that try everything.

#![expect(unused_must_use, reason = "most effects are not what a test is about")]

mod assist;
mod hostile;
mod ipi;
mod modes;
mod posting;
mod priority;
mod registers;
mod saved;
mod timer;

use super::*;
use std::vec::Vec;
use x86_defs::apic::ApicRegister;

/// Ticks per second.
const TICK_HZ: u64 = 2_000_000_000;
/// Bus clocks per second: two ticks each.
const BUS_HZ: u64 = 1_000_000_000;

/// A processor that takes everything.
const OPEN: CpuState = CpuState {
    interrupts: true,
    nmis: true,
    occupied: false,
};

fn config(apic_id: u32) -> Config {
    Config {
        apic_id,
        bsp: apic_id == 0,
        x2apic: true,
        tsc_deadline: true,
        rates: Rates::new(TICK_HZ, BUS_HZ, 0),
    }
}

/// APIC 0, as after reset.
fn fresh() -> LocalApic {
    LocalApic::new(config(0))
}

/// APIC 0, whose software accepts interrupts.
fn xapic() -> LocalApic {
    let mut apic = fresh();
    write(&mut apic, ApicRegister::SVR, 0x1ff);
    apic
}

/// The same in x2APIC mode.
fn x2apic() -> LocalApic {
    let mut apic = xapic();
    apic.write_msr(0x1b, 0xfee0_0d00, 0).unwrap();
    apic
}

fn write(apic: &mut LocalApic, register: ApicRegister, value: u32) -> Effect {
    apic.write_mmio(u64::from(register.0) << 4, 4, value, 0)
}

fn read(apic: &mut LocalApic, register: ApicRegister) -> u32 {
    apic.read_mmio(u64::from(register.0) << 4, 4, 0) as u32
}

/// What the processor is given, without an assist page.
fn injected(apic: &mut LocalApic) -> Option<Injection> {
    apic.plan(OPEN, &mut ()).inject
}

fn interrupt(vector: u8) -> Option<Injection> {
    Some(Injection::Interrupt(vector))
}

/// Every vector that is injected until none is left, each ended at once.
fn drain(apic: &mut LocalApic) -> Vec<u8> {
    let mut vectors = Vec::new();
    while let Some(Injection::Interrupt(vector)) = injected(apic) {
        vectors.push(vector);
        let _ = apic.end_of_interrupt();
    }
    vectors
}

//! MADT: processors and interrupt controllers. The `acpi_tables` crate has no structures
//! for x2APICs, overrides and NMIs, so all of them are here.

use super::{Chipset, Signal, table};
use acpi_tables::sdt::Sdt;
use alloc::vec::Vec;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, Unaligned};

/// The highest ID of a processor that a local APIC structure can hold; 255 means all.
const LOCAL_APIC_MAX: u32 = 254;
/// Flag of a processor: enabled.
const ENABLED: u32 = 1;
/// Flag of the table: there are 8259s as well.
const PCAT_COMPAT: u32 = 1;
/// Revision of the table (ACPI 6.5).
const REVISION: u8 = 6;
/// "All processors" in a local APIC NMI structure.
const ALL_PROCESSORS: u8 = 0xff;
/// The same in a local x2APIC NMI structure.
const ALL_X2APIC_PROCESSORS: u32 = u32::MAX;

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LocalApic {
    structure: u8,
    length: u8,
    uid: u8,
    apic_id: u8,
    flags: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct IoApic {
    structure: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    first_gsi: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Override {
    structure: u8,
    length: u8,
    bus: u8,
    isa_irq: u8,
    gsi: U32,
    flags: U16,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LocalApicNmi {
    structure: u8,
    length: u8,
    uid: u8,
    flags: U16,
    input: u8,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct X2Apic {
    structure: u8,
    length: u8,
    reserved: U16,
    apic_id: U32,
    flags: U32,
    uid: U32,
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct X2ApicNmi {
    structure: u8,
    length: u8,
    flags: U16,
    uid: U32,
    input: u8,
    reserved: [u8; 3],
}

/// The table.
pub(super) fn build(chipset: &Chipset<'_>) -> Sdt {
    let mut body = Vec::new();
    let flags = if chipset.has_pic { PCAT_COMPAT } else { 0 };
    add(&mut body, &[U32::new(chipset.local_apic), U32::new(flags)]);
    let mut has_x2apic = false;
    for (uid, processor) in (0..).zip(chipset.processors) {
        has_x2apic |= add_processor(&mut body, uid, processor.apic_id);
    }
    for io_apic in chipset.io_apics {
        let structure = IoApic {
            structure: 1,
            length: size_of::<IoApic>() as u8,
            id: io_apic.id,
            reserved: 0,
            address: io_apic.address.into(),
            first_gsi: io_apic.first_gsi.into(),
        };
        add(&mut body, &structure);
    }
    for item in chipset.overrides {
        let structure = Override {
            structure: 2,
            length: size_of::<Override>() as u8,
            bus: 0,
            isa_irq: item.isa_irq,
            gsi: item.gsi.into(),
            flags: signal_flags(item.signal).into(),
        };
        add(&mut body, &structure);
    }
    if let Some(input) = chipset.nmi_input {
        add_nmi(&mut body, input, has_x2apic);
    }
    table(*b"APIC", REVISION, &body)
}

/// Adds a processor; returns whether it takes an x2APIC structure.
fn add_processor(body: &mut Vec<u8>, uid: u32, apic_id: u32) -> bool {
    let small = apic_id <= LOCAL_APIC_MAX && uid <= LOCAL_APIC_MAX;
    if small {
        let structure = LocalApic {
            structure: 0,
            length: size_of::<LocalApic>() as u8,
            uid: uid as u8,
            apic_id: apic_id as u8,
            flags: ENABLED.into(),
        };
        add(body, &structure);
    } else {
        let structure = X2Apic {
            structure: 9,
            length: size_of::<X2Apic>() as u8,
            reserved: U16::ZERO,
            apic_id: apic_id.into(),
            flags: ENABLED.into(),
            uid: uid.into(),
        };
        add(body, &structure);
    }
    !small
}

fn add_nmi(body: &mut Vec<u8>, input: u8, has_x2apic: bool) {
    let structure = LocalApicNmi {
        structure: 4,
        length: size_of::<LocalApicNmi>() as u8,
        uid: ALL_PROCESSORS,
        flags: U16::ZERO,
        input,
    };
    add(body, &structure);
    if has_x2apic {
        let structure = X2ApicNmi {
            structure: 0xa,
            length: size_of::<X2ApicNmi>() as u8,
            flags: U16::ZERO,
            uid: ALL_X2APIC_PROCESSORS.into(),
            input,
            reserved: [0; 3],
        };
        add(body, &structure);
    }
}

/// MPS INTI flags: polarity in bits 0 and 1, trigger mode in bits 2 and 3.
fn signal_flags(signal: Signal) -> u16 {
    let polarity = if signal.active_low { 3 } else { 1 };
    let trigger = if signal.level_triggered { 3 } else { 1 };
    polarity | trigger << 2
}

fn add<T: IntoBytes + Immutable + ?Sized>(body: &mut Vec<u8>, structure: &T) {
    body.extend_from_slice(structure.as_bytes());
}

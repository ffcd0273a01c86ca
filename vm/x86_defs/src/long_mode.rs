//! The state of a processor that starts in 64-bit mode, as a loader makes it: flat
//! segments and a GDT that holds them. It is what the 64-bit boot protocol of Linux asks
//! for (selectors 0x10 and 0x18), and what the boot shim gets too.

use crate::{
    CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE, RFLAGS_ALWAYS_ONE,
};

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// First linear address.
    pub base: u64,
    /// Last offset.
    pub limit: u32,
    /// Selector: byte offset in the GDT.
    pub selector: u16,
    /// Bits 40 to 47 and 52 to 55 of the descriptor, in bits 0 to 7 and 12 to 15.
    pub attributes: u16,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// The GDT: two unused entries, 64-bit code, data. Both are flat, of ring 0, and marked as
/// accessed.
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// What CS holds.
pub const CODE: Segment = flat_segment(2);
/// What DS, ES, FS, GS and SS hold.
pub const DATA: Segment = flat_segment(3);
/// A present busy 64-bit task segment, as after a reset: the processor wants one, nobody
/// uses it.
pub const TASK: Segment = Segment {
    base: 0,
    limit: 0xffff,
    selector: 0,
    attributes: 0x8b,
};
/// A present local descriptor table without entries, as after a reset.
pub const LOCAL_TABLE: Segment = Segment {
    base: 0,
    limit: 0xffff,
    selector: 0,
    attributes: 0x82,
};

/// CR0: protected mode with paging.
pub const CR0: u64 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
/// CR4: the page-table format of long mode.
pub const CR4: u64 = CR4_PAE;
/// EFER: long mode, active, with the no-execute bit.
pub const EFER: u64 = EFER_LME | EFER_LMA | EFER_NXE;
/// RFLAGS: interrupts are disabled.
pub const RFLAGS: u64 = RFLAGS_ALWAYS_ONE;

/// What loading the selector of entry `index` of [`GDT`] gives.
const fn flat_segment(index: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        attributes: (GDT[index as usize] >> 40) as u16 & 0xf0ff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat_64_bit_code_and_data() {
        assert_eq!((CODE.selector, CODE.attributes), (0x10, 0xa09b));
        assert_eq!((DATA.selector, DATA.attributes), (0x18, 0xc093));
    }

    #[test]
    fn only_defined_bits_are_set() {
        assert_eq!(CR0 & !crate::CR0_DEFINED, 0);
        assert_eq!(CR4 & !crate::CR4_DEFINED, 0);
        assert_eq!(EFER, 0xd00);
    }
}

//! In which state a sidecar CPU starts.

use crate::map;
use hv_defs::vp_context::HvInitialVpContext;
use hv_defs::vp_context::HvX64SegmentRegister;
use hv_defs::vp_context::HvX64TableRegister;
use hv_defs::vp_context::SegmentAttributes;
use x86_defs::PAT_AT_RESET;

/// Selector of code in the descriptor table.
pub const CODE_SELECTOR: u16 = 0x08;
/// Selector of data.
pub const DATA_SELECTOR: u16 = 0x10;

/// PE, NE, WP, PG, and the bit that is always one.
const CR0: u64 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// PAE, MCE, and what FXSAVE needs to see SSE.
const CR4: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;
/// LME, LMA, NXE.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// The bit that is always one: interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// A descriptor table: linear address and limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Linear address.
    pub base: u64,
    /// Last byte.
    pub limit: u16,
}

impl From<Descriptors> for HvX64TableRegister {
    fn from(table: Descriptors) -> Self {
        Self {
            pad: [0; 3],
            limit: table.limit,
            base: table.base,
        }
    }
}

/// The state of a CPU with these tables that begins at `entry`, as if it had been called.
pub fn initial(
    entry: u64,
    page_tables: u64,
    gdt: Descriptors,
    idt: Descriptors,
) -> HvInitialVpContext {
    let segment = |selector, attributes: u16| HvX64SegmentRegister {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        attributes: SegmentAttributes::from_bits(attributes),
    };
    let data = segment(DATA_SELECTOR, 0xc093);
    HvInitialVpContext {
        rip: entry,
        rsp: map::STACK_TOP - 8,
        rflags: RFLAGS,
        // Present, code, 64-bit, granularity.
        cs: segment(CODE_SELECTOR, 0xa09b),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        // A busy task state segment, which must be there and is not used.
        tr: HvX64SegmentRegister {
            limit: 0x67,
            ..segment(0, 0x8b)
        },
        ldtr: HvX64SegmentRegister {
            limit: 0,
            ..segment(0, 0x82)
        },
        idtr: idt.into(),
        gdtr: gdt.into(),
        efer: EFER,
        cr0: CR0,
        cr3: page_tables,
        cr4: CR4,
        msr_cr_pat: PAT_AT_RESET,
    }
}

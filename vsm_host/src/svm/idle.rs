//! Where a CPU waits whose VP has nothing to do in VTL0: a block of the host's own.
//!
//! It must notice two things: an NMI (somebody calls, or its timer) and a physical
//! interrupt, which is VTL2's and must stay where it is, in the local APIC. HLT of the host
//! itself would take the interrupt; HLT as a guest whose interrupts exit does not. The
//! guest is a loop in the host's code, with the host's page tables and no nested ones.

use super::vmcb;
use alloc::boxed::Box;
use x86_defs::svm::{Intercepts3, Segment, VirtualInterrupt, Vmcb};
use x86_defs::{DR6_AT_RESET, DR7_AT_RESET, EFER_SVME, RFLAGS_ALWAYS_ONE};

/// Registers of the host that the loop runs with.
#[derive(Debug, Clone, Copy)]
pub struct HostState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Selector of the code segment.
    pub cs: u16,
    /// Selector of the data segments.
    pub ds: u16,
    /// Address of the loop.
    pub rip: u64,
}

/// 64-bit code: present, executable, readable, accessed; long.
const CODE: u16 = 0x29b;
/// Data: present, writable, accessed; 32-bit, in pages.
const DATA: u16 = 0xc93;

/// The block. `asid` is no VTL's.
pub fn block(host: &HostState, asid: u32) -> Box<Vmcb> {
    let mut block = vmcb::new(0, 0, 0, asid);
    let control = &mut block.control;
    control.nested_paging = 0;
    control.intercepts3 = Intercepts3::new()
        .with_intr(true)
        .with_nmi(true)
        .with_smi(true)
        .with_init(true)
        .with_shutdown(true)
        .into_bits();
    // The loop raises none.
    control.intercept_exceptions = u32::MAX;
    control.virtual_interrupt = VirtualInterrupt::new().with_masking(true);
    let segment = |selector, attributes| Segment {
        selector,
        attributes,
        limit: u32::MAX,
        base: 0,
    };
    let save = &mut block.save;
    save.cs = segment(host.cs, CODE);
    for data in [&mut save.ds, &mut save.es, &mut save.ss] {
        *data = segment(host.ds, DATA);
    }
    save.cr0 = host.cr0;
    save.cr3 = host.cr3;
    save.cr4 = host.cr4;
    save.efer = host.efer | EFER_SVME;
    save.rflags = RFLAGS_ALWAYS_ONE;
    save.rip = host.rip;
    save.dr6 = DR6_AT_RESET;
    save.dr7 = DR7_AT_RESET;
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_interrupts_and_calls_end_the_wait_and_hlt_does_not() {
        let host = HostState {
            cr0: 0x8005_0031,
            cr3: 0x1000,
            cr4: 0x20,
            efer: 0x1d00,
            cs: 8,
            ds: 0x10,
            rip: 0x700_0000,
        };
        let block = Box::new(block(&host, 4));
        let intercepts = Intercepts3::from_bits(block.control.intercepts3);
        assert!(intercepts.intr() && intercepts.nmi() && !intercepts.hlt());
        let interrupts = block.control.virtual_interrupt;
        assert!(interrupts.masking() && !interrupts.irq());
        assert_eq!(block.control.nested_paging, 0);
        assert_eq!((block.save.rip, block.save.cr3), (host.rip, host.cr3));
    }
}

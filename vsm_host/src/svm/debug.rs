//! Hardware breakpoints of VTLs.
//!
//! QEMU 7.2 sets a breakpoint of its own when MOV writes DR7 or an address register, and
//! VMRUN and exits only assign DR7: the breakpoints of a guest stay where they are, in host
//! and VTLs alike. One on an instruction raises #DB there, whatever DR7 says. So no VTL sets
//! them by itself: its writes of DR7 exit, and so do those of DR0 to DR3 while a breakpoint is
//! on. The host arms the breakpoints of a VTL just before VMRUN, and takes them back just
//! behind it. DR7 of the control block is what the VTL has written; it reads that.
//!
//! Only those on instructions are armed, and not those at addresses of the host, whose code
//! runs on both sides of VMRUN. One on data or ports never fires. QEMU remembers a watched
//! access that has been made until the instruction ends: if it ends in an exit, the #DB comes
//! in the host, and what QEMU remembers is gone when the host has taken the breakpoint back.
//!
//! DR7.GD has no effect: the emulated processor does not know it. Another one raises its #DB
//! before the intercept.

use crate::partition::Processor;
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};
use x86_defs::svm::{DebugIntercepts, ExitCode, Vmcb};
use x86_defs::{DR7_AT_RESET, DR7_ENABLED};

/// DR7, which DR5 can be another name of.
const CONTROL: u16 = 1 << 7 | 1 << 5;
/// DR0 to DR3.
const ADDRESSES: u16 = 0xf;

/// Whether a breakpoint is on.
pub const fn is_on(dr7: u64) -> bool {
    dr7 & DR7_ENABLED != 0
}

/// Whether a VTL writes one of the registers that [`prepare`] lets exit.
pub const fn is_write(code: ExitCode) -> bool {
    matches!(
        code,
        ExitCode::DR0_WRITE
            | ExitCode::DR1_WRITE
            | ExitCode::DR2_WRITE
            | ExitCode::DR3_WRITE
            | ExitCode::DR5_WRITE
            | ExitCode::DR7_WRITE
    )
}

/// Before an entry.
pub fn prepare(vmcb: &mut Vmcb) {
    // A task switch, which takes enabling bits back, makes QEMU set anew what the host has
    // left out if that changes another bit too: this one is always set then.
    vmcb.save.dr7 |= DR7_AT_RESET;
    let addresses = if is_on(vmcb.save.dr7) { ADDRESSES } else { 0 };
    vmcb.control.intercept_dr = DebugIntercepts::new()
        .with_writes(CONTROL | addresses)
        .into_bits();
}

/// What the host has in DR7 when it enters a VTL with this DR7; `None`: nothing is to be armed.
pub fn armed(dr7: u64, processor: &impl Processor) -> Option<u64> {
    if !is_on(dr7) {
        return None;
    }
    let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
    let enabled = (0..)
        .zip(processor.debug_addresses())
        .filter(|(index, address)| {
            let on_instruction = dr7 >> (16 + 4 * index) & 3 == 0;
            on_instruction && !host.contains(address)
        })
        .fold(0, |bits, (index, _)| bits | dr7 & 3 << (2 * index));
    // Of the kind and size of an instruction, which are zero, whatever the VTL says of others.
    (enabled != 0).then_some(DR7_AT_RESET | enabled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::tests::setup;
    use crate::svm::vmcb;

    fn armed_with(dr7: u64, addresses: [u64; 4]) -> Option<u64> {
        let (_, _, processor) = setup();
        processor.set_debug_addresses(addresses);
        armed(dr7, &processor)
    }

    #[test]
    fn breakpoints_on_instructions_are_armed() {
        let addresses = [0x1000, 0xffff_ffff_8100_0000, 0, 0x2000];
        assert_eq!(armed_with(0x400, addresses), None);
        assert_eq!(armed_with(0x401, addresses), Some(0x401));
        assert_eq!(armed_with(0x4ff, addresses), Some(0x4ff));
        assert_eq!(armed_with(0x708, addresses), Some(0x408));
    }

    #[test]
    fn those_on_data_and_ports_are_not() {
        // Writes, ports and accesses; the fourth is on an instruction.
        let dr7 = 0x03a9_0455;
        assert_eq!(armed_with(dr7, [0x1000; 4]), Some(0x455 & !0x15 | 0x40));
        assert_eq!(armed_with(0x0001_0401, [0x1000; 4]), None);
    }

    #[test]
    fn those_in_the_host_are_not() {
        let end = HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
        let addresses = [HOST_MEMORY_BASE - 1, HOST_MEMORY_BASE, end - 1, end];
        assert_eq!(armed_with(0x4ff, addresses), Some(0x4c3));
        assert_eq!(armed_with(0x40c, addresses), None);
    }

    #[test]
    fn writes_of_addresses_exit_while_a_breakpoint_is_on() {
        let mut vmcb = vmcb::new(0, 0, 0, 1);
        for (dr7, writes) in [(0, 0xa0), (0x400, 0xa0), (0x0003_0000, 0xa0), (0x40, 0xaf)] {
            vmcb.save.dr7 = dr7;
            prepare(&mut vmcb);
            assert_eq!(vmcb.control.intercept_dr, writes << 16);
            assert_eq!(vmcb.save.dr7, dr7 | 0x400);
        }
    }
}

//! RFLAGS that the emulator has got wrong.
//!
//! QEMU before 8.0 computes the flags of CMPXCHG16B, of which ZF alone is the instruction's,
//! from whatever an earlier instruction has computed: an exit right behind it leaves such a
//! value in the block. Most bits of it do not exist; others the VTL would go on with, and
//! virtual-8086 mode, a nested task or a reversed direction soon kill it. A Linux with four
//! processors meets that in its allocator, in every second boot.
//!
//! Where it can be told, the host repairs the value. ZF is right, and so is IF, which is not
//! computed; nobody looks at the others behind a CMPXCHG16B.

use super::store::operand_length;
use super::{fetch, vmcb};
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;
use x86_defs::{
    EFER_LMA, RFLAGS_AF, RFLAGS_ALWAYS_ONE, RFLAGS_CF, RFLAGS_DEFINED, RFLAGS_IF, RFLAGS_OF,
    RFLAGS_PF, RFLAGS_SF, RFLAGS_VM, RFLAGS_ZF,
};

/// CMPXCHG16B behind its prefixes; then comes ModRM with register 1.
const CMPXCHG16B: [u8; 2] = [0x0f, 0xc7];
/// It has no more bytes than these behind its prefixes: ModRM, SIB, displacement.
const LONGEST: usize = CMPXCHG16B.len() + 1 + 1 + 4;
/// Set and cleared by arithmetic, so that they say nothing.
const ORDINARY: u64 = RFLAGS_CF
    | RFLAGS_ALWAYS_ONE
    | RFLAGS_PF
    | RFLAGS_AF
    | RFLAGS_ZF
    | RFLAGS_SF
    | RFLAGS_IF
    | RFLAGS_OF;

/// Repairs the flags of a VTL that has left. True: they needed it.
pub fn repair<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, save: &mut Save) -> bool {
    if save.rflags & !ORDINARY == 0 {
        return false;
    }
    let long = save.efer & EFER_LMA != 0;
    let possible = RFLAGS_DEFINED | if long { 0 } else { RFLAGS_VM };
    let wrong = save.rflags & !possible != 0 || is_behind_cmpxchg16b(memory, save);
    if wrong {
        save.rflags = save.rflags & (RFLAGS_IF | RFLAGS_ZF) | RFLAGS_ALWAYS_ONE;
    }
    wrong
}

fn is_behind_cmpxchg16b<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, save: &Save) -> bool {
    let mut bytes = [0; LONGEST];
    let from = save.rip.wrapping_sub(LONGEST as u64);
    vmcb::is_64_bit(save)
        && fetch::read(memory, save, from, &mut bytes) == LONGEST
        && ends_with_cmpxchg16b(&bytes)
}

fn ends_with_cmpxchg16b(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| {
        let Some([modrm, rest @ ..]) = bytes[at..].strip_prefix(&CMPXCHG16B) else {
            return false;
        };
        modrm >> 3 & 7 == 1 && operand_length(*modrm, rest.first()) == Some(rest.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::tests::FakeRam;
    use igvm_loader::MemoryRange;
    use x86_defs::svm::Vmcb;
    use zerocopy::FromZeros;

    const RIP: u64 = 0x100;

    /// What becomes of flags behind `code`, in 64-bit code without paging.
    fn repaired(flags: u64, code: &[u8]) -> u64 {
        let ram = FakeRam::new(0x1000);
        ram.write_ram(RIP - code.len() as u64, code);
        let allowed = [MemoryRange::new(0, 0x1000)];
        let mut vmcb = Box::new(Vmcb::new_zeroed());
        let save = &mut vmcb.save;
        save.efer = EFER_LMA;
        save.cs.attributes = 0x29b;
        (save.rip, save.rflags) = (RIP, flags);
        repair(&GuestMemory::new(&ram, &allowed), save);
        save.rflags
    }

    #[test]
    fn flags_that_do_not_exist_are_repaired() {
        for (found, right) in [
            (0xc277_8ec2, 0x242),
            (0x18c_4ac2, 0x242),
            (0x3ed4_f642, 0x242),
            (0x2_0202, 0x202),
            (0x8086, 2),
        ] {
            assert_eq!(repaired(found, &[0x90]), right, "{found:#x}");
        }
    }

    #[test]
    fn flags_that_exist_are_repaired_behind_the_instruction_only() {
        // lock cmpxchg16b [rdi]; gs: cmpxchg16b [rsi]; cmpxchg16b [r12 + 0x20]
        for code in [
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0f][..],
            &[0x65, 0x48, 0x0f, 0xc7, 0x0e],
            &[0x49, 0x0f, 0xc7, 0x4c, 0x24, 0x20],
        ] {
            assert_eq!(repaired(0xc_6046, code), 0x42, "{code:x?}");
        }
        for code in [
            &[0x90][..],
            &[0x48, 0x0f, 0xc7, 0xf0],       // rdrand rax
            &[0x48, 0x0f, 0xc7, 0x0f, 0x90], // and one more
        ] {
            assert_eq!(repaired(0xc_6046, code), 0xc_6046, "{code:x?}");
        }
    }

    #[test]
    fn other_flags_stay() {
        for flags in [0x2, 0x246, 0xad7, 0x4_0246, 0x302, 0x1_0202] {
            assert_eq!(repaired(flags, &[0x90]), flags, "{flags:#x}");
        }
    }
}

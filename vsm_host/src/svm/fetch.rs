//! How long the instruction is that exited.
//!
//! The emulated processor does not tell the next RIP, so the host fetches the bytes
//! through the guest's own page tables and recognises the few instructions that exit.
//! Bytes that do not match (another VP has changed them, or they are prefixed in a way
//! that no assembler emits) lead to #UD, never to a guess.

use super::paging::{self, Request};
use super::vmcb;
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;

/// No instruction is longer.
pub(super) const MAX_LENGTH: usize = 15;

/// An instruction that exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// VMMCALL.
    Vmmcall,
    /// HLT.
    Hlt,
    /// XSETBV.
    Xsetbv,
    /// INVD.
    Invd,
    /// INT1.
    Icebp,
}

impl Instruction {
    const fn opcode(self) -> &'static [u8] {
        match self {
            Self::Cpuid => &[0x0f, 0xa2],
            Self::Rdmsr => &[0x0f, 0x32],
            Self::Wrmsr => &[0x0f, 0x30],
            Self::Vmmcall => &[0x0f, 0x01, 0xd9],
            Self::Hlt => &[0xf4],
            Self::Xsetbv => &[0x0f, 0x01, 0xd1],
            Self::Invd => &[0x0f, 0x08],
            Self::Icebp => &[0xf1],
        }
    }
}

/// RIP behind `instruction`, at which `save` stands; `None` if it does not stand there.
pub fn next_rip<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    save: &Save,
    instruction: Instruction,
) -> Option<u64> {
    let long = vmcb::is_64_bit(save);
    let mut bytes = [0; MAX_LENGTH];
    let fetched = fetch(memory, save, &mut bytes);
    let length = length_of(&bytes[..fetched], instruction, long)?;
    let next = save.rip.wrapping_add(length as u64);
    Some(if long { next } else { u64::from(next as u32) })
}

/// Length of `instruction` with its prefixes if the bytes begin with it.
fn length_of(bytes: &[u8], instruction: Instruction, long: bool) -> Option<usize> {
    let opcode_at = bytes.iter().position(|byte| {
        !(matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3)
            || long && matches!(byte, 0x40..=0x4f))
    })?;
    let opcode = instruction.opcode();
    bytes[opcode_at..]
        .starts_with(opcode)
        .then_some(opcode_at + opcode.len())
}

/// Reads the code at which `save` stands; returns how many bytes could be read.
pub fn fetch<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    save: &Save,
    out: &mut [u8],
) -> usize {
    let linear = if vmcb::is_64_bit(save) {
        save.rip
    } else {
        u64::from((save.cs.base as u32).wrapping_add(save.rip as u32))
    };
    read(memory, save, linear, out)
}

/// Reads code at a linear address; returns how many bytes could be read.
pub(super) fn read<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    save: &Save,
    linear: u64,
    out: &mut [u8],
) -> usize {
    let mut done = 0;
    while done < out.len() {
        let at = linear.wrapping_add(done as u64);
        let in_page = (4096 - (at & 0xfff)) as usize;
        let size = in_page.min(out.len() - done);
        // Permissions do not matter, the processor has just executed there.
        let Ok(gpa) = paging::translate(memory, save, at, &Request::ANY) else {
            break;
        };
        if memory.read(gpa, &mut out[done..done + size]).is_err() {
            break;
        }
        done += size;
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::tests::FakeRam;
    use crate::svm::context::{self, tests::linux_ap};
    use crate::svm::vmcb;
    use igvm_loader::MemoryRange;
    use igvm_loader::StartContext;
    use proptest::prelude::*;
    use x86_defs::svm::Vmcb;

    const SIZE: usize = 0x8000;
    const RIP: u64 = 0xffff_ffff_8100_0ffe;

    /// RAM with page tables at 0x1000 that map the two pages from `RIP` to 0x5000, 0x6000.
    fn ram(code: &[u8]) -> FakeRam {
        let ram = FakeRam::new(SIZE);
        ram.write_ram(0x1000 + 511 * 8, &0x2003u64.to_le_bytes());
        ram.write_ram(0x2000 + 510 * 8, &0x3003u64.to_le_bytes());
        ram.write_ram(0x3000 + 8 * 8, &0x4003u64.to_le_bytes());
        ram.write_ram(0x4000, &0x5003u64.to_le_bytes());
        ram.write_ram(0x4008, &0x6003u64.to_le_bytes());
        ram.write_ram(0x5ffe, code);
        ram
    }

    fn vmcb() -> Box<Vmcb> {
        let mut vmcb = Box::new(vmcb::new(0, 0, 0, 1));
        context::apply(&StartContext::new(linux_ap()).unwrap(), &mut vmcb);
        vmcb.save.cr3 = 0x1000;
        vmcb.save.rip = RIP;
        vmcb
    }

    fn run(code: &[u8], instruction: Instruction) -> Option<u64> {
        let ram = ram(code);
        let allowed = [MemoryRange::new(0, SIZE as u64)];
        next_rip(&GuestMemory::new(&ram, &allowed), &vmcb().save, instruction)
    }

    #[test]
    fn instructions_are_measured_also_across_pages() {
        assert_eq!(run(&[0x0f, 0xa2], Instruction::Cpuid), Some(RIP + 2));
        assert_eq!(
            run(&[0x0f, 0x01, 0xd9], Instruction::Vmmcall),
            Some(RIP + 3)
        );
        assert_eq!(
            run(&[0x66, 0x48, 0x0f, 0x32], Instruction::Rdmsr),
            Some(RIP + 4)
        );
    }

    #[test]
    fn other_bytes_are_not_taken_for_the_instruction() {
        assert_eq!(run(&[0x0f, 0xa2], Instruction::Rdmsr), None);
        assert_eq!(run(&[0xf0, 0x0f, 0xa2], Instruction::Cpuid), None);
        assert_eq!(run(&[0x66; 16], Instruction::Cpuid), None);
    }

    #[test]
    fn page_tables_outside_the_vtl_are_not_read() {
        let ram = ram(&[0x0f, 0xa2]);
        let allowed = [MemoryRange::new(0x4000, SIZE as u64)];
        let memory = GuestMemory::new(&ram, &allowed);
        assert_eq!(next_rip(&memory, &vmcb().save, Instruction::Cpuid), None);
    }

    proptest! {
        #[test]
        fn hostile_page_tables_and_registers_do_no_harm(
            entries in prop::collection::vec((0..SIZE as u64 / 8, any::<u64>()), 0..64),
            rip: u64, cr0: u64, cr3: u64, cr4: u64, efer: u64, attributes: u16,
        ) {
            let ram = ram(&[0x0f, 0xa2]);
            for (index, entry) in entries {
                ram.write_ram(index * 8, &(entry & 0x7fff).to_le_bytes());
            }
            let allowed = [MemoryRange::new(0, SIZE as u64)];
            let mut vmcb = vmcb();
            let save = &mut vmcb.save;
            (save.rip, save.cr0, save.cr4, save.efer) = (rip, cr0, cr4, efer);
            save.cr3 = cr3 & 0x7000;
            save.cs.attributes = attributes;
            let _ = next_rip(&GuestMemory::new(&ram, &allowed), save, Instruction::Cpuid);
        }
    }
}

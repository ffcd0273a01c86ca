//! How long the instruction is that exited.
//!
//! The emulated processor does not tell the next RIP, so the host fetches the bytes
//! through the guest's own page tables and recognises the few instructions that exit.
//! Bytes that do not match (another VP has changed them, or they are prefixed in a way
//! that no assembler emits) lead to #UD, never to a guess.

use super::paging::{self, Request};
use super::vmcb;
use crate::guest_memory::{GuestMemory, RamAccess};
use core::cell::Cell;
use igvm_loader::PAGE_SIZE;
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

/// The page of kernel code at which a VTL exited last. Kernels exit at the same few places
/// again and again; the way there through their page tables and the nested ones is most of
/// what the host does for such an exit.
///
/// It may be out of date, as the processor's own translations may. The bytes are read anew
/// each time, and count only if they are the instruction that has exited: at worst the VTL
/// goes on at the wrong one of its own instructions, if it has replaced this page by another
/// that has the same instruction, with other prefixes, at the same place. Applications, who
/// do not trust each other, are left out.
#[derive(Debug, Default)]
pub struct CodePage(Cell<Option<Known>>);

#[derive(Debug, Clone, Copy)]
struct Known {
    cr3: u64,
    linear: u64,
    gpa: u64,
}

impl CodePage {
    /// [`next_rip`], faster if the VTL has exited in this page before.
    pub fn next_rip<R: RamAccess + ?Sized>(
        &self,
        memory: &GuestMemory<'_, R>,
        save: &Save,
        instruction: Instruction,
    ) -> Option<u64> {
        if save.cpl != 0 || !vmcb::is_64_bit(save) {
            return next_rip(memory, save, instruction);
        }
        let offset = save.rip % PAGE_SIZE;
        let linear = save.rip - offset;
        let known = self.0.get();
        if let Some(known) = known.filter(|known| (known.cr3, known.linear) == (save.cr3, linear)) {
            let mut bytes = [0; MAX_LENGTH];
            let bytes = &mut bytes[..MAX_LENGTH.min((PAGE_SIZE - offset) as usize)];
            if memory.read(known.gpa + offset, bytes).is_ok()
                && let Some(length) = length_of(bytes, instruction, true)
            {
                return Some(save.rip.wrapping_add(length as u64));
            }
        }
        let next = next_rip(memory, save, instruction)?;
        let gpa = paging::translate(memory, save, linear, &Request::ANY);
        let (cr3, known) = (save.cr3, gpa.ok());
        self.0.set(known.map(|gpa| Known { cr3, linear, gpa }));
        Some(next)
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
        let mut vmcb = vmcb::new(0, 0, 0, 1);
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
    fn a_known_page_is_read_anew_and_left_when_it_is_another() {
        let ram = ram(&[0x0f, 0xa2, 0x66, 0x0f, 0xa2]);
        let allowed = [MemoryRange::new(0, SIZE as u64)];
        let memory = GuestMemory::new(&ram, &allowed);
        let page = CodePage::default();
        let mut vmcb = vmcb();
        let save = &mut vmcb.save;
        let next = |save: &mut Save, rip| {
            save.rip = rip;
            let found = page.next_rip(&memory, save, Instruction::Cpuid);
            assert_eq!(found, next_rip(&memory, save, Instruction::Cpuid));
            found.map(|next| next - rip)
        };
        // Up to the end of a page, and in the next one.
        assert_eq!(next(save, RIP), Some(2));
        assert_eq!(next(save, RIP), Some(2));
        assert_eq!(next(save, RIP + 2), Some(3));
        // The instruction is no longer there, then the page is another.
        ram.write_ram(0x6000, &[0x0f, 0x32]);
        assert_eq!(next(save, RIP + 2), None);
        ram.write_ram(0x4008, &0x7003u64.to_le_bytes());
        ram.write_ram(0x7000, &[0x0f, 0xa2]);
        assert_eq!(next(save, RIP + 2), Some(2));
        // Another address space, and an application in it.
        ram.write_ram(0x1000, &[0; 0x1000]);
        save.cr3 = 0x2000;
        assert_eq!(next(save, RIP + 2), None);
    }

    #[test]
    fn what_an_application_executes_is_always_looked_up() {
        let ram = ram(&[0x0f, 0xa2]);
        let allowed = [MemoryRange::new(0, SIZE as u64)];
        let memory = GuestMemory::new(&ram, &allowed);
        let page = CodePage::default();
        let mut vmcb = vmcb();
        vmcb.save.cpl = 3;
        let found = page.next_rip(&memory, &vmcb.save, Instruction::Cpuid);
        assert_eq!(found, Some(RIP + 2));
        assert!(page.0.get().is_none());
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

//! The guest's page tables, walked as the processor does (APM volume 2, chapter 5).
//!
//! All four formats: 32-bit, PAE, and long mode with four or five levels. Accessed and
//! dirty bits are set once the access is known to be permitted. Of the reserved bits, only
//! those are checked that depend on no processor model; protection keys are not known.

use crate::{Access, Cpu, TranslateError, Width};
use arrayvec::ArrayVec;
use bitfield_struct::bitfield;
use x86_defs::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, RFLAGS_AC,
};

const MAX_LEVELS: usize = 5;

/// How often a walk starts again, because the guest has changed an entry meanwhile.
const WALK_TRIES: u32 = 16;

/// Address bits of an entry of eight bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct Entry {
    present: bool,
    writable: bool,
    user: bool,
    #[bits(2)]
    __: u8,
    accessed: bool,
    dirty: bool,
    large: bool,
    #[bits(55)]
    __: u64,
    no_execute: bool,
}

/// Error code of a page fault.
#[bitfield(u32)]
struct PageFaultCode {
    protection: bool,
    write: bool,
    user: bool,
    reserved: bool,
    fetch: bool,
    #[bits(27)]
    __: u32,
}

/// What the control registers say about page tables.
#[derive(Debug, Clone, Copy)]
struct Format {
    root: u64,
    levels: u32,
    /// Bits of the address that select an entry.
    index_bits: u32,
    entry: Width,
    long: bool,
    large_pages: bool,
    no_execute: bool,
}

/// What the access may do.
#[derive(Debug, Clone, Copy)]
struct Rights {
    access: Access,
    user: bool,
    write_protect: bool,
    smep: bool,
    smap: bool,
}

/// What an attempt to walk came to.
enum Walk {
    Found(u64),
    /// An entry was changed by somebody else.
    Changed,
}

/// Translates a linear address. The address is canonical, or the upper bits are ignored.
pub fn walk<C: Cpu + ?Sized>(
    cpu: &mut C,
    linear: u64,
    access: Access,
) -> Result<u64, TranslateError<C::Error>> {
    let cr0 = cpu.cr0();
    if cr0 & CR0_PG == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    let (cr4, efer) = (cpu.cr4(), cpu.efer());
    let format = Format::new(cpu.cr3(), cr4, efer);
    let rights = Rights {
        access,
        user: cpu.cpl() == 3,
        write_protect: cr0 & CR0_WP != 0,
        smep: cr4 & CR4_SMEP != 0,
        smap: cr4 & CR4_SMAP != 0 && cpu.rflags() & RFLAGS_AC == 0,
    };
    for _ in 0..WALK_TRIES {
        if let Walk::Found(gpa) = try_walk(cpu, format, rights, linear)? {
            return Ok(gpa);
        }
    }
    Err(TranslateError::Busy)
}

impl Format {
    fn new(cr3: u64, cr4: u64, efer: u64) -> Self {
        let long = efer & EFER_LMA != 0;
        if long || cr4 & CR4_PAE != 0 {
            Self {
                root: if long {
                    cr3 & ADDRESS
                } else {
                    cr3 & 0xffff_ffe0
                },
                levels: match (long, cr4 & CR4_LA57 != 0) {
                    (false, _) => 3,
                    (true, false) => 4,
                    (true, true) => 5,
                },
                index_bits: 9,
                entry: Width::Qword,
                long,
                large_pages: true,
                no_execute: efer & EFER_NXE != 0,
            }
        } else {
            Self {
                root: cr3 & 0xffff_f000,
                levels: 2,
                index_bits: 10,
                entry: Width::Dword,
                long,
                large_pages: cr4 & CR4_PSE != 0,
                no_execute: false,
            }
        }
    }

    /// The bits of an address that are below what an entry of this level decides.
    fn offset_bits(&self, level: u32) -> u32 {
        12 + self.index_bits * (level - 1)
    }

    fn is_leaf(&self, level: u32, entry: Entry) -> bool {
        let can_be_large = level == 2 && self.large_pages || level == 3 && self.long;
        level == 1 || can_be_large && entry.large()
    }

    /// In PAE format without long mode, the four entries of the top have no rights.
    fn has_rights(&self, level: u32) -> bool {
        self.long || level < 3
    }

    fn is_reserved(&self, level: u32, entry: Entry) -> bool {
        self.entry == Width::Qword && entry.no_execute() && !self.no_execute
            || self.long && level >= 4 && entry.large()
    }

    /// Where a leaf leads.
    fn target(&self, level: u32, entry: Entry, linear: u64) -> u64 {
        let bits = entry.into_bits();
        let offset = (1 << self.offset_bits(level)) - 1;
        let base = if self.entry == Width::Qword {
            bits & ADDRESS
        } else if level == 2 {
            // Bits 32 to 39 of the address stand in bits 13 to 20 (section 5.2.2).
            bits & 0xffc0_0000 | (bits >> 13 & 0xff) << 32
        } else {
            bits & 0xffff_f000
        };
        base & !offset | linear & offset
    }
}

impl Rights {
    fn permits(&self, writable: bool, user: bool, no_execute: bool) -> bool {
        let supervisor_only = !user;
        match (self.user, self.access) {
            (true, _) if supervisor_only => false,
            (true, Access::Read) => true,
            (true, Access::Write) => writable,
            (_, Access::Execute) => !no_execute && (self.user || !(user && self.smep)),
            (false, _) if user && self.smap => false,
            (false, Access::Read) => true,
            (false, Access::Write) => writable || !self.write_protect,
        }
    }

    fn fault(&self, format: &Format, protection: bool, reserved: bool) -> u32 {
        PageFaultCode::new()
            .with_protection(protection)
            .with_write(self.access == Access::Write)
            .with_user(self.user)
            .with_reserved(reserved)
            .with_fetch(self.access == Access::Execute && (format.no_execute || self.smep))
            .into_bits()
    }
}

fn try_walk<C: Cpu + ?Sized>(
    cpu: &mut C,
    format: Format,
    rights: Rights,
    linear: u64,
) -> Result<Walk, TranslateError<C::Error>> {
    let fault = |protection, reserved| {
        TranslateError::PageFault(rights.fault(&format, protection, reserved))
    };
    let mut path: ArrayVec<(u64, Entry, u32), MAX_LEVELS> = ArrayVec::new();
    let (mut writable, mut user, mut no_execute) = (true, true, false);
    let mut table = format.root;
    let mut level = format.levels;
    let target = loop {
        let index = linear >> format.offset_bits(level) & ((1 << format.index_bits) - 1);
        let index = if format.has_rights(level) {
            index
        } else {
            index & 3
        };
        let gpa = table + index * format.entry.bytes() as u64;
        let entry = read_entry(cpu, gpa, format.entry)?;
        if !entry.present() {
            return Err(fault(false, false));
        }
        if format.has_rights(level) {
            if format.is_reserved(level, entry) {
                return Err(fault(true, true));
            }
            writable &= entry.writable();
            user &= entry.user();
            no_execute |= format.no_execute && entry.no_execute();
            path.push((gpa, entry, level));
        }
        if format.has_rights(level) && format.is_leaf(level, entry) {
            break format.target(level, entry, linear);
        }
        table = match format.entry {
            Width::Qword => entry.into_bits() & ADDRESS,
            _ => entry.into_bits() & 0xffff_f000,
        };
        level -= 1;
    };
    if !rights.permits(writable, user, no_execute) {
        return Err(fault(true, false));
    }
    for (gpa, entry, at) in path {
        let dirty = entry.dirty() || at == level && rights.access == Access::Write;
        let marked = entry.with_accessed(true).with_dirty(dirty);
        if marked != entry {
            let exchanged = cpu
                .compare_exchange(gpa, format.entry, entry.into_bits(), marked.into_bits())
                .map_err(TranslateError::Cpu)?;
            if !exchanged {
                return Ok(Walk::Changed);
            }
        }
    }
    Ok(Walk::Found(target))
}

fn read_entry<C: Cpu + ?Sized>(
    cpu: &mut C,
    gpa: u64,
    width: Width,
) -> Result<Entry, TranslateError<C::Error>> {
    if !cpu.is_memory(gpa) {
        return Err(TranslateError::TableOutsideMemory(gpa));
    }
    let mut bytes = [0; 8];
    cpu.read_memory(gpa, &mut bytes[..width.bytes()])
        .map_err(TranslateError::Cpu)?;
    Ok(Entry::from_bits(u64::from_le_bytes(bytes)))
}

//! A walk through the page tables of a VTL, in every paging mode of the processor
//! (APM volume 2, chapter 5).
//!
//! The tables are memory of the VTL: they may be anywhere, absent, protected by a higher
//! VTL, and change at any moment. Each entry is read once.

use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;
use x86_defs::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, RFLAGS_AC,
};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Address of the table of four entries in CR3, without long mode.
const PAE_ROOT: u64 = 0xffff_ffe0;
/// Bits of an entry of that table that must be zero.
const PAE_ROOT_RESERVED: u64 = 0xfff0_0000_0000_01e6;

/// Privilege that a walk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Supervisor and user pages are alike.
    Exempt,
    /// Supervisor; SMAP counts if the flag says so.
    Supervisor {
        /// Pages of the user may not be read and written.
        smap: bool,
    },
    /// User.
    User,
}

/// What a walk asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The page must permit reading.
    pub read: bool,
    /// It must permit writing.
    pub write: bool,
    /// It must permit execution.
    pub execute: bool,
    /// Who asks.
    pub privilege: Privilege,
    /// Set accessed and dirty bits as the processor does.
    pub set_bits: bool,
}

impl Request {
    /// Where an address leads, whatever is permitted there.
    pub const ANY: Self = Self {
        read: false,
        write: false,
        execute: false,
        privilege: Privilege::Exempt,
        set_bits: false,
    };
}

/// Why there is no translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An entry is not present, or the address is not canonical.
    NotPresent,
    /// The page does not permit the access.
    Privilege,
    /// An entry has bits that must be zero.
    Reserved,
    /// A table is not memory of the VTL.
    Unmapped,
    /// A table is protected from being read.
    NoRead,
    /// A table is protected from being written.
    NoWrite,
}

/// The ways in which linear addresses are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Two levels, entries of 32 bits.
    Legacy,
    /// Three levels.
    Pae,
    /// Four or five levels.
    Long { levels: u32 },
}

impl Mode {
    fn of(save: &Save) -> Option<Self> {
        if save.cr0 & CR0_PG == 0 {
            return None;
        }
        Some(if save.efer & EFER_LMA != 0 {
            let levels = if save.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
            Self::Long { levels }
        } else if save.cr4 & CR4_PAE != 0 {
            Self::Pae
        } else {
            Self::Legacy
        })
    }

    fn levels(self) -> u32 {
        match self {
            Self::Legacy => 2,
            Self::Pae => 3,
            Self::Long { levels } => levels,
        }
    }

    fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Legacy => cr3 & 0xffff_f000,
            Self::Pae => cr3 & PAE_ROOT,
            Self::Long { .. } => cr3 & ADDRESS,
        }
    }

    /// Bits of an address that are below the index of a level (1 is the lowest).
    fn shift(self, level: u32) -> u32 {
        let index_bits = if self == Self::Legacy { 10 } else { 9 };
        12 + index_bits * (level - 1)
    }

    /// Address of the entry of `linear` in a table.
    fn entry(self, table: u64, linear: u64, level: u32) -> u64 {
        let index = linear >> self.shift(level);
        match self {
            Self::Legacy => table + (index & 0x3ff) * 4,
            // What is above the third level of PAE has four entries.
            Self::Pae if level == 3 => table + (index & 3) * 8,
            _ => table + (index & 0x1ff) * 8,
        }
    }

    /// Whether an entry of this level is a large page.
    fn is_large(self, entry: u64, level: u32, cr4: u64) -> bool {
        let possible = match self {
            Self::Legacy => level == 2 && cr4 & CR4_PSE != 0,
            Self::Pae => level == 2,
            Self::Long { .. } => level == 2 || level == 3,
        };
        possible && entry & LARGE != 0
    }

    /// Bits of an entry that must be zero.
    fn reserved(self, large: bool, level: u32, no_execute: bool) -> u64 {
        let nx = if no_execute { 0 } else { NO_EXECUTE };
        match self {
            // Bits 13 to 20 are address bits 32 to 39.
            Self::Legacy if large => 1 << 21,
            Self::Legacy => 0,
            Self::Pae if level == 3 => PAE_ROOT_RESERVED | NO_EXECUTE,
            _ if large => nx | ((1 << self.shift(level)) - 1) & !0x1fff,
            _ if level > 3 => nx | LARGE,
            _ => nx,
        }
    }

    /// First address of the page behind a leaf.
    fn page(self, entry: u64, large: bool, level: u32) -> u64 {
        match self {
            Self::Legacy if large => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
            Self::Legacy => entry & 0xffff_f000,
            _ => entry & ADDRESS & !((1 << self.shift(level)) - 1),
        }
    }
}

/// Where a linear address leads.
///
/// # Errors
/// See [`Fault`].
pub fn translate<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    save: &Save,
    linear: u64,
    request: &Request,
) -> Result<u64, Fault> {
    let linear = if save.efer & EFER_LMA == 0 {
        u64::from(linear as u32)
    } else {
        linear
    };
    let Some(mode) = Mode::of(save) else {
        return Ok(linear);
    };
    if let Mode::Long { levels } = mode {
        let unused = 64 - mode.shift(levels + 1);
        if ((linear << unused) as i64 >> unused) as u64 != linear {
            return Err(Fault::NotPresent);
        }
    }
    let no_execute = save.efer & EFER_NXE != 0;
    let mut permitted = WRITE | USER;
    let mut table = mode.root(save.cr3);
    for level in (1..=mode.levels()).rev() {
        let at = mode.entry(table, linear, level);
        let entry = load(memory, mode, at)?;
        if entry & PRESENT == 0 {
            return Err(Fault::NotPresent);
        }
        let large = mode.is_large(entry, level, save.cr4);
        if entry & mode.reserved(large, level, no_execute) != 0 {
            return Err(Fault::Reserved);
        }
        let is_root = mode == Mode::Pae && level == 3;
        if !is_root {
            permitted &= entry | NO_EXECUTE;
            permitted |= entry & NO_EXECUTE;
        }
        if level == 1 || large {
            if !permits(permitted, save, request) {
                return Err(Fault::Privilege);
            }
            let dirty = if request.write { DIRTY } else { 0 };
            set_bits(memory, request, at, entry, ACCESSED | dirty)?;
            let offset = (1 << mode.shift(level)) - 1;
            return Ok(mode.page(entry, large, level) | linear & offset);
        }
        if !is_root {
            set_bits(memory, request, at, entry, ACCESSED)?;
        }
        table = if mode == Mode::Legacy {
            entry & 0xffff_f000
        } else {
            entry & ADDRESS
        };
    }
    // The lowest level has returned.
    Err(Fault::NotPresent)
}

fn load<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    mode: Mode,
    address: u64,
) -> Result<u64, Fault> {
    let entry = if mode == Mode::Legacy {
        memory.read_as::<u32>(address).map(u64::from)
    } else {
        memory.read_as(address)
    };
    entry.map_err(|_| match memory.check(address, 8) {
        Ok(()) => Fault::NoRead,
        Err(_) => Fault::Unmapped,
    })
}

/// Sets bits of an entry that it does not have; they are in its lower half.
fn set_bits<R: RamAccess + ?Sized>(
    memory: &GuestMemory<'_, R>,
    request: &Request,
    address: u64,
    entry: u64,
    bits: u64,
) -> Result<(), Fault> {
    if request.set_bits && entry & bits != bits {
        memory
            .set_word_bits(address, bits as u32)
            .map_err(|_| Fault::NoWrite)?;
    }
    Ok(())
}

/// Whether a page with what all levels permit (write, user; and any no-execute) may be
/// accessed.
fn permits(permitted: u64, save: &Save, request: &Request) -> bool {
    let user_page = permitted & USER != 0;
    let writable = permitted & WRITE != 0;
    let (by_user, smap) = match request.privilege {
        Privilege::Exempt => (false, false),
        Privilege::Supervisor { smap } => (false, smap),
        Privilege::User => (true, false),
    };
    let exempt = request.privilege == Privilege::Exempt;
    if by_user && !user_page {
        return false;
    }
    if request.write && !writable && (by_user || save.cr0 & CR0_WP != 0) {
        return false;
    }
    if (request.read || request.write) && user_page && smap {
        return false;
    }
    let smep = save.cr4 & CR4_SMEP != 0 && !by_user && !exempt;
    !(request.execute && (permitted & NO_EXECUTE != 0 || smep && user_page))
}

/// Whether SMAP keeps a supervisor from pages of the user; `flag` says so regardless of
/// RFLAGS.AC if it is there.
pub fn smap(save: &Save, flag: Option<bool>) -> bool {
    let held_back = flag.unwrap_or(save.rflags & RFLAGS_AC == 0);
    save.cr4 & CR4_SMAP != 0 && held_back
}

#[cfg(test)]
mod tests;

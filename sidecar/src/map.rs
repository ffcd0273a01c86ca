//! Where things are in the address space of a sidecar CPU.
//!
//! ```text
//!   IMAGE              the kernel's image, up to 2 MiB: code not writable, data not executable
//!   PRIVATE            one page table:
//!     0  control page of the node         5  VP assist page
//!     1  command page                     6  what the CPU knows of itself
//!     2  register page                    7  local APIC, if it has no MSRs
//!     3  input of hypercalls              8  nothing: a stack that overflows faults
//!     4  output of hypercalls             9  stack, three pages
//! ```
//!
//! All CPUs have the same addresses, but their own tables: of other CPUs' pages they map none
//! but the control page.

use core::ops::Range;
use loader_defs::PAGE_SIZE;
use page_table::ENTRIES;

/// Address of the image.
pub const IMAGE: u64 = 0xffff_ff80_0000_0000;
/// Room for the image, and the multiple at which it is loaded.
pub const IMAGE_CAPACITY: u64 = 2 << 20;
/// Address of the CPU's own pages.
pub const PRIVATE: u64 = IMAGE + IMAGE_CAPACITY;

/// Control page of the node.
pub const CONTROL: u64 = PRIVATE;
/// Command page.
pub const COMMAND: u64 = PRIVATE + PAGE_SIZE;
/// Register page.
pub const REGISTERS: u64 = PRIVATE + 2 * PAGE_SIZE;
/// Input of hypercalls.
pub const INPUT: u64 = PRIVATE + 3 * PAGE_SIZE;
/// Output of hypercalls.
pub const OUTPUT: u64 = PRIVATE + 4 * PAGE_SIZE;
/// VP assist page.
pub const ASSIST: u64 = PRIVATE + 5 * PAGE_SIZE;
/// What the CPU knows of itself.
pub const OWN: u64 = PRIVATE + 6 * PAGE_SIZE;
/// Local APIC.
pub const APIC: u64 = PRIVATE + 7 * PAGE_SIZE;
/// End of the stack.
pub const STACK_TOP: u64 = PRIVATE + 12 * PAGE_SIZE;

const STACK_PAGES: u64 = 3;
const FIRST_STACK: u64 = 9;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const UNCACHED: u64 = 1 << 4 | 1 << 3;
const NO_EXECUTE: u64 = 1 << 63;
const DATA: u64 = PRESENT | WRITABLE | NO_EXECUTE;
const CODE: u64 = PRESENT;
const TABLE: u64 = PRESENT | WRITABLE;

/// A page table.
pub type Table = [u64; ENTRIES];

/// Order of a CPU's private pages in the memory of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum PrivatePage {
    /// Tables of level 4 to 1.
    Pml4,
    /// Level 3.
    Pdpt,
    /// Level 2.
    Pd,
    /// Level 1, of what is at [`PRIVATE`].
    Pt,
    /// Three pages.
    Stack,
    /// [`OWN`].
    Own = 7,
    /// [`ASSIST`].
    Assist,
    /// [`INPUT`].
    Input,
    /// [`OUTPUT`].
    Output,
}

const _: () = assert!(PrivatePage::Output as u64 + 1 == sidecar_defs::PRIVATE_PAGES_PER_CPU);

/// GPAs of a CPU's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuPages {
    /// Control page of its node.
    pub control: u64,
    /// Command page; the register page follows.
    pub command: u64,
    /// First private page.
    pub private: u64,
    /// Local APIC, if it is used through memory.
    pub apic: Option<u64>,
}

impl CpuPages {
    /// GPA of a private page.
    pub const fn private(&self, page: PrivatePage) -> u64 {
        self.private + page as u64 * PAGE_SIZE
    }

    /// Fills the tables of level 4 to 1, which are empty. `image_table` is the GPA of the table
    /// that [`fill_image_table`] has filled.
    pub fn fill_tables(&self, [pml4, pdpt, pd, pt]: &mut [Table; 4], image_table: u64) {
        pml4[index(IMAGE, 3)] = self.private(PrivatePage::Pdpt) | TABLE;
        pdpt[index(IMAGE, 2)] = self.private(PrivatePage::Pd) | TABLE;
        pd[index(IMAGE, 1)] = image_table | TABLE;
        pd[index(PRIVATE, 1)] = self.private(PrivatePage::Pt) | TABLE;
        let mut set = |address: u64, page: u64, flags: u64| {
            pt[index(address, 0)] = page | flags;
        };
        set(CONTROL, self.control, DATA);
        set(COMMAND, self.command, DATA);
        set(REGISTERS, self.command + PAGE_SIZE, DATA);
        set(INPUT, self.private(PrivatePage::Input), DATA);
        set(OUTPUT, self.private(PrivatePage::Output), DATA);
        set(ASSIST, self.private(PrivatePage::Assist), DATA);
        set(OWN, self.private(PrivatePage::Own), DATA);
        if let Some(apic) = self.apic {
            set(APIC, apic, DATA | UNCACHED);
        }
        for page in 0..STACK_PAGES {
            let address = PRIVATE + (FIRST_STACK + page) * PAGE_SIZE;
            let gpa = self.private(PrivatePage::Stack) + page * PAGE_SIZE;
            set(address, gpa, DATA);
        }
    }
}

/// Fills the table that maps the image, which all CPUs share. `code` and `data` are offsets of
/// whole pages in the image.
pub fn fill_image_table(table: &mut Table, image: u64, code: Range<u64>, data: Range<u64>) {
    for (range, flags) in [(code, CODE), (data, DATA)] {
        for offset in range.step_by(PAGE_SIZE as usize) {
            if let Some(entry) = table.get_mut((offset / PAGE_SIZE) as usize) {
                *entry = (image + offset) | flags;
            }
        }
    }
}

/// Index of an address in a table; level 0 has the pages.
const fn index(address: u64, level: u32) -> usize {
    (address >> (12 + 9 * level)) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::collections::BTreeMap;

    const PAGES: CpuPages = CpuPages {
        control: 0x10_0000,
        command: 0x10_3000,
        private: 0x20_0000,
        apic: Some(0xfee0_0000),
    };
    const IMAGE_TABLE: u64 = 0x40_0000;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// Walks the tables, as the processor does.
    fn walk(address: u64) -> Option<u64> {
        let mut tables = [[0; ENTRIES]; 4];
        PAGES.fill_tables(&mut tables, IMAGE_TABLE);
        let [pml4, pdpt, pd, pt] = tables;
        let mut image = [0; ENTRIES];
        fill_image_table(&mut image, 0x80_0000, 0..0x2000, 0x2000..0x5000);
        let tables = BTreeMap::from([
            (PAGES.private(PrivatePage::Pdpt), pdpt),
            (PAGES.private(PrivatePage::Pd), pd),
            (PAGES.private(PrivatePage::Pt), pt),
            (IMAGE_TABLE, image),
        ]);
        let mut entry = pml4[index(address, 3)];
        for level in (0..3).rev() {
            if entry & PRESENT == 0 {
                return None;
            }
            entry = tables[&(entry & ADDRESS)][index(address, level)];
        }
        (entry & PRESENT != 0).then_some(entry)
    }

    #[test]
    fn code_is_not_writable_and_data_not_executable() {
        assert_eq!(walk(IMAGE), Some(0x80_0000 | CODE));
        assert_eq!(walk(IMAGE + 0x2000), Some(0x80_2000 | DATA));
        assert_eq!(walk(IMAGE + 0x5000), None);
    }

    #[test]
    fn each_page_is_where_it_is_said_to_be() {
        for (address, page) in [
            (CONTROL, 0x10_0000),
            (COMMAND, 0x10_3000),
            (REGISTERS, 0x10_4000),
            (OWN, 0x20_7000),
            (ASSIST, 0x20_8000),
            (INPUT, 0x20_9000),
            (OUTPUT, 0x20_a000),
            (STACK_TOP - PAGE_SIZE, 0x20_6000),
            (STACK_TOP - 3 * PAGE_SIZE, 0x20_4000),
        ] {
            assert_eq!(walk(address), Some(page | DATA), "{address:#x}");
        }
        assert_eq!(walk(APIC), Some(0xfee0_0000 | DATA | UNCACHED));
    }

    #[test]
    fn nothing_is_next_to_the_stack() {
        assert_eq!(walk(STACK_TOP), None);
        assert_eq!(walk(STACK_TOP - 4 * PAGE_SIZE), None);
        assert_eq!(walk(0), None);
    }
}

//! Memory: the own identity map, the image's map as the host left it, scratch pages,
//! and accesses that the host must not allow.

#![expect(unsafe_code, reason = "physical memory and control registers")]

use crate::abi::PAGE_SIZE;
use crate::options::Access;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;

/// Number of scratch pages.
const SCRATCH_PAGES: usize = 32;
/// 1 GiB.
const GIB: u64 = 1 << 30;
/// Entry: present, writable, for user mode too.
const ENTRY_TABLE: u64 = 0x7;
/// Entry: the same, a leaf, accessed and dirty.
const ENTRY_LEAF: u64 = 0xe7;
/// Entry: not cached.
const ENTRY_UNCACHED: u64 = 0x18;
/// The GiB with the local APIC.
const DEVICE_GIB: usize = 3;
/// Address bits of an entry.
const ENTRY_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Pages that the host or another VP may write.
#[repr(C, align(4096))]
struct Pages<const N: usize>(UnsafeCell<[[u64; 512]; N]>);

// SAFETY: all accesses go through raw pointers with volatile operations.
unsafe impl<const N: usize> Sync for Pages<N> {}

static SCRATCH: Pages<SCRATCH_PAGES> = Pages(UnsafeCell::new([[0; 512]; SCRATCH_PAGES]));
static TABLES: Pages<2> = Pages(UnsafeCell::new([[0; 512]; 2]));

/// A page of its own, for hypercall input and output or as overlay page.
#[derive(Debug, Clone, Copy)]
pub struct ScratchPage(usize);

impl ScratchPage {
    /// Input of hypercalls.
    pub const INPUT: Self = Self(0);
    /// Output of hypercalls.
    pub const OUTPUT: Self = Self(1);
    /// The hypercall page.
    pub const HYPERCALL: Self = Self(2);
    /// Overlay pages under test.
    pub const OVERLAY: Self = Self(3);
    /// Floating-point states to restore.
    pub const FLOATING_POINT: Self = Self(4);
    /// Event flags of the SynIC of another VP.
    pub const EVENTS: Self = Self(5);
    /// Input of the hypercall by which another VP suspends itself.
    pub const SUSPEND: Self = Self(6);
    /// Index of the first page for random use.
    const FIRST_RANDOM: usize = 8;

    /// Its address, physical and virtual.
    pub fn address(self) -> u64 {
        SCRATCH.0.get() as u64 + self.0 as u64 * PAGE_SIZE
    }

    /// Reads word `index`.
    pub fn read(self, index: usize) -> u64 {
        // SAFETY: the word is within the page (index is reduced), aligned and mapped.
        unsafe {
            (self.address() as *const u64)
                .add(index % 512)
                .read_volatile()
        }
    }

    /// Writes word `index`.
    pub fn write(self, index: usize, value: u64) {
        // SAFETY: as above; nobody holds a reference to the page.
        unsafe {
            (self.address() as *mut u64)
                .add(index % 512)
                .write_volatile(value);
        };
    }

    /// Fills it.
    pub fn fill(self, value: u64) {
        for index in 0..512 {
            self.write(index, value);
        }
    }

    /// Writes bytes to its start, padded to whole words.
    pub fn write_bytes(self, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(index, u64::from_le_bytes(word));
        }
    }
}

/// The scratch pages that random accesses may use.
pub fn random_scratch() -> Range<u64> {
    ScratchPage(ScratchPage::FIRST_RANDOM).address()..ScratchPage(SCRATCH_PAGES).address()
}

/// Writes words at `address` if all of them lie in the random scratch pages.
pub fn write_random_scratch(address: u64, words: &[u64]) {
    let scratch = random_scratch();
    for (index, word) in words.iter().enumerate() {
        let at = (address & !7).saturating_add(index as u64 * 8);
        if scratch.contains(&at) {
            // SAFETY: within the scratch pages, aligned, nobody holds a reference.
            unsafe { (at as *mut u64).write_volatile(*word) };
        }
    }
}

/// Writes code to the random scratch pages so that `split` bytes of it are in one page and
/// the rest in the next; returns where it begins.
pub fn write_code_across_pages(code: &[u8], split: u64) -> u64 {
    let address = random_scratch().start + PAGE_SIZE - split;
    for (offset, byte) in code.iter().enumerate() {
        // SAFETY: in the first two scratch pages, referenced by nobody.
        unsafe { (address as *mut u8).add(offset).write_volatile(*byte) };
    }
    address
}

/// The memory from `address`, as the host filled it at load.
///
/// # Safety
/// It must be part of the image (mapped, not written while the slice lives).
pub unsafe fn image_bytes(address: u64, size: u64) -> &'static [u8] {
    // SAFETY: guaranteed by the caller.
    unsafe { core::slice::from_raw_parts(address as *const u8, size as usize) }
}

/// Builds and loads an identity map of the lowest 512 GiB, for user mode too.
pub fn load_identity_map() {
    let tables = TABLES.0.get() as *mut u64;
    let address = tables as u64;
    // SAFETY: the two tables are 1,024 words; only VP 0 runs and they are not in use yet.
    unsafe {
        tables.write_volatile((address + PAGE_SIZE) | ENTRY_TABLE);
        for index in 0..512 {
            let cache = if index == DEVICE_GIB {
                ENTRY_UNCACHED
            } else {
                0
            };
            tables
                .add(512 + index)
                .write_volatile((index as u64 * GIB) | ENTRY_LEAF | cache);
        }
        // Everything that is mapped now stays mapped at the same address.
        asm!("mov cr3, {}", in(reg) address, options(nostack));
    }
}

/// Root of the page tables in use.
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR0 and CR4.
pub fn cr0_cr4() -> (u64, u64) {
    let (cr0, cr4);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack));
    };
    (cr0, cr4)
}

/// Physical address and size of the leaf that maps `address` in the tables of CR3,
/// provided that the tables lie in `tables`.
pub fn translate(address: u64, tables: &Range<u64>) -> Option<(u64, u64)> {
    let mut table = cr3() & ENTRY_ADDRESS;
    for level in (0..4).rev() {
        if !tables.contains(&table) {
            return None;
        }
        let size = PAGE_SIZE << (9 * level);
        let index = (address / size) % 512;
        // SAFETY: the table is in the page-table area of the image, which is mapped.
        let entry = unsafe { ((table + index * 8) as *const u64).read_volatile() };
        if entry & 1 == 0 {
            return None;
        }
        let target = entry & ENTRY_ADDRESS;
        if level == 0 || (level < 3 && entry & 0x80 != 0) {
            return Some((target & !(size - 1), size));
        }
        table = target;
    }
    None
}

/// Accesses an address that the host must not allow. Returns only if it was allowed.
pub fn touch(gpa: u64, access: Access) -> u64 {
    match access {
        // SAFETY: the address is mapped by the own tables; what is there is not part of
        // this program. That the host stops it is the point.
        Access::Read => unsafe { (gpa as *const u64).read_volatile() },
        Access::Write => {
            // SAFETY: as above; should it succeed, the damage is the finding.
            unsafe { (gpa as *mut u64).write_volatile(u64::MAX) };
            0
        }
        Access::Execute => {
            // SAFETY: as above.
            unsafe { asm!("call {}", in(reg) gpa, clobber_abi("C")) };
            0
        }
    }
}

/// Reads a register of the local APIC.
pub fn local_apic(register: u64) -> u32 {
    // SAFETY: the local APIC is VTL2's and mapped.
    unsafe { ((0xfee0_0000 + register) as *const u32).read_volatile() }
}

/// Writes a register of the local APIC.
pub fn write_local_apic(register: u64, value: u32) {
    // SAFETY: as above; what the tests write makes nobody access memory.
    unsafe { ((0xfee0_0000 + register) as *mut u32).write_volatile(value) }
}

/// Time stamp counter.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(low) | (u64::from(high) << 32)
}

/// Restores an all-zero floating-point state once from `page`.
pub fn fxrstor(page: ScratchPage) {
    // SAFETY: the page holds an image of 512 bytes, 16-byte aligned; this program uses no
    // floating point, so nothing is lost.
    unsafe { asm!("fxrstor64 [{}]", in(reg) page.address(), options(nostack)) };
}

/// Saves the floating-point state to `page`.
pub fn fxsave(page: ScratchPage) {
    // SAFETY: the page has room and nobody holds a reference to it.
    unsafe { asm!("fxsave64 [{}]", in(reg) page.address(), options(nostack)) };
}

/// Stops this VP for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off; nothing follows.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Triple fault: an exception without a descriptor table to handle it.
pub fn triple_fault() -> ! {
    let none = [0u16; 5];
    // SAFETY: nothing of this VP is meant to go on.
    unsafe {
        asm!(
            "lidt [{}]",
            "mov r10, 0",
            "ud2",
            in(reg) none.as_ptr(),
            options(noreturn)
        );
    }
}

//! What the emulator needs of its caller: the state of the VP, guest memory and devices.

use crate::paging;
use x86_defs::long_mode::Segment;

/// A general register; the value is its number in an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the registers")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// A segment register; the value is its number in an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of the registers")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl SegmentName {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs];
}

/// How many bytes an access has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the sizes of the architecture")]
pub enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Width {
    /// The width of so many bytes, if there is one.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Its number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// Its number of bits.
    pub const fn bits(self) -> u32 {
        self.bytes() as u32 * 8
    }

    /// Ones in its bits.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The highest of its bits.
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The value of these bits as a signed number, in 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        (((value << unused) as i64) >> unused) as u64
    }
}

/// What an access to memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Data is read.
    Read,
    /// Data is written, perhaps after it was read.
    Write,
    /// An instruction is fetched.
    Execute,
}

/// Why a linear address leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranslateError<E> {
    /// The guest's page tables forbid the access: #PF with this error code.
    PageFault(u32),
    /// A page table lies at an address where there is no memory.
    TableOutsideMemory(u64),
    /// Other VPs change the page tables without pause. Try later.
    Busy,
    /// The caller's own error.
    Cpu(E),
}

/// The VP whose instruction is emulated, and its world.
///
/// Registers are expected to be at hand: the emulator asks for few, but without a way to
/// fail. General registers are always read and written as a whole.
pub trait Cpu {
    /// Why the caller cannot reach memory or a device; ends the emulation.
    type Error;

    /// Reads a general register.
    fn gpr(&mut self, register: Gpr) -> u64;
    /// Writes a general register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// Reads RIP: the offset in the code segment.
    fn rip(&mut self) -> u64;
    /// Writes RIP.
    fn set_rip(&mut self, value: u64);
    /// Reads RFLAGS.
    fn rflags(&mut self) -> u64;
    /// Writes RFLAGS.
    fn set_rflags(&mut self, value: u64);
    /// Reads a segment register with its hidden part; the limit counts bytes.
    fn segment(&mut self, name: SegmentName) -> Segment;
    /// Reads CR0.
    fn cr0(&mut self) -> u64;
    /// Reads CR3.
    fn cr3(&mut self) -> u64;
    /// Reads CR4.
    fn cr4(&mut self) -> u64;
    /// Reads EFER.
    fn efer(&mut self) -> u64;
    /// The privilege level: 0 to 3.
    fn cpl(&mut self) -> u8;
    /// Reads an XMM register, 0 to 15.
    fn xmm(&mut self, register: u8) -> u128;
    /// Writes an XMM register, 0 to 15; the wider parts of the register stay.
    fn set_xmm(&mut self, register: u8, value: u128);

    /// Whether there is memory at this guest-physical address, which then holds for the
    /// 4 KiB page around it. Everything else is a device's.
    fn is_memory(&mut self, gpa: u64) -> bool;
    /// Reads memory. The range stays within a page with memory.
    fn read_memory(&mut self, gpa: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;
    /// Writes memory. The range stays within a page with memory.
    fn write_memory(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// In one step for all other VPs: if memory holds `current`, writes `new`. Says whether
    /// it did. The range stays within a page with memory; it may be unaligned.
    fn compare_exchange(
        &mut self,
        gpa: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
    /// Reads a device's register, naturally aligned. Bits above the width are ignored.
    fn read_mmio(&mut self, gpa: u64, width: Width) -> Result<u64, Self::Error>;
    /// Writes a device's register, naturally aligned. Bits above the width are zero.
    fn write_mmio(&mut self, gpa: u64, width: Width, value: u64) -> Result<(), Self::Error>;
    /// Reads 1, 2 or 4 bytes of I/O ports. Bits above the width are ignored.
    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Self::Error>;
    /// Writes 1, 2 or 4 bytes of I/O ports. Bits above the width are zero.
    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Self::Error>;

    /// Finds the guest-physical address that a linear address stands for, with the rights
    /// of the current privilege level. The default walks the page tables and sets their
    /// accessed and dirty bits; a caller that knows the answer (the hypervisor tells both
    /// addresses of an access) can save the walk.
    fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<u64, TranslateError<Self::Error>> {
        paging::walk(self, linear, access)
    }
}

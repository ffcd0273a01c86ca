//! The entry, which the boot shim calls, and the memory of the image.

use super::start;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::Write;
use minimal_rt::relocate::Dyn;
use minimal_rt::relocate::R_RELATIVE;
use minimal_rt::relocate::relocate;
use sidecar::map::IMAGE;
use sidecar::map::Table;
use sidecar_defs::ErrorText;
use sidecar_defs::SidecarOutput;
use sidecar_defs::SidecarParams;

// RDI and RSI: parameters and output. The caller's page tables map all of VTL2 one to one;
// the image is moved by an entry of their own at the address at which all CPUs have it, and
// the entry is taken back at the end. The stack stays the caller's.
global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".globl _start",
    "_start:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov r12, rdi",
    "mov r13, rsi",
    "cld",
    "lea rdi, [rip + __bss_start]",
    "lea rcx, [rip + __bss_end]",
    "sub rcx, rdi",
    "shr rcx, 3",
    "xor eax, eax",
    "rep stosq",
    // One large page, writable and executable: it is relocated in a moment.
    "lea rbx, [rip + __ehdr_start]",
    "lea rdx, [rip + {pdpt}]",
    "lea rcx, [rip + {pd}]",
    "lea rax, [rcx + 3]",
    "mov [rdx], rax",
    "mov rax, rbx",
    "or rax, 0x83",
    "mov [rcx], rax",
    "mov rbp, cr3",
    "and rbp, -4096",
    "mov r14, [rbp + 511 * 8]",
    "add rdx, 3",
    "mov [rbp + 511 * 8], rdx",
    "mov rax, cr3",
    "mov cr3, rax",
    "movabs r15, {image}",
    "sub r15, rbx",
    "lea rax, [rip + 2f]",
    "add rax, r15",
    "jmp rax",
    "2:",
    "lea rdi, [rip + __ehdr_start]",
    "lea rsi, [rip + _DYNAMIC]",
    "call {relocate}",
    "mov rdi, r12",
    "mov rsi, r13",
    "mov rdx, rbx",
    "mov ecx, eax",
    "call {main}",
    "lea rcx, [rip + 3f]",
    "sub rcx, r15",
    "jmp rcx",
    "3:",
    "mov [rbp + 511 * 8], r14",
    "mov rcx, cr3",
    "mov cr3, rcx",
    "movzx eax, al",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    pdpt = sym PDPT,
    pd = sym PD,
    image = const IMAGE,
    relocate = sym relocate_image,
    main = sym main,
);

/// A table in the image.
#[repr(C, align(4096))]
pub(super) struct StaticTable(UnsafeCell<Table>);

// SAFETY: written by the entry code and by the first CPU only, before there are others.
unsafe impl Sync for StaticTable {}

impl StaticTable {
    /// No entries.
    pub(super) const fn new() -> Self {
        Self(UnsafeCell::new([0; _]))
    }

    /// Where it is.
    pub(super) const fn get(&self) -> *mut Table {
        self.0.get()
    }
}

static PDPT: StaticTable = StaticTable::new();
static PD: StaticTable = StaticTable::new();

/// First Rust code. Nothing that needs a relocation may happen before it is done.
///
/// # Safety
/// Called once, by the entry code, with the image's own base and dynamic section.
unsafe extern "C" fn relocate_image(base: *mut u8, dynamic: *const Dyn) -> u32 {
    // SAFETY: passed on from the entry code.
    match unsafe { relocate(base, dynamic, R_RELATIVE) } {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// `image` is the image's GPA; `unrelocated` is not 0 if its addresses are not right.
extern "C" fn main(
    params: *const SidecarParams,
    output: *mut SidecarOutput,
    image: u64,
    unrelocated: u32,
) -> bool {
    if unrelocated != 0 {
        return false;
    }
    // SAFETY: the caller passes valid structures, which nobody else uses until we return.
    let (params, output) = unsafe { (&*params, &mut *output) };
    output.error = ErrorText::EMPTY;
    match start::start(params, image, output) {
        Ok(()) => true,
        Err(error) => {
            // What does not fit is cut.
            let _ = write!(output.error, "{error}");
            false
        }
    }
}

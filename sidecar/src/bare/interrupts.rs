//! Descriptor tables, and what exceptions and interrupts do: the first end this CPU, the
//! second only end a wait.

use super::apic;
use core::arch::asm;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use sidecar::context::CODE_SELECTOR;
use sidecar::context::Descriptors;
use sidecar::map;
use x86_defs::apic::X2APIC_MSR_FIRST;

const EXCEPTIONS: usize = 32;
const SPURIOUS: usize = 0xff;
/// Bytes of code of each exception.
const STRIDE: usize = 16;

/// Present, interrupt gate.
const GATE: u64 = 0x8e;

global_asm!(
    ".pushsection .text",
    ".balign {stride}",
    "sidecar_exceptions:",
    ".set vector, 0",
    ".rept {exceptions}",
    ".balign {stride}",
    // #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC and #SX have an error code.
    ".if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)",
    "push 0",
    ".endif",
    "push vector",
    "jmp sidecar_exception",
    ".set vector, vector + 1",
    ".endr",
    "sidecar_exception:",
    "mov rdi, rsp",
    "mov rsi, cr2",
    "and rsp, -16",
    "call {exception}",
    "ud2",
    "sidecar_interrupt:",
    "push rax",
    "push rcx",
    "push rdx",
    "cmp byte ptr [rip + {by_msrs}], 0",
    "jne 2f",
    "movabs rax, {eoi_address}",
    "mov dword ptr [rax], 0",
    "jmp 3f",
    "2:",
    "mov ecx, {eoi_msr}",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "3:",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "sidecar_spurious:",
    "iretq",
    ".popsection",
    stride = const STRIDE,
    exceptions = const EXCEPTIONS,
    exception = sym exception,
    by_msrs = sym apic::BY_MSRS,
    eoi_address = const map::APIC + apic::EOI as u64,
    eoi_msr = const X2APIC_MSR_FIRST + apic::EOI / 16,
);

unsafe extern "C" {
    static sidecar_exceptions: u8;
    static sidecar_interrupt: u8;
    static sidecar_spurious: u8;
}

/// What the processor and the code above push.
#[repr(C)]
struct Frame {
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

extern "C" fn exception(frame: &Frame, cr2: u64) -> ! {
    let Frame {
        vector,
        error,
        rip,
        rsp,
        ..
    } = frame;
    let at = rip.wrapping_sub(map::IMAGE);
    panic!(
        "exception {vector}, error {error:#x}, CR2 {cr2:#x}, at image offset {at:#x}, RSP {rsp:#x}"
    )
}

#[repr(C, align(16))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written by the first CPU only, before there are others.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

/// Null, 64-bit code, data.
#[repr(C, align(16))]
struct Gdt([u64; 3]);

static GDT: Gdt = Gdt([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);

/// Fills the interrupt descriptor table: the tables that all CPUs use.
///
/// # Safety
/// Before there are other CPUs.
pub(super) unsafe fn init() -> [Descriptors; 2] {
    let address = |code: *const u8| code.expose_provenance() as u64;
    let exceptions = address(&raw const sidecar_exceptions);
    for vector in 0..256 {
        let code = match vector {
            0..EXCEPTIONS => exceptions + (vector * STRIDE) as u64,
            SPURIOUS => address(&raw const sidecar_spurious),
            _ => address(&raw const sidecar_interrupt),
        };
        let low = code & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | GATE << 40
            | (code >> 16 & 0xffff) << 48;
        // SAFETY: nobody else uses the table yet.
        unsafe { (*IDT.0.get())[vector] = [low, code >> 32] };
    }
    let table = |base: u64, size: usize| Descriptors {
        base,
        limit: (size - 1) as u16,
    };
    [
        table(address((&raw const GDT).cast()), size_of::<Gdt>()),
        table(address(IDT.0.get().cast()), size_of::<Idt>()),
    ]
}

/// Waits for an interrupt, one that is pending already included.
pub(super) fn wait() {
    // SAFETY: interrupts have handlers, which change nothing. STI takes effect behind HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nomem)) };
}

/// Takes those that are pending.
pub(super) fn take() {
    // SAFETY: as above.
    unsafe { asm!("sti", "nop", "cli", options(nomem)) };
}

/// The end of this CPU.
pub(super) fn halt() -> ! {
    loop {
        // SAFETY: stops.
        unsafe { asm!("cli", "hlt", options(nomem)) };
    }
}

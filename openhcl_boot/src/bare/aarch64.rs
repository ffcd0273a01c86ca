//! aarch64: entry code, exception vectors, the machine, and the jump.
//!
//! It builds and its logic is tested; no host boots it yet.

use alloc::boxed::Box;
use core::arch::{asm, global_asm};
use core::fmt::Write;

use boot_events::SHIM_STARTS_KERNEL;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::msr::CrashControl;
use hv_defs::registers::HvRegisterName;
use hv_defs::vsm::{VsmCapabilities, VsmVpStatus};
use minimal_rt::aarch64::{HypercallPages, Hypercalls, physical_address_bits, set_register_fast};
use minimal_rt::crash::CrashMessage;
use minimal_rt::hypercall::{
    GUEST_OS_ID, HypercallError, get_vp_register, vp_indices_from_apic_ids,
};
use openhcl_boot::boot::{self, Machine};
use openhcl_boot::isolation::Isolation;
use openhcl_boot::log::BootLog;
use openhcl_boot::sidecar::Failure;
use sidecar_defs::{ErrorText, SidecarParams};

use super::panic::{LOG, fail};
use super::{HEAP, STACK_COOKIE, check_stack_cookie, image, relocate_image, shim_main};

// X0 holds the offset of the parameters from the image base. The MMU is on, one to one.
// There is no stack, the BSS may hold anything, and no address in the image is right yet.
// The target uses NEON registers, so they are enabled before any Rust code.
global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".globl _start",
    "_start:",
    "adrp x1, {vectors}",
    "add x1, x1, :lo12:{vectors}",
    "msr vbar_el1, x1",
    "mov x1, #(3 << 20)",
    "msr cpacr_el1, x1",
    "isb",
    "adrp x1, __bss_start",
    "add x1, x1, :lo12:__bss_start",
    "adrp x2, __bss_end",
    "add x2, x2, :lo12:__bss_end",
    "2:",
    "cmp x1, x2",
    "b.hs 3f",
    "stp xzr, xzr, [x1], #16",
    "b 2b",
    "3:",
    "adrp x1, __stack_end",
    "add x1, x1, :lo12:__stack_end",
    "mov sp, x1",
    "adrp x1, __stack_start",
    "add x1, x1, :lo12:__stack_start",
    "ldr x2, ={cookie}",
    "str x2, [x1]",
    "mov x19, x0",
    "adrp x0, __ehdr_start",
    "add x0, x0, :lo12:__ehdr_start",
    "adrp x1, _DYNAMIC",
    "add x1, x1, :lo12:_DYNAMIC",
    "bl {relocate}",
    "cbnz w0, 4f",
    "mov x0, x19",
    "bl {main}",
    "4:",
    // Ends in the exception vectors, which report it.
    "udf #0",
    ".popsection",
    cookie = const STACK_COOKIE,
    vectors = sym exception_vectors,
    relocate = sym relocate_image,
    main = sym shim_main,
);

unsafe extern "C" {
    // Only its address is used, by the entry code.
    fn exception_vectors();
}

// 16 vectors of 128 bytes; each passes its number on. The number has the source in its
// high digit (current EL with SP0, with SPx, lower EL 64 bit, 32 bit) and the kind in its
// low digit (synchronous, IRQ, FIQ, SError).
global_asm!(
    ".pushsection .text.vectors, \"ax\"",
    ".balign 2048",
    ".globl {vectors}",
    "{vectors}:",
    ".irp source, 0, 1, 2, 3",
    ".irp kind, 0, 1, 2, 3",
    ".balign 128",
    "mov x0, #((\\source << 4) | \\kind)",
    "mrs x1, par_el1",
    "mrs x2, elr_el1",
    "mrs x3, esr_el1",
    "b {report}",
    ".endr",
    ".endr",
    ".popsection",
    vectors = sym exception_vectors,
    report = sym report_exception,
);

/// Tells the host about an exception and stops. It uses values only, because memory may
/// be what has failed.
extern "C" fn report_exception(vector: u64, par: u64, elr: u64, esr: u64) -> ! {
    let _ = set_register_fast(HvRegisterName::GUEST_OS_ID, GUEST_OS_ID);
    let parameters = [vector, par, elr, esr, 0];
    for (i, value) in (0u32..).zip(parameters) {
        let _ = set_register_fast(HvRegisterName(HvRegisterName::GUEST_CRASH_P0.0 + i), value);
    }
    let control = CrashControl::new()
        .with_pre_os_id_low(true)
        .with_no_crash_dump(true)
        .with_crash_notify(true);
    let _ = set_register_fast(HvRegisterName::GUEST_CRASH_CTL, control.into_bits());
    end()
}

static PAGES: HypercallPages = HypercallPages::new();

struct ArmMachine {
    hypercalls: Hypercalls,
}

pub(super) fn run(image_base: u64, params_offset: i64) -> ! {
    let params = image::params(image_base, params_offset)
        .unwrap_or_else(|error| fail(format_args!("{error}")));
    // SAFETY: the only call.
    let memory =
        unsafe { image::log_buffer(&params) }.unwrap_or_else(|error| fail(format_args!("{error}")));
    let log: &'static BootLog<'static> = Box::leak(Box::new(BootLog::new(memory)));
    if let Some(mut global) = LOG.borrow() {
        *global = Some(log);
    }

    // SAFETY: the pages are part of the image, which is mapped one to one; this is the
    // only use.
    let hypercalls = unsafe { Hypercalls::enable(&PAGES) };
    let mut machine = ArmMachine { hypercalls };
    let start = machine.reference_time();

    let memory = image::memory(&params);
    let handoff = boot::prepare(&params, &memory, &mut machine, start, log)
        .unwrap_or_else(|error| fail(format_args!("{error}")));
    // The kernel wants the tree at a multiple of 8 bytes.
    let tree: &'static [u64] = {
        let (words, tail) = handoff.device_tree.as_chunks::<8>();
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        let words = words.iter().chain([&last]).map(|w| u64::from_ne_bytes(*w));
        Box::leak(words.collect())
    };
    check_stack_cookie();
    log.detail(format_args!(
        "heap {} of {} KiB, kernel at {:#x}",
        HEAP.peak_bytes().div_ceil(1024),
        HEAP.capacity() / 1024,
        handoff.kernel_entry
    ));
    log.info(format_args!("{SHIM_STARTS_KERNEL}"));
    machine.hypercalls.disable();
    // SAFETY: the entry point was checked to lie in the image, and the tree is leaked.
    unsafe { enter_kernel(handoff.kernel_entry, tree) }
}

/// Leaves the MMU off, as the boot protocol of arm64 asks for.
///
/// # Safety
/// `entry` must be the kernel's entry point in physical memory; nothing may be needed
/// afterwards but the image and `tree`.
unsafe fn enter_kernel(entry: u64, tree: &'static [u64]) -> ! {
    // The kernel reads with the MMU off: what is in the cache must reach memory.
    // CTR_EL0.DminLine is the line size in words, as a power of two.
    // SAFETY: cleaning caches changes no memory contents; the code after the MMU is off
    // is at the same address, because the mapping is one to one.
    unsafe {
        asm!(
            "msr daifset, #0xf",
            "mrs x6, ctr_el0",
            "ubfx x6, x6, #16, #4",
            "mov x7, #4",
            "lsl x7, x7, x6",
            "sub x6, x7, #1",
            "bic x8, x0, x6",
            "2:",
            "dc cvac, x8",
            "add x8, x8, x7",
            "cmp x8, x4",
            "b.lo 2b",
            "dsb sy",
            "ic iallu",
            "dsb sy",
            "mrs x6, sctlr_el1",
            "bic x6, x6, #1",
            "msr sctlr_el1, x6",
            "isb",
            "tlbi vmalle1",
            "dsb sy",
            "isb",
            "mov x1, xzr",
            "mov x2, xzr",
            "mov x3, xzr",
            "br x5",
            in("x0") tree.as_ptr().expose_provenance(),
            in("x4") tree.as_ptr_range().end.addr(),
            in("x5") entry,
            options(noreturn),
        )
    }
}

impl Machine for ArmMachine {
    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn reference_time(&mut self) -> Option<u64> {
        self.hypercalls.reference_time()
    }

    fn vp_status(&mut self) -> Result<VsmVpStatus, HypercallError> {
        get_vp_register(
            &mut self.hypercalls,
            HvInputVtl::new(),
            HvRegisterName::VSM_VP_STATUS,
        )
        .map(VsmVpStatus::from_bits)
    }

    fn vsm_capabilities(&mut self) -> Result<VsmCapabilities, HypercallError> {
        get_vp_register(
            &mut self.hypercalls,
            HvInputVtl::new(),
            HvRegisterName::VSM_CAPABILITIES,
        )
        .map(VsmCapabilities::from_bits)
    }

    fn vp_indices(
        &mut self,
        hardware_ids: &[u32],
        found: &mut dyn FnMut(usize, u32),
    ) -> Result<(), HypercallError> {
        let vtl0 = HvInputVtl::new().with_use_target_vtl(true);
        vp_indices_from_apic_ids(&mut self.hypercalls, vtl0, hardware_ids, found)
    }

    fn physical_address_bits(&self) -> u8 {
        physical_address_bits()
    }

    fn serial(&mut self, _rate: u32) -> Option<Box<dyn Write>> {
        // A PL011 can hang when it is written before the kernel has set it up; the log
        // in memory has everything.
        None
    }

    fn start_sidecar(
        &mut self,
        _entry: u64,
        _params: &mut SidecarParams,
    ) -> Result<u32, Box<Failure>> {
        // Not reached: on this architecture there is none.
        Err(Box::new(Failure {
            begun: false,
            started: 0,
            text: ErrorText::EMPTY,
        }))
    }
}

pub(super) fn report_crash(tag: [u8; 8], message: &'static CrashMessage) {
    minimal_rt::aarch64::report_crash(tag, message);
}

pub(super) fn end() -> ! {
    minimal_rt::aarch64::halt()
}

//! x86_64: entry code, the machine, and the jump.

use alloc::boxed::Box;
use core::arch::{asm, global_asm};
use core::fmt::Write;

use boot_events::SHIM_STARTS_KERNEL;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::registers::HvRegisterName;
use hv_defs::vsm::{VsmCapabilities, VsmVpStatus};
use minimal_rt::crash::CrashMessage;
use minimal_rt::hypercall::{HypercallError, get_vp_register, vp_indices_from_apic_ids};
use minimal_rt::serial::{COM3, Serial};
use minimal_rt::x86_64::{HypercallPages, Hypercalls, Hypervisor, PortIo, physical_address_bits};
use openhcl_boot::boot::{self, BootError, Machine};
use openhcl_boot::isolation::Isolation;
use openhcl_boot::linux::boot_params::BootParamsPages;
use openhcl_boot::log::BootLog;
use openhcl_boot::sidecar::Failure;
use sidecar_defs::{ErrorText, SidecarOutput, SidecarParams};

use super::panic::{LOG, fail};
use super::{HEAP, STACK_COOKIE, check_stack_cookie, image, relocate_image, shim_main};

// RSI holds the offset of the parameters from the image base. There is no stack, the
// BSS may hold anything, and no address in the image is right yet.
global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".globl _start",
    "_start:",
    "mov r15, rsi",
    "cld",
    "lea rdi, [rip + __bss_start]",
    "lea rcx, [rip + __bss_end]",
    "sub rcx, rdi",
    "shr rcx, 3",
    "xor eax, eax",
    "rep stosq",
    "lea rsp, [rip + __stack_end]",
    "mov eax, {cookie}",
    "mov [rip + __stack_start], rax",
    // OSFXSR and OSXMMEXCPT: the state in which the kernel expects SSE.
    "mov rax, cr4",
    "or rax, 0x600",
    "mov cr4, rax",
    "lea rdi, [rip + __ehdr_start]",
    "lea rsi, [rip + _DYNAMIC]",
    "call {relocate}",
    "test eax, eax",
    // Nothing can be reported yet: an invalid instruction ends in a triple fault, which
    // the host reports with this address.
    "jnz 2f",
    "mov rdi, r15",
    "call {main}",
    "2:",
    "ud2",
    ".popsection",
    cookie = const STACK_COOKIE,
    relocate = sym relocate_image,
    main = sym shim_main,
);

/// Entry of the sidecar kernel.
type SidecarEntry = unsafe extern "sysv64" fn(&SidecarParams, &mut SidecarOutput) -> bool;

static PAGES: HypercallPages = HypercallPages::new();

struct X86Machine {
    hypervisor: Hypervisor,
    hypercalls: Option<Hypercalls>,
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

    let hypervisor =
        Hypervisor::detect().unwrap_or_else(|| fail(format_args!("{}", BootError::NoHypervisor)));
    let mut machine = X86Machine {
        hypervisor,
        hypercalls: None,
    };
    let start = hypervisor.reference_time();
    // SAFETY: the pages are part of the image, whose page tables map it one to one and
    // executable; this is the only use.
    match unsafe { Hypercalls::enable(&hypervisor, &PAGES) } {
        Ok(hypercalls) => machine.hypercalls = Some(hypercalls),
        Err(error) => fail(format_args!("{error}")),
    }

    let memory = image::memory(&params);
    let handoff = boot::prepare(&params, &memory, &mut machine, start, log)
        .unwrap_or_else(|error| fail(format_args!("{error}")));
    let pages: &'static BootParamsPages = Box::leak(Box::new(
        BootParamsPages::new(&handoff).unwrap_or_else(|error| fail(format_args!("{error}"))),
    ));
    check_stack_cookie();
    log.detail(format_args!(
        "heap {} of {} KiB, kernel at {:#x}",
        HEAP.peak_bytes().div_ceil(1024),
        HEAP.capacity() / 1024,
        handoff.kernel_entry
    ));
    log.info(format_args!("{SHIM_STARTS_KERNEL}"));
    if let Some(hypercalls) = machine.hypercalls.take() {
        hypercalls.disable();
    }
    // SAFETY: the entry point was checked to lie in the image; `pages` and what they point
    // to are leaked, so they stay as they are; the stack is not needed any more.
    unsafe {
        asm!(
            "cli",
            "cld",
            "jmp {entry}",
            entry = in(reg) handoff.kernel_entry,
            in("rdi") 0,
            in("rsi") pages.boot_params_gpa(),
            options(noreturn),
        )
    }
}

impl X86Machine {
    fn hypercalls(&mut self) -> &mut Hypercalls {
        match &mut self.hypercalls {
            Some(hypercalls) => hypercalls,
            None => fail(format_args!(
                "hypercall made before the interface was enabled"
            )),
        }
    }
}

impl Machine for X86Machine {
    fn isolation(&self) -> Isolation {
        if self.hypervisor.privileges.isolation() {
            Isolation::Vbs
        } else {
            Isolation::None
        }
    }

    fn reference_time(&mut self) -> Option<u64> {
        self.hypervisor.reference_time()
    }

    fn time_stamp_counter(&mut self) -> Option<u64> {
        // SAFETY: every 64-bit processor has the counter, and reading it has no effect.
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }

    fn vp_status(&mut self) -> Result<VsmVpStatus, HypercallError> {
        get_vp_register(
            self.hypercalls(),
            HvInputVtl::new(),
            HvRegisterName::VSM_VP_STATUS,
        )
        .map(VsmVpStatus::from_bits)
    }

    fn vsm_capabilities(&mut self) -> Result<VsmCapabilities, HypercallError> {
        get_vp_register(
            self.hypercalls(),
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
        // VTL0: the lookup is defined by the lowest VTL's view of the APIC ids.
        let vtl0 = HvInputVtl::new().with_use_target_vtl(true);
        vp_indices_from_apic_ids(self.hypercalls(), vtl0, hardware_ids, found)
    }

    fn physical_address_bits(&self) -> u8 {
        physical_address_bits()
    }

    fn serial(&mut self, rate: u32) -> Option<Box<dyn Write>> {
        // SAFETY: the host says that COM3 is there; if not, the ports belong to nobody.
        let io = unsafe { PortIo::new() };
        Some(Box::new(Serial::new(io, COM3, rate)))
    }

    fn start_sidecar(
        &mut self,
        entry: u64,
        params: &mut SidecarParams,
    ) -> Result<u32, Box<Failure>> {
        params.hypercall_page = self.hypercalls().code_gpa();
        // All of VTL2 is mapped one to one, and so is what is in here.
        let mut output = SidecarOutput {
            error: ErrorText::EMPTY,
            started: 0,
            reserved: 0,
            start_begin: 0,
            start_end: 0,
        };
        let entry = core::ptr::with_exposed_provenance::<()>(entry as usize);
        // SAFETY: `ShimParams` has checked that the entry lies in the sidecar kernel's image,
        // which is as measured as this code, built for this signature, and reserved. Its
        // nodes' memory is reserved as well, and mapped. The kernel brings its own page tables
        // and gives ours back; it keeps neither the parameters nor the output.
        let started = unsafe {
            let entry: SidecarEntry = core::mem::transmute(entry);
            entry(params, &mut output)
        };
        if started {
            return Ok(output.started);
        }
        Err(Box::new(Failure {
            begun: output.start_begin != 0,
            started: output.started,
            text: output.error,
        }))
    }
}

pub(super) fn report_crash(tag: [u8; 8], message: &'static CrashMessage) {
    if let Some(hypervisor) = Hypervisor::detect() {
        hypervisor.report_crash(tag, message);
    }
}

pub(super) fn end() -> ! {
    minimal_rt::x86_64::triple_fault()
}

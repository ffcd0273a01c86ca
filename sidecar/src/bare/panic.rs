//! How a CPU dies: its command page says why, and the worker is told. The first CPU, which has
//! none, tells the host.

use super::calls::Calls;
use super::cpu;
use super::interrupts;
use super::log;
use core::arch::asm;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use minimal_rt::crash::CrashMessage;
use minimal_rt::crash::TAG_SIDECAR;
use minimal_rt::single::SingleThreaded;
use minimal_rt::x86_64::Hypervisor;
use minimal_rt::x86_64::triple_fault;
use sidecar::map;
use sidecar_defs::ErrorText;
use sidecar_defs::handshake;

// SAFETY: the first CPU alone uses it.
static MESSAGE: SingleThreaded<CrashMessage> = unsafe { SingleThreaded::new(CrashMessage::new()) };

/// GPA of the image.
pub(super) static IMAGE_GPA: AtomicU64 = AtomicU64::new(0);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack)) };
    if stack > map::PRIVATE {
        end_of_cpu(info)
    } else {
        end_of_vm(info)
    }
}

fn end_of_cpu(info: &PanicInfo<'_>) -> ! {
    // SAFETY: this is a sidecar CPU, so its pages are mapped; it does nothing else any more,
    // so what it has borrowed is not used again.
    let (own, control, page) = unsafe { (cpu::own(), cpu::control(), cpu::command_page()) };
    log::line(format_args!("VP {} has failed: {info}", own.vp));
    page.has_error = 1;
    page.error = ErrorText::EMPTY;
    // What does not fit is cut.
    let _ = write!(page.error, "VP {} in the sidecar: {info}", own.vp);
    if let Some(status) = control.status.get(own.cpu as usize) {
        handshake::fail(status);
    }
    // SAFETY: as above.
    let mut calls = unsafe { Calls::of_cpu(own.input_gpa, own.output_gpa) };
    // If the worker does not listen, it looks at the status before it does.
    calls.signal(control.response_vp.load(Relaxed), own.vp);
    interrupts::halt()
}

fn end_of_vm(info: &PanicInfo<'_>) -> ! {
    log::line(format_args!("{info}"));
    let message = MESSAGE.freeze(|message| {
        // What does not fit is cut.
        let _ = write!(message, "sidecar: {info}");
    });
    if let (Some(message), Some(hypervisor)) = (message, Hypervisor::detect()) {
        let offset = (&raw const *message).expose_provenance() as u64 - map::IMAGE;
        let gpa = IMAGE_GPA.load(Relaxed) + offset;
        // SAFETY: the same message, where the boot shim's tables map its GPA: the host wants
        // that address.
        let message = unsafe { &*core::ptr::with_exposed_provenance(gpa as usize) };
        hypervisor.report_crash(TAG_SIDECAR, message);
    }
    triple_fault()
}

//! A sidecar CPU: how it begins, waits and leaves.

use super::apic;
use super::calls::Calls;
use super::commands;
use super::interrupts;
use super::log;
use super::start;
use core::fmt::Write;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::msr::HV_X64_MSR_VP_ASSIST_PAGE;
use hv_defs::msr::OverlayPage;
use hv_defs::registers::HvRegisterName;
use hv_defs::registers::InternalActivity;
use loader_defs::PAGE_SIZE;
use sidecar::map;
use sidecar_defs::CommandPage;
use sidecar_defs::ControlPage;
use sidecar_defs::ErrorText;
use sidecar_defs::handshake;
use sidecar_defs::handshake::Request;
use x86_64::registers::model_specific::Msr;
use zerocopy::FromZeros;

/// What a CPU knows of itself, from the first CPU.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C)]
pub(super) struct Own {
    pub(super) vp: u32,
    pub(super) node: u32,
    pub(super) cpu: u32,
    pub(super) cpu_count: u32,
    pub(super) memory_base: u64,
    pub(super) registers_gpa: u64,
    pub(super) assist_gpa: u64,
    pub(super) input_gpa: u64,
    pub(super) output_gpa: u64,
}

/// What this CPU knows of itself.
///
/// # Safety
/// On a sidecar CPU.
pub(super) unsafe fn own() -> &'static Own {
    // SAFETY: mapped, and not changed once the CPU has started.
    unsafe { &*core::ptr::with_exposed_provenance(map::OWN as usize) }
}

/// The control page of this CPU's node.
///
/// # Safety
/// On a sidecar CPU.
pub(super) unsafe fn control() -> &'static ControlPage {
    // SAFETY: mapped; what changes there is atomic.
    unsafe { &*core::ptr::with_exposed_provenance(map::CONTROL as usize) }
}

/// This CPU's command page.
///
/// # Safety
/// On a sidecar CPU, which has the page (see [`handshake`]) and no other reference to it.
pub(super) unsafe fn command_page() -> &'static mut CommandPage {
    // SAFETY: mapped; the rest is promised by the caller.
    unsafe { &mut *core::ptr::with_exposed_provenance_mut(map::COMMAND as usize) }
}

/// A CPU that executes commands.
pub(super) struct Cpu {
    pub(super) own: &'static Own,
    control: &'static ControlPage,
    pub(super) calls: Calls,
    /// The hypervisor knows the VP assist page and the register page.
    has_pages: bool,
}

/// First code of a sidecar CPU.
pub(super) extern "C" fn begin() -> ! {
    // SAFETY: this is a sidecar CPU, and the only code that runs on it.
    let (own, control) = unsafe { (own(), control()) };
    let mut cpu = Cpu {
        own,
        control,
        // SAFETY: as above.
        calls: unsafe { Calls::of_cpu(own.input_gpa, own.output_gpa) },
        has_pages: false,
    };
    apic::enable();
    start::start_others(&start::Node::of(own), &control.status, &mut cpu.calls);
    log::line(format_args!("VP {} waits for commands", own.vp));
    handshake::finish(cpu.status());
    cpu.live()
}

impl Cpu {
    /// The cell of this CPU's status.
    pub(super) fn status(&self) -> &'static AtomicU8 {
        &self.control.status[self.own.cpu as usize]
    }

    fn live(mut self) -> ! {
        loop {
            match handshake::next(self.status()) {
                None => interrupts::wait(),
                Some(Request::Run) => {
                    // SAFETY: the status says that this CPU has the page; the reference ends
                    // before it gives it away.
                    let page = unsafe { command_page() };
                    page.has_error = 0;
                    if let Err(error) = commands::execute(&mut self, page) {
                        page.has_error = 1;
                        page.error = ErrorText::EMPTY;
                        // What does not fit is cut.
                        let _ = write!(page.error, "VP {}: {error}", self.own.vp);
                    }
                    handshake::finish(self.status());
                    self.signal();
                }
                Some(Request::Remove) => self.leave(),
            }
        }
    }

    /// Tells the worker. If it does not listen yet, it looks at the status before it does.
    fn signal(&mut self) {
        let vp = self.control.response_vp.load(Relaxed);
        self.calls.signal(vp, self.own.vp);
    }

    /// Has the hypervisor know the pages through which VTL0 is run. Not at the start, when
    /// other CPUs start too: on Hyper-V that is a race.
    pub(super) fn ensure_pages(&mut self) -> Result<(), commands::CommandError> {
        if self.has_pages {
            return Ok(());
        }
        set_assist_page(page(self.own.assist_gpa));
        self.set_register_page(page(self.own.registers_gpa))?;
        self.has_pages = true;
        Ok(())
    }

    fn set_register_page(&mut self, page: OverlayPage) -> Result<(), commands::CommandError> {
        let name = HvRegisterName::REG_PAGE;
        let value = [page.into_bits(), 0];
        let result = self.calls.set(HvInputVtl::new(), name, value);
        result.map_err(|status| commands::CommandError::Register { name, status })
    }

    /// Leaves this kernel, so that the VP can be started for Linux.
    fn leave(mut self) -> ! {
        if self.has_pages {
            set_assist_page(OverlayPage::new());
            if let Err(error) = self.set_register_page(OverlayPage::new()) {
                panic!("the register page cannot be taken back: {error}");
            }
        }
        // From here on the host accepts a start of this VP, and holds it back until the VP
        // waits for it.
        apic::disable();
        handshake::leave(self.status());
        self.signal();
        let wait = InternalActivity::new().with_startup_suspend(true);
        let name = HvRegisterName::INTERNAL_ACTIVITY_STATE;
        let _ = self
            .calls
            .set(HvInputVtl::new(), name, [wait.into_bits(), 0]);
        // The hypervisor has refused it; nothing else can be done here.
        interrupts::halt()
    }
}

fn page(gpa: u64) -> OverlayPage {
    OverlayPage::new()
        .with_enabled(true)
        .with_page_number(gpa / PAGE_SIZE)
}

fn set_assist_page(page: OverlayPage) {
    // SAFETY: the page is this CPU's and nobody else's.
    unsafe { Msr::new(HV_X64_MSR_VP_ASSIST_PAGE).write(page.into_bits()) };
}

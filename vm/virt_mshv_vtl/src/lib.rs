//! Runs VTL0 through Linux's `mshv_vtl` driver: the backend of [`virt`] for a process in
//! VTL2, on `vsm_host` and on Hyper-V.
//!
//! What an exit costs is what matters. The common ones (a port, a device's register, an MSR)
//! take one request to the kernel each: the message of the intercept and the general
//! registers are in the run page, RIP and the segments in the register page, both shared
//! memory, and what changes there goes back with the next entry. Hypercalls are left for
//! what is rare: injected exceptions, interrupts of devices, resets, reports.
//!
//! A VP can have been told to stop before it was entered. Nothing is lost then: an event that
//! was to be injected is pending in the host, changes are pending in the register page, and
//! the next run takes both along. Events are injected only at an intercept, and never over
//! one that is pending.
//!
//! What it refuses: kernels without register pages, CPUs in another order than VPs, and to
//! open `/dev/mshv_sint` (see [`mshv_defs`]).

mod device;
mod error;
mod exit;
mod handshake;
mod hypercall;
mod memory;
mod page;
mod state;
mod vp;

pub use error::Error;

use device::Vtl;
use device::kernel;
use guest_memory::GuestMemory;
use hv_defs::intercept::AccessMask;
use hv_defs::intercept::InterceptType;
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::HvInterruptFlags;
use hv_defs::synic::HvInterruptType;
use hv_defs::vsm::VsmPartitionConfig;
use hypercall::Hypercalls;
use hypercall::OWN_VTL;
use inspect::Inspect;
use inspect::Unit;
use loader_defs::range::GpaRange;
use memory::Registrar;
use page::RegisterPage;
use page::Run;
use rustix::event::EventfdFlags;
use rustix::event::eventfd;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use virt::Delivery;
use virt::InterruptRequest;
use virt::Partition;
use virt::Vp;
use vp::MshvVp;

/// First and last port, as the parameter of an intercept.
const ALL_PORTS: u64 = 0xffff << 16;

/// What the guest consists of.
#[derive(Debug, Clone)]
pub struct Config {
    /// VPs; as many as there are CPUs.
    pub vp_count: u32,
    /// RAM of VTL0: sorted, whole pages.
    pub ram: Vec<GpaRange>,
    /// A file that outlives this process, but not the kernel: which memory the kernel knows.
    pub memory_record: PathBuf,
}

/// VTL0.
pub struct MshvPartition {
    vtl: Arc<Vtl>,
    hypercalls: Hypercalls,
    memory: GuestMemory,
    registrar: Arc<Registrar>,
    vps: Vec<VpShared>,
}

/// What is known of a VP by all.
struct VpShared {
    run: Run,
    registers: RegisterPage,
    /// A write cancels the run.
    kick: OwnedFd,
    /// A thread has it.
    bound: AtomicBool,
    counters: Counters,
}

/// What has happened to a VP.
#[derive(Default, Inspect)]
struct Counters {
    /// Entries of the driver.
    #[inspect(counter)]
    runs: AtomicU64,
    /// Returns without an intercept.
    #[inspect(counter)]
    cancelled: AtomicU64,
    /// Cancellations that had to wake the VP's CPU.
    #[inspect(counter)]
    kicks: AtomicU64,
}

impl MshvPartition {
    /// Opens the driver's devices and says what is to be told of VTL0. VPs are as the
    /// host has left them, until they are reset.
    pub fn new(config: Config) -> Result<Arc<Self>, virt::Error> {
        let vtl = Arc::new(Vtl::open()?);
        let hypercalls = Hypercalls::open()?;
        intercept(&hypercalls)?;
        let registrar = Registrar::new(vtl.clone(), config.memory_record)
            .map_err(|error| virt::Error::Backend(Box::new(error)))?;
        let registrar = Arc::new(registrar);
        let low = device::open_low_memory()?;
        let memory =
            GuestMemory::map(low.as_fd(), &config.ram, registrar.clone()).map_err(Error::from)?;
        let vp_count =
            u16::try_from(config.vp_count).map_err(|_| Error::TooManyVps(config.vp_count))?;
        let vps = (0..vp_count).map(|cpu| VpShared::new(&vtl, cpu));
        Ok(Arc::new(Self {
            vps: vps.collect::<Result<_, Error>>()?,
            vtl,
            hypercalls,
            memory,
            registrar,
        }))
    }

    fn shared(&self, vp: u32) -> Result<&VpShared, virt::Error> {
        self.vps.get(vp as usize).ok_or(virt::Error::NoSuchVp {
            vp,
            count: self.vps.len() as u32,
        })
    }
}

/// Has the host tell what this process serves.
fn intercept(hypercalls: &Hypercalls) -> Result<(), Error> {
    let config = VsmPartitionConfig::new()
        .with_enable_vtl_protection(true)
        .with_default_vtl_protection_mask(0xf)
        .with_zero_memory_on_reset(true)
        .with_intercept_cpuid_unimplemented(true)
        .with_intercept_unrecoverable_exception(true)
        .with_intercept_page(true);
    let name = HvRegisterName::VSM_PARTITION_CONFIG;
    hypercalls.set(OWN_VTL, &[(name, [config.into(), 0])])?;
    let both = AccessMask::new().with_read(true).with_write(true);
    let write = AccessMask::new().with_write(true);
    hypercalls.install_intercept(InterceptType::X64_IO_PORT_RANGE, both, ALL_PORTS)?;
    hypercalls.install_intercept(InterceptType::X64_MSR, both, 0)?;
    hypercalls.install_intercept(InterceptType::X64_APIC_EOI, write, 0)
}

impl VpShared {
    fn new(vtl: &Vtl, cpu: u16) -> Result<Self, Error> {
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(kernel("make a file that cancels a run"))?;
        vtl.set_poll_file(cpu, kick.as_fd())?;
        Ok(Self {
            run: Run::map(vtl.as_fd(), cpu)?,
            registers: RegisterPage::map(vtl.as_fd(), cpu)?,
            kick,
            bound: AtomicBool::new(false),
            counters: Counters::default(),
        })
    }
}

impl Partition for MshvPartition {
    fn vp_count(&self) -> u32 {
        self.vps.len() as u32
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<(), virt::Error> {
        let interrupt_type = match request.delivery {
            Delivery::Fixed => HvInterruptType::FIXED,
            Delivery::LowestPriority => HvInterruptType::LOWEST_PRIORITY,
            Delivery::Nmi => HvInterruptType::NMI,
            Delivery::Init => HvInterruptType::INIT,
        };
        let flags = HvInterruptFlags::new()
            .with_level_triggered(request.level)
            .with_logical_destination(request.logical);
        self.hypercalls.assert_interrupt(
            interrupt_type,
            flags,
            request.destination.into(),
            request.vector.into(),
        )?;
        Ok(())
    }

    fn cancel(&self, vp: u32) {
        let Some(shared) = self.vps.get(vp as usize) else {
            return;
        };
        if !handshake::must_kick(shared.run.cancel()) {
            return;
        }
        // The driver sets the flag, and interrupts the CPU. If the flag were set here, the
        // driver would take it that somebody has interrupted the CPU already.
        shared.counters.kicks.fetch_add(1, Relaxed);
        // It cannot fail: the counter in the file has room for 2^64 - 2 of them.
        let _ = rustix::io::write(&shared.kick, &1_u64.to_ne_bytes());
    }

    fn bind(self: Arc<Self>, vp: u32) -> Result<Box<dyn Vp>, virt::Error> {
        Ok(Box::new(MshvVp::bind(self, vp)?))
    }
}

impl Inspect for MshvPartition {
    fn inspect(&self, request: inspect::Request<'_>) {
        request
            .respond()
            .unit("ram", Unit::Bytes, &self.memory.size())
            .field("memory", &*self.registrar)
            .field("hypercalls", &self.hypercalls)
            .child("vps", |request| {
                let mut vps = request.respond();
                for (index, vp) in self.vps.iter().enumerate() {
                    vps.field(&index.to_string(), &vp.counters);
                }
            });
    }
}

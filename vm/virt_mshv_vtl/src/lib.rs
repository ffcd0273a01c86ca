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
//! A VP whose CPU the boot shim has left to the sidecar is reached without the driver, see
//! [`sidecar`]; when it leaves the sidecar, it becomes one like the others.
//!
//! What it refuses: kernels without register pages, CPUs in another order than VPs, and to
//! open `/dev/mshv_sint` if there is no sidecar (see [`mshv_defs`]).

mod device;
mod error;
mod exit;
mod handshake;
mod hypercall;
mod local;
mod memory;
mod page;
mod sidecar;
mod state;
mod vp;

pub use error::Error;
pub use sidecar::SidecarNode;

use device::SintFile;
use device::Vtl;
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
use local::Local;
use memory::Registrar;
use sidecar::Carried;
use sidecar::Remote;
use sidecar::Wake;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::AcqRel;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;
use virt::Delivery;
use virt::InterruptRequest;
use virt::Partition;
use virt::RemoteVp;
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
    /// The nodes of the sidecar; none without one.
    pub sidecar: Vec<SidecarNode>,
}

/// VTL0.
pub struct MshvPartition {
    vtl: Arc<Vtl>,
    hypercalls: Arc<Hypercalls>,
    memory: GuestMemory,
    registrar: Arc<Registrar>,
    vps: Vec<VpShared>,
}

/// What is known of a VP by all.
#[derive(Default)]
struct VpShared {
    /// Its CPU in the sidecar, if it has been there.
    sidecar: Option<Arc<sidecar::Cpu>>,
    /// Its CPU in Linux, as soon as it is there.
    linux: OnceLock<Arc<local::Cpu>>,
    /// What the VP had in its CPU when that left the sidecar, until a thread takes it.
    carried: Mutex<Option<Carried>>,
    /// Somebody has it.
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
        let hypercalls = Arc::new(Hypercalls::open()?);
        intercept(&hypercalls)?;
        let registrar = Registrar::new(vtl.clone(), config.memory_record)
            .map_err(|error| virt::Error::Backend(Box::new(error)))?;
        let registrar = Arc::new(registrar);
        let low = device::open_low_memory()?;
        let memory =
            GuestMemory::map(low.as_fd(), &config.ram, registrar.clone()).map_err(Error::from)?;
        let vp_count =
            u16::try_from(config.vp_count).map_err(|_| Error::TooManyVps(config.vp_count))?;
        let mut vps: Vec<_> = (0..vp_count).map(|_| VpShared::default()).collect();
        if !config.sidecar.is_empty() {
            let waker: Arc<dyn Wake> = hypercalls.clone();
            find_sidecar(&config.sidecar, low.as_fd(), &waker, &mut vps)?;
        }
        for (vp, cpu) in vps.iter().zip(0..) {
            if vp.sidecar.is_none() {
                vp.join_linux(&vtl, cpu)?;
            }
        }
        Ok(Arc::new(Self {
            vps,
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

/// Finds the VPs that are in the sidecar. Those whose CPUs have left it, but have not come to
/// Linux because a worker has died, come now.
fn find_sidecar(
    nodes: &[SidecarNode],
    memory: BorrowedFd<'_>,
    waker: &Arc<dyn Wake>,
    vps: &mut [VpShared],
) -> Result<(), Error> {
    let sint = SintFile::open()?;
    let sys = Path::new(sidecar::SYS);
    for cpu in sidecar::map(nodes, vps.len() as u32, memory, waker)? {
        let vp = cpu.vp();
        // Before the look at the status, so that no answer after it is missed.
        sint.set_event(vp, cpu.event())?;
        if cpu.settle()? {
            vps[vp as usize].sidecar = Some(Arc::new(cpu));
        } else if !sidecar::is_online(sys, vp)? {
            sidecar::online(sys, vp)?;
        }
    }
    Ok(())
}

impl VpShared {
    /// The CPU is online.
    fn join_linux(&self, vtl: &Vtl, cpu: u16) -> Result<(), Error> {
        // It comes once.
        let _ = self.linux.set(Arc::new(local::Cpu::new(vtl, cpu)?));
        Ok(())
    }

    fn in_sidecar(&self) -> Option<&Arc<sidecar::Cpu>> {
        match self.linux.get() {
            Some(_) => None,
            None => self.sidecar.as_ref(),
        }
    }

    /// The VP is the caller's, which gives it back by [`VpShared::give_back`].
    fn take(&self, vp: u32) -> Result<(), virt::Error> {
        match self.bound.swap(true, AcqRel) {
            true => Err(virt::Error::Bound { vp }),
            false => Ok(()),
        }
    }

    fn give_back(&self) {
        self.bound.store(false, Release);
    }

    fn carried(&self) -> Option<Carried> {
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.take()
    }
}

impl MshvPartition {
    /// VTL0 finds on the new CPU what it had on the one in the sidecar.
    fn take_over(&self, cpu: &local::Cpu, carried: &Carried) -> Result<(), Error> {
        cpu.context().store(&carried.context);
        for (name, value) in &carried.debug {
            self.vtl.set_register(*name, *value)?;
        }
        // Who has cancelled a run in the sidecar that did not take place means the next one.
        cpu.cancel();
        Ok(())
    }
}

impl sidecar::Home for MshvPartition {
    fn init(&self, vp: u32) -> Result<(), Error> {
        self.hypercalls.init(vp)
    }

    fn give_back(&self, vp: u32) {
        self.vps[vp as usize].give_back();
    }

    fn online(&self, vp: u32, carried: Carried) -> Result<(), Error> {
        sidecar::online(Path::new(sidecar::SYS), vp)?;
        let shared = &self.vps[vp as usize];
        *shared
            .carried
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(carried);
        // There are not more VPs.
        shared.join_linux(&self.vtl, vp as u16)
    }

    fn count(&self, vp: u32, cancelled: bool) {
        let counters = &self.vps[vp as usize].counters;
        let counter = if cancelled {
            &counters.cancelled
        } else {
            &counters.runs
        };
        counter.fetch_add(1, Relaxed);
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
        // Before the look at where the VP is: if it is about to go to Linux, its first run
        // there is cancelled, and whoever runs it sees what was done before this.
        fence(SeqCst);
        let kicked = match (shared.linux.get(), &shared.sidecar) {
            (Some(cpu), _) => cpu.cancel(),
            (None, Some(cpu)) => cpu.cancel(),
            (None, None) => false,
        };
        if kicked {
            shared.counters.kicks.fetch_add(1, Relaxed);
        }
    }

    fn bind(self: Arc<Self>, vp: u32) -> Result<Box<dyn Vp>, virt::Error> {
        let shared = self.shared(vp)?;
        let cpu = shared.linux.get().ok_or(Error::InSidecar { vp })?.clone();
        shared.take(vp)?;
        let local = Local::bind(self.clone(), cpu.clone(), vp)?;
        if let Some(carried) = self.vps[vp as usize].carried() {
            self.take_over(&cpu, &carried)?;
        }
        Ok(Box::new(MshvVp::new(local)))
    }

    fn is_remote(&self, vp: u32) -> bool {
        let shared = self.vps.get(vp as usize);
        shared.is_some_and(|shared| shared.in_sidecar().is_some())
    }

    fn attach(self: Arc<Self>, vp: u32) -> Result<Box<dyn RemoteVp>, virt::Error> {
        let shared = self.shared(vp)?;
        let cpu = shared
            .in_sidecar()
            .ok_or(Error::NotInSidecar { vp })?
            .clone();
        shared.take(vp)?;
        Ok(Box::new(MshvVp::new(Remote::new(self.clone(), cpu))))
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
                    vps.field(&index.to_string(), vp);
                }
            });
    }
}

impl Inspect for VpShared {
    fn inspect(&self, request: inspect::Request<'_>) {
        let mut response = request.respond();
        response.merge(&self.counters);
        if let Some(cpu) = &self.sidecar {
            response.field("sidecar", &**cpu);
        }
    }
}

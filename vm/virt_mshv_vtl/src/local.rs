//! A VP whose CPU runs Linux: a thread is pinned to the CPU and enters VTL0 by the driver.

use crate::MshvPartition;
use crate::device::Vtl;
use crate::device::kernel;
use crate::error::Error;
use crate::handshake::acknowledge;
use crate::handshake::must_kick;
use crate::hypercall::OWN_VTL;
use crate::hypercall::RegisterValue;
use crate::hypercall::VTL0;
use crate::page;
use crate::page::RegisterPage;
use crate::page::Run;
use crate::vp::Access;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::synic::HvMessage;
use rustix::event::EventfdFlags;
use rustix::event::eventfd;
use rustix::io::Errno;
use rustix::thread::CpuSet;
use rustix::thread::sched_setaffinity;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;

/// What the driver has for a CPU that is online.
pub(crate) struct Cpu {
    run: Run,
    registers: RegisterPage,
    /// A write cancels the run.
    kick: OwnedFd,
}

impl Cpu {
    pub(crate) fn new(vtl: &Vtl, cpu: u16) -> Result<Self, Error> {
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(kernel("make a file that cancels a run"))?;
        vtl.set_poll_file(cpu, kick.as_fd())?;
        Ok(Self {
            run: Run::map(vtl.as_fd(), cpu)?,
            registers: RegisterPage::map(vtl.as_fd(), cpu)?,
            kick,
        })
    }

    /// Cancels the run that is going on, or the next one. False: somebody else has.
    pub(crate) fn cancel(&self) -> bool {
        if !must_kick(self.run.cancel()) {
            return false;
        }
        // The driver sets the flag, and interrupts the CPU. If the flag were set here, the
        // driver would take it that somebody has interrupted the CPU already.
        // It cannot fail: the counter in the file has room for 2^64 - 2 of them.
        let _ = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
        true
    }

    pub(crate) fn context(&self) -> page::Context<'_> {
        self.run.context()
    }
}

/// A VP that is bound to the thread that has this.
pub(crate) struct Local {
    partition: Arc<MshvPartition>,
    cpu: Arc<Cpu>,
    index: u32,
    /// The driver means the CPU that a request is made on, so this must stay on its thread.
    not_send: PhantomData<*const ()>,
}

impl Local {
    /// Pins the calling thread. Nobody else may have the VP; when this is dropped, it is
    /// given back.
    pub(crate) fn bind(
        partition: Arc<MshvPartition>,
        cpu: Arc<Cpu>,
        index: u32,
    ) -> Result<Self, Error> {
        // From here on, dropping it gives the VP back.
        let vp = Self {
            partition,
            cpu,
            index,
            not_send: PhantomData,
        };
        let mut cpus = CpuSet::new();
        cpus.set(index as usize);
        sched_setaffinity(None, &cpus).map_err(kernel("pin the thread to its CPU"))?;
        let mut found = [[0; 2]];
        let hypercalls = &vp.partition.hypercalls;
        hypercalls.get(OWN_VTL, &[Name::VP_INDEX], &mut found)?;
        let [[found, _]] = found;
        if found != u64::from(index) {
            let cpu = index;
            return Err(Error::Order { cpu, vp: found });
        }
        Ok(vp)
    }
}

impl Access for Local {
    fn index(&self) -> u32 {
        self.index
    }

    fn context(&self) -> page::Context<'_> {
        self.cpu.run.context()
    }

    fn page(&self) -> &RegisterPage {
        &self.cpu.registers
    }

    fn get(&self, names: &[Name], values: &mut [RegisterValue]) -> Result<(), Error> {
        self.partition.hypercalls.get(VTL0, names, values)
    }

    fn set(&self, registers: &[(Name, RegisterValue)]) -> Result<(), Error> {
        self.partition.hypercalls.set(VTL0, registers)
    }

    fn init(&self) -> Result<(), Error> {
        self.partition.hypercalls.init(self.index)
    }

    fn run(&mut self) -> Result<Option<HvMessage>, Error> {
        let counters = &self.partition.vps[self.index as usize].counters;
        counters.runs.fetch_add(1, Relaxed);
        match self.partition.vtl.run() {
            Ok(()) => Ok(Some(self.cpu.run.message())),
            // Also for a signal. VTL0 may not have been entered at all: what was to be
            // injected or changed is then still to be, and the next run does it.
            Err(Errno::INTR) => {
                acknowledge(self.cpu.run.cancel());
                counters.cancelled.fetch_add(1, Relaxed);
                Ok(None)
            }
            Err(error) => Err(kernel("run VTL0")(error)),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let bound = &self.partition.vps[self.index as usize].bound;
        bound.store(false, Release);
    }
}

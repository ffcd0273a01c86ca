//! A VP in the sidecar.

use super::Carried;
use super::Cpu;
use crate::error::Error;
use crate::hypercall::RegisterValue;
use crate::page;
use crate::page::RegisterPage;
use crate::vp::Access;
use crate::vp::MshvVp;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::synic::HvMessage;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use virt::Exit;
use virt::RemoteVp;

/// What a VP in the sidecar needs of its partition.
pub(crate) trait Home: Send + Sync {
    /// Sends an INIT to `vp` in VTL0.
    fn init(&self, vp: u32) -> Result<(), Error>;
    /// Nobody has `vp` any more.
    fn give_back(&self, vp: u32);
    /// Has Linux boot the CPU of `vp`, which runs nothing, and keeps what VTL0 had there.
    fn online(&self, vp: u32, carried: Carried) -> Result<(), Error>;
    /// The CPU was entered, or has returned without an intercept.
    fn count(&self, vp: u32, cancelled: bool);
}

/// The only owner of a VP in the sidecar. When it is dropped, the VP is given back.
pub(crate) struct Remote {
    home: Arc<dyn Home>,
    cpu: Arc<Cpu>,
}

impl Remote {
    pub(crate) fn new(home: Arc<dyn Home>, cpu: Arc<Cpu>) -> Self {
        Self { home, cpu }
    }

    fn run_ended(&self) -> Result<Option<Option<HvMessage>>, Error> {
        let ended = self.cpu.run_ended()?;
        if let Some(None) = ended {
            self.home.count(self.cpu.vp(), true);
        }
        Ok(ended)
    }
}

impl Access for Remote {
    fn index(&self) -> u32 {
        self.cpu.vp()
    }

    fn context(&self) -> page::Context<'_> {
        self.cpu.context()
    }

    fn page(&self) -> &RegisterPage {
        self.cpu.registers()
    }

    fn get(&self, names: &[Name], values: &mut [RegisterValue]) -> Result<(), Error> {
        self.cpu.get(names, values)
    }

    fn set(&self, registers: &[(Name, RegisterValue)]) -> Result<(), Error> {
        self.cpu.set(registers)
    }

    fn init(&self) -> Result<(), Error> {
        self.home.init(self.cpu.vp())
    }

    fn run(&mut self) -> Result<Option<HvMessage>, Error> {
        self.cpu.run()?;
        self.home.count(self.cpu.vp(), false);
        loop {
            if let Some(message) = self.run_ended()? {
                return Ok(message);
            }
            self.cpu.wait()?;
        }
    }
}

impl RemoteVp for MshvVp<Remote> {
    fn start(&mut self) -> Result<(), virt::Error> {
        let Remote { home, cpu } = self.access();
        cpu.run()?;
        home.count(cpu.vp(), false);
        Ok(())
    }

    fn stopped(&mut self) -> Result<Option<Exit>, virt::Error> {
        match self.access().run_ended()? {
            Some(message) => Ok(Some(self.exit(message)?)),
            None => Ok(None),
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.access().cpu.event()
    }

    fn leave(self: Box<Self>) -> Result<(), virt::Error> {
        // What was changed in the register page the host takes over when the CPU takes the
        // page back.
        let Remote { home, cpu } = self.access();
        let carried = cpu.leave()?;
        Ok(home.online(cpu.vp(), carried)?)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.home.give_back(self.cpu.vp());
    }
}

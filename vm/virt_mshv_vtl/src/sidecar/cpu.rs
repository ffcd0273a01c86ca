//! A CPU of the sidecar: its pages, and how it is asked.

use super::SidecarNode;
use super::Wake;
use super::control::Control;
use crate::device::kernel;
use crate::error::Error;
use crate::handshake::acknowledge;
use crate::handshake::must_kick;
use crate::hypercall::RegisterValue;
use crate::page;
use crate::page::ContextWords;
use crate::page::Page;
use crate::page::RegisterPage;
use hv_defs::HV_PAGE_SIZE;
use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::synic::HvMessage;
use inspect::Inspect;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::eventfd;
use rustix::event::poll;
use rustix::io::Errno;
use sidecar_defs::CommandPage;
use sidecar_defs::CpuStatus;
use sidecar_defs::ErrorText;
use sidecar_defs::command::Command;
use sidecar_defs::command::MAX_REGISTERS;
use sidecar_defs::command::RegisterRequest;
use sidecar_defs::command_page_offset;
use sidecar_defs::handshake;
use sidecar_defs::handshake::Request;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::fence;
use std::time::Duration;
use std::time::Instant;
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

/// How long a CPU may take for what takes microseconds, before it is reported as dead.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Registers that the CPU loses when it leaves the sidecar, though the VTLs share them.
const DEBUG: [Name; 4] = [
    Name::DR0,
    Name(Name::DR0.0 + 1),
    Name(Name::DR0.0 + 2),
    Name(Name::DR0.0 + 3),
];

/// A CPU. Only what cancels is for all threads; the rest is for the owner of the VP.
pub(crate) struct Cpu {
    vp: u32,
    /// Its number in its node.
    number: u32,
    control: Arc<Control>,
    command: Page,
    registers: RegisterPage,
    /// It has answered.
    event: OwnedFd,
    /// Not 0: a run that is going on, or the next one, is to come to an end.
    cancelled: AtomicU32,
    waker: Arc<dyn Wake>,
    /// Commands that were given.
    commands: AtomicU64,
    /// Interrupts that could not be sent to stop it.
    lost: AtomicU64,
}

/// What VTL0 has in the CPU itself, and what would be lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Carried {
    /// General registers, CR2, x87 and SSE.
    pub(crate) context: ContextWords,
    /// DR0 to DR3.
    pub(crate) debug: Vec<(Name, RegisterValue)>,
}

impl Cpu {
    /// Maps the pages of CPU `number` of `node`, whose control page is `control`.
    pub(super) fn map(
        memory: BorrowedFd<'_>,
        node: &SidecarNode,
        number: u32,
        control: Arc<Control>,
        waker: Arc<dyn Wake>,
    ) -> Result<Self, Error> {
        let command = node.control_page + command_page_offset(number);
        let registers = Page::map(memory, command + HV_PAGE_SIZE)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(kernel("make an event for a CPU of the sidecar"))?;
        Ok(Self {
            vp: node.base_vp + number,
            number,
            control,
            command: Page::map(memory, command)?,
            registers: RegisterPage::new(registers),
            event,
            cancelled: AtomicU32::new(0),
            waker,
            commands: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        })
    }

    pub(crate) fn vp(&self) -> u32 {
        self.vp
    }

    /// What is to be signalled when it has answered.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn status(&self) -> CpuStatus {
        handshake::status(self.cell())
    }

    /// The registers that VTLs share.
    pub(super) fn context(&self) -> page::Context<'_> {
        page::Context::new(&self.command, offset_of!(CommandPage, cpu_context))
    }

    pub(super) fn registers(&self) -> &RegisterPage {
        &self.registers
    }

    /// Ends what another process has begun here, and says whether the CPU is still in the
    /// sidecar.
    pub(crate) fn settle(&self) -> Result<bool, Error> {
        match self.status() {
            CpuStatus::RUN | CpuStatus::STOP | CpuStatus::REMOVE => {
                handshake::stop(self.cell());
                // Whoever changed the status before may have died before this.
                self.waker.wake(self.vp)?;
            }
            _ => {}
        }
        Ok(self.answer()? == CpuStatus::IDLE)
    }

    /// Reads registers of VTL0; `values` has as many elements as `names`.
    pub(super) fn get(&self, names: &[Name], values: &mut [RegisterValue]) -> Result<(), Error> {
        let (names, values) = (
            names.chunks(MAX_REGISTERS),
            values.chunks_mut(MAX_REGISTERS),
        );
        for (names, values) in names.zip(values) {
            let registers = names.iter().map(|name| (*name, [0; 2]));
            let answer = self.access(Command::GET_VP_REGISTERS, registers)?;
            for (value, register) in values.iter_mut().zip(&answer.registers) {
                *value = register.value;
            }
        }
        Ok(())
    }

    /// Writes registers of VTL0.
    pub(super) fn set(&self, registers: &[(Name, RegisterValue)]) -> Result<(), Error> {
        for chunk in registers.chunks(MAX_REGISTERS) {
            self.access(Command::SET_VP_REGISTERS, chunk.iter().copied())?;
        }
        Ok(())
    }

    /// Has VTL0 run. Nothing else is asked until [`Cpu::run_ended`] says something.
    pub(super) fn run(&self) -> Result<(), Error> {
        self.ask(Command::RUN_VP)?;
        // Who cancels sets the flag, then looks whether VTL0 runs; here it is the other way
        // round. With a fence on either side, one of both sees the other.
        fence(SeqCst);
        if self.cancelled.load(Relaxed) != 0 {
            self.stop();
        }
        Ok(())
    }

    /// Whether the run has come to an end: with a message, or because it was cancelled.
    pub(super) fn run_ended(&self) -> Result<Option<Option<HvMessage>>, Error> {
        match self.try_answer()? {
            None => Ok(None),
            Some(CpuStatus::IDLE) => {
                self.outcome(Command::RUN_VP)?;
                // RunResponse::intercepted.
                if self.command.byte(request_offset()).load(Relaxed) != 0 {
                    let message = self.command.message(offset_of!(CommandPage, intercept));
                    return Ok(Some(Some(message)));
                }
                acknowledge(&self.cancelled);
                Ok(Some(None))
            }
            Some(status) => Err(self.unexpected(status, "IDLE after a run")),
        }
    }

    /// Waits until [`Cpu::run_ended`] may have something to say.
    pub(super) fn wait(&self) -> Result<(), Error> {
        self.poll(None).map(drop)
    }

    /// Cancels the run that is going on, or the next one. False: somebody else has.
    pub(crate) fn cancel(&self) -> bool {
        if !must_kick(&self.cancelled) || self.cancelled.swap(1, SeqCst) != 0 {
            return false;
        }
        fence(SeqCst);
        self.stop();
        true
    }

    /// Has the CPU leave the sidecar, and returns what would be lost. It must be idle, and
    /// runs nothing afterwards.
    pub(super) fn leave(&self) -> Result<Carried, Error> {
        let mut values = [[0; 2]; DEBUG.len()];
        self.get(&DEBUG, &mut values)?;
        let carried = Carried {
            context: self.context().load(),
            debug: DEBUG.into_iter().zip(values).collect(),
        };
        self.give(Request::Remove)?;
        match self.answer()? {
            CpuStatus::REMOVED => Ok(carried),
            status => Err(self.unexpected(status, "REMOVED")),
        }
    }

    fn cell(&self) -> &AtomicU8 {
        self.control.status(self.number)
    }

    fn access(
        &self,
        command: Command,
        registers: impl ExactSizeIterator<Item = (Name, RegisterValue)>,
    ) -> Result<RegisterRequest, Error> {
        let mut request = RegisterRequest::new_zeroed();
        let count = registers.len();
        // At most MAX_REGISTERS.
        request.count = count as u16;
        request.target_vtl = crate::hypercall::VTL0.into();
        let mut names = [Name(0); MAX_REGISTERS];
        for (index, (name, value)) in registers.enumerate() {
            names[index] = name;
            request.registers[index] = HvRegisterAssoc {
                name: name.0,
                pad: [0; 3],
                value,
            };
        }
        self.put(request.as_bytes());
        self.ask(command)?;
        match self.answer()? {
            CpuStatus::IDLE => {}
            status => return Err(self.unexpected(status, "IDLE after a command")),
        }
        self.outcome(command)?;
        let answer = self.take();
        if answer.status == HvStatus::SUCCESS.0 {
            return Ok(answer);
        }
        let code = match command {
            Command::GET_VP_REGISTERS => HypercallCode::GET_VP_REGISTERS,
            _ => HypercallCode::SET_VP_REGISTERS,
        };
        let status = HvStatus(answer.status);
        Err(match names[..count].get(usize::from(answer.done)) {
            Some(register) => Error::Register {
                code,
                register: *register,
                status,
            },
            None => Error::Hypercall { code, status },
        })
    }

    /// Gives the CPU a command, whose input is in the page.
    fn ask(&self, command: Command) -> Result<(), Error> {
        self.commands.fetch_add(1, Relaxed);
        let place = self.command.half(offset_of!(CommandPage, command));
        // If the CPU is not idle, its page is not to be touched.
        match self.status() {
            CpuStatus::IDLE => place.store(command.0, Relaxed),
            status => return Err(self.unexpected(status, "IDLE")),
        }
        self.command
            .byte(offset_of!(CommandPage, has_error))
            .store(0, Relaxed);
        self.give(Request::Run)
    }

    fn give(&self, request: Request) -> Result<(), Error> {
        handshake::ask(self.cell(), request)
            .map_err(|handshake::NotIdle(status)| self.unexpected(status, "IDLE"))?;
        self.waker.wake(self.vp)
    }

    fn stop(&self) {
        if handshake::stop(self.cell()) && self.waker.wake(self.vp).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until the CPU has its pages no more.
    fn answer(&self) -> Result<CpuStatus, Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.try_answer()? {
                return Ok(status);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !self.poll(Some(left))? && left.is_zero() {
                return Err(Error::SidecarSilent {
                    vp: self.vp,
                    status: self.status(),
                    seconds: PATIENCE.as_secs(),
                });
            }
        }
    }

    /// The status, if the CPU has its pages no more.
    fn try_answer(&self) -> Result<Option<CpuStatus>, Error> {
        // First the events, then the status: what comes after the look is an event again.
        // It fails if there are none.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        match self.status() {
            status @ (CpuStatus::IDLE | CpuStatus::REMOVED) => Ok(Some(status)),
            CpuStatus::RUN | CpuStatus::STOP | CpuStatus::REMOVE => Ok(None),
            CpuStatus::FAILED => Err(Error::SidecarFailed {
                vp: self.vp,
                text: self.error_text(),
            }),
            status => Err(self.unexpected(status, "one that exists")),
        }
    }

    /// Waits for an event; false if none has come in time.
    fn poll(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut files = [PollFd::new(&self.event, PollFlags::IN)];
        match poll(&mut files, timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(kernel("wait for a CPU of the sidecar")(error)),
        }
    }

    /// What the CPU says of the command that it has executed.
    fn outcome(&self, command: Command) -> Result<(), Error> {
        let failed = self.command.byte(offset_of!(CommandPage, has_error));
        if failed.load(Relaxed) == 0 {
            return Ok(());
        }
        Err(Error::SidecarCommand {
            vp: self.vp,
            command,
            text: self.error_text(),
        })
    }

    fn error_text(&self) -> String {
        let mut text = ErrorText::EMPTY;
        for (index, byte) in text.as_mut_bytes().iter_mut().enumerate() {
            let place = offset_of!(CommandPage, error) + index;
            *byte = self.command.byte(place).load(Relaxed);
        }
        inspect::printable(text.as_str()).into_owned()
    }

    fn put(&self, request: &[u8]) {
        for (index, word) in request.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            self.command.set(request_offset() + 8 * index, word);
        }
    }

    fn take(&self) -> RegisterRequest {
        let mut request = RegisterRequest::new_zeroed();
        for (index, word) in request.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            let value = self.command.get(request_offset() + 8 * index);
            word.copy_from_slice(&value.to_ne_bytes());
        }
        request
    }

    fn unexpected(&self, status: CpuStatus, expected: &'static str) -> Error {
        Error::SidecarStatus {
            vp: self.vp,
            status,
            expected,
        }
    }
}

impl Inspect for Cpu {
    fn inspect(&self, request: inspect::Request<'_>) {
        request
            .respond()
            .field("status", format!("{:?}", self.status()).as_str())
            .counter("commands", &self.commands)
            .counter("lost_interrupts", &self.lost);
    }
}

const fn request_offset() -> usize {
    offset_of!(CommandPage, request)
}

const _: () = assert!(size_of::<RegisterRequest>().is_multiple_of(8));
const _: () = assert!(request_offset().is_multiple_of(8));
// The message and the registers are accessed by words.
const _: () = assert!(offset_of!(CommandPage, intercept).is_multiple_of(8));
const _: () = assert!(offset_of!(CommandPage, cpu_context).is_multiple_of(8));

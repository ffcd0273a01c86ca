//! Serves the exits of a VP: which device, which answer.

use super::crash;
use super::crash::Crash;
use super::emulate;
use super::emulate::Emulated;
use super::power::Happening;
use super::report::report;
use chipset::Chipset;
use chipset::bus::Width;
use chipset::bus::Written;
use virt::Access;
use virt::Exception;
use virt::Exit;
use virt::GuestMemory;
use virt::Instruction;
use virt::MemoryExit;
use virt::MsrExit;
use virt::PortExit;
use virt::Vp;

/// The most bytes of a crashed guest's own text that are looked at.
const SAID_MAX: u64 = 4096;
/// The most bytes of it that are told, where each byte may have become several, and the
/// most lines: a report must fit into one message, and the guest may crash often.
const SAID_TOLD_MAX: usize = 6 << 10;
const SAID_LINES_MAX: usize = 96;

/// What exits are served with.
pub(crate) struct Exits<'a> {
    pub(crate) chipset: &'a Chipset,
    pub(crate) memory: &'a GuestMemory,
    pub(crate) crash: &'a Crash,
}

/// What became of an exit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The VP can go on.
    Done,
    /// A device could not take a write. The VP waits for room and does its instruction
    /// again.
    Stalled,
    /// The guest has asked for something that concerns the whole VM, or cannot go on.
    Happened(Happening),
}

impl Exits<'_> {
    /// Serves `exit`. An error of the partition is something that the VM cannot go on with.
    pub(crate) fn serve(&self, vp: &mut dyn Vp, exit: Exit) -> Served {
        let served = match exit {
            Exit::Cancelled | Exit::Halt => Ok(Served::Done),
            Exit::Port(exit) => self.port(vp, &exit),
            Exit::Memory(exit) => self.memory_access(vp, &exit),
            Exit::Msr(exit) => self.msr(vp, &exit),
            Exit::Cpuid(exit) => vp
                .complete_cpuid(&exit, exit.default)
                .map(|()| Served::Done),
            Exit::Eoi { vector } => {
                self.chipset.end_of_interrupt(vector);
                Ok(Served::Done)
            }
            Exit::TripleFault => Ok(Served::Happened(Happening::Crashed(report(
                vp,
                "triple fault",
                None,
            )))),
            Exit::Unknown { message_type } => {
                let reason = format!("unknown intercept message {message_type:#x}");
                Ok(stopped(vp, &reason, None))
            }
        };
        served.unwrap_or_else(|error| stopped(vp, &kernel_log::chain(&error), None))
    }

    fn port(&self, vp: &mut dyn Vp, exit: &PortExit) -> Result<Served, virt::Error> {
        let width = Width::from_bytes(exit.size.into()).filter(|width| *width != Width::Qword);
        let (Some(width), false, Some(_)) = (width, exit.string, exit.instruction.length) else {
            return Ok(self.emulate(vp, &exit.instruction, None));
        };
        let bus = self.chipset.bus();
        let value = match exit.output {
            Some(value) => match bus.write_port(exit.port, width, value.into()) {
                Written::Done => 0,
                Written::Stalled => return Ok(Served::Stalled),
            },
            // The width has at most 32 bits.
            None => bus.read_port(exit.port, width) as u32,
        };
        vp.complete_port(exit, value)?;
        Ok(Served::Done)
    }

    fn memory_access(&self, vp: &mut dyn Vp, exit: &MemoryExit) -> Result<Served, virt::Error> {
        if exit.delivering {
            let reason = format!(
                "an event was being delivered to memory that is not RAM, at {:#x}",
                exit.gpa
            );
            return Ok(stopped(vp, &reason, Some(&exit.instruction)));
        }
        if self.memory.is_ram(exit.gpa, 1) {
            // There is memory, and the guest may not have it.
            vp.inject(Exception::GENERAL_PROTECTION)?;
            return Ok(Served::Done);
        }
        if exit.access == Access::Execute {
            // Where nobody answers there are ones, and ones are no instruction.
            vp.inject(Exception::INVALID_OPCODE)?;
            return Ok(Served::Done);
        }
        Ok(self.emulate(vp, &exit.instruction, Some(exit)))
    }

    fn msr(&self, vp: &mut dyn Vp, exit: &MsrExit) -> Result<Served, virt::Error> {
        let answer = match exit.write {
            Some(value) => self.crash.write(exit.msr, value),
            None => self.crash.read(exit.msr),
        };
        match answer {
            crash::Answer::Value(value) => vp.complete_msr(exit, value)?,
            crash::Answer::Unknown => vp.inject(Exception::GENERAL_PROTECTION)?,
            crash::Answer::Reset => {
                vp.complete_msr(exit, 0)?;
                let source = "hypervisor reset MSR".to_owned();
                return Ok(Served::Happened(Happening::Reset(source)));
            }
            crash::Answer::Crashed { reason, message } => {
                vp.complete_msr(exit, 0)?;
                let mut text = report(vp, &reason, None);
                if let Some(said) = message.and_then(|(gpa, length)| self.said(gpa, length)) {
                    text = format!("{text}\nthe guest says:\n{said}");
                }
                return Ok(Served::Happened(Happening::Crashed(text)));
            }
        }
        Ok(Served::Done)
    }

    /// The end of a text in the guest's memory.
    fn said(&self, gpa: u64, length: u64) -> Option<String> {
        let kept = length.min(SAID_MAX);
        let mut bytes = vec![0; kept as usize];
        let start = gpa.checked_add(length - kept)?;
        self.memory.read(start, &mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().map(|line| inspect::printable(line)).collect();
        let start = lines.len().saturating_sub(SAID_LINES_MAX);
        let mut told = lines[start..].join("\n");
        let excess = told.len().saturating_sub(SAID_TOLD_MAX);
        told.drain(..told.ceil_char_boundary(excess));
        Some(told)
    }

    /// Does an instruction that moves data in ways that only its bytes tell.
    fn emulate(
        &self,
        vp: &mut dyn Vp,
        instruction: &Instruction,
        access: Option<&MemoryExit>,
    ) -> Served {
        match emulate::instruction(vp, self.memory, self.chipset.bus(), instruction, access) {
            Ok(Emulated::Done) => Served::Done,
            Ok(Emulated::Stalled) => Served::Stalled,
            Err(error) => stopped(vp, &kernel_log::chain(&error), Some(instruction)),
        }
    }
}

/// The VM cannot go on.
fn stopped(vp: &mut dyn Vp, reason: &str, instruction: Option<&Instruction>) -> Served {
    Served::Happened(Happening::Stopped(report(vp, reason, instruction)))
}

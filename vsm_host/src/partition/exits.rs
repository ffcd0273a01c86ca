//! What happens when a VP leaves its VTL.

use super::counters::Refused;
use super::guest::lapic;
use super::{Next, Partition, Processor, Vp, apic, gpr};
use crate::hypercall::Outcome;
use crate::svm::fetch::Instruction;
use crate::svm::vmcb::{self, Exception};
use crate::svm::{debug, flags, shadow};
use crate::vtl::Vtl;
use crate::{cpuid, hypercall, log_text};
use boot_events::{HOST_ERROR_PREFIX, HOST_VTL2_CRASH_PREFIX};
use core::fmt;
use vsm_host_defs::{ExitReason, HOST_MEMORY_BASE, HOST_MEMORY_SIZE};
use x86_defs::svm::{EventInjection, ExitCode, IoInfo};
use x86_defs::{CR4_OSXSAVE, EFER_SVME};

/// Bit of EXITINFO1 of a nested page fault: it was a write.
pub(super) const NPF_WRITE: u64 = 1 << 1;
/// It was a write of the instruction itself, not of the page tables' walk.
const NPF_STORE: u64 = NPF_FINAL | NPF_WRITE;
/// It was the access of the instruction itself.
pub(super) const NPF_FINAL: u64 = 1 << 32;
/// It was an instruction fetch.
pub(super) const NPF_FETCH: u64 = 1 << 4;

const LOW_32: u64 = 0xffff_ffff;

impl Partition {
    /// Handles the exit that the VP's block describes.
    pub fn handle_exit(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        let control = &mut vp.vmcb_mut().control;
        // An event whose delivery the exit interrupted is delivered again. One that an
        // instruction raises comes again with the instruction, at which the VTL stands.
        let interrupted = EventInjection::from(control.exit_interrupt_info);
        control.event_injection = if interrupted.valid() && !interrupted.is_of_instruction() {
            interrupted
        } else {
            EventInjection::new()
        };
        // A block that the processor refuses has made it forget nothing.
        if control.exit_code != ExitCode::INVALID {
            control.tlb_control = 0;
        }
        let state = &mut vp.vtls[vp.vtl.index()];
        state.nmis.exited(&mut state.vmcb);
        self.finish_halt(vp, processor);
        if vp.vtl == Vtl::GUEST {
            return self.handle_guest_exit(vp, processor);
        }
        self.repair_flags(vp, processor);
        let control = &vp.vmcb().control;
        let (code, info1, info2) = (control.exit_code, control.exit_info1, control.exit_info2);
        match code {
            ExitCode::CPUID => self.instruction(vp, processor, Instruction::Cpuid, |vp| {
                self.cpuid(vp, processor);
                Ok(Next::Resume)
            }),
            ExitCode::MSR if info1 & 1 == 0 => {
                self.instruction(vp, processor, Instruction::Rdmsr, |vp| {
                    let msr = vp.gprs[gpr::RCX] as u32;
                    let value = self.read_msr(vp, processor, msr)?;
                    vp.vmcb_mut().save.rax = value & LOW_32;
                    vp.gprs[gpr::RDX] = value >> 32;
                    Ok(Next::Resume)
                })
            }
            ExitCode::MSR => self.instruction(vp, processor, Instruction::Wrmsr, |vp| {
                let msr = vp.gprs[gpr::RCX] as u32;
                let value = vp.gprs[gpr::RDX] << 32 | vp.vmcb().save.rax & LOW_32;
                self.write_msr(vp, processor, msr, value)
            }),
            ExitCode::VMMCALL if self.config.alone => {
                self.instruction(vp, processor, Instruction::Vmmcall, |vp| {
                    self.refuse_hypercall(vp)
                })
            }
            ExitCode::VMMCALL => {
                self.instruction(
                    vp,
                    processor,
                    Instruction::Vmmcall,
                    |vp| match hypercall::handle(self, vp, processor) {
                        Outcome::Done(result) => {
                            vp.vmcb_mut().save.rax = result.into();
                            Ok(Next::Resume)
                        }
                        Outcome::Fault(exception) => Err(exception),
                        Outcome::Switched(next) => Ok(next),
                        // Nobody is above VTL2.
                        Outcome::Intercepted => Err(Exception::InvalidOpcode),
                        Outcome::End(reason) => Ok(Next::End(reason)),
                    },
                )
            }
            code if debug::is_write(code) => {
                self.write_debug_register(vp, processor);
                Next::Resume
            }
            ExitCode::IOIO => {
                self.port(vp, info1.into(), info2);
                Next::Resume
            }
            _ if is_host_instruction(code) => {
                self.counters.count(Refused::Instruction(code.0));
                vmcb::inject(vp.vmcb_mut(), Exception::InvalidOpcode);
                Next::Resume
            }
            ExitCode::NPF if is_host_memory(vp.vmcb().save.cr3) => {
                // No VTL has its page tables there: this is the state of the host. QEMU
                // can do that to its first CPU under multi-threaded emulation.
                processor.log(format_args!(
                    "{}VP {} ran the host's own code with nested paging (the emulator corrupts \
                     its first CPU, which must be parked)",
                    log_text(HOST_ERROR_PREFIX),
                    vp.index
                ));
                log_registers(vp, processor);
                Next::End(ExitReason::HostError)
            }
            ExitCode::NPF => {
                let denied = if apic::pages().iter().any(|page| page.contains(info2)) {
                    if info1 & NPF_STORE == NPF_STORE && self.write_apic(vp, processor, info2) {
                        return Next::Resume;
                    }
                    "which only a 32-bit MOV of 64-bit code may"
                } else {
                    "which it does not have"
                };
                let access = match info1 {
                    info if info & NPF_FETCH != 0 => "executes at",
                    info if info & NPF_WRITE != 0 => "writes to",
                    _ => "reads from",
                };
                self.crashed(
                    vp,
                    processor,
                    format_args!("{access} GPA {info2:#x}, {denied}"),
                )
            }
            ExitCode::NMI => {
                self.nmi_exit(vp, processor);
                Next::Resume
            }
            // Noted above.
            ExitCode::IRET => Next::Resume,
            ExitCode::SHUTDOWN => self.crashed(vp, processor, format_args!("triple fault")),
            // Only a device that VTL2 has told to can have sent one.
            ExitCode::SMI => self.crashed(vp, processor, format_args!("SMI")),
            ExitCode::INIT => self.crashed(vp, processor, format_args!("INIT from another VP")),
            ExitCode::INVALID => self.crashed(
                vp,
                processor,
                format_args!("the processor does not accept its registers"),
            ),
            _ => self.unexpected(vp, processor),
        }
    }

    /// An exit that nobody asked the processor for.
    pub(super) fn unexpected(&self, vp: &Vp, processor: &impl Processor) -> Next {
        let control = &vp.vmcb().control;
        processor.log(format_args!(
            "{}VP {} leaves {} with {:x?} ({:#x}, {:#x}), expected an intercepted event",
            log_text(HOST_ERROR_PREFIX),
            vp.index,
            vp.vtl,
            control.exit_code,
            control.exit_info1,
            control.exit_info2
        ));
        Next::End(ExitReason::HostError)
    }

    /// See [`shadow`]: a VTL that has been called out between STI and HLT halts now.
    fn finish_halt(&self, vp: &mut Vp, processor: &impl Processor) {
        if !matches!(vp.vmcb().control.exit_code, ExitCode::NMI | ExitCode::INTR) {
            return;
        }
        let memory = self.memory(vp.vtl, processor);
        let Some(next_rip) = shadow::behind_halt(&memory, vp.vmcb()) else {
            return;
        };
        vmcb::advance(vp.vmcb_mut(), next_rip);
        // VTL2 halts by itself. To it this is an HLT that ends at once, as one does whose
        // interrupt has come already; its idle loop looks for work and halts again.
        if vp.vtl == Vtl::GUEST {
            lapic::halt(vp);
        }
    }

    /// See [`flags`].
    pub(super) fn repair_flags(&self, vp: &mut Vp, processor: &impl Processor) -> bool {
        let memory = self.memory(vp.vtl, processor);
        flags::repair(&memory, &mut vp.vmcb_mut().save)
    }

    /// Emulates an instruction if it is the one that the VP stands at, and goes on behind
    /// it or with an exception.
    fn instruction(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        instruction: Instruction,
        emulate: impl FnOnce(&mut Vp) -> Result<Next, Exception>,
    ) -> Next {
        let memory = self.memory(vp.vtl, processor);
        let Some(next_rip) = vp.next_rip(&memory, instruction) else {
            vmcb::inject(vp.vmcb_mut(), Exception::InvalidOpcode);
            return Next::Resume;
        };
        // The instruction may switch to another VTL; it is this one that has executed it.
        let vtl = vp.vtl.index();
        match emulate(vp) {
            Ok(next) => {
                vmcb::advance(&mut vp.vtls[vtl].vmcb, next_rip);
                next
            }
            Err(exception) => {
                vmcb::inject(vp.vmcb_mut(), exception);
                Next::Resume
            }
        }
    }

    /// What a leaf shows to the VTL that the VP is in.
    pub(super) fn cpuid_of(
        &self,
        vp: &Vp,
        processor: &impl Processor,
        leaf: u32,
        subleaf: u32,
    ) -> cpuid::Registers {
        let asker = cpuid::Asker {
            vtl: vp.vtl,
            vp: vp.index,
            vp_count: self.vp_count(),
            alone: self.config.alone,
            os_xsave: vp.vmcb().save.cr4 & CR4_OSXSAVE != 0,
        };
        let native = |leaf, subleaf| processor.cpuid(leaf, subleaf);
        cpuid::answer(&asker, leaf, subleaf, native)
    }

    /// What CPUID shows where the VP stands.
    pub(super) fn cpuid_answer(&self, vp: &Vp, processor: &impl Processor) -> cpuid::Registers {
        let leaf = vp.vmcb().save.rax as u32;
        let subleaf = vp.gprs[gpr::RCX] as u32;
        self.cpuid_of(vp, processor, leaf, subleaf)
    }

    pub(super) fn cpuid(&self, vp: &mut Vp, processor: &impl Processor) {
        let [eax, ebx, ecx, edx] = self.cpuid_answer(vp, processor).map(u64::from);
        vp.vmcb_mut().save.rax = eax;
        vp.gprs[gpr::RBX] = ebx;
        vp.gprs[gpr::RCX] = ecx;
        vp.gprs[gpr::RDX] = edx;
    }

    /// A port of the host: nobody answers there.
    pub(super) fn port(&self, vp: &mut Vp, info: IoInfo, next_rip: u64) {
        self.counters.count(Refused::Port(info.port()));
        let vmcb = vp.vmcb_mut();
        if info.string() {
            // It would need access to memory; no driver does that with these ports.
            vmcb::inject(vmcb, Exception::GeneralProtection);
            return;
        }
        if info.is_in() {
            let ones = match (info.byte(), info.word()) {
                (true, _) => 0xff,
                (_, true) => 0xffff,
                _ => LOW_32,
            };
            // A 32-bit result clears the upper half, a smaller one leaves it.
            vmcb.save.rax = if ones == LOW_32 {
                LOW_32
            } else {
                vmcb.save.rax | ones
            };
        }
        vmcb::advance(vmcb, next_rip);
    }

    /// The VTL cannot go on. Says why: what it reported itself, or else what `cause` is.
    fn crashed(&self, vp: &Vp, processor: &impl Processor, cause: fmt::Arguments<'_>) -> Next {
        let prefix = log_text(HOST_VTL2_CRASH_PREFIX);
        // Another VP may be reporting right now; its report is logged in any case.
        let report = self.shared.lock().crash.take();
        match report {
            Some(report) => processor.log(format_args!(
                "{prefix}{} (VP {}: {cause})",
                report.headline(),
                vp.index
            )),
            None => processor.log(format_args!("{prefix}VP {}: {cause}", vp.index)),
        }
        log_registers(vp, processor);
        Next::End(ExitReason::Vtl2Crash)
    }
}

/// An instruction that does not exist for a VTL: it is the host's.
pub(super) fn is_host_instruction(code: ExitCode) -> bool {
    matches!(
        code,
        ExitCode::VMRUN
            | ExitCode::VMLOAD
            | ExitCode::VMSAVE
            | ExitCode::STGI
            | ExitCode::CLGI
            | ExitCode::SKINIT
            | ExitCode::INVLPGA
            | ExitCode::MONITOR
            | ExitCode::MWAIT
            | ExitCode::MWAIT_ARMED
            | ExitCode::XSETBV
    )
}

fn is_host_memory(address: u64) -> bool {
    (HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE).contains(&address)
}

pub(super) fn log_registers(vp: &Vp, processor: &impl Processor) {
    let s = &vp.vmcb().save;
    let g = &vp.gprs;
    processor.log(format_args!(
        "  rip {:#x} rsp {:#x} rflags {:#x} cpl {} {}",
        s.rip, s.rsp, s.rflags, s.cpl, vp.vtl
    ));
    processor.log(format_args!(
        "  rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} rbp {:#x}",
        s.rax, g[3], g[1], g[2], g[6], g[7], g[5]
    ));
    processor.log(format_args!(
        "  r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}",
        g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]
    ));
    processor.log(format_args!(
        "  cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        // As the VTL sees it.
        s.efer & !EFER_SVME
    ));
    processor.log(format_args!(
        "  cs {:#x} base {:#x} ss {:#x} gs {:#x} gdtr {:#x} idtr {:#x}/{:#x} tr {:#x}",
        s.cs.selector,
        s.cs.base,
        s.ss.selector,
        s.gs.base,
        s.gdtr.base,
        s.idtr.base,
        s.idtr.limit,
        s.tr.base
    ));
}

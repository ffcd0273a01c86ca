//! What makes the guest leave VTL0, and who answers it: the host, or VTL2.

use super::lapic::{self, Mmio};
use super::message::{header, instruction};
use super::msrs::{self, Access, Written};
use crate::hypercall::Outcome;
use crate::partition::counters::Refused;
use crate::partition::{Next, Partition, Processor, Vp, exits, gpr, synic};
use crate::svm::debug;
use crate::svm::fetch::Instruction;
use crate::svm::vmcb::{self, Exception};
use crate::vtl::Vtl;
use crate::{cpuid, hypercall};
use hv_defs::intercept::{
    AccessType, ApicEoi, CpuidIntercept, HypercallIntercept, IoPortAccess, IoPortIntercept,
    MemoryAccess, MemoryIntercept, MsrIntercept, SintDeliverable,
};
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::HvMessageType;
use vsm_host_defs::ExitReason;
use x86_defs::svm::{ExitCode, IoInfo};
use x86_defs::{CR4_OSXSAVE, DR6_BS, RFLAGS_TF};
use zerocopy::IntoBytes;

const LOW_32: u64 = 0xffff_ffff;

/// The extended control register that says which state is in use.
const XCR0: u32 = 0;

/// CPUID leaf of extended state.
const XSAVE_LEAF: u32 = 0xd;

/// Memory type of all RAM, as in PAT: write-back.
const WRITE_BACK: u32 = 6;

impl Partition {
    /// Handles an exit of the guest.
    pub(in crate::partition) fn handle_guest_exit(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
    ) -> Next {
        lapic::after_exit(self, vp, processor);
        let flags_were_wrong = self.repair_flags(vp, processor);
        let control = &vp.vmcb().control;
        let (code, info1, info2) = (control.exit_code, control.exit_info1, control.exit_info2);
        match code {
            // Physical interrupts are VTL2's.
            ExitCode::INTR => self.interrupted(vp, processor),
            ExitCode::NMI => {
                self.nmi_exit(vp, processor);
                if self.nmi_waits(vp) {
                    return self.interrupted(vp, processor);
                }
                // Somebody wants this CPU to look again at what there is to do.
                Next::Resume
            }
            // What waits can be taken, which is looked at before the entry.
            ExitCode::VINTR => Next::Resume,
            ExitCode::CR8_WRITE => {
                lapic::write_cr8(self, vp, processor);
                Next::Resume
            }
            code if debug::is_write(code) => {
                self.write_debug_register(vp, processor);
                Next::Resume
            }
            // An NMI may come after it, which `svm::nmi` has noted.
            ExitCode::IRET => Next::Resume,
            ExitCode::EXCEPTION_DB => {
                let save = &mut vp.vmcb_mut().save;
                if flags_were_wrong && save.dr6 & DR6_BS != 0 {
                    // The repair has cleared it, and the step shows that it was set.
                    save.rflags |= RFLAGS_TF;
                }
                raise_again(vp, Exception::Debug)
            }
            ExitCode::EXCEPTION_AC => raise_again(vp, Exception::AlignmentCheck),
            ExitCode::ICEBP => {
                if let Some(next_rip) = self.behind(vp, processor, Instruction::Icebp) {
                    vmcb::advance(vp.vmcb_mut(), next_rip);
                    vmcb::inject(vp.vmcb_mut(), Exception::Debug);
                }
                Next::Resume
            }
            ExitCode::HLT => self.halt(vp, processor),
            ExitCode::INVD => {
                // Caches are shared, and never differ from memory for the guest.
                if let Some(next_rip) = self.behind(vp, processor, Instruction::Invd) {
                    vmcb::advance(vp.vmcb_mut(), next_rip);
                }
                Next::Resume
            }
            ExitCode::CPUID => self.guest_cpuid(vp, processor),
            ExitCode::XSETBV => self.guest_xsetbv(vp, processor),
            ExitCode::MSR => self.guest_msr(vp, processor, info1 & 1 != 0),
            ExitCode::VMMCALL => self.guest_hypercall(vp, processor),
            ExitCode::IOIO => self.guest_port(vp, processor, info1.into(), info2),
            ExitCode::NPF => self.guest_memory(vp, processor, info1, info2),
            ExitCode::SHUTDOWN => self.guest_is_dead(vp, processor),
            ExitCode::INVALID => {
                // The processor does not say which one.
                self.invalid_register(vp, processor, HvRegisterName::RIP)
            }
            _ if exits::is_host_instruction(code) => {
                self.counters.count(Refused::Instruction(code.0));
                vmcb::inject(vp.vmcb_mut(), Exception::InvalidOpcode);
                Next::Resume
            }
            _ => self.unexpected(vp, processor),
        }
    }

    /// RIP behind an instruction that exited; else #UD, as the bytes are not those of one.
    fn behind(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        instruction: Instruction,
    ) -> Option<u64> {
        let memory = self.memory(vp.vtl, processor);
        let next = vp.next_rip(&memory, instruction);
        if next.is_none() {
            vmcb::inject(vp.vmcb_mut(), Exception::InvalidOpcode);
        }
        next
    }

    fn halt(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        if let Some(next_rip) = self.behind(vp, processor, Instruction::Hlt) {
            vmcb::advance(vp.vmcb_mut(), next_rip);
            lapic::halt(vp);
        }
        Next::Resume
    }

    fn guest_cpuid(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        let Some(next_rip) = self.behind(vp, processor, Instruction::Cpuid) else {
            return Next::Resume;
        };
        let leaf = vp.vmcb().save.rax as u32;
        let unimplemented = cpuid::is_unimplemented(leaf);
        if !unimplemented || !self.vsm_config().intercept_cpuid_unimplemented() {
            self.cpuid(vp, processor);
            vmcb::advance(vp.vmcb_mut(), next_rip);
            return Next::Resume;
        }
        let [rax, rbx, rcx, rdx] = self.cpuid_answer(vp, processor).map(u64::from);
        let length = next_rip.wrapping_sub(vp.vmcb().save.rip);
        let payload = CpuidIntercept {
            header: header(vp, AccessType::EXECUTE, length),
            rax: vp.vmcb().save.rax,
            rcx: vp.gprs[gpr::RCX],
            rdx: vp.gprs[gpr::RDX],
            rbx: vp.gprs[gpr::RBX],
            default_rax: rax,
            default_rcx: rcx,
            default_rdx: rdx,
            default_rbx: rbx,
        };
        let kind = HvMessageType::X64_CPUID_INTERCEPT;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    fn guest_msr(&self, vp: &mut Vp, processor: &impl Processor, write: bool) -> Next {
        let kind = if write {
            Instruction::Wrmsr
        } else {
            Instruction::Rdmsr
        };
        let Some(next_rip) = self.behind(vp, processor, kind) else {
            return Next::Resume;
        };
        let msr = vp.gprs[gpr::RCX] as u32;
        let access = if write {
            let value = vp.gprs[gpr::RDX] << 32 | vp.vmcb().save.rax & LOW_32;
            msrs::write(self, vp, processor, msr, value)
        } else {
            msrs::read(self, vp, processor, msr).map(|value| {
                vp.vmcb_mut().save.rax = value & LOW_32;
                vp.gprs[gpr::RDX] = value >> 32;
                Written::default()
            })
        };
        match access {
            Access::Done(Written { next, ended }) => {
                vmcb::advance(vp.vmcb_mut(), next_rip);
                match ended {
                    Some(vector) => self.guest_ended(vp, processor, vector),
                    None if next == Next::Resume => self.tell_ready_sources(vp, processor),
                    None => next,
                }
            }
            Access::Fault(exception) => {
                vmcb::inject(vp.vmcb_mut(), exception);
                Next::Resume
            }
            Access::Intercepted => self.intercept_msr(vp, processor, write, next_rip),
        }
    }

    /// Tells VTL2 of sources that it waits for and that can take a message now; else the
    /// guest goes on.
    pub(super) fn tell_ready_sources(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        let deliverable_sints = synic::take_ready(self, vp, processor);
        if deliverable_sints == 0 {
            return Next::Resume;
        }
        let payload = SintDeliverable {
            header: header(vp, AccessType::EXECUTE, 0),
            deliverable_sints,
            reserved: [0; 3],
        };
        let kind = HvMessageType::SYNIC_SINT_DELIVERABLE;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    /// The guest has ended a level-triggered interrupt: VTL2, which has the IOAPIC, is told
    /// if it wants to know.
    fn guest_ended(&self, vp: &mut Vp, processor: &impl Processor, vector: u8) -> Next {
        if !self.intercepts.apic_eoi() {
            return Next::Resume;
        }
        let payload = ApicEoi {
            vp_index: vp.index,
            vector: vector.into(),
        };
        let kind = HvMessageType::X64_APIC_EOI;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    /// XSETBV. Nobody but the guest uses extended state, so XCR0 is the guest's always.
    fn guest_xsetbv(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        let Some(next_rip) = self.behind(vp, processor, Instruction::Xsetbv) else {
            return Next::Resume;
        };
        let save = &vp.vmcb().save;
        let value = vp.gprs[gpr::RDX] << 32 | save.rax & LOW_32;
        let register = vp.gprs[gpr::RCX] as u32;
        let [offered, ..] = self.cpuid_of(vp, processor, XSAVE_LEAF, 0);
        let exception = if save.cr4 & CR4_OSXSAVE == 0 {
            Some(Exception::InvalidOpcode)
        } else if save.cpl != 0 || register != XCR0 || !cpuid::is_valid_xcr0(offered, value) {
            Some(Exception::GeneralProtection)
        } else {
            None
        };
        match exception {
            Some(exception) => vmcb::inject(vp.vmcb_mut(), exception),
            None => {
                processor.set_xcr0(value);
                vmcb::advance(vp.vmcb_mut(), next_rip);
            }
        }
        Next::Resume
    }

    /// Lets VTL2 answer an access to an MSR.
    fn intercept_msr(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        write: bool,
        next_rip: u64,
    ) -> Next {
        let access = if write {
            AccessType::WRITE
        } else {
            AccessType::READ
        };
        let length = next_rip.wrapping_sub(vp.vmcb().save.rip);
        let payload = MsrIntercept {
            header: header(vp, access, length),
            msr: vp.gprs[gpr::RCX] as u32,
            reserved: 0,
            rdx: vp.gprs[gpr::RDX],
            rax: vp.vmcb().save.rax,
        };
        let kind = HvMessageType::X64_MSR_INTERCEPT;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    fn guest_hypercall(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        let Some(next_rip) = self.behind(vp, processor, Instruction::Vmmcall) else {
            return Next::Resume;
        };
        match hypercall::handle(self, vp, processor) {
            Outcome::Done(result) => {
                vp.vmcb_mut().save.rax = result.into();
                vmcb::advance(vp.vmcb_mut(), next_rip);
                Next::Resume
            }
            Outcome::Fault(exception) => {
                vmcb::inject(vp.vmcb_mut(), exception);
                Next::Resume
            }
            Outcome::Switched(next) => next,
            Outcome::Intercepted => self.intercept_hypercall(vp, processor, next_rip),
            Outcome::End(reason) => Next::End(reason),
        }
    }

    /// Lets VTL2 answer a hypercall.
    fn intercept_hypercall(&self, vp: &mut Vp, processor: &impl Processor, next_rip: u64) -> Next {
        let length = next_rip.wrapping_sub(vp.vmcb().save.rip);
        let payload = HypercallIntercept {
            header: header(vp, AccessType::EXECUTE, length),
            rax: vp.vmcb().save.rax,
            rbx: vp.gprs[gpr::RBX],
            rcx: vp.gprs[gpr::RCX],
            rdx: vp.gprs[gpr::RDX],
            r8: vp.gprs[gpr::R8],
            rsi: vp.gprs[gpr::RSI],
            rdi: vp.gprs[gpr::RDI],
            // VTL2 has them in its registers; the host does not touch those.
            xmm: [[0; 2]; 6],
            flags: 0,
            reserved: [0; 3],
        };
        let kind = HvMessageType::HYPERCALL_INTERCEPT;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    fn guest_port(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        info: IoInfo,
        next_rip: u64,
    ) -> Next {
        let access = if info.is_in() {
            AccessType::READ
        } else {
            AccessType::WRITE
        };
        let size = match (info.byte(), info.word()) {
            (true, _) => 1,
            (_, true) => 2,
            _ => 4,
        };
        if !self.intercepts().ports(info.port(), size, !info.is_in()) {
            self.port(vp, info, next_rip);
            return Next::Resume;
        }
        // The fast path of VTL2 needs the bytes only of a string instruction.
        let (instruction, instruction_byte_count) = if info.string() {
            instruction(self, vp, processor)
        } else {
            Default::default()
        };
        let save = &vp.vmcb().save;
        let payload = IoPortIntercept {
            header: header(vp, access, next_rip.wrapping_sub(save.rip)),
            port: info.port(),
            access: IoPortAccess::new()
                .with_size(size)
                .with_string(info.string())
                .with_rep(info.rep()),
            instruction_byte_count,
            reserved: 0,
            rax: save.rax,
            instruction,
            ds: super::message::segment(&save.ds),
            es: super::message::segment(&save.es),
            rcx: vp.gprs[gpr::RCX],
            rsi: vp.gprs[gpr::RSI],
            rdi: vp.gprs[gpr::RDI],
        };
        let kind = HvMessageType::X64_IO_PORT_INTERCEPT;
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    /// An address that the guest does not have, or that VTL2 protects.
    fn guest_memory(&self, vp: &mut Vp, processor: &impl Processor, info: u64, gpa: u64) -> Next {
        let write = info & exits::NPF_WRITE != 0;
        if info & exits::NPF_FINAL != 0 {
            match lapic::mmio(self, vp, processor, gpa, write) {
                Mmio::Done(Some(vector)) => return self.guest_ended(vp, processor, vector),
                Mmio::Done(None) => return self.tell_ready_sources(vp, processor),
                Mmio::Foreign => {}
            }
        }
        let access = match info {
            info if info & exits::NPF_FETCH != 0 => AccessType::EXECUTE,
            _ if write => AccessType::WRITE,
            _ => AccessType::READ,
        };
        let (instruction, instruction_byte_count) = instruction(self, vp, processor);
        let payload = MemoryIntercept {
            header: header(vp, access, 0),
            cache_type: WRITE_BACK,
            instruction_byte_count,
            // The processor tells the physical address only.
            access: MemoryAccess::new(),
            tpr_priority: vp.vmcb().control.virtual_interrupt.tpr(),
            reserved: 0,
            gva: 0,
            gpa,
            instruction,
        };
        let kind = if self.memory(Vtl::GUEST, processor).check(gpa, 1).is_ok() {
            HvMessageType::GPA_INTERCEPT
        } else {
            HvMessageType::UNMAPPED_GPA
        };
        self.intercepted(vp, processor, kind, payload.as_bytes())
    }

    /// A triple fault: VTL2 decides, if it wants to know.
    fn guest_is_dead(&self, vp: &mut Vp, processor: &impl Processor) -> Next {
        if self.vsm_config().intercept_unrecoverable_exception() {
            let payload = header(vp, AccessType::EXECUTE, 0);
            let kind = HvMessageType::UNRECOVERABLE_EXCEPTION;
            return self.intercepted(vp, processor, kind, payload.as_bytes());
        }
        processor.log(format_args!("VTL0: VP {}: triple fault", vp.index));
        exits::log_registers(vp, processor);
        Next::End(ExitReason::GuestCrash)
    }
}

/// Lets the guest have an exception that the host has intercepted only to come by. RIP, DR6
/// and DR7 are what the handler is to find. An event during whose delivery it was raised gives
/// way, as at the processor, which serves these two instead of it.
fn raise_again(vp: &mut Vp, exception: Exception) -> Next {
    let vmcb = vp.vmcb_mut();
    vmcb::inject(vmcb, exception);
    // The delivery ends it.
    vmcb.control.interrupt_shadow = 0;
    Next::Resume
}

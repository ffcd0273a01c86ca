//! A VP: its exits, and its registers.

use crate::error::Error;
use crate::exit::decode;
use crate::hypercall::RegisterValue;
use crate::page;
use crate::page::RegisterPage;
use crate::state;
use crate::state::to_segment;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::registers::InterruptState;
use hv_defs::registers::InterruptionType;
use hv_defs::registers::PendingInterruption;
use hv_defs::synic::HvMessage;
use virt::Context;
use virt::CpuidExit;
use virt::Exception;
use virt::Exit;
use virt::Gp;
use virt::Instruction;
use virt::MsrExit;
use virt::PortExit;
use virt::Registers;
use virt::SegmentName;
use virt::Start;
use virt::Vp;
use virt::VpState;
use x86_defs::EFER_LMA;

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// DR6.BS: the cause of #DB is the end of an instruction.
const SINGLE_STEP: u64 = 1 << 14;
/// #DB.
const DEBUG: Exception = Exception {
    vector: 1,
    error_code: None,
    cr2: None,
};

/// The way to the registers of a VP, and to run it. Only whoever has the VP has this.
pub(crate) trait Access {
    fn index(&self) -> u32;
    /// The registers that VTLs share.
    fn context(&self) -> page::Context<'_>;
    /// The others, if it is valid.
    fn page(&self) -> &RegisterPage;
    /// Reads VTL0's registers; `values` has as many elements as `names`.
    fn get(&self, names: &[Name], values: &mut [RegisterValue]) -> Result<(), Error>;
    /// Writes VTL0's registers.
    fn set(&self, registers: &[(Name, RegisterValue)]) -> Result<(), Error>;
    /// Resets the local APIC, but for its mode.
    fn init(&self) -> Result<(), Error>;
    /// Runs VTL0 until it is intercepted; `None`: or is cancelled.
    fn run(&mut self) -> Result<Option<HvMessage>, Error>;
}

/// A VP, wherever it runs.
pub(crate) struct MshvVp<A> {
    access: A,
    /// The register page holds VTL0's registers: VTL0 has been left since its last reset.
    /// Only then does the host take over what is changed there.
    stopped: bool,
}

impl<A: Access> MshvVp<A> {
    pub(crate) fn new(access: A) -> Self {
        Self {
            access,
            stopped: false,
        }
    }

    pub(crate) fn access(&self) -> &A {
        &self.access
    }

    /// What a run has come to.
    pub(crate) fn exit(&mut self, message: Option<HvMessage>) -> Result<Exit, Error> {
        match message {
            Some(message) => {
                self.stopped = true;
                decode(&message)
            }
            None => Ok(Exit::Cancelled),
        }
    }

    /// The register page, if it holds VTL0's registers.
    pub(crate) fn page(&self) -> Option<&RegisterPage> {
        let page = self.access.page();
        (self.stopped && page.is_valid()).then_some(page)
    }

    fn stopped_page(&self) -> Result<&RegisterPage, Error> {
        let vp = self.access.index();
        self.page().ok_or(Error::NotStopped { vp })
    }

    fn get<const N: usize>(&self, names: [Name; N]) -> Result<[RegisterValue; N], Error> {
        let mut values = [[0; 2]; N];
        self.access.get(&names, &mut values)?;
        Ok(values)
    }

    fn set(&self, registers: &[(Name, RegisterValue)]) -> Result<(), Error> {
        self.access.set(registers)
    }

    fn set_word(&self, name: Name, value: u64) -> Result<(), Error> {
        self.set(&[(name, [value, 0])])
    }

    /// Goes to the instruction behind `instruction`, which is done.
    fn finish(&mut self, instruction: &Instruction) -> Result<(), virt::Error> {
        let page = self.stopped_page()?;
        let Some(length) = instruction.length else {
            return Err(virt::Error::NotSimple {
                vp: self.access.index(),
                rip: instruction.rip,
            });
        };
        let code = page.segment(SegmentName::Cs as usize).attributes;
        let mask = match (page.efer() & EFER_LMA != 0 && code.long(), code.default()) {
            (true, _) => u64::MAX,
            (false, true) => u64::from(u32::MAX),
            (false, false) => u64::from(u16::MAX),
        };
        page.set_rip(instruction.rip.wrapping_add(length.into()) & mask);
        self.end_shadow(page)?;
        if page.rflags() & TRAP_FLAG != 0 {
            self.inject(DEBUG)?;
        }
        Ok(())
    }

    /// An instruction is done, so interrupts are no longer held back by the one before it.
    fn end_shadow(&self, page: &RegisterPage) -> Result<(), Error> {
        let state = InterruptState::from(page.interrupt_state());
        if !state.interrupt_shadow() {
            return Ok(());
        }
        let state = state.with_interrupt_shadow(false).into_bits();
        self.set_word(Name::INTERRUPT_STATE, state)?;
        page.remember_interrupt_state(state);
        Ok(())
    }
}

impl<A: Access> Vp for MshvVp<A> {
    fn index(&self) -> u32 {
        self.access.index()
    }

    fn run(&mut self) -> Result<Exit, virt::Error> {
        let message = self.access.run()?;
        Ok(self.exit(message)?)
    }

    fn complete_port(&mut self, exit: &PortExit, value: u32) -> Result<(), virt::Error> {
        if exit.string {
            return Err(virt::Error::NotSimple {
                vp: self.access.index(),
                rip: exit.instruction.rip,
            });
        }
        if exit.output.is_none() {
            let run = self.access.context();
            let rax = run.gp(Gp::Rax);
            let value = u64::from(value);
            run.set_gp(
                Gp::Rax,
                match exit.size {
                    1 => rax & !0xff | value & 0xff,
                    2 => rax & !0xffff | value & 0xffff,
                    // As each write of a 32-bit register.
                    _ => value,
                },
            );
        }
        self.finish(&exit.instruction)
    }

    fn complete_msr(&mut self, exit: &MsrExit, value: u64) -> Result<(), virt::Error> {
        if exit.write.is_none() {
            let run = self.access.context();
            run.set_gp(Gp::Rax, value & u64::from(u32::MAX));
            run.set_gp(Gp::Rdx, value >> 32);
        }
        self.finish(&exit.instruction)
    }

    fn complete_cpuid(&mut self, exit: &CpuidExit, values: [u32; 4]) -> Result<(), virt::Error> {
        let run = self.access.context();
        for (register, value) in [Gp::Rax, Gp::Rbx, Gp::Rcx, Gp::Rdx].into_iter().zip(values) {
            run.set_gp(register, value.into());
        }
        self.finish(&exit.instruction)
    }

    fn inject(&mut self, exception: Exception) -> Result<(), virt::Error> {
        let page = self.stopped_page()?;
        let pending = PendingInterruption::from(page.pending_interruption());
        if pending.pending() {
            let error = Error::EventPending {
                vp: self.access.index(),
                vector: exception.vector,
                pending: pending.into(),
            };
            return Err(error.into());
        }
        let event = PendingInterruption::new()
            .with_pending(true)
            .with_kind(InterruptionType::EXCEPTION.0)
            .with_deliver_error_code(exception.error_code.is_some())
            .with_vector(exception.vector.into())
            .with_error_code(exception.error_code.unwrap_or(0))
            .into_bits();
        let mut registers = vec![(Name::PENDING_INTERRUPTION, [event, 0])];
        if exception.vector == DEBUG.vector {
            let [[dr6, _]] = self.get([Name::DR6])?;
            registers.push((Name::DR6, [dr6 | SINGLE_STEP, 0]));
        }
        self.set(&registers)?;
        page.remember_pending_interruption(event);
        if let Some(address) = exception.cr2 {
            self.access.context().set_cr2(address);
        }
        Ok(())
    }

    fn registers(&mut self) -> Result<Registers, virt::Error> {
        let run = self.access.context();
        let mut registers = Registers::default();
        for (number, value) in registers.gp.iter_mut().enumerate() {
            *value = run.gp_at(number);
        }
        let (rsp, rip, rflags) = match self.page() {
            Some(page) => (page.rsp(), page.rip(), page.rflags()),
            None => {
                let names = [Name::RSP, Name::RIP, Name::RFLAGS];
                let [rsp, rip, rflags] = self.get(names)?;
                (rsp[0], rip[0], rflags[0])
            }
        };
        registers.set(Gp::Rsp, rsp);
        registers.rip = rip;
        registers.rflags = rflags;
        Ok(registers)
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), virt::Error> {
        let page = self.stopped_page()?;
        let run = self.access.context();
        for (number, value) in registers.gp.iter().enumerate() {
            run.set_gp_at(number, *value);
        }
        if page.rsp() != registers.get(Gp::Rsp) {
            page.set_gp(&registers.gp);
        }
        if page.rip() != registers.rip {
            page.set_rip(registers.rip);
        }
        if page.rflags() != registers.rflags {
            page.set_rflags(registers.rflags);
        }
        Ok(self.end_shadow(page)?)
    }

    fn context(&mut self) -> Result<Context, virt::Error> {
        let Some(page) = self.page() else {
            let state = self.state()?;
            return Ok(Context {
                segments: state.segments,
                cr0: state.cr0,
                cr3: state.cr3,
                cr4: state.cr4,
                efer: state.efer,
            });
        };
        Ok(Context {
            segments: std::array::from_fn(|index| to_segment(page.segment(index))),
            cr0: page.cr0(),
            cr3: page.cr3(),
            cr4: page.cr4(),
            efer: page.efer(),
        })
    }

    fn xmm(&mut self, register: u8) -> u128 {
        self.access.context().xmm(register)
    }

    fn set_xmm(&mut self, register: u8, value: u128) {
        self.access.context().set_xmm(register, value);
    }

    fn state(&mut self) -> Result<VpState, virt::Error> {
        let mut state = VpState::at_reset();
        let names: Vec<_> = state::private(state).into_iter().map(|it| it.0).collect();
        let mut values = vec![[0; 2]; names.len()];
        self.access.get(&names, &mut values)?;
        state::set_private(&mut state, &values);
        // What is changed in the register page is not yet with the host.
        state.registers = self.registers()?;
        state.cr2 = self.access.context().cr2();
        Ok(state)
    }

    fn reset(&mut self, start: &Start) -> Result<(), virt::Error> {
        let (state, waits) = match start {
            Start::Run(state) => (*state, false),
            Start::WaitForSipi => (VpState::at_reset(), true),
        };
        // Changes in the register page would win over what is set now.
        self.access.page().forget_changes();
        self.stopped = false;
        self.access.init()?;
        let index = self.access.index();
        if index == 0 {
            self.set(&state::PARTITION_AT_RESET)?;
        }
        self.set(&state::private(state))?;
        self.set(&state::rest_at_reset(index, waits))?;
        let run = self.access.context();
        for (number, value) in state.registers.gp.iter().enumerate() {
            run.set_gp_at(number, *value);
        }
        run.set_cr2(state.cr2);
        run.reset_fx();
        Ok(())
    }
}

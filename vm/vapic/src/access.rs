//! Accesses to the registers: in memory (11.4.1) and by MSR (11.12.1.2 table 11-6, TLFS
//! "Local APIC MSR Accesses").

use crate::base::Mode;
use crate::icr::{Command, Message, command};
use crate::local::{LocalApic, Source};
use hv_defs::msr::{HV_X64_MSR_EOI, HV_X64_MSR_ICR, HV_X64_MSR_TPR};
use thiserror::Error;
use x86_defs::apic::{
    ApicErrors, ApicRegister, InterruptCommand, LocalVector, SpuriousVector, TSC_DEADLINE,
    TimerMode, X2APIC_MSR_FIRST, X2APIC_MSR_LAST,
};
use x86_defs::msr::APIC_BASE;

/// Six local vectors, version of an integrated APIC, no suppression of EOI broadcasts.
const VERSION: u32 = 0x0005_0014;
/// SVR: vector, enable, focus.
const SVR_WRITABLE: u32 = 0x3ff;
/// Divider: bits 0, 1 and 3.
const DIVIDE_WRITABLE: u32 = 0xb;

/// What the owner has to do after an access.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Send a message: [`crate::deliver`].
    Send(Message),
    /// An interrupt has ended: the SynIC looks for messages that wait. If it was level
    /// triggered, tell its vector to the I/O APIC, which is in VTL2.
    EndOfInterrupt {
        /// Vector.
        level: Option<u8>,
    },
}

/// Why an access to an MSR raises #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("MSR {msr:#x}, written {written:x?}: expected {expected}")]
pub struct MsrError {
    /// The MSR.
    pub msr: u32,
    /// What was written; none was read.
    pub written: Option<u64>,
    /// What would have been right.
    pub expected: &'static str,
}

impl MsrError {
    /// An access to `msr`: a read, or a write of `written`.
    pub const fn new(msr: u32, written: Option<u64>, expected: &'static str) -> Self {
        Self {
            msr,
            written,
            expected,
        }
    }
}

/// Whether an MSR is one of the APIC's: its base, the x2APIC's, the TSC deadline, and the
/// three of the hypervisor.
pub const fn owns_msr(msr: u32) -> bool {
    matches!(
        msr,
        APIC_BASE
            | TSC_DEADLINE
            | X2APIC_MSR_FIRST..=X2APIC_MSR_LAST
            | HV_X64_MSR_EOI..=HV_X64_MSR_TPR
    )
}

/// The x2APIC's register behind an MSR.
fn register_of(msr: u32) -> Option<ApicRegister> {
    let number = msr.checked_sub(X2APIC_MSR_FIRST)?;
    u8::try_from(number).ok().map(ApicRegister)
}

impl LocalApic {
    /// RDMSR of an MSR that [`owns_msr`] names, at tick `now`.
    ///
    /// # Errors
    /// The access raises #GP.
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, MsrError> {
        let refuse = |expected| Err(MsrError::new(msr, None, expected));
        match msr {
            APIC_BASE => Ok(self.base.into_bits()),
            TSC_DEADLINE if self.config.tsc_deadline => Ok(self.timer.deadline()),
            HV_X64_MSR_ICR => Ok(self.icr.into_bits()),
            HV_X64_MSR_TPR => Ok(self.tpr.into()),
            _ => {
                let register = match register_of(msr) {
                    Some(register) if self.mode() == Mode::X2Apic => register,
                    Some(_) => return refuse("x2APIC mode"),
                    None => return refuse("an MSR that can be read"),
                };
                match register {
                    ApicRegister::ICR => Ok(self.icr.into_bits()),
                    ApicRegister::APR
                    | ApicRegister::EOI
                    | ApicRegister::RRD
                    | ApicRegister::DFR
                    | ApicRegister::ICR_HIGH
                    | ApicRegister::SELF_IPI => refuse("a register that can be read"),
                    _ => match self.read_register(register, now) {
                        Some(value) => Ok(value.into()),
                        None => refuse("a register that exists"),
                    },
                }
            }
        }
    }

    /// WRMSR of an MSR that [`owns_msr`] names, at tick `now`.
    ///
    /// # Errors
    /// The access raises #GP, and nothing has changed.
    pub fn write_msr(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, MsrError> {
        let refuse = |expected| Err(MsrError::new(msr, Some(value), expected));
        match msr {
            APIC_BASE => self.write_apic_base(value).map(|()| Effect::None),
            TSC_DEADLINE if self.config.tsc_deadline => {
                self.timer.set_deadline(value);
                Ok(Effect::None)
            }
            // The value of an EOI says nothing, but its reserved half must be zero.
            HV_X64_MSR_EOI if value >> 32 != 0 => refuse("bits 32 to 63 to be zero"),
            HV_X64_MSR_EOI => Ok(self.end_of_interrupt()),
            HV_X64_MSR_TPR if value >> 8 != 0 => refuse("bits 8 to 63 to be zero"),
            HV_X64_MSR_TPR => {
                self.tpr = value as u8;
                Ok(Effect::None)
            }
            HV_X64_MSR_ICR => Ok(self.write_icr(value)),
            _ => match register_of(msr) {
                Some(register) if self.mode() == Mode::X2Apic => {
                    match self.x2apic_expects(register, value) {
                        Some(expected) => refuse(expected),
                        None if register == ApicRegister::ICR => Ok(self.write_icr(value)),
                        None => Ok(self.write_register(register, value as u32, now)),
                    }
                }
                Some(_) => refuse("x2APIC mode"),
                None => refuse("an MSR that can be written"),
            },
        }
    }

    /// What is wrong with a write in x2APIC mode, if something is: reserved bits fault.
    fn x2apic_expects(&self, register: ApicRegister, value: u64) -> Option<&'static str> {
        // Bits that are read-only are not reserved: status, remote IRR.
        const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
        let writable = match register {
            ApicRegister::ICR => !InterruptCommand::RESERVED,
            ApicRegister::TPR | ApicRegister::SELF_IPI => 0xff,
            ApicRegister::EOI | ApicRegister::ESR => 0,
            ApicRegister::SVR => SVR_WRITABLE.into(),
            ApicRegister::TIMER_INITIAL => u32::MAX.into(),
            ApicRegister::TIMER_DIVIDE => DIVIDE_WRITABLE.into(),
            _ => match source_of(register) {
                Some(source) => {
                    u64::from(source.writable(self.config.tsc_deadline) | LVT_READ_ONLY)
                }
                None => return Some("a register that can be written"),
            },
        };
        (value & !writable != 0).then_some("reserved bits to be zero")
    }

    /// A load of `size` bytes at `offset` of the xAPIC page. Registers are 32 bits wide and
    /// 16 bytes apart; loads of a part of one are as the processor's, what lies between
    /// registers reads as zero.
    pub fn read_mmio(&mut self, offset: u64, size: usize, now: u64) -> u64 {
        let shift = offset & 0xf;
        if self.mode() != Mode::XApic || offset >= x86_defs::apic::APIC_PAGE_SIZE || shift >= 4 {
            return 0;
        }
        let Some(value) = self.read_register(ApicRegister((offset >> 4) as u8), now) else {
            self.error(ApicErrors::new().with_illegal_register(true));
            return 0;
        };
        let value = u64::from(value) >> (8 * shift);
        match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            _ => value,
        }
    }

    /// A store of `size` bytes at `offset` of the xAPIC page. Only whole, aligned registers
    /// are written; all else is undefined (11.4.1) and does nothing here.
    pub fn write_mmio(&mut self, offset: u64, size: usize, value: u32, now: u64) -> Effect {
        let aligned = offset < x86_defs::apic::APIC_PAGE_SIZE && offset & 0xf == 0;
        if self.mode() != Mode::XApic || !aligned || size != 4 {
            return Effect::None;
        }
        let register = ApicRegister((offset >> 4) as u8);
        if self.read_register(register, now).is_none() {
            self.error(ApicErrors::new().with_illegal_register(true));
            return Effect::None;
        }
        match register {
            ApicRegister::LDR => self.logical = (value >> 24) as u8,
            ApicRegister::DFR => self.format = (value >> 28) as u8,
            ApicRegister::ICR_HIGH => self.icr.set_destination(value & 0xff00_0000),
            ApicRegister::ICR => {
                let high = self.icr.into_bits() & !0xffff_ffff;
                return self.write_icr(high | u64::from(value));
            }
            _ => return self.write_register(register, value, now),
        }
        Effect::None
    }

    /// Value of a register, if it exists in xAPIC mode or, apart from those that cannot be
    /// read there, in x2APIC mode.
    fn read_register(&self, register: ApicRegister, now: u64) -> Option<u32> {
        let x2apic = self.mode() == Mode::X2Apic;
        Some(match register {
            ApicRegister::ID if x2apic => self.config.apic_id,
            ApicRegister::ID => self.config.apic_id << 24,
            ApicRegister::VERSION => VERSION,
            ApicRegister::TPR => self.tpr.into(),
            ApicRegister::PPR => self.ppr().into(),
            ApicRegister::APR | ApicRegister::RRD | ApicRegister::EOI => 0,
            ApicRegister::LDR if x2apic => {
                let id = self.config.apic_id;
                id >> 4 << 16 | 1 << (id & 0xf)
            }
            ApicRegister::LDR => u32::from(self.logical) << 24,
            ApicRegister::DFR => u32::from(self.format) << 28 | 0x0fff_ffff,
            ApicRegister::SVR => self.svr.into_bits(),
            ApicRegister(number @ 0x10..=0x17) => self.isr.register(number & 7),
            ApicRegister(number @ 0x18..=0x1f) => self.tmr.register(number & 7),
            ApicRegister(number @ 0x20..=0x27) => self.irr.register(number & 7),
            ApicRegister::ESR => self.errors.into_bits(),
            ApicRegister::ICR => self.icr.into_bits() as u32,
            ApicRegister::ICR_HIGH => self.icr.destination(),
            ApicRegister::TIMER_INITIAL => self.timer.initial(),
            ApicRegister::TIMER_CURRENT => self.timer.current(now),
            ApicRegister::TIMER_DIVIDE => self.timer.divide().into(),
            _ => self.lvt[source_of(register)? as usize].into_bits(),
        })
    }

    /// Writes a register that both modes have; read-only ones stay.
    fn write_register(&mut self, register: ApicRegister, value: u32, now: u64) -> Effect {
        match register {
            ApicRegister::TPR => self.tpr = value as u8,
            ApicRegister::EOI => return self.end_of_interrupt(),
            ApicRegister::SELF_IPI => self.request_self(value as u8),
            ApicRegister::SVR => {
                self.svr = SpuriousVector::from_bits(value & SVR_WRITABLE);
                if !self.svr.enabled() {
                    self.lvt.iter_mut().for_each(|entry| entry.set_masked(true));
                }
            }
            ApicRegister::ESR => {
                self.errors = self.new_errors;
                self.new_errors = ApicErrors::new();
            }
            ApicRegister::TIMER_INITIAL => self.timer.set_initial(value, now),
            ApicRegister::TIMER_DIVIDE => self.timer.set_divide(value as u8, now),
            _ => {
                if let Some(source) = source_of(register) {
                    self.write_lvt(source, value);
                }
            }
        }
        Effect::None
    }

    fn write_lvt(&mut self, source: Source, value: u32) {
        let writable = source.writable(self.config.tsc_deadline);
        let entry = LocalVector::from_bits(value & writable);
        // 11.4.7.2: software that is off cannot unmask.
        self.lvt[source as usize] = entry.with_masked(entry.masked() || !self.svr.enabled());
        if source == Source::Timer {
            self.timer.set_mode(TimerMode(entry.timer_mode()));
        }
    }

    fn write_icr(&mut self, value: u64) -> Effect {
        let x2apic = self.mode() == Mode::X2Apic;
        let icr = InterruptCommand::from_bits(value & !InterruptCommand::RESERVED);
        self.icr = icr.with_pending(false);
        if !x2apic {
            self.icr.set_destination(icr.destination() & 0xff00_0000);
        }
        if self.mode() == Mode::Disabled {
            return Effect::None;
        }
        match command(self.icr, x2apic) {
            Command::Nothing => Effect::None,
            Command::IllegalVector => {
                self.error(ApicErrors::new().with_send_illegal_vector(true));
                Effect::None
            }
            Command::Myself(vector) => {
                self.request_self(vector);
                Effect::None
            }
            Command::Send(message) => Effect::Send(message),
        }
    }

    /// An interrupt of the processor to itself (11.12.11): always an edge.
    fn request_self(&mut self, vector: u8) {
        self.request(vector, false);
    }
}

fn source_of(register: ApicRegister) -> Option<Source> {
    let index = register.0.checked_sub(ApicRegister::LVT_TIMER.0)?;
    Source::ALL.get(usize::from(index)).copied()
}

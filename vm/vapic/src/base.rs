//! Modes of the APIC and the way between them: 11.4.3, 11.4.4 and 11.12.5 figure 11-27.

use crate::access::MsrError;
use crate::local::LocalApic;
use x86_defs::apic::{APIC_DEFAULT_BASE, ApicBase};
use x86_defs::msr::APIC_BASE;

/// Modes of an APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is off.
    Disabled,
    /// Registers in memory.
    XApic,
    /// Registers in MSRs.
    X2Apic,
}

impl Mode {
    fn of(base: ApicBase) -> Option<Self> {
        match (base.enabled(), base.x2apic()) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }
}

impl LocalApic {
    /// The mode.
    pub fn mode(&self) -> Mode {
        // Nothing leads to the fourth combination.
        Mode::of(self.base).unwrap_or(Mode::Disabled)
    }

    /// Where the registers are in memory, if they are.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(APIC_DEFAULT_BASE)
    }

    /// `IA32_APIC_BASE`.
    pub fn apic_base(&self) -> ApicBase {
        self.base
    }

    pub(crate) fn write_apic_base(&mut self, value: u64) -> Result<(), MsrError> {
        let refuse = |expected| MsrError::new(APIC_BASE, Some(value), expected);
        let defined = ApicBase::new()
            .with_bsp(true)
            .with_x2apic(self.config.x2apic)
            .with_enabled(true)
            .with_page((1 << 52) - 1);
        if value & !defined.into_bits() != 0 {
            return Err(refuse("reserved bits to be zero"));
        }
        let new = ApicBase::from_bits(value);
        if new.page() != self.base.page() {
            // The TLFS permits one value for the whole partition.
            return Err(refuse("the base address to stay"));
        }
        let old_mode = self.mode();
        let new_mode = Mode::of(new).ok_or_else(|| refuse("no x2APIC mode without enable"))?;
        match (old_mode, new_mode) {
            (Mode::Disabled, Mode::X2Apic) => {
                return Err(refuse("xAPIC mode before x2APIC mode"));
            }
            (Mode::X2Apic, Mode::XApic) => {
                return Err(refuse("the APIC to be off between x2APIC and xAPIC mode"));
            }
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => {
                // What it held is lost. That does not stop the VP.
                let (startup, auto_eoi) = (self.startup, self.auto_eoi);
                self.clear();
                (self.startup, self.auto_eoi) = (startup, auto_eoi);
            }
            (Mode::XApic, Mode::X2Apic) => {
                // 11.12.5.1: all else is preserved.
                self.logical = 0;
                self.format = 0xf;
                self.icr.set_destination(0);
            }
            _ => {}
        }
        // Which processor was the first does not change.
        self.base = new.with_bsp(self.config.bsp);
        Ok(())
    }
}

//! The SynIC's and the timers' MSRs, and the register names that stand for them.

use crate::controller::{OverlayPageBits, Raised, Synic};
use crate::pages::{GuestPages, clear};
use hv_defs::msr::{
    HV_X64_MSR_EOM, HV_X64_MSR_SCONTROL, HV_X64_MSR_SIEFP, HV_X64_MSR_SIMP, HV_X64_MSR_SINT0,
    HV_X64_MSR_SINT15, HV_X64_MSR_STIMER0_CONFIG, HV_X64_MSR_STIMER3_COUNT, HV_X64_MSR_SVERSION,
    OverlayPage,
};
use hv_defs::synic::{HV_SYNIC_VERSION, SyntheticSource};
use vapic::MsrError;

/// Vectors below are not for sources.
const FIRST_VECTOR: u8 = 16;

/// Whether an MSR is one of the SynIC's or of a timer.
pub const fn owns_msr(msr: u32) -> bool {
    matches!(
        msr,
        HV_X64_MSR_SCONTROL..=HV_X64_MSR_EOM
            | HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15
            | HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT
    )
}

/// The MSR behind a register name (`HV_REGISTER_NAME`: SINT0 to SINT15 from 0xa0000,
/// SCONTROL and the four after it from 0xa0010, timers from 0xb0000).
pub const fn msr_of_register(name: u32) -> Option<u32> {
    match name {
        0xa_0000..=0xa_000f => Some(HV_X64_MSR_SINT0 + (name - 0xa_0000)),
        0xa_0010..=0xa_0014 => Some(HV_X64_MSR_SCONTROL + (name - 0xa_0010)),
        0xb_0000..=0xb_0007 => Some(HV_X64_MSR_STIMER0_CONFIG + (name - 0xb_0000)),
        _ => None,
    }
}

impl Synic {
    /// RDMSR of an MSR that [`owns_msr`] names.
    ///
    /// # Errors
    /// There is no such MSR: #GP.
    pub fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        Ok(match msr {
            HV_X64_MSR_SCONTROL => self.control,
            HV_X64_MSR_SVERSION => HV_SYNIC_VERSION.into(),
            HV_X64_MSR_SIEFP => self.event_page.0,
            HV_X64_MSR_SIMP => self.message_page.0,
            HV_X64_MSR_EOM => 0,
            HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15 => {
                self.sints[(msr - HV_X64_MSR_SINT0) as usize].into_bits()
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT => {
                let (index, is_count) = timer_of(msr);
                let timer = &self.timers[index];
                if is_count {
                    timer.count
                } else {
                    timer.config.into_bits()
                }
            }
            _ => return Err(MsrError::new(msr, None, "an MSR of the SynIC")),
        })
    }

    /// WRMSR of an MSR that [`owns_msr`] names, at reference time `now`. After a write of a
    /// source, pass [`Self::auto_eoi_vectors`] to the APIC.
    ///
    /// # Errors
    /// The write raises #GP, and nothing has changed.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
        pages: &impl GuestPages,
    ) -> Result<Raised, MsrError> {
        let refuse = |expected| Err(MsrError::new(msr, Some(value), expected));
        match msr {
            HV_X64_MSR_SCONTROL => self.control = value,
            HV_X64_MSR_SVERSION => return refuse("a register that can be written"),
            HV_X64_MSR_SIEFP => place(&mut self.event_page, value, pages),
            HV_X64_MSR_SIMP => place(&mut self.message_page, value, pages),
            // What is written does not matter.
            HV_X64_MSR_EOM => {}
            HV_X64_MSR_SINT0..=HV_X64_MSR_SINT15 => {
                let sint = SyntheticSource::from_bits(value);
                // The value after reset is masked with vector zero, so it can be written.
                if sint.vector() < FIRST_VECTOR && !sint.masked() {
                    return refuse("a vector from 16 to 255");
                }
                self.sints[(msr - HV_X64_MSR_SINT0) as usize] = sint;
                return Ok(Raised::default());
            }
            HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT => {
                let (index, is_count) = timer_of(msr);
                let timer = &mut self.timers[index];
                if is_count {
                    timer.write_count(value, now);
                } else {
                    timer.write_config(msr, value, now)?;
                }
                // One that is in the past expires at once.
                return Ok(self.poll(now, pages));
            }
            _ => return refuse("an MSR of the SynIC"),
        }
        // Slots may have become empty, or reachable.
        Ok(self.end_of_interrupt(now, pages))
    }
}

/// Index of a timer, and whether the MSR is its count.
fn timer_of(msr: u32) -> (usize, bool) {
    let number = msr - HV_X64_MSR_STIMER0_CONFIG;
    ((number / 2) as usize, number % 2 == 1)
}

/// Moves a page. One that comes into use is cleared, as it would be by the reset of its VP.
fn place(register: &mut OverlayPageBits, value: u64, pages: &impl GuestPages) {
    let old = OverlayPage::from_bits(register.0);
    let new = OverlayPage::from_bits(value);
    let moved = !old.enabled() || old.page_number() != new.page_number();
    register.0 = value;
    if new.enabled() && moved {
        clear(pages, new.page_number());
    }
}

//! Saving and restoring, as plain values; how they are encoded is the owner's affair.

use crate::assist::State;
use crate::local::{LocalApic, Source, Startup};
use crate::vectors::VectorSet;
use thiserror::Error;
use x86_defs::apic::{
    APIC_DEFAULT_BASE, ApicBase, ApicErrors, FIRST_VECTOR, InterruptCommand, LocalVector,
    SpuriousVector,
};

/// State of the timer; its mode is in the local vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedTimer {
    /// Divider register.
    pub divide: u8,
    /// Initial count.
    pub initial: u32,
    /// Bus clocks until the count is zero; none if it stands.
    pub remaining: Option<u64>,
    /// TSC deadline; 0 is none.
    pub deadline: u64,
    /// The guest's TSC is the owner's clock plus this.
    pub tsc_offset: u64,
}

/// State of a local APIC. What others had posted must have been collected before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedApic {
    /// Id; must be that of the APIC that is restored.
    pub apic_id: u32,
    /// `IA32_APIC_BASE`.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical id (xAPIC).
    pub logical: u8,
    /// Format of logical destinations (xAPIC), 4 bits.
    pub format: u8,
    /// Spurious vector register.
    pub svr: u32,
    /// Requested.
    pub irr: [u64; 4],
    /// In service.
    pub isr: [u64; 4],
    /// Level triggered.
    pub tmr: [u64; 4],
    /// Local vectors.
    pub lvt: [u32; 6],
    /// Errors that the register shows.
    pub errors: u32,
    /// Errors since it was written.
    pub new_errors: u32,
    /// Interrupt command.
    pub icr: u64,
    /// Timer.
    pub timer: SavedTimer,
    /// The VP executes.
    pub running: bool,
    /// An NMI waits.
    pub nmi: bool,
    /// An 8259's interrupt waits.
    pub extint: Option<u8>,
    /// "No EOI required" is set in the assist page and counts.
    pub eoi_assist: bool,
}

/// Why a state cannot be restored. The APIC is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("saved APIC has {field} = {value:#x}, expected {expected}")]
pub struct RestoreError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What is possible.
    pub expected: &'static str,
}

impl LocalApic {
    /// The state at tick `now`. Call [`Self::sync_eoi`] before.
    pub fn save(&self, now: u64) -> SavedApic {
        SavedApic {
            apic_id: self.config.apic_id,
            apic_base: self.base.into_bits(),
            tpr: self.tpr,
            logical: self.logical,
            format: self.format,
            svr: self.svr.into_bits(),
            irr: self.irr.words(),
            isr: self.isr.words(),
            tmr: self.tmr.words(),
            lvt: self.lvt.map(LocalVector::into_bits),
            errors: self.errors.into_bits(),
            new_errors: self.new_errors.into_bits(),
            icr: self.icr.into_bits(),
            timer: SavedTimer {
                divide: self.timer.divide(),
                initial: self.timer.initial(),
                remaining: self.timer.remaining(now),
                deadline: self.timer.deadline(),
                tsc_offset: self.timer.tsc_offset(),
            },
            running: self.startup == Startup::Running,
            nmi: self.nmi,
            extint: self.extint,
            eoi_assist: self.eoi_assist == State::Set,
        }
    }

    /// Restores a state at tick `now`.
    ///
    /// # Errors
    /// A field has a value that this APIC can never have.
    pub fn restore(&mut self, saved: &SavedApic, now: u64) -> Result<(), RestoreError> {
        let mut new = Self::new(self.config);
        new.auto_eoi = self.auto_eoi;
        new.base = self.checked_base(saved)?;
        new.tpr = saved.tpr;
        new.logical = saved.logical;
        new.format = check("format", saved.format, 0xf)?;
        new.svr = SpuriousVector::from_bits(check("svr", saved.svr, 0x3ff)?);
        new.irr = checked_vectors("irr", saved.irr)?;
        new.isr = checked_vectors("isr", saved.isr)?;
        new.tmr = checked_vectors("tmr", saved.tmr)?;
        for source in Source::ALL {
            let value = saved.lvt[source as usize];
            let writable = source.writable(self.config.tsc_deadline);
            let entry = LocalVector::from_bits(check("lvt", value, writable)?);
            new.lvt[source as usize] = entry.with_masked(entry.masked() || !new.svr.enabled());
        }
        new.errors = ApicErrors::from_bits(check("errors", saved.errors, 0xe0)?);
        new.new_errors = ApicErrors::from_bits(check("new_errors", saved.new_errors, 0xe0)?);
        let icr = check("icr", saved.icr, !InterruptCommand::RESERVED)?;
        new.icr = InterruptCommand::from_bits(icr).with_pending(false);
        let timer = &saved.timer;
        new.timer.set_tsc_offset(timer.tsc_offset);
        new.timer.restore(
            (
                new.timer_mode(),
                check("timer.divide", timer.divide, 0xb)?,
                timer.initial,
            ),
            timer.remaining,
            timer.deadline,
            now,
        );
        new.startup = if saved.running {
            Startup::Running
        } else {
            Startup::WaitForStartup
        };
        new.nmi = saved.nmi;
        new.extint = saved.extint;
        new.eoi_assist = if saved.eoi_assist {
            State::Set
        } else {
            // The bit may stand in the page without a meaning.
            State::Retract
        };
        *self = new;
        Ok(())
    }

    fn checked_base(&self, saved: &SavedApic) -> Result<ApicBase, RestoreError> {
        let error = |field, value, expected| RestoreError {
            field,
            value,
            expected,
        };
        if saved.apic_id != self.config.apic_id {
            let id = saved.apic_id.into();
            return Err(error("apic_id", id, "the id of this APIC"));
        }
        let base = ApicBase::from_bits(saved.apic_base);
        let expected = ApicBase::new()
            .with_bsp(self.config.bsp)
            .with_x2apic(base.x2apic())
            .with_enabled(base.enabled())
            .with_page(APIC_DEFAULT_BASE >> 12);
        let possible = base == expected
            && (base.enabled() || !base.x2apic())
            && (self.config.x2apic || !base.x2apic());
        possible.then_some(base).ok_or(error(
            "apic_base",
            saved.apic_base,
            "a mode, place and processor of this APIC",
        ))
    }
}

/// A value with no bit but those of `possible`.
fn check<T: Copy + Into<u64>>(
    field: &'static str,
    value: T,
    possible: T,
) -> Result<T, RestoreError> {
    if value.into() & !possible.into() == 0 {
        Ok(value)
    } else {
        Err(RestoreError {
            field,
            value: value.into(),
            expected: "no bit that the register does not have",
        })
    }
}

fn checked_vectors(field: &'static str, words: [u64; 4]) -> Result<VectorSet, RestoreError> {
    let exceptions = (1 << FIRST_VECTOR) - 1;
    check(field, words[0], !exceptions)?;
    Ok(VectorSet::from_words(words))
}

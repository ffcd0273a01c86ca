//! Interrupts that the host sends to VTL2.
//!
//! VTL2's local APIC is the physical one. The host sends as VTL2 itself would: by the
//! interrupt command of the CPU that it runs on. An APIC whose software has it off takes
//! none; the processor's would, and QEMU's keeps what has come until it is on. So the host,
//! which carries out all of VTL2's writes, takes note.

use super::{Partition, Processor};
use core::sync::atomic::{AtomicU8, Ordering};

/// Bit of the spurious vector register: the APIC is on.
const ENABLED: u32 = 1 << 8;

/// As VTL2 has found it.
const UNTOUCHED: u8 = 0;
const ON: u8 = 1;
/// VTL2 has turned it off.
const OFF: u8 = 2;

/// What others must know of a VP's physical local APIC.
pub(super) struct PhysicalApic(AtomicU8);

impl PhysicalApic {
    /// VTL2 has not begun.
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(UNTOUCHED))
    }

    /// VTL2 has written the spurious vector register.
    pub(super) fn set_spurious(&self, register: u32) {
        let on = register & ENABLED != 0;
        self.0.store(if on { ON } else { OFF }, Ordering::Release);
    }

    /// The VP begins anew.
    pub(super) fn reset(&self) {
        self.0.store(UNTOUCHED, Ordering::Release);
    }

    /// Whether VTL2 has turned it off: its software leaves the VP.
    pub(super) fn is_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == OFF
    }

    /// Whether it takes interrupts.
    pub(super) fn accepts(&self) -> bool {
        self.0.load(Ordering::Acquire) == ON
    }
}

impl Partition {
    /// Sends a fixed interrupt to VTL2 of a VP; false if its APIC takes none.
    pub(crate) fn interrupt_paravisor(
        &self,
        processor: &impl Processor,
        vp: u32,
        vector: u8,
    ) -> bool {
        let Some(slot) = self.slots.get(vp as usize) else {
            return false;
        };
        let accepts = slot.physical.accepts();
        if accepts {
            processor.interrupt(slot.apic_id, vector);
        }
        accepts
    }
}

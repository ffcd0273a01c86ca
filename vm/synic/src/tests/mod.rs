//! Each register and rule after the TLFS, timers against a model, and guests that try
//! everything.

mod events;
mod hostile;
mod messages;
mod ports;
mod registers;
mod saved;
mod timers;

use super::*;
use hv_defs::msr::*;
use std::cell::RefCell;
use std::vec;
use std::vec::Vec;

/// Memory of the guest: 64 KiB from 0.
const MEMORY: u64 = 0x1_0000;
/// Where a guest has its pages.
const MESSAGES: u64 = 0x3000;
const EVENTS: u64 = 0x4000;

struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// Called once, when flags of a slot are being set: a guest that runs at that moment.
    interference: RefCell<Option<fn(&Memory)>>,
}

impl Memory {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(vec![0xaa; MEMORY as usize]),
            interference: RefCell::default(),
        }
    }

    fn range(gpa: u64, size: usize) -> Result<core::ops::Range<usize>, NotMapped> {
        let end = gpa.checked_add(size as u64).ok_or(NotMapped { gpa })?;
        if end > MEMORY {
            return Err(NotMapped { gpa });
        }
        Ok(gpa as usize..end as usize)
    }

    fn read(&self, gpa: u64, size: usize) -> Vec<u8> {
        self.bytes.borrow()[Self::range(gpa, size).unwrap()].to_vec()
    }

    /// The type, flags and payload in a slot.
    fn slot(&self, sint: u64) -> (u32, u8, Vec<u8>) {
        let slot = MESSAGES + sint * 256;
        let header = self.read(slot, 16);
        let size = usize::from(header[4]);
        (
            self.load(slot).unwrap(),
            header[5],
            self.read(slot + 16, size),
        )
    }

    fn empty_slot(&self, sint: u64) {
        self.store(MESSAGES + sint * 256, 0).unwrap();
    }
}

impl GuestPages for Memory {
    fn load(&self, gpa: u64) -> Result<u32, NotMapped> {
        assert_eq!(gpa % 4, 0);
        let bytes = self.bytes.borrow()[Self::range(gpa, 4)?].to_vec();
        Ok(u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    fn store(&self, gpa: u64, value: u32) -> Result<(), NotMapped> {
        assert_eq!(gpa % 4, 0);
        self.write(gpa, &value.to_le_bytes())
    }

    fn set_bits(&self, gpa: u64, bits: u32) -> Result<u32, NotMapped> {
        let before = self.load(gpa)?;
        self.store(gpa, before | bits)?;
        if let Some(interference) = self.interference.take() {
            interference(self);
        }
        Ok(before)
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NotMapped> {
        assert!(data.len() <= 256 && gpa % 4096 + data.len() as u64 <= 4096);
        self.bytes.borrow_mut()[Self::range(gpa, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

/// A guest that has switched everything on: source `n` has vector `0x50 + n`.
fn guest() -> (Synic, Memory) {
    let (mut synic, memory) = (Synic::new(), Memory::new());
    let mut write = |msr, value| {
        let _ = synic.write_msr(msr, value, 0, &memory).unwrap();
    };
    write(HV_X64_MSR_SCONTROL, 1);
    write(HV_X64_MSR_SIMP, MESSAGES | 1);
    write(HV_X64_MSR_SIEFP, EVENTS | 1);
    for sint in 0..16 {
        write(HV_X64_MSR_SINT0 + sint, u64::from(0x50 + sint));
    }
    (synic, memory)
}

fn post(synic: &mut Synic, memory: &Memory, sint: u8, payload: &[u8]) -> Vec<u8> {
    let raised = synic.post(sint, (1, 9), payload, 0, memory).unwrap();
    raised.interrupts.iter().collect()
}

fn end_of_message(synic: &mut Synic, memory: &Memory) -> Vec<u8> {
    let raised = synic.write_msr(HV_X64_MSR_EOM, 0, 0, memory).unwrap();
    raised.interrupts.iter().collect()
}

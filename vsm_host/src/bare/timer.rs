//! The comparators of the HPET: one per VP as far as they go, see `deadlines`.
//!
//! Each sends its message past VTL2's local APIC, as an NMI, to one CPU.

#![expect(unsafe_code, reason = "HPET registers")]

use super::{clock, lapic};
use alloc::vec::Vec;
use spin::{Mutex, Once};
use vsm_host::clock::HPET_BASE;
use vsm_host::deadlines::{Comparator, Group, Rates};

const FIRST_TIMER: u64 = 0x100;
const TIMER_SIZE: u64 = 0x20;
/// QEMU's registers end here, whatever number of comparators it tells.
const END: u64 = 0x400;

const CONFIGURATION: u64 = 0x00;
const COMPARATOR: u64 = 0x08;
const ROUTE: u64 = 0x10;

const CAN_SEND_MESSAGES: u64 = 1 << 15;
const SEND_MESSAGE: u64 = 1 << 14;
const ENABLE: u64 = 1 << 2;

/// Message to a local APIC: delivery mode NMI.
const MESSAGE_NMI: u64 = 4 << 8;
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// All comparators that are in use; VP i has that of i modulo their number.
static TIMERS: Once<Vec<Mutex<Timer>>> = Once::new();

/// A comparator and the VPs that it serves.
struct Timer {
    group: Group,
    registers: Registers,
}

/// The registers of a comparator.
struct Registers {
    base: u64,
    counter_mask: u64,
}

impl Registers {
    fn write(&mut self, register: u64, value: u64) {
        // SAFETY: a register of a comparator within the HPET's page, which is the host's
        // alone and identity-mapped. What it sends is an NMI, which the host expects.
        unsafe { core::ptr::write_volatile((self.base + register) as *mut u64, value) };
    }
}

impl Comparator for Registers {
    fn tsc(&self) -> u64 {
        clock::tsc()
    }

    fn counter(&self) -> u64 {
        clock::hpet_counter() & self.counter_mask
    }

    fn counter_mask(&self) -> u64 {
        self.counter_mask
    }

    fn start(&mut self, apic_id: u32, at: u64) {
        // Off while it changes, so that no half of the new value counts.
        self.stop();
        let address = MESSAGE_ADDRESS | u64::from(apic_id) << 12;
        self.write(ROUTE, address << 32 | MESSAGE_NMI);
        self.write(COMPARATOR, at);
        self.write(CONFIGURATION, SEND_MESSAGE | ENABLE);
    }

    fn stop(&mut self) {
        self.write(CONFIGURATION, SEND_MESSAGE);
    }

    fn wake(&self, apic_id: u32) {
        // `boot` has refused machines with APIC ids that do not fit.
        lapic::send_nmi(apic_id as u8);
    }
}

/// Gives comparators to the VPs with these APIC ids, and returns how many there are.
/// Panics if there is none that sends messages.
pub(crate) fn start(apic_ids: &[u32], tsc_hz: u64) -> usize {
    let rates = Rates {
        tsc_hz,
        hpet_period_fs: clock::hpet_period_fs(),
    };
    let count = clock::hpet_timers();
    let bases = (0..count).map(|timer| FIRST_TIMER + timer * TIMER_SIZE);
    let bases: Vec<u64> = bases
        .filter(|base| base + TIMER_SIZE <= END)
        .filter(|base| clock::hpet_read(base + CONFIGURATION) & CAN_SEND_MESSAGES != 0)
        .map(|base| HPET_BASE + base)
        .collect();
    assert!(
        !bases.is_empty(),
        "none of {count} HPET comparators sends messages, expected one (QEMU: -global hpet.msi=on)"
    );
    let used = bases.len().min(apic_ids.len());
    let counter_mask = clock::hpet_mask();
    let timer = |(index, base): (usize, u64)| {
        let members = apic_ids.iter().skip(index).step_by(used).copied();
        Mutex::new(Timer {
            group: Group::new(members, rates),
            registers: Registers { base, counter_mask },
        })
    };
    let timers = bases.into_iter().take(used).enumerate().map(timer);
    TIMERS.call_once(|| timers.collect()).len()
}

/// Calls `use_timer` with the comparator of a VP and its place there.
fn with<R>(vp: u32, use_timer: impl FnOnce(&mut Timer, usize) -> R) -> Option<R> {
    let timers = TIMERS.get().filter(|timers| !timers.is_empty())?;
    let (vp, count) = (vp as usize, timers.len());
    Some(use_timer(&mut timers[vp % count].lock(), vp / count))
}

/// Sets the deadline of a VP, see [`Group::arm`].
pub(crate) fn arm(vp: u32, at_tsc: Option<u64>) -> bool {
    with(vp, |timer, member| {
        timer.group.arm(member, at_tsc, &mut timer.registers)
    })
    .unwrap_or(false)
}

/// An NMI has reached the CPU of a VP, see [`Group::fired`].
pub(crate) fn fired(vp: u32) {
    with(vp, |timer, member| {
        timer.group.fired(member, &mut timer.registers);
    });
}

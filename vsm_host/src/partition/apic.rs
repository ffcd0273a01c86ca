//! What VTL2 may not do with the interrupt controllers.
//!
//! They are VTL2's, and it reads them directly. Its writes exit, because some would give
//! it the machine. INIT and start-up begin code of the sender's choice on another CPU, SMI
//! begins the firmware's, which lies in memory of VTL2; and a CPU that is not in a VTL at
//! that moment (parked, waiting for its VP to be started, or handling an exit) does so
//! outside of any VTL. The processor could hold INIT back while the host runs and turn it
//! into an exit while a VTL does; QEMU's does neither reliably. So these messages are not
//! sent, neither by the local APIC nor by the IOAPIC. VPs are started by hypercall.

use super::counters::Refused;
use super::{Partition, Processor, Vp, VpSlot};
use crate::svm::store::{Access, Mov};
use crate::svm::{store, vmcb};
use igvm_loader::{MemoryRange, PAGE_SIZE};

/// Where the local APIC is; VTLs cannot move it.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Where the IOAPIC is.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Behind the local APIC, where only devices should write: QEMU takes a store of a CPU for
/// a message-signalled interrupt of any kind.
pub const MESSAGES: MemoryRange = MemoryRange::new(LOCAL_APIC + PAGE_SIZE, 0xfef0_0000);

const LOGICAL_DESTINATION: u64 = 0xd0;
const DESTINATION_FORMAT: u64 = 0xe0;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;

const SMI: u32 = 2;
const INIT: u32 = 5;
const STARTUP: u32 = 6;

/// Pages that VTL2 reads but does not write.
pub fn pages() -> [MemoryRange; 2] {
    [IO_APIC, LOCAL_APIC].map(|base| MemoryRange::new(base, base + PAGE_SIZE))
}

/// Whether the delivery mode of a message or of an entry may be VTL2's.
fn delivers_interrupts(value: u32) -> bool {
    !matches!(value >> 8 & 7, SMI | INIT | STARTUP)
}

/// Whether VTL2 may write this to the local APIC. What is not named it need not write; the
/// first register is one only for the processor, QEMU takes it for a message; the id is
/// how the host and the device tree know the CPU.
fn local_permits(register: u64, value: u32) -> bool {
    match register {
        // Task priority, EOI, logical destination and its format, spurious vector, errors.
        LOGICAL_DESTINATION | DESTINATION_FORMAT | SPURIOUS | 0x80 | 0xb0 | 0x280 => true,
        // Low half of the command.
        COMMAND => delivers_interrupts(value),
        // High half: the destination. Count and divisor of the timer.
        COMMAND_HIGH | 0x380 | 0x3e0 => true,
        // Local vectors: timer, thermal, performance, LINT0, LINT1, error.
        0x320 | 0x330 | 0x340 | 0x350 | 0x360 | 0x370 => delivers_interrupts(value),
        _ => false,
    }
}

/// Whether VTL2 may write this to the IOAPIC, whose `selected` register is in its window.
/// Even ones are the low halves of entries, and the id, which no such value is meant for.
fn io_permits(register: u64, value: u32, selected: u8) -> bool {
    match register {
        // Selection, end of interrupt.
        0 | 0x40 => true,
        // The window.
        0x10 => selected % 2 == 1 || delivers_interrupts(value),
        _ => false,
    }
}

impl Partition {
    /// Carries out the store to an interrupt controller at which the VP stands, or ignores
    /// it; false if the instruction is an unusual one.
    pub(super) fn write_apic(&self, vp: &mut Vp, processor: &impl Processor, gpa: u64) -> bool {
        let save = &vp.vmcb().save;
        let Some(Mov {
            access: Access::Store(source),
            next_rip,
        }) = store::at(&self.memory(vp.vtl, processor), save)
        else {
            return false;
        };
        let value = vp.source_value(source);
        let permitted = if gpa >= LOCAL_APIC {
            self.write_local_apic(vp, processor, gpa, value)
        } else {
            // Held until after the write: selection and window belong together.
            let selected = &mut self.shared.lock().io_apic_selected;
            let permitted = io_permits(gpa - IO_APIC, value, *selected);
            if permitted {
                if gpa == IO_APIC {
                    *selected = value as u8;
                }
                processor.write_device(gpa, value);
            }
            permitted
        };
        if !permitted {
            self.counters.count(Refused::Apic(gpa));
        }
        vmcb::advance(vp.vmcb_mut(), next_rip);
        true
    }
}

impl Partition {
    /// Writes a register of VTL2's local APIC, if VTL2 may. An NMI is not sent by the APIC:
    /// the host tells it apart from its own.
    pub(crate) fn write_local_apic(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        gpa: u64,
        value: u32,
    ) -> bool {
        let register = gpa - LOCAL_APIC;
        if register == COMMAND && self.starts_processors(vp, processor, value) {
            return true;
        }
        if !local_permits(register, value) {
            return false;
        }
        let VpSlot {
            nmi: target,
            physical,
            ..
        } = &self.slots[vp.index as usize];
        match register {
            SPURIOUS => physical.set_spurious(value),
            LOGICAL_DESTINATION => target.set_logical(value),
            DESTINATION_FORMAT => target.set_format(value),
            COMMAND_HIGH => vp.command_high = value,
            COMMAND if self.send_nmi(vp, processor, value) => return true,
            _ => {}
        }
        processor.write_device(gpa, value);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// INIT, its end, start-up, SMI; to one, to all, to the sender itself.
    const FORBIDDEN: [u32; 7] = [0x4500, 0x8500, 0xc_4500, 0x4608, 0xc_4608, 0x200, 0x4_0600];
    /// Fixed, lowest priority, NMI, external; masked and not.
    const ALLOWED: [u32; 6] = [0x2_00ec, 0x40fb, 0x1e0, 0x400, 0xc_4400, 0x1_0700];

    #[test]
    fn messages_that_start_cpus_are_not_sent() {
        for register in [0x300, 0x320, 0x350, 0x370] {
            for value in FORBIDDEN {
                assert!(!local_permits(register, value), "{register:#x} {value:#x}");
            }
            for value in ALLOWED {
                assert!(local_permits(register, value), "{register:#x} {value:#x}");
            }
        }
    }

    #[test]
    fn entries_that_start_cpus_are_not_written() {
        for selected in [0, 0x10, 0x3e, 0xfe] {
            for value in FORBIDDEN {
                assert!(!io_permits(0x10, value, selected));
                // The high half is a destination.
                assert!(io_permits(0x10, value, selected | 1));
            }
            for value in ALLOWED {
                assert!(io_permits(0x10, value, selected));
            }
        }
        // QEMU looks at the low byte of an offset only.
        for register in [0x100, 0x110, 0x11, 0x20] {
            assert!(!io_permits(register, 0, 0), "{register:#x}");
        }
    }

    #[test]
    fn what_is_no_register_is_not_written() {
        // A message, the id, between registers, at the edge, and where none is.
        for register in [
            0, 0x4, 0x20, 0x2fe, 0x301, 0x304, 0x2f0, 0x400, 0x500, 0xffe,
        ] {
            assert!(!local_permits(register, 0), "{register:#x}");
        }
        for register in [0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x280, 0x310, 0x380, 0x3e0] {
            assert!(local_permits(register, u32::MAX), "{register:#x}");
        }
    }
}

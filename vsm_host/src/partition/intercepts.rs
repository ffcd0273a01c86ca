//! What VTL2 wants to be told of the guest (TLFS "Intercepts", HvCallInstallIntercept).
//!
//! Asked at each exit of the guest, changed seldom: all of it is atomic, and a VP that is
//! about to leave the guest may still see what was there before.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hv_defs::hypercall::HvStatus;
use hv_defs::intercept::{AccessMask, InstallIntercept, InterceptType};

/// Ports, by bits of words.
const PORT_WORDS: usize = (1 << 16) / 64;

const READ_WRITE: u32 = 0b011;
const WRITE: u32 = 0b010;
const EXECUTE: u32 = 0b100;

/// Types with one switch for all of their kind, and the accesses that they have.
const SWITCHES: [(InterceptType, u32); 5] = [
    (InterceptType::X64_MSR, READ_WRITE),
    (InterceptType::HYPERCALL, EXECUTE),
    (InterceptType::UNKNOWN_SYNIC_CONNECTION, EXECUTE),
    (InterceptType::X64_APIC_EOI, WRITE),
    (
        InterceptType::RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID,
        EXECUTE,
    ),
];

/// The intercepts that are installed.
pub struct Intercepts {
    /// Reading and writing.
    ports: [Vec<AtomicU64>; 2],
    /// By [`SWITCHES`]: the accesses.
    switches: [AtomicU32; SWITCHES.len()],
}

impl Intercepts {
    pub(super) fn new() -> Self {
        let words = |_| (0..PORT_WORDS).map(|_| AtomicU64::new(0)).collect();
        Self {
            ports: core::array::from_fn(words),
            switches: Default::default(),
        }
    }

    /// Installs an intercept in place of what was there, or takes it back.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: a type that the host does not offer, or accesses or a parameter
    /// that the type does not have.
    pub fn install(&self, input: &InstallIntercept) -> Result<(), HvStatus> {
        let invalid = HvStatus::INVALID_PARAMETER;
        let (access, parameter) = (input.access, input.parameter);
        if !access.reserved_bits_are_zero() {
            return Err(invalid);
        }
        // Bits 0 to 15: first port, 16 to 31: last port.
        let (first, last) = (parameter as u16, (parameter >> 16) as u16);
        match input.intercept_type {
            InterceptType::X64_IO_PORT if parameter <= u16::MAX.into() => {
                self.set_ports(first, first, access)
            }
            InterceptType::X64_IO_PORT_RANGE if first <= last && parameter <= u32::MAX.into() => {
                self.set_ports(first, last, access)
            }
            wanted => {
                let place = SWITCHES.iter().position(|(kind, _)| *kind == wanted);
                let place = place.ok_or(invalid)?;
                let access = access.into_bits();
                if access & !SWITCHES[place].1 != 0 || parameter != 0 {
                    return Err(invalid);
                }
                self.switches[place].store(access, Ordering::Release);
                Ok(())
            }
        }
    }

    fn set_ports(&self, first: u16, last: u16, access: AccessMask) -> Result<(), HvStatus> {
        if access.execute() {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        for (map, on) in self.ports.iter().zip([access.read(), access.write()]) {
            for port in first..=last {
                let (word, bit) = (&map[usize::from(port / 64)], 1 << (port % 64));
                if on {
                    word.fetch_or(bit, Ordering::Release);
                } else {
                    word.fetch_and(!bit, Ordering::Release);
                }
            }
        }
        Ok(())
    }

    fn switch(&self, kind: InterceptType) -> u32 {
        let place = SWITCHES.iter().position(|(known, _)| *known == kind);
        place.map_or(0, |place| self.switches[place].load(Ordering::Acquire))
    }

    /// Whether an access to `size` ports from `first` on is told.
    pub fn ports(&self, first: u16, size: u8, write: bool) -> bool {
        let map = &self.ports[usize::from(write)];
        (0..u16::from(size)).any(|offset| {
            // The processor wraps likewise.
            let port = first.wrapping_add(offset);
            map[usize::from(port / 64)].load(Ordering::Acquire) & 1 << (port % 64) != 0
        })
    }

    /// Whether accesses to MSRs that the host does not serve are told.
    pub fn msr(&self, write: bool) -> bool {
        self.switch(InterceptType::X64_MSR) & 1 << u32::from(write) != 0
    }

    /// Whether hypercalls that the host does not know are told.
    pub fn hypercall(&self) -> bool {
        self.switch(InterceptType::HYPERCALL) != 0
    }

    /// Whether messages and events to connections that the host does not know are told.
    pub fn unknown_connection(&self) -> bool {
        self.switch(InterceptType::UNKNOWN_SYNIC_CONNECTION) != 0
    }

    /// Whether the end of a level-triggered interrupt is told.
    pub fn apic_eoi(&self) -> bool {
        self.switch(InterceptType::X64_APIC_EOI) != 0
    }

    /// Whether the retargeting of a device's interrupt is told.
    pub fn retarget_interrupt(&self) -> bool {
        self.switch(InterceptType::RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_defs::HV_PARTITION_ID_SELF;
    use proptest::prelude::*;

    fn install(
        intercepts: &Intercepts,
        intercept_type: InterceptType,
        access: u32,
        parameter: u64,
    ) -> Result<(), HvStatus> {
        intercepts.install(&InstallIntercept {
            partition_id: HV_PARTITION_ID_SELF,
            access: access.into(),
            intercept_type,
            parameter,
        })
    }

    #[test]
    fn ports_are_told_one_by_one_and_in_ranges() {
        let intercepts = Intercepts::new();
        assert!(!intercepts.ports(0x60, 4, true));
        install(&intercepts, InterceptType::X64_IO_PORT, 1, 0x60).unwrap();
        install(&intercepts, InterceptType::X64_IO_PORT_RANGE, 3, 0x3ff_03f8).unwrap();
        assert!(intercepts.ports(0x60, 1, false) && !intercepts.ports(0x60, 1, true));
        assert!(intercepts.ports(0x3f8, 1, true) && intercepts.ports(0x3ff, 1, false));
        // Any of its bytes.
        assert!(intercepts.ports(0x3f5, 4, true) && !intercepts.ports(0x3f4, 4, true));
        assert!(!intercepts.ports(0x400, 4, true));
        install(&intercepts, InterceptType::X64_IO_PORT_RANGE, 0, 0x3fb_03f8).unwrap();
        assert!(!intercepts.ports(0x3f8, 4, true) && intercepts.ports(0x3fc, 1, true));
        install(
            &intercepts,
            InterceptType::X64_IO_PORT_RANGE,
            3,
            0xffff_0000,
        )
        .unwrap();
        assert!(intercepts.ports(0xffff, 4, true) && intercepts.ports(0, 1, false));
    }

    #[test]
    fn switches_have_their_accesses() {
        let intercepts = Intercepts::new();
        install(&intercepts, InterceptType::X64_MSR, 2, 0).unwrap();
        assert!(intercepts.msr(true) && !intercepts.msr(false));
        install(&intercepts, InterceptType::X64_APIC_EOI, 2, 0).unwrap();
        install(&intercepts, InterceptType::UNKNOWN_SYNIC_CONNECTION, 4, 0).unwrap();
        assert!(intercepts.apic_eoi() && intercepts.unknown_connection());
        assert!(!intercepts.hypercall() && !intercepts.retarget_interrupt());
        install(&intercepts, InterceptType::X64_APIC_EOI, 0, 0).unwrap();
        assert!(!intercepts.apic_eoi());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use InterceptType as Type;
        let intercepts = Intercepts::new();
        for (kind, access, parameter) in [
            (Type::X64_MSR, 4, 0),
            (Type::X64_MSR, 8, 0),
            (Type::X64_MSR, 3, 1),
            (Type::X64_APIC_EOI, 1, 0),
            (Type::UNKNOWN_SYNIC_CONNECTION, 2, 0),
            (Type::X64_IO_PORT, 4, 0x60),
            (Type::X64_IO_PORT, 3, 0x1_0000),
            (Type::X64_IO_PORT_RANGE, 3, 0x60_0061),
            (Type::X64_IO_PORT_RANGE, 3, 1 << 32),
            // Not offered.
            (Type::X64_CPUID, 4, 0),
            (Type::EXCEPTION, 4, 1),
            (Type::X64_MSR_INDEX, 3, 0),
            (InterceptType(0x77), 3, 0),
        ] {
            let refused = Err(HvStatus::INVALID_PARAMETER);
            assert_eq!(install(&intercepts, kind, access, parameter), refused);
        }
        assert!(!intercepts.msr(false) && !intercepts.ports(0x60, 1, false));
    }

    proptest! {
        #[test]
        fn any_request_is_answered(
            requests in prop::collection::vec((0..0x14u32, 0..16u32, any::<u64>()), 0..8),
            port: u16,
        ) {
            let intercepts = Intercepts::new();
            for (kind, access, parameter) in requests {
                let _ = install(&intercepts, InterceptType(kind), access, parameter);
            }
            let _ = intercepts.ports(port, 4, true) | intercepts.msr(false);
        }
    }
}

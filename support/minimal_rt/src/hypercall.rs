//! Hypercalls: the typed wrappers, over any way to make one.

use hv_defs::hypercall::{
    GetSetVpRegisters, GetVpIndexFromApicId, HvInputVtl, HvStatus, HypercallCode, HypercallControl,
    HypercallResult,
};
use hv_defs::registers::{HvRegisterAssoc, HvRegisterName};
use hv_defs::{HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Page;

/// Identity that the shim gives before its hypercalls: vendor Microsoft, OS id 1. It is
/// what hosts know for this role; Linux replaces it by its own later.
pub const GUEST_OS_ID: u64 = GuestOsId::new().with_os_id(1).with_vendor_id(1).into_bits();

/// Elements of a list that fit behind a header of 16 bytes into one page.
const APIC_IDS_PER_CALL: usize = (4096 - size_of::<GetVpIndexFromApicId>()) / 4;

#[bitfield_struct::bitfield(u64)]
struct GuestOsId {
    build_number: u16,
    service_version: u8,
    minor_version: u8,
    major_version: u8,
    os_id: u8,
    #[bits(15)]
    vendor_id: u16,
    is_open_source: bool,
}

/// A hypercall that did not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HypercallError {
    /// The hypervisor said no.
    #[error("hypercall {code:?} failed with status {status:?}")]
    Status {
        /// Which call.
        code: HypercallCode,
        /// Why.
        status: HvStatus,
    },
    /// It claims success, but has not handled every element.
    #[error("hypercall {code:?} completed {completed} repetitions, expected {expected}")]
    Repetitions {
        /// Which call.
        code: HypercallCode,
        /// How many it did.
        completed: u16,
        /// How many were asked for.
        expected: u16,
    },
}

/// A way to make a hypercall whose parameters are in memory.
pub trait Transport {
    /// The page that the next call reads.
    fn input(&mut self) -> &mut Page;
    /// The page that the last call has written.
    fn output(&self) -> &Page;
    /// Makes the call with these pages.
    fn call(&mut self, control: HypercallControl) -> HypercallResult;
}

/// Makes a call without repetitions.
pub fn simple(
    transport: &mut impl Transport,
    code: HypercallCode,
    input: &(impl IntoBytes + Immutable),
) -> HvStatus {
    split_input(transport, input.as_bytes());
    let control = HypercallControl::new().with_code(code.0);
    HvStatus(transport.call(control).status())
}

/// Reads a 64-bit register of the calling VP.
pub fn get_vp_register(
    transport: &mut impl Transport,
    vtl: HvInputVtl,
    name: HvRegisterName,
) -> Result<u64, HypercallError> {
    get_wide_vp_register(transport, vtl, name).map(|[low, _]| low)
}

/// Reads a register of the calling VP, the low half first.
pub fn get_wide_vp_register(
    transport: &mut impl Transport,
    vtl: HvInputVtl,
    name: HvRegisterName,
) -> Result<[u64; 2], HypercallError> {
    let header = registers_header(vtl);
    let place = split_input(transport, header.as_bytes());
    place[..4].copy_from_slice(&name.0.to_le_bytes());
    repeat(transport, HypercallCode::GET_VP_REGISTERS, 1)?;
    let output = &transport.output().0;
    Ok([read_u64(output, 0), read_u64(output, 8)])
}

/// Writes a 64-bit register of the calling VP.
pub fn set_vp_register(
    transport: &mut impl Transport,
    vtl: HvInputVtl,
    name: HvRegisterName,
    value: u64,
) -> Result<(), HypercallError> {
    set_wide_vp_register(transport, vtl, name, [value, 0])
}

/// Writes a register of the calling VP, the low half first.
pub fn set_wide_vp_register(
    transport: &mut impl Transport,
    vtl: HvInputVtl,
    name: HvRegisterName,
    value: [u64; 2],
) -> Result<(), HypercallError> {
    let header = registers_header(vtl);
    let assoc = HvRegisterAssoc {
        name: name.0,
        pad: [0; 3],
        value,
    };
    let place = split_input(transport, header.as_bytes());
    place[..size_of::<HvRegisterAssoc>()].copy_from_slice(assoc.as_bytes());
    repeat(transport, HypercallCode::SET_VP_REGISTERS, 1)
}

/// Translates local APIC ids (or MPIDRs) into VP indices, calling `found` for each, in
/// order.
pub fn vp_indices_from_apic_ids(
    transport: &mut impl Transport,
    vtl: HvInputVtl,
    ids: &[u32],
    mut found: impl FnMut(usize, u32),
) -> Result<(), HypercallError> {
    let header = GetVpIndexFromApicId {
        partition_id: HV_PARTITION_ID_SELF,
        target_vtl: vtl,
        rsvd: [0; 7],
    };
    for (batch, ids) in ids.chunks(APIC_IDS_PER_CALL).enumerate() {
        let place = split_input(transport, header.as_bytes());
        place[..size_of_val(ids)].copy_from_slice(ids.as_bytes());
        repeat(
            transport,
            HypercallCode::GET_VP_INDEX_FROM_APIC_ID,
            ids.len() as u16,
        )?;
        let output = &transport.output().0[..size_of_val(ids)];
        for (i, index) in output.chunks_exact(4).enumerate() {
            let index = u32::read_from_bytes(index).unwrap_or(u32::MAX);
            found(batch * APIC_IDS_PER_CALL + i, index);
        }
    }
    Ok(())
}

fn registers_header(vtl: HvInputVtl) -> GetSetVpRegisters {
    GetSetVpRegisters {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: HV_VP_INDEX_SELF,
        target_vtl: vtl,
        rsvd: [0; 3],
    }
}

// Writes the header and returns what follows it.
fn split_input<'a>(transport: &'a mut impl Transport, header: &[u8]) -> &'a mut [u8] {
    let (head, rest) = transport.input().0.split_at_mut(header.len());
    head.copy_from_slice(header);
    rest
}

fn repeat(
    transport: &mut impl Transport,
    code: HypercallCode,
    count: u16,
) -> Result<(), HypercallError> {
    let control = HypercallControl::new()
        .with_code(code.0)
        .with_rep_count(count);
    let result = transport.call(control);
    let status = HvStatus(result.status());
    if status != HvStatus::SUCCESS {
        return Err(HypercallError::Status { code, status });
    }
    if result.reps_completed() != count {
        return Err(HypercallError::Repetitions {
            code,
            completed: result.reps_completed(),
            expected: count,
        });
    }
    Ok(())
}

fn read_u64(page: &[u8; 4096], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    struct Fake {
        input: Page,
        output: Page,
        calls: Vec<HypercallControl>,
        status: HvStatus,
        short: bool,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                input: Page::ZERO,
                output: Page::ZERO,
                calls: Vec::new(),
                status: HvStatus::SUCCESS,
                short: false,
            }
        }
    }

    impl Transport for Fake {
        fn input(&mut self) -> &mut Page {
            &mut self.input
        }

        fn output(&self) -> &Page {
            &self.output
        }

        fn call(&mut self, control: HypercallControl) -> HypercallResult {
            self.calls.push(control);
            // Echo the list behind the header.
            let (_, list) = self.input.0.split_at(16);
            self.output.0[..list.len()].copy_from_slice(list);
            HypercallResult::new()
                .with_status(self.status.0)
                .with_reps_completed(control.rep_count() - u16::from(self.short))
        }
    }

    const OWN: HvInputVtl = HvInputVtl::new();

    #[test]
    fn identity_is_microsoft_os_1() {
        assert_eq!(GUEST_OS_ID, 0x0001_0100_0000_0000);
    }

    #[test]
    fn get_register_names_it_behind_the_header() {
        let mut fake = Fake::new();
        let value = get_vp_register(&mut fake, OWN, HvRegisterName::VSM_VP_STATUS).unwrap();
        assert_eq!(value, u64::from(HvRegisterName::VSM_VP_STATUS.0));
        assert_eq!(fake.input.0[..8], [0xff; 8]);
        assert_eq!(fake.input.0[8..12], HV_VP_INDEX_SELF.to_le_bytes());
        assert_eq!(fake.calls[0].into_bits(), 0x1_0000_0050);
    }

    #[test]
    fn set_register_puts_the_value_at_16() {
        let mut fake = Fake::new();
        set_vp_register(&mut fake, OWN, HvRegisterName::GUEST_OS_ID, 0x1234).unwrap();
        assert_eq!(fake.input.0[32..40], 0x1234u64.to_le_bytes());
        assert_eq!(fake.calls[0].into_bits(), 0x1_0000_0051);
    }

    #[test]
    fn many_ids_are_asked_in_page_sized_batches() {
        let mut fake = Fake::new();
        let ids: Vec<u32> = (0..2048).collect();
        let mut seen = Vec::new();
        vp_indices_from_apic_ids(&mut fake, OWN, &ids, |i, index| seen.push((i, index))).unwrap();
        assert!(seen.iter().all(|&(i, index)| i == index as usize));
        assert_eq!(seen.len(), 2048);
        let counts: Vec<u16> = fake.calls.iter().map(|c| c.rep_count()).collect();
        assert_eq!(counts, [1020, 1020, 8]);
    }

    #[test]
    fn failures_name_the_call() {
        let mut fake = Fake::new();
        fake.status = HvStatus::ACCESS_DENIED;
        assert_eq!(
            get_vp_register(&mut fake, OWN, HvRegisterName::VSM_VP_STATUS),
            Err(HypercallError::Status {
                code: HypercallCode::GET_VP_REGISTERS,
                status: HvStatus::ACCESS_DENIED
            })
        );

        fake.status = HvStatus::SUCCESS;
        fake.short = true;
        assert_eq!(
            vp_indices_from_apic_ids(&mut fake, OWN, &[1, 2], |_, _| {}),
            Err(HypercallError::Repetitions {
                code: HypercallCode::GET_VP_INDEX_FROM_APIC_ID,
                completed: 1,
                expected: 2
            })
        );
    }
}

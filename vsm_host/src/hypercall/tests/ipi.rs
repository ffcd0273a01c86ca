//! Interrupts to sets of VPs.

use super::*;
use crate::partition::apic::LOCAL_APIC;
use hv_defs::hypercall::{HV_VP_SET_ALL, HV_VP_SET_SPARSE};

const SPURIOUS: u64 = LOCAL_APIC + 0xf0;

impl Guest {
    /// VTL2 of these VPs has its APIC on.
    fn with_apics_on(vps: &[u32]) -> Self {
        let mut guest = Self::new();
        for vp in vps {
            guest.set_spurious(*vp, 0x1ff);
        }
        guest.processor.written.take();
        guest
    }

    fn set_spurious(&mut self, vp: u32, value: u32) {
        let own = core::mem::replace(&mut self.vp.index, vp);
        let (partition, processor) = (&self.partition, &self.processor);
        assert!(partition.write_local_apic(&mut self.vp, processor, SPURIOUS, value));
        self.vp.index = own;
    }

    fn interrupted(&self) -> Vec<(u32, u8)> {
        self.processor.interrupted.take()
    }

    fn send(&mut self, vector: u32, target: HvInputVtl, mask: u64) -> HvStatus {
        let input = SendClusterIpi {
            vector,
            target_vtl: target,
            rsvd: [0; 3],
            processors: mask,
        };
        let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI);
        self.call(code, input.as_bytes()).0
    }

    fn send_ex(&mut self, format: u64, valid_banks: u64, banks: &[u64]) -> HvStatus {
        let header = SendClusterIpiEx {
            vector: 0x40,
            target_vtl: HvInputVtl::new(),
            rsvd: [0; 3],
            format,
            valid_banks,
        };
        let input = [header.as_bytes(), banks.as_bytes()].concat();
        let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX)
            .with_variable_header_size(banks.len() as u16);
        self.call(code, &input).0
    }
}

#[test]
fn interrupt_reaches_the_vps_of_a_mask_whose_apics_are_on() {
    let mut guest = Guest::with_apics_on(&[0, 1, 3]);
    assert_eq!(
        guest.send(0xf3, HvInputVtl::new(), 0b1111),
        HvStatus::SUCCESS
    );
    assert_eq!(guest.interrupted(), [(1, 0xf3), (2, 0xf3), (4, 0xf3)]);
    guest.set_spurious(1, 0xff);
    assert_eq!(guest.send(0x10, vtl(2), 0b0110), HvStatus::SUCCESS);
    assert_eq!(guest.interrupted(), []);
}

#[test]
fn interrupt_can_be_sent_by_a_fast_call() {
    let mut guest = Guest::with_apics_on(&[2]);
    let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI).with_fast(true);
    let done = Outcome::Done(HypercallResult::new());
    assert_eq!(guest.raw(code.into(), 0x22, 0b100), done);
    assert_eq!(guest.interrupted(), [(3, 0x22)]);
}

#[test]
fn interrupt_of_the_guest_is_virtual() {
    let mut guest = Guest::with_apics_on(&[0, 1, 2, 3]);
    assert_eq!(guest.send(0x30, vtl(0), 0b1111), HvStatus::SUCCESS);
    assert_eq!(guest.interrupted(), []);
}

#[test]
fn nothing_is_sent_unless_all_is_right() {
    let mut guest = Guest::with_apics_on(&[0, 1, 2, 3]);
    for vector in [0, 15, 0x100, 0x8000_0020, u32::MAX] {
        let status = guest.send(vector, HvInputVtl::new(), 1);
        assert_eq!(status, HvStatus::INVALID_PARAMETER, "{vector:#x}");
    }
    let own = HvInputVtl::new();
    assert_eq!(guest.send(0x20, own, 0b1_0001), HvStatus::INVALID_VP_INDEX);
    assert_eq!(guest.send(0x20, vtl(1), 1), HvStatus::INVALID_PARAMETER);
    assert_eq!(
        guest.send(0x20, 0xe2.into(), 1),
        HvStatus::INVALID_PARAMETER
    );
    // Reserved bytes behind the VTL.
    let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI);
    let input = [0x20u64 | 1 << 40, 1];
    let status = guest.call(code, input.as_bytes()).0;
    assert_eq!(status, HvStatus::INVALID_PARAMETER);
    // No banks are defined.
    let status = guest.call(code.with_variable_header_size(1), &[0; 64]).0;
    assert_eq!(status, HvStatus::INVALID_HYPERCALL_INPUT);
    assert_eq!(guest.interrupted(), []);
}

#[test]
fn set_of_vps_is_banks_or_all() {
    let mut guest = Guest::with_apics_on(&[0, 1, 2, 3]);
    let sparse = HV_VP_SET_SPARSE;
    assert_eq!(guest.send_ex(sparse, 1, &[0b1010]), HvStatus::SUCCESS);
    assert_eq!(guest.interrupted(), [(2, 0x40), (4, 0x40)]);
    // An empty set, and banks without members.
    assert_eq!(guest.send_ex(sparse, 0, &[]), HvStatus::SUCCESS);
    assert_eq!(
        guest.send_ex(sparse, 1 | 1 << 63, &[0, 0]),
        HvStatus::SUCCESS
    );
    assert_eq!(guest.interrupted(), []);
    assert_eq!(guest.send_ex(HV_VP_SET_ALL, 0, &[]), HvStatus::SUCCESS);
    assert_eq!(guest.interrupted().len(), 4);

    let wrong = HvStatus::INVALID_HYPERCALL_INPUT;
    assert_eq!(guest.send_ex(sparse, 1, &[]), wrong);
    assert_eq!(guest.send_ex(sparse, 1, &[1, 1]), wrong);
    assert_eq!(guest.send_ex(2, 1, &[1]), HvStatus::INVALID_PARAMETER);
    let other = guest.send_ex(sparse, 1 | 1 << 63, &[1, 1]);
    assert_eq!(other, HvStatus::INVALID_VP_INDEX);
    assert_eq!(guest.interrupted(), []);
}

#[test]
fn banks_end_with_the_page() {
    let mut guest = Guest::with_apics_on(&[0]);
    let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX);
    let status = guest.call(code.with_variable_header_size(511), &[]).0;
    assert_eq!(status, HvStatus::INVALID_ALIGNMENT);
}

#[test]
fn guest_sends_none() {
    let mut guest = Guest::in_vtl0();
    let code = control(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI).with_fast(true);
    let denied = HypercallResult::new().with_status(HvStatus::ACCESS_DENIED.0);
    assert_eq!(guest.raw(code.into(), 0x22, 1), Outcome::Done(denied));
}

proptest! {
    #[test]
    fn hostile_sets_get_a_status(
        format in 0u64..3, valid in prop_oneof![0u64..8, any::<u64>()],
        banks in prop::collection::vec(prop_oneof![0u64..16, any::<u64>()], 0..66),
        vps in prop::collection::vec(0u32..4, 0..4),
    ) {
        let mut guest = Guest::with_apics_on(&vps);
        let status = guest.send_ex(format, valid, &banks);
        let sent = guest.interrupted();
        prop_assert!(status == HvStatus::SUCCESS || sent.is_empty());
        prop_assert!(sent.iter().all(|(id, _)| vps.contains(&(id - 1))));
    }
}

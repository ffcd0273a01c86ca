//! TLFS "SynIC MSRs".

use super::*;

#[test]
fn values_after_reset() {
    let synic = Synic::new();
    assert_eq!(synic.read_msr(HV_X64_MSR_SVERSION), Ok(1));
    for msr in [
        HV_X64_MSR_SCONTROL,
        HV_X64_MSR_SIEFP,
        HV_X64_MSR_SIMP,
        HV_X64_MSR_EOM,
    ] {
        assert_eq!(synic.read_msr(msr), Ok(0));
    }
    for sint in 0..16 {
        assert_eq!(synic.read_msr(HV_X64_MSR_SINT0 + sint), Ok(0x1_0000));
    }
    for msr in HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT {
        assert_eq!(synic.read_msr(msr), Ok(0));
    }
    assert!(!synic.accepts_messages() && !synic.accepts_events());
}

#[test]
fn reserved_bits_are_preserved() {
    let (mut synic, memory) = guest();
    for (msr, value) in [
        (HV_X64_MSR_SCONTROL, 0xdead_beef_0000_0001),
        (HV_X64_MSR_SIEFP, EVENTS | 0xfff),
        (HV_X64_MSR_SIMP, MESSAGES | 0xffe),
        (HV_X64_MSR_SINT0, 0xffff_ffff_ffe6_ff30),
    ] {
        let _ = synic.write_msr(msr, value, 0, &memory).unwrap();
        assert_eq!(synic.read_msr(msr), Ok(value));
    }
}

#[test]
fn writes_that_fault() {
    let (mut synic, memory) = guest();
    for (msr, value) in [
        (HV_X64_MSR_SVERSION, 1),
        (HV_X64_MSR_SINT0, 0xf),
        (HV_X64_MSR_SINT15, 0),
        (HV_X64_MSR_STIMER0_CONFIG, 1 << 13),
        (HV_X64_MSR_STIMER0_CONFIG, 1 << 20),
        (0x4000_0085, 0),
        (0x4000_00a0, 0),
        (0x4000_00b8, 0),
        (u32::MAX, 0),
    ] {
        let before = synic.clone();
        let error = synic.write_msr(msr, value, 0, &memory).unwrap_err();
        assert_eq!((error.msr, error.written), (msr, Some(value)));
        assert_eq!(synic, before);
    }
    // Masked, the vector does not matter.
    assert!(
        synic
            .write_msr(HV_X64_MSR_SINT0, 0x1_0000, 0, &memory)
            .is_ok()
    );
}

#[test]
fn pages_that_come_into_use_are_zero_and_their_neighbours_are_not_touched() {
    let (_, memory) = guest();
    assert!(memory.read(MESSAGES, 0x2000).iter().all(|byte| *byte == 0));
    assert!(
        memory
            .read(MESSAGES - 8, 8)
            .iter()
            .all(|byte| *byte == 0xaa)
    );
    assert!(
        memory
            .read(EVENTS + 0x1000, 8)
            .iter()
            .all(|byte| *byte == 0xaa)
    );
}

#[test]
fn memory_is_bounded() {
    // 17 buffers of 256 bytes and the registers.
    assert!(size_of::<Synic>() <= 6 * 1024, "{}", size_of::<Synic>());
}

#[test]
fn auto_eoi_vectors_are_those_of_unmasked_sources() {
    let (mut synic, memory) = guest();
    for (sint, value) in [(2, 0x2_0080u64), (3, 0x3_0081), (4, 0x6_0082)] {
        let _ = synic
            .write_msr(HV_X64_MSR_SINT0 + sint, value, 0, &memory)
            .unwrap();
    }
    let vectors: Vec<_> = synic.auto_eoi_vectors().iter().collect();
    assert_eq!(vectors, [0x80, 0x82]);
}

#[test]
fn register_names_stand_for_msrs() {
    for (name, msr) in [
        (0xa_0000, HV_X64_MSR_SINT0),
        (0xa_000f, HV_X64_MSR_SINT15),
        (0xa_0010, HV_X64_MSR_SCONTROL),
        (0xa_0013, HV_X64_MSR_SIMP),
        (0xa_0014, HV_X64_MSR_EOM),
        (0xb_0007, HV_X64_MSR_STIMER3_COUNT),
    ] {
        assert_eq!(msr_of_register(name), Some(msr));
        assert!(owns_msr(msr));
    }
    assert_eq!(msr_of_register(0xa_0015), None);
}

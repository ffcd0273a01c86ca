//! TLFS "SynIC Event Flags".

use super::*;
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::SignalEventDirect;

#[test]
fn a_flag_interrupts_when_it_was_clear() {
    let (synic, memory) = guest();
    for (sint, flag, byte) in [(0, 0, 0u64), (7, 9, 7 * 256 + 1), (15, 2047, 16 * 256 - 1)] {
        let (new, raised) = synic.signal(sint, flag, &memory).unwrap();
        assert!(new && raised.interrupts.contains(0x50 + sint));
        assert_eq!(memory.read(EVENTS + byte, 1), [1 << (flag % 8)]);
        let (new, raised) = synic.signal(sint, flag, &memory).unwrap();
        assert!(!new && raised == Raised::default());
    }
}

#[test]
fn sources_and_flags_that_do_not_exist_are_refused() {
    let (synic, memory) = guest();
    for (sint, flag) in [(16, 0), (255, 0), (2, 2048), (2, u16::MAX)] {
        assert_eq!(
            synic.signal(sint, flag, &memory),
            Err(HvStatus::INVALID_PARAMETER)
        );
        let input = SignalEventDirect {
            partition_id: u64::MAX,
            vp_index: 0,
            vtl: 0,
            sint,
            flag_number: flag,
        };
        assert_eq!(DirectEvent::new(&input), Err(HvStatus::INVALID_PARAMETER));
    }
}

#[test]
fn what_is_off_or_masked_takes_no_events() {
    for (msr, value) in [
        (HV_X64_MSR_SCONTROL, 0),
        (HV_X64_MSR_SIEFP, EVENTS),
        (HV_X64_MSR_SINT0 + 2, 0x1_0052),
    ] {
        let (mut synic, memory) = guest();
        let _ = synic.write_msr(msr, value, 0, &memory).unwrap();
        assert_eq!(
            synic.signal(2, 0, &memory),
            Err(HvStatus::INVALID_SYNIC_STATE)
        );
        assert_eq!(memory.read(EVENTS + 512, 1), [0]);
    }
}

#[test]
fn a_polled_source_gets_the_flag_only() {
    let (mut synic, memory) = guest();
    let _ = synic.write_msr(HV_X64_MSR_SINT0 + 2, 0x5_0052, 0, &memory);
    assert_eq!(synic.signal(2, 0, &memory), Ok((true, Raised::default())));
}

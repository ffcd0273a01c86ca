//! TLFS "SynIC Messages".

use super::*;
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{HvMessage, PostMessageDirect};
use zerocopy::{FromBytes, FromZeros};

const PENDING: u8 = 1;

fn direct(message_type: u32) -> HvMessage {
    let mut message = HvMessage::new_zeroed();
    message.header.message_type.0 = message_type;
    message
}

#[test]
fn a_message_fills_its_slot_and_interrupts() {
    let (mut synic, memory) = guest();
    let raised = synic.post(2, (0x77, 0x1234), b"hello", 0, &memory).unwrap();
    assert_eq!(raised.interrupts.iter().collect::<Vec<_>>(), [0x52]);
    assert_eq!(memory.slot(2), (0x77, 0, b"hello".to_vec()));
    assert_eq!(memory.read(MESSAGES + 512 + 8, 2), [0x34, 0x12]);
    assert_eq!(memory.slot(1).0, 0);
    assert_eq!(memory.slot(3).0, 0);
}

#[test]
fn others_wait_and_come_in_order_after_eom_and_eoi() {
    let (mut synic, memory) = guest();
    assert_eq!(post(&mut synic, &memory, 2, b"1"), [0x52]);
    assert_eq!(post(&mut synic, &memory, 2, b"2"), []);
    assert_eq!(post(&mut synic, &memory, 2, b"3"), []);
    assert_eq!(memory.slot(2), (1, PENDING, b"1".to_vec()));
    assert!(synic.waits());
    // The slot is not empty.
    assert_eq!(end_of_message(&mut synic, &memory), []);
    memory.empty_slot(2);
    assert_eq!(end_of_message(&mut synic, &memory), [0x52]);
    // The third one waits still, and the guest knows it.
    assert_eq!(memory.slot(2), (1, PENDING, b"2".to_vec()));
    memory.empty_slot(2);
    let raised = synic.end_of_interrupt(0, &memory);
    assert_eq!(raised.interrupts.iter().collect::<Vec<_>>(), [0x52]);
    assert_eq!(memory.slot(2), (1, 0, b"3".to_vec()));
    assert!(!synic.waits());
    memory.empty_slot(2);
    assert_eq!(end_of_message(&mut synic, &memory), []);
}

#[test]
fn another_message_is_an_occasion_too() {
    let (mut synic, memory) = guest();
    post(&mut synic, &memory, 2, b"1");
    post(&mut synic, &memory, 2, b"2");
    memory.empty_slot(2);
    assert_eq!(post(&mut synic, &memory, 2, b"3"), [0x52]);
    assert_eq!(memory.slot(2), (1, PENDING, b"2".to_vec()));
}

#[test]
fn a_guest_that_empties_the_slot_before_it_sees_the_flag_gets_the_message_at_once() {
    let (mut synic, memory) = guest();
    post(&mut synic, &memory, 2, b"1");
    *memory.interference.borrow_mut() = Some(|memory| memory.empty_slot(2));
    assert_eq!(post(&mut synic, &memory, 2, b"2"), [0x52]);
    assert_eq!(memory.slot(2), (1, 0, b"2".to_vec()));
}

#[test]
fn queues_are_bounded_and_an_intercept_has_its_own_place() {
    let (mut synic, memory) = guest();
    for _ in 0..=GUEST_MESSAGES {
        post(&mut synic, &memory, 2, b"x");
    }
    assert_eq!(synic.queued(), GUEST_MESSAGES);
    for sint in [2, 3] {
        assert_eq!(
            synic.post(sint, (1, 0), b"x", 0, &memory),
            Err(HvStatus::INSUFFICIENT_BUFFERS)
        );
    }
    let raised = synic.post_intercept(0, direct(0x8001_0000), 0, &memory);
    assert!(raised.unwrap().interrupts.contains(0x50));
    assert_eq!(memory.slot(0).0, 0x8001_0000);
    // One waits, a second one cannot.
    assert!(
        synic
            .post_intercept(0, direct(0x8001_0000), 0, &memory)
            .is_ok()
    );
    assert_eq!(
        synic.post_intercept(0, direct(0x8001_0000), 0, &memory),
        Err(HvStatus::INSUFFICIENT_BUFFERS)
    );
}

#[test]
fn masked_and_polled_sources_get_messages_without_interrupts() {
    for value in [0x1_0052, 0x4_0052] {
        let (mut synic, memory) = guest();
        let _ = synic.write_msr(HV_X64_MSR_SINT0 + 2, value, 0, &memory);
        assert_eq!(post(&mut synic, &memory, 2, b"1"), []);
        assert_eq!(memory.slot(2).0, 1);
    }
}

#[test]
fn proxy_and_intercept_sources_tell_a_higher_vtl() {
    let (mut synic, memory) = guest();
    let _ = synic.write_msr(HV_X64_MSR_SINT0 + 2, 0x10_0052, 0, &memory);
    let _ = synic.write_msr(HV_X64_MSR_SINT0 + 3, 0x8_0053, 0, &memory);
    let raised = synic.post(2, (1, 0), b"", 0, &memory).unwrap();
    assert!(raised.interrupts.is_empty() && raised.proxied.contains(0x52));
    let raised = synic.post(3, (1, 0), b"", 0, &memory).unwrap();
    assert!(raised.interrupts.is_empty() && raised.proxied.is_empty());
    assert_eq!(raised.intercepted, 1 << 3);
}

#[test]
fn a_synic_or_page_that_is_off_takes_no_message_but_keeps_those_that_wait() {
    let (mut synic, memory) = guest();
    post(&mut synic, &memory, 2, b"1");
    post(&mut synic, &memory, 2, b"2");
    for (msr, off, on) in [
        (HV_X64_MSR_SCONTROL, 0, 1),
        (HV_X64_MSR_SIMP, MESSAGES, MESSAGES + 0x4001),
    ] {
        let _ = synic.write_msr(msr, off, 0, &memory).unwrap();
        assert!(!synic.accepts_messages());
        assert_eq!(
            synic.post(2, (1, 0), b"", 0, &memory),
            Err(HvStatus::INVALID_SYNIC_STATE)
        );
        assert_eq!(synic.queued(), 1);
        let raised = synic.write_msr(msr, on, 0, &memory).unwrap();
        // The new page is empty, so the message comes at once.
        assert_eq!(raised.interrupts.contains(0x52), msr == HV_X64_MSR_SIMP);
    }
    assert_eq!(synic.queued(), 0);
}

#[test]
fn a_page_that_is_not_memory_takes_nothing() {
    for page in [MEMORY, 0x000f_ffff_ffff_f000, u64::MAX - 0xfff] {
        let (mut synic, memory) = guest();
        let _ = synic.write_msr(HV_X64_MSR_SIMP, page | 1, 0, &memory);
        let _ = synic.write_msr(HV_X64_MSR_SIEFP, page | 1, 0, &memory);
        assert_eq!(post(&mut synic, &memory, 2, b"1"), []);
        assert_eq!(synic.queued(), 1);
        for result in [
            synic.post_direct(2, &direct(1), &memory),
            synic.signal(2, 0, &memory).map(|(_, raised)| raised),
        ] {
            assert_eq!(result, Err(HvStatus::INVALID_SYNIC_STATE));
        }
    }
}

#[test]
fn a_direct_message_needs_an_empty_slot() {
    let (mut synic, memory) = guest();
    let raised = synic.post_direct(2, &direct(0x8000_0050), &memory).unwrap();
    assert!(raised.interrupts.contains(0x52));
    assert_eq!(
        synic.post_direct(2, &direct(1), &memory),
        Err(HvStatus::OBJECT_IN_USE)
    );
    // The guest has been asked for an EOM; the sender hears of it then, once.
    assert_eq!(memory.slot(2).1, PENDING);
    synic.await_ready(0b1100);
    assert_eq!(synic.take_ready(&memory), 0b1000);
    assert_eq!(synic.awaited(), 0b0100);
    memory.empty_slot(2);
    assert_eq!(synic.take_ready(&memory), 0b0100);
    assert_eq!(synic.take_ready(&memory), 0);
    // What was queued before goes first.
    post(&mut synic, &memory, 2, b"1");
    post(&mut synic, &memory, 2, b"2");
    memory.empty_slot(2);
    assert_eq!(
        synic.post_direct(2, &direct(1), &memory),
        Err(HvStatus::OBJECT_IN_USE)
    );
}

#[test]
fn messages_that_mean_nothing_are_refused() {
    let (mut synic, memory) = guest();
    let long = [0; 241];
    for (sint, message_type, payload) in [(16, 1, &b""[..]), (2, 0, b""), (2, 1, &long)] {
        assert_eq!(
            synic.post(sint, (message_type, 0), payload, 0, &memory),
            Err(HvStatus::INVALID_PARAMETER)
        );
    }
    let mut too_long = direct(1);
    too_long.header.payload_size = 241;
    for message in [direct(0), too_long] {
        assert_eq!(
            synic.post_direct(2, &message, &memory),
            Err(HvStatus::INVALID_PARAMETER)
        );
    }
    assert!(synic.post(2, (1, 0), &long[..240], 0, &memory).is_ok());
}

#[test]
fn direct_inputs_are_checked() {
    let mut bytes = [0; size_of::<PostMessageDirect>()];
    bytes[8] = 3;
    bytes[16] = 7;
    bytes[20] = 1;
    let parse =
        |bytes: &[u8]| DirectMessage::new(&PostMessageDirect::read_from_bytes(bytes).unwrap());
    let message = parse(&bytes).unwrap();
    assert_eq!((message.vp_index, message.vtl, message.sint), (3, 0, 7));
    // Reserved bytes, source, payload size.
    for (offset, value) in [(13, 1), (17, 1), (16, 16), (24, 241), (20, 0)] {
        let mut bad = bytes;
        bad[offset] = value;
        assert_eq!(parse(&bad), Err(HvStatus::INVALID_PARAMETER), "{offset}");
    }
}

//! Messages and events for VTL2 itself.

use super::*;
use crate::partition::apic::LOCAL_APIC;
use hv_defs::msr::*;
use x86_defs::svm::ExitCode;

/// Pages of VP 2's SynIC.
pub(super) const MESSAGES: u64 = 0xc000;
const EVENTS: u64 = 0xd000;
const CODE: u64 = crate::partition::tests::CODE;

impl Guest {
    /// VTL2 of VP 2 has its APIC and its SynIC on; sources 2 and 7 have vector 0xf3.
    pub(super) fn with_own_synic() -> Self {
        let mut guest = Self::new();
        for (msr, value) in [
            (HV_X64_MSR_SIMP, MESSAGES | 1),
            (HV_X64_MSR_SIEFP, EVENTS | 1),
            (HV_X64_MSR_SINT0 + 2, 0xf3),
            (HV_X64_MSR_SINT0 + 7, 0xf3),
            (HV_X64_MSR_SCONTROL, 1),
        ] {
            assert_eq!(guest.write_msr_on(2, msr, value), Ok(Next::Resume));
        }
        guest.on(2, |partition, vp, processor| {
            let spurious = LOCAL_APIC + 0xf0;
            assert!(partition.write_local_apic(vp, processor, spurious, 0x1ff));
        });
        guest
    }

    /// Does something on another VP.
    fn on<T>(&mut self, vp: u32, work: impl FnOnce(&Partition, &mut Vp, &FakeProcessor) -> T) -> T {
        let own = core::mem::replace(&mut self.vp.index, vp);
        let result = work(&self.partition, &mut self.vp, &self.processor);
        self.vp.index = own;
        result
    }

    fn write_msr_on(&mut self, vp: u32, msr: u32, value: u64) -> Result<Next, Exception> {
        self.on(vp, |partition, vp, processor| {
            partition.write_msr(vp, processor, msr, value)
        })
    }

    fn read_msr_on(&mut self, vp: u32, msr: u32) -> Result<u64, Exception> {
        self.on(vp, |partition, vp, processor| {
            partition.read_msr(vp, processor, msr)
        })
    }

    fn signal(&mut self, vp_index: u32, vtl: u8, sint: u8, flag_number: u16) -> HvStatus {
        let input = SignalEventDirect {
            partition_id: HV_PARTITION_ID_SELF,
            vp_index,
            vtl,
            sint,
            flag_number,
        };
        let code = control(HypercallCode::SIGNAL_EVENT_DIRECT);
        self.call(code, input.as_bytes()).0
    }

    fn word(&self, address: u64) -> u32 {
        self.processor.load_word(address)
    }
}

#[test]
fn event_for_vtl2_sets_its_flag_and_interrupts_once() {
    let mut guest = Guest::with_own_synic();
    for newly in [1, 0] {
        assert_eq!(guest.signal(2, 2, 7, 33), HvStatus::SUCCESS);
        assert_eq!(guest.output::<8>(), [newly, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(guest.word(EVENTS + 7 * 256 + 4), 2);
    assert_eq!(*guest.processor.interrupted.borrow(), [(3, 0xf3)]);
}

#[test]
fn event_for_a_source_that_is_masked_or_off_is_refused() {
    let mut guest = Guest::with_own_synic();
    let off = HvStatus::INVALID_SYNIC_STATE;
    assert_eq!(guest.signal(2, 2, 6, 0), off);
    assert_eq!(guest.signal(1, 2, 7, 0), off);
    assert_eq!(guest.signal(HV_VP_INDEX_SELF, 2, 7, 0), off);
    // VTL0's is another one.
    assert_eq!(guest.signal(2, 0, 7, 0), off);
    let wrong = HvStatus::INVALID_PARAMETER;
    assert_eq!(guest.signal(2, 2, 16, 0), wrong);
    assert_eq!(guest.signal(2, 2, 7, 2048), wrong);
    assert_eq!(guest.signal(2, 1, 7, 0), wrong);
    assert_eq!(guest.signal(4, 2, 7, 0), HvStatus::INVALID_VP_INDEX);
    assert_eq!(*guest.processor.interrupted.borrow(), []);
}

#[test]
fn source_that_is_not_masked_any_more_takes_events() {
    let mut guest = Guest::with_own_synic();
    let sint = HV_X64_MSR_SINT0 + 6;
    assert_eq!(guest.read_msr_on(2, sint), Ok(1 << 16));
    assert_eq!(guest.write_msr_on(2, sint, 0x31), Ok(Next::Resume));
    assert_eq!(guest.signal(2, 2, 6, 0), HvStatus::SUCCESS);
    assert_eq!(*guest.processor.interrupted.borrow(), [(3, 0x31)]);
    let fault = Err(Exception::GeneralProtection);
    assert_eq!(guest.write_msr_on(2, sint, 0x0f), fault);
}

#[test]
fn message_for_vtl2_waits_for_its_slot_and_the_end_of_the_one_before() {
    let mut guest = Guest::with_own_synic();
    let mut message = [0; 256];
    (message[0], message[4], message[16]) = (9, 1, 0x77);
    let input = PostMessageDirect {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: 2,
        vtl: 2,
        rsvd1: [0; 3],
        sint: 2,
        rsvd2: [0; 3],
        message,
        padding: [0; 4],
    };
    let code = control(HypercallCode::POST_MESSAGE_DIRECT);
    assert_eq!(guest.call(code, input.as_bytes()).0, HvStatus::SUCCESS);
    let slot = MESSAGES + 2 * 256;
    assert_eq!((guest.word(slot), guest.word(slot + 16)), (9, 0x77));
    let again = guest.call(code, input.as_bytes()).0;
    assert_eq!(again, HvStatus::OBJECT_IN_USE);
    assert_eq!(guest.word(slot + 4), 0x101, "a message waits");
    guest.processor.store_word(slot, 0);
    let end = guest.write_msr_on(2, HV_X64_MSR_EOM, 0);
    assert_eq!(end, Ok(Next::Resume));
    assert_eq!(guest.call(code, input.as_bytes()).0, HvStatus::SUCCESS);
}

#[test]
fn vtl2_has_no_synthetic_timers() {
    let mut guest = Guest::with_own_synic();
    let fault = Exception::GeneralProtection;
    for msr in HV_X64_MSR_STIMER0_CONFIG..=HV_X64_MSR_STIMER3_COUNT {
        assert_eq!(guest.read_msr_on(2, msr), Err(fault));
        assert_eq!(guest.write_msr_on(2, msr, 0), Err(fault));
    }
}

#[test]
fn pages_outside_of_vtl2_are_not_written() {
    let mut guest = Guest::with_own_synic();
    for page in [VTL2_END, !0xfff] {
        for msr in [HV_X64_MSR_SIMP, HV_X64_MSR_SIEFP] {
            let result = guest.write_msr_on(2, msr, page | 1);
            assert_eq!(result, Ok(Next::Resume));
        }
        assert_eq!(guest.signal(2, 2, 7, 0), HvStatus::INVALID_SYNIC_STATE);
    }
    guest.processor.write_ram(CODE, &[0x0f, 0xa2]);
    guest.vp.vmcb_mut().control.exit_code = ExitCode::CPUID;
    let next = guest.partition.handle_exit(&mut guest.vp, &guest.processor);
    assert_eq!(next, Next::Resume);
}

fn vmbus_message(connection_id: u32, payload: &[u8]) -> PostMessage {
    let mut input = PostMessage {
        connection_id,
        rsvd: 0,
        message_type: vmbus_defs::SYNIC_MESSAGE_TYPE,
        payload_size: payload.len() as u32,
        payload: [0; 240],
    };
    input.payload[..payload.len()].copy_from_slice(payload);
    input
}

/// What Linux sends: version 6.0, VP 2, source 2, VTL 2.
fn contact() -> Vec<u8> {
    let words = [14, 0, 0x6_0000, 2, 0x202, 0, 0, 0, 0, 0];
    words.as_bytes().to_vec()
}

#[test]
fn vmbus_answers_by_message_and_interrupt() {
    let mut guest = Guest::with_own_synic();
    let code = control(HypercallCode::POST_MESSAGE);
    let post = |guest: &mut Guest, id, payload: &[u8]| {
        let status = guest.call(code, vmbus_message(id, payload).as_bytes()).0;
        let slot = MESSAGES + 2 * 256;
        let found = [0, 4, 16, 24].map(|offset| guest.word(slot + offset));
        guest.processor.store_word(slot, 0);
        (status, found, guest.processor.interrupted.take())
    };
    let interrupt = vec![(3, 0xf3)];
    // What Linux tries first does not exist.
    let (status, ..) = post(&mut guest, 0x80_0074, &contact());
    assert_eq!(status, HvStatus::INVALID_CONNECTION_ID);
    let answer = [1, 16, 15, 1];
    let expected = (HvStatus::SUCCESS, answer, interrupt.clone());
    assert_eq!(post(&mut guest, 4, &contact()), expected);
    let (_, found, sent) = post(&mut guest, 4, &3u64.to_le_bytes());
    assert_eq!((found[..3].to_vec(), sent), (vec![1, 8, 4], interrupt));
    // A message that makes no sense.
    let (status, found, sent) = post(&mut guest, 4, &[3]);
    assert_eq!((status, found[0]), (HvStatus::SUCCESS, 0));
    assert_eq!(sent, []);
    // The guest in VTL0 has no connection.
    let mut guest = Guest::in_vtl0();
    let status = guest.of_guest(code, vmbus_message(4, &contact()).as_bytes());
    let refused = HypercallResult::new().with_status(HvStatus::INVALID_CONNECTION_ID.0);
    assert_eq!(status, Outcome::Done(refused));
}

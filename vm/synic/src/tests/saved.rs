//! Saving and restoring.

use super::*;
use hv_defs::synic::TimerConfig;

#[test]
fn a_restored_synic_behaves_as_the_saved_one() {
    let (mut synic, memory) = guest();
    let config = TimerConfig::new().with_sint(2).with_enabled(true);
    post(&mut synic, &memory, 2, b"1");
    post(&mut synic, &memory, 2, b"2");
    let _ = synic.write_msr(HV_X64_MSR_STIMER0_CONFIG + 3, 500, 0, &memory);
    let _ = synic.write_msr(HV_X64_MSR_STIMER0_CONFIG + 2, config.into(), 0, &memory);
    let _ = synic.poll(600, &memory);
    post(&mut synic, &memory, 2, b"3");
    synic.await_ready(4);
    let mut saved = SavedSynic::EMPTY;
    synic.save(&mut saved);
    let mut other = Synic::new();
    other.restore(&saved).unwrap();
    assert_eq!(other, synic);
    let mut types = Vec::new();
    for _ in 0..5 {
        types.push(memory.slot(2).0);
        memory.empty_slot(2);
        end_of_message(&mut other, &memory);
    }
    assert_eq!(types, [1, 1, 0x8000_0010, 1, 0]);
}

#[test]
fn impossible_states_are_refused_by_field() {
    let (mut synic, memory) = guest();
    post(&mut synic, &memory, 2, b"1");
    post(&mut synic, &memory, 2, b"2");
    let refuses = |change: fn(&mut SavedSynic)| {
        let mut saved = SavedSynic::EMPTY;
        synic.save(&mut saved);
        change(&mut saved);
        let mut other = Synic::new();
        let error = other.restore(&saved).unwrap_err();
        assert_eq!(other, Synic::new());
        error.field
    };
    fn first(saved: &mut SavedSynic) -> &mut SavedMessage {
        saved.messages.iter_mut().flatten().next().unwrap()
    }
    assert_eq!(refuses(|s| s.sints[4] = 3), "sints");
    assert_eq!(refuses(|s| s.timers[1].config = 1 << 14), "timers.config");
    assert_eq!(refuses(|s| s.timers[1].config = 1), "timers.config");
    assert_eq!(refuses(|s| s.timers[1].expires = Some(1)), "timers.count");
    assert_eq!(
        refuses(|s| s.timers[1].undelivered = Some((0, 1 << 63))),
        "order"
    );
    assert_eq!(refuses(|s| first(s).sint = 16), "messages.sint");
    assert_eq!(refuses(|s| first(s).order = u64::MAX), "order");
    assert_eq!(
        refuses(|s| first(s).message.header.message_type.0 = 0),
        "messages.type"
    );
    assert_eq!(
        refuses(|s| first(s).message.header.payload_size = 241),
        "messages.size"
    );
}

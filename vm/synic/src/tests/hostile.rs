//! Guests that write anything anywhere.

use super::*;
use hv_defs::synic::HvMessage;
use proptest::prelude::*;
use zerocopy::FromBytes;

#[derive(Debug, Clone)]
enum Access {
    Write(u32, u64),
    Read(u32),
    Post(u8, u32, usize),
    Intercept(u8, u8),
    Direct(u8, u8),
    Signal(u8, u16),
    Time(u64),
    End,
    Await(u16),
    Scribble(u64, u32),
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let msr = prop_oneof![
        8 => 0x4000_0080..0x4000_00b8u32,
        1 => any::<u32>(),
    ];
    let value = prop_oneof![
        any::<u64>(),
        (0..MEMORY / 2048).prop_map(|page| page << 11 | 1),
        0..0x20_0000u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(1),
    ];
    let access = prop_oneof![
        8 => (msr.clone(), value).prop_map(|(m, v)| Access::Write(m, v)),
        1 => msr.prop_map(Access::Read),
        4 => (0..20u8, any::<u32>(), 0..260usize).prop_map(|(s, t, n)| Access::Post(s, t, n)),
        1 => any::<(u8, u8)>().prop_map(|(s, b)| Access::Intercept(s, b)),
        2 => (0..20u8, any::<u8>()).prop_map(|(s, b)| Access::Direct(s, b)),
        2 => (0..20u8, any::<u16>()).prop_map(|(s, f)| Access::Signal(s, f)),
        4 => any::<u64>().prop_map(Access::Time),
        2 => Just(Access::End),
        1 => any::<u16>().prop_map(Access::Await),
        2 => (0..MEMORY / 4, prop_oneof![Just(0), any::<u32>()])
            .prop_map(|(at, v)| Access::Scribble(at * 4, v)),
    ];
    proptest::collection::vec(access, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_sequence_panics_or_breaks_the_state(accesses in accesses(), ready in any::<bool>()) {
        let (mut synic, memory) = guest();
        if !ready {
            synic.reset();
        }
        let mut now = 0u64;
        let payload = [0x5a; 260];
        for access in accesses {
            match access {
                Access::Write(msr, value) => {
                    let before = synic.clone();
                    match synic.write_msr(msr, value, now, &memory) {
                        Ok(_) => prop_assert!(owns_msr(msr)),
                        Err(_) => prop_assert_eq!(&before, &synic),
                    }
                }
                Access::Read(msr) => prop_assert_eq!(synic.read_msr(msr).is_ok(), owns_msr(msr)),
                Access::Post(sint, kind, size) => {
                    let _ = synic.post(sint, (kind, 0), &payload[..size], now, &memory);
                }
                Access::Intercept(sint, byte) => {
                    let message = HvMessage::read_from_bytes(&[byte; 256]).unwrap();
                    let _ = synic.post_intercept(sint, message, now, &memory);
                }
                Access::Direct(sint, byte) => {
                    let message = HvMessage::read_from_bytes(&[byte; 256]).unwrap();
                    let _ = synic.post_direct(sint, &message, &memory);
                }
                Access::Signal(sint, flag) => {
 let _ = synic.signal(sint, flag, &memory);
}
                Access::Time(step) => now = now.saturating_add(step >> (step % 64)),
                Access::End => {
 let _ = synic.end_of_interrupt(now, &memory);
}
                Access::Await(sints) => synic.await_ready(sints),
                Access::Scribble(gpa, value) => memory.store(gpa, value).unwrap(),
            }
            let _ = synic.poll(now, &memory);
            let _ = synic.take_ready(&memory);
            prop_assert!(synic.queued() <= GUEST_MESSAGES);
        }
        let mut saved = SavedSynic::EMPTY;
        synic.save(&mut saved);
        let mut other = Synic::new();
        prop_assert!(other.restore(&saved).is_ok());
        let mut again = SavedSynic::EMPTY;
        other.save(&mut again);
        prop_assert_eq!(saved, again);
    }
}

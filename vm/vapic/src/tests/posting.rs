//! Posting from other VPs, in every order that the memory model permits.

use super::*;
use loom::sync::atomic::AtomicU64 as LoomU64;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::sync::atomic::Ordering;

crate::shared::impl_word!(LoomU64);

/// A VP's shared part, and kicks that wait at its CPU.
struct Target {
    shared: Shared<LoomU64>,
    kicks: Mutex<u32>,
    kicked: Condvar,
}

impl Target {
    fn new(apic: &LocalApic) -> Arc<Self> {
        Arc::new(Self {
            shared: Shared::new(apic.address()),
            kicks: Mutex::new(0),
            kicked: Condvar::new(),
        })
    }

    fn kick_if(&self, needed: bool) {
        if needed {
            *self.kicks.lock().unwrap() += 1;
            self.kicked.notify_one();
        }
    }

    /// What the CPU does until somebody kicks it. If nobody does, loom reports a deadlock.
    fn take_kick(&self) {
        let mut kicks = self.kicks.lock().unwrap();
        while *kicks == 0 {
            kicks = self.kicked.wait(kicks).unwrap();
        }
        *kicks -= 1;
    }
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn no_interrupt_is_lost_between_a_post_and_the_halt() {
    model(|| {
        let mut apic = xapic();
        let target = Target::new(&apic);
        let posters = [0x41, 0x51].map(|vector| {
            let target = Arc::clone(&target);
            thread::spawn(move || target.kick_if(target.shared.post(vector, false)))
        });
        let mut taken = Vec::new();
        while taken.len() < 2 {
            let _ = apic.collect(&target.shared);
            taken.extend(drain(&mut apic));
            if taken.len() < 2 && target.shared.enter() {
                target.take_kick();
                assert!(target.shared.leave());
            }
        }
        for poster in posters {
            poster.join().unwrap();
        }
        // Nobody has kicked a CPU that does something else now.
        assert_eq!(*target.kicks.lock().unwrap(), 0);
    });
}

#[test]
fn a_guest_that_leaves_by_itself_knows_of_a_kick_on_its_way() {
    model(|| {
        let mut apic = xapic();
        let target = Target::new(&apic);
        let poster = {
            let target = Arc::clone(&target);
            thread::spawn(move || target.kick_if(target.shared.post(0x41, true)))
        };
        if target.shared.enter() && target.shared.leave() {
            target.take_kick();
        }
        poster.join().unwrap();
        assert_eq!(*target.kicks.lock().unwrap(), 0);
        let _ = apic.collect(&target.shared);
        assert_eq!(drain(&mut apic), [0x41]);
        assert!(!target.shared.is_pending());
    });
}

#[test]
fn init_and_startup_keep_their_order() {
    model(|| {
        let mut apic = LocalApic::new(config(1));
        apic.set_startup(Startup::Running);
        let target = Target::new(&apic);
        let poster = {
            let target = Arc::clone(&target);
            thread::spawn(move || {
                target.kick_if(target.shared.post_init());
                target.kick_if(target.shared.post_startup(8));
            })
        };
        let first = apic.collect(&target.shared);
        poster.join().unwrap();
        let second = apic.collect(&target.shared);
        assert!(first.init != second.init);
        assert_eq!(first.start.or(second.start), Some(8));
        assert!(first.start.is_none() || second.start.is_none());
    });
}

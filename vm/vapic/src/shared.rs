//! What other VPs do to a VP's APIC: post requests, and find it by its address.
//!
//! A post puts a bit where the owner will find it and then marks the VP "pending". The
//! owner marks the VP "away" while it runs the guest or halts, which it may do only while
//! nothing is pending: one atomic word decides. So a post either comes before the owner
//! goes away, and is collected, or it finds it away, and then exactly the first poster is
//! told to kick. The owner learns when it comes back if there is a kick on its way, so
//! none is left over for whoever uses the CPU next. Loom checks this (`tests/posting.rs`).

use crate::vectors::VectorSet;
use bitfield_struct::bitfield;
use core::sync::atomic::{AtomicU64, Ordering};

/// A 64-bit atomic word; a trait so that loom's can take its place. Each operation
/// acquires and releases.
pub trait Word {
    /// A word with a value.
    fn new(value: u64) -> Self;
    /// Reads.
    fn load(&self) -> u64;
    /// Writes.
    fn store(&self, value: u64);
    /// Sets bits; returns the value before.
    fn set(&self, bits: u64) -> u64;
    /// Clears bits; returns the value before.
    fn clear(&self, bits: u64) -> u64;
    /// Replaces `from` by `to`, or returns what was there instead.
    fn replace(&self, from: u64, to: u64) -> Result<(), u64>;
}

/// Implements [`Word`] by the methods that atomic words of the core library and of loom have
/// in common.
macro_rules! impl_word {
    ($word:ty) => {
        impl $crate::shared::Word for $word {
            fn new(value: u64) -> Self {
                Self::new(value)
            }

            fn load(&self) -> u64 {
                self.load(Ordering::Acquire)
            }

            fn store(&self, value: u64) {
                self.store(value, Ordering::Release);
            }

            fn set(&self, bits: u64) -> u64 {
                self.fetch_or(bits, Ordering::AcqRel)
            }

            fn clear(&self, bits: u64) -> u64 {
                self.fetch_and(!bits, Ordering::AcqRel)
            }

            fn replace(&self, from: u64, to: u64) -> Result<(), u64> {
                self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
                    .map(|_| ())
            }
        }
    };
}
#[cfg(test)]
pub(crate) use impl_word;

impl_word!(AtomicU64);

/// The owner is in the guest or halted.
const AWAY: u64 = 1;
/// Something has been posted that has not been collected.
const PENDING: u64 = 2;

/// Where an APIC can be addressed, and what it accepts.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Address {
    /// APIC id.
    pub id: u32,
    /// Logical id (xAPIC mode).
    pub logical: u8,
    /// Format of logical destinations (xAPIC mode): 15 flat, 0 clusters.
    #[bits(4)]
    pub format: u8,
    /// The APIC is on.
    pub enabled: bool,
    /// It is in x2APIC mode.
    pub x2apic: bool,
    /// Its software accepts interrupts.
    pub accepts: bool,
    _reserved: bool,
    /// Task priority, as last seen; decides about the lowest priority.
    pub priority: u8,
    _reserved2: u8,
}

/// Requests other than vectors.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) nmi: bool,
    pub(crate) init: bool,
    pub(crate) startup: bool,
    pub(crate) extint: bool,
    pub(crate) lint0: bool,
    pub(crate) lint1: bool,
    #[bits(10)]
    _reserved: u16,
    pub(crate) startup_page: u8,
    pub(crate) extint_vector: u8,
    _reserved2: u32,
}

/// What was posted since it was last taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    pub(crate) edge: VectorSet,
    pub(crate) level: VectorSet,
    pub(crate) requests: Requests,
}

/// The part of a VP's APIC that all VPs may touch.
#[derive(Debug)]
pub struct Shared<W: Word = AtomicU64> {
    /// Edge and level requests are apart, so that the trigger mode is never another post's.
    edge: [W; 4],
    level: [W; 4],
    requests: W,
    state: W,
    address: W,
}

impl<W: Word> Shared<W> {
    /// Nothing is posted, the owner is not away.
    pub fn new(address: Address) -> Self {
        let word = |_| W::new(0);
        Self {
            edge: core::array::from_fn(word),
            level: core::array::from_fn(word),
            requests: W::new(0),
            state: W::new(0),
            address: W::new(address.into_bits()),
        }
    }

    /// Where the APIC is now.
    pub fn address(&self) -> Address {
        Address::from_bits(self.address.load())
    }

    /// Says where the APIC is; by its owner, after accesses that may have changed it.
    pub fn publish(&self, address: Address) {
        self.address.store(address.into_bits());
    }

    /// Posts a fixed interrupt. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post(&self, vector: u8, level: bool) -> bool {
        let words = if level { &self.level } else { &self.edge };
        words[usize::from(vector >> 6)].set(1 << (vector & 63));
        self.mark()
    }

    /// Posts a non-maskable interrupt. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post_nmi(&self) -> bool {
        self.request(|requests| requests.with_nmi(true))
    }

    /// Posts INIT, which takes back a start-up before it. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post_init(&self) -> bool {
        self.request(|requests| {
            requests
                .with_init(true)
                .with_startup(false)
                .with_startup_page(0)
        })
    }

    /// Posts a start-up at `page`; of several the first counts. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post_startup(&self, page: u8) -> bool {
        self.request(|requests| {
            if requests.startup() {
                requests
            } else {
                requests.with_startup(true).with_startup_page(page)
            }
        })
    }

    /// Posts an interrupt of an 8259; the last vector counts. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post_extint(&self, vector: u8) -> bool {
        self.request(|requests| requests.with_extint(true).with_extint_vector(vector))
    }

    /// Posts a pulse on LINT0, or LINT1. `vector` is what an 8259 would supply if the pin
    /// is programmed so. True: kick the VP.
    #[must_use = "a VP that is away must be kicked"]
    pub fn post_lint(&self, lint1: bool, vector: u8) -> bool {
        self.request(|requests| {
            if lint1 {
                requests.with_lint1(true)
            } else {
                requests.with_lint0(true)
            }
            .with_extint_vector(vector)
        })
    }

    /// By the owner: goes into the guest, or halts. False: something is pending; collect
    /// it first.
    #[must_use = "the guest must not be entered while something is pending"]
    pub fn enter(&self) -> bool {
        self.state.replace(0, AWAY).is_ok()
    }

    /// By the owner: is back. True: somebody has sent a kick, or is about to; exactly one.
    #[must_use = "the kick must not reach whatever the CPU does next"]
    pub fn leave(&self) -> bool {
        self.state.clear(AWAY) & PENDING != 0
    }

    /// Whether something waits to be collected.
    pub fn is_pending(&self) -> bool {
        self.state.load() & PENDING != 0
    }

    /// Takes what has been posted.
    pub(crate) fn take(&self) -> Taken {
        if self.state.clear(PENDING) & PENDING == 0 {
            return Taken::default();
        }
        // What is posted from here on may be taken now and marked again: harmless.
        let all = |words: &[W; 4]| {
            VectorSet::from_words(core::array::from_fn(|i| words[i].clear(u64::MAX)))
        };
        Taken {
            edge: all(&self.edge),
            level: all(&self.level),
            requests: Requests::from_bits(self.requests.clear(u64::MAX)),
        }
    }

    fn request(&self, change: impl Fn(Requests) -> Requests) -> bool {
        let mut old = self.requests.load();
        while let Err(found) = self
            .requests
            .replace(old, change(Requests::from_bits(old)).into_bits())
        {
            old = found;
        }
        self.mark()
    }

    fn mark(&self) -> bool {
        self.state.set(PENDING) == AWAY
    }
}

//! Accesses that no device answers: counted, and reported ever more rarely.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Mutex;
use std::sync::PoisonError;

use inspect::Inspect;
use inspect::Request;

use crate::bus::Space;
use crate::bus::Width;

/// Addresses that are counted one by one; all others share one count.
pub const MAX_ADDRESSES: usize = 256;

/// One access that no device answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unclaimed {
    /// Where.
    pub space: Space,
    /// The address.
    pub address: u64,
    /// Its width.
    pub width: Width,
    /// What was written; a read otherwise.
    pub written: Option<u64>,
    /// Accesses to this address so far, of either direction; with `overflow`, to all
    /// addresses beyond the first [`MAX_ADDRESSES`].
    pub count: u64,
    /// The count is not this address's own.
    pub overflow: bool,
}

/// Told of the 1st, 2nd, 4th, 8th … unclaimed access to an address.
///
/// A guest can cause at most 64 reports for each of 257 counts in its whole life, so an
/// implementation may log every one. Called on the VP's thread.
pub trait UnclaimedObserver: Send + Sync {
    /// Nobody answers at this address.
    fn unclaimed(&self, access: &Unclaimed);
}

/// The counts. Their number is bounded, for the guest chooses the addresses.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    addresses: BTreeMap<(Space, u64), u64>,
    overflow: u64,
}

impl Counts {
    /// Counts an access; its report, if it is one to be made.
    pub(crate) fn count(
        &self,
        space: Space,
        address: u64,
        width: Width,
        written: Option<u64>,
    ) -> Option<Unclaimed> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = inner.addresses.len() >= MAX_ADDRESSES;
        let mut overflow = false;
        let count = match inner.addresses.entry((space, address)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) if !full => entry.insert(0),
            Entry::Vacant(_) => {
                overflow = true;
                &mut inner.overflow
            }
        };
        *count = count.saturating_add(1);
        let report = Unclaimed {
            space,
            address,
            width,
            written,
            count: *count,
            overflow,
        };
        report.count.is_power_of_two().then_some(report)
    }

    /// All counts, and that of the addresses which have none of their own.
    pub(crate) fn snapshot(&self) -> (Vec<(Space, u64, u64)>, u64) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = inner.addresses.iter();
        let list = list.map(|(&(space, address), &count)| (space, address, count));
        (list.collect(), inner.overflow)
    }
}

impl Inspect for Counts {
    fn inspect(&self, request: Request<'_>) {
        let (list, overflow) = self.snapshot();
        let mut response = request.respond();
        for (space, address, count) in list {
            response.counter(&format!("{space}_{address:#x}"), &count);
        }
        response.counter("others", &overflow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_become_rarer_and_counts_stay_bounded() {
        let counts = Counts::default();
        let count = |port| counts.count(Space::Port, port, Width::Byte, None);
        let reported: Vec<_> = (0..100).filter_map(|_| count(0x80)).collect();
        let reported: Vec<_> = reported.iter().map(|r| r.count).collect();
        assert_eq!(reported, [1, 2, 4, 8, 16, 32, 64]);

        for port in 0x1000..0x2000 {
            count(port);
        }
        let (list, overflow) = counts.snapshot();
        assert_eq!(list.len(), MAX_ADDRESSES);
        assert_eq!(overflow, 0x1000 - (MAX_ADDRESSES as u64 - 1));
        // An address that has its own count keeps it.
        assert!(count(0x80).is_none());
        assert_eq!(list[0], (Space::Port, 0x80, 100));
    }
}

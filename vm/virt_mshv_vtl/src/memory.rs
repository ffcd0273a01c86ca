//! Makes VTL0's memory known to the kernel, when it is touched for the first time.
//!
//! Until then, the kernel has no page structures for it: they cost time and VTL2's memory.
//! The kernel never forgets them, and a second registration of the same memory fails loudly.
//! A worker that follows on one that died therefore reads in a file what is registered.

use crate::device::Vtl;
use guest_memory::Register;
use inspect::Inspect;
use inspect::Unit;
use loader_defs::range::GpaRange;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// What is registered at once. The kernel can have page tables of this granularity only if
/// it is a multiple of a large page.
const CHUNK: u64 = 128 << 20;
/// What the kernel registers in units of.
const UNIT: u64 = 2 << 20;

/// Registers memory with the kernel.
pub(crate) struct Registrar {
    vtl: Arc<Vtl>,
    record: PathBuf,
    /// What is registered.
    done: Mutex<Vec<GpaRange>>,
    /// How much of that this process has done.
    registrations: AtomicU64,
}

impl Registrar {
    /// `record` is the file that says what is registered, if there is one.
    pub(crate) fn new(vtl: Arc<Vtl>, record: PathBuf) -> io::Result<Self> {
        let done = match fs::read_to_string(&record) {
            Ok(text) => parse(&text).ok_or_else(|| {
                io::Error::new(ErrorKind::InvalidData, format!("{record:?} is damaged"))
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            vtl,
            record,
            done: Mutex::new(done),
            registrations: AtomicU64::new(0),
        })
    }
}

impl Register for Registrar {
    fn chunk(&self) -> u64 {
        CHUNK
    }

    fn register(&self, range: GpaRange) -> io::Result<()> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        for part in missing(range, &done) {
            self.vtl.add_memory(part)?;
            self.registrations.fetch_add(1, Relaxed);
            done.push(part);
            write_whole(&self.record, &format(&done))?;
        }
        Ok(())
    }
}

impl Inspect for Registrar {
    fn inspect(&self, request: inspect::Request<'_>) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: u64 = done.iter().map(GpaRange::len).sum();
        request
            .respond()
            .unit("registered", Unit::Bytes, &bytes)
            .counter("registrations", &self.registrations);
    }
}

/// What of `range`, rounded to whole units, is in none of `done`.
fn missing(range: GpaRange, done: &[GpaRange]) -> Vec<GpaRange> {
    let start = range.start() / UNIT * UNIT;
    let end = range.end().next_multiple_of(UNIT);
    let mut parts: Vec<_> = GpaRange::from_bounds(start, end).into_iter().collect();
    for other in done {
        parts = parts
            .iter()
            .flat_map(|part| part.without(other))
            .filter(|part| !part.is_empty())
            .collect();
    }
    parts
}

/// Writes a file that whoever reads it finds whole, also if the writer is killed.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

/// A line for each range: start and end.
fn format(ranges: &[GpaRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:#x} {:#x}", range.start(), range.end());
    }
    text
}

fn parse(text: &str) -> Option<Vec<GpaRange>> {
    let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    text.lines()
        .map(|line| {
            let (start, end) = line.split_once(' ')?;
            GpaRange::from_bounds(number(start)?, number(end)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> GpaRange {
        GpaRange::from_bounds(start, end).unwrap()
    }

    #[test]
    fn neighbours_that_share_a_unit_register_it_once() {
        let low = range(0, 0xa_0000);
        let high = range(0x10_0000, 2 * UNIT);

        let first = missing(low, &[]);
        assert_eq!(first, [range(0, UNIT)]);
        assert_eq!(missing(high, &first), [range(UNIT, 2 * UNIT)]);
    }

    #[test]
    fn what_is_registered_is_left_out() {
        let done = [range(2 * UNIT, 3 * UNIT), range(0, UNIT)];
        let expected = [range(UNIT, 2 * UNIT), range(3 * UNIT, 4 * UNIT)];
        assert_eq!(missing(range(0, 4 * UNIT), &done), expected);
        assert!(missing(range(1, 2), &done).is_empty());
    }

    #[test]
    fn a_record_takes_the_place_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vtl0_memory");
        for ranges in [vec![range(0, UNIT)], vec![range(UNIT, 2 * UNIT)]] {
            write_whole(&path, &format(&ranges)).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(parse(&text), Some(ranges));
        }
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 1, "nothing else is left");
    }

    proptest! {
        #[test]
        fn what_was_written_down_is_read(bounds in prop::collection::vec((any::<u32>(), any::<u32>()), 0..9)) {
            let ranges: Vec<_> = bounds
                .iter()
                .map(|(start, length)| GpaRange::new((*start).into(), (*length).into()).unwrap())
                .collect();
            prop_assert_eq!(parse(&format(&ranges)), Some(ranges));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = parse(&text);
        }
    }
}

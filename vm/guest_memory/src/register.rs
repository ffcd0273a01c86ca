//! Telling the kernel about memory before it is touched, a chunk at a time.

use crate::Error;
use loader_defs::range::GpaRange;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::Ordering::Release;

/// What the kernel needs to know of memory before a process may touch it.
///
/// It costs the kernel time and memory for each page, and a guest has much memory that
/// nobody but itself ever touches.
pub trait Register: Send + Sync {
    /// Size of a chunk; a power of two.
    fn chunk(&self) -> u64;

    /// Registers a chunk, or the part of it that is RAM. Called once for each, except
    /// after an error.
    fn register(&self, range: GpaRange) -> io::Result<()>;
}

/// Which chunks of a range are registered.
pub(crate) struct Registered(Option<Chunks>);

struct Chunks {
    range: GpaRange,
    shift: u32,
    done: Vec<AtomicBool>,
    register: Arc<dyn Register>,
    /// Held while a chunk is being registered.
    busy: Mutex<()>,
}

impl Registered {
    pub(crate) fn new(range: GpaRange, register: Arc<dyn Register>) -> Self {
        let shift = register.chunk().trailing_zeros();
        let first = range.start() >> shift;
        let last = range.end().saturating_sub(1) >> shift;
        Self(Some(Chunks {
            range,
            shift,
            done: (first..=last).map(|_| AtomicBool::new(false)).collect(),
            register,
            busy: Mutex::new(()),
        }))
    }

    /// Nobody needs to know.
    pub(crate) fn nothing() -> Self {
        Self(None)
    }

    /// Registers what is not yet registered of `part`, which is in the range.
    #[inline]
    pub(crate) fn ensure(&self, part: GpaRange) -> Result<(), Error> {
        let Some(chunks) = &self.0 else {
            return Ok(());
        };
        let base = chunks.range.start() >> chunks.shift;
        let first = (part.start() >> chunks.shift) - base;
        let last = (part.end().saturating_sub(1) >> chunks.shift).saturating_sub(base);
        for index in first..=last {
            match chunks.done.get(index as usize) {
                Some(done) if !done.load(Acquire) => chunks.register(base + index, done)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Chunks {
    #[cold]
    fn register(&self, chunk: u64, done: &AtomicBool) -> Result<(), Error> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if done.load(Acquire) {
            return Ok(());
        }
        let whole = GpaRange::new(chunk << self.shift, 1 << self.shift);
        let range = whole.map_or(self.range, |whole| whole.intersection(&self.range));
        self.register
            .register(range)
            .map_err(|error| Error::Register { range, error })?;
        done.store(true, Release);
        Ok(())
    }
}

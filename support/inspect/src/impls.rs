//! [`Inspect`] for the standard library's types.

use crate::Format;
use crate::Inspect;
use crate::Request;
use crate::Unit;
use crate::Value;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic;
use std::time::Duration;

macro_rules! scalars {
    ($($type:ty),+) => {$(
        impl Inspect for $type {
            fn inspect(&self, request: Request<'_>) {
                request.value(*self);
            }
        }
    )+};
}

scalars!(
    u8, u16, u32, u64, usize, i8, i16, i32, i64, isize, f32, f64, bool
);

macro_rules! atomics {
    ($($name:ident),+) => {$(
        /// A relaxed load: a figure for people orders nothing.
        impl Inspect for atomic::$name {
            fn inspect(&self, request: Request<'_>) {
                request.value(self.load(atomic::Ordering::Relaxed));
            }
        }
    )+};
}

atomics!(
    AtomicU8,
    AtomicU16,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    AtomicI32,
    AtomicI64,
    AtomicBool
);

macro_rules! pointers {
    ($($type:ty),+) => {$(
        impl<T: Inspect + ?Sized> Inspect for $type {
            fn inspect(&self, request: Request<'_>) {
                (**self).inspect(request);
            }
        }
    )+};
}

pointers!(&T, &mut T, Box<T>, Rc<T>, Arc<T>);

macro_rules! sequences {
    ($($type:ty),+) => {$(
        impl<T: Inspect> Inspect for $type {
            fn inspect(&self, request: Request<'_>) {
                sequence(self.iter(), request);
            }
        }
    )+};
}

sequences!([T], Vec<T>, VecDeque<T>, BTreeSet<T>);

impl<T: Inspect, const N: usize> Inspect for [T; N] {
    fn inspect(&self, request: Request<'_>) {
        self.as_slice().inspect(request);
    }
}

/// A directory whose names are the positions.
fn sequence<T: Inspect>(items: impl Iterator<Item = T>, request: Request<'_>) {
    let mut response = request.respond();
    response.inherit_sensitivity();
    for (index, item) in items.enumerate() {
        response.field(&index.to_string(), &item);
    }
}

impl<K: fmt::Display, V: Inspect> Inspect for BTreeMap<K, V> {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        response.inherit_sensitivity();
        for (key, value) in self {
            response.field(&key.to_string(), value);
        }
    }
}

/// Sorted by name, so that the order means something.
impl<K: fmt::Display, V: Inspect, S> Inspect for HashMap<K, V, S> {
    fn inspect(&self, request: Request<'_>) {
        let sorted: BTreeMap<String, &V> = self
            .iter()
            .map(|(key, value)| (key.to_string(), value))
            .collect();
        sorted.inspect(request);
    }
}

/// Without a value there is no entry.
impl<T: Inspect> Inspect for Option<T> {
    fn inspect(&self, request: Request<'_>) {
        match self {
            Some(value) => value.inspect(request),
            None => request.ignore(),
        }
    }
}

/// Without a value there is no entry.
impl<T: Inspect> Inspect for OnceLock<T> {
    fn inspect(&self, request: Request<'_>) {
        match self.get() {
            Some(value) => value.inspect(request),
            None => request.ignore(),
        }
    }
}

/// Waits for the lock; whoever inspects must not hold it. A panic of another holder does
/// not hide the state, which is wanted most then.
impl<T: Inspect + ?Sized> Inspect for Mutex<T> {
    fn inspect(&self, request: Request<'_>) {
        let value = self.lock().unwrap_or_else(PoisonError::into_inner);
        value.inspect(request);
    }
}

/// As for [`Mutex`].
impl<T: Inspect + ?Sized> Inspect for RwLock<T> {
    fn inspect(&self, request: Request<'_>) {
        let value = self.read().unwrap_or_else(PoisonError::into_inner);
        value.inspect(request);
    }
}

impl<T: Inspect + Copy> Inspect for Cell<T> {
    fn inspect(&self, request: Request<'_>) {
        self.get().inspect(request);
    }
}

impl Inspect for str {
    fn inspect(&self, request: Request<'_>) {
        request.value(self);
    }
}

impl Inspect for String {
    fn inspect(&self, request: Request<'_>) {
        self.as_str().inspect(request);
    }
}

impl Inspect for Cow<'_, str> {
    fn inspect(&self, request: Request<'_>) {
        (**self).inspect(request);
    }
}

impl Inspect for char {
    fn inspect(&self, request: Request<'_>) {
        request.value(self.to_string());
    }
}

impl Inspect for Path {
    fn inspect(&self, request: Request<'_>) {
        request.value(self.display().to_string());
    }
}

impl Inspect for PathBuf {
    fn inspect(&self, request: Request<'_>) {
        self.as_path().inspect(request);
    }
}

/// Nanoseconds; the most that 64 bits hold (584 years) stands for anything longer.
impl Inspect for Duration {
    fn inspect(&self, request: Request<'_>) {
        let nanoseconds = u64::try_from(self.as_nanos()).unwrap_or(u64::MAX);
        request.value(Value::from(nanoseconds).with_format(Format::unit(Unit::Nanoseconds)));
    }
}

impl Inspect for Value {
    fn inspect(&self, request: Request<'_>) {
        request.value(self.clone());
    }
}

//! Views of values that are not [`Inspect`] themselves, or not in the way that is wanted.

use crate::Format;
use crate::Inspect;
use crate::Request;
use std::cell::RefCell;
use std::fmt;

/// Prints numbers in hexadecimal.
#[derive(Clone, Copy, Debug)]
pub struct AsHex<T>(pub T);

/// The text of a value.
#[derive(Clone, Copy, Debug)]
pub struct AsDisplay<T>(pub T);

/// The debug text of a value.
#[derive(Clone, Copy, Debug)]
pub struct AsDebug<T>(pub T);

impl<T: Inspect> Inspect for AsHex<T> {
    fn inspect(&self, request: Request<'_>) {
        self.0.inspect(request.format(Format::HEX));
    }
}

impl<T: fmt::Display> Inspect for AsDisplay<T> {
    fn inspect(&self, request: Request<'_>) {
        request.value(self.0.to_string());
    }
}

impl<T: fmt::Debug> Inspect for AsDebug<T> {
    fn inspect(&self, request: Request<'_>) {
        request.value(format!("{:?}", self.0));
    }
}

struct Adhoc<F>(F);

impl<F: Fn(Request<'_>)> Inspect for Adhoc<F> {
    fn inspect(&self, request: Request<'_>) {
        (self.0)(request);
    }
}

/// Answers by a function.
pub fn adhoc(answer: impl Fn(Request<'_>)) -> impl Inspect {
    Adhoc(answer)
}

struct Iter<I>(RefCell<Option<I>>);

impl<I: Iterator<Item = (N, T)>, N: fmt::Display, T: Inspect> Inspect for Iter<I> {
    fn inspect(&self, request: Request<'_>) {
        let mut response = request.respond();
        response.inherit_sensitivity();
        for (name, item) in self.0.take().into_iter().flatten() {
            response.field(&name.to_string(), &item);
        }
    }
}

/// A directory of the names and items that come out of an iterator, which is used up by
/// the first request.
pub fn iter<N: fmt::Display, T: Inspect>(items: impl IntoIterator<Item = (N, T)>) -> impl Inspect {
    Iter(RefCell::new(Some(items.into_iter())))
}

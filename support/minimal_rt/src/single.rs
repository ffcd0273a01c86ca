//! Statics of a program with one CPU and no interrupts.

#![expect(unsafe_code, reason = "a static without a lock")]

use core::cell::{RefCell, RefMut};

/// A static value that is borrowed at run time, without a lock.
///
/// A second borrow is answered with `None` and not with a panic: the one place that may
/// come upon a value in use is the panic handler itself.
#[derive(Debug)]
pub struct SingleThreaded<T>(RefCell<T>);

// SAFETY: users of this crate run on one CPU with interrupts off (crate docs), so no two
// contexts ever touch the cell at the same time; nested use is caught by the `RefCell`.
// On a host with threads the constructor below is not available.
unsafe impl<T> Sync for SingleThreaded<T> {}

impl<T> SingleThreaded<T> {
    /// Wraps a value.
    ///
    /// # Safety
    /// The program must have a single thread of execution for as long as the value lives.
    pub const unsafe fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// The value, unless it is in use.
    pub fn borrow(&self) -> Option<RefMut<'_, T>> {
        self.0.try_borrow_mut().ok()
    }

    /// Changes the value a last time and freezes it: nobody can borrow it afterwards.
    /// `None` if it is in use, or frozen already.
    pub fn freeze(&'static self, last_change: impl FnOnce(&mut T)) -> Option<&'static T> {
        let mut guard = self.0.try_borrow_mut().ok()?;
        last_change(&mut guard);
        let value: *const T = &raw const *guard;
        core::mem::forget(guard);
        // SAFETY: the guard is never given back, so the `RefCell` answers every later
        // borrow with `None`, and the value lives as long as the static.
        Some(unsafe { &*value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_borrow_is_refused_without_panic() {
        // SAFETY: this test has the value for itself.
        let cell = unsafe { SingleThreaded::new(1) };
        let first = cell.borrow();
        assert!(first.is_some());
        assert!(cell.borrow().is_none());
        drop(first);
        assert!(cell.borrow().is_some());
    }

    #[test]
    fn what_is_frozen_is_not_lent_again() {
        // SAFETY: only this test names the static.
        static CELL: SingleThreaded<u8> = unsafe { SingleThreaded::new(3) };
        assert_eq!(CELL.freeze(|v| *v += 1), Some(&4));
        assert!(CELL.freeze(|_| ()).is_none());
        assert!(CELL.borrow().is_none());
    }
}

//! What a device is to the bus and to the owner of the machine.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use inspect::Inspect;
use inspect::Request;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Written;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::time::VmTime;

/// The life of a device.
///
/// ```text
///             start          pause
///   created --------> running -----> paused --+-- save (any number of times)
///      |                 ^              |     |
///      |                 +--------------+     +-- reset
///      +-- restore           resume
/// ```
///
/// The rules; [`crate::Chipset`] refuses calls that break them:
/// 1. `start` comes once and first. Before it nothing happens by itself: no line
///    changes, no backend is called.
/// 2. `restore` comes at most once, before `start`. When it fails the device is as new.
/// 3. `pause` comes when no VP runs. From its return to `resume` the device calls nothing
///    outside of itself, except that `reset` releases its lines.
/// 4. `save` and `reset` come only while paused. `save` changes nothing, so a save whose
///    outcome is not wanted is followed by `resume`.
/// 5. Devices are started, resumed, reset and restored in the order in which they were
///    attached, the interrupt controller first, and paused in the opposite order: who
///    drives a line stops before who listens.
/// 6. Inputs of a device (interrupt lines into the IOAPIC, modem lines) belong to who
///    drives them: `reset` keeps them, `save` includes them.
///
/// The defaults fit a device that acts only when it is accessed or polled.
pub trait Lifecycle {
    /// The machine starts, new or restored.
    fn start(&mut self) {}

    /// The VPs have stopped.
    fn pause(&mut self) {}

    /// The VPs are about to run again.
    fn resume(&mut self) {}

    /// What the reset line of a PC does to the device.
    fn reset(&mut self);

    /// All that a guest can find out about the device, now or later.
    fn save(&self) -> SavedState;

    /// Becomes the device that was saved.
    ///
    /// # Errors
    /// The state is not one that this device can have; the device is unchanged.
    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError>;
}

/// A device on the [`crate::Bus`].
///
/// What it shows by [`Inspect`] leaves out what the guest keeps in it: text, CMOS RAM.
pub trait Device: Lifecycle + Inspect + Send {
    /// The addresses that the device answers. Must not change; an [`Access`] names a
    /// region by its position here.
    fn regions(&self) -> Vec<Region>;

    /// A read by a VP. The bus uses as many low bytes of the result as the access has.
    fn read(&mut self, access: Access) -> u64;

    /// A write by a VP; `value` has no more bytes than the access.
    fn write(&mut self, access: Access, value: u64) -> Written;

    /// Does all that is due, by time or by a backend that has become ready.
    fn poll(&mut self) {}

    /// A write was [`Written::Stalled`], and would be still.
    fn stalls(&self) -> bool {
        false
    }

    /// When [`Device::poll`] must be called at the latest. A point in the past means
    /// now.
    fn deadline(&self) -> Option<VmTime> {
        None
    }
}

/// Who waits for devices. Called on the thread of whoever used one, after the device's
/// lock was released, but possibly in the middle of a [`crate::Chipset`] call: must not
/// make one.
pub trait Wake: Send + Sync {
    /// Something is due earlier than was said before: have [`crate::Chipset::poll`] called
    /// soon.
    fn wake(&self);

    /// A device that has stalled a write can take it now: each VP that waits with a
    /// [`Written::Stalled`] makes its write again.
    ///
    /// It may come before the VP waits: count the calls, and let the VP compare with the
    /// count from before its write.
    fn unstalled(&self);
}

const NEVER: u64 = u64::MAX;

/// A device behind its lock, and the deadline that it has announced.
///
/// [`Slot::with`] is the only way to the device, so that no use of it can forget to
/// announce a new deadline.
pub struct Slot<D: ?Sized> {
    name: String,
    wake: Arc<dyn Wake>,
    deadline: AtomicU64,
    device: Mutex<D>,
}

impl<D: Device> Slot<D> {
    /// A device by the name that errors and saved states use.
    pub fn new(name: impl Into<String>, wake: Arc<dyn Wake>, device: D) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            wake,
            deadline: AtomicU64::new(NEVER),
            device: Mutex::new(device),
        })
    }
}

impl<D: Device + ?Sized> Slot<D> {
    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Uses the device.
    pub fn with<R>(&self, work: impl FnOnce(&mut D) -> R) -> R {
        let (result, earlier) = self.work(work);
        if earlier {
            self.wake.wake();
        }
        result
    }

    /// Polls the device if its time has come, and says when the next is due.
    pub(crate) fn poll_due(&self, now: VmTime) -> Option<VmTime> {
        if self.deadline()? <= now {
            self.work(|device| device.poll());
        }
        self.deadline()
    }

    /// What the device has announced.
    pub(crate) fn deadline(&self) -> Option<VmTime> {
        match self.deadline.load(Ordering::Acquire) {
            NEVER => None,
            nanoseconds => Some(VmTime::from_nanos(nanoseconds)),
        }
    }

    /// Uses the device and says if its deadline has come closer.
    fn work<R>(&self, work: impl FnOnce(&mut D) -> R) -> (R, bool) {
        let mut device = self.lock();
        let stalled = device.stalls();
        let result = work(&mut device);
        let unstalled = stalled && !device.stalls();
        let deadline = device.deadline().map_or(NEVER, VmTime::as_nanos);
        // Under the lock, so that the value is that of the last user.
        let before = self.deadline.swap(deadline, Ordering::AcqRel);
        drop(device);
        if unstalled {
            self.wake.unstalled();
        }
        (result, deadline < before)
    }

    /// A panic elsewhere is no reason to stop a guest: device methods keep no invariant
    /// that a later call relies on for safety.
    fn lock(&self) -> MutexGuard<'_, D> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device + ?Sized> Inspect for Slot<D> {
    fn inspect(&self, request: Request<'_>) {
        self.lock().inspect(request);
    }
}

impl<D: Device + ?Sized> fmt::Debug for Slot<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).finish()
    }
}

/// A shared slot of a device whose type does not matter.
#[derive(Debug, Clone)]
pub(crate) struct AnySlot(pub(crate) Arc<Slot<dyn Device>>);

impl Deref for AnySlot {
    type Target = Slot<dyn Device>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

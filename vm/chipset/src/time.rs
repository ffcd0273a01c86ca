//! Time, as devices see it.
//!
//! Two sources, because a guest has two: a clock that only goes forward ([`Clock`]: what
//! timers count) and the time of day ([`WallClock`]: what the RTC shows), which the host
//! may set.

use std::time::Duration;

/// A point on the guest's clock: nanoseconds since an origin that the clock chooses.
///
/// A saved state never contains one, only distances, so the origin may differ after a
/// restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VmTime(u64);

impl VmTime {
    /// The clock's origin. As a deadline it means: already due.
    pub const ZERO: Self = Self(0);

    /// The point `nanoseconds` after the origin.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `duration` later, or the last one there is (584 years).
    pub fn after(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanoseconds))
    }

    /// What has passed since `earlier`; nothing if that is not in the past.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The point `duration` before this one, or the origin.
    pub fn before(self, duration: Duration) -> Self {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(nanoseconds))
    }
}

/// The guest's monotonic clock.
///
/// Whether it stands still while the machine is paused is for its owner to decide; what
/// devices need is that it never goes back. Implementations must not call into a device.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> VmTime;
}

/// The time of day of the host.
pub trait WallClock: Send + Sync {
    /// Nanoseconds since 1970-01-01T00:00:00 in the time zone that the RTC is to show,
    /// which for everything but Windows is UTC. May jump either way.
    fn now(&self) -> i64;
}

/// The host's UTC.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemWallClock;

impl WallClock for SystemWallClock {
    fn now(&self) -> i64 {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
        }
    }
}

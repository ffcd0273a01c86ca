//! What is around the chipset: clocks, local APICs, who polls it, who logs.

use super::gate::Gate;
use super::power::Herald;
use super::serial::Port;
use chipset::Chipset;
use chipset::Outside;
use chipset::Unclaimed;
use chipset::UnclaimedObserver;
use chipset::device::Wake;
use chipset::ioapic::ApicBus;
use chipset::ioapic::InterruptMessage;
use chipset::time::Clock;
use chipset::time::SystemWallClock;
use chipset::time::VmTime;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;
use tokio::sync::Notify;
use virt::InterruptRequest;
use virt::Partition;

/// A chipset that is wired to the rest.
pub(crate) fn chipset(
    partition: Arc<dyn Partition>,
    gate: Arc<Gate>,
    herald: Herald,
    poller: Arc<Notify>,
    serial: &[Port; 2],
) -> Chipset {
    Chipset::new(Outside {
        clock: Arc::new(GuestClock),
        wall_clock: Arc::new(SystemWallClock),
        apics: Arc::new(Apics {
            partition,
            failures: AtomicU64::new(0),
        }),
        power: Arc::new(herald),
        wake: Arc::new(Waker { gate, poller }),
        unclaimed: Arc::new(Log),
        com1: serial[0].backend(),
        com2: serial[1].backend(),
    })
}

/// The time until `due`.
pub(crate) fn until(due: VmTime) -> Duration {
    due.since(GuestClock.now())
}

/// Time since the start of the process, wherever it is asked.
#[derive(Debug)]
struct GuestClock;

impl Clock for GuestClock {
    fn now(&self) -> VmTime {
        static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let origin = *ORIGIN.get_or_init(Instant::now);
        VmTime::ZERO.after(origin.elapsed())
    }
}

/// The local APICs, which belong to the partition.
struct Apics {
    partition: Arc<dyn Partition>,
    failures: AtomicU64,
}

impl ApicBus for Apics {
    fn send(&self, message: InterruptMessage) {
        // What the machine has no receiver for is lost, as on a PC.
        let Some(request) = InterruptRequest::from_message(message) else {
            return;
        };
        if let Err(error) = self.partition.assert_interrupt(&request) {
            let count = self.failures.fetch_add(1, Relaxed) + 1;
            if count.is_power_of_two() {
                tracing::warn!(%error, count, ?request, "an interrupt is lost");
            }
        }
    }
}

/// Who waits for devices: the task that polls, and VPs whose write was held up.
struct Waker {
    gate: Arc<Gate>,
    poller: Arc<Notify>,
}

impl Wake for Waker {
    fn wake(&self) {
        self.poller.notify_one();
    }

    fn unstalled(&self) {
        self.gate.unstalled();
    }
}

/// Logs what the chipset reports, which it does ever more rarely.
struct Log;

impl UnclaimedObserver for Log {
    fn unclaimed(&self, access: &Unclaimed) {
        let Unclaimed {
            space,
            address,
            width,
            written,
            count,
            overflow,
        } = *access;
        let bytes = width.bytes();
        let others = if overflow { " (with many others)" } else { "" };
        match written {
            Some(value) => tracing::debug!(
                "nobody at {space} {address:#x}{others}: write of {value:#x}, {bytes} bytes, time {count}"
            ),
            None => tracing::debug!(
                "nobody at {space} {address:#x}{others}: read of {bytes} bytes, time {count}"
            ),
        }
    }
}

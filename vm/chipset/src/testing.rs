//! A world around a [`Chipset`] that a test moves by hand, and [`run`], which lets bytes
//! decide what happens in it.
//!
//! Of use beyond this crate: whatever drives a chipset, a VP's exit handler for one, can
//! be tested against it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::Chipset;
use crate::Outside;
use crate::Unclaimed;
use crate::UnclaimedObserver;
use crate::device::Wake;
use crate::ioapic::ApicBus;
use crate::ioapic::InterruptMessage;
use crate::line::PinTarget;
use crate::power::PowerEvent;
use crate::power::PowerEvents;
use crate::time::Clock;
use crate::time::VmTime;
use crate::time::WallClock;
use crate::uart::SerialBackend;

mod random;

pub use random::run;

/// All that a chipset can see and do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Now.
    pub clock: VmTime,
    /// The host's time of day, in nanoseconds.
    pub wall: i64,
    /// What has arrived at the local APICs.
    pub interrupts: Vec<InterruptMessage>,
    /// Changes of pins, of devices without an I/O APIC.
    pub pins: Vec<(u8, bool)>,
    /// What the guest has asked for.
    pub power: Vec<PowerEvent>,
    /// Reports of accesses without a device.
    pub unclaimed: Vec<Unclaimed>,
    /// How often [`Wake::wake`] was called.
    pub wakes: u64,
    /// How often [`Wake::unstalled`] was called.
    pub unstalls: u64,
    /// The two serial cables.
    pub serial: [Cable; 2],
}

/// A serial cable with somebody at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cable {
    /// Bytes that the other end has sent and the UART has not taken.
    pub input: VecDeque<u8>,
    /// Bytes that the UART has sent.
    pub output: Vec<u8>,
    /// Bytes that the other end still takes.
    pub room: usize,
}

impl Default for World {
    fn default() -> Self {
        let cable = Cable {
            room: usize::MAX,
            ..Cable::default()
        };
        Self {
            // Not the origin, so that a difference to it shows.
            clock: VmTime::from_nanos(1_000_000),
            // 2026-11-21T07:30:00Z
            wall: 1_795_246_200_000_000_000,
            interrupts: Vec::new(),
            pins: Vec::new(),
            power: Vec::new(),
            unclaimed: Vec::new(),
            wakes: 0,
            unstalls: 0,
            serial: [cable.clone(), cable],
        }
    }
}

/// A world that is shared with a chipset. Clones are the same world.
#[derive(Debug, Clone, Default)]
pub struct SharedWorld(Arc<Mutex<World>>);

impl SharedWorld {
    /// A world in this condition.
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// The world; not while the chipset is in use.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        // Lines are released while a failed test unwinds: no second panic then.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of its condition.
    pub fn snapshot(&self) -> World {
        self.lock().clone()
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, time: std::time::Duration) {
        let mut world = self.lock();
        world.clock = world.clock.after(time);
        let nanoseconds = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        world.wall = world.wall.saturating_add(nanoseconds);
    }

    /// The other end of a serial cable.
    pub fn cable(&self, port: usize) -> Box<dyn SerialBackend> {
        Box::new(CableEnd {
            world: self.clone(),
            port,
        })
    }

    /// All that a chipset needs.
    pub fn outside(&self) -> Outside {
        let shared = Arc::new(self.clone());
        Outside {
            clock: shared.clone(),
            wall_clock: shared.clone(),
            apics: shared.clone(),
            power: shared.clone(),
            wake: shared.clone(),
            unclaimed: shared,
            com1: self.cable(0),
            com2: self.cable(1),
        }
    }

    /// A chipset in this world.
    pub fn chipset(&self) -> Chipset {
        Chipset::new(self.outside())
    }
}

impl Clock for SharedWorld {
    fn now(&self) -> VmTime {
        self.lock().clock
    }
}

impl WallClock for SharedWorld {
    fn now(&self) -> i64 {
        self.lock().wall
    }
}

impl ApicBus for SharedWorld {
    fn send(&self, message: InterruptMessage) {
        self.lock().interrupts.push(message);
    }
}

impl PinTarget for SharedWorld {
    fn set_pin(&self, pin: u8, asserted: bool) {
        self.lock().pins.push((pin, asserted));
    }
}

impl PowerEvents for SharedWorld {
    fn power_event(&self, event: PowerEvent) {
        self.lock().power.push(event);
    }
}

impl Wake for SharedWorld {
    fn wake(&self) {
        self.lock().wakes += 1;
    }

    fn unstalled(&self) {
        self.lock().unstalls += 1;
    }
}

impl UnclaimedObserver for SharedWorld {
    fn unclaimed(&self, access: &Unclaimed) {
        self.lock().unclaimed.push(*access);
    }
}

struct CableEnd {
    world: SharedWorld,
    port: usize,
}

impl SerialBackend for CableEnd {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let cable = &mut self.world.lock().serial[self.port];
        let count = bytes.len().min(cable.room);
        cable.room -= count;
        cable.output.extend_from_slice(&bytes[..count]);
        count
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let cable = &mut self.world.lock().serial[self.port];
        let count = buffer.len().min(cable.input.len());
        for (byte, input) in buffer.iter_mut().zip(cable.input.drain(..count)) {
            *byte = input;
        }
        count
    }
}

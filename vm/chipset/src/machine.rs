//! [`Chipset`]: all devices, wired as on a PC.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use inspect::Inspect;
use thiserror::Error;

use crate::acpi_pm;
use crate::acpi_pm::AcpiPm;
use crate::acpi_pm::TimerWidth;
use crate::bus::AttachError;
use crate::bus::Bus;
use crate::device::Device;
use crate::device::Slot;
use crate::device::Wake;
use crate::i8042::I8042;
use crate::ioapic;
use crate::ioapic::ApicBus;
use crate::ioapic::Ioapic;
use crate::line::PinTarget;
use crate::line::Pins;
use crate::pci_config::PciAddress;
use crate::pci_config::PciAttachError;
use crate::pci_config::PciConfig;
use crate::pci_config::PciFunction;
use crate::power::PowerEvents;
use crate::rtc::Rtc;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::time::Clock;
use crate::time::VmTime;
use crate::time::WallClock;
use crate::uart;
use crate::uart::SerialBackend;
use crate::uart::Uart;
use crate::unclaimed::UnclaimedObserver;

/// Interrupt pins of the devices. All are ISA interrupts: the MADT needs an override for
/// the SCI only (level), and none for numbers.
pub mod pin {
    /// Keyboard controller.
    pub const I8042: u8 = 1;
    /// COM2.
    pub const COM2: u8 = 3;
    /// COM1.
    pub const COM1: u8 = 4;
    /// Real-time clock.
    pub const RTC: u8 = 8;
    /// ACPI events.
    pub const SCI: u8 = 9;
}

/// What is outside of the chipset. The crate's whole interface to the world.
pub struct Outside {
    /// The guest's clock.
    pub clock: Arc<dyn Clock>,
    /// The host's time of day.
    pub wall_clock: Arc<dyn WallClock>,
    /// The local APICs.
    pub apics: Arc<dyn ApicBus>,
    /// Who ends and restarts VTL0.
    pub power: Arc<dyn PowerEvents>,
    /// Who calls [`Chipset::poll`].
    pub wake: Arc<dyn Wake>,
    /// Who logs accesses that no device answers.
    pub unclaimed: Arc<dyn UnclaimedObserver>,
    /// The other end of COM1.
    pub com1: Box<dyn SerialBackend>,
    /// The other end of COM2.
    pub com2: Box<dyn SerialBackend>,
}

/// The state of all devices.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SavedChipset {
    /// By name, in the order of attachment.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<SavedDevice>,
}

/// The state of one device.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SavedDevice {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What [`crate::Lifecycle::save`] made.
    #[prost(message, optional, tag = "2")]
    pub state: Option<SavedState>,
}

/// Where a chipset is in the life that [`crate::Lifecycle`] describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Inspect)]
pub enum Phase {
    /// Not started.
    New,
    /// A restore has failed: of no use any more.
    Broken,
    /// VPs may run.
    Running,
    /// VPs do not run.
    Paused,
}

/// A call that does not fit, or failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LifecycleError {
    /// Not now.
    #[error("cannot {call} a chipset that is {phase:?}, expected {expected:?}")]
    Phase {
        /// What was called.
        call: &'static str,
        /// Where the chipset is.
        phase: Phase,
        /// Where it should be.
        expected: Phase,
    },
    /// A device refuses its state.
    #[error("{device}: {source}")]
    Restore {
        /// Its name.
        device: String,
        /// Why.
        source: RestoreError,
    },
}

/// All devices on a bus.
#[derive(Inspect)]
pub struct Chipset {
    #[inspect(flatten)]
    bus: Bus,
    #[inspect(skip)]
    clock: Arc<dyn Clock>,
    phase: Mutex<Phase>,
    #[inspect(skip)]
    ioapic: Arc<Slot<Ioapic>>,
    #[inspect(skip)]
    com1: Arc<Slot<Uart>>,
    #[inspect(skip)]
    com2: Arc<Slot<Uart>>,
    #[inspect(skip)]
    rtc: Arc<Slot<Rtc>>,
    #[inspect(skip)]
    pm: Arc<Slot<AcpiPm>>,
    #[inspect(skip)]
    i8042: Arc<Slot<I8042>>,
    #[inspect(skip)]
    pci: Arc<Slot<PciConfig>>,
    #[inspect(skip)]
    pins: Pins,
}

impl Chipset {
    /// All devices at their usual addresses.
    pub fn new(outside: Outside) -> Self {
        let Outside {
            clock,
            wall_clock,
            apics,
            power,
            wake,
            unclaimed,
            com1,
            com2,
        } = outside;
        let ioapic = Ioapic::new(ioapic::DEFAULT_BASE, apics);
        let ioapic = Slot::new("ioapic", wake.clone(), ioapic);
        let target: Arc<dyn PinTarget> = ioapic.clone();
        let pins = Pins::new(&target, ioapic::PINS);
        let line = |pin| pins.line(pin).expect("the I/O APIC has more pins");

        let com1 = Uart::new(uart::COM1_BASE, clock.clone(), line(pin::COM1), com1);
        let com2 = Uart::new(uart::COM2_BASE, clock.clone(), line(pin::COM2), com2);
        let rtc = Rtc::new(clock.clone(), wall_clock, line(pin::RTC));
        let pm = AcpiPm::new(
            acpi_pm::DEFAULT_BASE,
            TimerWidth::Bits32,
            clock.clone(),
            line(pin::SCI),
            power.clone(),
        );
        let i8042 = I8042::new(line(pin::I8042), power.clone());
        let mut chipset = Self {
            bus: Bus::new(unclaimed),
            clock,
            phase: Mutex::new(Phase::New),
            ioapic,
            com1: Slot::new("com1", wake.clone(), com1),
            com2: Slot::new("com2", wake.clone(), com2),
            rtc: Slot::new("rtc", wake.clone(), rtc),
            pm: Slot::new("pm", wake.clone(), pm),
            i8042: Slot::new("i8042", wake.clone(), i8042),
            pci: Slot::new("pci", wake, PciConfig::new(power)),
            pins,
        };
        chipset
            .attach_all()
            .expect("the devices have addresses of their own");
        chipset
    }

    fn attach_all(&mut self) -> Result<(), AttachError> {
        // The order of start, restore and reset: who listens to lines comes first.
        self.bus.attach(self.ioapic.clone())?;
        self.bus.attach(self.com1.clone())?;
        self.bus.attach(self.com2.clone())?;
        self.bus.attach(self.rtc.clone())?;
        self.bus.attach(self.pm.clone())?;
        self.bus.attach(self.i8042.clone())?;
        self.bus.attach(self.pci.clone())
    }

    /// Adds a device, before the machine starts.
    ///
    /// # Errors
    /// Its addresses or its name are taken.
    pub fn attach(&mut self, device: Arc<Slot<dyn Device>>) -> Result<(), AttachError> {
        self.bus.attach(device)
    }

    /// Adds a PCI function, before the machine starts.
    ///
    /// # Errors
    /// Its address is taken, or is none.
    pub fn attach_pci(
        &mut self,
        address: PciAddress,
        function: Box<dyn PciFunction>,
    ) -> Result<(), PciAttachError> {
        self.pci.with(|pci| pci.attach(address, function))
    }

    /// Where ports and addresses are read and written.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Interrupt pins for further devices.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// COM1. Poll it when its backend becomes ready.
    pub fn com1(&self) -> &Slot<Uart> {
        &self.com1
    }

    /// COM2. Poll it when its backend becomes ready.
    pub fn com2(&self) -> &Slot<Uart> {
        &self.com2
    }

    /// The real-time clock.
    pub fn rtc(&self) -> &Slot<Rtc> {
        &self.rtc
    }

    /// ACPI fixed hardware, which has the power button.
    pub fn pm(&self) -> &Slot<AcpiPm> {
        &self.pm
    }

    /// The keyboard controller.
    pub fn i8042(&self) -> &Slot<I8042> {
        &self.i8042
    }

    /// The I/O APIC.
    pub fn ioapic(&self) -> &Slot<Ioapic> {
        &self.ioapic
    }

    /// A local APIC has ended a level interrupt with this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.with(|ioapic| ioapic.end_of_interrupt(vector));
    }

    /// Does what is due, and says when the next is. Nothing is due while the machine does
    /// not run.
    ///
    /// Call it at that time, and when [`Wake`] says so. One thread is enough.
    pub fn poll(&self) -> Option<VmTime> {
        if *self.phase() != Phase::Running {
            return None;
        }
        self.bus.poll(self.clock.now())
    }

    /// Starts the machine.
    ///
    /// # Errors
    /// It has started before.
    pub fn start(&self) -> Result<(), LifecycleError> {
        let mut phase = self.expect(Phase::New, "start")?;
        for slot in self.bus.slots() {
            slot.with(|device| device.start());
        }
        *phase = Phase::Running;
        Ok(())
    }

    /// Pauses the machine. No VP may run from here to [`Chipset::resume`].
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<(), LifecycleError> {
        let mut phase = self.expect(Phase::Running, "pause")?;
        for slot in self.bus.slots().iter().rev() {
            slot.with(|device| device.pause());
        }
        *phase = Phase::Paused;
        Ok(())
    }

    /// Goes on.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&self) -> Result<(), LifecycleError> {
        let mut phase = self.expect(Phase::Paused, "resume")?;
        for slot in self.bus.slots() {
            slot.with(|device| device.resume());
        }
        *phase = Phase::Running;
        Ok(())
    }

    /// Resets all devices.
    ///
    /// # Errors
    /// The machine is not paused.
    pub fn reset(&self) -> Result<(), LifecycleError> {
        let _phase = self.expect(Phase::Paused, "reset")?;
        for slot in self.bus.slots() {
            slot.with(|device| device.reset());
        }
        Ok(())
    }

    /// The state of all devices.
    ///
    /// # Errors
    /// The machine is not paused.
    pub fn save(&self) -> Result<SavedChipset, LifecycleError> {
        let _phase = self.expect(Phase::Paused, "save")?;
        let device = |slot: &Slot<dyn Device>| SavedDevice {
            name: slot.name().to_owned(),
            state: Some(slot.with(|device| device.save())),
        };
        let devices = self.bus.slots().iter().map(|slot| device(slot)).collect();
        Ok(SavedChipset { devices })
    }

    /// Takes the state of another chipset, which must have the same devices. The machine
    /// is as before the save, and is to be started.
    ///
    /// # Errors
    /// It has started before, or a device refuses its state; then this chipset is of no
    /// further use.
    pub fn restore(&self, saved: &SavedChipset) -> Result<(), LifecycleError> {
        let mut phase = self.expect(Phase::New, "restore")?;
        *phase = Phase::Broken;
        let names = saved.devices.iter().map(|device| device.name.as_str());
        if !names.clone().eq(self.bus.slots().iter().map(|s| s.name())) {
            let own: Vec<_> = self.bus.slots().iter().map(|s| s.name()).collect();
            return Err(LifecycleError::Restore {
                device: "chipset".to_owned(),
                source: RestoreError::Parts {
                    found: names.collect::<Vec<_>>().join(", "),
                    expected: own.join(", "),
                },
            });
        }
        for (slot, saved) in self.bus.slots().iter().zip(&saved.devices) {
            let state = saved.state.clone().unwrap_or_default();
            slot.with(|device| device.restore(&state))
                .map_err(|source| LifecycleError::Restore {
                    device: saved.name.clone(),
                    source,
                })?;
        }
        *phase = Phase::New;
        Ok(())
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(
        &self,
        expected: Phase,
        call: &'static str,
    ) -> Result<MutexGuard<'_, Phase>, LifecycleError> {
        let phase = self.phase();
        if *phase == expected {
            Ok(phase)
        } else {
            Err(LifecycleError::Phase {
                call,
                phase: *phase,
                expected,
            })
        }
    }
}

impl fmt::Debug for Chipset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chipset")
            .field("bus", &self.bus)
            .field("phase", &*self.phase())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

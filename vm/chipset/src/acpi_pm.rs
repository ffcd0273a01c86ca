//! ACPI fixed hardware: ACPI specification 6.5, chapter 4.8.
//!
//! | offset | register | width |
//! | --- | --- | --- |
//! | 0 | PM1 status | 16 bits, write 1 to clear |
//! | 2 | PM1 enable | 16 bits |
//! | 4 | PM1 control | 16 bits |
//! | 8 | PM timer | 24 or 32 bits at 3.579545 MHz |
//!
//! What the tables must say of it: SMI_CMD = 0, so the machine is in ACPI mode from the
//! start and SCI_EN always reads as 1; SCI level triggered; no sleep button and no RTC
//! wake-up (flags SLP_BUTTON and FIX_RTC set); GPE0_BLK_LEN = 0, for no event needs a
//! general-purpose one, and without a block there is nothing to emulate.

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bitfield_struct::bitfield;
use inspect::Inspect;

use crate::bus::Access;
use crate::bus::Region;
use crate::bus::Space;
use crate::bus::Width;
use crate::bus::Written;
use crate::device::Device;
use crate::device::Lifecycle;
use crate::line::InterruptLine;
use crate::power::PowerEvent;
use crate::power::PowerEvents;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::state::word;
use crate::time::Clock;
use crate::time::VmTime;

/// Where the registers are unless the owner has other plans.
pub const DEFAULT_BASE: u16 = 0x600;
/// PM1a event block (FADT PM1a_EVT_BLK), from the base.
pub const EVENT_OFFSET: u16 = 0;
/// Its length in bytes.
pub const EVENT_LENGTH: u8 = 4;
/// PM1a control block (FADT PM1a_CNT_BLK), from the base.
pub const CONTROL_OFFSET: u16 = 4;
/// Its length in bytes.
pub const CONTROL_LENGTH: u8 = 2;
/// Timer block (FADT PM_TMR_BLK), from the base.
pub const TIMER_OFFSET: u16 = 8;
/// Its length in bytes.
pub const TIMER_LENGTH: u8 = 4;
/// SLP_TYP of S5: what the DSDT's `_S5` must hold.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Ticks of the timer in a second.
pub const TIMER_HZ: u64 = 3_579_545;

const SECOND_NS: u128 = 1_000_000_000;

/// PM1 status and enable, which have each event in the same place (table 4.13).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Events {
    /// The timer's highest bit has changed.
    pub timer: bool,
    #[bits(3)]
    reserved_1: u8,
    bus_master: bool,
    /// Firmware has released the global lock; never, for there is none.
    pub global_lock: bool,
    #[bits(2)]
    reserved_6: u8,
    /// The power button was pressed.
    pub power_button: bool,
    sleep_button: bool,
    /// The clock's alarm; never, for it has an interrupt of its own.
    pub clock: bool,
    #[bits(5)]
    reserved_11: u8,
}

impl Events {
    /// Those that can happen here; the rest reads as zero.
    const fn existing(self) -> Self {
        Self::new()
            .with_timer(self.timer())
            .with_power_button(self.power_button())
    }

    /// Those that can be enabled. Linux enables the global lock's and the clock's on any
    /// machine, and reports an error if that does not stick.
    const fn enableable(self) -> Self {
        self.existing()
            .with_global_lock(self.global_lock())
            .with_clock(self.clock())
    }
}

/// PM1 control (table 4.15).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
struct Control {
    sci_enabled: bool,
    bus_master_reload: bool,
    global_release: bool,
    #[bits(7)]
    reserved_3: u8,
    #[bits(3)]
    sleep_type: u8,
    sleep_enable: bool,
    #[bits(2)]
    reserved_14: u8,
}

impl Control {
    /// As it reads: two bits are write-only, one is fixed.
    const fn kept(self) -> Self {
        Self::new()
            .with_sci_enabled(true)
            .with_bus_master_reload(self.bus_master_reload())
            .with_sleep_type(self.sleep_type())
    }
}

/// Width of the timer: FADT flag TMR_VAL_EXT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimerWidth {
    /// 24 bits: wraps every 4.7 seconds.
    Bits24,
    /// 32 bits: wraps every 20 minutes.
    Bits32,
}

impl TimerWidth {
    const fn bits(self) -> u32 {
        match self {
            Self::Bits24 => 24,
            Self::Bits32 => 32,
        }
    }
}

/// The fixed hardware.
#[derive(Inspect)]
#[inspect(extra = "Self::inspect_more")]
pub struct AcpiPm {
    #[inspect(hex)]
    base: u16,
    #[inspect(debug)]
    width: TimerWidth,
    #[inspect(skip)]
    clock: Arc<dyn Clock>,
    line: InterruptLine,
    #[inspect(skip)]
    power: Arc<dyn PowerEvents>,
    #[inspect(debug)]
    status: Events,
    #[inspect(debug)]
    enable: Events,
    #[inspect(debug)]
    control: Control,
    /// The timer was zero then.
    #[inspect(skip)]
    origin: VmTime,
    /// Added to the distance from the origin: what had run before a restore.
    #[inspect(skip)]
    carried: Duration,
    /// Changes of the timer's highest bit that are in the status.
    #[inspect(skip)]
    seen_changes: u128,
}

impl AcpiPm {
    /// Fixed hardware at port `base`, a multiple of 4.
    pub fn new(
        base: u16,
        width: TimerWidth,
        clock: Arc<dyn Clock>,
        line: InterruptLine,
        power: Arc<dyn PowerEvents>,
    ) -> Self {
        Self {
            base,
            width,
            line,
            power,
            status: Events::new(),
            enable: Events::new(),
            control: Control::new().kept(),
            origin: clock.now(),
            clock,
            carried: Duration::ZERO,
            seen_changes: 0,
        }
    }

    /// Someone presses the power button. Asks the guest to power off, no more.
    pub fn press_power_button(&mut self) {
        self.status.set_power_button(true);
        self.update_line();
    }

    fn inspect_more(&self, response: &mut inspect::Response<'_>) {
        response.hex("timer", &self.timer());
    }

    /// Since the timer was zero.
    fn elapsed(&self) -> Duration {
        self.clock
            .now()
            .since(self.origin)
            .saturating_add(self.carried)
    }

    fn ticks(&self) -> u128 {
        self.elapsed().as_nanos() * u128::from(TIMER_HZ) / SECOND_NS
    }

    fn timer(&self) -> u32 {
        // The low bits are what the register has.
        let ticks = self.ticks() as u32;
        ticks & (u32::MAX >> (32 - self.width.bits()))
    }

    /// How often the highest bit has changed until now.
    fn changes(&self) -> u128 {
        self.ticks() >> (self.width.bits() - 1)
    }

    fn advance(&mut self) {
        let changes = self.changes();
        if changes != self.seen_changes {
            self.seen_changes = changes;
            self.status.set_timer(true);
        }
    }

    fn update_line(&mut self) {
        let active = self.status.into_bits() & self.enable.into_bits();
        self.line.set(active != 0);
    }

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0xff; 16];
        bytes[0..2].copy_from_slice(&self.status.into_bits().to_le_bytes());
        bytes[2..4].copy_from_slice(&self.enable.into_bits().to_le_bytes());
        bytes[4..6].copy_from_slice(&self.control.into_bits().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.timer().to_le_bytes());
        bytes
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let status = self.status.into_bits().to_le_bytes();
        let enable = self.enable.into_bits().to_le_bytes();
        let control = self.control.into_bits().to_le_bytes();
        match offset {
            0 => {
                self.status = Events::from_bits(u16::from_le_bytes([status[0] & !value, status[1]]))
            }
            1 => {
                self.status = Events::from_bits(u16::from_le_bytes([status[0], status[1] & !value]))
            }
            2 => {
                self.enable = Events::from_bits(u16::from_le_bytes([value, enable[1]])).enableable()
            }
            3 => {
                self.enable = Events::from_bits(u16::from_le_bytes([enable[0], value])).enableable()
            }
            4 => self.control = Control::from_bits(u16::from_le_bytes([value, control[1]])).kept(),
            5 => {
                let written = Control::from_bits(u16::from_le_bytes([control[0], value]));
                self.control = written.kept();
                if written.sleep_enable() {
                    self.power.power_event(match written.sleep_type() {
                        SLEEP_TYPE_S5 => PowerEvent::PowerOff,
                        other => PowerEvent::UnknownSleepType(other),
                    });
                }
            }
            // The timer cannot be set.
            _ => {}
        }
    }
}

impl Lifecycle for AcpiPm {
    fn reset(&mut self) {
        self.status = Events::new();
        self.enable = Events::new();
        self.control = Control::new().kept();
        self.origin = self.clock.now();
        self.carried = Duration::ZERO;
        self.seen_changes = 0;
        self.update_line();
    }

    fn save(&self) -> SavedState {
        let elapsed = self.elapsed();
        let state = State {
            status: self.status.into_bits().into(),
            enable: self.enable.into_bits().into(),
            control: self.control.into_bits().into(),
            elapsed_s: elapsed.as_secs(),
            elapsed_ns: elapsed.subsec_nanos(),
            unseen_change: self.changes() != self.seen_changes,
        };
        SavedState::new(STATE_VERSION, &state)
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let state: State = state.open(STATE_VERSION)?;
        if u128::from(state.elapsed_ns) >= SECOND_NS {
            return Err(RestoreError::Value {
                field: "elapsed_ns",
                value: state.elapsed_ns.into(),
                expected: "less than a second",
            });
        }
        let status = Events::from_bits(word("status", state.status)?).existing();
        let enable = Events::from_bits(word("enable", state.enable)?).enableable();
        let control = Control::from_bits(word("control", state.control)?).kept();
        self.status = status;
        self.enable = enable;
        self.control = control;
        self.carried = Duration::new(state.elapsed_s, state.elapsed_ns);
        self.origin = self.clock.now();
        let unseen = u128::from(state.unseen_change);
        self.seen_changes = self.changes().saturating_sub(unseen);
        self.update_line();
        Ok(())
    }
}

impl Device for AcpiPm {
    fn regions(&self) -> Vec<Region> {
        let block = |offset: u16, length: u8| Region {
            space: Space::Port,
            start: u64::from(self.base) + u64::from(offset),
            length: length.into(),
            narrowest: Width::Byte,
            widest: Width::Dword,
        };
        vec![
            block(EVENT_OFFSET, EVENT_LENGTH),
            block(CONTROL_OFFSET, CONTROL_LENGTH),
            block(TIMER_OFFSET, TIMER_LENGTH),
        ]
    }

    fn read(&mut self, access: Access) -> u64 {
        self.advance();
        self.update_line();
        let bytes = self.bytes();
        let start = start_of(access);
        let wanted = bytes.iter().skip(start).take(8).enumerate();
        wanted.fold(0, |value, (i, byte)| value | u64::from(*byte) << (8 * i))
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        self.advance();
        let start = start_of(access) as u64;
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            if (i as u64) < access.width.bytes() {
                self.write_byte(start + i as u64, byte);
            }
        }
        self.update_line();
        Written::Done
    }

    fn poll(&mut self) {
        self.advance();
        self.update_line();
    }

    fn deadline(&self) -> Option<VmTime> {
        // Only an interrupt needs to be on time.
        if !self.enable.timer() || self.status.timer() {
            return None;
        }
        let ticks = (self.seen_changes + 1) << (self.width.bits() - 1);
        let at = (ticks * SECOND_NS).div_ceil(TIMER_HZ.into());
        let wait = at.saturating_sub(self.elapsed().as_nanos());
        let wait = u64::try_from(wait).unwrap_or(u64::MAX);
        Some(self.clock.now().after(Duration::from_nanos(wait)))
    }
}

/// Offset from the base.
fn start_of(access: Access) -> usize {
    let start = match access.region {
        0 => EVENT_OFFSET,
        1 => CONTROL_OFFSET,
        _ => TIMER_OFFSET,
    };
    // At most 3 behind the start of a block.
    usize::from(start) + (access.offset & 3) as usize
}

impl fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPm")
            .field("status", &self.status)
            .field("enable", &self.enable)
            .field("control", &self.control)
            .field("timer", &self.timer())
            .finish_non_exhaustive()
    }
}

const STATE_VERSION: u32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct State {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(uint32, tag = "2")]
    enable: u32,
    #[prost(uint32, tag = "3")]
    control: u32,
    /// Since the timer was zero: full seconds, and nanoseconds beyond them.
    #[prost(uint64, tag = "4")]
    elapsed_s: u64,
    #[prost(uint32, tag = "5")]
    elapsed_ns: u32,
    /// The highest bit has changed since the status was brought up to date.
    #[prost(bool, tag = "6")]
    unseen_change: bool,
}

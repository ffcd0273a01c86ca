//! Interrupt lines between devices and an interrupt controller.
//!
//! A line is a wire with a level: asserted or not. Whether the controller acts on the
//! level or on its change is programmed by the guest *in the controller*, so a device
//! never needs to know: it asserts its line while it wants attention.
//!
//! Several lines may end at one pin. The pin is asserted while any of them is.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use inspect::Inspect;
use thiserror::Error;

/// An interrupt controller with numbered inputs.
pub trait PinTarget: Send + Sync {
    /// The level of input `pin` is now `asserted`. Called with the lock of the pin held,
    /// so in the order of the changes; must not call back into a device.
    fn set_pin(&self, pin: u8, asserted: bool);
}

/// The pins of a controller, from which devices get their lines.
pub struct Pins {
    pins: Vec<Arc<Pin>>,
}

/// A pin that the controller does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("interrupt pin {pin} does not exist, expected at most {last}", last = count.saturating_sub(1))]
pub struct NoSuchPin {
    /// The pin asked for.
    pub pin: u8,
    /// How many there are.
    pub count: usize,
}

impl Pins {
    /// The `count` pins of `target`.
    pub fn new(target: &Arc<dyn PinTarget>, count: u8) -> Self {
        let pin = |number| {
            Arc::new(Pin {
                number,
                target: target.clone(),
                asserted: Mutex::new(0),
            })
        };
        Self {
            pins: (0..count).map(pin).collect(),
        }
    }

    /// A new line to `pin`, beside those that it has.
    ///
    /// # Errors
    /// The controller has no such pin.
    pub fn line(&self, pin: u8) -> Result<InterruptLine, NoSuchPin> {
        let found = self.pins.get(usize::from(pin)).ok_or(NoSuchPin {
            pin,
            count: self.pins.len(),
        })?;
        Ok(InterruptLine {
            pin: Some(found.clone()),
            asserted: false,
        })
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.pins).finish()
    }
}

struct Pin {
    number: u8,
    target: Arc<dyn PinTarget>,
    /// How many lines are asserted.
    asserted: Mutex<usize>,
}

impl Pin {
    fn change(&self, asserted: bool) {
        let mut count = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *count > 0;
        if asserted {
            *count += 1;
        } else {
            *count = count.saturating_sub(1);
        }
        let after = *count > 0;
        if before != after {
            self.target.set_pin(self.number, after);
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pin {}", self.number)
    }
}

/// A device's end of a line. Dropping it deasserts it.
#[derive(Debug, Inspect)]
pub struct InterruptLine {
    #[inspect(with = "number")]
    pin: Option<Arc<Pin>>,
    asserted: bool,
}

impl InterruptLine {
    /// A line that ends nowhere, for a device that is to be polled.
    pub const fn unconnected() -> Self {
        Self {
            pin: None,
            asserted: false,
        }
    }

    /// Sets the level. A call that changes nothing has no effect.
    pub fn set(&mut self, asserted: bool) {
        if self.asserted != asserted {
            self.asserted = asserted;
            if let Some(pin) = &self.pin {
                pin.change(asserted);
            }
        }
    }

    /// Asserts the line for a moment: one edge, if no other line holds the pin.
    pub fn pulse(&mut self) {
        self.set(true);
        self.set(false);
    }

    /// The level.
    pub fn is_asserted(&self) -> bool {
        self.asserted
    }
}

fn number(pin: &Option<Arc<Pin>>) -> Option<u8> {
    pin.as_ref().map(|pin| pin.number)
}

impl Drop for InterruptLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u8, bool)>>);

    impl PinTarget for Recorder {
        fn set_pin(&self, pin: u8, asserted: bool) {
            self.0.lock().unwrap().push((pin, asserted));
        }
    }

    fn pins() -> (Arc<Recorder>, Pins) {
        let recorder = Arc::new(Recorder::default());
        let target: Arc<dyn PinTarget> = recorder.clone();
        (recorder, Pins::new(&target, 24))
    }

    #[test]
    fn a_shared_pin_is_asserted_while_any_line_is() {
        let (recorder, pins) = pins();
        let (mut a, mut b) = (pins.line(9).unwrap(), pins.line(9).unwrap());
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(9, true)]);
        b.set(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(9, true), (9, false)]);
    }

    #[test]
    fn a_repeated_level_changes_nothing() {
        let (recorder, pins) = pins();
        let mut line = pins.line(0).unwrap();
        line.set(false);
        line.set(true);
        line.set(true);
        line.set(false);
        line.set(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(0, true), (0, false)]);
    }

    #[test]
    fn a_pulse_is_one_edge_and_a_dropped_line_is_released() {
        let (recorder, pins) = pins();
        let mut line = pins.line(3).unwrap();
        line.pulse();
        line.set(true);
        drop(line);
        let levels: Vec<_> = recorder.0.lock().unwrap().iter().map(|c| c.1).collect();
        assert_eq!(levels, [true, false, true, false]);
    }

    #[test]
    fn a_pin_that_does_not_exist_is_refused() {
        let (_, pins) = pins();
        let error = pins.line(24).unwrap_err();
        assert_eq!(
            error.to_string(),
            "interrupt pin 24 does not exist, expected at most 23"
        );
    }
}

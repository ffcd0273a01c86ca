//! Ends of interrupts without an exit: TLFS "EOI Assist".
//!
//! When an edge-triggered interrupt is injected and no other waits, the owner sets "no EOI
//! required" in the VP assist page. A guest that finds it set clears it and is done. The
//! owner notices later, at [`LocalApic::sync_eoi`]. It takes the bit back when somebody
//! comes to wait for that end. The bit speaks of the highest interrupt in service only.

use crate::local::LocalApic;

/// "No EOI required".
const NO_EOI_REQUIRED: u32 = 1;

/// The first field of the VP assist page, in the guest's memory. No value that the guest
/// puts there does more than end its own interrupts.
pub trait EoiAssist {
    /// Reads it; None if there is no page, or it is not memory.
    fn load(&mut self) -> Option<u32>;
    /// Writes it; false as above.
    fn store(&mut self, value: u32) -> bool;
}

/// A guest without a page.
impl EoiAssist for () {
    fn load(&mut self) -> Option<u32> {
        None
    }

    fn store(&mut self, _: u32) -> bool {
        false
    }
}

/// What the owner knows of the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// It is clear.
    #[default]
    Clear,
    /// It was set; the guest may have cleared it.
    Set,
    /// It is set and must be cleared before the guest runs.
    Retract,
}

impl State {
    /// An interrupt has ended by an exit.
    pub(crate) fn ended(&mut self) {
        if *self == Self::Set {
            *self = Self::Retract;
        }
    }

    /// What is in service has been forgotten.
    pub(crate) fn forgotten(mut self) -> Self {
        self.ended();
        self
    }
}

impl LocalApic {
    /// Takes note of an end that the guest has noted in the assist page. To be called after
    /// each exit, before the page moves, and before the state is saved. True: an interrupt
    /// has ended.
    pub fn sync_eoi(&mut self, page: &mut impl EoiAssist) -> bool {
        if self.eoi_assist != State::Set {
            return false;
        }
        match page.load() {
            Some(flags) if flags & NO_EOI_REQUIRED != 0 => false,
            Some(_) => {
                self.eoi_assist = State::Clear;
                // It was an edge: no IOAPIC is told.
                if let Some(vector) = self.isr.highest() {
                    self.isr.remove(vector);
                }
                true
            }
            // The page is gone, and with it what the guest may have noted: it will end the
            // interrupt in the usual way.
            None => {
                self.eoi_assist = State::Clear;
                false
            }
        }
    }

    /// Sets or clears the bit as the state demands; `injected` is the vector that has just
    /// come into service.
    pub(crate) fn update_assist(&mut self, injected: Option<u8>, page: &mut impl EoiAssist) {
        let set = match (self.eoi_assist, injected) {
            _ if !self.irr.is_empty() || self.extint.is_some() => false,
            (_, Some(vector)) => !self.tmr.contains(vector),
            (State::Set, None) => true,
            _ => false,
        };
        if set == (self.eoi_assist == State::Set) && self.eoi_assist != State::Retract {
            return;
        }
        let stored = page
            .load()
            .is_some_and(|flags| page.store(flags & !NO_EOI_REQUIRED | u32::from(set)));
        self.eoi_assist = if set && stored {
            State::Set
        } else {
            State::Clear
        };
    }
}

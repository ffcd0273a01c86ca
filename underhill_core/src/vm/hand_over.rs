//! The guest goes from one worker to the next: its memory and registers stay where they
//! are, devices and serial ports are saved and restored.

use super::GuestState;
use super::Happening;
use super::SavedVm;
use super::Vm;
use super::VmError;
use super::saved::SavedHappening;
use super::serial::Port;

impl Vm {
    /// Goes on with a guest that another worker has run.
    pub(crate) async fn restore(&mut self, saved: SavedVm) -> Result<(), VmError> {
        self.machine.gate.held().await;
        if let Some(devices) = &saved.chipset {
            self.machine.chipset.restore(devices)?;
        }
        self.machine.chipset.start()?;
        for (port, saved) in self.serial.iter().zip(&saved.serial) {
            port.restore(saved);
        }
        for way in &saved.moves {
            let stats = self.machine.vps.get(way.vp as usize);
            let here = !self.machine.partition.is_remote(way.vp);
            if let Some(stats) = stats.filter(|_| here) {
                stats.place.restore(way);
            }
        }
        self.resets = saved.resets;
        match saved.state() {
            GuestState::Running => self.run(),
            state => {
                self.machine.chipset.pause()?;
                self.state = state;
            }
        }
        // Not before: what a client sends now comes behind what was saved.
        self.serve_clients();
        if let Some(happening) = saved.happening.and_then(SavedHappening::happening) {
            self.machine.herald.tell(happening);
        }
        Ok(())
    }

    /// What another worker needs in order to go on. The guest runs no more, if it did, and
    /// its serial ports have no clients any more.
    pub(crate) async fn hand_over(&mut self) -> Result<SavedVm, VmError> {
        self.hold().await?;
        for port in &self.serial {
            port.fetch().await;
        }
        let saved = self.save_held()?;
        // At once, so that no client gets what the next worker has, too.
        for port in &self.serial {
            port.close();
        }
        Ok(saved)
    }

    /// What another worker would need in order to go on. The guest does not run until
    /// [`Vm::go_on`].
    pub(crate) async fn save(&mut self) -> Result<SavedVm, VmError> {
        self.hold().await?;
        self.save_held()
    }

    fn save_held(&mut self) -> Result<SavedVm, VmError> {
        let state = self.state;
        let chipset = match state {
            GuestState::New => None,
            _ => Some(self.machine.chipset.save()?),
        };
        let happening = self.happened.try_recv().ok();
        if let Some(happening) = &happening {
            // It is still to be handled, should this worker go on.
            self.machine.herald.tell(happening.clone());
        }
        let serial = self.serial.iter().map(Port::save).collect();
        let mut saved = SavedVm::new(state, self.resets, chipset);
        saved.happening = happening.map(SavedHappening::from);
        saved.serial = serial;
        let vps = (0..).zip(&self.machine.vps);
        saved.moves = vps.filter_map(|(vp, stats)| stats.place.save(vp)).collect();
        Ok(saved)
    }

    /// Goes on after a [`Vm::save`] that nothing came of, or that has failed.
    pub(crate) fn go_on(&mut self) {
        if self.state == GuestState::Running {
            match self.machine.chipset.resume() {
                Ok(()) => self.run(),
                Err(error) => {
                    // Heard as if a VP had said it, so that others learn of it, too.
                    let reason = Happening::Stopped(kernel_log::chain(&error));
                    self.machine.herald.tell(reason);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

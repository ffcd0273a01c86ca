//! What concerns the VM as a whole: somebody must act who is not a VP.

use super::gate::Gate;
use chipset::power::PowerEvent;
use chipset::power::PowerEvents;
use chipset::power::ResetSource;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc::UnboundedSender;
use virt::Partition;

/// Something that the owner of the VM decides about. No VP runs when it learns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happening {
    /// The guest has switched itself off.
    PoweredOff,
    /// The guest wants a reset; how it has asked.
    Reset(String),
    /// The guest has crashed; a report.
    Crashed(String),
    /// The VM cannot go on with this guest; a report.
    Stopped(String),
}

/// Stops the VPs and tells the owner. Clones are the same.
#[derive(Clone)]
pub(crate) struct Herald {
    gate: Arc<Gate>,
    partition: Arc<dyn Partition>,
    // A VP that has told something is held, so little can pile up.
    owner: UnboundedSender<Happening>,
    unknown_sleeps: Arc<AtomicU64>,
}

impl Herald {
    /// Tells `owner`.
    pub(crate) fn new(
        gate: Arc<Gate>,
        partition: Arc<dyn Partition>,
        owner: UnboundedSender<Happening>,
    ) -> Self {
        Self {
            gate,
            partition,
            owner,
            unknown_sleeps: Arc::default(),
        }
    }

    /// Lets no VP go on. They stop soon; the caller, if it is one, at its next question.
    pub(crate) fn stop_vps(&self) {
        self.gate.close();
        for vp in 0..self.partition.vp_count() {
            self.partition.cancel(vp);
        }
    }

    /// Stops the VPs because of `happening`.
    pub(crate) fn tell(&self, happening: Happening) {
        self.stop_vps();
        // Without an owner the process is about to end.
        let _ = self.owner.send(happening);
    }
}

impl PowerEvents for Herald {
    fn power_event(&self, event: PowerEvent) {
        match event {
            PowerEvent::PowerOff => self.tell(Happening::PoweredOff),
            PowerEvent::Reset(source) => self.tell(Happening::Reset(reset_text(source).to_owned())),
            PowerEvent::UnknownSleepType(kind) => {
                let count = self.unknown_sleeps.fetch_add(1, Relaxed) + 1;
                if count.is_power_of_two() {
                    tracing::warn!(
                        kind,
                        count,
                        "the guest asks for a sleep state without a table"
                    );
                }
            }
        }
    }
}

const fn reset_text(source: ResetSource) -> &'static str {
    match source {
        ResetSource::KeyboardController => "keyboard controller",
        ResetSource::FastReset => "port 0x92",
        ResetSource::ResetControl => "port 0xcf9",
    }
}

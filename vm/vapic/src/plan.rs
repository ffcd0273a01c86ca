//! What to inject now, and what to wait for: 11.8.3, 11.8.4.

use crate::assist::EoiAssist;
use crate::local::{LocalApic, Startup};

/// What the processor can take, as the guest has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuState {
    /// RFLAGS.IF is set and no instruction casts an interrupt shadow.
    pub interrupts: bool,
    /// No NMI is being handled, no shadow.
    pub nmis: bool,
    /// An event is about to be injected already (an exception of the exit, or one that the
    /// exit has interrupted): nothing else fits.
    pub occupied: bool,
}

/// An event to inject. It counts as delivered; if an exit interrupts the delivery, the
/// owner injects it again without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// A non-maskable interrupt.
    Nmi,
    /// An external interrupt.
    Interrupt(u8),
}

/// An exit that is needed as soon as the guest can take an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Class (upper 4 bits of the vector): the guest can take it when CR8 is below it.
    pub priority: u8,
    /// CR8 does not matter (an 8259's interrupt).
    pub ignore_tpr: bool,
}

/// What to do before the next entry.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// Inject this.
    pub inject: Option<Injection>,
    /// Exit when interrupts can be taken. SVM: `V_IRQ` with this priority and the VINTR
    /// intercept.
    pub interrupt_window: Option<Window>,
    /// Exit when an NMI can be taken: after IRET, or, if only an event that is being injected
    /// was in its way, after the first instruction.
    pub nmi_window: bool,
}

impl LocalApic {
    /// Chooses what to inject and brings the assist page up to date. A VP that waits for
    /// its start-up gets nothing.
    pub fn plan(&mut self, cpu: CpuState, assist: &mut impl EoiAssist) -> Plan {
        self.sync_eoi(assist);
        if self.startup == Startup::WaitForStartup {
            return Plan::default();
        }
        let mut in_service = None;
        let inject = if cpu.occupied {
            None
        } else if self.nmi && cpu.nmis {
            self.nmi = false;
            Some(Injection::Nmi)
        } else if !cpu.interrupts {
            None
        } else if let Some(vector) = self.extint.take() {
            Some(Injection::Interrupt(vector))
        } else {
            self.deliverable().map(|vector| {
                self.irr.remove(vector);
                if !self.auto_eoi.contains(vector) {
                    self.isr.insert(vector);
                    in_service = Some(vector);
                }
                Injection::Interrupt(vector)
            })
        };
        self.update_assist(in_service, assist);
        Plan {
            inject,
            interrupt_window: self.window(),
            nmi_window: self.nmi,
        }
    }

    /// Whether an interrupt or NMI waits that the guest's priority does not hold back: a
    /// halted VP has to look (SDM volume 2, HLT).
    pub fn has_work(&self) -> bool {
        self.nmi || self.extint.is_some() || self.deliverable().is_some()
    }

    /// The highest request, if its class is above the processor's priority.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        self.irr
            .highest()
            .filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// A request that only waits for the guest's IF or CR8. One that waits for an end needs
    /// no window: the end exits, for the assist bit is clear while something waits.
    fn window(&self) -> Option<Window> {
        if self.extint.is_some() {
            return Some(Window {
                priority: 15,
                ignore_tpr: true,
            });
        }
        let vector = self.irr.highest()?;
        let service = self.isr.highest().map_or(0, |vector| vector >> 4);
        (vector >> 4 > service).then_some(Window {
            priority: vector >> 4,
            ignore_tpr: false,
        })
    }
}

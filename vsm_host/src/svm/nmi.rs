//! NMIs that the host injects into a VTL.
//!
//! The processor does not know that a VTL handles one that was injected, so the host keeps
//! that in mind until the handler's IRET, which it intercepts. The exit comes before the
//! IRET; so another NMI has to wait for an exit somewhere else: what waits at the processor
//! (a physical interrupt, a call) is an exit before the IRET is executed.

use x86_defs::svm::{EventInjection, ExitCode, Intercepts3, Vmcb};

const VECTOR: u8 = 2;
const KIND: u8 = 2;

/// Whether a VTL can take an NMI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nmis {
    /// It can.
    #[default]
    Open,
    /// It handles one.
    Handled,
    /// It stands at the IRET of the handler.
    Ending {
        /// Where that is.
        rip: u64,
    },
}

impl Nmis {
    /// Takes note of an exit.
    pub fn exited(&mut self, vmcb: &mut Vmcb) {
        let code = vmcb.control.exit_code;
        match (*self, code) {
            (Self::Handled, ExitCode::IRET) => {
                *self = Self::Ending { rip: vmcb.save.rip };
                intercept_iret(vmcb, false);
            }
            (Self::Ending { rip }, _) if vmcb.save.rip != rip => *self = Self::Open,
            _ => {}
        }
    }

    /// Injects one. Nothing else is being injected, and the VTL can take it.
    pub fn inject(&mut self, vmcb: &mut Vmcb) {
        vmcb.control.event_injection = EventInjection::new()
            .with_vector(VECTOR)
            .with_kind(KIND)
            .with_valid(true);
        *self = Self::Handled;
        intercept_iret(vmcb, true);
    }

    /// Somebody says whether the VTL handles one.
    pub fn set_handled(&mut self, vmcb: &mut Vmcb, handled: bool) {
        *self = if handled { Self::Handled } else { Self::Open };
        intercept_iret(vmcb, handled);
    }

    /// Forgets that one is handled.
    pub fn reset(&mut self, vmcb: &mut Vmcb) {
        *self = Self::Open;
        intercept_iret(vmcb, false);
    }
}

fn intercept_iret(vmcb: &mut Vmcb, on: bool) {
    let word = &mut vmcb.control.intercepts3;
    *word = Intercepts3::from_bits(*word).with_iret(on).into_bits();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svm::vmcb;

    #[test]
    fn a_second_nmi_waits_until_the_first_handler_has_returned() {
        let mut vmcb = vmcb::new(0, 0, 0, 1);
        let intercepts = vmcb.control.intercepts3;
        let mut nmis = Nmis::Open;
        let exit = |nmis: &mut Nmis, vmcb: &mut Vmcb, code| {
            vmcb.control.exit_code = code;
            nmis.exited(vmcb);
        };
        exit(&mut nmis, &mut vmcb, ExitCode::NMI);
        assert_eq!(nmis, Nmis::Open);
        nmis.inject(&mut vmcb);
        assert_eq!(vmcb.control.event_injection.into_bits(), 0x8000_0202);
        exit(&mut nmis, &mut vmcb, ExitCode::CPUID);
        assert_eq!(nmis, Nmis::Handled);
        exit(&mut nmis, &mut vmcb, ExitCode::IRET);
        assert_eq!(nmis, Nmis::Ending { rip: 0 });
        assert_eq!(vmcb.control.intercepts3, intercepts);
        // The IRET has not been executed yet.
        exit(&mut nmis, &mut vmcb, ExitCode::INTR);
        assert_eq!(nmis, Nmis::Ending { rip: 0 });
        vmcb.save.rip = 0x1000;
        exit(&mut nmis, &mut vmcb, ExitCode::NMI);
        assert_eq!(nmis, Nmis::Open);
    }
}

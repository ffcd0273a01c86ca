//! A guest without a paravisor.
//!
//! It is what VTL2 is otherwise: it has the machine, its devices and its interrupt
//! controllers, but not the host's memory and clock. Two things differ. It knows nothing of
//! VTLs, so CPUID does not tell of them and no hypercall does anything. And it starts its
//! processors as on any PC, by INIT and start-up messages. The host still sends none of
//! them (see [`super::apic`]): it absorbs INIT, and takes a start-up message to a VP that
//! has not begun for the order to start it. A VP that runs cannot be started again.

use super::{Next, Partition, Processor, Vp};
use crate::log_text;
use crate::svm::vmcb::Exception;
use crate::vtl::Vtl;
use boot_events::{HOST_ENTERS_GUEST, HOST_ENTERS_VTL2};
use hv_defs::hypercall::HvStatus;
use igvm_loader::StartContext;
use x86_defs::apic::{DeliveryMode, DestinationShorthand, InterruptCommand};

/// Where a start-up message to `vector` makes a processor begin: at the start of the page
/// with that number, in real mode.
fn startup_context(vector: u8) -> Option<StartContext> {
    let mut state = *StartContext::at_reset().state();
    state.cs.base = u64::from(vector) << 12;
    state.cs.selector = u16::from(vector) << 8;
    state.rip = 0;
    StartContext::new(state).ok()
}

impl Partition {
    /// Enables the VTL that begins: on VP 0, which then enables it on the others, or on all
    /// if nobody would.
    pub fn enable_first_vtl(&self) -> Result<(), HvStatus> {
        let last = if self.config.alone {
            self.vp_count()
        } else {
            1
        };
        (0..last).try_for_each(|vp| self.enable_vp_vtl(vp, Vtl::PARAVISOR))
    }

    /// What the host logs when VP 0 begins.
    pub fn first_entry_text(&self) -> &'static str {
        log_text(if self.config.alone {
            HOST_ENTERS_GUEST
        } else {
            HOST_ENTERS_VTL2
        })
    }

    /// Whether a command to the local APIC is an INIT or start-up message of a guest that
    /// may send them; does what the message is for.
    pub(super) fn starts_processors(
        &self,
        vp: &Vp,
        processor: &impl Processor,
        command: u32,
    ) -> bool {
        if !self.config.alone {
            return false;
        }
        let command = InterruptCommand::from_bits(command.into());
        match DeliveryMode(command.mode()) {
            DeliveryMode::INIT => true,
            DeliveryMode::STARTUP => {
                if let Some(context) = startup_context(command.vector()) {
                    self.start_targets(vp, processor, command, &context);
                }
                true
            }
            _ => false,
        }
    }

    fn start_targets(
        &self,
        vp: &Vp,
        processor: &impl Processor,
        command: InterruptCommand,
        context: &StartContext,
    ) {
        let destination = vp.command_high >> 24;
        let targets = (0..).zip(&self.slots).filter(|(index, slot)| {
            *index != vp.index
                && match DestinationShorthand(command.shorthand()) {
                    DestinationShorthand::NONE => {
                        destination == slot.apic_id || destination == 0xff
                    }
                    DestinationShorthand::MYSELF => false,
                    _ => true,
                }
        });
        for (index, _) in targets {
            // The second message of a start finds the VP started.
            let _ = self.start_vp(index, Vtl::PARAVISOR, context.clone(), processor);
        }
    }

    /// The answer to a hypercall.
    pub(super) fn refuse_hypercall(&self, vp: &mut Vp) -> Result<Next, Exception> {
        if vp.vmcb().save.cpl != 0 {
            return Err(Exception::InvalidOpcode);
        }
        vp.vmcb_mut().save.rax = HvStatus::INVALID_HYPERCALL_CODE.0.into();
        Ok(Next::Resume)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FakeProcessor, setup_with};
    use super::*;
    use crate::partition::apic::LOCAL_APIC;

    const COMMAND: u64 = LOCAL_APIC + 0x300;
    const COMMAND_HIGH: u64 = LOCAL_APIC + 0x310;

    fn setup(alone: bool) -> (Partition, Vp, FakeProcessor) {
        setup_with(|config| config.alone = alone)
    }

    #[test]
    fn startup_message_starts_the_processor_in_real_mode() {
        let (partition, mut vp, processor) = setup(true);
        (1..4).for_each(|vp| partition.enable_vp_vtl(vp, Vtl::PARAVISOR).unwrap());
        let mut write = |register, value| {
            assert!(partition.write_local_apic(&mut vp, &processor, register, value));
        };
        // To the APIC id of VP 2: INIT, its end, start-up, twice.
        write(COMMAND_HIGH, 3 << 24);
        write(COMMAND, 0xc500);
        write(COMMAND, 0x8500);
        assert_eq!(*processor.woken.borrow(), []);
        write(COMMAND, 0x4699);
        write(COMMAND, 0x4699);

        assert_eq!(*processor.woken.borrow(), [3]);
        let (vtl, context) = partition.slots[2]
            .start
            .lock()
            .take()
            .expect("it is started");
        let state = context.state();
        assert_eq!(vtl, Vtl::PARAVISOR);
        assert_eq!(
            (state.cs.base, state.cs.selector, state.rip),
            (0x9_9000, 0x9900, 0)
        );
        // The APIC itself has sent none of it.
        assert_eq!(*processor.written.borrow(), [(COMMAND_HIGH, 3 << 24)]);
    }

    #[test]
    fn startup_message_to_all_others_starts_them() {
        let (partition, mut vp, processor) = setup(true);
        (1..4).for_each(|vp| partition.enable_vp_vtl(vp, Vtl::PARAVISOR).unwrap());
        assert!(partition.write_local_apic(&mut vp, &processor, COMMAND, 0xc_4608));
        assert_eq!(*processor.woken.borrow(), [2, 3, 4]);
    }

    #[test]
    fn paravisor_starts_no_processor_by_message() {
        let (partition, mut vp, processor) = setup(false);
        partition.enable_vp_vtl(1, Vtl::PARAVISOR).unwrap();
        assert!(!partition.write_local_apic(&mut vp, &processor, COMMAND, 0xc_4608));
        assert_eq!(*processor.woken.borrow(), []);
    }

    #[test]
    fn hypercalls_do_nothing() {
        let (_, mut vp, _) = setup(true);
        let (partition, ..) = setup(true);
        assert_eq!(partition.refuse_hypercall(&mut vp), Ok(Next::Resume));
        assert_eq!(vp.vmcb().save.rax, 2);
        vp.vmcb_mut().save.cpl = 3;
        let fault = Err(Exception::InvalidOpcode);
        assert_eq!(partition.refuse_hypercall(&mut vp), fault);
    }
}

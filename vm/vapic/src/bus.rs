//! From a message to the APICs that it is for, and from VTL2's hypercall to a message.

use crate::icr::{Destination, Message};
use crate::shared::{Shared, Word};
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::{AssertVirtualInterrupt, HvInterruptType};
use x86_defs::apic::{DeliveryMode, FIRST_VECTOR};

/// The APICs of all VPs.
pub trait Apics {
    /// Word of the shared parts.
    type Word: Word;
    /// Number of VPs.
    fn count(&self) -> u32;
    /// The shared part of a VP below [`Self::count`].
    fn shared(&self, vp: u32) -> &Shared<Self::Word>;
    /// Makes the VP's CPU leave the guest, or its halt.
    fn kick(&self, vp: u32);
}

/// Delivers a message; `sender` is the VP that sends it, if one does. Returns how many
/// APICs it reached; one that reaches none is lost, as on a PC.
pub fn deliver<A: Apics + ?Sized>(apics: &A, sender: Option<u32>, message: &Message) -> u32 {
    if message.mode == DeliveryMode::LOWEST_PRIORITY {
        let Some(vp) = lowest_priority(apics, sender, message) else {
            return 0;
        };
        post(apics, vp, message);
        return 1;
    }
    let mut reached = 0;
    for vp in 0..apics.count() {
        let address = apics.shared(vp).address();
        if message.destination.includes(address, sender == Some(vp)) {
            post(apics, vp, message);
            reached += 1;
            if let Destination::Physical(_) = message.destination {
                // Ids are unique.
                break;
            }
        }
    }
    reached
}

/// The VP with the lowest task priority (11.6.2.4). Among equals the vector decides, so
/// that different interrupts go to different VPs.
fn lowest_priority<A: Apics + ?Sized>(
    apics: &A,
    sender: Option<u32>,
    message: &Message,
) -> Option<u32> {
    let count = apics.count();
    let first = u32::from(message.vector).checked_rem(count)?;
    (0..count)
        .map(|i| (first + i) % count)
        .filter_map(|vp| {
            let address = apics.shared(vp).address();
            let meant = message.destination.includes(address, sender == Some(vp));
            (meant && address.accepts()).then_some((address.priority() >> 4, vp))
        })
        .min_by_key(|(priority, _)| *priority)
        .map(|(_, vp)| vp)
}

fn post<A: Apics + ?Sized>(apics: &A, vp: u32, message: &Message) {
    let shared = apics.shared(vp);
    let kick = match message.mode {
        DeliveryMode::FIXED | DeliveryMode::LOWEST_PRIORITY => {
            shared.post(message.vector, message.level)
        }
        DeliveryMode::NMI => shared.post_nmi(),
        DeliveryMode::INIT => shared.post_init(),
        DeliveryMode::STARTUP => shared.post_startup(message.vector),
        DeliveryMode::EXTINT => shared.post_extint(message.vector),
        // SMIs are not supported.
        _ => false,
    };
    if kick {
        apics.kick(vp);
    }
}

/// HvCallAssertVirtualInterrupt, after the caller has found partition and VTL to be right.
/// Destinations are those of an interrupt message of a device: 8 bits with all ones for
/// everybody, or more bits for APIC ids from 256 on.
///
/// # Errors
/// `INVALID_PARAMETER`: reserved bits, an unknown or unsupported type, a vector below 16
/// or above 255, level triggered where there is no end, a destination above 32 bits.
pub fn assert_virtual_interrupt<A: Apics + ?Sized>(
    apics: &A,
    input: &AssertVirtualInterrupt,
) -> Result<(), HvStatus> {
    let invalid = || HvStatus::INVALID_PARAMETER;
    if input.rsvd != [0; 3] || !input.flags.reserved_bits_are_zero() {
        return Err(invalid());
    }
    let vector = u8::try_from(input.vector).map_err(|_| invalid())?;
    let destination = u32::try_from(input.destination).map_err(|_| invalid())?;
    let logical = input.flags.logical_destination();
    let destination = match u8::try_from(destination) {
        Ok(byte) => Destination::from_byte(byte, logical),
        Err(_) => Destination::from_word(destination, logical),
    };
    let level = input.flags.level_triggered();
    let mode = match input.interrupt_type {
        HvInterruptType::FIXED => DeliveryMode::FIXED,
        HvInterruptType::LOWEST_PRIORITY => DeliveryMode::LOWEST_PRIORITY,
        HvInterruptType::NMI => DeliveryMode::NMI,
        HvInterruptType::INIT => DeliveryMode::INIT,
        HvInterruptType::SIPI => DeliveryMode::STARTUP,
        HvInterruptType::EXTINT => DeliveryMode::EXTINT,
        HvInterruptType::LOCAL_INT0 | HvInterruptType::LOCAL_INT1 if !level => {
            let lint1 = input.interrupt_type == HvInterruptType::LOCAL_INT1;
            pulse(apics, destination, lint1, vector);
            return Ok(());
        }
        _ => return Err(invalid()),
    };
    let has_end = matches!(mode, DeliveryMode::FIXED | DeliveryMode::LOWEST_PRIORITY);
    if has_end && vector < FIRST_VECTOR || level && !has_end {
        return Err(invalid());
    }
    let message = Message {
        vector,
        mode,
        destination,
        level,
    };
    // That nobody is there is no error: the device's message is lost.
    deliver(apics, None, &message);
    Ok(())
}

/// A pulse on a pin of each destination.
fn pulse<A: Apics + ?Sized>(apics: &A, destination: Destination, lint1: bool, vector: u8) {
    for vp in 0..apics.count() {
        let shared = apics.shared(vp);
        if destination.includes(shared.address(), false) && shared.post_lint(lint1, vector) {
            apics.kick(vp);
        }
    }
}

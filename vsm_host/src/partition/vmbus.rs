//! The host's end of VTL2's VMBus, which has no channels.
//!
//! Linux keeps the SynIC of each CPU on only while its VMBus driver is connected; it is
//! through the SynIC that CPUs of the sidecar tell Linux that they are done. So the host
//! lets Linux connect, offers nothing, and lets it go. What else Linux sends is counted and
//! ignored.

use super::counters::Refused;
use super::{Partition, Processor, synic};
use crate::vtl::Vtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::synic::HV_SYNIC_SINT_COUNT;
use vmbus_defs::{
    CONNECTION_ID_4, DEFAULT_SINT, Header, InitiateContact, MessageType, SYNIC_MESSAGE_TYPE,
    Version, VersionResponse,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Versions without channels differ in who gets the messages only.
const VERSIONS: [Version; 7] = [
    Version::WIN10,
    Version::WIN10_V4_1,
    Version::WIN10_V5,
    Version::WIN10_V5_1,
    Version::WIN10_V5_2,
    Version::WIN10_V5_3,
    Version::WIN10_V6_0,
];

/// Where messages for the guest go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    vp: u32,
    sint: u8,
}

/// A message to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Version(VersionResponse),
    Header(Header),
}

impl Reply {
    const fn new(message_type: MessageType) -> Self {
        Self::Header(Header::new(message_type))
    }

    fn as_bytes(&self) -> &[u8] {
        fn bytes<T: IntoBytes + Immutable>(value: &T) -> &[u8] {
            value.as_bytes()
        }
        match self {
            Self::Version(response) => bytes(response),
            Self::Header(header) => bytes(header),
        }
    }
}

/// Whether the guest is connected, and how.
#[derive(Debug, Default)]
pub(super) struct Vmbus {
    connected: Option<Target>,
}

impl Vmbus {
    /// Takes a message of the guest. What is to be answered, and whom; `None` if the message
    /// makes no sense.
    fn receive(&mut self, message: &[u8], vp_count: u32) -> Option<(Target, Reply)> {
        let (header, _) = Header::read_from_prefix(message).ok()?;
        match header.message_type {
            MessageType::INITIATE_CONTACT => self.contact(message, vp_count),
            MessageType::REQUEST_OFFERS => {
                let target = self.connected?;
                Some((target, Reply::new(MessageType::ALL_OFFERS_DELIVERED)))
            }
            MessageType::UNLOAD => {
                let target = self.connected.take()?;
                Some((target, Reply::new(MessageType::UNLOAD_RESPONSE)))
            }
            _ => None,
        }
    }

    /// A connection that there was is over.
    fn contact(&mut self, message: &[u8], vp_count: u32) -> Option<(Target, Reply)> {
        let (contact, _) = InitiateContact::read_from_prefix(message).ok()?;
        let names_target = contact.version.0 >= Version::WIN10_V5.0;
        let (sint, vtl) = if names_target {
            (contact.sint, contact.vtl)
        } else {
            (DEFAULT_SINT, Vtl::PARAVISOR.number())
        };
        let target = Target {
            vp: contact.target_vp,
            sint,
        };
        if target.vp >= vp_count || usize::from(sint) >= HV_SYNIC_SINT_COUNT {
            return None;
        }
        let supported = VERSIONS.contains(&contact.version) && vtl == Vtl::PARAVISOR.number();
        self.connected = supported.then_some(target);
        let response = VersionResponse {
            header: Header::new(MessageType::VERSION_RESPONSE),
            supported: supported.into(),
            state: 0,
            padding: 0,
            connection_id: if names_target { CONNECTION_ID_4 } else { 0 },
        };
        Some((target, Reply::Version(response)))
    }
}

/// VTL2 has posted a message to the VMBus.
///
/// # Errors
/// As HvCallPostMessage, if the answer cannot be posted.
pub(crate) fn receive(
    partition: &Partition,
    processor: &impl Processor,
    message_type: u32,
    message: &[u8],
) -> Result<(), HvStatus> {
    let mut vmbus = partition.vmbus.lock();
    let reply = (message_type == SYNIC_MESSAGE_TYPE)
        .then(|| vmbus.receive(message, partition.vp_count()))
        .flatten();
    let Some((Target { vp, sint }, reply)) = reply else {
        partition.counters.count(Refused::VmbusMessage);
        return Ok(());
    };
    // The lock is held: answers arrive in the order of the messages.
    let header = (SYNIC_MESSAGE_TYPE, CONNECTION_ID_4.into());
    let target = (vp, Vtl::PARAVISOR);
    synic::post(partition, processor, target, sint, header, reply.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contact(version: Version) -> InitiateContact {
        InitiateContact {
            header: Header::new(MessageType::INITIATE_CONTACT),
            version,
            target_vp: 1,
            sint: 3,
            vtl: 2,
            reserved: [0; 2],
            features: 0,
            monitor_page1: 0x1000,
            monitor_page2: 0x2000,
        }
    }

    fn supported(vmbus: &mut Vmbus, contact: &InitiateContact) -> (Target, bool, u32) {
        match vmbus.receive(contact.as_bytes(), 4) {
            Some((target, Reply::Version(response))) => {
                (target, response.supported == 1, response.connection_id)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn guest_connects_hears_of_no_channel_and_parts() {
        let mut vmbus = Vmbus::default();
        let target = Target { vp: 1, sint: 3 };
        let connected = supported(&mut vmbus, &contact(Version::WIN10_V6_0));
        assert_eq!(connected, (target, true, 4));
        let mut send = |message_type| {
            let (to, reply) = vmbus.receive(Header::new(message_type).as_bytes(), 4)?;
            assert_eq!(to, target);
            Some(reply)
        };
        let offers = Reply::new(MessageType::ALL_OFFERS_DELIVERED);
        assert_eq!(send(MessageType::REQUEST_OFFERS), Some(offers));
        let gone = Reply::new(MessageType::UNLOAD_RESPONSE);
        assert_eq!(send(MessageType::UNLOAD), Some(gone));
        assert_eq!(send(MessageType::UNLOAD), None);
        assert_eq!(send(MessageType::REQUEST_OFFERS), None);
    }

    #[test]
    fn old_versions_name_no_source() {
        let mut vmbus = Vmbus::default();
        let mut old = contact(Version::WIN10);
        // The address of a page.
        (old.sint, old.vtl) = (0, 0xf0);
        let target = Target { vp: 1, sint: 2 };
        assert_eq!(supported(&mut vmbus, &old), (target, true, 0));
    }

    #[test]
    fn versions_that_do_not_exist_and_other_vtls_are_refused() {
        let mut vmbus = Vmbus::default();
        supported(&mut vmbus, &contact(Version::WIN10_V5));
        assert!(!supported(&mut vmbus, &contact(Version(0x7_0000))).1);
        // That has ended the connection before.
        assert_eq!(vmbus.connected, None);
        let other = InitiateContact {
            vtl: 0,
            ..contact(Version::WIN10_V5)
        };
        assert!(!supported(&mut vmbus, &other).1);
    }

    #[test]
    fn nobody_is_answered_who_is_not_there() {
        let mut vmbus = Vmbus::default();
        let mut wrong = contact(Version::WIN10_V5);
        wrong.target_vp = 4;
        assert_eq!(vmbus.receive(wrong.as_bytes(), 4), None);
        let mut wrong = contact(Version::WIN10_V5);
        wrong.sint = 16;
        assert_eq!(vmbus.receive(wrong.as_bytes(), 4), None);
    }

    proptest! {
        #[test]
        fn any_message_is_answered_or_ignored(
            message_type in prop_oneof![0u32..30, any::<u32>()],
            message in prop::collection::vec(any::<u8>(), 0..240),
        ) {
            let mut vmbus = Vmbus::default();
            let mut bytes = message;
            if let Some(start) = bytes.get_mut(..4) {
                start.copy_from_slice(&message_type.to_le_bytes());
            }
            for _ in 0..2 {
                if let Some((Target { vp, sint }, reply)) = vmbus.receive(&bytes, 4) {
                    prop_assert!(vp < 4 && sint < 16 && reply.as_bytes().len() <= 240);
                }
            }
        }
    }
}

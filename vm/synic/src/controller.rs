//! The controller: sources, message delivery, events.

use crate::messages::{Buffers, Waiting};
use crate::pages::{GuestPages, NotMapped, claim, fill};
use crate::timer::{Timer, Undelivered};
use hv_defs::hypercall::HvStatus;
use hv_defs::msr::OverlayPage;
use hv_defs::synic::{
    HV_EVENT_FLAGS_COUNT, HV_MESSAGE_PAYLOAD_SIZE, HV_SYNIC_SINT_COUNT, HV_SYNIC_STIMER_COUNT,
    HvMessage, HvMessageFlags, HvMessageHeader, HvMessageType, SyntheticSource,
    TimerMessagePayload,
};
use vapic::VectorSet;
use zerocopy::IntoBytes;

/// What a call has raised; the owner carries it out.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Raised {
    /// Edge-triggered interrupts for the VP's APIC.
    pub interrupts: VectorSet,
    /// Interrupts of proxy sources: recorded for a higher VTL, not delivered.
    pub proxied: VectorSet,
    /// Sources whose arrivals a higher VTL is told by a message, as a bit set.
    pub intercepted: u16,
}

impl Raised {
    /// Adds what another call has raised.
    pub fn add(&mut self, other: Self) {
        self.interrupts = self.interrupts.union(other.interrupts);
        self.proxied = self.proxied.union(other.proxied);
        self.intercepted |= other.intercepted;
    }
}

/// The SynIC of a VTL of a VP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synic {
    pub(crate) control: u64,
    pub(crate) event_page: OverlayPageBits,
    pub(crate) message_page: OverlayPageBits,
    pub(crate) sints: [SyntheticSource; HV_SYNIC_SINT_COUNT],
    pub(crate) timers: [Timer; HV_SYNIC_STIMER_COUNT],
    pub(crate) buffers: Buffers,
    pub(crate) order: u64,
    /// Sources whose readiness somebody wants to hear of.
    pub(crate) awaited: u16,
}

/// Value of a register that places a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct OverlayPageBits(pub(crate) u64);

impl OverlayPageBits {
    /// Address of the page, if it is in use.
    fn address(self) -> Option<u64> {
        let page = OverlayPage::from_bits(self.0);
        page.enabled().then(|| page.page_number() << 12)
    }
}

/// Where the next message for a slot is.
enum Place {
    Buffer(usize),
    Timer(usize),
}

impl Synic {
    /// A SynIC after the creation or reset of its VP.
    pub const fn new() -> Self {
        const TIMER: Timer = Timer {
            config: hv_defs::synic::TimerConfig::new(),
            count: 0,
            expires: None,
            rest_until: 0,
            undelivered: None,
        };
        Self {
            control: 0,
            event_page: OverlayPageBits(0),
            message_page: OverlayPageBits(0),
            sints: [SyntheticSource::new().with_masked(true); HV_SYNIC_SINT_COUNT],
            timers: [TIMER; HV_SYNIC_STIMER_COUNT],
            buffers: Buffers::EMPTY,
            order: 0,
            awaited: 0,
        }
    }

    /// Reset of the VP.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    fn enabled(&self) -> bool {
        self.control & 1 != 0
    }

    /// Whether the VP is a possible target of messages.
    pub fn accepts_messages(&self) -> bool {
        self.enabled() && self.message_page.address().is_some()
    }

    /// Whether the VP is a possible target of events.
    pub fn accepts_events(&self) -> bool {
        self.enabled() && self.event_page.address().is_some()
    }

    /// Vectors of sources with auto-EOI, for [`vapic::LocalApic::set_auto_eoi`]: to be
    /// passed on after each write of a source.
    pub fn auto_eoi_vectors(&self) -> VectorSet {
        let sources = self.sints.iter();
        sources
            .filter(|sint| sint.auto_eoi() && !sint.masked())
            .map(|sint| sint.vector())
            .collect()
    }

    /// Queues a message for a source and delivers it if its slot is empty; `payload` has at
    /// most 240 bytes. For HvCallPostMessage, after [`crate::Connections::message`].
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: no such source, type zero, too long. `INVALID_SYNIC_STATE`:
    /// SynIC or message page is off. `INSUFFICIENT_BUFFERS`: all are full.
    pub fn post(
        &mut self,
        sint: u8,
        (message_type, sender): (u32, u64),
        payload: &[u8],
        now: u64,
        pages: &impl GuestPages,
    ) -> Result<Raised, HvStatus> {
        let message = message(message_type, sender, payload).ok_or(HvStatus::INVALID_PARAMETER)?;
        self.enqueue(sint, message, false)?;
        Ok(self.deliver(sint, now, pages))
    }

    /// As [`Self::post`], for the one intercept that the VP can be at; it has a buffer of
    /// its own.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn post_intercept(
        &mut self,
        sint: u8,
        message: HvMessage,
        now: u64,
        pages: &impl GuestPages,
    ) -> Result<Raised, HvStatus> {
        self.enqueue(sint, message, true)?;
        Ok(self.deliver(sint, now, pages))
    }

    fn enqueue(&mut self, sint: u8, message: HvMessage, intercept: bool) -> Result<(), HvStatus> {
        check_sint(sint)?;
        check_message(&message)?;
        if !self.accepts_messages() {
            return Err(HvStatus::INVALID_SYNIC_STATE);
        }
        let order = self.next_order();
        let buffer = self
            .buffers
            .free(intercept)
            .ok_or(HvStatus::INSUFFICIENT_BUFFERS)?;
        *buffer = Some(Waiting {
            sint,
            order,
            message,
        });
        Ok(())
    }

    /// Writes a message into its slot without a queue: HvCallPostMessageDirect.
    ///
    /// # Errors
    /// As [`Self::post`]; `OBJECT_IN_USE` if the slot is not empty: the guest is asked for
    /// an EOM, and [`Self::await_ready`] tells when.
    pub fn post_direct(
        &mut self,
        sint: u8,
        message: &HvMessage,
        pages: &impl GuestPages,
    ) -> Result<Raised, HvStatus> {
        check_sint(sint)?;
        check_message(message)?;
        let slot = self.slot(sint).ok_or(HvStatus::INVALID_SYNIC_STATE)?;
        // What was queued goes first.
        let first = self.next_place(sint).is_none();
        let not_mapped = |_: NotMapped| HvStatus::INVALID_SYNIC_STATE;
        if !claim(pages, slot).map_err(not_mapped)? || !first {
            return Err(HvStatus::OBJECT_IN_USE);
        }
        fill(pages, slot, message).map_err(not_mapped)?;
        Ok(self.raise(sint))
    }

    /// Sets an event flag. True if it was clear: only then is there an interrupt.
    ///
    /// # Errors
    /// `INVALID_PARAMETER`: no such source or flag. `INVALID_SYNIC_STATE`: the SynIC or the
    /// page is off, or the source is masked.
    pub fn signal(
        &self,
        sint: u8,
        flag: u16,
        pages: &impl GuestPages,
    ) -> Result<(bool, Raised), HvStatus> {
        check_sint(sint)?;
        if flag >= HV_EVENT_FLAGS_COUNT {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let source = self.sints[usize::from(sint)];
        let page = self
            .event_page
            .address()
            .filter(|_| self.enabled() && (!source.masked() || source.polling()))
            .ok_or(HvStatus::INVALID_SYNIC_STATE)?;
        let address = page + u64::from(sint) * 256 + u64::from(flag / 32) * 4;
        let bit = 1 << (flag % 32);
        let before = pages
            .set_bits(address, bit)
            .map_err(|_| HvStatus::INVALID_SYNIC_STATE)?;
        Ok(if before & bit == 0 {
            (true, self.raise(sint))
        } else {
            (false, Raised::default())
        })
    }

    /// Expires timers at reference time `now`.
    pub fn poll(&mut self, now: u64, pages: &impl GuestPages) -> Raised {
        let mut raised = Raised::default();
        for index in 0..self.timers.len() {
            let Some(expired_at) = self.timers[index].poll(now) else {
                continue;
            };
            let config = self.timers[index].config;
            if config.direct() {
                raised.interrupts.insert(config.vector());
            } else {
                let order = self.next_order();
                self.timers[index].undelivered = Some(Undelivered { order, expired_at });
                raised.add(self.deliver(config.sint(), now, pages));
            }
        }
        raised
    }

    /// Reference time at which to [`Self::poll`] next; a past one means now.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.iter().filter_map(Timer::next).min()
    }

    /// The guest has ended an interrupt: messages that wait get another chance, as after
    /// EOM.
    pub fn end_of_interrupt(&mut self, now: u64, pages: &impl GuestPages) -> Raised {
        let mut raised = Raised::default();
        for sint in 0..HV_SYNIC_SINT_COUNT as u8 {
            raised.add(self.deliver(sint, now, pages));
        }
        raised
    }

    /// Whether a message waits for its slot, or somebody for a source.
    pub fn waits(&self) -> bool {
        self.awaited != 0
            || self.buffers.0.iter().any(Option::is_some)
            || self.timers.iter().any(|timer| timer.undelivered.is_some())
    }

    /// Somebody wants to hear when these sources can take a message (a bit set): the
    /// deliverability notifications of a higher VTL.
    pub fn await_ready(&mut self, sints: u16) {
        self.awaited = sints;
    }

    /// Sources that somebody waits for, as a bit set.
    pub fn awaited(&self) -> u16 {
        self.awaited
    }

    /// Which of the awaited sources can take a message now; they are not awaited any more.
    /// To be called after [`Self::await_ready`], ends of interrupt and of message, and
    /// writes of registers.
    pub fn take_ready(&mut self, pages: &impl GuestPages) -> u16 {
        let mut ready = 0;
        for sint in 0..HV_SYNIC_SINT_COUNT as u8 {
            let bit = 1 << sint;
            if self.awaited & bit != 0
                && self.next_place(sint).is_none()
                && self
                    .slot(sint)
                    .is_some_and(|slot| claim(pages, slot) == Ok(true))
            {
                ready |= bit;
            }
        }
        self.awaited &= !ready;
        ready
    }

    /// Address of a source's slot, if messages are accepted.
    fn slot(&self, sint: u8) -> Option<u64> {
        let page = self.message_page.address().filter(|_| self.enabled())?;
        Some(page + u64::from(sint) * 256)
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// The message that is next for a slot, and whether more wait behind it.
    fn next_place(&self, sint: u8) -> Option<(Place, bool)> {
        let buffers = self.buffers.of(sint);
        let buffers = buffers.map(|(place, order)| (order, Place::Buffer(place)));
        let timers = self.timers.iter().enumerate().filter_map(|(index, timer)| {
            let undelivered = timer.undelivered?;
            (timer.config.sint() == sint).then_some((undelivered.order, Place::Timer(index)))
        });
        let mut count = 0;
        let (_, place) = buffers
            .chain(timers)
            .inspect(|_| count += 1)
            .min_by_key(|(order, _)| *order)?;
        Some((place, count > 1))
    }

    /// Delivers the next message of a source if its slot is empty.
    fn deliver(&mut self, sint: u8, now: u64, pages: &impl GuestPages) -> Raised {
        let (Some((place, more)), Some(slot)) = (self.next_place(sint), self.slot(sint)) else {
            return Raised::default();
        };
        if claim(pages, slot) != Ok(true) {
            return Raised::default();
        }
        let Some(mut message) = self.message_at(&place, now) else {
            return Raised::default();
        };
        message.header.flags = HvMessageFlags::new().with_message_pending(more);
        if fill(pages, slot, &message).is_err() {
            return Raised::default();
        }
        match place {
            Place::Buffer(place) => self.buffers.0[place] = None,
            Place::Timer(index) => self.timers[index].undelivered = None,
        }
        self.raise(sint)
    }

    fn message_at(&self, place: &Place, now: u64) -> Option<HvMessage> {
        match *place {
            Place::Buffer(place) => self.buffers.0[place].map(|waiting| waiting.message),
            Place::Timer(index) => {
                let undelivered = self.timers[index].undelivered?;
                let payload = TimerMessagePayload {
                    timer: index as u32,
                    reserved: 0,
                    expiration_time: undelivered.expired_at,
                    delivery_time: now,
                };
                message(HvMessageType::TIMER_EXPIRED.0, 0, payload.as_bytes())
            }
        }
    }

    /// What an arrival at a source leads to; nothing if it is masked or polled.
    fn raise(&self, sint: u8) -> Raised {
        let source = self.sints[usize::from(sint)];
        let mut raised = Raised::default();
        if source.masked() || source.polling() {
            return raised;
        }
        if source.as_intercept() {
            raised.intercepted = 1 << sint;
        } else if source.proxy() {
            raised.proxied.insert(source.vector());
        } else {
            raised.interrupts.insert(source.vector());
        }
        raised
    }
}

impl Default for Synic {
    fn default() -> Self {
        Self::new()
    }
}

fn check_sint(sint: u8) -> Result<(), HvStatus> {
    if usize::from(sint) < HV_SYNIC_SINT_COUNT {
        Ok(())
    } else {
        Err(HvStatus::INVALID_PARAMETER)
    }
}

fn check_message(message: &HvMessage) -> Result<(), HvStatus> {
    let header = &message.header;
    if header.message_type == HvMessageType::NONE
        || usize::from(header.payload_size) > HV_MESSAGE_PAYLOAD_SIZE
    {
        Err(HvStatus::INVALID_PARAMETER)
    } else {
        Ok(())
    }
}

/// A message, if the payload fits.
fn message(message_type: u32, sender: u64, payload: &[u8]) -> Option<HvMessage> {
    let mut message = HvMessage {
        header: HvMessageHeader {
            message_type: HvMessageType(message_type),
            payload_size: u8::try_from(payload.len()).ok()?,
            flags: HvMessageFlags::new(),
            reserved: [0; 2],
            sender,
        },
        payload: [0; HV_MESSAGE_PAYLOAD_SIZE],
    };
    message
        .payload
        .get_mut(..payload.len())?
        .copy_from_slice(payload);
    Some(message)
}

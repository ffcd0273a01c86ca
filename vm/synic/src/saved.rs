//! Saving and restoring, as plain values. The guest's pages are saved with its memory.

use crate::controller::{OverlayPageBits, Synic};
use crate::messages::{BUFFERS, GUEST_MESSAGES, Waiting};
use crate::timer::{Timer, Undelivered};
use hv_defs::synic::{
    HV_MESSAGE_PAYLOAD_SIZE, HV_SYNIC_SINT_COUNT, HV_SYNIC_STIMER_COUNT, HvMessage, HvMessageType,
    SyntheticSource, TimerConfig,
};
use thiserror::Error;

/// State of a synthetic timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedTimer {
    /// Configuration register.
    pub config: u64,
    /// Count register.
    pub count: u64,
    /// Reference time of the next expiration.
    pub expires: Option<u64>,
    /// Reference time of an expiration whose message waits, and its place among those that
    /// wait.
    pub undelivered: Option<(u64, u64)>,
}

/// A message that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedMessage {
    /// Source.
    pub sint: u8,
    /// Place among those that wait.
    pub order: u64,
    /// Message.
    pub message: HvMessage,
}

/// State of a SynIC; some 5 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedSynic {
    /// SCONTROL.
    pub control: u64,
    /// SIEFP.
    pub event_page: u64,
    /// SIMP.
    pub message_page: u64,
    /// SINT0 to SINT15.
    pub sints: [u64; HV_SYNIC_SINT_COUNT],
    /// Timers.
    pub timers: [SavedTimer; HV_SYNIC_STIMER_COUNT],
    /// Messages that wait; the last one is an intercept's.
    pub messages: [Option<SavedMessage>; BUFFERS],
    /// Sources whose readiness is awaited.
    pub awaited: u16,
}

/// Why a state cannot be restored. The SynIC is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("saved SynIC has {field} = {value:#x}, expected {expected}")]
pub struct RestoreError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// What is possible.
    pub expected: &'static str,
}

impl SavedSynic {
    /// The state after reset, to be filled by [`Synic::save`].
    pub const EMPTY: Self = Self {
        control: 0,
        event_page: 0,
        message_page: 0,
        sints: [SyntheticSource::new().with_masked(true).into_bits(); HV_SYNIC_SINT_COUNT],
        timers: [SavedTimer {
            config: 0,
            count: 0,
            expires: None,
            undelivered: None,
        }; HV_SYNIC_STIMER_COUNT],
        messages: [None; BUFFERS],
        awaited: 0,
    };
}

impl Synic {
    /// Saves the state; into place, because it is large.
    pub fn save(&self, into: &mut SavedSynic) {
        into.control = self.control;
        into.event_page = self.event_page.0;
        into.message_page = self.message_page.0;
        into.sints = self.sints.map(SyntheticSource::into_bits);
        into.timers = self.timers.map(|timer| SavedTimer {
            config: timer.config.into_bits(),
            count: timer.count,
            expires: timer.expires,
            undelivered: timer.undelivered.map(|u| (u.expired_at, u.order)),
        });
        for (into, buffer) in into.messages.iter_mut().zip(&self.buffers.0) {
            *into = buffer.as_ref().map(|waiting| SavedMessage {
                sint: waiting.sint,
                order: waiting.order,
                message: waiting.message,
            });
        }
        into.awaited = self.awaited;
    }

    /// Restores a state; no page is touched.
    ///
    /// # Errors
    /// A field has a value that a SynIC can never have.
    pub fn restore(&mut self, saved: &SavedSynic) -> Result<(), RestoreError> {
        for sint in saved.sints.map(SyntheticSource::from_bits) {
            if sint.vector() < 16 && !sint.masked() {
                return Err(error("sints", sint.into_bits(), "a vector from 16 to 255"));
            }
        }
        for timer in &saved.timers {
            check_timer(timer)?;
        }
        for message in saved.messages.iter().flatten() {
            check_message(message)?;
        }
        self.control = saved.control;
        self.event_page = OverlayPageBits(saved.event_page);
        self.message_page = OverlayPageBits(saved.message_page);
        self.sints = saved.sints.map(SyntheticSource::from_bits);
        self.timers = saved.timers.map(|timer| Timer {
            config: TimerConfig::from_bits(timer.config),
            count: timer.count,
            expires: timer.expires,
            rest_until: 0,
            undelivered: timer
                .undelivered
                .map(|(expired_at, order)| Undelivered { order, expired_at }),
        });
        self.order = 0;
        for (buffer, message) in self.buffers.0.iter_mut().zip(&saved.messages) {
            *buffer = message.as_ref().map(|message| Waiting {
                sint: message.sint,
                order: message.order,
                message: message.message,
            });
        }
        let of_buffers = self.buffers.0.iter().flatten().map(|waiting| waiting.order);
        let of_timers = self
            .timers
            .iter()
            .filter_map(|t| Some(t.undelivered?.order));
        self.order = of_buffers.chain(of_timers).max().unwrap_or(0);
        self.awaited = saved.awaited;
        Ok(())
    }

    /// Messages of others that wait.
    pub fn queued(&self) -> usize {
        self.buffers.0[..GUEST_MESSAGES].iter().flatten().count()
    }
}

const fn error(field: &'static str, value: u64, expected: &'static str) -> RestoreError {
    RestoreError {
        field,
        value,
        expected,
    }
}

/// Orders of 2^63 and more would wrap one day.
fn check_order(order: u64) -> Result<(), RestoreError> {
    if order >> 63 == 0 {
        Ok(())
    } else {
        Err(error("order", order, "less than 2^63"))
    }
}

fn check_timer(timer: &SavedTimer) -> Result<(), RestoreError> {
    let config = TimerConfig::from_bits(timer.config);
    let possible = timer.config & TimerConfig::RESERVED == 0
        && (!config.enabled() || config.direct() || config.sint() != 0);
    if !possible {
        return Err(error("timers.config", timer.config, "a timer's value"));
    }
    if timer.expires.is_some() && (!config.enabled() || timer.count == 0) {
        return Err(error("timers.count", timer.count, "a timer that runs"));
    }
    timer
        .undelivered
        .map_or(Ok(()), |(_, order)| check_order(order))
}

fn check_message(message: &SavedMessage) -> Result<(), RestoreError> {
    let header = &message.message.header;
    let size = header.payload_size;
    if usize::from(message.sint) >= HV_SYNIC_SINT_COUNT {
        return Err(error("messages.sint", message.sint.into(), "less than 16"));
    }
    if header.message_type == HvMessageType::NONE {
        return Err(error("messages.type", 0, "not zero"));
    }
    if usize::from(size) > HV_MESSAGE_PAYLOAD_SIZE {
        return Err(error("messages.size", size.into(), "at most 240"));
    }
    check_order(message.order)
}

//! Channels for one message.

use crate::channel::Receiver;
use crate::channel::RecvError;
use crate::channel::SendError;
use crate::channel::Sender;
use crate::channel::TrySendError;
use crate::channel::channel_with_capacity;
use crate::message::Message;
use serde::Deserialize;
use serde::Serialize;
use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

/// Makes a channel for one message.
pub fn oneshot<T: Message>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let (sender, receiver) = channel_with_capacity(1);
    (OneshotSender(sender), OneshotReceiver(receiver))
}

/// Sends the message of a [`oneshot()`]. Dropped before, it closes the channel. It can be
/// sent in a message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct OneshotSender<T: Message>(Sender<T>);

/// The future of the message of a [`oneshot()`]. It can be sent in a message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct OneshotReceiver<T: Message>(Receiver<T>);

impl<T: Message> OneshotSender<T> {
    /// Sends the message. The queue has a place for it.
    ///
    /// # Errors
    /// The receiver is gone, or the message cannot travel.
    pub fn send(self, message: T) -> Result<(), SendError> {
        match self.0.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Failed(error)) => Err(error),
            // Only a peer that has filled the queue itself gets here.
            Err(TrySendError::Full(_)) => Err(SendError::Closed),
        }
    }
}

impl<T: Message> Future for OneshotReceiver<T> {
    type Output = Result<T, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_recv(cx)
    }
}

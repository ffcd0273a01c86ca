//! Tests that need more than the public interface.

mod handover;
mod hostile;
mod hostile_calls;
mod local;

use crate::codec;
use crate::connection::Connections;
use crate::message::Message;

/// An encoded message on its way to another process.
struct Travelling(codec::Encoded);

impl Travelling {
    /// Encodes `value` and drops it, as a channel does.
    fn depart<T: Message>(value: T) -> Self {
        Self(codec::encode(&value, None, 0).expect("an encoding"))
    }

    fn arrive<T: Message>(self) -> T {
        let Self(encoded) = self;
        encoded.guards.sent();
        let mut connections = Connections::default();
        match codec::decode(&encoded.bytes, encoded.descriptors, &mut connections) {
            Ok(value) => value,
            Err(error) => panic!("cannot be decoded: {error:?}"),
        }
    }
}

/// As if `value` had gone to another process.
fn travel<T: Message>(value: T) -> T {
    Travelling::depart(value).arrive()
}

/// Runs `test` as a task of a single-threaded runtime.
fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(async { tokio::spawn(test).await });
    if let Err(error) = result {
        std::panic::resume_unwind(error.into_panic());
    }
}

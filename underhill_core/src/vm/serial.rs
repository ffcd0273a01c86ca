//! A serial port of the guest, and the client at its other end.
//!
//! Three parties meet at [`Shared`]: the UART, which never waits ([`Backend`]); a task on
//! the worker's runtime that moves bytes to and from a client ([`serve`]); and whoever
//! ends the machine ([`Port::finish`]).
//!
//! * One client at a time. A new one replaces the old, because a terminal that was closed
//!   by force may still look connected.
//! * **Output** with a client: at most [`ATTACHED_MAX`] bytes wait; then the UART gets no
//!   room, and the guest waits. Nothing is lost. Without a client the last [`RING`] bytes
//!   are kept, which the next client gets first.
//! * **Input**: at most [`INPUT_MAX`] bytes wait for the UART; then the client's socket is
//!   not read, and the client waits. Nothing is lost. Input outlives its client.
//! * When another worker takes over, the connection ends. What waits here, and what has
//!   arrived at the socket ([`Port::fetch`]), goes along; what is still on its way is lost.

use byte_stream::Listener;
use byte_stream::MAX_WRITE;
use byte_stream::Stream;
use chipset::uart::SerialBackend;
use inspect::Inspect;
use inspect::Unit;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::Notify;

/// vsock port of COM1: the number of its first I/O port.
pub(crate) const COM1_VSOCK: u32 = 0x3f8;
/// vsock port of COM2.
pub(crate) const COM2_VSOCK: u32 = 0x2f8;

/// Bytes of output that are kept for a client that is not there yet.
const RING: usize = 256 << 10;
/// Bytes of output that may wait for a client: enough for one write to its socket, little
/// enough for a terminal to stop soon after Ctrl-C.
const ATTACHED_MAX: usize = 16 << 10;
/// Bytes of input that may wait for the UART.
const INPUT_MAX: usize = 4 << 10;

/// Bytes of input that are fetched besides, so that the next worker has them: what a socket
/// holds.
const FETCHED_MAX: usize = 256 << 10;

/// How long a client may take to fetch the last output; whoever ends the machine waits less.
const FAREWELL: Duration = Duration::from_secs(60);

/// A serial port. Clones are the same port.
#[derive(Clone, Default)]
pub(crate) struct Port(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is output, or the machine is about to end.
    output: Notify,
    /// There is room for input.
    room: Notify,
    /// All output has been passed on after `ending` was set.
    drained: Notify,
    /// Input is to be fetched, whatever room there is.
    fetch: Notify,
    /// It has been.
    fetched: Notify,
    /// Nothing more is to be passed on.
    closed: Notify,
}

#[derive(Default)]
struct State {
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    attached: bool,
    /// The UART has more output than there was room for.
    held: bool,
    /// Input is to be fetched, and has not been yet.
    fetching: bool,
    /// The machine is about to end: no more clients, and the last one gets the rest.
    ending: bool,
    counters: Counters,
}

#[derive(Default, Inspect)]
struct Counters {
    /// Clients so far.
    #[inspect(counter)]
    clients: u64,
    /// Bytes that clients got.
    #[inspect(counter)]
    sent: u64,
    /// Bytes that clients gave.
    #[inspect(counter)]
    received: u64,
    /// Bytes that no client came for in time.
    #[inspect(counter)]
    dropped: u64,
}

/// What waits in a port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SavedPort {
    #[prost(bytes = "vec", tag = "1")]
    output: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    input: Vec<u8>,
}

/// The UART's end of a port.
pub(crate) struct Backend(Arc<Shared>);

impl Port {
    /// The end for the UART.
    pub(crate) fn backend(&self) -> Box<dyn SerialBackend> {
        Box::new(Backend(self.0.clone()))
    }

    /// What waits in it.
    pub(crate) fn save(&self) -> SavedPort {
        let state = self.0.lock();
        SavedPort {
            output: state.output.iter().copied().collect(),
            input: state.input.iter().copied().collect(),
        }
    }

    /// Fetches all that the client has sent and that has arrived: with the connection it
    /// would be lost.
    pub(crate) async fn fetch(&self) {
        self.0.lock().fetching = true;
        self.0.fetch.notify_one();
        loop {
            {
                let mut state = self.0.lock();
                state.fetching &= state.attached;
                if !state.fetching {
                    return;
                }
            }
            self.0.fetched.notified().await;
        }
    }

    /// Has wait in it what waited in another one, as far as there is room. No client may be
    /// served yet: what it sends comes later.
    pub(crate) fn restore(&self, saved: &SavedPort) {
        let mut state = self.0.lock();
        let input = saved.input.len().min(INPUT_MAX + FETCHED_MAX);
        state.input = saved.input[..input].to_vec().into();
        let output = saved.output.len().saturating_sub(RING);
        state.output = saved.output[output..].to_vec().into();
    }

    /// Ends the connection, and drops what waits: somebody else has it.
    pub(crate) fn close(&self) {
        {
            let mut state = self.0.lock();
            state.ending = true;
            state.output.clear();
            state.input.clear();
        }
        self.0.closed.notify_one();
    }

    /// Before the machine ends: waits at most `patience` until the client, if there is
    /// one, has got all output.
    pub(crate) async fn finish(&self, patience: Duration) {
        let drained = self.0.drained.notified();
        {
            let mut state = self.0.lock();
            state.ending = true;
            if !state.attached {
                return;
            }
        }
        self.0.output.notify_one();
        let _ = tokio::time::timeout(patience, drained).await;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the front of the output; `None`: there is none now, `Some(0)`: nor will be.
    fn peek_output(&self, buffer: &mut [u8]) -> Option<usize> {
        let state = self.lock();
        if state.output.is_empty() {
            return state.ending.then_some(0);
        }
        let (front, back) = state.output.as_slices();
        let first = front.len().min(buffer.len());
        buffer[..first].copy_from_slice(&front[..first]);
        let second = back.len().min(buffer.len() - first);
        buffer[first..first + second].copy_from_slice(&back[..second]);
        Some(first + second)
    }

    /// Removes what was written, and says if the UART waits for the room.
    fn consume_output(&self, count: usize) -> bool {
        let mut state = self.lock();
        state.output.drain(..count);
        if state.output.is_empty() {
            // A full ring is a lot of memory for a port that is quiet most of the time.
            state.output.shrink_to(ATTACHED_MAX);
        }
        state.counters.sent += count as u64;
        state.output.len() < ATTACHED_MAX && std::mem::take(&mut state.held)
    }

    /// A client has come; false: too late.
    fn attach(&self) -> bool {
        let mut state = self.lock();
        if state.ending {
            return false;
        }
        state.attached = true;
        state.counters.clients += 1;
        true
    }

    /// The client has gone. Says if the UART waits for room, which there is now.
    fn detach(&self) -> bool {
        let mut state = self.lock();
        state.attached = false;
        if state.ending {
            self.drained.notify_waiters();
        }
        self.fetched.notify_one();
        std::mem::take(&mut state.held)
    }

    fn input_room(&self) -> usize {
        // More may have been fetched.
        INPUT_MAX.saturating_sub(self.lock().input.len())
    }

    /// Does what [`Port::fetch`] asks for.
    fn fetch_from(&self, client: &Stream) -> io::Result<()> {
        let mut buffer = vec![0; INPUT_MAX];
        loop {
            let room = (INPUT_MAX + FETCHED_MAX).saturating_sub(self.lock().input.len());
            let part = room.min(buffer.len());
            if part == 0 {
                return Ok(());
            }
            match client.read_now(&mut buffer[..part])? {
                // The end is for `receive` to see.
                None | Some(0) => return Ok(()),
                Some(count) => self.push_input(&buffer[..count]),
            }
        }
    }

    fn push_input(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.input.extend(bytes);
        state.counters.received += bytes.len() as u64;
    }
}

impl State {
    /// Room for output.
    fn room(&self) -> usize {
        let limit = if self.attached { ATTACHED_MAX } else { RING };
        limit.saturating_sub(self.output.len())
    }

    /// Keeps the end of the output that nobody fetches.
    fn keep(&mut self, bytes: &[u8]) {
        let excess = (self.output.len() + bytes.len()).saturating_sub(RING);
        let oldest = excess.min(self.output.len());
        self.output.drain(..oldest);
        self.output.extend(&bytes[excess - oldest..]);
        self.counters.dropped += excess as u64;
    }
}

impl SerialBackend for Backend {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut state = self.0.lock();
        let was_empty = state.output.is_empty();
        let taken = if state.attached {
            let taken = bytes.len().min(state.room());
            state.output.extend(&bytes[..taken]);
            state.held = taken < bytes.len();
            taken
        } else {
            state.keep(bytes);
            bytes.len()
        };
        let wake = state.attached && was_empty && taken > 0;
        drop(state);
        // A system call: only when the task may be waiting.
        if wake {
            self.0.output.notify_one();
        }
        taken
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut state = self.0.lock();
        let was_full = state.input.len() >= INPUT_MAX;
        let count = buffer.len().min(state.input.len());
        for (byte, taken) in buffer.iter_mut().zip(state.input.drain(..count)) {
            *byte = taken;
        }
        let left = state.input.len();
        drop(state);
        if was_full && left < INPUT_MAX {
            self.0.room.notify_one();
        }
        count
    }
}

/// Serves clients of `listener`, one after the other. `poll` polls the UART.
///
/// # Errors
/// The listener fails.
pub(crate) async fn serve(port: Port, listener: Listener, poll: impl Fn()) -> io::Result<()> {
    let shared = &port.0;
    let mut next = listener.accept().await?;
    loop {
        if !shared.attach() {
            return Ok(());
        }
        let client = next;
        let replaced = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            () = attend(shared, &client, &poll) => None,
        };
        drop(client);
        // Whatever comes next: the guest must not wait for a client that has gone.
        if shared.detach() {
            poll();
        }
        next = match replaced {
            Some(accepted) => accepted?,
            None => listener.accept().await?,
        };
    }
}

/// Moves bytes until the client has gone.
async fn attend(shared: &Shared, client: &Stream, poll: &impl Fn()) {
    let result = tokio::select! {
        // The first, because what the others would pass on is somebody else's then.
        biased;
        () = shared.closed.notified() => Ok(()),
        result = send(shared, client, poll) => result,
        result = receive(shared, client, poll) => result.map(|never| match never {}),
        result = fetch(shared, client) => result.map(|never| match never {}),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client of a serial port has gone");
    }
}

/// Passes output on. Ends when the machine does, and all has been passed on.
async fn send(shared: &Shared, client: &Stream, poll: &impl Fn()) -> io::Result<()> {
    let mut buffer = vec![0; MAX_WRITE];
    loop {
        match shared.peek_output(&mut buffer) {
            None => shared.output.notified().await,
            Some(0) => {
                client.finish(FAREWELL).await;
                return Ok(());
            }
            Some(count) => {
                let written = client.write(&buffer[..count]).await?;
                if shared.consume_output(written) {
                    poll();
                }
            }
        }
    }
}

/// Passes input on, until there is no more.
async fn receive(shared: &Shared, client: &Stream, poll: &impl Fn()) -> io::Result<Infallible> {
    let mut buffer = vec![0; INPUT_MAX];
    loop {
        let room = shared.input_room();
        if room == 0 {
            shared.room.notified().await;
            continue;
        }
        match client.read(&mut buffer[..room]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                shared.push_input(&buffer[..count]);
                poll();
            }
        }
    }
}

/// Fetches input whenever that is asked for.
async fn fetch(shared: &Shared, client: &Stream) -> io::Result<Infallible> {
    loop {
        shared.fetch.notified().await;
        let result = shared.fetch_from(client);
        shared.lock().fetching = false;
        shared.fetched.notify_one();
        result?;
    }
}

impl Inspect for Port {
    fn inspect(&self, request: inspect::Request<'_>) {
        let state = self.0.lock();
        request
            .respond()
            .field("attached", &state.attached)
            .unit("output_waiting", Unit::Bytes, &state.output.len())
            .unit("input_waiting", Unit::Bytes, &state.input.len())
            .field("held", &state.held)
            .merge(&state.counters);
    }
}

#[cfg(test)]
mod tests;

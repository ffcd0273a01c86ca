//! Bounds on what peers can make the server hold.

use std::time::Duration;

/// Bounds on what peers can make the server hold. The defaults suit a paravisor with few
/// mebibytes to spare and clients that are people or test programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Control connections at once. Another one is closed right away.
    pub control_connections: usize,
    /// Data connections at once, idle or in use. Another one takes the place of the oldest
    /// that no request has named yet; if there is none it is closed right away.
    pub data_connections: usize,
    /// Requests at once per control connection. While there are as many, nothing more is
    /// read from the connection.
    pub requests_per_connection: usize,
    /// Longest request, and longest response. Also the least `request_bytes`.
    pub message_bytes: usize,
    /// Bytes of all requests that are being received or carried out. A message for which
    /// there is no room is left in its socket until there is.
    pub request_bytes: usize,
    /// The same for messages of at most [`Limits::SMALL_MESSAGE`] bytes, which do not count
    /// there: peers that are slow with large ones hold up nobody's ping.
    pub small_request_bytes: usize,
    /// Requests at once, of all connections, whose answers can be large (inspect, saved
    /// state). Each counts until its answer has been taken by the socket. A connection has
    /// one at a time, so that a peer that does not read does not hold up the others.
    pub large_answers: usize,
    /// Longest path for inspect and longest value for update.
    pub path_bytes: usize,
    /// Most fields of a request's payload, repeated ones counted one by one.
    pub payload_fields: usize,
    /// Processes that clients have started and that run. One more is refused.
    pub processes: usize,
    /// Exit codes kept of processes that nobody has waited for; the oldest is forgotten.
    pub exit_codes: usize,
    /// A control connection is closed if a request that has begun to arrive is not complete
    /// after so long, or if its peer does not take a response in so long.
    pub transfer: Duration,
    /// How long requests of a client that sends no more are still carried out. (On vsock, a
    /// client that has gone looks the same.)
    pub half_closed: Duration,
    /// How long a data connection whose data are all sent is kept for the peer to fetch
    /// them and close it. It does not count as a data connection any more.
    pub linger: Duration,
    /// How many such connections are kept. Another one is closed right away, which can lose
    /// what its peer has not fetched yet.
    pub lingering: usize,
    /// How long the server, when it shall end, waits for answers to be delivered.
    pub drain: Duration,
    /// How long after the client's deadline an inspection may still be answered.
    pub inspect_grace: Duration,
}

impl Limits {
    /// Most bytes of a small message; nearly all are.
    pub const SMALL_MESSAGE: usize = 4 << 10;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            control_connections: 256,
            data_connections: 128,
            requests_per_connection: 32,
            message_bytes: 4 << 20,
            request_bytes: 12 << 20,
            small_request_bytes: 2 << 20,
            large_answers: 4,
            path_bytes: 4096,
            payload_fields: 4096,
            processes: 32,
            exit_codes: 64,
            transfer: Duration::from_secs(30),
            half_closed: Duration::from_secs(5),
            linger: Duration::from_secs(30),
            lingering: 256,
            drain: Duration::from_millis(500),
            inspect_grace: Duration::from_secs(1),
        }
    }
}

//! Accepts connections.

use crate::Exposure;
use crate::Handler;
use crate::Options;
use crate::connection;
use crate::service::Service;
use crate::stats::ServerStats;
use crate::tasks::EndTasks;
use byte_stream::Listener;
use byte_stream::Stream;
use std::future::Future;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where clients connect to.
pub struct Listeners {
    /// ttrpc; on vsock [`diag_proto::PORT_CONTROL`].
    pub control: Listener,
    /// Streams of bytes; on vsock [`diag_proto::PORT_DATA`].
    pub data: Listener,
}

/// The server cannot go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A listening socket has failed.
    #[error("{kind} connections can no longer be accepted")]
    Accept {
        /// Of which connections.
        kind: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// Serves until `shutdown` resolves; then answers that are ready are delivered, within
/// twice [`Limits::drain`](crate::Limits::drain), and the rest is dropped. Processes that
/// clients have started go on, but lose their streams.
///
/// Must run on a tokio runtime with I/O and time.
///
/// # Errors
///
/// A listening socket fails. What peers do never ends the server.
pub async fn serve<H: Handler>(
    listeners: Listeners,
    handler: Arc<H>,
    options: Options,
    stats: Arc<ServerStats>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Listeners { control, data } = listeners;
    // Without the services that need data connections, nobody can connect.
    let data = (options.exposure == Exposure::Everything).then_some(data);
    let most = options.limits.control_connections;
    let service = Arc::new(Service::new(handler, options, stats));
    let _end_tasks = EndTasks(service.tasks.clone());
    let (stopping, stop) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            stream = control.accept() => {
                let stream = stream.map_err(accept_error("control"))?;
                if connections.len() < most {
                    connections.spawn(connection::run(service.clone(), stream, stop.clone()));
                } else {
                    service.stats.control_connections_refused.count();
                }
            }
            stream = accept(data.as_ref()) => {
                service.data.admit(stream.map_err(accept_error("data"))?);
            }
            Some(_) = connections.join_next() => {}
            () = &mut shutdown => break,
        }
    }
    drop((control, data, stopping));
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn accept(listener: Option<&Listener>) -> io::Result<Stream> {
    match listener {
        Some(listener) => listener.accept().await,
        None => pending().await,
    }
}

fn accept_error(kind: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Accept { kind, source }
}

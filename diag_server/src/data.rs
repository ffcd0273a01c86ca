//! Data connections: streams of bytes that requests name by number.

use crate::Limits;
use crate::Status;
use crate::stats::Held;
use crate::stats::ServerStats;
use crate::tasks::Tasks;
use byte_stream::Stream;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// All data connections.
pub(crate) struct DataConnections {
    table: Mutex<Table>,
    most: usize,
    transfer: Duration,
    lingering: Lingering,
    stats: Arc<ServerStats>,
    tasks: Arc<Tasks>,
}

struct Table {
    next_id: u64,
    /// Those that no request has named yet. The oldest has the lowest id.
    idle: BTreeMap<u64, Idle>,
}

struct Idle {
    connection: DataConnection,
    watcher: AbortHandle,
}

/// A data connection that somebody uses. It counts until it is dropped.
pub(crate) struct DataConnection {
    stream: Arc<Stream>,
    lingering: Lingering,
    counted: Held,
}

/// How connections end.
#[derive(Clone)]
struct Lingering {
    /// How long the peer may take to fetch what it was sent.
    patience: Duration,
    /// A permit for each connection that waits for that.
    permits: Arc<Semaphore>,
}

impl DataConnections {
    pub(crate) fn new(limits: &Limits, stats: Arc<ServerStats>, tasks: Arc<Tasks>) -> Self {
        Self {
            table: Mutex::new(Table {
                next_id: 1,
                idle: BTreeMap::new(),
            }),
            most: limits.data_connections,
            transfer: limits.transfer,
            lingering: Lingering {
                patience: limits.linger,
                permits: Arc::new(Semaphore::new(limits.lingering)),
            },
            stats,
            tasks,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new connection, tells it its id, and forgets it when it is hung up before
    /// a request has named it.
    pub(crate) fn admit(self: &Arc<Self>, stream: Stream) {
        let mut table = self.table();
        if self.stats.data_connections.get() >= self.most as u64 {
            let Some((id, oldest)) = table.idle.pop_first() else {
                self.stats.data_connections_refused.count();
                return;
            };
            oldest.watcher.abort();
            self.stats.data_connections_evicted.count();
            tracing::debug!(id, "a data connection was never used and is evicted");
        }
        let id = table.next_id;
        table.next_id += 1;
        let stream = Arc::new(stream);
        let connection = DataConnection {
            stream: stream.clone(),
            lingering: self.lingering.clone(),
            counted: self.stats.data_connections.hold(1),
        };
        let this = self.clone();
        let watcher = self.tasks.spawn(async move {
            let told = timeout(this.transfer, stream.write_all(&id.to_le_bytes())).await;
            if let Ok(Ok(())) = told {
                stream.hung_up().await;
            }
            this.table().idle.remove(&id);
        });
        let idle = Idle {
            connection,
            watcher,
        };
        table.idle.insert(id, idle);
    }

    /// The connection `id`, which can be taken once.
    pub(crate) fn take(&self, id: u64) -> Result<DataConnection, Status> {
        let idle = self.table().idle.remove(&id).ok_or_else(|| {
            Status::not_found(format_args!(
                "data connection {id} does not exist: never made, hung up, evicted or already used"
            ))
        })?;
        idle.watcher.abort();
        Ok(idle.connection)
    }

    /// The connection `id`; none for 0.
    pub(crate) fn take_optional(&self, id: u64) -> Result<Option<DataConnection>, Status> {
        (id != 0).then(|| self.take(id)).transpose()
    }
}

impl DataConnection {
    /// Ends the connection, whose data are all sent, in a way that the peer can still fetch
    /// them. It makes room for another one at once.
    pub(crate) async fn finish(self) {
        let Self {
            stream,
            lingering,
            counted,
        } = self;
        drop(counted);
        // If too many wait already, the system must do what it can.
        if let Ok(_permit) = lingering.permits.try_acquire() {
            stream.finish(lingering.patience).await;
        }
    }
}

impl Deref for DataConnection {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

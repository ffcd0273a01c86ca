//! Tasks that outlive the request that has started them.

use std::future::Future;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;

/// Tasks that outlive the request that has started them, but not the server. How many there
/// can be follows from the connections and processes that they serve.
#[derive(Default)]
pub(crate) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget those that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task)
    }
}

/// Ends all tasks when it is dropped. (The tasks hold what holds their set.)
pub(crate) struct EndTasks(pub(crate) Arc<Tasks>);

impl Drop for EndTasks {
    fn drop(&mut self) {
        let mut tasks = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.abort_all();
    }
}

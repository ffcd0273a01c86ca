//! The worker's guest, if it has one: from the image's files to a [`Vm`].

use crate::clock::Stamp;
use crate::protocol::GuestEvent;
use crate::protocol::OnGuestCrash;
use crate::vm;
use crate::vm::Happening;
use crate::vm::SavedVm;
use crate::vm::Setup;
use crate::vm::Vm;
use byte_stream::Listener;
use inspect::Inspect;
use std::error::Error;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use virt::Partition;

/// Opens the partition when there is something to run in it.
pub(crate) type OpenPartition<'a> =
    &'a dyn Fn() -> Result<Arc<dyn Partition>, Box<dyn Error + Send + Sync>>;

/// What a guest is started from.
pub(crate) struct Start<'a> {
    /// Directory of its files.
    pub(crate) directory: &'a Path,
    /// Its partition.
    pub(crate) partition: OpenPartition<'a>,
    /// What is done when it has crashed.
    pub(crate) on_crash: OnGuestCrash,
    /// See [`Setup::leave_on_exit`].
    pub(crate) leave_on_exit: bool,
    /// State of the guest that the worker before has run.
    pub(crate) saved: Option<SavedVm>,
}

/// The guest.
pub(crate) enum Guest {
    /// The image carries none.
    None,
    /// It could not be started; why.
    Failed(String),
    /// It has a machine.
    Vm(Box<Vm>),
}

impl Guest {
    /// Starts the guest. Moments are added to `stamps`. Must be called within a tokio
    /// runtime.
    pub(crate) async fn start(start: Start<'_>, stamps: &mut Vec<Stamp>) -> Self {
        if !start.directory.join(vm::KERNEL).exists() {
            return Self::None;
        }
        match Self::try_start(start, stamps).await {
            Ok(vm) => Self::Vm(Box::new(vm)),
            Err(error) => {
                let reason = kernel_log::chain(error.as_ref());
                tracing::error!("the guest is not started: {reason}");
                Self::Failed(reason)
            }
        }
    }

    async fn try_start(
        start: Start<'_>,
        stamps: &mut Vec<Stamp>,
    ) -> Result<Vm, Box<dyn Error + Send + Sync>> {
        let partition = (start.partition)()?;
        let setup = Setup {
            payload: PathBuf::from(start.directory),
            on_crash: start.on_crash,
            listeners: [listen(vm::COM1_VSOCK), listen(vm::COM2_VSOCK)],
            leave_on_exit: start.leave_on_exit,
        };
        let mut vm = Vm::new(partition, setup).await?;
        let started = match start.saved {
            Some(saved) => vm.restore(saved).await,
            None => vm.boot(stamps).await,
        };
        match started {
            Ok(()) => Ok(vm),
            Err(error) => {
                vm.end().await;
                Err(error.into())
            }
        }
    }

    /// What others should know about the start.
    pub(crate) fn first_event(&self) -> Option<GuestEvent> {
        match self {
            Self::Failed(reason) => Some(GuestEvent::Stopped {
                report: format!("the guest is not started: {reason}"),
            }),
            Self::None | Self::Vm(_) => None,
        }
    }

    /// Waits for something that [`Guest::handle`] must see.
    pub(crate) async fn happened(&mut self) -> Happening {
        match self {
            Self::Vm(vm) => vm.happened().await,
            Self::None | Self::Failed(_) => std::future::pending().await,
        }
    }

    /// Does what `happening` demands, and says what others should know.
    pub(crate) async fn handle(&mut self, happening: Happening) -> Vec<GuestEvent> {
        match self {
            Self::Vm(vm) => vm.handle(happening).await,
            Self::None | Self::Failed(_) => Vec::new(),
        }
    }

    /// Pauses it.
    pub(crate) async fn pause(&mut self) -> Result<(), String> {
        match self {
            Self::Vm(vm) => vm.pause().await.map_err(|error| error.to_string()),
            other => Err(other.absent("paused")),
        }
    }

    /// Lets it go on.
    pub(crate) fn resume(&mut self) -> Result<(), String> {
        match self {
            Self::Vm(vm) => vm.resume().map_err(|error| error.to_string()),
            other => Err(other.absent("resumed")),
        }
    }

    /// Has Linux get the CPU of `vp`, see [`Vm::online`].
    pub(crate) fn online(
        &self,
        vp: u32,
    ) -> impl Future<Output = Result<Option<String>, String>> + Send + use<> {
        let online = match self {
            Self::Vm(vm) => Ok(vm.online(vp)),
            other => Err(other.absent("run")),
        };
        async move { online?.await }
    }

    /// What another worker would need. The guest does not run until [`Guest::go_on`].
    pub(crate) async fn save(&mut self) -> Result<Option<SavedVm>, String> {
        let Self::Vm(vm) = self else { return Ok(None) };
        vm.save().await.map(Some).map_err(unsaved)
    }

    /// What the next worker needs. The guest does not run any more, unless that fails: then
    /// it goes on.
    pub(crate) async fn hand_over(&mut self) -> Result<Option<SavedVm>, String> {
        let Self::Vm(vm) = self else { return Ok(None) };
        match vm.hand_over().await {
            Ok(saved) => Ok(Some(saved)),
            Err(error) => {
                vm.go_on();
                Err(unsaved(error))
            }
        }
    }

    /// Goes on after [`Guest::save`].
    pub(crate) fn go_on(&mut self) {
        if let Self::Vm(vm) = self {
            vm.go_on();
        }
    }

    /// Ends it.
    pub(crate) async fn end(self) {
        if let Self::Vm(vm) = self {
            vm.end().await;
        }
    }

    fn absent(&self, action: &str) -> String {
        match self {
            Self::Failed(reason) => format!("the guest is not started: {reason}"),
            Self::None | Self::Vm(_) => format!("there is no guest that could be {action}"),
        }
    }
}

fn unsaved(error: vm::VmError) -> String {
    format!("the guest cannot be saved: {}", kernel_log::chain(&error))
}

/// Listens for clients of a serial port. A machine without vsock has none.
fn listen(port: u32) -> Option<Listener> {
    Listener::vsock(port)
        .inspect_err(|error| tracing::warn!(%error, "no serial port on vsock port {port:#x}"))
        .ok()
}

impl Inspect for Guest {
    fn inspect(&self, request: inspect::Request<'_>) {
        match self {
            Self::Vm(vm) => vm.inspect(request),
            Self::None => {
                request.respond().child("guest", |request| {
                    request.respond().field("state", "none");
                });
            }
            Self::Failed(reason) => {
                request.respond().child("guest", |request| {
                    request
                        .respond()
                        .field("state", "failed")
                        .field("report", reason);
                });
            }
        }
    }
}

//! What the paravisor process and the VM worker say to each other.

use crate::clock::Stamp;
use inspect::Inspect;
use inspect::Node;
use inspect::Query;
use mesh::Bytes;
use mesh::Receiver;
use mesh::Rpc;
use mesh::Sender;
use serde::Deserialize;
use serde::Serialize;

/// The name by which the worker is started.
pub const PERSONA: &str = "underhill_vm";

/// What a worker gets when it starts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// The machine.
    pub topology: Topology,
    /// What it shall do.
    pub settings: Settings,
    /// State of the worker before, as [`Request::HandOver`] returned it.
    pub saved_state: Option<Bytes>,
    /// Where its requests come from.
    pub requests: Receiver<Request>,
    /// Where it reports.
    pub events: Sender<Event>,
}

/// Configuration of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Inspect)]
pub struct Settings {
    /// Name of the VM.
    pub name: String,
    /// Which messages it logs.
    pub log_filter: String,
    /// How many workers there were before, whatever became of them.
    pub generation: u32,
    /// Requests exist that make it fail.
    pub test_hooks: bool,
    /// What is done when the guest has crashed.
    pub on_guest_crash: OnGuestCrash,
    /// Linux gets a CPU of the sidecar when the guest uses devices there again and again.
    pub leave_sidecar_on_exit: bool,
}

/// What is done when the guest has crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnGuestCrash {
    /// It stays as it is.
    Halt,
    /// It starts anew.
    Reset,
    /// The machine is switched off.
    PowerOff,
}

impl Inspect for OnGuestCrash {
    fn inspect(&self, request: inspect::Request<'_>) {
        request.value(match self {
            Self::Halt => "halt",
            Self::Reset => "reset",
            Self::PowerOff => "power_off",
        });
    }
}

/// The machine as the worker needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// APIC ids in the order of VP indices.
    pub vps: Vec<u32>,
    /// The guest's RAM: ranges in the order of addresses that do not overlap.
    pub memory: Vec<MemoryRange>,
    /// The nodes of the sidecar; none without one.
    pub sidecar: Vec<SidecarNode>,
}

/// VPs of which all but the first may be in the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Inspect)]
pub struct SidecarNode {
    /// GPA of the control page; the other pages follow.
    #[inspect(hex)]
    pub control_page: u64,
    /// The first VP.
    pub base_vp: u32,
    /// How many VPs, with the first.
    pub cpu_count: u32,
}

/// Bytes of the guest's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Inspect)]
pub struct MemoryRange {
    /// First address.
    #[inspect(hex)]
    pub start: u64,
    /// How many bytes.
    #[inspect(unit = "bytes")]
    pub size: u64,
}

impl Inspect for Topology {
    fn inspect(&self, request: inspect::Request<'_>) {
        request
            .respond()
            .field("vps", &self.vps.len())
            .field("apic_ids", &self.vps)
            .field("memory", &self.memory)
            .field("sidecar", &self.sidecar);
    }
}

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Is it alive?
    Ping(Rpc<(), ()>),
    /// What is in its part of the tree?
    Inspect(Rpc<Query, Node>),
    /// What would a worker after it need to know? An error says why that cannot be told.
    Save(Rpc<(), Result<Bytes, String>>),
    /// It shall end, and with it its guest if it has one.
    Stop(Rpc<(), ()>),
    /// It shall end, but not its guest: the answer is the state for the worker after it. An
    /// error says why there is none; then it goes on.
    HandOver(Rpc<(), Result<Bytes, String>>),
    /// It shall log by this filter from now on.
    SetLogFilter(String),
    /// The guest shall not run for a while; an error says why it does not run anyway.
    Pause(Rpc<(), Result<(), String>>),
    /// Linux shall have the CPU of a VP, if it is in the sidecar. The answer comes when it
    /// has, and says why it has; `None`: it had it before this worker. An error says why it
    /// has not.
    Online(Rpc<u32, Result<Option<String>, String>>),
    /// The guest shall run again.
    Resume(Rpc<(), Result<(), String>>),
}

/// What a worker reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It has started; `stamps` are moments of its start.
    Ready {
        /// In the order of time.
        stamps: Vec<Stamp>,
    },
    /// It cannot start, and ends.
    Failed {
        /// Why.
        reason: String,
    },
    /// The guest.
    Guest(GuestEvent),
}

/// What has become of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEvent {
    /// It was started anew.
    Reset {
        /// How that was asked for.
        source: String,
        /// How often it was.
        count: u64,
    },
    /// It has switched itself off.
    PoweredOff,
    /// It has crashed.
    Crashed {
        /// Lines of text: cause and registers.
        report: String,
        /// What is done now.
        action: OnGuestCrash,
    },
    /// It cannot go on, or could not be started.
    Stopped {
        /// Lines of text: why, and registers if there are.
        report: String,
    },
}

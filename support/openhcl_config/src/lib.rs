//! The configuration of the paravisor.
//!
//! It has two sources. The host may give a file: versioned JSON, on QEMU in fw_cfg's
//! [`FW_CFG_FILE`], on other hosts through another channel. And the kernel's command line
//! may hold options `OPENHCL_…`, which PID 1 passes on as environment variables.
//!
//! [`Config::load`] merges them by these rules, for each value on its own:
//!
//! 1. an option of the command line counts, because it is measured, or was let through by
//!    a measured policy;
//! 2. else what the file says;
//! 3. else the default.
//!
//! * Promises: every value is checked whichever source it has, and knows its [`Origin`];
//!   an error names the place in the file or the option, the value, and what was
//!   expected; work and memory are limited whatever the file holds.
//! * Refuses: unknown fields, unknown versions, values out of range. A configuration with
//!   one error is not used in part: whoever wrote it believes something that is not so.
//!
//! What a host that is not trusted (isolated VM) may not decide is dropped from its file,
//! see [`Sources::host_is_trusted`].

#![forbid(unsafe_code)]

mod error;
mod file;
mod merge;
mod options;
#[cfg(feature = "schema")]
mod schema;

pub use error::ConfigError;
pub use merge::Loaded;
pub use merge::Sources;
pub use options::OPTIONS;
pub use options::OptionHelp;
#[cfg(feature = "schema")]
pub use schema::schema;

use kernel_log::filter::Filter;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

/// Name of the file in QEMU's fw_cfg.
pub const FW_CFG_FILE: &str = "opt/openhcl/config";

/// The version of the file that this crate reads.
pub const VERSION: u32 = 1;

/// The largest file in bytes; a complete one needs about 1,000.
pub const FILE_SIZE_MAX: usize = 64 * 1024;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// The host's file.
    Host,
    /// This option of the command line.
    Option(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Host => f.write_str("host"),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Its source.
    pub origin: Origin,
}

impl<T> Deref for Setting<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// When the VM worker starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// As soon as the paravisor can.
    Now,
    /// When a client of the diagnostics says so.
    Wait,
}

/// What happens when the VM worker has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnCrash {
    /// Another one is started, as long as there were not too many.
    Restart,
    /// The VM stays failed, and the diagnostics stay up, until a client restarts it.
    Stop,
}

/// What happens when the guest has crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnGuestCrash {
    /// It stays as it is, for whoever looks into it.
    Halt,
    /// It starts anew.
    Reset,
    /// The machine is switched off.
    PowerOff,
}

impl fmt::Display for OnGuestCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Halt => "halt",
            Self::Reset => "reset",
            Self::PowerOff => "power_off",
        })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now => "now",
            Self::Wait => "wait",
        })
    }
}

impl fmt::Display for OnCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restart => "restart",
            Self::Stop => "stop",
        })
    }
}

/// The configuration, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the VM, for people.
    pub name: Setting<String>,
    /// Which messages reach the kernel's log.
    pub log_filter: Setting<Filter>,
    /// The diagnostics.
    pub diag: Diag,
    /// The VM worker.
    pub worker: Worker,
    /// What happens when the guest has crashed.
    pub on_guest_crash: Setting<OnGuestCrash>,
    /// Linux gets a processor of the sidecar when the guest uses devices there again and again.
    pub sidecar_leave_on_exit: Setting<bool>,
    /// How long an orderly end may take before what is left is killed.
    pub shutdown_deadline: Setting<Duration>,
    /// Requests exist that make the worker fail; only in images for development.
    pub test_hooks: Setting<bool>,
}

/// Configuration of the diagnostics: the switch, and what bounds their use of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diag {
    /// The server runs.
    pub enabled: Setting<bool>,
    /// Control connections at a time.
    pub max_connections: Setting<u32>,
    /// Requests in work at a time on each control connection.
    pub max_requests: Setting<u32>,
    /// Data connections at a time.
    pub max_data_connections: Setting<u32>,
    /// How long a client may take to send a request, or to take a response, before its
    /// connection is closed.
    pub transfer_deadline: Setting<Duration>,
}

/// Configuration of the VM worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// When it starts.
    pub start: Setting<Start>,
    /// How long it may take to say that it is ready.
    pub start_deadline: Setting<Duration>,
    /// What happens when it dies.
    pub on_crash: Setting<OnCrash>,
    /// How often it is started again within [`Worker::restart_window`].
    pub max_restarts: Setting<u32>,
    /// Restarts longer ago than this are forgotten.
    pub restart_window: Setting<Duration>,
    /// It is watched.
    pub watchdog: Setting<bool>,
    /// Time between two questions of the watchdog.
    pub watchdog_interval: Setting<Duration>,
    /// How long the answer may take.
    pub watchdog_deadline: Setting<Duration>,
}

impl Config {
    /// All values in the order of the file: path in the file, value, origin.
    pub fn for_each(&self, mut row: impl FnMut(&'static str, &dyn fmt::Display, Origin)) {
        fn ms(setting: &Setting<Duration>) -> Setting<u128> {
            Setting {
                value: setting.value.as_millis(),
                origin: setting.origin,
            }
        }
        macro_rules! rows {
            ($($path:literal: $setting:expr,)*) => {
                $( let setting = &$setting; row($path, &setting.value, setting.origin); )*
            };
        }
        let (diag, worker) = (&self.diag, &self.worker);
        rows! {
            "name": self.name,
            "log.filter": self.log_filter,
            "diag.enabled": diag.enabled,
            "diag.max_connections": diag.max_connections,
            "diag.max_requests": diag.max_requests,
            "diag.max_data_connections": diag.max_data_connections,
            "diag.transfer_deadline_ms": ms(&diag.transfer_deadline),
            "worker.start": worker.start,
            "worker.start_deadline_ms": ms(&worker.start_deadline),
            "worker.on_crash": worker.on_crash,
            "worker.max_restarts": worker.max_restarts,
            "worker.restart_window_ms": ms(&worker.restart_window),
            "worker.watchdog.enabled": worker.watchdog,
            "worker.watchdog.interval_ms": ms(&worker.watchdog_interval),
            "worker.watchdog.deadline_ms": ms(&worker.watchdog_deadline),
            "guest.on_crash": self.on_guest_crash,
            "sidecar.leave_on_exit": self.sidecar_leave_on_exit,
            "shutdown.deadline_ms": ms(&self.shutdown_deadline),
            "test_hooks": self.test_hooks,
        }
    }
}

//! The host's file, as it is written.
//!
//! Every value may be missing (or `null`), which means: as if nobody had said anything.

use crate::ConfigError;
use crate::FILE_SIZE_MAX;
use crate::OnCrash;
use crate::OnGuestCrash;
use crate::Start;
use crate::VERSION;
use serde::Deserialize;

/// Configuration of the OpenHCL paravisor, given by the host.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(title = "OpenHCL configuration"))]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Version of the format.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    pub(crate) version: u32,
    /// Name of the VM, for people: 1 to 64 printable characters. Default: "vm".
    pub(crate) name: Option<String>,
    /// The log.
    #[serde(default)]
    pub(crate) log: Log,
    /// The diagnostics server.
    #[serde(default)]
    pub(crate) diag: Diag,
    /// The VM worker.
    #[serde(default)]
    pub(crate) worker: Worker,
    /// The guest.
    #[serde(default)]
    pub(crate) guest: Guest,
    /// Processors that do not run Linux.
    #[serde(default)]
    pub(crate) sidecar: Sidecar,
    /// The orderly end of the paravisor.
    #[serde(default)]
    pub(crate) shutdown: Shutdown,
    /// Requests that make the worker fail, for tests. Only an image for development
    /// accepts true. Default: false.
    pub(crate) test_hooks: Option<bool>,
}

/// The log.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// Which messages reach the kernel's log: LEVEL or TARGET=LEVEL, separated by commas;
    /// levels are off, error, warn, info, debug, trace. Default: "info".
    pub(crate) filter: Option<String>,
}

/// The diagnostics server.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Diag {
    /// The server runs. Default: true.
    pub(crate) enabled: Option<bool>,
    /// Control connections at a time. Default: 256.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1024)))]
    pub(crate) max_connections: Option<u32>,
    /// Requests in work at a time on each control connection. Default: 32.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1024)))]
    pub(crate) max_requests: Option<u32>,
    /// Data connections at a time. Default: 128.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1024)))]
    pub(crate) max_data_connections: Option<u32>,
    /// How long a client may take to send a request or to take a response, in
    /// milliseconds. Default: 30000.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 3600000)))]
    pub(crate) transfer_deadline_ms: Option<u32>,
}

/// The VM worker.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Worker {
    /// When it starts. Default: "now".
    pub(crate) start: Option<Start>,
    /// How long it may take to get ready, in milliseconds. Default: 30000.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 3600000)))]
    pub(crate) start_deadline_ms: Option<u32>,
    /// What happens when it has died. Default: "restart".
    pub(crate) on_crash: Option<OnCrash>,
    /// How often it is started again within the window. Default: 5.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 1000)))]
    pub(crate) max_restarts: Option<u32>,
    /// Restarts longer ago are forgotten, in milliseconds. Default: 60000.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 3600000)))]
    pub(crate) restart_window_ms: Option<u32>,
    /// The watchdog.
    #[serde(default)]
    pub(crate) watchdog: Watchdog,
}

/// The watchdog of the VM worker.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Watchdog {
    /// The worker is watched. Default: true.
    pub(crate) enabled: Option<bool>,
    /// Time between two questions, in milliseconds. Default: 1000.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 3600000)))]
    pub(crate) interval_ms: Option<u32>,
    /// How long the answer may take, in milliseconds. Default: 10000.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 3600000)))]
    pub(crate) deadline_ms: Option<u32>,
}

/// The guest.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    /// What happens when it has crashed. Default: "halt".
    pub(crate) on_crash: Option<OnGuestCrash>,
}

/// Processors that do not run Linux.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Sidecar {
    /// Linux gets a processor when the guest uses devices there again and again. If not, only
    /// on request. Default: true.
    pub(crate) leave_on_exit: Option<bool>,
}

/// The orderly end.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Shutdown {
    /// How long it may take before what is left is killed, in milliseconds.
    /// Default: 5000. PID 1 allows ten seconds for everything.
    #[cfg_attr(feature = "schema", schemars(range(min = 10, max = 8000)))]
    pub(crate) deadline_ms: Option<u32>,
}

impl File {
    /// Reads the file's text.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > FILE_SIZE_MAX {
            return Err(ConfigError::TooLarge { size: bytes.len() });
        }
        check_version(bytes)?;
        // That it is JSON is known by now: whatever is wrong is wrong with a field.
        let mut json = serde_json::Deserializer::from_slice(bytes);
        serde_path_to_error::deserialize(&mut json).map_err(|error| ConfigError::Field {
            path: error.path().to_string().into(),
            message: error.into_inner().to_string().into(),
        })
    }
}

/// Another version may have other fields: its number is looked at before anything else.
fn check_version(bytes: &[u8]) -> Result<(), ConfigError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: Option<serde_json::Value>,
    }
    let found = match serde_json::from_slice::<Versioned>(bytes) {
        Ok(Versioned { version: None }) => "missing".to_owned(),
        Ok(Versioned {
            version: Some(found),
        }) if found == VERSION => return Ok(()),
        Ok(Versioned {
            version: Some(found),
        }) => found.to_string(),
        Err(error) if error.is_data() => {
            return Err(ConfigError::Field {
                path: ".".into(),
                message: error.to_string().into(),
            });
        }
        Err(error) => return Err(syntax(&error)),
    };
    Err(ConfigError::Version {
        found: found.into(),
    })
}

fn syntax(error: &serde_json::Error) -> ConfigError {
    ConfigError::Syntax {
        message: error.to_string().into(),
    }
}

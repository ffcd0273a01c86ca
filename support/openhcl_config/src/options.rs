//! Options of the command line.

use crate::ConfigError;
use crate::OnCrash;
use crate::OnGuestCrash;
use crate::Start;
use crate::file::File;

/// What an option is, for manuals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHelp {
    /// Its name.
    pub name: &'static str,
    /// The path in the file that it overrides.
    pub path: &'static str,
    /// Values that it takes.
    pub values: &'static str,
}

const SWITCH: &str = "1, true, 0 or false";

/// All options that override a value of the file.
pub const OPTIONS: [OptionHelp; 8] = [
    OptionHelp {
        name: "OPENHCL_LOG",
        path: "log.filter",
        values: "a filter",
    },
    OptionHelp {
        name: "OPENHCL_DIAG",
        path: "diag.enabled",
        values: SWITCH,
    },
    OptionHelp {
        name: "OPENHCL_WAIT_FOR_START",
        path: "worker.start",
        values: SWITCH,
    },
    OptionHelp {
        name: "OPENHCL_ON_CRASH",
        path: "worker.on_crash",
        values: "restart or stop",
    },
    OptionHelp {
        name: "OPENHCL_WATCHDOG",
        path: "worker.watchdog.enabled",
        values: SWITCH,
    },
    OptionHelp {
        name: "OPENHCL_ON_GUEST_CRASH",
        path: "guest.on_crash",
        values: "halt, reset or power_off",
    },
    OptionHelp {
        name: "OPENHCL_SIDECAR_LEAVE_ON_EXIT",
        path: "sidecar.leave_on_exit",
        values: SWITCH,
    },
    OptionHelp {
        name: "OPENHCL_TEST_HOOKS",
        path: "test_hooks",
        values: SWITCH,
    },
];

/// What the options say, in the form of a file, and which path is from which option.
#[derive(Debug, Default)]
pub(crate) struct FromOptions {
    pub(crate) file: File,
}

impl FromOptions {
    /// Takes its own out of `variables`; all others are somebody else's. An empty value
    /// is as if the option were not there.
    pub(crate) fn read(
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut options = Self::default();
        for (name, value) in variables {
            let known = OPTIONS.iter().find(|option| option.name == name);
            if let Some(option) = known.filter(|_| !value.is_empty()) {
                options
                    .set(option, &value)
                    .ok_or_else(|| ConfigError::Option {
                        name: option.name,
                        value: format!("{value:?}").into(),
                        expected: option.values.to_owned(),
                    })?;
            }
        }
        Ok(options)
    }

    fn set(&mut self, option: &OptionHelp, value: &str) -> Option<()> {
        let file = &mut self.file;
        match option.path {
            // Checked with the file's.
            "log.filter" => file.log.filter = Some(value.to_owned()),
            "diag.enabled" => file.diag.enabled = Some(switch(value)?),
            "worker.start" => {
                let wait = switch(value)?;
                file.worker.start = Some(if wait { Start::Wait } else { Start::Now });
            }
            "worker.on_crash" => {
                file.worker.on_crash = Some(match value {
                    "restart" => OnCrash::Restart,
                    "stop" => OnCrash::Stop,
                    _ => return None,
                });
            }
            "worker.watchdog.enabled" => file.worker.watchdog.enabled = Some(switch(value)?),
            "guest.on_crash" => {
                file.guest.on_crash = Some(match value {
                    "halt" => OnGuestCrash::Halt,
                    "reset" => OnGuestCrash::Reset,
                    "power_off" => OnGuestCrash::PowerOff,
                    _ => return None,
                });
            }
            "sidecar.leave_on_exit" => file.sidecar.leave_on_exit = Some(switch(value)?),
            "test_hooks" => file.test_hooks = Some(switch(value)?),
            _ => return None,
        }
        Some(())
    }
}

/// The option that overrides `path`.
pub(crate) fn name_of(path: &str) -> &'static str {
    OPTIONS
        .iter()
        .find(|option| option.path == path)
        .map_or("", |option| option.name)
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

//! Two sources become one configuration.

use crate::Config;
use crate::ConfigError;
use crate::Diag;
use crate::OnCrash;
use crate::OnGuestCrash;
use crate::Origin;
use crate::Setting;
use crate::Start;
use crate::Worker;
use crate::file::File;
use crate::options;
use crate::options::FromOptions;
use kernel_log::filter::Filter;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Allowed numbers of things that use memory.
const COUNT: RangeInclusive<u32> = 1..=1024;
/// Allowed times in milliseconds.
const TIME_MS: RangeInclusive<u32> = 10..=3_600_000;
/// Allowed time of the worker's orderly end: PID 1 waits ten seconds, and answers to clients
/// are delivered after it.
const SHUTDOWN_MS: RangeInclusive<u32> = 10..=8_000;
/// Allowed number of restarts.
const RESTARTS: RangeInclusive<u32> = 0..=1000;
/// The longest name of a VM, in characters.
const NAME_MAX: usize = 64;

/// What a configuration is made of.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The host's file; `None`: the host gave none.
    pub file: Option<&'a [u8]>,
    /// The host is trusted. Otherwise (isolated VM) its file does not decide about
    /// `log.filter`, because a log may tell secrets, nor about `test_hooks`.
    pub host_is_trusted: bool,
    /// The image was built for development and may have test hooks.
    pub development_image: bool,
}

/// A configuration and what was left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Paths of the file that a host that is not trusted may not set.
    pub dropped: Vec<&'static str>,
}

impl Config {
    /// Merges the sources and `variables`, the environment.
    pub fn load(
        sources: Sources<'_>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let options = FromOptions::read(variables)?.file;
        let mut file = match sources.file {
            Some(bytes) => File::parse(bytes)?,
            None => File::default(),
        };
        let dropped = if sources.host_is_trusted {
            Vec::new()
        } else {
            drop_untrusted(&mut file)
        };
        let config = merge(options, file)?;
        if *config.test_hooks && !sources.development_image {
            return Err(config.test_hooks.refuse(
                "test_hooks",
                "true".to_owned(),
                "false: this image was not built for development".to_owned(),
            ));
        }
        Ok(Loaded { config, dropped })
    }
}

fn drop_untrusted(file: &mut File) -> Vec<&'static str> {
    let mut dropped = Vec::new();
    if file.log.filter.take().is_some() {
        dropped.push("log.filter");
    }
    if file.test_hooks.take().is_some() {
        dropped.push("test_hooks");
    }
    dropped
}

fn merge(options: File, file: File) -> Result<Config, ConfigError> {
    let (odiag, fdiag) = (options.diag, file.diag);
    let (oworker, fworker) = (options.worker, file.worker);
    let (odog, fdog) = (oworker.watchdog, fworker.watchdog);
    let name = pick("name", options.name, file.name, "vm".to_owned());
    let filter = pick(
        "log.filter",
        options.log.filter,
        file.log.filter,
        "info".to_owned(),
    );
    Ok(Config {
        name: name.check_name()?,
        log_filter: filter.parse_filter()?,
        diag: Diag {
            enabled: pick("diag.enabled", odiag.enabled, fdiag.enabled, true),
            max_connections: file_number(
                "diag.max_connections",
                fdiag.max_connections,
                256,
                COUNT,
            )?,
            max_requests: file_number("diag.max_requests", fdiag.max_requests, 32, COUNT)?,
            max_data_connections: file_number(
                "diag.max_data_connections",
                fdiag.max_data_connections,
                128,
                COUNT,
            )?,
            transfer_deadline: file_time(
                "diag.transfer_deadline_ms",
                fdiag.transfer_deadline_ms,
                30_000,
                TIME_MS,
            )?,
        },
        worker: Worker {
            start: pick("worker.start", oworker.start, fworker.start, Start::Now),
            start_deadline: file_time(
                "worker.start_deadline_ms",
                fworker.start_deadline_ms,
                30_000,
                TIME_MS,
            )?,
            on_crash: pick(
                "worker.on_crash",
                oworker.on_crash,
                fworker.on_crash,
                OnCrash::Restart,
            ),
            max_restarts: file_number("worker.max_restarts", fworker.max_restarts, 5, RESTARTS)?,
            restart_window: file_time(
                "worker.restart_window_ms",
                fworker.restart_window_ms,
                60_000,
                TIME_MS,
            )?,
            watchdog: pick("worker.watchdog.enabled", odog.enabled, fdog.enabled, true),
            watchdog_interval: file_time(
                "worker.watchdog.interval_ms",
                fdog.interval_ms,
                1000,
                TIME_MS,
            )?,
            watchdog_deadline: file_time(
                "worker.watchdog.deadline_ms",
                fdog.deadline_ms,
                10_000,
                TIME_MS,
            )?,
        },
        on_guest_crash: pick(
            "guest.on_crash",
            options.guest.on_crash,
            file.guest.on_crash,
            OnGuestCrash::Halt,
        ),
        sidecar_leave_on_exit: pick(
            "sidecar.leave_on_exit",
            options.sidecar.leave_on_exit,
            file.sidecar.leave_on_exit,
            true,
        ),
        shutdown_deadline: file_time(
            "shutdown.deadline_ms",
            file.shutdown.deadline_ms,
            5000,
            SHUTDOWN_MS,
        )?,
        test_hooks: pick("test_hooks", options.test_hooks, file.test_hooks, false),
    })
}

/// The rules of the crate's documentation.
fn pick<T>(path: &str, option: Option<T>, file: Option<T>, default: T) -> Setting<T> {
    let (value, origin) = match (option, file) {
        (Some(value), _) => (value, Origin::Option(options::name_of(path))),
        (None, Some(value)) => (value, Origin::Host),
        (None, None) => (default, Origin::Default),
    };
    Setting { value, origin }
}

/// A number that has no option.
fn file_number(
    path: &'static str,
    file: Option<u32>,
    default: u32,
    range: RangeInclusive<u32>,
) -> Result<Setting<u32>, ConfigError> {
    let setting = pick(path, None, file, default);
    if range.contains(&setting.value) {
        return Ok(setting);
    }
    let expected = format!("{} to {}", range.start(), range.end());
    Err(setting.refuse(path, setting.value.to_string(), expected))
}

/// A time in milliseconds that has no option.
fn file_time(
    path: &'static str,
    file_ms: Option<u32>,
    default_ms: u32,
    range_ms: RangeInclusive<u32>,
) -> Result<Setting<Duration>, ConfigError> {
    let setting = file_number(path, file_ms, default_ms, range_ms)?;
    Ok(Setting {
        value: Duration::from_millis(setting.value.into()),
        origin: setting.origin,
    })
}

impl<T> Setting<T> {
    /// The error that names the source of a wrong value.
    fn refuse(&self, path: &'static str, value: String, expected: String) -> ConfigError {
        let value = value.into();
        match self.origin {
            Origin::Option(name) => ConfigError::Option {
                name,
                value,
                expected,
            },
            Origin::Host | Origin::Default => ConfigError::Value {
                path,
                value,
                expected,
            },
        }
    }
}

impl Setting<String> {
    fn check_name(self) -> Result<Self, ConfigError> {
        let length = self.value.chars().count();
        if (1..=NAME_MAX).contains(&length) && !self.value.chars().any(char::is_control) {
            return Ok(self);
        }
        let expected = format!("1 to {NAME_MAX} printable characters");
        Err(self.refuse("name", format!("{:?}", self.value), expected))
    }

    fn parse_filter(self) -> Result<Setting<Filter>, ConfigError> {
        match self.value.parse() {
            Ok(value) => Ok(Setting {
                value,
                origin: self.origin,
            }),
            Err(error) => Err(self.refuse(
                "log.filter",
                format!("{:?}", self.value),
                kernel_log::filter::FilterError::expected(&error),
            )),
        }
    }
}

//! Where the configuration comes from on this machine.

use crate::own;
use boot_events::PARAVISOR_PREFIX;
use fw_cfg::FwCfgError;
use kernel_log::FACILITY_PARAVISOR;
use kernel_log::KernelLog;
use kernel_log::subscriber;
use kernel_log::subscriber::FilterHandle;
use openhcl_config::Config;
use openhcl_config::ConfigError;
use openhcl_config::FILE_SIZE_MAX;
use openhcl_config::FW_CFG_FILE;
use openhcl_config::Loaded;
use openhcl_config::Origin;
use openhcl_config::Sources;
use thiserror::Error;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub(crate) enum LoadError {
    /// The host's file cannot be read.
    #[error("configuration cannot be read")]
    Read(#[source] FwCfgError),
    /// It says something wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Reads and merges all sources.
pub(crate) fn load(host_is_trusted: bool, development_image: bool) -> Result<Loaded, LoadError> {
    let file = match fw_cfg::read_file(FW_CFG_FILE, FILE_SIZE_MAX) {
        Ok(file) => Some(file),
        // Both are normal: the defaults count.
        Err(FwCfgError::NoDevice | FwCfgError::NoFile { .. }) => None,
        Err(error) => return Err(LoadError::Read(error)),
    };
    let sources = Sources {
        file: file.as_deref(),
        host_is_trusted,
        development_image,
    };
    // A name or value that is not UTF-8 is no option of ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(Config::load(sources, variables)?)
}

/// From here on `tracing` goes to the kernel's log, and says what was configured.
pub(crate) fn install_log(loaded: &Loaded) -> Option<FilterHandle> {
    let log = KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX);
    let filter = match subscriber::install(log, loaded.config.log_filter.value.clone()) {
        Ok(filter) => Some(filter),
        Err(error) => {
            KernelLog::open(FACILITY_PARAVISOR, PARAVISOR_PREFIX)
                .warning(&format!("events are not logged: {error}"));
            None
        }
    };
    for path in &loaded.dropped {
        tracing::warn!("{path} of the host's configuration is dropped: this VM is isolated");
    }
    loaded.config.for_each(|path, value, origin| {
        if origin != Origin::Default {
            tracing::info!(
                "{}{path} = {value} ({origin})",
                own(boot_events::CONFIG_PREFIX)
            );
        }
    });
    filter
}

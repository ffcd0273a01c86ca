//! The measured command line, and the options in it (and in the host's) that are meant
//! for the shim.

use loader_defs::paravisor::{COMMAND_LINE_CAPACITY, CommandLinePolicy, ParavisorCommandLine};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::memory::gpa_pool::{PoolConfig, PoolTable};

/// What is wrong with the measured command line page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandLineError {
    /// Not a page.
    #[error("measured command line page has {size} bytes, expected {expected}", expected = size_of::<ParavisorCommandLine>())]
    PageSize {
        /// Bytes there are.
        size: usize,
    },
    /// A policy that this shim does not know, so it cannot say what is safe.
    #[error("measured command line policy {found:?}, expected STATIC or APPEND_CHOSEN")]
    Policy {
        /// From the page.
        found: CommandLinePolicy,
    },
    /// Longer than the page.
    #[error("measured command line of {length} bytes, expected at most {COMMAND_LINE_CAPACITY}")]
    Length {
        /// From the page.
        length: u16,
    },
    /// Not text.
    #[error("measured command line is not UTF-8")]
    NotUtf8,
}

/// The measured command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeasuredCommandLine<'a> {
    /// The text.
    pub text: &'a str,
    /// The host's text is appended, if the host is trusted.
    pub append_host: bool,
}

impl<'a> MeasuredCommandLine<'a> {
    /// Reads the page.
    pub fn parse(page: &'a [u8]) -> Result<Self, CommandLineError> {
        let raw = ParavisorCommandLine::ref_from_bytes(page)
            .map_err(|_| CommandLineError::PageSize { size: page.len() })?;
        let append_host = match CommandLinePolicy(raw.policy) {
            CommandLinePolicy::STATIC => false,
            CommandLinePolicy::APPEND_CHOSEN => true,
            found => return Err(CommandLineError::Policy { found }),
        };
        let text = raw
            .text
            .get(..usize::from(raw.length))
            .ok_or(CommandLineError::Length { length: raw.length })?;
        Ok(Self {
            text: core::str::from_utf8(text)
                .map_err(|_| CommandLineError::NotUtf8)?
                .trim(),
            append_host,
        })
    }
}

/// What to do with sidecar CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarOptions {
    /// Use it where possible.
    pub enabled: bool,
    /// Its log goes to the serial port.
    pub log: bool,
}

/// Options of the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootOptions {
    /// Confidentiality of an isolated VM is given up; counts in the measured text only.
    pub confidential_debug: bool,
    /// Size of the pool, from the manifest.
    image_pool: Option<PoolConfig>,
    /// The same, as an override.
    pool_override: Option<PoolConfig>,
    /// Sidecar.
    pub sidecar: SidecarOptions,
    /// NVMe devices are not kept alive.
    pub disable_nvme_keep_alive: bool,
    /// The pool is split over all NUMA nodes from the start.
    pub split_pool: bool,
}

impl Default for BootOptions {
    fn default() -> Self {
        Self {
            confidential_debug: false,
            image_pool: None,
            pool_override: None,
            sidecar: SidecarOptions {
                enabled: true,
                log: false,
            },
            disable_nvme_keep_alive: false,
            split_pool: false,
        }
    }
}

impl BootOptions {
    /// Applies the options in a text; later ones win. Words for others are left alone.
    pub fn apply(&mut self, text: &str) {
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "OPENHCL_CONFIDENTIAL_DEBUG" => self.confidential_debug = is_set(value),
                "OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG" => self.image_pool = Some(pool(value)),
                "OPENHCL_ENABLE_VTL2_GPA_POOL" => self.pool_override = Some(pool(value)),
                "OPENHCL_SIDECAR" => self.sidecar = sidecar(value),
                "OPENHCL_DISABLE_NVME_KEEP_ALIVE" => self.disable_nvme_keep_alive = is_set(value),
                "OPENHCL_VTL2_GPA_POOL_NUMA" => self.split_pool = value == "split",
                _ => {}
            }
        }
    }

    /// The pool that is asked for.
    pub fn pool(&self) -> PoolConfig {
        self.pool_override
            .or(self.image_pool)
            .unwrap_or(PoolConfig::Table(PoolTable::Release))
    }
}

// Any value but "0", the empty one included.
fn is_set(value: &str) -> bool {
    value != "0"
}

fn pool(value: &str) -> PoolConfig {
    match value {
        "release" => PoolConfig::Table(PoolTable::Release),
        "debug" => PoolConfig::Table(PoolTable::Debug),
        // "off", and whatever is no number of pages.
        _ => match value.parse() {
            Ok(pages) if pages > 0 => PoolConfig::Pages(pages),
            _ => PoolConfig::Off,
        },
    }
}

fn sidecar(value: &str) -> SidecarOptions {
    let mut options = BootOptions::default().sidecar;
    for word in value.split(',') {
        match word {
            "on" => options.enabled = true,
            "off" => options.enabled = false,
            "log" => options.log = true,
            _ => {}
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn page(policy: u16, text: &[u8]) -> Vec<u8> {
        let mut raw = ParavisorCommandLine {
            policy,
            length: text.len() as u16,
            text: [0; COMMAND_LINE_CAPACITY],
        };
        raw.text[..text.len()].copy_from_slice(text);
        raw.as_bytes().to_vec()
    }

    // `ref_from_bytes` wants the alignment that a page has.
    fn parse(page: &[u8]) -> Result<(alloc::string::String, bool), CommandLineError> {
        let mut aligned = minimal_rt::Page::ZERO;
        aligned.0[..page.len()].copy_from_slice(page);
        MeasuredCommandLine::parse(&aligned.0[..page.len()]).map(|m| (m.text.into(), m.append_host))
    }

    #[test]
    fn policy_and_text_are_read() {
        assert_eq!(parse(&page(0, b" a=b ")), Ok(("a=b".into(), false)));
        assert_eq!(parse(&page(1, b"")), Ok(("".into(), true)));
    }

    #[test]
    fn broken_pages_are_refused() {
        assert_eq!(
            parse(&page(2, b"")),
            Err(CommandLineError::Policy {
                found: CommandLinePolicy(2)
            })
        );
        assert_eq!(parse(&page(0, b"\xff")), Err(CommandLineError::NotUtf8));
        let mut long = page(0, b"");
        long[2..4].copy_from_slice(&4093u16.to_le_bytes());
        assert_eq!(parse(&long), Err(CommandLineError::Length { length: 4093 }));
        assert_eq!(
            parse(&long[..100]),
            Err(CommandLineError::PageSize { size: 100 })
        );
    }

    fn options(text: &str) -> BootOptions {
        let mut options = BootOptions::default();
        options.apply(text);
        options
    }

    #[test]
    fn without_options_the_release_table_and_sidecar_are_used() {
        let options = options("quiet OPENHCL_OTHER=1");
        assert_eq!(options.pool(), PoolConfig::Table(PoolTable::Release));
        assert!(options.sidecar.enabled && !options.sidecar.log);
        assert!(!options.confidential_debug && !options.disable_nvme_keep_alive);
    }

    #[test]
    fn pool_options_take_every_form() {
        let pool = |text| options(text).pool();
        assert_eq!(
            pool("OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG=off"),
            PoolConfig::Off
        );
        assert_eq!(
            pool("OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG=512"),
            PoolConfig::Pages(512)
        );
        assert_eq!(pool("OPENHCL_ENABLE_VTL2_GPA_POOL=zzz"), PoolConfig::Off);
        assert_eq!(pool("OPENHCL_ENABLE_VTL2_GPA_POOL=0"), PoolConfig::Off);
        assert_eq!(
            pool("OPENHCL_ENABLE_VTL2_GPA_POOL=7 OPENHCL_IGVM_VTL2_GPA_POOL_CONFIG=debug"),
            PoolConfig::Pages(7),
            "the override wins wherever it stands"
        );
    }

    #[test]
    fn the_last_word_wins() {
        assert!(!options("OPENHCL_SIDECAR=on,off").sidecar.enabled);
        assert!(
            options("OPENHCL_SIDECAR=off OPENHCL_SIDECAR=log")
                .sidecar
                .enabled
        );
        assert!(options("OPENHCL_CONFIDENTIAL_DEBUG").confidential_debug);
        assert!(!options("OPENHCL_CONFIDENTIAL_DEBUG=0").confidential_debug);
        assert!(options("OPENHCL_VTL2_GPA_POOL_NUMA=split").split_pool);
        assert!(options("OPENHCL_DISABLE_NVME_KEEP_ALIVE=1").disable_nvme_keep_alive);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in ".*") {
            options(&text);
        }
    }
}

//! Which kernel runs in VTL2, how it is configured, and how we know that it is so.
//!
//! The kernel is an unmodified upstream Linux from Debian's source package; what makes it
//! ours is data in this directory: `kernel.toml` (the range of versions, the outputs) and
//! the option fragments `common.config` and one per architecture. This crate holds the
//! logic around that data, without any I/O, so that all of it is unit-tested:
//!
//! - [`KernelSpec`]: what `kernel.toml` says, and the choice of a version;
//! - [`Requests`]: the fragments merged, each option with the line that asked for it;
//! - [`Requests::check`]: every requested option really took effect in the final `.config`.
//!   Kconfig drops what it cannot satisfy without a word; here that is an error by name;
//! - [`cache_key`]: the name under which a built kernel is kept;
//! - [`pack_vmlinux`] and [`check_vmlinux`]: the built file becomes, and is, one that the
//!   image can hold.
//!
//! It refuses fragments that ask twice for one option, and option groups without a reason.
//!
//! In the boot flow it stands before everything: `cargo xtask` runs the compiler, the IGVM
//! builder packs the result, `openhcl_boot` starts it.

#![forbid(unsafe_code)]

mod fragment;
mod key;
mod requests;
mod source;
mod vmlinux;

pub use fragment::Fragment;
pub use fragment::FragmentError;
pub use fragment::Origin;
pub use fragment::Value;
pub use key::cache_key;
pub use requests::MergeError;
pub use requests::Mismatch;
pub use requests::Requests;
pub use source::KernelSpec;
pub use source::Module;
pub use source::Outputs;
pub use source::Series;
pub use source::Source;
pub use source::SpecError;
pub use vmlinux::VmlinuxError;
pub use vmlinux::check_vmlinux;
pub use vmlinux::pack_vmlinux;

/// The text of `kernel.toml`.
pub const KERNEL_TOML: &str = include_str!("../kernel.toml");

/// Variables of the build's environment that would otherwise differ from run to run and
/// from machine to machine.
pub const BUILD_STAMPS: [(&str, &str); 5] = [
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_USER", "openhcl"),
    ("KBUILD_BUILD_HOST", "vtl2"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];

/// An architecture that has a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
}

impl Arch {
    /// The value of make's `ARCH` variable.
    pub fn make_name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
        }
    }

    /// The fragments of this architecture, in the order in which they are merged.
    pub fn fragments(self) -> Result<Vec<Fragment>, FragmentError> {
        let (name, text) = match self {
            Arch::X86_64 => ("x86_64.config", include_str!("../x86_64.config")),
        };
        Ok(vec![
            Fragment::parse("common.config", include_str!("../common.config"))?,
            Fragment::parse(name, text)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_fragments_merge_without_conflict() {
        let requests = Requests::merge(Arch::X86_64.fragments().unwrap()).unwrap();
        assert!(requests.len() > 100);
    }

    #[test]
    fn committed_fragments_ask_for_what_vtl2_cannot_do_without() {
        let requests = Requests::merge(Arch::X86_64.fragments().unwrap()).unwrap();
        let text = requests.to_text();
        for line in [
            "CONFIG_HYPERV_VTL_MODE=y",
            "CONFIG_MSHV_VTL=m",
            "CONFIG_X86_MPPARSE=y",
            "# CONFIG_ACPI is not set",
            "# CONFIG_MTRR is not set",
            "CONFIG_RD_LZ4=y",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not requested");
        }
    }

    #[test]
    fn committed_spec_admits_its_own_tested_version() {
        let spec = KernelSpec::parse(KERNEL_TOML).unwrap();
        assert!(spec.source.admits(&spec.source.tested));
        assert!(spec.outputs.max_vmlinux_bytes <= 12_000_000);
    }
}

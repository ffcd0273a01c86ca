//! Where the built files are, handed from `cargo xtask` to the tests.

use serde::Deserialize;
use serde::Serialize;
use std::path::Path;
use std::path::PathBuf;

/// Environment variable with the path of a file that holds [`Artifacts`] as JSON.
pub const ARTIFACTS_VARIABLE: &str = "OPENHCL_TEST_ARTIFACTS";

/// The files that tests boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifacts {
    /// The bare-metal host.
    pub vsm_host: PathBuf,
    /// The release image.
    pub release_image: PathBuf,
    /// The image with a shell.
    pub dev_image: PathBuf,
    /// The image with a shell and the programs of `vsock_peer`.
    pub test_image: PathBuf,
    /// The release image's parts: the kernel,
    pub vmlinux: PathBuf,
    /// the boot shim,
    pub openhcl_boot: PathBuf,
    /// The sidecar kernel, an ELF file.
    pub sidecar: PathBuf,
    /// the initrd.
    pub initrd: PathBuf,
    /// The test payload, an ELF file.
    pub tmk: PathBuf,
    /// The kernel that tests its VM as a guest, an ELF file.
    pub guest_tests: PathBuf,
    /// Stock kernels for the guest, from the oldest on.
    pub guest_kernels: Vec<GuestKernel>,
    /// The guest's initrd: busybox, and what `xtask/guest/` has.
    pub guest_initrd: PathBuf,
    /// The program that carries vsock; none where the kernel does.
    pub vsock_helper: Option<PathBuf>,
    /// Where tests keep consoles.
    pub consoles: PathBuf,
}

/// A stock kernel of Debian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestKernel {
    /// Debian's suite: `bookworm`, `trixie`, `trixie-backports`.
    pub suite: String,
    /// The package's version.
    pub version: String,
    /// The file, a bzImage.
    pub vmlinuz: PathBuf,
}

/// Why there are no artifacts.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    /// The tests were not started by xtask.
    #[error(
        "{ARTIFACTS_VARIABLE} is not set: these tests boot an image that must be built first; run `cargo xtask vmm-tests`"
    )]
    NotSet,
    /// The file cannot be read.
    #[error("{}: {source}; run `cargo xtask vmm-tests`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is of another version.
    #[error("{}: {source}; run `cargo xtask vmm-tests`", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Artifacts {
    /// What xtask has built.
    pub fn from_environment() -> Result<Self, ArtifactsError> {
        match std::env::var_os(ARTIFACTS_VARIABLE) {
            Some(path) => Self::read(Path::new(&path)),
            None => Err(ArtifactsError::NotSet),
        }
    }

    /// The stock kernel of a suite of Debian.
    #[track_caller]
    pub(crate) fn guest_kernel(&self, suite: &str) -> Vec<u8> {
        match self.guest_kernels.iter().find(|k| k.suite == suite) {
            Some(kernel) => read(&kernel.vmlinuz),
            None => panic!("no kernel of {suite}: {:?}", self.guest_kernels),
        }
    }

    fn read(path: &Path) -> Result<Self, ArtifactsError> {
        let path = path.to_owned();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(ArtifactsError::Read { path, source }),
        };
        serde_json::from_str(&text).map_err(|source| ArtifactsError::Parse { path, source })
    }
}

/// What xtask has built; fails the test if there is nothing.
#[track_caller]
pub(crate) fn artifacts() -> Artifacts {
    match Artifacts::from_environment() {
        Ok(artifacts) => artifacts,
        Err(error) => panic!("{error}"),
    }
}

/// The release image's initrd.
#[track_caller]
pub fn initrd() -> Vec<u8> {
    read(&artifacts().initrd)
}

/// The sidecar kernel, an ELF file.
#[track_caller]
pub fn sidecar_kernel() -> Vec<u8> {
    read(&artifacts().sidecar)
}

/// One of the built files.
#[track_caller]
pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_says_what_to_run() {
        let error = Artifacts::read(Path::new("/nonexistent/artifacts.json")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nonexistent/artifacts.json"), "{text}");
        assert!(text.contains("cargo xtask vmm-tests"), "{text}");
        assert!(
            ArtifactsError::NotSet
                .to_string()
                .contains("cargo xtask vmm-tests")
        );
    }
}

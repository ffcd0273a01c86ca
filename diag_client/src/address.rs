//! Where a VM's vsock is.

use serde::Deserialize;
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a VM's vsock is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmAddress {
    /// The Unix socket of a program that forwards to the VM's vsock: a client names the
    /// port in a first line.
    HybridVsock(PathBuf),
    /// The context id of a VM whose vsock the kernel serves (`/dev/vhost-vsock`).
    Vsock(u32),
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a VM, expected a path with a '/' or a context id from 3")]
pub struct ParseAddressError(pub String);

/// Context ids below it are the hypervisor, the machine itself and the host.
const FIRST_GUEST_CID: u32 = 3;

impl FromStr for VmAddress {
    type Err = ParseAddressError;

    /// A number is a context id; a text with a `/` is a path.
    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        if text.contains('/') {
            return Ok(Self::HybridVsock(text.into()));
        }
        match text.parse() {
            Ok(cid) if (FIRST_GUEST_CID..u32::MAX).contains(&cid) => Ok(Self::Vsock(cid)),
            _ => Err(ParseAddressError(text.to_owned())),
        }
    }
}

impl fmt::Display for VmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HybridVsock(path) => write!(f, "{}", path.display()),
            Self::Vsock(cid) => write!(f, "vsock context {cid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_context_ids_and_paths_have_a_slash() {
        assert_eq!("3".parse(), Ok(VmAddress::Vsock(3)));
        let path = "./vm.sock";
        assert_eq!(path.parse(), Ok(VmAddress::HybridVsock(path.into())));
        for wrong in ["2", "4294967295", "-1", "", "vm"] {
            assert_eq!(
                wrong.parse::<VmAddress>(),
                Err(ParseAddressError(wrong.into()))
            );
        }
    }
}

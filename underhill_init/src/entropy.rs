//! Feeds the host's entropy to the kernel's random number generator.
//!
//! A VM has few sources of its own, and the paravisor needs keys early. On a VM whose
//! host is trusted the bytes are credited, so that nobody has to wait for random
//! numbers; on an isolated VM they are stirred in and credited with nothing, because
//! the host knows them.
#![expect(
    unsafe_code,
    reason = "crediting entropy is an ioctl that takes a structure by address"
)]

use nix::errno::Errno;
use nix::libc::c_int;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use thiserror::Error;

/// Where the boot shim puts what the host gave.
pub const PROPERTY: &str = "/proc/device-tree/openhcl/entropy/reg";

/// The kernel's random number generator.
const GENERATOR: &str = "/dev/random";

/// Bytes that the contract with the host allows.
const CAPACITY: usize = 256;

/// `struct rand_pool_info` of `linux/random.h`, with its flexible array at full size.
#[repr(C)]
pub struct RandPoolInfo {
    entropy_count_bits: c_int,
    size_bytes: c_int,
    bytes: [u8; CAPACITY],
}

nix::ioctl_write_ptr_bad!(
    /// `RNDADDENTROPY`, whose number is computed from two integers whatever the
    /// structure's size.
    rnd_add_entropy,
    nix::request_code_write!(b'R', 0x03, size_of::<[c_int; 2]>()),
    RandPoolInfo
);

/// Why the entropy did not reach the kernel.
#[derive(Debug, Error)]
pub enum EntropyError {
    /// The property cannot be read.
    #[error("entropy of the device tree cannot be read")]
    Read(#[source] io::Error),
    /// The property has no content or too much of it.
    #[error("entropy of the device tree has {size} bytes or more, expected 1 to {CAPACITY}")]
    Size {
        /// Bytes found, up to one more than allowed.
        size: usize,
    },
    /// The random number generator cannot be opened or written.
    #[error("{GENERATOR} cannot be written")]
    Generator(#[source] io::Error),
    /// The kernel refuses the entropy.
    #[error("{GENERATOR} refuses entropy")]
    Refused(#[source] Errno),
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeded {
    /// The host gave none.
    Nothing,
    /// So many bytes, credited.
    Credited(usize),
    /// So many bytes, not credited.
    Stirred(usize),
}

/// Passes the host's entropy on. `trusted`: the host may know the secrets of this VM.
pub fn seed(trusted: bool) -> Result<Seeded, EntropyError> {
    let Some(entropy) = read(Path::new(PROPERTY))? else {
        return Ok(Seeded::Nothing);
    };
    let mut generator = File::options()
        .write(true)
        .open(GENERATOR)
        .map_err(EntropyError::Generator)?;
    if !trusted {
        generator
            .write_all(&entropy)
            .map_err(EntropyError::Generator)?;
        return Ok(Seeded::Stirred(entropy.len()));
    }
    let info = pool_info(&entropy);
    // SAFETY: `info` is a `rand_pool_info` that outlives the call. Its `size_bytes` is the
    // length of `entropy`, which `read` limits to `CAPACITY`, so the kernel reads only
    // inside `bytes`.
    unsafe { rnd_add_entropy(generator.as_raw_fd(), &info) }.map_err(EntropyError::Refused)?;
    Ok(Seeded::Credited(entropy.len()))
}

/// The property's content; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, EntropyError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(EntropyError::Read(error)),
    };
    let mut entropy = Vec::new();
    // One byte more than allowed tells "full" from "too much".
    file.take(CAPACITY as u64 + 1)
        .read_to_end(&mut entropy)
        .map_err(EntropyError::Read)?;
    match entropy.len() {
        1..=CAPACITY => Ok(Some(entropy)),
        size => Err(EntropyError::Size { size }),
    }
}

/// `entropy` has at most `CAPACITY` bytes; what is beyond would be left out.
fn pool_info(entropy: &[u8]) -> RandPoolInfo {
    let mut bytes = [0; CAPACITY];
    let mut size = 0;
    for (to, from) in bytes.iter_mut().zip(entropy) {
        *to = *from;
        size += 1;
    }
    RandPoolInfo {
        entropy_count_bits: size * 8,
        size_bytes: size,
        bytes,
    }
}

const _: () = assert!(size_of::<RandPoolInfo>() == 8 + CAPACITY);

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Option<Vec<u8>>, EntropyError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reg");
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    #[test]
    fn a_host_without_entropy_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(&directory.path().join("reg")).unwrap().is_none());
    }

    #[test]
    fn entropy_of_any_allowed_size_is_taken_whole() {
        for size in [1, 64, CAPACITY] {
            assert_eq!(read_bytes(&vec![7; size]).unwrap(), Some(vec![7; size]));
        }
    }

    #[test]
    fn entropy_of_a_wrong_size_is_refused() {
        for size in [0, CAPACITY + 1, 10_000] {
            assert!(matches!(
                read_bytes(&vec![7; size]),
                Err(EntropyError::Size { size: found }) if found == size.min(CAPACITY + 1)
            ));
        }
    }

    #[test]
    fn every_byte_is_credited_with_eight_bits() {
        let info = pool_info(&[1, 2, 3]);
        assert_eq!((info.entropy_count_bits, info.size_bytes), (24, 3));
        assert_eq!(info.bytes[..4], [1, 2, 3, 0]);
        assert_eq!(pool_info(&[9; CAPACITY]).size_bytes, CAPACITY as c_int);
    }
}

//! The sum of what can go wrong, and file access that names the file.

use crate::image::BuildError;
use crate::manifest::ManifestError;
use crate::view::{Image, ViewError};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Whatever went wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Building.
    #[error("image cannot be built: {0}")]
    Build(#[from] BuildError),
    /// A file that is no image these tools can show.
    #[error("{}: {error}", path.display())]
    View {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Box<ViewError>,
    },
    /// Options of the host.
    #[error("{0}")]
    Options(String),
    /// Reading of a file.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Writing of a file.
    #[error("{}: cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

/// Reads a file.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::Read {
        path: path.to_owned(),
        error,
    })
}

/// Writes a file.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), Error> {
    std::fs::write(path, contents).map_err(|error| Error::Write {
        path: path.to_owned(),
        error,
    })
}

/// Reads an image.
pub fn read_image(path: &Path) -> Result<Image, Error> {
    Image::read(&read_file(path)?).map_err(|error| Error::View {
        path: path.to_owned(),
        error: Box::new(error),
    })
}

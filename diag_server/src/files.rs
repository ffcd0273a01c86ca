//! `ReadFile` and `Kmsg`: files to data connections.

use crate::Status;
use crate::data::DataConnection;
use crate::stats::ServerStats;
use crate::status::Code;
use byte_stream::Stream;
use diag_proto::MAX_LINE;
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often a file that is followed is looked at. Nothing tells that it has grown: the
/// kernel of VTL2 is built without inotify.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// Bytes read from a regular file at once.
const CHUNK: usize = 16 << 10;

/// Longest record of a device that is read whole: the kernel refuses to give out a record
/// of its log in parts. Larger than any the kernel makes.
const LONGEST_RECORD: usize = 8 << 10;

/// A file that is open for a client.
pub(crate) enum Source {
    /// Bytes.
    Regular(File),
    /// Records: what one read gives.
    Device(Device),
}

/// Opens `path` for reading.
///
/// # Errors
///
/// It cannot be opened, or is neither a regular file nor a character device. (Others, a
/// FIFO or a block device, would make the server wait.)
pub(crate) fn open(path: &Path) -> Result<Source, Status> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Code::NotFound,
            io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => Code::InvalidArgument,
            _ => Code::FailedPrecondition,
        };
        let shown: String = path.to_string_lossy().chars().take(256).collect();
        Status::new(code, format_args!("{shown}: {error}"))
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() {
        Ok(Source::Regular(file))
    } else if kind.is_char_device() {
        Ok(Source::Device(Device::new(file).map_err(failed)?))
    } else {
        let error = "not a regular file or character device";
        Err(failed(io::Error::other(error)))
    }
}

/// Sends a file and ends the connection.
pub(crate) async fn send(
    source: Source,
    follow: bool,
    connection: DataConnection,
    stats: Arc<ServerStats>,
) {
    let sent = async {
        match source {
            Source::Regular(file) => send_file(&file, follow, &connection).await,
            Source::Device(device) => send_records(&device, follow, &connection, &stats).await,
        }
    };
    // A client that follows is noticed to have gone even if there is nothing to send.
    let sent = tokio::select! {
        sent = sent => sent,
        () = connection.hung_up(), if follow => return,
    };
    match sent {
        Ok(()) => connection.finish().await,
        Err(error) => tracing::debug!(%error, "a file could not be sent"),
    }
}

async fn send_file(file: &File, follow: bool, connection: &Stream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    loop {
        match nix::unistd::read(file, &mut buffer) {
            Err(Errno::EINTR) => {}
            // Some files of the kernel have something to read only at times.
            Ok(0) | Err(Errno::EAGAIN) if follow => {
                tokio::time::sleep(FOLLOW_INTERVAL).await;
                // What was cut off and written anew is read from its start.
                if file.metadata()?.size() < position {
                    position = io::Seek::rewind(&mut { file }).map(|()| 0)?;
                }
            }
            Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
            Ok(count) => {
                position += count as u64;
                connection.write_all(&buffer[..count]).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A character device, like the kernel's log.
pub(crate) enum Device {
    /// One that tells when there is something to read.
    Polled(Stream),
    /// One that always has something, or never.
    Ready(File),
}

impl Device {
    fn new(file: File) -> io::Result<Self> {
        let clone = file.try_clone()?;
        match Stream::new(OwnedFd::from(clone)) {
            Ok(stream) => Ok(Self::Polled(stream)),
            // What epoll says to files that cannot be waited for.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Self::Ready(file)),
            Err(error) => Err(error),
        }
    }
}

/// Where records come from.
pub(crate) trait Records {
    /// The next record, which must fit into `buffer`; `EAGAIN`: none now; 0: the end.
    fn read(&self, buffer: &mut [u8]) -> nix::Result<usize>;

    /// Waits for the next record if there can be one.
    fn wait(&self) -> impl Future<Output = io::Result<Option<()>>> + Send;
}

impl Records for Device {
    fn read(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        match self {
            Self::Polled(stream) => nix::unistd::read(stream, buffer),
            Self::Ready(file) => nix::unistd::read(file, buffer),
        }
    }

    async fn wait(&self) -> io::Result<Option<()>> {
        match self {
            Self::Polled(stream) => stream.wait_for_more().await.map(Some),
            Self::Ready(_) => Ok(None),
        }
    }
}

/// Sends records with a NUL behind each, as OpenHCL's clients expect it.
async fn send_records(
    records: &impl Records,
    follow: bool,
    connection: &Stream,
    stats: &ServerStats,
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST_RECORD];
    loop {
        match records.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                for line in buffer[..count].chunks(MAX_LINE - 1) {
                    connection.write_all(&[line, &[0]].concat()).await?;
                }
            }
            Err(Errno::EINTR) => {}
            // The kernel has overwritten what comes next, and goes on with the oldest
            // record that it has.
            Err(Errno::EPIPE) => stats.lost_log_records.count(),
            Err(Errno::EAGAIN) if follow => match records.wait().await? {
                Some(()) => {}
                None => return Ok(()),
            },
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;

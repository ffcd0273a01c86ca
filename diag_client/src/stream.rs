//! Bytes from and to a VM.

use diag_proto::MAX_LINE;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A stream of bytes from and to a VM. Reading ends when the VM closes it.
#[derive(Debug)]
pub struct DataStream {
    socket: UnixStream,
}

impl DataStream {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// The same stream, for another thread.
    ///
    /// # Errors
    ///
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.socket.try_clone().map(Self::new)
    }

    /// Says that nothing more will be written; reading goes on.
    ///
    /// # Errors
    ///
    /// The VM has closed it already.
    pub fn finish(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Closes it for all its clones, so that whoever reads it is woken.
    ///
    /// # Errors
    ///
    /// The VM has closed it already.
    pub fn close(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Both)
    }

    /// How long a read may wait; it fails with `WouldBlock` then.
    ///
    /// # Errors
    ///
    /// The timeout is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Its lines.
    pub fn lines(self) -> Pieces {
        self.split(b'\n')
    }

    /// The records of a log ([`Client::kmsg`](crate::Client::kmsg)), which end with a NUL.
    pub fn records(self) -> Pieces {
        self.split(0)
    }

    fn split(self, delimiter: u8) -> Pieces {
        Pieces {
            reader: BufReader::new(self.socket),
            delimiter,
        }
    }
}

impl Read for DataStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        end_of_reset(self.socket.read(buffer))
    }
}

impl Write for DataStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for DataStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A VM that ends resets its connections, which is an end like any other.
fn end_of_reset(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
        result => result,
    }
}

/// The lines or records of a stream, without their ends and with what is not UTF-8
/// replaced. A longer one than [`MAX_LINE`] is cut into several.
#[derive(Debug)]
pub struct Pieces {
    reader: BufReader<UnixStream>,
    delimiter: u8,
}

impl Iterator for Pieces {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<io::Result<String>> {
        let mut piece = Vec::new();
        let mut limited = self.reader.by_ref().take(MAX_LINE as u64 + 1);
        match end_of_reset(limited.read_until(self.delimiter, &mut piece)) {
            Err(error) => Some(Err(error)),
            Ok(0) => None,
            Ok(_) => {
                if piece.last() == Some(&self.delimiter) {
                    piece.pop();
                }
                Some(Ok(String::from_utf8_lossy(&piece).into_owned()))
            }
        }
    }
}

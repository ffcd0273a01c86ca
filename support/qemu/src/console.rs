//! What the machine says: lines with the time of their arrival, in memory and in a file.

use crate::guest_console::Said;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// A line that never ends is cut here, so that a runaway console cannot take all memory
/// in one piece. The file has it whole.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Who said a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The debug console: `vsm_host`, and QEMU's own messages.
    Host,
    /// COM3: boot shim, kernel and usermode of VTL2; on a plain machine, the kernel.
    Vtl2,
}

impl Source {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Host, Self::Vtl2];

    /// Name of the file that keeps this console.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Host => "host.log",
            Self::Vtl2 => "vtl2.log",
        }
    }

    /// Name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host log",
            Self::Vtl2 => "VTL2 console",
        }
    }
}

/// A line of a console, without its end of line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was complete, after the start of QEMU.
    pub at: Duration,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Gets a copy of a console's bytes as they arrive, e.g. to show them. Dropped when the
/// console ends.
pub type Echo = Box<dyn Write + Send>;

/// What the consoles have said so far. Waits sleep on `changed`.
pub(crate) struct Board {
    pub(crate) started: Instant,
    state: Mutex<State>,
    pub(crate) changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) host: Transcript,
    pub(crate) vtl2: Transcript,
    /// Serial ports of the guest, in the order of their connections.
    pub(crate) guests: Vec<Said>,
}

/// One console's lines.
#[derive(Default)]
pub(crate) struct Transcript {
    pub(crate) lines: Vec<Line>,
    /// When the stream ended: QEMU is gone.
    pub(crate) ended: Option<Duration>,
}

impl State {
    pub(crate) fn transcript(&self, source: Source) -> &Transcript {
        match source {
            Source::Host => &self.host,
            Source::Vtl2 => &self.vtl2,
        }
    }

    fn transcript_mut(&mut self, source: Source) -> &mut Transcript {
        match source {
            Source::Host => &mut self.host,
            Source::Vtl2 => &mut self.vtl2,
        }
    }
}

impl Board {
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The state. A reader thread that panicked cannot have left it half changed: lines
    /// are only ever pushed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, source: Source, bytes: &[u8]) {
        let at = self.started.elapsed();
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.lock()
            .transcript_mut(source)
            .lines
            .push(Line { at, text });
        self.changed.notify_all();
    }

    fn end(&self, source: Source) {
        let at = self.started.elapsed();
        self.lock().transcript_mut(source).ended = Some(at);
        self.changed.notify_all();
    }
}

/// Copies a stream to the board and to a file, on a thread of its own, until it ends.
pub(crate) fn capture(
    board: Arc<Board>,
    source: Source,
    mut stream: impl Read + Send + 'static,
    mut file: File,
    mut echo: Option<Echo>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(source.name().to_owned())
        .spawn(move || {
            let mut line = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let count = match stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    // The other end went away in the middle of a write: it is over.
                    Err(_) => break,
                };
                // A full disk must not stop the machine; memory still has the lines.
                let _ = file.write_all(&buffer[..count]);
                if let Some(echo) = &mut echo {
                    let _ = echo.write_all(&buffer[..count]).and_then(|()| echo.flush());
                }
                for &byte in &buffer[..count] {
                    if byte == b'\n' || line.len() == MAX_LINE_BYTES {
                        board.push(source, &line);
                        line.clear();
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
            if !line.is_empty() {
                board.push(source, &line);
            }
            board.end(source);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(bytes: &'static [u8]) -> (Vec<String>, Vec<u8>) {
        let board = Arc::new(Board::new(Instant::now()));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let file = File::create(&path).unwrap();
        capture(board.clone(), Source::Vtl2, bytes, file, None)
            .unwrap()
            .join()
            .unwrap();
        let state = board.lock();
        assert!(state.vtl2.ended.is_some());
        let texts = state.vtl2.lines.iter().map(|l| l.text.clone()).collect();
        (texts, std::fs::read(path).unwrap())
    }

    #[test]
    fn lines_lose_their_ends_and_the_file_keeps_every_byte() {
        let bytes = b"one\r\n\r\ntwo\nthe last has no end";
        let (lines, file) = captured(bytes);
        assert_eq!(lines, ["one", "", "two", "the last has no end"]);
        assert_eq!(file, bytes);
    }

    #[test]
    fn bytes_that_are_no_text_do_not_end_the_capture() {
        let (lines, _) = captured(b"\xff\xfe\nafter\n");
        assert_eq!(lines[1], "after");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        static LONG: [u8; 2 * MAX_LINE_BYTES + 1] = [b'x'; 2 * MAX_LINE_BYTES + 1];
        let (lines, file) = captured(&LONG);
        assert_eq!(lines.len(), 3);
        assert_eq!(file.len(), LONG.len());
    }
}

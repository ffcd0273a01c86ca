//! A serial port of the guest, which the paravisor offers on vsock: what the guest prints,
//! and a keyboard for it.

use crate::Line;
use crate::Source;
use crate::Vm;
use crate::console::Board;
use crate::console::State;
use crate::vsock::shut_down;
use boot_events::Event;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// So much of what was said last stands in an error.
const TAIL_BYTES: usize = 1500;

/// A serial port of the guest. The number is that of its vsock port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum GuestPort {
    /// COM1, the guest's console.
    Com1 = 0x3f8,
    /// COM2.
    Com2 = 0x2f8,
}

impl GuestPort {
    /// The port on vsock.
    pub const fn vsock_port(self) -> u32 {
        self as u32
    }

    /// Name of the file that keeps what was read.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Com1 => "guest.log",
            Self::Com2 => "guest-com2.log",
        }
    }
}

/// A connection to a serial port of the guest. It is always read, so the guest never waits
/// for the host; dropping it disconnects.
///
/// Waits go forward: each begins behind what the one before it found.
pub struct GuestConsole {
    stream: File,
    log: PathBuf,
    board: Arc<Board>,
    /// Which of the board's guest consoles this is.
    index: usize,
    /// Bytes that earlier waits went past.
    seen: usize,
    /// A crash of the guest is its end.
    crash_ends: bool,
    reader: Option<JoinHandle<()>>,
}

/// What a serial port has said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    bytes: Vec<u8>,
    /// When the bytes up to an offset were there.
    arrivals: Vec<(usize, Duration)>,
    ended: bool,
}

/// Why the guest's console did not say what was waited for.
#[derive(Debug, thiserror::Error)]
pub enum GuestConsoleError {
    /// The connection is open, but the deadline passed.
    #[error("the guest did not say {what:?} within {waited:.1?}; its console ({}) ends with:\n{tail}", log.display())]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// Where all that it said is.
        log: PathBuf,
        /// The last of it.
        tail: String,
    },
    /// The paravisor says that the guest has stopped.
    #[error("the guest stopped before it said {what:?}: {cause}; its console ({}) ends with:\n{tail}", log.display())]
    Stopped {
        /// What was waited for.
        what: String,
        /// What the paravisor said.
        cause: String,
        /// Where all that it said is.
        log: PathBuf,
        /// The last of it.
        tail: String,
    },
    /// The paravisor closed the connection, or the machine ended.
    #[error("the guest's console ended before the guest said {what:?}; it ({}) ends with:\n{tail}", log.display())]
    Ended {
        /// What was waited for.
        what: String,
        /// Where all that it said is.
        log: PathBuf,
        /// The last of it.
        tail: String,
    },
}

impl Vm {
    /// Connects to a serial port of the guest. Not before the paravisor is ready: see
    /// [`Vm::vsock`]. What is read is also kept in a file beside the other consoles.
    pub fn guest_console(&self, port: GuestPort) -> io::Result<GuestConsole> {
        let address = self.vsock().ok_or_else(|| {
            io::Error::other("the machine has no vsock, which carries the guest's console")
        })?;
        let stream = address.connect(port.vsock_port())?;
        let log = self.directory().join(port.file_name());
        GuestConsole::new(stream, log, self.board.clone())
    }
}

impl GuestConsole {
    fn new(stream: File, log: PathBuf, board: Arc<Board>) -> io::Result<Self> {
        // A guest that boots twice may be connected to twice.
        let file = File::options().create(true).append(true).open(&log)?;
        let index = {
            let mut state = board.lock();
            state.guests.push(Said::default());
            state.guests.len() - 1
        };
        let (input, of_reader) = (stream.try_clone()?, board.clone());
        let reader = std::thread::Builder::new()
            .name("guest console".to_owned())
            .spawn(move || read(input, file, &of_reader, index))?;
        Ok(Self {
            stream,
            log,
            board,
            index,
            seen: 0,
            crash_ends: false,
            reader: Some(reader),
        })
    }

    /// From now on waits also end when the guest has crashed: for a machine whose policy does
    /// not boot it again.
    pub fn give_up_on_crash(&mut self) {
        self.crash_ends = true;
    }

    /// Waits until the guest has said `text`, a whole line or a part of one. The result is
    /// all that was said up to it, from behind what the last wait found. A guest of which
    /// the paravisor says that it has stopped is not waited for.
    pub fn wait_for_text(
        &mut self,
        text: &str,
        deadline: Duration,
    ) -> Result<Line, GuestConsoleError> {
        let end = Instant::now() + deadline;
        let board = self.board.clone();
        let mut state = board.lock();
        // What was searched once need not be searched again, but for a match across the end.
        let mut from = self.seen;
        loop {
            let said = &state.guests[self.index];
            if let Some(at) = find(&said.bytes[from..], text.as_bytes()) {
                let found = from + at + text.len();
                let line = Line {
                    at: said.arrival(found),
                    text: String::from_utf8_lossy(&said.bytes[self.seen..found]).into_owned(),
                };
                self.seen = found;
                return Ok(line);
            }
            from = (said.bytes.len() + 1).saturating_sub(text.len()).max(from);
            let (what, log, tail) = (text.to_owned(), self.log.clone(), || said.tail());
            if let Some(cause) = stopped(&state, self.crash_ends) {
                let (cause, tail) = (cause.to_owned(), tail());
                return Err(GuestConsoleError::Stopped {
                    what,
                    cause,
                    log,
                    tail,
                });
            }
            if said.ended {
                let tail = tail();
                return Err(GuestConsoleError::Ended { what, log, tail });
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return Err(GuestConsoleError::Deadline {
                    what,
                    waited: deadline,
                    log,
                    tail: tail(),
                });
            };
            state = board
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the paravisor closes the connection, as it does when the guest powers off,
    /// or says that the guest has stopped. Whether that was within the deadline.
    pub fn wait_end(&mut self, deadline: Duration) -> bool {
        let over = |state: &State| {
            state.guests[self.index].ended || stopped(state, self.crash_ends).is_some()
        };
        let waited = self
            .board
            .changed
            .wait_timeout_while(self.board.lock(), deadline, |state| !over(state));
        over(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// What the paravisor says of a guest that does not go on, as waits understand it.
    pub fn stopped(&self) -> Option<String> {
        stopped(&self.board.lock(), self.crash_ends).map(str::to_owned)
    }

    /// Types.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.stream).write_all(bytes)
    }

    /// Types a line.
    pub fn send_line(&self, text: &str) -> io::Result<()> {
        self.send(format!("{text}\n").as_bytes())
    }

    /// All that the guest has said since this connection.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// The same, byte for byte.
    pub fn bytes(&self) -> Vec<u8> {
        self.board.lock().guests[self.index].bytes.clone()
    }

    /// The file that keeps what was said.
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for GuestConsole {
    fn drop(&mut self) {
        // Ends the reader, which has a descriptor of its own.
        shut_down(&self.stream);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Said {
    /// When byte number `offset` was there.
    fn arrival(&self, offset: usize) -> Duration {
        let index = self.arrivals.partition_point(|(end, _)| *end < offset);
        self.arrivals
            .get(index)
            .map_or(Duration::ZERO, |(_, at)| *at)
    }

    fn tail(&self) -> String {
        let start = self.bytes.len().saturating_sub(TAIL_BYTES);
        String::from_utf8_lossy(&self.bytes[start..]).replace('\r', "")
    }
}

/// Reads until the connection ends.
fn read(mut stream: impl Read, mut file: impl Write, board: &Board, index: usize) {
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // A full disk must not stop the guest; memory still has it.
        let _ = file.write_all(&buffer[..count]);
        let at = board.started.elapsed();
        let said = &mut board.lock().guests[index];
        said.bytes.extend_from_slice(&buffer[..count]);
        said.arrivals.push((said.bytes.len(), at));
        board.changed.notify_all();
    }
    board.lock().guests[index].ended = true;
    board.changed.notify_all();
}

/// What the paravisor says of a guest that does not go on, if it has not begun anew since.
fn stopped(state: &State, crash_ends: bool) -> Option<&str> {
    let lines = &state.transcript(Source::Vtl2).lines;
    let last = lines.iter().rev().find_map(|line| {
        Event::parse(&line.text).filter(|event| {
            matches!(
                event,
                Event::GuestStopped(_) | Event::GuestReset(_) | Event::WorkerReady(_)
            ) || (crash_ends && matches!(event, Event::GuestCrashed(_)))
        })
    });
    match last {
        Some(Event::GuestStopped(cause) | Event::GuestCrashed(cause)) => Some(cause),
        _ => None,
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    bytes.windows(text.len()).position(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::capture;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_millis(50);
    /// Only for tests that would otherwise hang.
    const LONG: Duration = Duration::from_secs(60);

    fn console() -> (tempfile::TempDir, UnixStream, GuestConsole) {
        let directory = tempfile::tempdir().unwrap();
        let (guest, host) = UnixStream::pair().unwrap();
        let board = Arc::new(Board::new(Instant::now()));
        let log = directory.path().join(GuestPort::Com1.file_name());
        let stream = File::from(OwnedFd::from(host));
        let console = GuestConsole::new(stream, log, board).unwrap();
        (directory, guest, console)
    }

    #[test]
    fn waits_go_forward_and_see_lines_without_an_end() {
        let (_directory, mut guest, mut console) = console();
        guest.write_all(b"one\r\ntwo\r\nlogin: ").unwrap();

        assert_eq!(console.wait_for_text("one", LONG).unwrap().text, "one");
        let line = console.wait_for_text("login: ", LONG).unwrap();
        assert_eq!(line.text, "\r\ntwo\r\nlogin: ");
        let error = console.wait_for_text("one", SOON).unwrap_err();
        assert!(
            matches!(error, GuestConsoleError::Deadline { .. }),
            "{error}"
        );
        assert!(error.to_string().contains("login: "), "{error}");
    }

    #[test]
    fn a_text_that_comes_in_pieces_is_found() {
        let (_directory, mut guest, mut console) = console();
        let waiting = std::thread::spawn(move || {
            let line = console.wait_for_text("prompt", LONG).unwrap();
            console.send_line("answer").unwrap();
            line
        });
        for piece in ["pro", "pro", "mpt"] {
            guest.write_all(piece.as_bytes()).unwrap();
        }
        let mut answer = [0; 7];
        guest.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer\n");
        assert_eq!(waiting.join().unwrap().text, "proprompt");
    }

    #[test]
    fn the_end_is_told_with_what_was_said_last_and_the_file_has_it_all() {
        let (_directory, mut guest, mut console) = console();
        guest.write_all(b"\xfflast words").unwrap();
        drop(guest);

        let error = console.wait_for_text("ready", LONG).unwrap_err();

        assert!(matches!(error, GuestConsoleError::Ended { .. }), "{error}");
        assert!(error.to_string().contains("last words"), "{error}");
        assert!(console.wait_end(LONG));
        assert_eq!(std::fs::read(console.log()).unwrap(), b"\xfflast words");
    }

    /// Lets the paravisor say a line.
    fn say(directory: &Path, console: &GuestConsole, line: &str) {
        let vtl2 = capture(
            console.board.clone(),
            Source::Vtl2,
            io::Cursor::new(format!("[    1.0] {line}\r\n")),
            File::create(directory.join("vtl2")).unwrap(),
            None,
        );
        vtl2.unwrap().join().unwrap();
    }

    #[test]
    fn a_guest_that_has_stopped_is_not_waited_for() {
        let (directory, _guest, mut console) = console();
        let line = format!("{}VP 0: no way", boot_events::GUEST_STOPPED_PREFIX);
        say(directory.path(), &console, &line);

        let error = console.wait_for_text("ready", LONG).unwrap_err();

        assert!(error.to_string().contains("VP 0: no way"), "{error}");
        assert!(console.wait_end(LONG));
    }

    #[test]
    fn a_guest_cannot_say_that_it_has_stopped() {
        let (directory, _guest, mut console) = console();
        let quoted = format!("underhill_vm: {}", boot_events::GUEST_STOPPED_PREFIX);
        say(directory.path(), &console, &quoted);

        let error = console.wait_for_text("ready", SOON).unwrap_err();

        assert!(
            matches!(error, GuestConsoleError::Deadline { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_crash_ends_a_wait_only_where_that_was_asked_for() {
        let (directory, _guest, mut console) = console();
        let line = format!("{}triple fault", boot_events::GUEST_CRASHED_PREFIX);
        say(directory.path(), &console, &line);

        let error = console.wait_for_text("ready", SOON).unwrap_err();
        assert!(
            matches!(error, GuestConsoleError::Deadline { .. }),
            "{error}"
        );
        console.give_up_on_crash();
        let error = console.wait_for_text("ready", LONG).unwrap_err();
        assert!(error.to_string().contains("triple fault"), "{error}");
    }

    #[test]
    fn a_dropped_console_is_disconnected() {
        let (_directory, mut guest, console) = console();
        drop(console);
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }
}

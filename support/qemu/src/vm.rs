//! A running machine.

use crate::CommandLine;
use crate::Echo;
use crate::Exit;
use crate::Line;
use crate::Machine;
use crate::MachineError;
use crate::Qemu;
use crate::QmpError;
use crate::Source;
use crate::Wiring;
use crate::console::Board;
use crate::console::State;
use crate::console::capture;
use crate::qmp::Qmp;
use nix::fcntl::FcntlArg;
use nix::fcntl::FdFlag;
use nix::fcntl::fcntl;
use serde_json::json;
use std::fmt;
use std::fs::File;
use std::io::PipeWriter;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// File beside the consoles that holds the command.
const COMMAND_FILE: &str = "qemu.sh";

/// File beside the consoles for the vCPUs' registers when a wait fails.
const REGISTERS_FILE: &str = "registers.txt";

/// So many last lines of each console stand in an error.
const TAIL_LINES: usize = 12;

/// Held while a QEMU is started.
static SPAWN: Mutex<()> = Mutex::new(());

/// A running machine. Dropping it kills QEMU.
pub struct Vm {
    child: Child,
    exit: Option<Exit>,
    board: Arc<Board>,
    readers: Vec<JoinHandle<()>>,
    typed: PipeWriter,
    qmp: Qmp,
    directory: PathBuf,
}

/// Both ends of the machine protocol's socket.
struct QmpPair {
    ours: UnixStream,
    theirs: UnixStream,
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The description is wrong.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why what was waited for did not come.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The machine runs on, but the deadline passed.
    #[error("no {what} after {waited:.1?}\n{report}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
        /// What was last seen.
        report: ConsoleReport,
    },
    /// The machine ended first.
    #[error("no {what}: {exit}\n{report}")]
    Ended {
        /// What was waited for.
        what: String,
        /// How it ended.
        exit: Exit,
        /// What was last seen.
        report: ConsoleReport,
    },
    /// The system could not say how the process ended.
    #[error("the QEMU process: {0}")]
    Process(#[from] std::io::Error),
}

/// The ends of both consoles and where the whole of them is. Part of every failed wait.
#[derive(Debug)]
pub struct ConsoleReport {
    /// Directory with the consoles' files.
    pub directory: PathBuf,
    /// The last lines of each console.
    pub tails: Vec<(Source, Vec<Line>)>,
    /// File with all registers at the time of the failure, if QEMU was still there.
    pub registers: Option<PathBuf>,
}

impl Machine {
    /// Starts QEMU. Consoles and command are kept in files in `directory`, which is
    /// created.
    pub fn start(&self, qemu: &Qemu, directory: &Path) -> Result<Vm, StartError> {
        self.start_with_echo(qemu, directory, |_| None)
    }

    /// Starts QEMU; what the consoles say is also given to `echo`.
    pub fn start_with_echo(
        &self,
        qemu: &Qemu,
        directory: &Path,
        echo: impl FnMut(Source) -> Option<Echo>,
    ) -> Result<Vm, StartError> {
        let qmp = QmpPair::new()?;
        let wiring = Wiring::Program {
            qmp: qmp.theirs.as_raw_fd(),
        };
        Vm::spawn(&self.command_line(qemu, wiring)?, qmp, directory, echo)
    }
}

impl QmpPair {
    fn new() -> Result<Self, StartError> {
        let (ours, theirs) = UnixStream::pair().map_err(|source| StartError::Io {
            what: "a socket for QEMU's machine protocol".to_owned(),
            source,
        })?;
        Ok(Self { ours, theirs })
    }
}

impl Vm {
    /// Starts a command that is wired for a program.
    fn spawn(
        line: &CommandLine,
        qmp: QmpPair,
        directory: &Path,
        mut echo: impl FnMut(Source) -> Option<Echo>,
    ) -> Result<Self, StartError> {
        let io = |what: String| move |source| StartError::Io { what, source };
        let in_directory = || io(format!("keeping consoles in {}", directory.display()));

        std::fs::create_dir_all(directory).map_err(in_directory())?;
        std::fs::write(
            directory.join(COMMAND_FILE),
            format!("{}\n", line.shell_text()),
        )
        .map_err(in_directory())?;
        let file = |source: Source| {
            File::create(directory.join(source.file_name())).map_err(in_directory())
        };
        let (host_file, vtl2_file) = (file(Source::Host)?, file(Source::Vtl2)?);

        // Pipes, not sockets: a socket charges each byte that the serial port sends with
        // almost a KiB, so it is full after one long line and the port loses characters.
        let pipes = || io("pipes for QEMU's consoles".to_owned());
        let (typed_theirs, typed) = std::io::pipe().map_err(pipes())?;
        let (vtl2, vtl2_theirs) = std::io::pipe().map_err(pipes())?;
        let (host, host_theirs) = std::io::pipe().map_err(pipes())?;

        let mut command = line.to_command();
        command
            .stdin(Stdio::from(typed_theirs))
            .stdout(Stdio::from(vtl2_theirs))
            .stderr(Stdio::from(host_theirs));
        let board = Arc::new(Board::new(Instant::now()));
        let starting = || io(format!("starting {}", line.program().display()));
        let child = {
            // While the socket can be inherited, no other machine may be started.
            let _alone = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
            let child = fcntl(&qmp.theirs, FcntlArg::F_SETFD(FdFlag::empty()))
                .map_err(std::io::Error::from)
                .and_then(|_| command.spawn());
            // Our copies of QEMU's ends: only without them do the streams end with QEMU.
            drop(command);
            drop(qmp.theirs);
            child.map_err(starting())?
        };

        let mut vm = Self {
            child,
            exit: None,
            board: board.clone(),
            readers: Vec::new(),
            typed,
            qmp: Qmp::new(qmp.ours).map_err(pipes())?,
            directory: directory.to_owned(),
        };
        let readers = || io("a thread for a console".to_owned());
        let host_reader = capture(
            board.clone(),
            Source::Host,
            host,
            host_file,
            echo(Source::Host),
        );
        vm.readers.push(host_reader.map_err(readers())?);
        let vtl2_reader = capture(board, Source::Vtl2, vtl2, vtl2_file, echo(Source::Vtl2));
        vm.readers.push(vtl2_reader.map_err(readers())?);
        Ok(vm)
    }

    /// Waits for a line for which `matches` holds. Lines that are already there count.
    /// `what` names it in errors.
    pub fn wait_for(
        &mut self,
        source: Source,
        what: &str,
        deadline: Duration,
        matches: impl Fn(&Line) -> bool,
    ) -> Result<Line, WaitError> {
        let mut seen = 0;
        let found = self.wait(deadline, |state| {
            let transcript = state.transcript(source);
            let new = &transcript.lines[seen..];
            seen = transcript.lines.len();
            match new.iter().find(|line| matches(line)) {
                Some(line) => Some(Some(line.clone())),
                None => transcript.ended.map(|_| None),
            }
        });
        match found {
            Some(Some(line)) => Ok(line),
            Some(None) => {
                let exit = self.reap()?;
                Err(WaitError::Ended {
                    what: what.to_owned(),
                    exit,
                    report: self.report(),
                })
            }
            None => Err(self.deadline_passed(what, deadline)),
        }
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for_text(
        &mut self,
        source: Source,
        text: &str,
        deadline: Duration,
    ) -> Result<Line, WaitError> {
        let what = format!("line with {text:?} on the {}", source.name());
        self.wait_for(source, &what, deadline, |line| line.text.contains(text))
    }

    /// Waits for the machine to end. All that it said is then captured.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<Exit, WaitError> {
        let both = |state: &State| Source::ALL.map(|source| state.transcript(source).ended);
        let ended = self.wait(deadline, |state| both(state)[0].and(both(state)[1]));
        match ended {
            Some(_) => Ok(self.reap()?),
            None => Err(self.deadline_passed("end of the machine", deadline)),
        }
    }

    /// Types on VTL2's console.
    pub fn type_text(&self, text: &[u8]) -> std::io::Result<()> {
        (&self.typed).write_all(text)
    }

    /// All lines so far.
    pub fn lines(&self, source: Source) -> Vec<Line> {
        self.board.lock().transcript(source).lines.clone()
    }

    /// When the machine ended, after its start; known once both consoles are complete.
    pub fn ended_at(&self) -> Option<Duration> {
        let state = self.board.lock();
        Some(state.host.ended?.max(state.vtl2.ended?))
    }

    /// Where consoles and command are kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Asks QEMU's human monitor, e.g. `info registers -a`.
    pub fn monitor(&mut self, command: &str) -> Result<String, QmpError> {
        let answer = self
            .qmp
            .execute("human-monitor-command", json!({ "command-line": command }))?;
        Ok(answer.as_str().unwrap_or_default().replace("\r\n", "\n"))
    }

    /// Kills QEMU and says how it had ended, if it had.
    pub fn kill(mut self) -> std::io::Result<Exit> {
        self.end()
    }

    /// What was said last, for an error.
    pub fn report(&mut self) -> ConsoleReport {
        let registers = (self.exit.is_none())
            .then(|| self.monitor("info registers -a").ok())
            .flatten()
            .and_then(|text| {
                let path = self.directory.join(REGISTERS_FILE);
                std::fs::write(&path, text).ok().map(|()| path)
            });
        let state = self.board.lock();
        let tails = Source::ALL
            .map(|source| {
                let lines = &state.transcript(source).lines;
                let first = lines.len().saturating_sub(TAIL_LINES);
                (source, lines[first..].to_vec())
            })
            .into();
        ConsoleReport {
            directory: self.directory.clone(),
            tails,
            registers,
        }
    }

    /// Sleeps until `ready` gives something, or the deadline passed. It looks once more
    /// after the deadline, so that a slow scheduler cannot hide what is there.
    fn wait<T>(&self, deadline: Duration, mut ready: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let end = Instant::now() + deadline;
        let mut state = self.board.lock();
        loop {
            if let Some(found) = ready(&state) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            state = self
                .board
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn deadline_passed(&mut self, what: &str, waited: Duration) -> WaitError {
        WaitError::Deadline {
            what: what.to_owned(),
            waited,
            report: self.report(),
        }
    }

    /// The status of a process that has closed its consoles, i.e. is exiting.
    fn reap(&mut self) -> std::io::Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let exit = Exit::from_status(self.child.wait()?);
        self.exit = Some(exit);
        // The other console's last lines belong to what a report shows.
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(exit)
    }

    fn end(&mut self) -> std::io::Result<Exit> {
        if self.exit.is_none() {
            // Fails only for a process that was reaped, which `exit` would show.
            self.child.kill()?;
        }
        self.reap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.end();
    }
}

impl fmt::Display for ConsoleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (source, tail) in &self.tails {
            let path = self.directory.join(source.file_name());
            writeln!(f, "--- {}: {}", source.name(), path.display())?;
            if tail.is_empty() {
                writeln!(f, "    (nothing was said)")?;
            }
            for line in tail {
                writeln!(f, "    {:8.3} s  {}", line.at.as_secs_f64(), line.text)?;
            }
        }
        let command = self.directory.join(COMMAND_FILE);
        write!(f, "--- command: {}", command.display())?;
        if let Some(registers) = &self.registers {
            write!(f, "\n--- registers: {}", registers.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsm_host_defs::ExitReason;

    const SOON: Duration = Duration::from_millis(50);
    /// Only for tests that would otherwise hang.
    const LONG: Duration = Duration::from_secs(60);

    /// A machine protocol that nobody speaks: the other ends of both sockets are gone.
    fn no_qmp() -> QmpPair {
        let (ours, theirs) = (QmpPair::new().unwrap().ours, QmpPair::new().unwrap().theirs);
        QmpPair { ours, theirs }
    }

    /// A shell script in QEMU's place: descriptors 0 and 1 are VTL2's console, 2 the host log.
    fn fake(script: &str) -> (tempfile::TempDir, Vm) {
        let directory = tempfile::tempdir().unwrap();
        let mut line = CommandLine::new(Path::new("sh"));
        line.option("-c", script);
        let vm = Vm::spawn(&line, no_qmp(), &directory.path().join("consoles"), |_| {
            None
        })
        .unwrap();
        (directory, vm)
    }

    #[test]
    fn lines_come_with_times_from_both_consoles() {
        let (_directory, mut vm) = fake("echo host >&2; echo guest; exit 33");
        let exit = vm.wait_exit(LONG).unwrap();
        assert_eq!(exit, Exit::Host(ExitReason::PowerOff));
        assert_eq!(vm.lines(Source::Host)[0].text, "host");
        let guest = &vm.lines(Source::Vtl2)[0];
        assert_eq!(guest.text, "guest");
        assert!(guest.at <= vm.ended_at().unwrap());
        let file = std::fs::read_to_string(vm.directory().join("vtl2.log")).unwrap();
        assert_eq!(file, "guest\n");
    }

    #[test]
    fn a_wait_ends_with_the_line_not_with_the_process() {
        // The script goes on only after it was typed at, which the test does only after
        // the first line.
        let (_directory, mut vm) = fake("echo ready; read word; echo \"got $word\"");
        vm.wait_for_text(Source::Vtl2, "ready", LONG).unwrap();
        vm.type_text(b"hello\n").unwrap();
        let line = vm.wait_for_text(Source::Vtl2, "got", LONG).unwrap();
        assert_eq!(line.text, "got hello");
        // Lines of the past still count.
        vm.wait_for_text(Source::Vtl2, "ready", SOON).unwrap();
        assert_eq!(vm.wait_exit(LONG).unwrap(), Exit::Normal);
    }

    #[test]
    fn the_end_of_the_machine_ends_every_wait_and_is_explained() {
        let (_directory, mut vm) = fake("echo last words; echo why >&2; exit 35");
        let error = vm.wait_for_text(Source::Vtl2, "ready", LONG).unwrap_err();
        assert!(
            matches!(
                error,
                WaitError::Ended {
                    exit: Exit::Host(ExitReason::Vtl2Crash),
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        for part in ["VTL2 crashed", "last words", "why", "host.log", "vtl2.log"] {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }

    #[test]
    fn a_deadline_tells_what_was_seen_and_the_machine_runs_on() {
        let (_directory, mut vm) = fake("echo waiting; read word; exit 41");
        vm.wait_for_text(Source::Vtl2, "waiting", LONG).unwrap();
        let error = vm.wait_for_text(Source::Vtl2, "never", SOON).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, WaitError::Deadline { .. }), "{text}");
        assert!(
            text.contains("\"never\"") && text.contains("waiting"),
            "{text}"
        );
        vm.type_text(b"go\n").unwrap();
        assert_eq!(vm.wait_exit(LONG).unwrap(), Exit::Host(ExitReason::Reset));
    }

    #[test]
    fn a_dropped_machine_is_gone() {
        let (_directory, mut vm) = fake("echo $$; exec sleep 1000");
        let line = vm
            .wait_for(Source::Vtl2, "process id", LONG, |_| true)
            .unwrap();
        let process = PathBuf::from(format!("/proc/{}", line.text));
        assert!(process.exists());
        drop(vm);
        assert!(!process.exists());
    }

    #[test]
    fn an_echo_gets_every_byte_and_is_dropped_at_the_end() {
        let (sender, receiver) = std::sync::mpsc::channel();
        /// Sends what it gets; the channel closes when it is dropped.
        struct Sender(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Sender {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.send(bytes.to_vec()).unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut sender = Some(sender);
        let directory = tempfile::tempdir().unwrap();
        let mut line = CommandLine::new(Path::new("sh"));
        line.option("-c", "printf 'no end' ");
        let _vm = Vm::spawn(&line, QmpPair::new().unwrap(), directory.path(), |source| {
            (source == Source::Vtl2)
                .then(|| Box::new(Sender(sender.take().unwrap())) as crate::Echo)
        })
        .unwrap();
        let echoed: Vec<u8> = receiver.into_iter().flatten().collect();
        assert_eq!(echoed, b"no end");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let line = CommandLine::new(Path::new("/nonexistent/qemu"));
        let error = Vm::spawn(&line, QmpPair::new().unwrap(), directory.path(), |_| None)
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nonexistent/qemu"), "{error}");
    }
}

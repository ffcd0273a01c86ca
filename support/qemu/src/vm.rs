//! A running machine.

use crate::Exit;
use crate::Line;
use crate::QmpError;
use crate::Source;
use crate::VsockAddress;
use crate::console::Board;
use crate::console::State;
use crate::qmp::Qmp;
use crate::vsock;
use crate::vsock::VsockHelper;
use boot_events::Event;
use serde_json::json;
use std::fmt;
use std::io::PipeWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// File beside the consoles that holds the command.
pub(crate) const COMMAND_FILE: &str = "qemu.sh";

/// File beside the consoles for the vCPUs' registers when a wait fails.
const REGISTERS_FILE: &str = "registers.txt";

/// So many last lines of each console stand in an error.
const TAIL_LINES: usize = 12;

/// A running machine. Dropping it kills QEMU.
pub struct Vm {
    pub(crate) child: Child,
    pub(crate) exit: Option<Exit>,
    pub(crate) board: Arc<Board>,
    pub(crate) readers: Vec<JoinHandle<()>>,
    pub(crate) typed: PipeWriter,
    pub(crate) qmp: Qmp,
    pub(crate) directory: PathBuf,
    pub(crate) vsock: Option<VsockAddress>,
    /// Ends with the machine.
    pub(crate) helper: Option<VsockHelper>,
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
    /// Whether vsock's helper said anything, which is in a file beside the consoles.
    pub helper_spoke: bool,
}

impl Vm {
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

    /// Waits for this event on VTL2's console, in the paravisor's own words: what it quotes of
    /// a guest does not count.
    pub fn wait_for_event(
        &mut self,
        event: Event<'_>,
        deadline: Duration,
    ) -> Result<Line, WaitError> {
        let what = format!("{event:?} on the {}", Source::Vtl2.name());
        self.wait_for(Source::Vtl2, &what, deadline, |line| {
            Event::parse(&line.text) == Some(event)
        })
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

    /// Where the machine's vsock is reached, if it has one. It can be connected to once the
    /// guest has said that it listens, and not before.
    pub fn vsock(&self) -> Option<&VsockAddress> {
        self.vsock.as_ref()
    }

    /// Time since the start of QEMU.
    pub fn elapsed(&self) -> Duration {
        self.board.started.elapsed()
    }

    /// Process id of QEMU.
    pub fn process_id(&self) -> u32 {
        self.child.id()
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
        let log = std::fs::metadata(self.directory.join(vsock::LOG_FILE));
        let helper_spoke = self.vsock.is_some() && log.is_ok_and(|log| log.len() != 0);
        ConsoleReport {
            directory: self.directory.clone(),
            tails,
            registers,
            helper_spoke,
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
        // Only now: a device must not vanish from a machine that runs.
        self.helper = None;
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
        if self.helper_spoke {
            let log = self.directory.join(vsock::LOG_FILE);
            write!(f, "\n--- vsock's helper: {}", log.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CommandLine;
    use crate::StartError;
    use crate::start::Wires;
    use vsm_host_defs::ExitReason;

    const SOON: Duration = Duration::from_millis(50);
    /// Only for tests that would otherwise hang.
    const LONG: Duration = Duration::from_secs(60);

    fn spawn(
        line: &CommandLine,
        directory: &Path,
        echo: impl FnMut(Source) -> Option<crate::Echo>,
    ) -> Result<Vm, StartError> {
        Vm::spawn(line, Wires::dead(), directory, echo)
    }

    /// A shell script in QEMU's place: descriptors 0 and 1 are VTL2's console, 2 the host log.
    fn fake(script: &str) -> (tempfile::TempDir, Vm) {
        let directory = tempfile::tempdir().unwrap();
        let mut line = CommandLine::new(Path::new("sh"));
        line.option("-c", script);
        let vm = spawn(&line, &directory.path().join("consoles"), |_| None).unwrap();
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
        let _vm = spawn(&line, directory.path(), |source| {
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
        let error = spawn(&line, directory.path(), |_| None).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/qemu"), "{error}");
    }
}

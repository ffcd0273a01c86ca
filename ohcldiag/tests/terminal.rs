//! The program on a terminal: what it passes on, and that it leaves the terminal as it was.

#[path = "../../diag_client/tests/server/mod.rs"]
mod server;

use nix::pty::openpty;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::termios::InputFlags;
use nix::sys::termios::LocalFlags;
use nix::sys::termios::OutputFlags;
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use server::Server;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;

/// The program on a terminal of its own.
struct Session {
    child: Child,
    /// What a person types on and looks at.
    screen: File,
    /// The program's side, kept open so that its settings can be looked at.
    terminal: OwnedFd,
    before: Settings,
    seen: String,
}

type Settings = (InputFlags, OutputFlags, LocalFlags);

fn settings(terminal: &OwnedFd) -> Settings {
    let settings = tcgetattr(terminal).unwrap();
    (
        settings.input_flags,
        settings.output_flags,
        settings.local_flags,
    )
}

impl Session {
    fn start(server: &Server, args: &[&str]) -> Self {
        let pair = openpty(None, None).unwrap();
        let before = settings(&pair.slave);
        let child = Command::new(env!("CARGO_BIN_EXE_ohcldiag"))
            .arg("--vm")
            .arg(&server.path)
            .args(args)
            .stdin(pair.slave.try_clone().unwrap())
            .stdout(pair.slave.try_clone().unwrap())
            .stderr(pair.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            screen: pair.master.into(),
            terminal: pair.slave,
            before,
            seen: String::new(),
        }
    }

    fn type_text(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `text` has been shown.
    fn expect(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.seen.contains(text) {
            let count = self.screen.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "{:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    fn is_raw(&self) -> bool {
        !settings(&self.terminal).2.contains(LocalFlags::ICANON)
    }

    /// Waits for the end; the terminal must be as it was then.
    fn end(mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        assert_eq!(settings(&self.terminal), self.before, "{:?}", self.seen);
        status
    }
}

/// A shell that says that it is ready, in a way that its echoed input does not contain.
fn shell(server: &Server) -> Session {
    let mut session = Session::start(server, &["shell"]);
    session.type_text("echo rea''dy\n");
    session.expect("ready");
    assert!(session.is_raw());
    session
}

#[test]
fn a_shell_gets_keys_and_returns_its_code() {
    let server = Server::start();
    let mut session = shell(&server);
    // Ctrl-C is the remote program's. It makes a terminal throw away what a program writes
    // at that moment, so the trap only takes a note, which the next line shows.
    session.type_text("trap 'note=caught' INT\n");
    session.type_text("echo se''t\n");
    session.expect("set");
    session.type_text("\u{3}\necho ${note}it\n");
    session.expect("caughtit");
    session.type_text("exit 7\n");
    assert_eq!(session.end().code(), Some(7));
}

#[test]
fn end_of_input_ends_a_shell() {
    let server = Server::start();
    let mut session = shell(&server);
    session.type_text("\u{4}");
    assert_eq!(session.end().code(), Some(0));
}

#[test]
fn a_key_leaves_a_program_that_never_ends() {
    let server = Server::start();
    // It ends with this test's process, which is its parent.
    let script = "trap '' INT HUP; echo up; exec tail -f --pid=$PPID /dev/null";
    let program = ["exec", "--tty", "--", "/bin/sh", "-c", script];
    let mut session = Session::start(&server, &program);
    session.expect("up");
    session.type_text("\u{3}\u{1d}");
    assert_eq!(session.end().code(), Some(1));
}

#[test]
fn a_signal_restores_the_terminal() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let server = Server::start();
        let session = shell(&server);
        kill(Pid::from_raw(session.child.id() as i32), signal).unwrap();
        assert_eq!(session.end().code(), Some(code));
    }
}

#[test]
fn the_end_of_the_vm_restores_the_terminal() {
    let server = Server::start();
    let session = shell(&server);
    drop(server);
    assert_eq!(session.end().code(), Some(1));
}

#[test]
fn a_missing_shell_leaves_the_terminal_alone() {
    let server = Server::start();
    let mut session = Session::start(&server, &["shell", "--shell", "/nonexistent"]);
    session.expect("only development images");
    assert_eq!(session.end().code(), Some(1));
}

#[test]
fn output_of_programs_without_a_terminal_is_harmless_on_one() {
    let server = Server::start();
    let mut session = Session::start(&server, &["exec", "--no-stdin", "printf", "a\\033[31mb\\n"]);
    session.expect("a\\u{1b}[31mb\r\n");
    assert_eq!(session.end().code(), Some(0));
}

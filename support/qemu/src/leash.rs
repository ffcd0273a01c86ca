//! Processes that end with this one, however it ends.
//!
//! A `Drop` is not enough: a test runner or a shell that kills us with SIGKILL runs none,
//! and an emulator that nobody watches any more would use a processor for ever. So the
//! kernel is asked to kill the child when its parent dies (`PR_SET_PDEATHSIG`).
//!
//! For the kernel the parent is the *thread* that forked. A test's thread may be gone
//! before the machine that it started and handed on, so all children come from one thread
//! that lives as long as the process does.

#![expect(
    unsafe_code,
    reason = "the signal must be asked for in the child, between fork and exec"
)]

use nix::fcntl::FcntlArg;
use nix::fcntl::FdFlag;
use nix::fcntl::fcntl;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Child;
use std::process::Command;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::Sender;

/// A child to start, and where the result goes.
struct Order {
    command: Command,
    result: Sender<io::Result<Child>>,
}

/// Starts `command`. The child is killed when this process ends, whatever ends it. It
/// inherits `inherited` under the numbers that they have here, and nothing else beyond its
/// standard streams.
pub fn spawn_leashed(mut command: Command, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let parent = nix::unistd::getpid();
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above: then no signal will come.
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for descriptor in &inherited {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only functions that are safe in a signal handler may
    // run. `prepare` makes the system calls prctl, getppid and fcntl; it allocates nothing,
    // takes no lock, and its errors are plain numbers.
    unsafe { command.pre_exec(prepare) };

    let (result, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner()?
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Order { command, result })
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// The thread that is the parent of all children.
fn spawner() -> io::Result<&'static Mutex<Sender<Order>>> {
    static SPAWNER: OnceLock<io::Result<Mutex<Sender<Order>>>> = OnceLock::new();
    let start = || {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for Order {
                    mut command,
                    result,
                } in queue
                {
                    let child = command.spawn();
                    // Closes our copies of what the child was given before the caller goes
                    // on: only then does a pipe end when the child does.
                    drop(command);
                    // Nobody waits any more: the child is then dropped, and dies with us.
                    let _ = result.send(child);
                }
            })?;
        Ok(Mutex::new(orders))
    };
    SPAWNER
        .get_or_init(start)
        .as_ref()
        .map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::io::Write as _;
    use std::process::Stdio;

    /// Set in a process that plays the one which is killed.
    const PARENT: &str = "QEMU_TEST_LEASH_PARENT";

    fn sleeper() -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; exec sleep 1000"]);
        command
    }

    /// Not a test of its own: the parent in the test below, in a process of its own. It
    /// starts a child whose standard output is the test's pipe, and hangs.
    #[test]
    fn the_parent_that_is_killed() {
        if std::env::var_os(PARENT).is_none() {
            return;
        }
        // The child outlives the thread that asks for it.
        let child = std::thread::spawn(|| spawn_leashed(sleeper(), Vec::new()).unwrap());
        let mut child = child.join().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_child_dies_with_a_parent_that_is_killed() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap());
        parent
            .args(["--exact", "leash::tests::the_parent_that_is_killed"])
            .arg("--nocapture")
            .env(PARENT, "1")
            .stdin(Stdio::null())
            .stdout(writer);
        let mut process = parent.spawn().unwrap();
        drop(parent);
        let mut seen = Vec::new();
        while !seen.windows(8).any(|bytes| bytes == b"started\n") {
            let mut byte = [0];
            assert_ne!(reader.read(&mut byte).unwrap(), 0, "no child was started");
            seen.push(byte[0]);
        }

        process.kill().unwrap();
        process.wait().unwrap();

        // Ends only when the child is gone as well: it holds the pipe's other end.
        reader.read_to_end(&mut seen).unwrap();
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = std::thread::spawn(|| spawn_leashed(command, Vec::new()).unwrap())
            .join()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"alive").unwrap();
        drop(input);
        let mut text = String::new();
        let mut output = child.stdout.take().unwrap();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "alive");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn only_named_descriptors_are_inherited() {
        use std::os::fd::AsRawFd as _;
        let (_reader, kept) = std::io::pipe().unwrap();
        let (_other_reader, other) = std::io::pipe().unwrap();
        let (kept_number, other_number) = (kept.as_raw_fd(), other.as_raw_fd());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!(
            "test -e /proc/$$/fd/{kept_number} && ! test -e /proc/$$/fd/{other_number}"
        ));
        let mut child = spawn_leashed(command, vec![kept.into()]).unwrap();
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = spawn_leashed(Command::new("/nonexistent/program"), Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

//! Which processes of this machine are still there.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;

/// When a process started, in the kernel's ticks since boot. With it, another process that
/// got the same id later is told apart. `None` if there is no such process.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; field 22 is the 20th behind it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether a process is there, and (if that was known) is the one that started then.
pub(crate) fn is_alive(pid: u32, started: Option<u64>) -> bool {
    match (start_ticks(pid), started) {
        (Some(now), Some(then)) => now == then,
        (Some(_), None) => true,
        // Without /proc, a signal that is never sent tells.
        (None, _) => !fs::exists("/proc/self/stat").unwrap_or(false) && exists(pid),
    }
}

fn exists(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else {
        return false;
    };
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

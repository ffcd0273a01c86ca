//! System calls that have no safe wrapper.
#![expect(
    unsafe_code,
    reason = "descriptors come as numbers, and a child is prepared between fork and exec"
)]

use nix::errno::Errno;
use nix::fcntl;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::Winsize;
use nix::sys::stat::Mode;
use nix::unistd::setsid;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::process::Command;

nix::ioctl_write_int_bad!(
    /// Makes a terminal the controlling terminal of the calling session.
    set_controlling_terminal,
    libc::TIOCSCTTY
);

nix::ioctl_write_ptr_bad!(
    /// Sets the size of a terminal.
    set_size,
    libc::TIOCSWINSZ,
    Winsize
);

nix::ioctl_write_ptr_bad!(
    /// Locks or unlocks the other side of a terminal.
    set_lock,
    libc::TIOCSPTLCK,
    libc::c_int
);

nix::ioctl_write_int_bad!(
    /// Opens the other side of a terminal.
    open_peer,
    libc::TIOCGPTPEER
);

/// The two sides of a new terminal: that of the emulator, which does not block, and that of
/// programs. Unlike those of `openpty`, they are closed on exec from the start.
pub(crate) fn terminal(size: &Winsize) -> nix::Result<(OwnedFd, OwnedFd)> {
    let unlocked: libc::c_int = 0;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let ours = fcntl::open("/dev/ptmx", flags | OFlag::O_NONBLOCK, Mode::empty())?;
    // SAFETY: the number is read from a variable that outlives the call.
    unsafe { set_lock(ours.as_raw_fd(), &raw const unlocked) }?;
    // SAFETY: the size is read from a reference.
    unsafe { set_size(ours.as_raw_fd(), size) }?;
    // SAFETY: a number goes in, a descriptor or an error comes out.
    let theirs = unsafe { open_peer(ours.as_raw_fd(), flags.bits()) }?;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    Ok((ours, theirs))
}

/// A descriptor that becomes readable when `child` ends. `child` must not have been waited
/// for, so that its id is still its own.
pub(crate) fn pidfd(child: &Child) -> nix::Result<OwnedFd> {
    const NO_FLAGS: libc::c_uint = 0;
    let pid = child.id() as libc::pid_t;
    // SAFETY: two numbers go in, a descriptor or an error comes out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, NO_FLAGS) };
    let fd = Errno::result(fd)? as libc::c_int;
    // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the child lead a session of its own, in which every signal has its default action;
/// with `terminal`, its standard input is the session's controlling terminal.
pub(crate) fn own_session(command: &mut Command, terminal: bool) {
    const DO_NOT_STEAL: libc::c_int = 0;
    /// Signals below have names, those above are for programs that agree on them.
    const SIGNALS_END: libc::c_int = 32;
    let prepare = move || -> io::Result<()> {
        setsid()?;
        // What an ancestor ignores stays ignored across exec: Ctrl-C and hang-up would not
        // end anything.
        for signal in 1..SIGNALS_END {
            // SAFETY: the default action is none of this program's code. It cannot be set
            // for SIGKILL and SIGSTOP, which have no other.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        if terminal {
            // SAFETY: a number goes in; an error is returned.
            unsafe { set_controlling_terminal(libc::STDIN_FILENO, DO_NOT_STEAL) }?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls that may be made between fork and exec; it
    // allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

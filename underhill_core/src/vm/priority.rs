//! The priority of VPs' threads.
#![expect(unsafe_code, reason = "a system call without a safe wrapper")]

use nix::errno::Errno;
use nix::libc;

/// Lets everything else in VTL2 run before the calling thread (`SCHED_IDLE`).
///
/// A VP takes its CPU whenever it may: also when the guest is idle, for the host waits then
/// and the kernel cannot see that. What else VTL2 has to do is short, and answers somebody:
/// without this it would wait for the kernel's next tick, with it it starts at once.
pub(crate) fn yield_to_others() -> nix::Result<()> {
    const CALLING_THREAD: libc::pid_t = 0;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are read from a variable that outlives the call.
    let result = unsafe {
        libc::sched_setscheduler(CALLING_THREAD, libc::SCHED_IDLE, &raw const parameters)
    };
    Errno::result(result).map(drop)
}

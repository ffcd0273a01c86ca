//! Decides what PID 1 does about its children. Time and signals come from outside, so
//! every path is tested without either.

use boot_events::ParavisorExit;
use std::process::ExitStatus;
use std::time::Duration;
use std::time::Instant;

/// How long the paravisor may take to end after it was asked to.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What is to be done to the paravisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask it to end.
    Terminate,
    /// Make it end.
    Kill,
}

/// A child as the supervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Child {
    /// The paravisor.
    Paravisor,
    /// A process that lost its parent, or the shell.
    Other,
}

/// The life of the paravisor process.
#[derive(Debug)]
pub struct Supervisor {
    paravisor: i32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Stopping { deadline: Instant },
    Killed,
    Ended(ParavisorExit),
}

impl Supervisor {
    /// Watches over the paravisor with this process id.
    pub fn new(paravisor: i32) -> Self {
        Self {
            paravisor,
            state: State::Running,
        }
    }

    /// Somebody wants the machine to end.
    pub fn stop_requested(&mut self, now: Instant) -> Option<Action> {
        // A second request must not move the deadline.
        if self.state != State::Running {
            return None;
        }
        self.state = State::Stopping {
            deadline: now + STOP_DEADLINE,
        };
        Some(Action::Terminate)
    }

    /// How long to wait for a signal; `None`: as long as it takes.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Stopping { deadline } => Some(deadline.saturating_duration_since(now)),
            _ => None,
        }
    }

    /// Time has passed.
    pub fn time_passed(&mut self, now: Instant) -> Option<Action> {
        match self.state {
            State::Stopping { deadline } if now >= deadline => {
                self.state = State::Killed;
                Some(Action::Kill)
            }
            _ => None,
        }
    }

    /// A child has ended.
    pub fn child_ended(&mut self, pid: i32, status: ExitStatus) -> Child {
        if pid != self.paravisor {
            return Child::Other;
        }
        self.state = State::Ended(exit_of(status));
        Child::Paravisor
    }

    /// How the paravisor ended, if it has.
    pub fn ended(&self) -> Option<ParavisorExit> {
        match self.state {
            State::Ended(exit) => Some(exit),
            _ => None,
        }
    }
}

fn exit_of(status: ExitStatus) -> ParavisorExit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => ParavisorExit::Code(code),
        (None, Some(signal)) => ParavisorExit::Signal(signal),
        // Neither: a stopped child, which is never waited for. The raw word says more
        // than an invented code.
        (None, None) => ParavisorExit::Code(status.into_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const PARAVISOR: i32 = 40;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    fn killed(signal: i32) -> ExitStatus {
        ExitStatus::from_raw(signal)
    }

    #[test]
    fn the_end_of_the_paravisor_is_the_end() {
        let mut supervisor = Supervisor::new(PARAVISOR);
        assert_eq!(
            supervisor.child_ended(PARAVISOR, exited(3)),
            Child::Paravisor
        );
        assert_eq!(supervisor.ended(), Some(ParavisorExit::Code(3)));
    }

    #[test]
    fn a_signal_that_ended_the_paravisor_is_told_apart_from_a_code() {
        for signal in [9, 11, 34, 64] {
            let mut supervisor = Supervisor::new(PARAVISOR);
            supervisor.child_ended(PARAVISOR, killed(signal));
            assert_eq!(supervisor.ended(), Some(ParavisorExit::Signal(signal)));
        }
    }

    #[test]
    fn the_end_of_an_orphan_changes_nothing() {
        let mut supervisor = Supervisor::new(PARAVISOR);
        assert_eq!(supervisor.child_ended(41, exited(0)), Child::Other);
        assert_eq!(supervisor.ended(), None);
        assert_eq!(supervisor.patience(Instant::now()), None);
    }

    #[test]
    fn a_paravisor_that_does_not_end_is_killed_at_the_deadline_and_once() {
        let start = Instant::now();
        let mut supervisor = Supervisor::new(PARAVISOR);
        assert_eq!(supervisor.stop_requested(start), Some(Action::Terminate));
        let early = start + STOP_DEADLINE / 2;
        assert_eq!(supervisor.time_passed(early), None);
        assert_eq!(supervisor.patience(early), Some(STOP_DEADLINE / 2));
        let late = start + STOP_DEADLINE;
        assert_eq!(supervisor.patience(late), Some(Duration::ZERO));
        assert_eq!(supervisor.time_passed(late), Some(Action::Kill));
        assert_eq!(supervisor.time_passed(late), None);
        assert_eq!(supervisor.patience(late), None);
        supervisor.child_ended(PARAVISOR, killed(9));
        assert_eq!(supervisor.ended(), Some(ParavisorExit::Signal(9)));
    }

    #[test]
    fn a_second_request_does_not_move_the_deadline() {
        let start = Instant::now();
        let mut supervisor = Supervisor::new(PARAVISOR);
        supervisor.stop_requested(start);
        assert_eq!(supervisor.stop_requested(start + STOP_DEADLINE / 2), None);
        assert_eq!(
            supervisor.time_passed(start + STOP_DEADLINE),
            Some(Action::Kill)
        );
    }

    #[test]
    fn a_paravisor_that_ends_in_time_is_not_killed() {
        let start = Instant::now();
        let mut supervisor = Supervisor::new(PARAVISOR);
        supervisor.stop_requested(start);
        supervisor.child_ended(PARAVISOR, exited(0));
        assert_eq!(supervisor.time_passed(start + STOP_DEADLINE), None);
        assert_eq!(supervisor.ended(), Some(ParavisorExit::Code(0)));
    }
}

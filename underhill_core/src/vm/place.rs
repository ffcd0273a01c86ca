//! Where a VP runs: on a CPU of Linux, or in the sidecar until Linux gets its CPU.

use super::saved::SavedMove;
use inspect::Inspect;
use rustix::time::ClockId;
use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use virt::Exit;

/// Why Linux gets a CPU of the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The guest uses devices on this VP.
    Port(u16),
    /// The same.
    Memory(u64),
    /// A device interrupts this VP.
    EndOfInterrupt(u8),
    /// Somebody outside wants it.
    Request,
}

impl Reason {
    /// Whether `exit` is one for a device. MSRs and CPUID are asked when a processor starts, and
    /// then no more.
    pub(crate) fn of(exit: &Exit) -> Option<Self> {
        match exit {
            Exit::Port(exit) => Some(Self::Port(exit.port)),
            Exit::Memory(exit) => Some(Self::Memory(exit.gpa)),
            Exit::Eoi { vector } => Some(Self::EndOfInterrupt(*vector)),
            Exit::Cancelled
            | Exit::Msr(_)
            | Exit::Cpuid(_)
            | Exit::Halt
            | Exit::TripleFault
            | Exit::Unknown { .. } => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "exits, the last for port {port:#x}"),
            Self::Memory(gpa) => write!(f, "exits, the last for memory at {gpa:#x}"),
            Self::EndOfInterrupt(vector) => {
                write!(f, "exits, the last for the end of interrupt {vector:#x}")
            }
            Self::Request => f.write_str("request"),
        }
    }
}

/// Where a VP is, and how it came there.
#[derive(Debug, Default)]
pub(crate) struct Place(Mutex<Stage>);

#[derive(Debug, Clone, Default)]
enum Stage {
    /// It has always been there, as far as this process knows.
    #[default]
    Linux,
    Sidecar,
    /// The CPU is on its way.
    Leaving(Move),
    Left(Move),
    /// The CPU has left, and did not come.
    Lost(Move, String),
}

/// The way from the sidecar to Linux.
#[derive(Debug, Clone)]
struct Move {
    /// A [`Reason`].
    reason: String,
    /// Since the start of VTL2's kernel, as in its log.
    at: Duration,
    took: Duration,
}

impl Place {
    /// The VP is in the sidecar.
    pub(crate) fn in_sidecar(&self) {
        *self.lock() = Stage::Sidecar;
    }

    /// It leaves.
    pub(crate) fn leaves(&self, reason: Reason) {
        *self.lock() = Stage::Leaving(Move {
            reason: reason.to_string(),
            at: now(),
            took: Duration::ZERO,
        });
    }

    /// It has left, and a thread has it; or something has failed, which is for good.
    pub(crate) fn left(&self, outcome: &Result<(), String>) {
        let mut stage = self.lock();
        if let Stage::Leaving(way) = &*stage {
            let took = now().saturating_sub(way.at);
            let way = Move {
                took,
                ..way.clone()
            };
            *stage = match outcome {
                Ok(()) => Stage::Left(way),
                Err(error) => Stage::Lost(way, error.clone()),
            };
        }
    }

    /// Why Linux has the CPU; `None`: it is not there because somebody has wanted it. An
    /// error says why Linux does not have it.
    pub(crate) fn reason(&self) -> Result<Option<String>, String> {
        match &*self.lock() {
            Stage::Linux => Ok(None),
            Stage::Left(way) => Ok(Some(way.reason.clone())),
            Stage::Sidecar | Stage::Leaving(_) => Err("the CPU is in the sidecar".to_owned()),
            Stage::Lost(_, error) => Err(error.clone()),
        }
    }

    /// For the next worker: how the VP has come to Linux, if it has.
    pub(super) fn save(&self, vp: u32) -> Option<SavedMove> {
        match &*self.lock() {
            Stage::Left(way) => Some(SavedMove {
                vp,
                reason: way.reason.clone(),
                at_ns: nanoseconds(way.at),
                took_ns: nanoseconds(way.took),
            }),
            _ => None,
        }
    }

    /// What a worker before has saved.
    pub(super) fn restore(&self, saved: &SavedMove) {
        *self.lock() = Stage::Left(Move {
            reason: saved.reason.clone(),
            at: Duration::from_nanos(saved.at_ns),
            took: Duration::from_nanos(saved.took_ns),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inspect for Place {
    fn inspect(&self, request: inspect::Request<'_>) {
        let stage = self.lock().clone();
        let mut response = request.respond();
        let (name, way) = match &stage {
            Stage::Linux => ("linux", None),
            Stage::Sidecar => ("sidecar", None),
            Stage::Leaving(way) => ("between sidecar and linux", Some(way)),
            Stage::Left(way) => ("linux", Some(way)),
            Stage::Lost(way, _) => ("nowhere", Some(way)),
        };
        response.field("runs_in", name);
        let Some(way) = way else { return };
        response.child("left_sidecar", |request| {
            let mut response = request.respond();
            response.field("reason", &way.reason).field("at", &way.at);
            match &stage {
                Stage::Left(_) => {
                    response.field("took", &way.took);
                }
                Stage::Lost(_, error) => {
                    response.field("error", error);
                }
                _ => {}
            }
        });
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn now() -> Duration {
    // The kernel's times are never negative.
    rustix::time::clock_gettime(ClockId::Monotonic)
        .try_into()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Query;

    fn shown(place: &Place) -> String {
        Query::new("").evaluate(place).now().to_string()
    }

    #[test]
    fn a_vp_tells_where_it_is_and_why() {
        let place = Place::default();
        assert_eq!(shown(&place), r#"{runs_in: "linux"}"#);
        assert_eq!(place.reason(), Ok(None));
        place.in_sidecar();
        assert_eq!(shown(&place), r#"{runs_in: "sidecar"}"#);
        assert!(place.reason().is_err());
        place.leaves(Reason::Port(0x3f8));
        assert!(shown(&place).contains("between"));
        place.left(&Ok(()));
        let shown = shown(&place);
        assert!(
            shown.contains(r#"reason: "exits, the last for port 0x3f8""#),
            "{shown}"
        );
        assert!(shown.contains("took"), "{shown}");
        assert_eq!(
            place.reason(),
            Ok(Some("exits, the last for port 0x3f8".to_owned()))
        );
    }

    #[test]
    fn the_next_worker_knows_how_a_vp_has_come_to_linux() {
        let place = Place::default();
        place.in_sidecar();
        assert_eq!(place.save(3), None);
        place.leaves(Reason::Memory(0xfec0_0000));
        place.left(&Ok(()));
        let saved = place.save(3).unwrap();
        assert_eq!(saved.vp, 3);

        let next = Place::default();
        next.restore(&saved);

        assert_eq!(shown(&next), shown(&place));
    }

    #[test]
    fn a_cpu_that_is_lost_says_why() {
        let place = Place::default();
        place.leaves(Reason::Request);
        place.left(&Err("no".to_owned()));
        assert_eq!(place.reason(), Err("no".to_owned()));
        assert!(shown(&place).contains("nowhere"));
    }
}

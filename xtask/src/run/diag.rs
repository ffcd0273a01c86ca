//! What `run` asks the paravisor once it is ready, and how it is told to end.

use crate::run::ms;
use crate::timeline::BootTimeline;
use crate::timeline::Stamp;
use crate::timeline::Zero;
use anyhow::Context as _;
use diag_client::Client;
use inspect::Node;
use inspect::printable;
use qemu::Source;
use qemu::Timeline;
use qemu::Vm;
use serde::Serialize;
use std::fmt;
use std::time::Duration;
use vmm_tests::diag_address;

/// When an answer counts as lost. A busy machine that emulates many VPs is slow.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Pings after the first, for a median.
const PINGS: usize = 21;

/// Levels below `boot` that are read: milestones, each one, its values.
const BOOT_DEPTH: u32 = 3;

/// What the paravisor answered.
pub(crate) struct Answers {
    /// Connected to the paravisor.
    pub(crate) client: Client,
    /// How long answers took.
    pub(crate) ping: Ping,
    /// The boot, up to the first answer.
    pub(crate) timeline: BootTimeline,
}

/// How long answers took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Ping {
    /// The first, the connection included.
    pub(crate) first_ms: f64,
    /// The median of the others.
    pub(crate) median_ms: f64,
}

/// Asks a paravisor that has said that it is ready.
pub(crate) fn ask(vm: &Vm) -> anyhow::Result<Answers> {
    let address = vm.vsock().context("the machine has no vsock")?;
    let started = vm.elapsed();
    let client = Client::connect_within(diag_address(address), TIMEOUT)?;
    client.ping()?;
    let answered = vm.elapsed();

    let mut times = Vec::new();
    for _ in 0..PINGS {
        times.push(client.ping()?);
    }
    times.sort();
    let boot = client.inspect("boot", BOOT_DEPTH)?;
    let (zero, stamps) = stamps(&boot);
    let mut timeline = BootTimeline::join(&Timeline::of(vm), &vm.lines(Source::Host), zero, stamps);
    timeline.add("ohcldiag", "first ping answered", answered);
    Ok(Answers {
        client,
        ping: Ping {
            first_ms: ms(answered - started),
            median_ms: ms(times[times.len() / 2]),
        },
        timeline,
    })
}

/// Reads the paravisor's milestones; those that are none are left out, because a picture
/// of the rest is better than none.
fn stamps(boot: &Node) -> (Zero, Vec<Stamp>) {
    let zero = match boot.get("zero").and_then(Node::as_str) {
        Some("start of the kernel") => Zero::Kernel,
        _ => Zero::Partition,
    };
    let stamp = |node: &Node| {
        let text = |name| node.get(name).and_then(Node::as_str).map(printable);
        Some(Stamp {
            process: text("process")?.to_string(),
            name: text("name")?.to_string(),
            after_zero: Duration::from_nanos(node.get("ns")?.as_u64()?),
        })
    };
    let milestones = boot.get("milestones").map_or(&[][..], Node::entries);
    let stamps = milestones.iter().filter_map(|entry| stamp(&entry.node));
    (zero, stamps.collect())
}

impl fmt::Display for Ping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            first_ms,
            median_ms,
        } = self;
        write!(
            f,
            "ping {median_ms:.3} ms (median of {PINGS}; the first, with connecting, {first_ms:.3} ms)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;

    #[derive(Inspect)]
    struct Milestone {
        name: &'static str,
        process: &'static str,
        ns: u64,
    }

    #[derive(Inspect)]
    struct Boot {
        zero: &'static str,
        milestones: Vec<Milestone>,
    }

    #[test]
    fn milestones_are_read_from_the_paravisors_tree() {
        let boot = Boot {
            zero: "start of the kernel",
            milestones: vec![Milestone {
                name: "ready\x1b[31m",
                process: "underhill_vm",
                ns: 1_500_000,
            }],
        };
        let (zero, stamps) = stamps(&Query::new("").evaluate(&boot).now());
        assert_eq!(zero, Zero::Kernel);
        let [stamp] = stamps.as_slice() else {
            panic!("{stamps:?}");
        };
        assert_eq!(stamp.process, "underhill_vm");
        assert!(!stamp.name.contains('\x1b'), "{:?}", stamp.name);
        assert_eq!(stamp.after_zero, Duration::from_micros(1500));
    }

    #[test]
    fn a_tree_of_something_else_has_no_milestones() {
        let (_, stamps) = stamps(&Query::new("").evaluate(&[1u32, 2]).now());
        assert_eq!(stamps, []);
    }
}

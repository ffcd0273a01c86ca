//! `boot-timeline`.

use crate::cli::BootTimelineArgs;
use crate::exit::Failure;
use crate::json;
use diag_client::Client;
use inspect::Node;
use inspect::printable;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;

/// Characters of the longest bar.
const BAR: u64 = 40;

/// A moment of the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Milestone {
    name: String,
    process: String,
    /// The stamp itself: ticks of the time-stamp counter.
    tsc: Option<u64>,
    /// After the host's entry into VTL2.
    ns: u64,
}

pub(crate) fn run(client: &Client, args: &BootTimelineArgs) -> Result<(), Failure> {
    let milestones = milestones(&client.inspect("boot/milestones", 2)?)?;
    let text = match args.json {
        true => {
            json::text(&milestones, true)
                .map_err(|error| Failure::Other(format!("JSON: {error}")))?
                + "\n"
        }
        false => table(&milestones),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::Output)
}

/// Reads the directory of milestones, and sorts them by time.
fn milestones(node: &Node) -> Result<Vec<Milestone>, Failure> {
    let mut milestones = Vec::new();
    for entry in node.entries() {
        let text = |name| entry.node.get(name).and_then(Node::as_str);
        let number = |name| entry.node.get(name).and_then(Node::as_u64);
        let (Some(name), Some(ns)) = (text("name"), number("ns")) else {
            return Err(Failure::Other(format!(
                "boot/milestones/{}: expected a name and ns",
                printable(&entry.name)
            )));
        };
        milestones.push(Milestone {
            name: name.to_owned(),
            process: text("process").unwrap_or_default().to_owned(),
            tsc: number("tsc"),
            ns,
        });
    }
    if milestones.is_empty() {
        let message = "boot/milestones: the VM has none, expected at least one";
        return Err(Failure::Other(message.to_owned()));
    }
    milestones.sort_by_key(|milestone| milestone.ns);
    Ok(milestones)
}

/// A line per milestone: when, how long after the one before, and that as a bar.
fn table(milestones: &[Milestone]) -> String {
    let last = milestones.last().map_or(0, |milestone| milestone.ns).max(1);
    let mut text = format!(
        "{:>10}  {:>10}  {:<16}  MILESTONE\n",
        "AT", "TOOK", "PROCESS"
    );
    let mut before = 0;
    for milestone in milestones {
        let took = milestone.ns.saturating_sub(before);
        before = milestone.ns;
        let ms = |ns: u64| ns as f64 / 1e6;
        let length = (u128::from(took) * u128::from(BAR)).div_ceil(u128::from(last));
        _ = writeln!(
            text,
            "{:>7.3} ms  {:>7.3} ms  {:<16}  {:<28} {}",
            ms(milestone.ns),
            ms(took),
            printable(&milestone.process),
            printable(&milestone.name),
            "#".repeat(length as usize),
        );
    }
    // Bars of nothing leave blanks behind.
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;

    #[derive(Inspect)]
    struct Stamp {
        name: &'static str,
        process: &'static str,
        tsc: u64,
        ns: u64,
    }

    fn stamp(name: &'static str, ns: u64) -> Stamp {
        Stamp {
            name,
            process: "shim",
            tsc: 2 * ns,
            ns,
        }
    }

    #[test]
    fn milestones_are_sorted_and_have_bars() {
        let stamps = [stamp("end", 4_000_000), stamp("start", 1_000_000)];
        let node = Query::new("").evaluate(&stamps).now();
        let milestones = milestones(&node).unwrap();
        assert_eq!(milestones[0].tsc, Some(2_000_000));
        let table = table(&milestones);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].starts_with("  1.000 ms    1.000 ms  shim"),
            "{table}"
        );
        assert!(
            lines[1].ends_with(&format!("start {}", "#".repeat(10))) || lines[1].ends_with('#')
        );
        assert_eq!(lines[2].matches('#').count(), 30);
    }

    #[test]
    fn what_is_no_milestone_is_named() {
        let node = Query::new("").evaluate(&[1u32]).now();
        let error = milestones(&node).unwrap_err().to_string();
        assert_eq!(error, "boot/milestones/0: expected a name and ns");
        assert!(milestones(&Node::Dir(Vec::new())).is_err());
    }
}

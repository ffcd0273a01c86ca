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
const BAR: u128 = 40;

/// The boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Boot {
    /// What time 0 is.
    zero: String,
    /// Sorted by time.
    milestones: Vec<Milestone>,
}

/// A moment of the boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Milestone {
    name: String,
    process: String,
    /// The processor's counter then.
    ticks: Option<u64>,
    /// After time 0.
    ns: u64,
}

pub(crate) fn run(client: &Client, args: &BootTimelineArgs) -> Result<(), Failure> {
    let boot = Boot::read(&client.inspect("boot", 3)?)?;
    let text = match args.json {
        true => {
            json::text(&boot, true).map_err(|error| Failure::Other(format!("JSON: {error}")))?
                + "\n"
        }
        false => boot.table(),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::Output)
}

impl Boot {
    fn read(node: &Node) -> Result<Self, Failure> {
        let zero = node.get("zero").and_then(Node::as_str);
        Ok(Self {
            zero: zero.unwrap_or("not known").to_owned(),
            milestones: milestones(node.get("milestones").unwrap_or(&Node::Unevaluated))?,
        })
    }

    /// A line per milestone: when, how long after the one before, and that as a bar.
    fn table(&self) -> String {
        let last = self.milestones.last().map_or(0, |last| last.ns).max(1);
        let mut text = format!(
            "time 0: {}\n{:>12}  {:>12}  {:<16}  MILESTONE\n",
            printable(&self.zero),
            "AT",
            "TOOK",
            "PROCESS"
        );
        let mut before = 0;
        for milestone in &self.milestones {
            let took = milestone.ns.saturating_sub(before);
            before = milestone.ns;
            let ms = |ns: u64| ns as f64 / 1e6;
            let length = (u128::from(took) * BAR).div_ceil(u128::from(last));
            _ = writeln!(
                text,
                "{:>9.3} ms  {:>9.3} ms  {:<16}  {:<28} {}",
                ms(milestone.ns),
                ms(took),
                printable(&milestone.process),
                printable(&milestone.name),
                "#".repeat(length as usize),
            );
        }
        // Bars of nothing leave blanks behind.
        text.lines()
            .flat_map(|line| [line.trim_end(), "\n"])
            .collect()
    }
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
            ticks: number("ticks"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;

    #[derive(Inspect)]
    struct Stamp {
        name: &'static str,
        process: &'static str,
        ticks: u64,
        ns: u64,
    }

    fn stamp(name: &'static str, ns: u64) -> Stamp {
        Stamp {
            name,
            process: "shim",
            ticks: 2 * ns,
            ns,
        }
    }

    #[derive(Inspect)]
    struct Tree {
        zero: &'static str,
        milestones: Vec<Stamp>,
    }

    fn read(milestones: Vec<Stamp>) -> Result<Boot, Failure> {
        let tree = Tree {
            zero: "the begin",
            milestones,
        };
        Boot::read(&Query::new("").evaluate(&tree).now())
    }

    #[test]
    fn milestones_are_sorted_and_have_bars() {
        let stamps = vec![stamp("end", 4_000_000), stamp("start", 1_000_000)];
        let boot = read(stamps).unwrap();
        assert_eq!(boot.milestones[0].ticks, Some(2_000_000));
        let table = boot.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "time 0: the begin");
        assert!(
            lines[2].starts_with("    1.000 ms      1.000 ms  shim"),
            "{table}"
        );
        assert_eq!(lines[2].matches('#').count(), 10);
        assert_eq!(lines[3].matches('#').count(), 30);
    }

    #[test]
    fn a_boot_without_milestones_is_an_error() {
        let error = read(Vec::new()).unwrap_err().to_string();
        assert!(error.contains("expected at least one"), "{error}");
    }

    #[test]
    fn what_is_no_milestone_is_named() {
        let node = Query::new("").evaluate(&[1u32]).now();
        let error = milestones(&node).unwrap_err().to_string();
        assert_eq!(error, "boot/milestones/0: expected a name and ns");
    }
}

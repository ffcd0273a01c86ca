//! `crash`.

use crate::cli::CrashArgs;
use crate::exit::Failure;
use diag_client::Client;
use diag_client::Error;
use inspect::Node;

pub(crate) fn run(client: &Client, args: &CrashArgs) -> Result<(), Failure> {
    let pid = match args.process.parse() {
        Ok(pid) => pid,
        Err(_) => find(&client.inspect("proc", 1)?, &args.process)?,
    };
    match client.crash(pid) {
        // It was the process that answers.
        Err(Error::Closed { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The only process of this name. In the directory, a process is an entry that has a
/// `name` and is called by its id, or has a `pid` and is called by its name.
fn find(processes: &Node, wanted: &str) -> Result<i32, Failure> {
    let all: Vec<(&str, i32)> = processes
        .entries()
        .iter()
        .filter_map(|entry| {
            let name = entry.node.get("name").and_then(Node::as_str);
            let pid = match entry.node.get("pid").and_then(Node::as_u64) {
                Some(pid) => i32::try_from(pid).ok()?,
                None => entry.name.parse().ok()?,
            };
            Some((name.unwrap_or(&entry.name), pid))
        })
        .collect();
    let matching: Vec<i32> = all
        .iter()
        .filter(|(name, _)| *name == wanted)
        .map(|(_, pid)| *pid)
        .collect();
    match matching[..] {
        [pid] => Ok(pid),
        [] => {
            let mut names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            names.dedup();
            let names = names.join(", ");
            let message = format!("no process {wanted:?} in VTL2, there are: {names}");
            Err(Failure::Other(inspect::printable(&message).into_owned()))
        }
        _ => Err(Failure::Other(format!(
            "{} processes {wanted:?} in VTL2, choose one by its id: {matching:?}",
            matching.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Inspect;
    use inspect::Query;

    #[derive(Inspect)]
    struct ById {
        name: &'static str,
    }

    #[derive(Inspect)]
    struct ByName {
        pid: u32,
    }

    fn processes() -> Node {
        let root = inspect::adhoc(|request| {
            request
                .respond()
                .field("1", &ById { name: "init" })
                .field("7", &ById { name: "twice" })
                .field("8", &ById { name: "twice" })
                .field("worker", &ByName { pid: 9 })
                .field("count", &4u32);
        });
        Query::new("").evaluate(&root).now()
    }

    #[test]
    fn a_process_is_found_by_its_name() {
        assert_eq!(find(&processes(), "init").unwrap(), 1);
        assert_eq!(find(&processes(), "worker").unwrap(), 9);
    }

    #[test]
    fn a_name_that_means_none_or_two_is_refused() {
        let text = |name| find(&processes(), name).unwrap_err().to_string();
        assert_eq!(
            text("x"),
            r#"no process "x" in VTL2, there are: init, twice, worker"#
        );
        assert!(text("twice").contains("[7, 8]"));
    }
}

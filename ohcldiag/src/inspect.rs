//! `inspect`.

use crate::cli::InspectArgs;
use crate::exit::Failure;
use crate::json;
use crate::json::Json;
use crate::rates;
use diag_client::Client;
use inspect::Node;
use std::io::Write;
use std::thread;
use std::time::Duration;
use std::time::Instant;

pub(crate) fn run(client: &Client, args: &InspectArgs) -> Result<(), Failure> {
    match (&args.update, args.periodic) {
        (Some(value), _) => {
            let value = client.update(&args.path, value)?;
            print(&Node::Value(value), args, false)
        }
        (None, Some(interval)) => periodic(client, args, interval),
        (None, None) => print(&ask(client, args)?, args, false),
    }
}

fn ask(client: &Client, args: &InspectArgs) -> Result<Node, Failure> {
    let depth = args.depth.unwrap_or(u32::MAX);
    Ok(client.inspect(&args.path, depth)?)
}

/// The first time shows the counters themselves, the later ones how fast they grow.
fn periodic(client: &Client, args: &InspectArgs, interval: Duration) -> Result<(), Failure> {
    let mut last: Option<(Instant, Node)> = None;
    let mut next = Instant::now();
    for index in 0.. {
        let now = Instant::now();
        let node = ask(client, args)?;
        let shown = match &last {
            None => node.clone(),
            Some((then, before)) => rates::since(node.clone(), before, now - *then),
        };
        print(&shown, args, true)?;
        last = Some((now, node));
        if args.count.is_some_and(|count| index + 1 >= count) {
            break;
        }
        // From start to start; a VM that is slower than that sets the pace.
        next = (next + interval).max(Instant::now());
        thread::sleep(next - Instant::now());
    }
    Ok(())
}

fn print(node: &Node, args: &InspectArgs, repeated: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let text = json::text(&Json(node), !repeated)
            .map_err(|error| Failure::Other(format!("JSON: {error}")))?;
        writeln!(out, "{text}")
    } else if repeated {
        writeln!(out, "{node:#}---")
    } else {
        write!(out, "{node:#}")
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}

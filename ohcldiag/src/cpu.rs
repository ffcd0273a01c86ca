//! `cpu`.

use crate::cli::OnlineArgs;
use crate::exit::Failure;
use diag_client::Client;
use std::io::Write;

/// `cpu online`.
pub(crate) fn online(client: &Client, args: &OnlineArgs) -> Result<(), Failure> {
    let cpu = args.cpu;
    let reason = client.online_cpu(cpu)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = serde_json::json!({ "cpu": cpu, "reason": reason });
        return writeln!(out, "{object}").map_err(Failure::Output);
    }
    match reason {
        Some(reason) => writeln!(
            out,
            "CPU {cpu} has left the sidecar, reason: {}",
            inspect::printable(&reason)
        ),
        None => writeln!(out, "CPU {cpu} runs Linux already"),
    }
    .map_err(Failure::Output)
}

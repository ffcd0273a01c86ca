//! `kmsg`.

use crate::cli::KmsgArgs;
use crate::exit::Failure;
use diag_client::Client;
use diag_client::KmsgRecord;
use inspect::printable;
use std::io::Write;

pub(crate) fn run(client: &Client, args: &KmsgArgs) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for record in client.kmsg(args.follow)?.records() {
        let record = record.map_err(|source| Failure::Stream {
            what: "kernel log",
            source,
        })?;
        writeln!(out, "{}", line(&record))
            .and_then(|()| out.flush())
            .map_err(Failure::Output)?;
    }
    Ok(())
}

/// A record as `dmesg` shows it; what is no record, as it is.
fn line(record: &str) -> String {
    match KmsgRecord::parse(record) {
        Some(KmsgRecord { time, text, .. }) => {
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            format!("[{seconds:>5}.{micros:06}] {}", printable(text))
        }
        None => printable(record.trim_end_matches('\n')).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_shown_like_dmesg_does() {
        assert_eq!(line("6,1,5140900,-;init: up\n"), "[    5.140900] init: up");
        assert_eq!(line("6,1,0,-;a\u{1b}[2J\n"), "[    0.000000] a\\u{1b}[2J");
        assert_eq!(line("rest of a long one\n"), "rest of a long one");
    }
}

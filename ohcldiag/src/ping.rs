//! `ping`.

use crate::cli::PingArgs;
use crate::exit::Failure;
use diag_client::Client;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// Times of all answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Times {
    count: usize,
    min_ns: u64,
    median_ns: u64,
    max_ns: u64,
}

pub(crate) fn run(client: &Client, args: &PingArgs) -> Result<(), Failure> {
    let mut times = Vec::new();
    for _ in 0..args.count {
        times.push(client.ping()?);
    }
    let times = Times::of(times);
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::json!(times)),
        false => writeln!(out, "{times}"),
    }
    .map_err(Failure::Output)
}

impl Times {
    /// Of at least one time.
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |index: usize| {
            let time = times.get(index).copied().unwrap_or_default();
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
        };
        Self {
            count: times.len(),
            min_ns: at(0),
            // Of an even number, the lower of the two in the middle.
            median_ns: at(times.len().saturating_sub(1) / 2),
            max_ns: at(times.len().saturating_sub(1)),
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        write!(
            f,
            "{} answers: min {:.3} ms, median {:.3} ms, max {:.3} ms",
            self.count,
            ms(self.min_ns),
            ms(self.median_ns),
            ms(self.max_ns)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_time_is_the_median() {
        let times = Times::of([3, 1, 2, 9].map(Duration::from_micros).to_vec());
        assert_eq!(
            times.to_string(),
            "4 answers: min 0.001 ms, median 0.002 ms, max 0.009 ms"
        );
    }
}

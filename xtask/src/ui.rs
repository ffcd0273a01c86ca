//! What the person sees: one line per long step, with its time; quiet otherwise.
//!
//! On a terminal a running step shows a spinner, or a bar when its length is known. A step
//! that took less than [`WORTH_TELLING`] leaves nothing behind. Everything goes to stderr,
//! so that stdout holds only what a command was asked for.

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use std::io::IsTerminal;
use std::time::Duration;
use std::time::Instant;

/// Steps that are faster are not mentioned.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// A running step.
pub(crate) struct Step {
    bar: Option<ProgressBar>,
}

impl Step {
    /// One more unit of a step with a known length.
    pub(crate) fn advance(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}

/// Runs a step whose length nobody knows.
pub(crate) fn step<T>(
    name: &str,
    work: impl FnOnce(&Step) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    run(name, None, work)
}

/// Runs a step of about `length` units; more or fewer do no harm.
pub(crate) fn long_step<T>(
    name: &str,
    length: u64,
    work: impl FnOnce(&Step) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if !std::io::stderr().is_terminal() {
        // Whoever reads a log must see what is being waited for.
        eprintln!("            {name} ...");
    }
    run(name, Some(length), work)
}

fn run<T>(
    name: &str,
    length: Option<u64>,
    work: impl FnOnce(&Step) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let step = Step {
        bar: std::io::stderr().is_terminal().then(|| bar(name, length)),
    };
    let result = work(&step);
    let elapsed = started.elapsed();
    if let Some(bar) = step.bar {
        bar.finish_and_clear();
    }
    if result.is_ok() && elapsed >= WORTH_TELLING {
        eprintln!("{:>10}  {name}", time_text(elapsed));
    }
    result.map_err(|error| error.context(format!("{name} (failed after {})", time_text(elapsed))))
}

fn bar(name: &str, length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{elapsed:>10}  {msg} {bar:30} {percent}%",
        ),
        None => (ProgressBar::new_spinner(), "{elapsed:>10}  {msg} {spinner}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// `12.3 s`, `3 min 32 s`.
pub(crate) fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 100 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable_at_every_scale() {
        assert_eq!(time_text(Duration::from_millis(2340)), "2.3 s");
        assert_eq!(time_text(Duration::from_secs(99)), "99.0 s");
        assert_eq!(time_text(Duration::from_secs(212)), "3 min 32 s");
    }

    #[test]
    fn a_failed_step_is_named_in_its_error() {
        let error = step("bake a cake", |_| {
            anyhow::bail!("no flour") as anyhow::Result<()>
        })
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("bake a cake") && text.contains("no flour"));
    }
}

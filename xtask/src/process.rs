//! Other programs: their output goes to a log file in full, an error names that file and
//! quotes its end.

use crate::cache::Cache;
use crate::ui::Step;
use anyhow::Context;
use std::collections::VecDeque;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

/// Lines of the log that an error quotes.
const QUOTED_LINES: usize = 25;

/// Runs `command` to its end with all output in a new log file; returns the file.
///
/// The step advances with every line.
pub(crate) fn run_logged(
    cache: &Cache,
    log_name: &str,
    step: &Step,
    command: &mut Command,
) -> anyhow::Result<PathBuf> {
    let path = cache.new_log(log_name)?;
    let shown = shown(command);
    let mut log = std::fs::File::create(&path)
        .with_context(|| format!("creating the log {}", path.display()))?;
    writeln!(log, "$ {shown}")?;

    let (reader, writer) = std::io::pipe().context("creating a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    // `command` holds the pipe's writing end; without this the reader would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut last: VecDeque<String> = VecDeque::new();
    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? != 0 {
        log.write_all(&line)?;
        step.advance();
        if last.len() == QUOTED_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        let tail = Vec::from(last).join("\n  ");
        anyhow::bail!(
            "`{shown}` ended with {status}\nfull log: {}\nits end:\n  {tail}",
            path.display()
        );
    }
    Ok(path)
}

/// Runs a quick command and returns what it printed to stdout.
pub(crate) fn capture(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{shown}`"))?;
    anyhow::ensure!(
        output.status.success(),
        "`{shown}` ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("output of `{shown}`"))
}

/// Runs `stages` with the output of each as the input of the next.
pub(crate) fn pipeline(stages: &mut [Command]) -> anyhow::Result<()> {
    let mut input = Stdio::null();
    let mut running = Vec::new();
    let last = stages.len().saturating_sub(1);
    for (index, command) in stages.iter_mut().enumerate() {
        let shown = shown(command);
        command.stdin(input);
        if index != last {
            command.stdout(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting `{shown}`"))?;
        input = child.stdout.take().map_or_else(Stdio::null, Stdio::from);
        running.push((shown, child));
    }
    // Each stage's end of the pipe belongs to the child now; ours must go, or a stage
    // that ends early would leave the one before it waiting.
    drop(input);
    for command in stages.iter_mut() {
        command.stdin(Stdio::null());
    }
    let mut failed = None;
    for (shown, mut child) in running {
        let status = child.wait()?;
        if !status.success() {
            // The later stage knows why: the earlier ones only lost their reader.
            failed = Some(format!("`{shown}` ended with {status}"));
        }
    }
    match failed {
        Some(text) => anyhow::bail!(text),
        None => Ok(()),
    }
}

/// The command as a person would type it; long ones are cut.
fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text += &argument.to_string_lossy();
    }
    const LONGEST: usize = 300;
    if let Some((cut, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(cut);
        text += " ...";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui;

    fn shell(script: &str) -> anyhow::Result<String> {
        let directory = tempfile::tempdir()?;
        let cache = Cache::at(directory.path())?;
        let log = ui::step("test", |step| {
            run_logged(
                &cache,
                "test",
                step,
                Command::new("sh").args(["-c", script]),
            )
        })?;
        Ok(String::from_utf8_lossy(&std::fs::read(log)?).into_owned())
    }

    #[test]
    fn both_streams_are_kept_in_the_log() {
        let log = shell("echo to stdout; echo to stderr >&2").unwrap();
        assert!(log.contains("to stdout\n") && log.contains("to stderr\n"));
    }

    #[test]
    fn a_failure_names_the_log_and_quotes_its_end() {
        let error = shell("seq 1 100; exit 3").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("test.") && text.contains(".log"), "{text}");
        assert!(
            text.contains("\n  100") && !text.contains("\n  70\n"),
            "{text}"
        );
    }

    #[test]
    fn stages_of_a_pipeline_are_connected() {
        let directory = tempfile::tempdir().unwrap();
        let mut echo = Command::new("echo");
        echo.arg("through");
        let mut tee = Command::new("tee");
        tee.arg(directory.path().join("out"));
        tee.stdout(Stdio::null());
        pipeline(&mut [echo, tee]).unwrap();
        let out = std::fs::read_to_string(directory.path().join("out")).unwrap();
        assert_eq!(out, "through\n");
    }

    #[test]
    fn a_failing_stage_fails_the_pipeline() {
        let mut no = Command::new("false");
        no.stdout(Stdio::null());
        let error = pipeline(&mut [Command::new("true"), no]).unwrap_err();
        assert!(error.to_string().contains("`false`"));
    }

    #[test]
    fn output_that_is_not_text_does_no_harm() {
        assert!(shell("printf '\\377\\376\\n'").is_ok());
    }
}

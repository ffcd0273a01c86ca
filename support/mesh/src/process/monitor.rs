//! Watching a child: its standard error and its end.

use super::Cause;
use super::Death;
use super::LAST_LINES;
use super::LINE_MAX;
use super::Sink;
use crate::watch;
use rustix::process::WaitId;
use rustix::process::WaitIdOptions;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::Interest;

const CHUNK: usize = 4096;
/// Most chunks that are read after the child's end: its own children may write for ever.
const CHUNKS_AFTER_END: usize = 64;

/// What is watched.
pub(super) struct Monitor {
    process: Arc<OwnedFd>,
    stderr: Option<OwnedFd>,
    lines: Lines,
}

/// Cuts text into lines and keeps the last ones.
struct Lines {
    sink: Sink,
    last: VecDeque<String>,
    unfinished: Vec<u8>,
}

impl Monitor {
    pub(super) fn new(process: Arc<OwnedFd>, stderr: Option<OwnedFd>, sink: Sink) -> Self {
        Self {
            process,
            stderr,
            lines: Lines {
                sink,
                last: VecDeque::new(),
                unfinished: Vec::new(),
            },
        }
    }

    /// Copies standard error until the child has ended, and tells how it did.
    pub(super) async fn run(mut self) -> Death {
        let cause = match self.stderr.take() {
            Some(stderr) => self.copy_until_end(&stderr).await,
            None => end_of(&self.process).await,
        };
        self.lines.finish();
        Death {
            cause,
            last_lines: self.lines.last.into(),
        }
    }

    async fn copy_until_end(&mut self, stderr: &OwnedFd) -> Cause {
        let mut end = pin!(end_of(&self.process));
        let (copied, cause) = tokio::select! {
            biased;
            copied = copy(stderr, &mut self.lines) => (copied, None),
            cause = &mut end => (drain(stderr, &mut self.lines), Some(cause)),
        };
        if let Err(error) = copied {
            tracing::warn!(%error, "standard error of a child cannot be read");
        }
        match cause {
            Some(cause) => cause,
            None => end.await,
        }
    }
}

async fn end_of(process: &Arc<OwnedFd>) -> Cause {
    match wait(process).await {
        Ok(cause) => cause,
        Err(error) => {
            tracing::warn!(%error, "end of a child cannot be learnt");
            Cause::Unknown
        }
    }
}

async fn wait(process: &Arc<OwnedFd>) -> io::Result<Cause> {
    let registered = watch::register(process.clone(), Interest::READABLE)?;
    loop {
        let mut guard = registered.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(process.as_fd()), options)
        })?;
        match status {
            None => guard.clear_ready(),
            Some(status) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Cause::Code(code),
                    (None, Some(signal)) => Cause::Signal(signal, status.dumped()),
                    (None, None) => Cause::Unknown,
                });
            }
        }
    }
}

async fn copy(stderr: &OwnedFd, lines: &mut Lines) -> io::Result<()> {
    rustix::io::ioctl_fionbio(stderr, true)?;
    let registered = watch::register(stderr.try_clone()?, Interest::READABLE)?;
    let mut chunk = [0; CHUNK];
    loop {
        let mut guard = registered.readable().await?;
        match rustix::io::retry_on_intr(|| rustix::io::read(stderr, &mut chunk)) {
            Ok(0) => return Ok(()),
            Ok(length) => lines.add(&chunk[..length]),
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes what is in the pipe.
fn drain(stderr: &OwnedFd, lines: &mut Lines) -> io::Result<()> {
    let mut chunk = [0; CHUNK];
    for _ in 0..CHUNKS_AFTER_END {
        match rustix::io::retry_on_intr(|| rustix::io::read(stderr, &mut chunk)) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(length) => lines.add(&chunk[..length]),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Lines {
    fn add(&mut self, mut text: &[u8]) {
        while !text.is_empty() {
            let end = text.iter().position(|byte| *byte == b'\n');
            let space = LINE_MAX - self.unfinished.len();
            let length = end.unwrap_or(text.len()).min(space);
            self.unfinished.extend_from_slice(&text[..length]);
            let is_whole = end == Some(length);
            text = &text[length + usize::from(is_whole)..];
            if is_whole || self.unfinished.len() == LINE_MAX {
                self.emit();
            }
        }
    }

    fn finish(&mut self) {
        if !self.unfinished.is_empty() {
            self.emit();
        }
    }

    fn emit(&mut self) {
        let line = String::from_utf8_lossy(&self.unfinished).into_owned();
        self.unfinished.clear();
        (self.sink)(&line);
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn lines(parts: &[&[u8]]) -> (Vec<String>, Vec<String>) {
        let (sink, taken) = mpsc::channel();
        let mut lines = Lines {
            sink: Box::new(move |line| sink.send(line.to_owned()).expect("a listener")),
            last: VecDeque::new(),
            unfinished: Vec::new(),
        };
        for part in parts {
            lines.add(part);
        }
        lines.finish();
        let last = Vec::from(lines.last);
        drop(lines.sink);
        (taken.iter().collect(), last)
    }

    #[test]
    fn text_is_cut_into_lines_wherever_it_is_divided() {
        let (taken, last) = lines(&[b"one\ntw", b"o", b"\n\nthree"]);
        assert_eq!(taken, ["one", "two", "", "three"]);
        assert_eq!(taken, last);
    }

    #[test]
    fn long_lines_are_divided_and_the_last_lines_kept() {
        let long = [b'x'; LINE_MAX + 5];
        let (taken, _) = lines(&[&long[..7], &long[7..], b"\ny"]);
        assert_eq!(taken, ["x".repeat(LINE_MAX), "x".repeat(5), "y".into()]);
        let (taken, last) = lines(&[&[b'\n'; 3 * LAST_LINES]]);
        assert_eq!((taken.len(), last.len()), (3 * LAST_LINES, LAST_LINES));
    }

    #[test]
    fn what_is_not_text_is_made_text() {
        assert_eq!(lines(&[b"a\xffb"]).0, ["a\u{fffd}b"]);
    }
}

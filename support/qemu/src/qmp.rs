//! QEMU's machine protocol: one JSON object per line, over a socket.

use serde_json::Value;
use serde_json::json;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A QEMU that does not answer in this time hangs itself, not only its guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The machine protocol of a running QEMU.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    negotiated: bool,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed, or QEMU did not answer in time.
    #[error("QEMU's machine protocol: {0}")]
    Io(#[from] std::io::Error),
    /// QEMU closed the socket.
    #[error("QEMU's machine protocol: closed, expected an answer to {command:?}")]
    Closed {
        /// What was asked.
        command: String,
    },
    /// Something that is not JSON.
    #[error("QEMU's machine protocol: {0}, expected one JSON object per line")]
    Json(#[from] serde_json::Error),
    /// QEMU refused the command.
    #[error("QEMU refused {command:?}: {reason}")]
    Refused {
        /// What was asked.
        command: String,
        /// QEMU's words.
        reason: String,
    },
}

impl Qmp {
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            stream: BufReader::new(stream),
            negotiated: false,
        })
    }

    /// A command and its result. Events that come in between are skipped.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if !self.negotiated {
            self.exchange("qmp_capabilities", json!({}))?;
            self.negotiated = true;
        }
        self.exchange(command, arguments)
    }

    fn exchange(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let request = json!({ "execute": command, "arguments": arguments });
        let stream = self.stream.get_mut();
        stream.write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(QmpError::Closed {
                    command: command.to_owned(),
                });
            }
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: error["desc"].as_str().unwrap_or("no reason").to_owned(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(answers: &'static [&'static str]) -> Result<Value, QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            for answer in answers {
                reader.read_line(&mut String::new()).unwrap();
                (&theirs).write_all(answer.as_bytes()).unwrap();
            }
        });
        let result = Qmp::new(ours).unwrap().execute("query-status", json!({}));
        peer.join().unwrap();
        result
    }

    #[test]
    fn greeting_and_events_are_skipped() {
        let result = talk(&[
            "{\"QMP\":{}}\n{\"return\":{}}\n",
            "{\"event\":\"RESUME\"}\n{\"return\":{\"status\":\"running\"}}\n",
        ]);
        assert_eq!(result.unwrap()["status"], "running");
    }

    #[test]
    fn refusals_and_ends_are_errors() {
        let refused = talk(&["{\"return\":{}}\n", "{\"error\":{\"desc\":\"no\"}}\n"]);
        assert!(matches!(refused, Err(QmpError::Refused { reason, .. }) if reason == "no"));
        assert!(matches!(
            talk(&["{\"return\":{}}\n", ""]),
            Err(QmpError::Closed { .. })
        ));
        assert!(matches!(talk(&["what?\n"]), Err(QmpError::Json(_))));
    }
}

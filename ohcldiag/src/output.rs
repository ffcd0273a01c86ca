//! Text of a stranger on its way to a terminal.
//!
//! A VM that is hostile, or only quotes its guest, could send escape sequences that change
//! a terminal's settings, paint over what was there before or type on the user's behalf.
//! So where the output is a terminal, control characters (except line ends and tabs) are
//! shown as escapes. Files and pipes get bytes as they are: a program that reads them
//! counts on it.

use crate::exit::Failure;
use std::io;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;

/// Bytes that are carried at once.
const CHUNK: usize = 32 << 10;

/// Copies a stream to stdout or stderr, whichever `output` is, as it comes.
pub(crate) fn copy(
    what: &'static str,
    from: &mut impl Read,
    output: &mut (impl Write + IsTerminal),
) -> Result<(), Failure> {
    if output.is_terminal() {
        let mut visible = Visible::new(output);
        copy_plain(what, from, &mut visible)?;
        visible.finish().map_err(Failure::Output)
    } else {
        copy_plain(what, from, output)
    }
}

/// Copies a stream byte for byte.
pub(crate) fn copy_plain(
    what: &'static str,
    from: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Failure::Stream { what, source }),
        };
        output
            .write_all(&buffer[..count])
            .and_then(|()| output.flush())
            .map_err(Failure::Output)?;
    }
}

/// Makes control characters visible, as [`inspect::printable`] does, but keeps line ends
/// and tabs. Characters may come in pieces.
struct Visible<W> {
    output: W,
    /// The begin of a character.
    pending: Vec<u8>,
}

impl<W: Write> Visible<W> {
    fn new(output: W) -> Self {
        Self {
            output,
            pending: Vec::new(),
        }
    }

    /// Shows what has been begun and not ended.
    fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.pending);
        self.bytes(&rest)?;
        self.output.flush()
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        for piece in text.split_inclusive(['\n', '\t']) {
            let (body, end) = match piece.strip_suffix(['\n', '\t']) {
                Some(body) => (body, &piece[body.len()..]),
                None => (piece, ""),
            };
            // The line end of terminals.
            let body = match end {
                "\n" => body.strip_suffix('\r').unwrap_or(body),
                _ => body,
            };
            self.output.write_all(inspect::printable(body).as_bytes())?;
            self.output.write_all(end.as_bytes())?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            write!(self.output, "\\x{byte:02x}")?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Visible<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(buffer);
        let pending = std::mem::take(&mut self.pending);
        let mut chunks = pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text(chunk.valid())?;
            let invalid = chunk.invalid();
            // At the end, it may be the begin of a character that is still on its way.
            if chunks.peek().is_none() && may_go_on(invalid) {
                self.pending = invalid.to_vec();
            } else {
                self.bytes(invalid)?;
            }
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Whether more bytes could make a character of these.
fn may_go_on(bytes: &[u8]) -> bool {
    match str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.error_len().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut output = Vec::new();
        let mut visible = Visible::new(&mut output);
        for piece in pieces {
            visible.write_all(piece).unwrap();
        }
        visible.finish().unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(
            shown(&[b"a\tb\r\n\x1b[31mc\rd\x07"]),
            "a\tb\n\\u{1b}[31mc\\rd\\u{7}"
        );
        // C1 controls, which some terminals obey, and a change of direction.
        assert_eq!(shown(&["\u{9b}\u{202e}é".as_bytes()]), "\\u{9b}\\u{202e}é");
    }

    #[test]
    fn characters_may_come_in_pieces() {
        assert_eq!(shown(&[b"\xc3", b"\xa9\xe2\x82", b"\xac"]), "é€");
        assert_eq!(shown(&[b"\xc3", b"x\xff\xe2\x82"]), "\\xc3x\\xff\\xe2\\x82");
    }

    proptest! {
        #[test]
        fn nothing_harmful_passes(pieces: Vec<Vec<u8>>) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let text = shown(&pieces);
            let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
            prop_assert!(!text.contains(harmful));
        }
    }
}

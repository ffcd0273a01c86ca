//! A program for the machine's side of tests and benches of vsock itself.
//!
//! It is in the test image only, never in one that is delivered. Its four services each
//! have a port; this library is what both sides agree on. Everything goes in one direction
//! at a time and nobody half-closes a connection, because vsock's helper cannot.
//!
//! It promises to send nothing but what is asked for, in writes of the size that is asked
//! for; and refuses nothing: whoever reaches it may use up the machine.

#![forbid(unsafe_code)]

/// Sends back whatever it gets.
pub const ECHO_PORT: u32 = 5000;
/// Reads a [`SourceRequest`] line, then sends so many bytes of the [`Pattern`] and waits for
/// the other side to close.
pub const SOURCE_PORT: u32 = 5001;
/// Reads a line with a number of bytes, then so many, and answers with a line: `ok`, or what
/// is wrong with them.
pub const SINK_PORT: u32 = 5002;

/// The program says this when all its ports are open.
pub const LISTENING: &str = "vsock_peer: listening";

/// What [`SOURCE_PORT`] is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRequest {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes of each write, a multiple of 8.
    pub write: usize,
}

/// Bytes that differ at every place, the same on both sides.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
}

impl SourceRequest {
    /// The line.
    pub fn to_line(self) -> String {
        format!("{} {}\n", self.bytes, self.write)
    }

    /// Reads the line.
    pub fn parse(line: &str) -> Option<Self> {
        let (bytes, write) = line.trim_end().split_once(' ')?;
        let request = Self {
            bytes: bytes.parse().ok()?,
            write: write.parse().ok()?,
        };
        (request.write > 0 && request.write.is_multiple_of(8)).then_some(request)
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Pattern {
    /// The next bytes: so many steps of 8, the last one cut.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            // xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            piece.copy_from_slice(&self.state.to_le_bytes()[..piece.len()]);
        }
    }
}

/// Compares what arrives with the [`Pattern`], in pieces of any size.
#[derive(Debug, Default)]
pub struct Check {
    pattern: Pattern,
    /// Of the pattern, what was generated and not compared yet.
    ahead: Vec<u8>,
    /// Bytes that were right so far.
    right: u64,
}

impl Check {
    /// Compares the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        while self.ahead.len() < bytes.len() {
            // Whole steps of the pattern, so that pieces do not matter.
            let mut more = [0; 4096];
            self.pattern.fill(&mut more);
            self.ahead.extend(more);
        }
        if let Some(at) = bytes.iter().zip(&self.ahead).position(|(a, b)| a != b) {
            return Err(format!("byte {} is wrong", self.right + at as u64));
        }
        self.ahead.drain(..bytes.len());
        self.right += bytes.len() as u64;
        Ok(())
    }

    /// So many bytes came and were right.
    pub fn right(&self) -> u64 {
        self.right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_line() {
        let request = SourceRequest {
            bytes: 1 << 40,
            write: 16384,
        };
        assert_eq!(SourceRequest::parse(&request.to_line()), Some(request));
        for line in ["", "1", "x 1", "1 0", "1 -1", "1 9"] {
            assert_eq!(SourceRequest::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_check_takes_pieces_of_any_size_and_finds_what_is_missing() {
        let mut bytes = vec![0; 8 * 12_000];
        Pattern::default().fill(&mut bytes);
        let mut check = Check::default();
        let mut rest = bytes.as_slice();
        for size in (1..).take_while(|size| size * size / 2 < 90_000) {
            check.feed(&rest[..size]).unwrap();
            rest = &rest[size..];
        }
        let right = usize::try_from(check.right()).unwrap();
        assert_eq!(right, bytes.len() - rest.len());
        let error = check.feed(&bytes[right + 16..][..100]).unwrap_err();
        assert_eq!(error, format!("byte {right} is wrong"));
    }
}

//! The bytes of the serial floods: printable, without end, and known to both sides.

/// Bytes between two line ends.
pub const LINE: usize = 64;
/// Seed of what the guest sends.
pub const SEED_SENT: u64 = 11;
/// Seed of what the guest receives.
pub const SEED_RECEIVED: u64 = 12;

/// The sequence of a seed.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        // The generator stands still at zero.
        Self {
            state: seed.wrapping_mul(2).wrapping_add(1),
        }
    }
}

impl Iterator for Pattern {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        Some(LETTERS[(self.state >> 32) as usize % LETTERS.len()])
    }
}

/// FNV-1a, in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(pub u64);

impl Checksum {
    /// Of nothing.
    pub const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);

    /// With one more byte.
    pub const fn with(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x100_0000_01b3))
    }

    /// Of the first `count` bytes of a pattern.
    pub fn of_pattern(seed: u64, count: usize) -> Self {
        Pattern::new(seed).take(count).fold(Self::EMPTY, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_differ_by_seed_and_are_printable() {
        let of = |seed| Pattern::new(seed).take(1000).collect::<Vec<_>>();
        assert_ne!(of(0), of(1));
        assert_eq!(of(7), of(7));
        assert!(of(3).iter().all(u8::is_ascii_graphic));
    }

    #[test]
    fn checksum_is_that_of_fnv() {
        // Published test vector.
        assert_eq!(
            b"foobar"
                .iter()
                .fold(Checksum::EMPTY, |sum, byte| sum.with(*byte)),
            Checksum(0x8594_4171_f739_67e8)
        );
    }
}

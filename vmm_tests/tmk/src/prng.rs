//! A small pseudo-random generator with a fixed sequence.

/// Generator of 64-bit numbers (splitmix64: one addition and a mixing function).
#[derive(Debug, Clone)]
pub struct Prng {
    state: u64,
}

impl Prng {
    /// A generator that always gives the same sequence for the same seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 if `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64().checked_rem(limit).unwrap_or(0)
    }

    /// True once in `n` calls on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> Option<T> {
        let index = self.below(choices.len() as u64) as usize;
        choices.get(index).copied()
    }

    /// A number whose magnitude is random too: small ones are as likely as large ones.
    pub fn any_magnitude(&mut self) -> u64 {
        let bits = self.below(64);
        self.next_u64() >> bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_published_sequence() {
        // First outputs of splitmix64 for seed 0, as published with the algorithm.
        let mut prng = Prng::new(0);
        assert_eq!(prng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(prng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn below_stays_below_and_copes_with_zero() {
        let mut prng = Prng::new(1);
        assert!((0..1000).all(|_| prng.below(7) < 7));
        assert_eq!(prng.below(0), 0);
        assert_eq!(prng.pick::<u8>(&[]), None);
    }

    #[test]
    fn any_magnitude_reaches_small_and_large_numbers() {
        let mut prng = Prng::new(2);
        let numbers: Vec<u64> = (0..1000).map(|_| prng.any_magnitude()).collect();
        assert!(numbers.iter().any(|n| *n < 16));
        assert!(numbers.iter().any(|n| *n > 1 << 60));
    }
}

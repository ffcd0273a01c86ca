//! Sets of vectors.

/// A set of interrupt vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);

    /// The set with vector `64 * i + b` for bit `b` of word `i`.
    pub const fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// See [`Self::from_words`].
    pub const fn words(self) -> [u64; 4] {
        self.0
    }

    /// Adds a vector.
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    /// Takes a vector out.
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    /// Whether a vector is in.
    pub fn contains(self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] & 1 << (vector & 63) != 0
    }

    /// Whether none is in.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// The highest one.
    pub fn highest(self) -> Option<u8> {
        let word = (0..4).rev().find(|word| self.0[*word] != 0)?;
        Some((word as u8) << 6 | (63 - self.0[word].leading_zeros()) as u8)
    }

    /// All vectors that are in one of both.
    pub fn union(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is in this set but not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// From the lowest to the highest.
    pub fn iter(mut self) -> impl Iterator<Item = u8> {
        core::iter::from_fn(move || {
            let word = self.0.iter().position(|word| *word != 0)?;
            let vector = (word as u8) << 6 | self.0[word].trailing_zeros() as u8;
            self.remove(vector);
            Some(vector)
        })
    }

    /// The 32 vectors from `32 * index`, as one of eight registers shows them.
    pub(crate) fn register(self, index: u8) -> u32 {
        (self.0[usize::from(index >> 1 & 3)] >> (32 * (index & 1))) as u32
    }
}

impl FromIterator<u8> for VectorSet {
    fn from_iter<I: IntoIterator<Item = u8>>(vectors: I) -> Self {
        let mut set = Self::EMPTY;
        for vector in vectors {
            set.insert(vector);
        }
        set
    }
}

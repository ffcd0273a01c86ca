//! What is put where: a list that is complete and checked before anything is written.

use crate::memory::Free;
use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;
use loader_defs::range::GpaRange;
use thiserror::Error;

/// Writes into the memory of the VM. All addresses are those of a validated [`Plan`].
pub trait ImportPages {
    /// Why a write fails.
    type Error;

    /// Writes `data` at `gpa`.
    fn write(&mut self, gpa: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// Writes `length` zeros at `gpa`. Memory that is zero already can be left alone.
    fn zero(&mut self, gpa: u64, length: u64) -> Result<(), Self::Error>;
}

/// What happens with the memory of a piece behind its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// It is zeroed.
    Zero,
    /// It only has to be there.
    Reserve,
}

/// Something that is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// What it is, for people.
    pub what: &'static str,
    /// Memory that it occupies.
    pub range: GpaRange,
    /// Its contents, from the start of the range on.
    pub data: Cow<'a, [u8]>,
    /// What follows the contents.
    pub tail: Tail,
}

impl<'a> Piece<'a> {
    /// A piece that consists of its data.
    pub(crate) fn new(
        what: &'static str,
        gpa: u64,
        data: Cow<'a, [u8]>,
    ) -> Result<Self, PlanError> {
        let size = data.len() as u64;
        let range = GpaRange::new(gpa, size).ok_or(PlanError::Wraps { what, gpa, size })?;
        Ok(Self {
            what,
            range,
            data,
            tail: Tail::Reserve,
        })
    }
}

/// A validated list of pieces, and the registers of the first processor.
#[derive(Debug, Clone)]
pub struct Plan<'a, R> {
    pieces: Vec<Piece<'a>>,
    registers: R,
}

/// A plan that would not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlanError {
    /// It leaves the address space.
    #[error("{what} of {size} bytes at {gpa:#x} leaves the 64-bit address space")]
    Wraps {
        /// What.
        what: &'static str,
        /// Where.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// There is no RAM.
    #[error("{what} needs {range}, which is not all RAM that the guest may use")]
    NotRam {
        /// What.
        what: &'static str,
        /// Where.
        range: GpaRange,
    },
    /// It is above the limit.
    #[error("{what} needs {range}, expected it to end at or below {limit:#x}")]
    AboveLimit {
        /// What.
        what: &'static str,
        /// Where.
        range: GpaRange,
        /// The limit.
        limit: u64,
    },
    /// Two for one byte.
    #[error("{first} at {first_range} and {second} at {second_range} overlap")]
    Overlap {
        /// The lower one.
        first: &'static str,
        /// Where.
        first_range: GpaRange,
        /// The upper one.
        second: &'static str,
        /// Where.
        second_range: GpaRange,
    },
}

impl<'a, R> Plan<'a, R> {
    /// Sorts the pieces by address and checks them against the memory that may be used.
    pub(crate) fn new(
        mut pieces: Vec<Piece<'a>>,
        registers: R,
        usable: &Free,
        limit: u64,
    ) -> Result<Self, PlanError> {
        pieces.sort_by_key(|piece| piece.range);
        for &Piece { what, range, .. } in &pieces {
            if !usable.contains(range) {
                return Err(PlanError::NotRam { what, range });
            }
            if range.end() > limit {
                return Err(PlanError::AboveLimit { what, range, limit });
            }
        }
        if let Some([a, b]) = pieces
            .array_windows()
            .find(|[a, b]| a.range.end() > b.range.start())
        {
            return Err(PlanError::Overlap {
                first: a.what,
                first_range: a.range,
                second: b.what,
                second_range: b.range,
            });
        }
        Ok(Self { pieces, registers })
    }

    /// The pieces, by ascending address.
    pub fn pieces(&self) -> &[Piece<'a>] {
        &self.pieces
    }

    /// The registers with which the first processor starts.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// Writes everything.
    pub fn import<W: ImportPages>(&self, memory: &mut W) -> Result<(), W::Error> {
        for piece in &self.pieces {
            let size = piece.data.len() as u64;
            if size > 0 {
                memory.write(piece.range.start(), &piece.data)?;
            }
            let rest = piece.range.len() - size;
            if piece.tail == Tail::Zero && rest > 0 {
                memory.zero(piece.range.start() + size, rest)?;
            }
        }
        Ok(())
    }
}

/// One line per piece.
impl<R> fmt::Display for Plan<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            writeln!(
                f,
                "{} {}, {} bytes",
                piece.range,
                piece.what,
                piece.data.len()
            )?;
        }
        Ok(())
    }
}

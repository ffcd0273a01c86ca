//! Accesses to the bytes of an operand, wherever they are.

use crate::address::{self, Address};
use crate::error::{Exception, Reason, Step, Stop};
use crate::execute::Emulator;
use crate::mode::Mode;
use crate::{Access, Cpu, TranslateError, Width};
use arrayvec::ArrayVec;

pub(crate) const PAGE: usize = 4096;

/// How often a locked access is tried against other VPs, before the guest runs again.
const LOCKED_TRIES: u32 = 64;

/// A part of an operand within one page.
#[derive(Debug, Clone, Copy)]
struct Piece {
    gpa: u64,
    length: usize,
    memory: bool,
}

/// Where an operand is. Having it means that the access faults no more: page tables have
/// been asked for all of it, so that nothing is done halfway.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Two, if the operand crosses a page.
    pieces: ArrayVec<Piece, 2>,
}

impl<C: Cpu> Emulator<'_, C> {
    /// Finds `length` bytes, at most 16 and not zero.
    pub(crate) fn place(
        &mut self,
        address: Address,
        length: usize,
        access: Access,
    ) -> Step<Place, C::Error> {
        let Address {
            segment, offset, ..
        } = address;
        let linear = address::linear(self.cpu, self.mode, segment, offset, length, access)?;
        let first = length.min(PAGE - linear as usize % PAGE);
        let mut pieces = ArrayVec::new();
        pieces.push(self.piece(linear, first, access)?);
        if first < length {
            let mut next = linear.wrapping_add(first as u64);
            if self.mode != Mode::Bits64 {
                next &= 0xffff_ffff;
            }
            pieces.push(self.piece(next, length - first, access)?);
        }
        Ok(Place { pieces })
    }

    fn piece(&mut self, linear: u64, length: usize, access: Access) -> Step<Piece, C::Error> {
        let gpa = translate(self.cpu, linear, access)?;
        Ok(Piece {
            gpa,
            length,
            memory: self.cpu.is_memory(gpa),
        })
    }

    /// Reads the bytes; as many as the place has.
    pub(crate) fn load_bytes(&mut self, place: &Place, bytes: &mut [u8]) -> Step<(), C::Error> {
        let mut rest = bytes;
        for piece in &place.pieces {
            let (part, behind) = rest.split_at_mut(piece.length);
            if piece.memory {
                self.cpu.read_memory(piece.gpa, part).map_err(Stop::Cpu)?;
            } else {
                for (gpa, width, at) in device_accesses(piece) {
                    let value = self.cpu.read_mmio(gpa, width).map_err(Stop::Cpu)?;
                    let size = width.bytes();
                    part[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                }
            }
            rest = behind;
        }
        Ok(())
    }

    /// Writes the bytes; as many as the place has.
    pub(crate) fn store_bytes(&mut self, place: &Place, bytes: &[u8]) -> Step<(), C::Error> {
        let mut rest = bytes;
        for piece in &place.pieces {
            let (part, behind) = rest.split_at(piece.length);
            if piece.memory {
                self.cpu.write_memory(piece.gpa, part).map_err(Stop::Cpu)?;
            } else {
                for (gpa, width, at) in device_accesses(piece) {
                    let mut value = [0; 8];
                    value[..width.bytes()].copy_from_slice(&part[at..at + width.bytes()]);
                    self.cpu
                        .write_mmio(gpa, width, u64::from_le_bytes(value))
                        .map_err(Stop::Cpu)?;
                }
            }
            rest = behind;
        }
        Ok(())
    }

    /// Reads a number.
    pub(crate) fn load(&mut self, place: &Place, width: Width) -> Step<u64, C::Error> {
        let mut bytes = [0; 8];
        self.load_bytes(place, &mut bytes[..width.bytes()])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a number.
    pub(crate) fn store(&mut self, place: &Place, width: Width, value: u64) -> Step<(), C::Error> {
        self.store_bytes(place, &value.to_le_bytes()[..width.bytes()])
    }

    /// Reads a number, and writes what `change` makes of it. In memory and with `locked`,
    /// nobody comes between the two; `change` may be asked more than once then.
    pub(crate) fn modify<T>(
        &mut self,
        place: &Place,
        width: Width,
        locked: bool,
        mut change: impl FnMut(u64) -> (u64, T),
    ) -> Step<T, C::Error> {
        let &[
            Piece {
                gpa, memory: true, ..
            },
        ] = place.pieces.as_slice()
        else {
            // A device has no lock, and what crosses a page is none's idea of a lock.
            let (new, result) = change(self.load(place, width)?);
            self.store(place, width, new)?;
            return Ok(result);
        };
        if !locked {
            let (new, result) = change(self.load(place, width)?);
            self.store(place, width, new)?;
            return Ok(result);
        }
        for _ in 0..LOCKED_TRIES {
            let current = self.load(place, width)?;
            let (new, result) = change(current);
            let exchanged = self
                .cpu
                .compare_exchange(gpa, width, current, new & width.mask())
                .map_err(Stop::Cpu)?;
            if exchanged {
                return Ok(result);
            }
        }
        Err(Stop::Retry)
    }
}

/// Finds a guest-physical address, or the exception.
pub(crate) fn translate<C: Cpu>(cpu: &mut C, linear: u64, access: Access) -> Step<u64, C::Error> {
    cpu.translate(linear, access).map_err(|error| match error {
        TranslateError::PageFault(code) => Stop::Exception(Exception::page_fault(code, linear)),
        TranslateError::TableOutsideMemory(gpa) => {
            Stop::Unsupported(Reason::TableOutsideMemory(gpa))
        }
        TranslateError::Busy => Stop::Retry,
        TranslateError::Cpu(error) => Stop::Cpu(error),
    })
}

/// Splits a range into naturally aligned accesses: address, width, offset in the range.
fn device_accesses(piece: &Piece) -> impl Iterator<Item = (u64, Width, usize)> + use<> {
    let Piece { gpa, length, .. } = *piece;
    let mut at = 0;
    std::iter::from_fn(move || {
        let here = gpa.wrapping_add(at as u64);
        let width = [Width::Qword, Width::Dword, Width::Word, Width::Byte]
            .into_iter()
            .find(|width| {
                width.bytes() <= length - at && here.is_multiple_of(width.bytes() as u64)
            })?;
        let access = (here, width, at);
        at += width.bytes();
        Some(access)
    })
}

//! From bytes to an instruction.

use crate::error::{Reason, Step, Stop};
use crate::memory::{PAGE, translate};
use crate::mode::Mode;
use crate::{Access, Cpu, MAX_INSTRUCTION, SegmentName, Unsupported, address};
use arrayvec::ArrayVec;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};

/// The bytes at RIP, as far as they are known.
pub(crate) struct Fetched {
    bytes: ArrayVec<u8, MAX_INSTRUCTION>,
    mnemonic: Option<Mnemonic>,
}

impl Fetched {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.iter().copied().take(MAX_INSTRUCTION).collect(),
            mnemonic: None,
        }
    }

    pub(crate) fn report(self, mode: Mode, rip: u64, reason: Reason) -> Unsupported {
        Unsupported {
            rip,
            bits: mode.bits(),
            bytes: self.bytes,
            mnemonic: self
                .mnemonic
                .map(|mnemonic| format!("{mnemonic:?}").to_uppercase()),
            reason,
        }
    }
}

/// Decodes the instruction at RIP; reads what is missing of it.
pub(crate) fn decode<C: Cpu>(
    cpu: &mut C,
    mode: Mode,
    fetched: &mut Fetched,
) -> Step<Instruction, C::Error> {
    let rip = cpu.rip() & mode.rip_mask();
    loop {
        let mut decoder = Decoder::with_ip(mode.bits(), &fetched.bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => {
                fetched.bytes.truncate(instruction.len());
                fetched.mnemonic = Some(instruction.mnemonic());
                return Ok(instruction);
            }
            DecoderError::NoMoreBytes if !fetched.bytes.is_full() => {
                fetch_more(cpu, mode, rip, &mut fetched.bytes)?;
            }
            _ => return Err(Stop::Unsupported(Reason::Undecodable)),
        }
    }
}

/// Reads what follows the known bytes, up to the end of the page: what lies behind it
/// may be not present, and not needed.
fn fetch_more<C: Cpu>(
    cpu: &mut C,
    mode: Mode,
    rip: u64,
    bytes: &mut ArrayVec<u8, MAX_INSTRUCTION>,
) -> Step<(), C::Error> {
    let offset = rip.wrapping_add(bytes.len() as u64) & mode.rip_mask();
    let linear = address::linear(cpu, mode, SegmentName::Cs, offset, 1, Access::Execute)?;
    let gpa = translate(cpu, linear, Access::Execute)?;
    if !cpu.is_memory(gpa) {
        return Err(Stop::Unsupported(Reason::CodeOutsideMemory(gpa)));
    }
    let length = bytes.remaining_capacity().min(PAGE - gpa as usize % PAGE);
    let mut buffer = [0; MAX_INSTRUCTION];
    cpu.read_memory(gpa, &mut buffer[..length])
        .map_err(Stop::Cpu)?;
    bytes.extend(buffer[..length].iter().copied());
    Ok(())
}

//! Accesses to device memory that exit: which register is loaded, which register or number
//! is stored, and where the next instruction is.
//!
//! Only what compilers make of a volatile 32-bit access in 64-bit code: MOV of a register
//! or of an immediate. The address needs no decoding, the processor tells it.

use super::fetch::{MAX_LENGTH, fetch};
use super::vmcb;
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;

const OPERAND_SIZE: u8 = 0x66;
const MOV_REGISTER: u8 = 0x89;
const MOV_LOAD: u8 = 0x8b;
const MOV_IMMEDIATE: u8 = 0xc7;
const REX_W: u8 = 1 << 3;
const REX_R: u8 = 1 << 2;

/// What a 32-bit store stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The low half of the register with this number.
    Register(usize),
    /// A number.
    Immediate(u32),
}

/// A 32-bit access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Into the register with this number; its upper half becomes zero.
    Load(usize),
    /// From there.
    Store(Source),
}

/// An instruction that accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mov {
    /// What it does.
    pub access: Access,
    /// RIP behind it.
    pub next_rip: u64,
}

/// The access at which `save` stands; `None` if it is anything else.
pub fn at<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, save: &Save) -> Option<Mov> {
    if !vmcb::is_64_bit(save) {
        return None;
    }
    let mut bytes = [0; MAX_LENGTH];
    let fetched = fetch(memory, save, &mut bytes);
    let (access, length) = decode(&bytes[..fetched])?;
    Some(Mov {
        access,
        next_rip: save.rip.wrapping_add(length as u64),
    })
}

/// The access that the bytes begin with, and its length.
fn decode(bytes: &[u8]) -> Option<(Access, usize)> {
    // Segments and the size of addresses change the address, which is known already.
    let mut at = bytes
        .iter()
        .position(|byte| !matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67))?;
    let mut rex = 0;
    if let byte @ 0x40..=0x4f = bytes[at] {
        rex = byte;
        at += 1;
    }
    let opcode = *bytes.get(at)?;
    // The other sizes are not for registers of 32 bits.
    if rex & REX_W != 0 || opcode == OPERAND_SIZE {
        return None;
    }
    let modrm = *bytes.get(at + 1)?;
    let register = usize::from(modrm >> 3 & 7);
    let end = at + 2 + operand_length(modrm, bytes.get(at + 2))?;
    let high = if rex & REX_R != 0 { 8 } else { 0 };
    match opcode {
        MOV_REGISTER | MOV_LOAD if end > bytes.len() => None,
        MOV_REGISTER => Some((Access::Store(Source::Register(register | high)), end)),
        MOV_LOAD => Some((Access::Load(register | high), end)),
        MOV_IMMEDIATE if register == 0 => {
            let value = bytes.get(end..)?.first_chunk()?;
            let value = u32::from_le_bytes(*value);
            Some((Access::Store(Source::Immediate(value)), end + 4))
        }
        _ => None,
    }
}

/// Bytes behind ModRM that say where in memory; `None` if it is a register.
pub(super) fn operand_length(modrm: u8, sib: Option<&u8>) -> Option<usize> {
    let (mode, base) = (modrm >> 6, modrm & 7);
    let displacement = |base| match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    match (mode, base) {
        (3, _) => None,
        (_, 4) => Some(1 + displacement(sib? & 7)),
        (_, base) => Some(displacement(base)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stores_of_registers_are_decoded() {
        let register = |number, length| Some((Access::Store(Source::Register(number)), length));
        // mov [rax], ecx
        assert_eq!(decode(&[0x89, 0x08]), register(1, 2));
        // mov [r14 + 0x10], r9d
        assert_eq!(decode(&[0x45, 0x89, 0x4e, 0x10]), register(9, 4));
        // mov [0xffffffffff5fd300], esi
        let bytes = [0x89, 0x34, 0x25, 0x00, 0xd3, 0x5f, 0xff];
        assert_eq!(decode(&bytes), register(6, 7));
        // mov [rip + 0x12345678], edi
        let bytes = [0x89, 0x3d, 0x78, 0x56, 0x34, 0x12];
        assert_eq!(decode(&bytes), register(7, 6));
        // mov ds:[rdx + rax * 4 + 0x300], ebx
        let bytes = [0x3e, 0x89, 0x9c, 0x82, 0x00, 0x03, 0x00, 0x00];
        assert_eq!(decode(&bytes), register(3, 8));
    }

    #[test]
    fn stores_of_numbers_are_decoded() {
        let number = |number, length| Some((Access::Store(Source::Immediate(number)), length));
        // mov dword ptr [0xffffffffff5fd0b0], 0
        let bytes = [0xc7, 0x04, 0x25, 0xb0, 0xd0, 0x5f, 0xff, 0, 0, 0, 0];
        assert_eq!(decode(&bytes), number(0, 11));
        // mov dword ptr [rbx], 0x1234
        let bytes = [0xc7, 0x03, 0x34, 0x12, 0, 0];
        assert_eq!(decode(&bytes), number(0x1234, 6));
    }

    #[test]
    fn loads_are_decoded() {
        // mov ecx, [rax]
        assert_eq!(decode(&[0x8b, 0x08]), Some((Access::Load(1), 2)));
        // mov r9d, [r14 + 0x10]
        let bytes = [0x45, 0x8b, 0x4e, 0x10];
        assert_eq!(decode(&bytes), Some((Access::Load(9), 4)));
        // mov eax, [0xffffffffff5fd020]
        let bytes = [0x8b, 0x04, 0x25, 0x20, 0xd0, 0x5f, 0xff];
        assert_eq!(decode(&bytes), Some((Access::Load(0), 7)));
    }

    #[test]
    fn other_instructions_are_not_decoded() {
        for bytes in [
            &[0x89, 0xc8][..],               // mov eax, ecx
            &[0x66, 0x89, 0x08],             // mov [rax], cx
            &[0x48, 0x89, 0x08],             // mov [rax], rcx
            &[0x88, 0x08],                   // mov [rax], cl
            &[0x66, 0x8b, 0x08],             // mov cx, [rax]
            &[0x48, 0x8b, 0x08],             // mov rcx, [rax]
            &[0x8b, 0xc1],                   // mov eax, ecx
            &[0x8b, 0x34, 0x25, 0x00],       // cut off
            &[0x87, 0x08],                   // xchg [rax], ecx
            &[0xf0, 0x01, 0x08],             // lock add [rax], ecx
            &[0xc7, 0x0b, 0x34, 0x12, 0, 0], // no instruction
            &[0xc7, 0x03, 0x34, 0x12],       // cut off
            &[0x89, 0x34, 0x25, 0x00],       // cut off
            &[],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_within_themselves(
            bytes in prop::collection::vec(any::<u8>(), 0..=MAX_LENGTH),
        ) {
            if let Some((access, length)) = decode(&bytes) {
                prop_assert!(length <= bytes.len());
                let register = match access {
                    Access::Load(register) | Access::Store(Source::Register(register)) => register,
                    Access::Store(Source::Immediate(_)) => 0,
                };
                prop_assert!(register < 16);
            }
        }
    }
}

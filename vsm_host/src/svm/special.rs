//! Writes of special registers that exit: MOV to CR8 and to debug registers.
//!
//! Those of CR8 do while an interrupt waits for the guest's priority or flag. The processor
//! could compare the priorities itself, but QEMU 7.2 ends with a failed assertion when a guest
//! writes CR8 while a virtual interrupt waits (it changes interrupt requests without its
//! lock), and takes equal priorities for sufficient. For debug registers see
//! [`debug`](super::debug).

use super::fetch::{MAX_LENGTH, fetch};
use super::vmcb;
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;

const LOCK: u8 = 0xf0;
const REX_R: u8 = 1 << 2;
const REX_B: u8 = 1 << 0;
const ESCAPE: u8 = 0x0f;
const MOV_TO_CR: u8 = 0x22;
const MOV_TO_DR: u8 = 0x23;

/// A register that such a MOV writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// CR8.
    Cr8,
    /// The debug register with this number, 0 to 7.
    Debug(u8),
}

/// A MOV to one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// What is written.
    pub target: Target,
    /// Number of the register whose value is written.
    pub source: usize,
    /// RIP behind it.
    pub next_rip: u64,
}

/// The MOV at which `save` stands; `None` if it is anything else.
pub fn write_at<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, save: &Save) -> Option<Write> {
    let long = vmcb::is_64_bit(save);
    let mut bytes = [0; MAX_LENGTH];
    let fetched = fetch(memory, save, &mut bytes);
    let (target, source, length) = decode(&bytes[..fetched], long)?;
    let next = save.rip.wrapping_add(length as u64);
    Some(Write {
        target,
        source,
        next_rip: if long { next } else { u64::from(next as u32) },
    })
}

/// Target, source and length of the MOV that the bytes begin with. Outside of 64-bit code that
/// to CR8 is a MOV to CR0 with a LOCK prefix.
fn decode(bytes: &[u8], long: bool) -> Option<(Target, usize, usize)> {
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        )
    };
    let mut at = bytes.iter().position(|byte| !is_prefix(byte))?;
    let locked = bytes[..at].contains(&LOCK);
    let mut rex = 0;
    if long && let byte @ 0x40..=0x4f = bytes[at] {
        rex = byte;
        at += 1;
    }
    let &[ESCAPE, opcode, modrm] = bytes.get(at..)?.first_chunk()? else {
        return None;
    };
    // Its two upper bits do not count.
    let register = modrm >> 3 & 7;
    let target = match (opcode, rex & REX_R != 0) {
        (MOV_TO_CR, extended) if register == 0 && locked != extended => Target::Cr8,
        (MOV_TO_DR, false) if !locked => Target::Debug(register),
        _ => return None,
    };
    let high = if rex & REX_B != 0 { 8 } else { 0 };
    Some((target, usize::from(modrm & 7 | high), at + 3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_write_of_cr8_names_its_register() {
        // mov cr8, rax; mov cr8, rdi; mov cr8, r9
        let cr8 = |source| Some((Target::Cr8, source, 4));
        assert_eq!(decode(&[0x44, 0x0f, 0x22, 0xc0], true), cr8(0));
        assert_eq!(decode(&[0x44, 0x0f, 0x22, 0xc7, 0x90], true), cr8(7));
        assert_eq!(decode(&[0x45, 0x0f, 0x22, 0xc1], true), cr8(9));
        // lock mov cr0, ecx
        assert_eq!(decode(&[0xf0, 0x0f, 0x22, 0xc1], false), cr8(1));
    }

    #[test]
    fn a_write_of_a_debug_register_names_both() {
        let debug = |number, source, length| Some((Target::Debug(number), source, length));
        // mov dr7, rax; mov dr0, rsp; mov dr5, r10
        assert_eq!(decode(&[0x0f, 0x23, 0xf8], true), debug(7, 0, 3));
        assert_eq!(decode(&[0x0f, 0x23, 0xc4, 0x90], true), debug(0, 4, 3));
        assert_eq!(decode(&[0x41, 0x0f, 0x23, 0xea], true), debug(5, 10, 4));
        // The bits that say "register" do not count, nor does the size.
        assert_eq!(decode(&[0x66, 0x0f, 0x23, 0x3b], false), debug(7, 3, 4));
    }

    #[test]
    fn other_instructions_are_not_taken_for_one() {
        for (bytes, long) in [
            (&[0x0f, 0x22, 0xc0][..], true),         // mov cr0, rax
            (&[0x44, 0x0f, 0x22, 0xd8], true),       // no register
            (&[0x44, 0x0f, 0x20, 0xc0], true),       // mov rax, cr8
            (&[0xf0, 0x44, 0x0f, 0x22, 0xc0], true), // no register
            (&[0x44, 0x0f, 0x22, 0xc0], false),      // inc esp
            (&[0x44, 0x0f, 0x22], true),             // cut off
            (&[0x44, 0x0f, 0x23, 0xf8], true),       // no register
            (&[0xf0, 0x0f, 0x23, 0xf8], true),       // no register
            (&[0x0f, 0x21, 0xf8], true),             // mov rax, dr7
            (&[0x0f, 0x23], true),                   // cut off
            (&[0xf0; 15], true),
            (&[], true),
        ] {
            assert_eq!(decode(bytes, long), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_within_themselves(
            bytes in prop::collection::vec(any::<u8>(), 0..=MAX_LENGTH),
            long: bool,
        ) {
            if let Some((target, source, length)) = decode(&bytes, long) {
                prop_assert!(length <= bytes.len() && source < 16);
                prop_assert!(matches!(target, Target::Cr8 | Target::Debug(..8)));
            }
        }
    }
}

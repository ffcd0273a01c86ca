//! Writes of CR8 that exit.
//!
//! They do while an interrupt waits for the guest's priority or flag. The processor could
//! compare the priorities itself, but QEMU 7.2 ends with a failed assertion when a guest
//! writes CR8 while a virtual interrupt waits (it changes interrupt requests without its
//! lock), and takes equal priorities for sufficient.

use super::fetch::{MAX_LENGTH, fetch};
use super::vmcb;
use crate::guest_memory::{GuestMemory, RamAccess};
use x86_defs::svm::Save;

const LOCK: u8 = 0xf0;
const REX_R: u8 = 1 << 2;
const REX_B: u8 = 1 << 0;
const MOV_TO_CR: [u8; 2] = [0x0f, 0x22];

/// MOV to CR8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Number of the register whose value is written.
    pub source: usize,
    /// RIP behind it.
    pub next_rip: u64,
}

/// The MOV to CR8 at which `save` stands; `None` if it is anything else.
pub fn write_at<R: RamAccess + ?Sized>(memory: &GuestMemory<'_, R>, save: &Save) -> Option<Write> {
    let long = vmcb::is_64_bit(save);
    let mut bytes = [0; MAX_LENGTH];
    let fetched = fetch(memory, save, &mut bytes);
    let (source, length) = decode(&bytes[..fetched], long)?;
    let next = save.rip.wrapping_add(length as u64);
    Some(Write {
        source,
        next_rip: if long { next } else { u64::from(next as u32) },
    })
}

/// Source and length of the MOV to CR8 that the bytes begin with. Outside of 64-bit code it
/// is a MOV to CR0 with a LOCK prefix.
fn decode(bytes: &[u8], long: bool) -> Option<(usize, usize)> {
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
    let rest = bytes.get(at..)?.strip_prefix(&MOV_TO_CR)?;
    let modrm = *rest.first()?;
    // Its two upper bits do not count.
    let register = modrm >> 3 & 7;
    let is_cr8 = register == 0 && locked != (rex & REX_R != 0);
    let high = if rex & REX_B != 0 { 8 } else { 0 };
    is_cr8.then_some((usize::from(modrm & 7 | high), at + MOV_TO_CR.len() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_write_of_cr8_names_its_register() {
        // mov cr8, rax; mov cr8, rdi; mov cr8, r9
        assert_eq!(decode(&[0x44, 0x0f, 0x22, 0xc0], true), Some((0, 4)));
        assert_eq!(decode(&[0x44, 0x0f, 0x22, 0xc7, 0x90], true), Some((7, 4)));
        assert_eq!(decode(&[0x45, 0x0f, 0x22, 0xc1], true), Some((9, 4)));
        // lock mov cr0, ecx
        assert_eq!(decode(&[0xf0, 0x0f, 0x22, 0xc1], false), Some((1, 4)));
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
            if let Some((source, length)) = decode(&bytes, long) {
                prop_assert!(length <= bytes.len() && source < 16);
            }
        }
    }
}

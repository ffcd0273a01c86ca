//! The guest's pages, and how a message slot in them is filled.

use hv_defs::synic::{HV_MESSAGE_SIZE, HvMessage, HvMessageFlags};
use thiserror::Error;
use zerocopy::IntoBytes;

/// An access to what is not memory of this VTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("GPA {gpa:#x} is not memory of this VTL")]
pub struct NotMapped {
    /// First byte.
    pub gpa: u64,
}

/// Memory of a VTL. Other VPs write it at any time; addresses come from the guest and may
/// be anything. 32-bit accesses are aligned and single.
pub trait GuestPages {
    /// Reads 32 bits.
    ///
    /// # Errors
    /// There is no memory; so for all below.
    fn load(&self, gpa: u64) -> Result<u32, NotMapped>;
    /// Writes 32 bits, visible after all earlier writes.
    #[expect(clippy::missing_errors_doc, reason = "see `load`")]
    fn store(&self, gpa: u64, value: u32) -> Result<(), NotMapped>;
    /// Sets bits atomically; returns the value before.
    #[expect(clippy::missing_errors_doc, reason = "see `load`")]
    fn set_bits(&self, gpa: u64, bits: u32) -> Result<u32, NotMapped>;
    /// Writes bytes, at most 256 and within a page.
    #[expect(clippy::missing_errors_doc, reason = "see `load`")]
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NotMapped>;
}

/// The flags of a slot, seen in the 32 bits from offset 4.
const PENDING: u32 = (HvMessageFlags::new().with_message_pending(true).into_bits() as u32) << 8;

/// Whether a slot is empty. If it is not, the guest is told that a message waits: it
/// writes EOM when it has emptied the slot.
pub(crate) fn claim(pages: &impl GuestPages, slot: u64) -> Result<bool, NotMapped> {
    if pages.load(slot)? == 0 {
        return Ok(true);
    }
    pages.set_bits(slot + 4, PENDING)?;
    // A guest that emptied the slot before it could see the flag will write no EOM.
    Ok(pages.load(slot)? == 0)
}

/// Fills an empty slot, the type last.
pub(crate) fn fill(
    pages: &impl GuestPages,
    slot: u64,
    message: &HvMessage,
) -> Result<(), NotMapped> {
    let size = 16 + usize::from(message.header.payload_size);
    let bytes = message.as_bytes();
    pages.write(slot + 4, &bytes[4..size.min(HV_MESSAGE_SIZE)])?;
    pages.store(slot, message.header.message_type.0)
}

/// Zeroes a page that has just come into use. One that is not memory stays unused.
pub(crate) fn clear(pages: &impl GuestPages, page_number: u64) {
    const ZEROES: [u8; HV_MESSAGE_SIZE] = [0; HV_MESSAGE_SIZE];
    for slot in 0..16 {
        let address = page_number << 12 | slot << 8;
        if pages.write(address, &ZEROES).is_err() {
            return;
        }
    }
}

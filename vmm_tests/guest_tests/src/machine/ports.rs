//! I/O ports of the guest.

#![expect(unsafe_code, reason = "port I/O")]

use x86_64::instructions::port::Port;

/// Reads a byte.
pub fn inb(port: u16) -> u8 {
    // SAFETY: the ports of the machine belong to this kernel, and reading one does not
    // change memory.
    unsafe { Port::new(port).read() }
}

/// Writes a byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as above; no device of this machine writes to memory.
    unsafe { Port::new(port).write(value) };
}

/// Reads a word.
pub fn inw(port: u16) -> u16 {
    // SAFETY: as above.
    unsafe { Port::new(port).read() }
}

/// Writes a word.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { Port::new(port).write(value) };
}

/// Reads a double word.
pub fn inl(port: u16) -> u32 {
    // SAFETY: as above.
    unsafe { Port::new(port).read() }
}

/// Writes a double word.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { Port::new(port).write(value) };
}

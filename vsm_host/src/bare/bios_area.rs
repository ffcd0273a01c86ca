//! The area of the firmware below 1 MiB becomes RAM of the guest.
//!
//! A guest looks there for tables of old, 16 bytes at a time. If nothing were there, each
//! look would be an intercept: some 40,000, which take longer than the rest of its boot.
//! On a PC the area is RAM that the chipset write-protects once the firmware has copied
//! itself into it (PAM registers, Intel Q35 data sheet 316966, 5.1.11); nobody needs the
//! firmware any more when the host runs.

#![expect(
    unsafe_code,
    reason = "ports of the PCI configuration, and physical memory"
)]

use super::memory::Physical;
use igvm_loader::{HostMemoryWriter as _, MemoryRange};
use vsm_host::guest_memory::RamAccess as _;
use vsm_host::platform::{BIOS_AREA, BIOS_DATA};
use x86_64::instructions::port::Port;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Enables a configuration access to bus 0, device 0, function 0: the host bridge.
const HOST_BRIDGE: u32 = 1 << 31;
/// Vendor and device of Q35's host bridge.
const Q35: u32 = 0x29c0_8086;
/// PAM0 to PAM3; the low half of PAM0 means nothing.
const PAM0: u32 = 0x90;
/// PAM4 to PAM6, and in the highest byte something else.
const PAM4: u32 = 0x94;
/// Reads and writes go to RAM, for both halves of a register.
const RAM: u32 = 0x33;

/// Makes the area RAM. Says whether it is.
pub(crate) fn unlock() -> bool {
    if read(0) != Q35 {
        return false;
    }
    write(PAM0, RAM << 24 | RAM << 16 | RAM << 8 | RAM & 0xf0);
    write(PAM4, read(PAM4) & 0xff00_0000 | RAM << 16 | RAM << 8 | RAM);
    let first = BIOS_AREA.start();
    let mut before = [0; 4];
    Physical.read_ram(first, &mut before);
    let probe = before.map(|byte| !byte);
    let mut after = [0; 4];
    Physical.write_ram(first, &probe);
    Physical.read_ram(first, &mut after);
    Physical.write_ram(first, &before);
    after == probe
}

/// Leaves nothing of the firmware to a guest, which could take its tables for its own.
pub(crate) fn clear(ram: &[MemoryRange]) {
    for range in ram {
        for area in [BIOS_DATA, BIOS_AREA] {
            let part = range.intersection(area);
            if !part.is_empty() {
                Physical.zero(part.start(), part.size());
            }
        }
    }
}

fn read(register: u32) -> u32 {
    // SAFETY: reads a configuration register, which has no effect. No VTL runs yet, so
    // nobody else uses the ports.
    unsafe {
        Port::new(CONFIG_ADDRESS).write(HOST_BRIDGE | register);
        Port::new(CONFIG_DATA).read()
    }
}

fn write(register: u32, value: u32) {
    // SAFETY: as above, and the registers that are written decide on the area alone.
    unsafe {
        Port::new(CONFIG_ADDRESS).write(HOST_BRIDGE | register);
        Port::new(CONFIG_DATA).write(value);
    }
}

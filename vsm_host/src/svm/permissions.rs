//! The permission maps: which MSRs and ports a VTL reaches without the host.

use alloc::boxed::Box;
use x86_defs::msr;

/// The MSRs that a VTL reads and writes in the processor itself: those that VMRUN,
/// VMLOAD and VMSAVE switch, and that mean nothing to the host.
const DIRECT_MSRS: [u32; 12] = [
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::PAT,     // the guest's own with nested paging
    msr::TSC_AUX, // which the host never uses
];

/// The MSRs that a VTL only reads in the processor: one clock for all, so nobody sets it.
const DIRECT_READ_MSRS: [u32; 1] = [msr::TSC];

/// Bytes of an MSR permission map.
const MSRPM_SIZE: usize = 0x2000;
/// Bytes of an I/O permission map: one bit per port, and three bits behind the last.
const IOPM_SIZE: usize = 0x3000;

/// MSR permission map (APM 15.11): two bits per MSR, read and write; set means exit.
#[repr(C, align(4096))]
pub struct MsrPermissionMap([u8; MSRPM_SIZE]);

impl MsrPermissionMap {
    /// Everything exits except the MSRs above.
    pub fn new() -> Box<Self> {
        let mut map = Box::new(Self([0xff; MSRPM_SIZE]));
        for msr in DIRECT_MSRS {
            map.clear(msr, 0b11);
        }
        for msr in DIRECT_READ_MSRS {
            map.clear(msr, 0b01);
        }
        map
    }

    fn clear(&mut self, msr: u32, access: u8) {
        if let Some((byte, shift)) = Self::position(msr) {
            self.0[byte] &= !(access << shift);
        }
    }

    /// Where the two bits of an MSR are. MSRs outside the three ranges always exit.
    fn position(msr: u32) -> Option<(usize, u32)> {
        let range = match msr {
            0..=0x1fff => 0,
            0xc000_0000..=0xc000_1fff => 0x800,
            0xc001_0000..=0xc001_1fff => 0x1000,
            _ => return None,
        };
        let index = (msr & 0x1fff) as usize;
        Some((range + index / 4, (index % 4) as u32 * 2))
    }
}

/// I/O permission map (APM 15.10); set means exit.
#[repr(C, align(4096))]
pub struct IoPermissionMap([u8; IOPM_SIZE]);

impl IoPermissionMap {
    /// Only these ports exit.
    pub fn new(ports: impl IntoIterator<Item = u16>) -> Box<Self> {
        let mut map = Box::new(Self([0; IOPM_SIZE]));
        for port in ports {
            map.0[usize::from(port / 8)] |= 1 << (port % 8);
        }
        map
    }

    /// All ports exit.
    pub fn all() -> Box<Self> {
        Box::new(Self([0xff; IOPM_SIZE]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(map: &MsrPermissionMap, msr: u32) -> (bool, bool) {
        let (byte, shift) = MsrPermissionMap::position(msr).unwrap();
        let bits = map.0[byte] >> shift;
        (bits & 1 != 0, bits & 2 != 0)
    }

    #[test]
    fn only_switched_msrs_are_reached_directly() {
        let map = MsrPermissionMap::new();
        assert_eq!(exits(&map, 0xc000_0100), (false, false));
        assert_eq!(exits(&map, 0x10), (false, true));
        for guarded in [0x1b, 0xc000_0080, 0xc001_0117, 0xc001_0114, 0x2ff, 0x1d9] {
            assert_eq!(exits(&map, guarded), (true, true), "{guarded:#x}");
        }
        assert_eq!(MsrPermissionMap::position(0x4000_0000), None);
    }

    #[test]
    fn only_the_named_ports_exit() {
        let map = IoPermissionMap::new([0xe9, 0xf4]);
        let set: u32 = map.0.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(set, 2);
        assert_eq!(map.0[0xe9 / 8] & (1 << (0xe9 % 8)), 1 << (0xe9 % 8));
    }
}

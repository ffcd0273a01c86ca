//! Memory of a VTL in tests, and what cannot be reached.

use super::*;
use std::cell::RefCell;

/// RAM from address 0.
pub(crate) struct FakeRam(pub RefCell<Vec<u8>>);

impl FakeRam {
    pub(crate) fn new(size: usize) -> Self {
        Self(RefCell::new(vec![0; size]))
    }
}

impl RamAccess for FakeRam {
    fn read_ram(&self, address: u64, out: &mut [u8]) {
        let start = address as usize;
        out.copy_from_slice(&self.0.borrow()[start..start + out.len()]);
    }

    fn write_ram(&self, address: u64, data: &[u8]) {
        let start = address as usize;
        self.0.borrow_mut()[start..start + data.len()].copy_from_slice(data);
    }
}

#[test]
fn an_access_must_lie_in_one_range() {
    let ram = FakeRam::new(0x4000);
    let allowed = [
        MemoryRange::new(0x1000, 0x2000),
        MemoryRange::new(0x3000, 0x4000),
    ];
    let memory = GuestMemory::new(&ram, &allowed);
    memory.write(0x1ff8, &[1; 8]).unwrap();
    assert_eq!(
        memory.read_as::<u64>(0x1ff8).unwrap(),
        0x0101_0101_0101_0101
    );
    for outside in [0xfff, 0x1ff9, 0x2000, 0x2fff, 0x3ff9, u64::MAX - 3, 1 << 63] {
        assert!(memory.read(outside, &mut [0; 8]).is_err(), "{outside:#x}");
    }
    assert_eq!(memory.check_page(1), Ok(0x1000));
    assert!(memory.check_page(2).is_err());
    assert!(memory.check_page(1 << 52).is_err());
    assert!(memory.check_page(u64::MAX).is_err());
}

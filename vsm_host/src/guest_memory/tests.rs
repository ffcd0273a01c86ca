//! Memory of a VTL in tests, and what cannot be reached.

use super::*;
use crate::nested::Access;
use hv_defs::hypercall::HvMapGpaFlags;
use page_table::{Attributes, LeafSize, Region};
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

    fn load_word(&self, address: u64) -> u32 {
        let mut word = [0; 4];
        self.read_ram(address, &mut word);
        u32::from_le_bytes(word)
    }

    fn store_word(&self, address: u64, value: u32) {
        self.write_ram(address, &value.to_le_bytes());
    }

    fn set_word_bits(&self, address: u64, bits: u32) -> u32 {
        let old = self.load_word(address);
        self.store_word(address, old | bits);
        old
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

#[test]
fn words_are_aligned() {
    let ram = FakeRam::new(0x2000);
    let allowed = [MemoryRange::new(0x1000, 0x2000)];
    let memory = GuestMemory::new(&ram, &allowed);
    memory.store_word(0x1ffc, 5).unwrap();
    assert_eq!(memory.set_word_bits(0x1ffc, 0x12), Ok(5));
    assert_eq!(memory.load_word(0x1ffc), Ok(0x17));
    for wrong in [0x1001, 0x1ffe, 0xffc, 0x2000, u64::MAX - 3] {
        assert!(memory.load_word(wrong).is_err(), "{wrong:#x}");
    }
}

#[test]
fn a_protected_page_is_not_accessed_for_its_vtl() {
    let ram = FakeRam::new(0x4000);
    let allowed = [MemoryRange::new(0, 0x4000)];
    let region = Region::new(0, 0x4000, Attributes::USER);
    let tables = NestedTables::new(&[region], LeafSize::Size4K, 0, |_| 0x10_0000).unwrap();
    let protect = |page, flags| {
        let access = Access::new(HvMapGpaFlags::from_bits(flags)).unwrap();
        tables.protect(page, access).unwrap();
    };
    protect(0x1000, 1);
    protect(0x2000, 0);
    let memory = GuestMemory::new(&ram, &allowed).protected_by(&tables);
    memory.write(0xff8, &[1; 8]).unwrap();
    memory.read(0xff8, &mut [0; 16]).unwrap();
    assert!(memory.write(0xff8, &[1; 9]).is_err());
    assert!(memory.check_writable(0x1000, 1).is_err());
    assert!(memory.read(0x1ff8, &mut [0; 9]).is_err());
    assert!(memory.load_word(0x2000).is_err());
    assert!(memory.set_word_bits(0x1000, 1).is_err());
    // It is the VTL's memory all the same.
    assert_eq!(memory.check_page(2), Ok(0x2000));
    memory.write(0x3000, &[1; 8]).unwrap();
}

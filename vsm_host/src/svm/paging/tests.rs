use super::*;
use crate::guest_memory::tests::FakeRam;
use igvm_loader::MemoryRange;
use proptest::prelude::*;
use x86_defs::svm::Vmcb;
use zerocopy::FromZeros;

const SIZE: u64 = 0x9000;
const RAM: [MemoryRange; 1] = [MemoryRange::new(0, SIZE)];

const LONG: (u64, u64) = (CR4_PAE, EFER_LMA | EFER_NXE);
const PAE: (u64, u64) = (CR4_PAE, 0);
const LEGACY: (u64, u64) = (CR4_PSE, 0);

const READ: Request = Request {
    read: true,
    privilege: Privilege::Supervisor { smap: false },
    ..Request::ANY
};
const BY_USER: Request = Request {
    privilege: Privilege::User,
    ..READ
};

struct Guest {
    ram: FakeRam,
    vmcb: Box<Vmcb>,
}

impl Guest {
    fn new((cr4, efer): (u64, u64)) -> Self {
        let mut vmcb = Box::new(Vmcb::new_zeroed());
        vmcb.save.cr0 = CR0_PG | CR0_WP;
        vmcb.save.cr3 = 0x1000;
        (vmcb.save.cr4, vmcb.save.efer) = (cr4, efer);
        Self {
            ram: FakeRam::new(SIZE as usize),
            vmcb,
        }
    }

    fn entry(&self, address: u64, value: u64) {
        self.ram.write_ram(address, &value.to_le_bytes());
    }

    fn entry32(&self, address: u64, value: u32) {
        self.ram.write_ram(address, &value.to_le_bytes());
    }

    fn walk(&self, linear: u64, request: &Request) -> Result<u64, Fault> {
        let memory = GuestMemory::new(&self.ram, &RAM);
        translate(&memory, &self.vmcb.save, linear, request)
    }

    /// Four levels that map a page at 0xffff_8000_0020_3000 to 0x5000, with `leaf`.
    fn long(leaf: u64) -> Self {
        let guest = Self::new(LONG);
        guest.entry(0x1000 + 256 * 8, 0x2007);
        guest.entry(0x2000, 0x3007);
        guest.entry(0x3000 + 8, 0x4007);
        guest.entry(0x4000 + 3 * 8, leaf);
        guest
    }
}

const LINEAR: u64 = 0xffff_8000_0020_3123;

#[test]
fn without_paging_addresses_are_physical() {
    let mut guest = Guest::new(LEGACY);
    guest.vmcb.save.cr0 = 0;
    assert_eq!(guest.walk(0x1_0000_1234, &READ), Ok(0x1234));
}

#[test]
fn two_levels_with_small_and_large_pages() {
    let mut guest = Guest::new(LEGACY);
    guest.entry32(0x1000 + 2 * 4, 0x2003);
    guest.entry32(0x2000 + 5 * 4, 0x7003);
    // 4 MiB at 0x1_0040_0000: bit 13 is bit 32 of the address.
    guest.entry32(0x1000 + 3 * 4, 0x0040_2083);
    assert_eq!(guest.walk(0x0080_5abc, &READ), Ok(0x7abc));
    assert_eq!(guest.walk(0xff_0000_0000 | 0x0080_5abc, &READ), Ok(0x7abc));
    assert_eq!(guest.walk(0x00c1_2345, &READ), Ok(0x1_0041_2345));
    guest.entry32(0x1000 + 3 * 4, 0x0060_2083);
    assert_eq!(guest.walk(0x00c1_2345, &READ), Err(Fault::Reserved));
    // Without PSE the bit does not count.
    guest.vmcb.save.cr4 = 0;
    guest.entry32(0x1000 + 3 * 4, 0x2083);
    assert_eq!(guest.walk(0x00c0_5000, &READ), Ok(0x7000));
    assert_eq!(guest.walk(0x0100_0000, &READ), Err(Fault::NotPresent));
}

#[test]
fn three_levels() {
    let mut guest = Guest::new(PAE);
    guest.vmcb.save.cr3 = 0x1020;
    guest.entry(0x1020 + 3 * 8, 0x2001);
    guest.entry(0x2000 + 8, 0x3003);
    guest.entry(0x2000 + 2 * 8, 0x4_0020_0083);
    guest.entry(0x3000 + 4 * 8, 0x6003);
    assert_eq!(guest.walk(0xc020_4567, &READ), Ok(0x6567));
    assert_eq!(guest.walk(0xc041_2345, &READ), Ok(0x4_0021_2345));
    // What is above the third level permits all.
    let write = Request {
        write: true,
        ..READ
    };
    assert_eq!(guest.walk(0xc020_4567, &write), Ok(0x6567));
    guest.entry(0x1020 + 3 * 8, 0x2003);
    assert_eq!(guest.walk(0xc020_4567, &READ), Err(Fault::Reserved));
    // No-execute is reserved without EFER.NXE.
    guest.entry(0x1020 + 3 * 8, 0x2001);
    guest.entry(0x3000 + 4 * 8, 0x6003 | NO_EXECUTE);
    assert_eq!(guest.walk(0xc020_4567, &READ), Err(Fault::Reserved));
}

#[test]
fn four_and_five_levels_and_large_pages() {
    let mut guest = Guest::long(0x5003);
    assert_eq!(guest.walk(LINEAR, &READ), Ok(0x5123));
    assert_eq!(guest.walk(1 << 47, &READ), Err(Fault::NotPresent));
    guest.entry(0x2000 + 8, 0xc000_0083);
    assert_eq!(guest.walk(0xffff_8000_4765_4321, &READ), Ok(0xc765_4321));
    guest.entry(0x3000 + 2 * 8, 0x1_0020_0083);
    assert_eq!(guest.walk(0xffff_8000_0041_2345, &READ), Ok(0x1_0021_2345));
    guest.entry(0x3000 + 2 * 8, 0x1_0020_2083);
    let reserved = guest.walk(0xffff_8000_0041_2345, &READ);
    assert_eq!(reserved, Err(Fault::Reserved));
    // Five levels: the same tables below another root.
    guest.vmcb.save.cr4 |= CR4_LA57;
    guest.vmcb.save.cr3 = 0x6000;
    guest.entry(0x6000 + 511 * 8, 0x1007);
    assert_eq!(guest.walk(LINEAR, &READ), Ok(0x5123));
    assert_eq!(guest.walk(1 << 56, &READ), Err(Fault::NotPresent));
    guest.entry(0x6000 + 511 * 8, 0x1087);
    assert_eq!(guest.walk(LINEAR, &READ), Err(Fault::Reserved));
}

#[test]
fn permissions_are_those_of_all_levels() {
    let write = Request {
        write: true,
        ..READ
    };
    let guest = Guest::long(0x5005);
    assert_eq!(guest.walk(LINEAR, &BY_USER), Ok(0x5123));
    assert_eq!(guest.walk(LINEAR, &write), Err(Fault::Privilege));
    let mut guest = Guest::long(0x5007);
    guest.entry(0x3008, 0x4003);
    assert_eq!(guest.walk(LINEAR, &BY_USER), Err(Fault::Privilege));
    assert_eq!(guest.walk(LINEAR, &write), Ok(0x5123));
    // A supervisor writes to what is read-only if CR0.WP is clear.
    guest.entry(0x3008, 0x4005);
    assert_eq!(guest.walk(LINEAR, &write), Err(Fault::Privilege));
    guest.vmcb.save.cr0 &= !CR0_WP;
    assert_eq!(guest.walk(LINEAR, &write), Ok(0x5123));
}

#[test]
fn code_and_pages_of_the_user() {
    let execute = Request {
        execute: true,
        read: false,
        ..READ
    };
    let mut guest = Guest::long(0x5007);
    assert_eq!(guest.walk(LINEAR, &execute), Ok(0x5123));
    guest.vmcb.save.cr4 |= CR4_SMEP | CR4_SMAP;
    assert_eq!(guest.walk(LINEAR, &execute), Err(Fault::Privilege));
    let exempt = Request {
        privilege: Privilege::Exempt,
        ..execute
    };
    assert_eq!(guest.walk(LINEAR, &exempt), Ok(0x5123));
    assert!(smap(&guest.vmcb.save, None));
    assert!(!smap(&guest.vmcb.save, Some(false)));
    guest.vmcb.save.rflags = RFLAGS_AC;
    assert!(!smap(&guest.vmcb.save, None));
    assert!(smap(&guest.vmcb.save, Some(true)));
    let held_back = Request {
        privilege: Privilege::Supervisor { smap: true },
        ..READ
    };
    assert_eq!(guest.walk(LINEAR, &held_back), Err(Fault::Privilege));
    assert_eq!(guest.walk(LINEAR, &READ), Ok(0x5123));
    guest.entry(0x3008, 0x4007 | NO_EXECUTE);
    assert_eq!(guest.walk(LINEAR, &exempt), Err(Fault::Privilege));
}

#[test]
fn bits_are_set_only_on_request() {
    let guest = Guest::long(0x5007);
    let write = Request {
        write: true,
        ..READ
    };
    let entry = |address| {
        let mut bytes = [0; 8];
        guest.ram.read_ram(address, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    guest.walk(LINEAR, &write).unwrap();
    assert_eq!(entry(0x4018), 0x5007);
    let marks = |request| Request {
        set_bits: true,
        ..request
    };
    guest.walk(LINEAR, &marks(READ)).unwrap();
    assert_eq!((entry(0x3008), entry(0x4018)), (0x4027, 0x5027));
    guest.walk(LINEAR, &marks(write)).unwrap();
    assert_eq!((entry(0x3008), entry(0x4018)), (0x4027, 0x5067));
}

#[test]
fn tables_must_be_memory() {
    let guest = Guest::long(0x5007);
    guest.entry(0x3008, SIZE | 7);
    assert_eq!(guest.walk(LINEAR, &READ), Err(Fault::Unmapped));
    // The page itself need not be.
    guest.entry(0x3008, 0x4007);
    guest.entry(0x4018, 0xfee0_0007);
    assert_eq!(guest.walk(LINEAR, &READ), Ok(0xfee0_0123));
}

proptest! {
    #[test]
    fn hostile_tables_and_registers_do_no_harm(
        entries in prop::collection::vec((0..SIZE / 8, any::<u64>()), 0..64),
        linear: u64, cr0: u64, cr3: u64, cr4: u64, efer: u64, rflags: u64,
        flags: [bool; 4], privilege in 0..4,
    ) {
        let mut guest = Guest::new(LONG);
        for (index, entry) in entries {
            guest.entry(index * 8, entry & 0xffe7);
        }
        let save = &mut guest.vmcb.save;
        (save.cr0, save.cr4, save.efer, save.rflags) = (cr0, cr4, efer, rflags);
        save.cr3 = cr3 & 0xffe7;
        let [read, write, execute, set_bits] = flags;
        let privilege = match privilege {
            0 => Privilege::Exempt,
            1 => Privilege::User,
            2 => Privilege::Supervisor { smap: true },
            _ => Privilege::Supervisor { smap: smap(&guest.vmcb.save, None) },
        };
        let request = Request { read, write, execute, privilege, set_bits };
        if let Ok(gpa) = guest.walk(linear, &request) {
            prop_assert_eq!(gpa & 0xfff, linear & 0xfff);
        }
    }
}

//! Pages that the host places into a VTL's memory at an address of the VTL's choice.

use crate::clock::ReferenceTime;
use crate::guest_memory::{GuestMemory, NotMapped, RamAccess};
use alloc::boxed::Box;
use hv_defs::hypercall::HypercallCode;
use hv_defs::msr::OverlayPage;
use hv_defs::vsm::VsmCodePageOffsets;

const PAGE: usize = 4096;

/// Where the VTL call is in the hypercall page, in bytes.
const VTL_CALL_OFFSET: u16 = 0x10;
/// Where the VTL return is.
const VTL_RETURN_OFFSET: u16 = 0x20;

/// What register `VSM_CODE_PAGE_OFFSETS` tells.
pub const CODE_PAGE_OFFSETS: VsmCodePageOffsets = VsmCodePageOffsets::new()
    .with_call(VTL_CALL_OFFSET)
    .with_ret(VTL_RETURN_OFFSET);

/// A page in the memory of a VTL whose content is the host's.
///
/// The TLFS lays it over the VTL's page. Here it is written into that page, and what was
/// there is kept and put back when the overlay goes: the same to all who do not write
/// into it.
#[derive(Default)]
pub struct Overlay {
    register: OverlayPage,
    covered: Option<Box<[u8; PAGE]>>,
}

impl Overlay {
    /// Value of the MSR.
    pub fn register(&self) -> OverlayPage {
        self.register
    }

    /// Moves the overlay to where `register` says, with `content`.
    pub fn set<R: RamAccess + ?Sized>(
        &mut self,
        register: OverlayPage,
        memory: &GuestMemory<'_, R>,
        content: &[u8; PAGE],
    ) -> Result<(), NotMapped> {
        let target = if register.enabled() {
            Some(memory.check_page(register.page_number())?)
        } else {
            None
        };
        if let Some(covered) = &self.covered {
            // It stays where it is if a higher VTL has protected the page meanwhile.
            memory.write(self.register.page_number() * PAGE as u64, &covered[..])?;
            self.covered = None;
            self.register.set_enabled(false);
        }
        if let Some(address) = target {
            let mut covered = Box::new([0; PAGE]);
            memory.read(address, &mut covered[..])?;
            memory.write(address, content)?;
            self.covered = Some(covered);
        }
        self.register = register;
        Ok(())
    }
}

/// The hypercall page: three entry points. RCX is the hypercall's control word; that of a
/// switch of VTLs moves to RAX.
pub fn hypercall_page() -> [u8; PAGE] {
    const VMMCALL_RET: [u8; 4] = [0x0f, 0x01, 0xd9, 0xc3];
    const MOV_RAX_RCX: [u8; 3] = [0x48, 0x89, 0xc8];
    // Unused bytes are INT3: a wrong jump is noticed.
    let mut page = [0xcc; PAGE];
    page[..4].copy_from_slice(&VMMCALL_RET);
    for (offset, code) in [
        (VTL_CALL_OFFSET, HypercallCode::VTL_CALL),
        (VTL_RETURN_OFFSET, HypercallCode::VTL_RETURN),
    ] {
        let at = usize::from(offset);
        page[at..at + 3].copy_from_slice(&MOV_RAX_RCX);
        page[at + 3] = 0xb9; // mov ecx, imm32
        page[at + 4..at + 8].copy_from_slice(&u32::from(code.0).to_le_bytes());
        page[at + 8..at + 12].copy_from_slice(&VMMCALL_RET);
    }
    page
}

/// The reference TSC page (TLFS "Partition Reference Time Enlightenment").
pub fn reference_tsc_page(time: &ReferenceTime) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[0] = 1; // sequence number; 0 would mean that the page is not valid
    page[8..16].copy_from_slice(&time.scale.to_le_bytes());
    page[16..24].copy_from_slice(&time.offset.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::tests::FakeRam;
    use crate::nested::{Access, NestedTables};
    use hv_defs::hypercall::HvMapGpaFlags;
    use igvm_loader::MemoryRange;
    use page_table::{Attributes, LeafSize, Region};

    #[test]
    fn what_an_overlay_covers_comes_back() {
        let ram = FakeRam::new(0x4000);
        ram.write_ram(0x1000, &[7; PAGE]);
        let allowed = [MemoryRange::new(0, 0x3000)];
        let memory = GuestMemory::new(&ram, &allowed);
        let mut overlay = Overlay::default();
        let at = |page| OverlayPage::new().with_enabled(true).with_page_number(page);
        overlay.set(at(1), &memory, &[9; PAGE]).unwrap();
        assert_eq!(
            memory.read_as::<u64>(0x1000).unwrap(),
            0x0909_0909_0909_0909
        );
        assert!(overlay.set(at(3), &memory, &[9; PAGE]).is_err());
        assert_eq!(overlay.register().page_number(), 1);
        overlay.set(at(2), &memory, &[9; PAGE]).unwrap();
        assert_eq!(
            memory.read_as::<u64>(0x1000).unwrap(),
            0x0707_0707_0707_0707
        );
        overlay
            .set(OverlayPage::new().with_page_number(2), &memory, &[9; PAGE])
            .unwrap();
        assert_eq!(memory.read_as::<u64>(0x2000).unwrap(), 0);
    }

    #[test]
    fn an_overlay_on_a_protected_page_stays_and_goes_later() {
        let ram = FakeRam::new(0x2000);
        let allowed = [MemoryRange::new(0, 0x2000)];
        let region = Region::new(0, 0x2000, Attributes::USER);
        let tables = NestedTables::new(&[region], LeafSize::Size4K, 0, |_| 0x10_0000).unwrap();
        let protect = |flags| {
            let access = Access::new(HvMapGpaFlags::from_bits(flags)).unwrap();
            tables.protect(0x1000, access).unwrap();
        };
        let memory = GuestMemory::new(&ram, &allowed).protected_by(&tables);
        let mut overlay = Overlay::default();
        let on = OverlayPage::new().with_enabled(true).with_page_number(1);
        overlay.set(on, &memory, &[9; PAGE]).unwrap();
        protect(1);
        let off = on.with_enabled(false);
        assert!(overlay.set(off, &memory, &[9; PAGE]).is_err());
        assert!(overlay.register().enabled());
        protect(u32::from(HvMapGpaFlags::ALL));
        overlay.set(off, &memory, &[9; PAGE]).unwrap();
        assert_eq!(memory.read_as::<u64>(0x1000).unwrap(), 0);
    }

    #[test]
    fn entry_points_are_where_the_register_says() {
        let page = hypercall_page();
        assert_eq!(page[..4], [0x0f, 0x01, 0xd9, 0xc3]);
        assert_eq!(
            page[usize::from(CODE_PAGE_OFFSETS.ret())..][..12],
            [
                0x48, 0x89, 0xc8, 0xb9, 0x12, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3
            ]
        );
    }
}

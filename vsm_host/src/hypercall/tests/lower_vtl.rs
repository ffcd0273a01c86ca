//! What VTL2 does to the guest in VTL0: its registers and its memory.

use super::*;
use hv_defs::register_page::HvX64RegisterPage;
use zerocopy::FromZeros;

/// Writes a register of the guest.
pub(super) fn set_lower(
    guest: &mut Guest,
    vp: u32,
    name: HvRegisterName,
    value: [u64; 2],
) -> HvStatus {
    let mut input = registers_header(vtl(0), vp);
    let pad = [0; 3];
    let name = name.0;
    input.extend(HvRegisterAssoc { name, pad, value }.as_bytes());
    guest
        .call(
            control(HypercallCode::SET_VP_REGISTERS).with_rep_count(1),
            &input,
        )
        .0
}

#[test]
fn the_guest_begins_as_after_a_reset() {
    let mut guest = Guest::new();
    use HvRegisterName as Name;
    let names = [Name::RIP, Name::CS, Name::EFER, Name::CR0, Name::DR7];
    assert_eq!(guest.get(vtl(0), &names), (HvStatus::SUCCESS, 5));
    let output: [u8; 80] = guest.output();
    let words: Vec<u64> = output
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words[0], 0xfff0);
    assert_eq!(words[2..4], [0xffff_0000, 0x009b_f000_0000_ffff]);
    // The host's bit is not shown.
    assert_eq!((words[4], words[6], words[8]), (0, 0x6000_0010, 0x400));
}

#[test]
fn registers_of_the_guest_keep_what_is_written() {
    use HvRegisterName as Name;
    let mut guest = Guest::new();
    let own = guest.vp.vmcb().save.rip;
    for (name, value) in [
        (Name::RIP, [0xffff_8000_0000_1234, 0]),
        (Name::RSP, [0x7000, 0]),
        (Name::RFLAGS, [0x246, 0]),
        (Name::CR0, [0x8005_0033, 0]),
        (Name::CR2, [0x1234_5678, 0]),
        (Name::CR3, [0x5000, 0]),
        (Name::CR4, [0x6f0, 0]),
        (Name::CR8, [0xf, 0]),
        (Name::DR6, [0xffff_0ff0, 0]),
        (Name::DR7, [0x401, 0]),
        (Name::EFER, [0xd01, 0]),
        (Name::PAT, [0x0407_0506_0007_0106, 0]),
        (Name::STAR, [0x0023_0010_0000_0000, 0]),
        (Name::LSTAR, [0xffff_ffff_8000_0000, 0]),
        (Name::SFMASK, [0x4_7700, 0]),
        (Name::KERNEL_GS_BASE, [0x1000, 0]),
        (Name::SYSENTER_CS, [0x10, 0]),
        (Name::CS, [0, 0xa09b_0010_ffff_ffff]),
        (Name::GS, [0xffff_8880_0000_0000, 0xc093_0000_ffff_ffff]),
        (Name::TR, [0xffff_fe00_0000_3000, 0x008b_0040_0000_4087]),
        (Name::GDTR, [0x007f_0000_0000_0000, 0xffff_fe00_0000_1000]),
    ] {
        let status = set_lower(&mut guest, HV_VP_INDEX_SELF, name, value);
        assert_eq!(status, HvStatus::SUCCESS, "{name:?}");
        assert_eq!(guest.get(vtl(0), &[name]), (HvStatus::SUCCESS, 1));
        assert_eq!(
            guest.output::<16>().as_slice(),
            value.as_bytes(),
            "{name:?}"
        );
    }
    // The caller's own state is another, and the host's bit is set in the block.
    assert_eq!(guest.vp.vmcb().save.rip, own);
    let save = &guest.vp.vtls[0].vmcb.save;
    assert_eq!(save.efer, 0xd01 | x86_defs::EFER_SVME);
}

#[test]
fn the_stack_segment_has_the_privilege_level() {
    // As behind a SYSRET: level 3, and the descriptor still says 0.
    let mut guest = Guest::new();
    let save = &mut guest.vp.vtls[0].vmcb.save;
    (save.cpl, save.ss.attributes) = (3, 0xc93);
    let ss = HvRegisterName::SS;
    assert_eq!(guest.get(vtl(0), &[ss]), (HvStatus::SUCCESS, 1));
    let [low, high]: [u64; 2] = zerocopy::transmute!(guest.output::<16>());
    assert_eq!(high >> 48, 0xc0f3);
    // VTL2 writes back what it has read.
    let written = lower_vtl::set_lower(&mut guest, 0, ss, [low, high]);
    assert_eq!(written, HvStatus::SUCCESS);
    assert_eq!(guest.vp.vtls[0].vmcb.save.cpl, 3);
}

#[test]
fn registers_that_translate_make_the_guest_forget_its_translations() {
    use HvRegisterName as Name;
    let mut guest = Guest::new();
    for (name, forgets) in [
        (Name::CR0, true),
        (Name::CR3, true),
        (Name::CR4, true),
        (Name::EFER, true),
        (Name::RIP, false),
    ] {
        guest.vp.vtls[0].vmcb.control.tlb_control = 0;
        let status = set_lower(&mut guest, HV_VP_INDEX_SELF, name, [0, 0]);
        assert_eq!(status, HvStatus::SUCCESS, "{name:?}");
        let control = &guest.vp.vtls[0].vmcb.control;
        assert_eq!(control.tlb_control != 0, forgets, "{name:?}");
    }
}

#[test]
fn bad_values_for_the_guest_are_refused_and_change_nothing() {
    use HvRegisterName as Name;
    let mut guest = Guest::new();
    for (name, value) in [
        (Name::EFER, [1 << 12, 0]),
        (Name::EFER, [1 << 63, 0]),
        (Name::CR0, [1 << 31, 0]),
        (Name::CR0, [1 << 29, 0]),
        (Name::CR0, [1 << 32, 0]),
        (Name::CR3, [1 << 52, 0]),
        (Name::CR4, [1 << 40, 0]),
        (Name::CR8, [0x10, 0]),
        (Name::DR6, [1 << 32, 0]),
        (Name::DR7, [1 << 32, 0]),
        (Name::RIP, [1 << 60, 0]),
        (Name::RIP, [0, 1]),
        (Name::RFLAGS, [1 << 17, 0]),
        (Name::PAT, [2, 0]),
        (Name::LSTAR, [1 << 60, 0]),
        (Name::SFMASK, [1 << 32, 0]),
        // Reserved attributes, 64-bit code with a 32-bit default, bases that do not fit.
        (Name::CS, [0, 0x0f9b_0010_ffff_ffff]),
        (Name::CS, [0, 0xe09b_0010_ffff_ffff]),
        (Name::SS, [1 << 32, 0xc093_0018_ffff_ffff]),
        (Name::GS, [1 << 60, 0xc093_0018_ffff_ffff]),
        (Name::GDTR, [1, 0]),
        (Name::IDTR, [0, 1 << 60]),
    ] {
        guest.get(vtl(0), &[name]);
        let before: [u8; 16] = guest.output();
        let status = set_lower(&mut guest, HV_VP_INDEX_SELF, name, value);
        assert_eq!(
            status,
            HvStatus::INVALID_REGISTER_VALUE,
            "{name:?} {value:x?}"
        );
        guest.get(vtl(0), &[name]);
        assert_eq!(guest.output::<16>(), before, "{name:?}");
    }
}

#[test]
fn registers_of_the_guest_belong_to_the_vps_own_processor() {
    use HvRegisterName as Name;
    let mut guest = Guest::new();
    let status = set_lower(&mut guest, 1, Name::RIP, [0; 2]);
    assert_eq!(status, HvStatus::INVALID_VP_STATE);
    // Shared or of the partition: nothing that is written for the guest.
    for name in [Name::RAX, Name::VSM_PARTITION_CONFIG, Name::GUEST_CRASH_CTL] {
        let status = set_lower(&mut guest, 0, name, [0; 2]);
        assert_eq!(status, HvStatus::INVALID_PARAMETER, "{name:?}");
    }
    // The caller's own are in its processor.
    let own = guest.get(HvInputVtl::new(), &[Name::RIP]);
    assert_eq!(own.0, HvStatus::INVALID_PARAMETER);
}

proptest! {
    #[test]
    fn no_value_for_the_guest_reaches_the_host(
        name in prop_oneof![any::<u32>(), 0x2_0000u32..0x2_0012, 0x4_0000u32..0x4_0005,
            0x5_0000u32..0x5_0006, 0x6_0000u32..0x6_0008, 0x7_0000u32..0x7_0002, 0x8_0000u32..0x8_000d],
        value: [u64; 2],
    ) {
        let mut guest = Guest::new();
        let name = HvRegisterName(name);
        if set_lower(&mut guest, HV_VP_INDEX_SELF, name, value) == HvStatus::SUCCESS {
            prop_assert_eq!(guest.get(vtl(0), &[name]), (HvStatus::SUCCESS, 1));
        }
        let save = &guest.vp.vtls[0].vmcb.save;
        prop_assert_ne!(save.efer & x86_defs::EFER_SVME, 0);
        prop_assert_eq!((save.dr6 | save.dr7) >> 32, 0);
    }
}

/// Restricts the guest's use of pages; status and pages done.
fn protect(guest: &mut Guest, flags: u32, target: HvInputVtl, pages: &[u64]) -> (HvStatus, u16) {
    let mut input = ModifyVtlProtectionMask {
        partition_id: HV_PARTITION_ID_SELF,
        map_flags: flags.into(),
        target_vtl: target,
        rsvd: [0; 3],
    }
    .as_bytes()
    .to_vec();
    for page in pages {
        input.extend(page.to_le_bytes());
    }
    let code = HypercallCode::MODIFY_VTL_PROTECTION_MASK;
    guest.call(control(code).with_rep_count(pages.len() as u16), &input)
}

#[test]
fn the_guests_memory_is_protected_page_by_page() {
    let mut guest = Guest::new();
    let (own, lower) = (VTL2_END / 4096 - 1, GUEST_RAM.start() / 4096);
    let call = |guest: &mut Guest, flags, pages: &[u64]| protect(guest, flags, vtl(0), pages);
    assert_eq!(
        call(&mut guest, 1, &[lower]),
        (HvStatus::INVALID_PARTITION_STATE, 0)
    );
    guest.set(HvRegisterName::VSM_PARTITION_CONFIG, 0x163f);
    assert_eq!(
        call(&mut guest, 1, &[lower, lower + 1]),
        (HvStatus::SUCCESS, 2)
    );
    // Nobody gives the guest what is not its own; taking it away changes nothing.
    assert_eq!(call(&mut guest, 0, &[lower, own]), (HvStatus::SUCCESS, 2));
    for flags in [1, 0xf] {
        assert_eq!(
            call(&mut guest, flags, &[lower, own]),
            (HvStatus::ACCESS_DENIED, 1)
        );
    }
    for nowhere in [GUEST_RAM.end() / 4096, 0xfee00, 1 << 52, u64::MAX] {
        assert_eq!(
            call(&mut guest, 0, &[lower, nowhere]),
            (HvStatus::INVALID_PARAMETER, 1),
            "{nowhere:#x}"
        );
    }
    for flags in [2, 5, 0x10, 1 << 31] {
        assert_eq!(
            call(&mut guest, flags, &[lower]),
            (HvStatus::INVALID_PARAMETER, 0),
            "{flags:#x}"
        );
    }
    for target in [HvInputVtl::new(), vtl(2), vtl(1)] {
        assert_eq!(
            protect(&mut guest, 0, target, &[lower]).0,
            HvStatus::INVALID_PARAMETER
        );
    }
}

#[test]
fn protections_have_a_bound() {
    let mut guest = Guest::new();
    guest.set(HvRegisterName::VSM_PARTITION_CONFIG, 0x163f);
    let first = GUEST_RAM.start() / 4096;
    let mut done = 0;
    // One page of every 2 MiB, each of which takes a table.
    let refusal = loop {
        let pages: Vec<u64> = (done..done + 100).map(|n| first + n * 512).collect();
        let (status, count) = protect(&mut guest, 1, vtl(0), &pages);
        done += u64::from(count);
        if count < 100 {
            break status;
        }
    };
    assert_eq!(refusal, HvStatus::INSUFFICIENT_MEMORY);
    assert!((500..=512).contains(&done), "{done}");
    // What is refined already can still be changed, and given back.
    assert_eq!(
        protect(&mut guest, 0xf, vtl(0), &[first]).0,
        HvStatus::SUCCESS
    );
    let next = first + done * 512;
    assert_eq!(protect(&mut guest, 0, vtl(0), &[next]).0, HvStatus::SUCCESS);
}

#[test]
fn what_is_changed_in_the_register_page_counts_when_the_page_is_taken_back() {
    const PAGE: u64 = 0x5000;
    let mut guest = Guest::new();
    let set_page = |guest: &mut Guest, value| guest.set(HvRegisterName::REG_PAGE, value);
    assert_eq!(set_page(&mut guest, PAGE | 1), HvStatus::SUCCESS);
    let mut page = HvX64RegisterPage::new_zeroed();
    page.is_valid = 1;
    page.dirty = page.dirty.with_instruction_pointer(true).with_flags(true);
    (page.rip, page.rflags) = (0x1234, 0x246);
    guest.processor.ram.write_ram(PAGE, page.as_bytes());
    // Also if another INIT has come: then it is from before.
    guest.vp.guest.page_is_outdated = true;
    assert_eq!(set_page(&mut guest, PAGE | 1), HvStatus::SUCCESS);
    assert_eq!(guest.vp.vtls[0].vmcb.save.rip, 0xfff0);

    assert_eq!(set_page(&mut guest, 0), HvStatus::SUCCESS);
    let save = &guest.vp.vtls[0].vmcb.save;
    assert_eq!((save.rip, save.rflags), (0x1234, 0x246));
}

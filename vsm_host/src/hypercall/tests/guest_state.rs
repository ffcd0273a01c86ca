//! What the host keeps for the guest, as VTL2 reads and writes it.

use super::lower_vtl::set_lower;
use super::*;
use HvRegisterName as Name;
use hv_defs::msr::OverlayPage;
use hv_defs::registers::PendingInterruption;

const SUCCESS: HvStatus = HvStatus::SUCCESS;
const BAD_VALUE: HvStatus = HvStatus::INVALID_REGISTER_VALUE;
const XAPIC: u64 = 0xfee0_0900;
const X2APIC: u64 = 0xfee0_0d00;

fn set(guest: &mut Guest, name: Name, value: u64) -> HvStatus {
    set_lower(guest, HV_VP_INDEX_SELF, name, [value, 0])
}

fn get(guest: &mut Guest, name: Name) -> u64 {
    assert_eq!(guest.get(vtl(0), &[name]), (SUCCESS, 1), "{name:?}");
    u64::from_le_bytes(guest.output::<16>()[..8].try_into().unwrap())
}

fn read_back(guest: &mut Guest, name: Name, value: u64) {
    assert_eq!(set(guest, name, value), SUCCESS, "{name:?} {value:#x}");
    assert_eq!(get(guest, name), value, "{name:?}");
}

#[test]
fn the_apic_goes_from_any_mode_to_any_other() {
    let mut guest = Guest::new();
    assert_eq!(get(&mut guest, Name::APIC_BASE), XAPIC);
    for base in [X2APIC, XAPIC, 0xfee0_0100, X2APIC, X2APIC] {
        read_back(&mut guest, Name::APIC_BASE, base);
    }
    for bad in [0xfee0_0500, 0xfed0_0900, X2APIC | 1, X2APIC | 1 << 9] {
        assert_eq!(set(&mut guest, Name::APIC_BASE, bad), BAD_VALUE, "{bad:#x}");
    }
}

#[test]
fn memory_types_are_those_of_all_vtls() {
    let mut guest = Guest::new();
    read_back(&mut guest, Name::MTRR_DEF_TYPE, 0x806);
    assert_eq!(set(&mut guest, Name::MTRR_DEF_TYPE, 1 << 12), BAD_VALUE);
    assert_eq!(get(&mut guest, Name::MTRR_DEF_TYPE), 0x806);
}

#[test]
fn a_vp_waits_for_its_start_or_halts() {
    let mut guest = Guest::new();
    for state in [1, 2, 0] {
        read_back(&mut guest, Name::INTERNAL_ACTIVITY_STATE, state);
        assert_eq!(guest.vp.lapic.waits_for_startup(), state == 1);
        assert_eq!(guest.vp.lapic.halted(), state == 2);
    }
    for bad in [4, 8] {
        assert_eq!(
            set(&mut guest, Name::INTERNAL_ACTIVITY_STATE, bad),
            BAD_VALUE
        );
    }
}

#[test]
fn interruptions_are_injected() {
    let mut guest = Guest::new();
    let event = |kind, vector| {
        PendingInterruption::new()
            .with_pending(true)
            .with_kind(kind)
            .with_vector(vector)
    };
    let page_fault = event(3, 14)
        .with_deliver_error_code(true)
        .with_error_code(7);
    for good in [
        event(0, 0x20),
        event(2, 2),
        event(3, 6),
        page_fault,
        event(4, 0x80),
    ] {
        read_back(&mut guest, Name::PENDING_INTERRUPTION, good.into());
    }
    let injected = guest.vp.vtls[0].vmcb.control.event_injection;
    assert_eq!((injected.kind(), injected.vector()), (4, 0x80));
    for bad in [
        event(1, 0x20),
        event(2, 3),
        event(3, 32),
        event(3, 2),
        event(0, 0x100),
        event(0, 0x20).with_deliver_error_code(true),
        event(0, 0x20).with_nested(true),
        (u64::from(event(0, 0x20)) | 1 << 10).into(),
    ] {
        let status = set(&mut guest, Name::PENDING_INTERRUPTION, bad.into());
        assert_eq!(status, BAD_VALUE, "{bad:?}");
    }
    read_back(&mut guest, Name::PENDING_INTERRUPTION, 0);
    // An NMI that VTL2 has injected is being handled.
    assert_eq!(get(&mut guest, Name::INTERRUPT_STATE), 2);
    for state in [0, 1, 3, 0] {
        read_back(&mut guest, Name::INTERRUPT_STATE, state);
    }
    assert_eq!(set(&mut guest, Name::INTERRUPT_STATE, 4), BAD_VALUE);
}

#[test]
fn events_become_interruptions_and_requests() {
    let mut guest = Guest::new();
    let set_event = |guest: &mut Guest, low, high| {
        set_lower(guest, HV_VP_INDEX_SELF, Name::PENDING_EVENT0, [low, high])
    };
    // Page fault with error code 2 at an address.
    let fault = 1 | 1 << 8 | 14 << 16 | 2 << 32;
    assert_eq!(set_event(&mut guest, fault, 0x1234_5678), SUCCESS);
    let injected = guest.vp.vtls[0].vmcb.control.event_injection;
    assert_eq!(
        (injected.kind(), injected.vector(), injected.error_code()),
        (3, 14, 2)
    );
    assert_eq!(guest.vp.vmcb().save.cr2, 0x1234_5678);
    // Interrupt of an 8259.
    assert_eq!(set_event(&mut guest, 1 | 5 << 1 | 0x30 << 8, 0), SUCCESS);
    assert_eq!(set_event(&mut guest, 1 | 5 << 1 | 0x30 << 8, 1), BAD_VALUE);
    assert_eq!(set_event(&mut guest, 1 | 3 << 1, 0), BAD_VALUE);
    assert_eq!(set_event(&mut guest, 0, 0), SUCCESS);
    assert_eq!(get(&mut guest, Name::PENDING_EVENT0), 0);
}

#[test]
fn the_synic_is_set_by_registers() {
    let mut guest = Guest::new();
    let page = OverlayPage::new()
        .with_enabled(true)
        .with_page_number(GUEST_RAM.start() >> 12);
    for (name, value) in [
        (Name::SCONTROL, 1),
        (Name::SIMP, page.into()),
        (Name::SIEFP, (u64::from(page) + 0x1000)),
        (Name(Name::SINT0.0 + 3), 0x53),
        (Name::STIMER0_CONFIG, 1 << 3 | 3 << 16),
        (Name(Name::STIMER0_CONFIG.0 + 1), 0),
    ] {
        read_back(&mut guest, name, value);
    }
    assert_eq!(get(&mut guest, Name::SVERSION), 1);
    assert_eq!(set(&mut guest, Name::SVERSION, 1), BAD_VALUE);
    // Somebody waits for sources; interrupts wait in the APIC.
    read_back(&mut guest, Name::DELIVERABILITY_NOTIFICATIONS, 5 << 48);
    for bad in [1, 2, 1 << 6] {
        let status = set(&mut guest, Name::DELIVERABILITY_NOTIFICATIONS, bad);
        assert_eq!(status, BAD_VALUE);
    }
}

#[test]
fn pages_of_the_host_come_and_go_as_vtl2_says() {
    let mut guest = Guest::new();
    let at = GUEST_RAM.start() + 0x3000;
    guest.processor.write_ram(at, &[7; 16]);
    let bytes = |guest: &Guest| {
        let mut bytes = [0; 4];
        guest.processor.read_ram(at, &mut bytes);
        bytes
    };
    read_back(&mut guest, Name::GUEST_OS_ID, 0x8100);
    let locked = OverlayPage::new()
        .with_enabled(true)
        .with_locked(true)
        .with_page_number(at >> 12);
    read_back(&mut guest, Name::HYPERCALL, locked.into());
    assert_eq!(bytes(&guest), [0x0f, 0x01, 0xd9, 0xc3]);
    // For a reset, whatever is protected meanwhile.
    let tables = guest.partition.nested_tables(Vtl::GUEST);
    tables.protect(at, Access::NONE).unwrap();
    read_back(&mut guest, Name::HYPERCALL, 0);
    assert_eq!(bytes(&guest), [7; 4]);
    read_back(&mut guest, Name::GUEST_OS_ID, 0);
    // Not without an identity.
    assert_eq!(set(&mut guest, Name::HYPERCALL, locked.into()), SUCCESS);
    assert_eq!(get(&mut guest, Name::HYPERCALL) & 1, 0);
    let clock = locked.with_locked(false);
    read_back(&mut guest, Name::REFERENCE_TSC, clock.into());
    assert_eq!(bytes(&guest), [1, 0, 0, 0]);
    read_back(&mut guest, Name::REFERENCE_TSC, 0);
    read_back(&mut guest, Name::VP_ASSIST_PAGE, clock.into());
    // Memory of VTL2 is not the guest's.
    for name in [Name::REFERENCE_TSC, Name::VP_ASSIST_PAGE] {
        assert_eq!(set(&mut guest, name, 0x3001), BAD_VALUE, "{name:?}");
    }
}

#[test]
fn extended_state_is_reset() {
    let mut guest = Guest::new();
    guest.processor.set_xcr0(7);
    assert_eq!(get(&mut guest, Name::XFEM), 7);
    read_back(&mut guest, Name::XFEM, 1);
    assert_eq!(set(&mut guest, Name::XFEM, 0), BAD_VALUE);
    assert_eq!(set(&mut guest, Name::XFEM, 2), BAD_VALUE);
}

#[test]
fn the_state_of_another_vp_is_in_other_hands() {
    let mut guest = Guest::new();
    for name in [Name::APIC_BASE, Name::SCONTROL, Name::PENDING_INTERRUPTION] {
        let status = set_lower(&mut guest, 1, name, [0, 0]);
        assert_eq!(status, HvStatus::INVALID_VP_STATE, "{name:?}");
        let high = set_lower(&mut guest, HV_VP_INDEX_SELF, name, [0, 1]);
        assert_eq!(high, BAD_VALUE, "{name:?}");
    }
}

proptest! {
    #[test]
    fn hostile_writes_to_the_guests_state_do_no_harm(
        writes in prop::collection::vec((
            prop::sample::select(vec![
                Name::APIC_BASE, Name::XFEM, Name::INTERNAL_ACTIVITY_STATE,
                Name::PENDING_INTERRUPTION, Name::INTERRUPT_STATE, Name::PENDING_EVENT0,
                Name::DELIVERABILITY_NOTIFICATIONS, Name::GUEST_OS_ID, Name::HYPERCALL,
                Name::REFERENCE_TSC, Name::VP_ASSIST_PAGE, Name::SIMP, Name::SCONTROL,
                Name::STIMER0_CONFIG, Name::STIMER3_COUNT,
            ]),
            prop_oneof![any::<u64>(), 0..0x1_0000u64, (0..32u64).prop_map(|page| (GUEST_RAM.start() + page * 0x1000) | 1)],
            prop_oneof![Just(0), any::<u64>()],
        ), 0..16),
    ) {
        let mut guest = Guest::new();
        for (name, low, high) in writes {
            // What the machine does not hold it cannot fill.
            let held = GUEST_RAM.start()..GUEST_RAM.start() + 0x2_0000;
            let page = low & !0xfff;
            let low = if GUEST_RAM.contains(page) && !held.contains(&page) { 0 } else { low };
            let _ = set_lower(&mut guest, HV_VP_INDEX_SELF, name, [low, high]);
            let _ = guest.get(vtl(0), &[name]);
        }
        guest.vp.vtl = Vtl::GUEST;
        let _ = guest.partition.prepare(&mut guest.vp, &guest.processor);
    }
}

/// DR7 with a breakpoint on.
const ARMED: u64 = 0x401;

#[test]
fn debug_addresses_are_those_of_both_vtls() {
    let mut guest = Guest::new();
    let addresses = |guest: &Guest| guest.processor.debug_addresses.get();
    guest.processor.debug_addresses.set([1, 2, 3, 4]);
    let names = [0, 1, 2, 3].map(|number| Name(Name::DR0.0 + number));
    assert_eq!(names.map(|name| get(&mut guest, name)), [1, 2, 3, 4]);
    assert_eq!(guest.get(HvInputVtl::new(), &[names[2]]).0, SUCCESS);
    assert_eq!(guest.output::<16>()[0], 3);
    read_back(&mut guest, Name::DR0, 0xffff_8000_0000_1234);
    assert_eq!(guest.set(Name::DR3, 9), SUCCESS);
    assert_eq!(addresses(&guest), [0xffff_8000_0000_1234, 2, 3, 9]);
    // DR6 and DR7 are behind them.
    assert_eq!(guest.set(Name::DR7, ARMED), HvStatus::INVALID_PARAMETER);
}

#[test]
fn debug_addresses_of_a_vtl_with_breakpoints_are_its_own() {
    let mut guest = Guest::new();
    let addresses = |guest: &Guest| guest.processor.debug_addresses.get();
    // VTL2 has one: the guest's wait for the next entry.
    guest.vp.vtls[2].vmcb.save.dr7 = ARMED;
    guest.processor.debug_addresses.set([7; 4]);
    read_back(&mut guest, Name::DR3, 0x1000);
    assert_eq!(addresses(&guest), [7; 4]);
    assert_eq!(get(&mut guest, Name::DR0), 7);
    assert_eq!(guest.set(Name::DR3, 8), SUCCESS);
    assert_eq!(addresses(&guest), [7, 7, 7, 8]);
    assert_eq!(get(&mut guest, Name::DR3), 0x1000);
}

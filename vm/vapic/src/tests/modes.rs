//! IA32_APIC_BASE, x2APIC mode and the hypervisor's MSRs.

use super::*;

const BASE: u32 = 0x1b;
const DISABLED: u64 = 0xfee0_0000;
const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;

#[test]
fn transitions_between_modes() {
    // Figure 11-27.
    let permitted = |from: u64, to: u64| {
        let mut apic = fresh();
        for step in [XAPIC, from] {
            apic.write_msr(BASE, step, 0).unwrap();
        }
        let result = apic.write_msr(BASE, to, 0);
        let now = apic.read_msr(BASE, 0).unwrap();
        assert_eq!(now, if result.is_ok() { to } else { from } | 0x100);
        result.is_ok()
    };
    for (from, to, expected) in [
        (DISABLED, DISABLED, true),
        (DISABLED, XAPIC, true),
        (DISABLED, X2APIC, false),
        (XAPIC, DISABLED, true),
        (XAPIC, XAPIC, true),
        (XAPIC, X2APIC, true),
        (X2APIC, DISABLED, true),
        (X2APIC, XAPIC, false),
        (X2APIC, X2APIC, true),
        (XAPIC, DISABLED | 0x400, false),
        (X2APIC, DISABLED | 0x400, false),
        (XAPIC, XAPIC + 0x1000, false),
        (XAPIC, XAPIC | 1, false),
        (XAPIC, XAPIC | 1 << 52, false),
    ] {
        assert_eq!(permitted(from, to), expected, "{from:#x} to {to:#x}");
    }
}

#[test]
fn without_x2apic_its_bit_is_reserved() {
    let mut apic = LocalApic::new(Config {
        x2apic: false,
        ..config(0)
    });
    let error = apic.write_msr(BASE, X2APIC, 0).unwrap_err();
    assert_eq!((error.msr, error.written), (BASE, Some(X2APIC)));
    assert!(apic.read_msr(0x802, 0).is_err());
}

#[test]
fn switching_off_forgets_and_x2apic_mode_keeps() {
    let mut apic = xapic();
    apic.request(0x40, false);
    write(&mut apic, ApicRegister::TPR, 0x20);
    write(&mut apic, ApicRegister::LDR, 0xff00_0000);
    apic.write_msr(BASE, X2APIC, 0).unwrap();
    assert_eq!(apic.read_msr(0x808, 0), Ok(0x20));
    assert_eq!(apic.read_msr(0x822, 0), Ok(1));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(1));
    apic.write_msr(BASE, DISABLED, 0).unwrap();
    assert_eq!(apic.mmio_base(), None);
    assert!(!apic.address().enabled());
    apic.write_msr(BASE, XAPIC, 0).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xfee0_0000));
    assert_eq!(read(&mut apic, ApicRegister::TPR), 0);
    assert_eq!(read(&mut apic, ApicRegister::SVR), 0xff);
    assert_eq!(apic.startup(), Startup::Running);
    assert_eq!(injected(&mut apic), None);
}

#[test]
fn only_one_interface_exists_at_a_time() {
    let mut apic = xapic();
    assert!(apic.read_msr(0x802, 0).is_err());
    assert!(apic.write_msr(0x80b, 0, 0).is_err());
    let mut apic = x2apic();
    assert_eq!(apic.read_mmio(0x30, 4, 0), 0);
    assert_eq!(apic.write_mmio(0x80, 4, 0x50, 0), Effect::None);
    assert_eq!(apic.read_msr(0x808, 0), Ok(0));
}

#[test]
fn x2apic_ids() {
    // 11.12.10.2.
    for (id, logical) in [(0, 1), (5, 0x20), (0x1f, 0x1_8000), (0x123, 0x12_0008)] {
        let mut apic = LocalApic::new(config(id));
        apic.write_msr(BASE, X2APIC, 0).unwrap();
        assert_eq!(apic.read_msr(0x802, 0), Ok(id.into()));
        assert_eq!(apic.read_msr(0x80d, 0), Ok(logical));
    }
}

/// Table 11-6: number, bits that can be written (None: read only), can be read.
const X2APIC_REGISTERS: [(u32, Option<u64>, bool); 21] = [
    (0x802, None, true),
    (0x803, None, true),
    (0x808, Some(0xff), true),
    (0x80a, None, true),
    (0x80b, Some(0), false),
    (0x80d, None, true),
    (0x80f, Some(0x3ff), true),
    (0x810, None, true),
    (0x817, None, true),
    (0x818, None, true),
    (0x827, None, true),
    (0x828, Some(0), true),
    (0x830, Some(0xffff_ffff_000c_dfff), true),
    (0x832, Some(0x7_50ff), true),
    (0x833, Some(0x1_57ff), true),
    (0x835, Some(0x1_f7ff), true),
    (0x837, Some(0x1_50ff), true),
    (0x838, Some(0xffff_ffff), true),
    (0x839, None, true),
    (0x83e, Some(0xb), true),
    (0x83f, Some(0xff), false),
];

#[test]
fn x2apic_registers_fault_on_reserved_bits_and_wrong_directions() {
    for (msr, writable, readable) in X2APIC_REGISTERS {
        let mut apic = x2apic();
        assert_eq!(apic.read_msr(msr, 0).is_ok(), readable, "{msr:#x}");
        for bit in 0..64 {
            let expected = writable.is_some_and(|mask| mask & 1 << bit != 0);
            let written = apic.write_msr(msr, 1 << bit, 0);
            assert_eq!(written.is_ok(), expected, "{msr:#x} bit {bit}");
        }
        assert_eq!(apic.write_msr(msr, 0, 0).is_ok(), writable.is_some());
    }
}

#[test]
fn what_x2apic_mode_does_not_have_faults() {
    for msr in [
        0x800, 0x801, 0x804, 0x809, 0x80c, 0x80e, 0x829, 0x82f, 0x831, 0x83a, 0x840, 0x8ff,
    ] {
        let mut apic = x2apic();
        assert!(apic.read_msr(msr, 0).is_err(), "{msr:#x}");
        assert!(apic.write_msr(msr, 0, 0).is_err(), "{msr:#x}");
    }
}

#[test]
fn the_hypervisors_msrs_work_in_both_modes() {
    for mut apic in [xapic(), x2apic()] {
        assert_eq!(apic.write_msr(0x4000_0072, 0x35, 0), Ok(Effect::None));
        assert_eq!(apic.read_msr(0x4000_0072, 0), Ok(0x35));
        assert!(apic.write_msr(0x4000_0072, 0x100, 0).is_err());
        apic.request(0x60, true);
        assert_eq!(injected(&mut apic), interrupt(0x60));
        assert!(apic.read_msr(0x4000_0070, 0).is_err());
        assert!(apic.write_msr(0x4000_0070, 1 << 32, 0).is_err());
        assert_eq!(
            apic.write_msr(0x4000_0070, 0x1234, 0),
            Ok(Effect::EndOfInterrupt { level: Some(0x60) })
        );
    }
    // The high half is that of the mode.
    let destination = |apic: &mut LocalApic, value| match apic.write_msr(0x4000_0071, value, 0) {
        Ok(Effect::Send(message)) => message.destination,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        destination(&mut xapic(), 0x0300_0000_0000_0041),
        Destination::Physical(3)
    );
    let mut apic = x2apic();
    assert_eq!(
        destination(&mut apic, 0x0000_0103_0000_0041),
        Destination::Physical(0x103)
    );
    assert_eq!(apic.read_msr(0x4000_0071, 0), Ok(0x0000_0103_0000_0041));
}

#[test]
fn owned_msrs() {
    for msr in [0x1b, 0x6e0, 0x800, 0x8ff, 0x4000_0070, 0x4000_0072] {
        assert!(owns_msr(msr), "{msr:#x}");
    }
    for msr in [0x10, 0x6e1, 0x7ff, 0x900, 0x4000_006f, 0x4000_0073] {
        assert!(!owns_msr(msr), "{msr:#x}");
    }
}

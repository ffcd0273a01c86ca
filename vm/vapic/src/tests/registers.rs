//! Registers in xAPIC mode: values after reset, what can be written, widths, errors.

use super::*;
use crate::local::Source;

#[test]
fn values_after_reset() {
    // 11.4.7.1.
    let mut apic = LocalApic::new(config(5));
    for (register, value) in [
        (ApicRegister::ID, 5 << 24),
        (ApicRegister::VERSION, 0x5_0014),
        (ApicRegister::TPR, 0),
        (ApicRegister::PPR, 0),
        (ApicRegister::LDR, 0),
        (ApicRegister::DFR, u32::MAX),
        (ApicRegister::SVR, 0xff),
        (ApicRegister::ESR, 0),
        (ApicRegister::ICR, 0),
        (ApicRegister::ICR_HIGH, 0),
        (ApicRegister::TIMER_INITIAL, 0),
        (ApicRegister::TIMER_CURRENT, 0),
        (ApicRegister::TIMER_DIVIDE, 0),
    ] {
        assert_eq!(read(&mut apic, register), value, "{register:?}");
    }
    for number in 0x10..0x28 {
        assert_eq!(read(&mut apic, ApicRegister(number)), 0);
    }
    for number in 0x32..=0x37 {
        assert_eq!(read(&mut apic, ApicRegister(number)), 0x1_0000);
    }
    assert_eq!(apic.startup(), Startup::WaitForStartup);
    assert_eq!(fresh().startup(), Startup::Running);
}

#[test]
fn writable_bits_of_each_register() {
    let mut apic = xapic();
    for (register, mask) in [
        (ApicRegister::ID, 0),
        (ApicRegister::VERSION, 0),
        (ApicRegister::TPR, 0xff),
        (ApicRegister::LDR, 0xff00_0000),
        (ApicRegister::DFR, 0xf000_0000),
        (ApicRegister::LVT_TIMER, 0x7_00ff),
        (ApicRegister::LVT_THERMAL, 0x1_07ff),
        (ApicRegister::LVT_PERFORMANCE, 0x1_07ff),
        (ApicRegister::LVT_LINT0, 0x1_a7ff),
        (ApicRegister::LVT_LINT1, 0x1_a7ff),
        (ApicRegister::LVT_ERROR, 0x1_00ff),
        (ApicRegister::TIMER_DIVIDE, 0xb),
        (ApicRegister::ICR_HIGH, 0xff00_0000),
        // Last: the high bits include "enable".
        (ApicRegister::SVR, 0x3ff),
    ] {
        write(&mut apic, register, 0);
        let zero = read(&mut apic, register);
        write(&mut apic, register, u32::MAX);
        assert_eq!(read(&mut apic, register) ^ zero, mask, "{register:?}");
        if register == ApicRegister::LVT_TIMER {
            write(&mut apic, register, 0x1_0000);
        }
        write(&mut apic, ApicRegister::SVR, 0x1ff);
    }
}

#[test]
fn software_that_is_off_masks_the_local_vectors_and_accepts_nothing() {
    let mut apic = xapic();
    apic.request(0x40, false);
    write(&mut apic, ApicRegister::LVT_LINT0, 0x31);
    write(&mut apic, ApicRegister::SVR, 0xff);
    assert_eq!(read(&mut apic, ApicRegister::LVT_LINT0), 0x1_0031);
    write(&mut apic, ApicRegister::LVT_LINT0, 0x32);
    assert_eq!(read(&mut apic, ApicRegister::LVT_LINT0), 0x1_0032);
    apic.request(0x50, false);
    // 11.4.7.2: what it had taken before stays.
    assert_eq!(drain(&mut apic), [0x40]);
}

#[test]
fn loads_see_parts_of_a_register_and_stores_need_the_whole() {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::LDR, 0x5a00_0000);
    assert_eq!(apic.read_mmio(0xd0, 4, 0), 0x5a00_0000);
    assert_eq!(apic.read_mmio(0xd3, 1, 0), 0x5a);
    assert_eq!(apic.read_mmio(0xd2, 2, 0), 0x5a00);
    assert_eq!(apic.read_mmio(0xd4, 4, 0), 0);
    assert_eq!(apic.read_mmio(0xd0, 8, 0), 0x5a00_0000);
    for (offset, size) in [
        (0xd0, 1),
        (0xd0, 2),
        (0xd0, 8),
        (0xd4, 4),
        (0xd1, 4),
        (0x10d0, 4),
    ] {
        assert_eq!(apic.write_mmio(offset, size, u32::MAX, 0), Effect::None);
        assert_eq!(apic.read_mmio(0xd0, 4, 0), 0x5a00_0000, "{offset:#x}");
    }
    assert_eq!(apic.read_mmio(u64::MAX, 4, 0), 0);
}

#[test]
fn registers_that_do_not_exist_are_errors() {
    // 11.5.3, bit 7.
    for offset in [
        0x000, 0x010, 0x040, 0x290, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0,
    ] {
        let mut apic = xapic();
        assert_eq!(apic.read_mmio(offset, 4, 0), 0);
        write(&mut apic, ApicRegister::ESR, 0);
        assert_eq!(read(&mut apic, ApicRegister::ESR), 0x80, "{offset:#x}");
        assert_eq!(apic.write_mmio(offset, 4, 1, 0), Effect::None);
        write(&mut apic, ApicRegister::ESR, 0);
        assert_eq!(read(&mut apic, ApicRegister::ESR), 0x80);
        write(&mut apic, ApicRegister::ESR, 0);
        assert_eq!(read(&mut apic, ApicRegister::ESR), 0);
    }
}

#[test]
fn the_first_error_interrupts_and_a_write_rearms_it() {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::LVT_ERROR, 0xfe);
    apic.request(5, false);
    apic.request(6, false);
    assert_eq!(read(&mut apic, ApicRegister::ESR), 0);
    assert_eq!(drain(&mut apic), [0xfe]);
    apic.request(7, false);
    assert_eq!(injected(&mut apic), None);
    write(&mut apic, ApicRegister::ESR, 0);
    assert_eq!(read(&mut apic, ApicRegister::ESR), 0x40);
    apic.request(8, false);
    assert_eq!(drain(&mut apic), [0xfe]);
}

#[test]
fn an_error_vector_that_is_illegal_does_not_recur() {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::LVT_ERROR, 3);
    apic.request(5, false);
    write(&mut apic, ApicRegister::ESR, 0);
    assert_eq!(read(&mut apic, ApicRegister::ESR), 0x40);
    assert_eq!(injected(&mut apic), None);
}

#[test]
fn local_sources_raise_what_their_entry_says() {
    let mut apic = xapic();
    apic.signal(Source::Thermal);
    assert_eq!(injected(&mut apic), None);
    write(&mut apic, ApicRegister::LVT_THERMAL, 0x51);
    apic.signal(Source::Thermal);
    assert_eq!(drain(&mut apic), [0x51]);
    write(&mut apic, ApicRegister::LVT_PERFORMANCE, 0x400);
    apic.signal(Source::Performance);
    assert_eq!(injected(&mut apic), Some(Injection::Nmi));
    // It has masked itself.
    assert_eq!(read(&mut apic, ApicRegister::LVT_PERFORMANCE), 0x1_0400);
    apic.signal(Source::Performance);
    assert_eq!(injected(&mut apic), None);
}

#[test]
fn pins_deliver_fixed_nmi_and_8259_interrupts() {
    let mut apic = xapic();
    let shared: Shared = Shared::new(apic.address());
    write(&mut apic, ApicRegister::LVT_LINT0, 0x700);
    write(&mut apic, ApicRegister::LVT_LINT1, 0x400);
    assert!(!shared.post_lint(false, 0x08));
    assert!(!shared.post_lint(true, 0x08));
    let _ = apic.collect(&shared);
    assert_eq!(injected(&mut apic), Some(Injection::Nmi));
    // An 8259's vector may be low, and the task priority does not hold it back.
    write(&mut apic, ApicRegister::TPR, 0xff);
    assert_eq!(injected(&mut apic), interrupt(0x08));
    write(&mut apic, ApicRegister::TPR, 0);
    write(&mut apic, ApicRegister::LVT_LINT0, 0x61);
    assert!(!shared.post_lint(false, 0x08));
    let _ = apic.collect(&shared);
    assert_eq!(drain(&mut apic), [0x61]);
}

#[test]
fn cr8_is_the_upper_half_of_the_task_priority() {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::TPR, 0x57);
    assert_eq!(apic.cr8(), 5);
    // The same class: the guest has not written it.
    apic.sync_cr8(5);
    assert_eq!(read(&mut apic, ApicRegister::TPR), 0x57);
    apic.sync_cr8(0xf9);
    assert_eq!(read(&mut apic, ApicRegister::TPR), 0x90);
}

//! Saving and restoring.

use super::*;

#[test]
fn a_restored_apic_behaves_as_the_saved_one() {
    let mut apic = xapic();
    write(&mut apic, ApicRegister::LVT_TIMER, 0x2_00ec);
    write(&mut apic, ApicRegister::LVT_ERROR, 0xfe);
    let _ = apic.write_mmio(0x380, 4, 1000, 100);
    apic.request(0x80, true);
    assert_eq!(injected(&mut apic), interrupt(0x80));
    apic.request(0x44, false);
    apic.request(3, false);
    let saved = apic.save(600);
    let mut other = LocalApic::new(config(0));
    // Another clock: what counts is what is left.
    other.restore(&saved, 1 << 40).unwrap();
    assert_eq!(other.save(1 << 40), saved);
    assert_eq!(other.next_deadline(1 << 40), Some((1 << 40) + 3500));
    assert_eq!(
        other.end_of_interrupt(),
        Effect::EndOfInterrupt { level: Some(0x80) }
    );
    assert_eq!(drain(&mut other), [0xfe, 0x44]);
}

#[test]
fn modes_and_startup_are_restored() {
    let mut apic = x2apic();
    apic.write_msr(0x832, 0x4_00ec, 0).unwrap();
    apic.set_tsc_offset(100);
    apic.write_msr(0x6e0, 877, 0).unwrap();
    let mut other = fresh();
    other.restore(&apic.save(0), 0).unwrap();
    assert_eq!(other.save(0), apic.save(0));
    assert_eq!(other.mode(), Mode::X2Apic);
    assert_eq!(other.next_deadline(0), Some(777));
    let waiting = LocalApic::new(config(3));
    let mut other = LocalApic::new(config(3));
    other.set_startup(Startup::Running);
    other.restore(&waiting.save(0), 0).unwrap();
    assert_eq!(other.startup(), Startup::WaitForStartup);
}

#[test]
fn impossible_states_are_refused_by_field() {
    let good = xapic().save(0);
    let mut low = good;
    low.irr[0] = 1 << 15;
    let cases = [
        ("apic_id", SavedApic { apic_id: 1, ..good }),
        (
            "apic_base",
            SavedApic {
                apic_base: 0xfee0_0500,
                ..good
            },
        ),
        (
            "apic_base",
            SavedApic {
                apic_base: 0xfee0_0800,
                ..good
            },
        ),
        (
            "apic_base",
            SavedApic {
                apic_base: 0xfee0_1900,
                ..good
            },
        ),
        (
            "format",
            SavedApic {
                format: 0x10,
                ..good
            },
        ),
        ("svr", SavedApic { svr: 0x400, ..good }),
        ("irr", low),
        (
            "lvt",
            SavedApic {
                lvt: [0, 0, 0, 0, 0, 0x100],
                ..good
            },
        ),
        ("errors", SavedApic { errors: 1, ..good }),
        (
            "new_errors",
            SavedApic {
                new_errors: 0x100,
                ..good
            },
        ),
        (
            "icr",
            SavedApic {
                icr: 1 << 13,
                ..good
            },
        ),
        (
            "timer.divide",
            SavedApic {
                timer: SavedTimer {
                    divide: 4,
                    ..good.timer
                },
                ..good
            },
        ),
    ];
    for (field, saved) in cases {
        let mut apic = fresh();
        let error = apic.restore(&saved, 0).unwrap_err();
        assert_eq!(error.field, field);
        assert_eq!(apic, fresh());
    }
}

//! The whole machine.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::bus::Width;
use crate::ioapic::DEFAULT_BASE;
use crate::power::PowerEvent;
use crate::power::ResetSource;
use crate::testing;
use crate::testing::SharedWorld;

fn running() -> (SharedWorld, Chipset) {
    let world = SharedWorld::default();
    let chipset = world.chipset();
    chipset.start().unwrap();
    (world, chipset)
}

fn out(chipset: &Chipset, port: u16, value: u8) {
    let written = chipset.bus().write_port(port, Width::Byte, value.into());
    assert_eq!(written, crate::bus::Written::Done);
}

fn inb(chipset: &Chipset, port: u16) -> u8 {
    chipset.bus().read_port(port, Width::Byte) as u8
}

/// Programs a pin of the I/O APIC to `low`, for the APIC with id 0.
fn route(chipset: &Chipset, pin: u8, low: u32) {
    let index = u64::from(0x10 + 2 * pin);
    for (offset, value) in [(0, index), (0x10, low.into())] {
        let address = DEFAULT_BASE + offset;
        let written = chipset.bus().write_memory(address, Width::Dword, value);
        assert_eq!(written, crate::bus::Written::Done);
    }
}

fn vectors(world: &SharedWorld) -> Vec<u8> {
    let messages = std::mem::take(&mut world.lock().interrupts);
    messages.into_iter().map(|m| m.vector).collect()
}

#[test]
fn devices_reach_the_local_apic_by_the_pins_of_a_pc() {
    let (world, chipset) = running();
    for (pin, vector) in [
        (pin::I8042, 0x21),
        (pin::COM2, 0x23),
        (pin::COM1, 0x24),
        (pin::RTC, 0x28),
    ] {
        route(&chipset, pin, vector);
    }
    route(&chipset, pin::SCI, 0x29 | 1 << 15);
    for base in [uart::COM1_BASE, uart::COM2_BASE] {
        out(&chipset, base + 4, 0x08);
        out(&chipset, base + 1, 0x02);
    }
    assert_eq!(vectors(&world), [0x24, 0x23]);
    out(&chipset, 0x64, 0x60);
    out(&chipset, 0x60, 0x01);
    out(&chipset, 0x60, 0xf2);
    assert_eq!(vectors(&world), [0x21]);
    out(&chipset, 0x70, 11);
    out(&chipset, 0x71, 0x12);
    world.advance(Duration::from_secs(1));
    chipset.poll();
    assert_eq!(vectors(&world), [0x28]);
    out(&chipset, 0x603, 0x01);
    chipset.pm().with(|pm| pm.press_power_button());
    assert_eq!(vectors(&world), [0x29]);
    // A level comes again until the device is content.
    chipset.end_of_interrupt(0x29);
    assert_eq!(vectors(&world), [0x29]);
    out(&chipset, 0x601, 0x01);
    chipset.end_of_interrupt(0x29);
    assert_eq!(vectors(&world), []);
}

#[test]
fn an_echo_over_com1_works_by_interrupts_alone() {
    let (world, chipset) = running();
    route(&chipset, pin::COM1, 0x24);
    for (register, value) in [(2, 0x81), (4, 0x0b), (1, 0x01)] {
        out(&chipset, uart::COM1_BASE + register, value);
    }
    let text: Vec<u8> = (0..2000).map(|i| (i * 7) as u8).collect();
    world.lock().serial[0].input.extend(&text);
    let mut interrupts = 0;
    chipset.com1().with(|uart| uart.poll());
    while let Some(deadline) = chipset.poll() {
        let now = world.lock().clock;
        world.advance(deadline.since(now));
        chipset.poll();
        for _ in vectors(&world) {
            interrupts += 1;
            while inb(&chipset, uart::COM1_BASE + 5) & 1 != 0 {
                let byte = inb(&chipset, uart::COM1_BASE);
                out(&chipset, uart::COM1_BASE, byte);
            }
        }
    }
    assert_eq!(world.lock().serial[0].output, text);
    // A FIFO at a time.
    assert_eq!(interrupts, 2000 / 16);
}

#[test]
fn the_ways_to_end_are_events() {
    let (world, chipset) = running();
    out(&chipset, 0x64, 0xfe);
    out(&chipset, 0x92, 0x01);
    out(&chipset, 0xcf9, 0x06);
    out(&chipset, 0x605, acpi_pm::SLEEP_TYPE_S5 << 2 | 1 << 5);
    assert_eq!(
        world.lock().power,
        [
            PowerEvent::Reset(ResetSource::KeyboardController),
            PowerEvent::Reset(ResetSource::FastReset),
            PowerEvent::Reset(ResetSource::ResetControl),
            PowerEvent::PowerOff,
        ]
    );
}

#[test]
fn an_earlier_deadline_wakes_the_poller_and_a_later_one_does_not() {
    let (world, chipset) = running();
    chipset.poll();
    let before = world.lock().wakes;
    out(&chipset, 0x70, 11);
    out(&chipset, 0x71, 0x12);
    assert_eq!(world.lock().wakes, before + 1);
    let second = chipset.poll().unwrap();
    // The same deadline again, then none.
    out(&chipset, 0x71, 0x12);
    out(&chipset, 0x71, 0x02);
    assert_eq!(world.lock().wakes, before + 1);
    assert_eq!(chipset.poll(), None);
    assert_eq!(second, world.lock().clock.after(Duration::from_secs(1)));
}

#[test]
fn a_vp_that_waits_for_com1_is_told_when_to_go_on() {
    let (world, chipset) = running();
    world.lock().serial[0].room = 0;
    let write = |byte| chipset.bus().write_port(uart::COM1_BASE, Width::Byte, byte);
    assert_eq!(write(1), crate::bus::Written::Done);
    assert_eq!(write(2), crate::bus::Written::Stalled);
    chipset.com1().with(|uart| uart.poll());
    assert_eq!(world.lock().unstalls, 0);
    world.lock().serial[0].room = 1;
    chipset.com1().with(|uart| uart.poll());
    assert_eq!(world.lock().unstalls, 1);
    assert_eq!(write(2), crate::bus::Written::Done);
    assert_eq!(world.lock().serial[0].output, [1]);
}

#[test]
fn calls_out_of_order_are_refused() {
    let world = SharedWorld::default();
    let chipset = world.chipset();
    assert!(chipset.pause().is_err() && chipset.resume().is_err());
    let error = chipset.save().unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot save a chipset that is New, expected Paused"
    );
    assert_eq!(chipset.poll(), None);
    chipset.start().unwrap();
    assert!(chipset.start().is_err() && chipset.resume().is_err());
    assert!(chipset.save().is_err() && chipset.reset().is_err());
    chipset.pause().unwrap();
    assert_eq!(chipset.poll(), None);
    let saved = chipset.save().unwrap();
    assert!(chipset.restore(&saved).is_err() && chipset.pause().is_err());
    chipset.reset().unwrap();
    chipset.resume().unwrap();
}

#[test]
fn a_reset_machine_is_as_new() {
    let (world, chipset) = running();
    route(&chipset, pin::COM1, 0x24);
    out(&chipset, 0x3fc, 0x0b);
    out(&chipset, 0x3f9, 0x0f);
    out(&chipset, 0x603, 0x01);
    out(&chipset, 0x64, 0xd1);
    out(&chipset, 0xcf9, 0x02);
    chipset.pause().unwrap();
    chipset.reset().unwrap();
    let after = chipset.save().unwrap();
    let new = SharedWorld::new(world.snapshot()).chipset();
    new.start().unwrap();
    new.pause().unwrap();
    new.reset().unwrap();
    assert_eq!(after, new.save().unwrap());
}

#[test]
fn a_failed_restore_leaves_nothing_to_use() {
    let (world, chipset) = running();
    chipset.pause().unwrap();
    let good = chipset.save().unwrap();
    for change in [
        (|saved| drop(saved.devices.pop())) as fn(&mut SavedChipset),
        |saved| saved.devices.swap(0, 1),
        |saved| saved.devices[2].state = None,
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        let other = world.chipset();
        assert!(other.restore(&bad).is_err());
        assert!(other.restore(&good).is_err() && other.start().is_err());
    }
    let other = world.chipset();
    other.restore(&good).unwrap();
    other.start().unwrap();
}

#[test]
fn devices_of_others_fit_in() {
    let world = SharedWorld::default();
    let mut chipset = world.chipset();
    let shared = Arc::new(world.clone());
    let line = chipset.pins().line(pin::COM1).unwrap();
    let third = Uart::new(0x3e8, shared.clone(), line, world.cable(1));
    chipset
        .attach(Slot::new("com3", shared.clone(), third))
        .unwrap();
    let again = Uart::new(
        0x3e8,
        shared.clone(),
        chipset.pins().line(3).unwrap(),
        world.cable(1),
    );
    let error = chipset
        .attach(Slot::new("com5", shared, again))
        .unwrap_err();
    assert!(error.to_string().contains("com3"), "{error}");
    chipset.start().unwrap();
    assert_eq!(inb(&chipset, 0x3ed), 0x60);
}

#[test]
fn the_machine_can_be_looked_at_without_changing_it() {
    let (world, chipset) = running();
    route(&chipset, pin::COM1, 0x24);
    out(&chipset, 0x3fc, 0x0b);
    out(&chipset, 0x3f9, 0x07);
    world.lock().serial[0].input.extend(b"secret");
    chipset.com1().with(|uart| uart.poll());
    inb(&chipset, 0x80);
    let look = |path: &str| inspect::Query::new(path).evaluate(&chipset).now();
    assert_eq!(look("phase").as_str(), Some("running"));
    assert_eq!(look("com1/line/pin").as_u64(), Some(4));
    assert_eq!(look("com1/interrupt").as_str(), Some("Received"));
    assert_eq!(look("com1/receive_bytes").as_u64(), Some(1));
    assert_eq!(look("ioapic/counters/sent/4").as_u64(), Some(1));
    assert_eq!(look("unclaimed/port_0x80").as_u64(), Some(1));
    assert_eq!(look("rtc/time").as_str(), Some("2026-11-21 07:30:00"));
    assert_eq!(look("pm/timer").as_u64(), Some(0));
    let all = look("");
    for slot in chipset.bus().slots() {
        assert!(!all.get(slot.name()).unwrap().entries().is_empty());
    }
    assert!(!all.to_string().contains("secret"));
    assert_eq!(inb(&chipset, 0x3fa), 0x04);
}

#[test]
fn vps_may_use_all_devices_at_once() {
    let (world, chipset) = running();
    route(&chipset, pin::COM1, 0x24);
    out(&chipset, 0x3fc, 0x0b);
    std::thread::scope(|scope| {
        for vp in 0..4_u8 {
            let chipset = &chipset;
            scope.spawn(move || {
                for i in 0..500_u16 {
                    out(chipset, 0x3f8, vp);
                    inb(chipset, 0x3fa);
                    out(chipset, 0x3f9, (i % 2) as u8 * 2);
                    out(chipset, 0x3ff, vp);
                    inb(chipset, 0x71);
                    chipset.end_of_interrupt(0x24);
                    chipset.poll();
                    chipset.pm().with(|pm| pm.press_power_button());
                }
            });
        }
    });
    assert_eq!(world.lock().serial[0].output.len(), 2000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The fuzz target `chipset` does the same with inputs that are chosen better.
    #[test]
    fn a_restored_machine_lives_on_as_the_saved_one(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        testing::run(&bytes);
    }

    #[test]
    fn any_bytes_are_refused_or_restored(
        device in 0_usize..7,
        data in proptest::collection::vec(any::<u8>(), 0..64),
        version in 0_u32..3,
    ) {
        let world = SharedWorld::default();
        let saved = {
            let chipset = world.chipset();
            chipset.start().unwrap();
            chipset.pause().unwrap();
            let mut saved = chipset.save().unwrap();
            saved.devices[device].state = Some(SavedState { version, data });
            saved
        };
        let chipset = world.chipset();
        if chipset.restore(&saved).is_ok() {
            chipset.start().unwrap();
            chipset.poll();
            for port in 0..0x1000 {
                chipset.bus().read_port(port, crate::bus::Width::Byte);
            }
            chipset.pause().unwrap();
            chipset.save().unwrap();
        } else {
            prop_assert!(chipset.start().is_err());
        }
    }
}

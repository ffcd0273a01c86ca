//! The register interface, after the 82093AA data sheet (Intel 290566), and the pins
//! against a model.

use proptest::prelude::*;

use super::*;
use crate::testing::SharedWorld;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

struct Fixture {
    world: SharedWorld,
    ioapic: Ioapic,
}

impl Fixture {
    fn new() -> Self {
        let world = SharedWorld::default();
        let ioapic = Ioapic::new(DEFAULT_BASE, Arc::new(world.clone()));
        Self { world, ioapic }
    }

    fn read(&mut self, offset: u64) -> u32 {
        self.ioapic.read(access(offset)) as u32
    }

    fn write(&mut self, offset: u64, value: u32) {
        assert_eq!(
            self.ioapic.write(access(offset), value.into()),
            Written::Done
        );
    }

    fn register(&mut self, index: u8) -> u32 {
        self.write(SELECT, index.into());
        self.read(WINDOW)
    }

    fn set_register(&mut self, index: u8, value: u32) {
        self.write(SELECT, index.into());
        self.write(WINDOW, value);
    }

    fn entry(&mut self, pin: u8) -> u64 {
        let low = self.register(0x10 + 2 * pin);
        u64::from(low) | u64::from(self.register(0x11 + 2 * pin)) << 32
    }

    /// High half first, as an operating system does.
    fn set_entry(&mut self, pin: u8, entry: u64) {
        self.set_register(0x11 + 2 * pin, (entry >> 32) as u32);
        self.set_register(0x10 + 2 * pin, entry as u32);
    }

    /// Vectors that have been sent since the last call.
    fn sent(&self) -> Vec<u8> {
        let messages = std::mem::take(&mut self.world.lock().interrupts);
        messages.into_iter().map(|m| m.vector).collect()
    }
}

fn access(offset: u64) -> Access {
    Access {
        region: 0,
        offset,
        width: Width::Dword,
    }
}

#[test]
fn values_after_a_reset() {
    let mut io = Fixture::new();
    // Sections 3.2.1 to 3.2.4: all zero but the version and the mask bits.
    assert_eq!(io.register(0x00), 0);
    assert_eq!(io.register(0x01), 0x0017_0020);
    assert_eq!(io.register(0x02), 0);
    for pin in 0..24 {
        assert_eq!(io.entry(pin), MASKED);
    }
}

#[test]
fn registers_that_do_not_exist_read_as_ones() {
    let mut io = Fixture::new();
    for index in [0x03, 0x0f, 0x40, 0xff] {
        io.set_register(index, 0);
        assert_eq!(io.register(index), u32::MAX);
    }
    for offset in [0x04, 0x08, 0x20, 0x40, 0xffc] {
        io.write(offset, 0x55);
        assert_eq!(io.read(offset), u32::MAX);
    }
}

#[test]
fn the_selected_index_can_be_read_back() {
    let mut io = Fixture::new();
    io.write(SELECT, 0xffff_ff12);
    assert_eq!(io.read(SELECT), 0x12);
}

#[test]
fn the_id_has_four_bits_and_arbitration_follows_it() {
    let mut io = Fixture::new();
    io.set_register(0, 0xffff_ffff);
    assert_eq!(io.register(0), 0x0f00_0000);
    assert_eq!(io.register(2), 0x0f00_0000);
    io.set_register(1, 0);
    io.set_register(2, 0);
    assert_eq!((io.register(1), io.register(2)), (0x0017_0020, 0x0f00_0000));
}

#[test]
fn an_entry_keeps_what_is_not_reserved_or_read_only() {
    let mut io = Fixture::new();
    for pin in [0, 23] {
        io.set_entry(pin, u64::MAX);
        assert_eq!(io.entry(pin), 0xff00_0000_0001_afff);
        io.set_entry(pin, 0);
        assert_eq!(io.entry(pin), 0);
    }
}

#[test]
fn an_edge_sends_what_its_entry_says() {
    for (bits, mode) in [
        (0, DeliveryMode::Fixed),
        (1, DeliveryMode::LowestPriority),
        (2, DeliveryMode::Smi),
        (3, DeliveryMode::Reserved(3)),
        (4, DeliveryMode::Nmi),
        (5, DeliveryMode::Init),
        (6, DeliveryMode::Reserved(6)),
        (7, DeliveryMode::ExtInt),
    ] {
        let mut io = Fixture::new();
        io.set_entry(4, 0x5a00_0000_0000_0831 | bits << 8);
        io.ioapic.set_pin(4, true);
        let message = InterruptMessage {
            vector: 0x31,
            mode,
            destination: 0x5a,
            logical: true,
            level: false,
        };
        assert_eq!(io.world.snapshot().interrupts, [message]);
        let (address, data) = (message.msi_address(), message.msi_data());
        assert_eq!(address, 0xfee5_a004);
        assert_eq!(u64::from(data), 0x31 | bits << 8);
        assert_eq!(
            InterruptMessage::from_msi(address.into(), data),
            Some(message)
        );
    }
}

#[test]
fn other_addresses_are_no_interrupts() {
    assert_eq!(InterruptMessage::from_msi(0xfed0_0000, 0x31), None);
    assert_eq!(InterruptMessage::from_msi(0x1_fee0_0000, 0x31), None);
}

#[test]
fn each_edge_sends_once_and_a_masked_one_is_lost() {
    let mut io = Fixture::new();
    io.set_entry(4, 0x31);
    io.ioapic.set_pin(4, true);
    io.ioapic.set_pin(4, true);
    io.ioapic.end_of_interrupt(0x31);
    assert_eq!(io.sent(), [0x31]);
    io.ioapic.set_pin(4, false);
    io.ioapic.set_pin(4, true);
    assert_eq!(io.sent(), [0x31]);
    io.ioapic.set_pin(4, false);
    io.set_entry(4, 0x31 | MASKED);
    io.ioapic.set_pin(4, true);
    io.set_entry(4, 0x31);
    assert_eq!(io.sent(), []);
    assert_eq!(io.ioapic.counters().lost_edges, 1);
    assert_eq!(io.ioapic.counters().sent[4], 2);
}

#[test]
fn a_level_waits_for_its_eoi_and_comes_again() {
    let mut io = Fixture::new();
    io.set_entry(9, 0x61 | LEVEL);
    io.ioapic.set_pin(9, true);
    assert_eq!(io.entry(9) & REMOTE_IRR, REMOTE_IRR);
    io.ioapic.set_pin(9, false);
    io.ioapic.set_pin(9, true);
    assert_eq!(io.sent(), [0x61], "the first is not ended");
    io.ioapic.end_of_interrupt(0x60);
    assert_eq!(io.sent(), [], "not this vector");
    io.ioapic.end_of_interrupt(0x61);
    assert_eq!(io.sent(), [0x61]);
    io.ioapic.set_pin(9, false);
    // The EOI register does the same.
    io.write(EOI, 0x61);
    assert_eq!(io.sent(), []);
    assert_eq!(io.entry(9) & REMOTE_IRR, 0);
}

#[test]
fn a_level_is_sent_when_it_is_unmasked() {
    let mut io = Fixture::new();
    io.set_entry(9, 0x61 | LEVEL | MASKED);
    io.ioapic.set_pin(9, true);
    assert_eq!(io.sent(), []);
    io.set_entry(9, 0x61 | LEVEL);
    assert_eq!(io.sent(), [0x61]);
    // Masked in between: the EOI is heard, and unmasking sends.
    io.set_entry(9, 0x61 | LEVEL | MASKED);
    io.ioapic.end_of_interrupt(0x61);
    assert_eq!(io.sent(), []);
    assert_eq!(io.entry(9), 0x61 | LEVEL | MASKED);
    io.set_entry(9, 0x61 | LEVEL);
    assert_eq!(io.sent(), [0x61]);
}

#[test]
fn a_moment_as_edge_clears_remote_irr() {
    // What Linux does to a pin whose EOI got lost.
    let mut io = Fixture::new();
    io.set_entry(9, 0x61 | LEVEL);
    io.ioapic.set_pin(9, true);
    io.set_register(0x10 + 18, (0x61 | MASKED) as u32);
    io.set_register(0x10 + 18, (0x61 | LEVEL | MASKED) as u32);
    assert_eq!(io.entry(9) & REMOTE_IRR, 0);
    io.set_register(0x10 + 18, (0x61 | LEVEL) as u32);
    assert_eq!(io.sent(), [0x61, 0x61]);
}

#[test]
fn one_eoi_ends_all_pins_of_a_vector() {
    let mut io = Fixture::new();
    for pin in [9, 10, 11] {
        io.set_entry(pin, 0x61 | LEVEL);
        io.ioapic.set_pin(pin, true);
    }
    io.ioapic.set_pin(10, false);
    io.sent();
    io.ioapic.end_of_interrupt(0x61);
    assert_eq!(io.sent(), [0x61, 0x61]);
    assert_eq!(io.entry(10) & REMOTE_IRR, 0);
}

#[test]
fn a_level_of_a_mode_without_eoi_is_an_edge() {
    let mut io = Fixture::new();
    io.set_entry(2, 0x400 | LEVEL);
    io.ioapic.set_pin(2, true);
    assert_eq!(io.entry(2) & REMOTE_IRR, 0);
    let message = io.world.snapshot().interrupts[0];
    assert_eq!((message.mode, message.level), (DeliveryMode::Nmi, false));
}

#[test]
fn a_pin_that_does_not_exist_is_nothing() {
    let mut io = Fixture::new();
    for pin in 24..=255 {
        io.ioapic.set_pin(pin, true);
        assert!(!io.ioapic.is_asserted(pin));
    }
    assert_eq!(io.sent(), []);
}

#[test]
fn a_reset_masks_all_and_keeps_the_levels() {
    let mut io = Fixture::new();
    io.set_entry(9, 0x61 | LEVEL);
    io.ioapic.set_pin(9, true);
    io.set_register(0, 0x0100_0000);
    io.ioapic.reset();
    assert_eq!((io.entry(9), io.register(0)), (MASKED, 0));
    io.sent();
    io.set_entry(9, 0x62 | LEVEL);
    assert_eq!(io.sent(), [0x62]);
}

#[test]
fn hostile_states_are_refused_by_name() {
    let good = State {
        select: 0,
        id: 0,
        entries: vec![0; 24],
        asserted: 0,
    };
    let broken = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        SavedState::new(STATE_VERSION, &state)
    };
    for (field, state) in [
        ("entries", broken(|s| s.entries = vec![0; 23])),
        ("asserted", broken(|s| s.asserted = 1 << 24)),
        ("select", broken(|s| s.select = 256)),
        ("id", broken(|s| s.id = 256)),
    ] {
        let mut io = Fixture::new();
        let error = io.ioapic.restore(&state).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert_eq!(io.ioapic.save(), Fixture::new().ioapic.save());
    }
    // Bits that cannot be set are dropped.
    let mut io = Fixture::new();
    let ones = broken(|s| s.entries = vec![u64::MAX; 24]);
    io.ioapic.restore(&ones).unwrap();
    assert_eq!(io.entry(0), 0xff00_0000_0001_afff);
}

/// What happens to one pin.
#[derive(Debug, Clone, Copy)]
enum Step {
    Pin(bool),
    Mask(bool),
    Level(bool),
    Eoi(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(Step::Pin),
        2 => any::<bool>().prop_map(Step::Mask),
        1 => any::<bool>().prop_map(Step::Level),
        2 => any::<bool>().prop_map(Step::Eoi),
    ]
}

/// A pin as the data sheet tells it, in one place: what is true, not what changes.
#[derive(Default)]
struct Model {
    asserted: bool,
    unmasked: bool,
    level: bool,
    waiting: bool,
    sent: usize,
}

impl Model {
    fn take(&mut self, step: Step) {
        let before = self.asserted;
        match step {
            Step::Pin(asserted) => self.asserted = asserted,
            Step::Mask(masked) => self.unmasked = !masked,
            Step::Level(level) => {
                self.level = level;
                self.waiting &= level;
            }
            Step::Eoi(mine) => self.waiting &= !mine,
        }
        let edge = self.asserted && !before;
        let due = if self.level {
            self.asserted && !self.waiting
        } else {
            edge
        };
        if due && self.unmasked {
            self.waiting = self.level;
            self.sent += 1;
        }
    }
}

proptest! {
    #[test]
    fn a_pin_behaves_as_its_model(
        pin in 0_u8..24,
        steps in proptest::collection::vec(step(), 0..100),
    ) {
        let mut io = Fixture::new();
        let mut model = Model::default();
        io.set_entry(pin, 0x70 | MASKED);
        for step in steps {
            model.take(step);
            let low = io.register(0x10 + 2 * pin);
            let change = |bit: u64, on: bool| {
                let bit = bit as u32;
                if on { low | bit } else { low & !bit }
            };
            match step {
                Step::Pin(asserted) => io.ioapic.set_pin(pin, asserted),
                Step::Mask(on) => io.set_register(0x10 + 2 * pin, change(MASKED, on)),
                Step::Level(on) => io.set_register(0x10 + 2 * pin, change(LEVEL, on)),
                Step::Eoi(mine) => io.ioapic.end_of_interrupt(if mine { 0x70 } else { 0x71 }),
            }
            prop_assert_eq!(io.entry(pin) & REMOTE_IRR != 0, model.waiting);
            prop_assert_eq!(io.world.lock().interrupts.len(), model.sent);
        }
    }
}

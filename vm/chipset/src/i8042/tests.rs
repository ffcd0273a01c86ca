//! The register interface, and the probe of Linux (drivers/input/serio/i8042.c).

use super::*;
use crate::bus::Width;
use crate::line::Pins;
use crate::testing::SharedWorld;

struct Fixture {
    world: SharedWorld,
    i8042: I8042,
}

impl Fixture {
    fn new() -> Self {
        let world = SharedWorld::default();
        let shared = Arc::new(world.clone());
        let target: Arc<dyn crate::line::PinTarget> = shared.clone();
        let line = Pins::new(&target, 24).line(1).unwrap();
        let i8042 = I8042::new(line, shared);
        Self { world, i8042 }
    }

    fn read(&mut self, region: usize) -> u8 {
        self.i8042.read(access(region)) as u8
    }

    fn write(&mut self, region: usize, value: u8) {
        let written = self.i8042.write(access(region), value.into());
        assert_eq!(written, Written::Done);
    }

    fn data(&mut self) -> u8 {
        self.read(0)
    }

    fn status(&mut self) -> Status {
        Status::from_bits(self.read(1))
    }

    /// The answer to a command, with the status before it was read.
    fn command(&mut self, command: u8) -> (Status, u8) {
        self.write(1, command);
        (self.status(), self.data())
    }

    fn events(&self) -> Vec<PowerEvent> {
        std::mem::take(&mut self.world.lock().power)
    }

    fn asserted(&self) -> bool {
        self.i8042.line.is_asserted()
    }
}

fn access(region: usize) -> Access {
    Access {
        region,
        offset: 0,
        width: Width::Byte,
    }
}

const BY_KEYBOARD_CONTROLLER: PowerEvent = PowerEvent::Reset(ResetSource::KeyboardController);
const BY_FAST_RESET: PowerEvent = PowerEvent::Reset(ResetSource::FastReset);

#[test]
fn values_after_a_reset() {
    let mut kbc = Fixture::new();
    assert_eq!(kbc.status().into_bits(), 0x10);
    assert_eq!(kbc.read(2), 0x02);
    assert_eq!(kbc.command(0x20).1, 0x30);
    assert_eq!(kbc.command(0xd0).1, 0x03);
    assert_eq!(kbc.command(0xc0).1, 0xa0);
}

#[test]
fn pulses_of_the_reset_line_reset() {
    // 0xf0 to 0xff pulse the lines of the output port whose bit is 0.
    let mut kbc = Fixture::new();
    for command in 0xf0..=0xff {
        kbc.write(1, command);
        let expected: &[_] = if command & 1 == 0 {
            &[BY_KEYBOARD_CONTROLLER]
        } else {
            &[]
        };
        assert_eq!(kbc.events(), expected, "{command:#x}");
    }
}

#[test]
fn the_output_port_resets_by_zero_and_keeps_the_rest() {
    let mut kbc = Fixture::new();
    kbc.write(1, 0xd1);
    kbc.write(0, 0xdd);
    assert_eq!(kbc.events(), []);
    assert_eq!(kbc.command(0xd0).1, 0xdd);
    kbc.write(1, 0xd1);
    kbc.write(0, 0xde);
    assert_eq!(kbc.events(), [BY_KEYBOARD_CONTROLLER]);
}

#[test]
fn port_92_resets_when_its_bit_rises() {
    let mut kbc = Fixture::new();
    for (value, resets) in [(0x02, 0), (0x03, 1), (0x01, 0), (0x00, 0), (0x01, 1)] {
        kbc.write(2, value);
        assert_eq!(kbc.events(), vec![BY_FAST_RESET; resets]);
        assert_eq!(kbc.read(2), value);
    }
}

#[test]
fn the_probe_of_linux_finds_a_controller_and_no_mouse() {
    let mut kbc = Fixture::new();
    // i8042_controller_check: flush until the output buffer is empty.
    assert!(!kbc.status().output_full());
    // i8042_controller_selftest, i8042_controller_init.
    assert_eq!(kbc.command(0xaa).1, 0x55);
    assert!(kbc.status().system());
    assert_eq!(kbc.command(0x20).1, 0x34);
    kbc.write(1, 0x60);
    kbc.write(0, 0x34);
    // i8042_check_aux: the loop must answer with the mark of the auxiliary port.
    kbc.write(1, 0xd3);
    kbc.write(0, 0x5a);
    let status = kbc.status();
    assert!(status.output_full() && !status.aux());
    assert_eq!(kbc.data(), 0x5a);
    // Then the test, where 0, 0xfa and 0xff would do.
    assert_eq!(kbc.command(0xa9).1, 0x01);
    assert!(!kbc.asserted());
}

#[test]
fn a_device_that_is_not_there_times_out_at_once() {
    let mut kbc = Fixture::new();
    // Keyboard interrupt on, then "identify" for the keyboard.
    kbc.write(1, 0x60);
    kbc.write(0, 0x61);
    for to_mouse in [false, true] {
        if to_mouse {
            kbc.write(1, 0xd4);
        }
        kbc.write(0, 0xf2);
        assert!(kbc.asserted());
        let status = kbc.status();
        assert!(status.output_full() && status.timeout() && !status.command());
        assert_eq!(kbc.data(), 0xfe);
        assert!(!kbc.asserted());
        assert_eq!(kbc.status().into_bits() & 0x41, 0);
    }
}

#[test]
fn commands_switch_the_bits_of_the_command_byte() {
    let mut kbc = Fixture::new();
    for (command, byte) in [(0xae, 0x20), (0xa8, 0x00), (0xa7, 0x20), (0xad, 0x30)] {
        kbc.write(1, command);
        assert!(kbc.status().command());
        assert_eq!(kbc.command(0x20).1, byte);
    }
    assert_eq!(kbc.command(0xab).1, 0x00);
}

#[test]
fn the_ram_has_32_bytes() {
    let mut kbc = Fixture::new();
    for index in 0..32 {
        kbc.write(1, 0x60 + index);
        kbc.write(0, 0xe0 ^ index);
    }
    for index in 0..32 {
        assert_eq!(kbc.command(0x20 + index).1, 0xe0 ^ index);
    }
}

#[test]
fn the_system_flag_follows_the_command_byte() {
    let mut kbc = Fixture::new();
    for (byte, flag) in [(0x04, true), (0x00, false)] {
        kbc.write(1, 0x60);
        kbc.write(0, byte);
        assert_eq!(kbc.status().system(), flag);
    }
}

#[test]
fn a_command_that_waits_is_replaced_by_the_next() {
    let mut kbc = Fixture::new();
    kbc.write(1, 0xd1);
    kbc.write(1, 0xd2);
    kbc.write(0, 0x00);
    assert_eq!(kbc.events(), []);
    assert_eq!(kbc.data(), 0x00);
}

#[test]
fn unknown_commands_do_nothing() {
    let mut kbc = Fixture::new();
    for command in [0x00, 0x1f, 0x80, 0xa6, 0xac, 0xb0, 0xc1, 0xcf, 0xd5, 0xef] {
        kbc.write(1, command);
        assert!(!kbc.status().output_full(), "{command:#x}");
    }
}

#[test]
fn a_reset_clears_all() {
    let mut kbc = Fixture::new();
    kbc.write(1, 0x60);
    kbc.write(0, 0x01);
    kbc.write(0, 0xed);
    kbc.write(2, 0x01);
    kbc.write(1, 0xd1);
    assert!(kbc.asserted());
    kbc.i8042.reset();
    assert!(!kbc.asserted());
    assert_eq!(kbc.i8042.save(), Fixture::new().i8042.save());
}

#[test]
fn hostile_states_are_refused_by_name() {
    let good = State {
        ram: vec![0; 32],
        ..State::default()
    };
    let broken = |change: fn(&mut State)| {
        let mut state = good.clone();
        change(&mut state);
        SavedState::new(STATE_VERSION, &state)
    };
    for (field, state) in [
        ("status", broken(|s| s.status = 256)),
        ("output", broken(|s| s.output = 256)),
        ("waiting", broken(|s| s.waiting = 256)),
        ("ram", broken(|s| s.ram.clear())),
        ("output_port", broken(|s| s.output_port = 256)),
        ("control_a", broken(|s| s.control_a = 256)),
    ] {
        let mut kbc = Fixture::new();
        let error = kbc.i8042.restore(&state).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert_eq!(kbc.i8042.save(), Fixture::new().i8042.save());
    }
    let mut kbc = Fixture::new();
    kbc.i8042.restore(&broken(|s| s.status = 0xff)).unwrap();
    assert_eq!(kbc.status().into_bits(), 0x5d);
}

//! A machine that bytes drive, beside its twin.
//!
//! At some points the machine is saved, and a new one with the state goes on in a copy of
//! the world. From then on both live through the same and must do the same.

use std::time::Duration;

use super::Cable;
use super::SharedWorld;
use super::World;
use crate::Chipset;
use crate::acpi_pm::SLEEP_TYPE_S5;
use crate::bus::Space;
use crate::bus::Width;
use crate::ioapic;
use crate::power::PowerEvent;
use crate::time::VmTime;
use crate::uart::ModemInputs;
use crate::unclaimed::MAX_ADDRESSES;

/// Ports of devices, and some beside them.
const PORTS: [u16; 36] = [
    0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x2f8, 0x2f9, 0x2fa, 0x2fb, 0x2fc,
    0x2fd, 0x2ff, 0x60, 0x64, 0x92, 0x70, 0x71, 0x600, 0x602, 0x603, 0x604, 0x605, 0x606, 0x608,
    0x60b, 0xcf8, 0xcf9, 0xcfb, 0xcfc, 0xcfe, 0x3f7, 0x80, 0xffff,
];
/// A guest that never stops writing meets a limit of the test, not of the devices.
const MAX_STEPS: usize = 4096;

/// Bytes, from the front; zeros behind the end.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let (now, later) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = later;
        let mut number = [0; 8];
        number[..now.len()].copy_from_slice(now);
        u64::from_le_bytes(number)
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Read(Space, u64, Width),
    Write(Space, u64, Width, u64),
    ReadCmos(u8),
    WriteCmos(u8, u8),
    Redirect(u8, u32),
    Advance(Duration),
    SetWall(i64),
    Input(usize, u8, u8),
    Room(usize, u8),
    Modem(usize, u8),
    Break(usize),
    Eoi(u8),
    PowerButton,
    Poll,
    Reset,
    PauseAndResume,
    Save,
}

impl Step {
    fn next(source: &mut Source<'_>) -> Self {
        let kind = source.byte();
        let port = usize::from(kind >> 7);
        match kind & 0x3f {
            0..=11 => {
                let (space, address, width) = place(source);
                Self::Read(space, address, width)
            }
            12..=24 => {
                let (space, address, width) = place(source);
                let value = source.number(width.bytes() as usize);
                Self::Write(space, address, width, value)
            }
            // A register behind an index is too far for chance.
            25..=26 => Self::ReadCmos(source.byte() % 16),
            27..=28 => Self::WriteCmos(source.byte() % 16, source.byte()),
            29..=31 => {
                let pin = [1, 3, 4, 8, 9, 23][usize::from(source.byte()) % 6];
                Self::Redirect(pin, source.number(3) as u32)
            }
            // From nanoseconds to hours.
            32..=37 => {
                let shift = source.byte() % 43;
                Self::Advance(Duration::from_nanos(source.number(1) << shift))
            }
            38 => Self::SetWall(source.number(8) as i64),
            39..=42 => Self::Input(port, source.byte() % 40, source.byte()),
            43..=45 => Self::Room(port, source.byte()),
            46 => Self::Modem(port, source.byte()),
            47 => Self::Break(port),
            48..=50 => Self::Eoi(source.byte()),
            51 => Self::PowerButton,
            52..=56 => Self::Poll,
            57 => Self::Reset,
            58 => Self::PauseAndResume,
            _ => Self::Save,
        }
    }
}

fn place(source: &mut Source<'_>) -> (Space, u64, Width) {
    let kind = source.byte();
    let width = match kind & 7 {
        0..=4 => Width::Byte,
        5 => Width::Word,
        _ => Width::Dword,
    };
    match kind >> 3 {
        0..=21 => {
            let port = PORTS[usize::from(source.byte()) % PORTS.len()];
            (Space::Port, port.into(), width)
        }
        22..=23 => (Space::Port, source.number(2), width),
        24..=30 => {
            let registers = [0x00, 0x10, 0x10, 0x40];
            let register = registers[usize::from(kind & 3)];
            (Space::Memory, ioapic::DEFAULT_BASE + register, Width::Dword)
        }
        _ => {
            let width = if kind & 1 == 0 { Width::Qword } else { width };
            (Space::Memory, source.number(8), width)
        }
    }
}

/// What a step has shown.
type Seen = (u64, Option<VmTime>);

fn take(step: Step, world: &SharedWorld, chipset: &Chipset) -> Seen {
    let mut seen = 0;
    match step {
        Step::Read(space, address, width) => {
            seen = chipset.bus().read(space, address, width);
            assert_eq!(seen & !width.mask(), 0);
        }
        Step::Write(space, address, width, value) => {
            seen = chipset.bus().write(space, address, width, value) as u64;
        }
        Step::ReadCmos(index) => {
            seen = chipset.bus().write_port(0x70, Width::Byte, index.into()) as u64;
            seen |= chipset.bus().read_port(0x71, Width::Byte) << 8;
        }
        Step::WriteCmos(index, value) => {
            seen = chipset.bus().write_port(0x70, Width::Byte, index.into()) as u64;
            seen |= (chipset.bus().write_port(0x71, Width::Byte, value.into()) as u64) << 8;
        }
        Step::Redirect(pin, entry) => {
            let index = u64::from(0x10 + 2 * pin);
            for (offset, value) in [(0x00, index), (0x10, entry.into())] {
                let address = ioapic::DEFAULT_BASE + offset;
                seen = chipset.bus().write_memory(address, Width::Dword, value) as u64;
            }
        }
        Step::Advance(time) => world.advance(time),
        Step::SetWall(wall) => world.lock().wall = wall,
        Step::Input(port, count, byte) => {
            let bytes = (0..count).map(|i| byte.wrapping_add(i));
            world.lock().serial[port].input.extend(bytes);
            uart(chipset, port).with(crate::Device::poll);
        }
        Step::Room(port, room) => {
            world.lock().serial[port].room = room.into();
            uart(chipset, port).with(crate::Device::poll);
        }
        Step::Modem(port, lines) => uart(chipset, port).with(|uart| {
            uart.set_modem_inputs(ModemInputs {
                cts: lines & 1 != 0,
                dsr: lines & 2 != 0,
                ri: lines & 4 != 0,
                dcd: lines & 8 != 0,
            });
        }),
        Step::Break(port) => seen = uart(chipset, port).with(|u| u.receive_break()).into(),
        Step::Eoi(vector) => chipset.end_of_interrupt(vector),
        Step::PowerButton => chipset.pm().with(|pm| pm.press_power_button()),
        Step::Poll => {}
        Step::Reset => {
            chipset.pause().expect("it runs");
            chipset.reset().expect("it is paused");
            chipset.resume().expect("it is paused");
        }
        Step::PauseAndResume | Step::Save => {
            chipset.pause().expect("it runs");
            chipset.resume().expect("it is paused");
        }
    }
    (
        seen,
        matches!(step, Step::Poll).then(|| chipset.poll()).flatten(),
    )
}

fn uart(chipset: &Chipset, port: usize) -> &crate::device::Slot<crate::uart::Uart> {
    if port == 0 {
        chipset.com1()
    } else {
        chipset.com2()
    }
}

/// The chipset's successor, in a world of its own.
fn twin(world: &SharedWorld, chipset: &Chipset) -> (SharedWorld, Chipset) {
    chipset.pause().expect("it runs");
    let saved = chipset.save().expect("it is paused");
    let other = SharedWorld::new(world.snapshot());
    let restored = other.chipset();
    restored.restore(&saved).expect("a state that was saved");
    // A restore tells nobody anything.
    assert_eq!(done(&other), done(world));
    chipset.resume().expect("it is paused");
    restored.start().expect("it is new");
    (other, restored)
}

/// What a step has done to the world: taken out of it, so that the next step is as quick
/// as the first. Counts of unclaimed accesses are not saved, wakes depend on what was
/// announced before, and a VP that waits is not part of the chipset: those may differ.
fn done(world: &SharedWorld) -> World {
    let mut world = world.lock();
    let now = (world.clock, world.wall);
    let rest = World {
        clock: now.0,
        wall: now.1,
        serial: world.serial.clone().map(|cable| Cable {
            output: Vec::new(),
            ..cable
        }),
        ..World::default()
    };
    World {
        unclaimed: Vec::new(),
        wakes: 0,
        unstalls: 0,
        ..std::mem::replace(&mut *world, rest)
    }
}

/// Lives through what `bytes` say.
///
/// # Panics
/// A device breaks a promise.
pub fn run(bytes: &[u8]) {
    let mut source = Source(bytes);
    let world = SharedWorld::default();
    let chipset = world.chipset();
    chipset.start().expect("it is new");
    let mut other: Option<(SharedWorld, Chipset)> = None;

    for _ in 0..MAX_STEPS {
        if source.0.is_empty() {
            break;
        }
        let step = Step::next(&mut source);
        let seen = take(step, &world, &chipset);
        let done = done(&world);
        let other_sleep = PowerEvent::UnknownSleepType(SLEEP_TYPE_S5);
        assert!(!done.power.contains(&other_sleep));
        if let Some((other_world, other)) = &other {
            let other_seen = take(step, other_world, other);
            assert_eq!(seen, other_seen, "{step:?}");
            assert_eq!(done, self::done(other_world), "{step:?}");
        }
        if matches!(step, Step::Save) {
            other = Some(twin(&world, &chipset));
        }
    }

    let (counts, _) = chipset.bus().unclaimed();
    assert!(counts.len() <= MAX_ADDRESSES);
    if let Some((_, other)) = other {
        chipset.pause().expect("it runs");
        other.pause().expect("it runs");
        assert_eq!(chipset.save(), other.save());
    }
}

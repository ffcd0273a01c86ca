//! Mechanism 1, byte enables, reset control.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::Bus;
use crate::device::Slot;
use crate::testing::SharedWorld;

type Registers = Arc<Mutex<[u32; 64]>>;

/// A function that is memory.
#[derive(Inspect)]
struct Memory(#[inspect(hex)] Registers);

impl Lifecycle for Memory {
    fn reset(&mut self) {
        *self.0.lock().unwrap() = [0; 64];
    }

    fn save(&self) -> SavedState {
        let first = self.0.lock().unwrap()[0];
        SavedState {
            version: 1,
            data: first.to_le_bytes().to_vec(),
        }
    }

    fn restore(&mut self, state: &SavedState) -> Result<(), RestoreError> {
        let first = state.data.as_slice().try_into();
        let first = first.map_err(|_| RestoreError::Value {
            field: "first",
            value: 0,
            expected: "4 bytes",
        })?;
        self.0.lock().unwrap()[0] = u32::from_le_bytes(first);
        Ok(())
    }
}

impl PciFunction for Memory {
    fn read_config(&mut self, offset: u8, _: ByteEnables) -> u32 {
        self.0.lock().unwrap()[usize::from(offset / 4)]
    }

    fn write_config(&mut self, offset: u8, enables: ByteEnables, value: u32) {
        let register = &mut self.0.lock().unwrap()[usize::from(offset / 4)];
        *register = enables.merge(*register, value);
    }
}

const ADDRESS: PciAddress = PciAddress {
    bus: 0,
    device: 3,
    function: 1,
};
/// CONFIG_ADDRESS of its register 8.
const SELECTED: u64 = 0x8000_0000 | 3 << 11 | 1 << 8 | 8;

struct Fixture {
    world: SharedWorld,
    bus: Bus,
    pci: Arc<Slot<PciConfig>>,
    registers: Registers,
}

impl Fixture {
    fn new() -> Self {
        let world = SharedWorld::default();
        let shared = Arc::new(world.clone());
        let registers = Arc::new(Mutex::new([0; 64]));
        let mut pci = PciConfig::new(shared.clone());
        pci.attach(ADDRESS, Box::new(Memory(registers.clone())))
            .unwrap();
        let pci = Slot::new("pci", shared.clone(), pci);
        let mut bus = Bus::new(shared);
        bus.attach(pci.clone()).unwrap();
        Self {
            world,
            bus,
            pci,
            registers,
        }
    }

    fn read(&self, port: u16, width: Width) -> u64 {
        self.bus.read_port(port, width)
    }

    fn write(&self, port: u16, width: Width, value: u64) {
        assert_eq!(self.bus.write_port(port, width, value), Written::Done);
    }
}

#[test]
fn an_address_without_a_function_is_no_device() {
    let pci = Fixture::new();
    for address in [
        0x8000_0000,
        SELECTED ^ 1 << 8,
        SELECTED ^ 1 << 11,
        SELECTED | 1 << 16,
    ] {
        pci.write(0xcf8, Width::Dword, address);
        assert_eq!(pci.read(0xcfc, Width::Dword), 0xffff_ffff);
        assert_eq!(pci.read(0xcfe, Width::Word), 0xffff);
        pci.write(0xcfc, Width::Dword, 0);
    }
    // Answered, so not unclaimed.
    assert_eq!(pci.bus.unclaimed().0, []);
}

#[test]
fn nothing_is_selected_without_the_enable_bit() {
    let pci = Fixture::new();
    pci.registers.lock().unwrap()[2] = 5;
    pci.write(0xcf8, Width::Dword, SELECTED & 0x7fff_ffff);
    assert_eq!(pci.read(0xcfc, Width::Dword), 0xffff_ffff);
    pci.write(0xcf8, Width::Dword, SELECTED);
    assert_eq!(pci.read(0xcfc, Width::Dword), 5);
}

#[test]
fn the_address_is_read_and_written_as_a_whole_only() {
    let pci = Fixture::new();
    pci.write(0xcf8, Width::Dword, 0xffff_ffff);
    assert_eq!(pci.read(0xcf8, Width::Dword), 0x80ff_fffc);
    pci.write(0xcfb, Width::Byte, 0x01);
    pci.write(0xcf8, Width::Word, 0);
    assert_eq!(pci.read(0xcf8, Width::Dword), 0x80ff_fffc);
    assert_eq!(pci.read(0xcfb, Width::Byte), 0xff);
    assert_eq!(pci.read(0xcf8, Width::Word), 0xffff);
}

#[test]
fn the_test_for_mechanism_1_of_linux_passes() {
    // arch/x86/pci/direct.c, pci_check_type1.
    let pci = Fixture::new();
    let saved = pci.read(0xcf8, Width::Dword);
    pci.write(0xcfb, Width::Byte, 0x01);
    pci.write(0xcf8, Width::Dword, 0x8000_0000);
    assert_eq!(pci.read(0xcf8, Width::Dword), 0x8000_0000);
    pci.write(0xcf8, Width::Dword, saved);
    assert_eq!(pci.world.lock().power, []);
}

#[test]
fn reset_control_resets_when_its_bit_rises() {
    let pci = Fixture::new();
    let reset = PowerEvent::Reset(ResetSource::ResetControl);
    // As Linux does with reboot=pci, and as the FADT says.
    for (value, resets) in [(0x02, 0), (0x06, 1), (0x0e, 0), (0x00, 0), (RESET_VALUE, 1)] {
        pci.write(RESET_CONTROL_PORT, Width::Byte, value.into());
        let events = std::mem::take(&mut pci.world.lock().power);
        assert_eq!(events, vec![reset; resets]);
        assert_eq!(pci.read(RESET_CONTROL_PORT, Width::Byte), value.into());
    }
    pci.write(RESET_CONTROL_PORT, Width::Byte, 0xf1);
    assert_eq!(pci.read(RESET_CONTROL_PORT, Width::Byte), 0);
}

#[test]
fn byte_enables_are_a_run() {
    for (first, count, bits, mask) in [
        (0, 4, 0xf, 0xffff_ffff),
        (0, 1, 0x1, 0x0000_00ff),
        (3, 1, 0x8, 0xff00_0000),
        (2, 2, 0xc, 0xffff_0000),
    ] {
        let enables = ByteEnables::run(first, count);
        assert_eq!((enables.bits(), enables.mask()), (bits, mask));
    }
    assert_eq!(ByteEnables::run(1, 2).merge(0x1122_3344, 0), 0x1100_0044);
    assert_eq!(ByteEnables::ALL.mask(), u32::MAX);
}

#[test]
fn functions_need_an_address_of_their_own() {
    let pci = Fixture::new();
    let memory = || Box::new(Memory(Registers::new(Mutex::new([0; 64]))));
    let attach = |address| pci.pci.with(|pci| pci.attach(address, memory()));
    assert_eq!(attach(ADDRESS), Err(PciAttachError::Taken(ADDRESS)));
    for bad in [
        PciAddress {
            device: 32,
            ..ADDRESS
        },
        PciAddress {
            function: 8,
            ..ADDRESS
        },
    ] {
        assert_eq!(attach(bad), Err(PciAttachError::Invalid(bad)));
    }
    assert_eq!(ADDRESS.to_string(), "00:03.1");
}

#[test]
fn functions_are_saved_and_restored_with_the_bridge() {
    let pci = Fixture::new();
    pci.registers.lock().unwrap()[0] = 7;
    pci.write(0xcf8, Width::Dword, SELECTED);
    let state = pci.pci.with(|pci| pci.save());
    let other = Fixture::new();
    other.pci.with(|pci| pci.restore(&state)).unwrap();
    assert_eq!(other.registers.lock().unwrap()[0], 7);
    assert_eq!(other.read(0xcf8, Width::Dword), SELECTED);
    other.pci.with(|pci| pci.reset());
    assert_eq!(other.registers.lock().unwrap()[0], 0);
    // A machine with other functions is another machine.
    let mut empty = PciConfig::new(Arc::new(SharedWorld::default()));
    let error = empty.restore(&state).unwrap_err();
    assert!(matches!(error, RestoreError::Parts { .. }), "{error}");
}

proptest! {
    /// Whatever the width and place, the window is the register's bytes.
    #[test]
    fn the_window_is_memory(
        writes in proptest::collection::vec((0_u16..4, 0_u8..3, any::<u32>()), 0..20),
    ) {
        let pci = Fixture::new();
        pci.write(0xcf8, Width::Dword, SELECTED);
        let mut model = [0_u8; 4];
        for (first, width, value) in writes {
            let width = Width::from_bytes(1 << width).unwrap();
            // Bytes behind the window belong to nobody.
            pci.write(0xcfc + first, width, value.into());
            for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
                let at = usize::from(first) + i;
                if (i as u64) < width.bytes() && at < 4 {
                    model[at] = byte;
                }
            }
            prop_assert_eq!(pci.registers.lock().unwrap()[2].to_le_bytes(), model);
            for (i, byte) in (0..).zip(model) {
                prop_assert_eq!(pci.read(0xcfc + i, Width::Byte), u64::from(byte));
            }
        }
    }
}

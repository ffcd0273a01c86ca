//! Who answers, in which pieces.

use std::sync::Mutex;

use super::*;
use crate::device::Lifecycle;
use crate::device::Wake;
use crate::state::RestoreError;
use crate::state::SavedState;
use crate::unclaimed::Unclaimed;

#[derive(Default)]
struct Watcher(Mutex<Vec<Unclaimed>>);

impl UnclaimedObserver for Watcher {
    fn unclaimed(&self, access: &Unclaimed) {
        self.0.lock().unwrap().push(*access);
    }
}

impl Wake for Watcher {
    fn wake(&self) {}

    fn unstalled(&self) {}
}

/// Reads as its offset in each byte; remembers what is done to it.
#[derive(Inspect)]
struct Probe {
    #[inspect(skip)]
    regions: Vec<Region>,
    #[inspect(skip)]
    log: Log,
    stall: bool,
}

impl Lifecycle for Probe {
    fn reset(&mut self) {}

    fn save(&self) -> SavedState {
        SavedState::default()
    }

    fn restore(&mut self, _: &SavedState) -> Result<(), RestoreError> {
        Ok(())
    }
}

impl Device for Probe {
    fn regions(&self) -> Vec<Region> {
        self.regions.clone()
    }

    fn read(&mut self, access: Access) -> u64 {
        self.log.lock().unwrap().push((access, None));
        let offsets = (0..8).map(|i| (access.offset + i) as u8);
        u64::from_le_bytes(offsets.collect::<Vec<_>>().try_into().unwrap())
    }

    fn write(&mut self, access: Access, value: u64) -> Written {
        if self.stall {
            return Written::Stalled;
        }
        self.log.lock().unwrap().push((access, Some(value)));
        Written::Done
    }
}

type Log = Arc<Mutex<Vec<(Access, Option<u64>)>>>;

fn region(space: Space, start: u64, length: u64, narrowest: Width, widest: Width) -> Region {
    Region {
        space,
        start,
        length,
        narrowest,
        widest,
    }
}

fn attach(bus: &mut Bus, name: &str, regions: &[Region], stall: bool) -> Result<Log, AttachError> {
    let log = Log::default();
    let probe = Probe {
        regions: regions.to_vec(),
        log: log.clone(),
        stall,
    };
    bus.attach(Slot::new(name, Arc::new(Watcher::default()), probe))?;
    Ok(log)
}

fn bus() -> (Arc<Watcher>, Bus) {
    let watcher = Arc::new(Watcher::default());
    (watcher.clone(), Bus::new(watcher))
}

#[test]
fn nobody_reads_as_ones_of_the_width() {
    let (watcher, bus) = bus();
    for (width, ones) in [
        (Width::Byte, 0xff),
        (Width::Word, 0xffff),
        (Width::Dword, 0xffff_ffff),
    ] {
        assert_eq!(bus.read_port(0x80, width), ones);
    }
    assert_eq!(bus.read_memory(u64::MAX, Width::Qword), u64::MAX);
    assert_eq!(bus.write_port(0x80, Width::Byte, 0x1ff), Written::Done);
    let seen = watcher.0.lock().unwrap();
    let seen: Vec<_> = seen
        .iter()
        .map(|s| (s.address, s.written, s.count))
        .collect();
    let port = |written, count| (0x80, written, count);
    assert_eq!(
        seen,
        [
            port(None, 1),
            port(None, 2),
            (u64::MAX, None, 1),
            port(Some(0xff), 4)
        ]
    );
}

#[test]
fn a_wide_access_to_a_narrow_device_is_cut_low_half_first() {
    let (_, mut bus) = bus();
    let log = attach(&mut bus, "a", &[Region::byte_ports(0x3f8, 8)], false).unwrap();
    assert_eq!(bus.read_port(0x3f8, Width::Dword), 0x0302_0100);
    assert_eq!(bus.write_port(0x3fc, Width::Word, 0xbbaa), Written::Done);
    let written: Vec<_> = log.lock().unwrap()[4..]
        .iter()
        .map(|(access, value)| (access.offset, access.width, *value))
        .collect();
    assert_eq!(
        written,
        [(4, Width::Byte, Some(0xaa)), (5, Width::Byte, Some(0xbb))]
    );
}

#[test]
fn an_access_across_a_border_reaches_both_sides() {
    let (watcher, mut bus) = bus();
    let wide = |start| region(Space::Port, start, 4, Width::Byte, Width::Dword);
    attach(&mut bus, "a", &[wide(0x100)], false).unwrap();
    attach(&mut bus, "b", &[wide(0x104)], false).unwrap();
    assert_eq!(bus.read_port(0x102, Width::Dword), 0x0100_0302);
    assert_eq!(bus.read_port(0x103, Width::Word), 0x0003);
    // From nobody into a device, and from a device to nobody.
    assert_eq!(bus.read_port(0xfe, Width::Dword), 0x0100_ffff);
    assert_eq!(bus.read_port(0x106, Width::Dword), 0xffff_0302);
    assert_eq!(bus.read_port(0xffff, Width::Dword), 0xffff_ffff);
    assert_eq!(watcher.0.lock().unwrap().len(), 3);
}

#[test]
fn too_narrow_is_unclaimed_and_too_wide_is_cut() {
    let (_, mut bus) = bus();
    let only = region(
        Space::Memory,
        0xfec0_0000,
        0x1000,
        Width::Dword,
        Width::Dword,
    );
    let log = attach(&mut bus, "ioapic", &[only], false).unwrap();
    assert_eq!(bus.read_memory(0xfec0_0010, Width::Word), 0xffff);
    assert_eq!(bus.write_memory(0xfec0_0010, Width::Byte, 1), Written::Done);
    assert!(log.lock().unwrap().is_empty());
    assert_eq!(
        bus.read_memory(0xfec0_0010, Width::Qword),
        0x1716_1514_1312_1110
    );
    // Not aligned: the pieces are too narrow.
    assert_eq!(bus.read_memory(0xfec0_0012, Width::Dword), 0xffff_ffff);
    assert_eq!(log.lock().unwrap().len(), 2);
    let (counts, _) = bus.unclaimed();
    assert_eq!(
        counts,
        [
            (Space::Memory, 0xfec0_0010, 2),
            (Space::Memory, 0xfec0_0012, 1),
            (Space::Memory, 0xfec0_0014, 1)
        ]
    );
}

#[test]
fn a_stalled_piece_stalls_the_access() {
    let (_, mut bus) = bus();
    let quick = attach(&mut bus, "a", &[Region::byte_ports(0x10, 1)], false).unwrap();
    attach(&mut bus, "b", &[Region::byte_ports(0x11, 1)], true).unwrap();
    assert_eq!(bus.write_port(0x10, Width::Word, 0), Written::Stalled);
    assert_eq!(bus.write_port(0x11, Width::Word, 0), Written::Stalled);
    assert_eq!(quick.lock().unwrap().len(), 1);
}

#[test]
fn overlaps_are_refused_and_named() {
    let (_, mut bus) = bus();
    attach(&mut bus, "COM1", &[Region::byte_ports(0x3f8, 8)], false).unwrap();
    let regions = [Region::byte_ports(0x60, 1), Region::byte_ports(0x3ff, 2)];
    let error = attach(&mut bus, "other", &regions, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "other wants port 0x3ff to 0x400, where COM1 has port 0x3f8 to 0x3ff; expected no overlap"
    );
    // Nothing of it stays.
    assert_eq!(bus.read_port(0x60, Width::Byte), 0xff);
    // The same numbers in the other space are free; a device can be in its own way.
    let memory = region(Space::Memory, 0x3f8, 8, Width::Byte, Width::Qword);
    attach(&mut bus, "memory", &[memory], false).unwrap();
    let twice = attach(&mut bus, "twice", &[memory_at(0), memory_at(4)], false);
    assert!(matches!(twice, Err(AttachError::Conflict { owner, .. }) if owner == "twice"));
    let again = attach(&mut bus, "COM1", &[], false).unwrap_err();
    assert!(matches!(again, AttachError::DuplicateName { .. }));
}

fn memory_at(start: u64) -> Region {
    region(Space::Memory, 0x1000 + start, 8, Width::Byte, Width::Byte)
}

#[test]
fn impossible_regions_are_refused() {
    let (_, mut bus) = bus();
    for bad in [
        region(Space::Port, 0, 0, Width::Byte, Width::Byte),
        region(Space::Port, 0xffff, 2, Width::Byte, Width::Byte),
        region(Space::Port, 0, 8, Width::Byte, Width::Qword),
        region(Space::Memory, u64::MAX, 2, Width::Byte, Width::Byte),
        region(Space::Memory, 0, 8, Width::Dword, Width::Byte),
    ] {
        let error = attach(&mut bus, "bad", &[bad], false).unwrap_err();
        assert!(matches!(error, AttachError::Invalid { .. }), "{bad}");
    }
}

#[test]
fn widths() {
    assert_eq!(Width::from_bytes(3), None);
    for bytes in [1, 2, 4, 8] {
        assert_eq!(Width::from_bytes(bytes).unwrap().bytes(), bytes);
    }
    assert_eq!(Width::Qword.mask(), u64::MAX);
}

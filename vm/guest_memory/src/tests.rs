use super::*;
use proptest::prelude::*;
use std::sync::Mutex;

const PAGE: u64 = 4096;

fn range(start: u64, end: u64) -> GpaRange {
    GpaRange::from_bounds(start, end).unwrap()
}

/// Two ranges that touch, a hole, and one more.
fn memory() -> GuestMemory {
    GuestMemory::anonymous(&[
        range(0, 2 * PAGE),
        range(2 * PAGE, 3 * PAGE),
        range(8 * PAGE, 9 * PAGE),
    ])
    .unwrap()
}

#[test]
fn what_is_written_is_read_across_ranges() {
    let memory = memory();

    memory.write(2 * PAGE - 3, b"across").unwrap();

    let mut read = [0; 8];
    memory.read(2 * PAGE - 4, &mut read).unwrap();
    assert_eq!(&read, b"\0across\0");
}

#[test]
fn an_access_that_leaves_ram_changes_nothing() {
    let memory = memory();

    let error = memory.write(3 * PAGE - 2, b"beyond").unwrap_err();

    assert!(matches!(error, Error::NotRam { missing, .. } if missing == 3 * PAGE));
    assert_eq!(memory.read_value::<u16>(3 * PAGE - 2).unwrap(), 0);
    assert!(memory.read(u64::MAX - 1, &mut [0; 8]).is_err());
    assert!(memory.read(4 * PAGE, &mut [0; 1]).is_err());
    assert!(!memory.is_ram(7 * PAGE, 2 * PAGE) && memory.is_ram(0, 3 * PAGE));
}

#[test]
fn atomic_operations_want_alignment() {
    let memory = memory();

    assert_eq!(memory.fetch_or(8, 0x10).unwrap(), 0);
    assert_eq!(memory.fetch_or(8, 0x01).unwrap(), 0x10);
    assert_eq!(memory.compare_exchange(8, 0x11, 7).unwrap(), 0x11);
    assert_eq!(memory.compare_exchange(8, 0x11, 9).unwrap(), 7);
    assert!(matches!(
        memory.fetch_or(10, 1),
        Err(Error::Misaligned { gpa: 10, size: 4 })
    ));
}

#[test]
fn ranges_are_checked() {
    let unsorted = [range(PAGE, 3 * PAGE), range(2 * PAGE, 4 * PAGE)];
    assert!(matches!(
        GuestMemory::anonymous(&unsorted),
        Err(MapError::Order(_))
    ));
    assert!(matches!(
        GuestMemory::anonymous(&[range(0, 100)]),
        Err(MapError::NotPages(_))
    ));
}

#[derive(Default)]
struct Recorder {
    registered: Mutex<Vec<GpaRange>>,
    failures: Mutex<u32>,
}

impl Register for Recorder {
    fn chunk(&self) -> u64 {
        4 * PAGE
    }

    fn register(&self, range: GpaRange) -> io::Result<()> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(io::Error::from(io::ErrorKind::OutOfMemory));
        }
        self.registered.lock().unwrap().push(range);
        Ok(())
    }
}

fn registered(recorder: &Arc<Recorder>) -> GuestMemory {
    let recorder = recorder.clone();
    GuestMemory::new(&[range(2 * PAGE, 10 * PAGE)], move |range| {
        let registered = Registered::new(range, recorder.clone());
        Ok((Mapping::anonymous(range)?, registered))
    })
    .unwrap()
}

#[test]
fn chunks_are_registered_once_and_when_touched() {
    let recorder = Arc::new(Recorder::default());
    let memory = registered(&recorder);
    assert!(recorder.registered.lock().unwrap().is_empty());

    memory.write(3 * PAGE, b"a").unwrap();
    memory.write(4 * PAGE - 1, b"bc").unwrap();
    memory.fill(2 * PAGE, 3 * PAGE, 0).unwrap();

    let expected = [range(2 * PAGE, 4 * PAGE), range(4 * PAGE, 8 * PAGE)];
    assert_eq!(*recorder.registered.lock().unwrap(), expected);
}

#[test]
fn a_chunk_that_could_not_be_registered_is_tried_again() {
    let recorder = Arc::new(Recorder::default());
    *recorder.failures.lock().unwrap() = 1;
    let memory = registered(&recorder);

    let first = memory.write(9 * PAGE, b"a");

    assert!(matches!(first, Err(Error::Register { .. })));
    memory.write(9 * PAGE, b"a").unwrap();
}

proptest! {
    #[test]
    fn memory_is_as_a_plain_buffer(
        writes in prop::collection::vec(
            (0..3 * PAGE, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
        probe in (0..3 * PAGE, 0..64_usize),
    ) {
        let memory = memory();
        let mut plain = vec![0; 3 * PAGE as usize];
        for (gpa, data) in &writes {
            let inside = plain.get_mut(*gpa as usize..*gpa as usize + data.len());
            let written = memory.write(*gpa, data);
            prop_assert_eq!(inside.is_some(), written.is_ok());
            if let Some(inside) = inside {
                inside.copy_from_slice(data);
            }
        }
        let (gpa, length) = probe;
        let mut read = vec![0; length];
        match plain.get(gpa as usize..gpa as usize + length) {
            Some(expected) => {
                memory.read(gpa, &mut read).unwrap();
                prop_assert_eq!(&read[..], expected);
            }
            None => prop_assert!(memory.read(gpa, &mut read).is_err()),
        }
    }
}

//! Programs: what is taken from them, and which are refused.

use crate::synthetic::{EXECUTABLE, SHARED, Segment, X86_64, elf, kernel_segments, pattern};
use igvm_builder::elf::{ElfError, Program, Role};
use proptest::prelude::*;
use vm_loader::elf::ElfError as File;

const ROOM: u64 = 64 << 20;

fn shim(segments: &[Segment]) -> Result<Program, ElfError> {
    Program::parse(&elf(SHARED, X86_64, 0, segments), Role::Shim, ROOM)
}

#[test]
fn kernel_is_placed_by_physical_address_with_its_bss() {
    let file = elf(EXECUTABLE, X86_64, 0x100_0040, &kernel_segments());

    let kernel = Program::parse(&file, Role::Kernel, ROOM).expect("it is right");

    assert_eq!(kernel.entry, 0x40);
    assert_eq!(kernel.memory_size, 0xc000);
    let runs: Vec<_> = kernel.runs().map(|(at, data)| (at, data.len())).collect();
    assert_eq!(runs, [(0, 0x3000), (0x8000, 0x4000)]);
    let (_, data) = kernel.runs().nth(1).expect("there are two");
    assert_eq!(data[..0x1800], pattern(0x1800, 5));
    assert!(data[0x1800..].iter().all(|byte| *byte == 0));
}

#[test]
fn virtual_entry_of_a_kernel_is_translated() {
    let file = elf(
        EXECUTABLE,
        X86_64,
        0xffff_ffff_8100_8010,
        &kernel_segments(),
    );

    let kernel = Program::parse(&file, Role::Kernel, ROOM).expect("it is right");

    assert_eq!(kernel.entry, 0x8010);
}

#[test]
fn bss_of_the_shim_takes_room_but_is_not_imported() {
    let program = shim(&[
        Segment::new(0, pattern(0x1010, 1), 0x1010),
        Segment::new(0x3000, pattern(0x20, 2), 0x5000),
    ])
    .expect("it is right");

    assert_eq!(program.memory_size, 0x8000);
    let runs: Vec<_> = program.runs().map(|(at, data)| (at, data.len())).collect();
    assert_eq!(runs, [(0, 0x2000), (0x3000, 0x1000)]);
}

#[test]
fn segments_may_share_a_page_but_no_byte() {
    let program = shim(&[
        Segment::new(0, pattern(0x100, 1), 0x100),
        Segment::new(0x100, pattern(0x100, 2), 0x100),
    ])
    .expect("it is right");
    let (_, data) = program.runs().next().expect("there is one");
    assert_eq!(data[..0x100], pattern(0x100, 1));
    assert_eq!(data[0x100..0x200], pattern(0x100, 2));

    let overlapping = shim(&[
        Segment::new(0, pattern(0x101, 1), 0x101),
        Segment::new(0x100, pattern(0x100, 2), 0x100),
    ]);
    assert_eq!(
        overlapping,
        Err(ElfError::File(File::Overlap {
            first: 0,
            second: 1,
            address: 0x100
        }))
    );
}

#[test]
fn wrong_programs_are_refused_by_reason() {
    let one = [Segment::new(0, pattern(0x100, 1), 0x100)];
    let parse = |kind, machine, segments: &[Segment]| {
        Program::parse(&elf(kind, machine, 0, segments), Role::Shim, ROOM)
    };

    assert!(matches!(
        Program::parse(b"#!/bin/sh\n", Role::Shim, ROOM),
        Err(ElfError::File(File::Unreadable(_)))
    ));
    assert_eq!(
        parse(SHARED, 183, &one),
        Err(ElfError::File(File::Machine { found: 183 }))
    );
    assert!(matches!(
        parse(EXECUTABLE, X86_64, &one),
        Err(ElfError::File(File::Type { found: 2, .. }))
    ));
    assert_eq!(
        parse(SHARED, X86_64, &[]),
        Err(ElfError::File(File::NoSegments))
    );
    assert_eq!(
        parse(SHARED, X86_64, &[Segment::new(0x1000, vec![1], 1)]),
        Err(ElfError::ImageBase { found: 0x1000 })
    );
    assert!(matches!(
        parse(SHARED, X86_64, &[Segment::new(0, vec![1; 9], 8)]),
        Err(ElfError::File(File::Segment { index: 0, .. }))
    ));
    assert!(matches!(
        parse(SHARED, X86_64, &[Segment::new(0, vec![1], u64::MAX)]),
        Err(ElfError::File(File::Segment { index: 0, .. }))
    ));
    assert_eq!(
        parse(SHARED, X86_64, &[Segment::new(0, vec![1], ROOM + 1)]),
        Err(ElfError::TooLarge {
            needed: ROOM + 0x1000,
            available: ROOM
        })
    );
    let file = elf(SHARED, X86_64, 0x100, &one);
    assert_eq!(
        Program::parse(&file, Role::Shim, ROOM),
        Err(ElfError::File(File::Entry { entry: 0x100 }))
    );
    let cut = &file[..file.len() - 1];
    assert!(matches!(
        Program::parse(cut, Role::Shim, ROOM),
        Err(ElfError::File(File::Segment { index: 0, .. }))
    ));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for role in [Role::Kernel, Role::Shim, Role::Sidecar] {
            let _ = Program::parse(&bytes, role, ROOM);
        }
    }

    #[test]
    fn damaged_headers_never_panic(
        changes in prop::collection::vec((0usize..64 + 3 * 56, any::<u8>()), 1..12),
        words in prop::collection::vec((0usize..3, 1usize..7, any::<u64>()), 0..4),
    ) {
        let mut file = elf(EXECUTABLE, X86_64, 0x100_0040, &kernel_segments());
        for (segment, word, value) in words {
            let at = 64 + 56 * segment + 8 * word;
            if let Some(place) = file.get_mut(at..at + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
        for (at, value) in changes {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        for role in [Role::Kernel, Role::Shim, Role::Sidecar] {
            if let Ok(program) = Program::parse(&file, role, 1 << 20) {
                prop_assert!(program.memory_size <= 1 << 20);
                prop_assert!(program.entry < program.memory_size);
                prop_assert!(program.runs().count() > 0);
            }
        }
    }
}

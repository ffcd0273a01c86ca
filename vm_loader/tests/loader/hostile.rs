//! Kernel files from anybody, and layouts from anywhere: an error or a plan that keeps its
//! promises, never a panic.

use crate::files::{BzImageFile, EXECUTABLE, ElfSegment, SHARED, arm64_image, elf, vmlinux};
use crate::machine::{CHIPSET, MIB, SMALL, ram, range};
use proptest::collection::vec;
use proptest::prelude::*;
use vm_loader::aarch64::Image;
use vm_loader::elf::ElfError;
use vm_loader::x86_64::{LinuxDirect, LoadError};
use vm_loader::{GpaRange, MemoryLayout, Ram};

/// Plans with a small VM and checks what comes out.
fn check(kernel: &[u8], memory: MemoryLayout<'_>) {
    let initrd = [1; 5000];
    let direct = LinuxDirect {
        kernel,
        initrd: Some(&initrd),
        command_line: "quiet",
        memory,
        chipset: Some(&CHIPSET),
    };
    let Ok(plan) = direct.plan() else {
        return;
    };
    let mut end = 0;
    for piece in plan.pieces() {
        let place = piece.range;
        assert!(place.start() >= end, "{place} overlaps its predecessor");
        end = place.end();
        assert!(piece.data.len() as u64 <= place.len());
        assert!(end <= memory.limit);
        assert!(memory.reserved.iter().all(|r| !r.overlaps(&place)));
        let in_ram: u64 = memory
            .ram
            .iter()
            .map(|ram| ram.range.intersection(&place).len())
            .sum();
        assert_eq!(in_ram, place.len(), "{place} is not all RAM");
    }
    let entry = plan.registers().rip;
    let kernel = plan
        .pieces()
        .iter()
        .filter(|p| p.what.starts_with("kernel"));
    assert!(kernel.into_iter().any(|p| p.range.contains_address(entry)));
}

fn plan_error(kernel: &[u8]) -> LoadError {
    let direct = LinuxDirect {
        kernel,
        initrd: None,
        command_line: "",
        memory: SMALL,
        chipset: None,
    };
    direct.plan().map(|_| ()).unwrap_err()
}

#[test]
fn every_truncation_of_a_kernel_is_refused() {
    let bz_image = BzImageFile {
        payload: vec![1; 0x210],
        ..BzImageFile::default()
    }
    .bytes();
    let payload_end = bz_image.len() - b"signature".len();
    let segment = ElfSegment::new(0x100_0000, vec![1; 0x100], 0x200);
    let vmlinux = elf(EXECUTABLE, 0x100_0000, &[segment]);
    for (file, complete) in [(&bz_image, payload_end), (&vmlinux, vmlinux.len())] {
        for size in 0..complete {
            plan_error(&file[..size]);
        }
    }
    for size in 0..64 {
        assert!(Image::parse(&arm64_image(0, 1 << 20, 0, 64)[..size]).is_err());
    }
}

#[test]
fn overlapping_segments_are_refused() {
    let segments = [
        ElfSegment::new(0x100_0000, vec![1; 0x10], 0x2001),
        ElfSegment::new(0x100_2000, vec![1; 0x10], 0x10),
    ];

    let error = plan_error(&elf(EXECUTABLE, 0x100_0000, &segments));

    assert_eq!(
        error,
        LoadError::Elf(ElfError::Overlap {
            first: 0,
            second: 1,
            address: 0x100_2000
        })
    );
}

#[test]
fn segments_at_the_ends_of_the_address_space_are_refused() {
    for (address, size) in [
        (u64::MAX - 5, 10),
        (0x100_0000, u64::MAX),
        (1 << 47, 1 << 47),
        ((1 << 48) - 0x1000, 0x1001),
    ] {
        let file = elf(
            EXECUTABLE,
            address,
            &[ElfSegment::new(address, vec![1], size)],
        );
        plan_error(&file);
        let file = elf(SHARED, address, &[ElfSegment::new(address, vec![1], size)]);
        plan_error(&file);
    }
}

fn pages(max: u64) -> impl Strategy<Value = GpaRange> {
    (0..max, 1..max).prop_map(|(start, pages)| range(start * 4096, (start + pages) * 4096))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_give_an_error_or_a_plan(bytes in vec(any::<u8>(), 0..3000)) {
        check(&bytes, SMALL);
        let _ = Image::parse(&bytes);
    }

    #[test]
    fn bz_images_with_any_header_are_handled(
        changes in vec((0x1f1usize..0x26c, any::<u8>()), 1..8),
        words in vec((0x1f1usize..0x264, any::<u64>()), 0..2),
    ) {
        let mut file = BzImageFile::default().bytes();
        for (offset, word) in words {
            file[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        }
        for (offset, byte) in changes {
            file[offset] = byte;
        }
        file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        check(&file, SMALL);
    }

    #[test]
    fn vmlinux_files_with_any_numbers_are_handled(
        shared in any::<bool>(),
        changes in vec((16usize..64 + 2 * 56, any::<u8>()), 0..6),
        words in vec((0usize..20, any::<u64>()), 0..2),
    ) {
        let mut file = vmlinux();
        file[16] = if shared { 3 } else { 2 };
        for (index, word) in words {
            file[24 + 8 * index..32 + 8 * index].copy_from_slice(&word.to_le_bytes());
        }
        for (offset, byte) in changes {
            file[offset] = byte;
        }
        check(&file, SMALL);
    }

    #[test]
    fn any_memory_layout_is_respected(
        low in 1u64..300,
        gap in 0u64..40,
        high in 1u64..100,
        reserved in vec(pages(0x1_0000), 0..4),
        limit in 0u64..(400 * MIB),
    ) {
        let ram = [
            ram(0, low * MIB),
            Ram { node: 1, ..ram((low + gap) * MIB, (low + gap + high) * MIB) },
        ];
        let memory = MemoryLayout { ram: &ram, reserved: &reserved, limit };
        for kernel in [vmlinux(), BzImageFile::default().bytes()] {
            check(&kernel, memory);
        }
    }

    #[test]
    fn arm64_headers_with_any_numbers_are_handled(
        text_offset in any::<u64>(),
        image_size in any::<u64>(),
        flags in any::<u64>(),
    ) {
        let file = arm64_image(text_offset, image_size, flags, 200);
        if let Ok(image) = Image::parse(&file) {
            prop_assert!(image.header.text_offset < 2 * MIB);
            prop_assert!(image.header.image_size >= 200);
        }
    }
}

//! Where things go on x86_64.

use crate::files::{
    BzImageFile, EXECUTABLE, ElfSegment, SETUP_SIZE, SHARED, elf, pattern, vmlinux,
};
use crate::machine::{CHIPSET, GIB, MIB, Memory, SMALL, ram, range};
use vm_loader::bz_image::BzImageError;
use vm_loader::elf::ElfError;
use vm_loader::x86_64::{INITRD_ALIGNMENT, LinuxDirect, LoadError, Registers};
use vm_loader::{GpaRange, MemoryError, MemoryLayout, Plan, PlanError};

fn direct(kernel: &[u8]) -> LinuxDirect<'_> {
    LinuxDirect {
        kernel,
        initrd: None,
        command_line: "console=ttyS0",
        memory: SMALL,
        chipset: Some(&CHIPSET),
    }
}

fn place(plan: &Plan<'_, Registers>, what: &str) -> GpaRange {
    let mut found = plan.pieces().iter().filter(|piece| piece.what == what);
    let piece = found.next().expect("it is in the plan");
    assert!(found.next().is_none(), "{what} is in the plan twice");
    piece.range
}

#[test]
fn vmlinux_goes_where_it_is_linked_to_and_its_bss_is_zeroed() {
    let file = vmlinux();

    let plan = direct(&file).plan().expect("it fits");

    let memory = Memory::with(&plan);
    assert_eq!(memory.read(0x100_0000, 0x2345), pattern(0x2345, 1));
    assert_eq!(memory.read(0x100_8000, 0x1000), pattern(0x1000, 2));
    assert_eq!(memory.read(0x100_9000, 0x8000), [0; 0x8000]);
    assert_eq!(memory.read(0x101_1000, 1), [0xaa], "that is not its memory");
    assert_eq!(plan.registers().rip, 0x100_0040);
}

#[test]
fn virtual_entry_of_a_vmlinux_is_translated() {
    let segment = ElfSegment::new(0x100_0000, pattern(0x100, 0), 0x100);
    let file = elf(EXECUTABLE, 0xffff_ffff_8100_0010, &[segment]);

    let plan = direct(&file).plan().expect("it fits");

    assert_eq!(plan.registers().rip, 0x100_0010);
}

#[test]
fn position_independent_program_goes_to_one_mebibyte() {
    let segments = [
        ElfSegment::new(0x200, pattern(0x100, 0), 0x100),
        ElfSegment::new(0x3000, pattern(0x10, 1), 0x2000),
    ];
    let file = elf(SHARED, 0x210, &segments);

    let plan = direct(&file).plan().expect("it fits");

    let memory = Memory::with(&plan);
    assert_eq!(memory.read(0x10_0200, 0x100), pattern(0x100, 0));
    assert_eq!(memory.read(0x10_3000, 0x10), pattern(0x10, 1));
    assert_eq!(plan.registers().rip, 0x10_0210);
}

#[test]
fn fixed_program_below_one_mebibyte_is_refused() {
    let file = elf(
        EXECUTABLE,
        0x8000,
        &[ElfSegment::new(0x8000, vec![0; 16], 16)],
    );

    let error = direct(&file).plan().unwrap_err();

    assert_eq!(error, LoadError::KernelTooLow { address: 0x8000 });
}

#[test]
fn bz_image_goes_to_the_address_that_it_prefers() {
    let image = BzImageFile::default();
    let file = image.bytes();

    let plan = direct(&file).plan().expect("it fits");

    assert_eq!(place(&plan, "kernel"), range(16 * MIB, 24 * MIB));
    assert_eq!(plan.registers().rip, 16 * MIB + 0x200);
    let memory = Memory::with(&plan);
    assert_eq!(memory.read(16 * MIB, 0x4000), image.payload);
    assert_eq!(
        memory.read(16 * MIB + 0x4000, 1),
        [0xaa],
        "the signature is not loaded"
    );
}

#[test]
fn relocatable_bz_image_moves_up_to_the_next_aligned_room() {
    let file = BzImageFile::default().bytes();
    let memory = MemoryLayout {
        reserved: &[range(17 * MIB, 17 * MIB + 0x1000)],
        ..SMALL
    };

    let plan = LinuxDirect {
        memory,
        ..direct(&file)
    };
    let plan = plan.plan().expect("it fits");

    assert_eq!(place(&plan, "kernel"), range(18 * MIB, 26 * MIB));
    assert_eq!(plan.registers().rip, 18 * MIB + 0x200);
}

#[test]
fn fixed_bz_image_is_not_moved() {
    let image = BzImageFile {
        relocatable: false,
        ..BzImageFile::default()
    };
    let file = image.bytes();
    let memory = MemoryLayout {
        reserved: &[range(17 * MIB, 17 * MIB + 0x1000)],
        ..SMALL
    };

    assert!(direct(&file).plan().is_ok());
    let error = LinuxDirect {
        memory,
        ..direct(&file)
    };

    assert!(matches!(
        error.plan(),
        Err(LoadError::KernelDoesNotFit {
            needed: 0x80_0000,
            from: 0x100_0000,
            ..
        })
    ));
}

#[test]
fn kernel_that_needs_more_than_there_is_is_refused_with_both_sizes() {
    let image = BzImageFile {
        init_size: 300 << 20,
        ..BzImageFile::default()
    };

    let error = direct(&image.bytes()).plan().unwrap_err();

    assert_eq!(
        error.to_string(),
        "kernel of 314572800 bytes (with its zeroed memory) does not fit: at or above \
         0x1000000, aligned to 0x200000, below 0x100000000 at most 251658240 bytes of RAM are \
         free"
    );
}

#[test]
fn initrd_lies_behind_the_kernel_at_a_multiple_of_two_mebibytes() {
    for kernel in [vmlinux(), BzImageFile::default().bytes()] {
        let initrd = pattern(0x12345, 7);
        let direct = LinuxDirect {
            initrd: Some(&initrd),
            ..direct(&kernel)
        };

        let plan = direct.plan().expect("it fits");

        let at = place(&plan, "initrd");
        let kernel_end = plan
            .pieces()
            .iter()
            .filter(|piece| piece.what.starts_with("kernel"))
            .map(|piece| piece.range.end())
            .max()
            .expect("there is a kernel");
        assert_eq!(at.start(), kernel_end.next_multiple_of(INITRD_ALIGNMENT));
        assert_eq!(Memory::with(&plan).read(at.start(), initrd.len()), initrd);
    }
}

#[test]
fn initrd_stays_below_the_limit_of_the_kernel() {
    let initrd = vec![1; 2 << 20];
    let with_limit = |initrd_addr_max| {
        let image = BzImageFile {
            initrd_addr_max,
            ..BzImageFile::default()
        };
        let kernel = image.bytes();
        let direct = LinuxDirect {
            initrd: Some(&initrd),
            ..direct(&kernel)
        };
        direct.plan().map(|plan| place(&plan, "initrd"))
    };

    assert_eq!(with_limit(0x19f_ffff), Ok(range(24 * MIB, 26 * MIB)));
    assert_eq!(
        with_limit(0x19f_fffe),
        Err(LoadError::InitrdDoesNotFit {
            size: 2 << 20,
            from: 24 * MIB,
            limit: 26 * MIB - 1,
            available: 2 * MIB - 1,
        })
    );
}

#[test]
fn initrd_that_does_not_fit_is_named_with_its_size() {
    let kernel = vmlinux();
    let initrd = vec![0; 300 << 20];
    let direct = LinuxDirect {
        initrd: Some(&initrd),
        ..direct(&kernel)
    };

    assert_eq!(
        direct.plan().unwrap_err().to_string(),
        "initrd of 314572800 bytes does not fit: behind the kernel at 0x1011000, aligned to 2 \
         MiB, below 0x80000000 at most 249561088 bytes of RAM are free"
    );
    let empty = LinuxDirect {
        initrd: Some(&[]),
        ..direct
    };
    assert_eq!(empty.plan().unwrap_err(), LoadError::InitrdEmpty);
}

#[test]
fn nothing_is_above_the_callers_limit_or_four_gibibytes() {
    let kernel = BzImageFile::default().bytes();
    let initrd = vec![1; 4 << 20];
    let memory = MemoryLayout {
        ram: &[ram(0, 32 * MIB), ram(4 * GIB, 8 * GIB)],
        ..SMALL
    };
    let fits = LinuxDirect {
        initrd: Some(&initrd),
        memory,
        ..direct(&kernel)
    };
    let limited = LinuxDirect {
        memory: MemoryLayout {
            limit: 27 * MIB,
            ..memory
        },
        ..fits
    };
    let too_large = vec![1; 10 << 20];
    let elsewhere = LinuxDirect {
        initrd: Some(&too_large),
        ..fits
    };

    let plan = fits.plan().expect("it fits");
    assert_eq!(place(&plan, "initrd"), range(24 * MIB, 28 * MIB));
    assert!(
        matches!(limited.plan(), Err(LoadError::InitrdDoesNotFit { limit, .. }) if limit == 27 * MIB)
    );
    assert!(matches!(
        elsewhere.plan(),
        Err(LoadError::InitrdDoesNotFit { .. })
    ));
}

#[test]
fn memory_that_the_boot_data_needs_must_be_there() {
    let kernel = vmlinux();
    let no_low = MemoryLayout {
        ram: &[ram(MIB, 256 * MIB)],
        ..SMALL
    };
    let no_bios_area = MemoryLayout {
        reserved: &[range(0xa_0000, 0x10_0000)],
        ..SMALL
    };
    let in_the_way = MemoryLayout {
        reserved: &[range(0x2000, 0x3000)],
        ..SMALL
    };
    let plan = |memory, chipset| {
        let direct = LinuxDirect {
            memory,
            chipset,
            ..direct(&kernel)
        };
        direct.plan().map(|_| ())
    };

    let not_ram =
        |what: &'static str, range| Err(LoadError::Plan(PlanError::NotRam { what, range }));
    assert_eq!(plan(no_low, None), not_ram("GDT", range(0x1000, 0x1020)));
    assert_eq!(
        plan(in_the_way, None),
        not_ram("zero page", range(0x2000, 0x3000))
    );
    assert_eq!(plan(no_bios_area, None), Ok(()));
    let no_memory = MemoryLayout { ram: &[], ..SMALL };
    assert_eq!(
        plan(no_memory, None),
        Err(LoadError::Memory(MemoryError::NoRam))
    );
}

#[test]
fn acpi_tables_go_below_where_the_bios_area_is_not_ram() {
    let image = |version| {
        BzImageFile {
            version,
            ..BzImageFile::default()
        }
        .bytes()
    };
    let reserved = [range(0xa_0000, 0x10_0000)];
    let everything_low = [range(0xa000, 0x10_0000)];
    let plan = |version, reserved| {
        let kernel = image(version);
        let memory = MemoryLayout { reserved, ..SMALL };
        let direct = LinuxDirect {
            memory,
            ..direct(&kernel)
        };
        direct.plan().map(|plan| {
            let place = place(&plan, "ACPI tables");
            let memory = Memory::with(&plan);
            assert_eq!(memory.read_u64(0x2070), place.start(), "acpi_rsdp_addr");
            assert_eq!(memory.read(place.start(), 8), b"RSD PTR ");
            place.start()
        })
    };
    let elsewhere = |result| match result {
        Err(LoadError::AcpiDoesNotFit { elsewhere, .. }) => elsewhere,
        other => panic!("{other:?}"),
    };

    assert_eq!(plan(0x20f, &[][..]), Ok(0xe_0000));
    assert_eq!(plan(0x20f, &reserved), Ok(0x2_0000));
    assert_eq!(
        elsewhere(plan(0x20d, &reserved)),
        "this kernel looks for them only there"
    );
    assert_eq!(
        elsewhere(plan(0x20f, &everything_low)),
        "neither is there from 0x20000 to 640 KiB"
    );
}

#[test]
fn command_line_is_as_long_as_the_kernel_reads() {
    let image = BzImageFile {
        cmdline_size: 10,
        ..BzImageFile::default()
    };
    let (bz_image, vmlinux) = (image.bytes(), vmlinux());
    let plan = |kernel: &[u8], command_line: &str| {
        let direct = LinuxDirect {
            command_line,
            ..direct(kernel)
        };
        direct.plan().map(|plan| Memory::with(&plan))
    };

    let memory = plan(&bz_image, "0123456789").expect("it fits");
    assert_eq!(memory.read(0x9000, 12), b"0123456789\0\xaa");
    assert_eq!(
        plan(&bz_image, "0123456789a").unwrap_err(),
        LoadError::CommandLineTooLong { size: 11, max: 10 }
    );
    assert!(plan(&vmlinux, &"x".repeat(2047)).is_ok());
    assert_eq!(
        plan(&vmlinux, &"x".repeat(2048)).unwrap_err(),
        LoadError::CommandLineTooLong {
            size: 2048,
            max: 2047
        }
    );
    assert_eq!(
        plan(&vmlinux, "a\0b").unwrap_err(),
        LoadError::CommandLineZero { offset: 1 }
    );
}

#[test]
fn processor_starts_in_long_mode_with_a_flat_gdt() {
    let file = vmlinux();

    let plan = direct(&file).plan().expect("it fits");

    let Registers {
        cr0,
        cr4,
        efer,
        rsi,
        cs,
        data,
        gdtr,
        rflags,
        ..
    } = *plan.registers();
    assert_eq!(cr0 & 0x8000_0001, 0x8000_0001, "PG and PE");
    assert_eq!(cr4 & 0x20, 0x20, "PAE");
    assert_eq!(efer, 0xd00, "LME, LMA and NXE");
    assert_eq!(rsi, 0x2000);
    assert_eq!(rflags & 0x200, 0, "interrupts are off");
    // __BOOT_CS and __BOOT_DS of the boot protocol.
    assert_eq!((cs.selector, data.selector), (0x10, 0x18));
    let memory = Memory::with(&plan);
    assert_eq!(gdtr.limit, 31);
    assert_eq!(memory.read_u64(gdtr.base + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(memory.read_u64(gdtr.base + 0x18), 0x00cf_9300_0000_ffff);
}

/// The address that `address` is mapped to, by a walk as the processor does it.
fn translate(memory: &Memory, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3;
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = memory.read_u64(table + (address >> shift) % 512 * 8);
        if entry & 1 == 0 {
            return None;
        }
        let target = entry & 0x000f_ffff_ffff_f000;
        if level == 1 || entry & 0x80 != 0 {
            return Some(target + address % (1 << shift));
        }
        table = target;
    }
    None
}

#[test]
fn first_four_gibibytes_are_mapped_to_themselves() {
    let file = vmlinux();

    let plan = direct(&file).plan().expect("it fits");

    let memory = Memory::with(&plan);
    let cr3 = plan.registers().cr3;
    for address in [0, 0x2000, 0x100_0040, 3 * GIB + 5, 4 * GIB - 1] {
        assert_eq!(translate(&memory, cr3, address), Some(address));
    }
    assert_eq!(translate(&memory, cr3, 4 * GIB), None);
}

#[test]
fn files_that_are_no_kernels_are_refused_by_reason() {
    let plan = |file: &[u8]| direct(file).plan().map(|_| ()).unwrap_err();
    let with = |change: &dyn Fn(&mut BzImageFile)| {
        let mut image = BzImageFile::default();
        change(&mut image);
        plan(&image.bytes())
    };

    assert_eq!(
        plan(b"#!/bin/sh\n").to_string(),
        "kernel: neither an ELF file (vmlinux) nor a bzImage: no ELF magic at 0, boot_flag at \
         0x1fe is 0x0000 (expected 0xaa55), header at 0x202 is 0x00000000 (expected 0x53726448)"
    );
    assert!(matches!(
        plan(b"\x7fELF\x01\x01"),
        LoadError::Elf(ElfError::Unreadable(_))
    ));
    assert_eq!(
        with(&|i| i.version = 0x20b),
        LoadError::BzImage(BzImageError::Version { version: 0x20b })
    );
    assert_eq!(
        with(&|i| i.xloadflags = 0x7e),
        LoadError::BzImage(BzImageError::No64BitEntry { xloadflags: 0x7e })
    );
    assert!(matches!(
        with(&|i| i.alignment = 0x30_0000),
        LoadError::BzImage(BzImageError::Field {
            field: "kernel_alignment",
            found: 0x30_0000,
            ..
        })
    ));
    assert!(matches!(
        with(&|i| i.preferred = 0x123),
        LoadError::BzImage(BzImageError::Field {
            field: "pref_address",
            ..
        })
    ));
    assert!(matches!(
        with(&|i| i.payload = vec![0; 0x200]),
        LoadError::BzImage(BzImageError::Field {
            field: "syssize",
            ..
        })
    ));
}

#[test]
fn bz_image_that_claims_more_than_it_has_is_refused() {
    let size = BzImageFile::default().bytes().len() as u64;
    let needed = |image: BzImageFile| match direct(&image.bytes()).plan() {
        Err(LoadError::BzImage(BzImageError::Truncated {
            size: s, needed, ..
        })) => {
            assert_eq!(s, size);
            needed
        }
        other => panic!("{other:?}"),
    };

    let many_sectors = BzImageFile {
        setup_sects: 255,
        ..BzImageFile::default()
    };
    let large = BzImageFile {
        syssize: Some(u32::MAX),
        ..BzImageFile::default()
    };

    assert_eq!(needed(many_sectors), 256 * 512 + 0x4000);
    assert_eq!(needed(large), SETUP_SIZE as u64 + u64::from(u32::MAX) * 16);
}

#[test]
fn no_sectors_mean_four_as_the_protocol_says() {
    let image = BzImageFile {
        setup_sects: 0,
        ..BzImageFile::default()
    };
    let file = image.bytes();

    let plan = direct(&file).plan().expect("it fits");

    assert_eq!(Memory::with(&plan).read(16 * MIB, 0x4000), image.payload);
}

#[test]
fn plan_prints_one_line_per_piece() {
    let file = vmlinux();

    let text = direct(&file).plan().expect("it fits").to_string();

    assert!(text.starts_with("0x1000-0x1020 GDT, 32 bytes\n"), "{text}");
    assert_eq!(text.lines().count(), 7);
}

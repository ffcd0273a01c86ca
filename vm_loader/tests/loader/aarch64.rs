//! Where things go on aarch64.

use crate::device_tree::MACHINE;
use crate::files::{arm64_image, pattern};
use crate::machine::{GIB, MIB, Memory, ram, range};
use vm_loader::aarch64::{ImageError, LinuxDirect, LoadError, Registers};
use vm_loader::{GpaRange, MemoryLayout, Plan};

const MEMORY: MemoryLayout<'static> = MemoryLayout {
    ram: &[ram(GIB, GIB + 256 * MIB)],
    reserved: &[],
    limit: u64::MAX,
};

fn direct<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> LinuxDirect<'a> {
    LinuxDirect {
        kernel,
        initrd,
        command_line: "console=ttyAMA0",
        memory: MEMORY,
        machine: &MACHINE,
    }
}

fn places(plan: &Plan<'_, Registers>) -> Vec<(&'static str, GpaRange)> {
    let pieces = plan.pieces().iter();
    pieces
        .filter(|piece| piece.what != "device tree")
        .map(|piece| (piece.what, piece.range))
        .collect()
}

#[test]
fn kernel_is_at_the_start_of_ram_with_its_offset() {
    let kernel = arm64_image(0x8_0000, 24 * MIB, 0x2, 0x1_0000);
    let initrd = pattern(0x1234, 4);

    let plan = direct(&kernel, Some(&initrd)).plan().expect("it fits");

    // 24.5 MiB of kernel, 2 MiB of device tree.
    let initrd_place = range(GIB + 28 * MIB, GIB + 28 * MIB + 0x1234);
    assert_eq!(
        places(&plan),
        [
            ("kernel", range(GIB + 0x8_0000, GIB + 0x188_0000)),
            ("initrd", initrd_place),
        ]
    );
    assert_eq!(
        *plan.registers(),
        Registers {
            pc: GIB + 0x8_0000,
            x0: GIB + 26 * MIB,
            pstate: 0x3c5
        }
    );
    let memory = Memory::with(&plan);
    assert_eq!(memory.read(GIB + 0x8_0000, kernel.len()), kernel);
    assert_eq!(memory.read(initrd_place.start(), initrd.len()), initrd);
    assert_eq!(
        memory.read(GIB + 26 * MIB, 4),
        0xd00d_feed_u32.to_be_bytes()
    );
}

#[test]
fn device_tree_says_where_the_initrd_is() {
    let kernel = arm64_image(0, 4 * MIB, 0x8, 0x1000);
    let initrd = [5; 100];

    let plan = direct(&kernel, Some(&initrd)).plan().expect("it fits");

    let tree = &plan.pieces().iter().find(|p| p.what == "device tree");
    let tree = fdt::Fdt::new(&tree.expect("there is one").data).expect("it is valid");
    let chosen = tree.find_node("/chosen").expect("there is one");
    let value = |name| {
        let bytes = chosen.property(name).expect("it is there").value;
        u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
    };
    assert_eq!(value("linux,initrd-start"), GIB + 6 * MIB);
    assert_eq!(value("linux,initrd-end"), GIB + 6 * MIB + 100);
}

#[test]
fn what_does_not_fit_is_named_with_its_size() {
    let kernel = arm64_image(0, 255 * MIB, 0, 0x1000);
    let small = arm64_image(0, 4 * MIB, 0, 0x1000);
    let initrd = vec![0; 251 << 20];

    let error = direct(&kernel, None).plan().unwrap_err();
    assert_eq!(
        error.to_string(),
        "device tree of 2097152 bytes does not fit: at or above 0x4ff00000, aligned to 2 MiB, \
         below 0xffffffffffffffff at most 0 bytes of RAM are free"
    );
    assert!(matches!(
        direct(&small, Some(&initrd)).plan(),
        Err(LoadError::DoesNotFit { what: "initrd", size, .. }) if size == 251 * MIB
    ));
    let limited = LinuxDirect {
        memory: MemoryLayout {
            limit: GIB + MIB,
            ..MEMORY
        },
        ..direct(&small, None)
    };
    assert!(matches!(
        limited.plan(),
        Err(LoadError::DoesNotFit { what: "kernel", .. })
    ));
    assert_eq!(
        direct(&small, Some(&[])).plan().unwrap_err(),
        LoadError::InitrdEmpty
    );
}

#[test]
fn initrd_stays_near_the_kernel() {
    let kernel = arm64_image(0, 4 * MIB, 0, 0x1000);
    let memory = MemoryLayout {
        ram: &[ram(GIB, GIB + 8 * MIB), ram(40 * GIB, 41 * GIB)],
        ..MEMORY
    };
    let initrd = vec![1; 4 << 20];
    let direct = LinuxDirect {
        memory,
        ..direct(&kernel, Some(&initrd))
    };

    assert_eq!(
        direct.plan().unwrap_err(),
        LoadError::InitrdWindow {
            initrd: range(40 * GIB, 40 * GIB + 4 * MIB),
            window: GIB
        }
    );
}

#[test]
fn files_that_are_no_images_are_refused_by_reason() {
    let plan = |file: &[u8]| match direct(file, None).plan() {
        Err(LoadError::Image(error)) => error,
        other => panic!("{:?}", other.map(|_| ())),
    };

    assert_eq!(plan(b"MZ"), ImageError::Truncated { size: 2 });
    assert_eq!(
        plan(b"\x1f\x8b\x08").to_string(),
        "the file is compressed with gzip (Image.gz), expected a flat, uncompressed arm64 Image"
    );
    assert!(matches!(
        plan(b"MZ\0\0zimg"),
        ImageError::OtherFormat { found } if found.contains("zboot")
    ));
    assert_eq!(plan(&[0; 64]), ImageError::Magic { found: 0 });
    assert_eq!(
        plan(&arm64_image(0, MIB, 1, 64)),
        ImageError::BigEndian { flags: 1 }
    );
    assert!(matches!(
        plan(&arm64_image(2 * MIB, MIB, 0, 64)),
        ImageError::Field {
            field: "text_offset",
            ..
        }
    ));
    assert!(matches!(
        plan(&arm64_image(0, 0, 0, 64)),
        ImageError::Field {
            field: "image_size",
            ..
        }
    ));
    assert_eq!(
        plan(&arm64_image(0, 99, 0, 100)),
        ImageError::TooLarge {
            image_size: 99,
            size: 100
        }
    );
}

//! The loader's reading of kernel files: any bytes give a typed error or a plan that writes
//! nothing but RAM, never a panic.
//!
//! An input that begins with an odd byte is not a file but a list of edits (two bytes of
//! offset, one of value) to a good bzImage or vmlinux, so that the fuzzer gets past the
//! header at once.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_loader::aarch64::Image;
use vm_loader::x86_64::LinuxDirect;
use vm_loader::{GpaRange, MemoryLayout, Ram};

const MIB: u64 = 1 << 20;
const RAM: GpaRange = range(0, 64 * MIB);
const RESERVED: GpaRange = range(20 * MIB, 21 * MIB);

const fn range(start: u64, end: u64) -> GpaRange {
    match GpaRange::from_bounds(start, end) {
        Some(range) => range,
        None => GpaRange::EMPTY,
    }
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((first, edits)) if first % 2 == 1 => {
            let mut file = if first % 4 == 1 {
                bz_image()
            } else {
                vmlinux()
            };
            let size = file.len();
            for edit in edits.chunks_exact(3) {
                let offset = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
                file[offset % size] = edit[2];
            }
            load(&file);
        }
        _ => load(data),
    }
});

fn load(kernel: &[u8]) {
    if let Ok(image) = Image::parse(kernel) {
        assert!(image.header.image_size >= kernel.len() as u64);
    }
    let direct = LinuxDirect {
        kernel,
        initrd: Some(&[1; 100]),
        command_line: "quiet",
        memory: MemoryLayout {
            ram: &[Ram {
                range: RAM,
                node: 0,
            }],
            reserved: &[RESERVED],
            limit: 60 * MIB,
        },
        chipset: None,
    };
    let Ok(plan) = direct.plan() else {
        return;
    };
    let mut previous_end = 0;
    for piece in plan.pieces() {
        assert!(piece.range.start() >= previous_end);
        assert!(piece.data.len() as u64 <= piece.range.len());
        assert!(RAM.contains(&piece.range) && !RESERVED.overlaps(&piece.range));
        previous_end = piece.range.end();
    }
    assert!(previous_end <= 60 * MIB);
}

/// A small bzImage; the offsets are those of the boot protocol.
fn bz_image() -> Vec<u8> {
    // Setup part and payload.
    let mut file = vec![0; 5 * 512 + 0x400];
    let mut put = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[4]);
    put(0x1f4, &0x40u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &(2u32 << 20).to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &(16 * MIB).to_le_bytes());
    put(0x260, &(4u32 << 20).to_le_bytes());
    file
}

/// A small vmlinux with two segments at 16 MiB.
fn vmlinux() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [16 * MIB, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for address in [16 * MIB, 18 * MIB] {
        let contents = (0xb0, 0x10);
        for word in [
            7 << 32 | 1,
            contents.0,
            address,
            address,
            contents.1,
            0x2000,
            0x1000,
        ] {
            file.extend(u64::to_le_bytes(word));
        }
    }
    file.extend([0x90; 0x10]);
    file
}

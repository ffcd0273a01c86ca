//! The host's reading of an IGVM file: any bytes give a refusal or a plan that writes
//! nothing but RAM that the host has given away.
//!
//! The input is the file without its fixed header, in front of it the size of the
//! variable headers; the fixed header with its checksum is made here, for a fuzzer does
//! not guess a CRC-32.

#![no_main]

use igvm_loader::{HostMemoryWriter, MemoryRange, Options, plan, q35};
use libfuzzer_sys::fuzz_target;

const MEMORY: u64 = 512 << 20;
const FIXED_HEADER_SIZE: usize = 24;

/// Accepts what a plan may write.
struct Checker {
    ram: Vec<MemoryRange>,
    busy: Vec<MemoryRange>,
}

impl HostMemoryWriter for Checker {
    fn write(&mut self, address: u64, data: &[u8]) {
        self.zero(address, data.len() as u64);
    }

    fn zero(&mut self, address: u64, size: u64) {
        let range = MemoryRange::with_size(address, size).expect("a range of addresses");
        assert!(
            self.ram.iter().any(|ram| ram.covers(range)),
            "{range} is not RAM"
        );
        assert!(
            !self.busy.iter().any(|busy| busy.overlaps(range)),
            "{range} is in use"
        );
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((size, rest)) = data.split_first_chunk() else {
        return;
    };
    let header_size = u32::from(u16::from_le_bytes(*size)).min(rest.len() as u32);
    let total = (FIXED_HEADER_SIZE + rest.len()) as u32;
    let mut file = b"IGVM".to_vec();
    for word in [1, FIXED_HEADER_SIZE as u32, header_size, total, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(rest);
    let crc = crc32fast::hash(&file[..FIXED_HEADER_SIZE + header_size as usize]);
    file[20..24].copy_from_slice(&crc.to_le_bytes());
    let machine = q35::machine(1, 2, MEMORY, file.len() as u64);
    if let Ok(plan) = plan(&file, &machine, &Options::default()) {
        plan.execute(&mut Checker {
            ram: machine.ram_runs(),
            busy: machine.busy,
        });
    }
});

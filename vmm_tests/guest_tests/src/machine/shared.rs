//! Registers that the trust levels share: x87, SSE and AVX state, CR2, DR0 to DR3. Nothing of
//! this kernel uses them, so they keep what a test puts there.

#![expect(unsafe_code, reason = "registers that Rust does not know of")]

use super::probe::cpuid;
use core::arch::asm;
use x86_64::registers::control::{Cr4, Cr4Flags};

/// CPUID.1:ECX.
const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;
/// XCR0: x87, SSE, AVX.
const ALL_STATE: u32 = 7;

/// Words of all vector registers: 16 of 32 bytes.
const VECTORS: usize = 64;
/// Bytes of FXSAVE that are about x87, and that the processor fills.
const X87: [core::ops::Range<usize>; 2] = [0..6, 32..160];

/// An instruction for each of the 16 registers, whose number is behind both parts.
macro_rules! vector_registers {
    ($first:literal, $second:literal, $third:literal, $base:expr) => {
        vector_registers!(@ $first, $second, $third, $base,
            "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "10" "11" "12" "13" "14" "15")
    };
    (@ $first:literal, $second:literal, $third:literal, $base:expr, $($number:literal)*) => {
        asm!($(concat!($first, $number, $second, $number, $third),)*
             base = in(reg) $base, options(nostack))
    };
}

/// Values of the registers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Shared {
    fx: [u8; 512],
    vectors: [u64; VECTORS],
    debug: [u64; 4],
    cr2: u64,
    /// The vector registers have 32 bytes each, not 16.
    avx: bool,
}

impl Shared {
    /// Different values for each seed.
    pub fn new(seed: u64) -> Self {
        let word = |number: u64| {
            let mixed = (seed << 32 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed ^ mixed >> 29
        };
        let mut values = Self {
            fx: [0; 512],
            vectors: core::array::from_fn(|number| word(number as u64)),
            // Canonical, and not on.
            debug: core::array::from_fn(|number| word(100 + number as u64) >> 20),
            cr2: word(200) >> 20,
            avx: false,
        };
        // Control word with all exceptions masked, tags of registers in use, MXCSR.
        values.fx[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        values.fx[4] = 0xff;
        values.fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        for register in 0..8 {
            let start = 32 + 16 * register;
            let value = word(300 + register as u64) | 1 << 63;
            values.fx[start..start + 8].copy_from_slice(&value.to_le_bytes());
            values.fx[start + 8..start + 10].copy_from_slice(&0x4001_u16.to_le_bytes());
        }
        values
    }

    /// Puts the values into the registers of this VP.
    pub fn load(&mut self) {
        let avx = enable();
        self.avx = avx;
        // SAFETY: the areas have the right sizes and alignment; this kernel uses none of the
        // registers, and no breakpoint is on.
        unsafe {
            asm!("fxrstor64 [{}]", in(reg) &raw const self.fx, options(nostack));
            if avx {
                vector_registers!(
                    "vmovdqu ymm",
                    ", [{base} + 32 * ",
                    "]",
                    &raw const self.vectors
                );
            } else {
                vector_registers!(
                    "movdqu xmm",
                    ", [{base} + 32 * ",
                    "]",
                    &raw const self.vectors
                );
            }
            let [a, b, c, d] = self.debug;
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov cr2, {}",
                 in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) self.cr2,
                 options(nostack));
        }
    }

    /// What of the registers of this VP is not as it was loaded.
    pub fn difference(&self) -> Option<&'static str> {
        let mut found = *self;
        let avx = self.avx;
        // SAFETY: as above.
        unsafe {
            asm!("fxsave64 [{}]", in(reg) &raw mut found.fx, options(nostack));
            if avx {
                vector_registers!(
                    "vmovdqu [{base} + 32 * ",
                    "], ymm",
                    "",
                    &raw mut found.vectors
                );
            } else {
                vector_registers!(
                    "movdqu [{base} + 32 * ",
                    "], xmm",
                    "",
                    &raw mut found.vectors
                );
            }
            let [a, b, c, d]: [u64; 4];
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, cr2",
                 out(reg) a, out(reg) b, out(reg) c, out(reg) d, out(reg) found.cr2,
                 options(nostack));
            found.debug = [a, b, c, d];
        }
        let x87 = X87
            .iter()
            .all(|range| self.fx[range.clone()] == found.fx[range.clone()]);
        [
            (x87, "x87 state"),
            (self.vectors == found.vectors, "a vector register"),
            (self.debug == found.debug, "a debug register"),
            (self.cr2 == found.cr2, "CR2"),
        ]
        .into_iter()
        .find_map(|(same, name)| (!same).then_some(name))
    }
}

/// Has the VP know SSE, and AVX if it has it: true.
fn enable() -> bool {
    let [_, _, features, _] = cpuid(1);
    let avx = features & (XSAVE | AVX) == XSAVE | AVX;
    // SAFETY: this kernel uses none of these registers.
    unsafe {
        Cr4::update(|flags| {
            flags.insert(Cr4Flags::OSFXSR);
            flags.set(Cr4Flags::OSXSAVE, avx);
        });
        if avx {
            asm!("xsetbv", in("ecx") 0, in("eax") ALL_STATE, in("edx") 0, options(nostack));
        }
    }
    avx
}

//! A processor whose memory and devices are plain arrays, for tests and fuzz targets.

use crate::{Access, Cpu, Gpr, SegmentName, TranslateError, Width, emulate, paging};
use std::convert::Infallible;
use x86_defs::long_mode::{self, Segment};
use x86_defs::{CR0_PE, RFLAGS_ALWAYS_ONE};

/// How many instructions [`run`] tries on one state.
const INSTRUCTIONS: usize = 4;
/// Size of the world of [`run`], of which the last page is a device.
const WORLD: usize = 8 * 4096;

/// How linear addresses become guest-physical ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// They are the same.
    Identity,
    /// By page tables in memory.
    Tables,
    /// Guest-physical address 0 is seen from here on. Outside is nothing.
    Window(u64),
}

/// An access that a device got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "address, width, value")]
pub enum DeviceAccess {
    Read(u64, Width),
    Write(u64, Width, u64),
    PortRead(u16, Width),
    PortWrite(u16, Width, u32),
}

/// A VP and its world.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names of the registers")]
pub struct Machine {
    pub gprs: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// In the order of [`SegmentName::ALL`].
    pub segments: [Segment; 6],
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cpl: u8,
    pub xmm: [u128; 16],
    pub translation: Translation,
    /// What lies from guest-physical address 0 on. Behind it, devices read as ones.
    pub world: Vec<u8>,
    /// From here on it is a device's.
    pub memory: u64,
    /// What devices saw.
    pub accesses: Vec<DeviceAccess>,
}

impl Machine {
    /// In 64-bit mode, ring 0, without paging in the way; so many bytes of memory, then so
    /// many of a device that keeps what is written.
    pub fn new(memory: usize, device: usize) -> Self {
        let mut segments = [long_mode::DATA; 6];
        segments[SegmentName::Cs as usize] = long_mode::CODE;
        Self {
            gprs: [0; 16],
            rip: 0,
            rflags: RFLAGS_ALWAYS_ONE,
            segments,
            cr0: long_mode::CR0,
            cr3: 0,
            cr4: long_mode::CR4,
            efer: long_mode::EFER,
            cpl: 0,
            xmm: [0; 16],
            translation: Translation::Identity,
            world: vec![0; memory + device],
            memory: memory as u64,
            accesses: Vec::new(),
        }
    }

    /// The same with flat 32-bit segments.
    pub fn protected_mode(mut self) -> Self {
        self.efer = 0;
        for segment in &mut self.segments {
            segment.attributes = 0xc093;
        }
        self.segments[SegmentName::Cs as usize].attributes = 0xc09b;
        self
    }

    /// The same in real mode, with all segments at 0.
    pub fn real_mode(mut self) -> Self {
        self.efer = 0;
        self.cr0 &= !CR0_PE;
        for segment in &mut self.segments {
            *segment = Segment {
                base: 0,
                limit: 0xffff,
                selector: 0,
                attributes: 0x93,
            };
        }
        self
    }

    fn range(&self, gpa: u64, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(gpa).ok()?;
        let end = start.checked_add(length)?;
        (end <= self.world.len()).then_some(start..end)
    }
}

impl Cpu for Machine {
    type Error = Infallible;

    fn gpr(&mut self, register: Gpr) -> u64 {
        self.gprs[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[register as usize] = value;
    }
    fn rip(&mut self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.rip = value;
    }
    fn rflags(&mut self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
    fn segment(&mut self, name: SegmentName) -> Segment {
        self.segments[name as usize]
    }
    fn cr0(&mut self) -> u64 {
        self.cr0
    }
    fn cr3(&mut self) -> u64 {
        self.cr3
    }
    fn cr4(&mut self) -> u64 {
        self.cr4
    }
    fn efer(&mut self) -> u64 {
        self.efer
    }
    fn cpl(&mut self) -> u8 {
        self.cpl
    }
    fn xmm(&mut self, register: u8) -> u128 {
        self.xmm[usize::from(register)]
    }
    fn set_xmm(&mut self, register: u8, value: u128) {
        self.xmm[usize::from(register)] = value;
    }

    fn is_memory(&mut self, gpa: u64) -> bool {
        gpa < self.memory
    }
    fn read_memory(&mut self, gpa: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
        assert!(gpa % 4096 + bytes.len() as u64 <= 4096, "crosses a page");
        let range = self.range(gpa, bytes.len()).expect("there is memory");
        bytes.copy_from_slice(&self.world[range]);
        Ok(())
    }
    fn write_memory(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), Infallible> {
        assert!(gpa % 4096 + bytes.len() as u64 <= 4096, "crosses a page");
        let range = self.range(gpa, bytes.len()).expect("there is memory");
        self.world[range].copy_from_slice(bytes);
        Ok(())
    }
    fn compare_exchange(
        &mut self,
        gpa: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<bool, Infallible> {
        let range = self.range(gpa, width.bytes()).expect("there is memory");
        let equal = self.world[range.clone()] == current.to_le_bytes()[..width.bytes()];
        if equal {
            self.world[range].copy_from_slice(&new.to_le_bytes()[..width.bytes()]);
        }
        Ok(equal)
    }
    fn read_mmio(&mut self, gpa: u64, width: Width) -> Result<u64, Infallible> {
        assert!(gpa.is_multiple_of(width.bytes() as u64), "not aligned");
        self.accesses.push(DeviceAccess::Read(gpa, width));
        let mut value = [0xff; 8];
        if let Some(range) = self.range(gpa, width.bytes()) {
            value[..width.bytes()].copy_from_slice(&self.world[range]);
        }
        Ok(u64::from_le_bytes(value))
    }
    fn write_mmio(&mut self, gpa: u64, width: Width, value: u64) -> Result<(), Infallible> {
        assert!(gpa.is_multiple_of(width.bytes() as u64), "not aligned");
        assert_eq!(value & !width.mask(), 0, "more than the width");
        self.accesses.push(DeviceAccess::Write(gpa, width, value));
        if let Some(range) = self.range(gpa, width.bytes()) {
            self.world[range].copy_from_slice(&value.to_le_bytes()[..width.bytes()]);
        }
        Ok(())
    }
    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, Infallible> {
        self.accesses.push(DeviceAccess::PortRead(port, width));
        // Another value each time, with more bits than asked for.
        Ok(0x8765_4300 + self.accesses.len() as u32)
    }
    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Result<(), Infallible> {
        self.accesses
            .push(DeviceAccess::PortWrite(port, width, value));
        Ok(())
    }

    fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<u64, TranslateError<Infallible>> {
        match self.translation {
            Translation::Identity => Ok(linear),
            Translation::Tables => paging::walk(self, linear, access),
            Translation::Window(start) => {
                let gpa = linear.wrapping_sub(start);
                if gpa < self.world.len() as u64 {
                    Ok(gpa)
                } else {
                    Err(TranslateError::PageFault(0))
                }
            }
        }
    }
}

/// Reads a state from the input, then instructions, and executes them: nothing may panic,
/// and a refusal must leave the state alone.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new(WORLD - 4096, 4096);
    match input.byte() % 4 {
        0 => machine = machine.protected_mode(),
        1 => machine = machine.real_mode(),
        _ => {}
    }
    machine.translation = if input.byte().is_multiple_of(2) {
        Translation::Identity
    } else {
        Translation::Tables
    };
    machine.cpl = if input.byte().is_multiple_of(2) { 0 } else { 3 };
    machine.rflags ^= input.number() & 0x0025_0dd5;
    machine.cr3 = input.number() % WORLD as u64;
    machine.cr4 ^= input.number() & 0x0030_1030;
    machine.cr0 ^= input.number() & (1 << 31 | 1 << 16);
    machine.efer ^= input.number() & (1 << 11);
    machine.rip = input.number();
    for gpr in 0..16 {
        machine.gprs[gpr] = input.number();
    }
    for index in 0..6 {
        if input.byte() >= 0xc0 {
            machine.segments[index] = Segment {
                base: input.number(),
                limit: input.number() as u32,
                selector: input.number() as u16,
                attributes: input.number() as u16,
            };
        }
    }
    for _ in 0..INSTRUCTIONS {
        let length = usize::from(input.byte() % 18);
        let bytes: Vec<u8> = (0..length).map(|_| input.byte()).collect();
        // What is behind are the tables, and the rest of the instruction.
        for (to, from) in machine.world.iter_mut().zip(input.0.iter().cycle()) {
            *to = *from;
        }
        let before = machine.clone();
        if emulate(&mut machine, &bytes).is_err() {
            assert_eq!(machine.gprs, before.gprs, "a refusal changes nothing");
            assert_eq!(machine.rip, before.rip, "a refusal changes nothing");
        }
        assert!(
            machine.accesses.len() <= 8 * crate::REPEAT_LIMIT as usize,
            "bounded"
        );
        machine.accesses.clear();
    }
}

/// Bytes that end in zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Often small, because that is where memory is.
    fn number(&mut self) -> u64 {
        let length = match self.byte() % 8 {
            0 => 8,
            1 => 4,
            2 => 1,
            _ => 2,
        };
        (0..length).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }
}

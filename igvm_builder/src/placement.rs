//! Would `vsm_host` load an image on a machine of a certain size, and what would go where?
//!
//! The answer is the host's own: `igvm_loader` is the code that it runs. What is assumed is
//! the machine: QEMU's `q35` with `vsm_host`'s default of a parked first CPU, no NUMA nodes.

use crate::component::human_size;
use igvm_loader::{ImageError, MemoryRange, Options, plan, q35, subtract};
use serde::Serialize;
use std::fmt;

/// A machine.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Virtual processors.
    pub vps: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Options of the host.
    pub options: Options<'a>,
}

/// Where everything of an image goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Virtual processors of the machine.
    pub vps: u32,
    /// RAM of the machine.
    pub memory_bytes: u64,
    /// RAM of VTL2.
    pub vtl2_memory: Span,
    /// By how much the image is moved from where it was built for.
    pub relocation_offset: i64,
    /// Where VP 0 begins.
    pub entry: u64,
    /// Bytes that are written, zeros included.
    pub loaded_bytes: u64,
    /// Memory that is written, ascending.
    pub runs: Vec<Run>,
    /// What the host tells the image.
    pub parameters: Vec<Parameter>,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

/// Memory that is written with the same kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Where.
    #[serde(flatten)]
    pub span: Span,
    /// It comes from the file; otherwise it is zeroed.
    pub from_file: bool,
}

/// Something that the host tells the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// What.
    pub kind: String,
    /// The room for it.
    #[serde(flatten)]
    pub span: Span,
    /// Bytes of it that are used.
    pub used: u64,
}

/// Asks the loader.
pub fn place(file: &[u8], machine: &Machine<'_>) -> Result<Placement, ImageError> {
    let first_vp = u32::from(machine.options.park);
    let size = file.len() as u64;
    let q35 = q35::machine(first_vp, machine.vps, machine.memory, size);
    let plan = plan(file, &q35, &machine.options)?;
    let mut runs: Vec<Run> = Vec::new();
    for (range, from_file) in plan.runs() {
        let span = Span::from(range);
        match runs.last_mut() {
            Some(last) if last.span.end == span.start && last.from_file == from_file => {
                last.span.end = span.end;
            }
            _ => runs.push(Run { span, from_file }),
        }
    }
    let parameters = plan.parameters().iter().map(|parameter| Parameter {
        kind: parameter.name(),
        span: parameter.room.into(),
        used: parameter.bytes.len() as u64,
    });
    Ok(Placement {
        vps: machine.vps,
        memory_bytes: machine.memory,
        vtl2_memory: plan.vtl2_memory().into(),
        relocation_offset: plan.relocation_offset(),
        entry: plan.context().state().rip,
        loaded_bytes: plan.loaded_bytes(),
        parameters: parameters.collect(),
        runs,
    })
}

/// RAM that a machine leaves to the guest of an image: ascending ranges from their first
/// byte to the first behind them. Or why the host would refuse the image.
pub fn guest_ram(file: &[u8], machine: &Machine<'_>) -> Result<Vec<(u64, u64)>, ImageError> {
    let first_vp = u32::from(machine.options.park);
    let q35 = q35::machine(first_vp, machine.vps, machine.memory, file.len() as u64);
    let plan = plan(file, &q35, &machine.options)?;
    let mut ram = q35.ram_runs();
    subtract(&mut ram, plan.vtl2_memory());
    Ok(ram.iter().map(|run| (run.start(), run.end())).collect())
}

/// Bytes that a person wrote, with or without a binary suffix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    igvm_loader::parse_size(text).ok_or_else(|| format!("expected {}", igvm_loader::SIZE_FORM))
}

impl Span {
    fn size(self) -> u64 {
        self.end - self.start
    }
}

impl From<MemoryRange> for Span {
    fn from(range: MemoryRange) -> Self {
        Self {
            start: range.start(),
            end: range.end(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.start, self.end)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (memory, vtl2) = (human_size(self.memory_bytes), self.vtl2_memory);
        writeln!(f, "would load on q35 with {} VPs and {memory}", self.vps)?;
        let size = human_size(vtl2.size());
        writeln!(f, "VTL2 memory  {vtl2}, {size}")?;
        match self.relocation_offset {
            0 => writeln!(f, "relocation   none")?,
            offset => {
                let sign = if offset < 0 { '-' } else { '+' };
                writeln!(f, "relocation   {sign}{:#x}", offset.unsigned_abs())?;
            }
        }
        writeln!(f, "entry point  {:#x}", self.entry)?;
        writeln!(f, "written      {} KiB", self.loaded_bytes >> 10)?;
        for runs in self.runs.chunk_by(|a, b| a.span.end == b.span.start) {
            // A chunk is never empty.
            let (start, end) = (runs[0].span.start, runs[runs.len() - 1].span.end);
            let from_file = runs.iter().filter(|run| run.from_file);
            let from_file: u64 = from_file.map(|run| run.span.size()).sum();
            let (size, place) = (human_size(end - start), Span { start, end }.to_string());
            let from_file = human_size(from_file);
            writeln!(f, "  {place:<24} {size}, {from_file} of it from the file")?;
        }
        writeln!(f, "parameters")?;
        for Parameter { kind, span, used } in &self.parameters {
            let (place, room) = (span.to_string(), span.size());
            writeln!(f, "  {place:<24} {kind}: {used} of {room} bytes")?;
        }
        Ok(())
    }
}

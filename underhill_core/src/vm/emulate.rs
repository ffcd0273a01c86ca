//! Lends a VP to the emulator of instructions.

use chipset::Bus;
use chipset::bus::Space;
use chipset::bus::Width as BusWidth;
use chipset::bus::Written;
use thiserror::Error;
use virt::Context;
use virt::Exception;
use virt::GuestMemory;
use virt::Instruction;
use virt::MemoryExit;
use virt::Registers;
use virt::Segment;
use virt::Vp;
use x86_emulate::Access;
use x86_emulate::Cpu;
use x86_emulate::EmulateError;
use x86_emulate::Gpr;
use x86_emulate::Outcome;
use x86_emulate::SegmentName;
use x86_emulate::TranslateError;
use x86_emulate::Width;

const PAGE: u64 = 4096;
/// Vector of #DB.
const DEBUG: u8 = 1;

/// What became of the instruction.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// The VP can go on, where its registers say.
    Done,
    /// A device could not take a write: the instruction is to be done again.
    Stalled,
}

/// An instruction that leaves the VM no way to go on.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Virt(#[from] virt::Error),
    #[error(transparent)]
    Emulate(#[from] EmulateError<AccessError>),
}

/// Why an access of the instruction was not done.
#[derive(Debug, Error)]
pub(crate) enum AccessError {
    /// A device cannot take the write now.
    #[error("a device cannot take a write")]
    Stalled,
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] guest_memory::Error),
}

/// Emulates the instruction at the VP's RIP. `access` is the one that it was stopped at.
pub(crate) fn instruction(
    vp: &mut dyn Vp,
    memory: &GuestMemory,
    bus: &Bus,
    instruction: &Instruction,
    access: Option<&MemoryExit>,
) -> Result<Emulated, Error> {
    let mut cpu = Emulation {
        registers: vp.registers()?,
        context: vp.context()?,
        vp,
        memory,
        bus,
        access,
    };
    let before = cpu.registers;
    let outcome = x86_emulate::emulate(&mut cpu, instruction.bytes());
    let Emulation { vp, registers, .. } = cpu;
    // Of an instruction that repeats itself, a part may be done whatever the outcome is.
    if registers != before {
        vp.set_registers(&registers)?;
    }
    match outcome {
        Ok(Outcome::Done | Outcome::Interrupted) => {}
        Ok(Outcome::SingleStep) => vp.inject(Exception {
            vector: DEBUG,
            error_code: None,
            cr2: None,
        })?,
        Ok(Outcome::Exception(exception)) => vp.inject(Exception {
            vector: exception.vector,
            error_code: exception.error_code,
            cr2: exception.address,
        })?,
        Err(EmulateError::Cpu(AccessError::Stalled)) => return Ok(Emulated::Stalled),
        Err(error) => return Err(error.into()),
    }
    Ok(Emulated::Done)
}

/// A VP whose instruction is emulated, with a copy of its registers. They are written
/// back at the end.
struct Emulation<'a> {
    vp: &'a mut dyn Vp,
    registers: Registers,
    context: Context,
    memory: &'a GuestMemory,
    bus: &'a Bus,
    access: Option<&'a MemoryExit>,
}

impl Emulation<'_> {
    fn write(&self, space: Space, address: u64, width: Width, value: u64) -> Done {
        match self.bus.write(space, address, bus_width(width), value) {
            Written::Done => Ok(()),
            Written::Stalled => Err(AccessError::Stalled),
        }
    }

    fn read(&self, space: Space, address: u64, width: Width) -> u64 {
        self.bus.read(space, address, bus_width(width))
    }

    /// Where the access that was stopped goes, which the processor has found already.
    fn known(&self, linear: u64, access: Access) -> Option<u64> {
        let stopped = self.access?;
        let same = matches!(
            (stopped.access, access),
            (virt::Access::Read, Access::Read) | (virt::Access::Write, Access::Write)
        );
        let page = stopped.gva? / PAGE == linear / PAGE;
        (same && page).then_some(stopped.gpa / PAGE * PAGE + linear % PAGE)
    }
}

type Done = Result<(), AccessError>;

/// Tries once more when a neighbour has changed meanwhile, but not for ever.
const RACES: u32 = 64;

/// In one step for all other VPs, unless the value crosses a multiple of 8: such a split
/// lock is not atomic here.
fn compare_exchange(
    memory: &GuestMemory,
    gpa: u64,
    width: Width,
    current: u64,
    new: u64,
) -> Result<bool, AccessError> {
    let (offset, bytes) = ((gpa % 8) as usize, width.bytes());
    if offset + bytes > 8 {
        let mut value = [0; 8];
        memory.read(gpa, &mut value[..bytes])?;
        let same = u64::from_le_bytes(value) == current & width.mask();
        if same {
            memory.write(gpa, &new.to_le_bytes()[..bytes])?;
        }
        return Ok(same);
    }
    let (shift, word) = (8 * offset, gpa - offset as u64);
    for _ in 0..RACES {
        let there: u64 = memory.read_value(word)?;
        if there >> shift & width.mask() != current & width.mask() {
            return Ok(false);
        }
        let wanted = there & !(width.mask() << shift) | (new & width.mask()) << shift;
        if memory.compare_exchange(word, there, wanted)? == there {
            return Ok(true);
        }
    }
    Ok(false)
}

const fn bus_width(width: Width) -> BusWidth {
    match width {
        Width::Byte => BusWidth::Byte,
        Width::Word => BusWidth::Word,
        Width::Dword => BusWidth::Dword,
        Width::Qword => BusWidth::Qword,
    }
}

impl Cpu for Emulation<'_> {
    type Error = AccessError;

    fn gpr(&mut self, register: Gpr) -> u64 {
        self.registers.gp[register as usize]
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.registers.gp[register as usize] = value;
    }

    fn rip(&mut self) -> u64 {
        self.registers.rip
    }

    fn set_rip(&mut self, value: u64) {
        self.registers.rip = value;
    }

    fn rflags(&mut self) -> u64 {
        self.registers.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.registers.rflags = value;
    }

    fn segment(&mut self, name: SegmentName) -> Segment {
        self.context.segments[name as usize]
    }

    fn cr0(&mut self) -> u64 {
        self.context.cr0
    }

    fn cr3(&mut self) -> u64 {
        self.context.cr3
    }

    fn cr4(&mut self) -> u64 {
        self.context.cr4
    }

    fn efer(&mut self) -> u64 {
        self.context.efer
    }

    fn cpl(&mut self) -> u8 {
        self.context.cpl()
    }

    fn xmm(&mut self, register: u8) -> u128 {
        self.vp.xmm(register)
    }

    fn set_xmm(&mut self, register: u8, value: u128) {
        self.vp.set_xmm(register, value);
    }

    fn is_memory(&mut self, gpa: u64) -> bool {
        self.memory.is_ram(gpa, 1)
    }

    fn read_memory(&mut self, gpa: u64, bytes: &mut [u8]) -> Done {
        Ok(self.memory.read(gpa, bytes)?)
    }

    fn write_memory(&mut self, gpa: u64, bytes: &[u8]) -> Done {
        Ok(self.memory.write(gpa, bytes)?)
    }

    fn compare_exchange(
        &mut self,
        gpa: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<bool, AccessError> {
        compare_exchange(self.memory, gpa, width, current, new)
    }

    fn read_mmio(&mut self, gpa: u64, width: Width) -> Result<u64, AccessError> {
        Ok(self.read(Space::Memory, gpa, width))
    }

    fn write_mmio(&mut self, gpa: u64, width: Width, value: u64) -> Done {
        self.write(Space::Memory, gpa, width, value)
    }

    fn read_port(&mut self, port: u16, width: Width) -> Result<u32, AccessError> {
        // The width has at most 32 bits.
        Ok(self.read(Space::Port, port.into(), width) as u32)
    }

    fn write_port(&mut self, port: u16, width: Width, value: u32) -> Done {
        self.write(Space::Port, port.into(), width, value.into())
    }

    fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<u64, TranslateError<AccessError>> {
        match self.known(linear, access) {
            Some(gpa) => Ok(gpa),
            None => x86_emulate::paging::walk(self, linear, access),
        }
    }
}

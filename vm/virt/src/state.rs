//! Registers.

use x86_defs::CR0_CD;
use x86_defs::CR0_ET;
use x86_defs::CR0_NW;
use x86_defs::DR6_AT_RESET;
use x86_defs::DR7_AT_RESET;
use x86_defs::PAT_AT_RESET;
use x86_defs::RFLAGS_ALWAYS_ONE;
use x86_defs::long_mode::DescriptorTable;
use x86_defs::long_mode::LOCAL_TABLE;
use x86_defs::long_mode::Segment;
use x86_defs::long_mode::TASK;

/// General registers, with the number that instructions have for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of registers")]
pub enum Gp {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// Segment registers, with the number that instructions have for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of registers")]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// What instructions compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers, by [`Gp`].
    pub gp: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl Registers {
    /// One of the general registers.
    pub fn get(&self, register: Gp) -> u64 {
        self.gp[register as usize]
    }

    /// Sets one of them.
    pub fn set(&mut self, register: Gp, value: u64) {
        self.gp[register as usize] = value;
    }
}

/// What decides on the meaning of an instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Context {
    /// Segments, by [`SegmentName`].
    pub segments: [Segment; 6],
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl Context {
    /// One of the segments.
    pub fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }

    /// Privilege level.
    pub fn cpl(&self) -> u8 {
        (self.segment(SegmentName::Ss).attributes >> 5) as u8 & 3
    }
}

/// How a VP starts after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per reset, on the stack"
)]
pub enum Start {
    /// It waits for a start-up interrupt of another VP.
    WaitForSipi,
    /// It runs, in this state.
    Run(VpState),
}

/// The registers that each guest has for itself, except for those of its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VpState {
    /// General registers, RIP and RFLAGS.
    pub registers: Registers,
    /// Segments, by [`SegmentName`].
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task segment.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// Page attribute table.
    pub pat: u64,
    /// MTRRs: whether they count, and the memory type where no other says.
    pub mtrr_def_type: u64,
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
}

impl VpState {
    /// After a reset (AMD APM volume 2, table 14-1): real mode, at the last 16 bytes below
    /// 4 GiB.
    pub fn at_reset() -> Self {
        let data = Segment {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: 0x93,
        };
        let code = Segment {
            base: 0xffff_0000,
            limit: 0xffff,
            selector: 0xf000,
            attributes: 0x9b,
        };
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        let mut segments = [data; 6];
        segments[SegmentName::Cs as usize] = code;
        Self {
            registers: Registers {
                gp: [0; 16],
                rip: 0xfff0,
                rflags: RFLAGS_ALWAYS_ONE,
            },
            segments,
            ldtr: LOCAL_TABLE,
            tr: TASK,
            gdtr: table,
            idtr: table,
            cr0: CR0_CD | CR0_NW | CR0_ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            pat: PAT_AT_RESET,
            mtrr_def_type: 0,
            dr6: DR6_AT_RESET,
            dr7: DR7_AT_RESET,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_eip: 0,
            sysenter_esp: 0,
        }
    }
}

impl From<&vm_loader::x86_64::Registers> for VpState {
    /// What the loader does not say is as after a reset.
    fn from(start: &vm_loader::x86_64::Registers) -> Self {
        let mut state = Self::at_reset();
        state.registers.rip = start.rip;
        state.registers.rflags = start.rflags;
        state.registers.set(Gp::Rsi, start.rsi);
        state.segments = [start.data; 6];
        state.segments[SegmentName::Cs as usize] = start.cs;
        Self {
            ldtr: start.ldtr,
            tr: start.tr,
            gdtr: start.gdtr,
            idtr: start.idtr,
            cr0: start.cr0,
            cr3: start.cr3,
            cr4: start.cr4,
            efer: start.efer,
            pat: start.pat,
            mtrr_def_type: start.mtrr_def_type,
            ..state
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privilege_is_that_of_the_stack_segment() {
        let mut context = Context::default();
        assert_eq!(context.cpl(), 0);
        context.segments[SegmentName::Ss as usize].attributes = 0xc0f3;
        assert_eq!(context.cpl(), 3);
    }
}

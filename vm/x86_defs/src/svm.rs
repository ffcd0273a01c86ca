//! SVM: the virtual machine control block (APM volume 2, appendix B).

#![allow(
    clippy::upper_case_acronyms,
    non_camel_case_types,
    reason = "exit codes have the manual's names"
)]

use bitfield_struct::bitfield;
use core::mem::offset_of;
use open_enum::open_enum;
use zerocopy::FromZeros;

/// Intercepts of control word 3 (offset 0x00c).
#[bitfield(u32)]
pub struct Intercepts3 {
    /// Physical interrupt.
    pub intr: bool,
    /// NMI.
    pub nmi: bool,
    /// SMI.
    pub smi: bool,
    /// INIT.
    pub init: bool,
    /// Virtual interrupt: it could be taken.
    pub vintr: bool,
    #[bits(13)]
    _others: u16,
    /// CPUID.
    pub cpuid: bool,
    _rsm: bool,
    /// IRET.
    pub iret: bool,
    _int: bool,
    /// INVD.
    pub invd: bool,
    _pause: bool,
    /// HLT.
    pub hlt: bool,
    /// INVLPG.
    pub invlpg: bool,
    /// INVLPGA.
    pub invlpga: bool,
    /// Ports of the I/O permission map.
    pub ioio: bool,
    /// MSRs of the MSR permission map.
    pub msr: bool,
    /// Task switch.
    pub task_switch: bool,
    /// FERR freeze.
    pub ferr_freeze: bool,
    /// Shutdown (triple fault).
    pub shutdown: bool,
}

/// Intercepts of exceptions (offset 0x008): a bit for each vector.
#[bitfield(u32)]
pub struct ExceptionIntercepts {
    _divide: bool,
    /// #DB.
    pub debug: bool,
    #[bits(15)]
    _others: u16,
    /// #AC.
    pub alignment_check: bool,
    #[bits(14)]
    _rest: u16,
}

/// Intercepts of control word 4 (offset 0x010).
#[bitfield(u32)]
pub struct Intercepts4 {
    /// VMRUN; must be intercepted.
    pub vmrun: bool,
    /// VMMCALL.
    pub vmmcall: bool,
    /// VMLOAD.
    pub vmload: bool,
    /// VMSAVE.
    pub vmsave: bool,
    /// STGI.
    pub stgi: bool,
    /// CLGI.
    pub clgi: bool,
    /// SKINIT.
    pub skinit: bool,
    _rdtscp: bool,
    /// INT1, also called ICEBP.
    pub icebp: bool,
    _wbinvd: bool,
    /// MONITOR.
    pub monitor: bool,
    /// MWAIT.
    pub mwait: bool,
    /// MWAIT that would wait.
    pub mwait_armed: bool,
    /// XSETBV.
    pub xsetbv: bool,
    #[bits(18)]
    _rest: u32,
}

/// Intercepts of debug registers (offset 0x004): a bit for each register.
#[bitfield(u32)]
pub struct DebugIntercepts {
    /// Reads.
    pub reads: u16,
    /// Writes.
    pub writes: u16,
}

/// Why a VM exit happened (APM appendix C; named as there).
#[open_enum]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromZeros)]
#[repr(u64)]
pub enum ExitCode {
    /// Write of CR8.
    CR8_WRITE = 0x18,
    /// Write of DR0.
    DR0_WRITE = 0x30,
    /// Write of DR1.
    DR1_WRITE = 0x31,
    /// Write of DR2.
    DR2_WRITE = 0x32,
    /// Write of DR3.
    DR3_WRITE = 0x33,
    /// Write of DR5, another name of DR7 or none.
    DR5_WRITE = 0x35,
    /// Write of DR7.
    DR7_WRITE = 0x37,
    /// Exception #DB.
    EXCEPTION_DB = 0x41,
    /// Exception #AC.
    EXCEPTION_AC = 0x51,
    /// Physical interrupt.
    INTR = 0x60,
    /// NMI.
    NMI = 0x61,
    /// SMI.
    SMI = 0x62,
    /// INIT.
    INIT = 0x63,
    /// A virtual interrupt could be taken.
    VINTR = 0x64,
    /// CPUID.
    CPUID = 0x72,
    /// IRET, not yet executed.
    IRET = 0x74,
    /// INVD.
    INVD = 0x76,
    /// HLT.
    HLT = 0x78,
    /// INVLPGA.
    INVLPGA = 0x7a,
    /// An intercepted port.
    IOIO = 0x7b,
    /// RDMSR (EXITINFO1 0) or WRMSR (1).
    MSR = 0x7c,
    /// Shutdown.
    SHUTDOWN = 0x7f,
    /// VMRUN.
    VMRUN = 0x80,
    /// VMMCALL.
    VMMCALL = 0x81,
    /// VMLOAD.
    VMLOAD = 0x82,
    /// VMSAVE.
    VMSAVE = 0x83,
    /// STGI.
    STGI = 0x84,
    /// CLGI.
    CLGI = 0x85,
    /// SKINIT.
    SKINIT = 0x86,
    /// INT1, not yet executed.
    ICEBP = 0x88,
    /// MONITOR.
    MONITOR = 0x8a,
    /// MWAIT.
    MWAIT = 0x8b,
    /// MWAIT that would wait.
    MWAIT_ARMED = 0x8c,
    /// XSETBV.
    XSETBV = 0x8d,
    /// Nested page fault.
    NPF = 0x400,
    /// The VMCB was not accepted.
    INVALID = u64::MAX,
}

/// Virtual interrupts (offset 0x060).
#[bitfield(u64)]
#[derive(PartialEq, Eq, FromZeros)]
pub struct VirtualInterrupt {
    /// CR8 of the guest, if the host's masking is in force.
    #[bits(4)]
    pub tpr: u8,
    #[bits(4)]
    _reserved1: u8,
    /// An interrupt waits.
    pub irq: bool,
    #[bits(7)]
    _gif: u8,
    /// Its priority.
    #[bits(4)]
    pub priority: u8,
    /// Which CR8 does not hold back.
    pub ignore_tpr: bool,
    #[bits(3)]
    _reserved2: u8,
    /// RFLAGS.IF and CR8 of the guest are for virtual interrupts only; physical ones follow
    /// the host's.
    pub masking: bool,
    #[bits(7)]
    _reserved3: u8,
    /// Its vector.
    pub vector: u8,
    #[bits(24)]
    _reserved4: u32,
}

/// Event that VMRUN injects.
#[bitfield(u64)]
#[derive(FromZeros)]
pub struct EventInjection {
    /// Vector.
    pub vector: u8,
    /// 0: interrupt, 2: NMI, 3: exception, 4: INT.
    #[bits(3)]
    pub kind: u8,
    /// An error code is pushed.
    pub has_error_code: bool,
    #[bits(19)]
    _reserved: u32,
    /// There is an event.
    pub valid: bool,
    /// Error code.
    pub error_code: u32,
}

impl EventInjection {
    /// INT, INT3 or INTO has raised it.
    pub const fn is_of_instruction(self) -> bool {
        matches!((self.kind(), self.vector()), (4, _) | (3, 3 | 4))
    }
}

/// EXITINFO1 of an I/O exit.
#[bitfield(u64)]
pub struct IoInfo {
    /// IN.
    pub is_in: bool,
    _reserved1: bool,
    /// INS or OUTS.
    pub string: bool,
    /// With REP.
    pub rep: bool,
    /// One byte.
    pub byte: bool,
    /// Two bytes.
    pub word: bool,
    /// Four bytes.
    pub dword: bool,
    #[bits(9)]
    _reserved2: u16,
    /// The port.
    pub port: u16,
    _reserved3: u32,
}

/// A segment register.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromZeros)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes in the packed form of 12 bits.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

/// Offsets 0x000 to 0x3ff.
#[repr(C)]
#[derive(FromZeros)]
#[expect(missing_docs, reason = "names of the manual; reserved gaps")]
pub struct Control {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercepts3: u32,
    pub intercepts4: u32,
    pub intercepts5: u32,
    _reserved1: [u8; 0x28],
    pub iopm_base: u64,
    pub msrpm_base: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: VirtualInterrupt,
    pub interrupt_shadow: u64,
    pub exit_code: ExitCode,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_interrupt_info: u64,
    pub nested_paging: u64,
    _avic_ghcb: [u64; 2],
    pub event_injection: EventInjection,
    pub nested_cr3: u64,
    pub lbr_virtualization: u64,
    pub clean_bits: u64,
    pub next_rip: u64,
    _reserved2: [u8; 0x330],
}

/// Offsets 0x400 to 0xfff: the state of the guest.
#[repr(C)]
#[derive(FromZeros)]
#[expect(missing_docs, reason = "names of the manual; reserved gaps")]
pub struct Save {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    _reserved1: [u8; 0x2b],
    pub cpl: u8,
    _reserved2: u32,
    pub efer: u64,
    _reserved3: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    _reserved4: [u8; 0x58],
    pub rsp: u64,
    _shadow_stack: [u64; 3],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    _reserved5: [u8; 0x20],
    pub g_pat: u64,
    pub debug_control: u64,
    _reserved6: [u8; 0x988],
}

/// The whole block, one page.
#[repr(C, align(4096))]
#[derive(FromZeros)]
pub struct Vmcb {
    /// Control area.
    pub control: Control,
    /// State save area.
    pub save: Save,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 4096 && size_of::<Control>() == 0x400);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, nested_paging) == 0x90);
    assert!(offset_of!(Control, event_injection) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, g_pat) == 0x268);
};

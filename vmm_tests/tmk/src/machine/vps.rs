//! The other VPs: how they are started and what they can be told.

#![expect(
    unsafe_code,
    reason = "stacks of the other VPs are handed over by address"
)]

use super::descriptors::table_registers;
use super::entry::{ap_entry, selector};
use super::hypercall::{self, Outcome, simple};
use super::memory::{self, ScratchPage};
use super::probe::{Fault, MSR_EFER, cpuid_leaf, rdmsr, wrmsr};
use crate::acpi::MAX_VPS;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::hypercall::{EnableVpVtl, HypercallCode};
use hv_defs::msr::{
    HV_X64_MSR_SCONTROL, HV_X64_MSR_SIEFP, HV_X64_MSR_SINT0, HV_X64_MSR_TSC_FREQUENCY,
    HV_X64_MSR_VP_INDEX,
};
use hv_defs::vp_context::{HvInitialVpContext, HvX64SegmentRegister, SegmentAttributes};

/// Bytes of a VP's stack.
const STACK_SIZE: usize = 8192;
/// Register of the local APIC with its id in bits 24-31.
const APIC_ID: u64 = 0x20;
/// Register of the local APIC with its spurious vector, and whether it is on.
const SPURIOUS: u64 = 0xf0;
const APIC_ON: u32 = 0x1ff;
const APIC_OFF: u32 = 0xff;
/// Register of the local APIC with requests of these vectors.
const REQUESTS_64_TO_95: u64 = 0x220;
/// Time that a VP has to report; only to diagnose, not to synchronise.
const DEADLINE_SECONDS: u64 = 20;
/// Restores between two looks at the command.
const FXRSTOR_BATCH: u64 = 64;

/// VTL that the payload runs in.
pub const OWN_VTL: u8 = 2;

/// What a VP shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// Wait for another command.
    Wait,
    /// Halt for ever.
    Halt,
    /// Restore floating-point state until told otherwise.
    Fxrstor,
    /// Make CPUID exits until told otherwise.
    Cpuid,
    /// Triple fault.
    TripleFault,
    /// Turn the local APIC and the SynIC on, once.
    Listen,
    /// Tell in [`Slot::interrupts`] what has come, once.
    Report,
    /// Turn the local APIC off and suspend the VP.
    Leave,
}

/// Vector of [`EVENT_SINT`] on a VP that listens.
pub const EVENT_VECTOR: u8 = 0x51;
/// Source that a VP listens to.
pub const EVENT_SINT: u8 = 7;

/// What VP 0 and another VP share.
#[derive(Debug)]
pub struct Slot {
    /// 1 as soon as the rest is valid.
    reported: AtomicU32,
    vp_index: AtomicU32,
    apic_id: AtomicU32,
    cpuid_apic_id: AtomicU32,
    command: AtomicU32,
    /// Vectors 64 to 95 that were requested at the last report; the upper half is where
    /// the SynIC's event flags were.
    pub interrupts: AtomicU64,
    /// Rounds done.
    pub rounds: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            reported: AtomicU32::new(0),
            vp_index: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            cpuid_apic_id: AtomicU32::new(0),
            command: AtomicU32::new(Command::Wait as u32),
            interrupts: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
        }
    }

    /// True once the VP runs.
    pub fn has_reported(&self) -> bool {
        self.reported.load(Ordering::Acquire) != 0
    }

    /// Expects a new report of a VP that will be started again.
    pub fn forget(&self) {
        self.reported.store(0, Ordering::Release);
    }

    /// Tells the VP what to do, and waits until it has done so once; false if that takes
    /// too long.
    pub fn once(&self, command: Command) -> bool {
        let before = self.rounds.load(Ordering::Acquire);
        self.command(command);
        let done = self.wait(|slot| slot.rounds.load(Ordering::Acquire) != before);
        self.command(Command::Wait);
        done
    }

    /// Tells the VP what to do.
    pub fn command(&self, command: Command) {
        self.command.store(command as u32, Ordering::Release);
    }

    /// Waits until `condition` holds; false if it takes too long.
    pub fn wait(&self, condition: impl Fn(&Self) -> bool) -> bool {
        let frequency = rdmsr(HV_X64_MSR_TSC_FREQUENCY).unwrap_or(1_000_000_000);
        let start = memory::tsc();
        while !condition(self) {
            if memory::tsc().wrapping_sub(start) > frequency.saturating_mul(DEADLINE_SECONDS) {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }

    /// What the VP says about itself: VP index, id of its local APIC, id by CPUID.
    pub fn identity(&self) -> (u32, u32, u32) {
        (
            self.vp_index.load(Ordering::Relaxed),
            self.apic_id.load(Ordering::Relaxed),
            self.cpuid_apic_id.load(Ordering::Relaxed),
        )
    }
}

static SLOTS: [Slot; MAX_VPS] = [const { Slot::new() }; MAX_VPS];

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MAX_VPS]>);

// SAFETY: each VP uses its own stack only; VP 0 writes to it before the VP starts.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MAX_VPS]));

/// What is shared with VP `index`.
pub fn slot(index: usize) -> Option<&'static Slot> {
    SLOTS.get(index)
}

/// Where VP `index` starts.
pub fn context(index: usize) -> HvInitialVpContext {
    let index = index % MAX_VPS;
    let top = STACKS.0.get() as u64 + ((index + 1) * STACK_SIZE) as u64;
    let rsp = top - 8;
    // SAFETY: the word is in the stack of a VP that does not run yet (or, if it does run,
    // at the very top, which its first instruction has already taken).
    unsafe { (rsp as *mut u64).write_volatile(index as u64) };
    let segment = |selector, typ, long| HvX64SegmentRegister {
        base: 0,
        limit: u32::MAX,
        selector,
        attributes: SegmentAttributes::new()
            .with_segment_type(typ)
            .with_non_system(true)
            .with_present(true)
            .with_granularity(true)
            .with_long(long)
            .with_default(!long),
    };
    let code = segment(selector::KERNEL_CODE, 0xb, true);
    let data = segment(selector::KERNEL_DATA, 0x3, false);
    let (gdtr, idtr) = table_registers();
    let (cr0, cr4) = memory::cr0_cr4();
    HvInitialVpContext {
        rip: ap_entry(),
        rsp,
        rflags: 2,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: HvX64SegmentRegister {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: SegmentAttributes::new()
                .with_segment_type(0xb)
                .with_present(true),
        },
        ldtr: HvX64SegmentRegister {
            base: 0,
            limit: 0xffff,
            selector: 0,
            attributes: SegmentAttributes::new()
                .with_segment_type(2)
                .with_present(true),
        },
        idtr,
        gdtr,
        efer: rdmsr(MSR_EFER).unwrap_or(0),
        cr0,
        cr3: memory::cr3(),
        cr4,
        msr_cr_pat: 0x0007_0406_0007_0406,
    }
}

/// `ENABLE_VP_VTL` or `START_VIRTUAL_PROCESSOR`.
pub fn vp_call(
    code: HypercallCode,
    vp_index: u32,
    target_vtl: u8,
    vp_context: HvInitialVpContext,
) -> Result<Outcome, Fault> {
    hypercall::call(
        simple(code),
        &EnableVpVtl {
            partition_id: HV_PARTITION_ID_SELF,
            vp_index,
            target_vtl,
            rsvd: [0; 3],
            vp_context,
        },
    )
}

impl Slot {
    /// Does what VP 0 waits for in [`Slot::once`].
    fn do_once(&self, command: u32, work: impl FnOnce()) {
        work();
        // The command first: VP 0 may give another one as soon as it sees the round.
        let _ = self.command.compare_exchange(
            command,
            Command::Wait as u32,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        self.rounds.fetch_add(1, Ordering::Release);
    }

    fn report(&self) {
        // Interrupts stay requested: IF is clear.
        let requested = memory::local_apic(REQUESTS_64_TO_95);
        let page = rdmsr(HV_X64_MSR_SIEFP).unwrap_or(u64::MAX);
        let value = u64::from(requested) | page << 32;
        self.interrupts.store(value, Ordering::Relaxed);
    }
}

fn listen() {
    memory::write_local_apic(SPURIOUS, APIC_ON);
    for (msr, value) in [
        (HV_X64_MSR_SIEFP, ScratchPage::EVENTS.address() | 1),
        (
            HV_X64_MSR_SINT0 + u32::from(EVENT_SINT),
            u64::from(EVENT_VECTOR),
        ),
        (HV_X64_MSR_SCONTROL, 1),
    ] {
        // VP 0 sees what has become of it.
        let _ = wrmsr(msr, value);
    }
}

/// First Rust code of another VP.
pub(super) extern "C" fn ap_main(index: u64) -> ! {
    let Some(slot) = slot(index as usize) else {
        memory::halt()
    };
    let vp_index = rdmsr(HV_X64_MSR_VP_INDEX).unwrap_or(u64::MAX) as u32;
    let cpuid = cpuid_leaf(1).map_or(u32::MAX, |[_, ebx, ..]| ebx >> 24);
    slot.vp_index.store(vp_index, Ordering::Relaxed);
    slot.apic_id
        .store(memory::local_apic(APIC_ID) >> 24, Ordering::Relaxed);
    slot.cpuid_apic_id.store(cpuid, Ordering::Relaxed);
    slot.reported.store(1, Ordering::Release);
    loop {
        match slot.command.load(Ordering::Acquire) {
            c if c == Command::Fxrstor as u32 => {
                for _ in 0..FXRSTOR_BATCH {
                    memory::fxrstor(ScratchPage::FLOATING_POINT);
                }
                slot.rounds.fetch_add(FXRSTOR_BATCH, Ordering::Relaxed);
            }
            c if c == Command::Cpuid as u32 => {
                // The answer is checked on VP 0; here only the exit matters.
                let _ = cpuid_leaf(0);
                slot.rounds.fetch_add(1, Ordering::Relaxed);
            }
            c if c == Command::Listen as u32 => slot.do_once(c, listen),
            c if c == Command::Report as u32 => slot.do_once(c, || slot.report()),
            c if c == Command::Leave as u32 => {
                slot.do_once(c, || memory::write_local_apic(SPURIOUS, APIC_OFF));
                let control = hypercall::repeated(HypercallCode::SET_VP_REGISTERS, 1);
                // It does not return; if it does, the VP is not heard of any more either.
                let _ = hypercall::raw(control.into_bits(), ScratchPage::SUSPEND.address(), 0);
                memory::halt()
            }
            c if c == Command::Halt as u32 => memory::halt(),
            c if c == Command::TripleFault as u32 => memory::triple_fault(),
            _ => core::hint::spin_loop(),
        }
    }
}

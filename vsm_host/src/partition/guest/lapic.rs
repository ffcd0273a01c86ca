//! The local APIC of VTL0: crate `vapic`, and the processor that it belongs to.
//!
//! The loop around a VP that is in VTL0:
//! 1. [`after_exit`], before anything looks at the APIC.
//! 2. The exit is handled, if it concerns the APIC by [`read_msr`], [`write_msr`],
//!    [`mmio`] or [`halt`].
//! 3. [`before_entry`] takes over what others have posted, injects, sets the timer, and
//!    says whether the VP runs or waits.
//!
//! Calls, timers and everything else that interrupts the guest are NMIs, which make it
//! exit. One that comes between the last look at what is posted and the entry waits at
//! the CPU, because GIF is clear, and is an exit at once.
//!
//! INIT and start-up are the host's: a VP that waits for its start-up waits in
//! [`Entry::Idle`]. What they do to the registers is done where the registers are needed:
//! before the entry, or when VTL2 looks at them ([`sync_registers`]).

use super::Entry;
use crate::clock::Frequencies;
use crate::guest_memory::GuestMemory;
use crate::partition::{Partition, Processor, Vp, gpr, synic};
use crate::svm::context;
use crate::svm::nmi::Nmis;
use crate::svm::special::{self, Target};
use crate::svm::store::{self, Access};
use crate::svm::vmcb::{self, Exception};
use crate::vtl::Vtl;
use igvm_loader::StartContext;
use vapic::{
    Apics, Collected, Config, CpuState, Effect, EoiAssist, Injection, LocalApic, MsrError, Plan,
    Rates, Shared, Startup, VectorSet, Window,
};
use x86_defs::svm::{EventInjection, Intercepts3, Vmcb};
use x86_defs::{CR0_CD, CR0_NW, RFLAGS_IF};

/// VTL0 is meant throughout.
const GUEST: usize = Vtl::GUEST.index();

/// No periodic timer of a guest asks for more interrupts per second than this.
const MAX_PERIODIC_HZ: u64 = 10_000;
/// What waits for something that is no exit is looked at again so many times per second: an
/// NMI for the event that is being injected, an interrupt for the end of the instruction
/// behind MOV to SS or STI.
const RETRY_HZ: u64 = 20_000;

/// Bit of `intercept_cr`.
const CR8_WRITES: u32 = 1 << (16 + 8);
/// Size of a page, as a segment base counts it.
const PAGE_SHIFT: u32 = 12;

/// The local APIC of a VP in VTL0, for the CPU of the VP.
pub struct GuestApic {
    apic: LocalApic,
    /// The VP has executed HLT.
    halted: bool,
    /// INIT and start-up that the registers do not show yet.
    collected: Collected,
}

impl GuestApic {
    /// The APIC of a VP, after power-up. Its id is the index of the VP.
    pub fn new(vp: u32, frequencies: Frequencies) -> Self {
        let Frequencies { tsc_hz, lapic_hz } = frequencies;
        Self {
            apic: LocalApic::new(Config {
                apic_id: vp,
                bsp: vp == 0,
                x2apic: true,
                tsc_deadline: true,
                rates: Rates::new(tsc_hz, lapic_hz, tsc_hz / MAX_PERIODIC_HZ),
            }),
            halted: false,
            collected: Collected::default(),
        }
    }

    /// The part for all VPs.
    pub fn shared(&self) -> Shared {
        Shared::new(self.apic.address())
    }

    /// Whether the VP has executed HLT and waits.
    pub fn halted(&self) -> bool {
        self.halted
    }

    /// VTL2 says whether the VP has executed HLT.
    pub fn set_halted(&mut self, halted: bool) {
        self.halted = halted;
    }

    /// Whether the VP waits for its start-up.
    pub fn waits_for_startup(&self) -> bool {
        self.apic.startup() == Startup::WaitForStartup
    }

    /// VTL2 says whether the VP waits for its start-up.
    pub fn set_waits_for_startup(&mut self, waits: bool) {
        self.apic.set_startup(if waits {
            Startup::WaitForStartup
        } else {
            Startup::Running
        });
    }

    /// Vectors whose interrupts end themselves.
    pub fn set_auto_eoi(&mut self, vectors: VectorSet) {
        self.apic.set_auto_eoi(vectors);
    }
}

/// The local APICs of all VPs in VTL0, as others see them.
pub struct GuestApics<'a, P> {
    partition: &'a Partition,
    processor: &'a P,
}

impl<P: Processor> Apics for GuestApics<'_, P> {
    type Word = core::sync::atomic::AtomicU64;

    fn count(&self) -> u32 {
        self.partition.vp_count()
    }

    fn shared(&self, vp: u32) -> &Shared {
        &self.partition.slots[vp as usize].lapic
    }

    fn kick(&self, vp: u32) {
        self.processor
            .wake(self.partition.slots[vp as usize].apic_id);
    }
}

/// The local APICs of all VPs in VTL0: where interrupts for it are posted.
pub fn apics<'a, P: Processor>(partition: &'a Partition, processor: &'a P) -> GuestApics<'a, P> {
    GuestApics {
        partition,
        processor,
    }
}

/// The first field of the guest's VP assist page.
struct Assist<'a, P: ?Sized> {
    memory: GuestMemory<'a, P>,
    address: Option<u64>,
}

impl<'a, P: Processor> Assist<'a, P> {
    fn new(partition: &'a Partition, vp: &Vp, processor: &'a P) -> Self {
        let page = vp.vtls[GUEST].assist;
        Self {
            memory: partition.memory(Vtl::GUEST, processor),
            // It was checked when it was set.
            address: page.enabled().then(|| page.page_number() << PAGE_SHIFT),
        }
    }
}

impl<P: Processor> EoiAssist for Assist<'_, P> {
    fn load(&mut self) -> Option<u32> {
        self.memory.load_word(self.address?).ok()
    }

    fn store(&mut self, value: u32) -> bool {
        self.address
            .is_some_and(|address| self.memory.store_word(address, value).is_ok())
    }
}

/// After each exit from VTL0, and after each wait in its place.
pub fn after_exit(partition: &Partition, vp: &mut Vp, processor: &impl Processor) {
    let slot = &partition.slots[vp.index as usize];
    // First of all: others may wait for it.
    slot.presence.leave();
    // A call that is still on its way is an exit of whatever runs then, and ignored.
    let _ = slot.lapic.leave();
    let mut assist = Assist::new(partition, vp, processor);
    if vp.lapic.apic.sync_eoi(&mut assist) {
        synic::end_of_interrupt(partition, vp, processor);
    }
    sync_tpr(vp);
}

/// Before each entry into VTL0: what to do there.
pub fn before_entry(partition: &Partition, vp: &mut Vp, processor: &impl Processor) -> Entry {
    let slot = &partition.slots[vp.index as usize];
    let tsc_hz = partition.config.frequencies.tsc_hz;
    loop {
        synic::poll(partition, vp, processor);
        collect(partition, vp);
        apply_collected(vp, processor, true);
        // VTL2 may have written it.
        sync_tpr(vp);
        let now = processor.tsc();
        vp.lapic.apic.poll_timer(now);
        let mut assist = Assist::new(partition, vp, processor);
        let cpu = cpu_state(vp);
        let plan = vp.lapic.apic.plan(cpu, &mut assist);
        let retry = carry_out(vp, plan).then(|| now.saturating_add(tsc_hz / RETRY_HZ));
        let deadline = vp.lapic.apic.next_deadline(now);
        let of_synic = synic::next_deadline(partition, vp);
        let deadline = [deadline, retry, of_synic].into_iter().flatten().min();
        if processor.arm_timer(vp.index, deadline) {
            continue;
        }
        publish(partition, vp);
        if slot.lapic.enter() {
            break;
        }
    }
    if vp.lapic.waits_for_startup() || vp.lapic.halted {
        return Entry::Idle;
    }
    let change = slot.presence.enter(&partition.changes);
    if vp.known_change != change {
        vp.known_change = change;
        vmcb::flush(vp.vmcb_mut());
    }
    Entry::Run
}

/// Brings an exit from VTL2 for what waits there. The timer is free: the deadline of VTL0 is
/// set again when VTL0 is entered, and means nothing before.
pub fn look_again_soon(partition: &Partition, vp: &Vp, processor: &impl Processor) {
    let pause = partition.config.frequencies.tsc_hz / RETRY_HZ;
    // A moment that has passed while it was set brings no NMI.
    while processor.arm_timer(vp.index, Some(processor.tsc().saturating_add(pause))) {}
}

/// The VP has executed HLT, and stands behind it.
pub fn halt(vp: &mut Vp) {
    vp.lapic.halted = true;
}

/// MOV to CR8, at which the VP stands.
pub fn write_cr8(partition: &Partition, vp: &mut Vp, processor: &impl Processor) {
    let memory = partition.memory(Vtl::GUEST, processor);
    let written = special::write_at(&memory, &vp.vtls[GUEST].vmcb.save);
    let Some(written) = written.filter(|written| written.target == Target::Cr8) else {
        vmcb::inject(&mut vp.vtls[GUEST].vmcb, Exception::InvalidOpcode);
        return;
    };
    let value = vp.register(written.source);
    let vmcb = &mut vp.vtls[GUEST].vmcb;
    if value > 0xf {
        vmcb::inject(vmcb, Exception::GeneralProtection);
        return;
    }
    vmcb.control.virtual_interrupt.set_tpr(value as u8);
    vmcb::advance(vmcb, written.next_rip);
    sync_tpr(vp);
}

/// Brings the registers of VTL0 up to date before VTL2 reads or writes them: an INIT that
/// has been sent comes first. The general-purpose registers are VTL2's at that moment.
pub fn sync_registers(partition: &Partition, vp: &mut Vp, processor: &impl Processor) {
    collect(partition, vp);
    apply_collected(vp, processor, false);
}

/// RDMSR of an MSR that `vapic` owns.
pub fn read_msr(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    msr: u32,
) -> Result<u64, Exception> {
    collect(partition, vp);
    let value = vp.lapic.apic.read_msr(msr, processor.tsc());
    value.map_err(|MsrError { .. }| Exception::GeneralProtection)
}

/// WRMSR of an MSR that `vapic` owns. Yields the vector of a level-triggered interrupt that
/// it has ended.
pub fn write_msr(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    msr: u32,
    value: u64,
) -> Result<Option<u8>, Exception> {
    collect(partition, vp);
    let effect = vp.lapic.apic.write_msr(msr, value, processor.tsc());
    let effect = effect.map_err(|MsrError { .. }| Exception::GeneralProtection)?;
    Ok(effect_of(partition, vp, processor, effect))
}

/// What an access to the xAPIC page led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mmio {
    /// It is done. It may have ended a level-triggered interrupt of this vector.
    Done(Option<u8>),
    /// The APIC is not there, or the instruction is an unusual one: nothing has happened.
    Foreign,
}

/// An access to `gpa`, at which the VP stands. `write`: as the processor says.
pub fn mmio(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    gpa: u64,
    write: bool,
) -> Mmio {
    let Some(offset) = vp
        .lapic
        .apic
        .mmio_base()
        .and_then(|base| gpa.checked_sub(base))
        .filter(|offset| *offset < x86_defs::apic::APIC_PAGE_SIZE)
    else {
        return Mmio::Foreign;
    };
    let memory = partition.memory(Vtl::GUEST, processor);
    let Some(found) = store::at(&memory, &vp.vtls[GUEST].vmcb.save) else {
        return Mmio::Foreign;
    };
    const SIZE: usize = size_of::<u32>();
    let ended = match found.access {
        Access::Load(register) if !write => {
            collect(partition, vp);
            let value = vp.lapic.apic.read_mmio(offset, SIZE, processor.tsc());
            set_register(vp, register, value);
            None
        }
        Access::Store(source) if write => {
            let value = vp.source_value(source);
            collect(partition, vp);
            let apic = &mut vp.lapic.apic;
            let effect = apic.write_mmio(offset, SIZE, value, processor.tsc());
            effect_of(partition, vp, processor, effect)
        }
        _ => return Mmio::Foreign,
    };
    vmcb::advance(&mut vp.vtls[GUEST].vmcb, found.next_rip);
    Mmio::Done(ended)
}

/// A load of 32 bits clears the upper half.
fn set_register(vp: &mut Vp, register: usize, value: u64) {
    let save = &mut vp.vtls[GUEST].vmcb.save;
    match register {
        gpr::RAX => save.rax = value,
        gpr::RSP => save.rsp = value,
        _ => vp.gprs[register] = value,
    }
}

/// Carries out what an access asks for.
fn effect_of(
    partition: &Partition,
    vp: &mut Vp,
    processor: &impl Processor,
    effect: Effect,
) -> Option<u8> {
    // The access may have changed the task priority.
    set_tpr(vp);
    publish(partition, vp);
    match effect {
        Effect::None => None,
        Effect::Send(message) => {
            vapic::deliver(&apics(partition, processor), Some(vp.index), &message);
            None
        }
        Effect::EndOfInterrupt { level } => {
            synic::end_of_interrupt(partition, vp, processor);
            level
        }
    }
}

/// Takes over what others have posted.
fn collect(partition: &Partition, vp: &mut Vp) {
    let found = vp
        .lapic
        .apic
        .collect(&partition.slots[vp.index as usize].lapic);
    let collected = &mut vp.lapic.collected;
    if found.init {
        *collected = found;
    } else {
        collected.start = found.start.or(collected.start);
    }
}

/// Lets the registers show INIT and start-up.
fn apply_collected(vp: &mut Vp, processor: &impl Processor, in_guest: bool) {
    let Collected { init, start } = core::mem::take(&mut vp.lapic.collected);
    if init {
        let reset = StartContext::at_reset();
        let state = &mut vp.vtls[GUEST];
        let save = &state.vmcb.save;
        let kept = CR0_CD | CR0_NW;
        let caching = save.cr0 & kept;
        context::apply(&reset, &mut state.vmcb);
        vmcb::flush(&mut state.vmcb);
        let save = &mut state.vmcb.save;
        save.cr0 = save.cr0 & !kept | caching;
        state.vmcb.control.event_injection = EventInjection::new();
        state.vmcb.control.interrupt_shadow = 0;
        state.nmis.reset(&mut state.vmcb);
        if in_guest {
            vp.gprs = reset.gprs;
            // The processor's identity.
            vp.gprs[gpr::RDX] = processor.cpuid(1, 0)[0].into();
        } else {
            vp.guest.page_is_outdated = true;
        }
        vp.lapic.halted = false;
        set_tpr(vp);
    }
    if let Some(page) = start {
        let save = &mut vp.vtls[GUEST].vmcb.save;
        save.cs.selector = u16::from(page) << 8;
        save.cs.base = u64::from(page) << PAGE_SHIFT;
        save.rip = 0;
        vp.lapic.halted = false;
    }
}

/// What the processor can take.
fn cpu_state(vp: &Vp) -> CpuState {
    let state = &vp.vtls[GUEST];
    let control = &state.vmcb.control;
    let open = control.interrupt_shadow & vmcb::SHADOW == 0;
    CpuState {
        interrupts: open && state.vmcb.save.rflags & RFLAGS_IF != 0,
        nmis: open && state.nmis == Nmis::Open,
        occupied: control.event_injection.valid(),
    }
}

/// Puts a plan into the block; true if something waits for which no exit will come.
fn carry_out(vp: &mut Vp, plan: Plan) -> bool {
    let Plan {
        inject,
        interrupt_window,
        nmi_window,
    } = plan;
    let state = &mut vp.vtls[GUEST];
    match inject {
        Some(Injection::Nmi) => state.nmis.inject(&mut state.vmcb),
        Some(Injection::Interrupt(vector)) => {
            state.vmcb.control.event_injection =
                EventInjection::new().with_vector(vector).with_valid(true);
        }
        None => {}
    }
    if state.vmcb.control.event_injection.valid() {
        vp.lapic.halted = false;
    }
    // VMRUN forgets the shadow, see `svm::shadow`: a window would open within it.
    let in_shadow = state.vmcb.control.interrupt_shadow & vmcb::SHADOW != 0;
    open_window(&mut state.vmcb, interrupt_window.filter(|_| !in_shadow));
    interrupt_window.is_some() && in_shadow || nmi_window && state.nmis != Nmis::Handled
}

/// Makes the processor exit when an interrupt can be taken, or not. Where CR8 holds it
/// back, its next write is looked at; where IF does, that is the processor's to see.
fn open_window(vmcb: &mut Vmcb, window: Option<Window>) {
    let control = &mut vmcb.control;
    let interrupts = control.virtual_interrupt.with_masking(true);
    let waits_for_flag =
        window.is_some_and(|window| window.ignore_tpr || window.priority > interrupts.tpr());
    control.virtual_interrupt = interrupts
        .with_irq(waits_for_flag)
        .with_ignore_tpr(waits_for_flag);
    control.intercepts3 = Intercepts3::from_bits(control.intercepts3)
        .with_vintr(waits_for_flag)
        .into_bits();
    control.intercept_cr = if window.is_some() { CR8_WRITES } else { 0 };
}

/// Takes CR8 over from the block.
fn sync_tpr(vp: &mut Vp) {
    let cr8 = vp.vtls[GUEST].vmcb.control.virtual_interrupt.tpr();
    vp.lapic.apic.sync_cr8(cr8);
}

/// Puts CR8 into the block.
fn set_tpr(vp: &mut Vp) {
    let cr8 = vp.lapic.apic.cr8();
    let control = &mut vp.vtls[GUEST].vmcb.control;
    control.virtual_interrupt.set_tpr(cr8);
}

/// Says where the APIC is.
fn publish(partition: &Partition, vp: &Vp) {
    partition.slots[vp.index as usize]
        .lapic
        .publish(vp.lapic.apic.address());
}

#[cfg(test)]
mod tests;

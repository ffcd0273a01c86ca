//! The partition: its VPs, its VTLs, and what happens when a VP leaves its VTL.
//!
//! Each VP is in the hands of one CPU, which has it by `&mut`. What VPs share stands
//! behind locks or is atomic. Nothing here touches the processor: [`Processor`] does,
//! so that all of it is tested on the build machine.

mod alone;
pub mod apic;
pub mod counters;
pub mod crash;
pub(crate) mod debug;
mod exits;
pub mod guest;
pub mod intercepts;
pub mod mailbox;
pub mod msrs;
mod nmi;
pub mod overlay;
mod physical;
pub mod synic;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod vmbus;

use crate::clock::{Frequencies, ReferenceTime};
use crate::cpuid;
use crate::guest_memory::{GuestMemory, RamAccess};
use crate::hypercall::check_vsm_config;
use crate::nested::NestedTables;
use crate::shootdown::{Changes, Presence};
use crate::svm::fetch::{CodePage, Instruction};
use crate::svm::nmi::Nmis;
use crate::svm::store::Source;
use crate::svm::{context, vmcb};
use crate::vtl::{VTL_COUNT, Vtl, VtlSpace};
use ::synic::Synic;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use counters::{Counters, MAX_REPORTS, Refused};
use crash::CrashReport;
use guest::GuestVp;
use guest::lapic::GuestApic;
use hv_defs::hypercall::HvStatus;
use hv_defs::msr::OverlayPage;
use hv_defs::vsm::VsmPartitionConfig;
use igvm_loader::{Gprs, StartContext};
use intercepts::Intercepts;
use mailbox::{Mailbox, Sleeper, Start};
use msrs::Mtrrs;
use overlay::Overlay;
use physical::PhysicalApic;
use spin::Mutex;
use vmbus::Vmbus;
use vsm_host_defs::ExitReason;
use x86_defs::svm::{ExitCode, Vmcb};

/// The processor that a VP runs on, and the machine around it.
pub trait Processor: RamAccess {
    /// CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> cpuid::Registers;
    /// The time-stamp counter.
    fn tsc(&self) -> u64;
    /// Sends the NMI that makes a CPU leave its VTL, or its sleep; returns when the CPU has
    /// it.
    fn wake(&self, apic_id: u32);
    /// Sends an interrupt to a CPU; returns when the CPU's APIC has it.
    fn interrupt(&self, apic_id: u32, vector: u8);
    /// Sets the TSC at which an NMI interrupts the CPU of `vp`, which is the caller's, or
    /// takes it back. True: that moment has passed, and no NMI will come.
    fn arm_timer(&self, vp: u32, at_tsc: Option<u64>) -> bool;
    /// To be called when an NMI has reached the CPU of `vp`, which is the caller's: if its
    /// timer sent it, the timer goes on for other VPs.
    fn timer_fired(&self, vp: u32);
    /// Writes a register of an interrupt controller.
    fn write_device(&self, address: u64, value: u32);
    /// Sets the MSR TSC_AUX and tells what it was.
    fn exchange_tsc_aux(&self, value: u64) -> u64;
    /// DR0 to DR3.
    fn debug_addresses(&self) -> [u64; 4];
    /// Sets DR0 to DR3.
    fn set_debug_addresses(&self, addresses: [u64; 4]);
    /// XCR0; 1 if the processor has none.
    fn xcr0(&self) -> u64;
    /// Sets XCR0 to a value that the processor takes.
    fn set_xcr0(&self, value: u64);
    /// Logs a line.
    fn log(&self, text: fmt::Arguments<'_>);
}

/// What is to be done with the VP after an exit was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Resume,
    /// It has suspended itself: [`Partition::suspend`].
    Suspend,
    /// The machine ends.
    End(ExitReason),
}

/// Number of a general-purpose register in instruction encodings.
pub mod gpr {
    /// Accumulator; while a VP does not run it is in the VMCB.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP; while a VP does not run it is in the VMCB.
    pub const RSP: usize = 4;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
    /// R8.
    pub const R8: usize = 8;
}

/// What the partition is made of.
pub struct Config {
    /// APIC id of each VP.
    pub apic_ids: Vec<u32>,
    /// Memory of each VTL.
    pub spaces: [VtlSpace; VTL_COUNT],
    /// Clocks.
    pub frequencies: Frequencies,
    /// TSC at which reference time is zero.
    pub start_tsc: u64,
    /// Physical addresses of the I/O permission maps, by VTL.
    pub iopms: [u64; VTL_COUNT],
    /// Physical address of the MSR permission map.
    pub msrpm: u64,
    /// There is no paravisor: the guest has its place, see [`alone`].
    pub alone: bool,
}

/// The partition.
pub struct Partition {
    config: Config,
    time: ReferenceTime,
    slots: Vec<VpSlot>,
    shared: Mutex<Shared>,
    /// Held by the VP that changes the guest's protections.
    protections: Mutex<()>,
    /// Changes of the guest's nested page table.
    changes: Changes,
    intercepts: Intercepts,
    vmbus: Mutex<Vmbus>,
    /// What was refused.
    pub counters: Counters,
}

/// What the VPs share.
#[derive(Default)]
struct Shared {
    vtls: [SharedVtl; VTL_COUNT],
    vsm_config: VsmPartitionConfig,
    /// What VTL2 has said about its end.
    crash: Option<CrashReport>,
    io_apic_selected: u8,
}

/// What the VPs share of a VTL.
#[derive(Default)]
struct SharedVtl {
    guest_os_id: u64,
    hypercall: Overlay,
    reference_tsc: Overlay,
    crash_parameters: [u64; crash::PARAMETERS],
}

/// What others may know of a VP and do to it.
struct VpSlot {
    apic_id: u32,
    mailbox: Mailbox,
    /// NMIs of VTL2's for this VP.
    nmi: nmi::Target,
    /// VTL2's local APIC.
    physical: PhysicalApic,
    /// The part of VTL0's local APIC that all VPs use.
    lapic: vapic::Shared,
    /// VTL0's SynIC; large.
    synic: Mutex<Box<Synic>>,
    /// VTL2's.
    paravisor_synic: Mutex<Box<Synic>>,
    /// Whether the VP is in VTL0.
    presence: Presence,
    /// VTLs that are enabled on it, by index.
    enabled: Mutex<[bool; VTL_COUNT]>,
    /// Where it begins when its mailbox says that it is started.
    start: Mutex<Option<(Vtl, StartContext)>>,
}

impl VpSlot {
    /// Nothing is left of what the VP was to others.
    fn renew(&self) {
        self.physical.reset();
        self.nmi.forget();
    }
}

impl Partition {
    /// A partition whose VPs are stopped and have no VTL.
    pub fn new(config: Config) -> Self {
        let slots = config
            .apic_ids
            .iter()
            .zip(0..)
            .map(|(&apic_id, index)| VpSlot {
                apic_id,
                mailbox: Mailbox::new(),
                nmi: nmi::Target::new(apic_id),
                physical: PhysicalApic::new(),
                lapic: GuestApic::new(index, config.frequencies).shared(),
                synic: Mutex::new(Box::new(Synic::new())),
                paravisor_synic: Mutex::new(Box::new(Synic::new())),
                presence: Presence::new(),
                enabled: Mutex::default(),
                start: Mutex::default(),
            })
            .collect();
        Self {
            time: ReferenceTime::new(config.frequencies.tsc_hz, config.start_tsc),
            config,
            slots,
            shared: Mutex::default(),
            protections: Mutex::new(()),
            changes: Changes::new(),
            intercepts: Intercepts::new(),
            vmbus: Mutex::default(),
            counters: Counters::new(),
        }
    }

    /// Number of VPs.
    pub fn vp_count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Index of the VP with this APIC id in a VTL: the processor's, or the host's for the
    /// guest, which are the indices themselves.
    pub fn vp_index(&self, vtl: Vtl, apic_id: u32) -> Option<u32> {
        if vtl == Vtl::GUEST {
            return (apic_id < self.vp_count()).then_some(apic_id);
        }
        let index = self.slots.iter().position(|slot| slot.apic_id == apic_id)?;
        Some(index as u32)
    }

    /// Reference time now, 100 ns units.
    pub fn reference_time(&self, processor: &impl Processor) -> u64 {
        self.time.at(processor.tsc())
    }

    /// Memory of a VTL, as far as higher ones permit.
    pub fn memory<'a, P: Processor>(&'a self, vtl: Vtl, processor: &'a P) -> GuestMemory<'a, P> {
        let memory = self.all_memory(vtl, processor);
        if vtl == Vtl::PARAVISOR {
            memory
        } else {
            memory.protected_by(self.nested_tables(vtl))
        }
    }

    /// Memory of a VTL, for what a higher one does to it.
    pub(crate) fn all_memory<'a, P: Processor>(
        &'a self,
        vtl: Vtl,
        processor: &'a P,
    ) -> GuestMemory<'a, P> {
        GuestMemory::new(processor, &self.config.spaces[vtl.index()].ram)
    }

    /// The nested page table of a VTL.
    pub(crate) fn nested_tables(&self, vtl: Vtl) -> &NestedTables {
        &self.config.spaces[vtl.index()].tables
    }

    /// What VTL2 wants to be told of the guest.
    pub fn intercepts(&self) -> &Intercepts {
        &self.intercepts
    }

    /// VTLs that are enabled on a VP, as a bit set.
    pub fn enabled_vtls(&self, vp: u32) -> u16 {
        self.slots.get(vp as usize).map_or(0, |slot| {
            let enabled = slot.enabled.lock();
            (0..VTL_COUNT)
                .filter(|vtl| enabled[*vtl])
                .fold(0, |set, vtl| set | 1 << vtl)
        })
    }

    /// How the host treats lower VTLs.
    pub(crate) fn vsm_config(&self) -> VsmPartitionConfig {
        self.shared.lock().vsm_config
    }

    /// Changes it, if the change is permitted.
    pub(crate) fn set_vsm_config(&self, new: VsmPartitionConfig) -> Result<(), HvStatus> {
        let config = &mut self.shared.lock().vsm_config;
        check_vsm_config(*config, new)?;
        *config = new;
        Ok(())
    }

    /// Whether another report of this VP may be logged; if not, it is counted.
    pub(crate) fn may_report(&self, vp: &mut Vp) -> bool {
        let may = vp.reports < MAX_REPORTS;
        if may {
            vp.reports += 1;
        } else {
            self.counters.count(Refused::Report);
        }
        may
    }

    /// Identity of a VTL's software.
    pub(crate) fn guest_os_id(&self, vtl: Vtl) -> u64 {
        self.shared.lock().vtls[vtl.index()].guest_os_id
    }

    /// Enables a VTL on a VP. Where it begins is said again when it is started.
    pub fn enable_vp_vtl(&self, vp: u32, vtl: Vtl) -> Result<(), HvStatus> {
        let slot = self
            .slots
            .get(vp as usize)
            .ok_or(HvStatus::INVALID_VP_INDEX)?;
        let enabled = &mut slot.enabled.lock()[vtl.index()];
        if *enabled {
            return Err(HvStatus::VTL_ALREADY_ENABLED);
        }
        *enabled = true;
        Ok(())
    }

    /// Starts a VP in a VTL; also one that runs, if its software has turned the APIC off: it
    /// will suspend itself.
    pub fn start_vp(
        &self,
        vp: u32,
        vtl: Vtl,
        context: StartContext,
        processor: &impl Processor,
    ) -> Result<(), HvStatus> {
        let slot = self
            .slots
            .get(vp as usize)
            .ok_or(HvStatus::INVALID_VP_INDEX)?;
        if !slot.enabled.lock()[vtl.index()] {
            return Err(HvStatus::INVALID_VP_STATE);
        }
        let started = slot.mailbox.start(
            || slot.physical.is_left(),
            |when| {
                *slot.start.lock() = Some((vtl, context));
                if when == Start::Now {
                    slot.renew();
                }
            },
            || processor.wake(slot.apic_id),
        );
        if started {
            Ok(())
        } else {
            Err(HvStatus::INVALID_VP_STATE)
        }
    }

    /// VTL2 has suspended its VP: waits until somebody starts it, and begins anew in VTL2.
    /// VTL0's state stays what it is, except for the registers that the VTLs share.
    ///
    /// Not inlined: whole pages pass over its stack, which the loop that calls it would have
    /// for good.
    #[inline(never)]
    pub fn suspend(&self, vp: &mut Vp, sleeper: &mut impl Sleeper) {
        vp.vtls[Vtl::PARAVISOR.index()] = VpVtl::new(&self.config, Vtl::PARAVISOR.index());
        synic::reset_paravisor(self, vp);
        let slot = &self.slots[vp.index as usize];
        slot.mailbox.suspend(sleeper, || slot.renew());
        self.wait_for_start(vp, sleeper);
    }

    /// Waits until somebody starts a VP; for the CPU that the VP belongs to.
    pub fn wait_for_start(&self, vp: &mut Vp, sleeper: &mut impl Sleeper) {
        let slot = &self.slots[vp.index as usize];
        loop {
            slot.mailbox.wait(sleeper);
            if let Some((vtl, context)) = slot.start.lock().take() {
                vp.begin(vtl, &context);
                return;
            }
        }
    }
}

/// A virtual processor.
pub struct Vp {
    /// Its index.
    pub index: u32,
    /// General-purpose registers, which all VTLs share; RAX and RSP are in the VMCB.
    pub gprs: Gprs,
    /// The VTL that it is in.
    pub vtl: Vtl,
    /// Its state in each VTL.
    pub vtls: [VpVtl; VTL_COUNT],
    /// What else concerns the guest.
    pub guest: GuestVp,
    /// The last change of the guest's nested page table that its TLB knows.
    known_change: u64,
    /// Its local APIC in VTL0.
    pub lapic: GuestApic,
    mtrrs: Mtrrs,
    /// What VTL2 has written to the high half of the interrupt command.
    command_high: u32,
    /// Reports that it has made the host log.
    reports: u32,
}

/// State of a VP in a VTL.
pub struct VpVtl {
    /// Registers and controls.
    pub vmcb: Box<Vmcb>,
    /// VP assist page, which has been checked.
    pub(crate) assist: OverlayPage,
    /// Register page, which has been checked.
    pub(crate) register_page: OverlayPage,
    /// Its DR0 to DR3 while it has breakpoints on and another VTL runs.
    debug_addresses: Option<[u64; 4]>,
    /// Whether it can take an NMI.
    pub(crate) nmis: Nmis,
    pub(crate) code: CodePage,
    tsc_invariant_control: u64,
}

impl VpVtl {
    /// As after reset; `vtl` is an index.
    fn new(config: &Config, vtl: usize) -> Self {
        let VtlSpace { nested_cr3, .. } = config.spaces[vtl];
        // ASID 0 is the host's.
        let asid = vtl as u32 + 1;
        let mut vmcb = vmcb::new(nested_cr3, config.iopms[vtl], config.msrpm, asid);
        context::apply(&StartContext::at_reset(), &mut vmcb);
        if vtl == Vtl::GUEST.index() {
            vmcb::intercept_guest(&mut vmcb);
        }
        Self {
            vmcb,
            assist: OverlayPage::new(),
            register_page: OverlayPage::new(),
            debug_addresses: None,
            nmis: Nmis::default(),
            code: CodePage::default(),
            tsc_invariant_control: 0,
        }
    }
}

impl Vp {
    /// A VP that has not begun.
    pub fn new(partition: &Partition, index: u32) -> Self {
        let config = &partition.config;
        Self {
            index,
            gprs: [0; 16],
            vtl: Vtl::PARAVISOR,
            vtls: core::array::from_fn(|vtl| VpVtl::new(config, vtl)),
            guest: GuestVp::default(),
            known_change: 0,
            lapic: GuestApic::new(index, config.frequencies),
            mtrrs: Mtrrs::default(),
            command_high: 0,
            reports: 0,
        }
    }

    /// The block of the VTL that the VP is in.
    pub fn vmcb(&self) -> &Vmcb {
        &self.vtls[self.vtl.index()].vmcb
    }

    /// See [`Self::vmcb`].
    pub fn vmcb_mut(&mut self) -> &mut Vmcb {
        &mut self.vtls[self.vtl.index()].vmcb
    }

    /// What a store of the VTL that the VP is in stores.
    pub(crate) fn source_value(&self, source: Source) -> u32 {
        match source {
            Source::Immediate(value) => value,
            Source::Register(number) => self.register(number) as u32,
        }
    }

    /// A general-purpose register of the VTL that the VP is in.
    pub(crate) fn register(&self, number: usize) -> u64 {
        let save = &self.vmcb().save;
        match number {
            gpr::RAX => save.rax,
            gpr::RSP => save.rsp,
            _ => self.gprs[number],
        }
    }

    /// The CPU has waited in place of VTL0 ([`guest::Entry::Idle`]): the wait ended by `code`,
    /// as if VTL0 had.
    pub fn waited(&mut self, code: ExitCode) {
        let control = &mut self.vmcb_mut().control;
        control.exit_code = code;
        control.exit_interrupt_info = 0;
        if control.tlb_control != 0 {
            // The block has not run: what it is to forget is still to be forgotten.
            self.known_change = 0;
        }
    }

    /// RIP behind `instruction`, if the VP stands at it.
    pub(crate) fn next_rip<R: RamAccess + ?Sized>(
        &self,
        memory: &GuestMemory<'_, R>,
        instruction: Instruction,
    ) -> Option<u64> {
        let state = &self.vtls[self.vtl.index()];
        state.code.next_rip(memory, &state.vmcb.save, instruction)
    }

    fn begin(&mut self, vtl: Vtl, context: &StartContext) {
        self.vtl = vtl;
        self.gprs = context.gprs;
        context::apply(context, self.vmcb_mut());
    }
}

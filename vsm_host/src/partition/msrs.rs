//! Model-specific registers of a VTL.
//!
//! What the permission map lets through never gets here. The rest is either answered
//! below or does not exist (#GP): there is no way to the processor's own registers, so
//! VM_HSAVE_PA, VM_CR, EFER.SVME, SMM and microcode stay the host's.

use super::counters::Refused;
use super::crash::CrashReport;
use super::{Next, Partition, Processor, Vp, crash, overlay, synic};
use crate::guest_memory::{GuestMemory, RamAccess};
use crate::svm::vmcb::Exception;
use crate::vtl::Vtl;
use hv_defs::msr::*;
use igvm_loader::EFER_GUEST;
use vsm_host_defs::ExitReason;
use x86_defs::msr::*;
use x86_defs::{CR0_PG, EFER_LMA, EFER_LME, EFER_SVME};

/// So that nobody wants to write it.
const DE_CFG_LFENCE_SERIALIZES: u64 = 1 << 1;
/// Linux switches the TLB flush filter of old processors off. There is none.
const HWCR_FLUSH_FILTER_OFF: u64 = 1 << 6;

/// The local APIC is where it always is, on, in xAPIC mode.
const APIC_BASE_VALUE: u64 = 0xfee0_0000 | 1 << 11;
const APIC_BASE_BSP: u64 = 1 << 8;

/// What an access that is refused leads to: always #GP.
const FAULT: Exception = Exception::GeneralProtection;

/// Memory type range registers. The VTL's own copy: with nested paging its PAT decides
/// (the host maps all as write-back), so they say what the firmware of a PC says and
/// nothing follows from a change.
pub struct Mtrrs {
    def_type: u64,
    fixed: [u64; MTRR_FIXED.len()],
    variable: [u64; VARIABLE_MTRRS],
}

/// Eight pairs of base and mask.
const VARIABLE_MTRRS: usize = (MTRR_VARIABLE_LAST - MTRR_VARIABLE_FIRST + 1) as usize;
/// Write-combining, fixed ranges, eight variable ranges.
const MTRR_CAP_VALUE: u64 = 1 << 10 | 1 << 8 | (VARIABLE_MTRRS as u64 / 2);
const MTRR_DEF_TYPE_DEFINED: u64 = 0xcff;

impl Default for Mtrrs {
    fn default() -> Self {
        const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
        const ENABLED_WRITE_BACK: u64 = 0xc06;
        let mut fixed = [WRITE_BACK; MTRR_FIXED.len()];
        fixed[2] = 0; // 0xa0000 to 0xbffff
        let mut variable = [0; VARIABLE_MTRRS];
        // The last GiB below 4 GiB is devices: uncached, valid.
        variable[0] = 0xc000_0000;
        variable[1] = 0xff_c000_0800;
        Self {
            def_type: ENABLED_WRITE_BACK,
            fixed,
            variable,
        }
    }
}

impl Mtrrs {
    fn register(&mut self, msr: u32) -> Option<&mut u64> {
        match msr {
            MTRR_DEF_TYPE => Some(&mut self.def_type),
            MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST => {
                self.variable.get_mut((msr - MTRR_VARIABLE_FIRST) as usize)
            }
            _ => {
                let index = MTRR_FIXED.iter().position(|fixed| *fixed == msr)?;
                Some(&mut self.fixed[index])
            }
        }
    }
}

impl Vp {
    /// The memory type where no other register says one. VTLs share it.
    pub fn mtrr_def_type(&self) -> u64 {
        self.mtrrs.def_type
    }

    /// Changes it; false if the processor has no such value.
    pub fn set_mtrr_def_type(&mut self, value: u64) -> bool {
        let is_valid = value & !MTRR_DEF_TYPE_DEFINED == 0;
        if is_valid {
            self.mtrrs.def_type = value;
        }
        is_valid
    }
}

impl Partition {
    /// RDMSR.
    pub fn read_msr(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        msr: u32,
    ) -> Result<u64, Exception> {
        let vtl = vp.vtl.index();
        let value = match msr {
            EFER => vp.vmcb().save.efer & !EFER_SVME,
            APIC_BASE => apic_base(vp),
            MTRR_CAP => MTRR_CAP_VALUE,
            // No microcode, no machine checks, no special features.
            PATCH_LEVEL | MCG_CAP | MCG_STATUS | DEBUG_CTL => 0,
            SYSCFG | HWCR | INT_PENDING => 0,
            DE_CFG => DE_CFG_LFENCE_SERIALIZES,
            HV_X64_MSR_GUEST_OS_ID => self.shared.lock().vtls[vtl].guest_os_id,
            HV_X64_MSR_HYPERCALL => self.hypercall_page(vp.vtl).into(),
            HV_X64_MSR_REFERENCE_TSC => self.reference_tsc(vp.vtl).into(),
            HV_X64_MSR_VP_INDEX => vp.index.into(),
            HV_X64_MSR_RESET => 0,
            HV_X64_MSR_TIME_REF_COUNT => self.reference_time(processor),
            HV_X64_MSR_TSC_FREQUENCY => self.config.frequencies.tsc_hz,
            HV_X64_MSR_APIC_FREQUENCY => self.config.frequencies.lapic_hz,
            HV_X64_MSR_VP_ASSIST_PAGE => vp.vtls[vtl].assist.into(),
            HV_X64_MSR_TSC_INVARIANT_CONTROL => vp.vtls[vtl].tsc_invariant_control,
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 => {
                self.crash_parameter(vp.vtl, (msr - HV_X64_MSR_CRASH_P0) as usize)
            }
            HV_X64_MSR_CRASH_CTL => crash::SUPPORTED.into(),
            _ if self.has_synic(vp, msr) => synic::read_msr(self, vp, vp.vtl, msr)?,
            _ => match vp.mtrrs.register(msr) {
                Some(value) => *value,
                None => {
                    self.counters.count(Refused::MsrRead(msr));
                    return Err(FAULT);
                }
            },
        };
        Ok(value)
    }

    /// WRMSR.
    pub fn write_msr(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        msr: u32,
        value: u64,
    ) -> Result<Next, Exception> {
        let result = self.try_write_msr(vp, processor, msr, value);
        if result.is_err() {
            self.counters.count(Refused::MsrWrite(msr));
        }
        result
    }

    fn try_write_msr(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        msr: u32,
        value: u64,
    ) -> Result<Next, Exception> {
        let vtl = vp.vtl;
        match msr {
            EFER => write_efer(vp, value)?,
            APIC_BASE => must(value == apic_base(vp))?,
            MCG_STATUS | DEBUG_CTL | PATCH_LEVEL => must(value == 0)?,
            HWCR => must(value & !HWCR_FLUSH_FILTER_OFF == 0)?,
            MTRR_DEF_TYPE if value & !MTRR_DEF_TYPE_DEFINED != 0 => return Err(FAULT),
            HV_X64_MSR_GUEST_OS_ID => {
                self.set_guest_os_id(vtl, &self.memory(vtl, processor), value)?;
            }
            HV_X64_MSR_HYPERCALL if self.hypercall_page(vtl).locked() => {}
            HV_X64_MSR_HYPERCALL => {
                self.set_hypercall_page(vtl, &self.memory(vtl, processor), value.into())?;
            }
            HV_X64_MSR_REFERENCE_TSC => {
                self.set_reference_tsc(vtl, &self.memory(vtl, processor), value.into())?;
            }
            HV_X64_MSR_RESET => {
                must(value & !1 == 0)?;
                if value == 1 {
                    processor.log(format_args!("VTL2 resets the machine"));
                    return Ok(Next::End(ExitReason::Reset));
                }
            }
            HV_X64_MSR_VP_ASSIST_PAGE => self.set_assist_page(vp, processor, value.into())?,
            HV_X64_MSR_TSC_INVARIANT_CONTROL => {
                must(value & !1 == 0)?;
                vp.vtls[vtl.index()].tsc_invariant_control = value;
            }
            HV_X64_MSR_CRASH_P0..=HV_X64_MSR_CRASH_P4 => {
                self.set_crash_parameter(vtl, (msr - HV_X64_MSR_CRASH_P0) as usize, value);
            }
            HV_X64_MSR_CRASH_CTL => self.report_crash(vp, vtl, processor, value.into()),
            _ if self.has_synic(vp, msr) => {
                synic::write_msr(self, vp, vtl, processor, (msr, value))?;
            }
            _ => *vp.mtrrs.register(msr).ok_or(FAULT)? = value,
        }
        Ok(Next::Resume)
    }

    /// Whether this is an MSR of a SynIC that the VTL has.
    fn has_synic(&self, vp: &Vp, msr: u32) -> bool {
        !self.config.alone && synic::owns_msr(vp.vtl, msr)
    }

    /// Sets the identity of a VTL's software. Without one there is no hypercall page.
    pub(crate) fn set_guest_os_id<R: RamAccess>(
        &self,
        vtl: Vtl,
        memory: &GuestMemory<'_, R>,
        value: u64,
    ) -> Result<(), Exception> {
        let mut shared = self.shared.lock();
        let state = &mut shared.vtls[vtl.index()];
        if value == 0 {
            let off = state.hypercall.register().with_enabled(false);
            state
                .hypercall
                .set(off, memory, &[0; 4096])
                .map_err(|_| FAULT)?;
        }
        state.guest_os_id = value;
        Ok(())
    }

    /// Where the hypercall page of a VTL is.
    pub(crate) fn hypercall_page(&self, vtl: Vtl) -> OverlayPage {
        self.shared.lock().vtls[vtl.index()].hypercall.register()
    }

    /// Moves it, also if it is locked.
    pub(crate) fn set_hypercall_page<R: RamAccess>(
        &self,
        vtl: Vtl,
        memory: &GuestMemory<'_, R>,
        mut register: OverlayPage,
    ) -> Result<(), Exception> {
        let mut shared = self.shared.lock();
        let state = &mut shared.vtls[vtl.index()];
        if state.guest_os_id == 0 {
            register.set_enabled(false);
        }
        state
            .hypercall
            .set(register, memory, &overlay::hypercall_page())
            .map_err(|_| FAULT)
    }

    /// Where the reference TSC page of a VTL is.
    pub(crate) fn reference_tsc(&self, vtl: Vtl) -> OverlayPage {
        self.shared.lock().vtls[vtl.index()]
            .reference_tsc
            .register()
    }

    /// Moves it.
    pub(crate) fn set_reference_tsc<R: RamAccess>(
        &self,
        vtl: Vtl,
        memory: &GuestMemory<'_, R>,
        register: OverlayPage,
    ) -> Result<(), Exception> {
        let page = overlay::reference_tsc_page(&self.time);
        self.shared.lock().vtls[vtl.index()]
            .reference_tsc
            .set(register, memory, &page)
            .map_err(|_| FAULT)
    }

    /// Sets the VP assist page of the VTL that a VP is in.
    pub(crate) fn set_assist_page(
        &self,
        vp: &mut Vp,
        processor: &impl Processor,
        register: OverlayPage,
    ) -> Result<(), Exception> {
        self.set_assist_page_of(vp, vp.vtl, processor, register)
    }

    /// Sets the VP assist page of a VTL.
    pub(crate) fn set_assist_page_of(
        &self,
        vp: &mut Vp,
        vtl: Vtl,
        processor: &impl Processor,
        register: OverlayPage,
    ) -> Result<(), Exception> {
        if register.enabled() {
            self.memory(vtl, processor)
                .check_page(register.page_number())
                .map_err(|_| FAULT)?;
        }
        vp.vtls[vtl.index()].assist = register;
        Ok(())
    }

    /// Sets P0 to P4 of a VTL; others do not exist and are ignored.
    pub(crate) fn set_crash_parameter(&self, vtl: Vtl, index: usize, value: u64) {
        let mut shared = self.shared.lock();
        if let Some(parameter) = shared.vtls[vtl.index()].crash_parameters.get_mut(index) {
            *parameter = value;
        }
    }

    /// P0 to P4 of a VTL.
    pub(crate) fn crash_parameter(&self, vtl: Vtl, index: usize) -> u64 {
        let shared = self.shared.lock();
        let parameters = &shared.vtls[vtl.index()].crash_parameters;
        parameters.get(index).copied().unwrap_or(0)
    }

    /// Takes over and logs what a VTL says about its end. The machine goes on: the VTL may
    /// have more to do, and ends by a triple fault.
    pub(crate) fn report_crash(
        &self,
        vp: &mut Vp,
        vtl: Vtl,
        processor: &impl Processor,
        control: CrashControl,
    ) {
        let parameters = self.shared.lock().vtls[vtl.index()].crash_parameters;
        let Some(report) = CrashReport::take(parameters, control, &self.memory(vtl, processor))
        else {
            return;
        };
        if self.may_report(vp) {
            processor.log(format_args!("{vtl} reports a crash: {report}"));
            for line in report.text.lines() {
                processor.log(format_args!("  | {line}"));
            }
        }
        if vtl == Vtl::PARAVISOR {
            self.shared.lock().crash = Some(report);
        }
    }
}

/// Whether the host serves an MSR itself: those above and its own range.
pub(super) fn is_known(vp: &mut Vp, msr: u32) -> bool {
    matches!(
        msr,
        EFER | APIC_BASE
            | MTRR_CAP
            | PATCH_LEVEL
            | MCG_CAP
            | MCG_STATUS
            | DEBUG_CTL
            | SYSCFG
            | HWCR
            | INT_PENDING
            | DE_CFG
            | HV_X64_MSR_SYNTHETIC_FIRST..=HV_X64_MSR_SYNTHETIC_LAST
    ) || vp.mtrrs.register(msr).is_some()
}

fn must(condition: bool) -> Result<(), Exception> {
    if condition { Ok(()) } else { Err(FAULT) }
}

fn apic_base(vp: &Vp) -> u64 {
    // The processor thinks that the parked CPU is the first one.
    let bsp = if vp.index == 0 { APIC_BASE_BSP } else { 0 };
    APIC_BASE_VALUE | bsp
}

fn write_efer(vp: &mut Vp, value: u64) -> Result<(), Exception> {
    let save = &mut vp.vmcb_mut().save;
    must(value & !EFER_GUEST == 0)?;
    must(save.cr0 & CR0_PG == 0 || (value ^ save.efer) & EFER_LME == 0)?;
    // LMA follows from LME and CR0.PG; what is written there does not count.
    save.efer = value & !EFER_LMA | save.efer & EFER_LMA | EFER_SVME;
    Ok(())
}

//! Hypercalls. The hypervisor's code is copied into the image, because Linux moves the page
//! that it appears in.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use hv_defs::HV_PARTITION_ID_SELF;
use hv_defs::HV_VP_INDEX_SELF;
use hv_defs::hypercall::EnableVpVtl;
use hv_defs::hypercall::HV_VP_SET_SPARSE;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::hypercall::HypercallControl;
use hv_defs::hypercall::HypercallResult;
use hv_defs::hypercall::SendClusterIpiEx;
use hv_defs::hypercall::TranslateVirtualAddress;
use hv_defs::hypercall::TranslateVirtualAddressOutput;
use hv_defs::registers::HvRegisterName;
use hv_defs::synic::SignalEventDirect;
use hv_defs::vp_context::HvInitialVpContext;
use minimal_rt::Page;
use minimal_rt::hypercall::HypercallError;
use minimal_rt::hypercall::Transport;
use minimal_rt::hypercall::get_wide_vp_register;
use minimal_rt::hypercall::set_wide_vp_register;
use minimal_rt::hypercall::simple;
use sidecar::map;
use sidecar_defs::REQUEST_VECTOR;
use sidecar_defs::RESPONSE_SINT;
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

/// The VTL that this kernel runs in, as a plain number.
const OWN_VTL: u8 = 2;

#[repr(C, align(4096))]
struct CodePage(UnsafeCell<Page>);

// SAFETY: written by the first CPU only, before there are others.
unsafe impl Sync for CodePage {}

#[unsafe(link_section = ".hypercall_page")]
static CODE: CodePage = CodePage(UnsafeCell::new(Page::ZERO));

/// Address of the code that returns to VTL0.
pub(super) static VTL_RETURN: AtomicU64 = AtomicU64::new(0);

/// Copies the hypervisor's code.
///
/// # Safety
/// `page` must be the hypercall page, which is enabled; no other CPU runs this kernel yet.
pub(super) unsafe fn copy_code(page: *const Page) {
    // SAFETY: promised by the caller; on the first CPU the image is writable.
    unsafe { ptr::copy_nonoverlapping(page, CODE.0.get(), 1) };
}

/// The return to VTL0 is at this offset in the page.
pub(super) fn set_vtl_return(offset: u16) {
    let code = CODE.0.get().expose_provenance() as u64;
    VTL_RETURN.store(code + u64::from(offset), Relaxed);
}

/// Pages for input and output, which one CPU has.
pub(super) struct Calls {
    input: *mut Page,
    output: *mut Page,
    input_gpa: u64,
    output_gpa: u64,
}

impl Calls {
    /// # Safety
    /// The pages are mapped at these addresses, and nobody else uses them.
    pub(super) const unsafe fn new(input: (*mut Page, u64), output: (*mut Page, u64)) -> Self {
        Self {
            input: input.0,
            output: output.0,
            input_gpa: input.1,
            output_gpa: output.1,
        }
    }

    /// Those of a sidecar CPU.
    ///
    /// # Safety
    /// Once, on a CPU whose pages of these GPAs are mapped where [`map`] says.
    pub(super) unsafe fn of_cpu(input_gpa: u64, output_gpa: u64) -> Self {
        let page = |address: u64| ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: promised by the caller.
        unsafe {
            Self::new(
                (page(map::INPUT), input_gpa),
                (page(map::OUTPUT), output_gpa),
            )
        }
    }

    /// Enables VTL2 on a VP, if it is not yet, and starts it.
    pub(super) fn start_vp(
        &mut self,
        vp: u32,
        context: &HvInitialVpContext,
    ) -> Result<(), (HypercallCode, HvStatus)> {
        let input = EnableVpVtl {
            partition_id: HV_PARTITION_ID_SELF,
            vp_index: vp,
            target_vtl: OWN_VTL,
            rsvd: [0; 3],
            vp_context: *context,
        };
        match simple(self, HypercallCode::ENABLE_VP_VTL, &input) {
            HvStatus::SUCCESS | HvStatus::VTL_ALREADY_ENABLED => {}
            status => return Err((HypercallCode::ENABLE_VP_VTL, status)),
        }
        match simple(self, HypercallCode::START_VIRTUAL_PROCESSOR, &input) {
            HvStatus::SUCCESS => Ok(()),
            status => Err((HypercallCode::START_VIRTUAL_PROCESSOR, status)),
        }
    }

    /// Sets an event flag of the VP that the worker listens on.
    pub(super) fn signal(&mut self, vp: u32, flag: u32) -> HvStatus {
        let input = SignalEventDirect {
            partition_id: HV_PARTITION_ID_SELF,
            vp_index: vp,
            vtl: OWN_VTL,
            sint: RESPONSE_SINT,
            flag_number: flag as u16,
        };
        simple(self, HypercallCode::SIGNAL_EVENT_DIRECT, &input)
    }

    /// Interrupts a sidecar CPU.
    pub(super) fn wake(&mut self, vp: u32) -> HvStatus {
        const BANK: u32 = u64::BITS;
        let header = SendClusterIpiEx {
            vector: REQUEST_VECTOR.into(),
            target_vtl: HvInputVtl::new(),
            rsvd: [0; 3],
            format: HV_VP_SET_SPARSE,
            valid_banks: 1 << (vp / BANK),
        };
        let bank = 1_u64 << (vp % BANK);
        let (head, rest) = self.input().0.split_at_mut(size_of_val(&header));
        head.copy_from_slice(header.as_bytes());
        rest[..size_of_val(&bank)].copy_from_slice(bank.as_bytes());
        let control = HypercallControl::new()
            .with_code(HypercallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX.0)
            .with_variable_header_size(1);
        HvStatus(self.call(control).status())
    }

    /// Reads a register of this VP.
    pub(super) fn get(
        &mut self,
        vtl: HvInputVtl,
        name: HvRegisterName,
    ) -> Result<[u64; 2], HvStatus> {
        get_wide_vp_register(self, vtl, name).map_err(status)
    }

    /// Writes a register of this VP.
    pub(super) fn set(
        &mut self,
        vtl: HvInputVtl,
        name: HvRegisterName,
        value: [u64; 2],
    ) -> Result<(), HvStatus> {
        set_wide_vp_register(self, vtl, name, value).map_err(status)
    }

    /// Translates an address of this VP.
    pub(super) fn translate(
        &mut self,
        flags: u64,
        gva_page: u64,
    ) -> (HvStatus, TranslateVirtualAddressOutput) {
        let input = TranslateVirtualAddress {
            partition_id: HV_PARTITION_ID_SELF,
            vp_index: HV_VP_INDEX_SELF,
            rsvd: 0,
            flags: flags.into(),
            gva_page,
        };
        let status = simple(self, HypercallCode::TRANSLATE_VIRTUAL_ADDRESS, &input);
        let mut output = TranslateVirtualAddressOutput::new_zeroed();
        let bytes = output.as_mut_bytes();
        bytes.copy_from_slice(&self.output().0[..bytes.len()]);
        (status, output)
    }
}

impl Transport for Calls {
    fn input(&mut self) -> &mut Page {
        // SAFETY: the page is ours, as `new` demands, and no call is in progress.
        unsafe { &mut *self.input }
    }

    fn output(&self) -> &Page {
        // SAFETY: as above; only `call`, which needs `&mut self`, has it written.
        unsafe { &*self.output }
    }

    fn call(&mut self, control: HypercallControl) -> HypercallResult {
        let result: u64;
        // SAFETY: the page has a function that takes RCX, RDX and R8 and returns RAX (TLFS
        // 3.7); no reference to the pages of this CPU is alive.
        unsafe {
            asm!(
                "call {page}",
                page = in(reg) CODE.0.get(),
                in("rcx") control.into_bits(),
                in("rdx") self.input_gpa,
                in("r8") self.output_gpa,
                lateout("rax") result,
                clobber_abi("sysv64"),
            );
        }
        HypercallResult::from_bits(result)
    }
}

/// What the worker is told of a register.
fn status(error: HypercallError) -> HvStatus {
    match error {
        HypercallError::Status { status, .. } => status,
        // It claims success, and has done nothing.
        HypercallError::Repetitions { .. } => HvStatus::OPERATION_DENIED,
    }
}

//! x86_64: model-specific registers, ports, and the hypercall page.
//!
//! Everything here faults without a hypervisor below, so it is called by binaries only.

#![expect(
    unsafe_code,
    reason = "MSR and port access, and a call into the hypercall page"
)]

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::cell::UnsafeCell;

use hv_defs::cpuid::{
    Features, HV_CPUID_FEATURES, HV_CPUID_VENDOR, HV_VENDOR, PartitionPrivileges,
};
use hv_defs::hypercall::{HypercallControl, HypercallResult};
use hv_defs::msr::{
    HV_X64_MSR_CRASH_CTL, HV_X64_MSR_CRASH_P0, HV_X64_MSR_GUEST_OS_ID, HV_X64_MSR_HYPERCALL,
    HV_X64_MSR_TIME_REF_COUNT, OverlayPage,
};
use thiserror::Error;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::DescriptorTablePointer;

use crate::Page;
use crate::crash::{CrashMessage, CrashRegisters};
use crate::hypercall::{GUEST_OS_ID, Transport};
use crate::serial::Io;

/// CPUID leaf of address sizes.
const CPUID_ADDRESS_SIZES: u32 = 0x8000_0008;

/// What the hypervisor below offers, as far as this crate uses it.
#[derive(Debug, Clone, Copy)]
pub struct Hypervisor {
    /// From CPUID.
    pub privileges: PartitionPrivileges,
    /// From CPUID.
    pub features: Features,
}

impl Hypervisor {
    /// Asks CPUID. `None`: there is no hypervisor that speaks the TLFS.
    pub fn detect() -> Option<Self> {
        let vendor = __cpuid(HV_CPUID_VENDOR);
        if [vendor.ebx, vendor.ecx, vendor.edx] != HV_VENDOR || vendor.eax < HV_CPUID_FEATURES {
            return None;
        }
        let leaf = __cpuid(HV_CPUID_FEATURES);
        Some(Self {
            privileges: PartitionPrivileges::from_bits(
                u64::from(leaf.eax) | u64::from(leaf.ebx) << 32,
            ),
            features: Features::from_bits(leaf.edx),
        })
    }

    /// The reference counter in units of 100 ns, if the VM may read it.
    pub fn reference_time(&self) -> Option<u64> {
        self.privileges
            .access_partition_reference_counter()
            .then(|| {
                // SAFETY: the privilege says that the MSR exists; reading has no effect.
                unsafe { Msr::new(HV_X64_MSR_TIME_REF_COUNT).read() }
            })
    }

    /// Hands a text to the host; it may end the VM at once. Returns if it does not, or if
    /// it has no crash registers.
    pub fn report_crash(&self, tag: [u8; 8], message: &'static CrashMessage) {
        if !self.features.guest_crash_msrs() {
            return;
        }
        let text = message.as_bytes();
        let registers = CrashRegisters::new(tag, text.as_ptr().addr() as u64, text.len());
        for (msr, value) in (HV_X64_MSR_CRASH_P0..).zip(registers.parameters) {
            // SAFETY: the feature says that the MSRs exist; they only store.
            unsafe { Msr::new(msr).write(value) };
        }
        // SAFETY: as above; this one makes the host look at the text, which is `'static`.
        unsafe { Msr::new(HV_X64_MSR_CRASH_CTL).write(registers.control) };
    }
}

/// Bits of a physical address.
pub fn physical_address_bits() -> u8 {
    __cpuid(CPUID_ADDRESS_SIZES).eax as u8
}

/// Ends the VM by a triple fault: an exception without a table of handlers. The host
/// learns of it at once, while a halted CPU would look alive.
pub fn triple_fault() -> ! {
    let empty = DescriptorTablePointer {
        limit: 0,
        base: VirtAddr::zero(),
    };
    // SAFETY: no exception is to be handled any more, and interrupts are off.
    unsafe { asm!("cli", "lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}

/// Port access for [`crate::serial::Serial`].
#[derive(Debug)]
pub struct PortIo(());

impl PortIo {
    /// Access to the ports of a serial line.
    ///
    /// # Safety
    /// The ports that the user of this value names must belong to a serial port, or to
    /// nothing.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl Io for PortIo {
    fn read(&mut self, port: u16) -> u8 {
        // SAFETY: promised at construction.
        unsafe { Port::new(port).read() }
    }

    fn write(&mut self, port: u16, value: u8) {
        // SAFETY: promised at construction.
        unsafe { Port::new(port).write(value) }
    }
}

/// Memory of the hypercall interface; a static, because the hypervisor holds its address.
#[derive(Debug)]
#[repr(C)]
pub struct HypercallPages {
    code: UnsafeCell<Page>,
    input: UnsafeCell<Page>,
    output: UnsafeCell<Page>,
}

// SAFETY: there is one thread (crate docs); the pages are used through `Hypercalls` only,
// of which there is one, as its constructor demands.
unsafe impl Sync for HypercallPages {}

impl HypercallPages {
    /// Empty pages.
    pub const fn new() -> Self {
        Self {
            code: UnsafeCell::new(Page::ZERO),
            input: UnsafeCell::new(Page::ZERO),
            output: UnsafeCell::new(Page::ZERO),
        }
    }
}

impl Default for HypercallPages {
    fn default() -> Self {
        Self::new()
    }
}

/// Why there are no hypercalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HypercallSetupError {
    /// CPUID does not grant them.
    #[error("partition privileges {privileges:#x}, expected the hypercall MSRs (bit 5)")]
    Privilege {
        /// What it grants.
        privileges: u64,
    },
    /// The MSR does not hold what was written.
    #[error("hypercall MSR reads {found:#x}, expected {expected:#x}")]
    NotEnabled {
        /// Read back.
        found: u64,
        /// Written.
        expected: u64,
    },
}

/// The hypercall interface, enabled.
#[derive(Debug)]
pub struct Hypercalls {
    pages: &'static HypercallPages,
}

impl Hypercalls {
    /// Gives the guest's identity and places the hypercall page.
    ///
    /// # Safety
    /// `pages` must be identity mapped, executable, and used by no other `Hypercalls`.
    pub unsafe fn enable(
        hypervisor: &Hypervisor,
        pages: &'static HypercallPages,
    ) -> Result<Self, HypercallSetupError> {
        if !hypervisor.privileges.access_hypercall() {
            return Err(HypercallSetupError::Privilege {
                privileges: hypervisor.privileges.into_bits(),
            });
        }
        let page = OverlayPage::new()
            .with_enabled(true)
            .with_page_number(pages.code.get().expose_provenance() as u64 / 4096);
        let mut control = Msr::new(HV_X64_MSR_HYPERCALL);
        // SAFETY: the privilege says that both MSRs exist; the page is ours and nothing
        // else is in it.
        let found = unsafe {
            Msr::new(HV_X64_MSR_GUEST_OS_ID).write(GUEST_OS_ID);
            control.write(page.into_bits());
            control.read()
        };
        if found != page.into_bits() {
            return Err(HypercallSetupError::NotEnabled {
                found,
                expected: page.into_bits(),
            });
        }
        Ok(Self { pages })
    }

    /// GPA of the page that the hypervisor has filled with its entry code.
    pub fn code_gpa(&self) -> u64 {
        self.pages.code.get().expose_provenance() as u64
    }

    /// Takes the page and the identity back, so that the next program starts clean.
    pub fn disable(self) {
        // SAFETY: the MSRs exist, or `enable` would have failed; nobody calls the page
        // any more, because `self` is gone.
        unsafe {
            Msr::new(HV_X64_MSR_HYPERCALL).write(0);
            Msr::new(HV_X64_MSR_GUEST_OS_ID).write(0);
        }
    }
}

impl Transport for Hypercalls {
    fn input(&mut self) -> &mut Page {
        // SAFETY: `&mut self` is the only way to the page, and no call is in progress.
        unsafe { &mut *self.pages.input.get() }
    }

    fn output(&self) -> &Page {
        // SAFETY: only `call`, which needs `&mut self`, lets the hypervisor write it.
        unsafe { &*self.pages.output.get() }
    }

    fn call(&mut self, control: HypercallControl) -> HypercallResult {
        let result: u64;
        // SAFETY: the hypervisor has filled the page with a function that takes RCX, RDX
        // and R8 and returns RAX (TLFS 3.7); the pages are identity mapped and no
        // reference to them is alive across this call.
        unsafe {
            asm!(
                "call {page}",
                page = in(reg) self.pages.code.get(),
                in("rcx") control.into_bits(),
                in("rdx") self.pages.input.get().expose_provenance(),
                in("r8") self.pages.output.get().expose_provenance(),
                lateout("rax") result,
                clobber_abi("sysv64"),
            );
        }
        HypercallResult::from_bits(result)
    }
}

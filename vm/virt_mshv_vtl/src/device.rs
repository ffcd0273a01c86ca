//! The files of the driver, and what can be asked of them.

#![expect(unsafe_code, reason = "requests of ioctl pass addresses")]

use crate::error::Error;
use crate::hypercall::RegisterValue;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::registers::HvRegisterName;
use loader_defs::range::GpaRange;
use mshv_defs::CAP_REGISTER_PAGE;
use mshv_defs::Hvcall;
use mshv_defs::HvcallSetup;
use mshv_defs::RamDisposition;
use mshv_defs::SetEventfd;
use mshv_defs::SetPollFile;
use mshv_defs::SintMask;
use mshv_defs::VpRegisters;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl;
use rustix::ioctl::Ioctl;
use rustix::ioctl::IoctlOutput;
use rustix::ioctl::NoArg;
use rustix::ioctl::Opcode;
use rustix::ioctl::Setter;
use rustix::ioctl::Updater;
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

/// Size in bytes of a page, as a power of two.
const PAGE_SHIFT: u32 = 12;

/// The file of the VTL below.
pub(crate) struct Vtl(OwnedFd);

impl Vtl {
    pub(crate) fn open() -> Result<Self, Error> {
        let device = open(mshv_defs::DEVICE)?;
        // SAFETY: the request reads a number at the address that is passed.
        let pages = unsafe {
            let request = Asked::<{ mshv_defs::CHECK_EXTENSION }>(CAP_REGISTER_PAGE);
            ioctl::ioctl(&device, request)
        };
        if pages.map_err(kernel("has it register pages?"))? != 1 {
            return Err(Error::NoRegisterPage);
        }
        // SAFETY: the request ignores its argument.
        let vtl = unsafe { ioctl::ioctl(&device, Asked::<{ mshv_defs::CREATE_VTL }>(0)) };
        let vtl = vtl.map_err(kernel("create the VTL"))?;
        // SAFETY: the request returns a new file descriptor, which nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(vtl) }))
    }

    /// Runs the lower VTL on this CPU until an intercept, or [`Errno::INTR`].
    #[inline]
    pub(crate) fn run(&self) -> Result<(), Errno> {
        // SAFETY: the request has no argument. It changes the run page and the register
        // page, which are only accessed through atomic operations.
        unsafe {
            let request = NoArg::<{ mshv_defs::RETURN_TO_LOWER_VTL }>::new();
            ioctl::ioctl(&self.0, request)
        }
    }

    /// Has each write to `file` cancel the run of `cpu`.
    pub(crate) fn set_poll_file(&self, cpu: u16, file: BorrowedFd<'_>) -> Result<(), Error> {
        let argument = SetPollFile {
            cpu: cpu.into(),
            // Never negative.
            fd: file.as_raw_fd() as u32,
        };
        // SAFETY: the request reads its argument, which has the type that it expects.
        let done = unsafe {
            let request = Setter::<{ mshv_defs::SET_POLL_FILE }, _>::new(argument);
            ioctl::ioctl(&self.0, request)
        };
        done.map_err(kernel("set the file that cancels a run"))
    }

    /// Writes a register of VTL0 on this CPU, of those that the driver can write: where the
    /// VTLs share it, into the CPU itself.
    pub(crate) fn set_register(
        &self,
        name: HvRegisterName,
        value: RegisterValue,
    ) -> Result<(), Error> {
        let register = HvRegisterAssoc {
            name: name.0,
            pad: [0; 3],
            value,
        };
        let argument = VpRegisters {
            count: 1,
            reserved: 0,
            regs_ptr: (&raw const register).addr() as u64,
        };
        // SAFETY: the request reads its argument, which has the type that it expects, and
        // the register, which outlives it.
        let done = unsafe {
            let request = Setter::<{ mshv_defs::SET_VP_REGISTERS }, _>::new(argument);
            ioctl::ioctl(&self.0, request)
        };
        done.map_err(kernel("set a register of VTL0"))
    }

    /// Tells the kernel of VTL0's memory: whole pages that it does not use itself.
    pub(crate) fn add_memory(&self, range: GpaRange) -> Result<(), Errno> {
        let argument = RamDisposition {
            start_pfn: range.start() >> PAGE_SHIFT,
            last_pfn: range.end() >> PAGE_SHIFT,
        };
        // SAFETY: the request reads its argument, which has the type that it expects.
        unsafe {
            let request = Setter::<{ mshv_defs::ADD_VTL0_MEMORY }, _>::new(argument);
            ioctl::ioctl(&self.0, request)
        }
    }
}

impl AsFd for Vtl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The file for hypercalls.
pub(crate) struct HvcallFile(OwnedFd);

impl HvcallFile {
    /// Opens it for the hypercalls of `codes`, and no others.
    pub(crate) fn open(codes: &[u16]) -> Result<Self, Error> {
        let file = open(mshv_defs::HVCALL_DEVICE)?;
        let mut set = [0_u8; mshv_defs::HVCALL_SET_BYTES];
        for code in codes {
            set[usize::from(code / 8)] |= 1 << (code % 8);
        }
        let argument = HvcallSetup {
            bitmap_array_size: set.len() as u64,
            allow_bitmap_ptr: set.as_ptr().addr() as u64,
        };
        // SAFETY: the request reads its argument, which has the type that it expects, and
        // the set, whose size it says.
        let done = unsafe {
            let request = Setter::<{ mshv_defs::HVCALL_SETUP }, _>::new(argument);
            ioctl::ioctl(&file, request)
        };
        done.map_err(kernel("choose hypercalls"))?;
        Ok(Self(file))
    }

    /// Makes a hypercall and returns the result word. Input and output have at most
    /// [`mshv_defs::HVCALL_MAX_BYTES`] each.
    pub(crate) fn call(&self, control: u64, input: &[u8], output: &mut [u8]) -> Result<u64, Errno> {
        let mut argument = Hvcall {
            control,
            input_size: input.len() as u64,
            input_ptr: input.as_ptr().addr() as u64,
            status: 0,
            output_size: output.len() as u64,
            output_ptr: output.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the request reads and writes its argument, which has the type that it
        // expects, reads the input and writes the output, whose sizes it says.
        unsafe {
            let request = Updater::<{ mshv_defs::HVCALL }, _>::new(&mut argument);
            ioctl::ioctl(&self.0, request)?;
        }
        Ok(argument.status)
    }
}

/// The file by which event flags become events. VTL2 must have VMBus.
pub(crate) struct SintFile(OwnedFd);

impl SintFile {
    /// Opens it, and has the flags of source 7 interrupt a CPU.
    pub(crate) fn open() -> Result<Self, Error> {
        let file = open(mshv_defs::SINT_DEVICE)?;
        let argument = SintMask {
            mask: 0,
            reserved: [0; 7],
        };
        // SAFETY: the request reads its argument, which has the type that it expects.
        let done = unsafe {
            let request = Setter::<{ mshv_defs::SINT_PAUSE_MESSAGE_STREAM }, _>::new(argument);
            ioctl::ioctl(&file, request)
        };
        done.map_err(kernel("let event flags through"))?;
        Ok(Self(file))
    }

    /// Has `flag` signal `event`, and no longer what it has signalled before.
    pub(crate) fn set_event(&self, flag: u32, event: BorrowedFd<'_>) -> Result<(), Error> {
        let argument = SetEventfd {
            fd: event.as_raw_fd(),
            flag,
        };
        // SAFETY: the request reads its argument, which has the type that it expects.
        let done = unsafe {
            let request = Setter::<{ mshv_defs::SINT_SET_EVENTFD }, _>::new(argument);
            ioctl::ioctl(&self.0, request)
        };
        done.map_err(kernel("set the event of a flag"))
    }
}

/// The file whose offsets are VTL0's physical addresses.
pub(crate) fn open_low_memory() -> Result<OwnedFd, Error> {
    open(mshv_defs::LOW_DEVICE)
}

/// A number is passed by address, and the answer is what ioctl returns.
struct Asked<const OPCODE: Opcode>(u32);

// SAFETY: the argument is not written.
unsafe impl<const OPCODE: Opcode> Ioctl for Asked<OPCODE> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(
        returned: IoctlOutput,
        _: *mut c_void,
    ) -> rustix::io::Result<IoctlOutput> {
        Ok(returned)
    }
}

fn open(path: &'static str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::Open { path, error })
}

/// Says what the kernel has refused.
pub(crate) fn kernel(what: &'static str) -> impl Fn(Errno) -> Error {
    move |error| Error::Kernel { what, error }
}

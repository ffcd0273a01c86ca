//! A partition: a guest whose processors this process runs and whose memory it sees.
//!
//! What devices and the worker know of virtualization is here, and only that, so they do not
//! know which backend is below them (today `virt_mshv_vtl`: the guest is VTL0, we are VTL2).
//!
//! The model: one thread per virtual processor (VP). It binds itself to its VP
//! ([`Partition::bind`]), which pins it to the VP's CPU, and then runs the guest
//! ([`Vp::run`]) whenever it has nothing else to do. Each return says why the guest stopped:
//! an [`Exit`], with everything that is needed to serve it. Whoever has work for the thread
//! makes `run` return with [`Partition::cancel`].
//!
//! A VP can also be *remote*: its CPU is not one of this process's kernel. It needs no
//! thread while the guest runs, so one thread can have many ([`RemoteVp`]). It becomes an
//! ordinary VP when it leaves its CPU to the kernel, which is for good.
//!
//! What the backend does itself: local APICs, timers, HLT, INIT and SIPI, CPUID. What comes
//! up: ports, device memory, MSRs that the backend does not have, ends of level-triggered
//! interrupts, and the processor giving up.
//!
//! Everything in an [`Exit`] comes from the guest, so any value is possible.

#![forbid(unsafe_code)]

mod error;
mod exit;
mod interrupt;
mod state;

pub use error::Error;
pub use exit::Access;
pub use exit::CpuidExit;
pub use exit::Exit;
pub use exit::Instruction;
pub use exit::MemoryExit;
pub use exit::MsrExit;
pub use exit::PortExit;
pub use interrupt::Delivery;
pub use interrupt::Exception;
pub use interrupt::InterruptRequest;
pub use state::Context;
pub use state::Gp;
pub use state::Registers;
pub use state::SegmentName;
pub use state::Start;
pub use state::VpState;

pub use guest_memory::GuestMemory;
pub use x86_defs::long_mode::DescriptorTable;
pub use x86_defs::long_mode::Segment;

use inspect::Inspect;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A guest. Shared by all threads.
pub trait Partition: Inspect + Send + Sync + 'static {
    /// Number of VPs. Their indices are 0 to this, and so are their APIC ids.
    fn vp_count(&self) -> u32;

    /// The guest's RAM.
    fn memory(&self) -> &GuestMemory;

    /// Sends an interrupt to the guest's local APICs, as a device or an I/O APIC does.
    ///
    /// A request that no APIC takes is lost, as on a PC.
    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<(), Error>;

    /// Makes [`Vp::run`] of `vp` return soon: the run that is going on, or, if none is, the
    /// next one. From any thread. What happened before this call is visible to the VP's
    /// thread when `run` has returned.
    fn cancel(&self, vp: u32);

    /// Makes the calling thread the one of `vp`, and pins it to the CPU of `vp`.
    ///
    /// Until what is returned is dropped, no other thread gets it. It cannot leave its thread.
    fn bind(self: Arc<Self>, vp: u32) -> Result<Box<dyn Vp>, Error>;

    /// Whether `vp` is remote: no thread can bind it, [`Partition::attach`] has it.
    fn is_remote(&self, _vp: u32) -> bool {
        false
    }

    /// Makes the caller the owner of `vp`, which is remote.
    ///
    /// Until what is returned is dropped, nobody else gets it.
    fn attach(self: Arc<Self>, vp: u32) -> Result<Box<dyn RemoteVp>, Error> {
        Err(Error::NotRemote { vp })
    }
}

/// A virtual processor, on its thread. It is not running while any of this is called, except
/// in [`Vp::run`].
pub trait Vp {
    /// Its index, which is its APIC id too.
    fn index(&self) -> u32;

    /// Runs the guest until it does something that this process must serve, or is cancelled.
    ///
    /// Whoever gets an exit serves it with one of the methods below before the next `run`.
    /// If it does not, the guest repeats its instruction; that is how a write that a device
    /// cannot take now is made again later.
    fn run(&mut self) -> Result<Exit, Error>;

    /// Ends a port instruction that is neither a string instruction nor of unknown length:
    /// puts `value` into RAX (if it was an input) and goes to the next instruction.
    fn complete_port(&mut self, exit: &PortExit, value: u32) -> Result<(), Error>;

    /// Ends RDMSR or WRMSR; `value` counts for RDMSR.
    fn complete_msr(&mut self, exit: &MsrExit, value: u64) -> Result<(), Error>;

    /// Ends CPUID with EAX, EBX, ECX and EDX.
    fn complete_cpuid(&mut self, exit: &CpuidExit, values: [u32; 4]) -> Result<(), Error>;

    /// Has the guest's next step be an exception. The instruction is not ended.
    fn inject(&mut self, exception: Exception) -> Result<(), Error>;

    /// General registers, RIP and RFLAGS.
    fn registers(&mut self) -> Result<Registers, Error>;

    /// Writes them, as an emulator does that has ended an instruction: the shadow of STI and
    /// of a load of SS ends.
    fn set_registers(&mut self, registers: &Registers) -> Result<(), Error>;

    /// What decides on the meaning of an instruction.
    fn context(&mut self) -> Result<Context, Error>;

    /// An SSE register; there are 16.
    fn xmm(&mut self, register: u8) -> u128;

    /// Writes an SSE register. The wider parts of the register stay.
    fn set_xmm(&mut self, register: u8, value: u128);

    /// Everything that is private to the guest, for reports.
    fn state(&mut self) -> Result<VpState, Error>;

    /// Resets the processor with its local APIC and its synthetic interrupt controller, drops
    /// events that were pending, and says how it starts.
    ///
    /// To reset a guest, each VP's thread does it, while none runs.
    fn reset(&mut self, start: &Start) -> Result<(), Error>;
}

/// A VP whose CPU runs no thread. What [`Vp`] has works too, on any thread: [`Vp::run`] waits.
pub trait RemoteVp: Vp + Send {
    /// Lets the guest run. Until [`RemoteVp::stopped`] says that it has stopped, nothing else
    /// is done to the VP, but that it can be cancelled.
    fn start(&mut self) -> Result<(), Error>;

    /// Why the guest has stopped; `None`: it runs.
    fn stopped(&mut self) -> Result<Option<Exit>, Error>;

    /// Becomes readable when [`RemoteVp::stopped`] may have something new to say.
    fn event(&self) -> BorrowedFd<'_>;

    /// Hands the CPU over to the kernel and returns when it is there, which takes long. The
    /// guest must have stopped, and its exit have been served. Afterwards, a thread can bind
    /// the VP, and the guest finds everything as it was.
    ///
    /// After an error, the VP can run nowhere.
    fn leave(self: Box<Self>) -> Result<(), Error>;
}

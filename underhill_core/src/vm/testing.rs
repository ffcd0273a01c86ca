//! A partition whose guest is a script.

use rustix::event::EventfdFlags;
use rustix::event::eventfd;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use virt::Context;
use virt::CpuidExit;
use virt::Error;
use virt::Exception;
use virt::Exit;
use virt::GuestMemory;
use virt::Instruction;
use virt::InterruptRequest;
use virt::MsrExit;
use virt::Partition;
use virt::PortExit;
use virt::Registers;
use virt::RemoteVp;
use virt::Segment;
use virt::Start;
use virt::Vp;
use virt::VpState;
use vm_loader::GpaRange;

/// Bytes of the guest's RAM.
pub(super) const RAM: u64 = 16 << 20;

/// What a VP does next; `None`: nothing more, it waits to be cancelled.
type Script = Box<dyn FnMut() -> Option<Exit> + Send>;

/// What was done to a VP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Port(u32),
    Msr(u64),
    Cpuid([u32; 4]),
    Injected(Exception),
    /// A reset; true: it starts at once.
    Reset(bool),
}

pub(super) struct FakePartition {
    memory: GuestMemory,
    vps: Vec<Mutex<FakeState>>,
    changed: Condvar,
    pub(super) interrupts: Mutex<Vec<InterruptRequest>>,
}

#[derive(Default)]
pub(super) struct FakeState {
    script: Option<Script>,
    /// Returned again until it is completed.
    pending: Option<Exit>,
    cancelled: bool,
    pub(super) done: Vec<Done>,
    pub(super) registers: Registers,
    /// Calls by this name fail.
    pub(super) faults: HashMap<&'static str, &'static str>,
    pub(super) runs: u64,
    /// It is in the sidecar.
    pub(super) remote: bool,
    /// Its way out of there takes until something is said here.
    pub(super) way: Option<mpsc::Receiver<()>>,
}

impl FakePartition {
    pub(super) fn new(vps: usize) -> Arc<Self> {
        let ram = GpaRange::new(0, RAM).unwrap();
        Arc::new(Self {
            memory: GuestMemory::anonymous(&[ram]).unwrap(),
            vps: (0..vps).map(|_| Mutex::default()).collect(),
            changed: Condvar::new(),
            interrupts: Mutex::default(),
        })
    }

    pub(super) fn vp(&self, vp: usize) -> MutexGuard<'_, FakeState> {
        self.vps[vp].lock().unwrap()
    }

    /// Lets `vp` do what `exits` say, one after the other.
    pub(super) fn script(&self, vp: usize, exits: impl IntoIterator<Item = Exit>) {
        let mut exits: Vec<_> = exits.into_iter().collect();
        exits.reverse();
        self.play(vp, move || exits.pop());
    }

    pub(super) fn play(&self, vp: usize, script: impl FnMut() -> Option<Exit> + Send + 'static) {
        self.vp(vp).script = Some(Box::new(script));
        self.changed.notify_all();
    }

    pub(super) fn is_remote_now(&self, vp: usize) -> bool {
        self.vp(vp).remote
    }

    fn fault(&self, vp: usize, call: &'static str) -> Result<(), Error> {
        match self.vp(vp).faults.get(call) {
            Some(text) => Err(Error::Backend((*text).into())),
            None => Ok(()),
        }
    }
}

impl inspect::Inspect for FakePartition {
    fn inspect(&self, request: inspect::Request<'_>) {
        request.ignore();
    }
}

impl Partition for FakePartition {
    fn vp_count(&self) -> u32 {
        self.vps.len() as u32
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn assert_interrupt(&self, request: &InterruptRequest) -> Result<(), Error> {
        self.interrupts.lock().unwrap().push(*request);
        Ok(())
    }

    fn cancel(&self, vp: u32) {
        self.vp(vp as usize).cancelled = true;
        self.changed.notify_all();
    }

    fn bind(self: Arc<Self>, vp: u32) -> Result<Box<dyn Vp>, Error> {
        self.fault(vp as usize, "bind")?;
        assert!(!self.is_remote(vp));
        Ok(Box::new(FakeVp {
            partition: self,
            index: vp as usize,
        }))
    }

    fn is_remote(&self, vp: u32) -> bool {
        self.vp(vp as usize).remote
    }

    fn attach(self: Arc<Self>, vp: u32) -> Result<Box<dyn RemoteVp>, Error> {
        self.fault(vp as usize, "attach")?;
        assert!(self.is_remote(vp));
        Ok(Box::new(FakeRemote {
            vp: FakeVp {
                partition: self,
                index: vp as usize,
            },
            run: None,
            event: Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()),
        }))
    }
}

/// A VP in the sidecar, whose CPU is a thread for each run.
struct FakeRemote {
    vp: FakeVp,
    run: Option<JoinHandle<Result<Exit, Error>>>,
    event: Arc<OwnedFd>,
}

impl RemoteVp for FakeRemote {
    fn start(&mut self) -> Result<(), Error> {
        assert!(self.run.is_none());
        let (mut vp, event) = (self.vp.clone(), self.event.clone());
        self.run = Some(thread::spawn(move || {
            let exit = vp.run();
            rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
            exit
        }));
        Ok(())
    }

    fn stopped(&mut self) -> Result<Option<Exit>, Error> {
        if rustix::io::read(&self.event, &mut [0; 8]).is_err() {
            return Ok(None);
        }
        let run = self.run.take().unwrap();
        run.join().unwrap().map(Some)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn leave(self: Box<Self>) -> Result<(), Error> {
        assert!(self.run.is_none());
        let FakeVp { partition, index } = self.vp;
        let way = partition.vp(index).way.take();
        if let Some(way) = way {
            let _ = way.recv();
        }
        partition.fault(index, "leave")?;
        partition.vp(index).remote = false;
        Ok(())
    }
}

/// Passes on to the VP inside.
macro_rules! forward {
    ($($name:ident(&mut self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => {
        impl Vp for FakeRemote {
            fn index(&self) -> u32 {
                self.vp.index()
            }

            $(fn $name(&mut self $(, $argument: $type)*) $(-> $result)? {
                assert!(self.run.is_none(), "it runs");
                self.vp.$name($($argument),*)
            })*
        }
    };
}

forward! {
    run(&mut self) -> Result<Exit, Error>;
    complete_port(&mut self, exit: &PortExit, value: u32) -> Result<(), Error>;
    complete_msr(&mut self, exit: &MsrExit, value: u64) -> Result<(), Error>;
    complete_cpuid(&mut self, exit: &CpuidExit, values: [u32; 4]) -> Result<(), Error>;
    inject(&mut self, exception: Exception) -> Result<(), Error>;
    registers(&mut self) -> Result<Registers, Error>;
    set_registers(&mut self, registers: &Registers) -> Result<(), Error>;
    context(&mut self) -> Result<Context, Error>;
    xmm(&mut self, register: u8) -> u128;
    set_xmm(&mut self, register: u8, value: u128);
    state(&mut self) -> Result<VpState, Error>;
    reset(&mut self, start: &Start) -> Result<(), Error>;
}

#[derive(Clone)]
struct FakeVp {
    partition: Arc<FakePartition>,
    index: usize,
}

impl FakeVp {
    fn complete(&self, done: Done) -> Result<(), Error> {
        self.partition.fault(self.index, "complete")?;
        let mut state = self.partition.vp(self.index);
        state.pending = None;
        state.done.push(done);
        Ok(())
    }
}

impl Vp for FakeVp {
    fn index(&self) -> u32 {
        self.index as u32
    }

    fn run(&mut self) -> Result<Exit, Error> {
        self.partition.fault(self.index, "run")?;
        let mut state = self.partition.vp(self.index);
        state.runs += 1;
        loop {
            if std::mem::take(&mut state.cancelled) {
                return Ok(Exit::Cancelled);
            }
            if state.pending.is_none() {
                state.pending = state.script.as_mut().and_then(|script| script());
            }
            match state.pending {
                // Nobody completes these.
                Some(exit @ (Exit::Eoi { .. } | Exit::Halt | Exit::Cancelled)) => {
                    state.pending = None;
                    return Ok(exit);
                }
                Some(exit) => return Ok(exit),
                None => state = self.partition.changed.wait(state).unwrap(),
            }
        }
    }

    fn complete_port(&mut self, _exit: &PortExit, value: u32) -> Result<(), Error> {
        self.complete(Done::Port(value))
    }

    fn complete_msr(&mut self, _exit: &MsrExit, value: u64) -> Result<(), Error> {
        self.complete(Done::Msr(value))
    }

    fn complete_cpuid(&mut self, _exit: &CpuidExit, values: [u32; 4]) -> Result<(), Error> {
        self.complete(Done::Cpuid(values))
    }

    fn inject(&mut self, exception: Exception) -> Result<(), Error> {
        self.complete(Done::Injected(exception))
    }

    fn registers(&mut self) -> Result<Registers, Error> {
        Ok(self.partition.vp(self.index).registers)
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), Error> {
        let mut state = self.partition.vp(self.index);
        state.registers = *registers;
        state.pending = None;
        Ok(())
    }

    /// Flat 32-bit segments, no paging.
    fn context(&mut self) -> Result<Context, Error> {
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x10,
            attributes: 0xc093,
        };
        let mut segments = [data; 6];
        segments[virt::SegmentName::Cs as usize].attributes = 0xc09b;
        Ok(Context {
            segments,
            cr0: 1,
            ..Context::default()
        })
    }

    fn xmm(&mut self, _register: u8) -> u128 {
        0
    }

    fn set_xmm(&mut self, _register: u8, _value: u128) {}

    fn state(&mut self) -> Result<VpState, Error> {
        self.partition.fault(self.index, "state")?;
        let mut state = VpState::at_reset();
        state.registers = self.partition.vp(self.index).registers;
        Ok(state)
    }

    fn reset(&mut self, start: &Start) -> Result<(), Error> {
        self.partition.fault(self.index, "reset")?;
        let mut state = self.partition.vp(self.index);
        state.pending = None;
        let runs = match start {
            Start::WaitForSipi => false,
            Start::Run(vp) => {
                state.registers = vp.registers;
                true
            }
        };
        state.done.push(Done::Reset(runs));
        Ok(())
    }
}

/// OUT of one byte.
pub(super) fn out(port: u16, value: u8) -> Exit {
    port_exit(port, 1, Some(value.into()))
}

/// IN of one byte.
pub(super) fn input(port: u16) -> Exit {
    port_exit(port, 1, None)
}

pub(super) fn port_exit(port: u16, size: u8, output: Option<u32>) -> Exit {
    Exit::Port(PortExit {
        port,
        size,
        output,
        string: false,
        instruction: Instruction::new(0x1000, 1, &[0xee]),
    })
}

/// A kernel that is nothing but a page at 1 MiB, as an ELF file.
pub(super) fn kernel() -> Vec<u8> {
    let mut file = vec![0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"\x7fELF\x02\x01\x01");
    // Type, machine, version, entry, program headers, sizes.
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(20, &1_u32.to_le_bytes());
    put(24, &ENTRY.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &64_u16.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    // PT_LOAD, readable and executable, the whole file.
    put(64, &1_u32.to_le_bytes());
    put(68, &5_u32.to_le_bytes());
    put(80, &ENTRY.to_le_bytes());
    put(88, &ENTRY.to_le_bytes());
    put(96, &4096_u64.to_le_bytes());
    put(104, &4096_u64.to_le_bytes());
    put(112, &4096_u64.to_le_bytes());
    file
}

/// Where that kernel is, and starts.
pub(super) const ENTRY: u64 = 1 << 20;

//! A thread plays the kernel of a CPU in the sidecar.

use super::*;
use crate::hypercall::RegisterValue;
use crate::page::Page;
use crate::vp::MshvVp;
use hv_defs::hypercall::HvStatus;
use hv_defs::register_page::HvX64RegisterPage;
use hv_defs::registers::HvRegisterName as Name;
use hv_defs::synic::HvMessageType;
use proptest::prelude::*;
use rustix::fs::MemfdFlags;
use sidecar_defs::CommandPage;
use sidecar_defs::ControlPage;
use sidecar_defs::CpuStatus;
use sidecar_defs::REQUEST_VECTOR;
use sidecar_defs::command::Command;
use sidecar_defs::command::RegisterRequest;
use sidecar_defs::command_page_offset;
use sidecar_defs::handshake;
use sidecar_defs::handshake::Request;
use sidecar_defs::node_shared_size;
use std::collections::HashMap;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::Release;
use std::thread;
use std::thread::JoinHandle;
use virt::Exit;
use virt::Gp;
use virt::RemoteVp;
use virt::Start;
use virt::Vp;
use virt::VpState;
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

/// The node: VP 4 runs Linux, VP 5 is in the sidecar.
const NODE: SidecarNode = SidecarNode {
    control_page: 0x3000,
    base_vp: 4,
    cpu_count: 2,
};
const VP: u32 = 5;

/// The interrupt line of the CPU.
#[derive(Default)]
struct Line {
    pending: Mutex<bool>,
    changed: Condvar,
}

impl Line {
    fn wait(&self) {
        let mut pending = self.pending.lock().unwrap();
        while !*pending {
            pending = self.changed.wait(pending).unwrap();
        }
        *pending = false;
    }
}

impl Wake for Line {
    fn wake(&self, vp: u32) -> Result<(), Error> {
        assert_eq!(vp, VP);
        *self.pending.lock().unwrap() = true;
        self.changed.notify_one();
        Ok(())
    }
}

/// The memory of the node.
fn memory() -> OwnedFd {
    let memory = rustix::fs::memfd_create("node", MemfdFlags::CLOEXEC).unwrap();
    let size = NODE.control_page + node_shared_size(NODE.cpu_count);
    rustix::fs::ftruncate(&memory, size).unwrap();
    let control = Page::map(memory.as_fd(), NODE.control_page).unwrap();
    for (offset, value) in [
        (offset_of!(ControlPage, base_vp), NODE.base_vp),
        (offset_of!(ControlPage, cpu_count), NODE.cpu_count),
        (
            offset_of!(ControlPage, request_vector),
            REQUEST_VECTOR.into(),
        ),
        (offset_of!(ControlPage, response_vp), 0xffff_ffff),
    ] {
        control.half(offset).store(value, Relaxed);
    }
    memory
}

/// What VTL0 does when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// It is intercepted at once.
    Intercepted,
    /// It runs until it is stopped.
    Runs,
    /// The kernel crashes.
    Fails,
}

/// The kernel of the CPU.
struct Player {
    control: Page,
    command: Page,
    registers: Page,
    line: Arc<Line>,
    event: OwnedFd,
    guest: Guest,
    /// VTL0's.
    known: HashMap<u32, RegisterValue>,
}

impl Player {
    fn cell(&self) -> &AtomicU8 {
        self.control.byte(offset_of!(ControlPage, status) + 1)
    }

    fn signal(&self) {
        rustix::io::write(&self.event, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Until it leaves or fails; returns VTL0's registers.
    fn live(mut self) -> HashMap<u32, RegisterValue> {
        loop {
            match handshake::next(self.cell()) {
                None => self.line.wait(),
                Some(Request::Remove) => {
                    handshake::leave(self.cell());
                    self.signal();
                    return self.known;
                }
                Some(Request::Run) => {
                    let command = self.command.half(offset_of!(CommandPage, command));
                    match Command(command.load(Relaxed)) {
                        Command::RUN_VP if self.guest == Guest::Fails => {
                            self.say("page fault at 0x10\n");
                            handshake::fail(self.cell());
                            self.signal();
                            return self.known;
                        }
                        Command::RUN_VP => self.run(),
                        Command::GET_VP_REGISTERS => self.access(false),
                        Command::SET_VP_REGISTERS => self.access(true),
                        other => panic!("{other:?}"),
                    }
                    handshake::finish(self.cell());
                    self.signal();
                }
            }
        }
    }

    fn run(&self) {
        while self.guest == Guest::Runs && !handshake::must_stop(self.cell()) {
            self.line.wait();
        }
        let intercepted = u8::from(self.guest == Guest::Intercepted);
        let response = offset_of!(CommandPage, request);
        self.command.byte(response).store(intercepted, Relaxed);
        let message = offset_of!(CommandPage, intercept);
        let halt = HvMessageType::X64_HALT.0;
        self.command.half(message).store(halt, Relaxed);
        // Valid, of VTL0.
        let version_and_valid = u32::from_le_bytes([1, 0, 1, 0]);
        self.registers.half(0).store(version_and_valid, Relaxed);
        self.registers
            .set(offset_of!(HvX64RegisterPage, rip), 0x1000);
    }

    fn access(&mut self, write: bool) {
        let mut words = [0_u64; size_of::<RegisterRequest>() / 8];
        let place = offset_of!(CommandPage, request);
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.command.get(place + 8 * index);
        }
        let mut request = RegisterRequest::read_from_bytes(words.as_bytes()).unwrap();
        assert_eq!(request.target_vtl, 0x10);
        for register in &mut request.registers[..usize::from(request.count)] {
            if register.name == REFUSED.0 {
                request.status = HvStatus::INVALID_PARAMETER.0;
                break;
            }
            let known = self.known.entry(register.name).or_default();
            match write {
                true => *known = register.value,
                false => register.value = *known,
            }
            request.done += 1;
        }
        for (index, word) in request.as_bytes().chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().unwrap());
            self.command.set(place + 8 * index, word);
        }
    }

    fn say(&self, text: &str) {
        let place = offset_of!(CommandPage, error);
        let bytes = [&[text.len() as u8], text.as_bytes()].concat();
        for (index, byte) in bytes.into_iter().enumerate() {
            self.command.byte(place + index).store(byte, Relaxed);
        }
    }
}

/// A register that the host does not have.
const REFUSED: Name = Name(0xdead);

/// What the partition would be.
#[derive(Default)]
struct FakeHome {
    inits: Mutex<Vec<u32>>,
    given_back: Mutex<Vec<u32>>,
    online: Mutex<Option<Carried>>,
}

impl Home for FakeHome {
    fn init(&self, vp: u32) -> Result<(), Error> {
        self.inits.lock().unwrap().push(vp);
        Ok(())
    }

    fn give_back(&self, vp: u32) {
        self.given_back.lock().unwrap().push(vp);
    }

    fn online(&self, _vp: u32, carried: Carried) -> Result<(), Error> {
        *self.online.lock().unwrap() = Some(carried);
        Ok(())
    }

    fn count(&self, _vp: u32, _cancelled: bool) {}
}

struct Fixture {
    memory: OwnedFd,
    line: Arc<Line>,
    cpu: Arc<Cpu>,
    home: Arc<FakeHome>,
}

impl Fixture {
    fn new() -> Self {
        let memory = memory();
        let line = Arc::new(Line::default());
        let waker: Arc<dyn Wake> = line.clone();
        let mut cpus = map(&[NODE], 6, memory.as_fd(), &waker).unwrap();
        Self {
            line,
            cpu: Arc::new(cpus.remove(0)),
            memory,
            home: Arc::default(),
        }
    }

    fn page(&self, offset: u64) -> Page {
        Page::map(self.memory.as_fd(), NODE.control_page + offset).unwrap()
    }

    fn set_status(&self, status: CpuStatus) {
        let place = offset_of!(ControlPage, status) + 1;
        self.page(0).byte(place).store(status.0, Relaxed);
    }

    fn play(&self, guest: Guest) -> JoinHandle<HashMap<u32, RegisterValue>> {
        let player = Player {
            control: self.page(0),
            command: self.page(command_page_offset(1)),
            registers: self.page(command_page_offset(1) + 4096),
            line: self.line.clone(),
            event: self.cpu.event().try_clone_to_owned().unwrap(),
            guest,
            known: HashMap::new(),
        };
        thread::spawn(move || player.live())
    }

    /// The VP, whose CPU is idle.
    fn vp(&self, guest: Guest) -> (Box<MshvVp<Remote>>, JoinHandle<HashMap<u32, RegisterValue>>) {
        self.set_status(CpuStatus::IDLE);
        let player = self.play(guest);
        let remote = Remote::new(self.home.clone(), self.cpu.clone());
        (Box::new(MshvVp::new(remote)), player)
    }
}

#[test]
fn the_control_page_says_where_answers_go_and_must_be_that_of_the_node() {
    let fixture = Fixture::new();
    let response = fixture.page(0);
    let response = response.half(offset_of!(ControlPage, response_vp));
    assert_eq!(response.load(Relaxed), 0);

    let waker: Arc<dyn Wake> = fixture.line.clone();
    let other = SidecarNode { base_vp: 3, ..NODE };
    let error = map(&[other], 6, fixture.memory.as_fd(), &waker)
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "sidecar node at 0x3000: first VP is 0x4, expected what the device tree says"
    );
}

#[test]
fn nodes_that_cannot_be_are_refused() {
    let count = |cpu_count| SidecarNode { cpu_count, ..NODE };
    let at = |control_page| SidecarNode {
        control_page,
        ..NODE
    };
    assert!(check(&[NODE], 6).is_ok());
    for nodes in [
        vec![count(0)],
        vec![count(33)],
        vec![count(3)],
        vec![NODE, NODE],
        vec![at(0x3001)],
        vec![at(1 << 52)],
        vec![SidecarNode {
            base_vp: u32::MAX,
            ..NODE
        }],
    ] {
        assert!(check(&nodes, 6).is_err(), "{nodes:?}");
    }
}

#[test]
fn registers_are_read_and_written_in_as_many_commands_as_it_takes() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Intercepted);
    let mut state = VpState::at_reset();
    state.lstar = 0x1234;
    state.cr2 = 5;
    state.registers.set(Gp::Rbx, 7);

    vp.reset(&Start::Run(state)).unwrap();

    assert_eq!(vp.state().unwrap(), state);
    assert_eq!(*fixture.home.inits.lock().unwrap(), [VP]);
    vp.leave().unwrap();
    player.join().unwrap();
}

#[test]
fn a_register_that_the_host_refuses_is_named() {
    let fixture = Fixture::new();
    let (vp, player) = fixture.vp(Guest::Intercepted);
    let registers = [(Name::RIP, [1, 0]), (REFUSED, [0; 2])];

    let error = fixture.cpu.set(&registers).unwrap_err();

    assert!(
        matches!(
            error,
            Error::Register {
                register: REFUSED,
                ..
            }
        ),
        "{error}"
    );
    vp.leave().unwrap();
    assert_eq!(player.join().unwrap()[&Name::RIP.0], [1, 0]);
}

#[test]
fn a_run_ends_with_an_event() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Intercepted);
    for _ in 0..100 {
        vp.start().unwrap();
        fixture.cpu.wait().unwrap();
        while vp.stopped().unwrap().is_none() {
            fixture.cpu.wait().unwrap();
        }
    }
    assert_eq!(vp.run().unwrap(), Exit::Halt);
    assert_eq!(vp.registers().unwrap().rip, 0x1000);
    vp.leave().unwrap();
    player.join().unwrap();
}

#[test]
fn a_cancellation_ends_the_run_that_is_going_on_or_the_next_one() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Runs);

    vp.start().unwrap();
    assert_eq!(vp.stopped().unwrap(), None);
    assert!(fixture.cpu.cancel());
    while vp.stopped().unwrap() != Some(Exit::Cancelled) {
        fixture.cpu.wait().unwrap();
    }

    assert!(fixture.cpu.cancel());
    assert!(!fixture.cpu.cancel(), "the one before is not seen yet");
    assert_eq!(vp.run().unwrap(), Exit::Cancelled);
    vp.leave().unwrap();
    player.join().unwrap();
}

#[test]
fn cancellations_that_race_with_runs_are_never_lost() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Runs);
    // Each run waits for a cancellation, each cancellation for a run that has ended since.
    let (sender, receiver) = std::sync::mpsc::sync_channel(0);
    let cpu = fixture.cpu.clone();
    let canceller = thread::spawn(move || {
        while receiver.recv().is_ok() {
            cpu.cancel();
        }
    });
    for _ in 0..2_000 {
        sender.send(()).unwrap();
        assert_eq!(vp.run().unwrap(), Exit::Cancelled);
    }
    drop(sender);
    canceller.join().unwrap();
    vp.leave().unwrap();
    player.join().unwrap();
}

#[test]
fn what_the_guest_has_in_the_cpu_and_what_was_changed_leaves_with_the_vp() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Intercepted);
    vp.run().unwrap();
    let debug = Name(Name::DR0.0 + 3);
    fixture.cpu.set(&[(debug, [0xd3, 0])]).unwrap();
    let mut registers = vp.registers().unwrap();
    registers.rip = 0x2000;
    registers.set(Gp::R9, 9);
    registers.set(Gp::Rsp, 0x8000);
    vp.set_registers(&registers).unwrap();
    vp.set_xmm(15, 15 << 100);

    vp.leave().unwrap();

    let known = player.join().unwrap();
    // What is in the register page the host takes from there, and checks.
    assert!(!known.contains_key(&Name::RIP.0));
    let page = fixture.cpu.registers();
    assert_eq!((page.rip(), page.rsp()), (0x2000, 0x8000));
    let carried = fixture.home.online.lock().unwrap().take().unwrap();
    assert_eq!(carried.debug[3], (debug, [0xd3, 0]));
    assert_eq!(carried.context, fixture.cpu.context().load());
    assert_eq!(carried.context[Gp::R9 as usize], 9);
    assert_eq!(fixture.cpu.status(), CpuStatus::REMOVED);
    assert_eq!(*fixture.home.given_back.lock().unwrap(), [VP]);
}

#[test]
fn a_kernel_that_fails_is_reported_with_what_it_says() {
    let fixture = Fixture::new();
    let (mut vp, player) = fixture.vp(Guest::Fails);
    let error = vp.run().unwrap_err().to_string();
    assert!(
        error.starts_with("sidecar: the kernel of VP 5 has failed: page fault at 0x10"),
        "{error}"
    );
    assert!(!error.contains('\n'), "{error}");
    assert!(vp.registers().is_err());
    player.join().unwrap();
}

#[test]
fn a_run_that_another_process_has_begun_is_stopped() {
    for status in [CpuStatus::RUN, CpuStatus::STOP] {
        let fixture = Fixture::new();
        let command = fixture.page(command_page_offset(1));
        let place = command.half(offset_of!(CommandPage, command));
        place.store(Command::RUN_VP.0, Relaxed);
        fixture.set_status(status);
        let player = fixture.play(Guest::Runs);

        assert!(fixture.cpu.settle().unwrap());
        assert_eq!(fixture.cpu.status(), CpuStatus::IDLE);
        fixture.cpu.leave().unwrap();
        player.join().unwrap();
        assert!(!fixture.cpu.settle().unwrap());
    }
}

#[test]
fn a_cpu_that_another_process_has_asked_to_leave_leaves() {
    let fixture = Fixture::new();
    fixture.set_status(CpuStatus::REMOVE);
    let player = fixture.play(Guest::Runs);
    assert!(!fixture.cpu.settle().unwrap());
    player.join().unwrap();
}

#[test]
fn a_cpu_that_is_not_idle_is_not_asked() {
    let fixture = Fixture::new();
    for status in [CpuStatus::RUN, CpuStatus::REMOVED, CpuStatus(77)] {
        fixture.set_status(status);
        let error = fixture.cpu.run().unwrap_err().to_string();
        assert!(error.ends_with(", expected IDLE"), "{error}");
    }
}

/// A CPU that answers each command with nonsense.
fn nonsense(fixture: &Fixture, words: Vec<u64>, answers: Vec<u8>) -> JoinHandle<()> {
    let pages = [1, 2].map(|page| fixture.page(command_page_offset(1) + 4096 * (page - 1)));
    let control = fixture.page(0);
    let (line, event) = (fixture.line.clone(), fixture.cpu.event());
    let event = event.try_clone_to_owned().unwrap();
    thread::spawn(move || {
        for answer in answers {
            let cell = control.byte(offset_of!(ControlPage, status) + 1);
            while handshake::next(cell).is_none() {
                if handshake::status(cell) == END {
                    return;
                }
                line.wait();
            }
            for page in &pages {
                for (index, word) in words.iter().enumerate() {
                    page.set(8 * index, *word);
                }
            }
            cell.store(answer, Release);
            rustix::io::write(&event, &1_u64.to_ne_bytes()).unwrap();
        }
    })
}

/// Tells that thread to end.
const END: CpuStatus = CpuStatus(200);

proptest! {
    /// Answers of which a CPU says nothing more are left out: they take as long as the
    /// patience. The last one is final.
    #[test]
    fn whatever_is_in_the_pages_becomes_an_exit_or_an_error(
        words in prop::collection::vec(any::<u64>(), 512),
        mut answers in prop::collection::vec(prop_oneof![Just(1_u8), Just(0), 5..=255_u8], 5),
    ) {
        answers.push(0);
        let fixture = Fixture::new();
        fixture.set_status(CpuStatus::IDLE);
        let player = nonsense(&fixture, words, answers);
        let remote = Remote::new(fixture.home.clone(), fixture.cpu.clone());
        let mut vp = Box::new(MshvVp::new(remote));
        let _ = vp.run();
        let _ = vp.registers();
        let _ = vp.context();
        let _ = fixture.cpu.get(&[Name::RIP; 40], &mut [[0; 2]; 40]);
        let _ = fixture.cpu.settle();
        let _ = vp.leave();
        fixture.set_status(END);
        fixture.line.wake(VP).unwrap();
        player.join().unwrap();
    }
}

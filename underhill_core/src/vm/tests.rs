use super::testing::Done;
use super::testing::ENTRY;
use super::testing::FakePartition;
use super::testing::input;
use super::testing::kernel;
use super::testing::out;
use super::testing::port_exit;
use super::*;
use inspect::Query;
use std::path::Path;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use virt::Access;
use virt::Exception;
use virt::Exit;
use virt::Instruction;
use virt::MemoryExit;
use virt::MsrExit;

/// Data and scratch registers of COM1.
pub(super) const COM1_DATA: u16 = 0x3f8;
pub(super) const COM1_SCRATCH: u16 = 0x3ff;
/// PM1 control, with S5 and SLP_EN.
pub(super) const PM1_CONTROL: u16 = 0x604;
pub(super) const POWER_OFF: u32 = 5 << 10 | 1 << 13;
/// RAM where nothing is loaded.
const TEXT: u64 = 8 << 20;

pub(super) struct Rig {
    pub(super) partition: Arc<FakePartition>,
    pub(super) vm: Vm,
    pub(super) directory: tempfile::TempDir,
}

impl Rig {
    /// A guest that is about to start.
    pub(super) async fn new(vps: usize, on_crash: OnGuestCrash) -> Self {
        let mut rig = Self::unserved(vps, on_crash).await;
        rig.vm.serve_clients();
        rig
    }

    /// The same, as far as clients of serial ports can see.
    pub(super) async fn unserved(vps: usize, on_crash: OnGuestCrash) -> Self {
        Self::of(FakePartition::new(vps), on_crash, true).await
    }

    /// A guest of `partition` that is about to start.
    pub(super) async fn of(
        partition: Arc<FakePartition>,
        on_crash: OnGuestCrash,
        leave_on_exit: bool,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), kernel()).unwrap();
        let setup = Setup {
            leave_on_exit,
            ..setup(directory.path(), on_crash)
        };
        let vm = Vm::new(partition.clone(), setup).await.unwrap();
        Self {
            partition,
            vm,
            directory,
        }
    }

    pub(super) async fn boot(&mut self) {
        let mut stamps = Vec::new();
        self.vm.boot(&mut stamps).await.unwrap();
        let names: Vec<_> = stamps.iter().map(|stamp| stamp.name.as_str()).collect();
        assert_eq!(names, ["vtl0_loaded", "vtl0_started"]);
    }

    /// Waits for the next happening and handles it.
    pub(super) async fn next(&mut self) -> Vec<GuestEvent> {
        let happening = self.vm.happened().await;
        self.vm.handle(happening).await
    }

    /// Waits until `done` says so of what was done to a VP.
    pub(super) async fn until(&mut self, vp: usize, done: impl Fn(&[Done]) -> bool) -> Vec<Done> {
        loop {
            let list = self.partition.vp(vp).done.clone();
            if done(&list) {
                return list;
            }
            if let Ok(happening) = self.vm.happened.try_recv() {
                panic!("{happening:?}");
            }
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn get(&self, path: &str) -> Option<u64> {
        let node = Query::new("").evaluate(&self.vm).now();
        node.get(path).unwrap().as_u64()
    }
}

fn setup(directory: &Path, on_crash: OnGuestCrash) -> Setup {
    Setup {
        payload: directory.to_owned(),
        on_crash,
        listeners: [Some(Listener::unix(&directory.join("com1")).unwrap()), None],
        leave_on_exit: true,
    }
}

pub(super) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn instruction(bytes: &[u8]) -> Instruction {
    Instruction::new(0x1000, bytes.len() as u8, bytes)
}

fn memory_exit(gpa: u64, access: Access, bytes: &[u8]) -> Exit {
    Exit::Memory(MemoryExit {
        gpa,
        gva: Some(gpa),
        access,
        protected: false,
        delivering: false,
        instruction: instruction(bytes),
    })
}

#[test]
fn a_guest_is_loaded_and_starts_with_its_first_vp() {
    run(async {
        let mut rig = Rig::new(3, OnGuestCrash::Halt).await;
        rig.boot().await;
        assert_eq!(rig.partition.vp(0).done, [Done::Reset(true)]);
        assert_eq!(rig.partition.vp(2).done, [Done::Reset(false)]);
        assert_eq!(rig.partition.vp(0).registers.rip, ENTRY);
        let mut magic = [0; 4];
        rig.partition.memory().read(ENTRY, &mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert_eq!(rig.vm.state, GuestState::Running);
        rig.vm.hold().await.unwrap();
        rig.vm.end().await;
    });
}

#[test]
fn ports_reach_devices_and_nobody_answers_with_ones() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        let script = [
            out(COM1_SCRATCH, 0x5a),
            input(COM1_SCRATCH),
            port_exit(0x5000, 4, None),
            port_exit(0xffff, 4, None),
        ];
        rig.partition.script(0, script);
        rig.boot().await;
        let done = rig.until(0, |done| done.len() == 5).await;
        assert_eq!(
            done[1..],
            [
                Done::Port(0),
                Done::Port(0x5a),
                Done::Port(u32::MAX),
                Done::Port(u32::MAX)
            ]
        );
        assert_eq!(rig.get("vp/0/exits/port"), Some(4));
    });
}

#[test]
fn output_that_nobody_takes_holds_its_vp_only_and_loses_nothing() {
    const LENGTH: usize = 1 << 20;
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        let path = rig.directory.path().join("com1");
        let mut client = UnixStream::connect(path).await.unwrap();
        while rig.get("serial/com1/clients") == Some(0) {
            tokio::task::yield_now().await;
        }
        let mut sent = 0;
        rig.partition.play(0, move || {
            sent += 1;
            (sent <= LENGTH).then(|| out(COM1_DATA, (sent % 251) as u8))
        });
        rig.boot().await;
        while rig.get("vp/0/stalls") == Some(0) {
            tokio::task::yield_now().await;
        }

        // The other VP goes on while this one waits.
        rig.partition.script(1, [input(COM1_SCRATCH)]);
        rig.until(1, |done| done.len() == 2).await;
        assert!(rig.partition.vp(0).done.len() < LENGTH);

        let mut got = vec![0; LENGTH];
        client.read_exact(&mut got).await.unwrap();
        let right = got
            .iter()
            .zip(1..)
            .all(|(byte, n)| *byte == (n % 251) as u8);
        assert!(right);
    });
}

#[test]
fn a_vp_that_waits_for_room_can_be_held_and_writes_later() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        let path = rig.directory.path().join("com1");
        let client = UnixStream::connect(path).await.unwrap();
        while rig.get("serial/com1/clients") == Some(0) {
            tokio::task::yield_now().await;
        }
        rig.partition.play(0, || Some(out(COM1_DATA, b'x')));
        rig.boot().await;
        while rig.get("vp/0/stalls") == Some(0) {
            tokio::task::yield_now().await;
        }
        rig.vm.pause().await.unwrap();
        let before = rig.partition.vp(0).done.len();
        rig.vm.resume().unwrap();
        drop(client);
        rig.until(0, |done| done.len() > before).await;
        rig.vm.pause().await.unwrap();
    });
}

#[test]
fn power_off_stops_all_vps_and_is_told() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.partition.play(1, || Some(input(COM1_SCRATCH)));
        rig.partition
            .script(0, [port_exit(PM1_CONTROL, 2, Some(POWER_OFF))]);
        rig.boot().await;
        assert_eq!(rig.next().await, [GuestEvent::PoweredOff]);
        assert_eq!(rig.vm.state, GuestState::PoweredOff);
        let runs = rig.partition.vp(1).runs;
        assert!(rig.vm.pause().await.is_err());
        assert!(rig.vm.resume().is_err());
        assert_eq!(rig.partition.vp(1).runs, runs);
    });
}

#[test]
fn a_reset_restores_memory_devices_and_vps() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.partition
            .script(0, [out(COM1_SCRATCH, 0x5a), out(0xcf9, 6)]);
        rig.boot().await;
        rig.partition.memory().write(ENTRY, b"gone").unwrap();
        assert_eq!(
            rig.next().await,
            [GuestEvent::Reset {
                source: "port 0xcf9".to_owned(),
                count: 1
            }]
        );
        assert_eq!(rig.partition.vp(1).done, [Done::Reset(false); 2]);
        let mut magic = [0; 4];
        rig.partition.memory().read(ENTRY, &mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF");

        let before = rig.partition.vp(0).done.len();
        rig.partition.script(0, [input(COM1_SCRATCH)]);
        let done = rig.until(0, |done| done.len() > before).await;
        assert_eq!(done.last(), Some(&Done::Port(0)));
        assert_eq!(rig.get("guest/resets"), Some(1));
    });
}

#[test]
fn many_resets_in_a_row_are_all_done() {
    run(async {
        let mut rig = Rig::new(4, OnGuestCrash::Halt).await;
        rig.partition.play(0, || Some(out(0xcf9, 6)));
        rig.boot().await;
        for count in 1..=50 {
            let events = rig.next().await;
            assert!(matches!(events[..], [GuestEvent::Reset { count: c, .. }] if c == count));
        }
    });
}

#[test]
fn a_crash_is_reported_and_the_policy_followed() {
    run(async {
        for (policy, state, events) in [
            (OnGuestCrash::Halt, GuestState::Crashed, 1),
            (OnGuestCrash::Reset, GuestState::Running, 2),
            (OnGuestCrash::PowerOff, GuestState::Crashed, 1),
        ] {
            let mut rig = Rig::new(2, policy).await;
            rig.partition.script(1, [Exit::TripleFault]);
            rig.boot().await;
            let told = rig.next().await;
            assert_eq!(told.len(), events);
            let GuestEvent::Crashed { report, action } = &told[0] else {
                panic!("{told:?}");
            };
            assert!(report.starts_with("VP 1: triple fault\nrip 0000000000000000"));
            assert!(report.contains("\nrax 0000000000000000 rcx"));
            assert_eq!((*action, rig.vm.state), (policy, state));
        }
    });
}

#[test]
fn a_guest_that_tells_of_its_crash_is_quoted() {
    let write = |msr, value| {
        Exit::Msr(MsrExit {
            msr,
            write: Some(value),
            instruction: instruction(&[0x0f, 0x30]),
        })
    };
    // What makes a report the longest: lines, and bytes that are shown as several.
    let mut message = vec![b'\n'; 200];
    message.resize(3200, 0x7f);
    message.extend(b"\nBUG: gone\x07\n<end>");
    let length = message.len() as u64;
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        rig.partition.memory().write(TEXT, &message).unwrap();
        rig.partition.script(
            0,
            [
                write(0x4000_0103, TEXT),
                write(0x4000_0104, length),
                write(0x4000_0105, 3 << 62),
            ],
        );
        rig.boot().await;
        let told = rig.next().await;
        let [GuestEvent::Crashed { report, .. }] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(
            report.contains("the guest says:\n") && report.ends_with("BUG: gone\\u{7}\n<end>"),
            "{report}"
        );
        assert!(report.len() < 8 << 10 && report.lines().count() < 128);
    });
}

#[test]
fn what_cannot_be_served_stops_the_vm_with_a_report() {
    // FNINIT, which no driver uses on a device.
    let fninit = memory_exit(0xfec0_0000, Access::Read, &[0xdb, 0xe3]);
    let unknown = Exit::Unknown {
        message_type: 0x8000_0077,
    };
    run(async {
        for (exit, text) in [
            (unknown, "unknown intercept message 0x80000077"),
            (fninit, "instruction db e3 at rip 0x1000"),
        ] {
            let mut rig = Rig::new(1, OnGuestCrash::Reset).await;
            rig.partition.script(0, [exit]);
            rig.boot().await;
            let told = rig.next().await;
            let [GuestEvent::Stopped { report }] = &told[..] else {
                panic!("{told:?}");
            };
            assert!(report.contains(text), "{report}");
            assert!(report.contains("rip 0000000000100000"), "{report}");
            assert_eq!(rig.vm.state, GuestState::Stopped);
        }
    });
}

#[test]
fn a_partition_that_fails_stops_the_vm() {
    run(async {
        for (call, text) in [
            ("run", "VP 1: it cannot run: broken"),
            ("complete", "VP 1: broken"),
        ] {
            let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
            rig.partition.vp(1).faults.insert(call, "broken");
            rig.partition.vp(1).faults.insert("state", "gone");
            rig.partition.script(1, [input(COM1_SCRATCH)]);
            rig.boot().await;
            let told = rig.next().await;
            let [GuestEvent::Stopped { report }] = &told[..] else {
                panic!("{told:?}");
            };
            assert_eq!(report, &format!("{text}\nregisters cannot be read: gone"));
        }
    });
}

#[test]
fn a_vp_that_cannot_be_reset_stops_the_vm() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.partition.script(0, [out(0xcf9, 6)]);
        rig.boot().await;
        rig.partition.vp(1).faults.insert("reset", "stuck");
        let told = rig.next().await;
        assert_eq!(
            told,
            [GuestEvent::Stopped {
                report: "VP 1 cannot be reset: stuck".to_owned()
            }]
        );
    });
}

#[test]
fn a_vp_that_cannot_be_bound_is_named() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let partition = FakePartition::new(3);
        partition.vp(2).faults.insert("bind", "taken");
        let setup = setup(directory.path(), OnGuestCrash::Halt);
        let error = Vm::new(partition, setup).await.err().unwrap();
        assert_eq!(kernel_log::chain(&error), "VP 2 cannot be used: taken");
    });
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        std::fs::write(rig.directory.path().join("kernel"), b"not a kernel").unwrap();
        let error = rig.vm.boot(&mut Vec::new()).await.unwrap_err();
        let text = kernel_log::chain(&error);
        assert!(
            text.starts_with("the guest cannot be loaded: kernel: "),
            "{text}"
        );
        assert_eq!(rig.partition.vp(0).done, []);
    });
}

#[test]
fn a_vm_that_is_given_up_leaves_nothing_behind() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.partition.vp(1).faults.insert("reset", "stuck");
        rig.vm.boot(&mut Vec::new()).await.unwrap_err();
        let Rig {
            partition,
            vm,
            directory,
        } = rig;
        let machine = Arc::downgrade(&vm.machine);
        vm.end().await;
        assert!(machine.upgrade().is_none());
        assert_eq!(Arc::strong_count(&partition), 1);
        let client = UnixStream::connect(directory.path().join("com1")).await;
        assert!(client.is_err(), "a port of a guest that is not there");

        // So it is with one that did not even come into being, but nobody waits for that.
        partition.vp(1).faults.insert("bind", "taken");
        std::fs::remove_file(directory.path().join("com1")).unwrap();
        let setup = setup(directory.path(), OnGuestCrash::Halt);
        assert!(Vm::new(partition.clone(), setup).await.is_err());
        while Arc::strong_count(&partition) > 1 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn device_memory_is_emulated_and_code_outside_memory_is_none() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        // mov dword [0xfec00000], 1; mov eax, [0xfec00010]
        let select = [0xc7, 0x05, 0, 0, 0xc0, 0xfe, 1, 0, 0, 0];
        let window = [0xa1, 0x10, 0, 0xc0, 0xfe];
        rig.partition.script(
            0,
            [
                memory_exit(0xfec0_0000, Access::Write, &select),
                memory_exit(0xfec0_0010, Access::Read, &window),
                memory_exit(0xd000_0000, Access::Execute, &[]),
                memory_exit(TEXT, Access::Write, &window),
            ],
        );
        rig.boot().await;
        let done = rig.until(0, |done| done.len() == 3).await;
        assert_eq!(
            done[1..],
            [
                Done::Injected(Exception::INVALID_OPCODE),
                Done::Injected(Exception::GENERAL_PROTECTION)
            ]
        );
        // Version 0x20, 24 pins.
        assert_eq!(rig.partition.vp(0).registers.gp[0], 0x0017_0020);
    });
}

#[test]
fn an_interrupt_goes_from_a_device_to_the_local_apics() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        // COM1: FIFO off, OUT2, interrupt when the transmitter is empty.
        rig.partition.script(
            0,
            [out(0x3fc, 8), out(0x3f9, 2), Exit::Eoi { vector: 0x31 }],
        );
        let bus = rig.vm.machine.chipset.bus();
        for (select, value) in [(0x18, 0x31), (0x19, 0)] {
            let width = chipset::bus::Width::Dword;
            let _ = bus.write_memory(0xfec0_0000, width, select);
            let _ = bus.write_memory(0xfec0_0010, width, value);
        }
        rig.boot().await;
        rig.until(0, |done| done.len() == 3).await;
        let interrupts = rig.partition.interrupts.lock().unwrap().clone();
        assert_eq!(interrupts.len(), 1);
        assert_eq!(interrupts[0].vector, 0x31);
    });
}

#[test]
fn a_paused_guest_does_not_run_until_it_is_resumed() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.partition.play(0, || Some(input(COM1_SCRATCH)));
        rig.boot().await;
        rig.until(0, |done| done.len() > 3).await;
        rig.vm.pause().await.unwrap();
        let before = rig.partition.vp(0).done.len();
        let refused = rig.vm.pause().await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the guest is paused and cannot be paused"
        );
        assert_eq!(rig.partition.vp(0).done.len(), before);
        rig.vm.resume().unwrap();
        rig.until(0, |done| done.len() > before).await;
        assert!(rig.vm.resume().is_err());
    });
}

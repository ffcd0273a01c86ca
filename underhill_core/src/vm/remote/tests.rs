use super::EXITS;
use crate::protocol::GuestEvent;
use crate::protocol::OnGuestCrash;
use crate::vm::Vm;
use crate::vm::testing::Done;
use crate::vm::testing::FakePartition;
use crate::vm::testing::input;
use crate::vm::testing::out;
use crate::vm::tests::COM1_SCRATCH;
use crate::vm::tests::PM1_CONTROL;
use crate::vm::tests::POWER_OFF;
use crate::vm::tests::Rig;
use crate::vm::tests::run;
use inspect::Query;
use std::sync::Arc;
use std::sync::mpsc;
use virt::Exit;
use virt::Instruction;
use virt::MsrExit;

/// RDMSR of an MSR that nobody has.
fn msr() -> Exit {
    Exit::Msr(MsrExit {
        msr: 0x10,
        write: None,
        instruction: Instruction::new(0x1000, 2, &[]),
    })
}

/// VPs of which all but the first are in the sidecar.
fn partition(vps: usize) -> Arc<FakePartition> {
    let partition = FakePartition::new(vps);
    for vp in 1..vps {
        partition.vp(vp).remote = true;
    }
    partition
}

async fn rig(vps: usize, leave_on_exit: bool) -> Rig {
    let mut rig = Rig::of(partition(vps), OnGuestCrash::Halt, leave_on_exit).await;
    rig.boot().await;
    rig
}

fn text(vm: &Vm, path: &str) -> String {
    let node = Query::new("").evaluate(vm).now();
    node.get(path).map(ToString::to_string).unwrap_or_default()
}

#[test]
fn vps_in_the_sidecar_are_reset_run_and_held_with_the_others() {
    run(async {
        let mut rig = rig(5, true).await;
        for vp in 1..5 {
            assert_eq!(rig.partition.vp(vp).done, [Done::Reset(false)]);
        }
        for _ in 0..10 {
            rig.vm.pause().await.unwrap();
            rig.vm.resume().unwrap();
        }
        assert_eq!(text(&rig.vm, "vp/4/runs_in"), r#""sidecar""#);
        assert_eq!(text(&rig.vm, "vp/0/runs_in"), r#""linux""#);
        rig.vm.end().await;
        assert!(rig.partition.is_remote_now(4));
    });
}

#[test]
fn what_a_starting_processor_asks_is_served_in_the_sidecar() {
    run(async {
        let mut rig = rig(3, true).await;
        rig.partition.script(2, [msr(), msr()]);
        rig.until(2, |done| done.len() == 3).await;
        rig.vm.pause().await.unwrap();
        assert_eq!(text(&rig.vm, "vp/2/runs_in"), r#""sidecar""#);
        assert_eq!(rig.get("vp/2/exits/msr"), Some(2));
        rig.vm.end().await;
    });
}

#[test]
fn a_vp_that_uses_devices_again_and_again_gets_a_thread() {
    run(async {
        let mut rig = rig(3, true).await;
        let exits = EXITS as usize;
        rig.partition
            .script(2, vec![out(COM1_SCRATCH, 0x5a); exits - 1]);
        rig.until(2, |done| done.len() == exits).await;
        assert!(rig.partition.is_remote_now(2));
        rig.partition.script(2, [out(COM1_SCRATCH, 0x5a)]);
        rig.until(2, |done| done.len() == 1 + exits).await;
        let reason = "exits, the last for port 0x3ff";
        assert_eq!(rig.vm.online(2).await, Ok(Some(reason.to_owned())));
        assert!(!rig.partition.is_remote_now(2) && rig.partition.is_remote_now(1));
        rig.partition.script(2, [input(COM1_SCRATCH)]);
        rig.until(2, |done| done.contains(&Done::Port(0x5a))).await;
        assert_eq!(text(&rig.vm, "vp/2/runs_in"), r#""linux""#);
        assert_eq!(
            text(&rig.vm, "vp/2/left_sidecar/reason"),
            r#""exits, the last for port 0x3ff""#
        );
        rig.vm.pause().await.unwrap();
        rig.vm.resume().unwrap();
        rig.vm.end().await;
    });
}

#[test]
fn devices_are_served_in_the_sidecar_if_nobody_is_to_leave_it() {
    run(async {
        let mut rig = rig(2, false).await;
        let script = (0..100).flat_map(|byte| [out(COM1_SCRATCH, byte), input(COM1_SCRATCH)]);
        rig.partition.script(1, script);
        rig.until(1, |done| done.contains(&Done::Port(99))).await;
        assert!(rig.partition.is_remote_now(1));
        assert_eq!(rig.vm.online(1).await, Ok(Some("request".to_owned())));
        assert!(!rig.partition.is_remote_now(1));
        rig.vm.end().await;
    });
}

#[test]
fn vps_leave_one_after_the_other_and_run_until_it_is_their_turn() {
    run(async {
        let partition = partition(4);
        let (arrive, way) = mpsc::channel();
        partition.vp(1).way = Some(way);
        let mut rig = Rig::of(partition, OnGuestCrash::Halt, true).await;
        rig.boot().await;
        let first = rig.vm.online(1);
        let (second, third) = (rig.vm.online(2), rig.vm.online(3));
        // VP 1 is on its way; the others are to leave, and run.
        for vp in [2, 3, 2, 3] {
            let before = rig.partition.vp(vp).done.len();
            rig.partition.script(vp, [out(COM1_SCRATCH, 1)]);
            rig.until(vp, |done| done.len() > before).await;
            assert!(rig.partition.is_remote_now(vp));
        }
        arrive.send(()).unwrap();
        for online in [first, second, third] {
            assert_eq!(online.await, Ok(Some("request".to_owned())));
        }
        rig.vm.end().await;
    });
}

#[test]
fn a_guest_is_held_paused_or_not_while_a_vp_leaves() {
    run(async {
        for paused in [false, true] {
            let mut rig = rig(2, true).await;
            if paused {
                rig.vm.pause().await.unwrap();
            }
            let (arrive, way) = mpsc::channel();
            rig.partition.vp(1).way = Some(way);
            let online = rig.vm.online(1);
            arrive.send(()).unwrap();
            if !paused {
                rig.vm.pause().await.unwrap();
            }
            assert!(online.await.is_ok());
            rig.vm.resume().unwrap();
            rig.partition.script(1, [out(COM1_SCRATCH, 1)]);
            rig.until(1, |done| done.contains(&Done::Port(0))).await;
            rig.vm.end().await;
        }
    });
}

#[test]
fn a_cpu_that_linux_cannot_boot_stops_the_vm_with_a_report() {
    run(async {
        let mut rig = rig(2, true).await;
        rig.partition.vp(1).faults.insert("leave", "no memory");
        let online = rig.vm.online(1);
        let events = rig.next().await;
        let [GuestEvent::Stopped { report }] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(report.contains("no memory"), "{report}");
        assert_eq!(online.await.as_ref().unwrap_err(), report);
        assert!(text(&rig.vm, "vp/1/left_sidecar/error").contains("no memory"));
        rig.vm.end().await;
    });
}

#[test]
fn a_vp_in_the_sidecar_that_cannot_run_stops_the_vm_with_a_report() {
    run(async {
        let mut rig = rig(2, true).await;
        rig.vm.pause().await.unwrap();
        rig.partition.vp(1).faults.insert("run", "page fault");
        rig.vm.resume().unwrap();
        let events = rig.next().await;
        let [GuestEvent::Stopped { report }] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(
            report.starts_with("VP 1: it cannot run: page fault"),
            "{report}"
        );
        rig.vm.end().await;
    });
}

#[test]
fn a_vp_in_the_sidecar_can_switch_the_guest_off_or_reset_it() {
    run(async {
        let mut rig = rig(2, false).await;
        rig.partition.script(1, [out(0xcf9, 6)]);
        let events = rig.next().await;
        assert!(matches!(events[..], [GuestEvent::Reset { count: 1, .. }]));
        let off = crate::vm::testing::port_exit(PM1_CONTROL, 2, Some(POWER_OFF));
        rig.partition.script(1, [off]);
        let events = rig.next().await;
        assert!(matches!(events[..], [GuestEvent::PoweredOff]));
        rig.vm.end().await;
    });
}

#[test]
fn a_vm_without_a_sidecar_says_so() {
    run(async {
        let mut rig = Rig::new(2, OnGuestCrash::Halt).await;
        rig.boot().await;
        assert_eq!(rig.vm.online(1).await, Ok(None));
        assert_eq!(
            rig.vm.online(2).await,
            Err("VP 2 does not exist: there are 2".to_owned())
        );
        rig.vm.end().await;
    });
}

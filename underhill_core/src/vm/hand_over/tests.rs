use super::*;
use crate::protocol::GuestEvent;
use crate::protocol::OnGuestCrash;
use crate::vm::testing::Done;
use crate::vm::testing::input;
use crate::vm::testing::out;
use crate::vm::testing::port_exit;
use crate::vm::tests::COM1_DATA;
use crate::vm::tests::COM1_SCRATCH;
use crate::vm::tests::PM1_CONTROL;
use crate::vm::tests::POWER_OFF;
use crate::vm::tests::Rig;
use crate::vm::tests::run;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// FIFO control of COM1.
const COM1_FIFO_CONTROL: u16 = 0x3fa;

#[test]
fn a_guest_is_handed_over_with_its_devices() {
    run(async {
        let mut first = Rig::new(2, OnGuestCrash::Halt).await;
        first
            .partition
            .script(0, [out(COM1_SCRATCH, 0x5a), out(0xcf9, 6)]);
        first.boot().await;
        first.next().await;
        first.partition.script(0, [out(COM1_SCRATCH, 0x77)]);
        first.until(0, |done| done.len() == 5).await;

        // A save that nothing comes of changes nothing.
        first.vm.save().await.unwrap();
        first.vm.go_on();
        let saved = first.vm.save().await.unwrap();
        let bytes = prost::Message::encode_to_vec(&saved);
        first.vm.end().await;

        let mut second = Rig::new(2, OnGuestCrash::Halt).await;
        second.partition.script(0, [input(COM1_SCRATCH)]);
        let saved = <SavedVm as prost::Message>::decode(&bytes[..]).unwrap();
        second.vm.restore(saved).await.unwrap();
        let done = second.until(0, |done| !done.is_empty()).await;
        // Not reset: the VPs are where they were.
        assert_eq!(done, [Done::Port(0x77)]);
        assert_eq!(second.get("guest/resets"), Some(1));
        assert_eq!(second.vm.state, GuestState::Running);
    });
}

#[test]
fn a_paused_guest_is_handed_over_paused() {
    run(async {
        let mut first = Rig::new(1, OnGuestCrash::Halt).await;
        first.boot().await;
        first.vm.pause().await.unwrap();
        let saved = first.vm.save().await.unwrap();

        let mut second = Rig::new(1, OnGuestCrash::Halt).await;
        second.vm.restore(saved).await.unwrap();
        assert_eq!(second.vm.state, GuestState::Paused);
        assert_eq!(second.partition.vp(0).runs, 0);
        second.vm.resume().unwrap();
        assert_eq!(second.vm.state, GuestState::Running);
    });
}

#[test]
fn what_a_guest_has_asked_for_is_not_forgotten_when_it_is_handed_over() {
    run(async {
        let mut first = Rig::new(1, OnGuestCrash::Halt).await;
        let power_off = port_exit(PM1_CONTROL, 2, Some(POWER_OFF));
        first.partition.script(0, [power_off]);
        first.boot().await;
        while first.partition.vp(0).done.len() < 2 {
            tokio::task::yield_now().await;
        }
        first.vm.save().await.unwrap();
        first.vm.go_on();
        let saved = first.vm.hand_over().await.unwrap();

        let mut second = Rig::new(1, OnGuestCrash::Halt).await;
        second.vm.restore(saved).await.unwrap();
        assert_eq!(second.next().await, [GuestEvent::PoweredOff]);
    });
}

#[test]
fn a_guest_that_cannot_be_saved_goes_on_with_its_clients() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        rig.partition.play(0, || Some(input(COM1_SCRATCH)));
        rig.boot().await;
        // Nobody else may do that, so the VM does not expect it.
        rig.vm.machine.chipset.pause().unwrap();
        let error = rig.vm.hand_over().await.unwrap_err();
        assert!(error.to_string().contains("cannot pause"), "{error}");

        rig.vm.go_on();
        let before = rig.partition.vp(0).done.len();
        rig.until(0, |done| done.len() > before).await;
        let client = UnixStream::connect(rig.directory.path().join("com1")).await;
        client.unwrap();
        while rig.get("serial/com1/clients") == Some(0) {
            tokio::task::yield_now().await;
        }
        rig.vm.hand_over().await.unwrap();
    });
}

#[test]
fn a_guest_that_cannot_go_on_either_is_reported() {
    run(async {
        let mut rig = Rig::new(1, OnGuestCrash::Halt).await;
        rig.boot().await;
        rig.vm.save().await.unwrap();
        rig.vm.machine.chipset.resume().unwrap();
        rig.vm.go_on();
        let told = rig.next().await;
        let [GuestEvent::Stopped { report }] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(report.contains("cannot resume"), "{report}");
    });
}

#[test]
fn what_is_typed_before_the_guest_goes_on_comes_behind_what_was_saved() {
    run(async {
        let mut first = Rig::new(1, OnGuestCrash::Halt).await;
        // FIFO on.
        first.partition.script(0, [out(COM1_FIFO_CONTROL, 1)]);
        first.boot().await;
        first.until(0, |done| done.len() == 2).await;
        let path = first.directory.path().join("com1");
        let mut client = UnixStream::connect(path).await.unwrap();
        while first.get("serial/com1/clients") == Some(0) {
            tokio::task::yield_now().await;
        }
        client.write_all(b"be").await.unwrap();
        let saved = first.vm.hand_over().await.unwrap();

        let mut second = Rig::unserved(1, OnGuestCrash::Halt).await;
        let path = second.directory.path().join("com1");
        let mut client = UnixStream::connect(path).await.unwrap();
        client.write_all(b"hind").await.unwrap();
        for _ in 0..1000 {
            // Whoever would read it too early has the opportunity.
            tokio::task::yield_now().await;
        }
        second.vm.restore(saved).await.unwrap();
        while second.get("serial/com1/received") != Some(4) {
            tokio::task::yield_now().await;
        }
        second.partition.script(0, (0..6).map(|_| input(COM1_DATA)));
        let done = second.until(0, |done| done.len() == 6).await;
        assert_eq!(done, b"behind".map(|byte| Done::Port(byte.into())));
    });
}

//! Ends of interrupts through the assist page: TLFS "EOI Assist".

use super::*;

/// A page with a guest behind it.
struct Page(Option<u32>);

impl EoiAssist for Page {
    fn load(&mut self) -> Option<u32> {
        self.0
    }

    fn store(&mut self, value: u32) -> bool {
        let there = self.0.is_some();
        if there {
            self.0 = Some(value);
        }
        there
    }
}

impl Page {
    /// The guest's end of interrupt, as the TLFS recommends it: true if it had to exit.
    fn end(&mut self, apic: &mut LocalApic) -> bool {
        let before = self.0.unwrap();
        self.0 = Some(before & !1);
        let ended = apic.sync_eoi(self);
        assert_eq!(ended, before & 1 != 0);
        if before & 1 == 0 {
            let _ = apic.write_msr(0x4000_0070, 0, 0).unwrap();
        }
        before & 1 == 0
    }
}

fn in_service(apic: &LocalApic) -> Vec<u8> {
    apic.isr.iter().collect()
}

#[test]
fn a_lonely_edge_needs_no_exit() {
    let (mut apic, mut page) = (xapic(), Page(Some(0x8000_0000)));
    apic.request(0x41, false);
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x41));
    assert_eq!(page.0, Some(0x8000_0001));
    assert!(!page.end(&mut apic));
    assert_eq!(in_service(&apic), []);
    assert_eq!(page.0, Some(0x8000_0000));
}

#[test]
fn a_level_interrupt_needs_one() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.request(0x41, true);
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x41));
    assert!(page.end(&mut apic));
    assert_eq!(in_service(&apic), []);
}

#[test]
fn so_does_one_behind_which_another_waits() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.request(0x41, false);
    apic.request(0x31, false);
    let _ = apic.plan(OPEN, &mut page);
    assert_eq!(page.0, Some(0));
    assert!(page.end(&mut apic));
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x31));
    assert_eq!(page.0, Some(1));
    // Another one comes later: the bit is taken back.
    apic.request(0x32, false);
    let _ = apic.plan(OPEN, &mut page);
    assert_eq!(page.0, Some(0));
    assert!(page.end(&mut apic));
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x32));
}

#[test]
fn of_nested_interrupts_only_the_highest_is_spared() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.request(0x41, false);
    let _ = apic.plan(OPEN, &mut page);
    apic.request(0x81, false);
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x81));
    assert_eq!(page.0, Some(1));
    assert!(!page.end(&mut apic));
    assert_eq!(in_service(&apic), [0x41]);
    assert!(page.end(&mut apic));
    assert_eq!(in_service(&apic), []);
    // A level interrupt above a spared edge takes the bit away from both.
    apic.request(0x41, false);
    let _ = apic.plan(OPEN, &mut page);
    apic.request(0x81, true);
    let _ = apic.plan(OPEN, &mut page);
    assert_eq!(page.0, Some(0));
}

#[test]
fn a_usual_end_counts_whatever_the_bit_says() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.request(0x41, false);
    let _ = apic.plan(OPEN, &mut page);
    apic.sync_eoi(&mut page);
    let _ = write(&mut apic, ApicRegister::EOI, 0);
    assert_eq!(in_service(&apic), []);
    assert_eq!(apic.plan(OPEN, &mut page), Plan::default());
    // So that it does not speak of the next one.
    assert_eq!(page.0, Some(0));
}

#[test]
fn a_page_that_goes_leaves_the_usual_end() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.request(0x41, false);
    let _ = apic.plan(OPEN, &mut page);
    page.0 = None;
    apic.sync_eoi(&mut page);
    page.0 = Some(0);
    apic.sync_eoi(&mut page);
    assert_eq!(in_service(&apic), [0x41]);
    let _ = write(&mut apic, ApicRegister::EOI, 0);
    assert_eq!(in_service(&apic), []);
}

#[test]
fn what_stands_in_the_page_is_right_again_after_a_restore() {
    for ended in [false, true] {
        let (mut apic, mut page) = (xapic(), Page(Some(0)));
        apic.request(0x41, false);
        let _ = apic.plan(OPEN, &mut page);
        apic.sync_eoi(&mut page);
        if ended {
            let _ = write(&mut apic, ApicRegister::EOI, 0);
        }
        let mut other = fresh();
        other.restore(&apic.save(0), 0).unwrap();
        let _ = other.plan(OPEN, &mut page);
        assert_eq!(page.0, Some(u32::from(!ended)));
        if !ended {
            assert!(!page.end(&mut other));
            assert_eq!(in_service(&other), []);
        }
    }
}

#[test]
fn auto_eoi_does_not_touch_the_bit_of_what_is_in_service() {
    let (mut apic, mut page) = (xapic(), Page(Some(0)));
    apic.set_auto_eoi([0x90].into_iter().collect());
    apic.request(0x90, false);
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x90));
    assert_eq!(page.0, Some(0));
    apic.request(0x41, false);
    let _ = apic.plan(OPEN, &mut page);
    apic.request(0x90, false);
    assert_eq!(apic.plan(OPEN, &mut page).inject, interrupt(0x90));
    assert!(!page.end(&mut apic));
    assert_eq!(in_service(&apic), []);
}

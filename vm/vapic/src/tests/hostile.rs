//! Guests that write anything anywhere, at any time, and states from anywhere.

use super::*;
use core::sync::atomic::AtomicU64;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Access {
    ReadMsr(u32),
    WriteMsr(u32, u64),
    ReadMmio(u64, usize),
    WriteMmio(u64, usize, u32),
    Plan(bool, bool),
    Post(u8, bool),
    Request(u8, u8),
    Cr8(u8),
    Time(u64),
    Assist(u32),
}

/// All that the APIC owns, and what is beside it.
fn msrs() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => 0x800..0x900u32,
        1 => Just(0x1b),
        1 => Just(0x6e0),
        1 => 0x4000_0070..0x4000_0074u32,
        1 => any::<u32>(),
    ]
}

fn values() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x10_0000u64,
        any::<u32>().prop_map(u64::from),
        (0..64u32).prop_map(|bit| 1 << bit),
        Just(0xfee0_0800),
        Just(0xfee0_0c00),
    ]
}

fn accesses() -> impl Strategy<Value = std::vec::Vec<Access>> {
    let size = prop_oneof![Just(1usize), Just(2), Just(4), Just(8), any::<usize>()];
    let offset = prop_oneof![4 => (0..0x40u64).prop_map(|n| n << 4), 1 => any::<u64>()];
    let access = prop_oneof![
        2 => msrs().prop_map(Access::ReadMsr),
        6 => (msrs(), values()).prop_map(|(msr, value)| Access::WriteMsr(msr, value)),
        2 => (offset.clone(), size.clone()).prop_map(|(o, s)| Access::ReadMmio(o, s)),
        6 => (offset, size, any::<u32>()).prop_map(|(o, s, v)| Access::WriteMmio(o, s, v)),
        3 => any::<(bool, bool)>().prop_map(|(i, n)| Access::Plan(i, n)),
        2 => any::<(u8, bool)>().prop_map(|(v, l)| Access::Post(v, l)),
        2 => (0..6u8, any::<u8>()).prop_map(|(kind, v)| Access::Request(kind, v)),
        1 => any::<u8>().prop_map(Access::Cr8),
        2 => any::<u64>().prop_map(Access::Time),
        1 => any::<u32>().prop_map(Access::Assist),
    ];
    proptest::collection::vec(access, 0..300)
}

struct Page(u32);

impl EoiAssist for Page {
    fn load(&mut self) -> Option<u32> {
        (self.0 & 0x100 == 0).then_some(self.0)
    }

    fn store(&mut self, value: u32) -> bool {
        self.0 = value;
        true
    }
}

/// The only VP; it is never away when it sends.
impl Apics for Shared {
    type Word = AtomicU64;

    fn count(&self) -> u32 {
        1
    }

    fn shared(&self, _: u32) -> &Shared {
        self
    }

    fn kick(&self, _: u32) {}
}

fn request(shared: &Shared, kind: u8, vector: u8) -> bool {
    match kind {
        0 => shared.post_nmi(),
        1 => shared.post_init(),
        2 => shared.post_startup(vector),
        3 => shared.post_extint(vector),
        _ => shared.post_lint(kind == 5, vector),
    }
}

fn check(apic: &mut LocalApic, now: u64) -> Result<(), TestCaseError> {
    // What a guest can reach can be saved and restored. A timer's rest may be cut by time
    // that goes back, which no owner lets happen.
    let saved = apic.save(now);
    let mut other = LocalApic::new(*apic.config());
    prop_assert!(other.restore(&saved, now).is_ok());
    prop_assert_eq!(other.save(now), saved);
    // No exception is ever requested or in service.
    prop_assert_eq!((apic.irr.words()[0] | apic.isr.words()[0]) & 0xffff, 0);
    prop_assert!(apic.ppr() >= apic.tpr & 0xf0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_access_panics_or_breaks_the_state(accesses in accesses(), bsp in any::<bool>()) {
        let mut apic = LocalApic::new(config(u32::from(!bsp)));
        let shared: Shared = Shared::new(apic.address());
        let mut page = Page(0);
        let mut now = 0u64;
        for access in accesses {
            match access {
                Access::ReadMsr(msr) => {
 let _ = apic.read_msr(msr, now);
}
                Access::WriteMsr(msr, value) => {
                    let before = apic.clone();
                    match apic.write_msr(msr, value, now) {
                        Ok(Effect::Send(message)) => {
                            deliver(&shared, Some(0), &message);
                        }
                        Ok(_) => prop_assert!(owns_msr(msr)),
                        Err(_) => prop_assert_eq!(&before, &apic),
                    }
                }
                Access::ReadMmio(offset, size) => {
 let _ = apic.read_mmio(offset, size, now);
}
                Access::WriteMmio(offset, size, value) => {
                    let _ = apic.write_mmio(offset, size, value, now);
                }
                Access::Plan(interrupts, nmis) => {
                    apic.poll_timer(now);
                    let _ = apic.collect(&shared);
                    let plan = apic.plan(CpuState { interrupts, nmis, occupied: false }, &mut page);
                    if let Some(Injection::Interrupt(_)) = plan.inject {
                        prop_assert!(interrupts);
                    }
                }
                Access::Post(vector, level) => {
 let _ = shared.post(vector, level);
}
                Access::Request(kind, vector) => {
 let _ = request(&shared, kind, vector);
}
                Access::Cr8(cr8) => apic.sync_cr8(cr8),
                Access::Time(step) => now = now.saturating_add(step >> (step % 64)),
                Access::Assist(value) => page.0 = value,
            }
            shared.publish(apic.address());
            let _ = apic.next_deadline(now);
        }
        check(&mut apic, now)?;
    }

    #[test]
    fn no_saved_state_panics(
        (apic_base, lvt, svr) in any::<(u64, [u32; 6], u32)>(),
        (irr, isr, tmr) in any::<([u64; 4], [u64; 4], [u64; 4])>(),
        (divide, initial, remaining, deadline, tsc_offset) in any::<(u8, u32, Option<u64>, u64, u64)>(),
        now in any::<u64>(),
    ) {
        let mut saved = xapic().save(0);
        if apic_base & 1 != 0 {
            saved.apic_base = apic_base;
        }
        saved.svr = svr & 0x3ff;
        saved.lvt = lvt.map(|entry| entry & 0x1_00ff);
        saved.lvt[0] = lvt[0] & 0x7_00ff;
        (saved.irr, saved.isr, saved.tmr) = (irr, isr, tmr);
        for words in [&mut saved.irr, &mut saved.isr, &mut saved.tmr] {
            words[0] &= !0xffff;
        }
        saved.timer = SavedTimer { divide: divide & 0xb, initial, remaining, deadline, tsc_offset };
        let mut apic = fresh();
        if apic.restore(&saved, now).is_ok() {
            apic.poll_timer(now);
            let _ = apic.read_mmio(0x390, 4, now);
            let _ = apic.next_deadline(now);
            let later = now.saturating_add(1 << 40);
            apic.poll_timer(later);
            let _ = apic.plan(OPEN, &mut ());
            let _ = apic.save(later);
        }
    }
}

//! Images without a paravisor: VTL 0 is the highest.

use super::*;
use crate::error::Reason;
use igvm::hv_defs::Vtl;
use igvm::{IgvmDirectiveHeader, IgvmPlatformHeader};

/// Two pages in the memory that VTL2 has otherwise, and the entry in one of them.
fn alone() -> TestImage {
    let mut image = image();
    image.initializations.clear();
    let IgvmPlatformHeader::SupportedPlatform(platform) = &mut image.platforms[0];
    platform.highest_vtl = 0;
    image.directives = vec![
        page(LOW_PAGE, b"low".to_vec()),
        page(BASE + 0x1000, vec![7; 4096]),
        IgvmDirectiveHeader::X64VbsVpContext {
            vtl: Vtl::Vtl0,
            registers: registers(),
            compatibility_mask: VSM,
        },
    ];
    image
}

#[track_caller]
fn refusal(image: &TestImage, options: &Options<'_>) -> Reason {
    let file = image.bytes();
    let plan = plan(&file, &small_machine(), options);
    plan.expect_err("the image is wrong").reason
}

#[test]
fn guest_without_paravisor_is_placed_as_built() {
    let file = alone().bytes();
    let plan = plan(&file, &small_machine(), &Options::default()).unwrap();

    assert_eq!((plan.vtl(), plan.relocation_offset()), (0, 0));
    assert!(plan.vtl2_memory().is_empty());
    assert_eq!(plan.context().state().rip, ENTRY);
    let (_, memory, _) = load(&file, &small_machine());
    assert_eq!(memory.read(BASE + 0x1000, 4096), vec![7; 4096]);
    assert_eq!(memory.read(LOW_PAGE, 3), b"low");
}

#[test]
fn paravisor_starts_in_vtl2() {
    let file = image().bytes();
    let plan = plan(&file, &small_machine(), &Options::default()).unwrap();
    assert_eq!(plan.vtl(), 2);
}

#[test]
fn what_needs_vtl2_is_refused_without_it() {
    let none = Options::default();
    let mut wrong = alone();
    wrong.directives.push(required(BASE, SIZE));
    assert_eq!(refusal(&wrong, &none), Reason::Vtl2Memory);

    let options = Options {
        vtl2_memory: Some(64 * MIB),
        ..Options::default()
    };
    assert_eq!(refusal(&alone(), &options), Reason::Field("vtl2_memory="));
}

#[test]
fn entry_and_pages_are_in_ram_of_the_guest() {
    let none = Options::default();
    let entry = |rip| {
        let mut image = alone();
        let IgvmDirectiveHeader::X64VbsVpContext { registers, .. } = &mut image.directives[2]
        else {
            panic!("the context is the last");
        };
        registers.push(igvm::registers::X86Register::Rip(rip));
        image
    };
    let reason = refusal(&entry(0xfee0_0000), &none);
    assert!(matches!(reason, Reason::Register(_)), "{reason:?}");

    let mut wrong = alone();
    let host = small_machine().own[0].start();
    wrong.directives.push(page(host, vec![1]));
    assert_eq!(refusal(&wrong, &none), Reason::HostMemory);
}

//! Exceptions of the guest, and what is not emulated.

use super::*;
use crate::testing::Translation;
use crate::{EmulateError, Exception, Gpr, Reason, SegmentName};

const RBX: usize = Gpr::Rbx as usize;
/// mov eax, [rbx]
const LOAD: &[u8] = &[0x8b, 0x03];
/// mov [rbx], eax
const STORE: &[u8] = &[0x89, 0x03];

fn fault(vector: u8) -> Outcome {
    Outcome::Exception(Exception {
        vector,
        error_code: Some(0),
        address: None,
    })
}

#[test]
fn addresses_that_are_not_canonical_fault() {
    let mut m = machine();
    m.gprs[RBX] = 0x8000_0000_0000;
    assert_eq!(run(&mut m, LOAD), fault(Exception::GENERAL_PROTECTION));
    m.gprs[RBX] = 0x7fff_ffff_fffe;
    assert_eq!(run(&mut m, LOAD), fault(Exception::GENERAL_PROTECTION));
    m.gprs[Gpr::Rbp as usize] = 0x8000_0000_0000;
    // mov eax, [rbp]
    assert_eq!(run(&mut m, &[0x8b, 0x45, 0x00]), fault(Exception::STACK));
    assert_eq!(m.rip, 0);
}

#[test]
fn segments_permit_what_their_type_says() {
    const DS: usize = SegmentName::Ds as usize;
    let (read_only, code, execute_only, absent) = (0xc091, 0xc09b, 0xc099, 0xc013);
    for (attributes, load, store) in [
        (0xc093, true, true),
        (read_only, true, false),
        (code, true, false),
        (execute_only, false, false),
        (absent, false, false),
    ] {
        let mut m = machine().protected_mode();
        m.segments[DS].attributes = attributes;
        m.gprs[RBX] = DEVICE;
        let gp = fault(Exception::GENERAL_PROTECTION);
        let expected = |permitted| if permitted { Outcome::Done } else { gp };
        assert_eq!(run(&mut m, LOAD), expected(load), "{attributes:#x}");
        assert_eq!(run(&mut m, STORE), expected(store), "{attributes:#x}");
    }
}

#[test]
fn segments_end_at_their_limit() {
    let mut m = machine().protected_mode();
    let data = &mut m.segments[SegmentName::Ds as usize];
    (data.base, data.limit) = (DEVICE, 0x10);
    m.gprs[RBX] = 0xd;
    assert_eq!(run(&mut m, LOAD), Outcome::Done);
    m.gprs[RBX] = 0xe;
    assert_eq!(run(&mut m, LOAD), fault(Exception::GENERAL_PROTECTION));
    // Expand down: what is above.
    m.segments[SegmentName::Ds as usize].attributes = 0xc097;
    assert_eq!(run(&mut m, LOAD), fault(Exception::GENERAL_PROTECTION));
    m.gprs[RBX] = 0x11;
    assert_eq!(run(&mut m, LOAD), Outcome::Done);
}

#[test]
fn page_fault_tells_the_page_that_is_missing() {
    let mut m = machine();
    m.translation = Translation::Window(0x10_0000);
    m.gprs[RBX] = 0x10_0000 + DEVICE + 0xffe;
    let expected = Exception {
        vector: Exception::PAGE_FAULT,
        error_code: Some(0),
        address: Some(0x10_0000 + DEVICE + 0x1000),
    };
    assert_eq!(run(&mut m, STORE), Outcome::Exception(expected));
    assert_eq!(m.accesses, [], "nothing is done halfway");
}

#[test]
fn vector_moves_want_alignment_where_they_say_so() {
    let mut m = machine();
    m.gprs[RBX] = DEVICE + 8;
    // movdqa [rbx], xmm0; movdqu [rbx], xmm0
    let aligned = run(&mut m, &[0x66, 0x0f, 0x7f, 0x03]);
    assert_eq!(aligned, fault(Exception::GENERAL_PROTECTION));
    assert_eq!(run(&mut m, &[0xf3, 0x0f, 0x7f, 0x03]), Outcome::Done);
}

#[test]
fn stack_pointer_stays_when_a_pop_faults() {
    let mut m = machine();
    m.gprs[Gpr::Rsp as usize] = 0x100;
    m.gprs[RBX] = 1 << 63;
    assert!(matches!(run(&mut m, &[0x8f, 0x03]), Outcome::Exception(_)));
    assert_eq!(m.gprs[Gpr::Rsp as usize], 0x100);
}

#[test]
fn refusal_says_what_was_there() {
    let mut m = machine();
    m.rip = 0x1000;
    // fld qword [rbx]; what follows is not of it.
    let error = emulate(&mut m, &[0xdd, 0x03, 0x90, 0x90]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot emulate the guest's 64-bit instruction FLD at RIP 0x1000 (bytes dd 03): \
         this form of the instruction is not emulated"
    );
    let EmulateError::Unsupported(report) = error;
    assert_eq!(report.reason, Reason::Instruction);
    assert_eq!(m.rip, 0x1000);
}

#[test]
fn bytes_that_are_none_are_refused() {
    let mut m = machine();
    let error = emulate(&mut m, &[0x0f, 0x04, 0xff, 0xff]).unwrap_err();
    let EmulateError::Unsupported(report) = error;
    assert_eq!(
        (report.reason, report.mnemonic),
        (Reason::Undecodable, None)
    );
    // Prefixes without end.
    let error = emulate(&mut m, &[0x66; 20]).unwrap_err();
    let EmulateError::Unsupported(report) = error;
    assert_eq!(report.reason, Reason::Undecodable);
}

#[test]
fn code_in_a_device_is_refused() {
    let mut m = machine();
    m.rip = DEVICE;
    let EmulateError::Unsupported(report) = emulate(&mut m, &[]).unwrap_err();
    assert_eq!(report.reason, Reason::CodeOutsideMemory(DEVICE));
    assert_eq!(m.accesses, []);
}

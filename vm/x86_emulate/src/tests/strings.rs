//! String instructions where the processor of the test cannot help: ports and limits.

use super::*;
use crate::testing::DeviceAccess::{PortRead, PortWrite};
use crate::{Exception, Gpr, REPEAT_LIMIT, SegmentName, Width};
use x86_defs::{RFLAGS_DF, RFLAGS_TF};

const RCX: usize = Gpr::Rcx as usize;
const RSI: usize = Gpr::Rsi as usize;
const RDI: usize = Gpr::Rdi as usize;

#[test]
fn rep_outsb_writes_the_string_to_the_port() {
    let mut m = machine();
    m.world[0x100..0x103].copy_from_slice(b"abc");
    (m.gprs[RCX], m.gprs[RSI]) = (3, 0x100);
    m.gprs[Gpr::Rdx as usize] = 0x1_03f8;
    assert_eq!(run(&mut m, &[0xf3, 0x6e]), Outcome::Done);
    let expected = b"abc".map(|byte| PortWrite(0x3f8, Width::Byte, byte.into()));
    assert_eq!(m.accesses, expected);
    assert_eq!((m.gprs[RCX], m.gprs[RSI], m.rip), (0, 0x103, 2));
}

#[test]
fn insw_stores_what_the_port_gives_downwards() {
    let mut m = machine().protected_mode();
    m.rflags |= RFLAGS_DF;
    (m.gprs[RCX], m.gprs[RDI]) = (2, 0x102);
    run(&mut m, &[0x66, 0xf3, 0x6d]);
    assert_eq!(m.accesses, [PortRead(0, Width::Word); 2]);
    assert_eq!(m.world[0x100..0x104], [0x02, 0x43, 0x01, 0x43]);
    assert_eq!(m.gprs[RDI], 0xfe);
}

#[test]
fn repeat_without_count_does_nothing() {
    let mut m = machine();
    m.gprs[RDI] = u64::MAX / 2;
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Outcome::Done);
    assert_eq!(m.rip, 2);
    assert_eq!(m.gprs[RDI], u64::MAX / 2);
}

#[test]
fn long_repeat_stops_and_continues() {
    let mut m = machine();
    let count = u64::from(REPEAT_LIMIT) + 10;
    (m.gprs[RCX], m.gprs[RDI], m.gprs[Gpr::Rax as usize]) = (count, 0x200, 0x5a);
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Outcome::Interrupted);
    assert_eq!((m.gprs[RCX], m.rip), (10, 0));
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Outcome::Done);
    assert_eq!((m.gprs[RCX], m.rip), (0, 2));
    let filled = m.world.iter().filter(|byte| **byte == 0x5a).count();
    assert_eq!(filled as u64, count);
}

#[test]
fn trap_flag_stops_a_repeat_after_each_element() {
    let mut m = machine();
    m.rflags |= RFLAGS_TF;
    (m.gprs[RCX], m.gprs[RDI]) = (2, 0x100);
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Outcome::SingleStep);
    assert_eq!((m.gprs[RCX], m.rip), (1, 0));
    assert_eq!(run(&mut m, &[0xf3, 0xaa]), Outcome::SingleStep);
    assert_eq!((m.gprs[RCX], m.rip), (0, 2));
}

#[test]
fn fault_in_the_middle_keeps_what_is_done() {
    let mut m = machine().real_mode();
    (m.gprs[RCX], m.gprs[RSI], m.gprs[RDI]) = (4, 0x100, 0x10);
    m.segments[SegmentName::Es as usize].limit = 0x11;
    let fault = Exception {
        vector: Exception::GENERAL_PROTECTION,
        error_code: None,
        address: None,
    };
    assert_eq!(run(&mut m, &[0xf3, 0xa4]), Outcome::Exception(fault));
    assert_eq!((m.gprs[RCX], m.gprs[RSI], m.gprs[RDI]), (2, 0x102, 0x12));
    assert_eq!(m.rip, 0);
}

#[test]
fn port_is_not_read_when_memory_is_missing() {
    let mut m = machine().real_mode();
    m.segments[SegmentName::Es as usize].limit = 0;
    m.gprs[RDI] = 0x10;
    assert!(matches!(run(&mut m, &[0x6c]), Outcome::Exception(_)));
    assert_eq!(m.accesses, []);
}

#[test]
fn sixteen_bit_registers_keep_their_upper_parts() {
    let mut m = machine().real_mode();
    m.gprs[RCX] = 0xaaaa_0001;
    m.gprs[RSI] = 0xbbbb_ffff;
    m.gprs[RDI] = 0xcccc_0010;
    m.segments[SegmentName::Ds as usize].limit = 0xf_ffff;
    m.segments[SegmentName::Ds as usize].base = 0u64.wrapping_sub(0xff00) & 0xffff_ffff;
    run(&mut m, &[0xf3, 0xa4]);
    assert_eq!(
        (m.gprs[RCX], m.gprs[RSI], m.gprs[RDI]),
        (0xaaaa_0000, 0xbbbb_0000, 0xcccc_0011)
    );
}

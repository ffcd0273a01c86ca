//! What cannot be compared with the processor of the test: other modes, devices, the stack.

use super::*;
use crate::testing::DeviceAccess::{PortRead, PortWrite, Read, Write};
use crate::{Gpr, SegmentName, Width};
use x86_defs::{RFLAGS_AC, RFLAGS_RF, RFLAGS_TF};

fn put(machine: &mut Machine, at: u64, bytes: &[u8]) {
    let at = at as usize;
    machine.world[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn aligned_access_reaches_the_device_whole() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    m.gprs[Gpr::Rax as usize] = 0x1122_3344_5566_7788;
    assert_eq!(run(&mut m, &[0x48, 0x89, 0x03]), Outcome::Done);
    assert_eq!(run(&mut m, &[0x8b, 0x0b]), Outcome::Done);
    assert_eq!(run(&mut m, &[0x8a, 0x6b, 0x01]), Outcome::Done);
    assert_eq!(
        m.accesses,
        [
            Write(DEVICE, Width::Qword, 0x1122_3344_5566_7788),
            Read(DEVICE, Width::Dword),
            Read(DEVICE + 1, Width::Byte),
        ]
    );
    assert_eq!(m.gprs[Gpr::Rcx as usize], 0x5566_7788, "upper half cleared");
    assert_eq!(m.gprs[Gpr::Rbp as usize], 0);
    assert_eq!(m.rip, 3 + 2 + 3);
}

#[test]
fn unaligned_access_reaches_the_device_in_aligned_pieces() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE + 3;
    m.gprs[Gpr::Rax as usize] = 0x8877_6655_4433_2211;
    run(&mut m, &[0x48, 0x89, 0x03]);
    assert_eq!(
        m.accesses,
        [
            Write(DEVICE + 3, Width::Byte, 0x11),
            Write(DEVICE + 4, Width::Dword, 0x5544_3322),
            Write(DEVICE + 8, Width::Word, 0x7766),
            Write(DEVICE + 10, Width::Byte, 0x88),
        ]
    );
}

#[test]
fn access_across_the_end_of_memory_is_split() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE - 2;
    m.gprs[Gpr::Rax as usize] = 0x4433_2211;
    run(&mut m, &[0x89, 0x03]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Word, 0x4433)]);
    assert_eq!(m.world[DEVICE as usize - 2..][..2], [0x11, 0x22]);
}

#[test]
fn read_modify_write_reads_the_device_once() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    put(&mut m, DEVICE, &[0x0f]);
    run(&mut m, &[0xf0, 0x80, 0x0b, 0x80]);
    assert_eq!(
        m.accesses,
        [Read(DEVICE, Width::Byte), Write(DEVICE, Width::Byte, 0x8f)]
    );
}

#[test]
fn comparisons_do_not_write() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    run(&mut m, &[0xf7, 0x03, 1, 0, 0, 0]);
    run(&mut m, &[0x39, 0x03]);
    run(&mut m, &[0x0f, 0xa3, 0x03]);
    assert_eq!(m.accesses, [Read(DEVICE, Width::Dword); 3]);
}

#[test]
fn offset_without_register_is_an_address() {
    let mut m = machine();
    m.gprs[Gpr::Rax as usize] = 0x5a;
    let mut code = vec![0xa2];
    code.extend(DEVICE.to_le_bytes());
    run(&mut m, &code);
    let mut m32 = machine().protected_mode();
    m32.gprs[Gpr::Rax as usize] = 0x5a;
    run(&mut m32, &[0xa2, 0, 0x20, 0, 0]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Byte, 0x5a)]);
    assert_eq!(m32.accesses, m.accesses);
}

#[test]
fn rip_relative_address_counts_from_the_next_instruction() {
    let mut m = machine();
    m.rip = 0x1000;
    // mov dword [rip + 0xff6], 5: ten bytes long.
    run(&mut m, &[0xc7, 0x05, 0xf6, 0x0f, 0, 0, 5, 0, 0, 0]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Dword, 5)]);
}

#[test]
fn sixteen_bit_addresses_wrap() {
    let mut m = machine().real_mode();
    m.segments[SegmentName::Ds as usize].base = DEVICE;
    m.gprs[Gpr::Rbx as usize] = 0xffff_fff0;
    m.gprs[Gpr::Rsi as usize] = 0x30;
    // mov al, [bx + si]
    run(&mut m, &[0x8a, 0x00]);
    assert_eq!(m.accesses, [Read(DEVICE + 0x20, Width::Byte)]);
}

#[test]
fn segment_overrides_choose_the_base() {
    let mut m = machine();
    m.segments[SegmentName::Gs as usize].base = DEVICE;
    m.segments[SegmentName::Es as usize].base = 0x100;
    m.gprs[Gpr::Rbx as usize] = 0x10;
    run(&mut m, &[0x65, 0x8a, 0x03]);
    let mut m32 = machine().protected_mode();
    m32.segments[SegmentName::Es as usize].base = DEVICE;
    m32.gprs[Gpr::Rbx as usize] = 0x10;
    run(&mut m32, &[0x26, 0x8a, 0x03]);
    assert_eq!(m.accesses, [Read(DEVICE + 0x10, Width::Byte)]);
    assert_eq!(m32.accesses, m.accesses);
    // In 64-bit mode, ES has no base.
    run(&mut m, &[0x26, 0x8a, 0x03]);
    assert_eq!(m.accesses.len(), 1);
}

#[test]
fn stack_moves_with_push_and_pop() {
    let mut m = machine();
    m.gprs[Gpr::Rsp as usize] = 0x1000;
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    put(&mut m, DEVICE, &[1, 2, 3, 4, 5, 6, 7, 8]);
    run(&mut m, &[0xff, 0x33]);
    assert_eq!(m.gprs[Gpr::Rsp as usize], 0xff8);
    assert_eq!(m.world[0xff8..0x1000], [1, 2, 3, 4, 5, 6, 7, 8]);
    // pop qword [rbx + 8]
    run(&mut m, &[0x8f, 0x43, 0x08]);
    assert_eq!(m.gprs[Gpr::Rsp as usize], 0x1000);
    assert_eq!(
        m.accesses[1..],
        [Write(DEVICE + 8, Width::Qword, 0x0807_0605_0403_0201)]
    );
}

#[test]
fn pop_uses_the_stack_pointer_of_after() {
    let mut m = machine();
    m.gprs[Gpr::Rsp as usize] = DEVICE - 8;
    // pop qword [rsp]
    run(&mut m, &[0x8f, 0x04, 0x24]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Qword, 0)]);
}

#[test]
fn ports_are_read_and_written() {
    let mut m = machine();
    m.gprs[Gpr::Rax as usize] = 0xffff_ffff_1234_5678;
    m.gprs[Gpr::Rdx as usize] = 0x3f8;
    run(&mut m, &[0xee]);
    run(&mut m, &[0x66, 0xe7, 0x71]);
    run(&mut m, &[0xed]);
    assert_eq!(
        m.accesses,
        [
            PortWrite(0x3f8, Width::Byte, 0x78),
            PortWrite(0x71, Width::Word, 0x5678),
            PortRead(0x3f8, Width::Dword),
        ]
    );
    assert_eq!(m.gprs[Gpr::Rax as usize], 0x8765_4303);
}

#[test]
fn selector_is_stored_as_a_word() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    // mov [rbx], cs
    run(&mut m, &[0x8c, 0x0b]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Word, 0x10)]);
}

#[test]
fn trap_flag_is_reported_and_resume_flag_is_cleared() {
    let mut m = machine();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    m.rflags |= RFLAGS_TF | RFLAGS_RF | RFLAGS_AC;
    assert_eq!(run(&mut m, &[0x8b, 0x03]), Outcome::SingleStep);
    assert_eq!(m.rflags, 2 | RFLAGS_TF | RFLAGS_AC);
}

#[test]
fn code_size_decides_how_bytes_are_read() {
    // 16 bits: mov [bx], ax; 32 bits: mov [edi], eax. The same bytes with 66 67: the other.
    let mut real = machine().real_mode();
    real.segments[SegmentName::Ds as usize].base = DEVICE;
    run(&mut real, &[0x89, 0x07]);
    run(&mut real, &[0x66, 0x67, 0x89, 0x07]);
    let sizes: Vec<_> = real.accesses.iter().collect();
    assert_eq!(
        sizes,
        [
            &Write(DEVICE, Width::Word, 0),
            &Write(DEVICE, Width::Dword, 0)
        ]
    );
}

#[test]
fn instruction_pointer_wraps_with_the_code_size() {
    let mut m = machine().protected_mode();
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    m.rip = 0xffff_ffff;
    run(&mut m, &[0x8a, 0x03]);
    assert_eq!(m.rip, 1);
}

#[test]
fn short_bytes_are_completed_from_memory() {
    let mut m = machine();
    m.rip = 0xffe;
    // mov dword [rbx], 0x44332211 across the page.
    put(&mut m, 0xffe, &[0xc7, 0x03, 0x11, 0x22, 0x33, 0x44]);
    m.gprs[Gpr::Rbx as usize] = DEVICE;
    run(&mut m, &[0xc7]);
    m.rip = 0xffe;
    run(&mut m, &[]);
    assert_eq!(m.accesses, [Write(DEVICE, Width::Dword, 0x4433_2211); 2]);
    assert_eq!(m.rip, 0x1004);
}

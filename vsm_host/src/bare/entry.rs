//! First instructions: the PVH entry of the first CPU and the start page of the others.
//!
//! QEMU's `-kernel` enters at `pvh_entry` in 32-bit protected mode without paging, EBX
//! pointing to `hvm_start_info`. A CPU that gets a start-up IPI begins in real mode in
//! the copy of `ap_start` that `smp` placed below 1 MiB. Both end in 64-bit Rust with
//! the first 512 GiB identity-mapped by 1 GiB pages and a stack of their own.

#![expect(unsafe_code, reason = "symbols defined in assembly")]

use core::arch::global_asm;

/// Bytes of stack of the first CPU.
pub(crate) const BOOT_STACK_SIZE: usize = 64 << 10;
/// Bytes of stack of every other CPU. They have no guard pages: `smp::stack_use` tells in
/// every host log how much of it is used.
pub(crate) const AP_STACK_SIZE: usize = 64 << 10;

/// Addresses below this are mapped.
pub(crate) const MAPPED_LIMIT: u64 = 512 << 30;

unsafe extern "C" {
    /// Start page of the other CPUs: code and its end.
    static ap_start: u8;
    static ap_start_end: u8;
    /// Lowest address of the stacks of the other CPUs, and how many there are.
    static mut ap_stacks: u64;
    static mut ap_stack_count: u32;
    static __host_end: u8;
}

/// The code that is to be copied to the start page.
pub(crate) fn ap_start_code() -> &'static [u8] {
    let start = &raw const ap_start;
    let end = &raw const ap_start_end;
    // SAFETY: both labels are in one section of this image, `end` behind `start`, and
    // what is between them is code that nobody writes.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Tells the start code where the stacks are. To be called before any start-up IPI.
pub(crate) fn set_ap_stacks(base: u64, count: u32) {
    // SAFETY: the two words are read only by CPUs that have received a start-up IPI,
    // which the caller sends afterwards; nobody else runs yet.
    unsafe {
        ap_stacks = base;
        ap_stack_count = count;
    }
}

/// First address behind the image; the heap begins there.
pub(crate) fn host_image_end() -> u64 {
    (&raw const __host_end) as u64
}

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4                     // name size
    .long 8                     // descriptor size
    .long 18                    // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .data.boot_tables, "aw", @progbits
    .balign 4096
boot_pml4:
    .quad boot_pdpt + 0x3       // present, writable
    .fill 511, 8, 0
boot_pdpt:
    .set gigabyte, 0
    .rept 512
    .quad (gigabyte << 30) + 0x83   // present, writable, 1 GiB leaf
    .set gigabyte, gigabyte + 1
    .endr
    .balign 16
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08: 64-bit code
    .quad 0x00cf93000000ffff    // 0x10: data
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .quad boot_gdt
    .balign 8
    .globl ap_stacks, ap_stack_count
ap_stacks:
    .quad 0
ap_stack_count:
    .long 0
ap_arrivals:
    .long 0

    .section .bss.boot_stack, "aw", @nobits
    .balign 4096
boot_stack:
    .skip {boot_stack_size}
boot_stack_top:

    .section .text.entry, "ax", @progbits
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    movl    %ebx, %edi          // hvm_start_info, first argument of bsp_main
    movl    $0x20, %eax         // PAE
    movl    %eax, %cr4
    movl    $boot_pml4, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx   // EFER: LME
    rdmsr
    orl     $0x100, %eax
    wrmsr
    movl    $0x80010031, %eax   // PG, WP, NE, ET, PE
    movl    %eax, %cr0
    lgdtl   boot_gdt_pointer
    ljmpl   $8, $1f
    .code64
1:  movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    $boot_stack_top, %esp
    movl    %edi, %edi          // the upper half is not defined after a mode switch
    xorl    %ebp, %ebp
    call    bsp_main
    ud2

    // Copied to a page below 1 MiB; addresses within it are relative to CS.
    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    cld
    movw    %cs, %ax
    movw    %ax, %ds
    movl    $0x20, %eax
    movl    %eax, %cr4
    movl    $boot_pml4, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax
    wrmsr
    lgdtl   (ap_gdt_pointer - ap_start)
    movl    $0x80010031, %eax
    movl    %eax, %cr0          // protection, paging and long mode at once
    ljmpl   $8, $ap_long
    .balign 8
ap_gdt_pointer:
    .word 23
    .long boot_gdt
ap_start_end:

    .code64
ap_long:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    $1, %edi
    lock xaddl %edi, ap_arrivals(%rip)   // edi = how many came before
    cmpl    ap_stack_count(%rip), %edi
    jae     2f                  // more CPUs than the firmware named: not ours
    movl    %edi, %eax
    incl    %eax
    imulq   ${ap_stack_size}, %rax, %rax
    addq    ap_stacks(%rip), %rax
    movq    %rax, %rsp
    xorl    %ebp, %ebp
    call    ap_main
2:  cli
    hlt
    jmp     2b
"#,
    boot_stack_size = const BOOT_STACK_SIZE,
    ap_stack_size = const AP_STACK_SIZE,
    options(att_syntax)
);

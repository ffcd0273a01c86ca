//! A CPU that runs a VP: SVM on, then VMRUN and what follows for ever.

#![expect(unsafe_code, reason = "SVM instructions")]

use super::console::log;
use super::entry::AP_STACK_SIZE;
use super::interrupts::NmiSleeper;
use super::memory::Physical;
use super::{clock, console, exit, lapic, smp, timer};
use alloc::boxed::Box;
use core::arch::x86_64::__cpuid_count;
use core::arch::{asm, global_asm};
use core::fmt;
use igvm_loader::Gprs;
use spin::Once;
use vsm_host::cpuid::Registers;
use vsm_host::partition::guest::Entry;
use vsm_host::partition::mailbox::Sleeper;
use vsm_host::partition::{Next, Partition, Processor, Vp};
use vsm_host::svm::idle::{self, HostState};
use vsm_host::svm::{debug, vmcb};
use vsm_host::vtl::VTL_COUNT;
use x86_64::instructions::segmentation::{CS, SS, Segment};
use x86_64::registers::control::{Cr0, Cr3, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};
use x86_defs::msr::{TSC_AUX, VM_CR, VM_HSAVE_PA};
use x86_defs::svm::{ExitCode, Vmcb};
use x86_defs::{CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP, DR7_AT_RESET};

const VM_CR_SVM_DISABLED: u64 = 1 << 4;
/// CPUID 0x80000001 EDX.
const RDTSCP: u32 = 1 << 27;
const LOW_32: u64 = 0xffff_ffff;

/// Bits of CR4 with which QEMU forgets all translations when they change, and where CPUID
/// (leaf, register, bit) offers them. They change nothing for the host.
const FOLLOWED: [(u64, u32, usize, u32); 4] = [
    (CR4_PSE, 1, 3, 3),
    (CR4_PGE, 1, 3, 13),
    (CR4_SMEP, 7, 1, 7),
    (CR4_SMAP, 7, 1, 20),
];

static HAS_TSC_AUX: Once<bool> = Once::new();

unsafe extern "C" {
    fn run_vp(gprs: *mut Gprs, vmcb: u64, host: u64);
    static idle_loop: u8;
}

/// A page for the processor.
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// CPUID.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Registers {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

impl Processor for Physical {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Registers {
        cpuid(leaf, subleaf)
    }

    fn tsc(&self) -> u64 {
        clock::tsc()
    }

    fn wake(&self, apic_id: u32) {
        // `boot` has refused machines with APIC ids that do not fit.
        lapic::send_nmi(apic_id as u8);
    }

    fn interrupt(&self, apic_id: u32, vector: u8) {
        lapic::send_fixed(apic_id as u8, vector);
    }

    fn arm_timer(&self, vp: u32, at_tsc: Option<u64>) -> bool {
        timer::arm(vp, at_tsc)
    }

    fn timer_fired(&self, vp: u32) {
        timer::fired(vp);
    }

    fn write_device(&self, address: u64, value: u32) {
        lapic::write_for_vtl(address, value);
    }

    fn exchange_tsc_aux(&self, value: u64) -> u64 {
        if !*HAS_TSC_AUX.call_once(|| cpuid(0x8000_0001, 0)[3] & RDTSCP != 0) {
            return 0;
        }
        let mut msr = Msr::new(TSC_AUX);
        // SAFETY: the MSR exists, and the host does not use it.
        unsafe {
            let old = msr.read();
            msr.write(value & LOW_32);
            old
        }
    }

    fn debug_addresses(&self) -> [u64; 4] {
        let [a, b, c, d]: [u64; 4];
        // SAFETY: reads registers.
        unsafe {
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3",
                 out(reg) a, out(reg) b, out(reg) c, out(reg) d, options(nomem, nostack));
        }
        [a, b, c, d]
    }

    fn set_debug_addresses(&self, [a, b, c, d]: [u64; 4]) {
        // SAFETY: no breakpoint is on while the host runs, and it does not use the registers.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
                 in(reg) a, in(reg) b, in(reg) c, in(reg) d, options(nomem, nostack));
        }
    }

    fn xcr0(&self) -> u64 {
        with_xsave(|| {
            let (low, high): (u32, u32);
            // SAFETY: CR4.OSXSAVE is set; reads a register.
            unsafe {
                asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                     options(nomem, nostack));
            }
            u64::from(high) << 32 | u64::from(low)
        })
        .unwrap_or(1)
    }

    fn set_xcr0(&self, value: u64) {
        with_xsave(|| {
            // SAFETY: CR4.OSXSAVE is set, the value has been checked, and the host, which
            // is built without floating point, uses no such state.
            unsafe {
                asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
                     options(nomem, nostack));
            }
        });
    }

    fn log(&self, text: fmt::Arguments<'_>) {
        console::line(text);
    }
}

/// Works while CR4.OSXSAVE is set; not at all if the processor has no XSAVE.
fn with_xsave<T>(work: impl FnOnce() -> T) -> Option<T> {
    const XSAVE: u32 = 1 << 26;
    if cpuid(1, 0)[2] & XSAVE == 0 {
        return None;
    }
    let before = Cr4::read();
    // SAFETY: the bit permits instructions that `work` executes, and is taken back.
    unsafe { Cr4::write(before | Cr4Flags::OSXSAVE) };
    let result = work();
    // SAFETY: as it was.
    unsafe { Cr4::write(before) };
    Some(result)
}

/// Turns SVM on and the global interrupt flag off, for good: from here interrupts and NMIs
/// are taken only by VPs and by `NmiSleeper`. IF is set, because it decides whether a
/// physical interrupt makes a VP leave the guest, whose own IF is virtual.
pub(crate) fn enable_svm() {
    let has = |leaf, register: usize, bit: u32| cpuid(leaf, 0)[register] & (1 << bit) != 0;
    assert!(has(0x8000_0001, 2, 2), "this CPU has no SVM");
    assert!(has(0x8000_000a, 3, 0), "this CPU has no nested paging");
    // SAFETY: the MSR exists where SVM does.
    let vm_cr = unsafe { Msr::new(VM_CR).read() };
    assert!(
        vm_cr & VM_CR_SVM_DISABLED == 0,
        "SVM is disabled by the firmware: VM_CR {vm_cr:#x}"
    );
    let save_area = Box::leak(Box::new(Page([0; 4096])));
    // SAFETY: the page is the processor's from now on, it is never freed. SVME only
    // permits the instructions that follow. Without GIF nothing interrupts the host,
    // which expects no interrupt.
    unsafe {
        // With NXE a nested page fault tells whether it was a fetch.
        Efer::update(|efer| {
            efer.insert(EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE | EferFlags::NO_EXECUTE_ENABLE);
        });
        Msr::new(VM_HSAVE_PA).write(&raw const save_area.0 as u64);
        asm!("clgi", "sti", options(nostack, nomem));
    }
}

/// A CPU and its VP.
struct Cpu {
    vp: Vp,
    /// The state of the host that VMRUN does not keep (FS, GS, TR, syscall registers): the
    /// host uses none of it, but does not want a VTL's either.
    host: Box<Vmcb>,
    idle: Box<Vmcb>,
    cr4: HostCr4,
}

impl Cpu {
    /// Not inlined: whole pages pass over its stack, and the loop that calls it never
    /// returns.
    #[inline(never)]
    fn new(partition: &Partition, index: u32) -> Box<Self> {
        let mut host = vmcb::new(0, 0, 0, 0);
        // SAFETY: stores a few registers into the block.
        unsafe { asm!("vmsave rax", in("rax") &raw mut *host as u64, options(nostack)) };
        Box::new(Self {
            vp: Vp::new(partition, index),
            host,
            idle: idle_block(),
            cr4: HostCr4::new(),
        })
    }
}

/// Runs the VP with this index on this CPU, from when it is started. SVM is on.
pub(crate) fn run(partition: &Partition, index: u32) -> ! {
    let mut cpu = Cpu::new(partition, index);
    let Cpu {
        vp,
        host,
        idle,
        cr4,
    } = &mut *cpu;
    let host_address = &raw mut **host as u64;
    partition.wait_for_start(vp, &mut NmiSleeper);
    if index == 0 {
        log!("{}", partition.first_entry_text());
    }
    loop {
        let code = match partition.prepare(vp, &Physical) {
            Entry::Run => {
                cr4.follow(vp.vmcb().save.cr4);
                let breakpoints = debug::armed(vp.vmcb().save.dr7, &Physical);
                let vmcb = &raw mut *vp.vtls[vp.vtl.index()].vmcb as u64;
                if let Some(dr7) = breakpoints {
                    set_dr7(dr7);
                }
                // SAFETY: the block, the maps it names and the nested page table are valid
                // and stay so; VM_HSAVE_PA is set; the nested page table keeps the VTL out
                // of all memory that Rust knows of. `run_vp` preserves what the ABI demands.
                unsafe { run_vp(&mut vp.gprs, vmcb, host_address) };
                if breakpoints.is_some() {
                    set_dr7(DR7_AT_RESET);
                }
                vp.vmcb().control.exit_code
            }
            Entry::Idle => {
                idle.save.cr4 = cr4.value;
                // SAFETY: as above; the block runs a loop that touches no memory, with the
                // host's own page tables.
                unsafe { run_vp(&mut [0; 16], &raw mut **idle as u64, host_address) };
                let code = idle.control.exit_code;
                vp.waited(code);
                code
            }
        };
        if code == ExitCode::NMI {
            // The exit leaves it pending.
            NmiSleeper.drain();
        }
        match partition.handle_exit(vp, &Physical) {
            Next::Resume => {}
            Next::Suspend => partition.suspend(vp, &mut SuspendedSleeper(index)),
            Next::End(reason) => {
                exit::claim();
                partition.counters.summary(console::line);
                log!(
                    "stacks: at most {} of {} bytes used",
                    smp::stack_use(),
                    AP_STACK_SIZE
                );
                exit::end(reason);
            }
        }
    }
}

/// How a CPU waits whose VP has run. An NMI may come from its timer, which VTL0 has set.
struct SuspendedSleeper(u32);

impl Sleeper for SuspendedSleeper {
    fn sleep(&mut self) {
        NmiSleeper.sleep();
        timer::fired(self.0);
    }

    fn drain(&mut self) {
        NmiSleeper.drain();
        timer::fired(self.0);
    }

    fn relax(&mut self) {
        NmiSleeper.relax();
    }
}

/// Arms breakpoints or takes them all back.
fn set_dr7(value: u64) {
    // SAFETY: `debug::armed` leaves out what the host could run into.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nostack)) };
}

/// CR4 of the host, which follows that of the VTL where it can: an exit and the next entry
/// are a quarter faster in QEMU if neither changes it.
struct HostCr4 {
    value: u64,
    /// Bits that it follows in.
    followed: u64,
}

impl HostCr4 {
    fn new() -> Self {
        let offered = |(_, leaf, register, bit): &(u64, u32, usize, u32)| {
            cpuid(*leaf, 0)[*register] & 1 << bit != 0
        };
        Self {
            value: Cr4::read_raw(),
            followed: FOLLOWED
                .iter()
                .filter(|bit| offered(bit))
                .map(|(mask, ..)| mask)
                .sum(),
        }
    }

    /// Before the entry into a VTL with this CR4.
    fn follow(&mut self, cr4: u64) {
        let value = self.value & !self.followed | cr4 & self.followed;
        if value != self.value {
            self.value = value;
            // SAFETY: the processor has these bits. The host's own pages are none of user
            // mode, none global, and mapped by 1 GiB leaves, so it runs with any of them.
            unsafe { Cr4::write_raw(value) };
        }
    }
}

/// The block that a CPU waits in.
fn idle_block() -> Box<Vmcb> {
    let host = HostState {
        cr0: Cr0::read_raw(),
        cr3: Cr3::read_raw().0.start_address().as_u64(),
        cr4: Cr4::read_raw(),
        efer: Efer::read_raw(),
        cs: CS::get_reg().0,
        ds: SS::get_reg().0,
        rip: &raw const idle_loop as u64,
    };
    // Behind those of the VTLs.
    idle::block(&host, VTL_COUNT as u32 + 1)
}

global_asm!(
    r#"
    .section .text.run_vp, "ax", @progbits
    .globl run_vp, idle_loop
idle_loop:
    hlt
    jmp     idle_loop

    // rdi: general-purpose registers, by number; rsi: block of the VP; rdx: of the host.
run_vp:
    .irp register, rbx, rbp, r12, r13, r14, r15, rdx, rdi
    pushq   %\register
    .endr
    movq    %rsi, %rax
    movq    8(%rdi), %rcx
    movq    16(%rdi), %rdx
    movq    24(%rdi), %rbx
    movq    40(%rdi), %rbp
    movq    48(%rdi), %rsi
    .irp number, 8, 9, 10, 11, 12, 13, 14, 15
    movq    8*\number(%rdi), %r\number
    .endr
    movq    56(%rdi), %rdi
    vmload  %rax
    vmrun   %rax
    vmsave  %rax
    pushq   %rdi
    movq    8(%rsp), %rdi
    movq    %rcx, 8(%rdi)
    movq    %rdx, 16(%rdi)
    movq    %rbx, 24(%rdi)
    movq    %rbp, 40(%rdi)
    movq    %rsi, 48(%rdi)
    .irp number, 8, 9, 10, 11, 12, 13, 14, 15
    movq    %r\number, 8*\number(%rdi)
    .endr
    popq    %rcx
    movq    %rcx, 56(%rdi)
    movq    8(%rsp), %rax
    vmload  %rax
    addq    $16, %rsp
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq    %\register
    .endr
    cld
    ret
"#,
    options(att_syntax)
);

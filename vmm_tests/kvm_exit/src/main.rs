//! What an exit of a nested KVM guest to its user-mode monitor costs: the yardstick for exits
//! of VTL0 to the paravisor's worker. `cargo xtask bench guest` runs this in a machine of
//! QEMU's whose kernel has KVM.
//!
//! The guest has one page with two instructions: it writes to a port for ever. Each write
//! is an exit; the monitor does nothing with it. One line tells the time of all.
//!
//! Usage: `kvm_exit COUNT`

#![expect(
    unsafe_code,
    reason = "KVM takes the guest's memory as an address of this process"
)]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;
use std::process::ExitCode;
use std::time::Instant;

/// Where the guest's page is.
const CODE: u64 = 0x1000;

/// Exits before the measurement.
const WARM_UP: u32 = 32;

/// The guest's memory.
#[repr(align(4096))]
struct Page([u8; 4096]);

fn main() -> ExitCode {
    let count = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(count @ 1..) = count else {
        eprintln!("kvm_exit: expected one argument, the number of exits");
        return ExitCode::from(2);
    };
    match measure(count) {
        Ok(nanoseconds) => {
            println!("kvm_exit count={count} ns={nanoseconds}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kvm_exit: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Nanoseconds that so many exits take.
fn measure(count: u32) -> Result<u128, Box<dyn std::error::Error>> {
    let vm = Kvm::new()?.create_vm()?;
    let mut page = Box::new(Page([0; 4096]));
    // `out 0x80, al`, and back to it.
    page.0[..4].copy_from_slice(&[0xe6, 0x80, 0xeb, 0xfc]);
    let page = Box::leak(page);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE,
        memory_size: size_of::<Page>() as u64,
        userspace_addr: (&raw mut *page) as u64,
    };
    // SAFETY: the page is leaked, so it is there for longer than the VM, and nothing here
    // touches it any more.
    unsafe { vm.set_user_memory_region(region) }?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut system = vcpu.get_sregs()?;
    system.cs.base = 0;
    system.cs.selector = 0;
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = CODE;
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;

    exits(&mut vcpu, WARM_UP)?;
    let start = Instant::now();
    exits(&mut vcpu, count)?;
    Ok(start.elapsed().as_nanos())
}

/// Runs the guest up to so many exits.
fn exits(vcpu: &mut VcpuFd, count: u32) -> Result<(), Box<dyn std::error::Error>> {
    for _ in 0..count {
        match vcpu.run()? {
            VcpuExit::IoOut(..) => {}
            other => return Err(format!("exit {other:?}, expected a write to a port").into()),
        }
    }
    Ok(())
}

//! The kernel's command line.
//!
//! First what the shim knows, then the measured text of the image, then the host's text
//! if it counts: the kernel lets the last of several values win. Names that the kernel
//! does not know become the environment of init, which is how options reach usermode.

use alloc::string::String;
use core::fmt::Write;

use thiserror::Error;

use crate::host_dt::MAX_COMMAND_LINE;
use crate::options::{BootOptions, MeasuredCommandLine};
use crate::partition::PartitionInfo;

/// Bytes that the kernel accepts, the final zero included.
pub const MAX_KERNEL_COMMAND_LINE: usize = 2048;

/// Parameters of every boot. The kernel is upstream's, so what the original passes for
/// its patched kernel (`acpi=off`, `pci=off`, `iommu=off`) is not here: with ACPI compiled
/// out they are either nothing or harmful.
const COMMON: &[&str] = &[
    // The console shows what a person follows; details stay in the log buffer.
    "loglevel=7",
    "log_buf_len=128K",
    "printk.time=1",
    // PID 1 and the paravisor log through /dev/kmsg; nothing of it may be lost.
    "printk.devkmsg=on",
    // A failed VTL2 must end, visibly and at once: the host sees the reset.
    "oops=panic",
    "panic=-1",
    "reboot=t",
    "unknown_nmi_panic=1",
    // The tree has everything in one place.
    "rootfstype=tmpfs",
    // The initrd can hold the guest's kernel. Unpacked it may by default take half of what is
    // free while its packed form is still there.
    "initramfs_options=size=90%",
    "rdinit=/underhill_init",
    // Times: the hypervisor vouches for the TSC, so nothing is calibrated or checked.
    "tsc=reliable",
    "no_timer_check",
    "lpj=3000000",
    // A VP that idles in VTL2 halts; there is no deeper sleep in a VM.
    "idle=halt",
    "cpufreq.off=1",
    "cpuidle.off=1",
    // Start-up self tests of crypto code that the image's measurement covers.
    "cryptomgr.notests",
    // The extended state belongs to VTL0: VTL2 never touches it.
    "noxsave",
    // A bounce buffer of one slot: devices reach all of VTL2's memory (saves 64 MiB).
    "swiotlb=1,1",
    // APs one after the other: those that wait in parallel bring-up spin, and starve the
    // boot processor wherever VPs share a core.
    "cpuhp.parallel=0",
    // User-mode drivers work with guest addresses; VTL2 has no IOMMU of its own.
    "vfio.enable_unsafe_noiommu_mode=1",
    // Memory is small and mostly pinned.
    "sysctl.vm.compaction_proactiveness=0",
    "coredump_filter=0x33",
];

/// Why there is no command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandLineError {
    /// It does not fit.
    #[error("kernel command line of {length} bytes, expected at most {max}", max = MAX_KERNEL_COMMAND_LINE - 1)]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// A zero byte in the middle would hide what follows.
    #[error("kernel command line has a zero byte at {offset}")]
    ZeroByte {
        /// Where.
        offset: usize,
    },
}

/// Puts the command line together.
pub fn build(
    partition: &PartitionInfo,
    measured: &MeasuredCommandLine<'_>,
    options: &BootOptions,
    has_pool: bool,
    has_sidecar: bool,
) -> Result<String, CommandLineError> {
    let mut line = String::with_capacity(MAX_KERNEL_COMMAND_LINE);
    for parameter in COMMON {
        push(&mut line, format_args!("{parameter}"));
    }
    if has_sidecar {
        // What other processors are Linux' is in the device tree. The kernel cannot be told to
        // boot just these.
        push(&mut line, format_args!("maxcpus=1"));
    }
    match (partition.com3(), partition.sbsa_uart) {
        (Some(port), _) => {
            // A boot console first: it shows the very first lines, and because of it the
            // kernel does not print the whole log a second time when the port's driver
            // takes over from the built-in one.
            push(
                &mut line,
                format_args!("earlycon=uart8250,io,{:#x}", port.base),
            );
            push(
                &mut line,
                format_args!("console=ttyS2,{}", port.current_speed),
            );
        }
        (None, Some(uart)) => push(
            &mut line,
            format_args!("console=ttyAMA0,{}", uart.current_speed),
        ),
        // Without this the kernel would pick a console by itself.
        (None, None) => push(&mut line, format_args!("console=ttynull")),
    }
    if partition.trust.is_isolated() {
        push(&mut line, format_args!("OPENHCL_CONFIDENTIAL=1"));
    }
    if partition.trust.confidential_debug() {
        push(&mut line, format_args!("OPENHCL_CONFIDENTIAL_DEBUG=1"));
    }
    push(
        &mut line,
        format_args!(
            "OPENHCL_NVME_KEEP_ALIVE={}{},{}",
            if options.disable_nvme_keep_alive {
                "disabled,"
            } else {
                ""
            },
            if partition.nvme_keep_alive {
                "host"
            } else {
                "nohost"
            },
            if has_pool {
                "privatepool"
            } else {
                "noprivatepool"
            },
        ),
    );
    if let Some(vmbus) = &partition.vmbus_vtl2 {
        push(
            &mut line,
            format_args!("hv_vmbus.message_connection_id={:#x}", vmbus.connection_id),
        );
    }
    push(&mut line, format_args!("{}", measured.text));
    if measured.append_host {
        // Empty if the host is not trusted.
        push(&mut line, format_args!("{}", partition.command_line));
    }
    if line.len() >= MAX_KERNEL_COMMAND_LINE {
        return Err(CommandLineError::TooLong { length: line.len() });
    }
    match line.find('\0') {
        Some(offset) => Err(CommandLineError::ZeroByte { offset }),
        None => Ok(line),
    }
}

fn push(line: &mut String, words: core::fmt::Arguments<'_>) {
    let start = line.len();
    if start != 0 {
        line.push(' ');
    }
    let with_space = line.len();
    // Writing to a `String` does not fail.
    let _ = write!(line, "{words}");
    if line.len() == with_space {
        line.truncate(start);
    }
}

const _: () = assert!(MAX_KERNEL_COMMAND_LINE <= MAX_COMMAND_LINE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_dt::HostDeviceTree;
    use crate::host_dt::tests::HostTree;
    use crate::isolation::{Isolation, Trust};
    use alloc::boxed::Box;

    fn line(tree: &HostTree, trust: Trust, append_host: bool) -> Result<String, CommandLineError> {
        let host = HostDeviceTree::parse(&tree.build()).unwrap();
        let partition = PartitionInfo::new(host, trust).unwrap();
        let measured = MeasuredCommandLine {
            text: "loglevel=8 measured=1",
            append_host,
        };
        build(&partition, &measured, &BootOptions::default(), true, false)
    }

    const TRUSTED: Trust = Trust::new(Isolation::None, false);
    const ISOLATED: Trust = Trust::new(Isolation::Vbs, false);

    #[test]
    fn later_sources_come_later() {
        let line = line(&HostTree::full(), TRUSTED, true).unwrap();
        assert!(line.starts_with("loglevel=7 "), "{line}");
        assert!(line.ends_with(" loglevel=8 measured=1 debug"), "{line}");
        assert!(line.contains(" console=ttyS2,115200 "));
        assert!(line.contains(" OPENHCL_NVME_KEEP_ALIVE=host,privatepool "));
        assert!(line.contains(" rdinit=/underhill_init "));
        for harmful in ["acpi=off", "pci=off", "iommu=off"] {
            assert!(!line.contains(harmful));
        }
    }

    #[test]
    fn with_a_sidecar_linux_boots_one_processor() {
        let host = HostDeviceTree::parse(&HostTree::plain().build()).unwrap();
        let partition = PartitionInfo::new(host, TRUSTED).unwrap();
        let measured = MeasuredCommandLine {
            text: "",
            append_host: true,
        };
        for has_sidecar in [false, true] {
            let options = BootOptions::default();
            let line = build(&partition, &measured, &options, true, has_sidecar).unwrap();
            assert_eq!(line.contains(" maxcpus=1 "), has_sidecar);
        }
    }

    #[test]
    fn the_hosts_text_needs_policy_and_trust() {
        let by_policy = line(&HostTree::full(), TRUSTED, false).unwrap();
        assert!(by_policy.ends_with("measured=1"));
        let isolated = line(&HostTree::full(), ISOLATED, true).unwrap();
        assert!(isolated.ends_with("measured=1"), "{isolated}");
        assert!(isolated.contains(" console=ttynull "));
        assert!(isolated.contains(" OPENHCL_CONFIDENTIAL=1 "));
    }

    #[test]
    fn without_a_serial_port_there_is_no_console() {
        let line = line(&HostTree::plain(), TRUSTED, true).unwrap();
        assert!(line.contains(" console=ttynull "));
        assert!(line.contains(" OPENHCL_NVME_KEEP_ALIVE=nohost,privatepool "));
    }

    #[test]
    fn too_long_a_line_is_refused() {
        let mut tree = HostTree::plain();
        tree.bootargs = Box::leak("x".repeat(2000).into_boxed_str());
        assert!(matches!(
            line(&tree, TRUSTED, true),
            Err(CommandLineError::TooLong { length }) if length > 2000
        ));
    }
}

//! The description of a machine and the command line that it becomes.

use crate::ByteCount;
use crate::CommandLine;
use crate::NumaNodes;
use crate::Qemu;
use crate::Vsock;
use crate::VsockEnd;
use crate::Wiring;
use crate::vsock::GUEST_CID;
use crate::vsock::PRINTED_SOCKETS;
use crate::vsock::VHOST_SOCKET;
use openhcl_config::FW_CFG_FILE;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use vsm_host_defs::DEBUG_CONSOLE_PORT;
use vsm_host_defs::DEBUG_EXIT_PORT;
use vsm_host_defs::DEBUG_EXIT_PORT_SIZE;
use vsm_host_defs::OPTION_BOOTARGS_SEPARATOR;
use vsm_host_defs::OPTION_PARK;
use vsm_host_defs::OPTION_VTL2_MEMORY;

/// The most VPs that a machine can have: xAPIC ids are 8 bits wide, 255 means everyone,
/// and one id belongs to the parked vCPU.
pub const MAX_VPS: u32 = 254;

/// What the machine boots.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Payload {
    /// The bare-metal host, and the IGVM file that it loads.
    Host { host: PathBuf, image: PathBuf },
    /// A Linux kernel and its initrd, as on any QEMU.
    Linux { kernel: PathBuf, initrd: PathBuf },
}

/// What executes the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's own emulation, one thread per vCPU: works everywhere.
    Tcg,
    /// KVM; needs nested SVM.
    Kvm,
}

/// QEMU's gdbstub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gdb {
    /// TCP port on the loopback interface.
    pub port: u16,
    /// Wait for the debugger before the first instruction.
    pub freeze: bool,
}

/// A machine that is described but not yet started.
///
/// It begins with 1 VP, 1 GiB of memory, emulation and no device beyond consoles and exit
/// port. Every method changes one thing and returns the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    payload: Payload,
    vps: u32,
    numa: Option<NumaNodes>,
    memory: ByteCount,
    accel: Accel,
    parked: bool,
    /// There is no paravisor: the console is the guest's.
    alone: bool,
    host_options: Vec<String>,
    bootargs: Vec<String>,
    nic: Option<String>,
    vsock: Option<Vsock>,
    config: Option<PathBuf>,
    extra: Vec<String>,
    gdb: Option<Gdb>,
}

/// Why a description is no machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MachineError {
    /// Too few or too many VPs.
    #[error("{found} VPs: expected {} to {}", expected.start(), expected.end())]
    Vps {
        /// What was asked for.
        found: u32,
        /// What is possible.
        expected: RangeInclusive<u32>,
    },
    /// Not a size that QEMU takes.
    #[error("{found} of memory: expected a multiple of 1M, at least 1M")]
    Memory {
        /// What was asked for.
        found: ByteCount,
    },
    /// NUMA nodes have other VPs than the machine.
    #[error("NUMA nodes {nodes} have {found} VPs: expected {expected}, as the machine has")]
    NumaVps {
        /// The nodes.
        nodes: NumaNodes,
        /// Their VPs.
        found: u32,
        /// The machine's.
        expected: u32,
    },
    /// Less than 1 MiB for a NUMA node.
    #[error("{found} of memory for {nodes} NUMA nodes: expected 1M or more for each")]
    NumaMemory {
        /// What was asked for.
        found: ByteCount,
        /// How many nodes.
        nodes: usize,
    },
    /// A path that cannot stand on QEMU's command line.
    #[error("path {}: expected UTF-8", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A host option that would be read as something else.
    #[error("host option {found:?}: expected one word other than {OPTION_BOOTARGS_SEPARATOR:?}")]
    HostOption {
        /// The option.
        found: String,
    },
}

impl Machine {
    /// The stack: `vsm_host` (an ELF) and the IGVM file that it boots.
    pub fn vsm(host: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        Self::new(Payload::Host {
            host: host.into(),
            image: image.into(),
        })
    }

    /// `vsm_host` and an IGVM file that has a guest and no paravisor. The console, which is
    /// VTL2's otherwise, is the guest's COM1.
    pub fn without_paravisor(host: impl Into<PathBuf>, image: impl Into<PathBuf>) -> Self {
        let mut machine = Self::vsm(host, image);
        machine.alone = true;
        machine
    }

    /// Plain QEMU: a kernel with nothing below it. The baseline of benches.
    pub fn plain(kernel: impl Into<PathBuf>, initrd: impl Into<PathBuf>) -> Self {
        Self::new(Payload::Linux {
            kernel: kernel.into(),
            initrd: initrd.into(),
        })
    }

    fn new(payload: Payload) -> Self {
        Self {
            parked: matches!(payload, Payload::Host { .. }),
            payload,
            alone: false,
            vps: 1,
            numa: None,
            memory: ByteCount::gib(1),
            accel: Accel::Tcg,
            host_options: Vec::new(),
            bootargs: Vec::new(),
            nic: None,
            vsock: None,
            config: None,
            extra: Vec::new(),
            gdb: None,
        }
    }

    /// Number of virtual processors that the VM sees.
    pub fn vps(mut self, vps: u32) -> Self {
        self.vps = vps;
        self
    }

    /// The VPs, on these NUMA nodes. Memory is divided evenly among the nodes.
    pub fn numa(mut self, nodes: NumaNodes) -> Self {
        self.vps = nodes.vps();
        self.numa = Some(nodes);
        self
    }

    /// All of the machine's memory: the host's, VTL2's and VTL0's.
    pub fn memory(mut self, memory: ByteCount) -> Self {
        self.memory = memory;
        self
    }

    /// What executes the instructions. KVM needs no parked vCPU.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        if accel == Accel::Kvm {
            self.parked = false;
        }
        self
    }

    /// VTL2's memory, when it shall be more than the image asks for.
    pub fn vtl2_memory(self, size: ByteCount) -> Self {
        self.host_option(format!("{OPTION_VTL2_MEMORY}{size}"))
    }

    /// Runs VP 0 on vCPU 0. Emulation with many threads corrupts that vCPU's SVM state
    /// now and then; only for the test that shows it.
    pub fn unparked(mut self) -> Self {
        self.parked = false;
        self
    }

    /// An option for `vsm_host`.
    pub fn host_option(mut self, option: impl Into<String>) -> Self {
        self.host_options.push(option.into());
        self
    }

    /// Text that the host passes on as `/chosen/bootargs`; on a plain machine, for the
    /// kernel's command line.
    pub fn bootarg(mut self, argument: impl Into<String>) -> Self {
        self.bootargs.push(argument.into());
        self
    }

    /// A network interface, as QEMU's `-nic` takes it. Without this there is none, and no
    /// boot ROM that would look for one.
    pub fn nic(mut self, nic: impl Into<String>) -> Self {
        self.nic = Some(nic.into());
        self
    }

    /// A vsock device, through which the host's programs reach the machine's.
    pub fn vsock(mut self, vsock: Vsock) -> Self {
        self.vsock = Some(vsock);
        self
    }

    /// A file that becomes the paravisor's configuration.
    pub fn config(mut self, file: impl Into<PathBuf>) -> Self {
        self.config = Some(file.into());
        self
    }

    /// The vsock that was asked for.
    pub fn wanted_vsock(&self) -> Option<&Vsock> {
        self.vsock.as_ref()
    }

    /// More arguments for QEMU, passed on as they are.
    pub fn extra<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.extra.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// QEMU listens for a debugger.
    pub fn gdb(mut self, gdb: Gdb) -> Self {
        self.gdb = Some(gdb);
        self
    }

    /// APIC ids of the VPs, in VP order.
    pub fn apic_ids(&self) -> Vec<u32> {
        let first = u32::from(self.parked);
        (first..first + self.vps).collect()
    }

    /// The command that runs this machine.
    pub fn command_line(&self, qemu: &Qemu, wiring: Wiring) -> Result<CommandLine, MachineError> {
        if !(1..=MAX_VPS).contains(&self.vps) {
            return Err(MachineError::Vps {
                found: self.vps,
                expected: 1..=MAX_VPS,
            });
        }
        let mib = match self.memory.whole_mib() {
            Some(mib) if mib > 0 => mib,
            _ => return Err(MachineError::Memory { found: self.memory }),
        };
        self.check_numa(mib)?;

        let mut line = CommandLine::new(qemu.program());
        // Nothing that was not asked for: no default devices, no user's configuration. A
        // reset ends the machine, so that a boot loop cannot look like a slow boot.
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.flag(flag);
        }
        line.option("-display", "none");
        line.option("-vga", "none");
        line.option("-nic", self.nic.as_deref().unwrap_or("none"));

        self.memory_and_vcpus(&mut line, mib);
        match self.accel {
            Accel::Tcg => {
                line.option("-accel", "tcg,thread=multi");
                line.option("-cpu", "max");
            }
            Accel::Kvm => {
                line.option("-accel", "kvm");
                line.option("-cpu", "host");
            }
        }
        // The host's timers: comparators that send an NMI as a message, past VTL2's APIC.
        // Registers of more than 24 would lie behind their block.
        line.option("-global", "hpet.msi=on");
        line.option("-global", "hpet.timers=24");

        let (kernel, initrd) = match &self.payload {
            Payload::Host { host, image } => (host, image),
            Payload::Linux { kernel, initrd } => (kernel, initrd),
        };
        for (option, path) in [("-kernel", kernel), ("-initrd", initrd)] {
            line.option(option, text(path)?);
        }
        let append = self.append()?;
        if !append.is_empty() {
            line.option("-append", append);
        }

        if let Some(path) = &self.config {
            // Within an option's value a comma ends it, and two are one.
            let path = text(path)?.replace(',', ",,");
            line.option("-fw_cfg", format!("name={FW_CFG_FILE},file={path}"));
        }

        self.consoles(&mut line, wiring);
        self.vsock_device(&mut line, wiring);
        if let Some(Gdb { port, freeze }) = self.gdb {
            line.option("-gdb", format!("tcp:127.0.0.1:{port}"));
            if freeze {
                line.flag("-S");
            }
        }
        line.raw(&self.extra);
        Ok(line)
    }

    fn check_numa(&self, mib: u64) -> Result<(), MachineError> {
        let Some(nodes) = &self.numa else {
            return Ok(());
        };
        if nodes.vps() != self.vps {
            return Err(MachineError::NumaVps {
                nodes: nodes.clone(),
                found: nodes.vps(),
                expected: self.vps,
            });
        }
        if mib < nodes.count() as u64 {
            return Err(MachineError::NumaMemory {
                found: self.memory,
                nodes: nodes.count(),
            });
        }
        Ok(())
    }

    fn memory_and_vcpus(&self, line: &mut CommandLine, mib: u64) {
        // Shared memory, because vhost-user devices map it.
        let backend = |line: &mut CommandLine, id: &str, mib: u64| {
            let size = format!("size={mib}M");
            line.option(
                "-object",
                format!("memory-backend-memfd,id={id},{size},share=on"),
            );
        };
        match &self.numa {
            None => {
                line.option("-machine", "q35,memory-backend=ram");
                backend(line, "ram", mib);
            }
            Some(nodes) => {
                line.option("-machine", "q35");
                for (node, mib) in nodes.memory_mib(mib).into_iter().enumerate() {
                    backend(line, &format!("ram{node}"), mib);
                }
            }
        }
        line.option("-m", format!("{mib}M"));

        // Never more vCPUs than needed: emulation pays for each, started or not.
        let parked = u32::from(self.parked);
        line.option("-smp", (self.vps + parked).to_string());
        let nodes = self.numa.iter().flat_map(|nodes| nodes.vcpus(parked));
        for (node, (first, count)) in nodes.enumerate() {
            let cpus = match count {
                0 => String::new(),
                count => format!("cpus={first}-{},", first + count - 1),
            };
            line.option(
                "-numa",
                format!("node,nodeid={node},{cpus}memdev=ram{node}"),
            );
        }
    }

    /// The text for `-append`: for the host its options, then the VM's boot arguments.
    fn append(&self) -> Result<String, MachineError> {
        let mut words = Vec::new();
        if matches!(self.payload, Payload::Host { .. }) {
            if !self.parked {
                words.push(format!("{OPTION_PARK}off"));
            }
            for option in &self.host_options {
                let is_word = !option.is_empty() && !option.contains(char::is_whitespace);
                if !is_word || option == OPTION_BOOTARGS_SEPARATOR {
                    return Err(MachineError::HostOption {
                        found: option.clone(),
                    });
                }
                words.push(option.clone());
            }
            if !self.bootargs.is_empty() {
                words.push(OPTION_BOOTARGS_SEPARATOR.to_owned());
            }
        }
        words.extend(self.bootargs.iter().cloned());
        Ok(words.join(" "))
    }

    fn consoles(&self, line: &mut CommandLine, wiring: Wiring) {
        let (host, vtl2) = match wiring {
            Wiring::Program { qmp, .. } => {
                line.option("-chardev", "file,id=hostlog,path=/dev/stderr");
                line.option("-chardev", "stdio,id=vtl2con,signal=off");
                line.option("-chardev", format!("socket,id=qmp,fd={qmp}"));
                line.option("-mon", "chardev=qmp,mode=control");
                ("hostlog", "vtl2con")
            }
            Wiring::Terminal => {
                line.option("-chardev", "stdio,id=terminal,mux=on,signal=off");
                ("terminal", "terminal")
            }
        };
        if matches!(self.payload, Payload::Host { .. }) {
            line.option(
                "-device",
                format!("isa-debugcon,iobase={DEBUG_CONSOLE_PORT:#x},chardev={host}"),
            );
            line.option(
                "-device",
                format!("isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize={DEBUG_EXIT_PORT_SIZE}"),
            );
        }
        // COM3, or COM1. After the debug console, because a shared terminal types into the
        // device that was named last.
        let index = if self.alone { 0 } else { 2 };
        line.option(
            "-device",
            format!("isa-serial,index={index},chardev={vtl2}"),
        );
    }

    fn vsock_device(&self, line: &mut CommandLine, wiring: Wiring) {
        let socket = match (&self.vsock, wiring) {
            (None, _) | (_, Wiring::Program { vsock: None, .. }) => return,
            (Some(Vsock::Kernel), Wiring::Terminal) => Err(GUEST_CID),
            (Some(Vsock::Helper(_)), Wiring::Terminal) => {
                Ok(format!("path={PRINTED_SOCKETS}/{VHOST_SOCKET}"))
            }
            (
                Some(_),
                Wiring::Program {
                    vsock: Some(end), ..
                },
            ) => match end {
                VsockEnd::Cid(cid) => Err(cid),
                VsockEnd::Socket(descriptor) => Ok(format!("fd={descriptor}")),
            },
        };
        match socket {
            Ok(socket) => {
                line.option("-chardev", format!("socket,id=vsock,{socket}"));
                line.option("-device", "vhost-user-vsock-pci,chardev=vsock");
            }
            Err(cid) => line.option("-device", format!("vhost-vsock-pci,guest-cid={cid}")),
        }
    }
}

/// A path as QEMU's command line takes it.
fn text(path: &Path) -> Result<&str, MachineError> {
    path.to_str().ok_or_else(|| MachineError::Path {
        path: path.to_owned(),
    })
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        })
    }
}

impl FromStr for Accel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcg" => Ok(Self::Tcg),
            "kvm" => Ok(Self::Kvm),
            _ => Err(format!("accelerator {text:?}: expected \"tcg\" or \"kvm\"")),
        }
    }
}

#[cfg(test)]
mod tests;

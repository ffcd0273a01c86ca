//! The virtual machine that everything here runs in: the one place that knows how QEMU
//! is started, watched and ended.
//!
//! `cargo xtask run`, the end-to-end tests and the benches all describe what they want as
//! a [`Machine`], get a [`CommandLine`] from it (which [`CommandLine::shell_text`] prints
//! for people) and a running [`Vm`] from [`Machine::start`].
//!
//! It promises:
//! - what is printed is what is run, but for where the consoles go;
//! - every console line is kept in memory with the time at which it arrived, and in a
//!   file, byte for byte, from the first byte to the last;
//! - a wait ends at the event itself: the line, or the end of the machine. Deadlines exist
//!   only so that a hang becomes an error which shows what was last seen, with the
//!   registers of all vCPUs beside it;
//! - a machine, and the process that carries its vsock, never outlive the [`Vm`] that
//!   stands for them, nor this process, whatever kills it.
//!
//! It refuses to interpret what the guest says beyond the exit reasons of
//! `vsm_host_defs` and, for a [`Timeline`], the lines of `boot_events`; to run anything but
//! an unmodified QEMU, and to retry.
//!
//! Where it stands in the boot flow: before everything. The time at which QEMU's process is
//! started is zero for all times that this crate reports.

#![deny(unsafe_code)]

mod byte_count;
mod command_line;
mod console;
mod exit;
mod guest_console;
mod leash;
mod machine;
mod numa;
mod private_dir;
mod probe;
mod qmp;
mod start;
mod timeline;
mod vm;
mod vsock;

pub use byte_count::ByteCount;
pub use byte_count::ByteCountError;
pub use command_line::CommandLine;
pub use command_line::Wiring;
pub use console::Echo;
pub use console::Line;
pub use console::Source;
pub use exit::Exit;
pub use guest_console::GuestConsole;
pub use guest_console::GuestConsoleError;
pub use guest_console::GuestPort;
pub use leash::spawn_leashed;
pub use machine::Accel;
pub use machine::Gdb;
pub use machine::MAX_VPS;
pub use machine::Machine;
pub use machine::MachineError;
pub use numa::MAX_NUMA_NODES;
pub use numa::NumaNodes;
pub use numa::NumaNodesError;
pub use probe::ProbeError;
pub use probe::Qemu;
pub use probe::Version;
pub use qmp::QmpError;
pub use start::StartError;
pub use timeline::Stage;
pub use timeline::StageName;
pub use timeline::Timeline;
pub use vm::ConsoleReport;
pub use vm::Vm;
pub use vm::WaitError;
pub use vsock::Vsock;
pub use vsock::VsockAddress;
pub use vsock::VsockEnd;

//! Starting a machine: what it is connected with, then QEMU itself.

use crate::CommandLine;
use crate::Echo;
use crate::Machine;
use crate::MachineError;
use crate::Qemu;
use crate::Source;
use crate::Vm;
use crate::Vsock;
use crate::VsockAddress;
use crate::VsockEnd;
use crate::Wiring;
use crate::console::Board;
use crate::console::capture;
use crate::leash::spawn_leashed;
use crate::qmp::Qmp;
use crate::vm::COMMAND_FILE;
use crate::vsock;
use crate::vsock::VsockHelper;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The description is wrong.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program that carries vsock does not run.
    #[error("vsock's helper {}: {reason}, expected it to listen; its log: {}", program.display(), log.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// What it said.
        log: PathBuf,
        /// How it failed.
        reason: String,
    },
}

/// What QEMU is connected with besides its consoles. Theirs are the ends that it inherits.
pub(crate) struct Wires {
    qmp_ours: UnixStream,
    qmp_theirs: UnixStream,
    vsock: Option<VsockWire>,
}

/// vsock of one machine.
struct VsockWire {
    end: VsockEnd,
    theirs: Option<UnixStream>,
    address: VsockAddress,
    helper: Option<VsockHelper>,
}

impl Machine {
    /// Starts QEMU. Consoles and command are kept in files in `directory`, which is
    /// created.
    pub fn start(&self, qemu: &Qemu, directory: &Path) -> Result<Vm, StartError> {
        self.start_with_echo(qemu, directory, |_| None)
    }

    /// Starts QEMU; what the consoles say is also given to `echo`.
    pub fn start_with_echo(
        &self,
        qemu: &Qemu,
        directory: &Path,
        echo: impl FnMut(Source) -> Option<Echo>,
    ) -> Result<Vm, StartError> {
        std::fs::create_dir_all(directory).map_err(|source| StartError::Io {
            what: format!("creating {}", directory.display()),
            source,
        })?;
        let wires = Wires::prepare(self.wanted_vsock(), directory)?;
        Vm::spawn(
            &self.command_line(qemu, wires.wiring())?,
            wires,
            directory,
            echo,
        )
    }
}

impl Wires {
    /// Everything that must be there before QEMU is.
    fn prepare(vsock: Option<&Vsock>, directory: &Path) -> Result<Self, StartError> {
        let (qmp_ours, qmp_theirs) = UnixStream::pair().map_err(|source| StartError::Io {
            what: "a socket for QEMU's machine protocol".to_owned(),
            source,
        })?;
        let vsock = vsock
            .map(|vsock| VsockWire::prepare(vsock, directory))
            .transpose()?;
        Ok(Self {
            qmp_ours,
            qmp_theirs,
            vsock,
        })
    }

    /// A machine protocol that nobody speaks, for a program in QEMU's place.
    #[cfg(test)]
    pub(crate) fn dead() -> Self {
        let pair = || UnixStream::pair().unwrap();
        Self {
            qmp_ours: pair().0,
            qmp_theirs: pair().0,
            vsock: None,
        }
    }

    /// Which ends QEMU inherits.
    fn wiring(&self) -> Wiring {
        Wiring::Program {
            qmp: self.qmp_theirs.as_raw_fd(),
            vsock: self.vsock.as_ref().map(|wire| wire.end),
        }
    }
}

impl VsockWire {
    fn prepare(vsock: &Vsock, directory: &Path) -> Result<Self, StartError> {
        match vsock {
            Vsock::Kernel => {
                let cid = VsockEnd::any_cid().map_err(|source| StartError::Io {
                    what: "an address for the kernel's vsock".to_owned(),
                    source,
                })?;
                Ok(Self {
                    end: VsockEnd::Cid(cid),
                    theirs: None,
                    address: VsockAddress::Cid(cid),
                    helper: None,
                })
            }
            Vsock::Helper(program) => {
                let log = directory.join(vsock::LOG_FILE);
                let (helper, theirs) = VsockHelper::start(program, &log)?;
                Ok(Self {
                    end: VsockEnd::Socket(theirs.as_raw_fd()),
                    theirs: Some(theirs),
                    address: helper.address(),
                    helper: Some(helper),
                })
            }
        }
    }
}

impl Vm {
    /// Starts a command that is wired for a program.
    pub(crate) fn spawn(
        line: &CommandLine,
        wires: Wires,
        directory: &Path,
        mut echo: impl FnMut(Source) -> Option<Echo>,
    ) -> Result<Self, StartError> {
        let io = |what: String| move |source| StartError::Io { what, source };
        let in_directory = || io(format!("keeping consoles in {}", directory.display()));

        std::fs::create_dir_all(directory).map_err(in_directory())?;
        std::fs::write(
            directory.join(COMMAND_FILE),
            format!("{}\n", line.shell_text()),
        )
        .map_err(in_directory())?;
        let file = |source: Source| {
            File::create(directory.join(source.file_name())).map_err(in_directory())
        };
        let (host_file, vtl2_file) = (file(Source::Host)?, file(Source::Vtl2)?);

        // Pipes, not sockets: a socket charges each byte that the serial port sends with
        // almost a KiB, so it is full after one long line and the port loses characters.
        let pipes = || io("pipes for QEMU's consoles".to_owned());
        let (typed_theirs, typed) = std::io::pipe().map_err(pipes())?;
        let (vtl2, vtl2_theirs) = std::io::pipe().map_err(pipes())?;
        let (host, host_theirs) = std::io::pipe().map_err(pipes())?;

        let mut command = line.to_command();
        command
            .stdin(Stdio::from(typed_theirs))
            .stdout(Stdio::from(vtl2_theirs))
            .stderr(Stdio::from(host_theirs));
        let mut inherited = vec![OwnedFd::from(wires.qmp_theirs)];
        let (vsock, helper) = match wires.vsock {
            Some(wire) => {
                inherited.extend(wire.theirs.map(OwnedFd::from));
                (Some(wire.address), wire.helper)
            }
            None => (None, None),
        };
        let board = Arc::new(Board::new(Instant::now()));
        let child = spawn_leashed(command, inherited)
            .map_err(io(format!("starting {}", line.program().display())))?;

        let mut vm = Self {
            child,
            exit: None,
            board: board.clone(),
            readers: Vec::new(),
            typed,
            qmp: Qmp::new(wires.qmp_ours).map_err(pipes())?,
            directory: directory.to_owned(),
            vsock,
            helper,
        };
        let readers = || io("a thread for a console".to_owned());
        let host_reader = capture(
            board.clone(),
            Source::Host,
            host,
            host_file,
            echo(Source::Host),
        );
        vm.readers.push(host_reader.map_err(readers())?);
        let vtl2_reader = capture(board, Source::Vtl2, vtl2, vtl2_file, echo(Source::Vtl2));
        vm.readers.push(vtl2_reader.map_err(readers())?);
        Ok(vm)
    }
}

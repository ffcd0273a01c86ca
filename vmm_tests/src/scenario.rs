//! A machine for a test, and what the test does with it.

use crate::Artifacts;
use crate::Image;
use crate::Memory;
use crate::Topology;
use crate::artifacts::artifacts;
use crate::artifacts::read;
use boot_events::Event;
use diag_client::Client;
use diag_client::VmAddress;
use igvm_builder::LinuxDirect;
use qemu::ByteCount;
use qemu::Exit;
use qemu::Line;
use qemu::Machine;
use qemu::Qemu;
use qemu::Source;
use qemu::Vm;
use qemu::Vsock;
use qemu::VsockAddress;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vsm_host_defs::ExitReason;

/// When a wait becomes a failure. Far more than any boot takes, also on a loaded machine
/// that emulates 17 vCPUs on 2 processors.
const DEADLINE: Duration = Duration::from_secs(180);

/// Asks the paravisor to end after it has started.
const EXIT_AFTER_BOOT: &str = "OPENHCL_EXIT_AFTER_BOOT=1";

/// A machine that is described but not yet started.
#[derive(Debug)]
pub struct Scenario {
    machine: Machine,
    directory: PathBuf,
}

/// A running machine. Its consoles' files are removed with it unless the test fails.
pub struct TestVm {
    vm: Vm,
}

impl Scenario {
    /// The stack with the release image: 1 VP, 512 MiB.
    #[track_caller]
    pub fn release() -> Self {
        Self::image_file(|artifacts| artifacts.release_image.clone())
    }

    /// The stack with the image that has a shell.
    #[track_caller]
    pub fn dev() -> Self {
        Self::image_file(|artifacts| artifacts.dev_image.clone())
    }

    /// The stack with the image that has a shell and the programs that only tests need.
    #[track_caller]
    pub fn test() -> Self {
        Self::image_file(|artifacts| artifacts.test_image.clone())
    }

    /// The stack with an image of the test's own.
    #[track_caller]
    pub fn image(image: &Image) -> Self {
        Self::image_bytes(image.bytes())
    }

    /// The stack with any bytes in place of an image.
    #[track_caller]
    pub fn image_bytes(bytes: &[u8]) -> Self {
        let directory = new_directory(&artifacts());
        let path = directory.join("image.igvm");
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&path, bytes))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self::new(directory, &path)
    }

    #[track_caller]
    fn image_file(choose: impl FnOnce(&Artifacts) -> PathBuf) -> Self {
        let artifacts = artifacts();
        Self::new(new_directory(&artifacts), &choose(&artifacts))
    }

    #[track_caller]
    fn new(directory: PathBuf, image: &Path) -> Self {
        Self {
            machine: Machine::vsm(artifacts().vsm_host, image).memory(ByteCount::mib(512)),
            directory,
        }
    }

    /// The host with a stock kernel and the guest's own initrd, and no paravisor: 512 MiB.
    /// The guest's console is [`Source::Vtl2`]. `suite` is Debian's name of a suite.
    #[track_caller]
    pub fn without_paravisor(suite: &str, command_line: &str, vps: u32) -> Self {
        let memory = ByteCount::mib(512);
        let artifacts = artifacts();
        let directory = new_directory(&artifacts);
        let path = directory.join("linux.igvm");
        let machine = Machine::without_paravisor(&artifacts.vsm_host, &path)
            .vps(vps)
            .memory(memory);
        let image = Image::without_paravisor(&LinuxDirect {
            kernel: &artifacts.guest_kernel(suite),
            initrd: Some(&read(&artifacts.guest_initrd)),
            command_line,
            memory: memory.get(),
            vps,
            first_apic_id: machine.apic_ids()[0],
        });
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&path, image.bytes()))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { machine, directory }
    }

    /// QEMU itself with a kernel of the test's own, and nothing of ours below it. The file
    /// gets what the kernel writes to COM1.
    #[track_caller]
    pub fn plain(kernel: &Path, arguments: &str) -> (Self, PathBuf) {
        let artifacts = artifacts();
        let directory = new_directory(&artifacts);
        std::fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let log = directory.join("com1.log");
        let machine = Machine::plain(kernel, artifacts.initrd)
            .memory(ByteCount::mib(256))
            .bootarg(arguments)
            .extra([
                "-chardev".to_owned(),
                format!("file,id=com1,path={}", log.display()),
                "-device".to_owned(),
                "isa-serial,index=0,chardev=com1".to_owned(),
            ]);
        (Self { machine, directory }, log)
    }

    /// Number of VPs.
    pub fn vps(self, vps: u32) -> Self {
        self.with(|machine| machine.vps(vps))
    }

    /// All memory of the machine.
    pub fn memory(self, memory: ByteCount) -> Self {
        self.with(|machine| machine.memory(memory))
    }

    /// The host's boot arguments; one or more words.
    pub fn bootargs(self, arguments: &str) -> Self {
        self.with(|machine| machine.bootarg(arguments))
    }

    /// The machine powers itself off once it has booted.
    pub fn power_off_after_boot(self) -> Self {
        self.bootargs(EXIT_AFTER_BOOT)
    }

    /// The machine has a vsock: [`TestVm::vsock`] reaches it.
    #[track_caller]
    pub fn vsock(self) -> Self {
        let vsock = match artifacts().vsock_helper {
            Some(program) => Vsock::Helper(program),
            None => Vsock::Kernel,
        };
        self.with(|machine| machine.vsock(vsock))
    }

    /// The paravisor's configuration: any text, so that it can be a bad one.
    #[track_caller]
    pub fn config(self, text: &str) -> Self {
        let path = self.directory.join("config.json");
        std::fs::create_dir_all(&self.directory)
            .and_then(|()| std::fs::write(&path, text))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.with(|machine| machine.config(path))
    }

    /// Changes the machine in a way that has no method of its own here.
    pub fn with(mut self, change: impl FnOnce(Machine) -> Machine) -> Self {
        self.machine = change(self.machine);
        self
    }

    /// Starts QEMU.
    #[track_caller]
    pub fn start(self) -> TestVm {
        let qemu = Qemu::find().unwrap_or_else(|error| panic!("{error}"));
        match self.machine.start(&qemu, &self.directory) {
            Ok(vm) => TestVm { vm },
            Err(error) => panic!("{error}"),
        }
    }
}

impl TestVm {
    /// Waits for a line with this text; fails the test if it does not come.
    #[track_caller]
    pub fn expect(&mut self, source: Source, text: &str) -> Line {
        match self.vm.wait_for_text(source, text, DEADLINE) {
            Ok(line) => line,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for an event of the boot; what `read` makes of it is the result.
    #[track_caller]
    pub fn expect_event<T>(
        &mut self,
        source: Source,
        what: &str,
        read: impl Fn(Event<'_>) -> Option<T>,
    ) -> T {
        let of = |line: &Line| Event::parse(&line.text).and_then(&read);
        let line = self
            .vm
            .wait_for(source, what, DEADLINE, |line| of(line).is_some());
        match line {
            Ok(line) => of(&line).expect("the line was chosen because it has the event"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until the paravisor has started.
    #[track_caller]
    pub fn expect_ready(&mut self) {
        self.expect_event(Source::Vtl2, "ready paravisor", |event| {
            (event == Event::Ready).then_some(())
        });
    }

    /// The machine as the paravisor reports it.
    #[track_caller]
    pub fn topology(&mut self) -> Topology {
        let json = self.expect_event(Source::Vtl2, "topology", |event| match event {
            Event::Topology(json) => Some(json.to_owned()),
            _ => None,
        });
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("topology {json}: {error}"))
    }

    /// VTL2's use of memory as the paravisor reports it.
    #[track_caller]
    pub fn memory(&mut self) -> Memory {
        let json = self.expect_event(Source::Vtl2, "memory use", |event| match event {
            Event::Memory(json) => Some(json.to_owned()),
            _ => None,
        });
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("memory {json}: {error}"))
    }

    /// Waits for the end of the machine and compares the reason.
    #[track_caller]
    pub fn expect_exit(&mut self, expected: ExitReason) {
        let exit = match self.vm.wait_exit(DEADLINE) {
            Ok(exit) => exit,
            Err(error) => panic!("{error}"),
        };
        assert!(
            exit == Exit::Host(expected),
            "{exit}, expected: {}\n{}",
            Exit::Host(expected),
            self.vm.report()
        );
    }

    /// Waits for the machine to end as one that was switched off or reset.
    #[track_caller]
    pub fn expect_normal_end(&mut self) -> Exit {
        let exit = match self.vm.wait_exit(DEADLINE) {
            Ok(exit) => exit,
            Err(error) => panic!("{error}"),
        };
        assert!(exit == Exit::Normal, "{exit}\n{}", self.vm.report());
        exit
    }

    /// Waits for the host to refuse the image; the reason.
    #[track_caller]
    pub fn expect_refusal(&mut self) -> String {
        self.expect_exit(ExitReason::ImageRefused);
        self.expect_event(Source::Host, "refusal", |event| match event {
            Event::HostImageRefused(reason) => Some(reason.to_owned()),
            _ => None,
        })
    }

    /// Waits for VTL2 to crash; the cause, as the host decoded it.
    #[track_caller]
    pub fn expect_crash(&mut self) -> String {
        self.expect_exit(ExitReason::Vtl2Crash);
        self.expect_event(Source::Host, "crash", |event| match event {
            Event::Vtl2Crashed(cause) => Some(cause.to_owned()),
            _ => None,
        })
    }

    /// Types a line on VTL2's console.
    #[track_caller]
    pub fn type_line(&mut self, text: &str) {
        if let Err(error) = self.vm.type_text(format!("{text}\n").as_bytes()) {
            panic!("typing {text:?}: {error}\n{}", self.vm.report());
        }
    }

    /// All that was said so far, as one text.
    pub fn console(&self, source: Source) -> String {
        self.vm
            .lines(source)
            .iter()
            .flat_map(|line| [line.text.as_str(), "\n"])
            .collect()
    }

    /// Where the machine's vsock is reached. Connect only after [`TestVm::expect_ready`]:
    /// an earlier connection can take vsock's helper down.
    #[track_caller]
    pub fn vsock(&self) -> VsockAddress {
        match self.vm.vsock() {
            Some(address) => address.clone(),
            None => panic!("this machine has no vsock, expected `Scenario::vsock`"),
        }
    }

    /// A client of the paravisor's diagnostics, once the paravisor is ready.
    #[track_caller]
    pub fn diag(&mut self) -> Client {
        self.expect_ready();
        self.diag_of_ready()
    }

    /// A client of the paravisor's diagnostics, for who has seen that the paravisor is ready.
    #[track_caller]
    pub fn diag_of_ready(&mut self) -> Client {
        let address = diag_address(&self.vsock());
        match Client::connect_within(address, DEADLINE) {
            Ok(client) => client,
            Err(error) => panic!("diagnostics: {error}\n{}", self.vm.report()),
        }
    }

    /// Connects to a port that a program in the machine listens on.
    #[track_caller]
    pub fn connect(&self, port: u32) -> File {
        match self.vsock().connect(port) {
            Ok(stream) => stream,
            Err(error) => panic!("vsock port {port}: {error}"),
        }
    }

    /// The machine itself.
    pub fn vm(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// Where the consoles are kept if the test fails; for messages.
    pub fn directory(&self) -> &Path {
        self.vm.directory()
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        let directory = self.vm.directory();
        if std::thread::panicking() {
            eprintln!("consoles are kept in {}", directory.display());
        } else {
            // A directory that cannot be removed is no reason to fail; the next run of
            // the tests starts with an empty one.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// The address of a machine's vsock, as clients of the diagnostics write it.
pub fn diag_address(vsock: &VsockAddress) -> VmAddress {
    match vsock {
        VsockAddress::Hybrid(path) => VmAddress::HybridVsock(path.clone()),
        VsockAddress::Cid(cid) => VmAddress::Vsock(*cid),
    }
}

/// A directory that no other machine uses: the test's name and a number.
fn new_directory(artifacts: &Artifacts) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test").replace("::", ".");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    artifacts.consoles.join(format!("{test}-{number}"))
}

//! The terminal is the guest's console; the logs of host and VTL2 go to files.
//!
//! One thread decides: it gets what is typed, what the consoles of the machine tell, the end
//! of a connection, and signals as happenings, one after the other, and never waits for
//! anything else. So Ctrl-A X ends the machine in every state of it.

use crate::run::Run;
use crate::run::diag;
use crate::run::keys::Action;
use crate::run::keys::HELP;
use crate::run::keys::Keys;
use crate::run::raw::RawTerminal;
use crate::run::raw::block_signals;
use crate::run::raw::wait_for_signal;
use anyhow::Context as _;
use boot_events::Event;
use diag_client::registry::Registration;
use nix::sys::signal::Signal;
use qemu::Exit;
use qemu::GuestPort;
use qemu::Source;
use qemu::Vm;
use std::fs::File;
use std::io::Read;
use std::io::Stdin;
use std::io::Write;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use vsm_host_defs::ExitReason;

/// How long QEMU may take to go after it has closed its consoles.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a console's line that can matter here.
const MAX_LINE: usize = 4096;

/// The paravisor's word about what matters to the person.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The paravisor has finished its start.
    Ready,
    /// There is a worker.
    WorkerReady,
    /// Something went wrong.
    Bad(String),
}

impl Told {
    /// What a line of VTL2's console tells.
    fn of(line: &str) -> Option<Self> {
        match Event::parse(line)? {
            Event::Ready => Some(Self::Ready),
            Event::WorkerReady(_) => Some(Self::WorkerReady),
            Event::WorkerDied(cause) => Some(Self::Bad(format!("The VM worker died: {cause}"))),
            Event::GuestCrashed(cause) => Some(Self::Bad(format!("The guest crashed: {cause}"))),
            Event::GuestStopped(cause) => {
                Some(Self::Bad(format!("The guest cannot go on: {cause}")))
            }
            _ => None,
        }
    }
}

/// Bytes that are kept of what is typed while the guest is not connected.
const KEPT_MAX: usize = 4096;

/// What can happen while a person watches.
enum Happening {
    Typed(Vec<u8>),
    Told(Told),
    /// The connection with this number has ended.
    Disconnected(u32),
    /// Nothing, if the program only goes on after a stop.
    Signal(Option<Signal>),
    MachineEnded,
}

/// How the loop ended.
enum End {
    Machine,
    Person,
    Signal(Signal),
}

/// Boots and stays until the machine ends or the person ends it.
pub(super) fn run(run: &Run<'_>) -> anyhow::Result<()> {
    // Before there is any other thread.
    block_signals().context("blocking signals")?;
    let (sender, happenings) = mpsc::channel();
    let mut vm = run
        .machine
        .start_with_echo(run.qemu, run.consoles, |source| {
            Some(Box::new(Watcher {
                line: Vec::new(),
                source,
                sender: sender.clone(),
            }))
        })?;
    let place = run.consoles.display();
    eprintln!("The guest boots. Its console is this terminal; Ctrl-A X ends, Ctrl-A H helps.");
    for source in Source::ALL {
        eprintln!("{:<13} {place}/{}", source.name(), source.file_name());
    }
    let log = File::create(run.consoles.join(GuestPort::Com1.file_name()));
    let raw = RawTerminal::enter(std::io::stdin()).context("making the terminal raw")?;
    let keys = sender.clone();
    std::thread::spawn(move || read_keys(&keys));
    let signals = sender.clone();
    std::thread::spawn(move || {
        while let Ok(signal) = wait_for_signal() {
            if signals.send(Happening::Signal(signal)).is_err() {
                break;
            }
        }
    });

    let mut session = Session {
        run,
        vm: &vm,
        raw: &raw,
        sender,
        log: log.ok(),
        keys: Keys::default(),
        connections: 0,
        keyboard: Keyboard::default(),
        registered: None,
    };
    // A sender lives in the session, so this ends by a `break` only.
    let end = happenings
        .into_iter()
        .find_map(|happening| session.handle(happening))
        .unwrap_or(End::Machine);
    drop(session);
    drop(raw);
    match end {
        End::Machine => {
            let exit = vm.wait_exit(END_PATIENCE)?;
            println!("\n{exit}; consoles are in {place}");
            anyhow::ensure!(
                exit == Exit::Host(ExitReason::PowerOff),
                "expected an orderly power-off\n{}",
                vm.report()
            );
        }
        End::Person => {
            vm.kill()?;
            println!("\nended; consoles are in {place}");
        }
        End::Signal(signal) => {
            vm.kill()?;
            anyhow::bail!("ended by {signal}; consoles are in {place}");
        }
    }
    Ok(())
}

/// A terminal and a machine.
struct Session<'a> {
    run: &'a Run<'a>,
    vm: &'a Vm,
    raw: &'a RawTerminal<Stdin>,
    sender: Sender<Happening>,
    /// What the guest says.
    log: Option<File>,
    keys: Keys,
    /// Connections that there were.
    connections: u32,
    keyboard: Keyboard,
    /// Keeps the VM in the list where `ohcldiag` looks.
    registered: Option<Registration>,
}

impl Session<'_> {
    fn handle(&mut self, happening: Happening) -> Option<End> {
        match happening {
            Happening::Typed(bytes) => {
                for action in self.keys.typed(&bytes) {
                    match action {
                        Action::End => return Some(End::Person),
                        Action::Help => show(HELP),
                        Action::Send(bytes) => self.keyboard.typed(bytes),
                    }
                }
                None
            }
            Happening::Told(told) => {
                match told {
                    Told::Bad(text) => {
                        self.keyboard.forget();
                        show(&text);
                    }
                    Told::Ready => self.paravisor_is_ready(),
                    // The worker was started again, and with it the guest.
                    Told::WorkerReady if self.connections > 0 => self.connect(),
                    // The first one: nobody listens before the paravisor is ready.
                    Told::WorkerReady => {}
                }
                None
            }
            Happening::Disconnected(number) => {
                if number == self.connections {
                    self.keyboard.disconnected();
                }
                None
            }
            Happening::Signal(Some(signal)) => Some(End::Signal(signal)),
            Happening::Signal(None) => {
                // If it cannot be, the person sees it.
                let _ = self.raw.renew();
                None
            }
            Happening::MachineEnded => Some(End::Machine),
        }
    }

    fn paravisor_is_ready(&mut self) {
        self.connect();
        if self.run.diag {
            self.registered = self.run.register(self.vm);
            if self.run.timeline.is_some() {
                let answers = diag::ask(self.vm);
                let written = answers.and_then(|a| self.run.write_timeline(&a.timeline));
                if let Err(error) = written {
                    show(&format!("no timeline: {error:#}"));
                }
            }
        }
    }

    /// Connects the terminal with the guest's first serial port.
    fn connect(&mut self) {
        if let Err(error) = self.try_connect() {
            show(&format!("the guest's console cannot be reached: {error:#}"));
        }
    }

    fn try_connect(&mut self) -> anyhow::Result<()> {
        let address = self.vm.vsock().context("the machine has no vsock")?;
        let stream = address.connect(GuestPort::Com1.vsock_port())?;
        let (input, sender) = (stream.try_clone()?, self.sender.clone());
        let log = self.log.as_ref().and_then(|log| log.try_clone().ok());
        self.connections += 1;
        let number = self.connections;
        std::thread::Builder::new()
            .name("guest's output".to_owned())
            .spawn(move || {
                copy_output(input, log);
                let _ = sender.send(Happening::Disconnected(number));
            })?;
        // A guest that does not read must not stop the thread that knows Ctrl-A X.
        let (typed, receiver) = mpsc::channel::<Vec<u8>>();
        std::thread::Builder::new()
            .name("guest's input".to_owned())
            .spawn(move || {
                for bytes in receiver {
                    if (&stream).write_all(&bytes).is_err() {
                        break;
                    }
                }
            })?;
        self.keyboard.connected(typed);
        Ok(())
    }
}

/// The way of what is typed to the guest.
#[derive(Default)]
struct Keyboard {
    /// To the guest, while it is connected.
    guest: Option<Sender<Vec<u8>>>,
    /// What was typed before it was. A worker that is restarted takes no connection for a
    /// moment, which is not the person's concern.
    kept: Vec<u8>,
}

impl Keyboard {
    fn typed(&mut self, bytes: Vec<u8>) {
        let unsent = match &self.guest {
            Some(guest) => guest.send(bytes).err().map(|error| error.0),
            None => Some(bytes),
        };
        if let Some(bytes) = unsent {
            let room = KEPT_MAX.saturating_sub(self.kept.len());
            self.kept.extend(&bytes[..bytes.len().min(room)]);
        }
    }

    fn connected(&mut self, guest: Sender<Vec<u8>>) {
        self.guest = Some(guest);
        let kept = std::mem::take(&mut self.kept);
        if !kept.is_empty() {
            self.typed(kept);
        }
    }

    fn disconnected(&mut self) {
        self.guest = None;
    }

    /// What was typed was for a guest that is no more.
    fn forget(&mut self) {
        self.kept.clear();
    }
}

fn copy_output(mut stream: impl Read, mut log: Option<File>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let bytes = &buffer[..count];
        if let Some(log) = &mut log {
            // A full disk is no reason to stop.
            let _ = log.write_all(bytes);
        }
        let mut stdout = std::io::stdout().lock();
        if stdout
            .write_all(bytes)
            .and_then(|()| stdout.flush())
            .is_err()
        {
            break;
        }
    }
}

fn read_keys(sender: &Sender<Happening>) {
    let mut keys = [0; 256];
    // Ends with the program, or when nobody listens any more.
    while let Ok(count @ 1..) = std::io::stdin().lock().read(&mut keys) {
        if sender.send(Happening::Typed(keys[..count].into())).is_err() {
            break;
        }
    }
}

/// Our own words on a raw terminal.
fn show(text: &str) {
    let text = text.replace('\n', "\r\n");
    let mut stderr = std::io::stderr().lock();
    // Nobody is left to be told.
    let _ = write!(stderr, "\r\n{text}\r\n");
}

/// Looks at the lines of a console, and tells its end.
struct Watcher {
    line: Vec<u8>,
    source: Source,
    sender: Sender<Happening>,
}

impl Write for Watcher {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.source != Source::Vtl2 {
            return Ok(bytes.len());
        }
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            if let Some(told) = Told::of(&line) {
                // Nobody listens when the machine was ended on purpose.
                let _ = self.sender.send(Happening::Told(told));
            }
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // The host's log is the one that ends last.
        if self.source == Source::Host {
            let _ = self.sender.send(Happening::MachineEnded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pieces: &[&str]) -> Vec<Told> {
        let (sender, happenings) = mpsc::channel();
        let mut watcher = Watcher {
            line: Vec::new(),
            source: Source::Vtl2,
            sender,
        };
        for piece in pieces {
            watcher.write_all(piece.as_bytes()).unwrap();
        }
        watcher.write_all(&vec![b'x'; 3 * MAX_LINE]).unwrap();
        drop(watcher);
        let only_told = |happening| match happening {
            Happening::Told(told) => told,
            _ => panic!("only lines were said"),
        };
        happenings.into_iter().map(only_told).collect()
    }

    #[test]
    fn lines_that_matter_are_told_wherever_they_are_cut() {
        let (a, b) = boot_events::READY.split_at(7);
        let pieces = [
            "[    1.0] noise\n[    2.0] ",
            a,
            b,
            "\r\n[    2.1] ",
            boot_events::WORKER_DIED_PREFIX,
            "signal 9\r\n[    2.2] ",
            boot_events::WORKER_READY_PREFIX,
            "7\n[    3.0] ",
            boot_events::GUEST_CRASHED_PREFIX,
            "VP 0: triple fault\n",
        ];
        let expected = [
            Told::Ready,
            Told::Bad("The VM worker died: signal 9".to_owned()),
            Told::WorkerReady,
            Told::Bad("The guest crashed: VP 0: triple fault".to_owned()),
        ];
        assert_eq!(told(&pieces), expected);
    }

    #[test]
    fn what_a_guest_is_quoted_with_is_not_told() {
        let (ready, stopped) = (boot_events::READY, boot_events::GUEST_STOPPED_PREFIX);
        let line = format!("[    3.0] underhill_vm: {ready}\n[    3.1] underhill_vm: {stopped}x\n");
        assert_eq!(told(&[&line]), []);
    }

    #[test]
    fn what_is_typed_while_a_worker_is_replaced_reaches_the_guest() {
        let mut keyboard = Keyboard::default();
        let (first, of_first) = mpsc::channel();
        keyboard.connected(first);
        keyboard.typed(b"one".to_vec());
        assert_eq!(of_first.recv().unwrap(), b"one");
        // Not told yet.
        drop(of_first);
        keyboard.typed(b"tw".to_vec());
        keyboard.disconnected();
        keyboard.typed(b"o".to_vec());

        let (second, of_second) = mpsc::channel();
        keyboard.connected(second);
        assert_eq!(of_second.recv().unwrap(), b"two");
        keyboard.disconnected();
        keyboard.typed(vec![b'x'; 2 * KEPT_MAX]);
        assert_eq!(keyboard.kept.len(), KEPT_MAX);
        keyboard.forget();
        let (third, of_third) = mpsc::channel();
        keyboard.connected(third);
        assert!(of_third.try_recv().is_err());
    }
}

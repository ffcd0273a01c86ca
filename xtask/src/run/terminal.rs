//! A person at a terminal: shows both consoles, and types on VTL2's.

use crate::run::Run;
use crate::run::diag;
use boot_events::Event;
use diag_client::registry::Registration;
use nix::sys::termios;
use nix::sys::termios::LocalFlags;
use nix::sys::termios::SetArg;
use nix::sys::termios::SpecialCharacterIndices;
use nix::sys::termios::Termios;
use qemu::Source;
use qemu::Timeline;
use qemu::Vm;
use std::io::Read as _;
use std::io::Write;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Ctrl-]: ends the machine while the terminal belongs to VTL2.
const END_KEY: u8 = 0x1d;

/// How long to wait for the boot before the terminal is handed over all the same; Ctrl-C
/// works until then.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// How long QEMU may take to go after it has closed its consoles.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Commands that are worth a try.
const COMMANDS: [&str; 5] = [
    "inspect",
    "kmsg --follow",
    "boot-timeline",
    "restart",
    "power-off",
];

/// What can happen while a person watches.
enum Happening {
    Typed(Vec<u8>),
    MachineEnded,
}

/// Boots and stays until the machine ends or the person ends it.
pub(super) fn run(run: &Run<'_>, typing: bool) -> anyhow::Result<()> {
    let (sender, happenings) = mpsc::channel();
    let consoles = run.consoles;
    let mut vm = run.machine.start_with_echo(run.qemu, consoles, |source| {
        Some(Box::new(Screen {
            // The host's log is the one that ends last.
            ended: (source == Source::Host).then(|| sender.clone()),
        }))
    })?;

    let booted = vm.wait_for_event(Event::Ready, BOOT_PATIENCE);
    eprintln!("\n{}", Timeline::of(&vm));
    // Left in the list for as long as this function runs.
    let _registered = match &booted {
        Ok(_) if run.diag => show_diagnostics(run, &vm),
        Ok(_) => None,
        Err(error) => {
            eprintln!("{error}");
            None
        }
    };
    match typing {
        true => eprintln!("The terminal is VTL2's console now. Ctrl-] ends the machine."),
        false => eprintln!("Ctrl-C ends the machine."),
    }

    let raw = typing.then(RawTerminal::enter).transpose()?;
    if typing {
        std::thread::spawn(move || read_keys(&sender));
    } else {
        // Only the machine's end can come now.
        drop(sender);
    }
    let mut ended_by_key = false;
    for happening in happenings {
        match happening {
            Happening::Typed(keys) if keys.contains(&END_KEY) => {
                ended_by_key = true;
                break;
            }
            Happening::Typed(keys) => vm.type_text(&keys)?,
            Happening::MachineEnded => break,
        }
    }
    drop(raw);

    if ended_by_key {
        vm.kill()?;
        println!("\nended; consoles are in {}", consoles.display());
    } else {
        let exit = vm.wait_exit(END_PATIENCE)?;
        println!("\n{exit}; consoles are in {}", consoles.display());
    }
    Ok(())
}

/// Asks the paravisor what an unattended run asks, and says what a person can ask.
fn show_diagnostics(run: &Run<'_>, vm: &Vm) -> Option<Registration> {
    match diag::ask(vm) {
        Ok(answers) => {
            eprintln!("{}\n{}\n", answers.timeline, answers.ping);
            if let Err(error) = run.write_timeline(&answers.timeline) {
                eprintln!("{error:#}");
            }
        }
        Err(error) => eprintln!("the paravisor does not answer: {error:#}"),
    }
    let registered = run.register(vm)?;
    eprintln!("This VM is {:?}. In another terminal:", run.vm_name());
    for command in COMMANDS {
        eprintln!("  cargo xtask ohcldiag {command}");
    }
    eprintln!();
    Some(registered)
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

/// Shows a console, and tells when it ends.
struct Screen {
    ended: Option<Sender<Happening>>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(sender) = self.ended.take() {
            // Nobody listens when the machine was ended on purpose.
            let _ = sender.send(Happening::MachineEnded);
        }
    }
}

/// A terminal that passes every key on at once, Ctrl-C included. Put right again when
/// dropped. Output stays as it is, so that the host's plain line ends look right.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> nix::Result<Self> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.input_flags
            .remove(termios::InputFlags::ICRNL | termios::InputFlags::IXON);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

//! `exec` and `shell`: programs in VTL2, with the streams of this program.

use crate::cli::ExecArgs;
use crate::cli::ShellArgs;
use crate::exit::Failure;
use crate::output;
use crate::signals::Caught;
use crate::terminal;
use crate::terminal::Raw;
use crate::terminal::Size;
use diag_client::Client;
use diag_client::Code;
use diag_client::DataStream;
use diag_client::Error;
use diag_client::Exec;
use diag_client::Process;
use std::env;
use std::io;
use std::io::Read;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

/// Bytes of input that are carried at once. A vsock helper may lose a packet above 32 KiB.
const CHUNK: usize = 4 << 10;

/// Key that leaves a raw terminal whatever the VM does: Ctrl-], as in `cargo xtask run`.
const LEAVE: u8 = 0x1d;

/// Ctrl-D, the end of input on a terminal.
const END_OF_INPUT: u8 = 0x04;

pub(crate) fn run(client: &Client, args: &ExecArgs) -> Result<ExitCode, Failure> {
    let mut words = args.command.iter().cloned();
    let exec = Exec {
        // There is at least one word.
        command: words.next().unwrap_or_default(),
        args: words.collect(),
        tty: args.tty,
        stdin: !args.no_stdin,
        stdout: true,
        stderr: true,
        combine_stderr: false,
        env: args.env.clone(),
        clear_env: args.clear_env,
    };
    if exec.tty {
        with_terminal(client, exec)
    } else {
        with_pipes(client.exec(&exec)?)
    }
}

pub(crate) fn shell(client: &Client, args: &ShellArgs) -> Result<ExitCode, Failure> {
    let mut exec = Exec {
        command: args.shell.clone(),
        tty: args.commands.is_none() && terminal::is_interactive(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Exec::default()
    };
    if let Some(commands) = &args.commands {
        exec.args = vec!["-c".to_owned(), commands.clone()];
    }
    let result = match exec.tty {
        true => with_terminal(client, exec),
        false => client
            .exec(&exec)
            .map_err(Failure::from)
            .and_then(with_pipes),
    };
    result.map_err(|failure| match failure {
        Failure::Vm(error) if is_missing(&error) => Failure::Other(format!(
            "this image has no {}: only development images have a shell (`cargo xtask run --dev`)",
            args.shell
        )),
        other => other,
    })
}

/// Whether the program is not there.
fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Status { what, .. } if what == "Exec")
        && error.status() == Some(Code::NotFound)
}

/// Streams as they are, like `ssh` without a terminal.
fn with_pipes(mut process: Process) -> Result<ExitCode, Failure> {
    if let Some(stdin) = process.stdin.take() {
        thread::spawn(move || {
            let mut stdin = stdin;
            // A program that reads no more of its input is no failure.
            if carry_input(&mut stdin).is_ok() {
                _ = stdin.finish();
            }
        });
    }
    let stderr = process.stderr.take().map(|mut stderr| {
        thread::spawn(move || output::copy("stderr", &mut stderr, &mut io::stderr()))
    });
    if let Some(mut stdout) = process.stdout.take() {
        output::copy("stdout", &mut stdout, &mut io::stdout())?;
    }
    if let Some(stderr) = stderr {
        // A panic of that thread has been reported by itself.
        stderr.join().unwrap_or(Ok(()))?;
    }
    Ok(code(process.wait(None)?))
}

fn carry_input(to: &mut DataStream) -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; CHUNK];
    loop {
        match stdin.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// The program is connected to the terminal, every key and every escape sequence.
fn with_terminal(client: &Client, mut exec: Exec) -> Result<ExitCode, Failure> {
    // So that programs know what the terminal understands; -e says it better.
    if !exec.env.iter().any(|(name, _)| name == "TERM")
        && let Ok(term) = env::var("TERM")
    {
        exec.env.push(("TERM".to_owned(), Some(term)));
    }
    let interactive = terminal::is_interactive();
    // Before the first thread, which inherits it.
    let caught = match interactive {
        true => Some(Caught::new().map_err(|error| Failure::Other(format!("signals: {error}")))?),
        false => None,
    };
    let mut process = client.exec(&exec)?;
    let raw = caught
        .map(|caught| make_raw(caught, client, process.pid))
        .transpose()?;
    let left = Arc::new(AtomicBool::new(false));
    if let Some(mut stdin) = process.stdin.take() {
        let left = left.clone();
        thread::spawn(move || {
            if let Ok(End::Left) = carry_keys(&mut stdin, interactive) {
                left.store(true, Ordering::Release);
                // Wakes the thread that reads.
                _ = stdin.close();
            }
        });
    }
    if let Some(mut stdout) = process.stdout.take() {
        output::copy_plain("terminal", &mut stdout, &mut io::stdout())?;
    }
    drop(raw);
    if left.load(Ordering::Acquire) {
        return Err(Failure::Other("left with Ctrl-]".to_owned()));
    }
    Ok(code(process.wait(None)?))
}

/// Makes this terminal raw, and lets the other one have its size from now on.
fn make_raw(caught: Caught, client: &Client, pid: i32) -> Result<Raw, Failure> {
    let raw = Raw::enter().map_err(|error| Failure::Other(format!("terminal: {error}")))?;
    let address = client.address().clone();
    let timeout = client.timeout();
    let resize = move || {
        // A client of its own: the first may be busy, and a resize is rare.
        let client = Client::connect_within(address.clone(), timeout);
        if let (Some(size), Ok(client)) = (terminal::size(), client) {
            set_size(&client, pid, size);
        }
    };
    resize();
    caught.handle(raw.saved(), resize);
    Ok(raw)
}

/// How the input has ended.
enum End {
    /// There is no more.
    Input,
    /// Somebody has had enough.
    Left,
}

/// Carries keys. The end of the input is typed, because closing the connection would close
/// the terminal, with output that is still to come.
fn carry_keys(to: &mut DataStream, interactive: bool) -> io::Result<End> {
    let mut stdin = io::stdin().lock();
    let mut buffer = [0; CHUNK];
    loop {
        let count = stdin.read(&mut buffer)?;
        let keys = &buffer[..count];
        if keys.is_empty() {
            to.write_all(&[END_OF_INPUT])?;
            return Ok(End::Input);
        }
        if interactive && let Some(at) = keys.iter().position(|key| *key == LEAVE) {
            to.write_all(&keys[..at])?;
            return Ok(End::Left);
        }
        to.write_all(keys)?;
    }
}

/// Tells the terminal of a process its size. The protocol has no request for that, so a
/// program of the development image does it; in other images nothing needs it.
fn set_size(client: &Client, pid: i32, size: Size) {
    let exec = Exec {
        command: "/bin/busybox".to_owned(),
        args: ["stty", "-F", &format!("/proc/{pid}/fd/0"), "rows"]
            .into_iter()
            .map(str::to_owned)
            .chain([
                size.rows.to_string(),
                "cols".to_owned(),
                size.columns.to_string(),
            ])
            .collect(),
        ..Exec::default()
    };
    if let Ok(mut process) = client.exec(&exec) {
        _ = process.wait(Some(client.timeout()));
    }
}

fn code(code: i32) -> ExitCode {
    // What no process can return is a defect of the server.
    u8::try_from(code).unwrap_or(u8::MAX).into()
}

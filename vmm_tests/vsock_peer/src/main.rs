//! The services of the library, each connection on a thread of its own.

use nix::sys::socket;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::VsockAddr;
use std::fs::File;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use vsock_peer::Check;
use vsock_peer::ECHO_PORT;
use vsock_peer::LISTENING;
use vsock_peer::Pattern;
use vsock_peer::SINK_PORT;
use vsock_peer::SOURCE_PORT;
use vsock_peer::SourceRequest;

/// With a short one the helper's connections are reset before they are accepted.
const BACKLOG: i32 = 128;

/// The most that one write may have: larger packets never arrive through vsock's helper.
const MAX_WRITE: usize = 16 << 10;

type Service = fn(File) -> io::Result<()>;

fn main() -> io::Result<()> {
    let services: [(u32, Service); 3] =
        [(ECHO_PORT, echo), (SOURCE_PORT, source), (SINK_PORT, sink)];
    let mut listeners = Vec::new();
    for (port, service) in services {
        listeners.push((listen(port)?, service));
    }
    println!("{LISTENING}");
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|(listener, service)| std::thread::spawn(move || serve(&listener, service)))
        .collect();
    for thread in threads {
        if thread.join().is_err() {
            return Err(io::Error::other("a service panicked"));
        }
    }
    Ok(())
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    let listener = socket::socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    socket::bind(listener.as_raw_fd(), &VsockAddr::new(u32::MAX, port))?;
    socket::listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

fn serve(listener: &OwnedFd, service: Service) {
    while let Ok(connection) = accept(listener) {
        std::thread::spawn(move || {
            if let Err(error) = service(connection) {
                println!("vsock_peer: {error}");
            }
        });
    }
}

#[expect(unsafe_code, reason = "nix gives an accepted connection as a number")]
fn accept(listener: &OwnedFd) -> io::Result<File> {
    let descriptor = socket::accept(listener.as_raw_fd())?;
    // SAFETY: accept has just made it, so it is open and nobody else has it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

fn echo(mut connection: File) -> io::Result<()> {
    let mut bytes = [0; MAX_WRITE];
    loop {
        let count = connection.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        connection.write_all(&bytes[..count])?;
    }
}

fn source(mut connection: File) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line)?;
    let request = SourceRequest::parse(&line).ok_or(io::ErrorKind::InvalidInput)?;
    let mut pattern = Pattern::default();
    let mut bytes = vec![0; request.write];
    let mut left = request.bytes;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        pattern.fill(&mut bytes[..count]);
        connection.write_all(&bytes[..count])?;
        left -= count as u64;
    }
    // The other side closes when it has everything: what is still under way when this side
    // closes could be lost.
    connection.read(&mut [0]).map(|_| ())
}

fn sink(mut connection: File) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut left: u64 = line
        .trim_end()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut check = Check::default();
    let mut bytes = [0; MAX_WRITE];
    let mut verdict = Ok(());
    while left > 0 && verdict.is_ok() {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let count = reader.read(&mut bytes[..wanted])?;
        if count == 0 {
            verdict = Err(format!("ended after {} bytes", check.right()));
            break;
        }
        left -= count as u64;
        verdict = check.feed(&bytes[..count]);
    }
    let answer = verdict.err().unwrap_or_else(|| "ok".to_owned());
    connection.write_all(format!("{answer}\n").as_bytes())?;
    connection.read(&mut [0]).map(|_| ())
}

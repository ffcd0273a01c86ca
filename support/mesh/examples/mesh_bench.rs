//! Round trips between two processes: a call through mesh against the same payload on a
//! bare pair of sockets, in the same run. The crate's documentation has the format of the
//! JSON that this prints.
//!
//! ```sh
//! cargo run --release -p mesh --example mesh_bench [-- ROUND_TRIPS]
//! ```

use mesh::Bytes;
use mesh::Fd;
use mesh::Receiver;
use mesh::Rpc;
use mesh::Sender;
use mesh::process;
use mesh::process::ProcessConfig;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use serde::Deserialize;
use serde::Serialize;
use std::error::Error;
use std::io::Read;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Instant;

const PEER: &str = "mesh_bench_peer";
const PAYLOADS: [usize; 2] = [64, 4096];
const DEFAULT_ROUND_TRIPS: usize = 10_000;
/// The three take turns of this many round trips, so that a noisy moment hits all.
const TURN: usize = 50;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Serialize, Deserialize)]
enum Request {
    Echo(Rpc<Bytes, Bytes>),
}

#[derive(Serialize, Deserialize)]
struct Parameters {
    requests: Receiver<Request>,
    seqpacket: Fd,
    stream: Fd,
}

/// Nanoseconds of each round trip.
#[derive(Default)]
struct Samples {
    mesh: Vec<u64>,
    seqpacket: Vec<u64>,
    stream: Vec<u64>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let result = if arguments.next().is_some_and(|name| name == PEER) {
        peer()
    } else {
        bench(arguments.next())
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh_bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async { tokio::spawn(future).await })?)
}

/// Echoes until all three ways are closed.
fn peer() -> Result<()> {
    let Parameters {
        mut requests,
        seqpacket,
        stream,
    } = process::invitation()?;
    for Fd(socket) in [seqpacket, stream] {
        std::thread::spawn(|| echo(socket));
    }
    block_on(async move {
        while let Ok(Request::Echo(rpc)) = requests.recv().await {
            rpc.handle(async |bytes| bytes).await;
        }
    })
}

fn echo(socket: OwnedFd) {
    let mut socket = UnixStream::from(socket);
    let mut size = [0; 4];
    while socket.read_exact(&mut size).is_ok() {
        let mut payload = vec![0; u32::from_le_bytes(size) as usize];
        for _ in 0..TURN {
            if socket.read_exact(&mut payload).is_err() || socket.write_all(&payload).is_err() {
                return;
            }
        }
    }
}

fn bench(round_trips: Option<String>) -> Result<()> {
    let round_trips = round_trips.map_or(Ok(DEFAULT_ROUND_TRIPS), |text| text.parse())?;
    let turns = round_trips.div_ceil(TURN).max(1);
    stay_on_one_cpu()?;
    let report = block_on(async move {
        let (sender, requests) = mesh::channel();
        let (seqpacket, their_seqpacket) = pair(SocketType::SEQPACKET)?;
        let (stream, their_stream) = pair(SocketType::STREAM)?;
        let config = ProcessConfig::new(PEER);
        let parameters = Parameters {
            requests,
            seqpacket: their_seqpacket.into(),
            stream: their_stream.into(),
        };
        let _child = process::launch(config, parameters)?;
        let mut bare = [UnixStream::from(seqpacket), UnixStream::from(stream)];
        let mut payloads = Vec::new();
        for size in PAYLOADS {
            let mut samples = Samples::default();
            let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
            // The first turn of each warms up.
            for turn in 0..=turns {
                let mesh = mesh_turn(&sender, &payload).await?;
                let [seqpacket, stream] = &mut bare;
                let seqpacket = bare_turn(seqpacket, &payload)?;
                let stream = bare_turn(stream, &payload)?;
                if turn > 0 {
                    samples.mesh.extend(mesh);
                    samples.seqpacket.extend(seqpacket);
                    samples.stream.extend(stream);
                }
            }
            payloads.push(samples.report(size));
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(serde_json::json!({
            "version": 1,
            "round_trips": turns * TURN,
            "payloads": payloads,
        }))
    })??;
    println!("{report:#}");
    Ok(())
}

/// Keeps this process and its children on the CPU where it is. Otherwise the scheduler
/// decides for each pair of threads whether a wake-up crosses CPUs, which costs four
/// times as much, and so which of the three wins.
fn stay_on_one_cpu() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

fn pair(kind: SocketType) -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

async fn mesh_turn(sender: &Sender<Request>, payload: &[u8]) -> Result<Vec<u64>> {
    let mut times = Vec::with_capacity(TURN);
    let mut payload = Bytes(payload.to_vec());
    for _ in 0..TURN {
        let start = Instant::now();
        payload = sender.call(Request::Echo, payload).await?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

fn bare_turn(socket: &mut UnixStream, payload: &[u8]) -> Result<Vec<u64>> {
    let mut times = Vec::with_capacity(TURN);
    let mut answer = vec![0; payload.len()];
    socket.write_all(&(payload.len() as u32).to_le_bytes())?;
    for _ in 0..TURN {
        let start = Instant::now();
        socket.write_all(payload)?;
        socket.read_exact(&mut answer)?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

impl Samples {
    fn report(self, size: usize) -> serde_json::Value {
        let [mesh, seqpacket, stream] = [self.mesh, self.seqpacket, self.stream].map(median);
        serde_json::json!({
            "bytes": size,
            "mesh_rpc_ns": mesh,
            "seqpacket_ns": seqpacket,
            "stream_ns": stream,
            "ratio": mesh as f64 / seqpacket as f64,
        })
    }
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

//! Package `diag`.

/// Service that tells whether the paravisor answers.
pub const OPENHCL_DIAG: &str = "diag.OpenhclDiag";
/// Service of everything else. Servers that do not know one of its methods mishandled
/// the request, so it never gets new ones.
pub const UNDERHILL_DIAG: &str = "diag.UnderhillDiag";

/// No fields.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// A variable of an environment.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EnvPair {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value; without one, the variable is removed.
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// `UnderhillDiag.Exec`: starts a process.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecRequest {
    /// The program.
    #[prost(string, tag = "1")]
    pub command: String,
    /// Its arguments, without the name.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// With a terminal, whose both directions are the connection `stdin`.
    #[prost(bool, tag = "3")]
    pub tty: bool,
    /// Data connection for standard input; 0: none.
    #[prost(uint64, tag = "4")]
    pub stdin: u64,
    /// Data connection for standard output; 0: none.
    #[prost(uint64, tag = "5")]
    pub stdout: u64,
    /// Data connection for standard error; 0: none.
    #[prost(uint64, tag = "6")]
    pub stderr: u64,
    /// Standard error goes where standard output goes.
    #[prost(bool, tag = "7")]
    pub combine_stderr: bool,
    /// Changes to the environment.
    #[prost(message, repeated, tag = "8")]
    pub env: Vec<EnvPair>,
    /// Start from an empty environment.
    #[prost(bool, tag = "9")]
    pub clear_env: bool,
    /// The process gets the connections themselves instead of pipes.
    #[prost(bool, tag = "10")]
    pub raw_socket_io: bool,
}

/// Answer to [`ExecRequest`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ExecResponse {
    /// The process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// `UnderhillDiag.Wait`: waits for the end of a process that `Exec` has started.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct WaitRequest {
    /// The process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// Answer to [`WaitRequest`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct WaitResponse {
    /// Its exit code; 128 + the signal that ended it.
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
}

/// `UnderhillDiag.Start`: starts a VM whose start was held back.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StartRequest {
    /// Changes to the worker's environment.
    #[prost(message, repeated, tag = "1")]
    pub env: Vec<EnvPair>,
    /// Arguments of the worker.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
}

/// `UnderhillDiag.Crash`: makes a process of the paravisor crash.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct CrashRequest {
    /// The process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// `UnderhillDiag.Kmsg`: the kernel's log.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct KmsgRequest {
    /// Go on with new records.
    #[prost(bool, tag = "1")]
    pub follow: bool,
    /// Data connection for the records.
    #[prost(uint64, tag = "2")]
    pub conn: u64,
}

/// `UnderhillDiag.ReadFile`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FileRequest {
    /// Go on as the file grows.
    #[prost(bool, tag = "1")]
    pub follow: bool,
    /// Data connection for the bytes.
    #[prost(uint64, tag = "2")]
    pub conn: u64,
    /// The file.
    #[prost(string, tag = "3")]
    pub file_path: String,
}

/// Answer to `UnderhillDiag.DumpSavedState`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DumpSavedStateResponse {
    /// The state.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// `OpenhclDiag.MemoryProfileTrace`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct MemoryProfileTraceRequest {
    /// The process.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// Answer to [`MemoryProfileTraceRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemoryProfileTraceResponse {
    /// The profile.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// What [`PacketCaptureRequest`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum PacketCaptureOperation {
    /// How many streams there are.
    Query = 0,
    /// Start capturing.
    Start = 1,
    /// Stop capturing.
    Stop = 2,
}

/// How to capture.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StartPacketCapture {
    /// Most bytes that are kept of a packet.
    #[prost(uint32, tag = "1")]
    pub snaplen: u32,
    /// Data connections, one per stream.
    #[prost(uint64, repeated, tag = "2")]
    pub conns: Vec<u64>,
}

/// `UnderhillDiag.PacketCapture`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PacketCaptureRequest {
    /// What to do.
    #[prost(enumeration = "PacketCaptureOperation", tag = "3")]
    pub operation: i32,
    /// Data of the operation.
    #[prost(oneof = "PacketCaptureData", tags = "4")]
    pub op_data: Option<PacketCaptureData>,
}

/// Data of an operation of [`PacketCaptureRequest`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum PacketCaptureData {
    /// For [`PacketCaptureOperation::Start`].
    #[prost(message, tag = "4")]
    StartData(StartPacketCapture),
}

/// Answer to [`PacketCaptureRequest`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct PacketCaptureResponse {
    /// How many streams there are.
    #[prost(uint32, tag = "1")]
    pub num_streams: u32,
}

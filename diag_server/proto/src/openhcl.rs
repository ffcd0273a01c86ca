//! Package `openhcl`: what this project adds.

/// The service.
pub const OPENHCL_CONTROL: &str = "openhcl.Control";

/// Method of [`OPENHCL_CONTROL`]: stops the worker and the paravisor and powers the
/// machine off. `diag::Empty` both ways; the answer comes before the end.
pub const POWER_OFF: &str = "PowerOff";

/// Method of [`OPENHCL_CONTROL`]: has Linux boot a CPU that is in the sidecar.
/// [`OnlineCpuRequest`], [`OnlineCpuResponse`]; the answer comes when it is there.
pub const ONLINE_CPU: &str = "OnlineCpu";

/// `Control.OnlineCpu`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OnlineCpuRequest {
    /// The CPU, which has the number of its VP.
    #[prost(uint32, tag = "1")]
    pub cpu: u32,
}

/// Answer to [`OnlineCpuRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OnlineCpuResponse {
    /// Why it has left the sidecar, now or before. None: it has not been there, as far as the
    /// VM worker knows.
    #[prost(string, optional, tag = "1")]
    pub reason: Option<String>,
}

//! Package `openhcl`: what this project adds.

/// The service.
pub const OPENHCL_CONTROL: &str = "openhcl.Control";

/// Method of [`OPENHCL_CONTROL`]: stops the worker and the paravisor and powers the
/// machine off. `diag::Empty` both ways; the answer comes before the end.
pub const POWER_OFF: &str = "PowerOff";

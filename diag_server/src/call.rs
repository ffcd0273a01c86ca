//! From the bytes of a request to a call: which method, with which message.

use crate::Exposure;
use crate::Limits;
use crate::Status;
use diag_proto::diag;
use diag_proto::inspect;
use diag_proto::openhcl;
use diag_proto::ttrpc::request::Malformed;
use diag_proto::ttrpc::request::RequestRef;
use diag_proto::ttrpc::request::count_fields;
use std::time::Duration;

/// Most characters of a peer's text that an error repeats.
const SHOWN: usize = 100;

/// A request that this server has a method for.
#[derive(Debug, PartialEq)]
pub(crate) enum Call {
    Ping,
    Exec(diag::ExecRequest),
    Wait(diag::WaitRequest),
    Start(diag::StartRequest),
    Crash(diag::CrashRequest),
    Kmsg(diag::KmsgRequest),
    ReadFile(diag::FileRequest),
    Restart,
    Pause,
    Resume,
    DumpSavedState,
    Inspect(inspect::InspectRequest),
    Update(inspect::UpdateRequest),
    PowerOff,
    OnlineCpu(openhcl::OnlineCpuRequest),
}

/// How long the client will wait; `None`: for ever.
pub(crate) type Timeout = Option<Duration>;

impl Call {
    /// Reads the message of a request's frame.
    ///
    /// # Errors
    ///
    /// What the client is to be answered.
    pub(crate) fn parse(
        message: &[u8],
        exposure: Exposure,
        limits: &Limits,
    ) -> Result<(Self, Timeout), Status> {
        let request = RequestRef::parse(message).map_err(|error| malformed("request", error))?;
        let timeout = match request.timeout_nano {
            0 => None,
            nanoseconds => {
                let nanoseconds = u64::try_from(nanoseconds);
                // What is negative has been used up on the way here.
                Some(nanoseconds.map_or(Duration::ZERO, Duration::from_nanos))
            }
        };
        Ok((Self::select(&request, exposure, limits)?, timeout))
    }

    fn select(
        request: &RequestRef<'_>,
        exposure: Exposure,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let payload = Payload {
            bytes: request.payload,
            fields: limits.payload_fields,
        };
        match (request.service, exposure) {
            (inspect::INSPECT_SERVICE, _) => match request.method {
                "Inspect" => payload.decode().map(Self::Inspect),
                "Update" => payload.decode().map(Self::Update),
                _ => Err(unknown_method(request)),
            },
            (_, Exposure::SafeInspect) => Err(unknown_service(request)),
            (diag::OPENHCL_DIAG, _) => match request.method {
                "Ping" => Ok(Self::Ping),
                _ => Err(unknown_method(request)),
            },
            (diag::UNDERHILL_DIAG, _) => match request.method {
                "Exec" => payload.decode().map(Self::Exec),
                "Wait" => payload.decode().map(Self::Wait),
                "Start" => payload.decode().map(Self::Start),
                "Crash" => payload.decode().map(Self::Crash),
                "Kmsg" => payload.decode().map(Self::Kmsg),
                "ReadFile" => payload.decode().map(Self::ReadFile),
                "Restart" => Ok(Self::Restart),
                "Pause" => Ok(Self::Pause),
                "Resume" => Ok(Self::Resume),
                "DumpSavedState" => Ok(Self::DumpSavedState),
                _ => Err(unknown_method(request)),
            },
            (openhcl::OPENHCL_CONTROL, _) => match request.method {
                openhcl::POWER_OFF => Ok(Self::PowerOff),
                openhcl::ONLINE_CPU => payload.decode().map(Self::OnlineCpu),
                _ => Err(unknown_method(request)),
            },
            _ => Err(unknown_service(request)),
        }
    }
}

struct Payload<'a> {
    bytes: &'a [u8],
    /// The most it may have.
    fields: usize,
}

impl Payload<'_> {
    /// Decodes it, after a look at how much memory that can take: each element of a
    /// repeated field takes many times its bytes on the wire.
    fn decode<T: prost::Message + Default>(self) -> Result<T, Status> {
        let count = count_fields(self.bytes).map_err(|error| malformed("payload", error))?;
        if count > self.fields {
            return Err(Status::resource_exhausted(format_args!(
                "a payload of {count} fields, expected at most {}",
                self.fields
            )));
        }
        T::decode(self.bytes)
            .map_err(|error| Status::invalid_argument(format_args!("payload: {error}")))
    }
}

fn malformed(what: &str, error: Malformed) -> Status {
    Status::invalid_argument(format_args!("{what}: {error}"))
}

fn unknown_service(request: &RequestRef<'_>) -> Status {
    let service = shown(request.service);
    Status::unimplemented(format_args!("unknown service {service:?}"))
}

fn unknown_method(request: &RequestRef<'_>) -> Status {
    let (service, method) = (request.service, shown(request.method));
    Status::unimplemented(format_args!(
        "unknown method {method:?} of service {service}"
    ))
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests;

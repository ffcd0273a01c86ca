//! Intercept messages become exits.
//!
//! The host writes the messages, out of what the guest does. Any content gives an exit or
//! an error.

use crate::error::Error;
use hv_defs::intercept::AccessType;
use hv_defs::intercept::ApicEoi;
use hv_defs::intercept::CpuidIntercept;
use hv_defs::intercept::InterceptHeader;
use hv_defs::intercept::IoPortIntercept;
use hv_defs::intercept::MemoryIntercept;
use hv_defs::intercept::MsrIntercept;
use hv_defs::synic::HvMessage;
use hv_defs::synic::HvMessageType;
use virt::Access;
use virt::CpuidExit;
use virt::Exit;
use virt::Instruction;
use virt::MemoryExit;
use virt::MsrExit;
use virt::PortExit;
use zerocopy::FromBytes;

/// What `message` says.
pub(crate) fn decode(message: &HvMessage) -> Result<Exit, Error> {
    let message_type = message.header.message_type;
    Ok(match message_type {
        HvMessageType::X64_IO_PORT_INTERCEPT => Exit::Port(port(message)?),
        HvMessageType::UNMAPPED_GPA => Exit::Memory(memory(message, false)?),
        HvMessageType::GPA_INTERCEPT => Exit::Memory(memory(message, true)?),
        HvMessageType::X64_MSR_INTERCEPT => Exit::Msr(msr(message)?),
        HvMessageType::X64_CPUID_INTERCEPT => Exit::Cpuid(cpuid(message)?),
        HvMessageType::X64_APIC_EOI => {
            let eoi: ApicEoi = body(message)?;
            Exit::Eoi {
                vector: u8::try_from(eoi.vector)
                    .map_err(|_| bad(message, "vector", eoi.vector.into()))?,
            }
        }
        HvMessageType::X64_HALT => Exit::Halt,
        HvMessageType::UNRECOVERABLE_EXCEPTION => Exit::TripleFault,
        _ => Exit::Unknown {
            message_type: message_type.0,
        },
    })
}

fn port(message: &HvMessage) -> Result<PortExit, Error> {
    let body: IoPortIntercept = body(message)?;
    let size = body.access.size();
    // Every bit above the width is zero.
    let mask = match size {
        1 => 0xff,
        2 => 0xffff,
        4 => u32::MAX,
        _ => return Err(bad(message, "size of a port access", size.into())),
    };
    let is_write = is_write(message, &body.header)?;
    Ok(PortExit {
        port: body.port,
        size,
        output: is_write.then_some(body.rax as u32 & mask),
        string: body.access.string(),
        instruction: instruction(&body.header, &body.instruction, body.instruction_byte_count),
    })
}

fn memory(message: &HvMessage, protected: bool) -> Result<MemoryExit, Error> {
    let body: MemoryIntercept = body(message)?;
    let access = match body.header.access_type {
        AccessType::READ => Access::Read,
        AccessType::WRITE => Access::Write,
        AccessType::EXECUTE => Access::Execute,
        other => return Err(bad(message, "access type", other.0.into())),
    };
    Ok(MemoryExit {
        gpa: body.gpa,
        gva: body.access.gva_valid().then_some(body.gva),
        access,
        protected,
        delivering: body.header.execution_state.interruption_pending(),
        instruction: instruction(&body.header, &body.instruction, body.instruction_byte_count),
    })
}

fn msr(message: &HvMessage) -> Result<MsrExit, Error> {
    let body: MsrIntercept = body(message)?;
    let value = body.rdx << 32 | body.rax & u64::from(u32::MAX);
    Ok(MsrExit {
        msr: body.msr,
        write: is_write(message, &body.header)?.then_some(value),
        instruction: instruction(&body.header, &[], 0),
    })
}

fn cpuid(message: &HvMessage) -> Result<CpuidExit, Error> {
    let body: CpuidIntercept = body(message)?;
    let default = [
        body.default_rax,
        body.default_rbx,
        body.default_rcx,
        body.default_rdx,
    ];
    Ok(CpuidExit {
        leaf: body.rax as u32,
        subleaf: body.rcx as u32,
        default: default.map(|register| register as u32),
        instruction: instruction(&body.header, &[], 0),
    })
}

fn is_write(message: &HvMessage, header: &InterceptHeader) -> Result<bool, Error> {
    match header.access_type {
        AccessType::READ => Ok(false),
        AccessType::WRITE => Ok(true),
        other => Err(bad(message, "access type", other.0.into())),
    }
}

fn instruction(header: &InterceptHeader, bytes: &[u8], count: u8) -> Instruction {
    let known = usize::from(count).min(bytes.len());
    Instruction::new(
        header.rip,
        header.length_and_cr8.instruction_length(),
        &bytes[..known],
    )
}

/// The payload, which must be all there.
fn body<T: FromBytes>(message: &HvMessage) -> Result<T, Error> {
    let size = usize::from(message.header.payload_size).min(message.payload.len());
    T::read_from_prefix(&message.payload[..size])
        .map(|(body, _)| body)
        .map_err(|_| bad(message, "size of the payload", size as u64))
}

fn bad(message: &HvMessage, what: &'static str, value: u64) -> Error {
    Error::Message {
        message_type: message.header.message_type.0,
        what,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_defs::intercept::IoPortAccess;
    use hv_defs::intercept::LengthAndCr8;
    use proptest::prelude::*;
    use zerocopy::FromZeros;
    use zerocopy::IntoBytes;

    fn out(size: u8) -> IoPortIntercept {
        let mut body = IoPortIntercept::new_zeroed();
        body.header.rip = 0x1000;
        body.header.access_type = AccessType::WRITE;
        body.header.length_and_cr8 = LengthAndCr8::new().with_instruction_length(2);
        body.port = 0x3f8;
        body.access = IoPortAccess::new().with_size(size);
        body.rax = 0x1122_3344_5566_7788;
        body.instruction_byte_count = 2;
        body.instruction[..2].copy_from_slice(&[0xee, 0x90]);
        body
    }

    #[test]
    fn an_output_has_as_many_bytes_as_it_says() {
        for (size, expected) in [(1, 0x88), (2, 0x7788), (4, 0x5566_7788)] {
            let message =
                HvMessage::new(HvMessageType::X64_IO_PORT_INTERCEPT, out(size).as_bytes());

            let Exit::Port(exit) = decode(&message).unwrap() else {
                panic!("not a port");
            };

            assert_eq!((exit.port, exit.size), (0x3f8, size));
            assert_eq!(exit.output, Some(expected));
            assert_eq!(exit.instruction.length, Some(2));
            assert_eq!(exit.instruction.bytes(), [0xee, 0x90]);
        }
    }

    #[test]
    fn a_port_access_of_no_size_is_an_error() {
        let message = HvMessage::new(HvMessageType::X64_IO_PORT_INTERCEPT, out(3).as_bytes());
        assert!(matches!(
            decode(&message),
            Err(Error::Message { value: 3, .. })
        ));
    }

    #[test]
    fn a_short_message_is_an_error() {
        let message = HvMessage::new(HvMessageType::X64_MSR_INTERCEPT, &[0; 40]);
        assert!(matches!(
            decode(&message),
            Err(Error::Message { value: 40, .. })
        ));
    }

    #[test]
    fn a_written_msr_has_both_halves() {
        let mut body = MsrIntercept::new_zeroed();
        body.header.access_type = AccessType::WRITE;
        body.msr = 0x4000_0100;
        body.rax = u64::MAX << 32 | 0x1234;
        body.rdx = 0x5678;
        let message = HvMessage::new(HvMessageType::X64_MSR_INTERCEPT, body.as_bytes());

        let Exit::Msr(exit) = decode(&message).unwrap() else {
            panic!("not an MSR");
        };

        assert_eq!(exit.write, Some(0x5678_0000_1234));
        assert_eq!(exit.instruction.length, None);
    }

    #[test]
    fn a_type_that_is_not_known_keeps_its_number() {
        let message = HvMessage::new(HvMessageType(0x8123_4567), &[]);
        let exit = decode(&message).unwrap();
        assert_eq!(
            exit,
            Exit::Unknown {
                message_type: 0x8123_4567
            }
        );
    }

    proptest! {
        #[test]
        fn no_message_does_harm(
            message_type in prop_oneof![
                any::<u32>(),
                prop::sample::select(vec![
                    HvMessageType::UNMAPPED_GPA.0,
                    HvMessageType::GPA_INTERCEPT.0,
                    HvMessageType::X64_IO_PORT_INTERCEPT.0,
                    HvMessageType::X64_MSR_INTERCEPT.0,
                    HvMessageType::X64_CPUID_INTERCEPT.0,
                    HvMessageType::X64_APIC_EOI.0,
                ]),
            ],
            payload in prop::collection::vec(any::<u8>(), 240),
            size: u8,
        ) {
            let mut message = HvMessage::new(HvMessageType(message_type), &payload);
            message.header.payload_size = size;
            match decode(&message) {
                Ok(Exit::Port(exit)) => {
                    prop_assert!(matches!(exit.size, 1 | 2 | 4));
                    let bits = 8 * u32::from(exit.size);
                    prop_assert!(bits == 32 || exit.output.unwrap_or(0) < 1 << bits);
                    prop_assert!(exit.instruction.bytes().len() <= 16);
                }
                Ok(Exit::Memory(exit)) => prop_assert!(exit.instruction.bytes().len() <= 16),
                Ok(_) | Err(Error::Message { .. }) => {}
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}

//! The I/O ports that are not VTL2's: the host's debug console and exit, and the SMI command.

use super::Context;
use crate::abi::FORGERY;
use crate::machine::memory::ScratchPage;
use crate::machine::probe::{self, Fault, Registers};
use crate::report::{CheckResult, Failure};
use vsm_host_defs::{DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT, DEBUG_EXIT_PORT_SIZE};

/// What a PC's software interrupts its firmware with.
const SMI_COMMAND_PORT: u16 = 0xb2;

/// A form of an instruction.
type Form = fn(Registers) -> Result<Registers, Fault>;

/// That the machine still runs after each access is the check. Whether the access is
/// ignored or faults is the host's choice.
pub(super) fn run(c: &mut Context<'_>) {
    let r = &mut c.reporter;
    r.check("ports.debug_console_writes_are_ignored", || {
        for byte in FORGERY.bytes() {
            access(probe::out_al, DEBUG_CONSOLE_PORT, u64::from(byte))?;
        }
        // Wider writes that begin below the port.
        access(probe::out_ax, DEBUG_CONSOLE_PORT - 1, 0x4646)?;
        access(probe::out_eax, DEBUG_CONSOLE_PORT - 3, 0x4646_4646)?;
        access(probe::out_ax, DEBUG_CONSOLE_PORT, 0x4646)
    });
    r.check("ports.string_write_to_debug_console_is_ignored", || {
        ScratchPage::OVERLAY.write_bytes(FORGERY.as_bytes());
        string(probe::rep_outsb, FORGERY.len() as u64)
    });
    r.check("ports.string_read_of_debug_console_is_harmless", || {
        string(probe::rep_insb, 16)
    });
    r.check("ports.exit_port_is_ignored", || {
        for port in DEBUG_EXIT_PORT..DEBUG_EXIT_PORT + DEBUG_EXIT_PORT_SIZE {
            access(probe::out_al, port, 0x10)?;
            access(probe::in_al, port, 0)?;
        }
        access(probe::out_ax, DEBUG_EXIT_PORT, 0x10)?;
        access(probe::out_eax, DEBUG_EXIT_PORT, 0x10)?;
        // Accesses that reach over its first and its last byte.
        access(probe::out_eax, DEBUG_EXIT_PORT - 3, 0x1010_1010)?;
        access(
            probe::out_eax,
            DEBUG_EXIT_PORT + DEBUG_EXIT_PORT_SIZE - 1,
            0x1010_1010,
        )
    });
    r.check("ports.smi_command_is_ignored", || {
        // Alone, and as the last byte of wider writes.
        access(probe::out_al, SMI_COMMAND_PORT, 0)?;
        access(probe::out_ax, SMI_COMMAND_PORT - 1, 0)?;
        access(probe::out_eax, SMI_COMMAND_PORT - 3, 0)
    });
    r.check("ports.reads_are_harmless", || {
        for port in [DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT] {
            for form in [probe::in_al as Form, probe::in_ax, probe::in_eax] {
                access(form, port, 0)?;
            }
        }
        Ok(())
    });
}

fn access(form: Form, port: u16, value: u64) -> CheckResult {
    let result = form(Registers {
        rdx: port.into(),
        rax: value,
        ..Default::default()
    });
    tolerated(result)
}

fn string(form: Form, count: u64) -> CheckResult {
    tolerated(form(Registers {
        rbx: ScratchPage::OVERLAY.address(),
        rcx: count,
        rdx: DEBUG_CONSOLE_PORT.into(),
        ..Default::default()
    }))
}

fn tolerated(result: Result<Registers, Fault>) -> CheckResult {
    match result {
        Ok(registers) if registers.marker == 1 => Ok(()),
        Err(Fault {
            vector: probe::VECTOR_GP,
            ..
        }) => Ok(()),
        other => Err(Failure::new(format_args!("gave {other:x?}"))),
    }
}

//! The commands of the worker.

use super::cpu::Cpu;
use super::run::run_vp;
use core::arch::asm;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::intercept::VtlEntryReason;
use hv_defs::registers::HvRegisterAssoc;
use hv_defs::registers::HvRegisterName;
use sidecar_defs::CommandPage;
use sidecar_defs::command::Command;
use sidecar_defs::command::MAX_REGISTERS;
use sidecar_defs::command::RegisterRequest;
use sidecar_defs::command::RunResponse;
use sidecar_defs::command::TranslateRequest;
use sidecar_defs::command::TranslateResponse;
use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

/// Why a command has failed.
#[derive(Debug, Clone, Copy, Error)]
pub(super) enum CommandError {
    /// No such command.
    #[error("command {0:?} is not known")]
    Unknown(Command),
    /// Too many registers.
    #[error("{0} registers, expected at most {MAX_REGISTERS}")]
    Registers(u16),
    /// A register that the command needs.
    #[error("the hypervisor refuses register {name:?} with status {status:?}")]
    Register {
        name: HvRegisterName,
        status: HvStatus,
    },
    /// VTL0 has come back for no reason that is known.
    #[error("VTL2 was entered for reason {0:?}, expected an interrupt or an intercept")]
    EntryReason(VtlEntryReason),
}

/// Executes the command of the page.
pub(super) fn execute(cpu: &mut Cpu, page: &mut CommandPage) -> Result<(), CommandError> {
    match page.command {
        Command::NONE => {}
        Command::RUN_VP => {
            cpu.ensure_pages()?;
            let intercepted = run_vp(cpu, page).map_err(CommandError::EntryReason)?;
            let response: &mut RunResponse = request(page);
            response.intercepted = intercepted.into();
        }
        Command::GET_VP_REGISTERS => registers(request(page), |vtl, register| {
            register.value = match debug_register(register.name) {
                Some(number) => [read_debug_register(number), 0],
                None => cpu.calls.get(vtl, HvRegisterName(register.name))?,
            };
            Ok(())
        })?,
        Command::SET_VP_REGISTERS => registers(request(page), |vtl, register| {
            match debug_register(register.name) {
                Some(number) => write_debug_register(number, register.value[0]),
                None => cpu
                    .calls
                    .set(vtl, HvRegisterName(register.name), register.value)?,
            }
            Ok(())
        })?,
        Command::TRANSLATE_GVA => {
            let input = *request::<TranslateRequest>(page);
            let (status, output) = cpu.calls.translate(input.control_flags, input.gva_page);
            *request::<TranslateResponse>(page) = TranslateResponse {
                status: status.0,
                reserved: [0; 6],
                output,
            };
        }
        other => return Err(CommandError::Unknown(other)),
    }
    Ok(())
}

/// Input or output of a command.
fn request<T: FromBytes + IntoBytes + KnownLayout + Immutable>(page: &mut CommandPage) -> &mut T {
    match T::mut_from_prefix(&mut page.request) {
        Ok((request, _)) => request,
        // `sidecar_defs` checks sizes and the offset of the request when it is compiled.
        Err(_) => unreachable!("a request that does not fit"),
    }
}

/// Works on one register after the other, up to the first that is refused.
fn registers(
    request: &mut RegisterRequest,
    mut work: impl FnMut(HvInputVtl, &mut HvRegisterAssoc) -> Result<(), HvStatus>,
) -> Result<(), CommandError> {
    let registers = request
        .registers
        .get_mut(..usize::from(request.count))
        .ok_or(CommandError::Registers(request.count))?;
    let vtl = HvInputVtl::from_bits(request.target_vtl);
    (request.status, request.done) = (HvStatus::SUCCESS.0, 0);
    for register in registers {
        if let Err(status) = work(vtl, register) {
            request.status = status.0;
            break;
        }
        request.done += 1;
    }
    Ok(())
}

/// Number of a debug register that the VTLs share, so that it is in the processor.
fn debug_register(name: u32) -> Option<u32> {
    let number = name.wrapping_sub(HvRegisterName::DR0.0);
    (number < 4).then_some(number)
}

fn read_debug_register(number: u32) -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe {
        match number {
            0 => asm!("mov {}, dr0", out(reg) value, options(nomem, nostack)),
            1 => asm!("mov {}, dr1", out(reg) value, options(nomem, nostack)),
            2 => asm!("mov {}, dr2", out(reg) value, options(nomem, nostack)),
            _ => asm!("mov {}, dr3", out(reg) value, options(nomem, nostack)),
        }
    }
    value
}

fn write_debug_register(number: u32, value: u64) {
    // SAFETY: this kernel has no breakpoint on, so the address counts for VTL0 only.
    unsafe {
        match number {
            0 => asm!("mov dr0, {}", in(reg) value, options(nomem, nostack)),
            1 => asm!("mov dr1, {}", in(reg) value, options(nomem, nostack)),
            2 => asm!("mov dr2, {}", in(reg) value, options(nomem, nostack)),
            _ => asm!("mov dr3, {}", in(reg) value, options(nomem, nostack)),
        }
    }
}

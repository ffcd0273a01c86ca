//! How the first processor enters the boot shim: 64-bit mode, paging on, a flat GDT, and
//! one register that leads to everything else.

use crate::layout::Layout;
use igvm::hv_defs::Vtl;
use igvm::registers::{SegmentRegister, TableRegister, X86Register};
use serde::Serialize;
use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::model_specific::EferFlags;
use x86_defs::long_mode::{CODE, DATA, GDT, Segment, TASK};

/// CR4. The original also sets OSXSAVE. Linux in VTL2 demands that the platform hides
/// XSAVE, and there a host must refuse that bit, so it is left out; the shim does not use
/// XSAVE on any platform.
const CR4: Cr4Flags = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.union(Cr4Flags::MACHINE_CHECK_EXCEPTION);
/// CR0.
const CR0: Cr0Flags = Cr0Flags::PAGING
    .union(Cr0Flags::NUMERIC_ERROR)
    .union(Cr0Flags::PROTECTED_MODE_ENABLE);
/// EFER.
const EFER: EferFlags = EferFlags::LONG_MODE_ENABLE
    .union(EferFlags::LONG_MODE_ACTIVE)
    .union(EferFlags::NO_EXECUTE_ENABLE);
/// IA32_PAT after a reset.
const PAT: u64 = 0x0007_0406_0007_0406;

/// The register list of VP 0.
pub fn entry_state(layout: &Layout, shim_entry: u64) -> Vec<X86Register> {
    let data = segment(DATA);
    vec![
        X86Register::Gdtr(TableRegister {
            base: layout.gdt.start,
            limit: (size_of_val(&GDT) - 1) as u16,
        }),
        X86Register::Ds(data),
        X86Register::Es(data),
        X86Register::Fs(data),
        X86Register::Gs(data),
        X86Register::Ss(data),
        X86Register::Cs(segment(CODE)),
        X86Register::Tr(segment(TASK)),
        X86Register::Cr0(CR0.bits()),
        X86Register::Cr3(layout.page_tables.start),
        X86Register::Cr4(CR4.bits()),
        X86Register::Efer(EFER.bits()),
        X86Register::Pat(PAT),
        X86Register::Rip(layout.shim.start + shim_entry),
        // Relative, so it stays true when the host relocates the image.
        X86Register::Rsi(layout.shim_params.start - layout.shim.start),
    ]
}

/// A register as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisterText {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A register list as text, in its order.
pub fn texts(registers: &[X86Register]) -> Vec<RegisterText> {
    registers.iter().map(text).collect()
}

fn text(register: &X86Register) -> RegisterText {
    use X86Register as R;
    // The library knows the names only as those of its variants.
    let debug = format!("{register:?}");
    let name = debug.split('(').next().unwrap_or_default().to_owned();
    let value = match register {
        R::Gdtr(table) | R::Idtr(table) => {
            format!("base {:#x} limit {:#x}", table.base, table.limit)
        }
        R::Ds(s) | R::Es(s) | R::Fs(s) | R::Gs(s) | R::Ss(s) | R::Cs(s) | R::Tr(s) => format!(
            "selector {:#x} base {:#x} limit {:#x} attributes {:#x}",
            s.selector, s.base, s.limit, s.attributes
        ),
        // All others are plain numbers. The VTL does not enter the value.
        other => {
            let raw = other.into_vbs_vp_context_reg(Vtl::Vtl0).register_value;
            format!("{:#x}", u128::from_le_bytes(raw))
        }
    };
    RegisterText { name, value }
}

/// A segment as the IGVM library has it.
fn segment(segment: Segment) -> SegmentRegister {
    SegmentRegister {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes: segment.attributes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_registers_enter_long_mode_without_xsave() {
        assert_eq!(CR0.bits(), 0x8000_0021);
        assert_eq!(CR4.bits(), 0x60);
        assert_eq!(EFER.bits(), 0xd00);
    }
}

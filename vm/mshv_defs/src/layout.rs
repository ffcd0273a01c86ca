//! Everything that C headers must agree with, and what they call it.

use super::*;
use core::mem::offset_of;

/// A structure, by the name that C has for it.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    /// Type in C.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Its fields.
    pub fields: &'static [Field],
}

/// A field, by the name that C has for it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Member in C.
    pub name: &'static str,
    /// Bytes from the start.
    pub offset: usize,
}

/// Lists the fields whose names are the same here and in C, and those that differ.
macro_rules! structure {
    ($name:literal, $type:ident: $($field:ident),*; $($c:literal = $offset:expr),*) => {
        Structure {
            name: $name,
            size: size_of::<$type>(),
            fields: &[
                $(Field { name: stringify!($field), offset: offset_of!($type, $field) },)*
                $(Field { name: $c, offset: $offset },)*
            ],
        }
    };
}

/// The structures.
pub const LAYOUT: &[Structure] = &[
    structure!("struct mshv_vp_registers", VpRegisters: count, reserved, regs_ptr;),
    structure!("struct mshv_vtl_ram_disposition", RamDisposition: start_pfn, last_pfn;),
    structure!("struct mshv_vtl_set_poll_file", SetPollFile: cpu, fd;),
    structure!("struct mshv_vtl_set_eventfd", SetEventfd: fd, flag;),
    structure!("struct mshv_sint_mask", SintMask: mask, reserved;),
    structure!(
        "struct mshv_vtl_hvcall_setup",
        HvcallSetup: bitmap_array_size, allow_bitmap_ptr;
    ),
    structure!(
        "struct mshv_vtl_hvcall",
        Hvcall: control, input_size, input_ptr, status, output_size, output_ptr;
    ),
    structure!(
        "struct mshv_vtl_cpu_context",
        CpuContext: ;
        "gp_regs" = offset_of!(CpuContext, gp),
        "cr2" = offset_of!(CpuContext, gp) + 8 * GP_CR2,
        "rbp" = offset_of!(CpuContext, gp) + 8 * 5,
        "r15" = offset_of!(CpuContext, gp) + 8 * 15,
        "fx_state" = offset_of!(CpuContext, fx)
    ),
    structure!(
        "struct mshv_vtl_run",
        RunPage: cancel, vtl_ret_action_size, pad, exit_message, cpu_context, vtl_ret_actions;
    ),
];

/// The numbers of requests, and others.
pub const NUMBERS: &[(&str, u32)] = &[
    ("MSHV_CHECK_EXTENSION", CHECK_EXTENSION),
    ("MSHV_GET_VP_REGISTERS", GET_VP_REGISTERS),
    ("MSHV_SET_VP_REGISTERS", SET_VP_REGISTERS),
    ("MSHV_CREATE_VTL", CREATE_VTL),
    ("MSHV_HVCALL_SETUP", HVCALL_SETUP),
    ("MSHV_HVCALL", HVCALL),
    ("MSHV_ADD_VTL0_MEMORY", ADD_VTL0_MEMORY),
    ("MSHV_SET_POLL_FILE", SET_POLL_FILE),
    ("MSHV_SINT_SET_EVENTFD", SINT_SET_EVENTFD),
    ("MSHV_SINT_PAUSE_MESSAGE_STREAM", SINT_PAUSE_MESSAGE_STREAM),
    ("MSHV_RETURN_TO_LOWER_VTL", RETURN_TO_LOWER_VTL),
    ("MSHV_CAP_REGISTER_PAGE", CAP_REGISTER_PAGE),
    ("MSHV_MAX_RUN_MSG_SIZE", MESSAGE_BYTES as u32),
];

const _: () = {
    assert!(size_of::<FxState>() == 512 && offset_of!(FxState, xmm) == 160);
    assert!(offset_of!(FxState, mxcsr) == 24);
    assert!(offset_of!(RunPage, exit_message) == 16);
    assert!(offset_of!(RunPage, cpu_context) == 272);
    assert!(offset_of!(RunPage, vtl_ret_actions) == 1296);
    assert!(size_of::<RunPage>() == 1552);
    assert!(RETURN_TO_LOWER_VTL == 0xb827 && CHECK_EXTENSION == 0x4004_b800);
};

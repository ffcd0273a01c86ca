//! The memory of the image, as slices.
//!
//! Everything lies in the VTL2 range that the image was built for, which its page tables
//! map one to one; `ShimParams` has checked that.

use loader_defs::PAGE_SIZE;
use loader_defs::shim::ShimParamsRaw;
use openhcl_boot::boot::ImageMemory;
use openhcl_boot::params::{ParamsError, ShimParams};
use openhcl_boot::range::GpaRange;
use string_page_buf::{StringBuffer, StringBufferError};
use zerocopy::FromBytes;

unsafe extern "C" {
    static __text_end: u8;
}

/// Reads and checks the parameters.
pub(crate) fn params(image_base: u64, params_offset: i64) -> Result<ShimParams, ParamsError> {
    let address = image_base.checked_add_signed(params_offset);
    let page = address
        .filter(|a| a.is_multiple_of(PAGE_SIZE))
        .and_then(|a| GpaRange::new(a, PAGE_SIZE))
        .ok_or(ParamsError::Address {
            field: "parameter page",
            offset: params_offset,
            size: PAGE_SIZE,
        })?;
    // SAFETY: the offset comes in a register that the measured image sets; the page is a
    // page of the image that nobody writes.
    let bytes = unsafe { bytes(page) };
    match ShimParamsRaw::read_from_prefix(bytes) {
        Ok((raw, _)) => {
            let params = ShimParams::new(&raw, image_base)?;
            let end = (&raw const __text_end).expose_provenance() as u64;
            let code = GpaRange::from_bounds(image_base, end).unwrap_or(GpaRange::EMPTY);
            Ok(ShimParams { code, ..params })
        }
        Err(_) => Err(ParamsError::Size {
            field: "parameter page",
            found: PAGE_SIZE,
            expected: size_of::<ShimParamsRaw>() as u64,
        }),
    }
}

/// The log buffer.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn log_buffer(
    params: &ShimParams,
) -> Result<StringBuffer<'static>, StringBufferError> {
    let range = params.log_buffer;
    // SAFETY: a checked part of the image that only this slice refers to.
    let memory = unsafe {
        core::slice::from_raw_parts_mut(
            core::ptr::with_exposed_provenance_mut(range.start() as usize),
            range.len() as usize,
        )
    };
    StringBuffer::new(memory)
}

/// The parts that are read.
pub(crate) fn memory(params: &ShimParams) -> ImageMemory<'static> {
    let first_page = |range: GpaRange| GpaRange::new(range.start(), PAGE_SIZE).unwrap_or(range);
    // SAFETY: checked parts of the image or of its memory. The host wrote them before the
    // start; nothing writes them while the shim runs.
    unsafe {
        ImageMemory {
            device_tree: bytes(params.device_tree),
            command_line: bytes(params.command_line),
            imported_regions: bytes(params.imported_regions),
            initrd: bytes(params.initrd),
            persisted_state_header: bytes(first_page(params.persisted_state)),
        }
    }
}

/// # Safety
/// The range must be mapped, and nothing may write to it.
unsafe fn bytes(range: GpaRange) -> &'static [u8] {
    // SAFETY: promised by the caller.
    unsafe {
        core::slice::from_raw_parts(
            core::ptr::with_exposed_provenance(range.start() as usize),
            range.len() as usize,
        )
    }
}

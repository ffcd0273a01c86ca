//! The largest VM that the limits allow boots with the heap that the image has.
//!
//! The boot runs here on the very allocator of the bare-metal image; everything else in
//! this process uses the system's.

#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write;
use std::mem::ManuallyDrop;

use hv_defs::vsm::{VsmCapabilities, VsmVpStatus};
use loader_defs::shim::ShimParamsRaw;
use minimal_rt::Page;
use minimal_rt::bump::BumpAllocator;
use minimal_rt::hypercall::HypercallError;
use openhcl_boot::boot::{ImageMemory, Machine, prepare};
use openhcl_boot::isolation::Isolation;
use openhcl_boot::linux::boot_params::BootParamsPages;
use openhcl_boot::log::BootLog;
use openhcl_boot::params::ShimParams;
use openhcl_boot::sidecar::Failure;
use sidecar_defs::{MAX_CPUS_PER_NODE, MAX_NODES, SidecarParams};
use string_page_buf::StringBuffer;
use vm_fdt::FdtWriter;
use zerocopy::FromZeros;

/// As `link/image.ld` reserves it.
const HEAP_SIZE: usize = 2 << 20;

const MIB: u64 = 1 << 20;
const VPS: u32 = 2048;

struct Switch {
    bump: BumpAllocator,
}

thread_local! {
    static USE_BUMP: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Switch = Switch {
    bump: BumpAllocator::empty(),
};

// SAFETY: each block goes back to the allocator that it came from; the bump allocator is
// only used by the one thread that sets the flag.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if USE_BUMP.get() {
                self.bump.alloc(layout)
            } else {
                System.alloc(layout)
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe {
            if USE_BUMP.get() {
                self.bump.dealloc(block, layout);
            } else {
                System.dealloc(block, layout);
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            if USE_BUMP.get() {
                self.bump.realloc(block, layout, new_size)
            } else {
                System.realloc(block, layout, new_size)
            }
        }
    }
}

struct Quiet;

impl Machine for Quiet {
    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn reference_time(&mut self) -> Option<u64> {
        Some(1)
    }

    fn vp_status(&mut self) -> Result<VsmVpStatus, HypercallError> {
        Ok(VsmVpStatus::new().with_active_vtl(2))
    }

    fn vsm_capabilities(&mut self) -> Result<VsmCapabilities, HypercallError> {
        Ok(VsmCapabilities::new())
    }

    fn vp_indices(
        &mut self,
        hardware_ids: &[u32],
        found: &mut dyn FnMut(usize, u32),
    ) -> Result<(), HypercallError> {
        for (i, id) in hardware_ids.iter().enumerate() {
            found(i, *id);
        }
        Ok(())
    }

    fn physical_address_bits(&self) -> u8 {
        48
    }

    fn serial(&mut self, _rate: u32) -> Option<Box<dyn Write>> {
        None
    }

    fn start_sidecar(
        &mut self,
        _entry: u64,
        params: &mut SidecarParams,
    ) -> Result<u32, Box<Failure>> {
        assert_eq!(params.node_count as usize, MAX_NODES);
        Ok(1)
    }
}

// As many processors as are accepted, and about as many ranges as fit into the kernel's tree
// beside them.
fn largest_tree() -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    for id in 0..VPS {
        let cpu = fdt.begin_node(&format!("cpu@{id}"))?;
        fdt.property_string("status", "okay")?;
        fdt.property_u32("reg", id)?;
        // As many sidecar nodes as there can be; the rest cannot be in any.
        let vnode = match id / MAX_CPUS_PER_NODE {
            node if node < MAX_NODES as u32 => node,
            _ => MAX_NODES as u32 + id % 2,
        };
        fdt.property_u32("numa-node-id", vnode)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;
    let vtl2 = (128 * MIB, 256 * MIB, 3);
    let others = (0..550).map(|i| ((1 << 32) + i * 2 * MIB, MIB, 0));
    for (i, (base, length, igvm_type)) in [vtl2].into_iter().chain(others).enumerate() {
        let memory = fdt.begin_node(&format!("memory@{base:x}"))?;
        fdt.property_array_u64("reg", &[base, length])?;
        fdt.property_u32("numa-node-id", i as u32 % 64)?;
        fdt.property_u32("microsoft,igvm-type", igvm_type)?;
        fdt.end_node(memory)?;
    }
    let openhcl = fdt.begin_node("openhcl")?;
    fdt.property_string("memory-allocation-mode", "host")?;
    fdt.end_node(openhcl)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn params() -> ShimParams {
    let mut raw = ShimParamsRaw::new_zeroed();
    let base = 128 * MIB;
    let at = |offset: u64| offset as i64;
    raw.supported_isolation_type = 1;
    raw.memory_size = 256 * MIB;
    raw.used_start = at(2 * MIB);
    raw.used_end = at(16 * MIB);
    raw.persisted_state_region_size = 2 * MIB;
    raw.kernel_entry_offset = at(4 * MIB);
    raw.cmdline_offset = at(8 * MIB);
    raw.initrd_offset = at(9 * MIB);
    raw.parameter_region_offset = at(10 * MIB);
    raw.parameter_region_size = 362 * 4096;
    raw.vtl2_reserved_region_offset = at(12 * MIB);
    raw.sidecar_offset = at(6 * MIB);
    raw.sidecar_size = 128 << 10;
    raw.sidecar_entry_offset = at(6 * MIB);
    raw.log_buffer_start = at(13 * MIB);
    raw.log_buffer_size = 2 * 4096;
    ShimParams::new(&raw, base).expect("parameters of a sound image")
}

#[test]
fn the_largest_vm_fits_the_heap_of_the_image() {
    let heap: &'static mut [Page] = Box::leak(vec![Page::ZERO; HEAP_SIZE / 4096].into());
    let tree = largest_tree().expect("a valid tree");
    let params = params();
    let page = Page::ZERO;
    let mut log_memory = vec![0; 8192];
    let log = BootLog::new(StringBuffer::new(&mut log_memory).expect("two pages"));
    let image = ImageMemory {
        device_tree: &tree,
        command_line: &page.0,
        imported_regions: &page.0,
        initrd: &[],
        persisted_state_header: &page.0,
    };
    // SAFETY: the memory is leaked and used by nothing else; this is the only call, and
    // only this thread sets the flag.
    unsafe { ALLOCATOR.bump.init(heap.as_mut_ptr().cast(), HEAP_SIZE) };

    USE_BUMP.set(true);
    // What the boot takes lies in the other heap, so it is forgotten and not freed.
    let handoff = ManuallyDrop::new(prepare(&params, &image, &mut Quiet, Some(0), &log));
    let pages = ManuallyDrop::new(handoff.as_ref().map(BootParamsPages::new));
    USE_BUMP.set(false);

    let peak = ALLOCATOR.bump.peak_bytes();
    let entries = match &*pages {
        Ok(Ok(pages)) => pages.boot_params().e820_entries,
        other => panic!("{other:?}, heap {peak} bytes"),
    };
    assert_eq!(entries, 128, "the rest is in the extension");
    println!(
        "{VPS} VPs: heap {} of {} KiB",
        peak / 1024,
        HEAP_SIZE / 1024
    );
    assert!(peak <= HEAP_SIZE * 3 / 4, "{peak} bytes leave no reserve");
}

//! How the CPUs come up. The first CPU prepares all of them, which costs microseconds each, and
//! starts some; each that has started starts more, before it waits for commands, so that the
//! hypercalls, which cost more, are made by all.
//!
//! A CPU is started by whoever takes its number from its node's counter, which gives out each
//! number once. Nothing else is shared, so nobody waits for anybody.

use super::apic;
use super::calls;
use super::calls::Calls;
use super::cpu;
use super::cpu::Own;
use super::entry::StaticTable;
use super::interrupts;
use super::log;
use super::panic::IMAGE_GPA;
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::ptr;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use hv_defs::hypercall::HvInputVtl;
use hv_defs::hypercall::HvStatus;
use hv_defs::hypercall::HypercallCode;
use hv_defs::registers::HvRegisterName;
use hv_defs::vp_context::HvInitialVpContext;
use hv_defs::vsm::VsmCodePageOffsets;
use loader_defs::PAGE_SIZE;
use minimal_rt::Page;
use minimal_rt::x86_64::Hypervisor;
use sidecar::context;
use sidecar::context::Descriptors;
use sidecar::map;
use sidecar::map::CpuPages;
use sidecar::map::PrivatePage;
use sidecar::plan;
use sidecar::plan::ParamsError;
use sidecar::plan::Vps;
use sidecar_defs::CommandPage;
use sidecar_defs::ControlPage;
use sidecar_defs::CpuStatus;
use sidecar_defs::MAX_NODES;
use sidecar_defs::NodeParams;
use sidecar_defs::REQUEST_VECTOR;
use sidecar_defs::SidecarOutput;
use sidecar_defs::SidecarParams;
use sidecar_defs::command_page_offset;
use sidecar_defs::handshake;
use sidecar_defs::handshake::Request;
use sidecar_defs::private_pages_offset;
use spin::Mutex;
use thiserror::Error;
use zerocopy::FromZeros;

/// How long all CPUs together may take, in units of 100 ns.
const PATIENCE: u64 = 10_000_000 * 10;

/// Why there is no sidecar.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Params(#[from] ParamsError),
    #[error("there is no hypervisor, or it has no clock")]
    NoHypervisor,
    #[error("the hypervisor does not tell {name:?}: status {status:?}")]
    Register {
        name: HvRegisterName,
        status: HvStatus,
    },
    #[error("the hypervisor does not signal events to VTL2: status {0:?}")]
    NoEvents(HvStatus),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error("{vps} of node {node} still {status:?} after 10 s")]
    Silent {
        vps: Vps,
        node: usize,
        status: CpuStatus,
    },
}

/// A CPU that cannot be started.
#[derive(Debug, Clone, Copy, Error)]
#[error("VP {vp} cannot be started: {code:?} says {status:?}")]
pub(super) struct CpuError {
    vp: u32,
    code: HypercallCode,
    status: HvStatus,
}

unsafe extern "C" {
    static __text_end: u8;
    static __bss_end: u8;
}

#[repr(C, align(4096))]
struct StaticPage(UnsafeCell<Page>);

// SAFETY: the first CPU alone uses them, through its `Calls`.
unsafe impl Sync for StaticPage {}

static INPUT: StaticPage = StaticPage(UnsafeCell::new(Page::ZERO));
static OUTPUT: StaticPage = StaticPage(UnsafeCell::new(Page::ZERO));
static IMAGE_TABLE: StaticTable = StaticTable::new();

/// CPU of each node that is started next.
static NEXT: [AtomicU32; MAX_NODES] = [const { AtomicU32::new(1) }; MAX_NODES];
/// The first failure of a start.
static FAILURE: Mutex<Option<CpuError>> = Mutex::new(None);
/// Addresses of the descriptor tables.
static TABLES: Mutex<Option<[Descriptors; 2]>> = Mutex::new(None);

/// What is needed to start the CPUs of a node.
pub(super) struct Node {
    index: usize,
    params: NodeParams,
}

impl Node {
    /// The node of a CPU.
    pub(super) fn of(own: &Own) -> Self {
        Self {
            index: own.node as usize,
            params: NodeParams {
                memory_base: own.memory_base,
                base_vp: own.vp - own.cpu,
                cpu_count: own.cpu_count,
            },
        }
    }

    fn pages(&self, cpu: u32, apic: Option<u64>) -> CpuPages {
        let base = self.params.memory_base;
        CpuPages {
            control: base,
            command: base + command_page_offset(cpu),
            private: base + private_pages_offset(self.params.cpu_count, cpu),
            apic,
        }
    }
}

/// Starts all CPUs that the parameters name. `image` is the GPA of the image.
pub(super) fn start(
    params: &SidecarParams,
    image: u64,
    output: &mut SidecarOutput,
) -> Result<(), StartError> {
    IMAGE_GPA.store(image, Relaxed);
    if params.enable_logging != 0 {
        log::open();
    }
    let result = start_nodes(params, image, output);
    log::close();
    result
}

fn start_nodes(
    params: &SidecarParams,
    image: u64,
    output: &mut SidecarOutput,
) -> Result<(), StartError> {
    let nodes = plan::nodes(params)?;
    let clock = || Hypervisor::detect().and_then(|hypervisor| hypervisor.reference_time());
    let time = || clock().ok_or(StartError::NoHypervisor);
    time()?;
    // SAFETY: the caller has enabled the page, and no other CPU runs this kernel yet. The two
    // pages are used by nothing else.
    let mut calls = unsafe {
        calls::copy_code(ptr::with_exposed_provenance(params.hypercall_page as usize));
        let page = |page: &'static StaticPage| {
            let address = page.0.get();
            let offset = address.expose_provenance() as u64 - map::IMAGE;
            (address, image + offset)
        };
        Calls::new(page(&INPUT), page(&OUTPUT))
    };
    check_hypervisor(&mut calls)?;
    // SAFETY: no other CPU runs this kernel yet.
    *TABLES.lock() = Some(unsafe { interrupts::init() });
    map_image();
    let apic = apic::detect();
    for (index, node) in nodes.iter().enumerate() {
        prepare(params, index, node, image, apic);
    }
    let result = start_prepared(nodes, output, &mut calls, time);
    if result.is_err() {
        let given_back = give_back(nodes, &mut calls, time);
        // While there are any, the shim must not let Linux have the memory.
        output.started = nodes.iter().map(remaining).sum();
        given_back?;
    }
    result
}

/// CPUs of a node that are in the kernel, or can still arrive.
fn remaining(node: &NodeParams) -> u32 {
    let cells = &control_page(node).status[..node.cpu_count as usize];
    let is_here = |cell: &&AtomicU8| {
        !matches!(
            handshake::status(*cell),
            CpuStatus::REMOVED | CpuStatus::FAILED
        )
    };
    cells.iter().filter(is_here).count() as u32
}

fn start_prepared(
    nodes: &[NodeParams],
    output: &mut SidecarOutput,
    calls: &mut Calls,
    time: impl Fn() -> Result<u64, StartError>,
) -> Result<(), StartError> {
    output.start_begin = time()?;
    for (index, params) in nodes.iter().enumerate() {
        let node = Node {
            index,
            params: *params,
        };
        start_others(&node, &control_page(params).status, calls);
    }
    for (index, node) in nodes.iter().enumerate() {
        output.started += wait_for(index, node, CpuStatus::RUN, &time)?;
    }
    output.start_end = time()?;
    match *FAILURE.lock() {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Finds out whether the hypervisor has what is needed, and where it has the way to VTL0.
fn check_hypervisor(calls: &mut Calls) -> Result<(), StartError> {
    let mut get = |name: HvRegisterName| {
        let value = calls.get(HvInputVtl::new(), name);
        value.map_err(|status| StartError::Register { name, status })
    };
    // Without it no CPU could leave.
    get(HvRegisterName::INTERNAL_ACTIVITY_STATE)?;
    let offsets = get(HvRegisterName::VSM_CODE_PAGE_OFFSETS)?;
    calls::set_vtl_return(VsmCodePageOffsets::from_bits(offsets[0]).ret());
    // Nobody listens yet, which another status says.
    match calls.signal(0, 0) {
        HvStatus::SUCCESS | HvStatus::INVALID_SYNIC_STATE => Ok(()),
        status => Err(StartError::NoEvents(status)),
    }
}

fn map_image() {
    let offset = |symbol: *const u8| symbol.expose_provenance() as u64 - map::IMAGE;
    let code = offset(&raw const __text_end);
    let end = offset(&raw const __bss_end);
    // SAFETY: no other CPU runs this kernel yet.
    let table = unsafe { &mut *IMAGE_TABLE.get() };
    map::fill_image_table(table, IMAGE_GPA.load(Relaxed), 0..code, code..end);
}

/// The control page of a node, where the first CPU sees it.
fn control_page(node: &NodeParams) -> &'static ControlPage {
    // SAFETY: the boot shim maps the node's memory one to one, and has given it to this kernel.
    // What changes there is atomic.
    unsafe { &*ptr::with_exposed_provenance(node.memory_base as usize) }
}

/// Fills the pages of a node.
fn prepare(params: &SidecarParams, index: usize, node: &NodeParams, image: u64, apic: Option<u64>) {
    // SAFETY: the boot shim maps the node's memory one to one, and has given it to this kernel;
    // no other CPU uses it yet, and no two references are to the same page.
    let control: &mut ControlPage = unsafe { zeroed(node.memory_base) };
    control.index = index as u32;
    control.base_vp = node.base_vp;
    control.cpu_count = node.cpu_count;
    control.request_vector = REQUEST_VECTOR.into();
    control.response_vp = AtomicU32::new(node.base_vp);
    for (status, cpu) in control.status.iter_mut().zip(0..node.cpu_count) {
        *status = AtomicU8::new(plan::first_status(params, node, cpu).0);
    }
    let image_table = image + IMAGE_TABLE.get().expose_provenance() as u64 - map::IMAGE;
    let node_params = Node {
        index,
        params: *node,
    };
    for cpu in 1..node.cpu_count {
        let pages = node_params.pages(cpu, apic);
        let registers = pages.command + PAGE_SIZE;
        // SAFETY: as above. The stack is not cleared: nobody reads what he has not written.
        let (own, tables) = unsafe {
            zeroed::<CommandPage>(pages.command);
            zeroed::<Page>(registers);
            zeroed::<Page>(pages.private(PrivatePage::Assist));
            let own: &mut Own = zeroed(pages.private(PrivatePage::Own));
            (own, zeroed(pages.private(PrivatePage::Pml4)))
        };
        pages.fill_tables(tables, image_table);
        *own = Own {
            vp: node.base_vp + cpu,
            node: index as u32,
            cpu,
            cpu_count: node.cpu_count,
            memory_base: node.memory_base,
            registers_gpa: registers,
            assist_gpa: pages.private(PrivatePage::Assist),
            input_gpa: pages.private(PrivatePage::Input),
            output_gpa: pages.private(PrivatePage::Output),
        };
    }
}

/// Whole pages, all zero.
///
/// # Safety
/// Memory of this GPA is mapped one to one, and nobody else uses it as long as the result.
unsafe fn zeroed<T: FromZeros>(gpa: u64) -> &'static mut T {
    let value = ptr::with_exposed_provenance_mut::<T>(gpa as usize);
    // SAFETY: promised by the caller; pages are aligned for everything.
    unsafe {
        value.write_bytes(0, 1);
        &mut *value
    }
}

/// Starts CPUs of a node until others have started the rest.
pub(super) fn start_others(node: &Node, status: &[AtomicU8], calls: &mut Calls) {
    let Some(tables) = *TABLES.lock() else {
        return;
    };
    loop {
        let cpu = NEXT[node.index].fetch_add(1, Relaxed);
        if cpu >= node.params.cpu_count {
            return;
        }
        let cell = &status[cpu as usize];
        if handshake::status(cell) != CpuStatus::RUN {
            continue;
        }
        let vp = node.params.base_vp + cpu;
        if let Err((code, status)) = calls.start_vp(vp, &first_context(node, cpu, tables)) {
            let error = CpuError { vp, code, status };
            log::line(format_args!("{error}"));
            FAILURE.lock().get_or_insert(error);
            handshake::fail(cell);
        }
    }
}

fn first_context(node: &Node, cpu: u32, [gdt, idt]: [Descriptors; 2]) -> HvInitialVpContext {
    let entry = (cpu::begin as extern "C" fn() -> !) as usize as u64;
    let page_tables = node.pages(cpu, None).private(PrivatePage::Pml4);
    context::initial(entry, page_tables, gdt, idt)
}

/// Has the CPUs leave that did start, so that Linux can have them.
fn give_back(
    nodes: &[NodeParams],
    calls: &mut Calls,
    time: impl Fn() -> Result<u64, StartError>,
) -> Result<(), StartError> {
    for (index, node) in nodes.iter().enumerate() {
        let cells = &control_page(node).status[..node.cpu_count as usize];
        for (cell, cpu) in cells.iter().zip(0..) {
            if handshake::ask(cell, Request::Remove).is_ok() {
                calls.wake(node.base_vp + cpu);
            }
        }
        wait_for(index, node, CpuStatus::REMOVE, &time)?;
    }
    Ok(())
}

/// Waits until no CPU of a node has this status: how many are idle.
fn wait_for(
    index: usize,
    node: &NodeParams,
    passing: CpuStatus,
    time: impl Fn() -> Result<u64, StartError>,
) -> Result<u32, StartError> {
    // The clock costs an exit, and the others need the processor.
    const LOOKS: u32 = 1024;
    let cells = &control_page(node).status[..node.cpu_count as usize];
    let count = |wanted: CpuStatus| {
        let bits = cells.iter().zip(0..);
        bits.filter(|(cell, _)| handshake::status(*cell) == wanted)
            .fold(0_u32, |set, (_, cpu)| set | 1 << cpu)
    };
    let start = time()?;
    loop {
        for _ in 0..LOOKS {
            if count(passing) == 0 {
                return Ok(count(CpuStatus::IDLE).count_ones());
            }
            spin_loop();
        }
        if time()?.saturating_sub(start) > PATIENCE {
            let missing = Vps(count(passing), node.base_vp);
            return Err(StartError::Silent {
                vps: missing,
                node: index,
                status: passing,
            });
        }
    }
}

//! The whole boot, over a machine made of memory.

use super::*;
use crate::host_dt::tests::{HostTree, MIB};
use crate::linux::boot_params::BootParamsPages;
use crate::params::tests::{BASE, raw, raw_with_sidecar};
use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::RefCell;
use core::fmt;
use hv_defs::hypercall::{HvStatus, HypercallCode};
use loader_defs::linux::{E820_RAM, E820_RESERVED};
use loader_defs::paravisor::{COMMAND_LINE_CAPACITY, ParavisorCommandLine};
use loader_defs::shim::ShimParamsRaw;
use minimal_rt::Page;
use proptest::prelude::*;
use sidecar_defs::{ErrorText, node_memory_size};
use std::time::Instant;
use string_page_buf::StringBuffer;
use zerocopy::IntoBytes;

struct Fake {
    isolation: Isolation,
    vtl: u8,
    alias: bool,
    first_apic_id: u32,
    fail: bool,
    console: Rc<RefCell<String>>,
    /// Answer of the sidecar kernel.
    sidecar: Result<u32, (u32, &'static str)>,
    /// Its entry and parameters.
    sidecar_calls: Vec<(u64, SidecarParams)>,
}

struct Console(Rc<RefCell<String>>);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.borrow_mut().push_str(text);
        Ok(())
    }
}

impl Machine for Fake {
    fn isolation(&self) -> Isolation {
        self.isolation
    }

    fn reference_time(&mut self) -> Option<u64> {
        Some(2000)
    }

    fn vp_status(&mut self) -> Result<VsmVpStatus, HypercallError> {
        if self.fail {
            return Err(HypercallError::Status {
                code: HypercallCode::GET_VP_REGISTERS,
                status: HvStatus::ACCESS_DENIED,
            });
        }
        Ok(VsmVpStatus::new().with_active_vtl(self.vtl))
    }

    fn vsm_capabilities(&mut self) -> Result<VsmCapabilities, HypercallError> {
        Ok(VsmCapabilities::new().with_vtl0_alias_map_available(self.alias))
    }

    fn vp_indices(
        &mut self,
        hardware_ids: &[u32],
        found: &mut dyn FnMut(usize, u32),
    ) -> Result<(), HypercallError> {
        for (i, id) in hardware_ids.iter().enumerate() {
            found(i, id.wrapping_sub(self.first_apic_id));
        }
        Ok(())
    }

    fn physical_address_bits(&self) -> u8 {
        40
    }

    fn serial(&mut self, _rate: u32) -> Option<Box<dyn Write>> {
        Some(Box::new(Console(self.console.clone())))
    }

    fn start_sidecar(
        &mut self,
        entry: u64,
        params: &mut SidecarParams,
    ) -> Result<u32, Box<Failure>> {
        self.sidecar_calls.push((entry, *params));
        self.sidecar.map_err(|(started, error)| {
            let mut text = ErrorText::EMPTY;
            text.write_str(error).unwrap();
            Box::new(Failure {
                started,
                begun: started > 0,
                text,
            })
        })
    }
}

struct Setup {
    tree: Vec<u8>,
    command_line: (u16, &'static str),
    initrd: Vec<u8>,
    initrd_crc: u32,
    persisted: Page,
    params: ShimParamsRaw,
    machine: Fake,
}

impl Setup {
    fn new(tree: &HostTree) -> Self {
        Self {
            tree: tree.build(),
            command_line: (1, "measured=1"),
            initrd: b"123456789".to_vec(),
            // The check value of CRC-32.
            initrd_crc: 0xcbf4_3926,
            persisted: Page::ZERO,
            params: raw(),
            machine: Fake {
                isolation: Isolation::None,
                vtl: VTL2,
                alias: false,
                first_apic_id: 1,
                fail: false,
                console: Rc::default(),
                sidecar: Ok(3),
                sidecar_calls: Vec::new(),
            },
        }
    }

    fn run(&mut self) -> (Result<Handoff, BootError>, String) {
        let mut params = ShimParams::new(&self.params, BASE).unwrap();
        params.initrd_crc = self.initrd_crc;
        let mut command_line = Page::ZERO;
        let mut raw = ParavisorCommandLine {
            policy: self.command_line.0,
            length: self.command_line.1.len() as u16,
            text: [0; COMMAND_LINE_CAPACITY],
        };
        raw.text[..self.command_line.1.len()].copy_from_slice(self.command_line.1.as_bytes());
        command_line.0.copy_from_slice(raw.as_bytes());
        let mut memory = vec![0; 8192];
        let log = BootLog::new(StringBuffer::new(&mut memory).unwrap());
        let image = ImageMemory {
            device_tree: &self.tree,
            command_line: &command_line.0,
            imported_regions: &[0; 4096],
            initrd: &self.initrd,
            persisted_state_header: &self.persisted.0,
        };
        let result = prepare(&params, &image, &mut self.machine, Some(1000), &log);
        drop(log);
        let text = string_page_buf::read(&memory).unwrap().text.into();
        (result, text)
    }

    fn error(&mut self) -> String {
        format!("{}", self.run().0.unwrap_err())
    }
}

fn properties(blob: &[u8], node: &str) -> Vec<(String, Vec<u8>)> {
    let fdt = fdt::Fdt::new(blob).unwrap();
    let node = fdt.find_node(node).unwrap();
    node.properties()
        .map(|p| (p.name.into(), p.value.to_vec()))
        .collect()
}

#[test]
fn a_plain_vm_boots() {
    let mut setup = Setup::new(&HostTree::full());
    let (handoff, log) = setup.run();
    let handoff = handoff.unwrap();

    assert_eq!(handoff.kernel_entry, 0x0820_0000);
    assert!(
        handoff.command_line.ends_with(" measured=1 debug"),
        "{}",
        handoff.command_line
    );
    assert!(BootParamsPages::new(&handoff).is_ok());
    assert!(log.starts_with("[INFO] openhcl_boot: started\n"), "{log}");
    assert!(
        log.contains("4 VPs, VTL2 RAM 65536 KiB in 1 ranges"),
        "{log}"
    );
    assert!(
        log.contains("sidecar off: the image has no sidecar kernel"),
        "{log}"
    );
    assert_eq!(
        *setup.machine.console.borrow(),
        "[INFO] openhcl_boot: started\n",
        "early lines are replayed, details are not shown"
    );

    let root = properties(&handoff.device_tree, "/");
    let time = |name: &str| &root.iter().find(|p| p.0 == name).unwrap().1;
    assert_eq!(*time("reftime_boot_start"), 1000u64.to_be_bytes());
    assert_eq!(*time("reftime_boot_end"), 2000u64.to_be_bytes());
}

#[test]
fn the_kernel_gets_all_vtl2_ram_but_the_reserved_parts() {
    let (handoff, _) = Setup::new(&HostTree::plain()).run();
    let e820 = handoff.unwrap().e820;
    let vtl2 = GpaRange::new(128 * MIB, 64 * MIB).unwrap();
    let sum = |typ: u32| -> u64 {
        e820.iter()
            .filter(|e| e.typ == typ && vtl2.contains_address(e.addr))
            .map(|e| e.size.min(vtl2.end() - e.addr))
            .sum()
    };
    // Parameters without the host's tree, log, persisted state, and a pool of 2 MiB.
    let reserved = (362 - 64 + 2 + 20 + 512) * 4096;
    assert_eq!(sum(E820_RESERVED), reserved);
    assert_eq!(sum(E820_RAM), vtl2.len() - reserved);
    let outside: Vec<_> = e820
        .iter()
        .filter(|e| e.typ == E820_RAM && !vtl2.contains_address(e.addr))
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn an_isolated_vm_ignores_the_hosts_wishes() {
    let mut setup = Setup::new(&HostTree::full());
    setup.machine.isolation = Isolation::Vbs;
    setup.machine.alias = true;
    let (handoff, log) = setup.run();
    let handoff = handoff.unwrap();
    assert!(handoff.command_line.ends_with(" measured=1"));
    assert!(
        log.contains("dropped from the host: [\"command line\""),
        "{log}"
    );
    assert!(log.contains("GPA pool 0 pages"), "{log}");
    assert_eq!(*setup.machine.console.borrow(), "", "no console");
    let openhcl = properties(&handoff.device_tree, "/openhcl");
    assert!(openhcl.iter().all(|p| p.0 != "vtl0-alias-map"));
}

#[test]
fn the_host_cannot_turn_on_confidential_debug() {
    let mut tree = HostTree::full();
    tree.bootargs = "OPENHCL_CONFIDENTIAL_DEBUG=1";
    let (handoff, _) = Setup::new(&tree).run();
    let line = handoff.unwrap().command_line;
    // It reaches the kernel as the host's word, but the shim did not act on it.
    assert_eq!(line.matches("OPENHCL_CONFIDENTIAL_DEBUG").count(), 1);

    let mut setup = Setup::new(&tree);
    setup.command_line = (1, "OPENHCL_CONFIDENTIAL_DEBUG=1");
    setup.machine.isolation = Isolation::Vbs;
    let (handoff, log) = setup.run();
    assert!(handoff.unwrap().command_line.contains(" console=ttyS2,"));
    assert!(!log.contains("dropped"));
}

#[test]
fn host_options_count_by_policy() {
    let mut tree = HostTree::plain();
    tree.bootargs = "OPENHCL_ENABLE_VTL2_GPA_POOL=33";
    let mut setup = Setup::new(&tree);
    assert!(setup.run().1.contains("GPA pool 33 pages in 1 ranges"));
    setup.command_line.0 = 0;
    assert!(setup.run().1.contains("GPA pool 512 pages"));
}

#[test]
fn the_alias_map_needs_the_capability() {
    let alias = |tree: &HostTree, alias, vtl| {
        let mut setup = Setup::new(tree);
        setup.machine.alias = alias;
        setup.machine.vtl = vtl;
        let handoff = setup.run().0.unwrap();
        properties(&handoff.device_tree, "/openhcl")
            .into_iter()
            .find(|p| p.0 == "vtl0-alias-map")
            .map(|p| u64::from_be_bytes(p.1.try_into().unwrap()))
    };
    assert_eq!(alias(&HostTree::full(), false, 2), None);
    assert_eq!(alias(&HostTree::full(), true, 2), Some(1 << 46));
    assert_eq!(alias(&HostTree::plain(), true, 2), Some(1 << 39));
    assert_eq!(alias(&HostTree::full(), true, 0), None);
}

#[test]
fn processors_out_of_order_are_refused() {
    let mut tree = HostTree::plain();
    tree.cpus.swap(1, 2);
    assert_eq!(
        Setup::new(&tree).error(),
        "processor 1 (hardware id 0x3) is VP 2, expected VP 1"
    );
}

#[test]
fn a_damaged_initrd_is_refused() {
    let mut setup = Setup::new(&HostTree::plain());
    setup.initrd[3] ^= 1;
    assert!(
        setup.error().ends_with("expected 0xcbf43926"),
        "{}",
        setup.error()
    );
}

#[test]
fn failing_hypercalls_are_named() {
    let mut setup = Setup::new(&HostTree::plain());
    setup.machine.fail = true;
    assert_eq!(
        setup.error(),
        "own VTL: hypercall GET_VP_REGISTERS failed with status ACCESS_DENIED"
    );
}

fn with_sidecar(nodes: &[(u32, u32)]) -> Setup {
    let mut tree = HostTree::full();
    tree.cpus = nodes.into();
    let mut setup = Setup::new(&tree);
    setup.params = raw_with_sidecar();
    setup
}

#[test]
fn the_sidecar_gets_its_processors_and_linux_the_others() {
    let mut setup = with_sidecar(&[(1, 0), (2, 0), (3, 0), (4, 7), (5, 7)]);
    let (handoff, log) = setup.run();
    let handoff = handoff.unwrap();
    assert!(
        log.contains("sidecar on: 3 of 5 VPs in 2 nodes, started in 0 us"),
        "{log}"
    );
    assert!(handoff.command_line.contains(" maxcpus=1 "));
    let [(entry, params)] = &setup.machine.sidecar_calls[..] else {
        panic!("expected one call");
    };
    assert_eq!((*entry, params.node_count), (0x0860_0120, 2));

    let openhcl = properties(&handoff.device_tree, "/openhcl");
    let linux = openhcl.iter().find(|p| p.0 == "linux-cpus").unwrap();
    assert_eq!(linux.1, 3u32.to_be_bytes());
    let root = properties(&handoff.device_tree, "/");
    for name in ["reftime_sidecar_start", "reftime_sidecar_end"] {
        let time = root.iter().find(|p| p.0 == name).unwrap();
        assert_eq!(time.1, 2000u64.to_be_bytes());
    }
    let base = params.nodes[1].memory_base;
    let node = properties(&handoff.device_tree, &format!("/sidecar@{base:x}"));
    let value = |name: &str| &node.iter().find(|p| p.0 == name).unwrap().1;
    let reg: Vec<u64> = value("reg")
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| u64::from_be_bytes(bytes))
        .collect();
    assert_eq!(reg, [base, 4096, base + 4096, 4 * 4096]);
    assert_eq!(value("compatible"), b"microsoft,openhcl-sidecar\0");
    assert_eq!(value("reg-names"), b"ctrl\0shmem\0");
    assert_eq!(*value("base-cpu"), 3u32.to_be_bytes());
    assert_eq!(*value("cpu-count"), 2u32.to_be_bytes());
    assert_eq!(*value("numa-node-id"), 7u32.to_be_bytes());
    // Linux may not use its memory.
    let reserved = handoff.e820.iter().filter(|e| e.typ == E820_RESERVED);
    let size = node_memory_size(3) + node_memory_size(2);
    let first = params.nodes[0].memory_base;
    let mut reserved = reserved.map(|e| e.addr..e.addr + e.size);
    assert!(reserved.any(|r| r.start <= first && first + size <= r.end));
}

#[test]
fn a_sidecar_that_does_not_start_leaves_everything_to_linux() {
    let mut without = with_sidecar(&[(1, 0), (2, 0)]);
    without.command_line.1 = "OPENHCL_SIDECAR=off";
    let expected = without.run().0.unwrap();

    let mut setup = with_sidecar(&[(1, 0), (2, 0)]);
    setup.machine.sidecar = Err((0, "no clock"));
    let (handoff, log) = setup.run();
    let handoff = handoff.unwrap();
    assert!(
        log.contains("[WARN] sidecar off: its kernel does not start: no clock"),
        "{log}"
    );
    assert_eq!(handoff.e820, expected.e820);
    assert_eq!(handoff.device_tree.len(), expected.device_tree.len());
    assert!(!handoff.command_line.contains("maxcpus"));
}

#[test]
fn a_sidecar_that_fails_half_way_ends_the_boot() {
    let mut setup = with_sidecar(&[(1, 0), (2, 0), (3, 0)]);
    setup.machine.sidecar = Err((1, "VP 2 is silent"));
    assert_eq!(
        setup.error(),
        "sidecar: its kernel does not start: VP 2 is silent; 1 CPUs run it already"
    );
}

#[test]
fn the_option_keeps_the_sidecar_from_being_called() {
    let mut setup = with_sidecar(&[(1, 0), (2, 0)]);
    setup.command_line.1 = "OPENHCL_SIDECAR=on,log,off";
    let (handoff, log) = setup.run();
    assert!(handoff.is_ok());
    assert!(
        log.contains("sidecar off: OPENHCL_SIDECAR says so"),
        "{log}"
    );
    assert!(setup.machine.sidecar_calls.is_empty());
}

#[test]
fn persisted_state_is_refused_and_the_boot_goes_on() {
    let mut setup = Setup::new(&HostTree::plain());
    setup.persisted.0[..8].copy_from_slice(b"OHCLPHDR");
    let (handoff, log) = setup.run();
    assert!(handoff.is_ok());
    assert!(
        log.contains("[WARN] persisted state of 0 bytes found"),
        "{log}"
    );
}

#[test]
fn choosing_memory_needs_the_imported_regions() {
    let mut tree = HostTree::plain();
    tree.mode = "vtl2";
    assert!(Setup::new(&tree).error().starts_with("image was relocated"));
}

// The bare-metal heap never gives memory back, except the newest block, and has 2 MiB.
#[test]
fn the_largest_vm_fits_the_kernels_limits() {
    let mut tree = HostTree::full();
    tree.cpus = (1..=2048).map(|id| (id, (id - 1) % 64)).collect();
    tree.memory = (0..700)
        .map(|i| ((1 << 32) + i * 4 * MIB, 2 * MIB, (i % 64) as u32, 0))
        .collect();
    tree.memory.push((128 * MIB, 64 * MIB, 0, 3));
    let mut setup = Setup::new(&tree);
    let start = Instant::now();
    let handoff = setup.run().0.unwrap();
    let elapsed = start.elapsed();
    // Only diagnoses: quadratic code would take minutes here.
    assert!(elapsed.as_secs() < 10, "{elapsed:?}");
    assert!(handoff.device_tree.len() > 200 << 10);
    // 701 ranges exceed the extension of the memory map, which is told and not cut.
    assert_eq!(
        format!("{}", BootParamsPages::new(&handoff).unwrap_err()),
        format!(
            "memory map has {} entries, expected at most 640",
            handoff.e820.len()
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_trees_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        isolated in any::<bool>(),
    ) {
        let mut setup = Setup::new(&HostTree::full());
        for (index, value) in changes {
            let i = index.index(setup.tree.len());
            setup.tree[i] = value;
        }
        if isolated {
            setup.machine.isolation = Isolation::Vbs;
        }
        if let Ok(handoff) = setup.run().0 {
            prop_assert!(fdt::Fdt::new(&handoff.device_tree).is_ok());
        }
    }
}

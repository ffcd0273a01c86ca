//! What the machine consists of, as the device tree tells it.

use crate::device_tree::DeviceTreeError;
use crate::device_tree::Fault;
use crate::device_tree::Node;
use crate::device_tree::Range;
use crate::sidecar;
use crate::sidecar::SidecarNode;
use loader_defs::memory_type::MemoryVtlType;
use serde::Serialize;
use thiserror::Error;

/// A virtual processor. Its index is its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vp {
    /// Local APIC id.
    pub apic_id: u32,
    /// NUMA node.
    pub vnode: u32,
}

/// A range of the guest's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Where.
    pub range: Range,
    /// What for.
    pub kind: MemoryVtlType,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// In the order of VP indices.
    pub vps: Vec<Vp>,
    /// In the order of addresses; no two overlap.
    pub memory: Vec<Memory>,
    /// The nodes of the sidecar, if it runs.
    pub sidecar: Vec<SidecarNode>,
    /// `none`, `vbs`, `snp` or `tdx`.
    pub isolation: String,
    /// `host` or `vtl2`.
    pub allocation_mode: String,
    /// When the boot shim began and ended, in units of 100 ns of the reference clock.
    pub shim_times: Option<(u64, u64)>,
    /// The same for the start of the sidecar, which is part of it; `None` if there is none.
    pub sidecar_times: Option<(u64, u64)>,
    /// VPs that Linux has beside the first, if there is a sidecar.
    linux_vps: Option<usize>,
    /// The processor's counter when the boot shim ended.
    pub shim_end_ticks: Option<u64>,
}

/// Why there is no topology.
#[derive(Debug, Error)]
pub enum TopologyError {
    /// The tree does not say what it must.
    #[error(transparent)]
    DeviceTree(#[from] DeviceTreeError),
    /// A machine without a processor.
    #[error("device tree: /cpus has no CPU with status okay")]
    NoVp,
    /// Two processors are the same.
    #[error("device tree: APIC id {apic_id} belongs to VP {first} and to VP {second}")]
    SameApicId {
        /// The id.
        apic_id: u32,
        /// A VP that has it.
        first: usize,
        /// The other one.
        second: usize,
    },
    /// Memory that is described twice.
    #[error("device tree: memory {first:#x} to {first_end:#x} overlaps memory at {second:#x}")]
    Overlap {
        /// Start of the lower range.
        first: u64,
        /// Its end.
        first_end: u64,
        /// Start of the upper one.
        second: u64,
    },
}

impl Topology {
    /// Reads the tree below `root`.
    pub fn read(root: &Node) -> Result<Self, TopologyError> {
        let openhcl = root.child("openhcl")?;
        let vps = read_vps(root)?;
        Ok(Self {
            sidecar: sidecar::read(root, vps.len())?,
            vps,
            memory: read_memory(&openhcl)?,
            isolation: openhcl.text("isolation-type")?,
            allocation_mode: openhcl.text("memory-allocation-mode")?,
            shim_times: root
                .optional_u64("reftime_boot_start")?
                .zip(root.optional_u64("reftime_boot_end")?),
            sidecar_times: root
                .optional_u64("reftime_sidecar_start")?
                .zip(root.optional_u64("reftime_sidecar_end")?),
            linux_vps: openhcl
                .property("linux-cpus")?
                .map(|list| list.len() / size_of::<u32>()),
            shim_end_ticks: root.optional_u64("openhcl,tsc-boot-end")?,
        })
    }

    /// Bytes of RAM of VTL0.
    pub fn vtl0_bytes(&self) -> u64 {
        self.sum(|kind| kind == MemoryVtlType::VTL0)
    }

    /// Bytes of RAM of VTL2, whatever it is used for.
    pub fn vtl2_bytes(&self) -> u64 {
        self.sum(|kind| kind != MemoryVtlType::VTL0 && !is_mmio(kind))
    }

    /// The RAM of VTL0.
    pub fn vtl0_ram(&self) -> impl Iterator<Item = Range> {
        self.memory
            .iter()
            .filter(|memory| memory.kind == MemoryVtlType::VTL0)
            .map(|memory| memory.range)
    }

    /// Where the boot shim's log is.
    pub fn shim_log(&self) -> Option<Range> {
        self.memory
            .iter()
            .find(|memory| memory.kind == MemoryVtlType::BOOTSHIM_LOG_BUFFER)
            .map(|memory| memory.range)
    }

    /// One JSON object of at most `capacity` bytes; `None` if even its required parts
    /// need more. Of the command line it has as many words as fit, counted from the end,
    /// because that is where the host's own words stand.
    pub fn to_json(&self, command_line: &str, capacity: usize) -> Option<String> {
        let mut words = command_line.trim();
        loop {
            let json = self.json(words);
            if json.len() <= capacity {
                return Some(json);
            }
            if words.is_empty() {
                return None;
            }
            words = match words.split_once(char::is_whitespace) {
                Some((_, rest)) => rest.trim_start(),
                None => "",
            };
        }
    }

    fn json(&self, command_line: &str) -> String {
        #[derive(Serialize)]
        struct Sidecar {
            cpus: usize,
            start_ns: u64,
        }
        #[derive(Serialize)]
        struct Report<'a> {
            vps: Vec<u32>,
            vnodes: u32,
            memory_bytes: u64,
            vtl0_memory_bytes: u64,
            vtl2_memory_bytes: u64,
            isolation: &'a str,
            allocation_mode: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            boot_shim_us: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sidecar: Option<Sidecar>,
            command_line: &'a str,
        }
        let report = Report {
            vps: self.vps.iter().map(|vp| vp.apic_id).collect(),
            vnodes: self.vnodes(),
            memory_bytes: self.vtl0_bytes() + self.vtl2_bytes(),
            vtl0_memory_bytes: self.vtl0_bytes(),
            vtl2_memory_bytes: self.vtl2_bytes(),
            isolation: &self.isolation,
            allocation_mode: &self.allocation_mode,
            boot_shim_us: self
                .shim_times
                .map(|(start, end)| end.saturating_sub(start) / 10),
            sidecar: self
                .sidecar_times
                .zip(self.linux_vps)
                .map(|((start, end), linux_vps)| Sidecar {
                    cpus: self.vps.len().saturating_sub(1 + linux_vps),
                    start_ns: end.saturating_sub(start).saturating_mul(100),
                }),
            command_line,
        };
        serde_json::to_string(&report).expect("numbers and texts always have a JSON form")
    }

    /// Number of NUMA nodes with a processor.
    fn vnodes(&self) -> u32 {
        let mut vnodes: Vec<_> = self.vps.iter().map(|vp| vp.vnode).collect();
        vnodes.sort_unstable();
        vnodes.dedup();
        // There are at most as many as children of a node.
        vnodes.len() as u32
    }

    /// Ranges do not overlap, so that no sum of their sizes exceeds 64 bits.
    fn sum(&self, which: impl Fn(MemoryVtlType) -> bool) -> u64 {
        self.memory
            .iter()
            .filter(|memory| which(memory.kind))
            .map(|memory| memory.range.size)
            .sum()
    }
}

/// The boot shim numbers its CPU nodes in the order of VP indices.
fn read_vps(root: &Node) -> Result<Vec<Vp>, TopologyError> {
    let mut vps: Vec<Vp> = Vec::new();
    for node in root.child("cpus")?.children("cpu")? {
        if node
            .optional_text("status")?
            .is_some_and(|status| status != "okay")
        {
            continue;
        }
        let id = node.one_or_two_cells("reg")?;
        let apic_id = u32::try_from(id).map_err(|_| {
            node.error(Fault::Value {
                name: "reg".to_owned(),
                value: format!("{id:#x}"),
                expected: "an APIC id of 32 bits",
            })
        })?;
        if let Some(first) = vps.iter().position(|vp| vp.apic_id == apic_id) {
            return Err(TopologyError::SameApicId {
                apic_id,
                first,
                second: vps.len(),
            });
        }
        vps.push(Vp {
            apic_id,
            vnode: node.u32("numa-node-id")?,
        });
    }
    if vps.is_empty() {
        return Err(TopologyError::NoVp);
    }
    Ok(vps)
}

fn read_memory(openhcl: &Node) -> Result<Vec<Memory>, TopologyError> {
    let mut memory = Vec::new();
    for node in openhcl.children("memory")? {
        let kind = MemoryVtlType(node.u32("openhcl,memory-type")?);
        if kind > MemoryVtlType::PERSISTED_STATE_PROTOBUF {
            return Err(node
                .error(Fault::Value {
                    name: "openhcl,memory-type".to_owned(),
                    value: kind.0.to_string(),
                    expected: "0 to 12",
                })
                .into());
        }
        for range in node.ranges("reg")? {
            memory.push(Memory { range, kind });
        }
    }
    memory.sort_by_key(|memory| memory.range);
    for pair in memory.windows(2) {
        let (first, second) = (pair[0].range, pair[1].range);
        let first_end = first.start + first.size;
        if first_end > second.start {
            return Err(TopologyError::Overlap {
                first: first.start,
                first_end,
                second: second.start,
            });
        }
    }
    Ok(memory)
}

fn is_mmio(kind: MemoryVtlType) -> bool {
    matches!(kind, MemoryVtlType::VTL0_MMIO | MemoryVtlType::VTL2_MMIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;

    const MIB: u64 = 1 << 20;

    struct TreeOnDisk(TempDir);

    impl TreeOnDisk {
        /// A valid machine: 2 VPs, 3 ranges.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.set("reftime_boot_start", &1000u64.to_be_bytes());
            tree.set("reftime_boot_end", &151_000u64.to_be_bytes());
            tree.cpu(1, 1, 0);
            tree.cpu(2, 2, 1);
            tree.set("openhcl/isolation-type", b"none\0");
            tree.set("openhcl/memory-allocation-mode", b"host\0");
            tree.memory(0, 128 * MIB, MemoryVtlType::VTL0);
            tree.memory(128 * MIB, 63 * MIB, MemoryVtlType::VTL2_RAM);
            tree.memory(191 * MIB, MIB, MemoryVtlType::BOOTSHIM_LOG_BUFFER);
            tree.memory(0xfe00_0000, MIB, MemoryVtlType::VTL2_MMIO);
            tree
        }

        fn set(&self, path: &str, bytes: &[u8]) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
            std::fs::write(path, bytes).unwrap();
        }

        fn cpu(&self, unit: u32, apic_id: u32, vnode: u32) {
            self.set(&format!("cpus/cpu@{unit:x}/reg"), &apic_id.to_be_bytes());
            self.set(&format!("cpus/cpu@{unit:x}/status"), b"okay\0");
            self.set(
                &format!("cpus/cpu@{unit:x}/numa-node-id"),
                &vnode.to_be_bytes(),
            );
        }

        fn memory(&self, start: u64, size: u64, kind: MemoryVtlType) {
            let node = format!("openhcl/memory@{start:x}");
            let reg = [start.to_be_bytes(), size.to_be_bytes()].concat();
            self.set(&format!("{node}/reg"), &reg);
            self.set(
                &format!("{node}/openhcl,memory-type"),
                &kind.0.to_be_bytes(),
            );
        }

        fn read(&self) -> Result<Topology, TopologyError> {
            Topology::read(&Node::root(self.0.path()))
        }

        fn error(&self) -> String {
            self.read().unwrap_err().to_string()
        }
    }

    #[test]
    fn a_machine_is_read_as_it_is_described() {
        let topology = TreeOnDisk::new().read().unwrap();
        let ids: Vec<_> = topology.vps.iter().map(|vp| vp.apic_id).collect();
        assert_eq!(ids, [1, 2]);
        assert_eq!(topology.vtl0_bytes(), 128 * MIB);
        assert_eq!(topology.vtl2_bytes(), 64 * MIB);
        assert_eq!(
            topology.shim_log(),
            Some(Range {
                start: 191 * MIB,
                size: MIB
            })
        );
        assert_eq!(topology.vnodes(), 2);
    }

    #[test]
    fn vp_order_is_the_order_of_the_nodes_and_not_of_their_names_as_text() {
        let tree = TreeOnDisk::new();
        for unit in 3..=17 {
            tree.cpu(unit, 100 - unit, 0);
        }
        let ids: Vec<_> = tree
            .read()
            .unwrap()
            .vps
            .iter()
            .map(|vp| vp.apic_id)
            .collect();
        let expected: Vec<u32> = [1, 2].into_iter().chain((83..=97).rev()).collect();
        assert_eq!(ids, expected);
    }

    #[test]
    fn a_disabled_cpu_is_no_vp() {
        let tree = TreeOnDisk::new();
        tree.set("cpus/cpu@2/status", b"disabled\0");
        assert_eq!(tree.read().unwrap().vps.len(), 1);
        tree.set("cpus/cpu@1/status", b"fail\0");
        assert_eq!(
            tree.error(),
            "device tree: /cpus has no CPU with status okay"
        );
    }

    #[test]
    fn two_vps_with_one_apic_id_are_refused() {
        let tree = TreeOnDisk::new();
        tree.cpu(3, 1, 0);
        assert_eq!(
            tree.error(),
            "device tree: APIC id 1 belongs to VP 0 and to VP 2"
        );
    }

    #[test]
    fn overlapping_memory_is_refused() {
        let tree = TreeOnDisk::new();
        tree.memory(127 * MIB, 2 * MIB, MemoryVtlType::VTL0);
        assert_eq!(
            tree.error(),
            "device tree: memory 0x0 to 0x8000000 overlaps memory at 0x7f00000"
        );
    }

    #[test]
    fn memory_for_an_unknown_purpose_is_refused() {
        let tree = TreeOnDisk::new();
        tree.memory(300 * MIB, MIB, MemoryVtlType(13));
        assert_eq!(
            tree.error(),
            "device tree: /openhcl/memory@12c00000: openhcl,memory-type is 13, expected 0 to 12"
        );
    }

    #[test]
    fn a_machine_without_openhcl_node_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = Topology::read(&Node::root(directory.path())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "device tree: /openhcl: node cannot be read: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn the_report_is_compact_json() {
        let json = TreeOnDisk::new()
            .read()
            .unwrap()
            .to_json("console=ttynull A=\"b c\"", 900);
        assert_eq!(
            json.as_deref(),
            Some(concat!(
                r#"{"vps":[1,2],"vnodes":2,"memory_bytes":201326592,"#,
                r#""vtl0_memory_bytes":134217728,"vtl2_memory_bytes":67108864,"#,
                r#""isolation":"none","allocation_mode":"host","boot_shim_us":15000,"#,
                r#""command_line":"console=ttynull A=\"b c\""}"#
            ))
        );
    }

    #[test]
    fn the_end_of_a_long_command_line_is_reported() {
        let topology = TreeOnDisk::new().read().unwrap();
        let line = format!("{}LAST=1", "word ".repeat(1000));
        let json = topology.to_json(&line, 900).unwrap();
        assert!(json.len() <= 900 && json.len() > 890);
        assert!(json.ends_with(r#"word LAST=1"}"#));
        let one_word = "x".repeat(5000);
        assert!(
            topology
                .to_json(&one_word, 900)
                .unwrap()
                .ends_with(r#""command_line":""}"#)
        );
        assert_eq!(topology.to_json("", 100), None);
    }

    #[test]
    fn the_sidecars_times_are_there_only_if_it_was_started() {
        let tree = TreeOnDisk::new();
        assert_eq!(tree.read().unwrap().sidecar_times, None);
        tree.set("reftime_sidecar_start", &2000u64.to_be_bytes());
        assert_eq!(tree.read().unwrap().sidecar_times, None);
        tree.set("reftime_sidecar_end", &2500u64.to_be_bytes());
        tree.set("openhcl/linux-cpus", &[]);
        let topology = tree.read().unwrap();
        assert_eq!(topology.sidecar_times, Some((2000, 2500)));
        let json = topology.to_json("", 1000).unwrap();
        let expected = r#""sidecar":{"cpus":1,"start_ns":50000}"#;
        assert!(json.contains(expected), "{json}");
    }

    #[test]
    fn sixty_four_vps_with_the_longest_ids_fit_into_a_record_of_the_kernel_log() {
        let mut topology = TreeOnDisk::new().read().unwrap();
        topology.vps = (0..64)
            .map(|i| Vp {
                apic_id: u32::MAX - i,
                vnode: i,
            })
            .collect();
        topology.memory[0].range.size = 1 << 60;
        topology.shim_times = Some((0, u64::MAX));
        let capacity = kernel_log::KernelLog::open_at(
            Path::new("/dev/null"),
            3,
            boot_events::PARAVISOR_PREFIX,
        )
        .record_capacity()
            - crate::own(boot_events::TOPOLOGY_PREFIX).len();
        assert!(topology.to_json("loglevel=8", capacity).is_some());
    }
}

//! How MMIO is divided between VTL0 and VTL2.

use alloc::vec::Vec;

use super::MemoryError;
use crate::host_dt::AllocationMode;
use crate::partition::PartitionInfo;
use crate::range::GpaRange;

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Least that VTL2 takes when the host names no size.
const LEAST: u64 = 128 * MIB;
/// Most that VTL2 takes when the host names no size.
const MOST: u64 = 1024 * MIB;

/// MMIO of both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mmio {
    /// The guest's.
    pub vtl0: Vec<GpaRange>,
    /// VTL2's.
    pub vtl2: Vec<GpaRange>,
}

/// Divides it. The host's word counts, unless VTL2 has to choose for itself.
pub fn select(partition: &PartitionInfo) -> Result<Mmio, MemoryError> {
    let ranges = |bus: Option<&crate::host_dt::Vmbus>| -> Vec<GpaRange> {
        bus.map(|b| b.mmio.to_vec()).unwrap_or_default()
    };
    let mut mmio = Mmio {
        vtl0: ranges(partition.vmbus_vtl0.as_ref()),
        vtl2: ranges(partition.vmbus_vtl2.as_ref()),
    };
    let wanted = match partition.allocation_mode {
        AllocationMode::Host if !partition.trust.is_isolated() => return Ok(mmio),
        AllocationMode::Host => None,
        AllocationMode::Vtl2 { mmio_size, .. } => mmio_size,
    };
    let given: u64 = mmio.vtl2.iter().map(GpaRange::len).sum();
    if given > 0 {
        return match wanted {
            Some(size) if given < size => Err(MemoryError::Mmio {
                found: given,
                expected: size,
            }),
            _ => Ok(mmio),
        };
    }
    // A VM without VMBus has no MMIO to divide, and no need for it.
    if mmio.vtl0.is_empty() && wanted.is_none() {
        return Ok(mmio);
    }
    carve(&mut mmio, wanted.unwrap_or(0))?;
    Ok(mmio)
}

// Takes the end of VTL0's range above 4 GiB. VTL0 keeps both of its ranges.
fn carve(mmio: &mut Mmio, wanted: u64) -> Result<(), MemoryError> {
    let high = match mmio.vtl0.as_mut_slice() {
        [low, high] if low.end() <= FOUR_GIB && high.start() >= FOUR_GIB => high,
        _ => {
            return Err(MemoryError::Mmio {
                found: 0,
                expected: wanted,
            });
        }
    };
    let size = wanted
        .max((high.len() / 2).clamp(LEAST, MOST))
        .next_multiple_of(loader_defs::PAGE_SIZE);
    let split = high.end().checked_sub(size).filter(|s| *s > high.start());
    let parts = split.and_then(|split| {
        Some((
            GpaRange::from_bounds(high.start(), split)?,
            GpaRange::from_bounds(split, high.end())?,
        ))
    });
    let Some((vtl0, vtl2)) = parts else {
        return Err(MemoryError::Mmio {
            found: high.len(),
            expected: size,
        });
    };
    *high = vtl0;
    mmio.vtl2.push(vtl2);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_dt::HostDeviceTree;
    use crate::host_dt::tests::HostTree;
    use crate::isolation::{Isolation, Trust};

    const GIB: u64 = 1 << 30;
    const LOW: (u64, u64) = (0xf800_0000, 64 * MIB);
    const HIGH: (u64, u64) = (64 * GIB, 4 * GIB);
    const BOTH: &[(u64, u64)] = &[LOW, HIGH];

    fn mmio(tree: &HostTree) -> Result<Mmio, MemoryError> {
        let host = HostDeviceTree::parse(&tree.build()).unwrap();
        select(&PartitionInfo::new(host, Trust::new(Isolation::None, false)).unwrap())
    }

    fn vtl2_mode(vtl0: &'static [(u64, u64)], size: Option<u64>) -> HostTree {
        let mut tree = HostTree::plain();
        tree.mode = "vtl2";
        tree.mmio_size = size;
        tree.vmbus.push((0, vtl0));
        tree
    }

    fn range((base, length): (u64, u64)) -> GpaRange {
        GpaRange::new(base, length).unwrap()
    }

    #[test]
    fn in_host_mode_the_host_decides() {
        let mut tree = HostTree::plain();
        tree.vmbus.push((0, BOTH));
        let mmio = mmio(&tree).unwrap();
        assert_eq!(mmio.vtl0, [range(LOW), range(HIGH)]);
        assert!(mmio.vtl2.is_empty());
    }

    #[test]
    fn vtl2_takes_the_end_of_the_high_range() {
        let mmio = mmio(&vtl2_mode(BOTH, None)).unwrap();
        assert_eq!(mmio.vtl0, [range(LOW), range((64 * GIB, 3 * GIB))]);
        assert_eq!(mmio.vtl2, [range((67 * GIB, GIB))], "half, at most 1 GiB");
    }

    #[test]
    fn the_hosts_size_is_a_minimum() {
        let found = mmio(&vtl2_mode(BOTH, Some(3 * GIB))).unwrap();
        assert_eq!(found.vtl2[0].len(), 3 * GIB);
        assert!(matches!(
            mmio(&vtl2_mode(BOTH, Some(4 * GIB))),
            Err(MemoryError::Mmio { .. })
        ));
        assert!(matches!(
            mmio(&vtl2_mode(&[LOW], Some(MIB))),
            Err(MemoryError::Mmio { .. })
        ));
    }

    #[test]
    fn ranges_that_the_host_gives_to_vtl2_are_used_if_large_enough() {
        let mut tree = vtl2_mode(BOTH, Some(64 * MIB));
        tree.vmbus.push((2, &[(32 * GIB, 128 * MIB)]));
        assert_eq!(mmio(&tree).unwrap().vtl2, [range((32 * GIB, 128 * MIB))]);
        tree.mmio_size = Some(GIB);
        assert_eq!(
            mmio(&tree),
            Err(MemoryError::Mmio {
                found: 128 * MIB,
                expected: GIB
            })
        );
    }

    #[test]
    fn without_vmbus_there_is_nothing_to_divide() {
        assert_eq!(mmio(&HostTree::plain()), Ok(Mmio::default()));
    }
}

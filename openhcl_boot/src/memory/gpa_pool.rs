//! Size of the GPA pool: DMA memory of VTL2 that survives servicing.
//!
//! Either it is given, or it is looked up by the number of VPs and the size of VTL2. The
//! rows are measured configurations; between them the pool grows with the memory.

use loader_defs::PAGE_SIZE;

const MIB: u64 = 1 << 20;
const PAGES_PER_MIB: u64 = MIB / PAGE_SIZE;

/// Sizes from the table are multiples of this many MiB.
const ROUNDING_MIB: u64 = 2;

/// Ratios are computed in thousandths.
const RATIO_SCALE: u64 = 1000;

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolTable {
    /// Images as small as possible.
    Release,
    /// Images with room for debugging.
    Debug,
}

/// What the options ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolConfig {
    /// No pool.
    Off,
    /// This many pages.
    Pages(u64),
    /// What the host's device hint says, or else the table.
    Table(PoolTable),
}

struct Row {
    vps: u32,
    vtl2_mib: u64,
    pool_mib: u64,
}

const fn row(vps: u32, vtl2_mib: u64, pool_mib: u64) -> Row {
    Row {
        vps,
        vtl2_mib,
        pool_mib,
    }
}

// Sorted by the number of VPs. One VP has no row: the rows of two VPs are the nearest.
const RELEASE: &[Row] = &[
    row(2, 96, 2),
    row(4, 108, 2),
    row(4, 130, 12),
    row(8, 140, 4),
    row(16, 70, 2),
    row(16, 256, 20),
    row(32, 516, 36),
    row(32, 538, 74),
    row(64, 924, 68),
    row(96, 1042, 114),
    row(112, 1566, 288),
    row(128, 1360, 84),
    row(896, 12912, 516),
];

const DEBUG: &[Row] = &[
    row(4, 496, 4),
    row(16, 512, 16),
    row(32, 1024, 32),
    row(32, 1536, 128),
    row(64, 1024, 64),
    row(128, 1024, 128),
];

/// Pages of the pool.
pub fn pool_pages(
    config: PoolConfig,
    device_dma_pages: Option<u64>,
    vps: u32,
    vtl2_bytes: u64,
) -> u64 {
    match config {
        PoolConfig::Off => 0,
        PoolConfig::Pages(pages) => pages,
        PoolConfig::Table(table) => match device_dma_pages {
            Some(pages) if pages > 0 => pages,
            _ => {
                let rows = match table {
                    PoolTable::Release => RELEASE,
                    PoolTable::Debug => DEBUG,
                };
                look_up(rows, vps, vtl2_bytes / MIB) * PAGES_PER_MIB
            }
        },
    }
}

fn look_up(rows: &[Row], vps: u32, vtl2_mib: u64) -> u64 {
    if let Some(exact) = rows.iter().find(|r| r.vps == vps && r.vtl2_mib == vtl2_mib) {
        return exact.pool_mib;
    }
    // The rows of this number of VPs, or of the next smaller and larger numbers.
    let lower = rows.iter().map(|r| r.vps).filter(|v| *v <= vps).max();
    let upper = rows.iter().map(|r| r.vps).filter(|v| *v >= vps).min();
    let is_near = |r: &&Row| {
        if lower == Some(vps) {
            r.vps == vps
        } else {
            Some(r.vps) == lower || Some(r.vps) == upper
        }
    };
    let ratios = || {
        rows.iter()
            .filter(is_near)
            // Rounded up, so that the size of a row's own memory is not rounded above its
            // pool.
            .map(|r| (r.vtl2_mib * RATIO_SCALE).div_ceil(r.pool_mib))
    };
    let (Some(least), Some(most)) = (ratios().min(), ratios().max()) else {
        return 0;
    };
    let average = ((least + most) / 2).max(1);
    vtl2_mib
        .saturating_mul(RATIO_SCALE)
        .div_ceil(average)
        .next_multiple_of(ROUNDING_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn release(vps: u32, mib: u64) -> u64 {
        pool_pages(PoolConfig::Table(PoolTable::Release), None, vps, mib * MIB) / PAGES_PER_MIB
    }

    #[test]
    fn measured_configurations_get_their_row() {
        assert_eq!(release(16, 70), 2);
        assert_eq!(release(32, 538), 74);
        assert_eq!(
            pool_pages(PoolConfig::Table(PoolTable::Debug), None, 16, 512 * MIB),
            16 * PAGES_PER_MIB
        );
    }

    #[test]
    fn other_sizes_follow_the_ratio_of_their_neighbours() {
        // 4 VPs: ratios 54 and 10.8, on average 32.4.
        assert_eq!(release(4, 64), 2);
        assert_eq!(release(4, 324), 10);
        // 1 VP: only the row of 2 VPs is near (ratio 48).
        assert_eq!(release(1, 64), 2);
        // 3 VPs: rows of 2 and 4 VPs, ratios 54, 48, 10.8.
        assert_eq!(release(3, 324), 10);
        // More VPs than any row.
        assert_eq!(release(2048, 12912), 516);
    }

    #[test]
    fn explicit_sizes_and_the_hint_win_in_this_order() {
        let pages = |config, hint| pool_pages(config, hint, 4, 64 * MIB);
        let table = PoolConfig::Table(PoolTable::Release);
        assert_eq!(pages(PoolConfig::Off, Some(9)), 0);
        assert_eq!(pages(PoolConfig::Pages(7), Some(9)), 7);
        assert_eq!(pages(table, Some(9)), 9);
        assert_eq!(pages(table, Some(0)), 512);
    }

    proptest! {
        #[test]
        fn pools_from_the_table_are_small_and_rounded(vps in 1u32..4096, mib in 1u64..100_000) {
            let pool = release(vps, mib);
            prop_assert!(pool.is_multiple_of(ROUNDING_MIB) && pool > 0);
            prop_assert!(pool <= mib / 4 + ROUNDING_MIB);
        }
    }
}

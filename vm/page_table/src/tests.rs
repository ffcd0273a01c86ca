//! The maps are checked by a walker that shares nothing with the builder: it reads raw
//! 64-bit words, as the processor would.

use super::*;
use proptest::prelude::*;

const TABLES_AT: u64 = 0x1234_5000;
const MIB2: u64 = LeafSize::Size2M.bytes();
const GIB: u64 = LeafSize::Size1G.bytes();

/// What the walker finds for an address.
#[derive(Debug, PartialEq, Eq)]
struct Hit {
    physical: u64,
    leaf_bytes: u64,
    write: bool,
    user: bool,
    execute: bool,
    uncached: bool,
}

fn walk(tables: &[PageTable], root: u64, virt: u64) -> Option<Hit> {
    let mut table = root;
    let (mut write, mut user, mut execute) = (true, true, true);
    for shift in [39, 30, 21, 12] {
        let index = (table - TABLES_AT) / 4096;
        let word: u64 = tables[index as usize].entries[(virt >> shift) as usize & 511].into();
        if word & 1 == 0 {
            assert_eq!(word, 0, "an absent entry is zero");
            return None;
        }
        write &= word & 2 != 0;
        user &= word & 4 != 0;
        execute &= word >> 63 == 0;
        let address = word & 0x000f_ffff_ffff_f000;
        let leaf = shift == 12 || (shift < 39 && word & 0x80 != 0);
        if leaf {
            let offset = virt & ((1 << shift) - 1);
            return Some(Hit {
                physical: address + offset,
                leaf_bytes: 1 << shift,
                write,
                user,
                execute,
                uncached: word & 0x18 == 0x18,
            });
        }
        table = address;
    }
    unreachable!("the last level is a leaf")
}

fn build(regions: &[Region], config: Config) -> (Vec<PageTable>, IdentityMap) {
    let needed = tables_needed(regions, config.max_leaf).unwrap();
    let mut tables = vec![PageTable::EMPTY; needed as usize];
    let map = build_identity_map(&mut tables, TABLES_AT, regions, config).unwrap();
    (tables, map)
}

#[test]
fn image_map_uses_2_mib_leaves_only() {
    let region = Region::new(64 * MIB2, 96 * MIB2, Attributes::SUPERVISOR);
    let (tables, map) = build(&[region], Config::supervisor(LeafSize::Size2M));

    assert_eq!((map.root, map.tables_used), (TABLES_AT, 3));
    let hit = walk(&tables, map.root, region.start + 0x1234).unwrap();
    assert_eq!(hit.leaf_bytes, MIB2);
    assert!(!hit.user && hit.write && hit.execute);
    assert_eq!(walk(&tables, map.root, region.start - 1), None);
    assert_eq!(walk(&tables, map.root, region.end), None);
}

#[test]
fn nested_map_leaves_a_hole_and_lets_users_in() {
    let host = 112 << 20..128 << 20;
    let regions = [
        Region::new(0, host.start, Attributes::USER),
        Region::new(host.end, 512 * GIB, Attributes::USER),
    ];
    let (tables, map) = build(&regions, Config::nested(LeafSize::Size1G));

    // Root, one table of 1 GiB entries, one of 2 MiB entries for the first GiB.
    assert_eq!(map.tables_used, 3);
    assert!(walk(&tables, map.root, 0).unwrap().user);
    assert_eq!(
        walk(&tables, map.root, host.start - 1).unwrap().leaf_bytes,
        MIB2
    );
    assert_eq!(walk(&tables, map.root, host.start), None);
    assert_eq!(walk(&tables, map.root, host.end - 1), None);
    assert_eq!(walk(&tables, map.root, 511 * GIB).unwrap().leaf_bytes, GIB);
}

#[test]
fn wrong_regions_are_refused_by_name() {
    let s = Attributes::SUPERVISOR;
    let refused = |regions: &[Region]| tables_needed(regions, LeafSize::Size2M).unwrap_err();

    assert!(matches!(
        refused(&[Region::new(0, 0x1001, s)]),
        Error::Unaligned {
            address: 0x1001,
            ..
        }
    ));
    assert!(matches!(
        refused(&[Region::new(0x1000, 0x1000, s)]),
        Error::Empty { index: 0, .. }
    ));
    assert!(matches!(
        refused(&[Region::new(0, 0x2000, s), Region::new(0x1000, 0x3000, s)]),
        Error::Overlap {
            index: 1,
            start: 0x1000,
            previous_end: 0x2000
        }
    ));
    assert!(matches!(
        refused(&[Region::new(0, ADDRESS_LIMIT + 0x1000, s)]),
        Error::BeyondLimit { .. }
    ));
}

#[test]
fn too_few_tables_leave_every_table_untouched() {
    let pattern = PageTable {
        entries: [Entry::new().with_page_number(7); ENTRIES],
    };
    let mut tables = vec![pattern.clone(); 2];
    let regions = [Region::new(0, MIB2, Attributes::SUPERVISOR)];

    let result = build_identity_map(
        &mut tables,
        TABLES_AT,
        &regions,
        Config::supervisor(LeafSize::Size2M),
    );

    assert_eq!(
        result,
        Err(Error::TablesExhausted {
            needed: 3,
            available: 2
        })
    );
    assert!(tables.iter().all(|t| *t == pattern));
}

#[test]
fn tables_must_be_aligned_and_reachable() {
    let regions = [Region::new(0, MIB2, Attributes::SUPERVISOR)];
    let config = Config::supervisor(LeafSize::Size2M);
    let mut tables = vec![PageTable::EMPTY; 3];

    let unaligned = build_identity_map(&mut tables, 0x10, &regions, config);
    let beyond = build_identity_map(&mut tables, !0xfff, &regions, config);

    assert!(matches!(unaligned, Err(Error::Unaligned { .. })));
    assert!(matches!(beyond, Err(Error::BeyondLimit { .. })));
}

#[test]
fn counting_a_huge_map_is_immediate() {
    let whole = [Region::new(0, ADDRESS_LIMIT, Attributes::USER)];

    assert_eq!(tables_needed(&whole, LeafSize::Size1G), Ok(1 + 512));
    assert_eq!(
        tables_needed(&whole, LeafSize::Size4K),
        Ok(1 + 512 + (1 << 18) + (1 << 27))
    );
}

fn leaf_sizes() -> impl Strategy<Value = LeafSize> {
    prop_oneof![
        Just(LeafSize::Size4K),
        Just(LeafSize::Size2M),
        Just(LeafSize::Size1G)
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    any::<(bool, bool, bool, bool)>().prop_map(|(write, user, execute, uncached)| Attributes {
        write,
        user,
        execute,
        uncached,
    })
}

/// Sorted disjoint regions of a few MiB around interesting borders.
fn regions() -> impl Strategy<Value = Vec<Region>> {
    let gap = prop_oneof![0..4u64, 500..520u64, Just(512u64), Just(512 * 512 - 100)];
    let length = prop_oneof![1..4u64, 510..515u64, 1024..1100u64];
    prop::collection::vec((gap, length, attributes()), 1..6).prop_map(|pieces| {
        let mut page = 0;
        pieces
            .into_iter()
            .map(|(gap, length, attributes)| {
                let start = page + gap;
                page = start + length;
                Region::new(start * PAGE_SIZE, page * PAGE_SIZE, attributes)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_page_is_mapped_exactly_as_asked(regions in regions(), max_leaf in leaf_sizes()) {
        let (tables, map) = build(&regions, Config::nested(max_leaf));
        prop_assert_eq!(map.tables_used, tables.len());

        let mut probes: Vec<u64> = Vec::new();
        for r in &regions {
            probes.extend((r.start..r.end).step_by(PAGE_SIZE as usize));
            probes.extend([r.start.saturating_sub(1), r.end - 1, r.end]);
        }
        for address in probes {
            let expected = regions.iter().find(|r| (r.start..r.end).contains(&address));
            let hit = walk(&tables, map.root, address);
            let Some(region) = expected else {
                prop_assert_eq!(hit, None);
                continue;
            };
            let hit = hit.expect("the address is in a region");
            prop_assert_eq!(hit.physical, address);
            let a = region.attributes;
            prop_assert_eq!(
                (hit.write, hit.user, hit.execute, hit.uncached),
                (a.write, a.user, a.execute, a.uncached)
            );
            // The leaf is the largest that is allowed, aligned and inside the region.
            let best = [GIB, MIB2, PAGE_SIZE].into_iter().find(|&size| {
                let start = address / size * size;
                size <= max_leaf.bytes() && start >= region.start && start + size <= region.end
            });
            prop_assert_eq!(Some(hit.leaf_bytes), best);
        }
    }

    #[test]
    fn arbitrary_input_never_panics(
        words in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..6),
        tables_address: u64,
        max_leaf in leaf_sizes(),
    ) {
        let regions: Vec<_> = words
            .into_iter()
            .map(|(start, length, page_aligned)| {
                let mask = if page_aligned { ADDRESS_LIMIT - PAGE_SIZE } else { u64::MAX };
                let start = start & mask;
                Region::new(start, start.wrapping_add(length & mask), Attributes::USER)
            })
            .collect();
        let mut tables = vec![PageTable::EMPTY; 8];
        let _ = build_identity_map(&mut tables, tables_address, &regions, Config::nested(max_leaf));
    }
}

use super::*;
use page_table::Attributes;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Any; nobody reads there.
const TABLES: u64 = 0x10_0000;

const ALL: Access = Access {
    read: true,
    write: true,
    execute: true,
};
const READ: Access = Access {
    write: false,
    execute: false,
    ..ALL
};

/// 0 to 1 GiB + 4 MiB + 1 page, with a hole of one page at 1 MiB.
fn tables(max_leaf: LeafSize, spare: usize) -> NestedTables {
    let region = |start, end| Region::new(start, end, Attributes::USER);
    let regions = [
        region(0, MIB),
        region(MIB + PAGE_SIZE, GIB + 4 * MIB + PAGE_SIZE),
    ];
    NestedTables::new(&regions, max_leaf, spare, |_| TABLES).unwrap()
}

impl NestedTables {
    /// Walks as the processor does: where `address` goes, what is allowed, and the level
    /// of the leaf.
    fn walk(&self, address: u64) -> Option<(u64, Access, usize)> {
        let mut table = 0;
        for level in (1..=LEVELS).rev() {
            let entry = self.load(table, (address / span(level)) as usize % ENTRIES);
            if !entry.present() {
                assert_eq!(self.hold().access(address), Access::NONE);
                return None;
            }
            assert!(entry.user(), "{entry:?}");
            if level == 1 || entry.large() {
                let offset = address & (span(level) - 1);
                let access = Access {
                    read: true,
                    write: entry.write(),
                    execute: !entry.no_execute(),
                };
                assert_eq!(self.hold().access(address), access);
                return Some((entry.address() + offset, access, level));
            }
            assert!(entry.write() && !entry.no_execute(), "{entry:?}");
            table = ((entry.address() - self.address) / PAGE_SIZE) as usize;
        }
        unreachable!("level 1 has leaves only")
    }

    /// Number of tables, spare ones included.
    pub(crate) fn count(&self) -> usize {
        self.tables.len()
    }

    fn spare(&self) -> usize {
        self.reclaim();
        self.spare.lock().free.len()
    }
}

#[test]
fn a_page_is_protected_and_its_neighbours_are_not() {
    let tables = tables(LeafSize::Size1G, 4);
    let page = GIB + 2 * MIB + 5 * PAGE_SIZE;
    assert_eq!(tables.walk(page).unwrap().2, 2);
    tables.protect(page, READ).unwrap();
    assert_eq!(tables.walk(page), Some((page, READ, 1)));
    for other in [page - 1, page + PAGE_SIZE] {
        assert_eq!(tables.walk(other), Some((other, ALL, 1)));
    }
    tables.protect(page, Access::NONE).unwrap();
    assert_eq!(tables.walk(page), None);
    assert_eq!(tables.spare(), 3);
    tables.protect(page, ALL).unwrap();
    assert_eq!(tables.walk(page), Some((page, ALL, 2)));
    assert_eq!(tables.spare(), 4);
}

#[test]
fn two_mebibytes_of_one_protection_are_one_leaf() {
    for max_leaf in [LeafSize::Size2M, LeafSize::Size1G] {
        let tables = tables(max_leaf, 1);
        for access in [Access::NONE, READ, ALL] {
            for page in (4 * MIB..6 * MIB).step_by(PAGE_SIZE as usize) {
                tables.protect(page, access).unwrap();
            }
            assert_eq!(tables.spare(), 1);
            let found = tables.walk(5 * MIB + 3);
            let expected = (access != Access::NONE).then_some((5 * MIB + 3, access, 2));
            assert_eq!(found, expected);
            assert_eq!(tables.walk(6 * MIB).unwrap(), (6 * MIB, ALL, 2));
        }
    }
}

#[test]
fn a_gibibyte_leaf_is_split_twice_and_comes_back() {
    let region = [Region::new(0, 2 * GIB, Attributes::USER)];
    let tables = NestedTables::new(&region, LeafSize::Size1G, 2, |_| TABLES).unwrap();
    tables.protect(GIB, READ).unwrap();
    assert_eq!(tables.walk(GIB), Some((GIB, READ, 1)));
    assert_eq!(tables.walk(2 * GIB - 1).unwrap(), (2 * GIB - 1, ALL, 2));
    assert_eq!(tables.walk(0).unwrap().2, 3);
    // All tables are in use; what is there stays as it is.
    assert_eq!(tables.protect(0, READ), Err(ProtectError::OutOfTables));
    assert_eq!(tables.walk(0), Some((0, ALL, 3)));
    tables.protect(GIB, ALL).unwrap();
    assert_eq!(tables.walk(GIB), Some((GIB, ALL, 3)));
    assert_eq!(tables.spare(), 2);
}

#[test]
fn a_table_that_was_in_use_waits_until_no_processor_uses_it() {
    let tables = tables(LeafSize::Size2M, 1);
    tables.protect(4 * MIB, READ).unwrap();
    tables.protect(4 * MIB, ALL).unwrap();
    let out_of_tables = Err(ProtectError::OutOfTables);
    assert_eq!(tables.protect(6 * MIB, READ), out_of_tables);
    tables.reclaim();
    tables.protect(6 * MIB, READ).unwrap();
}

#[test]
fn a_refusal_leaves_everything_as_it_was() {
    let region = [Region::new(0, GIB, Attributes::USER)];
    let tables = NestedTables::new(&region, LeafSize::Size1G, 1, |_| TABLES).unwrap();
    assert_eq!(tables.protect(0, READ), Err(ProtectError::OutOfTables));
    assert_eq!(tables.walk(0), Some((0, ALL, 3)));
    assert_eq!(tables.spare(), 1);
}

#[test]
fn what_was_not_mapped_cannot_be() {
    let tables = tables(LeafSize::Size1G, 4);
    for hole in [MIB, GIB + 4 * MIB + PAGE_SIZE, 2 * GIB, 1 << 40] {
        assert_eq!(tables.protect(hole, ALL), Err(ProtectError::NotMapped));
        assert_eq!(tables.walk(hole), None);
    }
    // Without access everywhere around it, the hole is still one, and page 0 is not.
    for page in (0..2 * MIB).step_by(PAGE_SIZE as usize) {
        let _ = tables.protect(page, Access::NONE);
    }
    assert_eq!(tables.protect(MIB, ALL), Err(ProtectError::NotMapped));
    tables.protect(0, ALL).unwrap();
    assert_eq!(tables.walk(0), Some((0, ALL, 1)));
}

#[test]
fn flags_that_the_processor_cannot_do_are_refused() {
    let new = |bits| Access::new(HvMapGpaFlags::from_bits(bits));
    assert_eq!(new(0), Some(Access::NONE));
    assert_eq!(new(1), Some(READ));
    assert_eq!(new(0xf), Some(ALL));
    assert!(new(3).is_some() && new(0xd).is_some());
    for wrong in [2, 4, 8, 0xc, 0xe, 5, 9, 7, 0xb, 0x1f, 1 << 31] {
        assert_eq!(new(wrong), None, "{wrong:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_order_of_protections_is_what_the_last_of_each_page_says(
        changes in prop::collection::vec((0u64..1536, 0u64..3, 1u64..600, 0usize..4), 1..12),
        max_leaf in prop::sample::select(vec![LeafSize::Size4K, LeafSize::Size2M, LeafSize::Size1G]),
    ) {
        let tables = tables(max_leaf, 3);
        let base = [0, 512 * MIB, GIB + 2 * MIB];
        let accesses = [Access::NONE, READ, ALL, Access { execute: false, ..ALL }];
        let mut expected = std::collections::BTreeMap::new();
        for (first, base_of, count, access) in changes {
            for page in first..first + count {
                let address = base[base_of as usize] + page * PAGE_SIZE;
                if tables.protect(address, accesses[access]).is_ok() {
                    expected.insert(address, accesses[access]);
                }
            }
        }
        for base in base {
            for page in 0..2200 {
                let address = base + page * PAGE_SIZE;
                let hole = address == MIB || address >= GIB + 4 * MIB + PAGE_SIZE;
                let access = if hole { Access::NONE } else { *expected.get(&address).unwrap_or(&ALL) };
                let found = tables.walk(address).map(|(to, access, _)| (to, access));
                prop_assert_eq!(found, (access != Access::NONE).then_some((address, access)));
            }
        }
    }
}

//! Spoilt images: refused, or loaded without harm.

use super::image::*;
use super::load;
use super::refusals::refusal;
use crate::*;
use igvm::IgvmDirectiveHeader;
use proptest::prelude::*;

/// What a plan may write: RAM, not the host's, not in use, no byte twice except
/// parameters into their areas.
fn check_harmless(file: &[u8], machine: &MachineInfo) {
    let Ok(plan) = plan(file, machine, &Options::default()) else {
        return;
    };
    let ram = machine.ram_runs();
    let mut end = 0;
    for run in &plan.runs {
        assert!(run.range.start() >= end);
        end = run.range.end();
        assert!(ram.iter().any(|ram| ram.covers(run.range)));
        assert!(machine.busy.iter().all(|busy| !busy.overlaps(run.range)));
        assert!(
            run.data
                .is_none_or(|data| data.len() as u64 == run.range.size())
        );
    }
    let inside = |start: u64, size: usize| {
        let range = MemoryRange::new(start, start + size as u64);
        plan.runs.iter().any(|run| run.range.covers(range))
    };
    if let Some(tables) = &plan.page_tables {
        let end = tables.address + tables.bytes.len() as u64;
        let range = MemoryRange::new(tables.address, end);
        assert!(plan.vtl2_memory.covers(range));
        assert!(ram.iter().any(|ram| ram.covers(range)));
        assert!(machine.busy.iter().all(|busy| !busy.overlaps(range)));
    }
    assert!(
        plan.parameters
            .iter()
            .all(|p| inside(p.room.start(), p.bytes.len()))
    );
    assert!(plan.vtl2_memory.contains(plan.context.state.rip));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert_ne!(refusal(&bytes), "no error");
    }

    #[test]
    fn spoilt_images_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        header_only in any::<bool>(),
        elsewhere in any::<bool>(),
    ) {
        let mut file = image().bytes();
        let end = if header_only { file.len() - RawImage::parse(&file).data.len() } else { file.len() };
        for (index, value) in changes {
            let at = index.index(end);
            file[at] = value;
        }
        fix_checksum(&mut file);
        let machine = if elsewhere {
            machine(&[(0, 0x9_f000), (5 * GIB, 6 * GIB)])
        } else {
            small_machine()
        };
        check_harmless(&file, &machine);
    }

    #[test]
    fn spoilt_page_tables_do_no_harm(
        changes in prop::collection::vec((0usize..3 * 512, any::<u64>(), 0u64..16), 1..6),
    ) {
        let mut image = image();
        for directive in &mut image.directives {
            if let IgvmDirectiveHeader::PageData { gpa, data, .. } = directive
                && *gpa >= PAGE_TABLES
            {
                for (index, random, page) in &changes {
                    let own = (*gpa - PAGE_TABLES) as usize / 8;
                    if (own..own + 512).contains(index) {
                        // Mostly pointers to places near, which are the interesting ones.
                        let entry = if random % 4 == 0 { *random } else {
                            (PAGE_TABLES + page * 4096) | (random & 0x83) | 1
                        };
                        let at = (index - own) * 8;
                        data[at..at + 8].copy_from_slice(&entry.to_le_bytes());
                    }
                }
            }
        }
        check_harmless(&image.bytes(), &machine(&[(0, 0x9_f000), (5 * GIB, 6 * GIB)]));
    }

    #[test]
    fn swapped_headers_do_no_harm(a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>()) {
        let mut raw = image().raw();
        let count = raw.headers.len();
        raw.headers.swap(a.index(count), b.index(count));
        check_harmless(&raw.bytes(), &small_machine());
    }
}

#[test]
fn the_harmless_check_accepts_what_loads() {
    check_harmless(&image().bytes(), &small_machine());
    load(&image().bytes(), &small_machine());
}

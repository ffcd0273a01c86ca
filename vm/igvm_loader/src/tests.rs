//! Loading of right files; `refusals` has the wrong ones.

mod alone;
mod harmless;
pub(crate) mod image;
mod refusals;
mod relocation;

use self::image::*;
use super::*;
use igvm_defs::*;
use std::string::ToString;
use std::vec;

/// Plans for the small machine and executes.
pub(super) fn load(file: &[u8], machine: &MachineInfo) -> (StartContext, FakeMemory, i64) {
    let plan = plan(file, machine, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut memory = FakeMemory::default();
    plan.execute(&mut memory);
    (plan.context, memory, plan.offset)
}

#[test]
fn everything_is_written_where_the_file_says() {
    let (context, memory, offset) = load(&image().bytes(), &small_machine());
    assert_eq!(offset, 0);
    for number in 0..CODE_PAGES {
        let expected = vec![number as u8 + 1; 4096];
        assert_eq!(memory.read(BASE + number * 4096, 4096), expected);
    }
    assert_eq!(memory.read(LOW_PAGE, 5), b"low\0\0");
    assert_eq!(memory.read(GDT, 33), [vec![0xdd; 32], vec![0]].concat());
    assert_eq!(memory.read(GDT + 0x1000, 0x2000), vec![0; 0x2000]);
    assert_eq!(memory.read(BASE + 0x3_0000, 4096), vec![0; 4096]);
    let tables = identity_map(BASE, BASE + SIZE).concat();
    assert_eq!(memory.read(PAGE_TABLES, tables.len()), tables);
    let state = context.state;
    assert_eq!(
        (state.rip, state.cr3, state.gdtr.base),
        (ENTRY, PAGE_TABLES, GDT)
    );
    assert_eq!(
        (state.cr0, state.cr4, state.efer),
        (0x8000_0021, 0x60, 0xd00)
    );
    assert_eq!(
        (state.cs.selector, state.ds.selector, state.gdtr.limit),
        (0x10, 0x18, 31)
    );
    assert_eq!(state.rflags, 2);
    assert_eq!(context.gprs[6], SHIM_PARAMETERS);
}

#[test]
fn registers_that_the_file_does_not_name_have_their_reset_value() {
    let (context, _, _) = load(&image().bytes(), &small_machine());
    let tr = context.state.tr;
    assert_eq!((tr.limit, tr.attributes.into_bits()), (0xffff, 0x8b));
    assert_eq!(context.state.msr_cr_pat, 0x0007_0406_0007_0406);
    assert_eq!((context.gprs[0], context.cr2), (0, 0));
}

#[test]
fn every_parameter_kind_is_deposited_into_its_area() {
    let machine = small_machine();
    let file = image().bytes();
    let (_, memory, _) = load(&file, &machine);
    let parameters = Parameters {
        machine: &machine,
        vtl2_memory: MemoryRange::new(BASE, BASE + SIZE),
        bootargs: "",
    };
    let contents = [
        parameters.vp_count(),
        parameters.environment_info(),
        parameters.srat(),
        parameters.madt(),
        parameters.slit(),
        parameters.pptt(),
        parameters.mmio_ranges(),
        parameters.memory_map(),
        parameters.command_line(),
    ];
    for (index, content) in contents.iter().enumerate() {
        let area = memory.read(PARAMETER_AREAS + index as u64 * 4096, 4096);
        // Around the parameter is the initial data of the area.
        let expected = [
            vec![0xee; 16],
            content.clone(),
            vec![0xee; 4080 - content.len()],
        ]
        .concat();
        assert_eq!(area, expected, "parameter {index}");
    }
    let tree = parameters.device_tree().unwrap();
    assert_eq!(memory.read(DEVICE_TREE, tree.len()), tree);
    let rest = DEVICE_TREE_SIZE as usize - tree.len();
    assert_eq!(
        memory.read(DEVICE_TREE + tree.len() as u64, rest),
        vec![0; rest]
    );
}

#[test]
fn pages_that_follow_one_another_are_one_run() {
    let file = image().bytes();
    let plan = plan(&file, &small_machine(), &Options::default()).unwrap();
    let code = plan
        .runs
        .iter()
        .find(|run| run.range.start() == BASE)
        .unwrap();
    assert_eq!(code.range.size(), CODE_PAGES * 4096);
}

#[test]
fn a_version_2_file_of_the_same_content_loads_alike() {
    let mut v2 = image();
    v2.revision = igvm::IgvmRevision::V2 {
        arch: igvm::Arch::X64,
        page_size: 4096,
    };
    let (context, memory, _) = load(&v2.bytes(), &small_machine());
    let (expected_context, expected_memory, _) = load(&image().bytes(), &small_machine());
    assert_eq!(context, expected_context);
    assert_eq!(memory.pages, expected_memory.pages);
}

#[test]
fn headers_of_other_platforms_are_skipped() {
    let mut both = image();
    both.platforms.insert(0, platform(IgvmPlatformType::TDX, 2));
    // A second page for the same address, but only under TDX.
    both.directives.insert(
        3,
        igvm::IgvmDirectiveHeader::PageData {
            gpa: BASE,
            compatibility_mask: 2,
            flags: IgvmPageDataFlags::new(),
            data_type: IgvmPageDataType::CPUID_DATA,
            data: vec![0x77; 4096],
        },
    );
    let (_, memory, _) = load(&both.bytes(), &small_machine());
    let (_, expected, _) = load(&image().bytes(), &small_machine());
    assert_eq!(memory.pages, expected.pages);
}

#[test]
fn header_types_that_may_be_skipped_are_skipped() {
    let mut raw = image().raw();
    // The error range, as if it were something optional that nobody knows.
    let header = raw
        .headers
        .iter_mut()
        .find(|(kind, _)| *kind == 0x30d)
        .unwrap();
    header.0 = 0x8000_03f0;
    let (_, memory, _) = load(&raw.bytes(), &small_machine());
    assert!(!memory.pages.contains_key(&(BASE + 0x3_0000)));
}

#[test]
fn a_2_mib_page_is_one_directive() {
    let mut raw = image().raw();
    raw.data.resize(raw.data.len() + (2 << 20), 0x99);
    let offset = raw.bytes().len() as u32 - (2 << 20);
    let n = raw
        .headers
        .iter()
        .filter(|(kind, _)| *kind == 0x302)
        .count()
        - 1;
    let kind = IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA;
    // The last page, no longer a page table but 2 MiB in VTL0.
    let raw = raw
        .patch(kind, n, 0, &(256 * MIB).to_le_bytes())
        .patch(kind, n, 12, &offset.to_le_bytes())
        .patch(kind, n, 16, &1u32.to_le_bytes());
    let (_, memory, _) = load(&raw.bytes(), &small_machine());
    assert_eq!(memory.read(256 * MIB, 2 << 20), vec![0x99; 2 << 20]);
}

#[test]
fn vtl2_memory_grows_on_request() {
    let file = image().bytes();
    let options = Options {
        vtl2_memory: Some(64 * MIB),
        ..Options::default()
    };
    let grown = plan(&file, &small_machine(), &options).unwrap();
    assert_eq!(grown.vtl2_memory(), MemoryRange::new(BASE, BASE + 64 * MIB));
    let options = Options {
        vtl2_memory: Some(2 * MIB),
        ..Options::default()
    };
    let error = plan(&file, &small_machine(), &options)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "machine: vtl2_memory=, found 0x200000, expected at least 0x400000"
    );
}

#[test]
fn many_scattered_pages_are_planned() {
    let mut many = image();
    // Downwards, so that no two pages join.
    for number in (0..30_000u64).rev() {
        many.directives
            .push(page(160 * MIB + number * 4096, vec![]));
    }
    let file = many.bytes();
    let plan = plan(&file, &small_machine(), &Options::default()).unwrap();
    assert!(plan.runs.len() > 30_000);
    assert!(
        plan.runs
            .windows(2)
            .all(|w| w[0].range.end() <= w[1].range.start())
    );
}

#[test]
fn the_igvm_crate_sees_the_same_pages() {
    let bytes = image().bytes();
    let (_, memory, _) = load(&bytes, &small_machine());
    let file = igvm::IgvmFile::new_from_binary(&bytes, Some(igvm::IsolationType::Vbs)).unwrap();
    let mut pages = 0;
    for directive in file.directives() {
        if let igvm::IgvmDirectiveHeader::PageData { gpa, data, .. } = directive {
            let mut expected = data.clone();
            expected.resize(4096, 0);
            assert_eq!(memory.read(*gpa, 4096), expected);
            pages += 1;
        }
    }
    assert_eq!(pages, 12);
}

#[test]
fn a_machine_needs_a_vp() {
    let mut machine = small_machine();
    machine.vps.clear();
    let error = plan(&image().bytes(), &machine, &Options::default()).unwrap_err();
    assert_eq!(error.reason, Reason::Field("number of VPs"));
}

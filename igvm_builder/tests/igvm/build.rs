//! What is in a built image, and which images are not built.

use crate::synthetic::{Parts, SHARED, Segment, X86_64, elf, manifest, pattern};
use igvm::registers::X86Register;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader};
use igvm_builder::component::{Component, GpaRange};
use igvm_builder::view::Image;
use loader_defs::paravisor::{
    ImportedRegionDescriptor, ImportedRegionsPageHeader, MEASURED_VTL0_MAGIC, MEASURED_VTL2_MAGIC,
    ParavisorMeasuredVtl0Config, ParavisorMeasuredVtl2Config,
};
use zerocopy::FromBytes;

const PAGE: u64 = 0x1000;

fn place(image: &Image, component: Component) -> GpaRange {
    image.place(component).expect("the part is in the image")
}

/// The bytes of a part, zeros for pages that are not in the file.
fn contents(image: &Image, range: GpaRange) -> Vec<u8> {
    let mut bytes = vec![0; range.size() as usize];
    for (gpa, page) in image.pages_in(range) {
        let at = (gpa - range.start) as usize;
        bytes[at..at + page.data.len()].copy_from_slice(page.data);
    }
    bytes
}

#[test]
fn parser_of_the_igvm_crate_reads_the_image_without_loss() {
    let built = Parts::new().with_sidecar().build();

    let read = IgvmFile::new_from_binary(&built.bytes, None).expect("it is valid");

    assert_eq!(read.platforms(), built.file.platforms());
    assert_eq!(read.initializations(), built.file.initializations());
    assert_eq!(read.directives(), built.file.directives());
    let mut again = Vec::new();
    read.serialize(&mut again).expect("it was valid");
    assert!(
        again == built.bytes,
        "writing it again gives the same bytes"
    );
}

#[test]
fn same_parts_give_the_same_bytes() {
    assert!(Parts::new().build().bytes == Parts::new().build().bytes);
}

#[test]
fn parts_follow_each_other_in_the_order_of_the_contract() {
    use Component as C;
    let image = Parts::new().with_sidecar().image();

    let order: Vec<_> = image.components.iter().map(|(c, _)| *c).collect();

    assert_eq!(
        order,
        [
            C::Vtl0Config,
            C::PersistedState,
            C::Kernel,
            C::Sidecar,
            C::Shim,
            C::Initrd,
            C::Gdt,
            C::ShimParams,
            C::CommandLine,
            C::Reserved,
            C::Slit,
            C::Pptt,
            C::DeviceTree,
            C::ImportedRegions,
            C::Vtl2Config,
            C::PageHashes,
            C::Log,
            C::Heap,
            C::PageTables,
            C::Free,
        ]
    );
    let place = |component| place(&image, component);
    assert_eq!(
        place(C::PersistedState),
        GpaRange::with_size(128 << 20, 2 << 20)
    );
    assert_eq!(place(C::Kernel).start, 130 << 20);
    assert_eq!(place(C::Sidecar).start % (2 << 20), 0);
    assert_eq!(
        place(C::PageHashes).end - place(C::Slit).start,
        362 * PAGE,
        "the parameter region has its pages"
    );
    assert_eq!(place(C::Free).end, 192 << 20);
}

#[test]
fn recognised_parts_are_those_that_were_placed() {
    for parts in [Parts::new(), Parts::new().with_sidecar()] {
        let built = parts.build();

        let image = Image::read(&built.bytes).expect("it is valid");

        assert_eq!(image.components, built.layout.components());
    }
}

#[test]
fn shim_parameters_lead_to_every_part() {
    let parts = Parts::new();
    let image = parts.image();
    let (base, params) = image.shim.expect("it is recognised");
    let at = |offset: i64| base.checked_add_signed(offset).expect("it is in memory");
    let start = |component| place(&image, component).start;

    assert_eq!(base, start(Component::Shim));
    assert_eq!(
        at(params.kernel_entry_offset),
        start(Component::Kernel) + 0x40
    );
    assert_eq!(at(params.initrd_offset), start(Component::Initrd));
    assert_eq!(params.initrd_size, parts.initrd.len() as u64);
    assert_eq!(params.initrd_crc, crc32fast::hash(&parts.initrd));
    assert_eq!(at(params.cmdline_offset), start(Component::CommandLine));
    assert_eq!(at(params.parameter_region_offset), start(Component::Slit));
    assert_eq!(params.parameter_region_size, 362 * PAGE);
    assert_eq!(at(params.log_buffer_start), start(Component::Log));
    assert_eq!(at(params.heap_start_offset), start(Component::Heap));
    assert_eq!(at(params.used_start), 128 << 20);
    assert_eq!(at(params.used_end), start(Component::Free));
    assert_eq!(at(params.memory_start_offset), 128 << 20);
    assert_eq!(params.memory_size, 64 << 20);
    assert_eq!((params.sidecar_offset, params.sidecar_size), (0, 0));
    assert_eq!(params.bounce_buffer_size, 0);
    let initrd = contents(&image, place(&image, Component::Initrd));
    assert_eq!(initrd[..parts.initrd.len()], parts.initrd);
    let shim = contents(&image, place(&image, Component::Shim));
    assert_eq!(shim[..0x1010], pattern(0x1010, 7));
}

#[test]
fn sidecar_is_described_to_the_shim() {
    let image = Parts::new().with_sidecar().image();
    let (base, params) = image.shim.expect("it is recognised");
    let sidecar = place(&image, Component::Sidecar);

    assert_eq!(
        base.checked_add_signed(params.sidecar_offset),
        Some(sidecar.start)
    );
    assert_eq!(params.sidecar_size, sidecar.size());
    assert_eq!(
        base.checked_add_signed(params.sidecar_entry_offset),
        Some(sidecar.start + 0x30)
    );
}

#[test]
fn first_processor_enters_the_shim_in_long_mode() {
    let image = Parts::new().image();
    let (_, registers) = image.registers.as_ref().expect("there is a context");
    let has = |register| registers.contains(&register);
    let shim = place(&image, Component::Shim).start;

    assert!(has(X86Register::Rip(shim + 0x10)));
    assert!(has(X86Register::Rsi(
        place(&image, Component::ShimParams).start - shim
    )));
    assert!(has(X86Register::Cr3(
        place(&image, Component::PageTables).start
    )));
    assert!(has(X86Register::Cr0(0x8000_0021)));
    assert!(has(X86Register::Cr4(0x60)));
    assert!(has(X86Register::Efer(0xd00)));
    let gdt = contents(&image, place(&image, Component::Gdt));
    let entries: Vec<_> = gdt[..32]
        .chunks(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().expect("8 bytes")))
        .collect();
    assert_eq!(
        entries,
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
    );
}

#[test]
fn page_tables_map_exactly_the_memory_of_the_image() {
    let image = Parts::new().image();
    let range = place(&image, Component::PageTables);
    let tables = contents(&image, range);
    let entry = |table: u64, index: u64| {
        let at = (table - range.start + index * 8) as usize;
        u64::from_le_bytes(tables[at..at + 8].try_into().expect("8 bytes"))
    };
    let address = |entry: u64| entry & 0x000f_ffff_ffff_f000;

    let directory = address(entry(address(entry(range.start, 0)), 0));
    for index in 0..512 {
        let leaf = entry(directory, index);
        if (64..96).contains(&index) {
            assert_eq!(address(leaf), index << 21);
            assert_eq!(leaf & 0x83, 0x83, "present, writable, large");
        } else {
            assert_eq!(leaf, 0);
        }
    }
    assert_eq!(range.pages(), 7, "spare tables for relocation");
}

#[test]
fn imported_regions_list_everything_that_is_present_at_launch() {
    let image = Parts::new().image();
    let page = contents(&image, place(&image, Component::ImportedRegions));
    let (header, mut rest) =
        ImportedRegionsPageHeader::read_from_prefix(&page).expect("it is a page");
    let mut listed = Vec::new();
    while let Ok((region, next)) = ImportedRegionDescriptor::read_from_prefix(rest) {
        if region.page_count == 0 {
            break;
        }
        assert_eq!((region.accepted, region.padding), (1, [0; 7]));
        listed.extend((0..region.page_count).map(|n| (region.base_page_number + n) * PAGE));
        rest = next;
    }

    let mut present: Vec<_> = image.pages().map(|(gpa, _)| gpa).collect();
    for parameter in &image.parameters {
        present.extend((parameter.range.start..parameter.range.end).step_by(PAGE as usize));
    }
    present.sort();

    assert_eq!(header.sha384_hash, [0; 48], "nothing is shared");
    assert_eq!(listed, present);
}

#[test]
fn configuration_pages_carry_their_magic_and_claim_nothing() {
    let image = Parts::new().image();
    let vtl2: ParavisorMeasuredVtl2Config = image
        .structure(place(&image, Component::Vtl2Config).start)
        .expect("it is there");
    let vtl0: ParavisorMeasuredVtl0Config = image.structure(0).expect("it is there");

    assert_eq!(
        (vtl2.magic, vtl2.product_policy_size),
        (MEASURED_VTL2_MAGIC, 0)
    );
    assert_eq!(vtl0.magic, MEASURED_VTL0_MAGIC);
    assert_eq!(u64::from(vtl0.supported_vtl0), 0);
}

#[test]
fn command_line_and_policy_are_on_their_page() {
    let mut parts = Parts::new();
    parts.manifest = manifest("quiet OPENHCL_X=1", "64 MiB").replace("append-chosen", "static");

    let image = parts.image();

    assert_eq!(image.command_line(), Some((0, "quiet OPENHCL_X=1".into())));
}

#[test]
fn relocation_covers_the_image_and_its_page_tables_apart() {
    let image = Parts::new().image();
    let tables = place(&image, Component::PageTables);

    let [
        IgvmInitializationHeader::RelocatableRegion {
            relocation_alignment,
            relocation_region_gpa,
            relocation_region_size,
            minimum_relocation_gpa,
            maximum_relocation_gpa,
            is_vtl2: true,
            apply_rip_offset: true,
            apply_gdtr_offset: true,
            ..
        },
        IgvmInitializationHeader::PageTableRelocationRegion {
            gpa,
            size,
            used_size,
            ..
        },
    ] = image.file.initializations()
    else {
        panic!("unexpected headers: {:x?}", image.file.initializations());
    };
    assert_eq!(*relocation_alignment, 2 << 20);
    assert_eq!(*relocation_region_gpa, 128 << 20);
    assert_eq!(relocation_region_gpa + relocation_region_size, tables.start);
    assert_eq!(
        (*minimum_relocation_gpa, *maximum_relocation_gpa),
        (128 << 20, 1 << 48)
    );
    assert_eq!(
        (*gpa, *size, *used_size),
        (tables.start, tables.size(), 3 * PAGE)
    );
}

#[test]
fn fixed_image_has_no_relocation() {
    let mut parts = Parts::new();
    parts.manifest = parts
        .manifest
        .replace("[memory]", "[memory]\nbase = \"1 GiB\"");

    let image = parts.image();

    assert!(image.file.initializations().is_empty());
    assert_eq!(place(&image, Component::PersistedState).start, 1 << 30);
}

#[test]
fn zero_pages_take_no_room_in_the_file() {
    let mut parts = Parts::new();
    let before = parts.build();
    parts.initrd.resize(parts.initrd.len() + (4 << 20), 0);
    let after = parts.build();

    let headers = (4 << 20) / PAGE as usize * 40;
    assert!(after.bytes.len() <= before.bytes.len() + headers);
    let empty = |directive: &&IgvmDirectiveHeader| matches!(directive, IgvmDirectiveHeader::PageData { data, .. } if data.is_empty());
    assert!(after.file.directives().iter().filter(empty).count() >= 1024);
}

#[test]
fn too_large_image_is_refused_with_both_sizes() {
    let mut parts = Parts::new();
    parts.manifest = manifest("", "4 MiB");
    parts.initrd = pattern(3 << 20, 1);

    let error = parts.try_build().expect_err("it does not fit").to_string();

    for part in ["needs", "6.6 MiB", "4 MiB", "memory.size", "initrd 3 MiB"] {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
}

#[test]
fn too_large_program_is_refused_by_name() {
    let mut parts = Parts::new();
    parts.shim = elf(SHARED, X86_64, 0, &[Segment::new(0, vec![1], 65 << 20)]);

    let error = parts.try_build().expect_err("it does not fit").to_string();

    assert!(error.contains("shim: the segments span"), "{error}");
}

#[test]
fn parts_must_be_those_of_the_manifest() {
    let mut parts = Parts::new();
    parts.sidecar = Parts::new().with_sidecar().sidecar;
    let unexpected = parts.try_build().expect_err("no sidecar is named");
    let mut parts = Parts::new().with_sidecar();
    parts.sidecar = None;
    let missing = parts.try_build().expect_err("a sidecar is named");
    parts = Parts::new();
    parts.initrd.clear();
    let empty = parts.try_build().expect_err("the initrd is empty");

    assert!(unexpected.to_string().contains("gives one"), "{unexpected}");
    assert!(missing.to_string().contains("does not give"), "{missing}");
    assert!(empty.to_string().contains("initrd"), "{empty}");
}

#[test]
fn scattered_kernel_does_not_overflow_the_list_of_regions() {
    let segments: Vec<_> = (0..200)
        .map(|n| Segment::new(n * 0x2000, vec![1], 1))
        .collect();
    let mut parts = Parts::new();
    parts.kernel = elf(SHARED, X86_64, 0, &segments);

    let error = parts.try_build().expect_err("too many regions").to_string();

    assert!(error.contains("at most 167"), "{error}");
}

//! Differences and digests of images.

use crate::synthetic::{Parts, manifest};
use igvm_builder::component::Component;
use igvm_builder::diff::{Difference, diff};
use igvm_builder::dump::describe;
use igvm_builder::map;
use igvm_builder::measure::measure;
use igvm_builder::view::Image;

fn differences(change: impl FnOnce(&mut Parts)) -> Vec<Difference> {
    let mut parts = Parts::new();
    let before = parts.image();
    change(&mut parts);
    diff(&before, &parts.image(), 4)
}

/// Changes a directive of a built image and reads the result.
fn with_directives(change: impl FnOnce(&mut Vec<igvm::IgvmDirectiveHeader>)) -> Image {
    let file = Parts::new().build().file;
    let mut directives = file.directives().to_vec();
    change(&mut directives);
    let file = igvm::IgvmFile::new(
        igvm::IgvmRevision::V1,
        file.platforms().to_vec(),
        file.initializations().to_vec(),
        directives,
    )
    .expect("it stays valid");
    let mut bytes = Vec::new();
    file.serialize(&mut bytes).expect("it stays valid");
    Image::read(&bytes).expect("it stays valid")
}

#[test]
fn equal_images_have_no_difference() {
    assert_eq!(differences(|_| ()), []);
}

#[test]
fn changed_byte_is_found_in_its_part() {
    let found = differences(|parts| {
        let last = parts.kernel.len() - 0x10;
        parts.kernel[last] ^= 0xff;
    });

    // Byte 0x17f0 of the second segment, which is 0x8000 behind the start.
    let [
        Difference::Bytes {
            component,
            offset,
            length,
            ..
        },
    ] = found.as_slice()
    else {
        panic!("expected one difference, found {found:?}");
    };
    assert_eq!(
        (*component, *offset, *length),
        (Component::Kernel, 0x97f0, 1)
    );
}

#[test]
fn ranges_beyond_the_limit_are_summed_up() {
    let found = differences(|parts| {
        for index in 0..10 {
            parts.initrd[index * 100] ^= 1;
        }
    });

    let listed = found
        .iter()
        .filter(|d| matches!(d, Difference::Bytes { .. }));
    assert_eq!(listed.count(), 4);
    assert!(found.contains(&Difference::More {
        component: Component::Initrd,
        ranges: 6,
        bytes: 6,
    }));
}

#[test]
fn changed_initrd_also_shows_its_checksum() {
    let found = differences(|parts| parts.initrd[5] ^= 1);

    let fields: Vec<_> = found
        .iter()
        .filter_map(|d| match d {
            Difference::Field { group, field, .. } => Some((group.as_str(), field.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(fields, [("shim-params", "initrd_crc")]);
    assert!(found.iter().any(|d| matches!(
        d,
        Difference::Bytes {
            component: Component::Initrd,
            offset: 5,
            length: 1,
            ..
        }
    )));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn grown_part_moves_the_others_without_listing_their_bytes() {
    let found = differences(|parts| parts.initrd.resize(0x5000, 1));

    let moved = |component| {
        found.iter().any(|d| {
            matches!(d, Difference::Place { component: c, a, b } if *c == component
                && a.size() == b.size() && b.start - a.start == 0x2000)
        })
    };
    for component in [Component::Gdt, Component::DeviceTree, Component::PageTables] {
        assert!(moved(component), "{component} has moved");
    }
    let bytes_of = |component| {
        found
            .iter()
            .any(|d| matches!(d, Difference::Bytes { component: c, .. } if *c == component))
    };
    assert!(bytes_of(Component::Initrd));
    for component in [
        Component::Kernel,
        Component::Shim,
        Component::Gdt,
        Component::Log,
    ] {
        assert!(!bytes_of(component), "{component} has not changed");
    }
    assert!(found.iter().any(|d| matches!(
        d,
        Difference::Field { group, field, .. } if group == "registers-vtl2" && field == "Gdtr"
    )));
}

#[test]
fn command_line_is_compared_as_text() {
    let found = differences(|parts| parts.manifest = manifest("debug", "64 MiB"));

    assert_eq!(
        found,
        [Difference::Field {
            group: "command-line".into(),
            field: "text".into(),
            a: Some("\"\"".into()),
            b: Some("\"debug\"".into()),
        }]
    );
}

#[test]
fn reordered_directives_are_a_difference_of_encoding() {
    let reordered = with_directives(|directives| {
        let last = directives.len() - 1;
        directives.swap(last, last - 1);
    });

    assert_eq!(
        diff(&Parts::new().image(), &reordered, 4),
        [Difference::Encoding]
    );
}

#[test]
fn additional_sidecar_is_a_part_of_one_image() {
    let found = diff(
        &Parts::new().image(),
        &Parts::new().with_sidecar().image(),
        4,
    );

    assert!(found.iter().any(|d| matches!(
        d,
        Difference::Part {
            component: Component::Sidecar,
            a: None,
            b: Some(_)
        }
    )));
}

#[test]
fn digest_equals_that_of_the_igvm_crate() {
    for parts in [Parts::new(), Parts::new().with_sidecar()] {
        let built = parts.build();

        let theirs = igvm::measurement::generate_vbs_measurement(built.file.directives(), 1)
            .expect("it is valid");

        assert_eq!(measure(&parts.image()).digest, theirs);
    }
}

#[test]
fn digest_changes_with_every_measured_thing() {
    let before = measure(&Parts::new().image()).digest;
    let after = |change: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::new();
        change(&mut parts);
        measure(&parts.image()).digest
    };

    assert_ne!(before, after(&|p| p.initrd[0] ^= 2));
    assert_ne!(before, after(&|p| p.manifest = manifest("x", "64 MiB")));
    assert_ne!(
        before,
        after(&|p| p.manifest = p.manifest.replace("append-chosen", "static"))
    );
    assert_ne!(before, after(&|p| p.shim[24] ^= 8), "the entry, in RIP");
    let register = with_directives(|directives| {
        for directive in directives {
            if let igvm::IgvmDirectiveHeader::X64VbsVpContext { registers, .. } = directive {
                registers.push(igvm::registers::X86Register::R8(1));
            }
        }
    });
    assert_ne!(before, measure(&register).digest);
}

#[test]
fn digest_does_not_depend_on_what_the_host_fills_in() {
    let before = measure(&Parts::new().image());
    let filled = with_directives(|directives| {
        for directive in directives {
            if let igvm::IgvmDirectiveHeader::ParameterArea { initial_data, .. } = directive {
                *initial_data = vec![0xaa; 4096];
            }
        }
    });

    let after = measure(&filled);

    assert_eq!(before, after);
    assert_eq!(after.unmeasured_pages, 104);
}

#[test]
fn unmeasured_page_counts_by_its_existence_only() {
    let unmeasured = |fill: u8| {
        let image = with_directives(|directives| {
            if let Some(igvm::IgvmDirectiveHeader::PageData { flags, data, .. }) =
                directives.last_mut()
            {
                flags.set_unmeasured(true);
                *data = vec![fill; 4096];
            }
        });
        measure(&image).digest
    };

    assert_eq!(unmeasured(1), unmeasured(2));
    assert_ne!(unmeasured(1), measure(&Parts::new().image()).digest);
}

#[test]
fn description_and_maps_show_every_part() {
    let image = Parts::new().with_sidecar().image();
    let description = describe(&image);
    let outputs = [
        description.to_string(),
        map::text(&description),
        map::svg(&description),
        map::html(&description),
        serde_json::to_string(&description).expect("it can be serialized"),
    ];

    for output in &outputs {
        for (component, _) in &image.components {
            assert!(output.contains(component.name()), "{component} is missing");
        }
    }
    let svg = &outputs[2];
    let references = svg.matches("http").count();
    assert_eq!(
        references, 1,
        "nothing is fetched; the one is the namespace"
    );
}

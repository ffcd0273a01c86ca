//! The manifest says what it wants, and wrong ones are refused by field, value and
//! expectation.

use crate::synthetic::manifest;
use igvm_builder::Manifest;
use std::path::Path;

fn parse(text: &str) -> Result<Manifest, String> {
    Manifest::parse(text, Path::new("some/dir/test.toml")).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    let error = parse(text).expect_err("the manifest is wrong");
    for part in ["some/dir/test.toml"].iter().chain(parts) {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
}

#[test]
fn shipped_manifests_are_accepted() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let load = |name| Manifest::load(&directory.join(name)).expect("it is shipped");
    let release = load("openhcl-x64-release.toml");
    let dev = load("openhcl-x64-dev.toml");

    assert_eq!(release.memory_size, 64 << 20);
    assert_eq!(dev.memory_size, 128 << 20);
    for manifest in [release, dev] {
        assert_eq!(manifest.memory_base, 128 << 20);
        assert!(manifest.relocatable && manifest.sidecar);
    }
}

#[test]
fn stated_base_makes_the_image_fixed() {
    let text = manifest("", "64 MiB").replace("[memory]", "[memory]\nbase = \"256 MiB\"");

    let manifest = parse(&text).expect("it is right");

    assert_eq!(manifest.memory_base, 256 << 20);
    assert!(!manifest.relocatable);
}

#[test]
fn wrong_values_are_refused_by_field_value_and_expectation() {
    let good = manifest("", "64 MiB");
    let based = |base: &str| good.replace("[memory]", &format!("[memory]\nbase = \"{base}\""));

    refused(&manifest("", "65 KiB"), &["memory.size", "65 KiB", "2 MiB"]);
    refused(&manifest("", "0"), &["memory.size", "at least 2 MiB"]);
    refused(&manifest("", "4 GiB"), &["memory.size", "less than 4 GiB"]);
    refused(&manifest("", "lots"), &["memory.size", "lots"]);
    refused(&manifest("", "99999999999 GiB"), &["memory.size"]);
    refused(&based("0"), &["memory.base", "above 0"]);
    refused(&based("262144 GiB"), &["memory.base", "2^48"]);
    refused(&based("1 KiB"), &["memory.base", "1 KiB"]);
    refused(
        &manifest(&"x".repeat(4093), "64 MiB"),
        &["command_line.text", "4093", "4092"],
    );
    refused(
        &good.replace("\"shim\", ", ""),
        &["resources", "kernel", "shim"],
    );
    refused(
        &good.replace("\"shim\"", "\"shim\", \"shim\""),
        &["resources", "once each"],
    );
}

#[test]
fn unknown_and_missing_fields_are_refused_by_name() {
    let good = manifest("", "64 MiB");

    refused(&format!("colour = 1\n{good}"), &["colour", "svn"]);
    refused(&good.replace("svn = 1\n", ""), &["svn"]);
    refused(&good.replace("\"x64\"", "\"riscv\""), &["riscv", "x64"]);
    refused(
        &good.replace("isolation = \"none\"", "isolation = \"snp\""),
        &["snp", "none"],
    );
    refused(
        &good.replace("append-chosen", "always"),
        &["always", "append-chosen"],
    );
    refused("arch =", &["1"]);
}

#[test]
fn missing_file_is_named() {
    let error = Manifest::load(Path::new("not/there.toml")).expect_err("it is missing");

    assert!(error.to_string().contains("not/there.toml"));
}

//! The command: exit codes and outputs.

use crate::synthetic::Parts;
use std::path::Path;
use std::process::{Command, Output};

fn igvm(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_igvm"))
        .current_dir(directory)
        .args(arguments)
        .output()
        .expect("the command can be started")
}

fn build(directory: &Path, parts: &Parts, out: &str) -> Output {
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(directory.join(name), bytes).expect("the directory is writable");
    };
    write("image.toml", parts.manifest.as_bytes());
    write("vmlinux", &parts.kernel);
    write("shim", &parts.shim);
    write("initrd", &parts.initrd);
    igvm(
        directory,
        &[
            "build",
            "--manifest",
            "image.toml",
            "--kernel",
            "vmlinux",
            "--shim",
            "shim",
            "--initrd",
            "initrd",
            "--out",
            out,
            "--json",
        ],
    )
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("it is text")
}

#[test]
fn image_is_built_shown_drawn_measured_and_compared() {
    let directory = tempfile::tempdir().expect("there is a temporary directory");
    let directory = directory.path();
    let mut parts = Parts::new();

    let built = build(directory, &parts, "a.igvm");
    assert_eq!(built.status.code(), Some(0));
    assert!(stdout(&built).contains("\"sha256\""));
    parts.initrd[0] ^= 0x10;
    build(directory, &parts, "b.igvm");

    let run = |arguments: &[&str]| igvm(directory, arguments);
    let dump = run(&["dump", "a.igvm", "--json"]);
    let parsed: serde_json::Value = serde_json::from_str(stdout(&dump)).expect("it is JSON");
    assert_eq!(parsed["platforms"][0]["platform_type"], "VSM_ISOLATION");
    assert!(stdout(&run(&["map", "a.igvm"])).contains("page-tables"));
    assert_eq!(
        run(&["map", "a.igvm", "--svg", "a.svg"]).status.code(),
        Some(0)
    );
    let svg = std::fs::read_to_string(directory.join("a.svg")).expect("it was written");
    assert!(svg.starts_with("<svg"));
    assert!(stdout(&run(&["measure", "a.igvm"])).contains("boot digest"));

    let same = run(&["diff", "a.igvm", "a.igvm"]);
    assert_eq!(same.status.code(), Some(0));
    let different = run(&["diff", "a.igvm", "b.igvm"]);
    assert_eq!(different.status.code(), Some(1));
    assert!(stdout(&different).contains("initrd: 1 byte(s) at +0x0"));
}

#[test]
fn check_shows_the_plan_of_the_host_or_its_refusal() {
    let directory = tempfile::tempdir().expect("there is a temporary directory");
    let directory = directory.path();
    build(directory, &Parts::new(), "a.igvm");
    let check = |arguments: &[&str]| igvm(directory, &[&["check", "a.igvm"], arguments].concat());

    let plan = check(&["--vps", "4", "--memory", "5G"]);
    assert_eq!(plan.status.code(), Some(0));
    let text = stdout(&plan);
    for part in [
        "would load on q35 with 4 VPs and 5 GiB",
        "VTL2 memory  [0x8000000, 0xc000000), 64 MiB",
        "relocation   none",
        "of it from the file",
        "DeviceTree: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let larger = check(&["--json", "--host-option", "vtl2_memory=96M"]);
    let json: serde_json::Value = serde_json::from_str(stdout(&larger)).expect("it is JSON");
    assert_eq!(json["plan"]["vtl2_memory"]["end"], 224 << 20);
    assert_eq!(json["plan"]["runs"][0]["from_file"], true);

    let refusal = check(&["--memory", "160M"]);
    assert_eq!(refusal.status.code(), Some(1));
    let text = stdout(&refusal);
    assert!(text.starts_with("would be refused: "), "{text}");
    let refusal = check(&["--vps", "0", "--json"]);
    assert_eq!(refusal.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(stdout(&refusal)).expect("it is JSON");
    assert_eq!(json["reason"], "number of VPs");
    assert_eq!(json["loads"], false);

    let misspelt = check(&["--host-option", "vtl2_memroy=96M"]);
    assert_eq!(misspelt.status.code(), Some(2));
    let message = String::from_utf8_lossy(&misspelt.stderr);
    assert!(message.contains("found \"vtl2_memroy=96M\""), "{message}");
}

#[test]
fn errors_name_the_file_and_exit_with_2() {
    let directory = tempfile::tempdir().expect("there is a temporary directory");
    std::fs::write(directory.path().join("text"), "no image").expect("it is writable");

    for (file, expected) in [
        ("text", "text: fixed header"),
        ("absent", "absent: cannot be read"),
    ] {
        let output = igvm(directory.path(), &["dump", file]);

        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn help_has_examples() {
    for command in ["build", "dump", "diff", "map", "measure", "check"] {
        let output = igvm(Path::new("."), &[command, "--help"]);

        assert!(stdout(&output).contains("Example"), "{command}");
    }
}

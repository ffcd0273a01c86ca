//! Links the kernel where it runs: like a vmlinux, it is not moved.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=linker.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let directory = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for argument in [
        format!("-T{directory}/linker.ld"),
        "--no-pie".into(),
        "-zmax-page-size=4096".into(),
        "-znostart-stop-gc".into(),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

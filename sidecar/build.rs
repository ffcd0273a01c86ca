//! Gives the bare-metal binary its linker script; the host build needs none.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=link/image.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for argument in [
        &format!("-T{manifest_dir}/link/image.ld"),
        // The entry code applies the RELA table: the image has its final address only there.
        "-pie",
        "--no-dynamic-linker",
        "-znotext",
        "-zmax-page-size=4096",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

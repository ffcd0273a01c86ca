//! Links the bare-metal program at the address that `vsm_host_defs` reserves for it.

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
        // The address exists once, in vsm_host_defs.
        format!(
            "--defsym=HOST_MEMORY_BASE={:#x}",
            vsm_host_defs::HOST_MEMORY_BASE
        ),
        // Code runs where it is linked; nobody would relocate it.
        "--no-pie".into(),
        "-zmax-page-size=4096".into(),
        "-znostart-stop-gc".into(),
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

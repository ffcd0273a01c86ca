//! What carries vsock: the kernel where it can, else `vhost-device-vsock`, built once for
//! this user.

use crate::cache::Cache;
use crate::cargo;
use crate::process;
use crate::toolchain;
use crate::ui;
use crate::vmm_tests::workspace_root;
use anyhow::Context as _;
use qemu::Vsock;
use std::path::PathBuf;

/// The program on crates.io.
const PACKAGE: &str = "vhost-device-vsock";

/// Its version. `support/qemu/src/vsock.rs` lists the defects of exactly this one: look
/// there before changing it.
const VERSION: &str = "0.3.0";

/// Lines that its build prints, for the progress bar.
const BUILD_LINES: u64 = 320;

/// What carries vsock on this machine; the helper is built when it is needed and not there.
pub(crate) fn ensure(cache: &Cache) -> anyhow::Result<Vsock> {
    if Vsock::kernel_is_usable() {
        return Ok(Vsock::Kernel);
    }
    let directory = cache
        .get_or_build(PACKAGE, &key()?, |into| {
            let mut command = cargo::cargo(&workspace_root());
            command
                .args(["install", "--locked", "--no-track"])
                .args(["--version", &format!("={VERSION}"), "--root"])
                .arg(into)
                .arg(PACKAGE)
                // Not a part of this workspace, so not among its build results.
                .env_remove("CARGO_TARGET_DIR");
            let name = format!("build {PACKAGE} {VERSION}");
            ui::long_step(&name, BUILD_LINES, |step| {
                process::run_logged(cache, "vsock-install", step, &mut command).map(|_| ())
            })
        })
        .context("without a helper, and without a usable /dev/vhost-vsock, there is no vsock")?;
    Ok(Vsock::Helper(program(directory)))
}

/// What [`ensure`] would find without building anything.
pub(crate) fn cached(cache: &Cache) -> anyhow::Result<Option<Vsock>> {
    if Vsock::kernel_is_usable() {
        return Ok(Some(Vsock::Kernel));
    }
    let directory = cache.get(PACKAGE, &key()?);
    Ok(directory.map(|directory| Vsock::Helper(program(directory))))
}

/// Another compiler makes another program.
fn key() -> anyhow::Result<String> {
    Ok(format!("{VERSION}-rustc-{}", toolchain::rustc_version()?))
}

fn program(directory: PathBuf) -> PathBuf {
    directory.join("bin").join(PACKAGE)
}

//! `cargo xtask vmm-tests`: builds what the end-to-end tests boot and runs them.

use crate::artifacts;
use crate::artifacts::ImageProfile;
use crate::cache::Cache;
use crate::cache::lock_file;
use crate::cargo;
use crate::cargo::Workspace;
use crate::guest;
use crate::vsock;
use anyhow::Context as _;
use qemu::Vsock;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use vmm_tests::ARTIFACTS_VARIABLE;
use vmm_tests::Artifacts;
use vmm_tests::GuestKernel;

const EXAMPLES: &str = "\
Examples:
  cargo xtask vmm-tests              all
  cargo xtask vmm-tests boot::       those of one file
  cargo xtask vmm-tests --list       what there is
Consoles of failed tests are kept, a failure names their directory.";

/// Arguments of this command.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run only the tests whose name contains this.
    filter: Option<String>,
    /// Machines that run at the same time.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// List the tests.
    #[arg(long)]
    list: bool,
}

/// Runs the command.
pub(crate) fn main(args: Args) -> anyhow::Result<()> {
    let workspace = Workspace::current()?;
    let directory = workspace.target.join("vmm_tests");
    let release = artifacts::ensure(ImageProfile::Release)?;
    let dev = artifacts::ensure(ImageProfile::Dev)?;
    let test = artifacts::ensure(ImageProfile::Test)?;
    // Two runs in one checkout would remove each other's consoles.
    let _lock = lock_file(&directory.join("lock"))?;
    let consoles = directory.join("consoles");
    // What earlier runs left behind belongs to failures that were seen already.
    match std::fs::remove_dir_all(&consoles) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("emptying {}", consoles.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&consoles)
        .with_context(|| format!("creating {}", consoles.display()))?;

    let list = directory.join("artifacts.json");
    let cache = Cache::open()?;
    let artifacts = Artifacts {
        vsm_host: release.vsm_host,
        release_image: release.igvm,
        dev_image: dev.igvm,
        test_image: test.igvm,
        vmlinux: release.vmlinux,
        openhcl_boot: release.openhcl_boot,
        sidecar: release.sidecar,
        initrd: release.initrd,
        tmk: release.tmk,
        guest_tests: release.guest_tests,
        guest_kernels: guest_kernels(&cache)?,
        guest_initrd: guest::initrd::ensure(&workspace)?,
        vsock_helper: match vsock::ensure(&cache)? {
            Vsock::Kernel => None,
            Vsock::Helper(program) => Some(program),
        },
        consoles,
    };
    std::fs::write(&list, serde_json::to_vec_pretty(&artifacts)?)
        .with_context(|| format!("writing {}", list.display()))?;
    let program = build_tests(&workspace.root)?;
    // The tests, and with them their machines, end with this process, whatever ends it:
    // which a `cargo test` between the two would not do.
    let mut tests = qemu::spawn_leashed(args.command(&program, &workspace.root, &list), Vec::new())
        .with_context(|| format!("starting {}", program.display()))?;
    let status = tests.wait().context("waiting for the tests")?;
    anyhow::ensure!(
        status.success(),
        "end-to-end tests failed; consoles are in {}",
        artifacts.consoles.display()
    );
    Ok(())
}

/// The stock kernels that tests boot, fetched when they are not in the cache.
fn guest_kernels(cache: &Cache) -> anyhow::Result<Vec<GuestKernel>> {
    let kernel = |suite: guest::kernel::Suite| {
        let kernel = guest::kernel::ensure(cache, suite)?;
        Ok(GuestKernel {
            suite: suite.name().to_owned(),
            version: kernel.version,
            vmlinuz: kernel.vmlinuz,
        })
    };
    guest::kernel::Suite::ALL.into_iter().map(kernel).collect()
}

/// Builds the tests and says where they are.
fn build_tests(root: &Path) -> anyhow::Result<PathBuf> {
    let mut command = cargo::cargo(root);
    command
        .args(["test", "--no-run", "--locked", "--quiet"])
        // The whole workspace, so that dependencies have the same features as in the unit
        // tests, and are not built once more; only this one test is.
        .args(["--workspace", "--features", "vmm_tests/e2e"])
        .args([
            "--test",
            "e2e",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("starting cargo test")?;
    anyhow::ensure!(output.status.success(), "the tests do not build");
    executable(&String::from_utf8_lossy(&output.stdout)).context("cargo named no test program")
}

/// The test program among cargo's messages, one JSON object to a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "e2e")
            .then(|| Some(PathBuf::from(message["executable"].as_str()?)))?
    })
}

impl Args {
    fn command(&self, program: &Path, root: &Path, artifacts: &Path) -> Command {
        // Two processors emulate two machines without either waiting for the other;
        // more would only make all of them slow.
        let jobs = self.jobs.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |processors| processors.get())
        });
        let mut command = Command::new(program);
        command
            // Where `cargo test` runs them.
            .current_dir(root.join("vmm_tests"))
            .env(ARTIFACTS_VARIABLE, artifacts)
            // A failure tells its story in words; the stack of the test adds nothing.
            .env("RUST_BACKTRACE", "0")
            .args(["--quiet", "--test-threads", &jobs.to_string()])
            .args(&self.filter);
        if self.list {
            command.arg("--list");
        }
        command
    }
}

/// The directory of the workspace's `Cargo.toml`.
pub(crate) fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_goes_to_the_tests() {
        let args = Args {
            filter: Some("boot::".to_owned()),
            jobs: Some(3),
            list: false,
        };
        let command = args.command(Path::new("e2e"), Path::new("."), Path::new("a.json"));
        let words: Vec<_> = command.get_args().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(words, ["--quiet", "--test-threads", "3", "boot::"]);
    }

    #[test]
    fn the_test_program_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"qemu"},"executable":null}
not JSON
{"reason":"compiler-artifact","target":{"name":"e2e"},"executable":"/t/e2e-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/e2e-1")));
        assert_eq!(executable("{}"), None);
    }
}

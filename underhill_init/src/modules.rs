//! Loads the kernel modules that travel in the initrd.
//!
//! Modules are loaded in the order of their file names, which is how the builder of the
//! initrd expresses dependencies (`000-first.ko`, `001-second.ko`). The kernel knows its
//! command line but gives a module nothing of it when userspace loads the module, so
//! `module.parameter=value` words are passed on from here.
//!
//! A driver of the hypervisor takes for granted that the kernel found one, and brings
//! the kernel down where it did not. So it is loaded only if the device tree names the
//! hypervisor; the same image then boots far enough elsewhere to say what is missing.

use crate::command_line;
use kernel_log::KernelLog;
use kernel_log::chain;
use nix::errno::Errno;
use nix::kmod::ModuleInitFlags;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use thiserror::Error;

/// Where the builder of the initrd puts modules.
pub const DIRECTORY: &str = "/lib/modules";

/// Node of the device tree that says which hypervisor there is.
pub const HYPERVISOR: &str = "/proc/device-tree/hypervisor/compatible";

/// What it says.
const HYPER_V: &str = "microsoft,hyperv";

/// Drivers of the hypervisor.
const NEED_HYPERVISOR: [&str; 1] = ["mshv_vtl"];

/// Extension of a module's file.
const EXTENSION: &str = "ko";

/// Why a module was not loaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// The name of the file does not say which module it is.
    #[error("module file {path} has no usable name, expected NAME.ko")]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened.
    #[error("module file {path} cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A parameter contains a character that no C string can have.
    #[error("parameters {parameters:?} of module {module} contain a NUL character")]
    Parameters {
        /// The module.
        module: String,
        /// Its parameters.
        parameters: String,
    },
    /// The kernel refuses the module.
    #[error("module {module} with parameters {parameters:?} is refused by the kernel")]
    Refused {
        /// The module.
        module: String,
        /// Its parameters.
        parameters: String,
        /// What the kernel says.
        source: Errno,
    },
    /// It would bring the kernel down.
    #[error("module {module} is not loaded: {HYPERVISOR} does not say {HYPER_V}")]
    NoHypervisor {
        /// The module.
        module: String,
    },
    /// The directory cannot be listed.
    #[error("module directory {path} cannot be listed")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Loads every module in `directory` and removes the files of those that are loaded:
/// the initrd is RAM. A module that fails is reported and the next one is tried.
pub fn load_all(directory: &Path, command_line: &str, hypervisor: bool, log: &KernelLog) {
    let paths = match module_files(directory) {
        Ok(paths) => paths,
        Err(error) => return log.error(&chain(&error)),
    };
    for path in paths {
        match load(&path, command_line, hypervisor) {
            Ok(module) => {
                log.info(&format!("module {module} loaded"));
                if let Err(error) = std::fs::remove_file(&path) {
                    log.warning(&format!("{} cannot be removed: {error}", path.display()));
                }
            }
            Err(error) => log.error(&chain(&error)),
        }
    }
}

/// True if the property `path` names the hypervisor whose drivers the image carries. A
/// machine without the property has another one or none.
pub fn has_hypervisor(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|value| {
        value
            .split(|byte| *byte == 0)
            .any(|name| name == HYPER_V.as_bytes())
    })
}

/// The module files directly in `directory`, in the order in which they are loaded. A
/// directory that is not there has none.
fn module_files(directory: &Path) -> Result<Vec<PathBuf>, ModuleError> {
    let directory_error = |source| ModuleError::Directory {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(directory_error(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(directory_error)?.path();
        if path.extension().is_some_and(|e| e == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn load(path: &Path, command_line: &str, hypervisor: bool) -> Result<String, ModuleError> {
    let module = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(module_name)
        .ok_or_else(|| ModuleError::Name {
            path: path.to_owned(),
        })?;
    if !hypervisor && NEED_HYPERVISOR.contains(&module.as_str()) {
        return Err(ModuleError::NoHypervisor { module });
    }
    let parameters = parameters(&module, command_line);
    let Ok(text) = CString::new(parameters.as_str()) else {
        return Err(ModuleError::Parameters { module, parameters });
    };
    let file = File::open(path).map_err(|source| ModuleError::Open {
        path: path.to_owned(),
        source,
    })?;
    match nix::kmod::finit_module(&file, &text, ModuleInitFlags::empty()) {
        // Somebody was faster; what counts is that it is there.
        Ok(()) | Err(Errno::EEXIST) => Ok(module),
        Err(source) => Err(ModuleError::Refused {
            module,
            parameters,
            source,
        }),
    }
}

/// The module in a file called `file_name`: `001-some-module.ko` is `some_module`.
fn module_name(file_name: &str) -> Option<String> {
    let stem = file_name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    // Exactly three digits and a dash are an order; `8021q.ko` is a name.
    let name = match stem.split_once('-') {
        Some((order, name)) if order.len() == 3 && order.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => stem,
    };
    (!name.is_empty()).then(|| normalise(name))
}

/// The kernel does not tell dashes from underscores in names.
fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

/// What `command_line` says for `module`, in the form that `finit_module` takes.
fn parameters(module: &str, command_line: &str) -> String {
    let mut text = String::new();
    for word in command_line::words(command_line) {
        let Some((prefix, parameter)) = word.name.split_once('.') else {
            continue;
        };
        if normalise(prefix) != module || parameter.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        // The kernel splits this text by the same rules, so marks that hid a space in
        // the command line must hide it again.
        let value = word.value.unwrap_or("");
        let quote =
            if parameter.contains(char::is_whitespace) || value.contains(char::is_whitespace) {
                "\""
            } else {
                ""
            };
        text.push_str(quote);
        text.push_str(parameter);
        if word.value.is_some() {
            text.push('=');
            text.push_str(value);
        }
        text.push_str(quote);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_in_a_file_name_is_not_part_of_the_module_name() {
        assert_eq!(module_name("000-mshv_vtl.ko").as_deref(), Some("mshv_vtl"));
        assert_eq!(
            module_name("999-pci-hyperv.ko").as_deref(),
            Some("pci_hyperv")
        );
        assert_eq!(module_name("8021q.ko").as_deref(), Some("8021q"));
        assert_eq!(module_name("pci-hyperv.ko").as_deref(), Some("pci_hyperv"));
        assert_eq!(module_name("000-.ko"), None);
        assert_eq!(module_name(".ko"), None);
        assert_eq!(module_name("readme.txt"), None);
    }

    #[test]
    fn a_module_gets_its_own_parameters_only() {
        let line = "quiet mshv-vtl.debug=1 mshv_vtl.trace other.debug=2 mshv_vtl.=3 mshv_vtl";
        assert_eq!(parameters("mshv_vtl", line), "debug=1 trace");
        assert_eq!(parameters("absent", line), "");
    }

    #[test]
    fn a_value_with_spaces_stays_one_value() {
        let line = r#"m.names="one two" m.x=1"#;
        assert_eq!(parameters("m", line), r#""names=one two" x=1"#);
    }

    #[test]
    fn parameters_of_pid_1_are_not_for_modules() {
        assert_eq!(parameters("m", "m.a=1 -- m.b=2"), "a=1");
    }

    #[test]
    fn modules_are_loaded_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["010-b.ko", "002-c.ko", "a.ko", "notes.txt"] {
            std::fs::write(directory.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = module_files(directory.path())
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["002-c.ko", "010-b.ko", "a.ko"]);
    }

    #[test]
    fn an_image_without_modules_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let paths = module_files(&directory.path().join("modules")).unwrap();
        assert!(paths.is_empty());
    }

    #[test]
    fn a_driver_of_the_hypervisor_is_not_loaded_without_it() {
        let error = load(Path::new("/lib/modules/000-mshv_vtl.ko"), "", false).unwrap_err();
        assert!(matches!(error, ModuleError::NoHypervisor { .. }));
        let error = load(Path::new("/no such directory/m.ko"), "", false).unwrap_err();
        assert!(matches!(error, ModuleError::Open { .. }));
    }

    #[test]
    fn the_hypervisor_is_known_by_its_name_in_the_device_tree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("compatible");
        assert!(!has_hypervisor(&path));
        for (value, expected) in [
            (&b"microsoft,hyperv\0"[..], true),
            (b"some,other\0microsoft,hyperv\0", true),
            (b"microsoft,hyperv-like\0", false),
            (b"", false),
        ] {
            std::fs::write(&path, value).unwrap();
            assert_eq!(has_hypervisor(&path), expected);
        }
    }

    proptest! {
        #[test]
        fn what_the_kernel_reads_is_what_the_command_line_said(
            values in prop::collection::vec("[a-z0-9, ]{1,10}", 1..5)
        ) {
            let line: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(i, value)| format!("m.p{i}=\"{value}\""))
                .collect();
            let passed = parameters("m", &line.join(" "));
            let read: Vec<_> = command_line::words(&passed)
                .map(|word| word.value.unwrap().to_owned())
                .collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn any_command_line_gives_parameters(line in "[m.=\" a-]*") {
            let _ = parameters("m", &line);
        }
    }
}

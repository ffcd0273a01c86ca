//! The kernel's consoles.
//!
//! A kernel thread prints the log, some time after a line was written. The machine must
//! not end before it has caught up, or the last lines, which say why, are lost. There is
//! no call that waits for it, but a console that is taken away from the kernel's log
//! gets all of the log first.

use crate::system::write_existing;
use std::io;
use std::path::Path;

/// Where the kernel shows terminals.
pub const TERMINALS: &str = "/sys/class/tty";

/// Names of the terminals that the log goes to; the last one is `/dev/console`.
pub fn active(terminals: &Path) -> io::Result<Vec<String>> {
    let names = std::fs::read_to_string(terminals.join("console/active"))?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// Waits until the consoles show the whole log, and takes them away from it. The result
/// names them for [`attach`].
pub fn detach(terminals: &Path) -> io::Result<Vec<String>> {
    let names = active(terminals)?;
    for name in &names {
        switch(terminals, name, "N")?;
    }
    Ok(names)
}

/// Gives the consoles back. They show the log from its start.
pub fn attach(terminals: &Path, names: &[String]) -> io::Result<()> {
    names
        .iter()
        .try_for_each(|name| switch(terminals, name, "Y"))
}

fn switch(terminals: &Path, name: &str, value: &str) -> io::Result<()> {
    match write_existing(&terminals.join(name).join("console"), value) {
        // Not a serial port, like `ttynull`: nobody sees it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_serial_console_is_detached_and_can_come_back() {
        let terminals = tempfile::tempdir().unwrap();
        let path = |name: &str| terminals.path().join(name);
        for name in ["console", "ttynull", "ttyS0", "ttyS2"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("console/active"), "ttynull ttyS2\n").unwrap();
        std::fs::write(path("ttyS0/console"), "Y").unwrap();
        std::fs::write(path("ttyS2/console"), "Y").unwrap();
        let state = |name: &str| std::fs::read_to_string(path(name)).unwrap();

        let names = detach(terminals.path()).unwrap();
        assert_eq!(names, ["ttynull", "ttyS2"]);
        assert_eq!([state("ttyS0/console"), state("ttyS2/console")], ["Y", "N"]);
        attach(terminals.path(), &names).unwrap();
        assert_eq!(state("ttyS2/console"), "Y");
        assert!(!path("ttynull/console").exists());
    }

    #[test]
    fn a_kernel_without_consoles_is_an_error_and_not_a_panic() {
        let terminals = tempfile::tempdir().unwrap();
        assert!(detach(terminals.path()).is_err());
    }
}

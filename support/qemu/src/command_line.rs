//! QEMU's command line as a value: run it, or print it for people.

use crate::VsockEnd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Where the machine's consoles are connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// A program watches. VTL2's console is descriptors 0 and 1, the host log goes to
    /// descriptor 2, where QEMU's own messages appear as well: inherited streams need no
    /// names, leave no files behind, and end exactly when QEMU does.
    Program {
        /// Descriptor of an inherited socket for the machine protocol.
        qmp: i32,
        /// QEMU's end of vsock, for a machine that has one.
        vsock: Option<VsockEnd>,
    },
    /// A person watches: both consoles on one terminal. Ctrl-A X ends QEMU.
    Terminal,
}

/// A complete command: the program and its arguments, grouped as option and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    program: PathBuf,
    options: Vec<Vec<String>>,
}

impl CommandLine {
    pub(crate) fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            options: Vec::new(),
        }
    }

    pub(crate) fn flag(&mut self, option: &str) {
        self.options.push(vec![option.to_owned()]);
    }

    pub(crate) fn option(&mut self, option: &str, value: impl Into<String>) {
        self.options.push(vec![option.to_owned(), value.into()]);
    }

    pub(crate) fn raw(&mut self, arguments: &[String]) {
        if !arguments.is_empty() {
            self.options.push(arguments.to_vec());
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// All arguments, in order.
    pub fn arguments(&self) -> impl Iterator<Item = &str> {
        self.options.iter().flatten().map(String::as_str)
    }

    /// The command, ready to be given its standard streams.
    pub fn to_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments());
        command
    }

    /// The command as text for a POSIX shell, one option to a line.
    pub fn shell_text(&self) -> String {
        let mut text = quote(&self.program.to_string_lossy());
        for option in &self.options {
            text.push_str(" \\\n ");
            for word in option {
                text.push(' ');
                text.push_str(&quote(word));
            }
        }
        text
    }
}

/// The word as a shell reads it back unchanged.
fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-+=./,:@%".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_printed_text_back() {
        let words = [
            "-append",
            "a=1 -- b='x y'",
            "",
            "$HOME `id` \\ \"q\"",
            "plain,value=1",
        ];
        let mut line = CommandLine::new(Path::new("printf"));
        line.option("%s\\n", words[0]);
        let rest: Vec<_> = words[1..].iter().map(|w| (*w).to_owned()).collect();
        line.raw(&rest);

        let output = Command::new("sh")
            .arg("-c")
            .arg(line.shell_text())
            .output()
            .unwrap();

        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.lines().collect::<Vec<_>>(), words);
    }
}

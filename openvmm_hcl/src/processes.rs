//! The processes of VTL2 and what they cost.

use inspect::Inspect;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Where the kernel shows processes.
pub const DIRECTORY: &str = "/proc";

/// Units of CPU time in a second (`USER_HZ`, the same on all of Linux's architectures).
const TICKS_PER_SECOND: u64 = 100;

/// Bytes in a page.
const PAGE_SIZE: u64 = 4096;

/// The most processes that are listed.
const PROCESSES_MAX: usize = 1024;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Inspect)]
pub struct Process {
    /// Its id.
    #[inspect(skip)]
    pub pid: u32,
    /// The name it was started by.
    pub name: String,
    /// Id of its parent.
    pub parent: u32,
    /// The kernel's letter for its state.
    pub state: String,
    /// Number of threads.
    pub threads: u64,
    /// CPU time in user and kernel mode.
    pub cpu_time: Duration,
    /// Memory in RAM, shared pages counted in full.
    #[inspect(unit = "bytes")]
    pub rss: u64,
    /// Memory in RAM, shared pages counted in parts; the kernel may not tell.
    #[inspect(unit = "bytes")]
    pub pss: Option<u64>,
    /// The part of `pss` that is no file's.
    #[inspect(unit = "bytes")]
    pub pss_anonymous: Option<u64>,
}

/// All processes but the kernel's own threads, in the order of their ids. One that ends
/// meanwhile is left out.
pub fn read_all(directory: &Path) -> io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(process) = read(&directory.join(name), pid) {
            processes.push(process);
        }
        if processes.len() == PROCESSES_MAX {
            break;
        }
    }
    processes.sort_by_key(|process: &Process| process.pid);
    Ok(processes)
}

fn read(directory: &Path, pid: u32) -> Option<Process> {
    let command = fs::read(directory.join("cmdline")).ok()?;
    let name = command.split(|byte| *byte == 0).next()?;
    let name = String::from_utf8_lossy(name);
    let name = name.rsplit('/').next()?.to_owned();
    let stat = fs::read(directory.join("stat")).ok()?;
    let stat = Stat::parse(&String::from_utf8_lossy(&stat))?;
    // A thread of the kernel has no command, and neither has a process that has ended but
    // was not waited for.
    if name.is_empty() && stat.state != "Z" {
        return None;
    }
    let rollup = fs::read_to_string(directory.join("smaps_rollup")).unwrap_or_default();
    Some(Process {
        pid,
        name,
        parent: stat.parent,
        state: stat.state,
        threads: stat.threads,
        cpu_time: stat.cpu_time,
        rss: stat.rss,
        pss: kib(&rollup, "Pss:"),
        pss_anonymous: kib(&rollup, "Pss_Anon:"),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: String,
    parent: u32,
    cpu_time: Duration,
    threads: u64,
    rss: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat`. The name in it may hold anything, so what follows is found
    /// from the last parenthesis.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first field here is the third of proc(5).
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |index| field(index)?.parse::<u64>().ok();
        let ticks = number(14)?.checked_add(number(15)?)?;
        Some(Self {
            state: field(3)?.to_owned(),
            parent: field(4)?.parse().ok()?,
            cpu_time: Duration::from_millis(ticks.checked_mul(1000 / TICKS_PER_SECOND)?),
            threads: number(20)?,
            rss: number(24)?.checked_mul(PAGE_SIZE)?,
        })
    }
}

/// A line `name   123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "42 (a) R (b c) S 1 42 42 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 3 0 12 \
                        9000000 256 18446744073709551615";

    #[test]
    fn a_name_with_parentheses_hides_nothing() {
        assert_eq!(
            Stat::parse(STAT),
            Some(Stat {
                state: "S".to_owned(),
                parent: 1,
                cpu_time: Duration::from_millis(120),
                threads: 3,
                rss: 256 * 4096,
            })
        );
    }

    #[test]
    fn memory_is_read_in_kib() {
        let rollup = "Rss:   10 kB\nPss:     3 kB\nPss_Anon:   2 kB\n";
        assert_eq!(kib(rollup, "Pss:"), Some(3072));
        assert_eq!(kib(rollup, "Pss_Anon:"), Some(2048));
        assert_eq!(kib("Pss: many kB", "Pss:"), None);
    }

    #[test]
    fn processes_are_listed_and_threads_of_the_kernel_are_not() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, command: &[u8]| {
            let directory = proc.path().join(pid);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("cmdline"), command).unwrap();
            fs::write(directory.join("stat"), STAT).unwrap();
        };
        process("42", b"/bin/openvmm_hcl\0--x\0");
        process("7", b"");
        process("self", b"x");
        fs::create_dir(proc.path().join("9")).unwrap();
        let processes = read_all(proc.path()).unwrap();
        assert_eq!(processes.len(), 1);
        assert_eq!(
            (processes[0].pid, processes[0].name.as_str()),
            (42, "openvmm_hcl")
        );
        assert_eq!(processes[0].pss, None);
    }

    #[test]
    fn this_process_is_found() {
        let processes = read_all(Path::new(DIRECTORY)).unwrap();
        let own = processes
            .iter()
            .find(|p| p.pid == std::process::id())
            .unwrap();
        assert!(own.rss > 0 && own.threads > 0);
    }

    proptest! {
        #[test]
        fn any_text_is_a_process_or_none(text in "[0-9 ()A-Z.-]{0,120}") {
            let _ = Stat::parse(&text);
            let _ = kib(&text, "1");
        }
    }
}

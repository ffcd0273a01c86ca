//! `list`.

use crate::cli::ListArgs;
use crate::exit::Failure;
use crate::json;
use diag_client::registry;
use diag_client::registry::VmInfo;
use inspect::printable;
use std::io::Write;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

pub(crate) fn run(args: &ListArgs) -> Result<(), Failure> {
    let vms = registry::list()?;
    let text = if args.json {
        json::text(&vms, true).map_err(|error| Failure::Other(format!("JSON: {error}")))? + "\n"
    } else if vms.is_empty() {
        // For people; a program counts lines of stdout.
        _ = writeln!(std::io::stderr(), "no VM runs here");
        String::new()
    } else {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        table(&vms, now)
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(Failure::Output)
}

/// Columns as wide as their content.
fn table(vms: &[VmInfo], now: u64) -> String {
    let mut rows = vec![["NAME", "PID", "UP", "VSOCK", "IMAGE"].map(String::from)];
    rows.extend(vms.iter().map(|vm| {
        let image = vm.image.as_ref();
        [
            printable(&vm.name).into_owned(),
            vm.pid.to_string(),
            age(now.saturating_sub(vm.started)),
            printable(&vm.vsock.to_string()).into_owned(),
            image.map_or_else(|| "-".into(), |path| path.display().to_string()),
        ]
    }));
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max();
            let width = width.unwrap_or(0) + 2;
            match column + 1 == row.len() {
                true => text.push_str(cell),
                false => text.push_str(&format!("{cell:width$}")),
            }
        }
        text.push('\n');
    }
    text
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag_client::VmAddress;

    #[test]
    fn a_vm_is_a_line() {
        let mut first = VmInfo::new("run", 12, VmAddress::HybridVsock("/x/vm.sock".into()));
        first.started = 1000;
        first.image = Some("a.igvm".into());
        let mut second = VmInfo::new("longer name", 3456, VmAddress::Vsock(3));
        second.started = 1000;
        assert_eq!(
            table(&[first, second], 1200),
            "NAME         PID   UP     VSOCK            IMAGE\n\
             run          12    3 min  /x/vm.sock       a.igvm\n\
             longer name  3456  3 min  vsock context 3  -\n"
        );
    }
}

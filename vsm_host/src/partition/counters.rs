//! What VTLs asked for in vain: counted, and shown when the machine ends.

use core::fmt;
use spin::Mutex;

/// Different requests that are told apart; further ones are only counted together.
const CAPACITY: usize = 48;

/// What one VP can make the host log beside the end of the machine, in reports.
pub const MAX_REPORTS: u32 = 8;

/// A request that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// RDMSR of an MSR that the host does not offer.
    MsrRead(u32),
    /// WRMSR of an MSR that the host does not offer, or of a bad value.
    MsrWrite(u32),
    /// A hypercall code that the host does not know.
    Hypercall(u16),
    /// A register name that the host does not know.
    Register(u32),
    /// A port that is the host's.
    Port(u16),
    /// A write to an interrupt controller, by address.
    Apic(u64),
    /// An instruction that is the host's, by exit code.
    Instruction(u64),
    /// A message to the VMBus that it cannot answer.
    VmbusMessage,
    /// A report that would have been logged, after [`MAX_REPORTS`] of the VP.
    Report,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MsrRead(msr) => write!(f, "read of MSR {msr:#x}"),
            Self::MsrWrite(msr) => write!(f, "write of MSR {msr:#x}"),
            Self::Hypercall(code) => write!(f, "hypercall {code:#06x}"),
            Self::Register(name) => write!(f, "VP register {name:#x}"),
            Self::Port(port) => write!(f, "access to port {port:#x}"),
            Self::Apic(address) => write!(f, "write to APIC register {address:#x}"),
            Self::VmbusMessage => f.write_str("message to the VMBus"),
            Self::Report => f.write_str("further report of a VP"),
            Self::Instruction(exit) => write!(f, "instruction with exit code {exit:#x}"),
        }
    }
}

/// The counts.
pub struct Counters(Mutex<Counts>);

struct Counts {
    known: [Option<(Refused, u64)>; CAPACITY],
    others: u64,
}

impl Counters {
    /// Nothing was refused yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Counts {
            known: [None; CAPACITY],
            others: 0,
        }))
    }

    /// Counts one refusal.
    pub fn count(&self, request: Refused) {
        let mut counts = self.0.lock();
        for slot in &mut counts.known {
            match slot {
                Some((known, count)) if *known == request => {
                    *count += 1;
                    return;
                }
                Some(_) => {}
                None => {
                    *slot = Some((request, 1));
                    return;
                }
            }
        }
        counts.others += 1;
    }

    /// Calls `show` for each line of the summary.
    pub fn summary(&self, mut show: impl FnMut(fmt::Arguments<'_>)) {
        let counts = self.0.lock();
        for (request, count) in counts.known.iter().flatten() {
            show(format_args!("refused {count} times: {request}"));
        }
        if counts.others != 0 {
            show(format_args!("refused {} times: others", counts.others));
        }
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_apart_until_the_table_is_full() {
        let counters = Counters::new();
        counters.count(Refused::Hypercall(7));
        counters.count(Refused::Hypercall(7));
        for msr in 0..CAPACITY as u32 {
            counters.count(Refused::MsrRead(msr));
        }
        let mut lines = Vec::new();
        counters.summary(|line| lines.push(line.to_string()));
        assert_eq!(lines.len(), CAPACITY + 1);
        assert_eq!(lines[0], "refused 2 times: hypercall 0x0007");
        assert_eq!(lines[CAPACITY], "refused 1 times: others");
    }
}

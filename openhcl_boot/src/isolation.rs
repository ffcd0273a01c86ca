//! Whether the host is trusted, and what follows from it.

use core::fmt;

/// The isolation that the VM runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// The host can read and write everything.
    None,
    /// Virtualization-based security: the hypervisor keeps the host out.
    Vbs,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Vbs => "vbs",
        })
    }
}

/// How far the host's input goes. The only way to make one is [`Trust::new`], from
/// measured facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust {
    isolation: Isolation,
    confidential_debug: bool,
}

impl Trust {
    /// `confidential_debug` must come from the measured command line: a host that could
    /// set it could trust itself.
    pub const fn new(isolation: Isolation, confidential_debug: bool) -> Self {
        Self {
            isolation,
            confidential_debug,
        }
    }

    /// The isolation that the VM runs with.
    pub const fn isolation(self) -> Isolation {
        self.isolation
    }

    /// The VM is isolated, although perhaps in debug mode.
    pub const fn is_isolated(self) -> bool {
        !matches!(self.isolation, Isolation::None)
    }

    /// The owner of the image has given up confidentiality.
    pub const fn confidential_debug(self) -> bool {
        self.confidential_debug
    }

    /// Options, consoles and hints of the host count.
    pub const fn host_is_trusted(self) -> bool {
        !self.is_isolated() || self.confidential_debug
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_isolation_without_debug_distrusts_the_host() {
        assert!(Trust::new(Isolation::None, false).host_is_trusted());
        assert!(Trust::new(Isolation::None, true).host_is_trusted());
        assert!(Trust::new(Isolation::Vbs, true).host_is_trusted());
        assert!(!Trust::new(Isolation::Vbs, false).host_is_trusted());
    }
}

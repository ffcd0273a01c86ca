//! Interrupts and exceptions.

use chipset::ioapic::DeliveryMode;
use chipset::ioapic::InterruptMessage;

/// What an interrupt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// An interrupt to each destination.
    Fixed,
    /// An interrupt to one of them.
    LowestPriority,
    /// Non-maskable.
    Nmi,
    /// Resets the processors.
    Init,
}

/// An interrupt for local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptRequest {
    /// What it does.
    pub delivery: Delivery,
    /// Vector; counts for fixed and lowest priority.
    pub vector: u8,
    /// APIC id, or a set of them.
    pub destination: u32,
    /// `destination` is a set.
    pub logical: bool,
    /// Its end is told: [`crate::Exit::Eoi`].
    pub level: bool,
}

impl InterruptRequest {
    /// What an I/O APIC or a message-signalled interrupt asks for. `None`: nothing that
    /// this machine has (system management, 8259, reserved modes).
    pub fn from_message(message: InterruptMessage) -> Option<Self> {
        let delivery = match message.mode {
            DeliveryMode::Fixed => Delivery::Fixed,
            DeliveryMode::LowestPriority => Delivery::LowestPriority,
            DeliveryMode::Nmi => Delivery::Nmi,
            DeliveryMode::Init => Delivery::Init,
            DeliveryMode::Smi | DeliveryMode::ExtInt | DeliveryMode::Reserved(_) => return None,
        };
        Some(Self {
            delivery,
            vector: message.vector,
            destination: message.destination.into(),
            logical: message.logical,
            level: message.level,
        })
    }
}

/// An exception of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// For vectors that have one.
    pub error_code: Option<u32>,
    /// For page faults: the address.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #UD.
    pub const INVALID_OPCODE: Self = Self::new(6, None);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::new(13, Some(0));

    /// #PF.
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(address),
        }
    }

    const fn new(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector,
            error_code,
            cr2: None,
        }
    }
}

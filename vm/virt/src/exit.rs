//! Why the guest stopped.

/// What `run` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Nothing of the guest's: somebody wants the thread. Can also happen without a cause.
    Cancelled,
    /// IN, OUT, INS or OUTS.
    Port(PortExit),
    /// An access to what is not RAM, or is protected.
    Memory(MemoryExit),
    /// RDMSR or WRMSR of an MSR that the backend does not have.
    Msr(MsrExit),
    /// CPUID of a leaf that is not the backend's alone.
    Cpuid(CpuidExit),
    /// The end of an interrupt that was level triggered.
    Eoi {
        /// Its vector.
        vector: u8,
    },
    /// HLT, if the backend does not keep it to itself.
    Halt,
    /// An exception that the guest's tables leave no way to handle: only a reset helps.
    TripleFault,
    /// A message that this process asked for nothing of.
    Unknown {
        /// Its type.
        message_type: u32,
    },
}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Fetching an instruction.
    Execute,
}

/// An instruction, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Where it is.
    pub rip: u64,
    /// Its length, if it is known.
    pub length: Option<u8>,
    /// How many of the bytes are known.
    byte_count: u8,
    bytes: [u8; 16],
}

impl Instruction {
    /// Of `length` bytes (0: unknown), the first of which are in `bytes` (at most 16 count).
    pub fn new(rip: u64, length: u8, bytes: &[u8]) -> Self {
        let mut known = [0; 16];
        let byte_count = bytes.len().min(known.len());
        known[..byte_count].copy_from_slice(&bytes[..byte_count]);
        Self {
            rip,
            length: (1..=15).contains(&length).then_some(length),
            byte_count: byte_count as u8,
            bytes: known,
        }
    }

    /// Its bytes, and perhaps some that follow it; perhaps none.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.byte_count as usize]
    }
}

/// IN, OUT, INS or OUTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortExit {
    /// First port. The last can be beyond 0xffff.
    pub port: u16,
    /// 1, 2 or 4 ports, which is the number of bytes.
    pub size: u8,
    /// The bytes to put out; `None`: it is an input.
    pub output: Option<u32>,
    /// INS or OUTS: it moves data from or to memory, and perhaps often.
    pub string: bool,
    /// The instruction.
    pub instruction: Instruction,
}

/// An access to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryExit {
    /// Physical address.
    pub gpa: u64,
    /// Linear address, if it is known.
    pub gva: Option<u64>,
    /// What was tried.
    pub access: Access,
    /// There is memory, and a protection forbids the access.
    pub protected: bool,
    /// An event was being delivered: no instruction is to be emulated.
    pub delivering: bool,
    /// The instruction.
    pub instruction: Instruction,
}

/// RDMSR or WRMSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrExit {
    /// Which.
    pub msr: u32,
    /// The value to write; `None`: it is to be read.
    pub write: Option<u64>,
    /// The instruction.
    pub instruction: Instruction,
}

/// CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidExit {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// What the backend would answer: EAX, EBX, ECX and EDX.
    pub default: [u32; 4],
    /// The instruction.
    pub instruction: Instruction,
}

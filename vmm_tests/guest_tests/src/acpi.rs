//! As much of ACPI as the tests need: processors, I/O APIC, the registers of power
//! management, and the value that means S5.

use arrayvec::ArrayVec;
use thiserror::Error;

/// Processors that are listed.
pub const MAX_PROCESSORS: usize = 64;
/// Largest table that is looked at.
const MAX_TABLE: u32 = 1 << 20;
/// Bytes of a table's header.
const HEADER: u32 = 36;

/// Physical memory.
pub trait Memory {
    /// Reads bytes; false if they are not there.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;
}

/// What the tables say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// APIC ids of the enabled processors, in the order of the MADT.
    pub processors: ArrayVec<u32, MAX_PROCESSORS>,
    /// Address of the first I/O APIC.
    pub io_apic: Option<u32>,
    /// Port of the PM1a control register.
    pub pm1a_control: u16,
    /// Port of the PM timer; 0 if there is none.
    pub pm_timer: u16,
    /// Port of the reset register and what to write there.
    pub reset: Option<(u16, u8)>,
    /// Value of SLP_TYPa for S5.
    pub sleep_type_s5: u8,
}

/// Why tables are not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// There is nothing at an address.
    #[error("ACPI: cannot read {0:#x}")]
    Unreadable(u64),
    /// Not what is expected.
    #[error("ACPI: signature at {0:#x} is not {1}")]
    Signature(u64, &'static str),
    /// Bytes do not add up to zero.
    #[error("ACPI: checksum of the table at {0:#x} is wrong")]
    Checksum(u64),
    /// An unlikely length.
    #[error("ACPI: table at {0:#x} has {1} bytes")]
    Length(u64, u32),
    /// A table is missing.
    #[error("ACPI: there is no {0}")]
    Missing(&'static str),
}

/// A table whose checksum is right.
struct Table<'a, M> {
    memory: &'a M,
    address: u64,
    length: u32,
}

impl<M: Memory> Table<'_, M> {
    fn open(memory: &M, address: u64) -> Result<Table<'_, M>, AcpiError> {
        let length = u32::from_le_bytes(read(memory, address.wrapping_add(4))?);
        if !(HEADER..=MAX_TABLE).contains(&length) {
            return Err(AcpiError::Length(address, length));
        }
        let table = Table {
            memory,
            address,
            length,
        };
        match sum(memory, address, length)? {
            0 => Ok(table),
            _ => Err(AcpiError::Checksum(address)),
        }
    }

    /// Bytes at an offset; zeros behind the end, where older revisions end early.
    fn field<const N: usize>(&self, offset: u32) -> Result<[u8; N], AcpiError> {
        if u64::from(offset) + N as u64 > u64::from(self.length) {
            return Ok([0; N]);
        }
        read(self.memory, self.address.wrapping_add(offset.into()))
    }

    fn is(&self, signature: &[u8; 4]) -> Result<bool, AcpiError> {
        Ok(&self.field(0)? == signature)
    }
}

impl Tables {
    /// Reads what the root at `rsdp` leads to.
    pub fn read(memory: &impl Memory, rsdp: u64) -> Result<Self, AcpiError> {
        if &read(memory, rsdp)? != b"RSD PTR " {
            return Err(AcpiError::Signature(rsdp, "RSD PTR"));
        }
        if sum(memory, rsdp, 20)? != 0 {
            return Err(AcpiError::Checksum(rsdp));
        }
        let [revision] = read(memory, rsdp.wrapping_add(15))?;
        // Of revision 0 there is only a list of 32-bit addresses.
        let (root, entry_size) = if revision >= 2 {
            (u64::from_le_bytes(read(memory, rsdp.wrapping_add(24))?), 8)
        } else {
            let address: [u8; 4] = read(memory, rsdp.wrapping_add(16))?;
            (u32::from_le_bytes(address).into(), 4)
        };
        let root = Table::open(memory, root)?;
        if !root.is(if entry_size == 8 { b"XSDT" } else { b"RSDT" })? {
            return Err(AcpiError::Signature(root.address, "XSDT or RSDT"));
        }
        let mut tables = Self::default();
        let (mut has_fadt, mut has_madt) = (false, false);
        let mut offset = HEADER;
        while offset + entry_size <= root.length {
            let low: [u8; 4] = root.field(offset)?;
            let high: [u8; 4] = match entry_size {
                8 => root.field(offset + 4)?,
                _ => [0; 4],
            };
            let address =
                u64::from(u32::from_le_bytes(low)) | (u64::from(u32::from_le_bytes(high)) << 32);
            let table = Table::open(memory, address)?;
            if table.is(b"FACP")? {
                tables.read_fadt(&table)?;
                has_fadt = true;
            } else if table.is(b"APIC")? {
                tables.read_madt(&table)?;
                has_madt = true;
            }
            offset += entry_size;
        }
        match (has_fadt, has_madt) {
            (true, true) => Ok(tables),
            (false, _) => Err(AcpiError::Missing("FADT")),
            (_, false) => Err(AcpiError::Missing("MADT")),
        }
    }

    fn read_fadt(&mut self, fadt: &Table<'_, impl Memory>) -> Result<(), AcpiError> {
        self.pm1a_control = u16::from_le_bytes(fadt.field(64)?);
        self.pm_timer = u16::from_le_bytes(fadt.field(76)?);
        let flags = u32::from_le_bytes(fadt.field(112)?);
        let [space, _, _, _] = fadt.field(116)?;
        // RESET_REG_SUP, and the register is an I/O port.
        if flags & (1 << 10) != 0 && space == 1 {
            let [value] = fadt.field(128)?;
            self.reset = Some((u16::from_le_bytes(fadt.field(120)?), value));
        }
        let mut dsdt = u64::from_le_bytes(fadt.field(140)?);
        if dsdt == 0 {
            dsdt = u32::from_le_bytes(fadt.field(40)?).into();
        }
        self.sleep_type_s5 = sleep_type(&Table::open(fadt.memory, dsdt)?)?;
        Ok(())
    }

    fn read_madt(&mut self, madt: &Table<'_, impl Memory>) -> Result<(), AcpiError> {
        let mut offset = HEADER + 8;
        while offset + 2 <= madt.length {
            let [kind, length] = madt.field(offset)?;
            if length < 2 {
                return Err(AcpiError::Length(madt.address, length.into()));
            }
            let (id, flags) = match kind {
                0 => {
                    let [id]: [u8; 1] = madt.field(offset + 3)?;
                    (id.into(), u32::from_le_bytes(madt.field(offset + 4)?))
                }
                9 => (
                    u32::from_le_bytes(madt.field(offset + 4)?),
                    u32::from_le_bytes(madt.field(offset + 8)?),
                ),
                1 => {
                    let address = u32::from_le_bytes(madt.field(offset + 4)?);
                    self.io_apic.get_or_insert(address);
                    (0, 0)
                }
                _ => (0, 0),
            };
            if flags & 1 != 0 {
                // More than there is room for are not started either.
                let _ = self.processors.try_push(id);
            }
            offset += u32::from(length);
        }
        Ok(())
    }
}

/// The first element of the package `_S5_`.
fn sleep_type(dsdt: &Table<'_, impl Memory>) -> Result<u8, AcpiError> {
    const PACKAGE: u8 = 0x12;
    const BYTE: u8 = 0x0a;
    const ONE: u8 = 1;
    for offset in HEADER..dsdt.length {
        if &dsdt.field::<4>(offset)? != b"_S5_" {
            continue;
        }
        // Package, length in one byte, number of elements, first element.
        let [package, _, _, first, value] = dsdt.field(offset + 4)?;
        if package == PACKAGE {
            return Ok(match first {
                BYTE => value,
                ONE => 1,
                _ => 0,
            });
        }
    }
    Err(AcpiError::Missing("_S5_"))
}

fn read<const N: usize>(memory: &impl Memory, address: u64) -> Result<[u8; N], AcpiError> {
    let mut bytes = [0; N];
    if memory.read(address, &mut bytes) {
        Ok(bytes)
    } else {
        Err(AcpiError::Unreadable(address))
    }
}

fn sum(memory: &impl Memory, address: u64, length: u32) -> Result<u8, AcpiError> {
    let mut total = 0u8;
    for offset in 0..u64::from(length) {
        let [byte] = read(memory, address.wrapping_add(offset))?;
        total = total.wrapping_add(byte);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_loader::acpi as made;
    use vm_loader::{GpaRange, Ram};

    const BASE: u64 = 0xe_0000;

    struct Bytes(Vec<u8>);

    impl Memory for Bytes {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            let start = address.checked_sub(BASE).unwrap_or(u64::MAX);
            let end = start.saturating_add(into.len() as u64);
            let found = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            match found.and_then(|(start, end)| self.0.get(start..end)) {
                Some(bytes) => {
                    into.copy_from_slice(bytes);
                    true
                }
                None => false,
            }
        }
    }

    fn tables(sleep_type_s5: u8) -> Bytes {
        let processor = |apic_id| made::Processor { apic_id, node: 0 };
        let chipset = made::Chipset {
            processors: &[processor(0), processor(1), processor(300)],
            local_apic: 0xfee0_0000,
            has_pic: false,
            io_apics: &[made::IoApic {
                id: 4,
                address: 0xfec0_0000,
                first_gsi: 0,
            }],
            overrides: &[],
            nmi_input: None,
            power: made::Power::Fixed(made::FixedPower {
                sci: 9,
                pm1_event: 0x600,
                pm1_control: 0x604,
                timer: Some(made::PmTimer {
                    port: 0x608,
                    is_32_bit: true,
                }),
                gpe0: None,
                sleep_type_s5,
                reset: Some(made::Reset {
                    port: 0xcf9,
                    value: 6,
                }),
            }),
            devices: made::Devices::default(),
            numa: None,
        };
        let ram = [Ram {
            range: GpaRange::new(0, 1 << 28).unwrap(),
            node: 0,
        }];
        Bytes(made::build(&chipset, &ram, BASE).unwrap())
    }

    #[test]
    fn tables_of_the_loader_are_read() {
        for sleep_type_s5 in [0, 1, 5] {
            let found = Tables::read(&tables(sleep_type_s5), BASE).unwrap();
            assert_eq!(found.processors[..], [0, 1, 300]);
            assert_eq!(found.io_apic, Some(0xfec0_0000));
            assert_eq!((found.pm1a_control, found.pm_timer), (0x604, 0x608));
            assert_eq!(found.reset, Some((0xcf9, 6)));
            assert_eq!(found.sleep_type_s5, sleep_type_s5);
        }
    }

    #[test]
    fn a_changed_byte_is_found() {
        let mut changed = tables(5);
        let last = changed.0.len() - 1;
        changed.0[last] ^= 1;
        assert!(matches!(
            Tables::read(&changed, BASE),
            Err(AcpiError::Checksum(_))
        ));
        assert_eq!(
            Tables::read(&changed, BASE - 1),
            Err(AcpiError::Unreadable(BASE - 1))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_result(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            length: prop::sample::Index,
        ) {
            let mut bytes = tables(5);
            for (at, value) in changes {
                let at = at.index(bytes.0.len());
                // The sum stays zero, so that it is not all that is looked at.
                let old = std::mem::replace(&mut bytes.0[at], value);
                let next = (at + 1) % bytes.0.len();
                bytes.0[next] = bytes.0[next].wrapping_add(old).wrapping_sub(value);
            }
            let _ = Tables::read(&bytes, BASE);
            bytes.0.truncate(length.index(bytes.0.len()));
            let _ = Tables::read(&bytes, BASE);
        }
    }
}

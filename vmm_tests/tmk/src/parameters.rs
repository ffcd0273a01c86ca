//! What the parameters must say, alone and together.

use crate::abi::{AREA_FILL, PAGE_SIZE};
use crate::acpi::{MAX_VPS, Table, madt_apic_ids, srat_summary};
use crate::device_tree::Facts;
use crate::memory_map::{Entry, MemoryMap, covered};
use crate::report::{CheckResult, Failure, Reporter};
use crate::{device_tree, ensure, fail};
use arrayvec::ArrayVec;
use core::fmt::{Display, Write};
use core::ops::Range;
use igvm_defs::IGVM_VHS_MMIO_RANGES;
use vsm_host_defs::{HOST_MEMORY_BASE, HOST_MEMORY_SIZE};
use zerocopy::FromBytes;

/// The parameter areas as the host left them.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Number of VPs.
    pub vp_count: &'a [u8],
    /// SRAT.
    pub srat: &'a [u8],
    /// MADT.
    pub madt: &'a [u8],
    /// SLIT.
    pub slit: &'a [u8],
    /// PPTT.
    pub pptt: &'a [u8],
    /// MMIO ranges.
    pub mmio_ranges: &'a [u8],
    /// Memory map.
    pub memory_map: &'a [u8],
    /// Command line.
    pub command_line: &'a [u8],
    /// Device tree.
    pub device_tree: &'a [u8],
    /// Memory that the image occupies, after relocation.
    pub image: &'a Range<u64>,
}

fn failure(error: impl Display) -> Failure {
    Failure::new(format_args!("{error}"))
}

impl<'a> Parameters<'a> {
    /// The command line without its terminator.
    pub fn command_line(&self) -> Result<&'a str, Failure> {
        let Some(end) = self.command_line.iter().position(|byte| *byte == 0) else {
            fail!("no terminator in {} bytes", self.command_line.len());
        };
        core::str::from_utf8(&self.command_line[..end]).map_err(failure)
    }

    /// APIC ids of the VPs, in order, from the MADT.
    pub fn apic_ids(&self) -> Result<ArrayVec<u32, MAX_VPS>, Failure> {
        match Table::in_area(self.madt, *b"APIC").map_err(failure)? {
            Some(table) => madt_apic_ids(&table).map_err(failure),
            None => fail!("no MADT"),
        }
    }

    /// Number of VPs from its own parameter.
    pub fn vp_count(&self) -> Result<usize, Failure> {
        match self.vp_count.first_chunk() {
            Some(bytes) => Ok(u32::from_le_bytes(*bytes) as usize),
            None => fail!("area too small"),
        }
    }

    /// Runs every check.
    pub fn check<W: Write>(&self, reporter: &mut Reporter<W>) {
        reporter.check("params.vp_count_equals_processors_of_madt", || {
            let (count, ids) = (self.vp_count()?, self.apic_ids()?);
            ensure!(count == ids.len(), "{count} VPs, {} in MADT", ids.len());
            ensure!(count > 0, "no VPs");
            Ok(())
        });
        reporter.check("params.bytes_behind_vp_count_are_kept", || {
            let rest = self.vp_count.get(4..).unwrap_or_default();
            ensure!(
                rest.iter().all(|byte| *byte == AREA_FILL),
                "changed beyond four bytes"
            );
            Ok(())
        });
        reporter.check("params.srat_agrees", || self.check_srat());
        reporter.check("params.slit_and_pptt_are_tables", || self.check_optional());
        reporter.check("params.memory_map_holds_image", || self.check_memory_map());
        reporter.check("params.mmio_ranges_avoid_memory", || self.check_mmio());
        let facts = match device_tree::read(self.device_tree) {
            Ok(facts) => facts,
            Err(error) => {
                reporter.result("params.device_tree_is_readable", Err(failure(error)));
                return;
            }
        };
        reporter.result("params.device_tree_is_readable", Ok(()));
        reporter.check("params.device_tree_has_same_processors", || {
            let ids = self.apic_ids()?;
            ensure!(
                facts.apic_ids == ids,
                "device tree {:?}, MADT {:?}",
                facts.apic_ids,
                ids
            );
            ensure!(
                ids.first() == Some(&facts.boot_apic_id),
                "boot processor {}, expected {:?}",
                facts.boot_apic_id,
                ids.first()
            );
            Ok(())
        });
        reporter.check("params.device_tree_has_same_memory", || {
            self.check_same_memory(&facts)
        });
        reporter.check("params.command_line_equals_bootargs", || {
            let text = self.command_line()?;
            ensure!(
                text == facts.bootargs,
                "command line {text:?}, bootargs {:?}",
                facts.bootargs
            );
            Ok(())
        });
        reporter.check("params.device_tree_has_contract_nodes", || {
            ensure!(
                facts.allocation_mode == "host",
                "memory-allocation-mode {:?}",
                facts.allocation_mode
            );
            ensure!(
                (64..=256).contains(&facts.entropy_bytes) && facts.entropy_varies,
                "entropy: {} bytes, expected 64 to 256 random ones",
                facts.entropy_bytes
            );
            ensure!(facts.has_com3, "COM3 is missing");
            Ok(())
        });
    }

    fn check_srat(&self) -> CheckResult {
        let Some(table) = Table::in_area(self.srat, *b"SRAT").map_err(failure)? else {
            return Ok(());
        };
        let summary = srat_summary(&table).map_err(failure)?;
        let count = self.vp_count()?;
        ensure!(
            summary.processors as usize == count,
            "{} processors, {count} VPs",
            summary.processors
        );
        let map = MemoryMap::in_area(self.memory_map).map_err(failure)?;
        let ram = covered(map.entries(), &(0..u64::MAX), Entry::is_ram);
        ensure!(
            summary.memory_bytes >= ram,
            "{:#x} bytes of memory, map has {ram:#x}",
            summary.memory_bytes
        );
        Ok(())
    }

    fn check_optional(&self) -> CheckResult {
        Table::in_area(self.slit, *b"SLIT").map_err(failure)?;
        Table::in_area(self.pptt, *b"PPTT").map_err(failure)?;
        Ok(())
    }

    fn check_memory_map(&self) -> CheckResult {
        let map = MemoryMap::in_area(self.memory_map).map_err(failure)?;
        let size = self.image.end - self.image.start;
        let vtl2 = covered(map.entries(), self.image, Entry::is_vtl2);
        ensure!(
            vtl2 == size,
            "VTL2 memory covers {vtl2:#x} of {size:#x} bytes of the image"
        );
        let host = HOST_MEMORY_BASE..HOST_MEMORY_BASE + HOST_MEMORY_SIZE;
        let usable = covered(map.entries(), &host, Entry::is_ram);
        ensure!(
            usable == 0,
            "{usable:#x} bytes of host memory are given away"
        );
        Ok(())
    }

    fn check_mmio(&self) -> CheckResult {
        let Ok((ranges, _)) = IGVM_VHS_MMIO_RANGES::read_from_prefix(self.mmio_ranges) else {
            fail!("area too small");
        };
        let map = MemoryMap::in_area(self.memory_map).map_err(failure)?;
        let mut previous_end = 0;
        for range in ranges.mmio_ranges {
            if range.number_of_pages == 0 {
                continue;
            }
            let start = range.starting_gpa_page_number.checked_mul(PAGE_SIZE);
            let size = range.number_of_pages.checked_mul(PAGE_SIZE);
            let end = start.zip(size).and_then(|(a, b)| a.checked_add(b));
            let (Some(start), Some(end)) = (start, end) else {
                fail!("range is beyond the address space");
            };
            ensure!(start >= previous_end, "ranges overlap or are not sorted");
            previous_end = end;
            let ram = covered(map.entries(), &(start..end), Entry::is_ram);
            ensure!(ram == 0, "{start:#x} to {end:#x} has {ram:#x} bytes of RAM");
        }
        ensure!(previous_end != 0, "both ranges are empty");
        Ok(())
    }

    /// The tree may split or merge ranges, but must call the same bytes the same.
    fn check_same_memory(&self, facts: &Facts<'_>) -> CheckResult {
        let map = MemoryMap::in_area(self.memory_map).map_err(failure)?;
        let all = 0..u64::MAX;
        for (what, wanted) in [
            ("RAM", Entry::is_ram as fn(&Entry) -> bool),
            ("VTL2", Entry::is_vtl2),
        ] {
            let in_map = covered(map.entries(), &all, wanted);
            let in_tree = covered(facts.memory.iter().copied(), &all, wanted);
            let common: u64 = facts
                .memory
                .iter()
                .filter(|entry| wanted(entry))
                .map(|entry| covered(map.entries(), &(entry.start..entry.end), wanted))
                .sum();
            ensure!(
                in_map == in_tree && common == in_map,
                "{what}: map {in_map:#x} bytes, tree {in_tree:#x}, common {common:#x}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{acpi, memory_map};
    use igvm_defs::MemoryMapEntryType;
    use zerocopy::IntoBytes;

    struct Areas {
        vp_count: Vec<u8>,
        madt: Vec<u8>,
        mmio: Vec<u8>,
        map: Vec<u8>,
        command_line: Vec<u8>,
        tree: Vec<u8>,
        image: Range<u64>,
    }

    fn good() -> Areas {
        let mut vp_count = vec![AREA_FILL; 16];
        vp_count[..4].copy_from_slice(&2u32.to_le_bytes());
        Areas {
            vp_count,
            madt: acpi::tests::madt(&[1, 2]),
            mmio: [0xe_0000u64, 0x1_0000, 0, 0].as_bytes().to_vec(),
            map: memory_map::tests::map(&[
                (0, 0x7000, MemoryMapEntryType::MEMORY),
                (0x8000, 0x1000, MemoryMapEntryType::VTL2_PROTECTABLE),
            ]),
            command_line: b"tmk.test=params\0".to_vec(),
            tree: device_tree::tests::tree(&[1, 2], "tmk.test=params"),
            image: 0x800_0000..0x900_0000,
        }
    }

    fn report(areas: &Areas) -> String {
        let parameters = Parameters {
            vp_count: &areas.vp_count,
            srat: &[AREA_FILL; 64],
            madt: &areas.madt,
            slit: &[AREA_FILL; 64],
            pptt: &[AREA_FILL; 64],
            mmio_ranges: &areas.mmio,
            memory_map: &areas.map,
            command_line: &areas.command_line,
            device_tree: &areas.tree,
            image: &areas.image,
        };
        let mut text = String::new();
        let mut reporter = Reporter::new(&mut text);
        parameters.check(&mut reporter);
        reporter.done();
        text
    }

    #[test]
    fn consistent_parameters_pass() {
        let text = report(&good());
        assert!(text.ends_with("done 11 passed 0 failed\n"), "{text}");
    }

    #[test]
    fn each_inconsistency_is_found() {
        let find = |change: fn(&mut Areas), name: &str| {
            let mut areas = good();
            change(&mut areas);
            let text = report(&areas);
            let line = text.lines().find(|line| line.contains(name)).unwrap();
            assert!(line.contains(": fail: "), "{text}");
        };
        find(|a| a.vp_count[0] = 3, "vp_count_equals");
        find(|a| a.vp_count[4] = 0, "bytes_behind");
        find(|a| a.image = 0x900_0000..0xa00_0000, "holds_image");
        find(|a| a.mmio[..8].fill(0), "mmio_ranges");
        find(
            |a| a.command_line = b"other\0".to_vec(),
            "command_line_equals",
        );
        find(
            |a| a.tree = device_tree::tests::tree(&[2, 1], "tmk.test=params"),
            "same_processors",
        );
        find(
            |a| a.map = memory_map::tests::map(&[(0, 0x9000, MemoryMapEntryType::MEMORY)]),
            "same_memory",
        );
        find(|a| a.tree.fill(0), "readable");
    }
}

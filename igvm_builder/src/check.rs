//! What must hold before a file goes to the `igvm` crate's parser.
//!
//! That parser is made for files that a build has just written: sums of offsets overflow,
//! and some properties are asserted instead of reported. These tools are also run on
//! files that somebody has sent, so the parser gets only what it survives.

use igvm_defs::{
    IGVM_FIXED_HEADER, IGVM_FIXED_HEADER_V2, IGVM_FORMAT_VERSION_1, IGVM_FORMAT_VERSION_2,
    IGVM_MAGIC_VALUE, IGVM_VHS_ERROR_RANGE, IGVM_VHS_PAGE_DATA, IGVM_VHS_PAGE_TABLE_RELOCATION,
    IGVM_VHS_PARAMETER_AREA, IGVM_VHS_RELOCATABLE_REGION, IGVM_VHS_SUPPORTED_PLATFORM,
    IGVM_VHS_VARIABLE_HEADER, IGVM_VHS_VP_CONTEXT, IgvmPlatformType,
    IgvmVariableHeaderType as Type, VbsVpContextHeader, VbsVpContextRegister,
};
use thiserror::Error;
use zerocopy::FromBytes;

/// The largest parameter area or error range that is believed: measuring takes time for
/// each page. The largest area in known images has 256 KiB.
const AREA_LIMIT: u64 = 16 << 20;

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CheckError {
    /// The start of the file.
    #[error("fixed header: {field} is {found}, expected {expected}")]
    Fixed {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
    /// A variable header.
    #[error("variable header {index} ({header}): {field} is {found}, expected {expected}")]
    Variable {
        /// Its index in the file.
        index: usize,
        /// Its type.
        header: String,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: String,
    },
}

/// Checks a whole file.
pub fn check(file: &[u8]) -> Result<(), CheckError> {
    let fixed = |field, found: String, expected: &str| CheckError::Fixed {
        field,
        found,
        expected: expected.into(),
    };
    let Ok((header, _)) = IGVM_FIXED_HEADER::read_from_prefix(file) else {
        return Err(fixed(
            "length of the file",
            file.len().to_string(),
            "at least a fixed header of 24 bytes",
        ));
    };
    if header.magic != IGVM_MAGIC_VALUE {
        return Err(fixed(
            "magic",
            format!("{:#x}", header.magic),
            "0x4d564749 (\"IGVM\")",
        ));
    }
    let fixed_size = match header.format_version {
        IGVM_FORMAT_VERSION_1 => size_of::<IGVM_FIXED_HEADER>(),
        IGVM_FORMAT_VERSION_2 => size_of::<IGVM_FIXED_HEADER_V2>(),
        other => return Err(fixed("format_version", other.to_string(), "1 or 2")),
    };
    if header.total_file_size as usize != file.len() {
        return Err(fixed(
            "total_file_size",
            header.total_file_size.to_string(),
            &format!("{} (the file's length)", file.len()),
        ));
    }
    let start = header.variable_header_offset as usize;
    let data_start = start.saturating_add(header.variable_header_size as usize);
    if start < fixed_size || data_start >= file.len() || data_start > u32::MAX as usize {
        return Err(fixed(
            "place of the variable headers",
            format!("[{start:#x}, {data_start:#x})"),
            "between the fixed header and the file data",
        ));
    }
    let contents = Contents {
        data_start,
        data: &file[data_start..],
    };
    contents.check_headers(&file[start..data_start])
}

/// The file data section.
struct Contents<'a> {
    data_start: usize,
    data: &'a [u8],
}

impl Contents<'_> {
    fn check_headers(&self, mut headers: &[u8]) -> Result<(), CheckError> {
        let mut index = 0;
        let mut platforms = 0;
        while !headers.is_empty() {
            let problem = |header: String, field, found: String, expected: String| {
                Err(CheckError::Variable {
                    index,
                    header,
                    field,
                    found,
                    expected,
                })
            };
            let Ok((header, rest)) = IGVM_VHS_VARIABLE_HEADER::read_from_prefix(headers) else {
                return problem(
                    "type unknown".into(),
                    "length of what is left",
                    headers.len().to_string(),
                    "at least 8".into(),
                );
            };
            let name = format!("{:?}", header.typ);
            let length = header.length as usize;
            let body = rest.get(..length);
            let next = length
                .checked_next_multiple_of(8)
                .and_then(|padded| rest.get(padded..));
            let (Some(body), Some(next)) = (body, next) else {
                return problem(
                    name,
                    "length",
                    length.to_string(),
                    format!("at most {}, which is left", rest.len()),
                );
            };
            platforms += usize::from(header.typ == Type::IGVM_VHT_SUPPORTED_PLATFORM);
            if platforms > 1 {
                return problem(
                    name,
                    "number of platforms",
                    platforms.to_string(),
                    "1".into(),
                );
            }
            if let Err((field, found, expected)) = self.check_header(header.typ, body) {
                return problem(name, field, found, expected);
            }
            headers = next;
            index += 1;
        }
        Ok(())
    }

    /// Checks one header; an error is field, value and expectation.
    fn check_header(&self, typ: Type, body: &[u8]) -> Result<(), (&'static str, String, String)> {
        match typ {
            Type::IGVM_VHT_SUPPORTED_PLATFORM => {
                let platform: IGVM_VHS_SUPPORTED_PLATFORM = read(body)?;
                expect(
                    platform.platform_type == IgvmPlatformType::VSM_ISOLATION,
                    "platform_type",
                    format!("{:?}", platform.platform_type),
                    "VSM_ISOLATION, the one that these tools know",
                )
            }
            Type::IGVM_VHT_RELOCATABLE_REGION => {
                let region: IGVM_VHS_RELOCATABLE_REGION = read(body)?;
                check_range(region.relocation_region_gpa, region.relocation_region_size)?;
                expect(
                    region.relocation_alignment != 0,
                    "relocation_alignment",
                    "0".into(),
                    "a multiple of 4096 above 0",
                )
            }
            Type::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION => {
                let region: IGVM_VHS_PAGE_TABLE_RELOCATION = read(body)?;
                check_range(region.gpa, region.size)
            }
            Type::IGVM_VHT_PARAMETER_AREA => {
                let area: IGVM_VHS_PARAMETER_AREA = read(body)?;
                expect(
                    area.number_of_bytes <= AREA_LIMIT,
                    "number_of_bytes",
                    area.number_of_bytes.to_string(),
                    "at most 16 MiB",
                )?;
                self.check_offset(area.file_offset, area.number_of_bytes as usize)
            }
            Type::IGVM_VHT_PAGE_DATA => {
                let page: IGVM_VHS_PAGE_DATA = read(body)?;
                self.check_offset(page.file_offset, loader_defs::PAGE_SIZE as usize)
            }
            Type::IGVM_VHT_VP_CONTEXT => self.check_vp_context(&read(body)?),
            Type::IGVM_VHT_ERROR_RANGE => {
                let range: IGVM_VHS_ERROR_RANGE = read(body)?;
                expect(
                    u64::from(range.size_bytes) <= AREA_LIMIT,
                    "size_bytes",
                    range.size_bytes.to_string(),
                    "at most 16 MiB",
                )
            }
            Type::IGVM_VHT_PARAMETER_INSERT
            | Type::IGVM_VHT_REQUIRED_MEMORY
            | Type::IGVM_VHT_GUEST_POLICY
            | Type::IGVM_VHT_VP_COUNT_PARAMETER
            | Type::IGVM_VHT_SRAT
            | Type::IGVM_VHT_MADT
            | Type::IGVM_VHT_SLIT
            | Type::IGVM_VHT_PPTT
            | Type::IGVM_VHT_MMIO_RANGES
            | Type::IGVM_VHT_MEMORY_MAP
            | Type::IGVM_VHT_COMMAND_LINE
            | Type::IGVM_VHT_DEVICE_TREE
            | Type::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER => Ok(()),
            other => expect(
                false,
                "type",
                format!("{:#x}", other.0),
                "one of an image for the VSM isolation platform",
            ),
        }
    }

    /// Offset 0 stands for "no data".
    fn check_offset(&self, offset: u32, size: usize) -> Result<(), (&'static str, String, String)> {
        let inside = (offset as usize)
            .checked_sub(self.data_start)
            .and_then(|start| self.data.get(start..start + size));
        expect(
            offset == 0 || inside.is_some(),
            "file_offset",
            format!("{offset:#x}"),
            &format!(
                "0, or room for {size} bytes in the file data [{:#x}, {:#x})",
                self.data_start,
                self.data_start + self.data.len()
            ),
        )
    }

    fn check_vp_context(
        &self,
        context: &IGVM_VHS_VP_CONTEXT,
    ) -> Result<(), (&'static str, String, String)> {
        let (index, offset) = (context.vp_index, context.file_offset);
        expect(index == 0, "vp_index", index.to_string(), "0")?;
        self.check_offset(offset, size_of::<VbsVpContextHeader>())?;
        let mut data = (offset as usize)
            .checked_sub(self.data_start)
            .map_or(&[][..], |start| &self.data[start..]);
        let count = VbsVpContextHeader::read_from_prefix(data).map_or(0, |(header, rest)| {
            data = rest;
            header.register_count
        });
        let mut vtls = Vec::new();
        for _ in 0..count {
            let Ok((register, rest)) = VbsVpContextRegister::read_from_prefix(data) else {
                return expect(
                    false,
                    "register_count",
                    count.to_string(),
                    "as many registers as the file data hold",
                );
            };
            vtls.push(register.vtl);
            data = rest;
        }
        vtls.dedup();
        expect(
            vtls.len() == 1,
            "VTL of the registers",
            format!("{vtls:?}"),
            "one VTL for at least one register",
        )
    }
}

fn read<T: FromBytes>(body: &[u8]) -> Result<T, (&'static str, String, String)> {
    T::read_from_bytes(body)
        .map_err(|_| ("length", body.len().to_string(), size_of::<T>().to_string()))
}

fn check_range(gpa: u64, size: u64) -> Result<(), (&'static str, String, String)> {
    expect(
        size > 0 && gpa.checked_add(size).is_some(),
        "region",
        format!("{gpa:#x} with {size:#x} bytes"),
        "at least one page, ending below 2^64",
    )
}

fn expect(
    condition: bool,
    field: &'static str,
    found: String,
    expected: &str,
) -> Result<(), (&'static str, String, String)> {
    if condition {
        Ok(())
    } else {
        Err((field, found, expected.into()))
    }
}

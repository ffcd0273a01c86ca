//! A file as a description: the same facts as text for a person and as JSON for a program.

use crate::component::{Component, GpaRange, human_size};
use crate::guest::GuestFile;
use crate::registers::{RegisterText, texts};
use crate::view::Image;
use igvm::{IgvmDirectiveHeader, IgvmInitializationHeader, IgvmPlatformHeader};
use igvm_defs::IGVM_VHS_PARAMETER;
use loader_defs::paravisor::CommandLinePolicy;
use loader_defs::shim::ShimParamsRaw;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::{self, Write as _};

/// A described file.
#[derive(Debug, Serialize)]
pub struct Description {
    /// Size of the file.
    pub file_bytes: usize,
    /// Its SHA-256.
    pub sha256: String,
    /// Number of directives.
    pub directives: usize,
    /// The platforms it is for.
    pub platforms: Vec<Platform>,
    /// What the headers before the directives say, e.g. about relocation.
    pub initialization: Vec<NamedFields>,
    /// Memory that the VM must have.
    pub required_memory: Vec<RequiredMemory>,
    /// What the host is asked to fill in.
    pub parameters: Vec<Parameter>,
    /// Registers at the start.
    pub vp_contexts: Vec<VpContext>,
    /// The measured command line.
    pub command_line: Option<CommandLine>,
    /// The files of the guest that the image carries.
    pub guest: Vec<GuestFile>,
    /// What the boot shim is told, offsets relative to its image base.
    pub shim_params: Option<NamedFields>,
    /// The parts by address.
    pub components: Vec<Part>,
}

/// A platform that the file supports.
#[derive(Debug, Serialize)]
pub struct Platform {
    /// E.g. `VSM_ISOLATION`.
    pub platform_type: String,
    /// Version of the platform.
    pub platform_version: u16,
    /// Highest VTL.
    pub highest_vtl: u8,
    /// Where shared memory begins, 0 if there is none.
    pub shared_gpa_boundary: u64,
}

/// Something with fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedFields {
    /// What it is.
    pub name: &'static str,
    /// Its fields in order.
    pub fields: Vec<Field>,
}

/// A field and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Name.
    pub name: &'static str,
    /// Value as text; numbers in hexadecimal.
    pub value: String,
}

/// Memory that the VM must have.
#[derive(Debug, Serialize)]
pub struct RequiredMemory {
    /// Where.
    pub range: GpaRange,
    /// It becomes VTL2's.
    pub vtl2_protectable: bool,
}

/// Something that the host fills in.
#[derive(Debug, Serialize)]
pub struct Parameter {
    /// E.g. `DeviceTree`.
    pub kind: &'static str,
    /// Parameter area.
    pub area: u32,
    /// Offset in the area.
    pub byte_offset: u32,
    /// Where the area is inserted.
    pub range: Option<GpaRange>,
}

/// A register list.
#[derive(Debug, Serialize)]
pub struct VpContext {
    /// VTL.
    pub vtl: u8,
    /// The registers.
    pub registers: Vec<RegisterText>,
}

/// The measured command line.
#[derive(Debug, Serialize)]
pub struct CommandLine {
    /// Who may append.
    pub policy: String,
    /// The text.
    pub text: String,
}

/// How the pages of a part come to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// They are in the file and measured.
    Measured,
    /// They are in the file, but not measured.
    Unmeasured,
    /// The host fills them.
    Host,
    /// Nobody fills them.
    Absent,
}

impl Source {
    /// The name, as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Unmeasured => "unmeasured",
            Self::Host => "host",
            Self::Absent => "absent",
        }
    }
}

/// A part of the image.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Its name.
    pub component: Component,
    /// Its place.
    pub range: GpaRange,
    /// Where its pages come from.
    pub source: Source,
    /// Its pages in the file that are not zero.
    pub data_pages: u64,
    /// Its pages in the file that are zero, and take no room there.
    pub zero_pages: u64,
    /// First and last directive index, if any.
    pub directives: Option<(usize, usize)>,
    /// SHA-256 over offset and contents of its pages, if any: equal parts have equal
    /// values, wherever they are.
    pub sha256: Option<String>,
}

/// Describes a file.
pub fn describe(image: &Image) -> Description {
    let file = &image.file;
    Description {
        file_bytes: image.file_bytes,
        sha256: hex(&image.sha256),
        directives: file.directives().len(),
        platforms: file.platforms().iter().map(platform).collect(),
        initialization: file.initializations().iter().map(initialization).collect(),
        required_memory: file
            .directives()
            .iter()
            .filter_map(required_memory)
            .collect(),
        parameters: parameters(image),
        vp_contexts: file.directives().iter().filter_map(vp_context).collect(),
        command_line: image.command_line().map(|(policy, text)| CommandLine {
            policy: policy_name(policy),
            text,
        }),
        guest: image.guest.clone(),
        shim_params: image.shim.map(|(_, params)| shim_params(&params)),
        components: image
            .components
            .iter()
            .map(|(component, range)| part(image, *component, *range))
            .collect(),
    }
}

/// A policy in words.
pub(crate) fn policy_name(policy: u16) -> String {
    match CommandLinePolicy(policy) {
        CommandLinePolicy::STATIC => "static".into(),
        CommandLinePolicy::APPEND_CHOSEN => "append-chosen".into(),
        CommandLinePolicy(other) => format!("unknown ({other})"),
    }
}

fn platform(header: &IgvmPlatformHeader) -> Platform {
    let IgvmPlatformHeader::SupportedPlatform(platform) = header;
    Platform {
        platform_type: format!("{:?}", platform.platform_type),
        platform_version: platform.platform_version,
        highest_vtl: platform.highest_vtl,
        shared_gpa_boundary: platform.shared_gpa_boundary,
    }
}

fn fields<const N: usize>(pairs: [(&'static str, u64); N]) -> Vec<Field> {
    pairs
        .into_iter()
        .map(|(name, value)| Field {
            name,
            value: format!("{value:#x}"),
        })
        .collect()
}

/// A header before the directives, field by field.
pub(crate) fn initialization(header: &IgvmInitializationHeader) -> NamedFields {
    match header {
        IgvmInitializationHeader::RelocatableRegion {
            compatibility_mask: _,
            relocation_alignment,
            relocation_region_gpa,
            relocation_region_size,
            minimum_relocation_gpa,
            maximum_relocation_gpa,
            is_vtl2,
            apply_rip_offset,
            apply_gdtr_offset,
            vp_index,
            vtl,
        } => NamedFields {
            name: "relocatable-region",
            fields: fields([
                ("gpa", *relocation_region_gpa),
                ("size", *relocation_region_size),
                ("alignment", *relocation_alignment),
                ("minimum", *minimum_relocation_gpa),
                ("maximum", *maximum_relocation_gpa),
                ("is-vtl2", (*is_vtl2).into()),
                ("apply-rip-offset", (*apply_rip_offset).into()),
                ("apply-gdtr-offset", (*apply_gdtr_offset).into()),
                ("vp-index", (*vp_index).into()),
                ("vtl", *vtl as u64),
            ]),
        },
        IgvmInitializationHeader::PageTableRelocationRegion {
            compatibility_mask: _,
            gpa,
            size,
            used_size,
            vp_index,
            vtl,
        } => NamedFields {
            name: "page-table-relocation",
            fields: fields([
                ("gpa", *gpa),
                ("size", *size),
                ("used-size", *used_size),
                ("vp-index", (*vp_index).into()),
                ("vtl", *vtl as u64),
            ]),
        },
        other => NamedFields {
            name: "other",
            fields: vec![Field {
                name: "value",
                value: format!("{other:x?}"),
            }],
        },
    }
}

fn required_memory(header: &IgvmDirectiveHeader) -> Option<RequiredMemory> {
    match header {
        IgvmDirectiveHeader::RequiredMemory {
            gpa,
            number_of_bytes,
            vtl2_protectable,
            ..
        } => Some(RequiredMemory {
            range: GpaRange::with_size(*gpa, u64::from(*number_of_bytes)),
            vtl2_protectable: *vtl2_protectable,
        }),
        _ => None,
    }
}

/// The kind of a parameter directive.
fn parameter_kind(header: &IgvmDirectiveHeader) -> Option<(&'static str, &IGVM_VHS_PARAMETER)> {
    Some(match header {
        IgvmDirectiveHeader::VpCount(p) => ("VpCount", p),
        IgvmDirectiveHeader::EnvironmentInfo(p) => ("EnvironmentInfo", p),
        IgvmDirectiveHeader::Srat(p) => ("Srat", p),
        IgvmDirectiveHeader::Madt(p) => ("Madt", p),
        IgvmDirectiveHeader::Slit(p) => ("Slit", p),
        IgvmDirectiveHeader::Pptt(p) => ("Pptt", p),
        IgvmDirectiveHeader::MmioRanges(p) => ("MmioRanges", p),
        IgvmDirectiveHeader::MemoryMap(p) => ("MemoryMap", p),
        IgvmDirectiveHeader::CommandLine(p) => ("CommandLine", p),
        IgvmDirectiveHeader::DeviceTree(p) => ("DeviceTree", p),
        _ => return None,
    })
}

fn parameters(image: &Image) -> Vec<Parameter> {
    let place = |area| image.parameters.iter().find(|p| p.area == area);
    image
        .file
        .directives()
        .iter()
        .filter_map(parameter_kind)
        .map(|(kind, p)| Parameter {
            kind,
            area: p.parameter_area_index,
            byte_offset: p.byte_offset,
            range: place(p.parameter_area_index).map(|p| p.range),
        })
        .collect()
}

fn vp_context(header: &IgvmDirectiveHeader) -> Option<VpContext> {
    match header {
        IgvmDirectiveHeader::X64VbsVpContext { vtl, registers, .. } => Some(VpContext {
            vtl: *vtl as u8,
            registers: texts(registers),
        }),
        _ => None,
    }
}

/// The shim's parameters, field by field.
pub(crate) fn shim_params(params: &ShimParamsRaw) -> NamedFields {
    let mut list = Vec::new();
    let mut offset = |name, value: i64| {
        let sign = if value < 0 { "-" } else { "" };
        list.push(Field {
            name,
            value: format!("{sign}{:#x}", value.unsigned_abs()),
        });
    };
    // The fields in the order of the structure. A size or a checksum fits into 63 bits,
    // or is shown as what it is not, which then is visible.
    let p = params;
    offset("kernel_entry_offset", p.kernel_entry_offset);
    offset("cmdline_offset", p.cmdline_offset);
    offset("initrd_offset", p.initrd_offset);
    offset("initrd_size", p.initrd_size.cast_signed());
    offset("initrd_crc", p.initrd_crc.into());
    offset(
        "supported_isolation_type",
        p.supported_isolation_type.into(),
    );
    offset("memory_start_offset", p.memory_start_offset);
    offset("memory_size", p.memory_size.cast_signed());
    offset("parameter_region_offset", p.parameter_region_offset);
    offset(
        "parameter_region_size",
        p.parameter_region_size.cast_signed(),
    );
    offset("vtl2_reserved_region_offset", p.vtl2_reserved_region_offset);
    offset(
        "vtl2_reserved_region_size",
        p.vtl2_reserved_region_size.cast_signed(),
    );
    offset("sidecar_offset", p.sidecar_offset);
    offset("sidecar_size", p.sidecar_size.cast_signed());
    offset("sidecar_entry_offset", p.sidecar_entry_offset);
    offset("used_start", p.used_start);
    offset("used_end", p.used_end);
    offset("bounce_buffer_start", p.bounce_buffer_start);
    offset("bounce_buffer_size", p.bounce_buffer_size.cast_signed());
    offset("log_buffer_start", p.log_buffer_start);
    offset("log_buffer_size", p.log_buffer_size.cast_signed());
    offset("heap_start_offset", p.heap_start_offset);
    offset("heap_size", p.heap_size.cast_signed());
    offset(
        "persisted_state_region_offset",
        p.persisted_state_region_offset,
    );
    offset(
        "persisted_state_region_size",
        p.persisted_state_region_size.cast_signed(),
    );
    NamedFields {
        name: "shim-params",
        fields: list,
    }
}

fn part(image: &Image, component: Component, range: GpaRange) -> Part {
    let mut part = Part {
        component,
        range,
        source: Source::Absent,
        data_pages: 0,
        zero_pages: 0,
        directives: None,
        sha256: None,
    };
    if image.parameters.iter().any(|p| p.range == range) {
        part.source = Source::Host;
        return part;
    }
    let mut hasher = Sha256::new();
    for (gpa, page) in image.pages_in(range) {
        let measured = !page.flags.unmeasured() && !page.flags.shared();
        part.source = match part.source {
            Source::Absent | Source::Measured if measured => Source::Measured,
            _ => Source::Unmeasured,
        };
        if page.data.is_empty() {
            part.zero_pages += 1;
        } else {
            part.data_pages += 1;
        }
        let (first, last) = part.directives.unwrap_or((page.directive, page.directive));
        part.directives = Some((first.min(page.directive), last.max(page.directive)));
        hasher.update((gpa - range.start).to_le_bytes());
        hasher.update(page.data);
    }
    part.sha256 = part.directives.map(|_| hex(&hasher.finalize()));
    part
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "IGVM file, {} ({} bytes), {} directives",
            human_size(self.file_bytes as u64),
            self.file_bytes,
            self.directives
        )?;
        writeln!(f, "sha256 {}", self.sha256)?;
        for p in &self.platforms {
            writeln!(
                f,
                "platform {} version {}, highest VTL {}, shared GPA boundary {:#x}",
                p.platform_type, p.platform_version, p.highest_vtl, p.shared_gpa_boundary
            )?;
        }
        for memory in &self.required_memory {
            let protected = if memory.vtl2_protectable {
                ", VTL2 protectable"
            } else {
                ""
            };
            writeln!(
                f,
                "required memory {} {}{protected}",
                memory.range,
                human_size(memory.range.size())
            )?;
        }
        if let Some(line) = &self.command_line {
            writeln!(f, "command line {:?}, policy {}", line.text, line.policy)?;
        }
        for (index, file) in self.guest.iter().enumerate() {
            let heading = if index == 0 { "\nguest's files\n" } else { "" };
            writeln!(f, "{heading}  {file}")?;
        }
        for group in self.initialization.iter().chain(&self.shim_params) {
            writeln!(f, "\n{}", group.name)?;
            for field in &group.fields {
                writeln!(f, "  {:<30} {}", field.name, field.value)?;
            }
        }
        for context in &self.vp_contexts {
            writeln!(f, "\nregisters of VP 0 in VTL {}", context.vtl)?;
            for register in &context.registers {
                writeln!(f, "  {:<8} {}", register.name, register.value)?;
            }
        }
        if !self.parameters.is_empty() {
            writeln!(f, "\nfilled by the host")?;
        }
        for parameter in &self.parameters {
            write!(f, "  {:<12} area {}", parameter.kind, parameter.area)?;
            if parameter.byte_offset != 0 {
                write!(f, " + {:#x}", parameter.byte_offset)?;
            }
            match parameter.range {
                Some(range) => writeln!(f, " at {range}")?,
                None => writeln!(f, ", never inserted")?,
            }
        }
        writeln!(
            f,
            "\n{:<16} {:>12} {:>12} {:>10}  {:<10} {:>6} {:>6}  {:<11} sha256",
            "component", "start", "end", "size", "source", "data", "zero", "directives"
        )?;
        for part in &self.components {
            let directives = part
                .directives
                .map_or("-".into(), |(first, last)| format!("{first}-{last}"));
            let digest = part.sha256.as_ref().map_or("-", |text| &text[..16]);
            writeln!(
                f,
                "{:<16} {:>#12x} {:>#12x} {:>10}  {:<10} {:>6} {:>6}  {:<11} {digest}",
                part.component,
                part.range.start,
                part.range.end,
                human_size(part.range.size()),
                part.source.name(),
                part.data_pages,
                part.zero_pages,
                directives,
            )?;
        }
        Ok(())
    }
}

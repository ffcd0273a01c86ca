//! What is different between two images, in terms of their parts.
//!
//! Parts are compared relative to their own start. If the kernel grows by a page,
//! everything behind it moves: that gives one "moved" line for each part and the
//! differing bytes of the kernel, not a list of all pages. What has a meaning of its own
//! (registers, the shim's parameters, the command line, headers) is compared field by
//! field.

use crate::component::{Component, GpaRange, human_size};
use crate::dump::{Field, NamedFields, describe};
use crate::view::Image;
use loader_defs::PAGE_SIZE;
use loader_defs::paravisor::ParavisorCommandLine;
use loader_defs::shim::ShimParamsRaw;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Differing bytes with fewer equal bytes between them are one range.
const MERGE_GAP: u64 = 16;
/// Bytes that are shown of each range.
const PREVIEW: usize = 16;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Difference {
    /// A field outside of the pages, or of a page whose fields are known.
    Field {
        /// Where the field is, e.g. `registers` or `shim-params`.
        group: String,
        /// Its name.
        field: String,
        /// Value in the first file, if there is one.
        a: Option<String>,
        /// Value in the second file, if there is one.
        b: Option<String>,
    },
    /// A part is in one file only.
    Part {
        /// Which.
        component: Component,
        /// Its place in the first file.
        a: Option<GpaRange>,
        /// Its place in the second file.
        b: Option<GpaRange>,
    },
    /// A part is elsewhere, or has another size.
    Place {
        /// Which.
        component: Component,
        /// Its place in the first file.
        a: GpaRange,
        /// Its place in the second file.
        b: GpaRange,
    },
    /// Pages are in one file only.
    Presence {
        /// Part.
        component: Component,
        /// Offset in the part.
        offset: u64,
        /// Number of pages.
        pages: u64,
        /// They are in the first file.
        in_a: bool,
    },
    /// Pages are imported in another manner (flags).
    Flags {
        /// Part.
        component: Component,
        /// Offset in the part.
        offset: u64,
        /// Number of pages.
        pages: u64,
    },
    /// Bytes differ.
    Bytes {
        /// Part.
        component: Component,
        /// Offset in the part.
        offset: u64,
        /// GPA in the first file.
        gpa: u64,
        /// Number of bytes.
        length: u64,
        /// First bytes in the first file, hexadecimal.
        a: String,
        /// First bytes in the second file, hexadecimal.
        b: String,
    },
    /// More byte ranges than are listed.
    More {
        /// Part.
        component: Component,
        /// Ranges not listed.
        ranges: usize,
        /// Bytes in them.
        bytes: u64,
    },
    /// The files hold the same image in other words: another order of the directives or
    /// of the file data. The boot digest depends on the order.
    Encoding,
}

/// Compares two images; empty if they are the same file. At most `range_limit` ranges of
/// differing bytes are listed for each part, the others are summed up.
pub fn diff(a: &Image, b: &Image, range_limit: usize) -> Vec<Difference> {
    let mut found = Vec::new();
    diff_fields(a, b, &mut found);
    diff_parts(a, b, range_limit, &mut found);
    if found.is_empty() && a.sha256 != b.sha256 {
        found.push(Difference::Encoding);
    }
    found
}

/// Group and name of a field, with a number for repeated ones.
type FieldKey = (String, String, usize);

fn diff_fields(a: &Image, b: &Image, found: &mut Vec<Difference>) {
    let (order, a) = facts(a);
    let (order_b, b) = facts(b);
    let only_b = order_b.into_iter().filter(|key| !a.contains_key(key));
    for key in order.into_iter().chain(only_b) {
        let (in_a, in_b) = (a.get(&key), b.get(&key));
        if in_a != in_b {
            found.push(Difference::Field {
                group: key.0,
                field: key.1,
                a: in_a.cloned(),
                b: in_b.cloned(),
            });
        }
    }
}

/// Everything in an image that is a named value, with the order of the names.
fn facts(image: &Image) -> (Vec<FieldKey>, BTreeMap<FieldKey, String>) {
    let description = describe(image);
    let mut groups: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for p in &description.platforms {
        groups.push((
            "platform".into(),
            vec![
                ("type".into(), p.platform_type.clone()),
                ("version".into(), p.platform_version.to_string()),
                ("highest-vtl".into(), p.highest_vtl.to_string()),
                (
                    "shared-gpa-boundary".into(),
                    format!("{:#x}", p.shared_gpa_boundary),
                ),
            ],
        ));
    }
    let named = |group: &NamedFields| {
        let fields = group.fields.iter();
        (
            group.name.to_owned(),
            fields
                .map(|Field { name, value }| ((*name).to_owned(), value.clone()))
                .collect(),
        )
    };
    groups.extend(description.initialization.iter().map(named));
    for memory in &description.required_memory {
        groups.push((
            "required-memory".into(),
            vec![
                ("range".into(), memory.range.to_string()),
                (
                    "vtl2-protectable".into(),
                    memory.vtl2_protectable.to_string(),
                ),
            ],
        ));
    }
    for p in &description.parameters {
        let place = p.range.map_or("nowhere".into(), |range| range.to_string());
        let value = format!("area {} + {:#x} at {place}", p.area, p.byte_offset);
        groups.push(("host-parameter".into(), vec![(p.kind.into(), value)]));
    }
    for context in &description.vp_contexts {
        let values = context.registers.iter();
        groups.push((
            format!("registers-vtl{}", context.vtl),
            values.map(|r| (r.name.clone(), r.value.clone())).collect(),
        ));
    }
    if let Some(line) = &description.command_line {
        groups.push((
            Component::CommandLine.name().into(),
            vec![
                ("policy".into(), line.policy.clone()),
                ("text".into(), format!("{:?}", line.text)),
            ],
        ));
    }
    groups.extend(description.shim_params.iter().map(named));

    let mut order = Vec::new();
    let mut values = BTreeMap::new();
    let mut repeated: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (group, fields) in groups {
        for (field, value) in fields {
            let count = repeated.entry((group.clone(), field.clone())).or_default();
            let key = (group.clone(), field, *count);
            *count += 1;
            order.push(key.clone());
            values.insert(key, value);
        }
    }
    (order, values)
}

fn diff_parts(a: &Image, b: &Image, range_limit: usize, found: &mut Vec<Difference>) {
    let (parts_a, parts_b) = (numbered(a), numbered(b));
    let all: BTreeSet<_> = parts_a.keys().chain(parts_b.keys()).copied().collect();
    for key @ (component, _) in all {
        match (parts_a.get(&key), parts_b.get(&key)) {
            (Some(&place_a), Some(&place_b)) => {
                if place_a != place_b {
                    found.push(Difference::Place {
                        component,
                        a: place_a,
                        b: place_b,
                    });
                }
                diff_contents(component, (a, place_a), (b, place_b), range_limit, found);
            }
            (place_a, place_b) => found.push(Difference::Part {
                component,
                a: place_a.copied(),
                b: place_b.copied(),
            }),
        }
    }
}

/// The parts; those of the same name (the unknown ones) are counted.
fn numbered(image: &Image) -> BTreeMap<(Component, usize), GpaRange> {
    let mut counts: BTreeMap<Component, usize> = BTreeMap::new();
    let parts = image.components.iter();
    parts
        .map(|(component, range)| {
            let count = counts.entry(*component).or_default();
            *count += 1;
            ((*component, *count), *range)
        })
        .collect()
}

/// Bytes from the start of a part that are compared field by field.
const fn explained(component: Component) -> u64 {
    match component {
        Component::ShimParams => size_of::<ShimParamsRaw>() as u64,
        Component::CommandLine => size_of::<ParavisorCommandLine>() as u64,
        _ => 0,
    }
}

fn diff_contents(
    component: Component,
    (a, place_a): (&Image, GpaRange),
    (b, place_b): (&Image, GpaRange),
    range_limit: usize,
    found: &mut Vec<Difference>,
) {
    let pages = |image: &Image, place: GpaRange| -> BTreeSet<u64> {
        let pages = image.pages_in(place);
        pages.map(|(gpa, _)| gpa - place.start).collect()
    };
    let (in_a, in_b) = (pages(a, place_a), pages(b, place_b));
    for (only, in_a) in [
        (in_a.difference(&in_b), true),
        (in_b.difference(&in_a), false),
    ] {
        for (offset, pages) in runs(only.copied()) {
            found.push(Difference::Presence {
                component,
                offset,
                pages,
                in_a,
            });
        }
    }

    let mut other_flags = Vec::new();
    let mut bytes = ByteRanges::default();
    for offset in in_a.intersection(&in_b) {
        let (Some(page_a), Some(page_b)) = (
            a.page(place_a.start + offset),
            b.page(place_b.start + offset),
        ) else {
            continue;
        };
        if page_a.flags != page_b.flags {
            other_flags.push(*offset);
        }
        if page_a.data != page_b.data {
            bytes.compare(*offset, page_a.data, page_b.data, explained(component));
        }
    }
    for (offset, pages) in runs(other_flags) {
        found.push(Difference::Flags {
            component,
            offset,
            pages,
        });
    }
    let listed = bytes.ranges.len().min(range_limit);
    for range in &bytes.ranges[..listed] {
        found.push(Difference::Bytes {
            component,
            offset: range.start,
            gpa: place_a.start + range.start,
            length: range.size(),
            a: preview(a, place_a.start, *range),
            b: preview(b, place_b.start, *range),
        });
    }
    let rest = &bytes.ranges[listed..];
    if !rest.is_empty() {
        found.push(Difference::More {
            component,
            ranges: rest.len(),
            bytes: rest.iter().map(GpaRange::size).sum(),
        });
    }
}

/// Joins consecutive pages: offset of the first and number.
fn runs(offsets: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some((start, pages)) if *start + *pages * PAGE_SIZE == offset => *pages += 1,
            _ => runs.push((offset, 1)),
        }
    }
    runs
}

/// Offsets of differing bytes.
#[derive(Default)]
struct ByteRanges {
    ranges: Vec<GpaRange>,
}

impl ByteRanges {
    fn compare(&mut self, page: u64, a: &[u8], b: &[u8], explained: u64) {
        // An empty page stands for zeros.
        let byte = |data: &[u8], index: usize| data.get(index).copied().unwrap_or(0);
        for index in 0..PAGE_SIZE as usize {
            let at = page + index as u64;
            if at < explained || byte(a, index) == byte(b, index) {
                continue;
            }
            match self.ranges.last_mut() {
                Some(last) if at - last.end < MERGE_GAP => last.end = at + 1,
                _ => self.ranges.push(GpaRange::with_size(at, 1)),
            }
        }
    }
}

/// The first bytes of a range of a part, as hexadecimal digits.
fn preview(image: &Image, start: u64, range: GpaRange) -> String {
    let shown = range.size().min(PREVIEW as u64);
    let mut text: String = (range.start..range.start + shown)
        .map(|offset| {
            let gpa = start + offset;
            let page = image.page(gpa / PAGE_SIZE * PAGE_SIZE);
            let byte = page.and_then(|p| p.data.get((gpa % PAGE_SIZE) as usize));
            format!("{:02x}", byte.copied().unwrap_or(0))
        })
        .collect();
    if range.size() > shown {
        text.push('…');
    }
    text
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or_absent(value: &Option<impl fmt::Display>) -> String {
            value.as_ref().map_or("absent".into(), ToString::to_string)
        }
        match self {
            Self::Field { group, field, a, b } => {
                write!(f, "{group}: {field} {} -> {}", or_absent(a), or_absent(b))
            }
            Self::Part { component, a, b } => {
                write!(f, "{component}: {} -> {}", or_absent(a), or_absent(b))
            }
            Self::Place { component, a, b } => {
                write!(f, "{component}: ")?;
                match (a.start == b.start, a.size() == b.size()) {
                    (false, true) => write!(f, "moved from {:#x} to {:#x}", a.start, b.start),
                    (true, false) => write!(
                        f,
                        "size {} -> {}",
                        human_size(a.size()),
                        human_size(b.size())
                    ),
                    _ => write!(f, "{a} -> {b}"),
                }
            }
            Self::Presence {
                component,
                offset,
                pages,
                in_a,
            } => write!(
                f,
                "{component}: {pages} page(s) at +{offset:#x} only in the {} file",
                if *in_a { "first" } else { "second" }
            ),
            Self::Flags {
                component,
                offset,
                pages,
            } => write!(
                f,
                "{component}: {pages} page(s) at +{offset:#x} are imported with other flags"
            ),
            Self::Bytes {
                component,
                offset,
                gpa,
                length,
                a,
                b,
            } => write!(
                f,
                "{component}: {length} byte(s) at +{offset:#x} (GPA {gpa:#x}): {a} -> {b}"
            ),
            Self::More {
                component,
                ranges,
                bytes,
            } => write!(
                f,
                "{component}: {ranges} more range(s) with {bytes} bytes (not listed)"
            ),
            Self::Encoding => f.write_str(
                "the same image, but the directives or the file data are in another order",
            ),
        }
    }
}

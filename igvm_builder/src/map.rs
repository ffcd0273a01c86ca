//! The memory layout of an image, as text and as a picture.
//!
//! Parts are between 4 KiB and several MiB large. A picture to scale would hide most of
//! them, one that is not to scale would mislead. So the picture shows both: a strip to
//! scale, and connected with it a list with one row for each part.

use crate::component::{Component, human_size};
use crate::dump::{Description, Part, Source};
use std::fmt::Write as _;

/// Width of the text map's bars.
const BAR_WIDTH: u64 = 32;

/// An address with its digits in groups.
fn grouped(address: u64) -> String {
    let digits = format!("{address:08x}");
    let head = digits.len() % 4;
    let mut text = String::from("0x");
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && index % 4 == head {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// The layout as text.
pub fn text(description: &Description) -> String {
    let largest = description.components.iter().map(|p| p.range.size()).max();
    let largest = largest.unwrap_or(1).max(1);
    let mut out = format!(
        "{:<14} {:<14} {:>10}  {:<16} {:<10} bar: share of the largest part\n",
        "start", "end", "size", "component", "source"
    );
    for part in &description.components {
        // At least one mark, so that every part is visible.
        let marks = (part.range.size().saturating_mul(BAR_WIDTH) / largest).max(1);
        let mark = match part.source {
            Source::Measured | Source::Unmeasured => "█",
            Source::Host => "▒",
            Source::Absent => "·",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<14} {:<14} {:>10}  {:<16} {:<10} {}",
            grouped(part.range.start),
            grouped(part.range.end),
            human_size(part.range.size()),
            part.component,
            part.source.name(),
            mark.repeat(marks as usize),
        );
    }
    out
}

/// Kinds of parts that share a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Code,
    Data,
    Boot,
    Config,
    Host,
    Scratch,
    Free,
}

impl Class {
    const ALL: [Self; 7] = [
        Self::Code,
        Self::Data,
        Self::Boot,
        Self::Config,
        Self::Host,
        Self::Scratch,
        Self::Free,
    ];

    const fn of(component: Component) -> Self {
        match component {
            Component::Kernel | Component::Sidecar | Component::Shim => Self::Code,
            Component::Initrd | Component::Guest | Component::Unknown => Self::Data,
            Component::Gdt | Component::PageTables | Component::ShimParams => Self::Boot,
            Component::CommandLine
            | Component::ImportedRegions
            | Component::Vtl2Config
            | Component::Vtl0Config => Self::Config,
            Component::Slit | Component::Pptt | Component::DeviceTree => Self::Host,
            Component::Log
            | Component::PageHashes
            | Component::Heap
            | Component::Reserved
            | Component::PersistedState => Self::Scratch,
            Component::Free => Self::Free,
        }
    }

    const fn style(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Data => "data",
            Self::Boot => "boot",
            Self::Config => "config",
            Self::Host => "host",
            Self::Scratch => "scratch",
            Self::Free => "free",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Code => "programs",
            Self::Data => "initrd, guest",
            Self::Boot => "start-up structures",
            Self::Config => "measured configuration",
            Self::Host => "filled by the host",
            Self::Scratch => "reserved or scratch",
            Self::Free => "free",
        }
    }
}

/// Look of the picture: light, or dark where the viewer knows and asks for it. No custom
/// properties, because not every viewer of SVG files has them.
const STYLE: &str = "\
svg{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\
.mono{font-family:ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:12px}\
.title{font-size:20px;font-weight:600}.name{font-weight:600}\
.end{text-anchor:end}.mid{text-anchor:middle}.link{opacity:.16}\
.piece{stroke:#fff;stroke-width:.4}.paper{fill:#fff}text{fill:#1b1f24}.soft{fill:#59636e}.rule{stroke:#d1d9e0}\
.frame{fill:none;stroke:#59636e}\
.code{fill:#2f6fd0}.data{fill:#1a8f7c}.boot{fill:#8250df}.config{fill:#b8488f}\
.host{fill:#d9822b}.scratch{fill:#9aa4af}.free{fill:#dfe5ea}\
@media (prefers-color-scheme:dark){\
.piece{stroke:#14181d}.paper{fill:#14181d}text{fill:#e6edf3}.soft{fill:#9aa5b1}.rule{stroke:#343b43}\
.frame{stroke:#9aa5b1}\
.code{fill:#5b95ee}.data{fill:#35b29c}.boot{fill:#a988f0}.config{fill:#d873b4}\
.host{fill:#eba15a}.scratch{fill:#6d7781}.free{fill:#2d343b}}";

/// Width of the picture.
const WIDTH: f64 = 1080.0;
/// Where the drawing begins, below the title.
const TOP: f64 = 112.0;
/// Height of a row.
const ROW: f64 = 30.0;
/// Left edge of the strip.
const STRIP: f64 = 130.0;
/// Its width.
const STRIP_WIDTH: f64 = 90.0;
/// Left edge of the rows.
const ROWS: f64 = 330.0;

/// The layout as a self-contained SVG document.
pub fn svg(description: &Description) -> String {
    let memory = description
        .required_memory
        .iter()
        .find(|m| m.vtl2_protectable);
    let memory = memory.map(|m| m.range);
    let parts = &description.components;
    let height = ROW * parts.len().max(8) as f64;
    let total = TOP + height + 84.0;
    let used: u64 = parts
        .iter()
        .filter(|p| p.component != Component::Free && p.component != Component::Vtl0Config)
        .map(|p| p.range.size())
        .sum();

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" \
         width=\"{WIDTH}\" height=\"{total}\" role=\"img\">\n<title>Memory layout of an IGVM \
         image</title>\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" \
         height=\"{total}\"/>\n"
    );
    text_at(
        &mut out,
        40.0,
        44.0,
        "title",
        "Memory layout of the IGVM image",
    );
    let asked = memory.map_or(String::new(), |m| {
        format!(
            " · asks for {} of VTL2 memory, uses {}",
            human_size(m.size()),
            human_size(used)
        )
    });
    let subtitle = format!("file {}{asked}", human_size(description.file_bytes as u64));
    text_at(&mut out, 40.0, 68.0, "soft", &subtitle);
    let digest = format!("sha256 {}", description.sha256);
    text_at(&mut out, 40.0, 88.0, "soft mono", &digest);

    if let Some(memory) = memory {
        let scale = |gpa: u64| {
            let offset = gpa.clamp(memory.start, memory.end) - memory.start;
            TOP + height * offset as f64 / memory.size().max(1) as f64
        };
        for (index, part) in parts.iter().enumerate() {
            if memory.encloses(&part.range) {
                let (from, to) = (scale(part.range.start), scale(part.range.end));
                strip_piece(&mut out, part, from, to, TOP + ROW * index as f64);
            }
        }
        let _ = writeln!(
            out,
            "<rect class=\"frame\" x=\"{STRIP}\" y=\"{TOP}\" width=\"{STRIP_WIDTH}\" \
             height=\"{height}\"/>"
        );
        let left = STRIP - 10.0;
        text_at(
            &mut out,
            left,
            TOP + 10.0,
            "mono end",
            &grouped(memory.start),
        );
        text_at(
            &mut out,
            left,
            TOP + height,
            "mono end",
            &grouped(memory.end),
        );
        let middle = STRIP + STRIP_WIDTH / 2.0;
        text_at(
            &mut out,
            middle,
            TOP + height + 18.0,
            "soft mid",
            "to scale",
        );
    }
    for (index, part) in parts.iter().enumerate() {
        row(&mut out, part, TOP + ROW * index as f64);
    }
    legend(&mut out, TOP + height + 56.0);
    out.push_str("</svg>\n");
    out
}

/// The layout as a self-contained HTML page: the picture, then every fact as text.
pub fn html(description: &Description) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>IGVM image {}</title>\n<style>:root{{color-scheme:\
         light dark}}body{{margin:2rem auto;max-width:1120px;font-family:system-ui,sans-serif}}\
         svg{{max-width:100%;height:auto}}pre{{overflow-x:auto;font-size:12px}}</style>\n\
         {}<h2>Contents</h2>\n<pre>{}</pre>\n</html>\n",
        &description.sha256[..12],
        svg(description),
        escape(&description.to_string())
    )
}

/// A piece of the strip and the band that leads to its row.
fn strip_piece(out: &mut String, part: &Part, from: f64, to: f64, row: f64) {
    let class = Class::of(part.component).style();
    let (left, right) = (STRIP + STRIP_WIDTH, ROWS);
    let middle = (left + right) / 2.0;
    let (top, bottom) = (row + 3.0, row + ROW - 3.0);
    let tall = (to - from).max(0.75);
    let _ = writeln!(
        out,
        "<rect class=\"{class} piece\" x=\"{STRIP}\" y=\"{from:.2}\" width=\"{STRIP_WIDTH}\" \
         height=\"{tall:.2}\"><title>{} {}</title></rect>\n<path class=\"{class} link\" \
         d=\"M{left} {from:.2}C{middle} {from:.2} {middle} {top} {right} {top}V{bottom}C{middle} \
         {bottom} {middle} {to:.2} {left} {to:.2}Z\"/>",
        part.component, part.range
    );
}

/// The row of a part.
fn row(out: &mut String, part: &Part, y: f64) {
    let class = Class::of(part.component).style();
    let base = y + 20.0;
    let bottom = y + ROW;
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{ROWS}\" y=\"{}\" width=\"14\" height=\"{}\" rx=\"3\"/>\n\
         <line class=\"rule\" x1=\"{ROWS}\" x2=\"{}\" y1=\"{bottom}\" y2=\"{bottom}\"/>",
        y + 3.0,
        ROW - 6.0,
        WIDTH - 40.0
    );
    text_at(out, ROWS + 26.0, base, "name", part.component.name());
    text_at(out, ROWS + 180.0, base, "mono", &grouped(part.range.start));
    let size = human_size(part.range.size());
    text_at(out, ROWS + 370.0, base, "end", &size);
    let what = match part.source {
        Source::Measured => format!(
            "measured · {} with data, {} zero",
            pages(part.data_pages),
            part.zero_pages
        ),
        Source::Unmeasured => format!("unmeasured · {} with data", pages(part.data_pages)),
        Source::Host => "filled by the host, unmeasured".into(),
        Source::Absent => "not in the file".into(),
    };
    text_at(out, ROWS + 396.0, base, "soft", &what);
}

fn pages(count: u64) -> String {
    format!("{count} page{}", if count == 1 { "" } else { "s" })
}

fn legend(out: &mut String, y: f64) {
    let mut x = 40.0;
    for class in Class::ALL {
        let _ = writeln!(
            out,
            "<rect class=\"{}\" x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\" rx=\"3\"/>",
            class.style(),
            y - 12.0
        );
        text_at(out, x + 22.0, y, "soft", class.label());
        x += 48.0 + 7.2 * class.label().len() as f64;
    }
}

fn text_at(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{text}</text>"
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_grouped_by_four_digits() {
        assert_eq!(grouped(0), "0x0000_0000");
        assert_eq!(grouped(0x0820_0000), "0x0820_0000");
        assert_eq!(grouped(0x1_2345_6789), "0x1_2345_6789");
    }

    #[test]
    fn text_in_a_picture_cannot_become_markup() {
        assert_eq!(
            escape("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}

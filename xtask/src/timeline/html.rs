//! The timeline as one HTML page: a picture, and a table with the exact values.
//!
//! The page needs nothing but itself: no script, no font, no style sheet from elsewhere.
//! The picture is SVG, colours follow the reader's light or dark setting, hovering over a
//! mark shows its value, and the table below says the same in text.

use super::BootTimeline;
use super::Milestone;
use crate::run::ms;
use std::fmt::Write as _;
use std::time::Duration;

/// Geometry of the picture, in units of its view box.
const WIDTH: f64 = 1000.0;
const LABELS: f64 = 130.0;
const RIGHT: f64 = 20.0;
const LANE: f64 = 34.0;
const BAR: f64 = 14.0;
const AXIS: f64 = 26.0;

/// The colours of lanes repeat after so many.
const COLOURS: usize = 7;

/// Lines that an axis should have, about.
const GRID: f64 = 8.0;

const STYLE: &str = "\
:root { color-scheme: light dark;
  --back: #ffffff; --text: #1c1e21; --faint: #d8dce2; --soft: #5d6570;
  --c0: #3566c0; --c1: #1f7a8c; --c2: #7a5195; --c3: #b25000; --c4: #2e7d32; --c5: #b0305f; --c6: #6b5b00; }
@media (prefers-color-scheme: dark) { :root {
  --back: #16181c; --text: #e6e8eb; --faint: #33383f; --soft: #9aa3ad;
  --c0: #7ea6f0; --c1: #5cc4d6; --c2: #c39ae0; --c3: #f0a050; --c4: #7fcf86; --c5: #f080a8; --c6: #d8c24a; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--text); font-size: 12px; } svg .tick { fill: var(--soft); font-size: 11px; }
svg .grid { stroke: var(--faint); } svg .mark { stroke: var(--back); stroke-width: 1.5; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--faint); }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
p, td.soft { color: var(--soft); }
";

/// A part of the time, drawn over the whole width.
struct Panel {
    from: Duration,
    to: Duration,
}

/// The page.
pub(super) fn page(timeline: &BootTimeline, title: &str) -> String {
    let title = escape(title);
    let end = timeline.end();
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n\
         <p>Milliseconds after the start of QEMU's process; {:.3} ms in all. \
         Hover over a mark for its exact time.</p>\n",
        ms(end)
    );
    let whole = Panel {
        from: Duration::ZERO,
        to: end,
    };
    whole.draw(&mut page, timeline, "The whole boot");
    // Most milestones are in the last tenth, where the whole picture cannot tell them apart.
    if let Some(from) = usermode(timeline)
        && from < end
    {
        let detail = Panel { from, to: end };
        detail.draw(&mut page, timeline, "From PID 1 on");
    }
    table(&mut page, timeline);
    page += "</body>\n</html>\n";
    page
}

/// When usermode began.
fn usermode(timeline: &BootTimeline) -> Option<Duration> {
    let mut milestones = timeline.milestones.iter();
    Some(milestones.find(|m| m.process == "underhill_init")?.at)
}

impl Panel {
    fn draw(&self, page: &mut String, timeline: &BootTimeline, title: &str) {
        let all = timeline.processes();
        let lanes: Vec<(usize, &str, Vec<&Milestone>)> = all
            .iter()
            .enumerate()
            .map(|(colour, process)| {
                let marks = timeline.milestones.iter();
                let marks = marks.filter(|m| m.process == *process && self.shows(m.at));
                (colour % COLOURS, *process, marks.collect())
            })
            .filter(|(_, _, marks): &(_, _, Vec<_>)| !marks.is_empty())
            .collect();
        let height = lanes.len() as f64 * LANE + AXIS;
        let _ = write!(
            page,
            "<h2>{title}</h2>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n"
        );
        self.draw_axis(page, height);
        for (row, (colour, process, marks)) in lanes.iter().enumerate() {
            let middle = (row as f64 + 0.5) * LANE;
            self.draw_lead(page, timeline, middle, *colour, marks);
            draw_lane(self, page, middle, *colour, process, marks);
        }
        *page += "</svg>\n";
    }

    fn draw_axis(&self, page: &mut String, height: f64) {
        let bottom = height - AXIS;
        let step = grid_step(ms(self.to - self.from));
        let mut tick = (ms(self.from) / step).ceil();
        while tick * step <= ms(self.to) {
            let value = tick * step;
            let x = self.x(value);
            let _ = writeln!(
                page,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
                bottom + 16.0
            );
            tick += 1.0;
        }
    }

    /// A fainter bar for the time from whatever came before to the first mark: what this
    /// process, or its start, needed to reach it.
    fn draw_lead(
        &self,
        page: &mut String,
        timeline: &BootTimeline,
        middle: f64,
        colour: usize,
        marks: &[&Milestone],
    ) {
        let Some(first) = marks.first() else { return };
        let earlier = timeline.milestones.iter().rev();
        let before = earlier.map(|m| m.at).find(|at| *at < first.at);
        let Some(before) = before.filter(|at| self.shows(*at)) else {
            return;
        };
        let (left, right) = (self.x(ms(before)), self.x(ms(first.at)));
        let _ = writeln!(
            page,
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" \
             fill=\"var(--c{colour})\" fill-opacity=\"0.15\"><title>{:.3} ms to {}: {}</title></rect>",
            middle - BAR / 4.0,
            right - left,
            BAR / 2.0,
            ms(first.at - before),
            escape(&first.process),
            escape(&first.name),
        );
    }

    fn shows(&self, at: Duration) -> bool {
        (self.from..=self.to).contains(&at)
    }

    /// Where a time in milliseconds is.
    fn x(&self, ms_at: f64) -> f64 {
        let length = ms(self.to - self.from).max(f64::MIN_POSITIVE);
        LABELS + (ms_at - ms(self.from)) / length * (WIDTH - LABELS - RIGHT)
    }
}

fn draw_lane(
    panel: &Panel,
    page: &mut String,
    middle: f64,
    colour: usize,
    process: &str,
    marks: &[&Milestone],
) {
    let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
        return;
    };
    let (left, right) = (panel.x(ms(first.at)), panel.x(ms(last.at)));
    let process = escape(process);
    let _ = writeln!(
        page,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{process}</text>",
        LABELS - 12.0,
        middle + 4.0
    );
    let _ = writeln!(
        page,
        "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"3\" \
         fill=\"var(--c{colour})\" fill-opacity=\"0.35\"><title>{process}: {:.3} ms, from {:.3} to {:.3}</title></rect>",
        middle - BAR / 2.0,
        (right - left).max(2.0),
        ms(last.at - first.at),
        ms(first.at),
        ms(last.at),
    );
    for mark in marks {
        let _ = writeln!(
            page,
            "<circle class=\"mark\" cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"5\" fill=\"var(--c{colour})\">\
             <title>{process}: {}, {:.3} ms</title></circle>",
            panel.x(ms(mark.at)),
            escape(&mark.name),
            ms(mark.at)
        );
    }
}

fn table(page: &mut String, timeline: &BootTimeline) {
    *page += "<h2>Exact values</h2>\n<table>\n<thead><tr><th class=\"n\">ms</th>\
              <th class=\"n\">since the one before</th><th>process</th><th>milestone</th>\
              <th>clock</th></tr></thead>\n<tbody>\n";
    let mut before = Duration::ZERO;
    for milestone in &timeline.milestones {
        let _ = writeln!(
            page,
            "<tr><td class=\"n\">{:.3}</td><td class=\"n\">{:.3}</td><td>{}</td><td>{}</td>\
             <td class=\"soft\">{}</td></tr>",
            ms(milestone.at),
            ms(milestone.at - before),
            escape(&milestone.process),
            escape(&milestone.name),
            milestone.clock.name()
        );
        before = milestone.at;
    }
    *page += "</tbody>\n</table>\n";
    if timeline.dropped != 0 {
        let _ = writeln!(page, "<p>{} more are not shown.</p>", timeline.dropped);
    }
    *page += "<p>Clock \"guest\": stamped by the machine itself, in reference time. \
              Clock \"host\": when a line or an answer arrived here.</p>\n";
}

/// Distance of the axis' lines: 1, 2 or 5 times a power of ten.
fn grid_step(length: f64) -> f64 {
    let rough = (length / GRID).max(1e-3);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= rough)
        .unwrap_or(10.0);
    factor * power
}

/// Text that stays text wherever it stands in the page. Characters that XML does not have
/// are replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            // They would turn the text around them, also that of others.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::tests::boot;
    use super::super::tests::stamp;
    use super::*;
    use proptest::prelude::*;

    fn timeline() -> BootTimeline {
        boot(vec![
            stamp("linux", "start_kernel", 20),
            stamp("openvmm_hcl", "worker started", 960),
            stamp("underhill_vm", "ready", 1000),
        ])
    }

    /// Whether every element is closed in order, every attribute is quoted, and no `&`
    /// stands for nothing: what an XML parser would say.
    fn check_well_formed(page: &str) -> Result<(), String> {
        let body = page.strip_prefix("<!DOCTYPE html>\n").ok_or("no doctype")?;
        let mut open: Vec<&str> = Vec::new();
        let mut rest = body;
        while let Some(at) = rest.find(['<', '&', '>']) {
            let tail = &rest[at..];
            if tail.starts_with('>') {
                return Err(format!("stray >: {}", &tail[..tail.len().min(40)]));
            }
            if tail.starts_with('&') {
                let end = tail.find(';').filter(|end| *end < 8);
                let entity = end.ok_or_else(|| "an & without ;".to_owned())?;
                rest = &tail[entity + 1..];
                continue;
            }
            let end = tail.find('>').ok_or("an unclosed tag")?;
            let tag = &tail[1..end];
            rest = &tail[end + 1..];
            if tag.matches('"').count() % 2 != 0 || tag.contains('<') {
                return Err(format!("a broken attribute in <{tag}>"));
            }
            let name = tag.split([' ', '/']).find(|word| !word.is_empty());
            let name = name.ok_or("a tag without a name")?;
            if tag.starts_with('/') {
                if open.pop() != Some(name) {
                    return Err(format!("</{name}> closes {open:?}"));
                }
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        match open.is_empty() {
            true => Ok(()),
            false => Err(format!("never closed: {open:?}")),
        }
    }

    #[test]
    fn the_page_is_well_formed_and_has_every_milestone_in_picture_and_table() {
        let timeline = timeline();
        let page = page(&timeline, "Boot");
        check_well_formed(&page).unwrap();
        for milestone in &timeline.milestones {
            let Milestone {
                process, name, at, ..
            } = milestone;
            let (process, name) = (escape(process), escape(name));
            let hover = format!("<title>{process}: {name}, {:.3} ms</title>", ms(*at));
            assert!(page.contains(&hover), "{hover} is not in the picture");
            let row = format!("<td>{process}</td><td>{name}</td>");
            assert!(page.contains(&row), "{row} is not in the table");
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_knows_light_and_dark() {
        let page = page(&timeline(), "Boot");
        for outside in [
            "http:", "https:", "//", "url(", "@import", "<script", "src=", "href=",
        ] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn hostile_names_stay_text() {
        let name = "</title><script>alert(1)</script>\"'&\u{202e}\u{0}";
        let timeline = boot(vec![stamp(name, name, 5)]);
        let page = page(&timeline, name);
        check_well_formed(&page).unwrap();
        assert!(!page.contains("<script"));
        assert!(!page.contains('\u{202e}') && !page.contains('\u{0}'));
        assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(1)"));
    }

    #[test]
    fn an_empty_timeline_is_a_page_too() {
        let timeline = BootTimeline {
            milestones: Vec::new(),
            dropped: 0,
        };
        check_well_formed(&page(&timeline, "nothing")).unwrap();
    }

    #[test]
    fn grid_lines_are_at_round_numbers_and_few() {
        for length in [0.002, 0.7, 3.0, 47.0, 1250.0, 99_999.0, 1e15] {
            let step = grid_step(length);
            let lines = length / step;
            assert!((1.0..=10.0).contains(&lines), "{lines} lines for {length}");
        }
    }

    #[test]
    fn the_check_of_these_tests_finds_what_is_broken() {
        for broken in [
            "<p>",
            "<p></b>",
            "<p>a & b</p>",
            "<p x=\"a></p>",
            "<p>></p>",
            "<b><i></b></i>",
        ] {
            let page = format!("<!DOCTYPE html>\n{broken}");
            assert!(check_well_formed(&page).is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_names_the_page_is_well_formed(
            names in prop::collection::vec((".*", ".*", 0u64..u64::MAX / 1_000_000), 0..20),
        ) {
            let stamps = names.iter().map(|(process, name, at)| stamp(process, name, *at));
            let page = page(&boot(stamps.collect()), "t");
            prop_assert_eq!(check_well_formed(&page), Ok(()));
        }
    }
}

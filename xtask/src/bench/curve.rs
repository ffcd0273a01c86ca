//! A curve over the number of processors, as a picture.

use std::fmt::Write as _;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 3] = ["#c0392b", "#2471a3", "#7f8c8d"];

/// Lines in one picture.
#[derive(Debug)]
pub(super) struct Curve {
    /// What is measured.
    pub(super) title: String,
    /// The lines.
    pub(super) lines: Vec<Line>,
}

/// A line.
#[derive(Debug)]
pub(super) struct Line {
    /// What it stands for.
    pub(super) name: String,
    /// Processors, a power of two, and milliseconds.
    pub(super) points: Vec<(u32, f64)>,
}

impl Curve {
    /// The picture.
    pub(super) fn to_svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let most = points().map(|point| point.0).max().unwrap_or(1).max(2);
        let longest = points().map(|point| point.1).fold(0.0, f64::max);
        // Whole seconds, and at least one.
        let top = (longest / 1000.0).ceil().max(1.0);
        let x = |vps: u32| {
            LEFT + f64::from(vps).log2() / f64::from(most).log2() * (WIDTH - LEFT - RIGHT)
        };
        let y = |ms: f64| HEIGHT - BOTTOM - ms / 1000.0 / top * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"14\">{}</text>\n",
            self.title
        );
        for second in 0..=top as u32 {
            let at = y(f64::from(second) * 1000.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{second} s</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0
            );
        }
        let mut vps = 1;
        while vps <= most {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{vps}</text>",
                x(vps),
                HEIGHT - BOTTOM + 18.0
            );
            vps *= 2;
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">virtual processors</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 12.0
        );
        for ((line, colour), row) in self.lines.iter().zip(COLOURS).zip(0_u32..) {
            let path: Vec<_> = line
                .points
                .iter()
                .map(|(vps, ms)| format!("{:.1} {:.1}", x(*vps), y(*ms)))
                .collect();
            let _ = writeln!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join("L")
            );
            for point in &path {
                let (x, y) = point.split_once(' ').unwrap_or_default();
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let at = TOP + 14.0 + 18.0 * f64::from(row);
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>",
                LEFT + 14.0,
                line.name
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_is_below_the_top_and_the_most_processors_at_the_right() {
        let curve = Curve {
            title: "time".to_owned(),
            lines: vec![Line {
                name: "a line".to_owned(),
                points: vec![(1, 1000.0), (64, 2000.0)],
            }],
        };
        let svg = curve.to_svg();
        assert!(
            svg.contains(&format!("L{:.1} {TOP:.1}\"", WIDTH - RIGHT)),
            "{svg}"
        );
        assert!(svg.contains("a line") && svg.ends_with("</svg>\n"));
    }
}

//! A measured value, its limit and its baseline.

use anyhow::Context as _;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// One value divided by another.
    Ratio,
    /// Bytes.
    Bytes,
    /// Lines of source.
    Lines,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// Stable name, the key in the baseline.
    pub(crate) name: String,
    /// What was measured, for people.
    pub(crate) what: String,
    /// The value.
    pub(crate) value: f64,
    /// What it counts.
    pub(crate) unit: Unit,
    /// The value must not be above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<f64>,
    /// What the committed baseline says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<f64>,
}

/// All figures of a bench.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

/// Values of an earlier run.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Baseline(BTreeMap<String, f64>);

impl Figure {
    pub(crate) fn new(name: &str, what: &str, unit: Unit, value: f64) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            value,
            unit,
            limit: None,
            baseline: None,
        }
    }

    pub(crate) fn at_most(mut self, limit: f64) -> Self {
        self.limit = Some(limit);
        self
    }

    fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.value > limit)
    }

    fn verdict(&self) -> &'static str {
        match (self.limit, self.is_over()) {
            (None, _) => "",
            (Some(_), false) => "PASS",
            (Some(_), true) => "over",
        }
    }
}

impl Report {
    pub(crate) fn push(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub(crate) fn compare(&mut self, baseline: &Baseline) {
        for figure in &mut self.figures {
            figure.baseline = baseline.0.get(&figure.name).copied();
        }
    }

    pub(crate) fn baseline(&self) -> Baseline {
        // Three digits after the point: more would change with every run.
        let rounded = |value: f64| (value * 1e3).round() / 1e3;
        Baseline(
            self.figures
                .iter()
                .map(|figure| (figure.name.clone(), rounded(figure.value)))
                .collect(),
        )
    }

    pub(crate) fn over(&self) -> Vec<&str> {
        self.figures
            .iter()
            .filter(|figure| figure.is_over())
            .map(|figure| figure.name.as_str())
            .collect()
    }
}

impl Baseline {
    /// Reads the file; without one nothing is compared.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Ms => format!("{value:.1} ms"),
            Self::Us => format!("{value:.1} us"),
            Self::Ratio => format!("{value:.2} x"),
            Self::Bytes => format!("{:.2} MiB", value / f64::from(1 << 20)),
            Self::Lines => format!("{value:.0} lines"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<58}{:>12}{:>14}{:>8}{:>14}",
            "figure", "value", "limit", "", "baseline"
        )?;
        for figure in &self.figures {
            let show = |value: Option<f64>| value.map_or(String::new(), |v| figure.unit.show(v));
            let line = format!(
                "{:<58}{:>12}{:>14}{:>8}{:>14}",
                figure.what,
                figure.unit.show(figure.value),
                show(figure.limit),
                figure.verdict(),
                show(figure.baseline),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The middle value; the mean of the two middle ones if their number is even. 0 for none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// Milliseconds as figures count them.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_round_does_not_move_the_median() {
        assert_eq!(median([3.0, 1.0, 900.0, 2.0, 4.0]), 3.0);
        assert_eq!(median([1.0, 3.0]), 2.0);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn a_figure_over_its_limit_is_named() {
        let mut report = Report::default();
        report.push(Figure::new("a", "A", Unit::Ratio, 1.5).at_most(1.5));
        report.push(Figure::new("b", "B", Unit::Ms, 16.0).at_most(15.0));
        report.push(Figure::new("c", "C", Unit::Bytes, 1e9));
        assert_eq!(report.over(), ["b"]);
        let text = report.to_string();
        assert!(text.contains("PASS") && text.contains("over"), "{text}");
    }

    #[test]
    fn a_saved_baseline_is_found_again() {
        let mut report = Report::default();
        report.push(Figure::new("a", "A", Unit::Ms, 1.23456));
        let saved = serde_json::to_string(&report.baseline()).unwrap();
        assert_eq!(saved, r#"{"a":1.235}"#);
        report.compare(&serde_json::from_str(&saved).unwrap());
        assert_eq!(report.figures[0].baseline, Some(1.235));
    }
}

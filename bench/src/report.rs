//! Figures and how they are shown.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured; stable, for comparing runs.
    pub name: String,
    /// The figure; `None` when it could not be taken here (the note says why).
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// What it has to reach, if anything.
    pub bar: Option<Bar>,
    /// Whether it does; `None` without a bar or without a value.
    pub ok: Option<bool>,
    /// What a reader must know.
    pub note: String,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Row {
    /// A figure without a bar.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value: Some(value),
            unit,
            bar: None,
            ok: None,
            note: String::new(),
        }
    }

    /// A figure that could not be taken, and why.
    pub fn missing(name: impl Into<String>, unit: &'static str, why: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: None,
            unit,
            bar: None,
            ok: None,
            note: why.into(),
        }
    }

    /// With a bar to reach.
    pub fn bar(mut self, bar: Bar) -> Self {
        self.ok = self.value.map(|value| bar.holds(value));
        self.bar = Some(bar);
        self
    }

    /// With a note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// The rows of all benchmarks of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Named>,
}

#[derive(Debug, Serialize)]
struct Named {
    bench: &'static str,
    #[serde(flatten)]
    row: Row,
}

impl Report {
    /// Adds the rows of a benchmark.
    pub fn add(&mut self, bench: &'static str, rows: Vec<Row>) {
        self.rows
            .extend(rows.into_iter().map(|row| Named { bench, row }));
    }

    /// Names of the rows that miss their bar.
    pub fn missed(&self) -> Vec<String> {
        let missed = self.rows.iter().filter(|named| named.row.ok == Some(false));
        missed
            .map(|named| format!("{} {}", named.bench, named.row.name))
            .collect()
    }

    /// For programs.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// For people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["bench", "name", "value", "unit", "bar", "ok", "note"]);
        for Named { bench, row } in &self.rows {
            let ok = match row.ok {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            table.add_row([
                (*bench).to_owned(),
                row.name.clone(),
                row.value.map_or_else(|| "–".to_owned(), number),
                row.unit.to_owned(),
                row.bar.map_or_else(String::new, |bar| bar.to_string()),
                ok.to_owned(),
                row.note.clone(),
            ]);
        }
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_measured_miss_is_missed() {
        let mut report = Report::default();
        let bar = Bar::AtMost(1.05);
        report.add(
            "x",
            vec![
                Row::new("good", 1.05, "×").bar(bar),
                Row::new("bad", 1.06, "×").bar(bar),
                Row::missing("absent", "×", "no peer").bar(bar),
                Row::new("plain", 9.0, "µs"),
            ],
        );
        assert_eq!(report.missed(), ["x bad"]);
        let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(json["rows"][1]["ok"], false);
        assert_eq!(json["rows"][1]["bar"]["at_most"], 1.05);
        assert!(report.table().to_string().contains("no peer"));
    }
}

//! What the tests of the steps share: a step over a few rows.

use pt_data::{Columns, Origin, Row, layout};
use serde_json::{Value, json};

use crate::catalogue;
use crate::item::{Decision, Item};
use crate::report::Summary;
use crate::source;
use crate::step::Given;

/// A step with its options.
pub(crate) struct Harness {
    name: String,
    options: toml::Table,
    given: Given,
}

/// What came of the rows.
pub(crate) struct Outcome {
    /// The rows that went on, by their number.
    pub(crate) kept: Vec<usize>,
    pub(crate) decisions: Vec<Decision>,
    pub(crate) summary: Summary,
}

impl Outcome {
    /// The evidence of each row that was dropped, changed or flagged.
    pub(crate) fn details(&self) -> Vec<&str> {
        let detail = |decision| match decision {
            &Decision::Drop { ref detail, .. }
            | &Decision::Change { ref detail, .. }
            | &Decision::Replace { ref detail, .. }
            | &Decision::Flag { ref detail, .. } => Some(detail.as_str()),
            Decision::Keep | Decision::Note(_) => None,
        };
        self.decisions.iter().filter_map(detail).collect()
    }

    /// The reason of a row, if it has one.
    pub(crate) fn reason(&self, row: usize) -> Option<&'static str> {
        match &self.decisions[row] {
            Decision::Drop { reason, .. }
            | Decision::Change { reason, .. }
            | Decision::Replace { reason, .. }
            | Decision::Flag { reason, .. } => Some(reason),
            Decision::Keep | Decision::Note(_) => None,
        }
    }

    /// The columns of a row that was changed.
    pub(crate) fn changed(&self, row: usize) -> Value {
        match &self.decisions[row] {
            Decision::Change { value, .. } => Value::Object(value.clone()),
            other => panic!("row {row} was not changed: {other:?}"),
        }
    }
}

impl Harness {
    pub(crate) fn new(name: &str, options: &str) -> Self {
        Harness { name: name.to_owned(), options: options.parse().unwrap(), given: Given::default() }
    }

    pub(crate) fn given(mut self, given: Given) -> Self {
        self.given = given;
        self
    }

    /// Why a step with these options is refused.
    pub(crate) fn refusal(name: &str, options: &str) -> String {
        let built = catalogue::build(name, &options.parse().unwrap(), &Given::default());
        built.err().unwrap_or_else(|| panic!("`{name}` accepts {options}")).to_string()
    }

    fn try_run(&self, rows: &[Value]) -> Result<Outcome, crate::CurateError> {
        let mut step = catalogue::build(&self.name, &self.options, &self.given)?;
        let items: Vec<Item> = rows.iter().enumerate().map(|(i, row)| item(i, row)).collect();
        if step.needs_survey() {
            for item in items.chunks(3) {
                step.survey_chunk(item)?;
            }
            step.finish_survey();
        }
        let mut decisions = Vec::new();
        for items in items.chunks(2) {
            decisions.extend(step.decide_chunk(items)?);
        }
        let kept = (0..rows.len()).filter(|i| !matches!(decisions[*i], Decision::Drop { .. })).collect();
        Ok(Outcome { kept, decisions, summary: step.summary() })
    }

    pub(crate) fn run(&self, rows: &[Value]) -> Outcome {
        self.try_run(rows).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn error(&self, rows: &[Value]) -> String {
        self.try_run(rows).err().expect("an error").to_string()
    }
}

/// A row as an item, its layout recognised where it has one.
pub(crate) fn item(i: usize, row: &Value) -> Item {
    let row =
        Row { origin: Origin::new("test.jsonl", i + 1), value: row.as_object().expect("a row").clone() };
    let layout = layout::recognise(&row).map_or(source::COLUMNS, |layout| layout.name);
    let view = source::view(&row, layout).unwrap();
    Item { row, view, layout, input_idx: 0, row_idx: i as u64, notes: Columns::new() }
}

pub(crate) fn text(text: &str) -> Value {
    json!({ "text": text })
}

pub(crate) fn text_with(text: &str, column: &str, value: f64) -> Value {
    json!({ "text": text, column: value })
}

pub(crate) fn prompt(prompt: &str, completion: &str) -> Value {
    json!({ "prompt": prompt, "completion": completion })
}

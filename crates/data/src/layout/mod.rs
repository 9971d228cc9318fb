//! Dataset layouts: which columns mean what, one file per layout, all in [`LAYOUTS`].
//!
//! A layout fits a row when its columns are there with values of the right type. When several fit, the
//! one whose columns include the others' wins (`prompt`, `completion`, `label` over `prompt`,
//! `completion`); if there is none, the row is ambiguous and that is an error. Columns that are null are
//! treated as absent. What a layout does not use is kept in [`Record::extra`].
//!
//! Adding one: a file with a `LAYOUT`, one line in [`LAYOUTS`]; the tests below then run over its example.

mod alpaca;
mod alpaca_kto;
mod alpaca_preference;
mod code_tests;
mod dolly;
mod fields;
mod hh_rlhf;
mod input_output;
mod input_target;
mod math_shepherd;
mod messages;
mod messages_kto;
mod ms_swift;
mod orca_preference;
mod preference;
mod preference_implicit;
mod prm800k;
mod problem_solution;
mod prompt_completion;
mod prompt_only;
mod question_answer;
mod ranked_completions;
mod rlvr;
mod self_instruct;
mod sharegpt;
mod sharegpt_kto;
mod sharegpt_preference;
mod stepwise;
mod text;
mod tokenised;
mod ultrafeedback;
mod unpaired;
mod verl;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::DataError;
use crate::message::Problem;
use crate::read::kind;
use crate::record::{Body, Record};
use crate::row::{Columns, Origin, Row};
use fields::Fields;

/// One way of laying out examples in columns.
pub struct Layout {
    /// The name in recipes and messages.
    pub name: &'static str,
    /// One line: what it is and where it comes from.
    pub summary: &'static str,
    /// The columns it needs.
    pub columns: &'static [&'static str],
    /// Columns that may stand beside them and mean something (or nothing) to it.
    pub optional: &'static [&'static str],
    /// A row of it, as JSON.
    pub example: &'static str,
    /// Whether the values of the needed columns, all present, have the right types.
    fits: fn(&Columns) -> bool,
    /// Takes its columns out of the row; one row may give several examples.
    convert: fn(&mut Fields) -> Result<Vec<Body>, Problem>,
}

/// Every layout, simplest first.
pub const LAYOUTS: &[Layout] = &[
    text::LAYOUT,
    messages::LAYOUT,
    prompt_only::LAYOUT,
    prompt_completion::LAYOUT,
    preference::LAYOUT,
    preference_implicit::LAYOUT,
    unpaired::LAYOUT,
    stepwise::LAYOUT,
    tokenised::LAYOUT,
    alpaca::LAYOUT,
    alpaca_preference::LAYOUT,
    alpaca_kto::LAYOUT,
    sharegpt::LAYOUT,
    sharegpt_preference::LAYOUT,
    sharegpt_kto::LAYOUT,
    messages_kto::LAYOUT,
    input_output::LAYOUT,
    hh_rlhf::LAYOUT,
    ultrafeedback::LAYOUT,
    orca_preference::LAYOUT,
    ms_swift::REJECTED_RESPONSE,
    ms_swift::REJECTED_MESSAGES,
    ranked_completions::LAYOUT,
    rlvr::LAYOUT,
    verl::LAYOUT,
    question_answer::LAYOUT,
    problem_solution::LAYOUT,
    input_target::LAYOUT,
    code_tests::LAYOUT,
    self_instruct::LAYOUT,
    dolly::LAYOUT,
    math_shepherd::LAYOUT,
    prm800k::LAYOUT,
];

/// New names for columns: canonical name to the name in the file, as in
/// `columns = { prompt = "question", ground_truth = "reward.answer" }` (a dot reaches into an object).
pub type ColumnMap = BTreeMap<String, String>;

/// The layout called `name`.
///
/// # Errors
/// When there is none; the message has the nearest.
pub fn by_name(name: &str) -> Result<&'static Layout, DataError> {
    LAYOUTS.iter().find(|layout| layout.name == name).ok_or_else(|| {
        let names: Vec<&str> = LAYOUTS.iter().map(|layout| layout.name).collect();
        DataError::UnknownLayout { name: name.to_owned(), hint: pt_core::suggest::hint(name, &names) }
    })
}

/// The one layout that fits `row`.
///
/// # Errors
/// When none fits (with the nearest ones and what they lack), or several do.
pub fn recognise(row: &Row) -> Result<&'static Layout, DataError> {
    let value = without_nulls(&row.value);
    let fitting: Vec<&Layout> = LAYOUTS.iter().filter(|layout| layout.accepts(&value)).collect();
    let winner = fitting.iter().find(|a| fitting.iter().all(|b| a.name == b.name || a.dominates(b)));
    match (winner, fitting.as_slice()) {
        (Some(winner), _) => Ok(winner),
        (None, []) => Err(DataError::NoLayout {
            origin: row.origin.clone(),
            columns: describe(&row.value),
            hint: nearest(&value),
        }),
        (None, several) => Err(DataError::AmbiguousLayout {
            origin: row.origin.clone(),
            columns: describe(&row.value),
            layouts: several.iter().map(|layout| format!("`{}`", layout.name)).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The one layout of `rows` (a sample from the beginning of a source, or all of it).
///
/// # Errors
/// When a row's layout is not clear, when two rows differ, or there are no rows.
pub fn recognise_all(rows: &[Row]) -> Result<&'static Layout, DataError> {
    let mut found: Option<(&Row, &'static Layout)> = None;
    for row in rows {
        let layout = recognise(row)?;
        match found {
            None => found = Some((row, layout)),
            Some((_, first)) if first.name == layout.name => {}
            Some((first_row, first)) => {
                return Err(DataError::MixedLayouts {
                    first_origin: first_row.origin.clone(),
                    first: first.name,
                    second_origin: row.origin.clone(),
                    second: layout.name,
                });
            }
        }
    }
    found.map(|(_, layout)| layout).ok_or_else(|| DataError::Empty {
        file: std::path::PathBuf::new(),
        detail: "there is no row to recognise a layout by",
    })
}

/// Renames columns; with an empty map the row is unchanged.
///
/// # Errors
/// When a column is absent, or the new name is taken by a column that keeps it.
pub fn rename(row: &mut Row, map: &ColumnMap) -> Result<(), DataError> {
    let fail = |origin: &Origin, from: &str, to: &str, detail: String| DataError::Rename {
        origin: origin.clone(),
        from: from.to_owned(),
        to: to.to_owned(),
        detail,
    };
    let mut moved = Columns::new();
    for (to, from) in map {
        let value = match row.value.get(from) {
            Some(value) => value.clone(),
            None => reach(&row.value, from).cloned().ok_or_else(|| {
                let names: Vec<&str> = row.value.keys().map(String::as_str).collect();
                fail(
                    &row.origin,
                    from,
                    to,
                    format!("there is no such column; {}", pt_core::suggest::hint(from, &names)),
                )
            })?,
        };
        moved.insert(to.clone(), value);
    }
    for from in map.values() {
        row.value.remove(from);
    }
    for (to, value) in moved {
        if row.value.contains_key(&to) {
            let from = map.get(&to).map_or("", String::as_str);
            return Err(fail(
                &row.origin,
                from,
                &to,
                format!("the row already has a column `{to}`; rename that one too"),
            ));
        }
        row.value.insert(to, value);
    }
    Ok(())
}

impl Layout {
    /// The examples in `row`. A column that is null counts as absent.
    ///
    /// # Errors
    /// When a column does not hold what the layout wants; the message names it.
    pub fn convert(&self, row: Row) -> Result<Vec<Record>, DataError> {
        let Row { origin, mut value } = row;
        value.retain(|_, value| !value.is_null());
        let problem = |problem: Problem| DataError::BadColumn {
            origin: origin.clone(),
            layout: self.name,
            column: problem.column,
            expected: problem.expected,
            found: problem.found,
        };
        let mut fields = Fields::new(value);
        fields.refuse_media().map_err(problem)?;
        let tools = fields.take_tools().map_err(problem)?;
        let kwargs = fields.take_object("chat_template_kwargs").map_err(problem)?;
        let bodies = (self.convert)(&mut fields).map_err(problem)?;
        let extra = fields.into_extra();
        let records = bodies.into_iter().map(|body| Record {
            body,
            tools: tools.clone(),
            chat_template_kwargs: kwargs.clone(),
            extra: extra.clone(),
            origin: origin.clone(),
        });
        Ok(records.collect())
    }

    fn accepts(&self, row: &Columns) -> bool {
        self.columns.iter().all(|column| row.contains_key(*column)) && (self.fits)(row)
    }

    /// Whether this layout explains every column that `other` needs.
    fn dominates(&self, other: &Layout) -> bool {
        let explains = |column: &&str| self.columns.contains(column) || self.optional.contains(column);
        other.columns.iter().all(explains)
            && !self.columns.iter().all(|c| other.columns.contains(c) || other.optional.contains(c))
    }
}

fn without_nulls(row: &Columns) -> Cow<'_, Columns> {
    if row.values().all(|value| !value.is_null()) {
        return Cow::Borrowed(row);
    }
    let mut row = row.clone();
    row.retain(|_, value| !value.is_null());
    Cow::Owned(row)
}

fn reach<'a>(row: &'a Columns, path: &str) -> Option<&'a Value> {
    let (first, rest) = path.split_once('.')?;
    rest.split('.').try_fold(row.get(first)?, |value, key| value.get(key))
}

/// `prompt` (a string), `label` (a boolean) ...
fn describe(row: &Columns) -> String {
    if row.is_empty() {
        return "(none)".to_owned();
    }
    row.iter().map(|(key, value)| format!("`{key}` ({})", kind(value))).collect::<Vec<_>>().join(", ")
}

/// The layouts that share most columns with the row, and what each is missing.
fn nearest(row: &Columns) -> String {
    let mut near: Vec<(usize, usize, &Layout)> = LAYOUTS
        .iter()
        .map(|layout| {
            let n_present = layout.columns.iter().filter(|column| row.contains_key(**column)).count();
            (layout.columns.len() - n_present, n_present, layout)
        })
        .filter(|(_, n_present, _)| *n_present > 0)
        .collect();
    near.sort_by_key(|(n_missing, n_present, _)| (*n_missing, usize::MAX - n_present));
    if near.is_empty() {
        return "No column has a name that a layout knows".to_owned();
    }
    let said = near.iter().take(3).map(|(n_missing, _, layout)| match n_missing {
        0 => format!("`{}` has these columns, but {}", layout.name, why_not(layout, row)),
        _ => {
            let missing = layout.columns.iter().filter(|column| !row.contains_key(**column));
            let missing = missing.map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
            format!("`{}` also needs {missing}", layout.name)
        }
    });
    format!("Nearest: {}", said.collect::<Vec<_>>().join("; "))
}

fn why_not(layout: &Layout, row: &Columns) -> String {
    match (layout.convert)(&mut Fields::new(row.clone())) {
        Err(problem) => format!("`{}` must be {}, not {}", problem.column, problem.expected, problem.found),
        Ok(_) => format!("not with these types; an example is {}", layout.example),
    }
}

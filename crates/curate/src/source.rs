//! Inputs as a stream of items.

use pt_data::layout::{self, Layout};
use pt_data::read::{self, ReadOptions, TextUnit};
use pt_data::{DataError, Origin, Row};
use pt_tasks::GeneratedSource;

use crate::config::Input;
use crate::error::CurateError;
use crate::item::Item;
use crate::view::View;

/// Rows by which a layout is recognised.
const SAMPLE_ROWS: usize = 256;
/// The layout of rows whose layout does not matter.
pub(crate) const COLUMNS: &str = "columns";

pub(crate) type Rows = Box<dyn Iterator<Item = Result<Row, DataError>>>;

/// The rows of an input, columns renamed.
pub(crate) fn open(input: &Input, base: &ReadOptions) -> Result<Rows, CurateError> {
    let mut options = base.clone();
    options.format = input.format.or(options.format);
    options.split = input.split.clone().unwrap_or(options.split);
    options.subset = input.subset.clone().or(options.subset);
    options.text_unit = match input.text_unit.as_deref() {
        None => options.text_unit,
        Some("line") => TextUnit::Line,
        Some("file") => TextUnit::File,
        Some(separator) => TextUnit::Separator(separator.to_owned()),
    };
    let rows: Rows = match GeneratedSource::is_generated(&input.source) {
        true => generated(&input.source)?,
        false => Box::new(read::open(&input.source, &options)?),
    };
    let columns = input.columns.clone();
    let renamed = rows.map(move |row| {
        let mut row = row?;
        layout::rename(&mut row, &columns)?;
        Ok(row)
    });
    Ok(Box::new(renamed.take(input.limit.unwrap_or(usize::MAX))))
}

fn generated(source: &str) -> Result<Rows, CurateError> {
    let config = |problem: String| CurateError::Config { place: source.to_owned(), problem };
    let made = GeneratedSource::parse(source).map_err(|error| config(error.to_string()))?;
    let rows: Vec<Row> = made
        .rows()
        .map_err(|error| config(error.to_string()))?
        .enumerate()
        .map(|(i, value)| Row { origin: Origin::new(source, i + 1), value })
        .collect();
    Ok(Box::new(rows.into_iter().map(Ok)))
}

/// The name of the layout of rows from the beginning of an input.
pub(crate) fn layout_of(input: &Input, rows: &[Row]) -> Result<&'static str, DataError> {
    match input.layout.as_deref() {
        Some(COLUMNS) => Ok(COLUMNS),
        Some(name) => Ok(layout::by_name(name)?.name),
        None => Ok(layout::recognise_all(&rows[..rows.len().min(SAMPLE_ROWS)])?.name),
    }
}

/// What the steps read of a row.
pub(crate) fn view(row: &Row, layout: &'static str) -> Result<View, DataError> {
    match layout {
        COLUMNS => Ok(View::of_columns(&row.value)),
        name => View::of(row, layout::by_name(name)?),
    }
}

/// The layout and view of a row that a step made.
pub(crate) fn view_of_new(row: &Row) -> (&'static str, View) {
    let recognised: Option<(&'static Layout, View)> =
        layout::recognise(row).ok().and_then(|layout| Some((layout, View::of(row, layout).ok()?)));
    match recognised {
        Some((layout, view)) => (layout.name, view),
        None => (COLUMNS, View::of_columns(&row.value)),
    }
}

/// All items of an input at once, for sets that are small (evaluation sets). Rows without a layout are taken as columns.
pub(crate) fn read_small(source: &str, base: &ReadOptions) -> Result<Vec<Item>, CurateError> {
    let input = Input { source: source.to_owned(), ..Input::default() };
    let rows: Vec<Row> = open(&input, base)?.collect::<Result<_, _>>()?;
    let layout = layout_of(&input, &rows).unwrap_or(COLUMNS);
    let items = rows.into_iter().enumerate().map(|(i, row)| {
        let view = view(&row, layout).unwrap_or_else(|_| View::of_columns(&row.value));
        Item { row, view, input_idx: 0, row_idx: i as u64, layout, notes: Default::default() }
    });
    Ok(items.collect())
}

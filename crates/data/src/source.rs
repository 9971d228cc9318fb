//! From a location to records: read, rename columns, recognise the layout, convert.

use serde::Deserialize;

use crate::error::DataError;
use crate::layout::{self, ColumnMap, Layout};
use crate::parallel::{map_ordered, try_map_ordered};
use crate::read::{self, ReadOptions};
use crate::record::Record;
use crate::row::Row;

/// How the columns of a source are understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayoutOptions {
    /// The layout by name; left out, it is recognised and must be clear.
    pub layout: Option<String>,
    /// New names for columns, given before the layout is recognised.
    pub columns: ColumnMap,
}

/// The records of a source.
pub struct Loaded {
    /// The layout that was recognised or named.
    pub layout: &'static Layout,
    /// The records, in row order.
    pub records: Vec<Record>,
    /// Rows read; some layouts give several records per row.
    pub n_rows: usize,
}

/// Reads and converts everything at `location`, on all cores, in order.
///
/// Every row is recognised, not only the first: a source whose rows differ in layout is an error.
///
/// # Errors
/// The first error by row order.
pub fn load(location: &str, read: &ReadOptions, options: &LayoutOptions) -> Result<Loaded, DataError> {
    let named = options.layout.as_deref().map(layout::by_name).transpose()?;
    let renamed = |row: Result<Row, DataError>| {
        let mut row = row?;
        layout::rename(&mut row, &options.columns)?;
        Ok(row)
    };
    let rows: Vec<Row> =
        map_ordered(read::open(location, read)?, renamed).collect::<Result<_, DataError>>()?;
    let n_rows = rows.len();
    let layout = match named {
        Some(layout) => layout,
        None => layout::recognise_all(&rows)?,
    };
    let records = try_map_ordered(rows, |row| layout.convert(row))?;
    Ok(Loaded { layout, records: records.into_iter().flatten().collect(), n_rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheKey, TokenisedRow};
    use crate::record::{Body, Content};

    fn load_text(text: &str, options: &str) -> Result<Loaded, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, text).unwrap();
        let options: LayoutOptions = serde_json::from_str(options).unwrap();
        load(path.to_str().unwrap(), &ReadOptions::default(), &options).map_err(|error| error.to_string())
    }

    #[test]
    fn sources_are_loaded_by_their_own_or_a_given_layout() {
        let qa = "{\"q\":\"1+1?\",\"a\":\"2\"}\n{\"q\":\"2+2?\",\"a\":\"4\"}\n";
        let loaded = load_text(qa, r#"{"columns": {"prompt": "q", "completion": "a"}}"#).unwrap();
        assert_eq!((loaded.layout.name, loaded.records.len(), loaded.n_rows), ("prompt_completion", 2, 2));
        let tests = "{\"text\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}";
        assert!(load_text(tests, "{}").err().unwrap().contains("several layouts"));
        assert_eq!(load_text(tests, r#"{"layout": "text"}"#).unwrap().layout.name, "text");
        assert!(load_text(tests, r#"{"layout": "txt"}"#).err().unwrap().contains("did you mean `text`"));
    }

    #[test]
    fn the_first_bad_row_is_the_one_reported() {
        let cases = [
            ("{\"text\":\"a\"}\n{\"text\":1}\n{oops\n", "x.jsonl:3:2: invalid JSON"),
            ("{\"text\":\"a\"}\n{\"text\":1}\n{\"text\":2}\n", "x.jsonl:2: no known layout"),
            ("{\"text\":\"a\"}\n{\"prompt\":\"b\"}\n", "x.jsonl:2: this row is `prompt_only`"),
        ];
        for (text, expected) in cases {
            let error = load_text(text, "{}").err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// The whole path with a stand-in for the tokenizer: one token per byte, prompts not trained.
    #[test]
    fn real_rows_go_from_file_to_steps() {
        use crate::batches::{BatchOptions, Batches, Packing, StepSize};
        use crate::mix::Mixture;

        let Some(data) = pt_core::testdata::shared_data() else { return };
        let location = data.join("gsm8k/test.jsonl.gz").display().to_string();
        let read = ReadOptions::default();
        let tokenise = |record: Record| {
            let Body::PromptCompletion {
                prompt: Content::Text(prompt),
                completion: Content::Text(completion),
            } = record.body
            else {
                return Err(DataError::row(&record.origin, "not a plain prompt and completion"));
            };
            let token_ids = prompt.bytes().chain(completion.bytes()).map(u32::from).collect();
            let train_weights = prompt.bytes().map(|_| 0.0).chain(completion.bytes().map(|_| 1.0)).collect();
            Ok(TokenisedRow { token_ids, train_weights, origin: record.origin })
        };
        let dir = tempfile::tempdir().unwrap();
        let hash = read::content_hash(&location, &read).unwrap();
        let key = CacheKey::new([hash.as_str(), "bytes"]);
        let (cache, _) = Cache::open_or_build(dir.path(), &key, || {
            let loaded = load(&location, &read, &LayoutOptions::default())?;
            Ok(map_ordered(loaded.records, tokenise))
        })
        .unwrap();
        assert_eq!(cache.n_rows(), 1319);
        let lengths = cache.lengths();
        let order = Mixture::single(cache.n_rows(), 1).unwrap().order(0);
        let ordered = order.iter().map(|at| lengths[at.row_idx]).collect();
        let options =
            BatchOptions { tokens_per_micro_batch: 8192, step: StepSize::Rows(32), packing: Packing::Bfd };
        let batches = Batches::new(ordered, options).unwrap();
        assert_eq!(batches.n_steps(), 1319usize.div_ceil(32));
        assert_eq!(batches.steps_from(0).map(|step| step.n_tokens).sum::<usize>(), cache.n_tokens());
    }
}

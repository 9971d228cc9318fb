//! Tests of the readers: formats as data, places of errors, folders, real files, mutations.

use std::fs;
use std::io::Write;

use proptest::prelude::*;
use pt_core::rng::Stream;
use serde_json::{Value, json};

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reads `bytes` as a file called `name`: each row as (line, JSON), or the message of the first error
/// with the folder taken off.
fn read_with(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<Vec<(usize, String)>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let prefix = format!("{}/", dir.path().display());
    let rows: Result<Vec<Row>, DataError> = open_file(&path, options).and_then(|rows| rows.collect());
    rows.map(|rows| {
        rows.into_iter().map(|row| (row.origin.line, Value::Object(row.value).to_string())).collect()
    })
    .map_err(|error| error.to_string().replace(&prefix, ""))
}

fn check(name: &str, bytes: impl AsRef<[u8]>, expected: &[(usize, &str)]) {
    let rows = read_with(name, bytes.as_ref(), &ReadOptions::default());
    let rows = rows.unwrap_or_else(|error| panic!("{name}: {error}"));
    let rows: Vec<(usize, &str)> = rows.iter().map(|(line, text)| (*line, text.as_str())).collect();
    assert_eq!(rows, expected, "{name}");
}

fn check_error(name: &str, bytes: impl AsRef<[u8]>, expected: &str) {
    check_error_with(name, bytes, &ReadOptions::default(), expected);
}

fn check_error_with(name: &str, bytes: impl AsRef<[u8]>, options: &ReadOptions, expected: &str) {
    let error = read_with(name, bytes.as_ref(), options).unwrap_err();
    assert!(error.contains(expected), "{name}: expected `{expected}` in\n  {error}");
}

const AB: &[(usize, &str)] = &[(1, r#"{"a":1}"#), (2, r#"{"a":2}"#)];

#[test]
fn every_format_gives_rows_with_their_lines() {
    check("x.jsonl", "{\"a\":1}\n{\"a\":2}\n", AB);
    check("x.jsonl", "{\"a\":1}\r\n{\"a\":2}", AB);
    check("x.jsonl", "\u{feff}{\"a\":1}\n{\"a\":2}", AB);
    check("x.jsonl", "{\"a\":1}\n\n  \n{\"a\":2}\n", &[(1, r#"{"a":1}"#), (4, r#"{"a":2}"#)]);
    check("x.jsonl", "[{\"a\":1}, {\"a\":2}]", AB);
    check("x.json", "[\n {\"a\":1}\n ,\n {\"a\":2}\n]\n", AB);
    check("x.json", "\u{feff}[{\"a\":1},{\"a\":2}]", AB);
    check(
        "x.json",
        r#"[{"a":"]}\"[,"}, {"a":[{}, []]}]"#,
        &[(1, r#"{"a":"]}\"[,"}"#), (2, r#"{"a":[{},[]]}"#)],
    );
    check("x.json", "{\"a\":1}\n{\"a\":2}\n", AB);
    check("x.json", r#"{"canary": "c", "examples": [{"a":1}, {"a":2}]}"#, AB);
    check(
        "x.json",
        "{\"messages\": [{\"role\": \"user\"}],\n \"n\": 1}",
        &[(1, r#"{"messages":[{"role":"user"}],"n":1}"#)],
    );
    check(
        "x.csv",
        "a,b\n1,\"x\n\"\"y\"\"\"\n2,\n",
        &[(2, r#"{"a":"1","b":"x\n\"y\""}"#), (4, r#"{"a":"2","b":""}"#)],
    );
    check("x.tsv", "\u{feff}a\tb\r\n1\t2,3\r\n", &[(2, r#"{"a":"1","b":"2,3"}"#)]);
    check("x.txt", "one\r\n\ntwo", &[(1, r#"{"text":"one"}"#), (3, r#"{"text":"two"}"#)]);
    check("x.jsonl.gz", gzip(b"{\"a\":1}\n{\"a\":2}\n"), AB);
    check("gzip-under-a-plain-name.jsonl", gzip(b"{\"a\":1}\n{\"a\":2}\n"), AB);
    check("x.jsonl.zst", zstd::encode_all(&b"{\"a\":1}\n{\"a\":2}\n"[..], 1).unwrap(), AB);
    check("no-extension", "[{\"a\":1},{\"a\":2}]", AB);
    check("two-members.jsonl.gz", [gzip(b"{\"a\":1}\n"), gzip(b"{\"a\":2}\n")].concat(), AB);
}

#[test]
fn text_is_cut_as_asked() {
    let cut = |unit: TextUnit| {
        let options = ReadOptions { text_unit: unit, ..ReadOptions::default() };
        read_with("x.txt", b"a\nb\n<|end|>\nc<|end|>\n", &options).unwrap()
    };
    let rows = |rows: &[(usize, &str)]| {
        rows.iter().map(|(n, t)| (*n, json!({"text": t}).to_string())).collect::<Vec<_>>()
    };
    assert_eq!(cut(TextUnit::Separator("<|end|>".to_owned())), rows(&[(1, "a\nb"), (2, "c")]));
    assert_eq!(cut(TextUnit::File), rows(&[(1, "a\nb\n<|end|>\nc<|end|>\n")]));
    assert_eq!(cut(TextUnit::Line), rows(&[(1, "a"), (2, "b"), (3, "<|end|>"), (4, "c<|end|>")]));
}

#[test]
fn errors_name_the_place_and_the_way_out() {
    check_error(
        "x.jsonl",
        "{\"a\":1}\n{\"a\":1,}\n",
        "x.jsonl:2:8: invalid JSON: trailing comma; remove the comma",
    );
    check_error("x.json", "[\n{\"a\":1},\n]", "x.json:2:8: invalid JSON: trailing comma; remove the comma");
    check_error("x.json", "[{\"a\":1},\n {\"a\":\n  tru}]", "x.json:3:6: invalid JSON: expected ident");
    check_error("x.json", "[{\"a\":1}\n {\"a\":2}]", "x.json:2:2: invalid JSON: expected `,` or `]`");
    check_error("x.json", "[{\"a\":1}, {\"a\"", "x.json:1:14: invalid JSON: EOF while parsing");
    check_error("x.json", "[{\"a\":1}", "x.json:1:9: invalid JSON: the array is cut off");
    check_error("x.json", "[{\"a\":1}] x", "x.json:1:11: invalid JSON: something follows");
    check_error("x.json", "hello", "x.json:1:1: invalid JSON: expected `[` or `{`");
    check_error(
        "x.jsonl",
        "{\"a\":1}\n{\"b\":1,\"c\":{\"d\":1,\"d\":2}}",
        "x.jsonl:2:21: invalid JSON: key `d` appears twice",
    );
    check_error("x.jsonl", "{\"a\": NaN}", "`NaN` is not JSON (Python writes it)");
    check_error("x.jsonl", "{\"a\": -Infinity}", "`Infinity` is not JSON");
    check_error("x.jsonl", "{'a': 1}", "JSON strings take double quotes");
    check_error("x.jsonl", "{\"a\": 1} {\"a\": 2}", "exactly one object per line");
    check_error("x.jsonl", "{\n \"a\": 1\n}", "spans several lines");
    check_error(
        "x.jsonl",
        "{\"a\":1}\n[1]\n",
        "x.jsonl:2: expected an object with named columns, found a list",
    );
    check_error("x.jsonl", "{\"a\": 1e999}", "number out of range");
    check_error(
        "x.jsonl",
        b"{\"a\":1}\n{\"a\":\"\xff\"}\n",
        "x.jsonl:2: byte 14 of the file is not UTF-8 (0xff)",
    );
    check_error("x.json", b"[{\"a\":\"\xfe\"}]", "x.json:1: byte 7 of the file is not UTF-8 (0xfe)");
    check_error("x.txt", b"ok\n\xe9t\xe9\n", "x.txt:2: byte 3 of the file is not UTF-8 (0xe9)");
    check_error("x.csv", b"a\n\xe9\n", "x.csv:2: byte 2 of the file is not UTF-8");
    for name in ["x.jsonl", "x.json", "x.csv", "x.txt", "x"] {
        check_error(name, "", "no rows");
        check_error(name, "\n\n", "no rows");
    }
    check_error("x.json", "[]", "x.json: no rows");
    check_error("x.csv", "a,b\n", "no rows");
    check_error("x.csv", "a,b\n1\n", "x.csv:2: 1 fields where the header has 2");
    check_error("x.csv", "a,a\n1,2\n", "the header names column `a` twice");
    check_error("x.csv", "a,b\n1,\"2\n3,4\n", "x.csv:2: a quote opened in this record is never closed");
    check_error("x", "hello", "x: cannot tell the format");
    check_error(
        "x.json",
        r#"{"train": [{"a":1}], "test": [{"a":2}]}"#,
        "several lists of rows: `train`, `test`; set `rows_key`",
    );
    let key = ReadOptions { rows_key: Some("tset".to_owned()), ..ReadOptions::default() };
    check_error_with("x.json", r#"{"train": [{"a":1}]}"#, &key, "no key `tset`");
    let cut = &gzip(&b"{\"a\":1}\n".repeat(50_000))[..120];
    check_error("x.jsonl.gz", cut, "the gzip stream is truncated or damaged");
    let cut = &zstd::encode_all(&b"{\"a\":1}\n".repeat(50_000)[..], 1).unwrap()[..30];
    check_error("x.jsonl.zst", cut, "the zstd stream is truncated or damaged");
}

#[test]
fn a_bad_line_does_not_hide_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    fs::write(&path, "{\"a\":1}\n{oops\n\n{\"a\":2}\n\u{1}\n").unwrap();
    let oks: Vec<bool> = open_file(&path, &ReadOptions::default()).unwrap().map(|row| row.is_ok()).collect();
    assert_eq!(oks, [true, false, true, false]);
}

#[test]
fn the_bound_on_a_row_holds_everywhere() {
    let options = ReadOptions { max_record_bytes: 100_000, ..ReadOptions::default() };
    let long = "x".repeat(300_000);
    let row = format!("{{\"a\": \"{long}\"}}");
    check_error_with(
        "x.jsonl",
        format!("{{\"a\":1}}\n{row}"),
        &options,
        "x.jsonl:2: longer than 100000 bytes",
    );
    check_error_with("x.json", format!("[{row}]"), &options, "x.json:1: longer than 100000 bytes");
    check_error_with("x.txt", &long, &options, "x.txt:1: longer than 100000 bytes");
    check_error_with("x.csv", format!("a\n\"{long}\"\n"), &options, "x.csv:2: longer than 100000 bytes");
    check_error_with("x.jsonl.gz", gzip(row.as_bytes()), &options, "longer than 100000 bytes");
    let fits = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000 - 8));
    assert_eq!(fits.len(), 100_000);
    assert_eq!(read_with("x.jsonl", format!("{fits}\n").as_bytes(), &options).unwrap().len(), 1);
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    check_error("x.jsonl", &deep, "recursion limit");
    check_error("x.json", format!("[{deep}]"), "recursion limit");
}

#[test]
fn unreadable_places_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let find = |location: &str| locate(location, &ReadOptions::default()).map_err(|error| error.to_string());
    let missing = dir.path().join("absent.jsonl").display().to_string();
    assert!(find(&missing).unwrap_err().contains("no such file"));
    assert!(
        find(&format!("{}/*.jsonl", dir.path().display()))
            .unwrap_err()
            .contains("the pattern matches no file")
    );
    assert!(find(&dir.path().display().to_string()).unwrap_err().contains("the folder holds no jsonl"));
    assert!(find("org/name").unwrap_err().contains("no hub cache folder is set"));
    let error = open_file(dir.path(), &ReadOptions { format: Some(Format::Jsonl), ..ReadOptions::default() });
    assert!(error.err().unwrap().to_string().contains("cannot read as a file"));
}

#[test]
fn folders_patterns_and_the_hub_cache_are_searched() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let put = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{\"a\":1}\n").unwrap();
    };
    let hub = "home/hub/datasets--org--name/snapshots/abc";
    for path in [
        "mlx/train.jsonl",
        "mlx/valid.jsonl",
        "mlx/test.jsonl.gz",
        "mlx/README.md",
        "mlx/train_extra.jsonl",
        "mlx/.hidden/train.jsonl",
        "plain/one.jsonl",
        "plain/two.jsonl",
        "plain/dataset_info.json",
        "words/my-train-set.jsonl",
        "words/my-validation-set.jsonl",
        "home/hub/datasets--org--name/snapshots/old/data/train.jsonl",
    ] {
        put(path);
    }
    for path in [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
        "dataset_infos.json",
    ] {
        put(&format!("{hub}/{path}"));
    }
    for path in ["main/train.jsonl", "main/test.jsonl", "socratic/train.jsonl"] {
        put(&format!("configs/{path}"));
    }
    fs::create_dir_all(root.join("home/hub/datasets--org--name/refs")).unwrap();
    fs::write(root.join("home/hub/datasets--org--name/refs/main"), "abc\n").unwrap();

    let check = |location: &str, split: &str, subset: Option<&str>, expected: Result<&[&str], &str>| {
        let options = ReadOptions {
            split: split.to_owned(),
            subset: subset.map(str::to_owned),
            hf_home: Some(root.join("home")),
            ..ReadOptions::default()
        };
        let under = root.join(location);
        let location =
            if location.starts_with("org/") { location.to_owned() } else { under.display().to_string() };
        let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        match (locate(&location, &options), expected) {
            (Ok(files), Ok(expected)) => assert_eq!(files.iter().map(relative).collect::<Vec<_>>(), expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (found, _) => panic!("{location} {split}: {found:?}"),
        }
    };
    check("mlx", "train", None, Ok(&["mlx/train.jsonl"]));
    check("mlx", "validation", None, Ok(&["mlx/valid.jsonl"]));
    check("mlx", "dev", None, Ok(&["mlx/valid.jsonl"]));
    check("mlx/test.jsonl.gz", "train", None, Ok(&["mlx/test.jsonl.gz"]));
    check("mlx/t*.jsonl", "train", None, Ok(&["mlx/train.jsonl", "mlx/train_extra.jsonl"]));
    check("plain", "train", None, Ok(&["plain/one.jsonl", "plain/two.jsonl"]));
    check("plain", "test", None, Err("no data file of split `test`; found: one.jsonl, two.jsonl"));
    check("words", "valid", None, Ok(&["words/my-validation-set.jsonl"]));
    check("configs", "train", None, Err("several configurations: main, socratic; set `subset`"));
    check("configs", "train", Some("socratic"), Ok(&["configs/socratic/train.jsonl"]));
    check("configs", "test", None, Ok(&["configs/main/test.jsonl"]));
    let shards = [0, 1].map(|n| format!("{hub}/data/train-0000{n}-of-00002.parquet"));
    check("org/name", "train", None, Ok(&[&shards[0], &shards[1]]));
    check("org/name", "test", None, Ok(&[&format!("{hub}/data/test-00000-of-00001.parquet")]));
    check("org/other", "train", None, Err("run `hf download --repo-type dataset org/other`"));
}

/// A Parquet file with a string, a number, and a list of structs, some of them null.
fn parquet_bytes() -> Vec<u8> {
    use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    let schema = "message row {
        required binary id (UTF8);
        optional double score;
        optional group messages (LIST) { repeated group list { optional group element {
            optional binary role (UTF8);
            optional binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties =
        Arc::new(WriterProperties::builder().set_compression(::parquet::basic::Compression::SNAPPY).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let text = |items: &[&str]| items.iter().map(|item| ByteArray::from(*item)).collect::<Vec<_>>();
    let mut column = 0;
    while let Some(mut next) = group.next_column().unwrap() {
        match column {
            0 => next.typed::<ByteArrayType>().write_batch(&text(&["r1", "r2", "r3"]), None, None).unwrap(),
            1 => next.typed::<DoubleType>().write_batch(&[0.5, f64::NAN], Some(&[1, 0, 1]), None).unwrap(),
            // r1 has two messages, r2 none (null), r3 one whose content is null.
            2 => next
                .typed::<ByteArrayType>()
                .write_batch(&text(&["user", "assistant", "user"]), Some(&[4, 4, 0, 4]), Some(&[0, 1, 0, 0]))
                .unwrap(),
            _ => next
                .typed::<ByteArrayType>()
                .write_batch(&text(&["Hi", "Hello"]), Some(&[4, 4, 0, 3]), Some(&[0, 1, 0, 0]))
                .unwrap(),
        };
        next.close().unwrap();
        column += 1;
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn parquet_rows_are_json() {
    let expected: &[(usize, &str)] = &[
        (
            1,
            r#"{"id":"r1","score":0.5,"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#,
        ),
        (2, r#"{"id":"r2","score":null,"messages":null}"#),
        (3, r#"{"id":"r3","score":null,"messages":[{"role":"user"}]}"#),
    ];
    check("x.parquet", parquet_bytes(), expected);
    check("no-extension", parquet_bytes(), expected);
    check_error("x.parquet", "PAR1 not really", "x.parquet: Parquet:");
    check_error("x.parquet", &parquet_bytes()[..100], "x.parquet: Parquet:");
}

#[test]
fn real_files_have_their_known_rows() {
    let Some(data) = pt_core::testdata::shared_data() else { return };
    let cases = [
        ("mmlu/dev.csv.gz", 285),
        ("mmlu/val.csv.gz", 1531),
        ("truthfulqa/TruthfulQA.csv.gz", 813),
        ("truthfulqa/TruthfulQATest.csv", 4),
        ("aqua/test.json", 254),
        ("reasoning-gym/rush_18k.txt.gz", 18_068),
        ("self-instruct/predictions/*.jsonl.gz", 1008),
        ("mt-bench/mt_bench/question.jsonl", 80),
        ("gsm8k", 7473),
        ("bbh/*.json*", 4865),
        ("bbh/code-davinci-002-cot", 750),
    ];
    for (path, n) in cases {
        let rows = read_all(&data.join(path).display().to_string(), &ReadOptions::default());
        assert_eq!(rows.map(|rows| rows.len()).map_err(|e| e.to_string()), Ok(n), "{path}");
    }
}

/// Every format under thousands of small damages: any result will do, a panic or a hang will not.
#[test]
fn mutated_files_never_panic() {
    let jsonl = b"{\"prompt\": \"caf\xc3\xa9 \\u00e9\", \"n\": [1, -2.5e3, null]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a,\\\"b\\\"\"}]}\n";
    let json = b"[{\"a\": \"x\"}, {\"b\": [1, {\"c\": \"]\"}]}]";
    let csv = b"a,b\n1,\"x\"\"y\"\n3,4\n";
    let cases: Vec<(&str, Vec<u8>, u64)> = vec![
        ("x.jsonl", jsonl.to_vec(), 400),
        ("x.json", json.to_vec(), 400),
        ("y.json", br#"{"data": [{"a": 1}], "n": 2}"#.to_vec(), 300),
        ("x.csv", csv.to_vec(), 400),
        ("x.tsv", b"a\tb\n1\t2\n".to_vec(), 200),
        ("x.txt", b"a\r\nb<|e|>\nc".to_vec(), 100),
        ("x", json.to_vec(), 200),
        ("x.jsonl.gz", gzip(jsonl), 300),
        ("x.jsonl.zst", zstd::encode_all(&jsonl[..], 1).unwrap(), 300),
    ];
    let dir = tempfile::tempdir().unwrap();
    let options = ReadOptions { max_record_bytes: 10_000, ..ReadOptions::default() };
    for (name, seed_bytes, n) in cases {
        let path = dir.path().join(name);
        for round in 0..n {
            let bytes = mutate(&seed_bytes, name, round);
            fs::write(&path, &bytes).unwrap();
            if let Ok(rows) = open_file(&path, &options) {
                // A reader that errs without end would never finish.
                assert!(rows.take(1000).count() < 1000, "{name} round {round}: {bytes:?}");
            }
        }
    }
}

/// One to four flips, insertions, deletions, repeats or a cut.
fn mutate(original: &[u8], name: &str, round: u64) -> Vec<u8> {
    let mut draws = Stream::new(7, &format!("fuzz/{name}")).at(round);
    let mut bytes = original.to_vec();
    for _ in 0..=draws.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = draws.below(bytes.len());
        match draws.below(5) {
            0 => bytes[at] = draws.next_u32() as u8,
            1 => bytes.insert(at, *draws.pick(b"{}[],:\"\\\n\r\t0-\xff\x00")),
            2 => {
                bytes.remove(at);
            }
            3 => {
                let end = at + draws.below(bytes.len() - at);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// The Parquet reader's own panics are turned into errors; this keeps their messages out of the output.
#[test]
fn mutated_parquet_is_rows_or_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let original = parquet_bytes();
    let mut n_errors = 0;
    for round in 0..300 {
        fs::write(&path, mutate(&original, "x.parquet", round)).unwrap();
        match open_file(&path, &ReadOptions::default()) {
            Err(_) => n_errors += 1,
            Ok(rows) => n_errors += usize::from(rows.take(1000).any(|row| row.is_err())),
        }
    }
    assert!(n_errors > 100, "{n_errors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_serde_writes_is_read_back(texts in prop::collection::vec(any::<String>(), 1..8), as_array: bool, compress: bool) {
        let rows: Vec<Value> = texts.iter().map(|text| json!({"a": text, text.as_str(): [text, {"b": 1}]})).collect();
        let bytes = match as_array {
            true => serde_json::to_vec_pretty(&rows).unwrap(),
            false => rows.iter().flat_map(|row| format!("{row}\n").into_bytes()).collect(),
        };
        let bytes = if compress { gzip(&bytes) } else { bytes };
        let read = read_with(if as_array { "x.json" } else { "x.jsonl" }, &bytes, &ReadOptions::default()).unwrap();
        let expected: Vec<(usize, String)> = rows.iter().enumerate().map(|(i, row)| (i + 1, row.to_string())).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn csv_fields_survive(fields in prop::collection::vec(any::<String>(), 2)) {
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record(["a", "b"]).unwrap();
        writer.write_record(&fields).unwrap();
        let read = read_with("x.csv", &writer.into_inner().unwrap(), &ReadOptions::default()).unwrap();
        prop_assert_eq!(&read[0].1, &json!({"a": fields[0], "b": fields[1]}).to_string());
    }

    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for name in ["x.jsonl", "x.json", "x.csv", "x.txt", "x"] {
            let _ = read_with(name, &bytes, &ReadOptions::default());
        }
    }
}

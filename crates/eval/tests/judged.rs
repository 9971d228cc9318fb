//! Benchmarks with a judge, programs in the sandbox, and the gate, on the smallest real model and given replies.

use std::path::Path;

use pt_core::testdata::shared_data;
use pt_engine::Dtype;
use pt_eval::results::{self, FORMAT};
use pt_eval::{Company, FailOn, GateOptions, Judge, Results, Sample, Settings, Subject, gate, prepare};
use pt_models::Model;
use pt_text::Tokenizer;
use serde_json::{Map, Value};

/// Says what is written for it; keeps nothing.
struct Scripted(fn(&str) -> String);

impl Judge for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn ask_all(&self, conversations: &[Vec<Map<String, Value>>]) -> pt_eval::Result<Vec<String>> {
        let last = |messages: &Vec<Map<String, Value>>| {
            (self.0)(messages.last().and_then(|m| m["content"].as_str()).expect("a judge is shown something"))
        };
        Ok(conversations.iter().map(last).collect())
    }
}

fn stories(data: &Path) -> (Model, Tokenizer) {
    let folder = data.join("stories260K");
    let model = pt_models::llama2c::import(&folder.join("stories260K.bin"), Dtype::F32).unwrap();
    (model, Tokenizer::from_llama2c(&folder.join("tok512.bin")).unwrap())
}

fn subject<'m>(name: &'m str, model: &'m Model, tokenizer: &'m Tokenizer) -> Subject<'m> {
    let stop_token_ids = tokenizer.eos_ids();
    Subject { name, model, dtype: Dtype::F32, tokenizer, template: None, stop_token_ids }
}

fn settings(data: &Path) -> Settings {
    Settings {
        data_dir: Some(data.to_owned()),
        limit: Some(8),
        max_new_tokens: Some(8),
        ..Settings::greedy()
    }
}

#[test]
fn judges_rate_both_turns_and_both_orders() {
    let Some(data) = shared_data() else { return };
    let (model, tokenizer) = stories(&data);
    let subject = subject("ours", &model, &tokenizer);
    let settings = settings(&data);
    // Second turns show both questions; reference answers are shown for mathematics.
    let rate = Scripted(|shown| {
        let rating = if shown.contains("### User:") { 4 } else { 8 };
        format!("It is so. Rating: [[{rating}]]")
    });
    let company = Company { settings: &settings, judge: Some(&rate), opponent: None };
    let (result, samples) =
        prepare("mt_bench", &settings).unwrap().measure(&subject, &company, &mut |_, _| {}).unwrap();
    let values: Vec<f64> = result.metrics.iter().map(|metric| metric.value).collect();
    assert_eq!((values, result.n, samples.len()), (vec![6.0, 8.0, 4.0], 8, 8));
    assert_eq!(result.categories.len(), 8, "one of each category");
    assert_eq!(result.asked.judge.as_deref(), Some("scripted"));
    assert_eq!(samples[0].replies.len(), 2);

    // A judge that always prefers the first shown is no judge: all ties.
    let first = Scripted(|_| "[[A]]".to_owned());
    let company = Company { settings: &settings, judge: Some(&first), opponent: Some(&subject) };
    let (result, _) =
        prepare("win_rate", &settings).unwrap().measure(&subject, &company, &mut |_, _| {}).unwrap();
    let values: Vec<f64> = result.metrics.iter().map(|metric| metric.value).collect();
    assert_eq!(values, [0.5, 0.0, 1.0]);

    for (name, says) in [("mt_bench", "--judge"), ("win_rate", "--judge")] {
        let company = Company { settings: &settings, judge: None, opponent: None };
        let prepared = prepare(name, &settings).unwrap();
        let error = prepared.measure(&subject, &company, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn given_replies_are_judged_by_rule() {
    let Some(data) = shared_data() else { return };
    // The published samples: one deletes files, one sleeps, one reads; of the last three one is not indented enough to differ.
    let samples = std::fs::read_to_string(data.join("humaneval-example/example_samples.jsonl")).unwrap();
    let replies: Vec<String> = samples
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["completion"].as_str().unwrap().to_owned())
        .collect();
    let replies: Vec<&str> = replies.iter().map(String::as_str).collect();
    let name = format!("humaneval?timeout_s=2&data={}", data.join("humaneval-example").display());
    let settings = settings(&data);
    let sample = prepare(&name, &settings).unwrap().judge_replies("test/0", &replies).unwrap();
    let reasons: Vec<&String> = sample.replies.iter().map(|reply| &reply.reason).collect();
    // Where nothing isolates programs, none is run and none is judged.
    if !sample.scores.is_empty() {
        assert_eq!(sample.scores["pass@1"], 0.5, "the published pass@1: {reasons:?}");
        assert_eq!(sample.scores["pass@4"], 1.0, "only three are wrong");
    }

    let math = prepare("math500", &settings).unwrap();
    let item = math.items()[0];
    let gold = item.gold.as_str().unwrap().to_owned();
    let sample = math.judge_replies(&item.key, &[&gold, "\\boxed{no such thing}"]).unwrap();
    assert_eq!(sample.scores["acc"], 0.5, "{:?}", sample.replies);

    let ifeval = prepare("ifeval", &settings).unwrap();
    let item = ifeval.items()[0];
    let sample = ifeval.judge_replies(&item.key, &["Yes, no."]).unwrap();
    assert!(sample.scores.contains_key("inst_level_loose_acc"), "{sample:?}");
}

/// Results of a generated task where the replies to the first `n_right` questions are right.
fn write_results(folder: &Path, n_right: usize, seed: u64) {
    let settings = Settings { seed, ..Settings::greedy() };
    let prepared = prepare("generated:mix?n=60", &settings).unwrap();
    let samples: Vec<_> = prepared
        .items()
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let reply = if i < n_right { item.gold.as_str().unwrap_or_default() } else { "I do not know" };
            let mut sample = prepared.judge_replies(&item.key, &[reply]).unwrap();
            // The answer alone does not pass every family's check; what is tested here is the gate.
            sample.scores.insert("acc".to_owned(), f64::from(u8::from(i < n_right)));
            sample
        })
        .collect();
    let company = Company { settings: &settings, judge: None, opponent: None };
    let result = prepared.summarise(&samples, &company);
    let results = Results {
        format: FORMAT,
        posttrain: "test".to_owned(),
        model: "given".to_owned(),
        dtype: "f32".to_owned(),
        benchmarks: vec![result],
    };
    results::write(folder, &results, &[samples]).unwrap();
}

#[test]
fn the_gate_finds_what_was_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, n_right, seed) in [("base", 40, 0), ("same", 40, 0), ("worse", 25, 0), ("other", 40, 7)] {
        write_results(&at(name), n_right, seed);
    }
    let check = |new: &str, max_loss: f64, fail_on, per_category| {
        gate(&at("base"), &at(new), &GateOptions { max_loss, fail_on, per_category })
    };
    let same = check("same", 0.0, FailOn::Point, true).unwrap();
    assert!(same.passes() && same.changes.len() > 3, "{same:?}");
    assert!(!check("same", 0.02, FailOn::Possible, false).unwrap().passes(), "sixty questions prove little");
    let worse = check("worse", 0.02, FailOn::Significant, false).unwrap();
    assert!(!worse.passes());
    let whole = &worse.changes[0];
    assert_eq!((whole.forgotten_gained, whole.n), (Some((15, 0)), 60));
    assert!((whole.loss - 0.25).abs() < 1e-12 && whole.interval95.0 > 0.0, "{whole:?}");
    assert!(check("worse", 0.3, FailOn::Point, false).unwrap().passes());
    assert!(!check("worse", 0.3, FailOn::Point, true).unwrap().passes(), "some category lost more");
    let error = check("other", 0.02, FailOn::Point, false).unwrap_err().to_string();
    assert!(error.contains("seed 0 and 7"), "{error}");
}

#[test]
fn the_gate_does_not_pass_what_was_not_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let change = |name: &str, change: &dyn Fn(&mut Results, &mut Vec<Sample>)| {
        write_results(&at(name), 40, 0);
        let (folder, mut results) = results::read(&at(name)).unwrap();
        let mut samples = results::read_samples(&folder, &results.benchmarks[0]).unwrap();
        change(&mut results, &mut samples);
        let all: Vec<Vec<Sample>> = results.benchmarks.iter().map(|_| samples.clone()).collect();
        results::write(&folder, &results, &all).unwrap();
    };
    let check = |base: &str, new: &str, per_category| {
        gate(&at(base), &at(new), &GateOptions { max_loss: 1.0, fail_on: FailOn::Point, per_category })
    };
    change("base", &|_, _| {});
    change("two", &|results, _| {
        let mut second = results.benchmarks[0].clone();
        second.benchmark = "second".to_owned();
        second.samples_file = "samples/second.jsonl".to_owned();
        results.benchmarks.push(second);
    });
    // The new results may have more, not less.
    let more = check("base", "two", false).unwrap();
    assert!(more.passes() && more.unpaired == ["second"], "{more:?}");
    let less = check("two", "base", false).unwrap();
    assert!(!less.passes() && less.missing == ["second"], "{less:?}");

    change("none", &|results, samples| {
        results.benchmarks[0].metrics.clear();
        samples.iter_mut().for_each(|sample| sample.scores.clear());
    });
    let none = check("base", "none", false).unwrap();
    assert!(!none.passes() && none.unjudged.len() == 1, "{none:?}");
    let error = check("none", "base", false).unwrap_err().to_string();
    assert!(error.contains("has no scores"), "{error}");

    change("some", &|_, samples| samples[..7].iter_mut().for_each(|sample| sample.scores.clear()));
    let some = check("base", "some", false).unwrap();
    assert!(some.passes() && (some.changes[0].n, some.changes[0].n_lost) == (53, 7), "{some:?}");

    change("category", &|_, samples| {
        let gone = samples[0].category.clone();
        samples.iter_mut().filter(|s| s.category == gone).for_each(|sample| sample.scores.clear());
    });
    assert!(check("base", "category", false).unwrap().passes());
    let category = check("base", "category", true).unwrap();
    assert!(!category.passes() && category.unjudged.len() == 1, "{category:?}");
}

#[test]
fn names_the_data_do_not_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let row = "what,a,b,c,d,A,anatomy\n";
    let header = "question,A,B,C,D,answer,subject\n";
    std::fs::write(dir.path().join("test.csv"), format!("{header}{row}")).unwrap();
    std::fs::write(dir.path().join("navigate.json"), r#"{"examples": [{"input": "a", "target": "b"}]}"#)
        .unwrap();
    let settings =
        Settings { data_dir: Some(dir.path().to_owned()), few_shot: Some(0), ..Settings::greedy() };
    for (name, says) in [
        ("mmlu?subjects=anatmy", Some("`subjects` is `anatmy`")),
        ("mmlu?subjects=anatomy,astronomy", Some("`subjects` is `astronomy`")),
        ("mmlu?subjects=anatomy", None),
        ("bbh?tasks=navigat", Some("did you mean `navigate`")),
        ("bbh?tasks=navigate", None),
    ] {
        match (prepare(name, &settings), says) {
            (Ok(_), None) => {}
            (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{name}: {error}"),
            (Ok(_), Some(_)) => panic!("{name} is accepted"),
            (Err(error), None) => panic!("{name}: {error}"),
        }
    }
    std::fs::write(dir.path().join("blank.jsonl"), "{\"text\": \"\"}\n").unwrap();
    let blank = format!("perplexity?data={}", dir.path().join("blank.jsonl").display());
    let error = prepare(&blank, &settings).err().unwrap().to_string();
    assert!(error.contains("no question is left"), "{error}");
}

#[test]
fn replies_leave_room_for_the_prompt_and_texts_have_the_models_tokens() {
    let Some(data) = shared_data() else { return };
    let (mut model, tokenizer) = stories(&data);
    let prompt =
        pt_eval::subject::Rendered { key: "k".to_owned(), text: "Once upon".to_owned(), is_chat: false };
    let (settings, room) = (settings(&data), model.config.max_positions);
    {
        let subject = subject("ours", &model, &tokenizer);
        let draw = |n| subject.draw(std::slice::from_ref(&prompt), &[], n, &settings, &mut |_, _| {});
        let error = draw(room).unwrap_err().to_string();
        assert!(error.contains("a smaller --max-new-tokens"), "{error}");
        draw(1).unwrap();
        subject.roll(std::slice::from_ref(&prompt), &mut |_, _| {}).unwrap();
    }
    let head = model.arch.head();
    model.params.get_mut(head).shape[0] = 10;
    let subject = subject("ours", &model, &tokenizer);
    let error = subject.roll(&[prompt], &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("outside the model's vocabulary of 10"), "{error}");
}

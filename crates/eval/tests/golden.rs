//! Against lm-evaluation-harness on a small real model: the same prompts byte for byte, the same log-probabilities, replies,
//! marks and means (`golden/eval/eval.py`).

use std::path::{Path, PathBuf};

use pt_core::testdata::{shared_data, workspace_root};
use pt_engine::Dtype;
use pt_eval::results::Sample;
use pt_eval::subject::Rendered;
use pt_eval::{BenchmarkResult, Company, Settings, Subject, prepare};
use pt_models::Model;
use pt_text::Tokenizer;
use serde_json::Value;

/// PyTorch sums in another order; a choice has up to eighty tokens of about 1e-5 each.
const LOGPROB_TOLERANCE: f64 = 2e-3;
/// Of shares that are computed from such log-probabilities.
const SHARE_TOLERANCE: f64 = 1e-3;
/// Of means that are computed from equal marks.
const MEAN_TOLERANCE: f64 = 1e-9;

struct Stories {
    data: PathBuf,
    model: Model,
    tokenizer: Tokenizer,
}

impl Stories {
    fn load() -> Option<Stories> {
        let data = shared_data()?;
        let folder = data.join("stories260K");
        let model = pt_models::llama2c::import(&folder.join("stories260K.bin"), Dtype::F32).unwrap();
        let tokenizer = Tokenizer::from_llama2c(&folder.join("tok512.bin")).unwrap();
        Some(Stories { data, model, tokenizer })
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            name: "stories260K",
            model: &self.model,
            dtype: Dtype::F32,
            tokenizer: &self.tokenizer,
            template: None,
            stop_token_ids: self.tokenizer.eos_ids(),
        }
    }

    fn measure(&self, name: &str, keys: &[String], settings: Settings) -> (BenchmarkResult, Vec<Sample>) {
        let settings = Settings { data_dir: Some(self.data.clone()), ..settings };
        let mut prepared = prepare(name, &settings).unwrap_or_else(|e| panic!("{name}: {e}"));
        prepared.retain(|item| keys.contains(&item.key));
        let company = Company { settings: &settings, judge: None, opponent: None };
        prepared.measure(&self.subject(), &company, &mut |_, _| {}).unwrap()
    }
}

/// Our names of a metric by the harness's filter.
type Metric = fn(&str) -> (&'static str, &'static str);

/// Our name of the harness' task; what a question's key begins with; our name of its metric by filter.
fn ours(task: &str) -> (String, String, Metric) {
    if let Some(task) = task.strip_prefix("bbh_cot_fewshot_") {
        return (format!("bbh?tasks={task}"), format!("{task}/"), |_| ("exact_match", "exact_match"));
    }
    if let Some(subject) = task.strip_prefix("mmlu_") {
        return match subject.strip_suffix("_generative") {
            Some(subject) => {
                (format!("mmlu?mode=generative&subjects={subject}"), format!("{subject}/"), |_| {
                    ("exact_match", "acc")
                })
            }
            None => (format!("mmlu?subjects={subject}"), format!("{subject}/"), |_| ("acc", "acc")),
        };
    }
    match task {
        "truthfulqa_mc1" => ("truthfulqa".to_owned(), String::new(), |_| ("acc", "mc1")),
        "truthfulqa_mc2" => ("truthfulqa".to_owned(), String::new(), |_| ("acc", "mc2")),
        "gsm8k" => ("gsm8k".to_owned(), String::new(), |filter| match filter {
            "strict-match" => ("exact_match", "exact_match_strict"),
            _ => ("exact_match", "exact_match_flexible"),
        }),
        other => panic!("unknown task {other}"),
    }
}

fn crc32(text: &str) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    u64::from(crc.sum())
}

fn golden() -> Value {
    let path: &Path = &workspace_root().join("golden/eval/golden.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn check_sample(expected: &Value, found: &Sample, task: &str) {
    let place = format!("{task}, question {}", found.key);
    assert_eq!(expected["prompt_bytes"], found.prompt.len(), "{place}: {:?}", found.prompt);
    assert_eq!(expected["prompt_crc32"], crc32(&found.prompt), "{place}: {:?}", found.prompt);
    if expected["logprobs"].is_array() {
        check_choices(expected, found, task, &place);
    } else {
        // The harness decodes a reply without what comes before it, and so loses its first space.
        let reply = found.replies[0].text.trim_start();
        assert_eq!(expected["reply"].as_str().unwrap().trim_start(), reply, "{place}");
    }
    let (theirs, ours) = ours(task).2(expected["filter"].as_str().unwrap_or_default());
    let (theirs, ours) = (expected[theirs].as_f64().unwrap(), found.scores[ours]);
    assert!((theirs - ours).abs() < SHARE_TOLERANCE, "{place}: {ours}, expected {theirs}");
}

fn check_choices(expected: &Value, found: &Sample, task: &str, place: &str) {
    let logprobs = floats(&expected["logprobs"]);
    // Ours has the choices of MC1 and then those of MC2 in one question.
    let choices = match task {
        "truthfulqa_mc1" => &found.choices[..logprobs.len()],
        "truthfulqa_mc2" => &found.choices[found.choices.len() - logprobs.len()..],
        _ => &found.choices[..],
    };
    assert_eq!(choices.len(), logprobs.len(), "{place}");
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(expected["choices_crc32"][i], crc32(&choice.text), "{place}: {:?}", choice.text);
        let difference = (choice.logprob - logprobs[i]).abs();
        assert!(difference < LOGPROB_TOLERANCE, "{place}: {:?} is {difference} off", choice);
        assert_eq!(expected["greedy"][i], choice.is_greedy, "{place}");
    }
}

#[test]
fn scores_are_those_of_the_harness() {
    let Some(stories) = Stories::load() else { return };
    let (golden, mut n_samples, mut n_stderrs) = (golden(), 0, 0);
    for run in golden["runs"].as_array().unwrap() {
        let task = run["task"].as_str().unwrap();
        let (name, prefix, metric_of) = ours(task);
        let samples = run["samples"].as_array().unwrap();
        let keys: Vec<String> = samples.iter().map(|s| format!("{prefix}{}", s["doc_id"])).collect();
        let few_shot = run["num_fewshot"].as_u64().unwrap() as usize;
        let settings = Settings {
            // Both TruthfulQA tasks have no examples.
            few_shot: Some(few_shot),
            max_new_tokens: run["max_gen_toks"].as_u64().map(|n| n as usize),
            ..Settings::greedy()
        };
        let (result, found) = stories.measure(&name, &keys, settings);
        for (expected, key) in samples.iter().zip(&keys) {
            check_sample(expected, found.iter().find(|sample| sample.key == *key).unwrap(), task);
            n_samples += 1;
        }
        // Means and standard errors of all, by the names the harness gives them: `acc,none`.
        for (theirs, value) in run["results"].as_object().unwrap() {
            let Some((metric, filter)) = theirs.split_once(',') else { continue };
            let metric_name = metric_of(filter).1;
            let ours = result.metrics.iter().find(|m| m.name == metric_name).unwrap();
            n_stderrs += usize::from(metric.ends_with("_stderr"));
            let ours = if metric.ends_with("_stderr") { ours.stderr.unwrap() } else { ours.value };
            let tolerance = if task == "truthfulqa_mc2" { SHARE_TOLERANCE } else { MEAN_TOLERANCE };
            let theirs = value.as_f64().unwrap();
            assert!((ours - theirs).abs() < tolerance, "{task} {metric}: {ours}, expected {theirs}");
        }
    }
    assert!(n_samples > 90, "{n_samples} samples compared");
    assert_eq!(n_stderrs, 14, "standard errors compared");
}

#[test]
fn rolling_log_likelihood_is_that_of_the_harness() {
    let Some(stories) = Stories::load() else { return };
    let rolling = &golden()["rolling"];
    let path = stories.data.join(rolling["file"].as_str().unwrap());
    let n = rolling["n_chars"].as_u64().unwrap() as usize;
    let text: String = std::fs::read_to_string(path).unwrap().chars().take(n).collect();
    let rendered = Rendered { key: "0".to_owned(), text, is_chat: false };
    let found = stories.subject().roll(&[rendered], &mut |_, _| {}).unwrap()[0];
    let expected = rolling["logprob"].as_f64().unwrap();
    assert!((found.logprob - expected).abs() < 1e-4 * expected.abs(), "{found:?}, expected {expected}");
    assert!(found.n_tokens > stories.subject().max_length(), "several windows");
}

/// Replies of other models, and some made up, get the marks of the harness' filters and metrics.
#[test]
fn replies_are_judged_as_the_harness_judges() {
    let Some(stories) = Stories::load() else { return };
    let (golden, mut n_right, mut n_wrong) = (golden(), 0, 0);
    for set in golden["replies"].as_array().unwrap() {
        let (name, prefix, metric_of) = ours(set["task"].as_str().unwrap());
        let settings =
            Settings { data_dir: Some(stories.data.clone()), few_shot: Some(0), ..Settings::greedy() };
        let prepared = prepare(&name, &settings).unwrap();
        for expected in set["samples"].as_array().unwrap() {
            let (key, reply) =
                (format!("{prefix}{}", expected["doc_id"]), expected["reply"].as_str().unwrap());
            let found = prepared.judge_replies(&key, &[reply]).unwrap();
            for (filter, score) in expected["scores"].as_object().unwrap() {
                let ours = found.scores[metric_of(filter).1];
                assert_eq!(score.as_f64().unwrap(), ours, "{name} {key} {filter}: {reply:?}");
                if ours == 1.0 { n_right += 1 } else { n_wrong += 1 }
            }
        }
    }
    assert!(n_right > 60 && n_wrong > 60, "{n_right} right, {n_wrong} wrong");
}

//! Why two runs differ: first what went in, then what came out, and the step at which they parted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use crate::page::gains;
use crate::read::{Measure, RunData, StageData, TaskResult};
use crate::text::{number, p_value, percent, points, short_task};
use crate::{Gain, Paired, ReportError, Series};

/// What a key of the plan has an effect on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Where the weights begin.
    Model,
    /// What is learned from.
    Data,
    /// What is minimised, and how.
    Training,
    /// What is sampled and how it is judged.
    Sampling,
    /// What is measured.
    Evaluation,
    /// Every random draw.
    Seed,
    /// Estimates, names and places: no effect on any result.
    Nothing,
}

impl Group {
    /// Whether results can depend on it.
    pub fn has_effect(self) -> bool {
        self != Group::Nothing
    }

    fn title(self) -> &'static str {
        match self {
            Group::Model => "model: where the weights begin",
            Group::Data => "data: what is learned from",
            Group::Training => "training: what is minimised, and how",
            Group::Sampling => "sampling and rewards",
            Group::Evaluation => "evaluation: what is measured, not what is learned",
            Group::Seed => "seed: every random draw",
            Group::Nothing => "no effect on results: estimates, names, places",
        }
    }

    fn of(key: &str) -> Group {
        let inner = key.strip_prefix("stages.").and_then(|rest| rest.split_once('.')).map(|(_, inner)| inner);
        let starts = |words: &[&str]| {
            inner.is_some_and(|inner| {
                words.iter().any(|word| inner == *word || inner.starts_with(&format!("{word}.")))
            })
        };
        match key {
            "seed" => Group::Seed,
            "name" | "format_version" => Group::Nothing,
            // Where things were; `files`, or a hash, says what they contain.
            "model.base" | "model.revision" | "model.tokenizer" => Group::Nothing,
            _ if starts(&[
                "data.chat_template.origin",
                "distillation.teacher",
                "reference.model",
                "ppo.critic.model",
            ]) =>
            {
                Group::Nothing
            }
            _ if key.ends_with(".path") => Group::Nothing,
            _ if key.starts_with("model.") => Group::Model,
            _ if starts(&[
                "expected_seconds",
                "memory",
                "train.log_every",
                "train.save_every",
                "train.keep_last",
            ]) =>
            {
                Group::Nothing
            }
            _ if starts(&["eval", "data.eval", "train.eval_every"]) => Group::Evaluation,
            _ if starts(&["data"]) => Group::Data,
            _ if starts(&["rollout", "rewards"]) => Group::Sampling,
            _ => Group::Training,
        }
    }
}

/// A key of the plan with different values.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanDifference {
    /// Path of the key; stages are named, as in `stages.sft.schedule.learning_rate`.
    pub key: String,
    /// What it has an effect on.
    pub group: Group,
    /// In run A; `None` when absent.
    pub a: Option<String>,
    /// In run B; `None` when absent.
    pub b: Option<String>,
}

/// A task both runs were measured on.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultDifference {
    /// Stage after which it was measured.
    pub stage: String,
    /// The task.
    pub task: String,
    /// Share solved in run A.
    pub a: f64,
    /// Share solved in run B.
    pub b: f64,
    /// B minus A on the same problems; `None` if the problems are not the same.
    pub gain: Option<Gain>,
}

/// The first step at which a metric is not the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// The stage.
    pub stage: String,
    /// The metric.
    pub metric: String,
    /// The step.
    pub step: u64,
    /// Value in run A.
    pub a: f64,
    /// Value in run B.
    pub b: f64,
    /// The first step where they are more than one percent apart.
    pub step_one_percent: Option<u64>,
    /// The last step both have, and the two values there.
    pub last: (u64, f64, f64),
}

/// What differs between two runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Why {
    /// Names of the runs.
    pub names: [String; 2],
    /// Whether both plans have the same hash; `None` where a run does not say its own.
    pub same_hash: Option<bool>,
    /// Differences of the plans.
    pub plan: Vec<PlanDifference>,
    /// Results of both.
    pub results: Vec<ResultDifference>,
    /// Where metrics part, in order of stages and steps.
    pub divergences: Vec<Divergence>,
    /// Files that differ, where the runs should have been the same or this was asked for.
    pub files: Option<Vec<String>>,
}

/// Compares two runs: plans, results, metrics; and files, byte by byte, where the plans have the same hash (or, where a run
/// does not say its own, no difference of effect) or `with_files` asks for it.
///
/// # Errors
/// [`ReportError::Run`] when a file that must be compared cannot be read.
pub fn why(a: &RunData, b: &RunData, paired: Paired, with_files: bool) -> Result<Why, ReportError> {
    let plan = plan_differences(&a.plan, &b.plan);
    let same_hash = a.plan_hash().zip(b.plan_hash()).map(|(a, b)| a == b);
    let should_agree =
        same_hash.unwrap_or_else(|| !plan.iter().any(|difference| difference.group.has_effect()));
    let files = match with_files || should_agree {
        true => {
            let all = pt_run::compare_runs(&a.dir, &b.dir)?;
            Some(all.iter().map(ToString::to_string).collect())
        }
        false => None,
    };
    let stages =
        || a.stages.iter().filter_map(|x| Some((x, b.stages.iter().find(|y| y.name() == x.name())?)));
    let results = stages().flat_map(|(a, b)| results(a, b, paired)).collect();
    let divergences = stages().flat_map(|(a, b)| divergences(a, b)).collect();
    Ok(Why {
        names: [a.dir.display().to_string(), b.dir.display().to_string()],
        same_hash,
        plan,
        results,
        divergences,
        files,
    })
}

/// Every key of two plans whose values differ.
pub(crate) fn plan_differences(a: &Value, b: &Value) -> Vec<PlanDifference> {
    let (a, b) = (flat(a), flat(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    let mut all: Vec<PlanDifference> = differing
        .map(|key| PlanDifference {
            key: key.clone(),
            group: if is_place(key, &a) && is_place(key, &b) { Group::Nothing } else { Group::of(key) },
            a: a.get(key).cloned(),
            b: b.get(key).cloned(),
        })
        .collect();
    all.sort_by_key(|difference| difference.group);
    all
}

/// Whether a key says where something lies whose files, with their hashes, are beside it.
fn is_place(key: &str, plan: &BTreeMap<String, String>) -> bool {
    let holder = key
        .strip_suffix(".source")
        .or_else(|| key.strip_suffix(".params.model").filter(|holder| holder.contains(".rewards.")));
    holder.is_some_and(|holder| plan.contains_key(&format!("{holder}.files.0.blake3")))
}

/// A plan as lines of keys and values. Stages go by their names, so that one stage more does not shift the rest.
pub(crate) fn flat(plan: &Value) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    flatten(plan, "", &mut all);
    all
}

fn flatten(value: &Value, key: &str, all: &mut BTreeMap<String, String>) {
    let join = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(value, &join(name), all)),
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                let name = value["name"].as_str().filter(|_| key == "stages").map(str::to_owned);
                flatten(value, &join(&name.unwrap_or_else(|| i.to_string())), all);
            }
        }
        Value::Null => {}
        Value::String(text) => drop(all.insert(key.to_owned(), text.clone())),
        other => drop(all.insert(key.to_owned(), other.to_string())),
    }
}

fn results(a: &StageData, b: &StageData, paired: Paired) -> Vec<ResultDifference> {
    let result = |x: &TaskResult| {
        let y = b.after.iter().find(|y| y.task == x.task)?;
        let same = x.samples.len() == y.samples.len()
            && !x.samples.is_empty()
            && x.samples.iter().zip(&y.samples).all(|(x, y)| x.prompt == y.prompt);
        let gain = same.then(|| paired(&x.passed(), &y.passed()));
        Some(ResultDifference {
            stage: a.name().to_owned(),
            task: x.task.clone(),
            a: x.accuracy,
            b: y.accuracy,
            gain,
        })
    };
    let mut all: Vec<ResultDifference> = a.after.iter().filter_map(result).collect();
    all.extend(evaluated(a, b));
    // Without the answers themselves, what the stages say of their gains still tells something.
    if all.is_empty() {
        for x in gains(a, paired) {
            if let Some(y) = gains(b, paired).iter().find(|y| y.task == x.task) {
                all.push(ResultDifference {
                    stage: a.name().to_owned(),
                    task: x.task.clone(),
                    a: x.after,
                    b: y.after,
                    gain: None,
                });
            }
        }
    }
    all
}

/// What two eval stages measured of models of the same names.
fn evaluated(a: &StageData, b: &StageData) -> Vec<ResultDifference> {
    let (Some(x), Some(y)) = (&a.outcome, &b.outcome) else { return Vec::new() };
    let pair = |x: &Measure| {
        let y = y.measures.iter().find(|y| y.model == x.model && y.benchmark == x.benchmark)?;
        let task = format!("{} of {}", x.benchmark, x.model);
        Some(ResultDifference { stage: a.name().to_owned(), task, a: x.value, b: y.value, gain: None })
    };
    x.measures.iter().filter_map(pair).collect()
}

fn divergences(a: &StageData, b: &StageData) -> Vec<Divergence> {
    // Where the two are in their data follows from the plan.
    let told = a.metrics.iter().filter(|(key, _)| !matches!(key.as_str(), "epoch" | "num_tokens"));
    let both = told.filter_map(|(key, x)| Some((key, x, b.metrics.get(key)?)));
    let mut all: Vec<Divergence> = both.filter_map(|(key, x, y)| divergence(a.name(), key, x, y)).collect();
    all.sort_by_key(|divergence| divergence.step);
    all
}

fn divergence(stage: &str, metric: &str, a: &Series, b: &Series) -> Option<Divergence> {
    let of_b: BTreeMap<u64, f64> = b.values.iter().copied().collect();
    let both: Vec<(u64, f64, f64)> =
        a.values.iter().filter_map(|(step, x)| Some((*step, *x, *of_b.get(step)?))).collect();
    let (step, x, y) = *both.iter().find(|(_, x, y)| x.to_bits() != y.to_bits())?;
    let is_apart = |(_, x, y): &&(u64, f64, f64)| (x - y).abs() > 0.01 * x.abs().max(y.abs());
    Some(Divergence {
        stage: stage.to_owned(),
        metric: metric.to_owned(),
        step,
        a: x,
        b: y,
        step_one_percent: both.iter().find(is_apart).map(|(step, ..)| *step),
        last: *both.last()?,
    })
}

impl Why {
    /// The explanation as text of about 100 columns.
    pub fn to_text(&self) -> String {
        let mut out = format!("A = {}\nB = {}\n\n", self.names[0], self.names[1]);
        self.write_plan(&mut out);
        self.write_results(&mut out);
        self.write_divergences(&mut out);
        self.write_files(&mut out);
        out
    }

    fn write_plan(&self, out: &mut String) {
        let n = self.plan.iter().filter(|difference| difference.group.has_effect()).count();
        let hash = match self.same_hash {
            Some(true) => "the plans have the same hash",
            Some(false) => "the plans have different hashes",
            None => "a run does not say its plan's hash",
        };
        let _ = writeln!(out, "PLAN: {n} keys that can change results differ; {hash}");
        let (mut last, mut n_implied) = (None, 0);
        for difference in &self.plan {
            if self.is_implied(difference) {
                n_implied += 1;
                continue;
            }
            if last.replace(difference.group) != Some(difference.group) {
                let _ = writeln!(out, "  {}", difference.group.title());
            }
            let show = |value: &Option<String>| shorten(value.as_deref().unwrap_or("(absent)"));
            let _ =
                writeln!(out, "    {}: {} -> {}", difference.key, show(&difference.a), show(&difference.b));
        }
        if n_implied > 0 {
            let _ = writeln!(out, "  and {n_implied} parameters that only one of two different types has");
        }
    }

    /// A parameter that one run lacks because its component is of another type: the type says it all.
    fn is_implied(&self, difference: &PlanDifference) -> bool {
        let Some((component, _)) = difference.key.split_once(".params.") else { return false };
        let other_type = || self.plan.iter().any(|d| d.key.strip_suffix(".type") == Some(component));
        (difference.a.is_none() || difference.b.is_none()) && other_type()
    }

    fn write_results(&self, out: &mut String) {
        let _ = writeln!(out, "\nRESULTS: accuracy after each stage, B minus A in points with 95 % interval");
        if self.results.is_empty() {
            let _ = writeln!(out, "  no stage of both runs was measured on the same task");
        }
        for result in &self.results {
            let _ = write!(
                out,
                "  {} on {}: {} -> {}",
                result.stage,
                short_task(&result.task),
                percent(result.a),
                percent(result.b)
            );
            let _ = match &result.gain {
                Some(gain) => writeln!(
                    out,
                    ", {} [{}, {}], {}: {}",
                    points(gain.difference),
                    points(gain.interval95.0),
                    points(gain.interval95.1),
                    p_value(gain.p_value),
                    if !gain.is_significant() {
                        "no significant difference"
                    } else if gain.difference > 0.0 {
                        "B is better"
                    } else {
                        "A is better"
                    }
                ),
                None => writeln!(out, " (other problems, or answers not kept: no interval)"),
            };
        }
    }

    fn write_divergences(&self, out: &mut String) {
        let Some(first) = self.divergences.first() else {
            let _ = writeln!(out, "\nMETRICS: every value both runs logged is the same, bit for bit");
            return;
        };
        let at = |d: &&Divergence| d.stage == first.stage && d.step == first.step;
        let _ = writeln!(out, "\nMETRICS: they part at step {} of {}", first.step, first.stage);
        for d in self.divergences.iter().filter(at) {
            let _ = writeln!(
                out,
                "  {}: {} in A, {} in B, {} apart",
                d.metric,
                full(d.a),
                full(d.b),
                relative(d.a, d.b)
            );
        }
        let _ = writeln!(out, "  later");
        for d in &self.divergences {
            let apart = match d.step_one_percent {
                Some(step) => format!("more than 1 % apart from step {step}"),
                None => "never more than 1 % apart".to_owned(),
            };
            let (step, a, b) = d.last;
            let _ = writeln!(
                out,
                "    {} {}: {apart}; at step {step} {} and {}, {} apart",
                d.stage,
                d.metric,
                number(a),
                number(b),
                relative(a, b)
            );
        }
    }

    fn write_files(&self, out: &mut String) {
        let Some(files) = &self.files else { return };
        if files.is_empty() {
            let _ =
                writeln!(out, "\nFILES: metrics and everything under stages/ are the same, byte for byte");
            return;
        }
        let _ = writeln!(out, "\nFILES: the first difference of each");
        for file in files.iter().take(40) {
            let _ = writeln!(out, "  {file}");
        }
        if files.len() > 40 {
            let _ = writeln!(out, "  and {} more", files.len() - 40);
        }
    }
}

/// All digits: two values that differ in the last bit must not look the same.
fn full(x: f64) -> String {
    x.to_string()
}

fn relative(a: f64, b: f64) -> String {
    let size = a.abs().max(b.abs());
    match (a - b).abs() / size {
        x if x.is_finite() && x < 1e-3 => format!("{:.1e}", x),
        x if x.is_finite() => percent(x),
        _ => "not comparable".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    let (start, rest) = crate::text::cut(text, 80);
    if rest > 0 { format!("{start}...") } else { start.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_grouped_by_what_they_affect() {
        let cases = [
            ("seed", Group::Seed),
            ("name", Group::Nothing),
            ("model.parameters", Group::Model),
            ("model.base", Group::Nothing),
            ("model.revision", Group::Nothing),
            ("model.tokenizer", Group::Nothing),
            ("stages.sft.data.chat_template.origin", Group::Nothing),
            ("stages.sft.data.chat_template.blake3", Group::Data),
            ("stages.rl.distillation.teacher", Group::Nothing),
            ("stages.rl.distillation.files.0.blake3", Group::Training),
            ("stages.sft.data.train.0.source", Group::Data),
            ("model.files.0.path", Group::Nothing),
            ("model.files.0.blake3", Group::Model),
            ("stages.sft.data.train.0.rows", Group::Data),
            ("stages.sft.data.eval.0.rows", Group::Evaluation),
            ("stages.sft.schedule.learning_rate", Group::Training),
            ("stages.rl.rollout.n", Group::Sampling),
            ("stages.sft.eval.n", Group::Evaluation),
            ("stages.sft.memory.0.bytes", Group::Nothing),
            ("stages.sft.expected_seconds", Group::Nothing),
            ("stages.sft.train.epochs", Group::Training),
        ];
        for (key, expected) in cases {
            assert_eq!(Group::of(key), expected, "{key}");
        }
    }

    #[test]
    fn what_has_files_is_these_wherever_it_lies() {
        let plan = |place: &str, files: Value| {
            json!({"stages": [{"name": "rl", "data": {"train": [{"source": place, "files": files}]},
                "rewards": [{"params": {"model": place}, "files": files}]}]})
        };
        let group = |files: Value| -> Vec<Group> {
            let all = plan_differences(&plan("a", files.clone()), &plan("b", files));
            all.into_iter().map(|difference| difference.group).collect()
        };
        assert_eq!(group(json!([{"blake3": "c0"}])), [Group::Nothing, Group::Nothing]);
        assert_eq!(group(json!([])), [Group::Data, Group::Sampling]);
    }

    #[test]
    fn stages_are_matched_by_name() {
        let a = json!({"seed": 1, "stages": [{"name": "sft", "steps": 3}, {"name": "dpo", "steps": 4}]});
        let b = json!({"seed": 1, "stages": [{"name": "dpo", "steps": 5}]});
        let keys: Vec<String> = plan_differences(&a, &b).into_iter().map(|d| d.key).collect();
        assert_eq!(keys, ["stages.dpo.steps", "stages.sft.name", "stages.sft.steps"]);
    }

    #[test]
    fn the_first_step_apart_is_found_to_the_bit() {
        let series = |values: &[(u64, f64)]| Series { values: values.to_vec() };
        let a = series(&[(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]);
        let b = series(&[(1, 1.0), (2, 1.0 + f64::EPSILON), (3, 1.5)]);
        let found = divergence("sft", "loss", &a, &b).unwrap();
        assert_eq!((found.step, found.step_one_percent, found.last), (2, Some(3), (3, 1.0, 1.5)));
        assert_eq!(divergence("sft", "loss", &a, &a), None);
        let nan = series(&[(1, f64::NAN)]);
        assert_eq!(divergence("sft", "loss", &nan, &nan), None);
    }
}

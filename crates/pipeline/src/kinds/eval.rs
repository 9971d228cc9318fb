//! `eval`: benchmarks and generated tasks on one or several models, compared pair by pair, with a gate.
//!
//! `results/MODEL/` is what `posttrain eval --out` leaves of each, `results/comparison.json` every pair, `results/gate.json`
//! what the gate found.

use std::path::{Path, PathBuf};

use pt_client::{Client, ClientOptions};
use pt_eval::suite::{self, Measured, SuiteWatch, Target};
use pt_eval::{
    BenchmarkResult, Company, FailOn, Gate, GateOptions, Judge, Prepared, ServedJudge, Settings, Subject,
};
use pt_recipe::{EvalSection, GateAgainst, GateRule, GateSection, PlannedEval, StageSection};
use pt_tasks::GeneratedSource;
use serde::Serialize;
use serde_json::json;

use super::{Around, Done, Planning, StageKind, Work};
use crate::error::{PipelineError, Result};
use crate::graph::shown_name;
use crate::loaded::Loaded;
use crate::model::chat_template;
use crate::report::{Contrast, Measure, StageReport};
use crate::run::Watch;
use crate::source::Surroundings;

/// Where results go, in the stage's folder.
const RESULTS: &str = "results";

/// The kind.
pub(super) struct Eval;

impl StageKind for Eval {
    fn name(&self) -> &'static str {
        "eval"
    }

    fn judging_settings(&self) -> &'static [&'static str] {
        &["gate"]
    }

    fn plan(&self, section: &StageSection, around: &Around<'_>) -> Result<Planning> {
        let eval = &section.eval;
        check(eval, &section.gate)?;
        let has_template = chat_template(None, around.tokenizer)?.is_some();
        let benchmarks = prepare(eval, around.recipe.seed, has_template, around.surroundings)?;
        for benchmark in &benchmarks {
            benchmark.check_company(eval.judge.is_some(), eval.against.is_some())?;
        }
        let settings = Settings::greedy();
        let nobody = Company { settings: &settings, judge: None, opponent: None };
        let mut planning = Planning::default();
        for written in models(eval).iter().chain(&eval.against) {
            planning.files.extend(around.model_files(written)?);
        }
        let asked = |b: &Prepared| json!({ "benchmark": b.name(), "asked": b.asked(&nobody) });
        planning.settings = json!({
            "eval": eval,
            "benchmarks": benchmarks.iter().map(asked).collect::<Vec<_>>(),
            "gate": section.gate,
        });
        let names: Vec<&str> = models(eval).iter().map(|written| shown_name(written)).collect();
        planning.line("models", names.join(", "));
        for benchmark in &benchmarks {
            planning.line("measures", format!("{}, {} questions", benchmark.name(), benchmark.items().len()));
        }
        if let Some(most) = section.gate.max_loss {
            let against = section.gate.against.as_str();
            planning.line("fails", format!("where a model lost more than {most} against the {against} one"));
        }
        Ok(planning)
    }

    fn run(&self, section: &StageSection, work: &mut Work<'_>) -> Result<Option<Done>> {
        let folder = work.folder.root().join(RESULTS);
        std::fs::create_dir_all(&folder).map_err(PipelineError::io("create", &folder))?;
        let Some(measured) = measure_all(section, work, &folder)? else { return Ok(None) };
        let compared = suite::compare_pairwise(&measured, work.recipe.seed);
        suite::write_comparison(&folder, &compared).map_err(|error| work.problem(error))?;
        let measures: Vec<Measure> = measured.iter().flat_map(measures_of).collect();
        let contrasts: Vec<Contrast> = compared.iter().map(contrast_of).collect();
        let mut lines = Vec::new();
        if let Some(max_loss) = section.gate.max_loss {
            lines.push(gate_all(&section.gate, max_loss, &measured, &folder, work)?);
        }
        let report = StageReport { measures, contrasts, lines, ..StageReport::default() };
        Ok(Some(Done { output: folder, report }))
    }
}

fn models(eval: &EvalSection) -> &[String] {
    eval.models.as_deref().expect("models were written out when the recipe was read")
}

/// What cannot be right whatever the data.
fn check(eval: &EvalSection, gate: &GateSection) -> Result<()> {
    let refuse =
        |what: String, advice: &str| Err(PipelineError::Unsupported { what, advice: advice.to_owned() });
    if eval.samples > 1 && eval.temperature == 0.0 {
        let what = format!("eval.samples = {} at temperature 0 draws the same reply again", eval.samples);
        return refuse(what, "give eval.temperature = 0.8");
    }
    let names: Vec<&str> = models(eval).iter().map(|written| shown_name(written)).collect();
    let folders: Vec<PathBuf> = names.iter().map(|name| folder_of(Path::new(""), name)).collect();
    if let Some(i) = (1..names.len()).find(|&i| folders[..i].contains(&folders[i])) {
        return refuse(format!("eval.models: two models would be called `{}`", names[i]), "name each once");
    }
    if gate.max_loss.is_some() && names.len() < 2 {
        return refuse(
            format!("gate.max_loss: a gate compares models, and only `{}` is measured", names.join(", ")),
            "name the one it is held against in eval.models, too",
        );
    }
    Ok(())
}

/// A folder for each model, however many there are.
fn folder_of(results: &Path, name: &str) -> PathBuf {
    suite::folder_of(results, name, usize::MAX)
}

/// Benchmarks and tasks with their questions.
fn prepare(
    eval: &EvalSection,
    seed: u64,
    has_template: bool,
    surroundings: &Surroundings,
) -> Result<Vec<Prepared>> {
    let settings = |is_task: bool| Settings {
        data_dir: eval.data_dir.as_ref().map(PathBuf::from),
        hf_home: surroundings.hf_home.clone(),
        limit: eval.limit.filter(|_| !is_task).map(|n| n as usize),
        few_shot: eval.few_shot.filter(|_| !is_task).map(|n| n as usize),
        chat: eval.chat.unwrap_or(is_task && has_template),
        samples: eval.samples as usize,
        temperature: eval.temperature as f32,
        top_p: eval.top_p as f32,
        max_new_tokens: match eval.max_new_tokens {
            None if is_task => Some(PlannedEval::DEFAULT_MAX_NEW_TOKENS as usize),
            n => n.map(|n| n as usize),
        },
        seed,
    };
    let tasks = eval.tasks.iter().flatten().map(|task| (with_n(task, eval.n), true));
    let benchmarks = eval.benchmarks.iter().flatten().map(|name| (name.clone(), false));
    tasks.chain(benchmarks).map(|(name, is_task)| Ok(pt_eval::prepare(&name, &settings(is_task))?)).collect()
}

/// A task of `n` problems, where its name does not say how many.
fn with_n(task: &str, n: u64) -> String {
    let has_n = task.split(['?', '&']).any(|pair| pair.starts_with("n="));
    match GeneratedSource::is_generated(task) && !has_n {
        true => format!("{task}{}n={n}", if task.contains('?') { '&' } else { '?' }),
        false => task.to_owned(),
    }
}

fn subject<'m>(name: &'m str, loaded: &'m Loaded) -> Subject<'m> {
    Subject {
        name,
        model: &loaded.model,
        dtype: loaded.dtype,
        tokenizer: &loaded.tokenizer,
        template: loaded.template.as_ref(),
        stop_token_ids: &loaded.stop_token_ids,
    }
}

/// Measures every model; `None` if it was asked to stop. What the folder has is not measured again.
fn measure_all(section: &StageSection, work: &mut Work<'_>, folder: &Path) -> Result<Option<Vec<Measured>>> {
    let eval = &section.eval;
    let has_template = chat_template(None, work.tokenizer)?.is_some();
    let benchmarks = prepare(eval, work.recipe.seed, has_template, work.surroundings)?;
    let judge = judge(eval, work.folder.root())?;
    let opponent = eval.against.as_ref().map(|written| work.load(written)).transpose()?;
    let opponent_name = eval.against.as_deref().map(shown_name).unwrap_or_default();
    let opponent = opponent.as_ref().map(|loaded| subject(opponent_name, loaded));
    let settings = Settings::greedy();
    let company = Company {
        settings: &settings,
        judge: judge.as_ref().map(|judge| judge as &dyn Judge),
        opponent: opponent.as_ref(),
    };
    let mut all = Vec::new();
    for written in models(eval) {
        let name = shown_name(written);
        let target = folder_of(folder, name);
        let target = Target { folder: Some(&target), goes_on: true };
        let loaded = work.load(written)?;
        let mut shown = Shown { watch: work.watch, stage: &work.planned.name };
        let found =
            suite::measure(&subject(name, &loaded), &benchmarks, &company, target, work.stop, &mut shown);
        match found.map_err(|error| work.problem(error))? {
            Some(measured) => all.push(measured),
            None => return Ok(None),
        }
    }
    Ok(Some(all))
}

/// Verdicts are kept, so that a run that was stopped asks only for the others.
fn judge(eval: &EvalSection, folder: &Path) -> Result<Option<ServedJudge>> {
    let Some(url) = &eval.judge else { return Ok(None) };
    let api_key =
        eval.judge_key_file.as_deref().map(|path| pt_feedback::read_key(Path::new(path))).transpose()?;
    let cache_dir = Some(folder.join("judge-cache"));
    let client = Client::new(ClientOptions { api_key, cache_dir, ..ClientOptions::new(url) })?;
    Ok(Some(ServedJudge::new(client, eval.judge_model.clone())?))
}

/// Passes on what an evaluation says of itself.
struct Shown<'w> {
    watch: &'w mut dyn Watch,
    stage: &'w str,
}

impl SuiteWatch for Shown<'_> {
    fn begins(&mut self, model: &str, benchmark: &str, n_questions: usize) {
        self.watch.work_progress(self.stage, &format!("{model}: {benchmark}"), 0, n_questions);
    }

    fn progress(&mut self, done: usize, of: usize) {
        self.watch.work_progress(self.stage, "", done, of);
    }

    fn ended(&mut self, result: &BenchmarkResult, max_length: usize) {
        let name = &result.benchmark;
        if result.n_prompts_cut > 0 {
            self.watch.note(&format!(
                "{name}: {} prompts did not fit the model's {max_length} tokens and lost their beginning",
                result.n_prompts_cut
            ));
        }
        if result.n_skipped > 0 {
            let n = result.n_skipped;
            self.watch.note(&format!("{name}: {n} questions could not be judged and do not count"));
        }
    }
}

fn measures_of(measured: &Measured) -> Vec<Measure> {
    let measure = |result: &BenchmarkResult| {
        let metric = result.main()?;
        Some(Measure {
            model: measured.results.model.clone(),
            benchmark: result.benchmark.clone(),
            metric: metric.name.clone(),
            value: metric.value,
            interval95: metric.interval95,
            n: result.n,
            higher_is_better: metric.higher_is_better,
        })
    };
    measured.results.benchmarks.iter().filter_map(measure).collect()
}

fn contrast_of(compared: &suite::Compared) -> Contrast {
    Contrast {
        benchmark: compared.benchmark.clone(),
        base: compared.base.clone(),
        model: compared.model.clone(),
        gain: compared.gain,
        gain95: compared.gain95,
        mcnemar_p: compared.comparison.mcnemar_p,
    }
}

/// A gate between two models, as `gate.json` has it.
#[derive(Serialize)]
struct Gated<'a> {
    base: &'a str,
    model: &'a str,
    passes: bool,
    #[serde(flatten)]
    gate: Gate,
}

/// Holds every model against another; gives a line of success.
///
/// # Errors
/// [`PipelineError::Gate`] where one lost more than it may; what was found is in `gate.json` by then.
fn gate_all(
    section: &GateSection,
    max_loss: f64,
    measured: &[Measured],
    folder: &Path,
    work: &Work<'_>,
) -> Result<String> {
    let fail_on = match section.fail_on {
        GateRule::Point => FailOn::Point,
        GateRule::Significant => FailOn::Significant,
        GateRule::Possible => FailOn::Possible,
    };
    let options = GateOptions { max_loss, fail_on, per_category: section.per_category };
    let names: Vec<&str> = measured.iter().map(|model| model.results.model.as_str()).collect();
    let mut all = Vec::new();
    for (i, model) in names.iter().enumerate().skip(1) {
        let base = match section.against {
            GateAgainst::Previous => names[i - 1],
            GateAgainst::First => names[0],
        };
        let gate = pt_eval::gate(&folder_of(folder, base), &folder_of(folder, model), &options);
        let gate = gate.map_err(|error| work.problem(error))?;
        all.push(Gated { base, model, passes: gate.passes(), gate });
    }
    let path = folder.join("gate.json");
    let text = serde_json::to_vec_pretty(&all).expect("gates are JSON");
    pt_core::atomic_file::write(&path, &text).map_err(PipelineError::io("write", &path))?;
    let failed: Vec<String> = all
        .iter()
        .filter(|gated| !gated.passes)
        .map(|gated| {
            format!("{} against {}: {}", gated.model, gated.base, gated.gate.reasons(max_loss, gated.model))
        })
        .collect();
    if failed.is_empty() {
        return Ok(format!("the gate passes: nothing lost more than {max_loss}"));
    }
    Err(PipelineError::Gate { stage: work.planned.name.clone(), reasons: failed.join("; "), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_the_stages_number_of_problems_unless_they_say() {
        for (task, expected) in [
            ("generated:sum?level=2", "generated:sum?level=2&n=50"),
            ("generated:sum", "generated:sum?n=50"),
            ("generated:sum?n=7&level=2", "generated:sum?n=7&level=2"),
            ("gsm8k", "gsm8k"),
        ] {
            assert_eq!(with_n(task, 50), expected);
        }
    }
}

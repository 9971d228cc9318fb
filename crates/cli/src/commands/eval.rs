//! `posttrain eval`: benchmarks, with intervals, of one model or several.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use pt_client::{Client, ClientOptions};
use pt_eval::results::Metric;
use pt_eval::suite::{self, Compared, Measured, SuiteWatch, Target, folder_of};
use pt_eval::{
    BENCHMARKS, BenchmarkResult, Company, Judge, Prepared, Results, ServedJudge, Settings, Subject,
};

use crate::Context;
use crate::commands::generate::stop_tokens;
use crate::commands::score::parse_positive;
use crate::loading::{DtypeName, Loaded, ModelArgs, TextArgs};
use crate::ui::{self, Progress, Style};

const HELP: &str = "\
A benchmark is a name, with options where it has some: `mmlu?mode=generative&subjects=anatomy,astronomy`, \
`perplexity?data=held-out.txt`, `generated:sum?level=2&n=500`. `posttrain eval --list` shows all with their options. Questions come \
from the path in the option `data`, from --data-dir, or from the dataset in the hub cache; nothing is downloaded.

Prompts and judgements are those of lm-evaluation-harness where it has the benchmark. The default is one greedy reply to plain text; \
--chat asks through the chat template. With --samples K each question is answered K times (give a --temperature above 0), and \
pass@1, 2, 4, ... K (Chen et al. 2021) and the majority's answer are measured, too.

With several models each is compared with the first, question by question: what is gained with its 95 % interval, McNemar's \
exact test, and the smallest difference that so many questions would reveal four times out of five.

--out DIR gets results.json and samples/*.jsonl with every prompt, reply, gold answer and verdict; with several models each \
in a folder of its own, and comparison.json. `posttrain gate` compares two of them.

Examples:
  posttrain eval --model models/chat --benchmarks gsm8k,mmlu,truthfulqa --data-dir data --limit 200 --out results/chat
  posttrain eval --model base,runs/sft/stages/01-sft/model --benchmarks 'generated:sum?level=2&n=300' --chat
  posttrain eval --model models/chat --benchmarks humaneval --samples 10 --temperature 0.8 --data-dir data
  posttrain eval --model models/chat --benchmarks mt_bench --chat --judge http://127.0.0.1:8000/v1 --data-dir data";

/// Options of `eval`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Models, with commas between: folders, names on the hub, llama2.c files
    #[arg(long, value_name = "MODEL", value_delimiter = ',', required_unless_present = "list")]
    model: Vec<String>,
    /// Benchmarks, with commas between (or give the option again)
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    benchmarks: Vec<String>,
    /// Show every benchmark with its options, and stop
    #[arg(long)]
    list: bool,
    /// A folder with the benchmarks' files
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Most questions of each benchmark, taken evenly from its categories [default: all]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    limit: Option<usize>,
    /// Worked examples before each question [default: the benchmark's]
    #[arg(long, value_name = "K")]
    few_shot: Option<usize>,
    /// Ask through the chat template
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Ask with plain text, as is the default
    #[arg(long)]
    raw: bool,
    /// Replies to each question
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = parse_positive)]
    samples: usize,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    temperature: f32,
    /// Only the most probable tokens that together reach this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Most tokens of a reply [default: the benchmark's]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    max_new_tokens: Option<usize>,
    /// Keys all draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the results go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The address of a server whose model judges (OpenAI protocol, with the version: http://127.0.0.1:8000/v1)
    #[arg(long, value_name = "URL")]
    judge: Option<String>,
    /// Which of the server's models [default: the first]
    #[arg(long, value_name = "NAME", requires = "judge")]
    judge_model: Option<String>,
    /// A file with the server's key
    #[arg(long, value_name = "FILE", requires = "judge")]
    judge_key_file: Option<PathBuf>,
    /// The model that `win_rate` compares with
    #[arg(long, value_name = "MODEL")]
    against: Option<String>,
    /// A folder with a PEFT adapter for the model, where there is one model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Branch, tag or commit of models on the hub
    #[arg(long, value_name = "NAME", default_value = "main")]
    revision: String,
    /// Storage type of weights and activations [default: that of the files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    #[command(flatten)]
    text: TextArgs,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|t: &f32| t.is_finite() && *t >= 0.0);
    number.ok_or_else(|| "expected a number, 0 or more".to_owned())
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    if args.list {
        return print(&list(context));
    }
    let settings = Settings {
        data_dir: args.data_dir.clone(),
        hf_home: context.environment.hf_home.clone(),
        limit: args.limit,
        few_shot: args.few_shot,
        chat: args.chat,
        samples: args.samples,
        temperature: args.temperature,
        top_p: args.top_p,
        max_new_tokens: args.max_new_tokens,
        seed: args.seed,
    };
    if args.samples > 1 && args.temperature == 0.0 {
        bail!(
            "--samples {} at temperature 0 draws the same reply again; give --temperature 0.8",
            args.samples
        );
    }
    if args.adapter.is_some() && args.model.len() > 1 {
        bail!("--adapter goes with one model, and {} are named; merge the adapter first", args.model.len());
    }
    if let Some(out) = &args.out {
        let folders: Vec<PathBuf> =
            args.model.iter().map(|name| folder_of(out, name, args.model.len())).collect();
        if let Some(i) = (1..folders.len()).find(|&i| folders[..i].contains(&folders[i])) {
            bail!("the results of two models would go to {}; evaluate them one by one", folders[i].display());
        }
    }
    // All questions are read before the first model is: what is missing is said at once.
    let names = args.benchmarks.iter().flat_map(|list| split_names(list));
    let prepared = names.map(|name| pt_eval::prepare(&name, &settings)).collect::<Result<Vec<_>, _>>()?;
    for benchmark in &prepared {
        benchmark.check_company(args.judge.is_some(), args.against.is_some())?;
    }
    if args.against.is_some() && !prepared.iter().any(Prepared::needs_opponent) {
        bail!("--against goes with `win_rate`, and no benchmark of --benchmarks compares with another model");
    }
    let judge = judge(args)?;
    let opponent = args.against.as_ref().map(|name| load(name, None, args, context)).transpose()?;
    let opponent = opponent.as_ref().zip(args.against.as_deref());
    let stops = opponent.map(|(loaded, _)| stop_tokens(loaded)).unwrap_or_default();
    let opponent = opponent.map(|(loaded, name)| subject(name, loaded, &stops));
    let company = Company {
        settings: &settings,
        judge: judge.as_ref().map(|judge| judge as &dyn Judge),
        opponent: opponent.as_ref(),
    };
    let mut measured = Vec::new();
    for name in &args.model {
        let loaded = load(name, args.adapter.as_deref(), args, context)?;
        let folder = args.out.as_ref().map(|out| folder_of(out, name, args.model.len()));
        measured.push(measure(name, &loaded, &prepared, &company, folder.as_deref())?);
    }
    print(&measured.iter().map(|model| table(&model.results, context)).collect::<String>())?;
    let compared = compare_all(&measured, args.seed);
    print(&comparison_table(&compared, context.style))?;
    if let Some(out) = &args.out {
        if !compared.is_empty() {
            suite::write_comparison(out, &compared)?;
        }
        ui::note(&format!("results are in {}", out.display()));
    }
    Ok(())
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Names in a list. A comma within a name's options stays: what follows it is no benchmark.
pub(crate) fn split_names(list: &str) -> Vec<String> {
    let begins = |part: &str| {
        let name = part.split('?').next().unwrap_or_default();
        part.starts_with("generated:") || BENCHMARKS.iter().any(|info| info.name == name)
    };
    let mut names: Vec<String> = Vec::new();
    for part in list.split(',') {
        match names.last_mut() {
            Some(last) if last.contains('?') && !begins(part) => {
                last.push(',');
                last.push_str(part);
            }
            _ => names.push(part.trim().to_owned()),
        }
    }
    names
}

fn judge(args: &Args) -> anyhow::Result<Option<ServedJudge>> {
    let Some(url) = &args.judge else { return Ok(None) };
    let key = args
        .judge_key_file
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())));
    let key = key.transpose()?.map(|key| key.trim().to_owned());
    // Verdicts are kept, so that an evaluation that was broken off asks only for the others.
    let cache_dir = args.out.as_ref().map(|out| out.join("judge-cache"));
    let client = Client::new(ClientOptions { api_key: key, cache_dir, ..ClientOptions::new(url) })?;
    Ok(Some(ServedJudge::new(client, args.judge_model.clone())?))
}

fn load(name: &str, adapter: Option<&Path>, args: &Args, context: &Context) -> anyhow::Result<Loaded> {
    let model = ModelArgs {
        model: name.to_owned(),
        revision: args.revision.clone(),
        adapter: adapter.map(Path::to_owned),
        dtype: args.dtype,
    };
    model.load(&args.text, &context.environment)
}

fn subject<'m>(name: &'m str, loaded: &'m Loaded, stop_token_ids: &'m [u32]) -> Subject<'m> {
    Subject {
        name,
        model: &loaded.model,
        dtype: loaded.dtype,
        tokenizer: &loaded.tokenizer,
        template: loaded.template.as_ref(),
        stop_token_ids,
    }
}

/// Asks one model everything, and shows how far it is.
pub(crate) fn measure(
    name: &str,
    loaded: &Loaded,
    prepared: &[Prepared],
    company: &Company<'_>,
    folder: Option<&Path>,
) -> anyhow::Result<Measured> {
    let stops = stop_tokens(loaded);
    let subject = subject(name, loaded, &stops);
    let target = Target { folder, goes_on: false };
    let mut watch = Shown::default();
    let found = suite::measure(&subject, prepared, company, target, &AtomicBool::new(false), &mut watch);
    watch.clear();
    if let (Err(_), Some(folder), true) = (&found, folder, watch.n_ended > 0) {
        ui::note(&format!("the benchmarks before this one are in {}", folder.display()));
    }
    Ok(found?.expect("nobody asks it to stop"))
}

/// A line for each benchmark, and a bar.
#[derive(Default)]
struct Shown {
    bar: Option<Progress>,
    done: usize,
    n_ended: usize,
}

impl Shown {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.clear();
        }
    }
}

impl SuiteWatch for Shown {
    fn begins(&mut self, model: &str, benchmark: &str, n_questions: usize) {
        ui::note(&format!("{model}: {benchmark}, {}", ui::counted(n_questions, "question")));
        (self.bar, self.done) = (Some(Progress::rows(n_questions)), 0);
    }

    fn progress(&mut self, done: usize, _: usize) {
        if let Some(bar) = &mut self.bar {
            bar.advance(done.saturating_sub(self.done), 0);
        }
        self.done = done;
    }

    fn ended(&mut self, result: &BenchmarkResult, max_length: usize) {
        self.clear();
        self.n_ended += 1;
        warn(result, max_length);
    }
}

/// What makes a number mean less than it seems to.
fn warn(result: &BenchmarkResult, max_length: usize) {
    let name = &result.benchmark;
    if result.n_prompts_cut > 0 {
        ui::note(&format!(
            "note: {name}: {} did not fit the model's {max_length} tokens and lost their beginning; show fewer examples \
             (--few-shot) or draw shorter replies (--max-new-tokens)",
            ui::counted(result.n_prompts_cut, "prompt")
        ));
    }
    if result.n_truncated > 0 {
        ui::note(&format!(
            "note: {name}: {} cut after {} tokens (--max-new-tokens)",
            ui::counted(result.n_truncated, "reply").replace("replys", "replies were"),
            result.asked.max_new_tokens
        ));
    }
    if result.n_skipped > 0 {
        ui::note(&format!(
            "note: {name}: {} could not be judged and do not count; the samples say why",
            ui::counted(result.n_skipped, "question")
        ));
    }
}

/// Every model after the first, compared with it.
fn compare_all(measured: &[Measured], seed: u64) -> Vec<Compared> {
    let Some((first, others)) = measured.split_first() else { return Vec::new() };
    others.iter().flat_map(|other| suite::compare_two(first, other, seed)).collect()
}

/// A number with the digits that its size deserves.
pub(crate) fn number(x: f64) -> String {
    if x.abs() >= 100.0 { format!("{x:.1}") } else { format!("{x:.3}") }
}

/// `0.412 to 0.534`.
pub(crate) fn range(interval: Option<(f64, f64)>) -> String {
    interval.map_or("unknown".to_owned(), |(low, high)| format!("{} to {}", number(low), number(high)))
}

fn table(results: &Results, context: &Context) -> String {
    let style = context.style;
    let mut text = format!("{}\n", style.bold(&results.model));
    for result in &results.benchmarks {
        text += &format!("  {}  {}\n", style.name(&result.benchmark), style.dim(&how(result)));
        for metric in &result.metrics {
            text += &line(metric);
        }
    }
    text
}

fn line(metric: &Metric) -> String {
    let arrow = if metric.higher_is_better { "" } else { "  (less is better)" };
    format!(
        "    {:<26} {:>8}   95 % {}{arrow}\n",
        metric.name,
        number(metric.value),
        range(metric.interval95)
    )
}

fn how(result: &BenchmarkResult) -> String {
    let asked = &result.asked;
    let mut parts = vec![format!("v{}", asked.version), ui::counted(result.n, "question")];
    if asked.few_shot > 0 {
        parts.push(ui::counted(asked.few_shot, "example"));
    }
    parts.push(if asked.chat { "chat" } else { "plain text" }.to_owned());
    if asked.samples > 1 {
        parts.push(format!("{} replies at temperature {}", asked.samples, asked.temperature));
    }
    if let Some(detectable) = result.main().filter(|m| !m.is_exponential).and_then(|m| m.detectable) {
        parts.push(format!("tells models {} apart", number(detectable)));
    }
    parts.join(", ")
}

fn comparison_table(all: &[Compared], style: Style) -> String {
    let mut text = String::new();
    for (index, compared) in all.iter().enumerate() {
        if index == 0 || all[index - 1].model != compared.model {
            text += &format!("{}\n", style.bold(&format!("{} against {}", compared.model, compared.base)));
        }
        let found = &compared.comparison;
        let p = found.mcnemar_p.map_or(String::new(), |p| format!(", McNemar p {p:.3}"));
        let verdict = match (found.is_significant(), compared.gain > 0.0) {
            (false, _) => style.dim("no difference shown"),
            (true, true) => style.good("better"),
            (true, false) => style.warning("worse"),
        };
        let scaled = |mean: f64| number(if compared.of.is_exponential { mean.exp() } else { mean });
        let detectable =
            if compared.of.is_exponential { found.detectable.exp_m1() } else { found.detectable };
        text += &format!(
            "  {:<26} {} {} -> {}   gained {:+.3} (95 % {}){p}, would show {}   {verdict}\n",
            style.name(&compared.benchmark),
            compared.metric,
            scaled(found.before),
            scaled(found.after),
            compared.gain,
            range(Some(compared.gain95)),
            number(detectable),
        );
    }
    text
}

fn list(context: &Context) -> String {
    let style = context.style;
    let mut text = String::new();
    for info in BENCHMARKS {
        text += &format!("{}  {}\n", style.name(info.name), info.summary);
        text += &style.dim(&format!("  version {}; {}\n", info.version, info.source));
        for metric in info.metrics {
            text += &format!("  {:<26} {}\n", metric.name, metric.doc);
        }
        for option in info.options {
            text += &format!("  ?{:<25} {} ({})\n", option.name, option.doc, option.kind);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_eval::{Sample, results};

    #[test]
    fn a_worse_perplexity_is_called_worse() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.txt");
        std::fs::write(&text, "a\n".repeat(20)).unwrap();
        let settings = Settings::greedy();
        let name = format!("perplexity?data={}&unit=line", text.display());
        let prepared = pt_eval::prepare(&name, &settings).unwrap();
        let company = Company { settings: &settings, judge: None, opponent: None };
        let measured = |model: &str, nats: f64| {
            let sample = |item: &&pt_eval::Item| {
                let mut sample = Sample::new(item, Vec::new(), Vec::new(), &[]);
                sample.scores.insert("byte_perplexity".to_owned(), nats);
                sample
            };
            let samples: Vec<Sample> = prepared.items().iter().map(sample).collect();
            let results = Results {
                format: results::FORMAT,
                posttrain: "test".to_owned(),
                model: model.to_owned(),
                dtype: "f32".to_owned(),
                benchmarks: vec![prepared.summarise(&samples, &company)],
            };
            Measured { results, samples: vec![samples] }
        };
        let style = Style::new(false);
        for (before, after, says) in [(10.0_f64, 11.0_f64, "gained -0.100"), (10.0, 8.0, "gained +0.200")] {
            let all = [measured("first", before.ln()), measured("second", after.ln())];
            let compared = compare_all(&all, 0);
            assert_eq!(compared[0].gain > 0.0, after < before);
            let table = comparison_table(&compared, style);
            let word = if after < before { "better" } else { "worse" };
            assert!(table.contains(says) && table.contains(word), "{table}");
            assert!(table.contains("10.000 -> "), "{table}");
        }
    }

    #[test]
    fn commas_within_options_stay() {
        let names =
            split_names("gsm8k,mmlu?subjects=anatomy,astronomy,bbh,generated:mix?families=sum,letters&n=9");
        let expected =
            ["gsm8k", "mmlu?subjects=anatomy,astronomy", "bbh", "generated:mix?families=sum,letters&n=9"];
        assert_eq!(names, expected);
    }
}

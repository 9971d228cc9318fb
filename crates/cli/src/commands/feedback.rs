//! `posttrain feedback`: answers, critique and revision, judged pairs, audits of judges.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use pt_client::{Client, ClientOptions, Price};
use pt_core::atomic_file;
use pt_data::Columns;
use pt_feedback::{
    AnswerOptions, AskOptions, Audit, Candidate, Chat, Constitution, GradeOptions, JudgeOptions, Kind,
    LocalChat, Page, ReviseOptions, ServerChat, Subject, Tally, Thresholds,
};
use serde::Serialize;

use crate::Context;
use crate::commands::generate::stop_tokens;
use crate::commands::score::parse_positive;
use crate::loading::{DtypeName, ModelArgs, TextArgs};
use crate::rows::ReadArgs;
use crate::ui::{self, Progress};

/// Options of `feedback`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Answer prompts: rows for SFT, from a teacher that can only be asked
    Answer(AnswerArgs),
    /// Criticise and revise replies by principles: rows for SFT
    Revise(Revise),
    /// Judge pairs of replies by principles: rows for DPO and reward models
    Judge(Judge),
    /// Measure a judge on labelled pairs, and say whether it may serve as a reward
    Audit(AuditArgs),
    /// Print the built-in constitution, to be changed to yours
    Constitution(ConstitutionArgs),
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    match &args.command {
        Command::Answer(args) => args.run(context),
        Command::Revise(args) => args.run(context),
        Command::Judge(args) => args.run(context),
        Command::Audit(args) => args.run(context),
        Command::Constitution(_) => print(pt_feedback::BUILT_IN),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Who answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Who answers")]
struct Who {
    /// A model of this machine: a Hugging Face folder or a name on the hub
    #[arg(long, value_name = "MODEL", conflicts_with = "server")]
    model: Option<String>,
    /// A folder with a PEFT adapter for the model
    #[arg(long, value_name = "DIR", requires = "model")]
    adapter: Option<PathBuf>,
    /// Storage type of the model's weights [default: that of the files]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<DtypeName>,
    /// An OpenAI-compatible server, as http://127.0.0.1:8000/v1
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The server's name of the model [default: its only one]
    #[arg(long, value_name = "NAME", requires = "server")]
    server_model: Option<String>,
    /// A file with the key of --server; no other server is sent it
    #[arg(long, value_name = "FILE", requires = "server")]
    api_key_file: Option<PathBuf>,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_positive)]
    parallel: usize,
    /// Most requests per minute [default: no limit]
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<f64>,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "S", default_value_t = 300.0)]
    timeout: f64,
    /// Attempts after the first, where an answer may still come
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    /// Prices of a million prompt and completion tokens, as 0.5,1.5
    #[arg(long, value_name = "P,C", value_parser = parse_price, default_value = "0,0")]
    price: Price,
    /// Where answers are kept, so that a run that was stopped goes on [default: OUT.calls]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
}

fn parse_price(text: &str) -> Result<Price, String> {
    let number =
        |text: &str| text.trim().parse::<f64>().ok().filter(|price| price.is_finite() && *price >= 0.0);
    let both =
        text.split_once(',').and_then(|(prompt, completion)| Some((number(prompt)?, number(completion)?)));
    let (prompt_per_million, completion_per_million) = both.ok_or("expected two prices, as 0.5,1.5")?;
    Ok(Price { prompt_per_million, completion_per_million })
}

impl Who {
    /// The judge, or the one who revises.
    fn chat(&self, out: &str, context: &Context) -> anyhow::Result<Box<dyn Chat>> {
        let cache = self.cache_dir(out);
        match (&self.model, &self.server) {
            (Some(model), None) => Ok(Box::new(self.local(model, self.adapter.clone(), cache, context)?)),
            (None, Some(server)) => Ok(Box::new(self.remote(server, self.server_model.as_deref(), cache)?)),
            _ => bail!("name who answers: --model DIR for a model of this machine, or --server URL"),
        }
    }

    /// `URL#MODEL` is a server's model, everything else one of this machine.
    fn other(&self, name: &str, out: &str, context: &Context) -> anyhow::Result<Box<dyn Chat>> {
        let cache = self.cache_dir(out);
        if name.starts_with("http://") || name.starts_with("https://") {
            let (url, model) = name.split_once('#').map_or((name, None), |(url, model)| (url, Some(model)));
            return Ok(Box::new(self.remote(url, model, cache)?));
        }
        Ok(Box::new(self.local(name, None, cache, context)?))
    }

    fn cache_dir(&self, out: &str) -> Option<PathBuf> {
        self.cache.clone().or_else(|| (out != "-").then(|| PathBuf::from(format!("{out}.calls"))))
    }

    fn remote(
        &self,
        url: &str,
        model: Option<&str>,
        cache_dir: Option<PathBuf>,
    ) -> anyhow::Result<ServerChat> {
        let mut options = ClientOptions::new(url);
        let key_file = self.api_key_file.as_deref().filter(|_| self.is_server(url));
        options.api_key = key_file.map(pt_feedback::read_key).transpose()?;
        options.http.timeout_s = self.timeout;
        options.retry.max_retries = self.retries;
        options.requests_per_minute = self.requests_per_minute;
        options.cache_dir = cache_dir;
        let client = Client::new(options).context("--server, or an option of it, cannot be used")?;
        Ok(ServerChat::new(client, model, self.parallel, self.price)?)
    }

    /// Whether this is the server whose key was given.
    fn is_server(&self, url: &str) -> bool {
        self.server.as_deref().is_some_and(|server| server.trim_end_matches('/') == url.trim_end_matches('/'))
    }

    fn local(
        &self,
        model: &str,
        adapter: Option<PathBuf>,
        cache_dir: Option<PathBuf>,
        context: &Context,
    ) -> anyhow::Result<LocalChat> {
        let args = ModelArgs {
            model: model.to_owned(),
            revision: "main".to_owned(),
            adapter: adapter.clone(),
            dtype: self.dtype,
        };
        let mut loaded = args.load(&self.text, &context.environment)?;
        let stop_token_ids = stop_tokens(&loaded);
        let Some(template) = loaded.template.take() else {
            bail!("{model} has no chat template, and its answers need one; name a file with --template");
        };
        let path = args.locate(&context.environment)?;
        let folders: Vec<&Path> = [Some(path.as_path()), adapter.as_deref()].into_iter().flatten().collect();
        let name = Path::new(model)
            .file_name()
            .map_or_else(|| model.to_owned(), |n| n.to_string_lossy().into_owned());
        Ok(LocalChat {
            name,
            identity: pt_feedback::identity_of(&folders)?,
            model: loaded.model,
            dtype: loaded.dtype,
            tokenizer: loaded.tokenizer,
            template,
            stop_token_ids,
            cache_dir,
        })
    }
}

/// What is written beside the rows, and where.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
struct Target {
    /// Where the rows go, as JSON lines; OUT.excluded.jsonl, OUT.report.json and OUT.report.md come beside it
    #[arg(long, value_name = "FILE")]
    out: String,
}

impl Target {
    fn check(&self) -> anyhow::Result<()> {
        if self.out == "-" {
            bail!("--out must be a file: excluded rows, the report and kept answers come beside it");
        }
        ui::check_target(&self.out)
    }

    fn beside(&self, what: &str) -> PathBuf {
        let base = self.out.strip_suffix(".jsonl").unwrap_or(&self.out);
        PathBuf::from(format!("{base}.{what}"))
    }

    fn write_rows(&self, rows: &[Columns], excluded: &[Columns]) -> anyhow::Result<()> {
        let write = |name: &str, rows: &[Columns]| {
            ui::write_json_lines(name, |out| rows.iter().try_for_each(|row| out.write(row)))
        };
        write(&self.out, rows)?;
        write(&self.beside("excluded.jsonl").display().to_string(), excluded)
    }

    fn write_report(&self, report: &impl Serialize, page: &Page) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)? + "\n";
        write(&self.beside("report.json"), &json)?;
        write(&self.beside("report.md"), &page.markdown())?;
        print(&page.text())
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    atomic_file::write(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn constitution(path: Option<&Path>) -> anyhow::Result<Constitution> {
    Ok(path.map(Constitution::load).transpose()?.unwrap_or_default())
}

/// Calls as they are done.
struct Calls {
    progress: Progress,
    seen: Tally,
}

impl Calls {
    fn new(n_most: usize) -> Calls {
        Calls { progress: Progress::rows(n_most), seen: Tally::default() }
    }

    fn see(&mut self, tally: &Tally) {
        // The sums of one model grow with every look; another model's begin at nothing.
        if tally.n_calls <= self.seen.n_calls {
            self.seen = Tally::default();
        }
        let more = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
        self.progress.advance(
            more(tally.n_calls, self.seen.n_calls),
            more(tally.completion_tokens, self.seen.completion_tokens),
        );
        self.seen = *tally;
    }
}

const ANSWER_HELP: &str = "\
For each prompt (of rows with a reply, too) --n answers of a model of this machine or of a server: distillation from a teacher \
by its text. Rows have `messages`, the answer as reply, and the row's other columns; train on them in an `sft` stage.

Left out, counted, and written to OUT.excluded.jsonl with a reason: calls that failed, empty answers, answers cut at \
--max-new-tokens, and answers to a prompt that are equal to one before. Answers are kept in OUT.calls: a run that was \
stopped goes on where it was, and ends in the same bytes.

Examples:
  posttrain feedback answer --server http://127.0.0.1:8000/v1 --data prompts.jsonl --out answers.jsonl
  posttrain feedback answer --model models/teacher --data prompts.jsonl --n 4 --temperature 1 --out answers.jsonl";

/// Options of `feedback answer`.
#[derive(clap::Args)]
#[command(after_long_help = ANSWER_HELP)]
struct AnswerArgs {
    /// Rows with a prompt, with or without a reply
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Answers to each prompt; above 1, use a --temperature above 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    n: usize,
    /// Keys the model's draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f64,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: u32,
    /// Keep answers that were cut at the token limit
    #[arg(long)]
    keep_truncated: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl AnswerArgs {
    fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        let rows = self.read.read(&self.data, &context.environment)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let options = AnswerOptions {
            n: self.n,
            seed: self.seed,
            max_tokens: self.max_new_tokens,
            temperature: self.temperature,
            keep_truncated: self.keep_truncated,
        };
        let mut calls = Calls::new(rows.records.len() * self.n);
        let answered = pt_feedback::answer(&rows.records, &*chat, &options, &mut |tally| calls.see(tally));
        calls.progress.clear();
        let answered = answered?;
        self.target.write_rows(&answered.rows, &answered.excluded)?;
        self.target.write_report(&answered.report, &answered.report.page())?;
        if answered.rows.is_empty() {
            bail!("no answer was kept; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }
}

const REVISE_HELP: &str = "\
For each prompt: a reply (the row's own, where it has one, or the model's), then --rounds times a principle drawn by \
--seed, a critique of the reply by that principle, and a revision by that critique. Rows have `messages`, the last \
revision as reply, and beside it `initial`, `chain` (principle, critique and revision of each round) and `failure`.

A call that fails, an empty answer, and a revision cut at --max-new-tokens end the row's chain: it keeps its last whole \
revision, or is written to OUT.excluded.jsonl with its reason. Answers are kept in OUT.calls: a run that was stopped goes \
on where it was, and ends in the same bytes.

Examples:
  posttrain feedback revise --model models/chat --data prompts.jsonl --rounds 2 --out revised.jsonl
  posttrain feedback revise --constitution mine.toml --server http://127.0.0.1:8000/v1 --data prompts.jsonl --out revised.jsonl";

/// Options of `feedback revise`.
#[derive(clap::Args)]
#[command(after_long_help = REVISE_HELP)]
struct Revise {
    /// Rows with a prompt, with or without a reply
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Principles [default: the built-in ones, see `posttrain feedback constitution`]
    #[arg(long, value_name = "FILE")]
    constitution: Option<PathBuf>,
    /// Critiques and revisions of each reply
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = parse_positive)]
    rounds: usize,
    /// Draws principles, and keys the model's draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Divides the logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f64,
    /// Most tokens of a reply, critique or revision
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: u32,
    /// Use revisions that were cut at the token limit
    #[arg(long)]
    keep_truncated: bool,
    /// Also write preferences for the revision over the first reply
    #[arg(long, value_name = "FILE")]
    pairs: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl Revise {
    fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        self.pairs.as_deref().map(ui::check_target).transpose()?;
        let constitution = constitution(self.constitution.as_deref())?;
        let rows = self.read.read(&self.data, &context.environment)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let options = ReviseOptions {
            rounds: self.rounds,
            seed: self.seed,
            max_tokens: self.max_new_tokens,
            temperature: self.temperature,
            keep_truncated: self.keep_truncated,
        };
        let mut calls = Calls::new(rows.records.len() * (2 * self.rounds + 1));
        let revised = pt_feedback::revise(&rows.records, &constitution, &*chat, &options, &mut |tally| {
            calls.see(tally)
        });
        calls.progress.clear();
        let revised = revised?;
        let of = |row: fn(&pt_feedback::Chain) -> Option<Columns>| -> Vec<Columns> {
            revised.chains.iter().filter_map(row).collect()
        };
        let kept = of(pt_feedback::Chain::sft_row);
        self.target.write_rows(&kept, &of(pt_feedback::Chain::excluded_row))?;
        if let Some(path) = &self.pairs {
            let pairs = of(pt_feedback::Chain::preference_row);
            ui::write_json_lines(path, |out| pairs.iter().try_for_each(|row| out.write(row)))?;
        }
        self.target.write_report(&revised.report, &revised.report.page())?;
        if kept.is_empty() {
            bail!("no row was kept; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }
}

/// How pairs are compared.
#[derive(clap::Args)]
#[command(next_help_heading = "Judging")]
struct JudgingArgs {
    /// Principles [default: the built-in ones, see `posttrain feedback constitution`]
    #[arg(long, value_name = "FILE")]
    constitution: Option<PathBuf>,
    /// Principles of each pair, drawn by weight; 0 is all
    #[arg(long, value_name = "N", default_value_t = 1)]
    principles: usize,
    /// Votes for each pair, principle and order; above 1, use a --temperature above 0
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    votes: usize,
    /// Show each pair in both orders (--swap false: in one)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    swap: bool,
    /// A probability this near to one half is a tie
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    tie_margin: f64,
    /// Alternatives whose probabilities are asked for, for soft labels; 0 counts letters only
    #[arg(long, value_name = "N", default_value_t = 5)]
    top_logprobs: u32,
    /// Draws principles and orders, and keys the judge's draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Divides the judge's logits; 0 takes the most probable token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Most tokens of the judge's answer [default: 16, and 512 for grades by a --rubric]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
}

/// Most tokens of a choice between two replies, unless told otherwise.
const CHOICE_TOKENS: u32 = 16;

impl JudgingArgs {
    fn options(&self) -> JudgeOptions {
        JudgeOptions {
            votes: self.votes,
            swap: self.swap,
            principles_per_pair: self.principles,
            tie_margin: self.tie_margin,
            seed: self.seed,
            max_tokens: self.max_new_tokens.unwrap_or(CHOICE_TOKENS),
            temperature: self.temperature,
            top_logprobs: self.top_logprobs,
        }
    }

    fn judge(
        &self,
        candidates: Vec<Candidate>,
        constitution: &Constitution,
        chat: &dyn Chat,
    ) -> anyhow::Result<pt_feedback::Judgements> {
        let n_principles = match self.principles {
            0 => constitution.principles.len(),
            n => n,
        };
        let mut calls =
            Calls::new(candidates.len() * n_principles * self.votes * if self.swap { 2 } else { 1 });
        let options = self.options();
        let judged =
            pt_feedback::judge(candidates, constitution, chat, &options, &mut |tally| calls.see(tally));
        calls.progress.clear();
        Ok(judged?)
    }
}

const JUDGE_HELP: &str = "\
Reads pairs (--data: rows with `chosen` and `rejected`, in an order that is drawn anew) or makes them (--prompts with one \
or two --respond models: two replies of one, or one of each). The judge sees each pair in both orders and answers A, B or C \
(equal) by each principle. Rows have `prompt`, `chosen`, `rejected`, `soft_label` (the probability that `chosen` is better) \
and `judgements` with every vote.

Left out, counted, and written to OUT.excluded.jsonl with a reason: equal and empty replies, ties, pairs whose winner \
changes with the order (inconsistent), answers without a choice (no_verdict), calls that failed. With --labels, `chosen` of \
--data is taken as right, and the report has accuracy, calibration error and kappa. It always has consistency, position bias \
and length bias, for all pairs and by principle.

Answers are kept in OUT.calls: a run that was stopped goes on where it was, and ends in the same bytes.

Examples:
  posttrain feedback judge --server http://127.0.0.1:8000/v1 --data pairs.jsonl --out judged.jsonl
  posttrain feedback judge --model models/judge --prompts prompts.jsonl --respond runs/sft/model --out judged.jsonl
  posttrain feedback judge --model models/judge --data labelled.jsonl --labels --votes 3 --temperature 1 --out judged.jsonl";

/// Options of `feedback judge`.
#[derive(clap::Args)]
#[command(after_long_help = JUDGE_HELP)]
struct Judge {
    /// Pairs: rows with `chosen` and `rejected`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "respond"], required_unless_present = "prompts")]
    data: Option<String>,
    /// Take `chosen` as right, to measure the judge
    #[arg(long, requires = "data")]
    labels: bool,
    /// Prompts, for pairs made on the spot
    #[arg(long, value_name = "FILE", requires = "respond")]
    prompts: Option<String>,
    /// A model whose replies are judged, once or twice: a folder, or URL#NAME for a server's
    #[arg(long, value_name = "MODEL", requires = "prompts")]
    respond: Vec<String>,
    /// Divides the logits of --respond models
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    respond_temperature: f64,
    /// Most tokens of a reply of --respond models
    #[arg(long, value_name = "N", default_value_t = 256)]
    respond_max_new_tokens: u32,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

impl Judge {
    fn run(&self, context: &Context) -> anyhow::Result<()> {
        self.target.check()?;
        let constitution = constitution(self.judging.constitution.as_deref())?;
        let candidates = self.candidates(context)?;
        let chat = self.who.chat(&self.target.out, context)?;
        let judged = self.judging.judge(candidates, &constitution, &*chat)?;
        let (excluded, kept): (Vec<_>, Vec<_>) =
            judged.rows.iter().partition(|row| row.exclusion().is_some());
        let columns = |rows: &[&pt_feedback::Row]| rows.iter().map(|row| row.to_row()).collect::<Vec<_>>();
        self.target.write_rows(&columns(&kept), &columns(&excluded))?;
        self.target.write_report(&judged.report, &judged.report.page())?;
        if kept.is_empty() {
            bail!("no preference was made; {} says why", self.target.beside("excluded.jsonl").display());
        }
        Ok(())
    }

    fn candidates(&self, context: &Context) -> anyhow::Result<Vec<Candidate>> {
        if let Some(data) = &self.data {
            let rows = self.read.read(data, &context.environment)?;
            return Ok(pt_feedback::pairs_of(&rows.records, self.labels, self.judging.seed)?);
        }
        let prompts = self.prompts.as_deref().expect("clap asks for one of the two");
        let rows = self.read.read(prompts, &context.environment)?;
        let first = self.who.other(&self.respond[0], &self.target.out, context)?;
        let second = match self.respond.as_slice() {
            [_] => None,
            [_, second] => Some(self.who.other(second, &self.target.out, context)?),
            more => bail!("--respond is given {} times, expected one or two models", more.len()),
        };
        let options = AskOptions {
            max_tokens: self.respond_max_new_tokens,
            temperature: self.respond_temperature,
            top_logprobs: 0,
        };
        let mut calls = Calls::new(2 * rows.records.len());
        let models = [&*first, second.as_deref().unwrap_or(&*first)];
        let pairs =
            pt_feedback::sample_pairs(&rows.records, models, &options, self.judging.seed, &mut |tally| {
                calls.see(tally);
            });
        calls.progress.clear();
        let (candidates, tallies) = pairs?;
        let sum = |of: fn(&Tally) -> u64| {
            usize::try_from(tallies.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX)
        };
        ui::note(&format!(
            "{} drawn, {} failed, {}",
            ui::counted(sum(|tally| tally.n_calls), "response"),
            ui::count(sum(|tally| tally.n_failed)),
            ui::counted(sum(|tally| tally.completion_tokens), "token")
        ));
        Ok(candidates)
    }
}

const AUDIT_HELP: &str = "\
Measures on labelled pairs (rows with `chosen` and `rejected`, `chosen` being right) and compares with thresholds:
  a judge of pairs by a constitution     --server URL or --model DIR
  a grader by a rubric                   the same with --rubric TEXT; this is what the verifier `llm_judge` needs
  scores that are in the rows            --scores NAME: columns `score_chosen` and `score_rejected`, as of a reward model

The outcome goes to --out as JSON (and Markdown beside it), and says by content what was audited. The exit status is 0 if it \
passed, 1 if not. The verifier `llm_judge` serves as a reward only with a file that passed, of the same model, rubric, \
scale, limit of tokens, temperature and (above temperature 0) votes. Above temperature 0 each reply is graded at least twice, \
for consistency; at 0 that is not measured.

Examples:
  posttrain feedback audit --server http://127.0.0.1:8000/v1 --data labelled.jsonl --rubric 'The reply is kind.' --out audit.json
  posttrain feedback audit --model models/judge --data labelled.jsonl --votes 2 --temperature 1 --out audit.json
  posttrain feedback audit --scores my-reward --data scored.jsonl --max-length-bias 0.1 --out audit.json";

/// Options of `feedback audit`.
#[derive(clap::Args)]
#[command(after_long_help = AUDIT_HELP)]
struct AuditArgs {
    /// Labelled pairs: rows with `chosen` and `rejected`
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Where the audit goes, as JSON
    #[arg(long, value_name = "FILE")]
    out: String,
    /// Audit a grader of single replies, by this rubric
    #[arg(long, value_name = "TEXT")]
    rubric: Option<String>,
    /// The grader's best grade; the worst is 1
    #[arg(long, value_name = "N", default_value_t = 10)]
    scale: u32,
    /// Audit scores in the rows, under this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "server", "rubric"])]
    scores: Option<String>,
    #[command(flatten)]
    judging: JudgingArgs,
    #[command(flatten)]
    thresholds: ThresholdArgs,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    read: ReadArgs,
}

/// What an audit asks for.
#[derive(clap::Args)]
#[command(next_help_heading = "Thresholds")]
struct ThresholdArgs {
    /// Labelled pairs with a judgement
    #[arg(long, value_name = "N", default_value_t = Thresholds::default().min_pairs)]
    min_pairs: usize,
    /// Agreement with labels
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().min_accuracy)]
    min_accuracy: f64,
    /// Cohen's kappa with labels
    #[arg(long, value_name = "X", default_value_t = Thresholds::default().min_kappa)]
    min_kappa: f64,
    /// Expected calibration error
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().max_ece)]
    max_ece: f64,
    /// Agreement with itself, in both orders or in repeated grades
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().min_consistency)]
    min_consistency: f64,
    /// Preference for a place
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().max_position_bias)]
    max_position_bias: f64,
    /// Undue preference for length
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().max_length_bias)]
    max_length_bias: f64,
    /// Answers without a choice or grade
    #[arg(long, value_name = "P", default_value_t = Thresholds::default().max_abstain_rate)]
    max_abstain_rate: f64,
}

impl ThresholdArgs {
    fn thresholds(&self) -> Thresholds {
        Thresholds {
            min_pairs: self.min_pairs,
            min_accuracy: self.min_accuracy,
            min_kappa: self.min_kappa,
            max_ece: self.max_ece,
            min_consistency: self.min_consistency,
            max_position_bias: self.max_position_bias,
            max_length_bias: self.max_length_bias,
            max_abstain_rate: self.max_abstain_rate,
        }
    }
}

impl AuditArgs {
    fn run(&self, context: &Context) -> anyhow::Result<()> {
        if self.out == "-" {
            bail!("--out must be a file: kept answers come beside it");
        }
        ui::check_target(&self.out)?;
        let audit = self.audit(context)?;
        let json = serde_json::to_string_pretty(&audit)? + "\n";
        write(Path::new(&self.out), &json)?;
        let base = self.out.strip_suffix(".json").unwrap_or(&self.out);
        write(Path::new(&format!("{base}.md")), &audit.page().markdown())?;
        print(&audit.page().text())?;
        let failed: Vec<&str> =
            audit.checks.iter().filter(|check| !check.passed).map(|check| check.name.as_str()).collect();
        if !audit.passed {
            bail!("{} did not pass: {}", audit.subject.model, failed.join(", "));
        }
        Ok(())
    }

    fn audit(&self, context: &Context) -> anyhow::Result<Audit> {
        let thresholds = self.thresholds.thresholds();
        let rows = self.read.read(&self.data, &context.environment)?;
        if let Some(name) = &self.scores {
            return Ok(pt_feedback::audit_scores(&rows.records, name, &thresholds)?);
        }
        let candidates = pt_feedback::pairs_of(&rows.records, true, self.judging.seed)?;
        let chat = self.who.chat(&self.out, context)?;
        if let Some(rubric) = &self.rubric {
            let options = GradeOptions {
                rubric: rubric.clone(),
                scale: self.scale,
                // Consistency needs a second grade, which is another only where answers are drawn.
                votes: self.judging.votes.max(if self.judging.temperature > 0.0 { 2 } else { 1 }),
                seed: self.judging.seed,
                max_tokens: self.judging.max_new_tokens.unwrap_or(pt_feedback::GRADE_TOKENS),
                temperature: self.judging.temperature,
            };
            let mut calls = Calls::new(candidates.len() * 2 * options.votes);
            let audit = pt_feedback::audit_grader(&candidates, &*chat, &options, &thresholds, &mut |tally| {
                calls.see(tally)
            });
            calls.progress.clear();
            return Ok(audit?);
        }
        let constitution = constitution(self.judging.constitution.as_deref())?;
        let report = self.judging.judge(candidates, &constitution, &*chat)?.report;
        let subject = Subject {
            kind: Kind::Pairwise,
            model: chat.name().to_owned(),
            instrument: constitution.hash(),
            drawn: None,
        };
        Ok(Audit::new(subject, report.overall, &thresholds, report.calls, report.cost))
    }
}

/// Options of `feedback constitution`.
#[derive(clap::Args)]
#[command(after_long_help = "Example:\n  posttrain feedback constitution > mine.toml")]
struct ConstitutionArgs {}

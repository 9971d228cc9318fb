//! `posttrain data step-labels`: labels of solution steps by rollouts, for process reward models.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use pt_core::hash;
use pt_data::{Body, Columns, Content, Record};
use pt_search::{Labelled, Solution, Splitter, label_steps};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Context;
use crate::commands::generate::SamplingArgs;
use crate::commands::score::parse_positive;
use crate::loading::{ModelArgs, TextArgs};
use crate::policy::{Judge, Policy, VerifierArgs, parse_separator};
use crate::rows::ReadArgs;
use crate::ui::{self, Progress};

const HELP: &str = "\
A step is worth what its completions are: from the beginning of the solution up to each step but the last, the model writes the rest \
--rollouts times, and the verifier judges where that leads (Wang et al. 2023, Math-Shepherd, arXiv:2312.08935). The last step is as \
right as the solution is.

Rows are solutions: `prompt` and `completion`, or `prompt` and `completions` (steps; labels that they have are replaced). Rows with a \
`prompt` alone get --solutions solutions of the model's own. Each row of the output is one solution, with
  prompt, completions   the problem and the steps, as the `prm` stage reads them
  labels                the soft or the hard labels
  soft_labels           the share of completions that are right
  hard_labels           whether any is
  n_judged, n_right     of how many
and the other columns of the input. A solution of which a step could not be judged is left out and counted.

What is done is kept beside the output in OUT.partial; killed or stopped, the same command goes on and ends with the same file.

Examples:
  posttrain data step-labels --model models/sft --data 'generated:sum?level=2&n=500&form=prompt_only' --solutions 4 --out steps.jsonl
  posttrain data step-labels --model models/sft --data solutions.jsonl --verifier math --gold answer --rollouts 8 --out steps.jsonl";

/// Which labels `labels` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
enum Kind {
    /// The share of completions that are right.
    Soft,
    /// Whether any is.
    Hard,
}

/// Options of `data step-labels`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Solutions, or prompts to be solved
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Where the labelled solutions go, as JSON lines (`.gz`: compressed)
    #[arg(long, value_name = "FILE")]
    out: String,
    /// Completions of each beginning
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_positive)]
    rollouts: usize,
    /// Solutions drawn for each row that has none
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    solutions: usize,
    /// What `labels` has
    #[arg(long, value_enum, value_name = "KIND", default_value = "soft")]
    labels: Kind,
    /// What stands between two steps
    #[arg(long, value_name = "TEXT", default_value = "\\n", value_parser = parse_separator)]
    separator: Splitter,
    /// Treat a prompt that is text as a user's message
    #[arg(long)]
    chat: bool,
    /// Begin anew, whatever an earlier run has done
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    verifier: VerifierArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    read: ReadArgs,
}

/// Rollouts that are drawn together; what was done is kept after each such part.
const ROLLOUTS_PER_PART: usize = 512;
/// Steps that a solution is taken to have, to size the parts.
const USUAL_STEPS: usize = 4;

/// What became of one row of the input: a line of the journal.
#[derive(Default, Serialize, Deserialize)]
struct Done {
    rows: Vec<Columns>,
    counts: Counts,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counts {
    solutions: usize,
    right: usize,
    steps: usize,
    hard: usize,
    soft: f64,
    rollouts: usize,
    tokens: usize,
    /// Solutions left out because they have no steps.
    blank: usize,
    /// Solutions left out because a step could not be judged.
    unjudged: usize,
}

impl Counts {
    fn add(&mut self, more: &Counts) {
        self.solutions += more.solutions;
        self.right += more.right;
        self.steps += more.steps;
        self.hard += more.hard;
        self.soft += more.soft;
        self.rollouts += more.rollouts;
        self.tokens += more.tokens;
        self.blank += more.blank;
        self.unjudged += more.unjudged;
    }
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    ui::check_target(&args.out)?;
    if args.out == "-" {
        bail!("--out - cannot be gone on with after a stop; give the name of a file");
    }
    if args.sampling.is_greedy() && args.rollouts > 1 {
        bail!(
            "at --temperature 0 all {} completions of a step are the same; give a temperature above 0",
            args.rollouts
        );
    }
    let records = args.read.read(&args.data, &context.environment)?.records;
    for record in &records {
        own_steps(record, &args.separator)?;
    }
    let judge = args.verifier.judge(&records)?;
    let model_path = args.model.locate(&context.environment)?;
    let loaded = args.model.load(&args.text, &context.environment)?;
    let policy = Policy::new(&loaded, args.sampling.params(1, Vec::new()), &records, args.chat)?;
    let mut journal = Journal::open(&args.out, args.fresh, &args.key(&records, &model_path)?)?;
    if !journal.done.is_empty() {
        ui::note(&format!(
            "goes on after {} of {} (--fresh begins anew)",
            ui::counted(journal.done.len(), "row"),
            ui::count(records.len())
        ));
    }
    let mut progress = Progress::rows(records.len());
    progress.advance(journal.done.len(), 0);
    let per_row = args.rollouts * USUAL_STEPS * args.solutions;
    let part = (ROLLOUTS_PER_PART / per_row).max(1);
    while journal.done.len() < records.len() {
        let from = journal.done.len();
        let to = (from + part).min(records.len());
        let done = args.label(from..to, &records, &policy, &judge)?;
        progress.advance(to - from, done.iter().map(|done| done.counts.tokens).sum());
        journal.add(done)?;
    }
    progress.clear();
    let counts = journal.finish(&args.out)?;
    ui::note(&report(&counts, progress.seconds()));
    if counts.solutions == 0 {
        bail!("no solution could be labelled: {}", left_out(&counts));
    }
    Ok(())
}

impl Args {
    /// Identifies what is done: another model, data or option is another journal.
    fn key(&self, records: &[Record], model: &Path) -> anyhow::Result<String> {
        let mut files = Vec::new();
        for folder in [Some(model), self.model.adapter.as_deref()].into_iter().flatten() {
            let entries = if folder.is_dir() {
                std::fs::read_dir(folder)?
                    .map(|entry| Ok(entry?.path()))
                    .collect::<std::io::Result<Vec<_>>>()?
            } else {
                vec![folder.to_owned()]
            };
            for path in entries {
                let about = std::fs::metadata(&path)?;
                let changed = about.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                files.push((path.display().to_string(), about.len(), changed.as_nanos() as u64));
            }
        }
        files.sort_unstable();
        let rows: Vec<Columns> = records.iter().map(Record::to_row).collect();
        let options = format!(
            "{} {} {:?} {:?} {} {:?} {:?} {:?}",
            self.rollouts,
            self.solutions,
            self.labels,
            self.separator,
            self.chat,
            self.verifier,
            self.sampling,
            self.text
        );
        Ok(hash::of_bytes(
            json!([files, rows, options, self.model.dtype.map(|d| format!("{d:?}"))]).to_string().as_bytes(),
        ))
    }

    /// Labels the solutions of some rows.
    fn label(
        &self,
        rows: std::ops::Range<usize>,
        records: &[Record],
        policy: &Policy<'_>,
        judge: &Judge<'_>,
    ) -> anyhow::Result<Vec<Done>> {
        let replies = self.replies(rows.clone(), records, policy)?;
        let mut done: Vec<Done> = rows.clone().map(|_| Done::default()).collect();
        let mut solutions = Vec::new();
        for (question, number, steps) in replies {
            match steps.is_empty() {
                true => done[question - rows.start].counts.blank += 1,
                false => {
                    // Draws of the solutions themselves have the first keys.
                    let key = policy.key(question) + ((number as u64 + 1) << KEYS_PER_SOLUTION_BITS);
                    solutions.push(Solution { question, steps, key });
                }
            }
        }
        let (n, max_tokens) = (self.rollouts, self.sampling.max_new_tokens());
        let mut write = |asks: &[pt_search::Ask]| policy.whole(asks);
        let mut verdicts = |replies: &[(usize, String)]| judge.verdicts(replies);
        let labelled = label_steps(&solutions, &self.separator, (n, max_tokens), &mut write, &mut verdicts)?;
        for (solution, labelled) in solutions.iter().zip(&labelled) {
            let done = &mut done[solution.question - rows.start];
            done.counts.rollouts += labelled.n_rollouts;
            done.counts.tokens += labelled.n_tokens;
            self.note(
                done,
                solution,
                labelled,
                &judge.prompts[solution.question],
                &records[solution.question],
            );
        }
        Ok(done)
    }

    /// The solutions of some rows as (row, number among its solutions, steps): their own, or drawn ones.
    fn replies(
        &self,
        rows: std::ops::Range<usize>,
        records: &[Record],
        policy: &Policy<'_>,
    ) -> anyhow::Result<Vec<(usize, usize, Vec<String>)>> {
        let own: Vec<Option<Vec<String>>> = rows
            .clone()
            .map(|row| own_steps(&records[row], &self.separator))
            .collect::<anyhow::Result<_>>()?;
        let unsolved = rows.clone().zip(&own).filter(|(_, own)| own.is_none()).map(|(row, _)| row);
        let mut drawn = policy.whole(&policy.asks(unsolved, self.solutions))?.into_iter();
        let mut all = Vec::new();
        for (row, own) in rows.zip(own) {
            match own {
                Some(steps) => all.push((row, 0, steps)),
                None => {
                    let drawn = drawn.next().expect("solutions of every row without one");
                    let steps = drawn.iter().map(|written| self.separator.split(&written.text));
                    all.extend(steps.enumerate().map(|(number, steps)| (row, number, steps)));
                }
            }
        }
        Ok(all)
    }

    /// Puts a labelled solution into what became of its row.
    fn note(&self, done: &mut Done, solution: &Solution, labelled: &Labelled, prompt: &str, record: &Record) {
        let values = &labelled.values;
        let soft: Option<Vec<f64>> = values.iter().map(|value| value.soft()).collect();
        let hard: Option<Vec<bool>> = values.iter().map(|value| value.hard()).collect();
        let (Some(soft), Some(hard)) = (soft, hard) else {
            done.counts.unjudged += 1;
            return;
        };
        let counts = &mut done.counts;
        counts.solutions += 1;
        counts.right += usize::from(hard[hard.len() - 1]);
        counts.steps += hard.len();
        counts.hard += hard.iter().filter(|hard| **hard).count();
        counts.soft += soft.iter().sum::<f64>();
        let labels = match self.labels {
            Kind::Soft => json!(soft),
            Kind::Hard => json!(hard),
        };
        let mut row = Columns::new();
        for (name, value) in [
            ("prompt", json!(prompt)),
            ("completions", json!(solution.steps)),
            ("labels", labels),
            ("soft_labels", json!(soft)),
            ("hard_labels", json!(hard)),
            ("n_judged", json!(values.iter().map(|value| value.n_judged).collect::<Vec<_>>())),
            ("n_right", json!(values.iter().map(|value| value.n_right).collect::<Vec<_>>())),
        ] {
            row.insert(name.to_owned(), value);
        }
        for (name, value) in &record.extra {
            row.entry(name.as_str()).or_insert_with(|| value.clone());
        }
        done.rows.push(row);
    }
}

/// Keys between two solutions of a question: one for each step.
const KEYS_PER_SOLUTION_BITS: u32 = 12;

/// The steps of a row that has a solution.
fn own_steps(record: &Record, splitter: &Splitter) -> anyhow::Result<Option<Vec<String>>> {
    let reply = match &record.body {
        Body::Stepwise { completions, .. } => {
            let steps = completions.iter().map(|step| step.trim().to_owned());
            return Ok(Some(steps.filter(|step| !step.is_empty()).collect()));
        }
        Body::PromptOnly { .. } => return Ok(None),
        Body::PromptCompletion { completion, .. } => completion,
        other => bail!(
            "{}: `data step-labels` reads solutions or prompts, and this row is {}; `posttrain data convert --to \
             prompt_completion` makes solutions of conversations",
            record.origin,
            other.kind()
        ),
    };
    let text = match reply {
        Content::Text(text) => text.clone(),
        Content::Messages(messages) => {
            messages.iter().filter_map(|message| message.content.as_deref()).collect::<Vec<_>>().join("\n")
        }
        Content::Segments(segments) => segments.iter().map(|segment| segment.text.as_str()).collect(),
    };
    Ok(Some(splitter.split(&text)))
}

/// What was done, in a file that a later run goes on with: a line with the key, and one for each row of the input.
struct Journal {
    path: PathBuf,
    file: File,
    done: Vec<Done>,
}

impl Journal {
    fn open(out: &str, fresh: bool, key: &str) -> anyhow::Result<Journal> {
        let path = PathBuf::from(format!("{out}.partial"));
        let cannot = |what: &str| format!("cannot {what} {}", path.display());
        let mut done = Vec::new();
        let mut kept = json!({ "key": key }).to_string() + "\n";
        if !fresh && path.exists() {
            let mut lines = BufReader::new(File::open(&path).with_context(|| cannot("read"))?).lines();
            let first: Option<Value> = lines.next().and_then(|line| serde_json::from_str(&line.ok()?).ok());
            if first.as_ref().is_some_and(|first| first["key"] != key) {
                bail!(
                    "{} was begun with another model, other data or other options; --fresh begins anew, or name another --out",
                    path.display()
                );
            }
            // A line that a killed run left unfinished is done again, and so is what follows it.
            for line in lines.map_while(Result::ok) {
                let Ok(row) = serde_json::from_str(&line) else { break };
                done.push(row);
                kept += &line;
                kept.push('\n');
            }
        }
        pt_core::atomic_file::write(&path, kept.as_bytes()).with_context(|| cannot("write"))?;
        let file = File::options().append(true).open(&path).with_context(|| cannot("write"))?;
        Ok(Journal { path, file, done })
    }

    fn add(&mut self, done: Vec<Done>) -> anyhow::Result<()> {
        let mut text = String::new();
        for done in &done {
            text += &serde_json::to_string(done)?;
            text.push('\n');
        }
        let cannot = || format!("cannot write {}", self.path.display());
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()).with_context(cannot)?;
        self.done.extend(done);
        Ok(())
    }

    /// Writes the output, if there is any, and removes the journal.
    fn finish(self, out: &str) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        self.done.iter().for_each(|done| counts.add(&done.counts));
        if counts.solutions > 0 {
            ui::write_json_lines(out, |lines| {
                self.done.iter().flat_map(|done| &done.rows).try_for_each(|row| lines.write(row))
            })?;
        }
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        Ok(counts)
    }
}

fn report(counts: &Counts, seconds: f64) -> String {
    let share = |n: f64, of: usize| 100.0 * n / of.max(1) as f64;
    let mut text = format!(
        "labelled {} of {} ({:.1} % of the solutions right): hard {:.1} % right, soft {:.1} % on average; {} of {} in {seconds:.1} s",
        ui::counted(counts.steps, "step"),
        ui::counted(counts.solutions, "solution"),
        share(counts.right as f64, counts.solutions),
        share(counts.hard as f64, counts.steps),
        share(counts.soft, counts.steps),
        ui::counted(counts.rollouts, "rollout"),
        ui::counted(counts.tokens, "token"),
    );
    if counts.blank + counts.unjudged > 0 {
        text += &format!("\nleft out: {}", left_out(counts));
    }
    text
}

fn left_out(counts: &Counts) -> String {
    format!(
        "{} without a step, {} with a step that the verifier could not judge",
        ui::counted(counts.blank, "solution"),
        ui::counted(counts.unjudged, "solution")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(solutions: usize) -> Done {
        let row = Columns::from_iter([("n".to_owned(), json!(solutions))]);
        Done { rows: vec![row], counts: Counts { solutions, ..Counts::default() } }
    }

    #[test]
    fn a_journal_goes_on_where_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.jsonl").display().to_string();
        let mut journal = Journal::open(&out, false, "key").unwrap();
        journal.add(vec![done(1), done(2)]).unwrap();
        drop(journal);
        // A killed run left half a line.
        let path = format!("{out}.partial");
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"rows\": [")).unwrap();
        let mut journal = Journal::open(&out, false, "key").unwrap();
        assert_eq!(journal.done.len(), 2);
        journal.add(vec![done(3)]).unwrap();
        drop(journal);
        let error = Journal::open(&out, false, "other").err().unwrap().to_string();
        assert!(error.contains("--fresh begins anew"), "{error}");
        assert!(Journal::open(&format!("{out}2"), false, "other").unwrap().done.is_empty());
        let counts = Journal::open(&out, false, "key").unwrap().finish(&out).unwrap();
        assert_eq!(counts.solutions, 6);
        let text = std::fs::read_to_string(&out).unwrap();
        assert_eq!(text, "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
        assert!(!Path::new(&path).exists());
        // Where nothing could be labelled, the older file stays.
        let mut journal = Journal::open(&out, false, "key").unwrap();
        journal.add(vec![Done::default()]).unwrap();
        assert_eq!(journal.finish(&out).unwrap(), Counts::default());
        assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
        assert!(!Path::new(&path).exists());
        // What was begun anew forgets.
        let mut journal = Journal::open(&out, false, "key").unwrap();
        journal.add(vec![done(1)]).unwrap();
        assert!(Journal::open(&out, true, "other").unwrap().done.is_empty());
    }
}

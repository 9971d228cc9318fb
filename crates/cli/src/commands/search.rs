//! `posttrain search`: better replies by drawing many and choosing, or by searching step by step.

use std::collections::HashMap;

use anyhow::bail;
use clap::ValueEnum;
use pt_data::Record;
use pt_models::ScoreHeadKind;
use pt_pipeline::process_scorer::ProcessScorer;
use pt_pipeline::scorer::{Scorer, score_head_at};
use pt_search::{
    Aggregate, BeamOptions, Found, Splitter, Written, beam_search, best, majority, weighted_majority,
};
use pt_tasks::stats::{Z_95, paired_gain, wilson_interval};
use pt_train::Example;
use pt_verify::Verifier;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Context;
use crate::commands::eval::{number, print, range};
use crate::commands::generate::SamplingArgs;
use crate::commands::score::parse_positive;
use crate::loading::{ModelArgs, TextArgs};
use crate::policy::{Judge, Policy, VerifierArgs, parse_separator};
use crate::rows::ReadArgs;
use crate::ui::{self, Progress, Style};

const HELP: &str = "\
Ways to a reply (--method), each for every budget of --n:
  greedy             one reply, the most probable token each time: what the others are compared with
  any                of n replies, whether any is right: what choosing could reach
  majority           of n replies, one with the answer that most have
  best_of_n          of n replies, the one that --scorer gives the best score
  weighted_majority  of n replies, one with the answer whose replies' scores sum to the most
  beam               steps instead of replies: n next steps each time, of which the --width best are continued (Snell et al. 2024)

The scorer is what a `prm` stage wrote (its scores of steps become a reply's by --aggregate), or what a `reward` stage wrote (no beam; \
its scores vote by their logistic function). An answer is what follows `####`, the last `\\boxed{}`, or the last line that is not blank; \
answers are the same if they are the same mathematics or the same text but for case and spaces.

The table has for every way the share of questions solved with its 95 % interval (Wilson), the tokens drawn for a question, and what \
is gained over greedy, question by question (Newcombe's interval, McNemar's exact test). --out has every reply with its score and \
verdict, and which each way chose.

Examples:
  posttrain search --model models/sft --data 'generated:sum?level=3&n=200&split=heldout&form=prompt_only' --n 4,16 --temperature 0.8
  posttrain search --model models/sft --scorer runs/prm/stages/01-prm/model --data test.jsonl --gold answer --n 8 --out found.jsonl";

/// A way to a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Method {
    Greedy,
    Any,
    Majority,
    BestOfN,
    WeightedMajority,
    Beam,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Greedy => "greedy",
            Method::Any => "any",
            Method::Majority => "majority",
            Method::BestOfN => "best_of_n",
            Method::WeightedMajority => "weighted_majority",
            Method::Beam => "beam",
        }
    }

    fn needs_scorer(self) -> bool {
        matches!(self, Method::BestOfN | Method::WeightedMajority | Method::Beam)
    }
}

/// Options of `search`.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(crate) struct Args {
    /// Rows with `prompt`, and what the verifier reads
    #[arg(long, value_name = "FILE")]
    data: String,
    /// Where replies, scores and choices go, as JSON lines (`.gz`: compressed)
    #[arg(long, value_name = "FILE")]
    out: Option<String>,
    /// A reward model or a process reward model
    #[arg(long, value_name = "MODEL")]
    scorer: Option<std::path::PathBuf>,
    /// Ways to a reply [default: all that can be gone]
    #[arg(long = "method", value_enum, value_name = "NAMES", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Replies or steps that are chosen from
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "4,16", value_parser = parse_positive)]
    n: Vec<usize>,
    /// How the scores of steps become a reply's
    #[arg(long, value_name = "NAME", default_value = "min", value_parser = Aggregate::ALL.map(|(name, _)| name).to_vec())]
    aggregate: String,
    /// Beginnings that are continued (beam) [default: a quarter of n]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    width: Option<usize>,
    /// Most steps of a reply (beam)
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_positive)]
    max_steps: usize,
    /// What stands between two steps
    #[arg(long, value_name = "TEXT", default_value = "\\n", value_parser = parse_separator)]
    separator: Splitter,
    /// Treat a prompt that is text as a user's message
    #[arg(long)]
    chat: bool,
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

/// Who scores.
enum Judged {
    Replies(Box<Scorer>),
    Steps(Box<ProcessScorer>),
}

/// A reply with what is said of it.
#[derive(Clone, Debug, Serialize)]
struct Candidate {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_scores: Option<Vec<f64>>,
    /// Whether it is right; absent where the verifier cannot say.
    #[serde(skip_serializing_if = "Option::is_none")]
    right: Option<bool>,
    n_tokens: usize,
}

/// A way with its budget, and what it came to for each question.
struct Way {
    method: Method,
    n: usize,
    right: Vec<Option<bool>>,
    tokens: usize,
}

impl Way {
    fn name(&self) -> String {
        match self.method {
            Method::Greedy => self.method.name().to_owned(),
            method => format!("{}@{}", method.name(), self.n),
        }
    }
}

/// Where a question's keys of beams begin, after that of its whole replies.
const BEAM_KEYS: u64 = 1 << 23;

/// Replies that are drawn together, and written when they are judged.
const REPLIES_PER_PART: usize = 512;

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    args.out.as_deref().map_or(Ok(()), ui::check_target)?;
    let methods = args.checked_methods()?;
    let records = args.read.read(&args.data, &context.environment)?.records;
    let judge = args.verifier.judge(&records)?;
    let scorer = args.scorer.as_deref().map(open_scorer).transpose()?;
    if let (Some(Judged::Replies(_)), true) = (&scorer, args.methods.contains(&Method::Beam)) {
        bail!(
            "beam needs scores of steps, and the scorer scores whole replies; give what a `prm` stage wrote"
        );
    }
    let scores_steps = matches!(scorer, Some(Judged::Steps(_)));
    let methods: Vec<Method> =
        methods.into_iter().filter(|method| *method != Method::Beam || scores_steps).collect();
    let loaded = args.model.load(&args.text, &context.environment)?;
    let search = Search {
        args,
        policy: Policy::new(&loaded, args.sampling.params(1, Vec::new()), &records, args.chat)?,
        judge,
        scorer,
        ways: args.ways(&methods),
    };
    let ways = search.all(&records)?;
    print(&table(&ways, context.style))?;
    if ways.iter().all(|way| way.right.iter().all(Option::is_none)) {
        ui::note(
            "note: no reply could be judged, so there are no rates; name the verifier and its column (--verifier, --gold)",
        );
    }
    Ok(())
}

fn open_scorer(path: &std::path::Path) -> anyhow::Result<Judged> {
    // Which of the two it is, its configuration says: what is wrong with it is then said of that one.
    match score_head_at(path)? {
        None => bail!("{} is no reward model: it has no score head", path.display()),
        Some(ScoreHeadKind::Token) => Ok(Judged::Steps(Box::new(ProcessScorer::open(path, None)?))),
        Some(ScoreHeadKind::Sequence | ScoreHeadKind::Value) => {
            Ok(Judged::Replies(Box::new(Scorer::open(path, None)?)))
        }
    }
}

impl Args {
    /// The ways that can be gone; those that were asked for must be among them.
    fn checked_methods(&self) -> anyhow::Result<Vec<Method>> {
        let unscored = self.methods.iter().find(|method| method.needs_scorer() && self.scorer.is_none());
        if let Some(method) = unscored {
            bail!("--method {} needs a scorer; give a reward model with --scorer", method.name());
        }
        if self.sampling.is_greedy() && self.n.iter().any(|n| *n > 1) {
            bail!(
                "at --temperature 0 all replies are the same; give a temperature above 0 to choose among several"
            );
        }
        if let Some(width) = self.width.filter(|width| self.n.iter().any(|n| n < width)) {
            bail!(
                "--width {width} keeps more beginnings than --n {} writes",
                self.n.iter().min().expect("a budget")
            );
        }
        let all = Method::value_variants().iter().copied();
        Ok(all
            .filter(|method| {
                self.methods.is_empty() || self.methods.contains(method) || *method == Method::Greedy
            })
            .filter(|method| !method.needs_scorer() || self.scorer.is_some())
            .collect())
    }

    fn ways(&self, methods: &[Method]) -> Vec<(Method, usize)> {
        let mut budgets = self.n.clone();
        budgets.sort_unstable();
        budgets.dedup();
        let of = |method: &Method| match method {
            Method::Greedy => vec![(Method::Greedy, 1)],
            method => budgets.iter().map(|n| (*method, *n)).collect::<Vec<_>>(),
        };
        methods.iter().flat_map(of).collect()
    }

    fn aggregate(&self) -> Aggregate {
        let named = Aggregate::ALL.iter().find(|(name, _)| *name == self.aggregate);
        named.expect("the parser accepts names of the list alone").1
    }
}

/// What a search needs.
struct Search<'a> {
    args: &'a Args,
    policy: Policy<'a>,
    judge: Judge<'a>,
    scorer: Option<Judged>,
    ways: Vec<(Method, usize)>,
}

/// What was found for the questions of a part.
struct Part {
    /// Replies of each question: the greedy one, and those that are chosen from.
    greedy: Vec<Candidate>,
    drawn: Vec<Vec<Candidate>>,
    /// By budget: what a beam found for each question, and the tokens it drew.
    beams: HashMap<usize, Vec<(Option<Candidate>, usize)>>,
}

impl Search<'_> {
    fn all(&self, records: &[Record]) -> anyhow::Result<Vec<Way>> {
        let empty = |&(method, n): &(Method, usize)| Way { method, n, right: Vec::new(), tokens: 0 };
        let mut ways: Vec<Way> = self.ways.iter().map(empty).collect();
        let most = self.args.n.iter().copied().max().unwrap_or(1);
        let size = (REPLIES_PER_PART / most).max(1);
        let mut progress = Progress::rows(records.len());
        let mut each = |write: &mut dyn FnMut(&Value) -> anyhow::Result<()>| {
            for from in (0..records.len()).step_by(size) {
                let rows = from..(from + size).min(records.len());
                let part = self.part(rows.clone())?;
                for (i, row) in rows.clone().enumerate() {
                    let chosen = self.choose(&part, i, &mut ways);
                    write(&self.row(&records[row], &part, i, &chosen))?;
                }
                progress.advance(rows.len(), 0);
            }
            anyhow::Ok(())
        };
        match &self.args.out {
            Some(out) => ui::write_json_lines(out, |lines| each(&mut |row| lines.write(row)))?,
            None => each(&mut |_| Ok(()))?,
        }
        progress.clear();
        Ok(ways)
    }

    /// Draws, scores and judges replies to the questions of a part.
    fn part(&self, rows: std::ops::Range<usize>) -> anyhow::Result<Part> {
        let draws = self.ways.iter().filter(|(method, _)| !matches!(method, Method::Greedy | Method::Beam));
        let most = draws.map(|(_, n)| *n).max().unwrap_or(0);
        let greedy = self.policy.greedy(&self.policy.asks(rows.clone(), 1))?;
        let mut greedy = self.candidates(rows.clone(), greedy, false)?;
        let drawn = match most {
            0 => rows.clone().map(|_| Vec::new()).collect(),
            n => self.policy.whole(&self.policy.asks(rows.clone(), n))?,
        };
        let drawn = self.candidates(rows.clone(), drawn, true)?;
        let mut beams = HashMap::new();
        for (_, n) in self.ways.iter().filter(|(method, _)| *method == Method::Beam) {
            beams.insert(*n, self.beam(rows.clone(), *n)?);
        }
        Ok(Part { greedy: greedy.iter_mut().map(|one| one.remove(0)).collect(), drawn, beams })
    }

    fn candidates(
        &self,
        rows: std::ops::Range<usize>,
        written: Vec<Vec<Written>>,
        is_scored: bool,
    ) -> anyhow::Result<Vec<Vec<Candidate>>> {
        let counts: Vec<usize> = written.iter().map(Vec::len).collect();
        let flat: Vec<(usize, Written)> =
            rows.zip(written).flat_map(|(row, written)| written.into_iter().map(move |w| (row, w))).collect();
        let replies: Vec<(usize, String)> = flat.iter().map(|(row, w)| (*row, w.text.clone())).collect();
        let scores = match &self.scorer {
            Some(scorer) if is_scored => self.scores(scorer, &replies)?,
            _ => replies.iter().map(|_| (None, None)).collect(),
        };
        let verdicts = self.judge.verdicts(&replies);
        let mut all =
            flat.into_iter().zip(scores).zip(verdicts).map(|(((_, w), (score, step_scores)), right)| {
                Candidate { text: w.text, score, step_scores, right, n_tokens: w.n_tokens }
            });
        Ok(counts.into_iter().map(|n| all.by_ref().take(n).collect()).collect())
    }

    /// A score for each reply, and those of its steps; none for a reply without steps, or one that the scorer cannot read.
    #[expect(clippy::type_complexity, reason = "a pair of what was scored, named once")]
    fn scores(
        &self,
        scorer: &Judged,
        replies: &[(usize, String)],
    ) -> anyhow::Result<Vec<(Option<f64>, Option<Vec<f64>>)>> {
        match scorer {
            Judged::Steps(scorer) => {
                let steps: Vec<Vec<String>> =
                    replies.iter().map(|(_, text)| self.args.separator.split(text)).collect();
                let asked: Vec<(&str, &[String])> = replies
                    .iter()
                    .zip(&steps)
                    .map(|((question, _), steps)| (self.judge.prompts[*question].as_str(), steps.as_slice()))
                    .collect();
                let all = scorer.probabilities(&asked)?;
                Ok(all.into_iter().map(|steps| (self.args.aggregate().of(&steps), Some(steps))).collect())
            }
            Judged::Replies(scorer) => {
                let examples = replies
                    .iter()
                    .map(|(question, text)| scorer.texts(&self.judge.prompts[*question], text))
                    .collect::<Result<Vec<Example>, _>>()?;
                let n = scorer.n_outputs();
                let mean = |outputs: &[f32]| outputs.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
                Ok(scorer
                    .scores(examples)
                    .chunks_exact(n)
                    .map(|outputs| (Some(mean(outputs)), None))
                    .collect())
            }
        }
    }

    fn beam(
        &self,
        rows: std::ops::Range<usize>,
        n: usize,
    ) -> anyhow::Result<Vec<(Option<Candidate>, usize)>> {
        let Some(Judged::Steps(scorer)) = &self.scorer else { unreachable!("beams are of process scorers") };
        let options = BeamOptions {
            n,
            width: self.args.width.unwrap_or(n / 4).max(1),
            max_steps: self.args.max_steps,
            max_tokens: self.args.sampling.max_new_tokens(),
            aggregate: self.args.aggregate(),
        };
        let questions: Vec<(usize, u64)> =
            rows.clone().map(|question| (question, self.policy.key(question) + BEAM_KEYS)).collect();
        let splitter = &self.args.separator;
        let mut write = |asks: &[pt_search::Ask]| self.policy.step(asks, splitter);
        let mut score = |asked: &[(usize, &[String])]| {
            let asked: Vec<(&str, &[String])> = asked
                .iter()
                .map(|(question, steps)| (self.judge.prompts[*question].as_str(), *steps))
                .collect();
            anyhow::Ok(scorer.probabilities(&asked)?)
        };
        let searched = beam_search(&questions, splitter, options, &mut write, &mut score)?;
        let text = |found: &Found| splitter.join(&found.steps);
        let replies: Vec<(usize, String)> = rows
            .zip(&searched)
            .map(|(row, searched)| (row, searched.found.as_ref().map(text).unwrap_or_default()))
            .collect();
        let verdicts = self.judge.verdicts(&replies);
        let candidate =
            |((searched, (_, text)), right): ((pt_search::Searched, (usize, String)), Option<bool>)| {
                let n_tokens = searched.n_tokens;
                let candidate = searched.found.map(|found| Candidate {
                    text,
                    score: Some(found.score),
                    step_scores: Some(found.step_scores),
                    right,
                    n_tokens,
                });
                (candidate, n_tokens)
            };
        Ok(searched.into_iter().zip(replies).zip(verdicts).map(candidate).collect())
    }

    /// What each way comes to for a question: notes whether it is right, and gives the index of the reply that was chosen.
    fn choose(&self, part: &Part, i: usize, ways: &mut [Way]) -> Vec<Option<usize>> {
        let drawn = &part.drawn[i];
        let answers: Vec<Option<String>> = drawn.iter().map(|candidate| answer(&candidate.text)).collect();
        let same = Sameness::new();
        let votes: Vec<Option<f64>> =
            drawn.iter().map(|candidate| candidate.score.map(|s| self.vote(s))).collect();
        let mut chosen = Vec::with_capacity(ways.len());
        for way in ways {
            let n = way.n.min(drawn.len());
            let first = &drawn[..n];
            way.tokens += match way.method {
                Method::Greedy => part.greedy[i].n_tokens,
                Method::Beam => part.beams[&way.n][i].1,
                _ => first.iter().map(|candidate| candidate.n_tokens).sum(),
            };
            let scores: Vec<Option<f64>> = first.iter().map(|candidate| candidate.score).collect();
            let pick = match way.method {
                Method::Greedy | Method::Beam | Method::Any => None,
                Method::Majority => majority(&answers[..n], |a, b| same.holds(a, b)),
                Method::BestOfN => best(&scores),
                Method::WeightedMajority => {
                    weighted_majority(&answers[..n], &votes[..n], |a, b| same.holds(a, b))
                }
            };
            way.right.push(match way.method {
                Method::Greedy => part.greedy[i].right,
                // A search that found nothing has no right reply, if there is one at all.
                Method::Beam => match &part.beams[&way.n][i].0 {
                    Some(found) => found.right,
                    None => part.greedy[i].right.map(|_| false),
                },
                Method::Any => first.iter().filter_map(|candidate| candidate.right).reduce(|a, b| a || b),
                // Without an answer among them, nothing is chosen, which is wrong where anything could be right.
                _ => match pick {
                    Some(pick) => first[pick].right,
                    None => part.greedy[i].right.map(|_| false),
                },
            });
            chosen.push(pick);
        }
        chosen
    }

    /// What a score is worth as a vote: at least 0.
    fn vote(&self, score: f64) -> f64 {
        match self.scorer {
            Some(Judged::Replies(_)) => 1.0 / (1.0 + (-score).exp()),
            _ => score,
        }
    }

    fn row(&self, record: &Record, part: &Part, i: usize, chosen: &[Option<usize>]) -> Value {
        let mut row = record.to_row();
        row.insert("greedy".to_owned(), json!(part.greedy[i]));
        row.insert("samples".to_owned(), json!(part.drawn[i]));
        let mut picks = serde_json::Map::new();
        for ((method, n), pick) in self.ways.iter().zip(chosen) {
            match method {
                Method::Greedy | Method::Any => {}
                Method::Beam => {
                    picks.insert(format!("beam@{n}"), json!(part.beams[n][i].0));
                }
                method => {
                    picks.insert(format!("{}@{n}", method.name()), json!(pick));
                }
            }
        }
        row.insert("chosen".to_owned(), Value::Object(picks));
        Value::Object(row)
    }
}

/// The answer of a reply: after `####`, in the last `\boxed{}`, or the last line that is not blank.
fn answer(reply: &str) -> Option<String> {
    let line = || reply.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    pt_tasks::final_answer(reply)
        .map(str::to_owned)
        .or_else(|| pt_verify::boxed(reply))
        .or_else(line)
        .filter(|text| !text.is_empty())
}

/// Whether two answers are the same.
struct Sameness(Box<dyn Verifier>);

impl Sameness {
    fn new() -> Sameness {
        let mathematics = pt_verify::build("math", &toml::Table::new());
        Sameness(mathematics.expect("the verifier is in the catalogue and needs no options"))
    }

    fn holds(&self, a: &str, b: &str) -> bool {
        let plain = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
            words.join(" ").trim_end_matches(['.', ',', ';']).to_owned()
        };
        if plain(a) == plain(b) {
            return true;
        }
        let (gold, row) = (Value::String(a.to_owned()), serde_json::Map::new());
        let question =
            pt_verify::Question { prompt: "", reply: b, gold: Some(&gold), row: &row, is_truncated: false };
        self.0.verify(&question).is_pass()
    }
}

fn table(ways: &[Way], style: Style) -> String {
    let greedy = ways.iter().find(|way| way.method == Method::Greedy).expect("greedy is always gone");
    let mut text = style.bold(&format!(
        "{:<24}{:>8}   {:<16}{:>10}   {}\n",
        "", "solved", "95 %", "tokens", "gained over greedy"
    ));
    for way in ways {
        let judged: Vec<bool> = way.right.iter().flatten().copied().collect();
        let n_right = judged.iter().filter(|right| **right).count();
        let (rate, interval) = match judged.len() {
            0 => ("-".to_owned(), None),
            n => (number(n_right as f64 / n as f64), Some(wilson_interval(n_right, n, Z_95))),
        };
        let pairs: Vec<(bool, bool)> = greedy
            .right
            .iter()
            .zip(&way.right)
            .filter_map(|(before, after)| Some(((*before)?, (*after)?)))
            .collect();
        let (before, after): (Vec<bool>, Vec<bool>) = pairs.into_iter().unzip();
        let gained = match way.method {
            Method::Greedy => String::new(),
            _ if before.is_empty() => "-".to_owned(),
            _ => {
                let gain = paired_gain(&before, &after);
                format!("{:+.3} ({}, p {:.3})", gain.difference, range(Some(gain.interval95)), gain.p_value)
            }
        };
        let tokens = way.tokens as f64 / way.right.len().max(1) as f64;
        text += &format!(
            "{:<24}{rate:>8}   {:<16}{:>10}   {gained}\n",
            way.name(),
            range(interval),
            number(tokens)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_and_compared() {
        for (reply, expected) in [
            ("1 + 2 = 3\n#### 3\nmore", Some("3")),
            ("so \\boxed{\\frac{1}{2}} it is", Some("\\frac{1}{2}")),
            ("first\nyes\n\n", Some("yes")),
            (" \n", None),
        ] {
            assert_eq!(answer(reply).as_deref(), expected, "{reply:?}");
        }
        let same = Sameness::new();
        for (a, b, expected) in [
            ("3", "3.0", true),
            ("\\frac{1}{2}", "0.5", true),
            ("Yes", "yes.", true),
            ("1,000", "1000", true),
            ("3", "4", false),
            ("yes", "no", false),
        ] {
            assert_eq!(same.holds(a, b), expected, "{a} and {b}");
        }
    }
}

//! `posttrain feedback audit`: a judge measured on labelled pairs, and whether it may serve as a reward.

use std::path::Path;

use anyhow::bail;
use pt_feedback::{Audit, GradeOptions, Kind, Subject, Thresholds};

use super::judge::JudgingArgs;
use super::target::write;
use super::who::Who;
use super::{Calls, constitution, print};
use crate::Context;
use crate::rows::ReadArgs;
use crate::ui;

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
pub(super) struct AuditArgs {
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
    pub(super) fn run(&self, context: &Context) -> anyhow::Result<()> {
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

//! A run as people see it: a bar on a terminal, lines in a file, and what each stage gained.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pt_engine::Profile;
use pt_pipeline::{StageReport, Watch};
use pt_recipe::{PlannedStage, PlannedWork};
use pt_train::{EvalStats, StepStats, Watcher};

use super::{Style, count, note};

/// Weight of the newest step in the smoothed loss.
const SMOOTHING: f64 = 0.1;
/// Without a terminal, a line at least this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Watches a run.
pub(crate) struct TrainingView {
    style: Style,
    /// Matrix products per second this machine reaches, in floating-point operations.
    peak_flops: f64,
    is_terminal: bool,
    stage: Option<StageView>,
    /// How far a stage is that trains nothing.
    work: Option<ProgressBar>,
    measured: Vec<StageTime>,
    /// Time by operation, if it is to be shown.
    profile: Option<Profile>,
}

/// Time a stage took, for comparison with the plan.
#[derive(Clone, Debug)]
pub(crate) struct StageTime {
    /// The stage.
    pub(crate) name: String,
    /// Seconds of its training loop.
    pub(crate) seconds: f64,
    /// Steps taken in them, which is fewer than all after a resume.
    pub(crate) steps: u64,
    /// Peak of the buffers.
    pub(crate) peak_bytes: usize,
}

struct StageView {
    name: String,
    bar: ProgressBar,
    steps: u64,
    steps_before: u64,
    flops_per_token: f64,
    loss: Option<f64>,
    eval_loss: Option<f64>,
    n_tokens: u64,
    begun: Instant,
    last_line: Instant,
}

impl TrainingView {
    /// A view that draws on standard error.
    pub(crate) fn new(style: Style, peak_flops: f64, with_profile: bool) -> TrainingView {
        let is_terminal = std::io::stderr().is_terminal();
        let profile = with_profile.then(Profile::default);
        TrainingView {
            style,
            peak_flops,
            is_terminal,
            stage: None,
            work: None,
            measured: Vec::new(),
            profile,
        }
    }

    /// Times of the stages that ended.
    pub(crate) fn measured(&self) -> &[StageTime] {
        &self.measured
    }

    fn say(&self, line: &str) {
        match &self.stage {
            Some(stage) if self.is_terminal => stage.bar.suspend(|| note(line)),
            _ => note(line),
        }
    }
}

impl StageView {
    /// `loss 1.234  12,345 tok/s  61 % of peak`.
    fn message(&self, tokens_per_second: f64, peak_flops: f64) -> String {
        let mut text = self.loss.map_or_else(String::new, |loss| format!("loss {loss:.4}  "));
        if let Some(eval_loss) = self.eval_loss {
            text += &format!("held-out {eval_loss:.4}  ");
        }
        let share = tokens_per_second * self.flops_per_token / peak_flops;
        text + &format!("{} tok/s  {:.0} % of peak", count(tokens_per_second as usize), share * 100.0)
    }
}

impl Watcher for TrainingView {
    fn step(&mut self, steps_done: u64, stats: &StepStats, profile: &Profile, elapsed_s: f64) {
        if let Some(sum) = &mut self.profile {
            sum.merge(profile);
        }
        let (peak_flops, is_terminal) = (self.peak_flops, self.is_terminal);
        let Some(stage) = &mut self.stage else { return };
        stage.n_tokens += stats.n_tokens;
        stage.loss = Some(stage.loss.map_or(stats.loss, |loss| loss + SMOOTHING * (stats.loss - loss)));
        let message = stage.message(stats.n_tokens as f64 / elapsed_s, peak_flops);
        stage.bar.set_position(steps_done);
        stage.bar.set_message(message.clone());
        let due = stage.last_line.elapsed() >= LINE_EVERY || steps_done == stage.steps;
        if !is_terminal && due {
            stage.last_line = Instant::now();
            note(&format!("  {}: step {steps_done} of {}  {message}", stage.name, stage.steps));
        }
    }

    fn eval(&mut self, _: u64, stats: &EvalStats) {
        if let Some(stage) = &mut self.stage {
            stage.eval_loss = Some(stats.loss);
        }
    }

    fn saved(&mut self, _: u64) {}
}

impl Watch for TrainingView {
    fn stage_begun(&mut self, stage: &PlannedStage, steps_done: u64, flops_per_token: f64) {
        let bar = ProgressBar::new(stage.steps);
        let template = "  {prefix:10} {bar:28} {pos} of {len} steps  {msg}  {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is constant and right"));
        bar.set_prefix(stage.name.clone());
        bar.set_position(steps_done);
        bar.reset_eta();
        let now = Instant::now();
        if steps_done > 0 {
            self.say(&format!("{}: going on after step {steps_done}", stage.name));
        }
        self.stage = Some(StageView {
            name: stage.name.clone(),
            bar,
            steps: stage.steps,
            steps_before: steps_done,
            flops_per_token,
            loss: None,
            eval_loss: None,
            n_tokens: 0,
            begun: now,
            last_line: now,
        });
        pt_kernels::buffer::reset_peak();
    }

    fn measuring(&mut self, stage: &PlannedStage, when: &'static str) {
        if let Some(view) = self.stage.take_if(|view| view.name == stage.name) {
            view.bar.finish_and_clear();
            self.measured.push(view.time());
        }
        let n = stage.eval.n * stage.eval.tasks.len() as u64;
        note(&format!("  {}: answering {} held-out problems {when} training", stage.name, count(n as usize)));
    }

    fn stage_ended(&mut self, stage: &PlannedStage, report: &StageReport) {
        if let Some(view) = self.stage.take() {
            view.bar.finish_and_clear();
            self.measured.push(view.time());
        }
        let style = self.style;
        let loss = report.eval_loss.map_or_else(String::new, |loss| format!(", held-out loss {loss:.4}"));
        let best =
            report.best_step.map_or_else(String::new, |step| format!(", weights of step {step}, its best"));
        note(&format!(
            "{} {}: {} steps{loss}{best}",
            style.good("done"),
            style.bold(&stage.name),
            count(report.steps as usize)
        ));
        for gain in &report.gains {
            note(&gain_line(gain, style));
        }
        if let Some(profile) = self.profile.as_mut().map(std::mem::take) {
            note(&profile_table(&profile));
        }
    }

    fn work_begun(&mut self, stage: &PlannedWork) {
        self.say(&format!("{}: {}", self.style.bold(&stage.name), stage.title));
    }

    fn work_progress(&mut self, stage: &str, what: &str, done: usize, of: usize) {
        if !what.is_empty() {
            note(&format!("  {stage}: {what}, {}", count(of)));
        }
        let bar = self.work.get_or_insert_with(|| {
            let bar = ProgressBar::new(of as u64);
            let template = "  {prefix:10} {bar:28} {pos} of {len}  {eta} left";
            bar.set_style(
                ProgressStyle::with_template(template).expect("the template is constant and right"),
            );
            bar
        });
        bar.set_prefix(stage.to_owned());
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }

    fn work_ended(&mut self, stage: &PlannedWork, report: &StageReport) {
        if let Some(bar) = self.work.take() {
            bar.finish_and_clear();
        }
        let style = self.style;
        note(&format!("{} {}: {}", style.good("done"), style.bold(&stage.name), stage.title));
        measured_lines(report, style).iter().for_each(|line| note(line));
        report.lines.iter().for_each(|line| note(&format!("  {line}")));
    }

    fn note(&mut self, message: &str) {
        self.say(&format!("{} {message}", self.style.warning("note:")));
    }
}

impl StageView {
    fn time(&self) -> StageTime {
        StageTime {
            name: self.name.clone(),
            seconds: self.begun.elapsed().as_secs_f64(),
            steps: self.bar.position() - self.steps_before,
            peak_bytes: pt_kernels::buffer::peak_bytes(),
        }
    }
}

/// Time by operation, longest first.
fn profile_table(profile: &Profile) -> String {
    let rows = profile.rows();
    let total: f64 = rows.iter().map(|(_, _, time, _)| time.as_secs_f64()).sum();
    let line = |(op, direction, time, calls): &(&str, &str, Duration, u64)| {
        let seconds = time.as_secs_f64();
        format!(
            "  {op:16} {direction:9} {seconds:8.2} s {:5.1} %  {} calls",
            100.0 * seconds / total,
            count(*calls as usize)
        )
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What an eval stage found: each benchmark by its whole name, its models below it, then how every two of them differ.
fn measured_lines(report: &StageReport, style: Style) -> Vec<String> {
    let mut benchmarks: Vec<&str> = Vec::new();
    for measure in &report.measures {
        if !benchmarks.contains(&measure.benchmark.as_str()) {
            benchmarks.push(&measure.benchmark);
        }
    }
    let mut lines = Vec::new();
    for benchmark in benchmarks {
        lines.push(format!("  {}", style.dim(benchmark)));
        let measures = report.measures.iter().filter(|measure| measure.benchmark == benchmark);
        lines.extend(measures.map(measure_line));
        let contrasts = report.contrasts.iter().filter(|contrast| contrast.benchmark == benchmark);
        lines.extend(contrasts.map(|contrast| contrast_line(contrast, style)));
    }
    lines
}

/// `sft        acc 0.625 (95 % 0.567 to 0.661), 200 questions`.
fn measure_line(measure: &pt_pipeline::Measure) -> String {
    let interval =
        measure.interval95.map_or_else(String::new, |(low, high)| format!(" (95 % {low:.3} to {high:.3})"));
    let (model, metric) = (&measure.model, &measure.metric);
    format!("    {model:10} {metric} {:.3}{interval}, {} questions", measure.value, count(measure.n))
}

/// `base -> sft  gained +0.615 (95 % +0.567 to +0.661)`.
fn contrast_line(contrast: &pt_pipeline::Contrast, style: Style) -> String {
    let (low, high) = contrast.gain95;
    let gain = format!("{:+.3}", contrast.gain);
    let gain = if low > 0.0 {
        style.good(&gain)
    } else if high < 0.0 {
        style.error(&gain)
    } else {
        gain
    };
    let pair = format!("{} -> {}", contrast.base, contrast.model);
    format!("    {pair:20} gained {gain} (95 % {low:+.3} to {high:+.3})")
}

/// `accuracy 1.0 % -> 62.5 % (+61.5 points, 95 % interval 56.7 to 66.1, p = 1e-60, 400 problems)`.
fn gain_line(gain: &pt_pipeline::TaskGain, style: Style) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let points = |share: f64| format!("{:+.1}", share * 100.0);
    let significant = gain.interval95.0 > 0.0;
    let difference = format!("{} points", points(gain.difference));
    let difference = if significant { style.good(&difference) } else { style.warning(&difference) };
    let won = gain.win_rate_interval95;
    format!(
        "  accuracy {} -> {}: {difference}, 95 % interval {} to {}, p = {:.1e}, {} held-out problems\n  \
         win rate over the model before {} (95 %: {} to {}): right beats wrong, then working shown beats none\n  {}",
        percent(gain.before),
        percent(gain.after),
        points(gain.interval95.0),
        points(gain.interval95.1),
        gain.p_value,
        count(gain.n),
        percent(gain.win_rate),
        percent(won.0),
        percent(won.1),
        style.dim(&gain.task)
    )
}

//! A plan as aligned text, for people.

use crate::plan::{
    AnyStage, Mixture, Plan, PlannedBound, PlannedReward, PlannedRollout, PlannedSource, PlannedStage,
    PlannedWork, StepSize,
};

/// Rows of (key, value) under a heading.
struct Block {
    heading: String,
    rows: Vec<(String, String)>,
}

impl Block {
    fn new(heading: String) -> Block {
        Block { heading, rows: Vec::new() }
    }

    fn row(&mut self, key: &str, value: impl Into<String>) {
        self.rows.push((key.to_owned(), value.into()));
    }
}

impl Plan {
    /// The plan as an aligned table.
    pub fn to_table(&self) -> String {
        let mut blocks = vec![self.head()];
        blocks.extend(self.all_stages().iter().map(|stage| match stage {
            AnyStage::Training(stage) => stage_block(stage),
            AnyStage::Other(work) => work_block(work),
        }));
        let width =
            blocks.iter().flat_map(|b| &b.rows).map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for block in &blocks {
            text += &format!("{}\n", block.heading);
            for (key, value) in &block.rows {
                text += &format!("  {key:<width$}  {value}\n");
            }
        }
        text
    }

    fn head(&self) -> Block {
        let mut block = Block::new(format!("run {}", self.name));
        let source = match (&self.model.base, &self.model.new) {
            (Some(base), _) => base.clone(),
            (None, Some(new)) => format!(
                "new {:?}, {} layers, width {}, {} / {} heads, vocabulary {}",
                new.architecture,
                new.num_hidden_layers,
                new.hidden_size,
                new.num_attention_heads,
                new.num_key_value_heads,
                count(new.vocab_size)
            ),
            (None, None) => "(none)".to_owned(),
        };
        block.row("model", source);
        block.row("parameters", format!("{}, {}", count(self.model.parameters), self.model.dtype.as_str()));
        block.row("seed", self.seed.to_string());
        block.row("plan hash", self.hash());
        block
    }
}

fn work_block(work: &PlannedWork) -> Block {
    let mut block = Block::new(format!("stage {} ({})", AnyStage::Other(work).label(), work.r#type));
    if !work.reads.is_empty() {
        block.row("reads", work.reads.join(", "));
    }
    for (key, value) in &work.summary {
        block.row(key, value.as_str());
    }
    block
}

fn stage_block(stage: &PlannedStage) -> Block {
    let mut block = Block::new(format!("stage {} ({})", Plan::stage_label(stage), stage.r#type));
    let lora = stage.lora.as_ref().map_or_else(String::new, |lora| {
        format!(", rank {}, alpha {}, on {}", lora.rank, lora.alpha, lora.targets.join(" "))
    });
    let storage = stage.quantization.as_ref().map_or_else(String::new, |q| {
        format!(
            ", frozen weights in {}{}",
            q.r#type.as_str(),
            if q.double { " with quantised scales" } else { "" }
        )
    });
    block.row("method", format!("{}{lora}{storage}", stage.train.method.as_str()));
    if crate::recipe::stage_of(&stage.base).is_some() {
        block.row("begins with", stage.base.as_str());
    }
    block.row("trains", format!("{} parameters", count(stage.trainable_parameters)));
    block.row("objective", component(&stage.objective.r#type, &stage.objective.params));
    block.row("optimizer", component(&stage.optimizer.r#type, &stage.optimizer.params));
    block.row("learning rate", learning_rate(stage));
    let step = match stage.train.step_size {
        StepSize::Rows(rows) => format!("{} rows", count(rows)),
        StepSize::Tokens(tokens) => format!("{} tokens", count(tokens)),
    };
    block.row("steps", format!("{} of {step}, {} epochs", count(stage.steps), round(stage.train.epochs)));
    block.row("tokens", count(stage.tokens));
    if let Some(rollout) = &stage.rollout {
        rollout_rows(&mut block, rollout);
    }
    if let Some(environment) = &stage.environment {
        let limits = (count(environment.max_turns), count(environment.max_tokens));
        block.row(
            "environment",
            format!("{}, at most {} turns and {} tokens", environment.r#type, limits.0, limits.1),
        );
    }
    if let Some(server) = &stage.server {
        block.row("sampled by", &*server.url);
    }
    for reward in &stage.rewards {
        block.row("reward", reward_line(reward));
    }
    for (i, source) in stage.data.train.iter().enumerate() {
        block.row("train data", format!("{}{}", source_line(source), mixed(&stage.data.mixture, i)));
    }
    for source in &stage.data.eval {
        block.row("held out", source_line(source));
    }
    if stage.data.eval_fraction > 0.0 {
        block.row("held out", format!("{} % of the training rows", round(stage.data.eval_fraction * 100.0)));
    }
    let cut =
        format!("at most {} tokens, then {}", count(stage.data.max_length), stage.data.truncation.as_str());
    block.row("rows", format!("{cut}; packing {}", stage.data.packing.as_str()));
    for task in &stage.eval.tasks {
        block.row("accuracy on", format!("{task}, {} problems", count(stage.eval.n)));
    }
    for part in &stage.memory {
        block.row(&format!("memory: {}", part.part), bytes(part.bytes));
    }
    block.row("memory: total", bytes(stage.memory.iter().map(|part| part.bytes).sum()));
    block.row("expected time", seconds(stage.expected_seconds));
    block
}

fn rollout_rows(block: &mut Block, rollout: &PlannedRollout) {
    let mut samples = format!(
        "{} of each prompt, at most {} tokens, temperature {}",
        count(rollout.n),
        count(rollout.max_new_tokens),
        round(rollout.temperature)
    );
    for (name, value, off) in
        [("top_k", rollout.top_k as f64, 0.0), ("top_p", rollout.top_p, 1.0), ("min_p", rollout.min_p, 0.0)]
    {
        if value != off {
            samples += &format!(", {name} {}", round(value));
        }
    }
    block.row("samples", samples);
    let steps = rollout.mini_batches * rollout.passes;
    let mut used = match steps {
        1 => "once, in one step".to_owned(),
        _ => format!(
            "in {} steps: {} of {} part(s)",
            count(steps),
            counted_passes(rollout.passes),
            count(rollout.mini_batches)
        ),
    };
    if rollout.sampling_rounds > 1 {
        used += &format!(
            "; groups without signal are sampled again, up to {} times in all",
            count(rollout.sampling_rounds)
        );
    }
    if rollout.curriculum {
        used += "; prompts drawn by difficulty";
    }
    if rollout.mask_truncated {
        used += "; truncated ones masked";
    }
    block.row("samples used", used);
    let mut advantages = format!(
        "reward less {}, over the deviation of {}, {}",
        rollout.baseline.as_str(),
        rollout.scale_rewards.as_str(),
        rollout.aggregation.as_str()
    );
    if rollout.normalize_advantages {
        advantages += ", standardised over the round";
    }
    if rollout.reward_kl > 0.0 {
        advantages += &format!(", divergence costs {}", round(rollout.reward_kl));
    }
    if rollout.overlong_cache > 0 {
        advantages += &format!(", the last {} tokens punished", count(rollout.overlong_cache));
    }
    block.row("advantages", advantages);
    block.row("alarms", rollout.alarms.as_str());
}

fn counted_passes(passes: u64) -> String {
    if passes == 1 { "1 pass".to_owned() } else { format!("{} passes", count(passes)) }
}

fn reward_line(reward: &PlannedReward) -> String {
    let mut line = component(&reward.r#type, &reward.params);
    if reward.name != reward.r#type {
        line = format!("{}: {line}", reward.name);
    }
    line += &format!(", weight {}", round(reward.weight));
    if let Some(gate) = reward.gate {
        line += &format!(", gate {}", round(gate));
    }
    if let Some(gold) = &reward.gold {
        line += &format!(", right answers in `{gold}`");
    }
    if reward.hidden {
        line += ", only watched";
    }
    if let Some(constraint) = &reward.constraint {
        let bound = match constraint.bound {
            PlannedBound::AtLeast(bound) => format!("at least {}", round(bound)),
            PlannedBound::AtMost(bound) => format!("at most {}", round(bound)),
        };
        line += &format!(", mean {bound} by a multiplier from {}", round(constraint.multiplier_init));
    }
    line
}

fn learning_rate(stage: &PlannedStage) -> String {
    let schedule = &stage.schedule;
    let fall = match schedule.decay_steps {
        0 => String::new(),
        n => format!(", to {} of it over the last {}", round(schedule.min_ratio), count(n)),
    };
    format!(
        "{:e}, {}, {} steps of warm-up{fall}",
        schedule.learning_rate,
        schedule.r#type.as_str(),
        count(schedule.warmup_steps)
    )
}

/// What the mixture does with source `i`, where that is not "every row once".
fn mixed(mixture: &Mixture, i: usize) -> String {
    match mixture {
        Mixture::Repeats(repeats) if repeats[i] == 1.0 => String::new(),
        Mixture::Repeats(repeats) => format!(", each {} times an epoch", round(repeats[i])),
        Mixture::Shares { weights, .. } => {
            format!(", {} % of the rows", round(100.0 * weights[i] / weights.iter().sum::<f64>()))
        }
    }
}

fn source_line(source: &PlannedSource) -> String {
    let mut line = format!(
        "{} ({}): {} rows, {} tokens, {} train ({})",
        source.source,
        source.layout,
        count(source.rows),
        count(source.tokens),
        count(source.trained_tokens),
        source.mask.as_str()
    );
    for (n, what) in [(source.rows_truncated, "cut"), (source.rows_dropped, "dropped")] {
        if n > 0 {
            line += &format!(", {} rows {what}", count(n));
        }
    }
    line
}

fn component(name: &str, params: &serde_json::Value) -> String {
    let params = params.as_object().into_iter().flatten();
    params.fold(name.to_owned(), |text, (key, value)| format!("{text}, {key} {value}"))
}

/// `1234567` as `1,234,567`.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn seconds(s: f64) -> String {
    match s {
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// At most three decimals, without trailing zeros.
fn round(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        for (n, expected) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), expected);
        }
        for (n, expected) in [(1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(n), expected);
        }
        for (s, expected) in [(4.4, "4 s"), (90.1, "2 min"), (5400.0, "1.5 h")] {
            assert_eq!(seconds(s), expected);
        }
        for (value, expected) in [(3.0, "3"), (0.125, "0.125"), (0.0, "0"), (10.0, "10")] {
            assert_eq!(round(value), expected);
        }
    }
}

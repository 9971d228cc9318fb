//! What the model said before and after each stage, and what it was trained on while it sampled by itself.

use std::fmt::Write as _;

use crate::plots::parts_bar;
use crate::read::{RolloutSample, RolloutStep, RunData, Sample, StageData};
use crate::text::{count, cut, esc, number};

/// Most characters shown of a text.
const MAX_CHARS: usize = 1200;
/// How many answers are shown of each fate: newly right, newly wrong, still wrong, still right.
const SHOWN: [usize; 4] = [5, 4, 3, 2];
/// Groups shown of a step, and samples of a group.
const SHOWN_ROLLOUTS: (usize, usize) = (2, 4);

pub(super) fn section(run: &RunData) -> String {
    let mut html = String::new();
    for stage in &run.stages {
        html.push_str(&answers(stage));
        html.push_str(&rollouts(stage));
    }
    if html.is_empty() {
        "<p>No answers were kept: no stage has tasks or rollouts.</p>\n".to_owned()
    } else {
        html
    }
}

/// Where an answer went: index into [`SHOWN`].
fn fate(before: &Sample, after: &Sample) -> usize {
    match (before.passed, after.passed) {
        (false, true) => 0,
        (true, false) => 1,
        (false, false) => 2,
        (true, true) => 3,
    }
}

fn answers(stage: &StageData) -> String {
    let mut html = String::new();
    for before in &stage.before {
        let Some(after) = stage.after.iter().find(|after| after.task == before.task) else { continue };
        let pairs: Vec<(&Sample, &Sample)> = before.samples.iter().zip(&after.samples).collect();
        let mut shown: Vec<(usize, &(&Sample, &Sample))> = Vec::new();
        let mut counts = [0; 4];
        for pair in &pairs {
            let fate = fate(pair.0, pair.1);
            if counts[fate] < SHOWN[fate] {
                shown.push((fate, pair));
            }
            counts[fate] += 1;
        }
        shown.sort_by_key(|(fate, _)| *fate);
        let parts: Vec<(&str, f64, String)> = ["newly right", "newly wrong", "still wrong", "still right"]
            .into_iter()
            .zip(counts)
            .map(|(name, n)| (name, n as f64, count(n as u64)))
            .collect();
        let _ = write!(
            html,
            "<h3>{}</h3>\n<p class=\"meta\">Fate of {} problems: <span class=\"hash\">{}</span></p>\n{}\
             <details><summary>{} answers before and after <small>chosen by fate, the first of each</small></summary>\n",
            esc(stage.name()),
            count(pairs.len() as u64),
            esc(&before.task),
            parts_bar("fate of the problems", &parts, &[1, 2, 0, 3]),
            shown.len()
        );
        shown.iter().for_each(|(_, (before, after))| html.push_str(&pair(before, after)));
        html.push_str("</details>\n");
    }
    html
}

fn pair(before: &Sample, after: &Sample) -> String {
    let reply = |name: &str, sample: &Sample| {
        let because = if sample.reason.is_empty() {
            String::new()
        } else {
            format!("<p class=\"why\">{}</p>", text_line(&sample.reason))
        };
        format!("<div><h4>{name} {}</h4>{}{because}</div>", mark(sample.passed), block(&sample.reply))
    };
    let answer = if before.answer.is_empty() {
        String::new()
    } else {
        format!("<p class=\"why\">expected: <b>{}</b></p>", text_line(&before.answer))
    };
    format!(
        "<div class=\"sample\"><div class=\"cols\"><div><h4>Prompt</h4>{}{answer}</div>{}{}</div></div>\n",
        block(&before.prompt),
        reply("Before", before),
        reply("After", after)
    )
}

fn mark(passed: bool) -> &'static str {
    if passed { "<span class=\"good\">✓ right</span>" } else { "<span class=\"bad\">✗ wrong</span>" }
}

fn block(text: &str) -> String {
    let (start, rest) = cut(text, MAX_CHARS);
    let rest = if rest > 0 { format!(" <i>… {rest} more characters</i>") } else { String::new() };
    if text.is_empty() {
        "<pre><i>(empty)</i></pre>".to_owned()
    } else {
        format!("<pre>{}{rest}</pre>", esc(start))
    }
}

fn text_line(text: &str) -> String {
    let (start, rest) = cut(text, 300);
    esc(start) + if rest > 0 { " …" } else { "" }
}

fn rollouts(stage: &StageData) -> String {
    if stage.rollouts.is_empty() {
        return String::new();
    }
    let steps: Vec<String> = stage.rollouts.iter().map(steps_of).collect();
    let mut html = format!(
        "<details><summary>{}: samples it trained on <small>rollouts of steps {}</small></summary>\n",
        esc(stage.name()),
        steps.join(", ")
    );
    stage.rollouts.iter().for_each(|rollouts| html.push_str(&step(rollouts)));
    html.push_str("</details>\n");
    html
}

/// The steps that trained on a round, as `posttrain rollouts` numbers them.
fn steps_of(rollouts: &RolloutStep) -> String {
    match rollouts.last_step > rollouts.step {
        true => format!("{} to {}", rollouts.step, rollouts.last_step),
        false => rollouts.step.to_string(),
    }
}

fn step(rollouts: &RolloutStep) -> String {
    let mut html = String::new();
    // A group whose samples earn different rewards is one that teaches something.
    let mut groups: Vec<&[RolloutSample]> = rollouts.samples.chunk_by(|a, b| a.group == b.group).collect();
    groups.sort_by_key(|group| group.iter().all(|sample| sample.reward == group[0].reward));
    for group in groups.into_iter().take(SHOWN_ROLLOUTS.0) {
        let prompt = group[0].prompt_text.as_deref().unwrap_or("(the prompt's text was not kept)");
        let mut best: Vec<&RolloutSample> = group.iter().collect();
        best.sort_by(|a, b| b.advantage.total_cmp(&a.advantage));
        let n = best.len();
        let chosen = |i: usize| i < SHOWN_ROLLOUTS.1 / 2 || i + SHOWN_ROLLOUTS.1 / 2 >= n;
        let replies: String =
            best.iter().enumerate().filter(|(i, _)| chosen(*i)).map(|(_, sample)| rollout(sample)).collect();
        let _ = writeln!(
            html,
            "<div class=\"sample\"><div class=\"cols two\"><div><h4>Samples of step {}, prompt {}</h4>{}<p class=\"why\">{} samples; the best and worst are shown</p></div>\
             <div>{replies}</div></div></div>",
            steps_of(rollouts),
            group[0].group.saturating_add(1),
            block(prompt),
            n
        );
    }
    html
}

fn rollout(sample: &RolloutSample) -> String {
    let reward = sample.reward.map_or_else(|| "not judged".to_owned(), number);
    let class = if sample.advantage > 0.0 {
        "good"
    } else if sample.advantage < 0.0 {
        "bad"
    } else {
        "soft"
    };
    format!(
        "<div class=\"reply\"><h4>reward {reward}, <span class=\"{class}\">advantage {}</span>, ended by {}</h4>{}</div>",
        number(sample.advantage),
        esc(&sample.finish_reason),
        block(&sample.text)
    )
}

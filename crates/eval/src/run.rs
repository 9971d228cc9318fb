//! Asking a model the questions of a benchmark.

use std::collections::BTreeMap;

use crate::catalogue::{Benchmark, BenchmarkInfo, Chosen, Loaded};
use crate::error::{EvalError, Result};
use crate::item::{Answer, Ask, Item, Mark, Marks};
use crate::judge::Company;
use crate::results::{Asked, BenchmarkResult, Category, Choice, Metric, Reply, Sample, finite, samples_file};
use crate::source::{Settings, Source};
use crate::stats::{detectable, estimate, majority, pass_at_k};
use crate::subject::{Drawn, Rendered, Subject, Watch};

/// A benchmark, loaded: it can be asked of several models.
pub struct Prepared {
    chosen: Chosen,
    loaded: Loaded,
    settings: Settings,
    /// Places of the questions that are asked.
    places: Vec<usize>,
}

/// Reads a benchmark's questions.
///
/// # Errors
/// If the benchmark or its options are not known, its data are not there or not right, or no question is left.
pub fn prepare(name: &str, settings: &Settings) -> Result<Prepared> {
    let chosen = Chosen::parse(name)?;
    let source = Source { info: chosen.info, options: &chosen.options, settings };
    let loaded = (chosen.info.load)(&source)?;
    let items = items_of(&loaded);
    if items.is_empty() {
        return Err(EvalError::NoQuestions { benchmark: chosen.name });
    }
    let places = evenly(items, settings.limit);
    Ok(Prepared { chosen, loaded, settings: settings.clone(), places })
}

fn items_of(loaded: &Loaded) -> &[Item] {
    match loaded {
        Loaded::Ruled(benchmark) => benchmark.items(),
        Loaded::Judged(benchmark) => benchmark.items(),
    }
}

/// Places of at most `limit` items, in order: the first of every category, then the second of each, and so on.
fn evenly(items: &[Item], limit: Option<usize>) -> Vec<usize> {
    let limit = limit.unwrap_or(items.len()).min(items.len());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, usize)> = items
        .iter()
        .enumerate()
        .map(|(place, item)| {
            let rank = seen.entry(&item.category).and_modify(|n| *n += 1).or_insert(0);
            (*rank, place)
        })
        .collect();
    ranked.sort_unstable();
    let mut places: Vec<usize> = ranked.into_iter().take(limit).map(|(_, place)| place).collect();
    places.sort_unstable();
    places
}

impl Prepared {
    /// The benchmark with its options.
    pub fn name(&self) -> &str {
        &self.chosen.name
    }

    /// Its entry in the catalogue.
    pub fn info(&self) -> &'static BenchmarkInfo {
        self.chosen.info
    }

    /// Whether it compares the model with another.
    pub fn needs_opponent(&self) -> bool {
        matches!(&self.loaded, Loaded::Judged(benchmark) if benchmark.needs_opponent())
    }

    /// Refuses to go without a judge or another model where it needs them, before any model is loaded.
    ///
    /// # Errors
    /// [`EvalError::Missing`].
    pub fn check_company(&self, has_judge: bool, has_opponent: bool) -> Result<()> {
        let name = self.chosen.info.name;
        if matches!(self.loaded, Loaded::Judged(_)) && !has_judge {
            return Err(crate::judge::no_judge(name));
        }
        if self.needs_opponent() && !has_opponent {
            return Err(crate::judge::no_opponent(name));
        }
        Ok(())
    }

    /// The questions that are asked.
    pub fn items(&self) -> Vec<&Item> {
        let items = items_of(&self.loaded);
        self.places.iter().map(|place| &items[*place]).collect()
    }

    /// Asks only the questions that `keeps` accepts, of those that were to be asked.
    pub fn retain(&mut self, keeps: impl Fn(&Item) -> bool) {
        let items = items_of(&self.loaded);
        self.places.retain(|place| keeps(&items[*place]));
    }

    /// Judges replies to one question that were drawn elsewhere. `None` if there is no such question, or if replies to it
    /// are not judged by rule.
    pub fn judge_replies(&self, key: &str, replies: &[&str]) -> Option<Sample> {
        let Loaded::Ruled(benchmark) = &self.loaded else { return None };
        let item = benchmark.items().iter().find(|item| item.key == key)?;
        if !matches!(item.ask, Ask::Reply { .. }) || replies.is_empty() {
            return None;
        }
        let drawn =
            |text: &&str| Drawn { text: (*text).to_owned(), is_truncated: false, is_prompt_cut: false };
        let drawn: Vec<Drawn> = replies.iter().map(drawn).collect();
        Some(self.judge(&**benchmark, &[item], &[drawn]).remove(0))
    }

    /// Asks a model all questions.
    ///
    /// # Errors
    /// If the model cannot be asked, or a judge does not answer.
    pub fn measure(
        &self,
        subject: &Subject<'_>,
        company: &Company<'_>,
        watch: Watch<'_>,
    ) -> Result<(BenchmarkResult, Vec<Sample>)> {
        let items = self.items();
        let samples = match &self.loaded {
            Loaded::Ruled(benchmark) => self.ask(&**benchmark, &items, subject, watch)?,
            Loaded::Judged(benchmark) => benchmark.measure(&items, subject, company)?,
        };
        Ok((self.summarise(&samples, company), samples))
    }

    fn ask(
        &self,
        benchmark: &dyn Benchmark,
        items: &[&Item],
        subject: &Subject<'_>,
        watch: Watch<'_>,
    ) -> Result<Vec<Sample>> {
        let chat = self.settings.chat && !items.iter().any(|item| item.ask == Ask::Roll);
        let rendered = items.iter().map(|item| subject.render(&item.key, &item.prompt, chat));
        let rendered: Vec<Rendered> = rendered.collect::<Result<_>>()?;
        let mut samples: Vec<Option<Sample>> = vec![None; items.len()];
        for (ask, places) in by_kind(items) {
            let prompts: Vec<Rendered> = places.iter().map(|place| rendered[*place].clone()).collect();
            let asked: Vec<&Item> = places.iter().map(|place| items[*place]).collect();
            let found = match ask {
                Ask::Choose(_) => self.choose(benchmark, &asked, prompts, subject, watch)?,
                Ask::Roll => self.roll(benchmark, &asked, &prompts, subject, watch)?,
                Ask::Reply { until, max_new_tokens } => {
                    let drawn = subject.draw(&prompts, until, *max_new_tokens, &self.settings, watch)?;
                    self.judge(benchmark, &asked, &drawn)
                }
            };
            for (place, mut sample) in places.into_iter().zip(found) {
                sample.prompt.clone_from(&rendered[place].text);
                samples[place] = Some(sample);
            }
        }
        Ok(samples.into_iter().flatten().collect())
    }

    fn choose(
        &self,
        benchmark: &dyn Benchmark,
        items: &[&Item],
        prompts: Vec<Rendered>,
        subject: &Subject<'_>,
        watch: Watch<'_>,
    ) -> Result<Vec<Sample>> {
        // A chat template ends where the reply begins: what stands between question and answer in plain text is left away.
        let texts = |item: &Item, prompt: &Rendered| -> Vec<String> {
            let Ask::Choose(choices) = &item.ask else { unreachable!("items of one kind") };
            let delimiter = if prompt.is_chat { "" } else { item.prompt.delimiter };
            choices.iter().map(|choice| format!("{delimiter}{choice}")).collect()
        };
        let asked: Vec<_> = items
            .iter()
            .zip(prompts)
            .map(|(item, prompt)| {
                let choices = texts(item, &prompt);
                (prompt, choices)
            })
            .collect();
        let found = subject.choose(&asked, watch)?;
        let answers: Vec<_> =
            items.iter().zip(&found).map(|(item, found)| (*item, Answer::Choice(&found.scores))).collect();
        let marks = benchmark.mark_all(&answers);
        let mut samples = Vec::with_capacity(items.len());
        for (((item, (_, texts)), found), marks) in items.iter().zip(&asked).zip(&found).zip(marks) {
            let choice = |(text, score): (&String, &crate::item::ChoiceScore)| Choice {
                text: text.clone(),
                logprob: score.logprob,
                is_greedy: score.is_greedy,
            };
            let choices = texts.iter().zip(&found.scores).map(choice).collect();
            let sample = Sample::new(item, Vec::new(), choices, &marks.marks);
            samples.push(Sample { reason: marks.reason, is_prompt_cut: found.is_prompt_cut, ..sample });
        }
        Ok(samples)
    }

    fn roll(
        &self,
        benchmark: &dyn Benchmark,
        items: &[&Item],
        texts: &[Rendered],
        subject: &Subject<'_>,
        watch: Watch<'_>,
    ) -> Result<Vec<Sample>> {
        let scores = subject.roll(texts, watch)?;
        let sample = |(item, score): (&&Item, &crate::item::ChoiceScore)| {
            let marks = benchmark.mark(item, &Answer::Rolled(*score));
            Sample { reason: marks.reason, ..Sample::new(item, Vec::new(), Vec::new(), &marks.marks) }
        };
        Ok(items.iter().zip(&scores).map(sample).collect())
    }

    fn judge(&self, benchmark: &dyn Benchmark, items: &[&Item], drawn: &[Vec<Drawn>]) -> Vec<Sample> {
        let answers: Vec<_> = items
            .iter()
            .zip(drawn)
            .flat_map(|(item, replies)| {
                replies.iter().map(|reply| {
                    (*item, Answer::Reply { text: &reply.text, is_truncated: reply.is_truncated })
                })
            })
            .collect();
        let mut marks = benchmark.mark_all(&answers).into_iter();
        let main = self.chosen.info.metrics[0].name;
        let judged = items.iter().zip(drawn).map(|(item, replies)| {
            let marks: Vec<Marks> = marks.by_ref().take(replies.len()).collect();
            let mut sample = judged(item, replies, &marks, main);
            sample.is_prompt_cut = replies.iter().any(|reply| reply.is_prompt_cut);
            sample
        });
        judged.collect()
    }

    /// The result of questions that were asked and judged.
    pub fn summarise(&self, samples: &[Sample], company: &Company<'_>) -> BenchmarkResult {
        let info = self.chosen.info;
        let metrics = metrics(info, samples, self.settings.samples);
        let first = |sample: &&Sample| sample.score(info.metrics[0].name).is_some();
        let n = samples.iter().filter(first).count();
        BenchmarkResult {
            benchmark: self.chosen.name.clone(),
            source: info.source.to_owned(),
            asked: self.asked(company),
            n,
            n_skipped: samples.len() - n,
            n_truncated: samples.iter().flat_map(|s| &s.replies).filter(|r| r.is_truncated).count(),
            n_prompts_cut: samples.iter().filter(|sample| sample.is_prompt_cut).count(),
            metrics,
            categories: categories(info, samples),
            samples_file: samples_file(&self.chosen.name),
        }
    }

    /// How it is asked: results are compared only where this is the same.
    pub fn asked(&self, company: &Company<'_>) -> Asked {
        let info = self.chosen.info;
        let is_judged = matches!(self.loaded, Loaded::Judged(_));
        let source = Source { info, options: &self.chosen.options, settings: &self.settings };
        Asked {
            version: info.version,
            few_shot: source.few_shot(),
            chat: self.settings.chat,
            samples: self.settings.samples,
            temperature: as_written(self.settings.temperature),
            top_p: as_written(self.settings.top_p),
            max_new_tokens: source.max_new_tokens(),
            seed: self.settings.seed,
            limit: self.settings.limit,
            questions: self.questions(),
            judge: company.judge.filter(|_| is_judged).map(|judge| judge.name().to_owned()),
            against: company.opponent.filter(|_| is_judged).map(|other| other.name.to_owned()),
        }
    }

    fn questions(&self) -> String {
        let items = self.items();
        let texts: Vec<String> = items
            .iter()
            .flat_map(|item| [item.key.clone(), item.prompt.text(), item.gold.to_string()])
            .collect();
        pt_core::hash::of_parts(texts.iter().map(String::as_bytes))
    }
}

/// Items that can be asked together: all choices, all texts, replies with the same stops.
fn by_kind<'i>(items: &[&'i Item]) -> Vec<(&'i Ask, Vec<usize>)> {
    let alike = |a: &Ask, b: &Ask| match (a, b) {
        (Ask::Choose(_), Ask::Choose(_)) => true,
        (a, b) => a == b,
    };
    let mut kinds: Vec<(&Ask, Vec<usize>)> = Vec::new();
    for (place, item) in items.iter().enumerate() {
        match kinds.iter_mut().find(|(ask, _)| alike(ask, &item.ask)) {
            Some((_, places)) => places.push(place),
            None => kinds.push((&item.ask, vec![place])),
        }
    }
    kinds
}

/// A question with its replies: each metric's mean over them, pass@k and the majority's mark where there are several.
fn judged(item: &Item, drawn: &[Drawn], marks: &[Marks], main: &'static str) -> Sample {
    let replies = drawn.iter().zip(marks).map(|(drawn, marks)| Reply {
        text: drawn.text.clone(),
        is_truncated: drawn.is_truncated,
        answer: marks.answer.clone(),
        scores: marks.marks.iter().map(|mark| (mark.metric.to_owned(), mark.value)).collect(),
        reason: marks.reason.clone(),
    });
    let replies = replies.collect();
    // A reply without marks was judged no more than its question can be.
    if marks.iter().any(|marks| marks.marks.is_empty()) {
        return Sample::new(item, replies, Vec::new(), &[]);
    }
    let mut means: Vec<Mark> = Vec::new();
    for mark in &marks[0].marks {
        let values = marks.iter().filter_map(|marks| marks.value(mark.metric));
        means.push(Mark { value: values.sum::<f64>() / marks.len() as f64, ..*mark });
    }
    let mut sample = Sample::new(item, replies, Vec::new(), &means);
    if marks.len() > 1 {
        let n_right = marks.iter().filter(|marks| marks.value(main) == Some(1.0)).count();
        for k in powers(marks.len()) {
            sample.scores.insert(pass_name(k), pass_at_k(marks.len(), n_right, k));
        }
        let answers: Vec<Option<String>> = marks.iter().map(|marks| marks.answer.clone()).collect();
        if answers.iter().any(Option::is_some) {
            let right = majority(&answers).and_then(|place| marks[place].value(main)).unwrap_or(0.0);
            sample.scores.insert(majority_name(marks.len()), right);
        }
    }
    sample
}

/// 1, 2, 4, ... up to `n`, and `n`.
fn powers(n: usize) -> Vec<usize> {
    let mut powers: Vec<usize> =
        std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|k| *k < n).collect();
    powers.push(n);
    powers
}

/// The number as it was written, not its neighbour in single precision: 0.8, not 0.800000011920929.
fn as_written(x: f32) -> f64 {
    x.to_string().parse().expect("a number's own text")
}

fn pass_name(k: usize) -> String {
    format!("pass@{k}")
}

fn majority_name(n: usize) -> String {
    format!("maj@{n}")
}

fn metrics(info: &BenchmarkInfo, samples: &[Sample], n_samples: usize) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for metric in info.metrics {
        let values: Vec<(f64, f64)> = samples.iter().filter_map(|sample| sample.score(metric.name)).collect();
        if values.is_empty() {
            continue;
        }
        let found = estimate(&values);
        let (interval95, stderr) = finite(&found, |x| metric.scaled(x));
        metrics.push(Metric {
            name: metric.name.to_owned(),
            value: metric.scaled(found.mean),
            interval95,
            stderr,
            n: found.n,
            higher_is_better: metric.higher_is_better,
            is_exponential: metric.scale == crate::catalogue::Scale::Exponential,
            detectable: Some(detectable(&values)).filter(|x| x.is_finite()),
        });
    }
    let drawn = powers(n_samples.max(1)).into_iter().map(pass_name).chain([majority_name(n_samples)]);
    for name in drawn.filter(|name| n_samples > 1 && !info.metrics.iter().any(|m| m.name == name)) {
        let values: Vec<(f64, f64)> = samples.iter().filter_map(|sample| sample.score(&name)).collect();
        if values.is_empty() {
            continue;
        }
        let found = estimate(&values);
        let (interval95, stderr) = finite(&found, |x| x);
        metrics.push(Metric {
            name,
            value: found.mean,
            interval95,
            stderr,
            n: found.n,
            higher_is_better: true,
            is_exponential: false,
            detectable: Some(detectable(&values)).filter(|x| x.is_finite()),
        });
    }
    metrics
}

fn categories(info: &BenchmarkInfo, samples: &[Sample]) -> BTreeMap<String, Category> {
    let main = &info.metrics[0];
    let mut values: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in samples {
        if let Some(score) = sample.score(main.name) {
            values.entry(sample.category.clone()).or_default().push(score);
        }
    }
    if values.len() < 2 {
        return BTreeMap::new();
    }
    let category = |values: Vec<(f64, f64)>| {
        let found = estimate(&values);
        let (interval95, _) = finite(&found, |x| main.scaled(x));
        Category { n: found.n, value: main.scaled(found.mean), interval95 }
    };
    values.into_iter().map(|(name, values)| (name, category(values))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Prompt;

    fn item(category: &str) -> Item {
        Item {
            key: "0".to_owned(),
            category: category.to_owned(),
            prompt: Prompt::bare("?"),
            ask: Ask::Reply { until: Vec::new(), max_new_tokens: 1 },
            gold: serde_json::Value::Null,
            row: pt_data::Columns::new(),
        }
    }

    #[test]
    fn a_limit_takes_evenly_from_the_categories() {
        let items: Vec<Item> = ["a", "a", "a", "b", "b", "c"].into_iter().map(item).collect();
        for (limit, expected) in [
            (Some(3), vec![0, 3, 5]),
            (Some(5), vec![0, 1, 3, 4, 5]),
            (Some(2), vec![0, 3]),
            (None, vec![0, 1, 2, 3, 4, 5]),
            (Some(99), vec![0, 1, 2, 3, 4, 5]),
        ] {
            assert_eq!(evenly(&items, limit), expected, "{limit:?}");
        }
    }

    #[test]
    fn numbers_are_recorded_as_they_were_written() {
        for x in [0.8_f32, 0.0, 1.0, 0.05, 1e-8] {
            assert_eq!(as_written(x).to_string(), x.to_string());
        }
    }

    #[test]
    fn several_replies_give_pass_at_k_and_a_vote() {
        let drawn = Drawn { text: String::new(), is_truncated: false, is_prompt_cut: false };
        let marks = |answer: &str, is_right| Marks {
            marks: vec![Mark::of("acc", is_right)],
            answer: Some(answer.to_owned()),
            reason: String::new(),
        };
        let all = [marks("1", false), marks("2", true), marks("2", true), marks("3", false)];
        let sample = judged(&item("a"), &vec![drawn.clone(); 4], &all, "acc");
        // Thousandths, so that the order of operations does not matter.
        let thousandths = |x: &f64| (x * 1000.0).round() as i64;
        let scores: Vec<_> = sample.scores.iter().map(|(name, x)| (name.as_str(), thousandths(x))).collect();
        assert_eq!(
            scores,
            [("acc", 500), ("maj@4", 1000), ("pass@1", 500), ("pass@2", 833), ("pass@4", 1000)]
        );
        let skipped = judged(&item("a"), &[drawn], &[Marks::default()], "acc");
        assert!(skipped.scores.is_empty());
        assert_eq!(powers(6), [1, 2, 4, 6]);
    }
}

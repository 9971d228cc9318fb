//! Sources by name: `generated:arithmetic?level=1-2&n=4000&seed=1&split=train`.
//!
//! | source | parameters |
//! | --- | --- |
//! | `generated:FAMILY` | `level` (`2` or `1-3`; all), `n` (1000), `start` (0), `seed` (0), `split` (`train`, or `heldout`), `form` (`messages`, or `prompt_completion`, `prompt_only`, `preference`, `transcript`), `reply` (`worked`, or `direct`, `wrong`), `rejected` (`wrong`, or `direct`, `worked`; for `preference`), `play` (`halving`, or `narrowing`, `counting`, `blind`) and `turns` (8) of a `transcript`, `unique` (`false`) |
//! | `generated:mix` | the same without `level`, and `families`: `sum,letters@1-2:3,chat@2` is each family with its levels and weight (all families but the puzzles, each weight 1) |
//! | `generated:raw` | `chars` (100000), `seed` (0) |
//!
//! Row `i` is drawn from index `start + i`, so stages that must not share problems by accident take
//! different ranges of the same seed. `unique=true` drops a prompt seen before in the source and is
//! an error when there are too few; use it for evaluation.

use std::collections::HashSet;

use pt_core::rng::Stream;

use crate::catalogue::{FAMILIES, Family, N_QUICKSTART};
use crate::error::TaskError;
use crate::families::guess::{self, Play};
use crate::problem::{Problem, Split, draw};
use crate::raw::raw_documents;
use crate::rows::{Form, Replies, Reply, Row, row_with};

/// What every generated source starts with.
pub const PREFIX: &str = "generated:";
const EXAMPLE: &str = "generated:arithmetic?level=1-2&n=4000&seed=1&split=train";
/// After so many prompts in a row that were seen before, a source counts as exhausted.
const UNIQUE_PATIENCE: usize = 3_000;

/// A generated source, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GeneratedSource {
    /// Problems of one family or of several.
    Problems(ProblemSource),
    /// Raw text.
    Raw(RawSource),
}

/// Problems, by family and level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemSource {
    /// What is drawn from.
    pub parts: Vec<Part>,
    /// Number of rows.
    pub n: usize,
    /// Index of the first problem.
    pub start: u64,
    /// The seed.
    pub seed: u64,
    /// The split.
    pub split: Split,
    /// The layout of rows.
    pub form: Form,
    /// The replies that rows show.
    pub replies: Replies,
    /// Whether repeated prompts are dropped.
    pub unique: bool,
}

/// One family of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The family's name.
    pub family: &'static str,
    /// The first and last level, each as likely as the others.
    pub levels: (u32, u32),
    /// Share of rows, relative to the other parts.
    pub weight: u32,
}

/// Raw text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSource {
    /// The least number of characters of all documents together.
    pub n_chars: usize,
    /// The seed.
    pub seed: u64,
}

impl GeneratedSource {
    /// Whether a dataset name means a generated source.
    pub fn is_generated(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Reads a source name.
    ///
    /// # Errors
    /// For anything that is not understood; unknown names come with the nearest known one.
    pub fn parse(source_name: &str) -> Result<GeneratedSource, TaskError> {
        let Some(rest) = source_name.strip_prefix(PREFIX) else {
            return Err(TaskError::NotGenerated { source_name: source_name.to_string(), example: EXAMPLE });
        };
        let (kind, query) = rest.split_once('?').unwrap_or((rest, ""));
        let query = Query::read(source_name, query)?;
        match kind {
            "raw" => RawSource::read(&query).map(GeneratedSource::Raw),
            "mix" => {
                let parts = match query.get("families") {
                    Some(text) => parts_of(&query, text)?,
                    None => FAMILIES[..N_QUICKSTART].iter().map(|f| Part::whole(f, 1)).collect(),
                };
                ProblemSource::read(&query, "families", parts).map(GeneratedSource::Problems)
            }
            _ => {
                let mut part = Part::whole(family_named(kind, &["mix", "raw"])?, 1);
                if let Some(text) = query.get("level") {
                    part.levels = query.levels(part.family, "level", text)?;
                }
                ProblemSource::read(&query, "level", vec![part]).map(GeneratedSource::Problems)
            }
        }
    }

    /// The source with every parameter written out: reads back as the same source.
    pub fn canonical(&self) -> String {
        match self {
            GeneratedSource::Raw(raw) => format!("{PREFIX}raw?chars={}&seed={}", raw.n_chars, raw.seed),
            GeneratedSource::Problems(source) => source.canonical(),
        }
    }

    /// The rows, made as they are taken (all at once where repeats are dropped).
    ///
    /// # Errors
    /// If repeats are dropped and there are fewer different problems than rows.
    pub fn rows(&self) -> Result<Box<dyn Iterator<Item = Row> + '_>, TaskError> {
        match self {
            GeneratedSource::Raw(raw) => Ok(Box::new(
                raw_documents(raw.seed, raw.n_chars)
                    .map(|text| Row::from_iter([("text".to_string(), text.into())])),
            )),
            GeneratedSource::Problems(source) => Ok(Box::new(
                source.problems()?.map(|problem| row_with(&problem, source.form, source.replies)),
            )),
        }
    }
}

impl ProblemSource {
    /// The problems in row order.
    ///
    /// # Errors
    /// As [`GeneratedSource::rows`].
    pub fn problems(&self) -> Result<Box<dyn Iterator<Item = Problem> + '_>, TaskError> {
        if self.unique {
            return Ok(Box::new(self.unique_problems()?.into_iter()));
        }
        Ok(Box::new((0..self.n as u64).map(|i| self.problem_at(self.start.wrapping_add(i)))))
    }

    fn unique_problems(&self) -> Result<Vec<Problem>, TaskError> {
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        let (mut index, mut n_repeats) = (self.start, 0);
        while found.len() < self.n {
            let problem = self.problem_at(index);
            index = index.wrapping_add(1);
            if seen.insert(problem.prompt.clone()) {
                found.push(problem);
                n_repeats = 0;
                continue;
            }
            n_repeats += 1;
            if n_repeats >= UNIQUE_PATIENCE {
                let (n_wanted, n_found) = (self.n, found.len());
                return Err(TaskError::Exhausted { source_name: self.canonical(), n_wanted, n_found });
            }
        }
        Ok(found)
    }

    /// The problem at an index: family by weight, then level, then problem.
    fn problem_at(&self, index: u64) -> Problem {
        let mut draws = Stream::new(self.seed, "tasks/mix").at(index);
        let total: usize = self.parts.iter().map(|part| part.weight as usize).sum();
        let mut ticket = draws.below(total);
        let mut parts = self.parts.iter();
        let part = loop {
            let part = parts.next().expect("the ticket is below the total weight");
            match ticket.checked_sub(part.weight as usize) {
                Some(rest) => ticket = rest,
                None => break part,
            }
        };
        let level = draws.between(part.levels.0.into(), part.levels.1.into()) as u32;
        let family = Family::named(part.family).expect("parts hold families of the catalogue");
        draw(family, level, self.seed, self.split, index)
    }

    fn read(query: &Query, own: &'static str, parts: Vec<Part>) -> Result<ProblemSource, TaskError> {
        let replies = ["reply", "rejected", "play", "turns"];
        query
            .allow(&[&[own, "n", "start", "seed", "split", "form", "unique"], replies.as_slice()].concat())?;
        let split = query.choice("split", Split::NAMES, Split::from_name)?;
        let form = query.choice("form", Form::NAMES, Form::from_name)?.unwrap_or(Form::Messages);
        let is_game = |part: &Part| part.family == guess::NAME;
        if form == Form::Transcript && !parts.iter().all(is_game) {
            let expected = format!("another form: only {} is played in several turns", guess::NAME);
            return Err(query.bad("form", form.name(), &expected));
        }
        let truth = |text: &str| text.parse::<bool>().ok();
        Ok(ProblemSource {
            parts,
            n: query.number("n", 1_000)? as usize,
            start: query.number("start", 0)?,
            seed: query.number("seed", 0)?,
            split: split.unwrap_or(Split::Train),
            form,
            replies: replies_of(query, form)?,
            unique: query.choice("unique", &["true", "false"], truth)?.unwrap_or(false),
        })
    }

    /// The replies as parameters, where they differ from the usual ones.
    fn written_replies(&self) -> String {
        let written = |replies: Replies| {
            [
                ("reply", replies.reply.name().to_owned()),
                ("rejected", replies.rejected.name().to_owned()),
                ("play", replies.play.name().to_owned()),
                ("turns", replies.n_turns.to_string()),
            ]
        };
        written(self.replies)
            .into_iter()
            .zip(written(Replies::default()))
            .filter(|(own, usual)| own != usual)
            .map(|((name, value), _)| format!("&{name}={value}"))
            .collect()
    }

    fn canonical(&self) -> String {
        let parts: Vec<String> = self
            .parts
            .iter()
            .map(|p| format!("{}@{}-{}:{}", p.family, p.levels.0, p.levels.1, p.weight))
            .collect();
        format!(
            "{PREFIX}mix?families={}&n={}&start={}&seed={}&split={}&form={}{}&unique={}",
            parts.join(","),
            self.n,
            self.start,
            self.seed,
            self.split.name(),
            self.form.name(),
            self.written_replies(),
            self.unique
        )
    }
}

/// The replies a form shows; a parameter that would change nothing is refused.
fn replies_of(query: &Query, form: Form) -> Result<Replies, TaskError> {
    let mut replies = game_of(query, form)?;
    let read = |name| query.choice(name, Reply::NAMES, Reply::from_name);
    for (name, place, has_effect) in [
        ("reply", &mut replies.reply, !matches!(form, Form::PromptOnly | Form::Transcript)),
        ("rejected", &mut replies.rejected, form == Form::Preference),
    ] {
        match read(name)? {
            Some(reply) if has_effect => *place = reply,
            Some(reply) => {
                return Err(query.bad(
                    name,
                    reply.name(),
                    &format!("none: form={} shows no such reply", form.name()),
                ));
            }
            None => {}
        }
    }
    if form == Form::Preference && replies.reply == replies.rejected {
        return Err(query.bad("rejected", replies.rejected.name(), "another reply than the preferred one"));
    }
    Ok(replies)
}

/// How games are played; a parameter that would change nothing is refused.
fn game_of(query: &Query, form: Form) -> Result<Replies, TaskError> {
    let usual = Replies::default();
    if form != Form::Transcript {
        return match ["play", "turns"].into_iter().find_map(|name| Some((name, query.get(name)?))) {
            Some((name, value)) => {
                let expected = format!("none: form={} shows no game; form=transcript does", form.name());
                Err(query.bad(name, value, &expected))
            }
            None => Ok(usual),
        };
    }
    let play = query.choice("play", Play::NAMES, Play::from_name)?.unwrap_or(usual.play);
    let n_turns = query.number("turns", usual.n_turns as u64)? as usize;
    if n_turns == 0 {
        return Err(query.bad("turns", "0", "at least 1"));
    }
    Ok(Replies { play, n_turns, ..usual })
}

impl RawSource {
    fn read(query: &Query) -> Result<RawSource, TaskError> {
        query.allow(&["chars", "seed"])?;
        Ok(RawSource { n_chars: query.number("chars", 100_000)? as usize, seed: query.number("seed", 0)? })
    }
}

impl Part {
    fn whole(family: &Family, weight: u32) -> Part {
        Part { family: family.name, levels: (1, family.levels.len() as u32), weight }
    }
}

fn family_named(name: &str, besides: &[&'static str]) -> Result<&'static Family, TaskError> {
    Family::named(name).map_err(|_| {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).chain(besides.iter().copied()).collect();
        TaskError::UnknownFamily { name: name.to_string(), hint: pt_core::suggest::hint(name, &names) }
    })
}

/// `sum,letters@1-2:3` as parts.
fn parts_of(query: &Query, text: &str) -> Result<Vec<Part>, TaskError> {
    text.split(',')
        .map(|item| {
            let (rest, weight) = match item.split_once(':') {
                Some((rest, weight)) => (rest, weight.parse().ok().filter(|weight| *weight > 0)),
                None => (item, Some(1)),
            };
            let Some(weight) = weight else {
                return Err(query.bad("families", text, "a weight of at least 1 after each `:`"));
            };
            let (name, levels) = rest.split_once('@').map_or((rest, None), |(n, l)| (n, Some(l)));
            let mut part = Part::whole(family_named(name, &[])?, weight);
            if let Some(levels) = levels {
                part.levels = query.levels(part.family, "families", levels)?;
            }
            Ok(part)
        })
        .collect()
}

/// The `name=value` pairs of a source.
struct Query<'a> {
    source_name: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Query<'a> {
    fn read(source_name: &'a str, text: &'a str) -> Result<Query<'a>, TaskError> {
        let mut query = Query { source_name, pairs: Vec::new() };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if query.get(name).is_some() {
                let (source_name, name) = (source_name.to_string(), name.to_string());
                return Err(TaskError::RepeatedParameter { source_name, name });
            }
            query.pairs.push((name, value));
        }
        Ok(query)
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }

    fn allow(&self, known: &[&str]) -> Result<(), TaskError> {
        match self.pairs.iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(TaskError::UnknownParameter {
                source_name: self.source_name.to_string(),
                name: name.to_string(),
                hint: pt_core::suggest::hint(name, known),
            }),
        }
    }

    fn bad(&self, name: &str, value: &str, expected: &str) -> TaskError {
        TaskError::BadValue {
            source_name: self.source_name.to_string(),
            name: name.to_string(),
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, TaskError> {
        let Some(text) = self.get(name) else { return Ok(default) };
        text.parse().map_err(|_| self.bad(name, text, "a whole number"))
    }

    fn choice<T>(
        &self,
        name: &str,
        known: &[&str],
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, TaskError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let hint = pt_core::suggest::hint(text, known);
        read(text).map(Some).ok_or_else(|| self.bad(name, text, &format!("another value; {hint}")))
    }

    /// `2` or `1-3` as levels of a family.
    fn levels(&self, family: &str, name: &str, text: &str) -> Result<(u32, u32), TaskError> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let (Ok(low), Ok(high)) = (low.parse::<u32>(), high.parse::<u32>()) else {
            return Err(self.bad(name, text, "a level such as `2` or a range such as `1-3`"));
        };
        if low > high {
            return Err(self.bad(name, text, "the lower level first"));
        }
        let family = Family::named(family)?;
        family.check_level(low)?;
        family.check_level(high)?;
        Ok((low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str) -> ProblemSource {
        match GeneratedSource::parse(name).unwrap() {
            GeneratedSource::Problems(source) => source,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sources_are_read() {
        let source = problems("generated:arithmetic?level=1-2&n=4000&seed=1&split=train");
        let part = Part { family: "arithmetic", levels: (1, 2), weight: 1 };
        let expected = ProblemSource {
            parts: vec![part],
            n: 4000,
            start: 0,
            seed: 1,
            split: Split::Train,
            form: Form::Messages,
            replies: Replies::default(),
            unique: false,
        };
        assert_eq!(source, expected);
        let pairs = problems("generated:sum?form=preference&rejected=direct").replies;
        assert_eq!(pairs, Replies { rejected: Reply::Direct, ..Replies::default() });
        let direct = problems("generated:sum?reply=direct").replies;
        assert_eq!(direct, Replies { reply: Reply::Direct, ..Replies::default() });
        let game = problems("generated:guess?form=transcript&play=blind&turns=3").replies;
        assert_eq!(game, Replies { play: Play::Blind, n_turns: 3, ..Replies::default() });
        let mix = problems("generated:mix?families=sum@2:3,chat&split=heldout&form=prompt_only&unique=true");
        let parts = vec![
            Part { family: "sum", levels: (2, 2), weight: 3 },
            Part { family: "chat", levels: (1, 4), weight: 1 },
        ];
        assert_eq!(
            (mix.parts, mix.split, mix.form, mix.unique),
            (parts, Split::HeldOut, Form::PromptOnly, true)
        );
        assert_eq!(problems("generated:mix").parts.len(), N_QUICKSTART);
        let raw = GeneratedSource::parse("generated:raw?chars=500&seed=3").unwrap();
        assert_eq!(raw, GeneratedSource::Raw(RawSource { n_chars: 500, seed: 3 }));
    }

    #[test]
    fn canonical_names_read_back() {
        for name in [
            "generated:sum",
            "generated:chat?level=2&n=5&start=7&seed=9&split=heldout&form=preference&unique=true",
            "generated:mix?families=sum:2,letters@1-3",
            "generated:sum?reply=direct",
            "generated:sum?form=preference&reply=direct&rejected=worked",
            "generated:guess?level=3&form=transcript&play=counting&turns=5",
            "generated:raw?chars=10",
        ] {
            let source = GeneratedSource::parse(name).unwrap();
            assert_eq!(GeneratedSource::parse(&source.canonical()).unwrap(), source, "{name}");
        }
    }

    #[test]
    fn mistakes_name_themselves_and_the_nearest_name() {
        for (name, parts) in [
            ("gsm8k", vec!["`gsm8k` is not a generated source"]),
            (
                "generated:arithmatic",
                vec!["no family `arithmatic`", "did you mean `arithmetic`?", "mix, raw"],
            ),
            ("generated:sum?sede=1", vec!["unknown parameter `sede`", "did you mean `seed`?"]),
            ("generated:sum?families=chat", vec!["unknown parameter `families`"]),
            ("generated:mix?level=1", vec!["unknown parameter `level`"]),
            ("generated:raw?n=1", vec!["unknown parameter `n`", "known: chars, seed"]),
            ("generated:sum?seed=1&seed=2", vec!["`seed` is given twice"]),
            ("generated:sum?n=many", vec!["`n=many` is not valid", "a whole number"]),
            ("generated:sum?n=-1", vec!["`n=-1` is not valid"]),
            ("generated:sum?level=9", vec!["family `sum` has no level 9; its levels are 1 to 5"]),
            ("generated:sum?level=0", vec!["no level 0"]),
            ("generated:sum?level=3-1", vec!["the lower level first"]),
            ("generated:sum?split=test", vec!["`split=test` is not valid", "known: train, heldout"]),
            ("generated:sum?form=mesages", vec!["did you mean `messages`?"]),
            ("generated:sum?unique=1", vec!["`unique=1` is not valid"]),
            ("generated:sum?reply=direkt", vec!["did you mean `direct`?"]),
            (
                "generated:sum?form=prompt_only&reply=direct",
                vec!["`reply=direct` is not valid", "form=prompt_only"],
            ),
            ("generated:sum?rejected=direct", vec!["`rejected=direct` is not valid", "form=messages"]),
            ("generated:sum?form=preference&reply=wrong", vec!["another reply than the preferred one"]),
            ("generated:sum?form=transcript", vec!["`form=transcript` is not valid", "only guess is played"]),
            ("generated:guess?play=blind", vec!["`play=blind` is not valid", "form=messages shows no game"]),
            ("generated:guess?form=transcript&play=blnd", vec!["did you mean `blind`?"]),
            ("generated:guess?form=transcript&turns=0", vec!["`turns=0` is not valid", "at least 1"]),
            ("generated:guess?form=transcript&reply=direct", vec!["`reply=direct` is not valid"]),
            ("generated:mix?families=sum:0", vec!["a weight of at least 1"]),
            ("generated:mix?families=sums", vec!["did you mean `sum`?"]),
        ] {
            let message = GeneratedSource::parse(name).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{name}: `{message}` does not say `{part}`");
            }
        }
    }

    #[test]
    fn rows_are_as_many_as_asked_and_start_moves_along() {
        let rows =
            |name: &str| -> Vec<Row> { GeneratedSource::parse(name).unwrap().rows().unwrap().collect() };
        let ten = rows("generated:mix?n=10&seed=4");
        assert_eq!(ten.len(), 10);
        assert_eq!(rows("generated:mix?n=7&start=3&seed=4"), ten[3..]);
        assert_eq!(rows("generated:mix?n=0").len(), 0);
        // The last index there is: it goes on from 0 instead of failing.
        assert_eq!(rows("generated:sum?n=2&start=18446744073709551615").len(), 2);
        let text: usize =
            rows("generated:raw?chars=2000").iter().map(|row| row["text"].as_str().unwrap().len()).sum();
        assert!(text >= 2000);
    }

    #[test]
    fn weights_and_levels_have_their_shares() {
        let source = problems("generated:mix?families=sum@1-4:3,chat@2:1&n=4000");
        let mut counts = [0usize; 5];
        for p in source.problems().unwrap() {
            counts[if p.family == "chat" { 0 } else { p.level as usize }] += 1;
        }
        // Expected 1000 chat and 750 of each sum level; five standard deviations are 137 and 124.
        assert!(counts[0].abs_diff(1000) < 137, "{counts:?}");
        assert!(counts[1..].iter().all(|count| count.abs_diff(750) < 124), "{counts:?}");
    }

    #[test]
    fn unique_sources_repeat_nothing_and_admit_exhaustion() {
        let source = problems("generated:arithmetic?level=1&n=300&split=heldout&unique=true");
        let prompts: HashSet<String> = source.problems().unwrap().map(|p| p.prompt).collect();
        assert_eq!(prompts.len(), 300);
        let source = problems("generated:sum?level=1&n=500&split=heldout&unique=true");
        let error = source.problems().err().expect("55 sums cannot make 500 held-out prompts");
        assert!(matches!(error, TaskError::Exhausted { n_wanted: 500, n_found: 1..=100, .. }), "{error}");
    }
}

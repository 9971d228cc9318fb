//! Steps of random pairs and replies, and the same in f64, where definitions are written down.

use pt_core::rng::Stream;

use crate::{Completion, CompletionKind as Kind, Scores, TokenBatch};

/// What a group is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Pairs,
    /// Gold, chosen and rejected.
    Triples,
    /// Pairs of which the reference wrote one reply.
    OnlinePairs,
    /// Good and bad replies, and mismatched ones of their own groups.
    Labelled,
    Samples,
    /// Pairs with that many outputs of a score head.
    ScoredPairs(usize),
    /// The same with three outputs, each pair about one of them.
    RoutedPairs,
    /// Solutions of several steps, with that many outputs of a score head.
    Steps(usize),
}

/// A batch that owns its arrays: a group, its prompt's tokens and its replies, or several.
#[derive(Clone, Default)]
pub(in crate::preference) struct Owned {
    pub(in crate::preference) logp: Vec<f32>,
    pub(in crate::preference) weights: Vec<f32>,
    pub(in crate::preference) entropy: Vec<f32>,
    pub(in crate::preference) correct: Vec<bool>,
    pub(in crate::preference) reference: Vec<f32>,
    /// None at all where it is not known.
    pub(in crate::preference) sampler: Vec<f32>,
    pub(in crate::preference) collision: Vec<f32>,
    pub(in crate::preference) completions: Vec<Completion>,
    pub(in crate::preference) n_outputs: usize,
    pub(in crate::preference) values: Vec<f32>,
    pub(in crate::preference) targets: Vec<f32>,
    pub(in crate::preference) score_weights: Vec<f32>,
}

impl Owned {
    pub(super) fn push_token(&mut self, draws: &mut impl FnMut() -> f64, weight: f32) {
        self.logp.push(-draws().abs() as f32);
        self.weights.push(weight);
        self.entropy.push(draws().abs() as f32);
        self.correct.push(draws() > 0.0);
        self.reference.push(self.logp.last().unwrap() + 0.3 * draws() as f32);
        self.sampler.push(self.logp.last().unwrap() + 0.1 * draws() as f32);
        self.collision.push(-draws().abs() as f32);
    }

    pub(super) fn push_reply(
        &mut self,
        draws: &mut impl FnMut() -> f64,
        kind: Kind,
        group: usize,
        index: usize,
    ) {
        let start = self.logp.len();
        for n in 0..1 + (draws().abs() * 4.0) as usize {
            // The first token trains; later ones with weight 1, a fraction or 0.
            let weight = if n == 0 { 1.0 } else { (1.5 * draws().abs()).min(1.0) as f32 };
            self.push_token(draws, if weight < 0.2 { 0.0 } else { weight });
        }
        let tokens = start..self.logp.len();
        let rows = if self.n_outputs == 0 { 0 } else { 1 };
        let first_row = self.targets.len();
        for _ in 0..rows {
            self.push_row(draws);
        }
        self.completions.push(Completion {
            tokens,
            scores: first_row..self.targets.len(),
            group,
            index,
            kind,
            label: 1.0,
            weight: 1.0,
            ..Completion::default()
        });
    }

    pub(super) fn push_row(&mut self, draws: &mut impl FnMut() -> f64) {
        self.values.extend((0..self.n_outputs).map(|_| draws() as f32));
        self.targets.push((0.5 + 0.5 * draws()).clamp(0.0, 1.0) as f32);
        self.score_weights.push(if draws() > -0.8 { 1.0 } else { 0.0 });
    }

    /// Puts another group's arrays behind these.
    pub(super) fn append(&mut self, more: &Owned) {
        let (tokens, rows) = (self.logp.len(), self.targets.len());
        let shift = |range: &std::ops::Range<usize>, by: usize| range.start + by..range.end + by;
        self.completions.extend(more.completions.iter().map(|c| Completion {
            tokens: shift(&c.tokens, tokens),
            scores: shift(&c.scores, rows),
            ..c.clone()
        }));
        for (ours, theirs) in [
            (&mut self.logp, &more.logp),
            (&mut self.weights, &more.weights),
            (&mut self.entropy, &more.entropy),
            (&mut self.reference, &more.reference),
            (&mut self.sampler, &more.sampler),
            (&mut self.collision, &more.collision),
            (&mut self.values, &more.values),
            (&mut self.targets, &more.targets),
            (&mut self.score_weights, &more.score_weights),
        ] {
            ours.extend(theirs);
        }
        self.correct.extend(&more.correct);
        self.n_outputs = more.n_outputs;
    }

    pub(in crate::preference) fn view(&self) -> TokenBatch<'_> {
        TokenBatch {
            logp: &self.logp,
            weights: &self.weights,
            entropy: Some(&self.entropy),
            correct: Some(&self.correct),
            log_collision: Some(&self.collision),
            reference_logp: Some(&self.reference),
            sampler_logp: (!self.sampler.is_empty()).then_some(&self.sampler),
            completions: &self.completions,
            scores: (self.n_outputs > 0).then_some(Scores {
                n_outputs: self.n_outputs,
                values: &self.values,
                targets: &self.targets,
                weights: &self.score_weights,
                old_values: None,
            }),
            ..TokenBatch::default()
        }
    }
}

pub(super) fn joined(groups: &[Owned]) -> Owned {
    let mut all = Owned::default();
    groups.iter().for_each(|group| all.append(group));
    all
}

/// Nine groups; pairs with weights and, where `soft`, labels of their own.
pub(super) fn random(layout: Layout, seed: u64, soft: bool) -> Vec<Owned> {
    let mut index = 0;
    (0..9).map(|group| random_group(layout, seed, soft, group, &mut index)).collect()
}

pub(super) fn random_group(layout: Layout, seed: u64, soft: bool, group: usize, index: &mut usize) -> Owned {
    let mut stream = Stream::new(seed, "preference").at(group as u64);
    let mut draws = || stream.normal();
    let n_outputs = match layout {
        Layout::ScoredPairs(n) | Layout::Steps(n) => n,
        Layout::RoutedPairs => 3,
        _ => 0,
    };
    let mut owned = Owned { n_outputs, ..Owned::default() };
    // A prompt, some of whose tokens train.
    for n in 0..3 {
        owned.push_token(&mut draws, if n == 1 { 0.5 } else { 0.0 });
    }
    let kinds: &[Kind] = match layout {
        Layout::Pairs | Layout::OnlinePairs | Layout::ScoredPairs(_) | Layout::RoutedPairs => {
            &[Kind::Chosen, Kind::Rejected]
        }
        Layout::Triples => &[Kind::Gold, Kind::Chosen, Kind::Rejected],
        Layout::Labelled => [&[Kind::Desirable], &[Kind::Undesirable], &[Kind::Mismatched]][group % 3],
        Layout::Samples | Layout::Steps(_) => &[Kind::Sample],
    };
    for &kind in kinds {
        owned.push_reply(&mut draws, kind, group, *index);
        *index += 1;
    }
    if matches!(layout, Layout::Steps(_)) {
        (0..3).for_each(|_| owned.push_row(&mut draws));
        owned.completions[0].scores.end += 3;
    }
    let (weight, label, margin) =
        (0.5 + draws().abs() as f32, (0.5 + 0.2 * draws()).clamp(0.0, 1.0) as f32, draws() as f32);
    for completion in &mut owned.completions {
        (completion.weight, completion.margin) = (weight, margin);
        if soft || layout == Layout::Samples {
            completion.label = label;
        }
    }
    if layout == Layout::RoutedPairs {
        owned.targets.fill((group % 3) as f32);
    }
    if layout == Layout::OnlinePairs {
        owned.completions[group % 2].is_reference_sample = true;
    }
    owned
}

/// A step in f64.
#[derive(Clone)]
pub(super) struct View<'a> {
    pub(super) batch: &'a Owned,
    pub(super) logp: Vec<f64>,
    /// What carries no gradient.
    pub(super) stopped: Vec<f64>,
    pub(super) scores: Vec<f64>,
    pub(super) ld_alpha: f64,
}

/// A pair in f64.
#[derive(Clone, Copy)]
pub(super) struct P {
    /// Log-probabilities of chosen and rejected.
    pub(super) w: f64,
    pub(super) l: f64,
    /// Log-ratios.
    pub(super) a: f64,
    pub(super) b: f64,
    /// Lengths.
    pub(super) nw: f64,
    pub(super) nl: f64,
    pub(super) wpo: f64,
    pub(super) is_reference_chosen: bool,
}

impl P {
    pub(super) fn swapped(self) -> P {
        P {
            w: self.l,
            l: self.w,
            a: self.b,
            b: self.a,
            nw: self.nl,
            nl: self.nw,
            is_reference_chosen: !self.is_reference_chosen,
            ..self
        }
    }
}

impl<'a> View<'a> {
    pub(super) fn new(batch: &'a Owned) -> View<'a> {
        let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let logp = wide(&batch.logp);
        View { batch, stopped: logp.clone(), logp, scores: wide(&batch.values), ld_alpha: 1.0 }
    }

    pub(super) fn stopped(&self) -> View<'a> {
        View { logp: self.stopped.clone(), ..self.clone() }
    }

    pub(super) fn desensitised(&self, ld_alpha: f64) -> View<'a> {
        View { ld_alpha, ..self.clone() }
    }

    pub(super) fn weight(&self, i: usize) -> f64 {
        f64::from(self.batch.weights[i])
    }

    pub(super) fn length(&self, c: &Completion) -> f64 {
        c.tokens.clone().map(|i| self.weight(i)).sum()
    }

    pub(super) fn sum(&self, c: &Completion, n_full: usize, of: &dyn Fn(usize) -> f64) -> f64 {
        let trained = c.tokens.clone().filter(|&i| self.batch.weights[i] > 0.0).enumerate();
        trained.map(|(n, i)| self.weight(i) * of(i) * if n < n_full { 1.0 } else { self.ld_alpha }).sum()
    }

    pub(super) fn log_ratio(&self, c: &Completion) -> f64 {
        self.sum(c, usize::MAX, &|i| self.logp[i] - f64::from(self.batch.reference[i]))
    }

    /// Pairs with their weights and labels.
    pub(super) fn list(&self) -> Vec<(P, f64, f64)> {
        let mut pairs = Vec::new();
        for (i, c) in self.batch.completions.iter().enumerate() {
            if c.kind != Kind::Chosen {
                continue;
            }
            let r = &self.batch.completions[i + 1];
            let n = |c: &Completion| c.tokens.clone().filter(|&i| self.batch.weights[i] > 0.0).count();
            let n_full = n(c).min(n(r));
            let logp = |i: usize| self.logp[i];
            let ratio = |i: usize| self.logp[i] - f64::from(self.batch.reference[i]);
            let aligned = |i: usize| self.stopped[i] - f64::from(self.batch.collision[i]);
            let whole = View { ld_alpha: 1.0, ..self.clone() };
            let wpo = |c: &Completion| (whole.sum(c, n_full, &aligned) / self.length(c)).exp();
            let p = P {
                w: self.sum(c, n_full, &logp),
                l: self.sum(r, n_full, &logp),
                a: self.sum(c, n_full, &ratio),
                b: self.sum(r, n_full, &ratio),
                nw: self.length(c),
                nl: self.length(r),
                wpo: wpo(c) * wpo(r),
                is_reference_chosen: c.is_reference_sample,
            };
            pairs.push((p, f64::from(c.weight), f64::from(c.label)));
        }
        pairs
    }

    pub(super) fn pairs(&self, loss: impl Fn(P) -> f64) -> f64 {
        let list = self.list();
        let mixed =
            |(p, w, label): &(P, f64, f64)| w * (label * loss(*p) + (1.0 - label) * loss(p.swapped()));
        list.iter().map(mixed).sum::<f64>() / list.iter().map(|(_, w, _)| w).sum::<f64>()
    }

    /// AOT; WPO's weights are those of a batch whose options have it, recognised by the case's own weights.
    pub(super) fn sorted(&self, is_paired: bool, smoothing: f64) -> f64 {
        let list = self.list();
        let has_wpo = self.batch.collision.iter().any(|&c| c != 0.0);
        let mut left: Vec<(f64, f64, f64)> = list
            .iter()
            .map(|(p, w, label)| {
                let value = if is_paired { p.w - p.l } else { p.a };
                (value, w * if has_wpo { p.wpo } else { 1.0 }, *label)
            })
            .collect();
        let right = |p: &P| if is_paired { (p.w - p.a) - (p.l - p.b) } else { p.b };
        let mut right: Vec<f64> = list.iter().map(|(p, ..)| right(p)).collect();
        left.sort_by(|x, y| x.0.total_cmp(&y.0));
        right.sort_by(f64::total_cmp);
        let mut sum = 0.0;
        for ((value, weight, label), partner) in left.into_iter().zip(right) {
            let wrong = label * smoothing + (1.0 - label) * (1.0 - smoothing);
            let z = 0.1 * (value - partner);
            sum -= weight * ((1.0 - wrong) * sig(z).ln() + wrong * sig(-z).ln());
        }
        sum / list.iter().map(|(_, w, _)| w).sum::<f64>()
    }

    /// Negative log-likelihood per token of replies of a kind and, with `lead`, of prompts.
    pub(super) fn nll(&self, kind: Kind, lead: bool, factor: impl Fn(P) -> f64) -> f64 {
        let list = self.list();
        let (mut sum, mut n, mut end) = (0.0, 0.0, 0);
        for c in &self.batch.completions {
            let (p, weight, _) = list[c.group];
            let prompt = if lead { end..c.tokens.start } else { 0..0 };
            let own = if c.kind == kind { c.tokens.clone() } else { 0..0 };
            for i in prompt.chain(own) {
                sum -= weight * self.weight(i) * self.logp[i] * factor(p);
                n += weight * self.weight(i);
            }
            end = c.tokens.end;
        }
        sum / n
    }

    /// The weighted sum of `value(log-ratio, weight)` over replies of a kind, and their weight.
    pub(super) fn replies(&self, kind: Kind, value: impl Fn(f64, f64) -> f64) -> (f64, f64) {
        let of_kind = || self.batch.completions.iter().filter(|c| c.kind == kind);
        let weight = |c: &Completion| f64::from(c.weight);
        (
            of_kind().map(|c| weight(c) * value(self.log_ratio(c), weight(c))).sum(),
            of_kind().map(weight).sum(),
        )
    }

    pub(super) fn labelled(&self, good: impl Fn(f64) -> f64, bad: impl Fn(f64) -> f64) -> f64 {
        let (good, n_good) = self.replies(Kind::Desirable, |h, _| good(h));
        let (bad, n_bad) = self.replies(Kind::Undesirable, |h, _| bad(h));
        (good + bad) / (n_good + n_bad)
    }

    pub(super) fn bradley_terry(&self, centre: f64, is_routed: bool) -> f64 {
        let (mut sum, mut n) = (0.0, 0.0);
        for pair in self.batch.completions.chunks(2) {
            let (weight, label) = (f64::from(pair[0].weight), f64::from(pair[0].label));
            let target = self.batch.targets[pair[0].scores.start];
            let routed = (0..self.batch.n_outputs).find(|&o| is_routed && o as f32 == target);
            let outputs = routed.map_or(0..self.batch.n_outputs, |o| o..o + 1);
            for output in outputs.clone() {
                let score = |c: &Completion| self.scores[c.scores.start * self.batch.n_outputs + output];
                let (w, l) = (score(&pair[0]), score(&pair[1]));
                let z = w - l - f64::from(pair[0].margin);
                let loss = -label * sig(z).ln() - (1.0 - label) * sig(-z).ln() + centre * (w + l).powi(2);
                sum += weight * loss / outputs.len() as f64;
            }
            n += weight;
        }
        sum / n
    }

    pub(super) fn steps(&self, loss: impl Fn(&[f64], f64) -> f64) -> f64 {
        let rows =
            self.scores.chunks(self.batch.n_outputs).zip(&self.batch.targets).zip(&self.batch.score_weights);
        let sum: f64 = rows.map(|((s, &t), &w)| f64::from(w) * loss(s, f64::from(t))).sum();
        sum / self.batch.score_weights.iter().map(|&w| f64::from(w)).sum::<f64>()
    }

    pub(super) fn tokens(&self, loss: impl Fn(usize) -> f64) -> f64 {
        let n = self.logp.len();
        (0..n).map(|i| self.weight(i) * loss(i)).sum::<f64>() / (0..n).map(|i| self.weight(i)).sum::<f64>()
    }
}

pub(super) fn sig(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

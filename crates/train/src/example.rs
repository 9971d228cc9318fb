//! Tokenised examples, and micro-batches made of them.

use std::sync::Arc;

use pt_engine::{Batch, Segment, SegmentError, SegmentTable};
use pt_objectives::{Completion, CompletionKind, Scores, TokenBatch};

/// A sequence, with the weight of each of its tokens as a prediction target; or a prompt with replies that continue it.
///
/// An example is a tree of two levels: its own tokens are computed once for all of its replies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids of the sequence, or of the prompt.
    pub token_ids: Vec<u32>,
    /// One per token: 0 for tokens that are only context. The first token is never a target.
    pub weights: Vec<f32>,
    /// What continues it: a pair, a group; none for a plain sequence.
    pub replies: Vec<Reply>,
    /// Identity of the example, on which its dropout depends.
    pub key: u64,
    /// Whether its replies belong to the group of the example before it: a group too large for one micro-batch is cut, with
    /// its prompt repeated, where the objective allows it.
    pub continues_group: bool,
    /// Where it came from, as shown in errors.
    pub origin: Arc<str>,
}

/// A reply to an example's prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Token ids; at least one.
    pub token_ids: Vec<u32>,
    /// One per token: 0 for tokens that do not train, such as what a tool answered.
    pub weights: Vec<f32>,
    /// What it is to the objective.
    pub kind: CompletionKind,
    /// By how much it should win or lose; see [`Completion::margin`].
    pub margin: f32,
    /// Soft label; see [`Completion::label`].
    pub label: f32,
    /// How much it counts; see [`Completion::weight`].
    pub weight: f32,
    /// Whether it was cut at the token limit.
    pub is_truncated: bool,
    /// Whether the reference policy wrote it.
    pub is_reference_sample: bool,
    /// What is known of each token beforehand.
    pub known: Known,
    /// Tokens the score head reads.
    pub scored: Vec<ScoredToken>,
}

impl Default for Reply {
    fn default() -> Reply {
        Reply {
            token_ids: Vec::new(),
            weights: Vec::new(),
            kind: CompletionKind::Sample,
            margin: 0.0,
            label: 1.0,
            weight: 1.0,
            is_truncated: false,
            is_reference_sample: false,
            known: Known::default(),
            scored: Vec::new(),
        }
    }
}

/// Arrays over a reply's tokens that are known before the step; each is empty or has one value per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Log-probability under the reference policy.
    pub reference_logp: Vec<f32>,
    /// Under the policy that began the passes over these samples.
    pub old_logp: Vec<f32>,
    /// Under whatever sampled the token.
    pub sampler_logp: Vec<f32>,
    /// Advantage.
    pub advantages: Vec<f32>,
}

impl Known {
    /// Each array's name and length.
    fn lengths(&self) -> [(&'static str, usize); 4] {
        [
            ("reference_logp", self.reference_logp.len()),
            ("old_logp", self.old_logp.len()),
            ("sampler_logp", self.sampler_logp.len()),
            ("advantages", self.advantages.len()),
        ]
    }
}

/// A token whose hidden state the score head reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredToken {
    /// Position of the token in the reply; `None` is the last token of the prompt.
    pub position: Option<usize>,
    /// What the score should be, where the objective compares with a target.
    pub target: f32,
    /// Loss weight.
    pub weight: f32,
    /// What the head said when the sample was drawn.
    pub old_value: Option<f32>,
}

/// Examples that share a forward pass: a flat list of tokens, each example a tree of segments.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    examples: Vec<Example>,
}

/// What a micro-batch predicts: row `rows[i]` predicts `targets[i]` with weight `weights[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predictions {
    /// Row of the token before the target.
    pub rows: Vec<u32>,
    /// The target's id.
    pub targets: Vec<u32>,
    /// The target's weight; never 0.
    pub weights: Vec<f32>,
    /// The replies; none where all examples are plain sequences.
    pub completions: Vec<Completion>,
    /// Known arrays, gathered at the targets; empty unless every target has a value.
    pub known: Known,
    /// Rows the score head reads.
    pub score_rows: Vec<u32>,
    /// Their targets.
    pub score_targets: Vec<f32>,
    /// Their weights.
    pub score_weights: Vec<f32>,
    /// Their old values; empty unless every one is known.
    pub old_values: Vec<f32>,
}

impl Example {
    /// A plain sequence.
    ///
    /// # Panics
    /// If it has not one weight per token.
    pub fn sequence(token_ids: Vec<u32>, weights: Vec<f32>, key: u64, origin: Arc<str>) -> Example {
        assert_eq!(token_ids.len(), weights.len(), "one weight per token of {origin}");
        Example { token_ids, weights, key, origin, ..Example::default() }
    }

    /// A prompt, which does not train, with replies.
    pub fn prompt(token_ids: Vec<u32>, replies: Vec<Reply>, key: u64, origin: Arc<str>) -> Example {
        let weights = vec![0.0; token_ids.len()];
        Example { token_ids, weights, replies, key, origin, ..Example::default() }
    }

    /// All tokens, those of the replies included.
    pub fn n_tokens(&self) -> usize {
        self.token_ids.len() + self.replies.iter().map(|reply| reply.token_ids.len()).sum::<usize>()
    }

    /// All token ids, those of the replies included.
    pub fn all_token_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.token_ids.iter().chain(self.replies.iter().flat_map(|reply| &reply.token_ids)).copied()
    }
}

impl MicroBatch {
    /// A micro-batch of these examples, in this order.
    ///
    /// # Panics
    /// If an example or a reply has not one weight per token, or what is known of a reply is neither nothing nor a value per token.
    pub fn new(examples: Vec<Example>) -> MicroBatch {
        for example in &examples {
            let origin = &example.origin;
            assert_eq!(example.token_ids.len(), example.weights.len(), "one weight per token of {origin}");
            for reply in &example.replies {
                let n = reply.token_ids.len();
                assert_eq!(n, reply.weights.len(), "one weight per token of {origin}");
                for (what, len) in reply.known.lengths() {
                    assert!(len == 0 || len == n, "{len} values of {what} for {n} tokens of {origin}");
                }
            }
        }
        MicroBatch { examples }
    }

    /// The examples.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// The examples, to add what is known of their replies' tokens.
    pub fn examples_mut(&mut self) -> &mut [Example] {
        &mut self.examples
    }

    /// All tokens, context included.
    pub fn n_tokens(&self) -> usize {
        self.examples.iter().map(Example::n_tokens).sum()
    }

    /// The sum of the targets' weights.
    pub fn total_weight(&self) -> f64 {
        self.predictions().weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// The same with only the replies that `keep` accepts, and the examples that still have any.
    #[must_use]
    pub fn with_replies(&self, keep: impl Fn(&Reply) -> bool) -> MicroBatch {
        let kept = self.examples.iter().filter_map(|example| {
            let replies: Vec<Reply> = example.replies.iter().filter(|reply| keep(reply)).cloned().collect();
            (!replies.is_empty()).then(|| Example {
                token_ids: example.token_ids.clone(),
                weights: example.weights.clone(),
                replies,
                key: example.key,
                continues_group: example.continues_group,
                origin: example.origin.clone(),
            })
        });
        MicroBatch { examples: kept.collect() }
    }

    /// The batch the engine runs over.
    ///
    /// # Errors
    /// [`SegmentError::Empty`] for an example or a reply without tokens.
    pub fn batch(&self) -> Result<Batch, SegmentError> {
        let (mut tokens, mut segments, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for example in &self.examples {
            let (first_row, prompt) = (tokens.len(), segments.len());
            let parts = std::iter::once((&example.token_ids, None));
            for (ids, parent) in parts.chain(example.replies.iter().map(|r| (&r.token_ids, Some(prompt)))) {
                segments.push(Segment { start: tokens.len(), len: ids.len(), parent });
                tokens.extend_from_slice(ids);
            }
            keys.extend((0..(tokens.len() - first_row) as u64).map(|at| (example.key << POSITION_BITS) | at));
        }
        Ok(Batch::new(tokens, SegmentTable::new(segments)?).with_row_keys(keys))
    }

    /// What is predicted where.
    pub fn predictions(&self) -> Predictions {
        let mut predictions = Predictions::default();
        let (mut first, mut group) = (0, 0);
        for (index, example) in self.examples.iter().enumerate() {
            group += usize::from(index > 0 && !example.continues_group);
            for position in 1..example.token_ids.len() {
                let at = (first + position - 1, example.token_ids[position], example.weights[position]);
                predictions.add(at, None);
            }
            first += example.token_ids.len();
            let prompt_end = first.saturating_sub(1);
            for reply in &example.replies {
                predictions.add_reply(reply, first, prompt_end, group);
                first += reply.token_ids.len();
            }
        }
        predictions.drop_partly_known();
        predictions
    }

    /// The example that row `row` of the batch belongs to.
    pub fn example_of(&self, row: u32) -> &Example {
        let mut first = 0;
        for example in &self.examples {
            first += example.n_tokens();
            if (row as usize) < first {
                return example;
            }
        }
        panic!("row {row} of a batch of {first}")
    }
}

impl Predictions {
    /// A target `(row before it, id, weight)`, which is none if its weight is 0.
    fn add(&mut self, (row, target, weight): (usize, u32, f32), known: Option<(&Known, usize)>) {
        if weight == 0.0 {
            return;
        }
        self.rows.push(row as u32);
        self.targets.push(target);
        self.weights.push(weight);
        if let Some((known, position)) = known {
            let add = |to: &mut Vec<f32>, from: &[f32]| to.extend(from.get(position));
            add(&mut self.known.reference_logp, &known.reference_logp);
            add(&mut self.known.old_logp, &known.old_logp);
            add(&mut self.known.sampler_logp, &known.sampler_logp);
            add(&mut self.known.advantages, &known.advantages);
        }
    }

    fn add_reply(&mut self, reply: &Reply, first: usize, prompt_end: usize, group: usize) {
        let (from, scores_from) = (self.rows.len(), self.score_rows.len());
        for (position, (&token, &weight)) in reply.token_ids.iter().zip(&reply.weights).enumerate() {
            let row = if position == 0 { prompt_end } else { first + position - 1 };
            self.add((row, token, weight), Some((&reply.known, position)));
        }
        for scored in &reply.scored {
            self.score_rows.push(scored.position.map_or(prompt_end, |position| first + position) as u32);
            self.score_targets.push(scored.target);
            self.score_weights.push(scored.weight);
            self.old_values.extend(scored.old_value);
        }
        self.completions.push(Completion {
            tokens: from..self.rows.len(),
            scores: scores_from..self.score_rows.len(),
            group,
            index: self.completions.len(),
            kind: reply.kind,
            margin: reply.margin,
            label: reply.label,
            weight: reply.weight,
            is_truncated: reply.is_truncated,
            is_reference_sample: reply.is_reference_sample,
        });
    }

    /// An array that lacks a value for some target is none.
    pub(crate) fn drop_partly_known(&mut self) {
        let n = self.rows.len();
        for array in [
            &mut self.known.reference_logp,
            &mut self.known.old_logp,
            &mut self.known.sampler_logp,
            &mut self.known.advantages,
        ] {
            if array.len() != n {
                array.clear();
            }
        }
        if self.old_values.len() != self.score_rows.len() {
            self.old_values.clear();
        }
    }

    /// Those of another micro-batch after these.
    pub(crate) fn append(&mut self, more: Predictions) {
        self.rows.extend(more.rows);
        self.targets.extend(more.targets);
        self.weights.extend(more.weights);
        self.completions.extend(more.completions);
        self.known.reference_logp.extend(more.known.reference_logp);
        self.known.old_logp.extend(more.known.old_logp);
        self.known.sampler_logp.extend(more.known.sampler_logp);
        self.known.advantages.extend(more.known.advantages);
        self.score_rows.extend(more.score_rows);
        self.score_targets.extend(more.score_targets);
        self.score_weights.extend(more.score_weights);
        self.old_values.extend(more.old_values);
    }

    /// Numbers groups and completions on from what the step has had before this micro-batch.
    pub(crate) fn continue_numbering(&mut self, n_groups: usize, n_completions: usize) {
        for completion in &mut self.completions {
            completion.group += n_groups;
            completion.index += n_completions;
        }
    }

    /// The arrays an objective may read before any forward pass. `n_outputs` are those of the score head.
    pub(crate) fn known_batch<'a>(&'a self, values: &'a [f32], n_outputs: usize) -> TokenBatch<'a> {
        let given = |array: &'a [f32]| (!array.is_empty() || self.rows.is_empty()).then_some(array);
        TokenBatch {
            weights: &self.weights,
            completions: &self.completions,
            reference_logp: given(&self.known.reference_logp),
            old_logp: given(&self.known.old_logp),
            sampler_logp: given(&self.known.sampler_logp),
            advantages: given(&self.known.advantages),
            scores: (n_outputs > 0).then(|| Scores {
                n_outputs,
                values,
                targets: &self.score_targets,
                weights: &self.score_weights,
                old_values: (!self.old_values.is_empty()).then_some(&*self.old_values),
            }),
            ..TokenBatch::default()
        }
    }
}

/// Sequences have fewer than 2^32 tokens, and runs fewer than 2^32 examples.
const POSITION_BITS: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_predicted_by_the_token_before_it() {
        let example =
            |ids: &[u32], weights: &[f32]| Example::sequence(ids.to_vec(), weights.to_vec(), 1, "t:1".into());
        let batch =
            MicroBatch::new(vec![example(&[5, 6, 7], &[1.0, 0.0, 1.0]), example(&[8, 9], &[1.0, 0.5])]);
        let predictions = batch.predictions();
        assert_eq!(predictions.rows, [1, 3]);
        assert_eq!(predictions.targets, [7, 9]);
        assert_eq!(predictions.weights, [1.0, 0.5]);
        assert!(predictions.completions.is_empty());
        assert_eq!(batch.total_weight(), 1.5);
        assert_eq!(batch.batch().unwrap().positions(), [0, 1, 2, 0, 1]);
        assert_eq!(batch.example_of(3).token_ids, [8, 9]);
    }

    #[test]
    fn replies_continue_their_prompt_and_know_what_they_are() {
        let reply = |ids: &[u32], kind| Reply {
            token_ids: ids.to_vec(),
            weights: vec![1.0; ids.len()],
            kind,
            known: Known { reference_logp: ids.iter().map(|&id| -(id as f32)).collect(), ..Known::default() },
            scored: vec![
                ScoredToken { position: None, target: 0.0, weight: 0.5, old_value: None },
                ScoredToken { position: Some(ids.len() - 1), target: 1.0, weight: 1.0, old_value: None },
            ],
            ..Reply::default()
        };
        let pair = vec![reply(&[7, 8], CompletionKind::Chosen), reply(&[9], CompletionKind::Rejected)];
        let first = Example::prompt(vec![1, 2, 3], pair.clone(), 4, "t:1".into());
        let second = Example::prompt(vec![1, 2], pair, 5, "t:2".into());
        let batch = MicroBatch::new(vec![first, second]);
        let predictions = batch.predictions();
        assert_eq!(predictions.rows, [2, 3, 2, 7, 8, 7]);
        assert_eq!(predictions.targets, [7, 8, 9, 7, 8, 9]);
        assert_eq!(predictions.known.reference_logp, [-7.0, -8.0, -9.0, -7.0, -8.0, -9.0]);
        assert!(predictions.known.old_logp.is_empty());
        assert_eq!(predictions.score_rows, [2, 4, 2, 5, 7, 9, 7, 10]);
        let found: Vec<_> = predictions
            .completions
            .iter()
            .map(|c| (c.tokens.clone(), c.scores.clone(), c.group, c.index))
            .collect();
        assert_eq!(found, [(0..2, 0..2, 0, 0), (2..3, 2..4, 0, 1), (3..5, 4..6, 1, 2), (5..6, 6..8, 1, 3)]);
        assert_eq!(batch.batch().unwrap().positions(), [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 2]);
        assert_eq!(batch.n_tokens(), 11);
        let rejected = batch.with_replies(|reply| reply.kind == CompletionKind::Rejected);
        assert_eq!(rejected.n_tokens(), 7);
        assert_eq!(rejected.example_of(4).key, 5);
    }

    #[test]
    #[should_panic(expected = "1 values of advantages for 2 tokens of t:1")]
    fn what_is_known_is_known_of_every_token() {
        let known = Known { advantages: vec![1.0], ..Known::default() };
        let reply = Reply { token_ids: vec![7, 8], weights: vec![1.0; 2], known, ..Reply::default() };
        let _ = MicroBatch::new(vec![Example::prompt(vec![1], vec![reply], 0, "t:1".into())]);
    }
}

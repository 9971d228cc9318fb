//! Groups as micro-batches: a prompt is computed once for as many of its replies as fit.

use pt_objectives::CompletionKind;
use pt_train::{Example, Known, MicroBatch, Reply};

use crate::error::Result;
use crate::steps::Steps;

/// A prompt with its replies, cut where they do not fit `max_tokens`: the prompt is then repeated. A reply that does not fit beside
/// its prompt is alone with it.
pub(crate) fn group_examples(prompt: &Example, replies: Vec<Reply>, max_tokens: usize) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut n_tokens = usize::MAX;
    for reply in replies {
        if n_tokens.saturating_add(reply.token_ids.len()) > max_tokens {
            let continues_group = !examples.is_empty();
            examples.push(Example { replies: Vec::new(), continues_group, ..prompt.clone() });
            n_tokens = prompt.token_ids.len();
        }
        n_tokens += reply.token_ids.len();
        examples.last_mut().expect("the first reply begins an example").replies.push(reply);
    }
    examples
}

/// Examples in their order, as many to a micro-batch as fit; a part of a group that does not fit alone is a micro-batch of its own.
pub(crate) fn pack_groups(examples: Vec<Example>, max_tokens: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<Vec<Example>> = Vec::new();
    let mut n_tokens = usize::MAX;
    for example in examples {
        if n_tokens.saturating_add(example.n_tokens()) > max_tokens {
            batches.push(Vec::new());
            n_tokens = 0;
        }
        n_tokens += example.n_tokens();
        batches.last_mut().expect("just made").push(example);
    }
    batches.into_iter().map(MicroBatch::new).collect()
}

/// Texts that train beside the samples: each a gold reply to its first token.
///
/// # Errors
/// If a cache file can no longer be read.
pub(crate) fn texts_beside(texts: &mut Steps, step_idx: u64) -> Result<Vec<MicroBatch>> {
    let as_replies = |batch: MicroBatch| MicroBatch::new(batch.examples().iter().map(as_reply).collect());
    Ok(texts.micro_batches(step_idx)?.into_iter().map(as_replies).collect())
}

fn as_reply(text: &Example) -> Example {
    let (first, rest) = text.token_ids.split_at(1);
    // Nothing reads these, but a micro-batch knows a thing of all its tokens or of none.
    let zeros = || vec![0.0; rest.len()];
    let known =
        Known { reference_logp: zeros(), old_logp: zeros(), sampler_logp: zeros(), advantages: zeros() };
    let (token_ids, weights) = (rest.to_vec(), text.weights[1..].to_vec());
    let reply = Reply { token_ids, weights, kind: CompletionKind::Gold, known, ..Reply::default() };
    Example::prompt(first.to_vec(), vec![reply], text.key, text.origin.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_does_not_fit_repeats_its_prompt() {
        let prompt = Example::prompt(vec![1; 4], Vec::new(), 9, "t:1".into());
        let reply = |n: usize| Reply { token_ids: vec![2; n], weights: vec![1.0; n], ..Reply::default() };
        let examples = group_examples(&prompt, vec![reply(3), reply(3), reply(3), reply(20)], 10);
        let sizes: Vec<usize> = examples.iter().map(|example| example.replies.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
        let continues: Vec<bool> = examples.iter().map(|example| example.continues_group).collect();
        assert_eq!(continues, [false, true, true]);
        let batches = pack_groups(examples, 17);
        let sizes: Vec<usize> = batches.iter().map(MicroBatch::n_tokens).collect();
        assert_eq!(sizes, [17, 24]);
        assert!(batches[0].predictions().completions.iter().all(|completion| completion.group == 0));
    }
}

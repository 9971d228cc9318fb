//! Who is computed next, and in which blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use pt_engine::Tensor;

use super::{Computed, Engine, Key, Planned, Sequence};
use crate::blocks::{BLOCK_TOKENS, ROOT};
use crate::sampling::History;
use crate::stop::Text;

impl Engine<'_> {
    /// The next tokens of all that have begun, oldest first; the youngest lose their blocks where there are too few.
    pub(super) fn plan_running(&mut self) -> Vec<Planned> {
        let mut plan = Vec::new();
        let mut budget = self.options.max_prefill_tokens.max(1);
        let keys: Vec<Key> = self.running.keys().copied().collect();
        for key in keys {
            self.stats.shared_tokens += self.match_prefix(key);
            let Some(sequence) = self.running.get(&key) else { continue };
            let n_left = sequence.tokens.len() - sequence.n_computed;
            let n_tokens = if sequence.prefills { n_left.min(budget) } else { n_left };
            if n_tokens == 0 || !self.make_room(key, n_tokens) {
                continue;
            }
            if self.running[&key].prefills {
                budget -= n_tokens;
            }
            self.occupy(key, n_tokens);
            plan.push(Planned { key, n_tokens });
        }
        plan
    }

    /// Begins samples that wait, oldest first, while there is room for all that they have so far.
    pub(super) fn admit(&mut self, plan: &mut Vec<Planned>) {
        let planned: usize = plan.iter().filter(|p| self.running[&p.key].prefills).map(|p| p.n_tokens).sum();
        let mut budget = self.options.max_prefill_tokens.max(1) - planned;
        let mut from = (0, 0);
        while self.running.len() < self.options.max_sequences.max(1) && budget > 0 {
            let Some((&key, sequence)) = self.waiting.range(from..).next() else { break };
            let group = &self.groups[&key.0];
            let is_new = sequence.is_none();
            if is_new && (group.is_prefilling || group.prompt.is_some()) {
                // It begins from the prompt of its group, when that is computed.
                from = (key.0 + 1, 0);
                continue;
            }
            let sequence = self.waiting.remove(&key).flatten().unwrap_or_else(|| self.begin(key, Vec::new()));
            self.running.insert(key, sequence);
            let n_shared = self.match_prefix(key);
            if !self.has_room_for_all(key) {
                let sequence = self.remove(key).expect("it was just put there");
                self.waiting.insert(key, (!is_new).then_some(sequence));
                break;
            }
            self.stats.shared_tokens += n_shared;
            self.groups.get_mut(&key.0).expect("samples have a request").is_prefilling |= is_new;
            let sequence = &self.running[&key];
            let n_tokens = (sequence.tokens.len() - sequence.n_computed).min(budget);
            budget -= n_tokens;
            self.occupy(key, n_tokens);
            plan.push(Planned { key, n_tokens });
        }
    }

    /// Whether a sample that was just admitted has room for all its tokens so far, and each of the others for some more.
    /// The only one always has, once the prompts that are kept are let go.
    fn has_room_for_all(&mut self, key: Key) -> bool {
        let sequence = &self.running[&key];
        let n_needed = sequence.tokens.len().div_ceil(BLOCK_TOKENS) - sequence.blocks.len();
        if self.running.len() == 1 {
            while self.blocks.n_available() < n_needed && self.drop_prompt() {}
            return true;
        }
        n_needed + self.running.len() <= self.blocks.n_available()
    }

    fn begin(&self, key: Key, blocks: Vec<u32>) -> Sequence {
        let group = &self.groups[&key.0];
        let tokens = group.request.prompt_ids.clone();
        let (n_prompt, params) = (tokens.len(), &*group.params);
        Sequence {
            n_computed: if blocks.is_empty() { 0 } else { n_prompt },
            n_published: if self.shares && !blocks.is_empty() { n_prompt / BLOCK_TOKENS } else { 0 },
            prefills: true,
            n_prompt,
            blocks,
            logprobs: Vec::new(),
            filtered_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            history: History::new(&tokens, params),
            text: (!params.stop.is_empty()).then(|| Text::new(n_prompt)),
            tokens,
        }
    }

    /// Takes over the blocks that hold a sequence's next tokens, but for the last token: its logits are asked for. Returns
    /// how many tokens they hold.
    fn match_prefix(&mut self, key: Key) -> u64 {
        let Some(sequence) = self.running.get_mut(&key).filter(|sequence| sequence.prefills) else {
            return 0;
        };
        if !self.shares || sequence.n_computed != sequence.blocks.len() * BLOCK_TOKENS {
            return 0;
        }
        let n_before = sequence.n_computed;
        while sequence.n_computed + BLOCK_TOKENS < sequence.tokens.len() {
            let before = sequence.blocks.last().map_or(ROOT, |&block| self.blocks.id(block));
            let tokens = &sequence.tokens[sequence.n_computed..sequence.n_computed + BLOCK_TOKENS];
            let Some(block) = self.blocks.find(before, tokens) else { break };
            self.blocks.share(block);
            sequence.blocks.push(block);
            sequence.n_computed += BLOCK_TOKENS;
            sequence.n_published += 1;
        }
        (sequence.n_computed - n_before) as u64
    }

    /// Blocks that the next `n_tokens` of a sequence need, a copy of a shared last one included.
    fn n_needed(&self, sequence: &Sequence, n_tokens: usize) -> usize {
        let n_blocks = (sequence.n_computed + n_tokens).div_ceil(BLOCK_TOKENS);
        n_blocks - sequence.blocks.len() + usize::from(self.writes_to_shared(sequence))
    }

    fn writes_to_shared(&self, sequence: &Sequence) -> bool {
        let at = sequence.n_computed / BLOCK_TOKENS;
        !sequence.n_computed.is_multiple_of(BLOCK_TOKENS) && self.blocks.is_shared(sequence.blocks[at])
    }

    /// Makes as many blocks available as the sequence needs. False if it lost its own.
    fn make_room(&mut self, key: Key, n_tokens: usize) -> bool {
        while self.n_needed(&self.running[&key], n_tokens) > self.blocks.n_available() {
            if self.drop_prompt() {
                continue;
            }
            let youngest = *self.running.keys().next_back().expect("this one runs");
            self.preempt(youngest);
            if youngest == key {
                return false;
            }
        }
        true
    }

    /// Lets go of the youngest prompt that is kept for samples to come.
    fn drop_prompt(&mut self) -> bool {
        let prompt = self.groups.values_mut().rev().find_map(|group| group.prompt.take());
        prompt.iter().for_each(|prompt| self.release(&prompt.blocks));
        prompt.is_some()
    }

    fn preempt(&mut self, key: Key) {
        self.stats.preemptions += 1;
        let sequence = self.remove(key).expect("what is pre-empted runs");
        let has_drawn = sequence.tokens.len() > sequence.n_prompt;
        self.waiting.insert(key, has_drawn.then_some(sequence));
    }

    /// Takes a sequence out and its blocks from it.
    pub(super) fn remove(&mut self, key: Key) -> Option<Sequence> {
        let mut sequence = self.running.remove(&key)?;
        self.release(&std::mem::take(&mut sequence.blocks));
        if sequence.prefills && sequence.tokens.len() == sequence.n_prompt {
            self.groups.get_mut(&key.0).expect("samples have a request").is_prefilling = false;
        }
        (sequence.n_computed, sequence.n_published, sequence.prefills) = (0, 0, true);
        Some(sequence)
    }

    /// The last block first: see [`Blocks`].
    pub(super) fn release(&mut self, blocks: &[u32]) {
        blocks.iter().rev().for_each(|&block| self.blocks.release(block));
    }

    /// Gives a sequence the blocks of its next tokens, and makes known those that will be full.
    fn occupy(&mut self, key: Key, n_tokens: usize) {
        let sequence = self.running.get_mut(&key).expect("what is planned runs");
        let n_after = sequence.n_computed + n_tokens;
        let at = sequence.n_computed / BLOCK_TOKENS;
        let n_own = sequence.n_computed % BLOCK_TOKENS;
        let copied = (n_own > 0 && self.blocks.is_shared(sequence.blocks[at])).then(|| {
            let old = std::mem::replace(&mut sequence.blocks[at], self.blocks.take());
            self.blocks.release(old);
            (old, sequence.blocks[at])
        });
        while sequence.blocks.len() * BLOCK_TOKENS < n_after {
            sequence.blocks.push(self.blocks.take());
        }
        let n_rows = self.blocks.len() * BLOCK_TOKENS;
        if n_rows > self.cache.rows() {
            let doubled = (2 * self.cache.rows()).min(self.blocks.most() * BLOCK_TOKENS);
            self.cache.grow(n_rows.max(doubled));
        }
        if let Some((from, to)) = copied {
            self.cache.copy_rows(from as usize * BLOCK_TOKENS, to as usize * BLOCK_TOKENS, n_own);
        }
        while self.shares && (sequence.n_published + 1) * BLOCK_TOKENS <= n_after {
            let i = sequence.n_published;
            let before = if i == 0 { ROOT } else { self.blocks.id(sequence.blocks[i - 1]) };
            let tokens = &sequence.tokens[i * BLOCK_TOKENS..(i + 1) * BLOCK_TOKENS];
            sequence.blocks[i] = self.blocks.publish(before, tokens, sequence.blocks[i]);
            sequence.n_published += 1;
        }
    }

    /// Keeps a prompt that was just computed, if other samples of it have not begun.
    pub(super) fn keep_prompt(&mut self, key: Key, logits: &Tensor, row: usize) {
        let sequence = &self.running[&key];
        let group = self.groups.get_mut(&key.0).expect("samples have a request");
        if sequence.tokens.len() > sequence.n_prompt {
            return;
        }
        group.is_prefilling = false;
        let others = self.waiting.range((key.0, 0)..(key.0 + 1, 0));
        if group.prompt.is_some() || !others.into_iter().any(|(_, sequence)| sequence.is_none()) {
            return;
        }
        sequence.blocks.iter().for_each(|&block| self.blocks.share(block));
        group.prompt =
            Some(Computed { blocks: sequence.blocks.clone(), logits: logits.row_to_f32(row).into() });
    }

    /// Begins samples whose prompt is there, while there is a block for each that runs.
    pub(super) fn fork(&mut self, sources: &mut BTreeMap<Key, Arc<[f32]>>) {
        let ids: Vec<u64> =
            self.groups.iter().filter(|(_, group)| group.prompt.is_some()).map(|(id, _)| *id).collect();
        for id in ids {
            let keys: Vec<Key> = self
                .waiting
                .range((id, 0)..(id + 1, 0))
                .filter(|(_, sequence)| sequence.is_none())
                .map(|(key, _)| *key)
                .collect();
            let n_keys = keys.len();
            let mut n_begun = 0;
            for key in keys {
                let has_room = self.running.is_empty() || self.running.len() < self.blocks.n_available();
                if self.running.len() >= self.options.max_sequences.max(1) || !has_room {
                    break;
                }
                let prompt = self.groups[&id].prompt.as_ref().expect("chosen by it");
                let blocks = prompt.blocks.clone();
                sources.insert(key, prompt.logits.clone());
                blocks.iter().for_each(|&block| self.blocks.share(block));
                let sequence = self.begin(key, blocks);
                self.stats.shared_tokens += sequence.n_prompt as u64;
                self.waiting.remove(&key);
                self.running.insert(key, sequence);
                n_begun += 1;
            }
            if n_begun == n_keys {
                let prompt = self.groups.get_mut(&id).and_then(|group| group.prompt.take());
                prompt.iter().for_each(|prompt| self.release(&prompt.blocks));
            }
        }
    }
}

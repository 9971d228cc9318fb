//! Which blocks of the key/value cache hold what, and who uses them.
//!
//! A block is [`BLOCK_TOKENS`] rows of the cache: positions `16 i .. 16 (i + 1)` of a sequence. It is *live* while
//! sequences use it (they are counted), *idle* when nobody does but its content is known and may be asked for again,
//! *free* otherwise. A full block's content is determined by its own tokens and all before them; it is found under
//! (identity of the block before it, its tokens), which is exact: identities are never used twice.
//!
//! Idle blocks are given up least recently used first. A sequence releases its last block first, so a block is never
//! given up before those that continue it.

use std::collections::{BTreeMap, HashMap};

/// Positions per block.
pub const BLOCK_TOKENS: usize = 16;

/// Identity of what comes before a sequence's first block.
pub(crate) const ROOT: u64 = 0;

/// Identity of the block before, and the tokens of the block.
type Content = (u64, [u32; BLOCK_TOKENS]);

#[derive(Debug, Default)]
struct Block {
    users: u32,
    known: Option<Known>,
    /// When it became idle.
    idle_since: u64,
}

#[derive(Debug)]
struct Known {
    id: u64,
    content: Content,
}

#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Blocks by the time since which they are idle.
    idle: BTreeMap<u64, u32>,
    by_content: HashMap<Content, u32>,
    most: usize,
    keeps_idle: bool,
    clock: u64,
    last_id: u64,
    peak_live: usize,
}

impl Blocks {
    /// At most `most` blocks. Without `keeps_idle`, a block that nobody uses is free at once.
    pub(crate) fn new(most: usize, keeps_idle: bool) -> Blocks {
        Blocks {
            blocks: Vec::new(),
            free: Vec::new(),
            idle: BTreeMap::new(),
            by_content: HashMap::new(),
            most,
            keeps_idle,
            clock: 0,
            last_id: ROOT,
            peak_live: 0,
        }
    }

    /// Allows at least `most` blocks.
    pub(crate) fn raise(&mut self, most: usize) {
        self.most = self.most.max(most);
    }

    /// Blocks that exist: rows of the cache that must be there.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks there may be.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Blocks in use.
    pub(crate) fn n_live(&self) -> usize {
        self.blocks.len() - self.free.len() - self.idle.len()
    }

    /// Most blocks that were in use at once.
    pub(crate) fn peak_live(&self) -> usize {
        self.peak_live
    }

    /// Blocks that [`Blocks::take`] can give.
    pub(crate) fn n_available(&self) -> usize {
        self.most - self.n_live()
    }

    /// A block with one user: a free one, a new one, or that which has been idle longest.
    ///
    /// # Panics
    /// If none is available.
    pub(crate) fn take(&mut self) -> u32 {
        let block = self.free.pop().unwrap_or_else(|| {
            if self.blocks.len() < self.most {
                self.blocks.push(Block::default());
                return self.blocks.len() as u32 - 1;
            }
            let (_, block) = self.idle.pop_first().expect("a block is available");
            self.forget(block);
            block
        });
        self.blocks[block as usize].users = 1;
        self.peak_live = self.peak_live.max(self.n_live());
        block
    }

    /// Adds a user to a block that is live or idle.
    pub(crate) fn share(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        if entry.users == 0 {
            self.idle.remove(&entry.idle_since);
        }
        entry.users += 1;
        self.peak_live = self.peak_live.max(self.n_live());
    }

    /// Takes a user away.
    pub(crate) fn release(&mut self, block: u32) {
        let entry = &mut self.blocks[block as usize];
        assert!(entry.users > 0, "block {block} is released more often than it is used");
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if self.keeps_idle && entry.known.is_some() {
            self.clock += 1;
            entry.idle_since = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.forget(block);
            self.free.push(block);
        }
    }

    /// Whether more than one uses a block.
    pub(crate) fn is_shared(&self, block: u32) -> bool {
        self.blocks[block as usize].users > 1
    }

    /// Identity of a block whose content is known.
    pub(crate) fn id(&self, block: u32) -> u64 {
        self.blocks[block as usize].known.as_ref().expect("the blocks before a known one are known").id
    }

    /// The block with these tokens after the block `before`.
    pub(crate) fn find(&self, before: u64, tokens: &[u32]) -> Option<u32> {
        self.by_content.get(&content(before, tokens)).copied()
    }

    /// Makes a live block's content known, and returns the block to use: `block`, or, if there is one of the same content
    /// already, that one, which takes the place of `block`.
    pub(crate) fn publish(&mut self, before: u64, tokens: &[u32], block: u32) -> u32 {
        let content = content(before, tokens);
        if let Some(&other) = self.by_content.get(&content) {
            self.share(other);
            self.release(block);
            return other;
        }
        self.last_id += 1;
        self.by_content.insert(content, block);
        self.blocks[block as usize].known = Some(Known { id: self.last_id, content });
        block
    }

    fn forget(&mut self, block: u32) {
        if let Some(known) = self.blocks[block as usize].known.take() {
            self.by_content.remove(&known.content);
        }
    }
}

fn content(before: u64, tokens: &[u32]) -> Content {
    (before, tokens.try_into().expect("the tokens of one block"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: u32) -> Vec<u32> {
        (first..first + BLOCK_TOKENS as u32).collect()
    }

    #[test]
    fn content_is_found_until_its_block_is_needed_oldest_first() {
        let mut blocks = Blocks::new(3, true);
        let (a, b) = (blocks.take(), blocks.take());
        assert_eq!(blocks.publish(ROOT, &tokens(0), a), a);
        let id = blocks.id(a);
        assert_eq!(blocks.publish(id, &tokens(16), b), b);
        assert_eq!((blocks.find(ROOT, &tokens(0)), blocks.find(id, &tokens(16))), (Some(a), Some(b)));
        assert_eq!((blocks.find(ROOT, &tokens(16)), blocks.find(id, &tokens(0))), (None, None));
        blocks.release(b);
        blocks.release(a);
        assert_eq!((blocks.n_live(), blocks.n_available()), (0, 3));
        let c = blocks.take();
        assert!(c != a && c != b, "a block that holds nothing comes first");
        assert_eq!(blocks.take(), b, "then the one that was released first");
        assert_eq!((blocks.find(id, &tokens(16)), blocks.find(ROOT, &tokens(0))), (None, Some(a)));
        blocks.share(a);
        assert_eq!(blocks.n_available(), 0);
        assert_eq!(blocks.peak_live(), 3);
    }

    #[test]
    fn equal_content_is_kept_once() {
        let mut blocks = Blocks::new(4, true);
        let (a, b) = (blocks.take(), blocks.take());
        blocks.publish(ROOT, &tokens(0), a);
        assert_eq!(blocks.publish(ROOT, &tokens(0), b), a);
        assert!(blocks.is_shared(a));
        assert_eq!(blocks.n_live(), 1);
    }

    #[test]
    fn nothing_idles_where_that_is_not_wanted() {
        let mut blocks = Blocks::new(2, false);
        let a = blocks.take();
        blocks.publish(ROOT, &tokens(0), a);
        blocks.share(a);
        blocks.release(a);
        assert_eq!(blocks.find(ROOT, &tokens(0)), Some(a), "while it is used it is found");
        blocks.release(a);
        assert_eq!(blocks.find(ROOT, &tokens(0)), None);
        assert_eq!(blocks.take(), a);
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn a_block_cannot_be_released_twice() {
        let mut blocks = Blocks::new(2, true);
        let a = blocks.take();
        blocks.release(a);
        blocks.release(a);
    }
}

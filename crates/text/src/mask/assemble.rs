//! From stretches of text with weights to tokens with weights.

use std::ops::Range;

use super::{Example, MaskPolicy, Part, Piece, TruncationMode, Turn};
use crate::error::Origin;
use crate::tokenizer::Encoding;

/// A turn in bytes, before it is known in tokens.
#[derive(Clone, Debug)]
pub(super) struct TurnSpan {
    pub message: usize,
    pub range: Range<usize>,
    pub end_of_turn: Option<Range<usize>>,
    pub prompt_is_prefix: bool,
}

/// Paints stretches over a text; later ones win. Gives pieces in order, without gaps.
pub(super) struct Painter {
    pieces: Vec<Piece>,
}

impl Painter {
    pub(super) fn new(text: &str, part: Part, weight: f32) -> Self {
        let pieces = match text.is_empty() {
            true => Vec::new(),
            false => vec![Piece { range: 0..text.len(), part, message: None, weight }],
        };
        Self { pieces }
    }

    /// Changes what covers `range`: each change that is `Some`.
    pub(super) fn paint(
        &mut self,
        range: &Range<usize>,
        part: Option<Part>,
        message: Option<usize>,
        weight: Option<f32>,
    ) {
        let mut out = Vec::with_capacity(self.pieces.len() + 2);
        for piece in self.pieces.drain(..) {
            let inside = piece.range.start.max(range.start)..piece.range.end.min(range.end);
            if inside.start >= inside.end {
                out.push(piece);
                continue;
            }
            let before = Piece { range: piece.range.start..inside.start, ..piece.clone() };
            let after = Piece { range: inside.end..piece.range.end, ..piece.clone() };
            let painted = Piece {
                range: inside,
                part: part.unwrap_or(piece.part),
                message: message.or(piece.message),
                weight: weight.unwrap_or(piece.weight),
            };
            out.extend([before, painted, after].into_iter().filter(|p| !p.range.is_empty()));
        }
        self.pieces = out;
    }

    pub(super) fn finish(self) -> Vec<Piece> {
        self.pieces
    }
}

/// Gives every token the largest weight of the pieces it overlaps.
pub(super) fn example(
    origin: &Origin,
    text: String,
    encoding: Encoding,
    mut pieces: Vec<Piece>,
    turns: &[TurnSpan],
) -> Example {
    let mut weights = Vec::with_capacity(encoding.ids.len());
    let mut token_pieces = Vec::with_capacity(encoding.ids.len());
    let mut straddling = Vec::new();
    // A token without text was added by the tokenizer.
    let added = Piece { range: 0..0, part: Part::Added, message: None, weight: 0.0 };
    let added_idx = pieces.len();
    for (i, range) in encoding.offsets.iter().enumerate() {
        let first = pieces.partition_point(|p| p.range.end <= range.start);
        let last = pieces.partition_point(|p| p.range.start < range.end);
        let best =
            (first..last).max_by(|a, b| pieces[*a].weight.total_cmp(&pieces[*b].weight).then(b.cmp(a)));
        let best = if range.is_empty() { None } else { best };
        weights.push(best.map_or(0.0, |p| pieces[p].weight));
        token_pieces.push(best.unwrap_or(added_idx));
        if best.is_some_and(|b| (first..last).any(|p| (pieces[p].weight > 0.0) != (pieces[b].weight > 0.0))) {
            straddling.push(i);
        }
    }
    if token_pieces.contains(&added_idx) {
        pieces.push(added);
    }
    let turns = turns.iter().map(|t| turn_in_tokens(t, &encoding.offsets)).collect();
    Example {
        origin: origin.clone(),
        text,
        token_ids: encoding.ids,
        weights,
        offsets: encoding.offsets,
        token_pieces,
        pieces,
        turns,
        straddling,
        n_prompt: 0,
        n_truncated: 0,
    }
}

fn turn_in_tokens(turn: &TurnSpan, offsets: &[Range<usize>]) -> Turn {
    Turn {
        message: turn.message,
        tokens: tokens_in(&turn.range, offsets),
        end_of_turn: turn.end_of_turn.as_ref().map(|range| tokens_in(range, offsets)),
        prompt_is_prefix: turn.prompt_is_prefix,
    }
}

/// The tokens that overlap a stretch of bytes.
fn tokens_in(range: &Range<usize>, offsets: &[Range<usize>]) -> Range<usize> {
    let overlaps = |r: &Range<usize>| r.start < range.end && range.start < r.end;
    let start = offsets.iter().position(overlaps);
    let end = offsets.iter().rposition(overlaps);
    start.zip(end).map_or(0..0, |(s, e)| s..e + 1)
}

/// Cuts the example to the policy's length; whether there was anything to cut.
pub(super) fn truncate(example: &mut Example, policy: &MaskPolicy) -> bool {
    let n = example.len();
    let Some(max) = policy.max_length.filter(|max| *max < n) else { return false };
    let kept = match policy.truncation_mode {
        TruncationMode::KeepStart => 0..max,
        TruncationMode::KeepEnd => n - max..n,
    };
    example.token_ids = example.token_ids[kept.clone()].to_vec();
    example.weights = example.weights[kept.clone()].to_vec();
    example.offsets = example.offsets[kept.clone()].to_vec();
    example.token_pieces = example.token_pieces[kept.clone()].to_vec();
    example.straddling.retain(|i| kept.contains(i));
    example.straddling.iter_mut().for_each(|i| *i -= kept.start);
    let clip = |r: &Range<usize>| {
        let clipped = r.start.clamp(kept.start, kept.end)..r.end.clamp(kept.start, kept.end);
        clipped.start - kept.start..clipped.end - kept.start
    };
    for turn in &mut example.turns {
        turn.tokens = clip(&turn.tokens);
        // Half an end of turn is none.
        let whole = |r: &Range<usize>| kept.start <= r.start && r.end <= kept.end;
        turn.end_of_turn = turn.end_of_turn.as_ref().map(|r| if whole(r) { clip(r) } else { 0..0 });
    }
    example.turns.retain(|t| !t.tokens.is_empty());
    example.n_prompt = clip(&(0..example.n_prompt)).len();
    example.n_truncated = n - max;
    true
}

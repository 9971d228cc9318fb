//! Tokenised examples, and micro-batches made of them.

use std::sync::Arc;

use pt_engine::{Batch, SegmentError, SegmentTable};

/// One sequence, with the weight of each of its tokens as a prediction target.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Token ids.
    pub token_ids: Vec<u32>,
    /// One per token: 0 for tokens that are only context. The first token is never a target.
    pub weights: Vec<f32>,
    /// Identity of the example, on which its dropout depends.
    pub key: u64,
    /// Where it came from, as shown in errors.
    pub origin: Arc<str>,
}

/// Examples that share a forward pass: a flat list of tokens, each example a segment of its own.
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
}

impl MicroBatch {
    /// A micro-batch of these examples, in this order.
    ///
    /// # Panics
    /// If an example has not one weight per token.
    pub fn new(examples: Vec<Example>) -> MicroBatch {
        for example in &examples {
            assert_eq!(
                example.token_ids.len(),
                example.weights.len(),
                "one weight per token of {}",
                example.origin
            );
        }
        MicroBatch { examples }
    }

    /// The examples.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// All tokens, context included.
    pub fn n_tokens(&self) -> usize {
        self.examples.iter().map(|example| example.token_ids.len()).sum()
    }

    /// The sum of the targets' weights.
    pub fn total_weight(&self) -> f64 {
        self.examples.iter().flat_map(|example| example.weights.iter().skip(1)).map(|&w| f64::from(w)).sum()
    }

    /// The batch the engine runs over.
    ///
    /// # Errors
    /// [`SegmentError::Empty`] for an example without tokens.
    pub fn batch(&self) -> Result<Batch, SegmentError> {
        let lens: Vec<usize> = self.examples.iter().map(|example| example.token_ids.len()).collect();
        let tokens = self.examples.iter().flat_map(|example| example.token_ids.iter().copied()).collect();
        let keys = self.examples.iter().flat_map(|example| {
            let len = example.token_ids.len() as u64;
            (0..len).map(|position| (example.key << POSITION_BITS) | position)
        });
        Ok(Batch::new(tokens, SegmentTable::sequences(&lens)?).with_row_keys(keys.collect()))
    }

    /// What is predicted where.
    pub fn predictions(&self) -> Predictions {
        let mut predictions = Predictions::default();
        let mut first = 0;
        for example in &self.examples {
            for position in 1..example.token_ids.len() {
                if example.weights[position] != 0.0 {
                    predictions.rows.push((first + position - 1) as u32);
                    predictions.targets.push(example.token_ids[position]);
                    predictions.weights.push(example.weights[position]);
                }
            }
            first += example.token_ids.len();
        }
        predictions
    }

    /// The example that row `row` of the batch belongs to.
    pub fn example_of(&self, row: u32) -> &Example {
        let mut first = 0;
        for example in &self.examples {
            first += example.token_ids.len();
            if (row as usize) < first {
                return example;
            }
        }
        panic!("row {row} of a batch of {first}")
    }
}

/// Sequences have fewer than 2^32 tokens, and runs fewer than 2^32 examples.
const POSITION_BITS: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_predicted_by_the_token_before_it() {
        let example = |ids: &[u32], weights: &[f32]| Example {
            token_ids: ids.to_vec(),
            weights: weights.to_vec(),
            key: 1,
            origin: "t:1".into(),
        };
        let batch =
            MicroBatch::new(vec![example(&[5, 6, 7], &[1.0, 0.0, 1.0]), example(&[8, 9], &[1.0, 0.5])]);
        let predictions = batch.predictions();
        assert_eq!(predictions.rows, [1, 3]);
        assert_eq!(predictions.targets, [7, 9]);
        assert_eq!(predictions.weights, [1.0, 0.5]);
        assert_eq!(batch.total_weight(), 1.5);
        assert_eq!(batch.batch().unwrap().positions(), [0, 1, 2, 0, 1]);
        assert_eq!(batch.example_of(3).token_ids, [8, 9]);
    }
}

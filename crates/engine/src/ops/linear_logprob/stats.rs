//! Running statistics of one row of logits, chunk by chunk.

use pt_kernels::math::{LANES, exp, fold_lanes};

use super::{LogprobOptions, RowLogprob};

/// Vocabulary columns that are added at once; sums within a chunk are `f32`, across chunks `f64`.
pub(super) const CHUNK_COLS: usize = 2048;

/// Statistics of the logits seen so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowStats {
    /// The largest logit.
    pub(super) max: f32,
    /// `sum e^{x - max}`
    pub(super) sum: f64,
    /// `sum e^{x - max} x`
    weighted: f64,
    /// `sum x`
    plain: f64,
    /// `sum e^{2 (x - max)}`
    squares: f64,
}

impl Default for RowStats {
    fn default() -> Self {
        RowStats { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0, plain: 0.0, squares: 0.0 }
    }
}

impl RowStats {
    /// Adds the next logits and turns each into `e^{x - max} dx/dz`, with the new maximum and the slope of the logit in
    /// the product `z`. Returns `e^{old max - new max}`: what such values of earlier chunks must be multiplied by.
    pub(super) fn add(&mut self, logits: &mut [f32], options: &LogprobOptions) -> f32 {
        let max = self.max.max(largest(logits));
        // A first chunk finds an empty total: e^-inf is 0, never NaN.
        let keep = f64::from(self.max - max).exp();
        let sums = weigh(logits, max, options);
        let total = |lanes: [f32; LANES]| lanes.iter().map(|&v| f64::from(v)).sum::<f64>();
        self.sum = self.sum * keep + total(sums.sum);
        self.weighted = self.weighted * keep + total(sums.weighted);
        self.plain += total(sums.plain);
        self.squares = self.squares * keep * keep + total(sums.squares);
        self.max = max;
        keep as f32
    }

    /// `ln sum e^x`.
    pub(super) fn logsumexp(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    /// The results, once all logits were added.
    pub(super) fn row(&self, target_logit: f32, n_vocabulary: usize) -> RowLogprob {
        let logsumexp = self.logsumexp();
        RowLogprob {
            logp: (f64::from(target_logit) - logsumexp) as f32,
            entropy: (logsumexp - self.weighted / self.sum) as f32,
            logsumexp: logsumexp as f32,
            mean_logp: (self.plain / n_vocabulary as f64 - logsumexp) as f32,
            correct: target_logit >= self.max,
            log_collision: (2.0 * (f64::from(self.max) - logsumexp) + self.squares.ln()) as f32,
        }
    }
}

/// Sums over one chunk, lane by lane.
struct LaneSums {
    sum: [f32; LANES],
    weighted: [f32; LANES],
    plain: [f32; LANES],
    squares: [f32; LANES],
}

pt_kernels::kernel! {
    fn largest(['a] x: &'a [f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (vectors, rest) = x.as_chunks::<LANES>();
        for x in vectors {
            for i in 0..LANES {
                lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane = lane.max(x);
        }
        fold_lanes(lanes, f32::max)
    }
}

pt_kernels::kernel! {
    fn weigh(['a] x: &'a mut [f32], max: f32, options: &'a LogprobOptions) -> LaneSums {
        let zero = [0.0; LANES];
        let mut sums = LaneSums { sum: zero, weighted: zero, plain: zero, squares: zero };
        let (vectors, rest) = x.as_chunks_mut::<LANES>();
        for x in vectors {
            for i in 0..LANES {
                let e = exp::<FMA>(x[i] - max);
                sums.sum[i] += e;
                sums.weighted[i] += e * x[i];
                sums.plain[i] += x[i];
                sums.squares[i] += e * e;
                x[i] = e * options.slope(x[i]);
            }
        }
        for (i, x) in rest.iter_mut().enumerate() {
            let e = exp::<FMA>(*x - max);
            sums.sum[i] += e;
            sums.weighted[i] += e * *x;
            sums.plain[i] += *x;
            sums.squares[i] += e * e;
            *x = e * options.slope(*x);
        }
        sums
    }
}

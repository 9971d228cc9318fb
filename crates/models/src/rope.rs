//! Rotary frequencies and their scalings.
//!
//! Pair `i` of the rotated width `d` turns by `position * w_i`; unscaled `w_i = theta^(-2i/d)` (Su et al. 2021,
//! arXiv:2104.09864, section 3.3). The scalings:
//!
//! | kind | frequencies | factor on cos and sin | source |
//! | --- | --- | --- | --- |
//! | `linear` | `w_i / s` | 1 | Chen et al. 2023, arXiv:2306.15595, eq. 4 |
//! | `dynamic` | theta replaced by `theta (s n / L - (s - 1))^(d / (d - 2))` where the sequence's length `n > L` | 1 | bloc97 and emozilla 2023, in arXiv:2309.00071, section 3.3 |
//! | `yarn` | `w_i / s` below `beta_slow` turns over `L`, `w_i` above `beta_fast`, a linear ramp over `i` between | `0.1 ln s + 1` | Peng et al. 2023, arXiv:2309.00071, section 3.2, eq. 22 |
//! | `longrope` | `w_i / lambda_i`, `lambda` the long list where `n > L`, else the short one | `sqrt(1 + ln s / ln L)` | Ding et al. 2024, arXiv:2402.13753, section 3 |
//! | `llama3` | `w_i` above `high_freq_factor` turns over `L`, `w_i / s` below `low_freq_factor`, linear in the number of turns between | 1 | Llama 3.1's reference code (`apply_scaling`) |
//!
//! `s` is `factor`, `L` the original context length. Angles are computed in `f64`.
//!
//! **Length-dependent kinds** (`dynamic`, `longrope`) take `n` from each row's own sequence, so a sequence's result
//! does not depend on its neighbours. Transformers takes the longest sequence of the batch, and with `dynamic`
//! the longest one seen in earlier calls, too: its results for a short sequence change with the company. Two
//! consequences of the definition remain. In a tree of segments `n` is the longest path of the tree, because a
//! shared prompt can have only one set of keys; so a prompt shared by children on both sides of `L` is not bitwise
//! what separate copies would give. And in decoding `n` is the length so far, while keys in the cache keep the
//! angles they were stored with (as in transformers), so sampler and trainer agree exactly only for sequences that
//! stay on one side of `L`.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::rc::Rc;

use pt_engine::{Angles, Batch};
use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::Result;
use crate::options::Options;

/// The kinds understood, by their names in `rope_type`.
pub const KINDS: &[&str] = &["default", "linear", "dynamic", "yarn", "longrope", "llama3"];

/// One set of rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    frequencies: Frequencies,
    /// On cosine and sine.
    factor: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Frequencies {
    Fixed(Vec<f64>),
    Dynamic { theta: f64, width: usize, scale: f64, original: usize },
    LongRope { short: Vec<f64>, long: Vec<f64>, original: usize },
}

/// What of the configuration the frequencies depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeContext {
    pub(crate) head_dim: usize,
    pub(crate) max_positions: usize,
    /// Theta where the file gives none.
    pub(crate) default_theta: f64,
    /// The length scalings start from, where the file gives none.
    pub(crate) default_original: usize,
    /// Whether a head may be rotated in part (Phi 3).
    pub(crate) may_be_partial: bool,
    /// The kinds the architecture has.
    pub(crate) kinds: &'static [&'static str],
}

impl RopeContext {
    /// That of most architectures.
    pub(crate) fn new(config: &ModelConfig, default_theta: f64) -> RopeContext {
        RopeContext {
            head_dim: config.head_dim,
            max_positions: config.max_positions,
            default_theta,
            default_original: config.max_positions,
            may_be_partial: false,
            kinds: KINDS,
        }
    }
}

impl Rope {
    /// Unscaled frequencies over `width` columns of each head.
    pub fn plain(theta: f64, width: usize) -> Rope {
        Rope { frequencies: Frequencies::Fixed(plain_frequencies(theta, width)), factor: 1.0 }
    }

    /// The angles of a batch's rows.
    pub fn angles(&self, batch: &Batch) -> Rc<Angles> {
        let positions = batch.positions();
        let mut by_len: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        for &len in batch.path_lens() {
            by_len.entry(len).or_insert_with(|| self.frequencies.of_len(len as usize));
        }
        let rows: Vec<&Vec<f64>> = batch.path_lens().iter().map(|len| &by_len[len]).collect();
        let angle = |row: usize, i: usize| f64::from(positions[row]) * rows[row][i];
        Rc::new(Angles::new(positions.len(), self.half(), self.factor, angle))
    }

    fn half(&self) -> usize {
        match &self.frequencies {
            Frequencies::Fixed(list) | Frequencies::LongRope { short: list, .. } => list.len(),
            Frequencies::Dynamic { width, .. } => width / 2,
        }
    }

    /// Reads the frequencies of all layers: `rope_parameters`, or `rope_theta` and `rope_scaling`.
    pub(crate) fn read(options: &Options<'_>, context: RopeContext) -> Result<Rope> {
        let theta = options.positive("rope_theta")?.unwrap_or(context.default_theta);
        let partial = options.positive("partial_rotary_factor")?;
        let scaling = options.object("rope_scaling")?;
        match (options.object("rope_parameters")?, scaling) {
            (Some(_), Some(_)) => {
                Err(options.bad("rope_scaling", "absent beside `rope_parameters`, its new form"))
            }
            (Some(dict), None) | (None, Some(dict)) => read_dict(&dict, options, theta, partial, context),
            (None, None) => Ok(Rope::plain(theta, rotated_width(options, partial, context)?)),
        }
    }

    /// Reads the frequencies of layers of one type, `rope_parameters.<layer_type>`.
    pub(crate) fn read_layer_type(
        parameters: &Options<'_>,
        layer_type: &'static str,
        options: &Options<'_>,
        context: RopeContext,
    ) -> Result<Rope> {
        match parameters.object(layer_type)? {
            Some(dict) => read_dict(&dict, options, context.default_theta, None, context),
            None => Ok(Rope::plain(context.default_theta, context.head_dim)),
        }
    }
}

impl Frequencies {
    fn of_len(&self, len: usize) -> Vec<f64> {
        match self {
            Frequencies::Fixed(list) => list.clone(),
            Frequencies::LongRope { short, long, original } => {
                if len > *original {
                    long.clone()
                } else {
                    short.clone()
                }
            }
            &Frequencies::Dynamic { theta, width, scale, original } => {
                let (len, d) = (len.max(original) as f64, width as f64);
                let stretch = scale * len / original as f64 - (scale - 1.0);
                plain_frequencies(theta * stretch.powf(d / (d - 2.0)), width)
            }
        }
    }
}

fn plain_frequencies(theta: f64, width: usize) -> Vec<f64> {
    (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect()
}

fn rotated_width(options: &Options<'_>, partial: Option<f64>, context: RopeContext) -> Result<usize> {
    let share = partial.unwrap_or(1.0);
    if share > 1.0 || (share != 1.0 && !context.may_be_partial) {
        let supported = if context.may_be_partial { "at most 1" } else { "1" };
        return Err(options.unsupported("partial_rotary_factor", supported));
    }
    let width = (context.head_dim as f64 * share) as usize;
    if width == 0 || !width.is_multiple_of(2) {
        let expected = format!(
            "such that an even number of columns is rotated (head_dim {}, found {width})",
            context.head_dim
        );
        return Err(
            options.bad(if partial.is_some() { "partial_rotary_factor" } else { "head_dim" }, &expected)
        );
    }
    Ok(width)
}

fn read_dict(
    dict: &Options<'_>,
    options: &Options<'_>,
    theta: f64,
    partial: Option<f64>,
    context: RopeContext,
) -> Result<Rope> {
    let kind = read_kind(dict, context.kinds)?;
    let theta = dict.positive("rope_theta")?.unwrap_or(theta);
    let width = match dict.positive("partial_rotary_factor")? {
        Some(partial) => rotated_width(dict, Some(partial), context)?,
        None => rotated_width(options, partial, context)?,
    };
    let plain = || plain_frequencies(theta, width);
    let original = |fallback: usize| -> Result<usize> {
        // Phi 3 keeps it outside; there it wins, as in transformers.
        let outside = options.size("original_max_position_embeddings", 1..=1 << 31)?;
        let inside = dict.size("original_max_position_embeddings", 1..=1 << 31)?;
        Ok(outside.or(inside).unwrap_or(fallback))
    };
    let rope = match kind {
        "default" => {
            original(0)?;
            Rope { frequencies: Frequencies::Fixed(plain()), factor: 1.0 }
        }
        "linear" => {
            let scale = dict.required_positive("factor")?;
            let list = plain().iter().map(|w| w / scale).collect();
            Rope { frequencies: Frequencies::Fixed(list), factor: 1.0 }
        }
        "dynamic" => {
            if width < 4 {
                return Err(dict.bad("rope_type", "another kind where fewer than four columns are rotated"));
            }
            let scale = dict.required_positive("factor")?;
            let frequencies = Frequencies::Dynamic { theta, width, scale, original: context.max_positions };
            Rope { frequencies, factor: 1.0 }
        }
        "yarn" => read_yarn(dict, theta, width, original(context.default_original)?, context)?,
        "longrope" => read_longrope(dict, &plain(), original(context.default_original)?, context)?,
        "llama3" => read_llama3(dict, &plain(), original(context.default_original)?)?,
        _ => unreachable!("read_kind gives a kind of the list"),
    };
    dict.finish(&format!("the rotary embedding `{kind}`"), |_| false)?;
    Ok(rope)
}

/// `rope_type`, or `type` in older files; `su` is longrope's old name.
fn read_kind(dict: &Options<'_>, kinds: &'static [&'static str]) -> Result<&'static str> {
    let normal =
        |name: &str| kinds.iter().copied().find(|kind| *kind == if name == "su" { "longrope" } else { name });
    let (new, old) = (dict.text("rope_type")?, dict.text("type")?);
    let read = |key: &'static str, name: &str| {
        normal(name).ok_or_else(|| dict.unsupported(key, &format!("one of {}", kinds.join(", "))))
    };
    match (new, old) {
        (None, None) => Ok("default"),
        (Some(name), None) => read("rope_type", name),
        (None, Some(name)) => read("type", name),
        (Some(new), Some(old)) => {
            let kind = read("rope_type", new)?;
            if read("type", old)? != kind {
                return Err(dict.bad("rope_type", &format!("the same as `type`, {old}")));
            }
            Ok(kind)
        }
    }
}

fn read_yarn(
    dict: &Options<'_>,
    theta: f64,
    width: usize,
    original: usize,
    context: RopeContext,
) -> Result<Rope> {
    let scale = dict.positive("factor")?.unwrap_or(context.max_positions as f64 / original as f64);
    let mscale = |weight: f64| if scale <= 1.0 { 1.0 } else { 0.1 * weight * scale.ln() + 1.0 };
    let factor = match (
        dict.positive("attention_factor")?,
        dict.positive("mscale")?,
        dict.positive("mscale_all_dim")?,
    ) {
        (Some(factor), _, _) => factor,
        (None, Some(m), Some(all)) => mscale(m) / mscale(all),
        (None, _, _) => mscale(1.0),
    };
    let (fast, slow) =
        (dict.positive("beta_fast")?.unwrap_or(32.0), dict.positive("beta_slow")?.unwrap_or(1.0));
    // The pair that turns `turns` times over the original length.
    let pair_of = |turns: f64| width as f64 * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (pair_of(fast), pair_of(slow));
    if dict.flag("truncate")?.unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
    if low == high {
        high += 0.001; // As in the reference code: no division by zero.
    }
    let blend = |(i, w): (usize, f64)| {
        let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        w / scale * interpolated + w * (1.0 - interpolated)
    };
    let list = plain_frequencies(theta, width).into_iter().enumerate().map(blend).collect();
    Ok(Rope { frequencies: Frequencies::Fixed(list), factor })
}

fn read_longrope(dict: &Options<'_>, plain: &[f64], original: usize, context: RopeContext) -> Result<Rope> {
    let divided = |key| -> Result<Vec<f64>> {
        Ok(dict.required_list(key, plain.len())?.iter().zip(plain).map(|(by, w)| w / by).collect())
    };
    let scale = dict.positive("factor")?.unwrap_or(context.max_positions as f64 / original as f64);
    let factor = dict.positive("attention_factor")?.unwrap_or(match scale <= 1.0 {
        true => 1.0,
        false => (1.0 + scale.ln() / (original as f64).ln()).sqrt(),
    });
    let (short, long) = (divided("short_factor")?, divided("long_factor")?);
    Ok(Rope { frequencies: Frequencies::LongRope { short, long, original }, factor })
}

fn read_llama3(dict: &Options<'_>, plain: &[f64], original: usize) -> Result<Rope> {
    let scale = dict.required_positive("factor")?;
    let (low, high) =
        (dict.required_positive("low_freq_factor")?, dict.required_positive("high_freq_factor")?);
    if high <= low {
        return Err(dict.bad("high_freq_factor", &format!("more than low_freq_factor, {low}")));
    }
    let scaled = |&w: &f64| {
        let turns = original as f64 * w / TAU;
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * w / scale + kept * w
    };
    Ok(Rope { frequencies: Frequencies::Fixed(plain.iter().map(scaled).collect()), factor: 1.0 })
}

/// Whether `rope_parameters` has one entry per type of layer.
pub(crate) fn is_per_layer_type(options: &Options<'_>) -> bool {
    let nested =
        |value: &Value| value.get("full_attention").is_some() || value.get("sliding_attention").is_some();
    options.value("rope_parameters").is_some_and(nested)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_engine::SegmentTable;
    use serde_json::json;

    fn read(value: Value, context: RopeContext) -> Result<Rope> {
        Rope::read(&Options::new("config.json", value.as_object().unwrap()), context)
    }

    const CONTEXT: RopeContext = RopeContext {
        head_dim: 8,
        max_positions: 10,
        default_theta: 10_000.0,
        default_original: 10,
        may_be_partial: true,
        kinds: KINDS,
    };

    #[test]
    fn plain_frequencies_are_powers_of_theta() {
        let Frequencies::Fixed(list) = read(json!({}), CONTEXT).unwrap().frequencies else { panic!("fixed") };
        for (found, expected) in list.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((found - expected).abs() < 1e-15, "{found} and {expected}");
        }
        let partial = read(json!({"partial_rotary_factor": 0.5, "rope_theta": 100.0}), CONTEXT).unwrap();
        assert_eq!(partial, Rope::plain(100.0, 4));
    }

    #[test]
    fn both_formats_say_the_same() {
        let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}});
        assert_eq!(read(old, CONTEXT).unwrap(), read(new, CONTEXT).unwrap());
    }

    #[test]
    fn length_dependent_scalings_look_at_each_sequence_alone() {
        let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
        let long = json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]}});
        for options in [dynamic, long] {
            let rope = read(options.clone(), CONTEXT).unwrap();
            let angles = |lens: &[usize]| {
                let table = SegmentTable::sequences(lens).unwrap();
                rope.angles(&Batch::new(vec![0; table.n_tokens()], table))
            };
            let text = |angles: Rc<Angles>| format!("{angles:?}");
            assert_ne!(rope.frequencies.of_len(10), rope.frequencies.of_len(11), "{options}");
            assert_eq!(rope.frequencies.of_len(10), rope.frequencies.of_len(3), "{options}");
            // The short sequence beside a long one has the angles it has alone.
            let alone = text(angles(&[4]));
            let beside = text(angles(&[4, 12]));
            let cos = |text: &str| text.split("cos: [").nth(1).unwrap().split(']').next().unwrap().to_owned();
            assert!(cos(&beside).starts_with(&cos(&alone)), "{options}");
        }
    }

    /// Transformers computes frequencies in `f32`, and these were printed with seven digits.
    const TOLERANCE: f64 = 1e-6;

    /// What transformers 5.23's `ROPE_INIT_FUNCTIONS` give for a head of 16 columns and 1000 positions.
    #[test]
    fn scalings_are_those_of_transformers() {
        let check = |parameters: Value, len: usize, expected: [f64; 8], factor: f64| {
            let max_positions = parameters["max"].as_u64().unwrap_or(1000) as usize;
            let mut parameters = parameters;
            parameters.as_object_mut().unwrap().remove("max");
            let context =
                RopeContext { head_dim: 16, max_positions, default_original: max_positions, ..CONTEXT };
            let rope = read(json!({"rope_parameters": parameters}), context).unwrap();
            for (found, expected) in rope.frequencies.of_len(len).iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < TOLERANCE, "{parameters}: {found} and {expected}");
            }
            assert!((rope.factor / factor - 1.0).abs() < TOLERANCE, "{parameters}: {}", rope.factor);
        };
        check(
            json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0,
                "original_max_position_embeddings": 128}),
            5,
            [1.0, 0.2239947, 0.04166666, 0.003952847, 0.00125, 0.0003952847, 0.000125, 3.952847e-05],
            1.2079441541679836,
        );
        check(
            json!({"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "truncate": false,
                "original_max_position_embeddings": 256}),
            5,
            [1.0, 0.406596, 0.151428, 0.05328775, 0.01698704, 0.005141428, 0.002364354, 0.00108728],
            1.138629436111989,
        );
        check(
            json!({"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "max": 163840,
                "original_max_position_embeddings": 4096}),
            5,
            [1.0, 0.3162278, 0.1, 0.02391472, 0.005125, 0.0008498622, 2.5e-05, 7.905694e-06],
            0.9210423553163399,
        );
        check(
            json!({"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5, "original_max_position_embeddings": 64}),
            5,
            [1.0, 0.2635231, 0.06666666, 0.01581139, 0.005, 0.001581139, 0.0005, 0.0001581139],
            1.5,
        );
        check(
            json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "max": 131072}),
            5,
            [1.0, 0.1939228, 0.03760603, 0.007292665, 0.000524846, 3.428102e-05, 6.64787e-06, 1.289173e-06],
            1.0,
        );
        check(
            json!({"rope_type": "dynamic", "factor": 3.0}),
            2500,
            [1.0, 0.2478757, 0.06144235, 0.01523006, 0.003775162, 0.0009357709, 0.0002319548, 5.749596e-05],
            1.0,
        );
        let plain = [1.0, 0.3162278, 0.1, 0.03162278, 0.01, 0.003162278, 0.001, 0.0003162278];
        check(json!({"rope_type": "dynamic", "factor": 3.0}), 900, plain, 1.0);
        let long = json!({"rope_type": "longrope", "original_max_position_embeddings": 100,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [2, 3, 4, 5, 6, 7, 8, 9]});
        check(
            long.clone(),
            101,
            [0.5, 0.1054092, 0.025, 0.006324556, 0.001666667, 0.000451754, 0.000125, 3.513642e-05],
            1.224744871391589,
        );
        let mut scaled = long;
        scaled["factor"] = json!(4.0);
        check(
            scaled,
            100,
            [1.0, 0.2874798, 0.08333334, 0.02432521, 0.007142857, 0.002108185, 0.000625, 0.0001860163],
            1.1406270186454384,
        );
    }

    #[test]
    fn two_formats_at_once_are_refused() {
        let both = json!({"rope_parameters": {"rope_theta": 5.0}, "rope_scaling": {"type": "linear", "factor": 4.0}});
        assert!(read(both, CONTEXT).unwrap_err().to_string().contains("rope_scaling"));
        let full = RopeContext { may_be_partial: false, ..CONTEXT };
        let error = read(json!({"partial_rotary_factor": 0.5}), full).unwrap_err().to_string();
        assert!(error.contains("`partial_rotary_factor` = 0.5"), "{error}");
    }
}

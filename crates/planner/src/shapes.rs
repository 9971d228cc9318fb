//! Well-known shapes, with the parameter counts their publishers give.
//!
//! Sizes are those of each model's config.json on the Hugging Face hub. Counts are those the hub shows for the safetensors
//! files, a tied head counted once, but for Gemma 3 from 4B on, whose hub counts hold the vision tower: there the count is
//! that of the language model in the Gemma 3 technical report (arXiv:2503.19786, table 1), in millions.

use serde_json::{Map, Value, json};

/// A shape of the list.
#[derive(Clone, Copy, Debug)]
pub struct ShapeInfo {
    /// Its name.
    pub name: &'static str,
    /// The architecture, as in config.json.
    pub model_type: &'static str,
    /// Tokens, width, feed-forward width, blocks, query heads, key heads, width of a head.
    pub sizes: [usize; 7],
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The published number of parameters.
    pub published: u64,
    /// Whether the published number is rounded to millions.
    pub rounded: bool,
}

const fn shape(
    name: &'static str,
    model_type: &'static str,
    sizes: [usize; 7],
    tied: bool,
    published: u64,
) -> ShapeInfo {
    ShapeInfo { name, model_type, sizes, tied, published, rounded: false }
}

const fn rounded(info: ShapeInfo) -> ShapeInfo {
    ShapeInfo { rounded: true, ..info }
}

/// Every built-in shape, from small to large within a family.
#[rustfmt::skip]
pub const SHAPES: &[ShapeInfo] = &[
    //                                        vocabulary  width    ffn  blocks heads kv head_dim
    shape("SmolLM2-135M",       "llama",       [49_152,    576,  1_536,  30,   9,  3,  64], true,      134_515_008),
    shape("SmolLM2-360M",       "llama",       [49_152,    960,  2_560,  32,  15,  5,  64], true,      361_821_120),
    shape("SmolLM2-1.7B",       "llama",       [49_152,  2_048,  8_192,  24,  32, 32,  64], true,    1_711_376_384),
    shape("TinyLlama-1.1B",     "llama",       [32_000,  2_048,  5_632,  22,  32,  4,  64], false,   1_100_048_384),
    shape("Qwen2.5-0.5B",       "qwen2",      [151_936,    896,  4_864,  24,  14,  2,  64], true,      494_032_768),
    shape("Qwen2.5-1.5B",       "qwen2",      [151_936,  1_536,  8_960,  28,  12,  2, 128], true,    1_543_714_304),
    shape("Qwen2.5-3B",         "qwen2",      [151_936,  2_048, 11_008,  36,  16,  2, 128], true,    3_085_938_688),
    shape("Qwen2.5-7B",         "qwen2",      [152_064,  3_584, 18_944,  28,  28,  4, 128], false,   7_615_616_512),
    shape("Qwen2.5-14B",        "qwen2",      [152_064,  5_120, 13_824,  48,  40,  8, 128], false,  14_770_033_664),
    shape("Qwen2.5-32B",        "qwen2",      [152_064,  5_120, 27_648,  64,  40,  8, 128], false,  32_763_876_352),
    shape("Qwen2.5-72B",        "qwen2",      [152_064,  8_192, 29_568,  80,  64,  8, 128], false,  72_706_203_648),
    shape("Qwen3-0.6B",         "qwen3",      [151_936,  1_024,  3_072,  28,  16,  8, 128], true,      596_049_920),
    shape("Qwen3-1.7B",         "qwen3",      [151_936,  2_048,  6_144,  28,  16,  8, 128], true,    1_720_574_976),
    shape("Qwen3-4B",           "qwen3",      [151_936,  2_560,  9_728,  36,  32,  8, 128], true,    4_022_468_096),
    shape("Qwen3-8B",           "qwen3",      [151_936,  4_096, 12_288,  36,  32,  8, 128], false,   8_190_735_360),
    shape("Qwen3-14B",          "qwen3",      [151_936,  5_120, 17_408,  40,  40,  8, 128], false,  14_768_307_200),
    shape("Qwen3-32B",          "qwen3",      [151_936,  5_120, 25_600,  64,  64,  8, 128], false,  32_762_123_264),
    shape("Llama-3.2-1B",       "llama",      [128_256,  2_048,  8_192,  16,  32,  8,  64], true,    1_235_814_400),
    shape("Llama-3.2-3B",       "llama",      [128_256,  3_072,  8_192,  28,  24,  8, 128], true,    3_212_749_824),
    shape("Llama-3.1-8B",       "llama",      [128_256,  4_096, 14_336,  32,  32,  8, 128], false,   8_030_261_248),
    shape("Llama-3.1-70B",      "llama",      [128_256,  8_192, 28_672,  80,  64,  8, 128], false,  70_553_706_496),
    shape("Llama-3.1-405B",     "llama",      [128_256, 16_384, 53_248, 126, 128,  8, 128], false, 405_853_388_800),
    shape("gemma-2-2b",         "gemma2",     [256_000,  2_304,  9_216,  26,   8,  4, 256], true,    2_614_341_888),
    shape("gemma-2-9b",         "gemma2",     [256_000,  3_584, 14_336,  42,  16,  8, 256], true,    9_241_705_984),
    shape("gemma-2-27b",        "gemma2",     [256_000,  4_608, 36_864,  46,  32, 16, 128], true,   27_227_128_320),
    shape("gemma-3-270m",       "gemma3_text", [262_144,   640,  2_048,  18,   4,  1, 256], true,      268_098_176),
    shape("gemma-3-1b",         "gemma3_text", [262_144, 1_152,  6_912,  26,   4,  1, 256], true,      999_885_952),
    rounded(shape("gemma-3-4b",  "gemma3_text", [262_208, 2_560, 10_240, 34,   8,  4, 256], true,    3_884_000_000)),
    rounded(shape("gemma-3-12b", "gemma3_text", [262_208, 3_840, 15_360, 48,  16,  8, 256], true,   11_771_000_000)),
    rounded(shape("gemma-3-27b", "gemma3_text", [262_208, 5_376, 21_504, 62,  32, 16, 128], true,   27_016_000_000)),
    shape("Mistral-7B-v0.1",    "mistral",     [32_000,  4_096, 14_336,  32,  32,  8, 128], false,   7_241_732_096),
    shape("Mistral-7B-v0.3",    "mistral",     [32_768,  4_096, 14_336,  32,  32,  8, 128], false,   7_248_023_552),
    shape("Mistral-Nemo-12B",   "mistral",    [131_072,  5_120, 14_336,  40,  32,  8, 128], false,  12_247_782_400),
    shape("Mistral-Small-24B",  "mistral",    [131_072,  5_120, 32_768,  40,  32,  8, 128], false,  23_572_403_200),
    shape("Mistral-Large-123B", "mistral",     [32_768, 12_288, 28_672,  88,  96,  8, 128], false, 122_610_069_504),
    shape("Phi-3-mini",         "phi3",        [32_064,  3_072,  8_192,  32,  32, 32,  96], false,   3_821_079_552),
    shape("Phi-3-medium",       "phi3",        [32_064,  5_120, 17_920,  40,  40, 10, 128], false,  13_960_238_080),
    shape("Phi-4",              "phi3",       [100_352,  5_120, 17_920,  40,  40, 10, 128], false,  14_659_507_200),
];

/// Other names of shapes on the list: later releases of the same sizes.
const SAME: &[(&str, &str)] = &[
    ("llama-3-8b", "Llama-3.1-8B"),
    ("meta-llama-3-8b", "Llama-3.1-8B"),
    ("meta-llama-3.1-8b", "Llama-3.1-8B"),
    ("llama-3-70b", "Llama-3.1-70B"),
    ("llama-3.3-70b", "Llama-3.1-70B"),
    ("meta-llama-3-70b", "Llama-3.1-70B"),
    ("meta-llama-3.1-70b", "Llama-3.1-70B"),
    ("meta-llama-3.1-405b", "Llama-3.1-405B"),
    ("mistral-7b", "Mistral-7B-v0.3"),
    ("mistral-7b-v0.2", "Mistral-7B-v0.1"),
    ("phi-3.5-mini", "Phi-3-mini"),
    ("phi-3-mini-4k", "Phi-3-mini"),
    ("phi-3-mini-128k", "Phi-3-mini"),
];

/// Endings of names that change no size.
const VARIANTS: &[&str] = &["-instruct", "-it", "-pt", "-base", "-chat"];

/// The shape of that name.
pub(crate) fn find(name: &str) -> Option<&'static ShapeInfo> {
    let plain = plain(name);
    let listed = SAME.iter().find(|(other, _)| *other == plain).map_or(plain.as_str(), |(_, listed)| listed);
    SHAPES.iter().find(|info| info.name.eq_ignore_ascii_case(listed))
}

fn plain(name: &str) -> String {
    let lower = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let end = VARIANTS.iter().find_map(|variant| lower.strip_suffix(variant));
    end.unwrap_or(&lower).to_owned()
}

/// The nearest name, in any case, then all.
pub(crate) fn hint(name: &str, names: &[&str]) -> String {
    let lower: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let near = pt_core::suggest::nearest(&plain(name), lower.iter().map(String::as_str));
    let all = names.join(", ");
    match near.and_then(|near| names.iter().find(|name| name.eq_ignore_ascii_case(near))) {
        Some(near) => format!("did you mean `{near}`? known: {all}"),
        None => format!("known: {all}"),
    }
}

impl ShapeInfo {
    /// The config.json of this shape.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let [vocab, hidden, ffn, layers, heads, kv_heads, head_dim] = self.sizes;
        let value = json!({
            "model_type": self.model_type, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": ffn,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": head_dim, "tie_word_embeddings": self.tied,
        });
        let Value::Object(mut map) = value else { unreachable!("written as an object") };
        if self.model_type == "phi3" {
            // Not an option of Phi 3: its heads share out the width.
            map.remove("head_dim");
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    #[test]
    fn counts_are_the_published_ones() {
        // Table 1 of the Gemma 3 report gives millions of embedding and other parameters apart, each rounded.
        const ROUNDED: f64 = 0.002;
        for info in SHAPES {
            let (found, published) = (Shape::built_in(info).n_params(), info.published);
            let off = (found as f64 / published as f64 - 1.0).abs();
            let good = if info.rounded { off < ROUNDED } else { found == published };
            assert!(good, "{}: {found}, published {published}", info.name);
        }
        assert!(SHAPES.len() >= 38);
    }

    #[test]
    fn other_names_lead_to_the_list() {
        for (other, listed) in SAME {
            assert_eq!(find(other).map(|info| info.name), Some(*listed));
        }
    }
}

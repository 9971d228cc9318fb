//! NF4 matrices in checkpoints: the tensors bitsandbytes stores beside a 4-bit `weight`.
//!
//! | key | type and shape | content |
//! | --- | --- | --- |
//! | `weight` | u8 `[n/2, 1]` | packed codes |
//! | `weight.absmax` | f32 `[blocks]`, or u8 if nested | block scales |
//! | `weight.quant_map` | f32 `[16]` | the levels |
//! | `weight.nested_absmax` | f32 `[blocks/256]` | scales of the scales |
//! | `weight.nested_quant_map` | f32 `[256]` | their codebook |
//! | `weight.quant_state.bitsandbytes__nf4` | u8 | JSON: `quant_type`, `blocksize`, `dtype`, `shape`, `nested_*` |

use super::dynamic::{BLOCK as NESTED_BLOCK, Quantised8};
use super::nf4::{LEVELS, Nested, Nf4Matrix, Scales};
use super::{QuantError, RawDtype, RawTensor, StateDict, check_length, entry};
use serde_json::{Value, json};
use std::sync::Arc;

/// The suffix of the JSON tensor.
const STATE: &str = "quant_state.bitsandbytes__nf4";

impl Nf4Matrix {
    /// Reads the matrix whose weight is called `weight` in `dict` (for example
    /// `model.layers.0.mlp.up_proj.weight`); unrelated entries are ignored.
    ///
    /// # Errors
    /// [`QuantError::Missing`], [`QuantError::Dtype`], [`QuantError::Length`], [`QuantError::State`].
    pub fn from_state_dict(dict: &StateDict, weight: &str) -> Result<Nf4Matrix, QuantError> {
        let key = |suffix: &str| format!("{weight}.{suffix}");
        let packed = entry(dict, weight)?;
        packed.expect(weight, RawDtype::U8)?;
        let state_name = key(STATE);
        let state = State { value: parse(entry(dict, &state_name)?, &state_name)?, name: state_name };
        let (rows, cols) = state.shape()?;
        let levels = floats(dict, &key("quant_map"))?;
        if levels != LEVELS {
            return Err(state.bad(format!("`quant_map` {levels:?} is not the NF4 table {LEVELS:?}")));
        }
        let scales = match dict.contains_key(&key("nested_absmax")) {
            false => Scales::Plain(floats(dict, &key("absmax"))?),
            true => Scales::Nested(read_nested(dict, weight, &state)?),
        };
        Nf4Matrix::from_parts(rows, cols, state.unsigned("blocksize")?, packed.bytes.clone(), scales)
    }

    /// The entries bitsandbytes would save for this matrix under the name `weight`. `dtype` is the
    /// type the weight had before ("bfloat16", "float16" or "float32"), which readers decode to.
    pub fn to_state_dict(&self, weight: &str, dtype: &str) -> StateDict {
        let mut dict = StateDict::new();
        let mut put = |suffix: &str, tensor| dict.insert(format!("{weight}.{suffix}"), tensor);
        let mut state = json!({
            "quant_type": "nf4", "blocksize": self.block(), "dtype": dtype, "shape": [self.rows(), self.cols()],
        });
        put("quant_map", RawTensor::from_f32(&LEVELS));
        match self.scales() {
            Scales::Plain(absmax) => {
                put("absmax", RawTensor::from_f32(absmax));
            }
            Scales::Nested(nested) => {
                put("absmax", RawTensor::from_u8(nested.quantised.codes.clone()));
                put("nested_absmax", RawTensor::from_f32(&nested.quantised.scales));
                put("nested_quant_map", RawTensor::from_f32(&nested.map[..]));
                state["nested_blocksize"] = json!(NESTED_BLOCK);
                state["nested_dtype"] = json!("float32");
                state["nested_offset"] = json!(f64::from(nested.offset));
            }
        }
        put(STATE, RawTensor::from_u8(state.to_string().into_bytes()));
        let shape = vec![self.codes().len(), 1];
        let packed = RawTensor { dtype: RawDtype::U8, shape, bytes: self.codes().to_vec() };
        dict.insert(weight.to_owned(), packed);
        dict
    }
}

fn read_nested(dict: &StateDict, weight: &str, state: &State) -> Result<Nested, QuantError> {
    let key = |suffix: &str| format!("{weight}.{suffix}");
    let codes = entry(dict, &key("absmax"))?;
    codes.expect(&key("absmax"), RawDtype::U8)?;
    let map = floats(dict, &key("nested_quant_map"))?;
    check_length("`nested_quant_map`", map.len(), 256)?;
    match state.unsigned("nested_blocksize")? {
        NESTED_BLOCK => {}
        found => return Err(QuantError::Block { found, expected: &[NESTED_BLOCK] }),
    }
    let mut table = Arc::new([0.0; 256]);
    Arc::make_mut(&mut table).copy_from_slice(&map);
    Ok(Nested {
        quantised: Quantised8 { codes: codes.bytes.clone(), scales: floats(dict, &key("nested_absmax"))? },
        offset: state.number("nested_offset")? as f32,
        map: table,
    })
}

fn floats(dict: &StateDict, name: &str) -> Result<Vec<f32>, QuantError> {
    entry(dict, name)?.to_f32(name)
}

fn parse(tensor: &RawTensor, name: &str) -> Result<Value, QuantError> {
    tensor.expect(name, RawDtype::U8)?;
    serde_json::from_slice(&tensor.bytes)
        .map_err(|e| QuantError::State { name: name.to_owned(), problem: format!("not JSON: {e}") })
}

/// The JSON and where it came from.
struct State {
    value: Value,
    name: String,
}

impl State {
    fn bad(&self, problem: String) -> QuantError {
        QuantError::State { name: self.name.clone(), problem }
    }

    fn unsigned(&self, key: &str) -> Result<usize, QuantError> {
        let value = &self.value[key];
        let number =
            value.as_u64().ok_or_else(|| self.bad(format!("`{key}` is {value}, expected an integer")))?;
        Ok(number as usize)
    }

    fn number(&self, key: &str) -> Result<f64, QuantError> {
        let value = &self.value[key];
        value.as_f64().ok_or_else(|| self.bad(format!("`{key}` is {value}, expected a number")))
    }

    fn shape(&self) -> Result<(usize, usize), QuantError> {
        let value = &self.value["shape"];
        let sizes: Option<Vec<usize>> =
            value.as_array().and_then(|v| v.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        match sizes.as_deref() {
            Some(&[rows, cols]) => Ok((rows, cols)),
            _ => Err(self.bad(format!("`shape` is {value}, expected [rows, cols]"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(double: bool) -> Nf4Matrix {
        let mut draws = pt_core::rng::Stream::new(1, "nf4 state").at(0);
        let values: Vec<f32> = (0..37 * 21).map(|_| draws.normal() as f32).collect();
        Nf4Matrix::quantise(&values, 37, 21, 64, double).unwrap()
    }

    #[test]
    fn matrices_round_trip_bit_for_bit() {
        for double in [false, true] {
            let q = matrix(double);
            let dict = q.to_state_dict("a.weight", "bfloat16");
            assert_eq!(Nf4Matrix::from_state_dict(&dict, "a.weight").unwrap(), q);
            assert_eq!(dict.len(), if double { 6 } else { 4 });
        }
    }

    #[test]
    fn the_json_is_what_bitsandbytes_writes() {
        let dict = matrix(true).to_state_dict("weight", "float32");
        let text = String::from_utf8(dict["weight.quant_state.bitsandbytes__nf4"].bytes.clone()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let offset = value["nested_offset"].as_f64().unwrap();
        let expected = json!({
            "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [37, 21],
            "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn broken_files_say_what_is_wrong() {
        let check = |change: &dyn Fn(&mut StateDict), expected: &str| {
            let mut dict = matrix(true).to_state_dict("w", "float32");
            change(&mut dict);
            let message = Nf4Matrix::from_state_dict(&dict, "w").unwrap_err().to_string();
            assert!(message.contains(expected), "{message} should mention {expected}");
        };
        let json = |text: &str| RawTensor::from_u8(text.as_bytes().to_vec());
        let state = format!("w.{STATE}");
        check(&|d| drop(d.remove("w")), "`w` is missing");
        check(&|d| drop(d.remove("w.quant_map")), "`w.quant_map` is missing");
        check(&|d| drop(d.insert("w".into(), RawTensor::from_f32(&[0.0]))), "has type F32, expected U8");
        check(&|d| drop(d.insert(state.clone(), json("{"))), "not JSON");
        check(&|d| drop(d.insert(state.clone(), json(r#"{"shape":[5]}"#))), "`shape` is [5]");
        check(
            &|d| drop(d.insert("w.quant_map".into(), RawTensor::from_f32(&[0.0; 16]))),
            "not the NF4 table",
        );
        check(&|d| drop(d.insert("w.absmax".into(), RawTensor::from_u8(vec![0; 2]))), "expected 13");
        let odd = r#"{"shape":[37,21],"blocksize":64,"nested_blocksize":128}"#;
        check(&|d| drop(d.insert(state.clone(), json(odd))), "block size 128");
    }
}

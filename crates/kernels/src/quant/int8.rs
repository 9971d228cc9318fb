//! Row-wise 8-bit weights, as LLM.int8() stores them.
//!
//! `q = round(w * (127 / absmax(row)))`, ties to even; `w = q * absmax * (1/127)`. Source: Dettmers
//! et al. 2022, "LLM.int8()" (arXiv:2208.07339), section 2.1. Only the storage: products are taken in
//! `f32`/`bf16` after decoding, so the paper's outlier columns, which split the *activations*, do not
//! arise. In a state dict: `weight` (int8, `[rows, cols]`) and `SCB` (f32, one `absmax` per row).

use super::{QuantError, RawDtype, RawTensor, StateDict, absmax, check_finite, check_length, entry};
use crate::elem::Elem;
use half::bf16;
use rayon::prelude::*;

/// The `f32` nearest to 1/127, as bitsandbytes writes it.
const STEP: f32 = 7.874_016e-3;

/// A matrix of 8-bit codes with one scale per row.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Matrix {
    rows: usize,
    cols: usize,
    codes: Vec<i8>,
    absmax: Vec<f32>,
}

impl Int8Matrix {
    /// Quantises a row-major `[rows, cols]` matrix.
    ///
    /// # Errors
    /// [`QuantError::Length`], [`QuantError::NonFinite`].
    pub fn quantise(values: &[f32], rows: usize, cols: usize) -> Result<Int8Matrix, QuantError> {
        check_length("the matrix to quantise", values.len(), rows * cols)?;
        check_finite(values)?;
        let mut codes = vec![0; values.len()];
        let mut absmax = vec![0.0; rows];
        if cols > 0 {
            (codes.par_chunks_mut(cols), absmax.par_iter_mut(), values.par_chunks(cols))
                .into_par_iter()
                .for_each(|(codes, absmax, values)| *absmax = encode_row(values, codes));
        }
        Ok(Int8Matrix { rows, cols, codes, absmax })
    }

    /// A matrix from its stored parts.
    ///
    /// # Errors
    /// [`QuantError::Length`] if the parts do not fit together.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        codes: Vec<i8>,
        absmax: Vec<f32>,
    ) -> Result<Int8Matrix, QuantError> {
        check_length("the int8 codes", codes.len(), rows * cols)?;
        check_length("the int8 row scales (SCB)", absmax.len(), rows)?;
        Ok(Int8Matrix { rows, cols, codes, absmax })
    }

    /// Reads `weight` and `SCB`; other entries are ignored, except a `weight_format` other than
    /// `row` (0), which older files use for layouts of particular GPUs.
    ///
    /// # Errors
    /// [`QuantError::Missing`], [`QuantError::Dtype`], [`QuantError::Length`], [`QuantError::State`].
    pub fn from_state_dict(dict: &StateDict) -> Result<Int8Matrix, QuantError> {
        let weight = entry(dict, "weight")?;
        weight.expect("weight", RawDtype::I8)?;
        if let Some(format) = dict.get("weight_format").filter(|format| format.bytes != [0]) {
            let problem = format!("format {:?} is a GPU tile layout; only `row` (0) is read", format.bytes);
            return Err(QuantError::State { name: "weight_format".to_owned(), problem });
        }
        let &[rows, cols] = weight.shape.as_slice() else {
            let problem = format!("shape {:?}, expected [rows, cols]", weight.shape);
            return Err(QuantError::State { name: "weight".to_owned(), problem });
        };
        let codes = weight.bytes.iter().map(|&b| b as i8).collect();
        Int8Matrix::from_parts(rows, cols, codes, entry(dict, "SCB")?.to_f32("SCB")?)
    }

    /// `weight`, `SCB` and `weight_format`, as bitsandbytes saves them.
    pub fn to_state_dict(&self) -> StateDict {
        let bytes = self.codes.iter().map(|&c| c as u8).collect();
        let weight = RawTensor { dtype: RawDtype::I8, shape: vec![self.rows, self.cols], bytes };
        let format = RawTensor { dtype: RawDtype::U8, shape: vec![], bytes: vec![0] };
        StateDict::from([
            ("weight".to_owned(), weight),
            ("SCB".to_owned(), RawTensor::from_f32(&self.absmax)),
            ("weight_format".to_owned(), format),
        ])
    }

    /// Rows (output features).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (input features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Codes, row-major.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// Largest magnitude of each row.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }

    /// The whole matrix in `f32`, row-major.
    pub fn dequantise(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.codes.len()];
        for row in 0..self.rows {
            self.decode_row_range(row, 0, self.cols, &mut out[row * self.cols..(row + 1) * self.cols]);
        }
        out
    }

    /// Columns `col0..col1` of row `row` in `f32`.
    ///
    /// # Panics
    /// If the range leaves the matrix or `out` is not `col1 - col0` long.
    pub fn decode_row_range(&self, row: usize, col0: usize, col1: usize, out: &mut [f32]) {
        assert_eq!(out.len(), col1 - col0, "output for columns {col0}..{col1}");
        self.decode_row(row, col0, out);
    }

    /// Columns `col0..col0 + out.len()` of row `row`, rounded to `bf16`.
    ///
    /// # Panics
    /// If the range leaves the matrix.
    pub fn decode_row_bf16(&self, row: usize, col0: usize, out: &mut [bf16]) {
        self.decode_row(row, col0, out);
    }

    fn decode_row<E: Elem>(&self, row: usize, col0: usize, out: &mut [E]) {
        let col1 = col0 + out.len();
        assert!(row < self.rows && col1 <= self.cols, "row {row}, columns {col0}..{col1}");
        let start = row * self.cols + col0;
        decode_codes(&self.codes[start..start + out.len()], self.absmax[row], out);
    }
}

crate::kernel! {
    fn encode_row(['a] values: &'a [f32], codes: &'a mut [i8]) -> f32 {
        let largest = absmax(values);
        // A row of zeros has no scale; its codes are zeros. Nor has one so small that 127 / absmax overflows.
        let scale = if largest > 0.0 { (127.0 / largest).min(f32::MAX) } else { 0.0 };
        for (code, &value) in codes.iter_mut().zip(values) {
            *code = (value * scale).round_ties_even() as i8;
        }
        largest
    }
}

crate::kernel! {
    fn decode_codes<E: Elem>(['a] codes: &'a [i8], absmax: f32, out: &'a mut [E]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = E::put(f32::from(code) * absmax * STEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pt_core::rng::Stream;

    fn normals(n: usize) -> Vec<f32> {
        let mut draws = Stream::new(1, "int8").at(0);
        (0..n).map(|_| draws.normal() as f32 * 0.02).collect()
    }

    #[test]
    fn errors_are_half_a_step_and_codes_are_fixed_points() {
        for (rows, cols) in [(1, 1), (3, 7), (40, 129)] {
            let values = normals(rows * cols);
            let q = Int8Matrix::quantise(&values, rows, cols).unwrap();
            let back = q.dequantise();
            for (i, (x, y)) in values.iter().zip(&back).enumerate() {
                let bound = q.absmax()[i / cols] / 254.0 * (1.0 + 1e-5);
                assert!((x - y).abs() <= bound, "{i}: {x} became {y}");
            }
            assert_eq!(Int8Matrix::quantise(&back, rows, cols).unwrap().codes(), q.codes());
            let mut piece = vec![bf16::ZERO; cols / 2];
            q.decode_row_bf16(rows - 1, cols - cols / 2, &mut piece);
            for (got, want) in piece.iter().zip(&back[rows * cols - cols / 2..]) {
                assert_eq!(got.to_bits(), bf16::from_f32(*want).to_bits());
            }
        }
    }

    #[test]
    fn ties_go_to_even_and_zero_rows_stay_zero() {
        let q = Int8Matrix::quantise(&[127.0, 0.5, 1.5, -2.5, 0.0, 0.0, -0.0, 0.0], 2, 4).unwrap();
        assert_eq!(q.codes(), [127, 0, 2, -2, 0, 0, 0, 0]);
        assert_eq!(q.dequantise()[4..], [0.0; 4]);
        let tiny = Int8Matrix::quantise(&[1e-40, 0.0], 1, 2).unwrap();
        assert!(tiny.dequantise().iter().all(|v| v.is_finite()));
    }

    #[test]
    fn state_dicts_round_trip_and_say_what_is_wrong() {
        let q = Int8Matrix::quantise(&normals(12), 3, 4).unwrap();
        let dict = q.to_state_dict();
        assert_eq!(Int8Matrix::from_state_dict(&dict).unwrap(), q);
        let without = |key: &str| {
            let mut dict = dict.clone();
            dict.remove(key);
            Int8Matrix::from_state_dict(&dict)
        };
        assert!(without("weight_format").is_ok());
        assert!(matches!(without("SCB"), Err(QuantError::Missing { .. })));
        let with = |key: &str, tensor| {
            let mut dict = dict.clone();
            dict.insert(key.to_owned(), tensor);
            Int8Matrix::from_state_dict(&dict)
        };
        assert!(matches!(with("weight", RawTensor::from_u8(vec![0; 12])), Err(QuantError::Dtype { .. })));
        assert!(matches!(with("SCB", RawTensor::from_f32(&[1.0])), Err(QuantError::Length { .. })));
        assert!(matches!(with("weight_format", RawTensor::from_u8(vec![2])), Err(QuantError::State { .. })));
        assert!(matches!(Int8Matrix::quantise(&[f32::NAN], 1, 1), Err(QuantError::NonFinite { .. })));
    }
}

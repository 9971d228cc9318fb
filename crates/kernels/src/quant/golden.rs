//! Against what bitsandbytes stores (`golden/quant`, made by `golden/quant.py`), bit for bit.

use super::dynamic::{DynamicMap, Quantised8};
use super::int8::Int8Matrix;
use super::nf4::{LEVELS, Nested, Nf4Matrix, Scales};
use super::{RawDtype, RawTensor, StateDict};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// A golden file.
struct File(Vec<u8>);

impl File {
    fn open(name: &str) -> File {
        let path = pt_core::testdata::workspace_root().join("golden/quant").join(name);
        File(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn names(&self, suffix: &str) -> Vec<String> {
        let tensors = self.tensors();
        let mut names: Vec<String> =
            tensors.names().into_iter().filter_map(|n| n.strip_suffix(suffix)).map(str::to_owned).collect();
        names.sort();
        names
    }

    fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    fn shape(&self, name: &str) -> (usize, usize) {
        match *self.tensors().tensor(name).unwrap().shape() {
            [rows, cols] => (rows, cols),
            ref other => panic!("{name} has shape {other:?}"),
        }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data().to_vec()
    }

    /// Any float tensor, widened exactly.
    fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let pairs = tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match tensor.dtype() {
            Dtype::F32 => RawTensor {
                dtype: RawDtype::F32,
                shape: tensor.shape().to_vec(),
                bytes: tensor.data().to_vec(),
            }
            .to_f32(name)
            .unwrap(),
            Dtype::BF16 => pairs.map(|w| bf16::from_bits(w).to_f32()).collect(),
            Dtype::F16 => pairs.map(|w| f16::from_bits(w).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.tensors().tensor(name).unwrap().dtype() == Dtype::BF16
    }

    /// Everything, with `prefix` taken off.
    fn dict(&self, prefix: &str) -> StateDict {
        let dtype = |d| match d {
            Dtype::U8 => RawDtype::U8,
            Dtype::I8 => RawDtype::I8,
            Dtype::F32 => RawDtype::F32,
            Dtype::BF16 => RawDtype::Bf16,
            Dtype::F16 => RawDtype::F16,
            other => panic!("{other:?}"),
        };
        let tensors = self.tensors();
        let entries = tensors.tensors().into_iter().filter_map(|(name, t)| {
            let tensor =
                RawTensor { dtype: dtype(t.dtype()), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
            Some((name.strip_prefix(prefix)?.to_owned(), tensor))
        });
        entries.collect()
    }
}

/// Equal bits, but for the sign of zero (a level 0 times a scale below 0 cannot be told from 0).
fn same(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(a == b, "{what}[{i}]: {a:e} against {b:e}");
    }
}

/// The decoded matrix in the type of the golden tensor.
fn decoded(q: &Nf4Matrix, as_bf16: bool) -> Vec<f32> {
    if !as_bf16 {
        return q.dequantise();
    }
    let mut out = vec![bf16::ZERO; q.rows() * q.cols()];
    q.decode_rows_bf16(0..q.rows(), &mut out);
    out.iter().map(|v| v.to_f32()).collect()
}

#[test]
fn nf4_equals_bitsandbytes() {
    let file = File::open("nf4.safetensors");
    same("levels", &LEVELS, &file.floats("nf4_map"));
    same("signed map", DynamicMap::signed().values(), &file.floats("nested_map"));
    let cases = file.names(".input");
    assert_eq!(cases.len(), 7, "{cases:?}");
    for case in cases {
        let name = |part: &str| format!("{case}.{part}");
        let (rows, cols) = file.shape(&name("input"));
        let values = file.floats(&name("input"));
        let as_bf16 = file.is_bf16(&name("dequant"));
        let plain = Nf4Matrix::quantise(&values, rows, cols, 64, false).unwrap();
        assert_eq!(plain.codes(), file.bytes(&name("codes")), "{case}");
        let Scales::Plain(absmax) = plain.scales() else { panic!("asked for plain scales") };
        same(&case, absmax, &file.floats(&name("absmax")));
        same(&case, &decoded(&plain, as_bf16), &file.floats(&name("dequant")));

        let offset = file.floats(&name("nested.offset"))[0];
        let double = Nf4Matrix::quantise(&values, rows, cols, 64, true).unwrap();
        let Scales::Nested(ours) = double.scales() else { panic!("asked for nested scales") };
        let ulps = (ours.offset.to_bits() as i64 - offset.to_bits() as i64).abs();
        assert!(ulps <= 2, "{case}: the mean {} against {offset}", ours.offset);
        let nested = Nested::quantise(absmax, offset).unwrap();
        assert_eq!(nested.quantised.codes, file.bytes(&name("nested.absmax_codes")), "{case}");
        same(&case, &nested.quantised.scales, &file.floats(&name("nested.absmax")));
        let codes = plain.codes().to_vec();
        let double = Nf4Matrix::from_parts(rows, cols, 64, codes, Scales::Nested(nested)).unwrap();
        let scales: Vec<f32> = (0..double.scales().len()).map(|b| double.scales().get(b)).collect();
        same(&case, &scales, &file.floats(&name("nested.absmax_dequant")));
        same(&case, &decoded(&double, as_bf16), &file.floats(&name("nested.dequant")));
    }
}

#[test]
fn saved_linear4bit_reads_and_writes_back_to_the_same_tensors() {
    for kind in ["single", "double"] {
        let file = File::open(&format!("linear4bit_{kind}.safetensors"));
        let dict = file.dict("");
        let q = Nf4Matrix::from_state_dict(&dict, "weight").unwrap();
        same(kind, &decoded(&q, file.is_bf16("dequant")), &file.floats("dequant"));
        for (name, written) in q.to_state_dict("weight", "bfloat16") {
            let theirs = &dict[&name];
            if name.contains("quant_state") {
                let json = |t: &RawTensor| serde_json::from_slice::<serde_json::Value>(&t.bytes).unwrap();
                assert_eq!(json(&written), json(theirs), "{kind} {name}");
            } else {
                assert_eq!(&written, theirs, "{kind} {name}");
            }
        }
    }
}

#[test]
fn int8_equals_bitsandbytes() {
    let file = File::open("int8.safetensors");
    let mut cases = file.names(".input");
    cases.retain(|case| file.has(&format!("{case}.weight")));
    assert!(!cases.is_empty());
    for case in cases {
        let name = |part: &str| format!("{case}.{part}");
        let (rows, cols) = file.shape(&name("input"));
        let ours = Int8Matrix::quantise(&file.floats(&name("input")), rows, cols).unwrap();
        same(&case, ours.absmax(), &file.floats(&name("SCB")));
        let theirs = Int8Matrix::from_state_dict(&file.dict(&name(""))).unwrap();
        // bitsandbytes rounds the scaled value to f16 before it rounds to an integer; we do not. That
        // moves a value by at most 2^-5 near 127, so only values that near to a half may differ, by one.
        let mut differ = 0;
        for (i, (a, b)) in ours.codes().iter().zip(theirs.codes()).enumerate() {
            assert!((i16::from(*a) - i16::from(*b)).abs() <= 1, "{case}[{i}]: {a} against {b}");
            differ += usize::from(a != b);
        }
        assert!(differ * 50 <= ours.codes().len(), "{case}: {differ} codes differ");
        for (i, (a, b)) in theirs.dequantise().iter().zip(file.floats(&name("dequant"))).enumerate() {
            // Their order of the two products is (w * SCB) / 127 or * (1/127): two roundings.
            assert!((a - b).abs() <= b.abs() * 3e-7, "{case}[{i}]: {a} against {b}");
        }
    }
    let dict = file.dict("linear8bit.");
    let q = Int8Matrix::from_state_dict(&dict).unwrap();
    for (name, written) in q.to_state_dict() {
        assert_eq!(written, dict[&name], "{name}");
    }
}

#[test]
fn blockwise8_equals_bitsandbytes() {
    let file = File::open("blockwise8.safetensors");
    same("signed", DynamicMap::signed().values(), &file.floats("signed_map"));
    same("unsigned", DynamicMap::unsigned().values(), &file.floats("unsigned_map"));
    let cases = file.names(".input");
    assert_eq!(cases.len(), 4, "{cases:?}");
    for case in cases {
        let name = |part: &str| format!("{case}.{part}");
        let map = if case.contains("unsigned") { DynamicMap::unsigned() } else { DynamicMap::signed() };
        let q = map.quantise(&file.floats(&name("input"))).unwrap();
        assert_eq!(q.codes, file.bytes(&name("codes")), "{case}");
        same(&case, &q.scales, &file.floats(&name("absmax")));
        same(&case, &map.dequantise(&q).unwrap(), &file.floats(&name("dequant")));
        let cpu = Quantised8 { codes: file.bytes(&name("codes_cpu")), scales: q.scales };
        assert_eq!(
            map.dequantise(&cpu).unwrap().len(),
            cpu.codes.len(),
            "{case}: what its CPU kernel wrote reads"
        );
    }
}

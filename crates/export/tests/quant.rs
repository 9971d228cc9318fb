//! Block formats against ggml's reference quantisers and the `gguf` package (golden/export/quant.py).

use pt_core::testdata::workspace_root;
use pt_export::quant::TensorType;
use safetensors::SafeTensors;

#[test]
fn blocks_are_packed_and_unpacked_as_ggml_does() {
    let bytes = std::fs::read(workspace_root().join("golden/export/quant.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let data = golden.tensor(name).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let values = floats("values");
    let cases = [
        ("q4_0", TensorType::Q4_0),
        ("q5_0", TensorType::Q5_0),
        ("q5_1", TensorType::Q5_1),
        ("q8_0", TensorType::Q8_0),
        ("q4_K", TensorType::Q4K),
        ("q5_K", TensorType::Q5K),
        ("q6_K", TensorType::Q6K),
    ];
    let mut wrong = Vec::new();
    for (name, kind) in cases {
        let expected = golden.tensor(&format!("{name}.packed")).unwrap();
        let packed = kind.quantise(&values);
        let unpacked = kind.dequantise(expected.data());
        let reference = floats(&format!("{name}.unpacked"));
        for (i, (a, b)) in unpacked.iter().zip(&reference).enumerate() {
            assert!(
                a.to_bits() == b.to_bits() || a == b,
                "{name}: value {i} is unpacked to {a}, expected {b}"
            );
        }
        let per_block = kind.block_bytes();
        let blocks = packed.chunks(per_block).zip(expected.data().chunks(per_block)).enumerate();
        let differ: Vec<usize> = blocks.filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
        if !differ.is_empty() {
            wrong.push(format!(
                "{name}: {} of {} blocks, {differ:?}",
                differ.len(),
                packed.len() / per_block
            ));
        }
    }
    assert!(wrong.is_empty(), "packed otherwise than by ggml: {wrong:#?}");
}

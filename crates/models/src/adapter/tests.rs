use super::*;
use crate::init::NewModel;
use crate::load::{Quantise, quantised};
use pt_engine::Dtype;
use serde_json::json;

fn model() -> Model {
    let new = json!({
        "vocab_size": 50, "hidden_size": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_size": 48, "init_std": 0.3,
    });
    serde_json::from_value::<NewModel>(new).unwrap().build(Dtype::F32, 3).unwrap()
}

fn config(changes: serde_json::Value) -> LoraConfig {
    let mut map = json!({"rank": 4, "alpha": 8}).as_object().unwrap().clone();
    map.extend(changes.as_object().unwrap().clone());
    serde_json::from_value(map.into()).unwrap()
}

fn values(model: &Model, name: &str) -> Vec<f32> {
    model.params.get(model.params.find(name).unwrap_or_else(|| panic!("{name}"))).weight.to_f32()
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn targets_are_ends_of_names() {
    let check = |targets: serde_json::Value, expected: usize| {
        let mut model = model();
        model.attach_lora(&config(json!({"targets": targets})), 1).unwrap();
        let adapted = model.arch.linears().iter().filter(|l| l.lora.is_some()).count();
        assert_eq!(adapted, expected, "{targets}");
        let trains = model.params.iter().filter(|(_, p)| p.trainable).count();
        assert_eq!(trains, 2 * expected, "{targets}");
        assert!(model.params.iter().all(|(_, p)| p.trainable == p.name.contains("lora_")));
    };
    check(json!("all-linear"), 14);
    check(json!(["q_proj", "v_proj"]), 4);
    check(json!(["self_attn.q_proj"]), 2);
    check(json!([Q]), 1);
    let mut all = model();
    all.attach_lora(&config(json!({})), 1).unwrap();
    assert_eq!(all.arch.linears().iter().filter(|l| l.lora.is_some()).count(), 14);
}

#[test]
fn wrong_descriptions_are_named() {
    let check = |changes: serde_json::Value, expected: &str| {
        let message = model().attach_lora(&config(changes), 1).unwrap_err().to_string();
        assert!(message.contains(expected), "{message} should mention {expected}");
    };
    check(json!({"rank": 0}), "rank is 0");
    check(json!({"alpha": 0}), "alpha is 0");
    check(json!({"dropout": 1.0}), "dropout is 1");
    check(json!({"targets": ["q_prj"]}), "did you mean `q_proj`");
    check(json!({"targets": ["lm_head"]}), "`lm_head` matches no linear layer");
    check(json!({"targets": []}), "empty");
    check(json!({"rank": 33, "init": "pissa"}), "rank 33");
    assert!(serde_json::from_value::<LoraConfig>(json!({"rank": 4, "alpha": 8, "target": ["q"]})).is_err());
    assert!(serde_json::from_value::<LoraConfig>(json!({"rank": 4, "alpha": 8, "targets": "all"})).is_err());
    let mut twice = model();
    twice.attach_lora(&config(json!({})), 1).unwrap();
    assert!(twice.attach_lora(&config(json!({})), 1).unwrap_err().to_string().contains("already"));
    assert!(twice.train_all().unwrap_err().to_string().contains("merge"));
    assert!(model().merge_adapter(Dtype::F32).unwrap_err().to_string().contains("nothing to merge"));
}

#[test]
fn a_starts_as_in_peft_and_depends_on_seed_and_layer_only() {
    let start = |seed, targets: serde_json::Value| {
        let mut model = model();
        model.attach_lora(&config(json!({"targets": targets})), seed).unwrap();
        (values(&model, &name_a(Q)), values(&model, &name_b(Q)))
    };
    let (a, b) = start(1, json!("all-linear"));
    let bound = 1.0 / 32f32.sqrt();
    assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.9 * bound));
    assert!(b.iter().all(|x| *x == 0.0));
    assert_eq!(a, start(1, json!(["q_proj"])).0);
    assert_ne!(a, start(2, json!(["q_proj"])).0);
}

#[test]
fn scales_are_alpha_over_rank_or_its_root() {
    assert_eq!(config(json!({})).scale(), 2.0);
    assert_eq!(config(json!({"rslora": true})).scale(), 4.0);
}

#[test]
fn dora_starts_at_the_norms_of_the_rows() {
    let mut model = model();
    model.attach_lora(&config(json!({"dora": true})), 1).unwrap();
    let weight = values(&model, &format!("{Q}.weight"));
    let norms = values(&model, &name_magnitude(Q));
    let expected = weight.chunks(32).map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt());
    assert!(norms.iter().zip(expected).all(|(n, e)| (n - e).abs() < 1e-5 * e));
}

/// With PiSSA the sum of base and adapter is the original matrix, the adapter is its best approximation, and both
/// merging and the saved difference give the original back while nothing is trained.
#[test]
fn pissa_splits_the_weights() {
    for rslora in [false, true] {
        let original = values(&model(), &format!("{Q}.weight"));
        let mut model = model();
        model.attach_lora(&config(json!({"init": "pissa", "rslora": rslora})), 1).unwrap();
        let rest = values(&model, &format!("{Q}.weight"));
        let norm = |w: &[f32]| w.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let svd = svd::leading(&original, 32, 32, 4, &Stream::new(9, "other"));
        let expected = norm(&original) - svd.sigma.iter().map(|s| s * s).sum::<f64>();
        assert!((norm(&rest) / expected - 1.0).abs() < 1e-4, "{} and {expected}", norm(&rest));

        let dir = tempfile::tempdir().unwrap();
        model.save_peft(dir.path(), None).unwrap();
        model.merge_adapter(Dtype::F32).unwrap();
        let close = |found: &[f32]| original.iter().zip(found).all(|(o, f)| (o - f).abs() < 1e-5);
        assert!(close(&values(&model, &format!("{Q}.weight"))));

        // The file is a difference of zero to the original weights, at twice the rank.
        let mut fresh = super::tests::model();
        fresh.attach_peft(dir.path()).unwrap();
        assert_eq!(fresh.params.get(fresh.params.find(&name_a(Q)).unwrap()).shape, [8, 32]);
        fresh.merge_adapter(Dtype::F32).unwrap();
        assert!(close(&values(&fresh, &format!("{Q}.weight"))));
    }
}

#[test]
fn merging_removes_the_adapter_and_keeps_ids() {
    let mut model = model();
    let (n, head) = (model.params.len(), model.arch.head());
    model.attach_lora(&config(json!({"dora": true})), 1).unwrap();
    let id = model.params.find(&name_b(Q)).unwrap();
    model.params.get_mut(id).weight = Weight::from_f32(&[0.1; 32 * 4]);
    let before = values(&model, &format!("{Q}.weight"));
    model.merge_adapter(Dtype::F32).unwrap();
    assert_eq!(model.params.len(), n);
    assert_eq!(model.arch.head(), head);
    assert_eq!(model.params.get(head).name, "model.embed_tokens.weight");
    assert!(model.adapter().is_none() && model.arch.linears().iter().all(|l| l.lora.is_none()));
    assert_ne!(before, values(&model, &format!("{Q}.weight")));
    // DoRA: the norms of rows are the magnitudes, which have not moved.
    let (old, new) = (row_norms(&before, 32), row_norms(&values(&model, &format!("{Q}.weight")), 32));
    assert!(old.iter().zip(&new).all(|(o, n)| (o - n).abs() < 1e-5 * o));
}

/// On a quantised base the rest is quantised again, which moves the sum by less than the rest was moved before.
#[test]
fn pissa_on_quantised_weights_keeps_their_storage() {
    for how in [Quantise::Nf4 { double: true }, Quantise::Int8] {
        let mut model = model();
        let id = model.params.find(&format!("{Q}.weight")).unwrap();
        let original = model.params.get(id).weight.to_f32();
        model.params.get_mut(id).weight = quantised(&original, 32, 32, how).unwrap();
        let (stored, name) =
            (values(&model, &format!("{Q}.weight")), model.params.get(id).weight.dtype_name());
        model.attach_lora(&config(json!({"init": "pissa", "targets": [Q]})), 1).unwrap();
        assert_eq!(model.params.get(id).weight.dtype_name(), name);
        model.merge_adapter(Dtype::F32).unwrap();
        let gap =
            |w: &[f32]| -> f32 { w.iter().zip(&stored).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() };
        let size: f32 = stored.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(gap(&values(&model, &format!("{Q}.weight"))) < 0.1 * size, "{name}");
    }
}

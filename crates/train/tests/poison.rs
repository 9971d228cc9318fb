//! No kernel reads memory that was not written: with every fresh buffer full of NaN, a step gives the same bits. (A binary
//! of its own: the switch is process-wide.)

use std::sync::Arc;

use pt_engine::Dtype;
use pt_kernels::buffer;
use pt_models::{LoraConfig, LoraInit, NewModel, Quantise, Targets};
use pt_optim::{Groups, ScheduleConfig};
use pt_train::{Example, MicroBatch, Trainer, TrainerOptions};

/// Odd sizes everywhere, so that every tail of every tile occurs.
fn trainer(dtype: Dtype, mode: &str, optimiser: &str) -> Trainer {
    let new = NewModel {
        vocab_size: 2100,
        hidden_size: 54,
        n_layers: 2,
        n_heads: 3,
        n_kv_heads: 1,
        ffn_size: 77,
        max_positions: 256,
        tied: true,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        init_std: 0.05,
        bos_token_id: None,
        eos_token_id: None,
        pad_token_id: None,
    };
    let mut model = new.build(dtype, 3).unwrap();
    if mode == "full" {
        model.train_all().unwrap();
    } else {
        if mode == "qlora" {
            model.quantise(Quantise::Nf4 { double: true }).unwrap();
        }
        let lora = LoraConfig {
            rank: 3,
            alpha: 6.0,
            dropout: 0.1,
            targets: Targets::default(),
            rslora: false,
            dora: mode == "dora",
            init: LoraInit::Default,
        };
        model.attach_lora(&lora, 3).unwrap();
    }
    let objective = pt_objectives::build("cross_entropy", &"label_smoothing = 0.1".parse().unwrap()).unwrap();
    let optimiser = pt_optim::build(optimiser, &toml::Table::new(), 3).unwrap();
    let schedule = ScheduleConfig::default().resolve(5).unwrap();
    let options = TrainerOptions {
        dtype,
        learning_rate: 1e-2,
        recompute: false,
        max_grad_norm: Some(1.0),
        seed: 3,
        groups: Groups::default(),
        temperature: 1.0,
    };
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).unwrap()
}

fn losses(dtype: Dtype, mode: &str, optimiser: &str) -> Vec<u64> {
    let mut trainer = trainer(dtype, mode, optimiser);
    let steps = (0..4u64).map(|step| {
        let example = |i: u64| {
            let len = 5 + (step * 7 + i * 13) % 90;
            let token_ids = (0..len).map(|t| ((t * 37 + i * 11 + step) % 2100) as u32).collect();
            let weights = (0..len).map(|t| if t % 5 == 2 { 0.0 } else { 1.0 }).collect();
            Example::sequence(token_ids, weights, step * 10 + i, Arc::from("test"))
        };
        let batches =
            [MicroBatch::new((0..3).map(example).collect()), MicroBatch::new((3..4).map(example).collect())];
        let (stats, _) = trainer.step(&batches).unwrap();
        [stats.loss.to_bits(), stats.grad_norm.to_bits()]
    });
    steps.flatten().collect()
}

#[test]
fn nothing_is_read_before_it_is_written() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (mode, optimiser) in [
            ("full", "adamw"),
            ("full", "muon"),
            ("full", "adamw8bit"),
            ("lora", "adamw"),
            ("dora", "adamw"),
            ("qlora", "adamw"),
        ] {
            buffer::poison(false);
            let clean = losses(dtype, mode, optimiser);
            buffer::poison(true);
            let poisoned = losses(dtype, mode, optimiser);
            buffer::poison(false);
            assert_eq!(clean, poisoned, "{dtype:?} {mode} {optimiser}");
        }
    }
}

//! The trainer that benchmarks of training share.

use pt_engine::Dtype;
use pt_models::{LoraConfig, LoraInit, Model, Quantise, Targets};
use pt_optim::{Groups, ScheduleConfig};
use pt_train::{Trainer, TrainerOptions};

/// Trains `model` in a mode: `full` (in bf16 with stochastic rounding and moments in bf16), `lora`, or `qlora` over NF4.
pub fn trainer(
    mut model: Model,
    objective: &str,
    mode: &str,
    dtype: Dtype,
    learning_rate: f64,
    steps: u64,
) -> Trainer {
    let mut optimiser = toml::Table::new();
    match mode {
        "full" => {
            model.train_all().expect("a model in floating point");
            if dtype == Dtype::Bf16 {
                optimiser.insert("bf16_params".into(), "stochastic".into());
                optimiser.insert("state".into(), "bf16".into());
            }
        }
        "lora" | "qlora" => {
            if mode == "qlora" {
                model.quantise(Quantise::Nf4 { double: true }).expect("finite weights");
            }
            model.attach_lora(&lora(), 1).expect("a valid adapter");
        }
        other => panic!("MODE is {other}, expected full, lora or qlora"),
    }
    let objective = pt_objectives::build(objective, &toml::Table::new()).expect("a known objective");
    let optimiser = pt_optim::build("adamw", &optimiser, 1).expect("valid options");
    let schedule = ScheduleConfig::default().resolve(steps + 1).expect("a valid schedule");
    let options = TrainerOptions {
        dtype,
        learning_rate,
        recompute: false,
        max_grad_norm: Some(1.0),
        seed: 1,
        groups: Groups::default(),
        temperature: 1.0,
    };
    Trainer::new(model, objective, optimiser.as_ref(), schedule, options).expect("something trains")
}

/// The adapter that the peers train, too.
fn lora() -> LoraConfig {
    LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        targets: Targets::default(),
        rslora: false,
        dora: false,
        init: LoraInit::Default,
    }
}

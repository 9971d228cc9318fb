"""Twenty optimiser steps of models/llama by the loss of TRL's own GKDTrainer, the teacher models/qwen3: golden/gkd/train.json.

    python golden/gkd/gkd_train.py

The trainer is made without its constructor (see ../preference/preference.py); prompts and chosen replies are those of
../preference_train/batches.json, optimiser, clipping and schedule those of ../preference_train. All of it is in f64.
"""

import json
import sys
from pathlib import Path

for folder in ("", "preference", "preference_train"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / folder))

from common import ROOT, TrueF64, save_json

import torch
from trl.experimental.gkd import GKDTrainer

import models
from preference import bare
from preference_train import ADAMW, policy, rows, train

TEACHER = ROOT / "models" / "qwen3"
BETAS = {"forward": 0.0, "reverse": 1.0, "jsd": 0.5, "skewed": 0.1}


def gkd(beta):
    def make(model, teacher):
        trainer = bare(GKDTrainer, teacher_model=teacher, beta=beta)

        def loss(batch):
            inputs = rows([(p["prompt"], p["chosen"]) for p in batch["pairs"]])
            inputs["labels"] = torch.where(inputs.pop("completion_mask") == 1, inputs["input_ids"], -100)
            count = (inputs["labels"] != -100).sum()
            return trainer.compute_loss(model, inputs, num_items_in_batch=count)

        return trainer, loss

    return make


def main() -> None:
    batches = json.loads((ROOT / "preference_train" / "batches.json").read_text())
    teacher = lambda: models.load(TEACHER, torch.float32)
    runs = {}
    for name, beta in BETAS.items():
        plain = train(policy(), teacher(), gkd(beta), batches)
        with TrueF64():
            log = train(policy().double(), teacher().double(), gkd(beta), batches)
        gap = max(abs(a - b) for a, b in zip(log["loss"], plain["loss"]))
        print(f"{name}: loss {log['loss'][0]:.4f} -> {log['loss'][-1]:.4f}, f32 gap {gap:.1e}")
        assert gap < 1e-4
        runs[name] = {"options": f"beta = {beta}", "loss": log["loss"], "grad_norm": log["grad_norm"], "f32_gap": gap}
    save_json(ROOT / "gkd" / "train.json", {"learning_rate": ADAMW["lr"], "runs": runs})


if __name__ == "__main__":
    main()

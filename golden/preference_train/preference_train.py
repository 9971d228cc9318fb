"""Twenty optimiser steps of models/llama by TRL's preference, reward and process-reward losses; scores of heads.

Writes batches.json, <run>.json and heads.json; ../README.md says what is in them. The losses are TRL's own methods, of trainers
made without their constructors (see ../preference/preference.py), on the model itself; optimiser, clipping and schedule are
those of ../train.py. The process reward model is transformers' token classification. All of it is in f64.

Usage: python preference_train.py
"""

import contextlib
import sys
import types
from pathlib import Path

for folder in ("", "preference"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / folder))

from common import ROOT, TrueF64, normal, rng, save_json

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer
from trl.trainer.callbacks import SyncRefModelCallback

import models
from train import save_adapter
from preference import bare, callable_model, metrics_of

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

OUT = ROOT / "preference_train"
BASE = ROOT / "models" / "llama"
N_STEPS, N_WARMUP, CLIP = 20, 4, 1.0
ADAMW = dict(lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
WEIGHT_DECAY = 0.1
PAD = 0

# --------------------------------------------------------------------------- data


def make_batches() -> list:
    """Three pairs a step, and for each the reply to another prompt; two solutions in steps."""
    g = rng(61)
    ids = lambda low, high: g.integers(3, models.VOCAB, size=g.integers(low, high)).tolist()
    batches = []
    for _ in range(N_STEPS):
        pairs = [
            {"prompt": ids(2, 6), "chosen": ids(1, 8), "rejected": ids(1, 8), "mismatched": ids(1, 8), "margin": int(g.integers(0, 8)) / 8}
            for _ in range(3)
        ]
        solutions = []
        for _ in range(2):
            lengths = g.integers(1, 5, size=g.integers(1, 4)).tolist()
            solutions.append(
                {
                    "prompt": ids(2, 6),
                    "steps": [g.integers(3, models.VOCAB, size=n).tolist() for n in lengths],
                    "labels": g.integers(0, 2, size=len(lengths)).tolist(),
                }
            )
        batches.append({"pairs": pairs, "solutions": solutions})
    return batches


def head_values(n_outputs: int, hidden: int = 32) -> list:
    return [round(float(x) * 1024) / 1024 for x in rng(62).standard_normal(n_outputs * hidden) * 0.1]


def rows(items) -> dict:
    """Prompts and replies, padded on the right."""
    width = max(len(p) + len(r) for p, r in items)
    n = len(items)
    out = {name: torch.full((n, width), fill) for name, fill in (("input_ids", PAD), ("attention_mask", 0), ("completion_mask", 0))}
    for i, (prompt, reply) in enumerate(items):
        end = len(prompt) + len(reply)
        out["input_ids"][i, :end] = torch.tensor(prompt + reply)
        out["attention_mask"][i, :end] = 1
        out["completion_mask"][i, len(prompt) : end] = 1
    return out


def of_pairs(batch):
    return [(p["prompt"], p[side]) for side in ("chosen", "rejected") for p in batch["pairs"]]


# --------------------------------------------------------------------------- models


def fused(model):
    """The outputs of TRL's fused head, from the logits."""

    def forward(input_ids, attention_mask, labels, use_cache, fused_lm_head):
        logits = model(input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        logp = torch.log_softmax(logits, dim=-1)
        targets = labels[:, 1:]
        mask = targets != -100
        picked = logp.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        entropy = -(logp.exp() * logp).sum(-1)
        return types.SimpleNamespace(
            log_probs=picked * mask,
            entropy=entropy,
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == targets,
            log_sum_sq_probs=torch.logsumexp(2 * logp, dim=-1),
        )

    return callable_model(forward)


def policy():
    return models.load(BASE, torch.float32)


def with_head(auto, directory, n_outputs: int, **changes):
    config = AutoConfig.from_pretrained(directory, num_labels=n_outputs)
    for name, value in changes.items():
        setattr(config, name, value)
    model = auto.from_pretrained(directory, config=config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        values = torch.tensor(head_values(n_outputs, model.config.hidden_size))
        model.score.weight.copy_(values.reshape(n_outputs, -1))
    model.config.pad_token_id = PAD
    return model.eval()


# --------------------------------------------------------------------------- losses


def dpo(model, reference):
    values = dict(
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=0.1,
        label_smoothing=0.0,
        use_weighting=False,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    trainer = bare(dpo_trainer.DPOTrainer, model=fused(model), ref_model=fused(reference), **values)
    return trainer, lambda batch: trainer._compute_loss(trainer.model, rows(of_pairs(batch)), False)


def kto(model, reference):
    """Of each pair both replies, each with the reply to another prompt that the pair has."""
    values = dict(
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.5,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    trainer = bare(kto_trainer.KTOTrainer, model=fused(model), ref_model=fused(reference), **values)

    def loss(batch):
        inputs = rows(of_pairs(batch))
        n = len(batch["pairs"])
        inputs["label"] = torch.tensor([True] * n + [False] * n)
        other = rows([(p["prompt"], p["mismatched"]) for p in batch["pairs"] * 2])
        inputs |= {f"KL_{name}": value for name, value in other.items()}
        return trainer._compute_loss(trainer.model, inputs, False)

    return trainer, loss


def contrastive(cls, **values):
    def make(model, _):
        trainer = bare(cls, is_encoder_decoder=False, padding_value=PAD, pad_token_id=PAD, **values)

        def loss(batch):
            inputs = {}
            for side in ("chosen", "rejected"):
                part = rows([(p["prompt"], p[side]) for p in batch["pairs"]])
                inputs[f"{side}_input_ids"] = part["input_ids"]
                inputs[f"{side}_attention_mask"] = part["attention_mask"]
                inputs[f"{side}_labels"] = torch.where(part["completion_mask"] == 1, part["input_ids"], -100)
            loss, metrics = trainer.get_batch_loss_metrics(model, inputs)
            for name, value in metrics.items():
                trainer._metrics["train"][name].append(value)
            return loss

        return trainer, loss

    return make


def reward(model, _):
    args = types.SimpleNamespace(center_rewards_coefficient=0.01)
    trainer = bare(reward_trainer.RewardTrainer, args=args)
    trainer.model = model

    def loss(batch):
        inputs = rows(of_pairs(batch))
        del inputs["completion_mask"]
        inputs["margin"] = torch.tensor([p["margin"] for p in batch["pairs"]])
        # The trainer says whether it trains by the model, which is in evaluation mode for the lack of dropout.
        trainer.model = types.SimpleNamespace(training=True)
        return trainer.compute_loss(model, inputs)

    return trainer, loss


def prm(model, _):
    trainer = bare(reward_trainer.RewardTrainer)

    def loss(batch):
        inputs = rows([(s["prompt"], sum(s["steps"], [])) for s in batch["solutions"]])
        labels = torch.full_like(inputs["input_ids"], -100)
        for i, solution in enumerate(batch["solutions"]):
            end = len(solution["prompt"])
            for step, label in zip(solution["steps"], solution["labels"]):
                end += len(step)
                labels[i, end - 1] = label
        out = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False)
        hits = (out.logits.argmax(-1) == labels)[labels != -100]
        trainer._metrics["train"]["accuracy"].append(hits.double().mean().item())
        return out.loss

    return trainer, loss


# --------------------------------------------------------------------------- runs


def train(model, reference, make, batches, sync=None) -> dict:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if "norm" not in n], "weight_decay": WEIGHT_DECAY},
        {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=False, **ADAMW)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, N_WARMUP, N_STEPS)
    trainer, loss_of = make(model, reference)
    log = {"loss": [], "grad_norm": [], "metrics": []}
    for batch in batches:
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        log["loss"].append(loss.item())
        log["grad_norm"].append(torch.nn.utils.clip_grad_norm_([p for _, p in named], CLIP).item())
        log["metrics"].append({k: v for k, v in metrics_of(trainer).items() if v == v})
        optimizer.step()
        schedule.step()
        if sync and len(log["loss"]) % sync["ref_model_sync_steps"] == 0:
            SyncRefModelCallback._sync_target_model(model, reference, sync["ref_model_mixup_alpha"])
    return log


SEQUENCE, TOKEN = AutoModelForSequenceClassification, AutoModelForTokenClassification
RUNS = {
    "dpo": ("dpo", "", policy, dpo),
    "dpo_other": ("dpo", "", policy, dpo),
    "tr_dpo": ("dpo", "", policy, dpo),
    "kto": ("kto", "undesirable_weight = 1.5", policy, kto),
    "orpo": ("orpo", "", policy, contrastive(ORPOTrainer, beta=0.1)),
    "simpo": (
        "simpo",
        "beta = 2.0\nsimpo_gamma = 1.0",
        policy,
        contrastive(CPOTrainer, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.0, label_smoothing=0.0, alpha=0.0),
    ),
    "reward": ("reward", "center_rewards_coefficient = 0.01", lambda: with_head(SEQUENCE, BASE, 1), reward),
    "prm": ("prm", "", lambda: with_head(TOKEN, BASE, 2, token_classification_bias=False, classifier_dropout=0.0), prm),
}


# Where the reference is another model than the policy's start, and where it follows the policy.
REFERENCES = {"dpo_other": ROOT / "models" / "qwen3"}
SYNC = {"tr_dpo": dict(ref_model_sync_steps=4, ref_model_mixup_alpha=0.6)}


def make_run(name: str, batches) -> None:
    objective, options, build, make = RUNS[name]
    reference = (lambda: models.load(REFERENCES[name], torch.float32)) if name in REFERENCES else build
    sync = SYNC.get(name)
    plain = train(build(), reference(), make, batches, sync)
    with TrueF64():
        log = train(build().double(), reference().double(), make, batches, sync)
    gap = max(abs(a - b) for a, b in zip(log["loss"], plain["loss"]))
    print(f"{name}: loss {log['loss'][0]:.4f} -> {log['loss'][-1]:.4f}, f32 gap {gap:.1e}")
    assert gap < 1e-4
    settings = {**ADAMW, "weight_decay": WEIGHT_DECAY, "max_grad_norm": CLIP, "schedule": "cosine", "warmup_steps": N_WARMUP, "steps": N_STEPS}
    extra = {"sync": sync} if sync else {}
    save_json(OUT / f"{name}.json", {"objective": objective, "options": options, "settings": settings, "f32_gap": gap, **extra, **log})


# --------------------------------------------------------------------------- heads

ARCHITECTURES = ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]
TOKENS = [5, 17, 3, 9, 40, 77, 101, 12]


def head_case(name: str, auto, n_outputs: int) -> dict:
    model = with_head(auto, ROOT / "models" / name, n_outputs)
    with TrueF64(), torch.no_grad():
        logits = model.double()(torch.tensor([TOKENS]), use_cache=False).logits[0]
    return {
        "model": name,
        "n_outputs": n_outputs,
        "architectures": [type(model).__name__],
        "tensors": sorted(model.state_dict()),
        "scores": logits.flatten().tolist(),
    }


def make_peft() -> list:
    """A reward model as PEFT saves it: an adapter and, whole, the head."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS")
    model = get_peft_model(with_head(SEQUENCE, BASE, 1), config).eval()
    generator = rng(63)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(normal(generator, p.shape, std=0.2))
            elif "score.modules_to_save" in name:
                p.mul_(1.5)
    save_adapter(model, OUT / "peft_reward")
    with TrueF64(), torch.no_grad():
        return model.double()(torch.tensor([TOKENS]), use_cache=False).logits[0].tolist()


def make_heads() -> None:
    cases = []
    for name in ARCHITECTURES:
        for auto, n_outputs in ((SEQUENCE, 1), (SEQUENCE, 3), (TOKEN, 2)):
            with contextlib.suppress(ValueError):  # transformers has no such class
                cases.append(head_case(name, auto, n_outputs))
    heads = {str(n): head_values(n) for n in (1, 2, 3)}
    save_json(OUT / "heads.json", {"tokens": TOKENS, "heads": heads, "cases": cases, "peft_reward": make_peft()})
    print([case["architectures"][0] for case in cases])


if __name__ == "__main__":
    batches = make_batches()
    save_json(OUT / "batches.json", batches)
    for name in RUNS:
        make_run(name, batches)
    make_heads()

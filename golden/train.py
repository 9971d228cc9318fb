"""Twenty optimiser steps of models/llama, full and with PEFT adapters; losses, schedules, optimisers.

Writes train/; README.md lists the files. The runs are in f64 (common.TrueF64), so that whoever
compares an f32 run with them measures one rounding error and not two; the losses of PyTorch's own
f32 run stand beside them.

Usage: python train.py
"""

import json
import logging
import shutil
import warnings

warnings.filterwarnings("ignore")

from common import ROOT, TrueF64, f32, normal, rng, save_json, save_tensors

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from transformers.trainer_pt_utils import LabelSmoother

import models
import quant

transformers.utils.logging.set_verbosity_error()
logging.disable(logging.WARNING)

OUT = ROOT / "train"
BASE = ROOT / "models" / "llama"
N_STEPS, N_WARMUP, CLIP = 20, 4, 1.0
ADAMW = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8)
WEIGHT_DECAY = 0.1

# --------------------------------------------------------------------------- data and loss


def make_batches() -> list:
    """Two to four sequences a step; about a third of the tokens are not trained on."""
    generator = rng(20)
    batches = []
    for _ in range(N_STEPS):
        lengths = generator.integers(3, 11, size=generator.integers(2, 5)).tolist()
        tokens = [generator.integers(3, models.VOCAB, size=n).tolist() for n in lengths]
        mask = [[0] + (generator.random(n - 1) < 0.65).astype(int).tolist() for n in lengths]
        mask[0][-1] = 1  # never a batch without a target
        batches.append({"tokens": tokens, "mask": mask, "n_targets": sum(map(sum, mask))})
    return batches


def batch_loss(model, batch):
    """The sum over trained tokens of minus their log-probability, divided by their number."""
    total = 0.0
    for tokens, mask in zip(batch["tokens"], batch["mask"]):
        ids = torch.tensor([tokens])
        logprobs = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1], dim=-1)
        picked = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        total = total - (picked * torch.tensor(mask[1:], dtype=picked.dtype)).sum()
    return total / batch["n_targets"]


# --------------------------------------------------------------------------- runs


def parameter_groups(model, decay_all: bool):
    """transformers' Trainer decays neither norms nor biases."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    spared = {n for n, _ in named if not decay_all and ("norm" in n or n.endswith("bias"))}
    groups = [
        {"params": [p for n, p in named if n not in spared], "weight_decay": WEIGHT_DECAY},
        {"params": [p for n, p in named if n in spared], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]], sorted(spared)


def run(model, batches, decay_all: bool):
    groups, spared = parameter_groups(model, decay_all)
    optimizer = torch.optim.AdamW(groups, foreach=False, **ADAMW)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, N_WARMUP, N_STEPS)
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    log = {"loss": [], "grad_norm": [], "learning_rate": []}
    first_grads = {}
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = batch_loss(model, batch)
        loss.backward()
        if step == 0:
            first_grads = {n: f32(p.grad) for n, p in trainable}
        log["loss"].append(loss.item())
        log["grad_norm"].append(torch.nn.utils.clip_grad_norm_([p for _, p in trainable], CLIP).item())
        log["learning_rate"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return {**log, "not_decayed": spared}, first_grads


def both_precisions(build, batches, decay_all: bool):
    """(model after the f64 run, its log with the f32 losses beside, gradients of step 0)"""
    in_f32 = build()
    log_f32, _ = run(in_f32, batches, decay_all)
    model = build().double()
    with TrueF64():
        log, first_grads = run(model, batches, decay_all)
    log["loss_f32"] = log_f32["loss"]
    gap = max(abs(a - b) for a, b in zip(log["loss"], log["loss_f32"]))
    weight_gap = max(
        (p.double() - q).abs().max().item() for p, q in zip(in_f32.parameters(), model.parameters())
    )
    assert gap < 1e-3, gap
    print(f"  loss {log['loss'][0]:.3f} -> {log['loss'][-1]:.3f}, f32 gap {gap:.1e}, of the final weights {weight_gap:.1e}")
    log["largest_f32_weight_gap"] = weight_gap
    return model, log, first_grads


SETTINGS = {
    **ADAMW,
    "weight_decay": WEIGHT_DECAY,
    "max_grad_norm": CLIP,
    "schedule": "cosine",
    "warmup_steps": N_WARMUP,
    "steps": N_STEPS,
}


def make_full(name: str, batches, decay_all: bool) -> None:
    print(name)
    model, log, _ = both_precisions(lambda: models.load(BASE, torch.float32).train(), batches, decay_all)
    save_json(OUT / name / "log.json", {"settings": SETTINGS, **log})
    save_tensors(OUT / name / "final.safetensors", {n: f32(p) for n, p in model.named_parameters()})


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True, "target_modules": SEVEN},  # suffixes; the other two name whole paths
    "dora": {"use_dora": True},
}


def new_adapter(changes: dict):
    settings = {"target_modules": "all-linear", **changes}
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(models.load(BASE, torch.float32), config)
    generator = rng(21)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_A" in name:
                p.copy_(normal(generator, p.shape, std=1.0 / p.shape[1] ** 0.5))
            elif "lora_B" in name:
                p.copy_(normal(generator, p.shape, std=0.15))
            elif "magnitude" in name:
                p.mul_(1.0 + 0.2 * normal(generator, p.shape))
    return model


def save_adapter(model, directory) -> None:
    """PEFT's own format; only the path of the base model and the order of a set are made fixed."""
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    config = json.loads((directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "golden/models/llama"
    config["target_modules"] = sorted(config["target_modules"])
    save_json(directory / "adapter_config.json", config)
    weights = load_file(str(directory / "adapter_model.safetensors"))
    save_tensors(directory / "adapter_model.safetensors", {n: f32(w) for n, w in weights.items()}, {"format": "pt"})


def saved_names(model) -> dict:
    """PEFT's name of each trainable parameter inside the model -> its name in the file."""
    by_storage = {p.data_ptr(): n for n, p in model.named_parameters() if p.requires_grad}
    return {by_storage[t.data_ptr()]: n for n, t in get_peft_model_state_dict(model).items()}


def make_adapter(name: str, batches) -> None:
    print(name)
    first = new_adapter(ADAPTERS[name])
    save_adapter(first, OUT / name / "initial")
    ids = load_file(str(BASE / "golden.safetensors"))["token_ids"].tolist()
    sequences = [ids[: models.LENGTHS[0]], ids[models.LENGTHS[0] :]]
    names = saved_names(first)
    with TrueF64(), torch.no_grad():
        logits, _ = models.forward(first.double(), sequences)

    model, log, first_grads = both_precisions(lambda: new_adapter(ADAPTERS[name]), batches, decay_all=True)
    save_json(OUT / name / "log.json", {"settings": SETTINGS, "adapter": {"r": 4, "lora_alpha": 8, **ADAPTERS[name]}, **log})
    save_adapter(model, OUT / name / "final")
    golden = {f"grad.{names[n]}": g for n, g in first_grads.items()}
    save_tensors(OUT / name / "golden.safetensors", {"initial_logits": f32(logits), **golden})


# --------------------------------------------------------------------------- losses on logits


def make_losses() -> None:
    """Row i of the logits predicts labels[i]; -100 is not trained on."""
    generator = rng(22)
    logits = normal(generator, (7, 13), std=2.0)
    labels = torch.tensor([3, -100, 12, 0, 7, -100, 7])
    trained = labels != -100

    def nll(x):
        return torch.nn.functional.cross_entropy(x, labels, ignore_index=-100)

    def smoothed(x):
        return LabelSmoother(epsilon=0.1)({"logits": x}, labels)

    def dft(x):  # Wu et al. 2025 (arXiv:2508.05629), as TRL's SFTTrainer computes it
        logp = torch.log_softmax(x, dim=-1)[trained].gather(1, labels[trained][:, None])
        return -(logp.exp().detach() * logp).sum() / trained.sum()

    out = {"logits": logits, "labels": labels.to(torch.int32)}
    for name, loss_of in (("nll", nll), ("label_smoothing_0.1", smoothed), ("dft", dft)):
        x = logits.double().requires_grad_()
        with TrueF64():
            loss = loss_of(x)
        loss.backward()
        out |= {f"{name}.loss": f32(loss).reshape(1), f"{name}.grad": f32(x.grad)}
    save_tensors(OUT / "losses.safetensors", out)


# --------------------------------------------------------------------------- schedules


def make_schedules() -> None:
    T = transformers
    cases = {
        "linear": (T.get_linear_schedule_with_warmup, dict(num_warmup_steps=4, num_training_steps=20)),
        "linear_no_warmup": (T.get_linear_schedule_with_warmup, dict(num_warmup_steps=0, num_training_steps=20)),
        "cosine": (T.get_cosine_schedule_with_warmup, dict(num_warmup_steps=4, num_training_steps=20)),
        "cosine_with_min_lr": (
            T.get_cosine_with_min_lr_schedule_with_warmup,
            dict(num_warmup_steps=4, num_training_steps=20, min_lr_rate=0.1),
        ),
        "constant": (T.get_constant_schedule, {}),
        "constant_with_warmup": (T.get_constant_schedule_with_warmup, dict(num_warmup_steps=4)),
        "inverse_sqrt": (T.get_inverse_sqrt_schedule, dict(num_warmup_steps=4)),
        "polynomial": (T.get_polynomial_decay_schedule_with_warmup, dict(num_warmup_steps=4, num_training_steps=20)),
    }
    for decay in ("linear", "cosine", "1-sqrt"):
        arguments = dict(num_warmup_steps=4, num_decay_steps=6, num_training_steps=20, decay_type=decay)
        cases[f"wsd_{decay}"] = (T.get_wsd_schedule, arguments)
    cases["wsd_min_lr"] = (T.get_wsd_schedule, dict(num_warmup_steps=4, num_decay_steps=6, num_training_steps=20, min_lr_ratio=0.1))
    out = {}
    for name, (make, arguments) in cases.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer, **arguments)
        values = []
        for _ in range(N_STEPS):
            values.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        out[name] = {"arguments": arguments, "values": values}
    save_json(OUT / "schedules.json", out)


# --------------------------------------------------------------------------- other optimisers


class Bf16AsF64(TorchFunctionMode):
    """Muon orthogonalises in bf16; this shows what it would give without that rounding."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {k: torch.float64 if v is torch.bfloat16 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def steps(optimizer_of, start, grads, dtype=torch.float32):
    p = torch.nn.Parameter(start.to(dtype).clone())
    optimizer = optimizer_of([p])
    for g in grads:
        p.grad = g.to(dtype).clone()
        optimizer.step()
    return p.detach(), optimizer.state[p]


def make_muon() -> None:
    out = {}
    for name, shape in (("tall", (24, 16)), ("wide", (12, 20))):
        start = normal(rng(23), shape)
        grads = normal(rng(24), (10, *shape), std=0.1)
        out |= {f"{name}.start": start, f"{name}.grads": grads}
        for adjust in ("original", "match_rms_adamw"):
            muon = lambda ps: torch.optim.Muon(ps, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust)
            with Bf16AsF64():
                truth, state = steps(muon, start, grads, torch.float64)
            in_bf16, _ = steps(muon, start, grads)
            gap = (truth - in_bf16).abs().max().item()
            assert 0 < gap < 2e-2, gap
            out |= {f"{name}.{adjust}.final": f32(truth), f"{name}.{adjust}.final_bf16": in_bf16}
        out[f"{name}.momentum"] = f32(state["momentum_buffer"])
    save_tensors(OUT / "muon.safetensors", out)


def quantise_to_nearest(x, code, absmax_out, codes_out, blocksize):
    """For bitsandbytes' CPU kernel, whose own table misses the nearest value (see quant.py)."""
    n_blocks = -(-x.numel() // blocksize)
    padded = torch.nn.functional.pad(x.flatten(), (0, n_blocks * blocksize - x.numel()))
    absmax_out.copy_(padded.reshape(n_blocks, blocksize).abs().amax(dim=1))
    codes_out.copy_(quant.plain_codes(x, absmax_out, code, blocksize).reshape(codes_out.shape))


def make_adamw8bit() -> None:
    import bitsandbytes as bnb
    from bitsandbytes.backends.cpu import ops

    shape = (68, 64)  # at least 4096 elements, or bitsandbytes keeps the state in f32; 17 blocks
    start = normal(rng(25), shape)
    grads = normal(rng(26), (6, *shape), std=0.1) * torch.exp(normal(rng(27), (1, *shape), std=0.7))
    arguments = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    adamw8bit = lambda ps: bnb.optim.AdamW8bit(ps, **arguments)

    final_cpu, _ = steps(adamw8bit, start, grads)
    theirs, ops._quant_blockwise_fp32_direct = ops._quant_blockwise_fp32_direct, quantise_to_nearest
    final, state = steps(adamw8bit, start, grads)
    ops._quant_blockwise_fp32_direct = theirs
    exact, _ = steps(lambda ps: torch.optim.AdamW(ps, **arguments), start, grads)
    away = lambda p: f"median {(p - exact).abs().median():.1e}, largest {(p - exact).abs().max():.1e}"
    print(f"  AdamW8bit from AdamW: {away(final)}; with the CPU kernel's rounding: {away(final_cpu)}")
    assert (final - exact).abs().median() < 1e-3

    names = ("state1", "absmax1", "qmap1", "state2", "absmax2", "qmap2")
    out = {"start": start, "grads": grads, "final": final, "final_cpu": final_cpu, "final_adamw": exact}
    save_tensors(OUT / "adamw8bit.safetensors", out | {name: state[name] for name in names})


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    batches = make_batches()
    save_json(OUT / "batches.json", batches)
    make_full("full", batches, decay_all=False)
    make_full("full_decay_all", batches, decay_all=True)
    for name in ADAPTERS:
        make_adapter(name, batches)
    make_losses()
    make_schedules()
    make_muon()
    make_adamw8bit()

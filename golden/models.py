"""Tiny random models of every architecture, with the outputs and gradients transformers gives.

Writes models/<name>/{config.json, model.safetensors, golden.safetensors}; README.md lists the
tensors. The truth is f64 throughout (common.TrueF64), rounded to f32 when stored.

Usage: python models.py [NAME...]      all of them without a name
"""

import shutil
import sys
import tempfile
from pathlib import Path

from common import ROOT, TrueF64, f32, normal, rng, save_json, save_tensors

import torch
from transformers import AutoModelForCausalLM

LENGTHS = [12, 9]  # tokens of the two sequences
VOCAB = 112
MAX_DIR_BYTES = 300_000

# --------------------------------------------------------------------------- configurations
# Written as on the Hub, by hand, in either of the two formats found there: `rope_theta` and
# `rope_scaling` beside `torch_dtype` (transformers 4), or `rope_parameters` beside `dtype` (5).

BASE = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    use_cache=True,
    torch_dtype="float32",
    transformers_version="4.51.0",
)


def config(model_type: str, architecture: str, drop=(), **changes) -> dict:
    merged = {"architectures": [architecture], "model_type": model_type, **BASE, **changes}
    return {key: value for key, value in merged.items() if key not in drop}


def v5(base: dict, rope_parameters: dict) -> dict:
    """The same model in the format transformers 5 writes."""
    old = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "torch_dtype")
    kept = {key: value for key, value in base.items() if key not in old}
    return {**kept, "rope_parameters": rope_parameters, "dtype": base["torch_dtype"], "transformers_version": "5.23.0"}


def llama(**changes) -> dict:
    return config("llama", "LlamaForCausalLM", **{"attention_bias": False, "mlp_bias": False, **changes})


def gemma(model_type: str, architecture: str, **changes) -> dict:
    gemma_like = dict(
        head_dim=16,
        hidden_activation="gelu_pytorch_tanh",
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_bias=False,
        sliding_window=5,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    return config(model_type, architecture, drop=("hidden_act",), **{**gemma_like, **changes})


def phi3(**changes) -> dict:
    phi_like = dict(pad_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, sliding_window=None, attention_bias=False)
    return config("phi3", "Phi3ForCausalLM", **{**phi_like, **changes})


GEMMA3 = gemma(
    "gemma3_text",
    "Gemma3ForCausalLM",
    num_hidden_layers=4,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    query_pre_attn_scalar=24,
    rope_theta=1_000_000.0,
    rope_local_base_freq=10_000.0,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
    sliding_window_pattern=3,  # layers 0, 1 and 3 slide, layer 2 sees everything
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)

# The scalings change at 10 positions, between the lengths of the two sequences.
LONGROPE = {
    "short_factor": [1.0, 1.05, 1.1, 1.3],
    "long_factor": [1.2, 1.8, 3.5, 6.0],
}

MODELS = {
    "llama": llama(),
    "llama_tied": llama(tie_word_embeddings=True, num_attention_heads=4, num_key_value_heads=4, head_dim=8),
    "llama_bias": llama(attention_bias=True, mlp_bias=True, num_key_value_heads=1),
    "llama_rope_llama3": llama(
        max_position_embeddings=512,
        rope_theta=500.0,  # one frequency is kept, one blended, two are divided by the factor
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama_rope_linear": llama(rope_scaling={"type": "linear", "factor": 4.0}),
    "llama_rope_dynamic": llama(max_position_embeddings=10, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama_rope_yarn": v5(
        llama(max_position_embeddings=256),  # here too: one kept, one blended, two divided
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "llama_sharded": v5(llama(), {"rope_type": "default", "rope_theta": 10000.0}),
    "llama_bf16": llama(torch_dtype="bfloat16"),
    "llama_f16": llama(torch_dtype="float16"),
    "mistral": config("mistral", "MistralForCausalLM", sliding_window=5, head_dim=8),
    "qwen2": config(
        "qwen2",
        "Qwen2ForCausalLM",
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        use_sliding_window=False,
        sliding_window=5,
        max_window_layers=2,
    ),
    "qwen3": config(
        "qwen3",
        "Qwen3ForCausalLM",
        head_dim=16,
        attention_bias=False,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        rope_scaling=None,
        use_sliding_window=False,
        sliding_window=None,
        max_window_layers=2,
    ),
    "gemma2": gemma(
        "gemma2",
        "Gemma2ForCausalLM",
        num_hidden_layers=3,
        intermediate_size=40,
        num_attention_heads=2,
        num_key_value_heads=1,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,  # small, so that the caps bend what they cap
        final_logit_softcapping=4.0,
    ),
    "gemma3": GEMMA3,
    "gemma3_v5": v5(
        {**GEMMA3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "phi3": phi3(original_max_position_embeddings=64, partial_rotary_factor=0.5, head_dim=None),
    "phi3_longrope": phi3(
        max_position_embeddings=40,
        original_max_position_embeddings=10,
        rope_scaling={"type": "longrope", **LONGROPE},
    ),
    "phi3_longrope_partial": phi3(
        num_attention_heads=2,
        num_key_value_heads=1,
        partial_rotary_factor=0.5,
        tie_word_embeddings=True,
        max_position_embeddings=40,
        original_max_position_embeddings=10,
        # The old name; transformers 5 then wants the original length in here as well.
        rope_scaling={"type": "su", "original_max_position_embeddings": 10, **LONGROPE},
    ),
}
MODELS["phi3"].pop("head_dim")

# What must change the logits when it is taken away: a golden file that cannot tell is no test.
PLAIN_ROPE = {"rope_scaling": None}
ABLATIONS = {
    "llama_rope_llama3": [PLAIN_ROPE],
    "llama_rope_linear": [PLAIN_ROPE],
    "llama_rope_dynamic": [PLAIN_ROPE],
    "llama_rope_yarn": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {**MODELS["llama_rope_yarn"]["rope_parameters"], "attention_factor": 1.0}},
    ],
    "mistral": [{"sliding_window": None}],
    "gemma2": [
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"query_pre_attn_scalar": 16},
        {"sliding_window": 64},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ],
    "gemma3": [
        PLAIN_ROPE,
        {"rope_local_base_freq": 1_000_000.0},
        {"rope_theta": 10_000.0},
        {"query_pre_attn_scalar": 16},
        {"sliding_window": 64},
        {"sliding_window_pattern": 2},
    ],
    "phi3": [{"partial_rotary_factor": 1.0}],
    "phi3_longrope": [
        PLAIN_ROPE,
        {"rope_scaling": {"type": "longrope", **LONGROPE, "short_factor": LONGROPE["long_factor"]}},
        {"rope_scaling": {"type": "longrope", **LONGROPE, "long_factor": LONGROPE["short_factor"]}},
    ],
    "phi3_longrope_partial": [PLAIN_ROPE],
}

# --------------------------------------------------------------------------- weights


def is_norm(name: str) -> bool:
    return "norm" in name


def random_weight(name: str, shape, cfg: dict, generator) -> torch.Tensor:
    """Scaled so that every layer matters and the logits have a spread of two or so."""
    if is_norm(name):
        centre = 0.0 if cfg["model_type"].startswith("gemma") else 1.0  # Gemma multiplies by 1 + weight
        return normal(generator, shape, std=0.3, mean=centre)
    if name.endswith(".bias"):
        return normal(generator, shape, std=0.4)
    if name == "lm_head.weight":
        return normal(generator, shape, std=2.0 / shape[1] ** 0.5)
    if name == "model.embed_tokens.weight":
        return normal(generator, shape, std=2.0 / shape[1] ** 0.5 if cfg["tie_word_embeddings"] else 1.0)
    return normal(generator, shape, std=1.2 / shape[1] ** 0.5)


def new_weights(cfg: dict, seed: int) -> dict:
    """Names and shapes from transformers, numbers from ours, rounded to the storage type."""
    import transformers

    cls = getattr(transformers, cfg["architectures"][0])
    with torch.device("meta"):
        model = cls(cls.config_class(**{k: v for k, v in cfg.items() if k != "architectures"}))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied weight once
    dtype = getattr(torch, cfg.get("torch_dtype", cfg.get("dtype")))
    generator = rng(seed)
    return {name: random_weight(name, shape, cfg, generator).to(dtype) for name, shape in sorted(shapes.items())}


def save_model(directory, cfg: dict, weights: dict, n_shards: int) -> None:
    save_json(directory / "config.json", cfg)
    if n_shards == 1:
        save_tensors(directory / "model.safetensors", weights, {"format": "pt"})
        return
    names = sorted(weights)
    files = {name: f"model-{i * n_shards // len(names) + 1:05}-of-{n_shards:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_tensors(directory / file, {n: weights[n] for n in names if files[n] == file}, {"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in weights.values())
    save_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})


# --------------------------------------------------------------------------- truth


def load(directory, dtype):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    return model.eval()


def forward(model, sequences):
    """Each sequence on its own, without padding, so that scalings that look at the length see theirs."""
    outs = [model(torch.tensor([s]), output_hidden_states=True, use_cache=False) for s in sequences]
    logits = torch.cat([o.logits[0] for o in outs])
    n_hidden = len(outs[0].hidden_states)
    hidden = [torch.cat([o.hidden_states[i][0] for o in outs]) for i in range(n_hidden)]
    return logits, hidden


def next_token_logprobs(logits, sequences):
    rows, start = [], 0
    for s in sequences:
        targets = torch.tensor(s[1:])
        logprobs = torch.log_softmax(logits[start : start + len(s) - 1].double(), dim=-1)
        rows.append(logprobs.gather(1, targets[:, None])[:, 0])
        start += len(s)
    return torch.cat(rows)


def truth(directory, sequences) -> dict:
    model = load(directory, torch.float32).double()
    with TrueF64():
        logits, hidden = forward(model, sequences)
        assert logits.dtype == torch.float64
        logprobs = next_token_logprobs(logits, sequences)
        loss = -logprobs.mean()
    loss.backward()
    out = {"logits": f32(logits), "logprobs": f32(logprobs), "loss": f32(loss).reshape(1)}
    out |= {f"hidden.{i}": f32(h) for i, h in enumerate(hidden)}
    out |= {f"grad.{name}": f32(p.grad) for name, p in model.named_parameters()}
    return out


def rounded(directory, sequences) -> dict:
    """The same in f32 and in bf16, as transformers runs them."""
    model = load(directory, torch.float32)
    logits_f32, _ = forward(model, sequences)
    (-next_token_logprobs(logits_f32, sequences).mean()).backward()
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        logits_bf16, _ = forward(load(directory, torch.bfloat16), sequences)
    return {"logits_f32": f32(logits_f32), "logits_bf16": f32(logits_bf16)}, grads


def largest(a, b) -> float:
    return (a.double() - b.double()).abs().max().item()


def check_ablations(name: str, directory, sequences, logits) -> None:
    for change in ABLATIONS.get(name, []):
        with tempfile.TemporaryDirectory() as other:
            shutil.copytree(directory, other, dirs_exist_ok=True)
            save_json(Path(other) / "config.json", {**MODELS[name], **change})
            with torch.no_grad():
                gap = largest(forward(load(other, torch.float32), sequences)[0], logits)
        assert gap > 1e-2, f"{name} without {change} differs by {gap} only"


def make(name: str, seed: int) -> None:
    cfg, directory = MODELS[name], ROOT / "models" / name
    shutil.rmtree(directory, ignore_errors=True)
    save_model(directory, cfg, new_weights(cfg, seed), n_shards=3 if name == "llama_sharded" else 1)

    generator = rng(seed + 1000)
    sequences = [generator.integers(3, VOCAB, size=n).tolist() for n in LENGTHS]
    golden = truth(directory, sequences)
    others, grads_f32 = rounded(directory, sequences)
    golden |= others
    golden["token_ids"] = torch.tensor(sum(sequences, []), dtype=torch.int32)
    golden["lengths"] = torch.tensor(LENGTHS, dtype=torch.int32)
    save_tensors(directory / "golden.safetensors", golden)

    size = sum(f.stat().st_size for f in directory.iterdir())
    assert size < MAX_DIR_BYTES, f"{name}: {size} bytes"
    # A check of the f64 detour: what transformers computes in f32 must be close to it.
    grad_gap = max(largest(golden[n], g) / golden[n].abs().max().item() for n, g in grads_f32.items())
    logit_gap = largest(golden["logits"], golden["logits_f32"])
    assert logit_gap < 1e-4 and grad_gap < 1e-4, f"{name}: f32 differs from f64: {logit_gap}, {grad_gap}"
    check_ablations(name, directory, sequences, golden["logits"])
    bf16 = (golden["logits_bf16"] - golden["logits"]).norm() / golden["logits"].norm()
    print(
        f"{name:22} {size / 1024:4.0f} KiB  loss {golden['loss'].item():.3f}  spread {golden['logits'].std():.2f}"
        f"  f32 gap {logit_gap:.1e} grad {grad_gap:.1e}  bf16 relative {bf16:.1e}"
    )


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(MODELS)
    for index, name in enumerate(MODELS):
        if name in wanted:
            make(name, seed=100 + index)

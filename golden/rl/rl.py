"""What TRL computes of policy-gradient losses and advantages: losses.json and advantages.json.

Losses come from TRL's own `GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss`, called on a trainer that has only the
attributes these functions read; its log-probabilities and entropies are given tensors that require gradients. All of
it is in f64, on inputs that are f32 numbers. The sampler's importance ratio, which TRL computes while it generates, is
computed here by the formulas of reference/trl.md 2.5. TRL 1.16 has no PPO any more: its formulas (2.7) are PyTorch here.
Advantages, ratios of samplers and the metrics of both come from `_generate_and_score_completions` of the same trainers, whose generation
and rewards are given.
"""

import json
import math
import pathlib
from collections import defaultdict
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

HERE = pathlib.Path(__file__).parent
torch.manual_seed(7)
torch.set_num_threads(1)
N_SEQUENCES, LENGTH, GROUP = 6, 7, 3
LEVELS = ("token", "sequence")
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
MAX_COMPLETION_LENGTH = 20

DEFAULTS = dict(
    epsilon=0.2, epsilon_high=0.25, delta=None, beta=0.0, use_bias_correction_kl=False,
    sapo_temperature_neg=1.05, sapo_temperature_pos=1.0,
    vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
    top_entropy_quantile=1.0, entropy_coef=0.0, use_adaptive_entropy=False, entropy_coef_min=0.0, entropy_coef_max=1.0,
    entropy_coef_delta=0.005, entropy_target=0.2, off_policy_mask_threshold=None,
    correction=None, clip_max=3.0, clip_min=None, has_old=True,
)  # fmt: skip

OPTIONS = {
    "plain": {},
    "on_policy": dict(has_old=False),
    "delta": dict(delta=1.4),
    "beta": dict(beta=0.3),
    "beta_corrected": dict(beta=0.3, use_bias_correction_kl=True),
    "token_truncate": dict(correction="token_truncate", clip_max=1.2, clip_min=0.8),
    "token_mask": dict(correction="token_mask", clip_max=1.2, clip_min=0.8),
    "sequence_truncate": dict(correction="sequence_truncate", clip_max=1.3),
    "sequence_mask": dict(correction="sequence_mask", clip_max=1.3, clip_min=0.5),
    "off_policy": dict(off_policy_mask_threshold=0.05),
    "top_entropy": dict(top_entropy_quantile=0.4),
    "entropy": dict(entropy_coef=0.05),
    "everything": dict(
        beta=0.1, delta=1.5, correction="token_truncate", clip_max=1.5, top_entropy_quantile=0.6, entropy_coef=0.02,
        off_policy_mask_threshold=0.1,
    ),
}  # fmt: skip


def f32(tensor):
    return tensor.float().double()


def make_batch(lengths, masked):
    mask = torch.zeros(N_SEQUENCES, LENGTH, dtype=torch.long)
    for i, n in enumerate(lengths):
        mask[i, : 0 if i in masked else n] = 1
    noise = lambda scale: scale * torch.randn(N_SEQUENCES, LENGTH)
    logp = f32(-torch.rand(N_SEQUENCES, LENGTH) * 3 - 0.05)
    old = f32(logp + noise(0.25))
    return dict(
        mask=mask, logp=logp, old=old, sampler=f32(old + noise(0.15)), reference=f32(logp + noise(0.4)),
        entropy=f32(torch.rand(N_SEQUENCES, LENGTH) * 2), advantages=f32(torch.randn(N_SEQUENCES)),
    )  # fmt: skip


def ratio_of_sampler(batch, o):
    difference = (batch["old"] - batch["sampler"]) * batch["mask"]
    if o["correction"].startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    low, high = o["clip_min"] or -math.inf, o["clip_max"]
    if o["correction"].endswith("truncate"):
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def make_trainer(kind, loss_type, level, o):
    trainer = object.__new__(kind)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.aux_loss_enabled = False
    trainer.args = SimpleNamespace(steps_per_generation=1, **{k: v for k, v in o.items() if k not in ("correction", "clip_max", "clip_min", "has_old")})
    trainer.beta, trainer.loss_type, trainer.importance_sampling_level = o["beta"], loss_type, level
    trainer.epsilon_low, trainer.epsilon_high = o["epsilon"], o["epsilon_high"]
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = o["correction"] is not None
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = o["top_entropy_quantile"], o["off_policy_mask_threshold"]
    trainer.entropy_coef, trainer.use_adaptive_entropy = o["entropy_coef"], o["use_adaptive_entropy"]
    trainer._entropy_bonus_enabled = o["entropy_coef"] != 0.0 or o["use_adaptive_entropy"]
    trainer._last_world_entropy, trainer._entropy_window_stats = float("inf"), None
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = MAX_COMPLETION_LENGTH, 1
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    return trainer


def evaluate(trainer, batch, o):
    logp, entropy = batch["logp"].clone().requires_grad_(), batch["entropy"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logp, entropy, None)
    ids = torch.zeros(N_SEQUENCES, LENGTH, dtype=torch.long)
    mask = batch["mask"]
    inputs = dict(
        prompt_ids=ids, prompt_mask=ids, completion_ids=ids, completion_mask=mask, advantages=batch["advantages"],
        ref_per_token_logps=batch["reference"], num_items_in_batch=mask.sum(), old_logps=(batch["old"] * mask).sum(1),
    )  # fmt: skip
    if o["has_old"]:
        inputs["old_per_token_logps"] = batch["old"]
    if o["correction"]:
        inputs["importance_sampling_ratio"] = ratio_of_sampler(batch, o)
    if o["correction"]:
        inputs["sampling_per_token_logps"] = batch["sampler"]
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    grad = lambda t: numbers(t.grad[mask.bool()]) if t.grad is not None else None
    metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if not math.isnan(v[-1])}
    return dict(loss=loss.item(), d_logp=grad(logp), d_entropy=grad(entropy), metrics=metrics)


def numbers(tensor):
    return [float(f"{v:.9g}") for v in tensor.flatten().tolist()]


def our_options(loss_type, level, o):
    """The same in this program's words."""
    ours = {}
    if loss_type in CLIPPED:
        ours |= dict(epsilon=o["epsilon"], epsilon_high=o["epsilon_high"])
        ours |= dict(delta=o["delta"]) if o["delta"] else {}
    if loss_type == "cispo":
        # TRL caps at epsilon_high itself, we at 1 + epsilon_high.
        ours["epsilon_high"] = o["epsilon_high"] - 1
    if loss_type == "rloo":
        return dict(epsilon=o["epsilon"], epsilon_high=o["epsilon_high"])
    if loss_type != "vespo":
        ours["importance_sampling_level"] = level
    if loss_type == "dr_grpo":
        ours["max_completion_length"] = MAX_COMPLETION_LENGTH
    for name in ("beta", "use_bias_correction_kl", "top_entropy_quantile", "entropy_coef", "off_policy_mask_threshold",
                 "use_adaptive_entropy", "entropy_target", "entropy_coef_delta"):  # fmt: skip
        if o[name] != DEFAULTS[name]:
            ours[name] = o[name]
    if o["correction"]:
        ours["importance_sampling_correction"] = o["correction"]
        ours["importance_sampling_clip_max"] = o["clip_max"]
        ours["importance_sampling_clip_min"] = o["clip_min"] or 0.0
    return ours


def toml(options):
    return "\n".join(f"{k} = {json.dumps(v)}" for k, v in options.items())


def case(name, batch_name, loss_type, level, o, kind=GRPOTrainer):
    result = evaluate(make_trainer(kind, loss_type, level, o), BATCHES[batch_name], o)
    uses_sampler = o["correction"] is not None
    return dict(
        name=f"{loss_type} {level} {name} {batch_name}", objective=loss_type, options=toml(our_options(loss_type, level, o)),
        batch=batch_name, has_old=o["has_old"], has_sampler=uses_sampler, **result,
    )  # fmt: skip


def policy_cases():
    for loss_type in (*CLIPPED, "cispo", "sapo", "vespo"):
        for level in LEVELS if loss_type != "vespo" else ("token",):
            for name, changes in OPTIONS.items():
                o = DEFAULTS | changes
                if loss_type == "cispo":
                    o["epsilon_high"] = 1.15
                if o["delta"] and name == "delta" and loss_type not in CLIPPED:
                    continue
                yield case(name, "uneven", loss_type, level, o)
                if name in ("plain", "everything"):
                    yield case(name, "masked", loss_type, level, o)
    for batch_name in BATCHES:
        yield case("plain", batch_name, "rloo", "sequence", DEFAULTS, RLOOTrainer)


def adaptive():
    o = DEFAULTS | dict(use_adaptive_entropy=True, entropy_coef=0.01, entropy_coef_delta=0.004, entropy_target=0.9)
    trainer = make_trainer(GRPOTrainer, "grpo", "token", o)
    steps = []
    for scale in (0.5, 0.7, 1.6, 1.4, 0.6, 0.5):
        batch = dict(BATCHES["uneven"], entropy=f32(BATCHES["uneven"]["entropy"] * scale))
        result = evaluate(trainer, batch, o)
        steps.append(dict(entropy=numbers(batch["entropy"][batch["mask"].bool()]), loss=result["loss"],
                          d_entropy=result["d_entropy"], entropy_coef_after=trainer.entropy_coef))  # fmt: skip
    return dict(options=toml(our_options("grpo", "token", o)), steps=steps)


def ppo(batch, o):
    """PPO's policy and value loss, token means over the mask; see reference/trl.md 2.7."""
    mask = batch["mask"].double()
    mean = lambda x: (x * mask).sum() / mask.sum()
    logp, values = batch["logp"].clone().requires_grad_(), batch["values"].clone().requires_grad_()
    ratio = (logp - batch["old"]).exp()
    advantages = batch["token_advantages"]
    policy = mean(torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - o["epsilon"], 1 + o["epsilon"])))
    clipped = values.clamp(batch["old_values"] - o["cliprange_value"], batch["old_values"] + o["cliprange_value"])
    error, clipped_error = (values - batch["returns"]) ** 2, (clipped - batch["returns"]) ** 2
    value = 0.5 * mean(torch.max(error, clipped_error))
    loss = policy + o["vf_coef"] * value
    loss.backward()
    kept = batch["mask"].bool()
    return dict(
        options=toml(o), loss=loss.item(), d_logp=numbers(logp.grad[kept]), d_scores=numbers(values.grad[kept]),
        metrics={
            "policy_loss": policy.item(), "loss/value_avg": value.item(),
            "val/clipfrac_avg": mean((clipped_error > error).double()).item(),
            "policy/approxkl_avg": 0.5 * mean((logp - batch["old"]) ** 2).item(),
        },
    )  # fmt: skip


N_GROUPS, SCORED_GROUP = 3, 4
NAN = float("nan")
REWARDS = {
    "plain": [[1.0], [0.0], [0.5], [0.0], [2.0], [2.5], [-1.0], [0.25], [1.0], [1.0], [1.0], [1.0]],
    "skips": [[1.0], [NAN], [0.5], [0.0], [NAN], [2.5], [NAN], [NAN], [NAN], [NAN], [NAN], [NAN]],
    "two": [[1.0, 5.0], [0.0, NAN], [NAN, NAN], [1.0, 7.0], [0.0, 3.0], [0.0, -3.0], [NAN, 2.0], [1.0, 2.0],
            [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.5, 0.0]],
}  # fmt: skip
EOS, PAD = 1, 0


def score(kind, rewards, **attributes):
    """TRL's own scoring of given completions: what it hands to the loss, and what it logs."""
    trainer = make_trainer(kind, "grpo", "token", DEFAULTS)
    n = len(rewards)
    generator = torch.Generator().manual_seed(11)
    lengths = [5, 3, 6, 1, 4, 4, 2, 6, 3, 5, 6, 2]
    ids = [[7] * (length - 1) + [EOS if i % 3 else 7] for i, length in enumerate(lengths)]
    wide = max(lengths)
    old = f32(-torch.rand(n, wide, generator=generator) * 3 - 0.05)
    sampler = f32(old + 0.15 * torch.randn(n, wide, generator=generator))
    reference = f32(old + 0.4 * torch.randn(n, wide, generator=generator))
    n_rewards = len(rewards[0])
    settings = dict(
        environment_factories=None, environments=None, tools=None, mask_truncated_completions=False, eos_token_ids=[EOS], pad_to_multiple_of=None,
        num_iterations=1, ref_model=None, num_generations=SCORED_GROUP, num_generations_eval=SCORED_GROUP,
        reward_weights=torch.tensor([1.0, 0.5][:n_rewards]), reward_funcs=[None] * n_rewards, reward_func_names=["a", "b"][:n_rewards],
        multi_objective_aggregation="sum_then_normalize", scale_rewards="group", _logs=defaultdict(list), _pending_extra_logs={},
        _pending_metrics={}, log_multimodal=False, reward_clip_range=None, normalize_advantages=False,
        vllm_importance_sampling_mode="sequence_mask", vllm_importance_sampling_clip_max=3.0, vllm_importance_sampling_clip_min=None,
    )  # fmt: skip
    settings |= attributes
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer._logs["rewards"] = defaultdict(list)
    trainer.args.gradient_accumulation_steps, trainer.args.per_device_train_batch_size = 1, n
    trainer.args.gradient_checkpointing_kwargs = None
    trainer._tokenizer = trainer.processing_class = SimpleNamespace(
        pad_token_id=PAD, eos_token_id=EOS, batch_decode=lambda ids, **kwargs: [""] * len(ids)
    )
    trainer.model = torch.nn.Module()
    trainer.model.is_gradient_checkpointing = False
    trainer.ref_model = torch.nn.Module()
    logps = [[x for x in row[: len(i)].tolist()] for row, i in zip(sampler, ids)]
    is_grpo = kind is GRPOTrainer
    empty = [None] * n
    if is_grpo:
        trainer._generate = lambda prompts: ([[5]] * n, ids, None, [""] * n, logps if trainer.use_vllm else None, {}, None, empty)
    else:
        trainer._generate = lambda prompts: ([[5]] * n, ids, [""] * n)
    trainer._calculate_rewards = lambda *args: torch.tensor(rewards, dtype=torch.float64)
    trainer._get_per_token_logps_and_entropies = lambda model, *args, **kwargs: (
        reference if model is trainer.ref_model else old, None, None
    )  # fmt: skip
    inputs = [{"prompt": "?"} for _ in range(n)]
    output = trainer._generate_and_score_completions(inputs)
    metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if not math.isnan(v[-1])}
    flat = lambda t: [float(f"{x:.9g}") for row, i in zip(t, ids) for x in row[: len(i)].tolist()]
    ratio = output.get("importance_sampling_ratio")
    return dict(
        rewards=[[None if math.isnan(x) else x for x in row] for row in rewards], lengths=[len(i) for i in ids],
        weights=settings["reward_weights"].tolist(), old=flat(old), sampler=flat(sampler), reference=flat(reference),
        advantages=numbers(output["advantages"]), metrics=metrics,
        ratio=None if ratio is None else flat(ratio.expand(n, wide)),
    )  # fmt: skip


def scoring_cases():
    for name, rewards in REWARDS.items():
        for scale in ("group", "batch", "none"):
            yield dict(name=f"{name} {scale}", baseline="group", scale_rewards=scale, **score(GRPOTrainer, rewards, scale_rewards=scale))
        gdpo = score(GRPOTrainer, rewards, multi_objective_aggregation="normalize_then_sum")
        yield dict(name=f"{name} gdpo", multi_objective_aggregation="normalize_then_sum", **gdpo)
        for beta, clip, normalize in ((0.0, None, False), (0.05, None, False), (0.0, (0.0, 1.0), True), (0.1, None, True)):
            rloo = score(RLOOTrainer, rewards, beta=beta, reward_clip_range=clip, normalize_advantages=normalize)
            yield dict(name=f"{name} rloo {beta} {clip} {normalize}", baseline="leave_one_out", scale_rewards="none", beta=beta,
                       reward_clip_range=clip, normalize_advantages=normalize, **rloo)  # fmt: skip


def sampler_cases():
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        for low, high in ((0.9, 1.1), (None, 1.2)):
            result = score(
                GRPOTrainer, REWARDS["plain"], use_vllm=True, vllm_importance_sampling_correction=True, vllm_importance_sampling_mode=mode,
                vllm_importance_sampling_clip_min=low, vllm_importance_sampling_clip_max=high,
            )  # fmt: skip
            metrics = {k: v for k, v in result["metrics"].items() if k.startswith("sampling/")}
            yield dict(mode=mode, clip_min=low or 0.0, clip_max=high, ratio=result["ratio"], metrics=metrics,
                       **{k: result[k] for k in ("lengths", "old", "sampler")})  # fmt: skip


def write(name, content):
    (HERE / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main():
    shown = {
        name: {
            "lengths": batch["mask"].sum(1).tolist(), "advantages": numbers(batch["advantages"]),
            **{k: numbers(batch[k][batch["mask"].bool()]) for k in batch if k not in ("mask", "advantages")},
        }
        for name, batch in BATCHES.items()
    }  # fmt: skip
    ppo_cases = [
        dict(batch=name, **ppo(batch, o))
        for name, batch in BATCHES.items()
        for o in (dict(epsilon=0.2, vf_coef=0.1, cliprange_value=0.2), dict(epsilon=0.1, vf_coef=0.7, cliprange_value=0.05))
    ]
    write("losses.json", dict(group=GROUP, batches=shown, cases=list(policy_cases()), adaptive=adaptive(), ppo=ppo_cases, samplers=list(sampler_cases())))
    write("advantages.json", dict(group=SCORED_GROUP, cases=list(scoring_cases())))


BATCHES = {"uneven": make_batch([7, 3, 5, 1, 6, 4], ()), "masked": make_batch([6, 2, 7, 4, 1, 5], (2, 4))}
for batch in BATCHES.values():
    shape = (N_SEQUENCES, LENGTH)
    batch["token_advantages"] = f32(torch.randn(shape))
    batch["values"] = f32(torch.randn(shape))
    batch["old_values"] = f32(batch["values"] + 0.2 * torch.randn(shape))
    batch["returns"] = f32(batch["values"] + torch.randn(shape))

if __name__ == "__main__":
    main()

"""Preference, reward and process-reward losses as TRL computes them, on fixed log-probabilities.

Writes losses.json; ../README.md says what is in it. Trainers are made without their constructors, and the model is a stub that
returns the log-probabilities (or logits, or scores) it is told to. What TRL 1.16 no longer has (BCO, XPO, Nash-MD) is the code of
TRL 0.24, of which single methods are taken from the package's source. Everything is computed in f64 where TRL lets it.

Usage: python preference.py
"""

import ast
import collections
import contextlib
import subprocess
import sys
import tempfile
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import ROOT, rng

import json

import torch
import torch.nn.functional as F
from transformers.loss.loss_utils import ForTokenClassification
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.experimental.tpo.tpo_trainer import TPOTrainer
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer

N_PAIRS = 6
OLD = "trl==0.24.0"
for module in (dpo_trainer, kto_trainer):
    module.is_peft_model = lambda _: False
    module.disable_gradient_checkpointing = lambda *a, **k: contextlib.nullcontext()

# --------------------------------------------------------------------------- data: exact in f32, short in JSON


def short(x: float) -> float:
    return round(float(x) * 1024) / 1024


def make_reply(g, n):
    logp = [short(-abs(x)) - 1 / 1024 for x in g.standard_normal(n) * 2]
    return {
        "logp": logp,
        "reference": [short(l + x) for l, x in zip(logp, g.standard_normal(n) * 0.7)],
        "collision": [short(-abs(x)) for x in g.standard_normal(n)],
        "entropy": [short(abs(x)) for x in g.standard_normal(n)],
        "correct": [bool(x > 0) for x in g.standard_normal(n)],
    }


def make_pairs(g):
    pairs = []
    for _ in range(N_PAIRS):
        lengths = g.integers(1, 8, size=3)
        pairs.append(
            {
                "prompt": make_reply(g, int(g.integers(1, 4)))["logp"],
                "gold": make_reply(g, lengths[0]),
                "chosen": make_reply(g, lengths[1]),
                "rejected": make_reply(g, lengths[2]),
                "mismatched": make_reply(g, lengths[0]),
                "margin": short(abs(g.standard_normal())),
                "scores": [short(x) for x in g.standard_normal(2)],
            }
        )
    return pairs


class Rows:
    """Replies behind their prompts, padded: what TRL's collators make. Token 0 of a row is never predicted."""

    def __init__(self, pairs, sides, dtype=torch.float64):
        rows = [(pair["prompt"], pair[side]) for side in sides for pair in pairs]
        self.spans = [(len(prompt), len(prompt) + len(reply["logp"])) for prompt, reply in rows]
        width = max(end for _, end in self.spans)
        n = len(rows)
        self.logp = torch.full((n, width), -1.0, dtype=dtype)
        self.completion_mask = torch.zeros((n, width + 1), dtype=torch.long)
        self.attention_mask = torch.zeros((n, width + 1), dtype=torch.long)
        fields = ["reference", "collision", "entropy", "correct"]
        self.other = {field: torch.zeros((n, width), dtype=dtype) for field in fields}
        for i, ((prompt, reply), (start, end)) in enumerate(zip(rows, self.spans)):
            self.logp[i, :end] = torch.tensor(prompt + reply["logp"], dtype=dtype)
            self.completion_mask[i, start + 1 : end + 1] = 1
            self.attention_mask[i, : end + 1] = 1
            for field, tensor in self.other.items():
                tensor[i, start:end] = torch.tensor(reply[field], dtype=dtype)
        self.logp.requires_grad_(True)
        self.input_ids = torch.zeros((n, width + 1), dtype=torch.long)
        self.mask = self.completion_mask[:, 1:]

    def inputs(self):
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "completion_mask": self.completion_mask,
        }

    def model(self, **_):
        """The policy with a fused head."""
        return types.SimpleNamespace(
            log_probs=self.logp * self.mask,
            entropy=self.other["entropy"],
            log_sum_sq_probs=self.other["collision"],
            mean_logits=torch.zeros_like(self.logp),
            is_top1=self.other["correct"].bool(),
        )

    def reference(self, **_):
        return types.SimpleNamespace(log_probs=self.other["reference"] * self.mask)

    def logits_model(self, *_, **__):
        """A vocabulary of two tokens, of which the first, with the given probability, is every label."""
        logits = torch.stack([self.logp, torch.log(-torch.expm1(self.logp))], dim=-1)
        last = torch.zeros((logits.shape[0], 1, 2), dtype=logits.dtype)
        return types.SimpleNamespace(logits=torch.cat([logits, last], dim=1))

    def gradients(self, i):
        """Of a row's prompt and of its reply."""
        start, end = self.spans[i]
        gradient = self.logp.grad[i].tolist()
        return gradient[:start], gradient[start:end]


def callable_model(function):
    class Model(types.SimpleNamespace):
        def __call__(self, *args, **kwargs):
            return function(*args, **kwargs)

    return Model(training=True)


ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    autocast=contextlib.nullcontext,
)


def bare(cls, **attributes):
    """A trainer without its constructor."""
    trainer = cls.__new__(cls)
    trainer.accelerator = ACCELERATOR
    trainer.aux_loss_enabled = False
    trainer._metrics = {"train": collections.defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def metrics_of(trainer):
    skip = ("num_tokens", "logits/")
    metrics = {k: v[-1] for k, v in trainer._metrics["train"].items() if not k.startswith(skip)}
    return {k: float(v) for k, v in metrics.items()}


CASES = []


def number(x):
    return float(f"{float(x):.12g}")


def add(objective, options, layout, loss, gradient, metrics, **more):
    CASES.append(
        {
            "objective": objective,
            "options": options,
            "layout": layout,
            "loss": number(loss),
            "gradient": [number(g) for g in gradient],
            "metrics": {k: number(v) for k, v in metrics.items()},
            **more,
        }
    )


def pair_gradient(rows, n, order=(0, 1)):
    """Prompt of the chosen row, then replies, pair by pair. `order`: which block of rows stands where."""
    flat = []
    for i in range(n):
        flat += rows.gradients(i)[0]
        for block in order:
            flat += rows.gradients(block * n + i)[1]
    return flat


# --------------------------------------------------------------------------- DPO


def dpo(pairs, options, order=None, dtype=torch.float64, **attributes):
    pairs = [pairs[i] for i in order] if order else pairs
    rows = Rows(pairs, ["chosen", "rejected"], dtype)
    defaults = dict(
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        loss_types=["sigmoid"],
        loss_weights=None,
        beta=0.1,
        label_smoothing=0.0,
        use_weighting=False,
        args=types.SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
    )
    values = defaults | attributes
    values["loss_weights"] = values["loss_weights"] or [1.0] * len(values["loss_types"])
    model = callable_model(rows.model)
    trainer = bare(dpo_trainer.DPOTrainer, model=model, ref_model=callable_model(rows.reference), **values)
    loss = trainer._compute_loss(model, rows.inputs(), False)
    loss.backward()
    more = {"order": order} if order else {}
    add("dpo", options, "pairs", loss, pair_gradient(rows, len(pairs)), metrics_of(trainer), **more)


def dpo_cases(pairs):
    for name in "sigmoid hinge ipo nca_pair bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft sigmoid_norm".split():
        for beta in (0.1, 0.9):
            dpo(pairs, f"loss_type = '{name}'\nbeta = {beta}", loss_types=[name], beta=beta)
    for name in "exo_pair robust aot aot_unpaired".split():
        options = f"loss_type = '{name}'\nlabel_smoothing = 0.1\nbeta = 0.5"
        dpo(pairs, options, loss_types=[name], label_smoothing=0.1, beta=0.5)
    # Online DPO's ipo is not per token; nor is it here where every reply has the length 1 (see golden.rs for XPO's).
    for divergence in "forward_kl js_divergence alpha_divergence".split():
        for name in "sigmoid ipo sigmoid_norm".split():
            dtype = torch.float32 if divergence == "alpha_divergence" else torch.float64
            options = f"loss_type = '{name}'\nf_divergence_type = '{divergence}'"
            dpo(pairs, options, loss_types=[name], f_divergence_type=divergence, dtype=dtype)
    for alpha in (0.9, 1.0, 2.0):
        options = f"f_divergence_type = 'alpha_divergence'\nf_alpha_divergence_coef = {alpha}"
        dpo(pairs, options, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha, dtype=torch.float32)
    for name in "sigmoid aot ipo".split():
        options = f"loss_type = '{name}'\nld_alpha = 0.4"
        dpo(pairs, options, loss_types=[name], ld_alpha=0.4)
    for name in "sigmoid sppo_hard sigmoid_norm".split():
        dpo(pairs, f"loss_type = '{name}'\nuse_weighting = true", loss_types=[name], use_weighting=True)
    # Sorted losses meet their own weights only where the pairs already stand in that order.
    total = lambda reply: sum(reply["logp"])
    order = sorted(range(N_PAIRS), key=lambda i: total(pairs[i]["chosen"]) - total(pairs[i]["rejected"]))
    dpo(pairs, "loss_type = 'aot'\nuse_weighting = true", order=order, loss_types=["aot"], use_weighting=True)
    names, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.5]
    options = f"loss_type = {names}\nloss_weights = {weights}"
    dpo(pairs, options, loss_types=names, loss_weights=weights)


# --------------------------------------------------------------------------- without a reference


def cpo_batch(rows, n):
    labels = torch.where(rows.completion_mask == 1, rows.input_ids, -100)
    batch = {}
    for side, part in (("chosen", slice(0, n)), ("rejected", slice(n, 2 * n))):
        batch[f"{side}_input_ids"] = rows.input_ids[part]
        batch[f"{side}_attention_mask"] = rows.attention_mask[part]
        batch[f"{side}_labels"] = labels[part]
    return batch


def contrastive(cls, objective, pairs, options, layout="pairs", **attributes):
    rows = Rows(pairs, ["chosen", "rejected"])
    # ORPO casts to f32 by name; staying in f64 changes nothing but the rounding.
    float_, torch.Tensor.float = torch.Tensor.float, lambda t: t.double()
    trainer = bare(cls, is_encoder_decoder=False, padding_value=0, pad_token_id=0, **attributes)
    loss, metrics = trainer.get_batch_loss_metrics(callable_model(rows.logits_model), cpo_batch(rows, len(pairs)))
    torch.Tensor.float = float_
    loss.backward()
    metrics = {k: v for k, v in metrics.items() if not k.startswith("logits/")}
    if not attributes.get("cpo_alpha", 1.0):
        del metrics["nll_loss"]
    add(objective, options, layout, loss, pair_gradient(rows, len(pairs)), metrics)


def reference_free_cases(pairs):
    for beta in (0.1, 0.5):
        contrastive(ORPOTrainer, "orpo", pairs, f"beta = {beta}", layout="pairs_with_prompt", beta=beta)
    values = dict(simpo_gamma=0.5, alpha=0.0)
    for name, cpo_alpha, smoothing in [("sigmoid", 1.0, 0.0), ("sigmoid", 0.5, 0.1), ("hinge", 1.0, 0.0), ("ipo", 0.0, 0.0), ("ipo", 1.0, 0.0)]:
        options = f"loss_type = '{name}'\ncpo_alpha = {cpo_alpha}\nlabel_smoothing = {smoothing}\nbeta = 0.3"
        contrastive(CPOTrainer, "cpo", pairs, options, loss_type=name, cpo_alpha=cpo_alpha, beta=0.3, label_smoothing=smoothing, **values)
    for beta, gamma, smoothing in [(0.1, 0.5, 0.0), (2.0, 1.0, 0.0), (2.5, 0.3, 0.1)]:
        values = dict(loss_type="simpo", cpo_alpha=0.0, beta=beta, simpo_gamma=gamma, label_smoothing=smoothing)
        options = f"beta = {beta}\nsimpo_gamma = {gamma}\nlabel_smoothing = {smoothing}"
        contrastive(CPOTrainer, "simpo", pairs, options, alpha=0.0, **values)
        for alpha in (0.25, -0.5, 1.0):
            contrastive(CPOTrainer, "alphapo", pairs, f"{options}\nalpha = {alpha}", alpha=alpha, **values)
    for name, alpha, smoothing in [("sigmoid", 1.0, 0.0), ("sigmoid", 0.0, 0.1), ("hinge", 0.5, 0.0), ("ipo", 1.0, 0.0), ("tpo-l", 1.0, 0.0), ("tpo-l", 0.0, 0.1)]:
        tpo(pairs, name, alpha, smoothing)


def tpo(pairs, loss_type, tpo_alpha, smoothing):
    sides = ["chosen", "rejected"] + (["gold"] if tpo_alpha else [])
    rows = Rows(pairs, sides)
    values = dict(loss_type=loss_type, tpo_alpha=tpo_alpha, label_smoothing=smoothing, beta=0.4, tpo_l_gamma=0.7)
    model = callable_model(rows.logits_model)
    trainer = bare(TPOTrainer, model=model, **values)
    loss = trainer._compute_loss(model, rows.inputs(), False)
    loss.backward()
    metrics = {k: v for k, v in metrics_of(trainer).items() if k.startswith(("rewards/", "logps/"))}
    options = f"loss_type = '{loss_type}'\ntpo_alpha = {tpo_alpha}\nlabel_smoothing = {smoothing}\nbeta = 0.4\ntpo_l_gamma = 0.7"
    layout, order = ("triples", (2, 0, 1)) if tpo_alpha else ("pairs", (0, 1))
    add("tpo", options, layout, loss, pair_gradient(rows, len(pairs), order), metrics)


# --------------------------------------------------------------------------- labelled replies

N_BAD = 4  # of so many pairs the rejected reply is used, too


def labelled_rows(pairs):
    """Good and bad replies as rows of their own: a bad one is the chosen one of a pair of its own here."""
    replies = [(pair, "chosen") for pair in pairs] + [(pair, "rejected") for pair in pairs[:N_BAD]]
    as_pairs = [{"prompt": pair["prompt"], "reply": pair[side], "mismatched": pair["mismatched"]} for pair, side in replies]
    labels = torch.tensor([side == "chosen" for _, side in replies])
    return as_pairs, labels


def reply_gradient(rows, n):
    flat = []
    for i in range(n):
        flat += rows.gradients(i)[1]
    return flat


def kto(pairs, loss_type, objective, options, shift=0.0, **attributes):
    as_pairs, labels = labelled_rows(pairs)
    rows, other = Rows(as_pairs, ["reply"]), Rows(as_pairs, ["mismatched"])
    with torch.no_grad():
        other.logp += shift
    pick = lambda kind: lambda **k: getattr(other if k["input_ids"].shape == other.input_ids.shape and k["input_ids"].sum() > 0 else rows, kind)()
    other.input_ids += 1
    model = callable_model(pick("model"))
    trainer = bare(
        kto_trainer.KTOTrainer,
        model=model,
        ref_model=callable_model(pick("reference")),
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=False,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        **attributes,
    )
    inputs = rows.inputs() | {
        "label": labels,
        "KL_input_ids": other.input_ids,
        "KL_attention_mask": other.attention_mask,
        "KL_completion_mask": other.completion_mask,
    }
    loss = trainer._compute_loss(model, inputs, False)
    loss.backward()
    metrics = metrics_of(trainer)
    if loss_type != "kto":
        del metrics["kl"]
    add(objective, options, "labelled", loss, reply_gradient(rows, len(as_pairs)), metrics, shift=shift)


def labelled_cases(pairs):
    for shift in (0.0, 0.5, -2.0):
        for good, bad, beta in [(1.0, 1.0, 0.1), (0.7, 1.6, 0.8)]:
            options = f"beta = {beta}\ndesirable_weight = {good}\nundesirable_weight = {bad}"
            values = dict(beta=beta, desirable_weight=good, undesirable_weight=bad)
            kto(pairs, "kto", "kto", options, shift=shift, **values)
            if shift == 0.0:
                kto(pairs, "apo_zero_unpaired", "apo_zero_unpaired", options, **values)


# --------------------------------------------------------------------------- scores


def reward(pairs, options, margin, centre):
    scores = torch.tensor([[pair["scores"][side]] for side in (0, 1) for pair in pairs], dtype=torch.float64, requires_grad=True)
    rows = Rows(pairs, ["chosen", "rejected"])
    trainer = bare(reward_trainer.RewardTrainer, args=types.SimpleNamespace(center_rewards_coefficient=centre or None))
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    if margin:
        inputs["margin"] = torch.tensor([pair["margin"] for pair in pairs], dtype=torch.float64)
    model = callable_model(lambda **_: types.SimpleNamespace(logits=scores))
    trainer.model = model
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    n = len(pairs)
    gradient = [scores.grad[side * n + i, 0].item() for i in range(n) for side in (0, 1)]
    layout = "scores_with_margins" if margin else "scores"
    add("reward", options, layout, loss, gradient, metrics_of(trainer))


def prm(g):
    lengths = [4, 1, 3]
    logits = [[short(x) for x in g.standard_normal(2)] for _ in range(sum(lengths))]
    labels = [int(x > 0) for x in g.standard_normal(sum(lengths))]
    tensor = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    padded = torch.zeros((3, 6, 2), dtype=torch.float64)
    targets = torch.full((3, 6), -100)
    start, rows = 0, []
    for i, n in enumerate(lengths):
        rows.append(torch.cat([tensor[start : start + n], padded[i, n:]]))
        targets[i, :n] = torch.tensor(labels[start : start + n])
        start += n
    # The loss function casts to f32 by name.
    float_, torch.Tensor.float = torch.Tensor.float, lambda t: t.double()
    loss = ForTokenClassification(torch.stack(rows), targets, types.SimpleNamespace(num_labels=2))
    torch.Tensor.float = float_
    loss.backward()
    hits = [int((l[1] > l[0]) == bool(t)) for l, t in zip(logits, labels)]
    data = {"values": sum(logits, []), "targets": labels, "lengths": lengths}
    add("prm", "", "steps", loss, tensor.grad.flatten().tolist(), {"accuracy": sum(hits) / len(hits)}, **data)


# --------------------------------------------------------------------------- TRL 0.24


def old_method(folder, file, cls, name):
    tree = ast.parse((folder / "trl" / "trainer" / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == cls:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == name:
                    method.decorator_list, method.returns = [], None
                    for argument in method.args.args:
                        argument.annotation = None
                    scope = {"torch": torch, "F": F}
                    exec(compile(ast.Module([method], []), file, "exec"), scope)
                    return scope[name]
    raise KeyError(f"{file}: {cls}.{name}")


def sums(rows, n):
    """Log-probabilities and reference of every row, summed over its reply."""
    policy = (rows.logp * rows.mask).sum(1)
    return policy, (rows.other["reference"] * rows.mask).sum(1)


def old_cases(pairs, folder):
    bco_loss = old_method(folder, "bco_trainer.py", "BCOTrainer", "bco_loss")
    update = old_method(folder, "utils.py", "RunningMoments", "update")
    xpo_losses = old_method(folder, "xpo_trainer.py", "XPOTrainer", "_compute_losses")
    nash_losses = old_method(folder, "nash_md_trainer.py", "NashMDTrainer", "_compute_losses")
    for beta, ratio in [(0.1, False), (0.7, False), (0.7, True)]:
        as_pairs, labels = labelled_rows(pairs)
        rows = Rows(as_pairs, ["reply"])
        policy, reference = sums(rows, len(as_pairs))
        # After a step of three rewards of mean 0.4.
        local = types.SimpleNamespace(use_distributed=False)
        running = types.SimpleNamespace(mean=0.0, std=1.0, var=1.0, count=1e-24, accelerator=local)
        running.update = types.MethodType(update, running)
        running.update(torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64))
        ratios = torch.tensor([0.25, 0.75, 2.0, 16.0], dtype=torch.float64)
        trainer = types.SimpleNamespace(
            beta=beta,
            running=running,
            match_underlying_distribution=ratio,
            _get_udm_weight=lambda _: ratios.clamp(min=0.5, max=10.0),
        )
        float_, torch.Tensor.float = torch.Tensor.float, lambda t: t.double()
        losses, good, bad, delta = bco_loss(
            trainer, policy[labels], policy[~labels], reference[labels], reference[~labels], None, None
        )
        torch.Tensor.float = float_
        loss = losses.mean()
        loss.backward()
        metrics = {"rewards/chosen": good.mean(), "rewards/rejected": bad.mean(), "delta": delta}
        options = f"beta = {beta}\ninclude_step = true\ndensity_ratio = {str(ratio).lower()}"
        gradient = reply_gradient(rows, len(as_pairs))
        more = {"state": [3.0, 0.4], "weights": ratios.tolist() if ratio else [1.0] * N_BAD}
        add("bco", options, "labelled", loss, gradient, metrics, **more)
    for loss_type, beta, alpha in [("sigmoid", 0.1, 1e-5), ("sigmoid", 0.5, 0.1), ("ipo", 0.2, 0.01), ("ipo", 0.2, 0.0)]:
        rows = Rows(pairs, ["chosen", "rejected"])
        n = len(pairs)
        is_chosen = torch.tensor([i % 2 == 0 for i in range(n)])  # the policy's reply is the chosen one
        model, ref = rows.logp * rows.mask, rows.other["reference"] * rows.mask
        choose = lambda t: (torch.where(is_chosen[:, None], t[:n], t[n:]), torch.where(is_chosen[:, None], t[n:], t[:n]))
        (model_own, model_ref), (ref_own, ref_ref) = choose(model), choose(ref)
        trainer = types.SimpleNamespace(args=types.SimpleNamespace(loss_type=loss_type), beta=beta, alpha=alpha)
        loss, dpo_part, xpo_part = xpo_losses(trainer, model_own, model_ref, ref_ref, ref_own, is_chosen)
        loss.backward()
        options = f"loss_type = '{loss_type}'\nbeta = {beta}\nalpha = {alpha}"
        metrics = {"loss/dpo": dpo_part.mean(), "loss/xpo": xpo_part.mean()}
        add("xpo", options, "online", loss, pair_gradient(rows, n), metrics)
    for beta in (0.1, 0.6):
        rows = Rows(pairs, ["chosen"])
        probability = torch.tensor([0.125, 0.5, 0.75, 1.0, 0.0, 0.625], dtype=torch.float64)
        trainer = types.SimpleNamespace(beta=beta)
        loss, score, kl = nash_losses(trainer, rows.logp * rows.mask, rows.other["reference"] * rows.mask, probability)
        loss.backward()
        metrics = {"loss/score": score.mean(), "objective/kl": kl.mean(), "rewards/probabilities": probability.mean()}
        add("nash_md", f"beta = {beta}", "samples", loss, reply_gradient(rows, len(pairs)), metrics, labels=probability.tolist())


def main():
    generator = rng(41)
    pairs = make_pairs(generator)
    dpo_cases(pairs)
    reference_free_cases(pairs)
    labelled_cases(pairs)
    for margin in (False, True):
        for centre in (0.0, 0.01):
            reward(pairs, f"center_rewards_coefficient = {centre}", margin, centre)
    prm(generator)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, OLD]
        subprocess.run(pip, check=True)
        old_cases(pairs, Path(folder))
    lines = ",\n".join(json.dumps(case) for case in CASES)
    data = ",\n".join(json.dumps(pair) for pair in pairs)
    text = '{"pairs": [\n' + data + '\n],\n"cases": [\n' + lines + "\n]}\n"
    (ROOT / "preference" / "losses.json").write_text(text)
    print(len(CASES), "cases")


if __name__ == "__main__":
    main()

"""PPO's targets and losses by TRL's own code on recorded batches: golden/rl/ppo.json.

    python golden/rl/ppo.py

TRL 1.16 has no PPOTrainer any more; what is run here are the statements of TRL 0.24's `PPOTrainer.train` between log-probabilities and
advantages, and those of a mini-batch's losses, found in the source of its wheel (which pip fetches into a temporary folder) and
executed on given tensors in double precision.
"""

import ast
import json
import subprocess
import sys
import tempfile
import textwrap
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import ROOT, rng

import torch

OLD = "trl==0.24.0"
N, LENGTH = 6, 7


def statements(source: str, first: str, last: str) -> str:
    """The lines from the one that begins with `first` to the one that begins with `last`, as a block of their own."""
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if line.strip().startswith(first)]
    start = starts[0]
    end = next(i for i in range(start, len(lines)) if lines[i].strip().startswith(last))
    # A statement may go on over several lines.
    for stop in range(end + 1, end + 12):
        block = textwrap.dedent("\n".join(lines[start:stop]))
        try:
            ast.parse(block)
            return block
        except SyntaxError:
            continue
    raise ValueError(f"no whole block from {first!r} to {last!r}")


def arrays(seed: int, lengths: list) -> dict:
    g = rng(seed)
    draw = lambda scale: torch.from_numpy(g.standard_normal((N, LENGTH)) * scale).mul(1024).round().div(1024).double()
    logprobs = -draw(2.0).abs()
    return {
        "sequence_lengths": torch.tensor(lengths) - 1,
        "logprobs": logprobs,
        "ref_logprobs": logprobs + draw(0.3),
        "values": draw(1.0),
        "scores": draw(1.5)[:, 0],
        "vpred_change": draw(0.25),
        "logprob_change": draw(0.2),
    }


def run(code, core, batch: dict, **options) -> dict:
    args = types.SimpleNamespace(
        **{**dict(kl_coef=0.05, kl_estimator="k1", whiten_rewards=False, gamma=1.0, lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1), **options}
    )
    raw = []

    def masked_whiten(values, mask, shift_mean=True):
        raw.append(values)
        return core.masked_whiten(values, mask, shift_mean)

    scope = {k: v.clone() for k, v in batch.items()}
    scope |= dict(torch=torch, args=args, responses=torch.zeros(N, LENGTH), INVALID_LOGPROB=1.0)
    scope |= dict(masked_whiten=masked_whiten, masked_mean=core.masked_mean)
    exec(code["targets"], scope)
    # One mini-batch of all: a policy and a critic that have moved a little.
    vpred = (scope["values"] + batch["vpred_change"]).requires_grad_()
    new = (scope["logprobs"] + batch["logprob_change"]).requires_grad_()
    every = torch.arange(N)
    scope |= dict(micro_batch_inds=every, mb_return=scope["returns"], mb_values=scope["values"], mb_advantage=scope["advantages"])
    scope |= dict(vpred=torch.masked_fill(vpred, scope["padding_mask_p1"], 0), mb_logprobs=scope["logprobs"])
    scope |= dict(new_logprobs=torch.masked_fill(new, scope["padding_mask"], 1.0))
    exec(code["losses"], scope)
    scope["loss"].backward()
    pick = lambda name: scope[name].detach().tolist()
    return {
        "options": vars(args),
        "raw_advantages": raw[-1].tolist(),
        **{name: pick(name) for name in ("rewards", "advantages", "returns", "vf_loss", "vf_clipfrac", "pg_loss", "loss")},
        "d_vpred": vpred.grad.tolist(),
        "d_logp": new.grad.tolist(),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, OLD]
        subprocess.run(pip, check=True)
        source = (Path(folder) / "trl" / "trainer" / "ppo_trainer.py").read_text()
        text = (Path(folder) / "trl" / "core.py").read_text()
    # Of its helpers three functions of tensors are needed; the rest imports what is no more.
    wanted = ("masked_mean", "masked_var", "masked_whiten")
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    scope = {"torch": torch, "Optional": __import__("typing").Optional}
    exec(compile(tree, "trl/core.py", "exec"), scope)
    core = types.SimpleNamespace(**{name: scope[name] for name in wanted})
    code = {
        "targets": statements(source, "response_idxs = ", "advantages = torch.masked_fill"),
        "losses": statements(source, "vpredclipped = ", "loss = pg_loss"),
    }
    full, cut = arrays(31, [LENGTH] * N), arrays(32, [3, 7, 1, 5, 6, 2])
    cases = []
    for name, batch in (("full", full), ("cut", cut)):
        for options in (
            {},
            dict(kl_estimator="k3", gamma=0.9, lam=0.8, kl_coef=0.2, cliprange_value=0.05),
            dict(whiten_rewards=True, lam=1.0),
        ):
            cases.append({"batch": name, **run(code, core, batch, **options)})
    batches = {name: {k: v.tolist() for k, v in batch.items()} for name, batch in (("full", full), ("cut", cut))}
    path = ROOT / "rl" / "ppo.json"
    path.write_text(json.dumps({"batches": batches, "cases": cases}, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()

"""Fused tensors by the definitions, in torch. Writes fuse.json beside itself."""

import json
import pathlib

import torch

torch.manual_seed(0)
N = 64
base = torch.randn(N)
models = [base + 0.5 * torch.randn(N) for _ in range(3)]
B = base.double()
X = [m.double() for m in models]


def linear(xs, w, density, scale):
    return sum(a * x for a, x in zip(w, xs))


def slerp(xs, w, density, scale):
    a, b, t = xs[0], xs[1], w[1]
    omega = torch.acos(torch.dot(a / a.norm(), b / b.norm()))
    return (torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b) / torch.sin(omega)


def ties(xs, w, density, scale):
    trimmed = []
    for x in xs:
        task = x - B
        keep = task.abs().topk(max(1, int(N * density))).indices
        mask = torch.zeros(N, dtype=torch.bool)
        mask[keep] = True
        trimmed.append(torch.where(mask, task, 0.0))
    tasks, w = torch.stack(trimmed), torch.tensor(w, dtype=torch.float64)[:, None]
    sign = torch.sign((w * tasks).sum(0))
    agrees = (torch.sign(tasks) == sign) & (tasks != 0)
    total = (w * agrees).sum(0)
    mean = (w * tasks * agrees).sum(0) / torch.where(total == 0, 1.0, total)
    return B + scale * mean


def dare(xs, w, density, scale):
    """With a density of 1 nothing is dropped: task arithmetic."""
    return B + scale * sum(a * (x - B) for a, x in zip(w, xs))


CASES = [
    (linear, [0.5, 0.5], 1.0, 1.0), (linear, [1.0, 2.0, 3.0], 1.0, 1.0), (linear, [2.0, -1.0], 1.0, 1.0),
    (slerp, [0.5, 0.5], 1.0, 1.0), (slerp, [0.8, 0.2], 1.0, 1.0),
    (ties, [1.0, 1.0, 1.0], 0.5, 1.0), (ties, [3.0, 1.0, 1.0], 0.2, 0.7), (ties, [1.0, 1.0], 1.0, 1.5),
    (dare, [1.0, 3.0], 1.0, 0.5),
]
cases = []
for method, weights, density, scale in CASES:
    w = [x / sum(weights) for x in weights]
    expected = method(X[: len(w)], w, density, scale)
    cases.append({"method": method.__name__, "weights": weights, "density": density, "scale": scale,
                  "expected": expected.tolist()})
out = {"torch": torch.__version__, "base": base.tolist(), "models": [m.tolist() for m in models], "cases": cases}
pathlib.Path(__file__).with_name("fuse.json").write_text(json.dumps(out) + "\n")

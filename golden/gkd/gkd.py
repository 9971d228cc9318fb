"""TRL's generalised Jensen-Shannon loss on recorded hidden states and heads: golden/gkd/divergence.json.

    python golden/gkd/gkd.py

Logits are made from hidden states and heads, so that the engine's operation, which never holds them, can be compared; loss and
gradients (of the student's hidden states and head) are computed in double precision.
"""

import json
import pathlib

import torch
from trl.experimental.gkd import GKDTrainer

N, WIDTH, TEACHER_WIDTH, VOCABULARY = 5, 6, 4, 23


def main() -> None:
    torch.manual_seed(5)
    rounded = lambda *shape: torch.randn(*shape).mul(512).round().div(512).double()
    hidden, head = rounded(N, WIDTH), rounded(VOCABULARY, WIDTH)
    teacher_hidden, teacher_head = rounded(N, TEACHER_WIDTH), rounded(VOCABULARY, TEACHER_WIDTH)
    cases = []
    for beta, temperature in [(0.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.1, 2.0), (0.9, 0.7), (0.0, 1.5), (1.0, 0.5)]:
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(
            (h @ w.T)[None], (teacher_hidden @ teacher_head.T)[None], beta=beta, temperature=temperature, reduction="sum"
        )
        loss.backward()
        cases.append({
            "beta": beta,
            "temperature": temperature,
            "loss": loss.item(),
            "d_hidden": h.grad.flatten().tolist(),
            "d_head": w.grad.flatten().tolist(),
        })
    arrays = {"hidden": hidden, "head": head, "teacher_hidden": teacher_hidden, "teacher_head": teacher_head}
    golden = {name: array.flatten().tolist() for name, array in arrays.items()}
    golden |= {"n": N, "width": WIDTH, "teacher_width": TEACHER_WIDTH, "vocabulary": VOCABULARY, "cases": cases}
    path = pathlib.Path(__file__).parent / "divergence.json"
    path.write_text(json.dumps(golden) + "\n")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()

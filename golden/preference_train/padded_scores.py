"""Scores of texts of several lengths by transformers' sequence classifiers, padded on either side: padded.json.

    python golden/preference_train/padded_scores.py
    python golden/preference_train/padded_scores.py --check DIR

The second form loads reward models that posttrain wrote (`cargo run -p pt-models --example write_reward_models -- DIR`) and
compares their scores, of padded batches too, with those of the first. All of it is in f64.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from preference_train import ARCHITECTURES, OUT, PAD, ROOT, TrueF64, save_json, with_head

N_OUTPUTS = 3
TEXTS = [[5, 17, 3, 9, 40, 77, 101, 12], [12, 44, 7], [90], [33, 8, 61, 2, 19]]
# f32 weights, f64 arithmetic: what is left is the order of sums.
TOLERANCE = 1e-6


def scores(model, side: str) -> list:
    """All texts in one batch, as long as the longest; `alone` scores each by itself."""
    if side == "alone":
        return [model(torch.tensor([text]), use_cache=False).logits[0].tolist() for text in TEXTS]
    width = max(map(len, TEXTS))
    pad = model.config.pad_token_id
    rows, mask = [], []
    for text in TEXTS:
        filling = [pad] * (width - len(text))
        rows.append(text + filling if side == "right" else filling + text)
        ones, zeros = [1] * len(text), [0] * len(filling)
        mask.append(ones + zeros if side == "right" else zeros + ones)
    mask = torch.tensor(mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(torch.tensor(rows), attention_mask=mask, position_ids=positions, use_cache=False).logits.tolist()


def all_scores(model) -> dict:
    with TrueF64(), torch.no_grad():
        model = model.double()
        return {side: scores(model, side) for side in ("alone", "right", "left")}


def distance(found: dict, expected: dict) -> float:
    return max((torch.tensor(found[side], dtype=torch.float64) - torch.tensor(expected["alone"], dtype=torch.float64)).abs().max().item() for side in found)


def make() -> None:
    cases = []
    for name in ARCHITECTURES:
        found = all_scores(with_head(AutoModelForSequenceClassification, ROOT / "models" / name, N_OUTPUTS))
        print(f"{name}: padded scores are {distance(found, found):.1e} from those alone")
        assert distance(found, found) < TOLERANCE, name
        cases.append({"model": name, "scores": found["alone"]})
    save_json(OUT / "padded.json", {"n_outputs": N_OUTPUTS, "texts": TEXTS, "pad_token_id": PAD, "cases": cases})


def check(folder: Path) -> None:
    golden = json.loads((OUT / "padded.json").read_text())
    for case in golden["cases"]:
        model = AutoModelForSequenceClassification.from_pretrained(folder / case["model"], dtype=torch.float32, attn_implementation="eager")
        named = model.config.pad_token_id
        if named is None:
            model.config.pad_token_id = PAD
        gap = distance(all_scores(model.eval()), {"alone": case["scores"]})
        print(f"{case['model']}: {type(model).__name__}, pad token {named}: at most {gap:.1e} apart")
        assert gap < TOLERANCE, case["model"]


if __name__ == "__main__":
    check(Path(sys.argv[2])) if sys.argv[1:2] == ["--check"] else make()

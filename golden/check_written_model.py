"""Loads a model or adapter directory with transformers (and PEFT) and prints log-probabilities.

For checks by hand of what posttrain writes. In f32, unless --dtype says otherwise; quantised
models as their configuration says.

Usage: python check_written_model.py DIR PROMPT_IDS [--base DIR] [--dtype f32|f64|bf16] [--compare DIR]

PROMPT_IDS is a list of token ids such as 5,17,3; `--base` overrides the base model an adapter
names; `--compare` loads a second directory and prints how far its log-probabilities are.
"""

import argparse
import contextlib
import json
from pathlib import Path

from common import TrueF64

import torch
from transformers import AutoModelForCausalLM

DTYPES = {"f32": torch.float32, "f64": torch.float32, "bf16": torch.bfloat16}  # f64 is converted after loading


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("prompt_ids", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="f32")
    parser.add_argument("--compare", type=Path, default=None)
    return parser.parse_args()


def load(directory: Path, base: Path | None, dtype: str):
    def plain(path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation="eager")

    adapter = directory / "adapter_config.json"
    if adapter.exists():
        from peft import PeftModel

        named = json.loads(adapter.read_text())["base_model_name_or_path"]
        model = PeftModel.from_pretrained(plain(base or named), directory)
    else:
        model = plain(directory)
    model.eval()
    return model.double() if dtype == "f64" else model


def score(model, ids: list, dtype: str) -> dict:
    with torch.no_grad(), TrueF64() if dtype == "f64" else contextlib.nullcontext():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    targets = torch.tensor(ids[1:], dtype=torch.long)
    picked = logprobs[:-1].gather(1, targets[:, None])[:, 0].tolist()
    best = logprobs[-1].topk(5)
    return {
        "token_ids": ids,
        "logprobs": [None, *picked],  # the first token has no context
        "sum": sum(picked),
        "next": [{"token_id": i, "logprob": v} for i, v in zip(best.indices.tolist(), best.values.tolist())],
    }


def main() -> None:
    args = arguments()
    result = score(load(args.directory, args.base, args.dtype), args.prompt_ids, args.dtype)
    if args.compare:
        other = score(load(args.compare, args.base, args.dtype), args.prompt_ids, args.dtype)
        gaps = [abs(a - b) for a, b in zip(result["logprobs"][1:], other["logprobs"][1:])]
        result["compared_with"] = str(args.compare)
        result["largest_gap"] = max(gaps, default=0.0)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

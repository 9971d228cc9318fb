"""What the golden scripts share: determinism, true f64, and writing files."""

import json
import os
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parent

# One thread: the order of every sum is then fixed, and the files are the same on every run.
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


class TrueF64(TorchFunctionMode):
    """Turns every request for f32 into one for f64.

    `model.double()` alone is not f64: the norms, the softmax and the rotary tables of
    transformers cast to f32 by name. Inside this mode they stay in f64.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)


def rng(seed: int) -> np.random.Generator:
    """A generator whose stream NumPy promises to keep (PCG64)."""
    return np.random.Generator(np.random.PCG64(seed))


def normal(generator: np.random.Generator, shape, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(generator.standard_normal(tuple(shape)) * std + mean).float()


def save_tensors(path: Path, tensors: dict, metadata: dict | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: t.detach().contiguous().clone() for name, t in sorted(tensors.items())}
    save_file(plain, str(path), metadata=metadata)


def save_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def f32(t: torch.Tensor) -> torch.Tensor:
    return t.detach().to(torch.float32).contiguous()

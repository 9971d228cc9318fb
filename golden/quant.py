"""What bitsandbytes makes of a matrix on the CPU: NF4, row-wise int8, and 8-bit dynamic blocks.

Writes quant/*.safetensors and two small pre-quantised models; README.md lists the tensors.
Every result is compared here with a few lines of plain arithmetic (`plain_*`), so that a wrong
kernel of the installed version cannot become the truth.

Usage: python quant.py
"""

import json
import shutil
import warnings

warnings.filterwarnings("ignore")

from common import ROOT, TrueF64, f32, normal, rng, save_tensors

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.utils import _get_4bit_code
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import models

OUT = ROOT / "quant"
NF4_BLOCK, NESTED_BLOCK = 64, 256


# --------------------------------------------------------------------------- inputs


def nf4_inputs() -> dict:
    plain = normal(rng(1), (64, 128), std=0.05)
    odd_blocks = normal(rng(2), (48, 44), std=0.1)  # 2112 elements are 33 blocks: none ends with a row
    partial = normal(rng(3), (5, 50), std=1.0)  # 250 elements: the last block has 58
    odd = normal(rng(4), (7, 9), std=1.0)  # 63 elements: the last byte holds one code
    edges = normal(rng(5), (16, 64), std=0.02)
    edges[0] = 0.0  # a block of zeros
    edges[1, 3] = 7.5  # one outlier flattens its block
    edges[2] = -0.25  # all equal and negative
    edges[3] = 0.0
    edges[3, 63] = 1e-30
    edges[4] = torch.linspace(-1.0, 1.0, 64)
    many_blocks = normal(rng(6), (96, 192), std=0.03)  # 288 absmax: the second level has two blocks
    return {
        "plain_f32": plain,
        "plain_bf16": plain.bfloat16(),
        "odd_blocks_f32": odd_blocks,
        "partial_f32": partial,
        "odd_f32": odd,
        "edges_f32": edges,
        "many_blocks_bf16": many_blocks.bfloat16(),
    }


# --------------------------------------------------------------------------- plain arithmetic


def plain_blocks(n: int, absmax: torch.Tensor, block: int) -> torch.Tensor:
    return absmax.repeat_interleave(block)[:n]


def plain_nf4_dequant(packed, absmax, shape, dtype):
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()
    n = shape[0] * shape[1]
    values = _get_4bit_code("nf4", torch.device("cpu"))[codes[:n].long()]
    return (values * plain_blocks(n, absmax, NF4_BLOCK)).reshape(shape).to(dtype)


def plain_8bit_dequant(codes, absmax, code, block):
    flat = code[codes.flatten().long()]
    return (flat * plain_blocks(flat.numel(), absmax, block)).reshape(codes.shape)


def plain_codes(x, absmax, code, block):
    """The nearest value of a sorted code: how many midpoints lie strictly below x / absmax."""
    scale = plain_blocks(x.numel(), absmax, block).clamp(min=1e-38)
    midpoints = (code[:-1] + code[1:]) / 2
    by_product, by_quotient = (
        torch.bucketize((x.flatten().float() * (1.0 / scale)).clamp(-1, 1), midpoints),
        torch.bucketize((x.flatten().float() / scale).clamp(-1, 1), midpoints),
    )
    assert torch.equal(by_product, by_quotient), "an input on a tie: rounding of 1/absmax would decide"
    return by_product.to(torch.uint8)


def check_cpu_codes(what: str, theirs, x, absmax, code, block) -> torch.Tensor:
    """The 8-bit kernel for the CPU looks values up in a coarse table and may miss the nearest one.

    What its reference kernel (backends/default) computes is the nearest, so that
    is the truth here. The distance of the CPU kernel's answer is held to what its table allows.
    """
    nearest = plain_codes(x, absmax, code, block)
    scale = plain_blocks(x.numel(), absmax, block)
    miss = (code[theirs.flatten().long()] - code[nearest.long()]).abs() * scale - 0.02 * scale
    assert miss.max() <= 0, f"{what}: {miss.max()}"
    return nearest.reshape(theirs.shape)


def same(what: str, a, b) -> None:
    assert torch.equal(a, b), f"{what}: bitsandbytes differs from plain arithmetic by {(a - b).abs().max()}"


# --------------------------------------------------------------------------- NF4


def nf4_case(name: str, x: torch.Tensor) -> dict:
    packed, state = F.quantize_4bit(x, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False)
    dequant = plain_nf4_dequant(packed, state.absmax, x.shape, x.dtype)
    if x.shape[1] % NF4_BLOCK == 0:
        same(name, F.dequantize_4bit(packed, state), dequant)

    packed2, nested = F.quantize_4bit(x, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=True)
    same(f"{name} codes", packed, packed2)
    levels = _get_4bit_code("nf4", torch.device("cpu"))
    flat = plain_codes(x, state.absmax, levels, NF4_BLOCK)
    same(f"{name} nearest", flat[0::2], (packed.flatten() >> 4))
    same(f"{name} nearest", flat[1::2], (packed.flatten() & 15)[: len(flat[1::2])])

    centred, map8, absmax8 = state.absmax - nested.offset, nested.state2.code, nested.state2.absmax
    nearest = check_cpu_codes(f"{name} nested", nested.absmax, centred, absmax8, map8, NESTED_BLOCK)
    theirs = plain_8bit_dequant(nested.absmax, absmax8, map8, NESTED_BLOCK) + nested.offset
    if x.shape[1] % NF4_BLOCK == 0:
        their_dequant = plain_nf4_dequant(packed, theirs, x.shape, x.dtype)
        same(f"{name} nested", F.dequantize_4bit(packed2, nested), their_dequant)
    absmax2 = plain_8bit_dequant(nearest, absmax8, map8, NESTED_BLOCK) + nested.offset
    nested_dequant = plain_nf4_dequant(packed, absmax2, x.shape, x.dtype)
    return {
        "input": x,
        "codes": packed.flatten(),
        "absmax": state.absmax,
        "dequant": dequant,
        "nested.absmax_codes": nearest,
        "nested.absmax_codes_cpu": nested.absmax,
        "nested.absmax": nested.state2.absmax,
        "nested.offset": nested.offset.reshape(1),
        "nested.absmax_dequant": absmax2,
        "nested.dequant": nested_dequant,
    }


def make_nf4() -> None:
    out = {"nf4_map": _get_4bit_code("nf4", torch.device("cpu")), "nested_map": F.create_dynamic_map()}
    for name, x in nf4_inputs().items():
        case = nf4_case(name, x)
        out |= {f"{name}.{key}": value for key, value in case.items()}
    save_tensors(OUT / "nf4.safetensors", out)


def make_linear4bit() -> None:
    """The state dict of Linear4bit, with its packed JSON, as safetensors files hold it."""
    for double in (False, True):
        layer = bnb.nn.Linear4bit(128, 64, bias=True, quant_type="nf4", compress_statistics=double)
        layer.weight = bnb.nn.Params4bit(
            nf4_inputs()["plain_bf16"], requires_grad=False, quant_type="nf4", compress_statistics=double
        )
        layer.bias = torch.nn.Parameter(normal(rng(7), (64,), std=0.1))
        layer = layer.to("cpu")
        state = layer.state_dict()
        state["dequant"] = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        same("Linear4bit", state["dequant"], dequantised(state)["weight"].bfloat16())
        save_tensors(OUT / f"linear4bit_{'double' if double else 'single'}.safetensors", state, {"format": "pt"})
        packed = state["weight.quant_state.bitsandbytes__nf4"]
        print(" ", sorted(state), json.loads(bytes(packed.tolist())))


# --------------------------------------------------------------------------- int8


def make_int8() -> None:
    out = {}
    for name, x in {"plain_f16": nf4_inputs()["plain_f32"].half(), "edges_f16": nf4_inputs()["edges_f32"].half()}.items():
        if name == "edges_f16":
            x = x[1:]  # a row of zeros divides by zero there: it is no value to agree with
        codes, scb, _ = F.int8_vectorwise_quant(x.clone())
        out |= {f"{name}.input": x, f"{name}.weight": codes, f"{name}.SCB": scb}
        out[f"{name}.dequant"] = codes.float() * scb[:, None] / 127.0
        gap = (F.int8_vectorwise_dequant(codes, scb) - out[f"{name}.dequant"]).abs().max()
        assert gap < 1e-5, f"{name}: {gap}"

    layer = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(nf4_inputs()["plain_f32"].half(), requires_grad=False, has_fp16_weights=False)
    state = layer.to("cpu").state_dict()
    print(" ", {key: (value.dtype, tuple(value.shape)) for key, value in state.items()})
    same("Linear8bitLt", state["weight"], out["plain_f16.weight"])
    out |= {f"linear8bit.{key}": value for key, value in state.items()}
    save_tensors(OUT / "int8.safetensors", out, {"format": "pt"})


# --------------------------------------------------------------------------- 8-bit dynamic blocks


def make_blockwise8() -> None:
    signed, unsigned = F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)
    out = {"signed_map": signed, "unsigned_map": unsigned}
    wide = torch.exp(normal(rng(9), (600,), std=4.0))  # many decades, as second moments have
    zeros = torch.zeros(512)
    zeros[300] = 1e-20
    cases = {
        "normal": (normal(rng(8), (1000,), std=0.3), signed),  # 1000 elements: the last block has 232
        "wide_signed": (wide * torch.sign(normal(rng(10), (600,))), signed),
        "wide_unsigned": (wide, unsigned),
        "zeros": (zeros, signed),
    }
    for name, (x, code) in cases.items():
        codes, state = F.quantize_blockwise(x, code=code.clone(), blocksize=256)
        same(name, F.dequantize_blockwise(codes, state), plain_8bit_dequant(codes, state.absmax, code, 256))
        nearest = check_cpu_codes(name, codes, x, state.absmax, code, 256)
        dequant = plain_8bit_dequant(nearest, state.absmax, code, 256)
        out |= {f"{name}.input": x, f"{name}.codes": nearest, f"{name}.codes_cpu": codes, f"{name}.absmax": state.absmax}
        out[f"{name}.dequant"] = dequant
    save_tensors(OUT / "blockwise8.safetensors", out)


# --------------------------------------------------------------------------- whole models


def dequantised(weights: dict) -> dict:
    """The weights a pre-quantised file stands for."""
    out = {}
    for name, w in weights.items():
        if f"{name}.quant_state.bitsandbytes__nf4" in weights:
            info = json.loads(bytes(weights[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
            absmax = weights[f"{name}.absmax"]
            if "nested_offset" in info:
                nested = (weights[f"{name}.nested_absmax"], weights[f"{name}.nested_quant_map"], info["nested_blocksize"])
                absmax = plain_8bit_dequant(absmax, *nested) + info["nested_offset"]
            out[name] = plain_nf4_dequant(w, absmax, info["shape"], torch.float32)
        elif w.dtype == torch.int8:
            out[name] = w.float() * weights[name.removesuffix("weight") + "SCB"][:, None] / 127.0
        elif w.dtype.is_floating_point and name.endswith((".weight", ".bias")):
            out[name] = w.float()
    return out


def make_model(name: str, quantisation: BitsAndBytesConfig) -> None:
    source, directory = ROOT / "models" / "llama", OUT / name
    shutil.rmtree(directory, ignore_errors=True)
    quantised = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=quantisation, device_map="cpu"
    )
    quantised.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)

    weights = dequantised(load_file(str(directory / "model.safetensors")))
    plain = models.load(source, torch.float32)
    missing = plain.load_state_dict(weights, strict=True)
    golden = load_file(str(source / "golden.safetensors"))
    ids, lengths = golden["token_ids"].tolist(), golden["lengths"].tolist()
    sequences = [ids[: lengths[0]], ids[lengths[0] :]]
    with TrueF64(), torch.no_grad():
        logits, _ = models.forward(plain.double(), sequences)
        logprobs = models.next_token_logprobs(logits, sequences)
    kept = {key: golden[key] for key in ("token_ids", "lengths")}
    save_tensors(directory / "golden.safetensors", {**kept, "logits": f32(logits), "logprobs": f32(logprobs)})
    away = (logits - golden["logits"]).norm() / golden["logits"].norm()
    print(f"  {name}: {missing}, relative distance from the unquantised logits {away:.2f}")


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    make_nf4()
    make_linear4bit()
    make_int8()
    make_blockwise8()
    make_model(
        "llama_nf4",
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    make_model("llama_int8", BitsAndBytesConfig(load_in_8bit=True))

"""Loads the GGUF files of `cargo run -p pt-export --example golden_gguf -- FOLDER` in llama.cpp; logits against transformers.

    python compare_architectures.py FOLDER

Needs llama-cpp-python, torch and transformers. Prints one line per model; exits 1 if one differs.
"""

import pathlib
import sys

import llama_cpp
import numpy as np
import torch
import transformers

TOLERANCE = 1e-4  # of the largest logit: both sum in f32, in other orders
GELU_TOLERANCE = 1e-3  # ggml looks GELU up in a table of f16, whose step is 2^-11
failed = False
for folder in sorted(p for p in pathlib.Path(sys.argv[1]).iterdir() if (p / "model.gguf").exists()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    context = 5 if "mistral" in folder.name or folder.name == "qwen2" else 9
    if "longrope" in folder.name:
        context = 20  # beyond the original length: llama.cpp takes the long list for every context of more than that
    ids = [i * 7919 % 112 for i in range(context)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].double()
    params = llama_cpp.llama_model_default_params()
    loaded = llama_cpp.llama_model_load_from_file(str(folder / "model.gguf").encode(), params)
    if not loaded:
        print(f"{folder.name}: NOT LOADED")
        failed = True
        continue
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.type_k, options.type_v = 256, 64, 0, 0
    options.flash_attn_type = 0  # flash attention rounds to f16
    ctx = llama_cpp.llama_init_from_model(loaded, options)
    batch = llama_cpp.llama_batch_init(64, 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(ctx, batch) == 0
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, i), (112,)).copy() for i in range(len(ids))]
    difference = np.abs(np.stack(rows) - expected.numpy()).max() / expected.abs().max().item()
    tolerance = GELU_TOLERANCE if folder.name.startswith("gemma") else TOLERANCE
    failed |= not difference <= tolerance
    print(f"{folder.name}: largest difference of two logits {difference:.1e} of the largest{'' if difference <= tolerance else '  DIFFERS'}")
sys.exit(failed)

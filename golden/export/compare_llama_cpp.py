"""Loads exported GGUF files in llama.cpp and compares them with the source in transformers: logits, greedy text, tokens.

    python compare_llama_cpp.py HF_FOLDER FILE.gguf [FILE.gguf ...]

Needs llama-cpp-python, torch and transformers. Prints one line per file; exits 1 if tokens differ, or an f32 file's logits do.
"""

import sys

import llama_cpp
import numpy as np
import torch
import transformers

TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\nWhat is 17 + 25? It's 42."
F32_TOLERANCE = 2e-3  # llama.cpp keeps keys and values in f16 unless told otherwise


def main(folder, files):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(TEXT).input_ids
    prompt = ids[:8]
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "What is 17 + 25?"}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].double()
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0, len(prompt):].tolist()
    log_p = expected.log_softmax(-1)
    failed = False
    for file in files:
        llama = llama_cpp.Llama(file, n_ctx=256, logits_all=True, verbose=False, n_threads=2, type_k=0, type_v=0)
        found_ids = llama.tokenize(TEXT.encode(), add_bos=True, special=True)
        llama.eval(ids)
        found = torch.tensor(np.array(llama.scores[: len(ids)])).double()
        kl = (log_p.exp() * (log_p - found.log_softmax(-1))).sum(-1)
        difference = (found - expected).abs().max().item()
        llama.reset()
        reply = []
        for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token in (llama.token_eos(),) or len(reply) == 32:
                break
            reply.append(token)
        reference = greedy[: len(reply)]
        same = next((i for i, (a, b) in enumerate(zip(reply, reference)) if a != b), len(reply))
        tokens_equal = list(found_ids) == ids
        failed |= not tokens_equal or ("f32" in file and difference > F32_TOLERANCE * expected.abs().max().item())
        print(f"{file}: tokens {'equal' if tokens_equal else f'DIFFER {found_ids} {ids}'}; KL per token mean {kl.mean():.2e} max {kl.max():.2e}; "
              f"largest logit difference {difference:.2e} of {expected.abs().max():.1f}; greedy tokens equal {same} of {len(reply)}")
    return failed


sys.exit(main(sys.argv[1], sys.argv[2:]))

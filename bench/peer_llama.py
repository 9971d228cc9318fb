"""Single-sequence decoding of llama.cpp on the CPU, from a GGUF file that has our model's shape.

A round computes a prompt, then decodes token by token; the most probable token is taken, which costs llama.cpp least.
`decode_tokens_per_s` is that of decoding alone. `system` says for which instruction sets it was built. Prints one JSON object.

Usage: python peer_llama.py FILE.gguf [--prompt N] [--new N] [--rounds N] [--threads N]
"""

import argparse
import json
import os
import statistics
import time

import llama_cpp
import numpy as np

VOCABULARY = 49_152


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    return parser.parse_args()


def load(args):
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    model = llama_cpp.llama_model_load_from_file(args.file.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {args.file}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = args.prompt + args.new + 8
    options.n_batch = options.n_ubatch = max(args.prompt, 32)
    options.n_threads = options.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, options)
    return model, context, silent


def decode(context, batch, tokens: list, first: int) -> int:
    """Computes tokens at positions from `first` on; the most probable next one."""
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, i + 1 == len(tokens)
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, len(tokens) - 1), (VOCABULARY,))
    return int(logits.argmax())


def main() -> None:
    args = arguments()
    _model, context, _silent = load(args)
    batch = llama_cpp.llama_batch_init(args.prompt, 0, 1)
    prompt = [i * 104_729 % VOCABULARY for i in range(args.prompt)]
    steps, whole, processor = [], [], []
    for round_idx in range(args.rounds + 1):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start, cpu = time.perf_counter(), time.process_time()
        token = decode(context, batch, prompt, 0)
        times = []
        for i in range(args.new - 1):
            before = time.perf_counter()
            token = decode(context, batch, [token], args.prompt + i)
            times.append(time.perf_counter() - before)
        if round_idx > 0:  # the first one touches the weights for the first time
            whole.append(args.new / (time.perf_counter() - start))
            processor.append(round(time.process_time() - cpu, 3))
            steps += times
    result = {
        "file": args.file,
        "threads": args.threads,
        "llama_cpp": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode(),
        "median_tokens_per_s": round(statistics.median(whole), 2),
        "processor_s": processor,
        "decode_tokens_per_s": round(1 / statistics.median(steps), 2),
        "decode_s": statistics.median(steps),
        "decode_best_s": min(steps),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Generation speed of transformers on the CPU: prompts of one length, sampled.

A round is one call; tokens_per_s counts new tokens over its whole time, prompt included. `prefill_s` is the time of a call
that makes a single token. `--how` chooses between `generate` with its growing cache, `generate` with a static cache and
torch.compile, and `generate_batch` (continuous batching over a paged cache). Prints one JSON object.

Usage: python peer_generate.py --dtype f32|bf16 [--sequences N] [--samples N] [--prompt N] [--new N] [--rounds N] [--how HOW]
"""

import argparse

import peer
import torch
import transformers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=tuple(peer.DTYPES), default="f32")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1, help="sequences that share a prompt")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None, help="all cores without it")
    parser.add_argument("--how", choices=("dynamic", "static", "batching"), default="dynamic")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    model = peer.new_model(args.dtype, args.threads).eval()
    generator = torch.Generator().manual_seed(peer.SEED)
    n_prompts = args.sequences // args.samples
    prompts = torch.randint(0, model.config.vocab_size, (n_prompts, args.prompt), generator=generator)
    mask = torch.ones_like(prompts)
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "pad_token_id": 0}
    cache = {}
    if args.how == "static":
        model.forward = torch.compile(model.forward)
        cache = {"cache_implementation": "static"}

    @torch.inference_mode()
    def padded(n_new: int) -> int:
        lengths = {"max_new_tokens": n_new, "min_new_tokens": n_new, "num_return_sequences": args.samples}
        out = model.generate(prompts, attention_mask=mask, **lengths, **drawn, **cache)
        return out.shape[0] * (out.shape[1] - args.prompt)

    def batched(n_new: int) -> int:
        config = transformers.GenerationConfig(max_new_tokens=n_new, **drawn)
        inputs = [row.tolist() for row in prompts for _ in range(args.samples)]
        found = model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False)
        return sum(len(one.generated_tokens) for one in found.values())

    def one_round(n_new: int) -> tuple[float, float]:
        watch = peer.Stopwatch()
        n_tokens = (batched if args.how == "batching" else padded)(n_new)
        reading = watch.read()
        assert n_tokens == args.sequences * n_new, n_tokens
        return reading

    one_round(2)  # allocators and, if asked for, the compiler
    prefill_s, _ = one_round(1)
    readings = [one_round(args.new) for _ in range(args.rounds)]
    decode_s = min(elapsed_s for elapsed_s, _ in readings) - prefill_s
    peer.report(
        vars(args),
        args.sequences * args.new,
        readings,
        prefill_s=round(prefill_s, 3),
        decode_tokens_per_s=round(args.sequences * (args.new - 1) / decode_s, 2) if args.new > 1 else None,
    )


if __name__ == "__main__":
    main()

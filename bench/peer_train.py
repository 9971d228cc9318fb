"""Training speed of PyTorch + transformers (+ PEFT) on the CPU, at the best settings we know.

Forward, backward, fused AdamW; sdpa attention, every core, no gradient checkpointing, rows of one
length so that nothing is padded. Prints one JSON object.

Usage: python peer_train.py --mode full|lora --dtype f32|bf16 [--steps N] [--tokens N] [--compile]
"""

import argparse
import warnings

import peer
import torch

warnings.filterwarnings("ignore", category=FutureWarning)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("full", "lora"), default="full")
    parser.add_argument("--dtype", choices=tuple(peer.DTYPES), default="f32")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--threads", type=int, default=None, help="all cores without it")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    return parser.parse_args()


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    # The base model is frozen and keeps its type; without this PEFT would train the adapter in f32.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def main() -> None:
    args = arguments()
    if args.tokens % args.length:
        raise SystemExit(f"--tokens {args.tokens} is not a multiple of --length {args.length}")
    model = peer.new_model(args.dtype, args.threads)
    model.train()
    model.config.use_cache = False
    if args.mode == "lora":
        model = with_lora(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    forward = torch.compile(model) if args.compile else model
    shape = (args.tokens // args.length, args.length)
    vocabulary = model.config.vocab_size
    data = torch.Generator().manual_seed(peer.SEED)

    def step() -> tuple[float, float]:
        ids = torch.randint(0, vocabulary, shape, generator=data)
        watch = peer.Stopwatch()
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return watch.read()

    warmup = [step() for _ in range(args.warmup)]
    readings = [step() for _ in range(args.steps)]
    peer.report(
        vars(args),
        args.tokens,
        readings,
        warmup_s=[round(elapsed_s, 3) for elapsed_s, _ in warmup],
        n_trainable=sum(p.numel() for p in trainable),
    )


if __name__ == "__main__":
    main()

"""One GRPO step of TRL on the CPU: a group sampled, rewarded, and trained on.

Prompts and completions of one length, a random model, rewards from a counter, so that every group has signal. Prints one JSON
object; a reading is the whole step.

Usage: python peer_grpo.py --mode full|lora --dtype bf16|f32 [--group N] [--prompt N] [--new N] [--steps N]
"""

import argparse
import pathlib
import tempfile
import time
import warnings

import peer

warnings.filterwarnings("ignore")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("full", "lora"), default="full")
    parser.add_argument("--dtype", choices=tuple(peer.DTYPES), default="bf16")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one more")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    import datasets
    import trl

    folder = pathlib.Path(tempfile.mkdtemp())
    model = peer.new_model(args.dtype)
    tokenizer = peer.tokenizer_of_words(model.config.vocab_size, folder)
    rows = [{"prompt": text} for text in peer.texts((args.steps + 1, args.prompt), model.config.vocab_size)]
    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=args.group,
        num_generations=args.group,
        max_completion_length=args.new,
        max_steps=args.steps + 1,
        learning_rate=1e-6,
        optim="adamw_torch_fused",
        beta=0.0,
        bf16=False,  # the weights are of this type already
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        generation_kwargs={"min_new_tokens": args.new},
    )
    lora = peer.lora() if args.mode == "lora" else None

    def reward(completions, **_):
        return [float(i % 2) for i in range(len(completions))]

    clock = peer.Clock()
    start = time.perf_counter()
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )
    trainer.train()
    whole_s = time.perf_counter() - start
    # Sampling happens before `on_step_begin` in some versions: the logged step_time holds all of it.
    logged = [entry["step_time"] for entry in trainer.state.log_history if "step_time" in entry]
    readings = [(step_s, share) for step_s, (_, share) in zip(logged[1:], clock.readings[1:])]
    peer.report(vars(args), 1, readings, unit="steps", step_s=logged, whole_s=round(whole_s, 2), trl=trl.__version__)


if __name__ == "__main__":
    main()

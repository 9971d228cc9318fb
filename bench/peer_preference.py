"""A preference or reward step of TRL on the CPU: pairs of one prompt and two replies of one length, a random model.

As fast as TRL does it: bf16 throughout, fused AdamW, log-probabilities in chunks of the head (its default), no checkpointing,
no truncation. Its padding-free mode is switched off in this version; there is no padding in this data. The reference is
scored in the step, as ours is: the base without its adapter, or a second copy of the model. Prints one JSON object.

Usage: python peer_preference.py --objective dpo|reward --mode full|lora --dtype bf16|f32 [--pairs N] [--prompt N] [--reply N]
"""

import argparse
import copy
import pathlib
import tempfile
import warnings

import peer
import torch

warnings.filterwarnings("ignore")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=("dpo", "reward"), default="dpo")
    parser.add_argument("--mode", choices=("full", "lora"), default="lora")
    parser.add_argument("--dtype", choices=tuple(peer.DTYPES), default="bf16")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--reply", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one more")
    return parser.parse_args()


def new_model(args):
    if args.objective == "dpo":
        return peer.new_model(args.dtype)
    peer.use_threads()
    torch.manual_seed(peer.SEED)
    config = peer.smollm2_135m_config()
    config.num_labels, config.pad_token_id = 1, 0
    make = peer.transformers.AutoModelForSequenceClassification.from_config
    return make(config, dtype=peer.DTYPES[args.dtype], attn_implementation="sdpa")


def dataset(args, vocabulary: int):
    import datasets

    n = args.pairs * (args.steps + 1)
    prompts = peer.texts((n, args.prompt), vocabulary)
    replies = peer.texts((2 * n, args.reply), vocabulary)
    rows = zip(prompts, replies[:n], replies[n:])
    return datasets.Dataset.from_list([{"prompt": p, "chosen": f" {c}", "rejected": f" {r}"} for p, c, r in rows])


def main() -> None:
    args = arguments()
    import trl

    folder = pathlib.Path(tempfile.mkdtemp())
    model = new_model(args)
    vocabulary = model.config.vocab_size
    config, trainer = {"dpo": (trl.DPOConfig, trl.DPOTrainer), "reward": (trl.RewardConfig, trl.RewardTrainer)}[args.objective]
    lora = peer.lora() if args.mode == "lora" else None
    if lora and args.objective == "reward":
        lora.task_type, lora.modules_to_save = "SEQ_CLS", ["score"]
    settings = config(
        output_dir=str(folder),
        per_device_train_batch_size=args.pairs,
        max_steps=args.steps + 1,
        max_length=None,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=False,  # the weights are of this type already
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    # A model that was not loaded from a folder cannot be loaded again, so its copy is given.
    reference = {"ref_model": copy.deepcopy(model)} if args.objective == "dpo" and not lora else {}
    clock = peer.Clock()
    run = trainer(
        model=model,
        args=settings,
        train_dataset=dataset(args, vocabulary),
        processing_class=peer.tokenizer_of_words(vocabulary, folder),
        peft_config=lora,
        callbacks=[clock],
        **reference,
    )
    run.train()
    lengths = {
        len(row["chosen_ids"]) if "chosen_ids" in row else len(row["chosen_input_ids"])
        for row in run.train_dataset
        if "chosen_ids" in row or "chosen_input_ids" in row
    }
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    more = {"trl": trl.__version__, "losses": losses, "lengths": sorted(lengths)}
    peer.report(vars(args), args.pairs, clock.readings[1:], unit="pairs", **more)


if __name__ == "__main__":
    main()

"""Generation and one GRPO step, ours and the peers', side by side in one run on one machine.

Rounds A B A B, as bench/run.py. Prints a Markdown table of ratios; --out keeps every reading as JSON.

Usage: python3 bench/rollouts.py --venv VENV --decode DECODE --grpo GRPO_SPEED [--rounds N]
                                 [--cases one,many,grpo-full,grpo-lora] [--out FILE.json]

DECODE is the example generate_speed of pt-rollout, GRPO_SPEED the example grpo_speed of pt-pipeline.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
CASES = "one,many,grpo-full,grpo-lora"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--decode", type=pathlib.Path, required=True)
    parser.add_argument("--grpo", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def reading(command: list) -> dict:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stderr[-2000:]}")
    # Trainers print their logs too; the reading is the last line.
    return json.loads(result.stdout.strip().splitlines()[-1])


def commands(args, case: str) -> tuple:
    """What measures the peer and us, and the figure of each in which more is better."""
    python = args.venv / "bin" / "python"
    if case.startswith("grpo-"):
        mode = case.removeprefix("grpo-")
        peer = [python, HERE / "peer_grpo.py", "--mode", mode, "--dtype", "bf16"]
        steps_per_s = lambda key: lambda r: 1 / (statistics.median(r[key][1:]) if isinstance(r[key], list) else r[key])
        return (peer, steps_per_s("step_s")), ([args.grpo, mode, "bf16"], steps_per_s("median_step_s"))
    sequences = {"one": 1, "many": 64}[case]
    new = {"one": 64, "many": 64}[case]
    shape = ["--sequences", sequences, "--prompt", 128, "--new", new]
    peer = [python, HERE / "peer_generate.py", "--dtype", "bf16", *shape]
    speed = lambda r: r["median_tokens_per_s"]
    return (peer, speed), ([args.decode, "bf16", sequences, 128, new], speed)


def main() -> None:
    args = arguments()
    records = []
    for round_idx in range(args.rounds):
        for case in args.cases.split(","):
            (peer, peer_figure), (ours, our_figure) = commands(args, case)
            record = {"round": round_idx, "case": case, "peer": reading(peer), "ours": reading(ours)}
            record["figures"] = [our_figure(record["ours"]), peer_figure(record["peer"])]
            print(f"round {round_idx} {case}: {record['figures']}", file=sys.stderr, flush=True)
            records.append(record)
    if args.out:
        args.out.write_text(json.dumps(records, indent=1))
    print("| case | ours | peers | ratio |\n| --- | --- | --- | --- |")
    for case in dict.fromkeys(record["case"] for record in records):
        pairs = [record["figures"] for record in records if record["case"] == case]
        ratios = [ours / theirs for ours, theirs in pairs]
        middle = [statistics.median(column) for column in zip(*pairs)]
        unit = "steps/s" if case.startswith("grpo") else "tokens/s"
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {case} | {middle[0]:.3g} {unit} | {middle[1]:.3g} {unit} | {span} |")


if __name__ == "__main__":
    main()

"""Ours and the peers, side by side in one run on one machine.

Runs A B A B: in every round each case is measured first with the peer, then with ours, so that whatever else the machine does
hits both. Prints a Markdown report; --out also keeps every reading as JSON.

Usage: python3 bench/run.py --venv VENV [--bin target/release/examples] [--suite all|NAME,NAME] [--rounds N] [--steps N]
                            [--threads N] [--wait SECONDS] [--out FILE.json]

Suites: train, dpo, reward, grpo, generation, llama (side by side), sandbox (ours alone). Needs nothing but Python itself; the
peers run in VENV (golden/requirements.txt).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import sys

import pairs
import train
from measure import last_object, measure, run, spread

ALL = ["train", *pairs.SUITES, "sandbox"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release/examples"), help="our examples")
    parser.add_argument("--suite", default="all", help=f"all, or some of {','.join(ALL)}")
    parser.add_argument("--only", help="cases whose name has this in it, of the suites with one figure each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a training process")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a generated sequence")
    parser.add_argument("--how", default="dynamic", help="how transformers generates: see peer_generate.py")
    parser.add_argument("--cases", default=train.CASES, help="of the suite train")
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for an idle machine, per reading")
    parser.add_argument("--threads", type=int, help="of both sides; with 1, processor time says something on a busy machine")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    args.suites = ALL if args.suite == "all" else args.suite.split(",")
    unknown = [suite for suite in args.suites if suite not in ALL]
    if unknown:
        parser.error(f"there is no suite {', '.join(unknown)}: {', '.join(ALL)}")
    return args


def machine(args) -> tuple:
    """What the machine can do at best in this round: GFLOP/s by precision, GB/s read."""
    peak = train.matrix_peak(args.bin / "gemm_speed")
    memory = last_object(run([args.bin / "memory_speed"]))
    return peak, {"matrix": peak["bf16"], "memory": memory["read"]["best"], "triad": memory["triad"]["best"]}


def rates(text: str) -> dict:
    return {"rates": {name: float(rate) for name, rate in re.findall(r"^(.+?): +([0-9.]+) (?:runs|verdicts)/s", text, re.M)}}


def sandbox(args, round_idx: int) -> list:
    """Runs of trivial programs, and verdicts on code, on one core each."""
    commands = {"sandbox": [args.bin / "speed", 2], "verdicts": [args.bin / "code_speed", 3, 1]}
    readings = [measure(command, args.wait, rates) for command in commands.values()]
    return [{"suite": "sandbox", "round": round_idx, "ours": reading} for reading in readings]


def sandbox_table(records: list) -> list:
    lines = ["| one after another, on one core | a second |", "| --- | --- |"]
    names = dict.fromkeys(name for record in records for name in record["ours"]["rates"])
    for name in names:
        lines.append(f"| {name} | {spread([r['ours']['rates'][name] for r in records if name in r['ours']['rates']])} |")
    return lines


def conditions(args, records: list, machines: list) -> list:
    readings = [r[who] for r in records for who in ("peer", "ours") if who in r]
    others = [reading["others_cores"] for reading in readings]
    shares = [share for reading in readings for share in reading.get("core_share", [])]
    versions = {}
    for reading in readings:
        versions |= reading.get("versions", {})
        versions |= {name: reading[name] for name in ("trl", "llama_cpp") if name in reading}
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {args.threads or os.cpu_count()} of {os.cpu_count()} cores"
        f"{''.join(f', {name} {version}' for name, version in versions.items())}.",
        f"Cores that others used meanwhile: {min(others)} to {max(others)}.",
    ]
    if shares:
        lines.append(f"Share of the cores that a step got: {min(shares):.2f} to {max(shares):.2f} (close to 1 on an idle machine).")
    for key, what in (("matrix", "bf16 matrix products alone, GFLOP/s"), ("memory", "memory read, GB/s"), ("triad", "triad, GB/s")):
        lines.append(f"The machine, {what}: {spread([one[key] for one in machines])}.")
    return lines


def main() -> None:
    args = arguments()
    if args.threads:
        os.environ |= {"OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    cases = [case for suite in args.suites if suite in pairs.SUITES for case in pairs.SUITES[suite](args)]
    cases = [case for case in cases if not args.only or args.only in case.name]
    records, machines = [], []
    for round_idx in range(args.rounds):
        peak, best = machine(args)
        machines.append(best)
        if "train" in args.suites:
            records += train.collect(args, round_idx, peak)
        records += pairs.collect(args, cases, round_idx)
        if "sandbox" in args.suites:
            records += sandbox(args, round_idx)
        if args.out:
            args.out.write_text(json.dumps({"machine": machines, "records": records}, indent=1))
    of = {suite: [r for r in records if r["suite"] == suite] for suite in args.suites}
    sections = [conditions(args, records, machines)]
    if of.get("train"):
        sections += train.report(of["train"])
    if cases:
        sections += pairs.report(records, cases, pairs.medians(machines))
        sections.append(pairs.systems(records))
    if of.get("sandbox"):
        sections.append(sandbox_table(of["sandbox"]))
    print("\n\n".join("\n".join(lines) for lines in sections if lines))


if __name__ == "__main__":
    if sys.version_info < (3, 10):
        sys.exit("python 3.10 or newer")
    main()

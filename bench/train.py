"""The suite `train`: our training step beside PyTorch + transformers (+ PEFT), with shares of the matrix peak and by operation."""

import pathlib
import re
import statistics
import sys

from measure import measure, run, spread

HERE = pathlib.Path(__file__).parent
CASES = "full:bf16,lora:bf16,qlora:bf16,full:f32,lora:f32"
# Multiply-adds of one token: every linear layer of 30 blocks, and the head.
LINEAR_WEIGHTS = 30 * (576 * 960 + 576 * 576 + 2 * 576 * 1536 + 1536 * 576)
HEAD_WEIGHTS = 49152 * 576
# Operations per weight that a step cannot do without: forward, gradient of the input, gradient of the weight.
OPERATIONS = {"full": 6, "lora": 4, "qlora": 4}


def matrix_peak(gemm: pathlib.Path) -> dict:
    """The best GFLOP/s of any shape, by precision."""
    peak = {}
    for precision, value in re.findall(r"^(F32|Bf16) .*?:\s+([0-9.]+) GFLOP/s", run([gemm]), re.M):
        key = precision.lower()
        peak[key] = max(peak.get(key, 0.0), float(value))
    return peak


def collect(args, round_idx: int, peak: dict) -> list:
    """One record per case."""
    records = []
    for mode, dtype in [case.split(":") for case in args.cases.split(",")]:
        record = {"suite": "train", "round": round_idx, "mode": mode, "dtype": dtype, "matrix_peak": peak.get(dtype)}
        if mode != "qlora":  # bitsandbytes has no 4-bit training on the CPU to compare with
            python = args.venv / "bin" / "python"
            flags = ["--mode", mode, "--dtype", dtype, "--steps", args.steps]
            record["peer"] = measure([python, HERE / "peer_train.py", *flags], args.wait)
        record["ours"] = measure([args.bin / "step_speed", mode, dtype, args.steps], args.wait)
        records.append(record)
        progress(record)
    return records


def progress(record: dict) -> None:
    speeds = {who: record[who]["median_tokens_per_s"] for who in ("peer", "ours") if who in record}
    print(f"round {record['round']} {record['mode']} {record['dtype']}: {speeds}", file=sys.stderr, flush=True)


def table(records: list) -> list:
    lines = [
        "| step | ours, tokens/s | peers, tokens/s | ratio | ours, GB | peers, GB | ratio | of the matrix peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mode, dtype in dict.fromkeys((r["mode"], r["dtype"]) for r in records):
        rows = [r for r in records if (r["mode"], r["dtype"]) == (mode, dtype)]
        ours = [r["ours"]["median_tokens_per_s"] for r in rows]
        peers = [r["peer"]["median_tokens_per_s"] for r in rows if "peer" in r]
        ratios = [o / p for o, p in zip(ours, peers)]
        our_gb = max(r["ours"]["peak_rss_bytes"] for r in rows) / 1e9
        peer_gb = max((r["peer"]["peak_rss_bytes"] for r in rows if "peer" in r), default=None)
        memory = f"{peer_gb / 1e9:.2f} | {our_gb / (peer_gb / 1e9):.2f}" if peer_gb else "– | –"
        work = OPERATIONS[mode] * (LINEAR_WEIGHTS + HEAD_WEIGHTS) / 1e9
        shares = [100 * work * o / r["matrix_peak"] for o, r in zip(ours, rows) if r["matrix_peak"]]
        of_peak = f"{statistics.median(shares):.0f} %" if shares else "–"
        cells = [f"{mode} {dtype}", spread(ours), spread(peers), spread(ratios), f"{our_gb:.2f}", memory, of_peak]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def quantised_line(records: list) -> list:
    """QLoRA has no peer here: its measure is our own LoRA in the same round."""
    speed = {(r["round"], r["mode"]): r["ours"]["median_tokens_per_s"] for r in records if r["dtype"] == "bf16"}
    ratios = [v / speed[k, "lora"] for (k, mode), v in speed.items() if mode == "qlora" and (k, "lora") in speed]
    return [f"QLoRA runs at {spread(ratios)} of our LoRA."] if ratios else []


def operations(records: list) -> list:
    lines = ["| step | time by operation, share of a step |", "| --- | --- |"]
    for mode, dtype in dict.fromkeys((r["mode"], r["dtype"]) for r in records):
        rows = [r["ours"] for r in records if (r["mode"], r["dtype"]) == (mode, dtype)]
        best = max(rows, key=lambda row: row["median_tokens_per_s"])
        parts = [
            f"{op['op']} {op['direction']} {100 * op['share']:.1f} %"
            for op in best["operations"]
            if op["share"] >= 0.01
        ]
        lines.append(f"| {mode} {dtype} | {', '.join(parts)} |")
    return lines


def report(records: list) -> list:
    """Sections of Markdown."""
    return [table(records), quantised_line(records), operations(records)]

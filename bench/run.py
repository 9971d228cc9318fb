"""Our training step and the peers', side by side in one run on one machine.

Runs A B A B: in every round each case is measured first with PyTorch + transformers (+ PEFT), then with ours, so that
whatever else the machine does hits both. Prints a Markdown report; --out also keeps every reading as JSON.

Usage: python3 bench/run.py --venv VENV --binary STEP_SPEED [--gemm GEMM_SPEED] [--rounds N] [--steps N]
                            [--cases full:bf16,lora:bf16,...] [--wait SECONDS] [--out FILE.json]

Needs nothing but Python itself; the peers run in VENV, which has torch, transformers and peft.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
CASES = "full:bf16,lora:bf16,qlora:bf16,full:f32,lora:f32"
# Multiply-adds of one token: every linear layer of 30 blocks, and the head.
LINEAR_WEIGHTS = 30 * (576 * 960 + 576 * 576 + 2 * 576 * 1536 + 1536 * 576)
HEAD_WEIGHTS = 49152 * 576
# Operations per weight that a step cannot do without: forward, gradient of the input, gradient of the weight.
OPERATIONS = {"full": 6, "lora": 4, "qlora": 4}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="example step_speed of pt-train")
    parser.add_argument("--gemm", type=pathlib.Path, help="example gemm_speed of pt-kernels, for the machine's peak")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--wait", type=float, default=120, help="seconds to wait for an idle machine, per reading")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def run(command: list) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stderr[-2000:]}")
    return result.stdout


def busy_s() -> float:
    """Processor time that everything on the machine has used, stolen time included (0 where Linux does not tell)."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(limit_s: float) -> None:
    """Waits until a second passes in which others use less than a tenth of a core, at most `limit_s`."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = busy_s()
        time.sleep(1)
        if busy_s() - before < 0.1:
            return


def measure(command: list, wait_s: float) -> dict:
    """A reading, and how many cores others used meanwhile."""
    wait_until_idle(wait_s)
    start, busy, children = time.monotonic(), busy_s(), resource.getrusage(resource.RUSAGE_CHILDREN)
    text = run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    others = max(0.0, busy_s() - busy - ours) / (time.monotonic() - start)
    return {"others_cores": round(others, 2), **json.loads(text[text.index("{") :])}


def matrix_peak(gemm: pathlib.Path) -> dict:
    """The best GFLOP/s of any shape, by precision."""
    peak = {}
    for precision, value in re.findall(r"^(F32|Bf16) .*?:\s+([0-9.]+) GFLOP/s", run([gemm]), re.M):
        key = precision.lower()
        peak[key] = max(peak.get(key, 0.0), float(value))
    return peak


def collect(args) -> list:
    """One record per round and case."""
    cases = [case.split(":") for case in args.cases.split(",")]
    records = []
    for round_idx in range(args.rounds):
        peak = matrix_peak(args.gemm) if args.gemm else {}
        for mode, dtype in cases:
            record = {"round": round_idx, "mode": mode, "dtype": dtype, "matrix_peak": peak.get(dtype)}
            if mode != "qlora":  # bitsandbytes has no 4-bit training on the CPU to compare with
                python = args.venv / "bin" / "python"
                flags = ["--mode", mode, "--dtype", dtype, "--steps", args.steps]
                record["peer"] = measure([python, HERE / "peer_train.py", *flags], args.wait)
            record["ours"] = measure([args.binary, mode, dtype, args.steps], args.wait)
            records.append(record)
            progress(record)
    return records


def progress(record: dict) -> None:
    speeds = {who: record[who]["median_tokens_per_s"] for who in ("peer", "ours") if who in record}
    print(f"round {record['round']} {record['mode']} {record['dtype']}: {speeds}", file=sys.stderr, flush=True)


def spread(values: list) -> str:
    if not values:
        return "–"
    digits = 2 if max(values) < 20 else 0
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


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


def conditions(records: list) -> list:
    runs = [r[who] for r in records for who in ("peer", "ours") if who in r]
    others = [run["others_cores"] for run in runs]
    shares = [share for run in runs for share in run.get("core_share", [])]
    versions = next((r["peer"]["versions"] for r in records if "peer" in r), {})
    lines = [
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
        f"Cores that others used meanwhile: {min(others)} to {max(others)}; share of the cores that a step got: "
        f"{min(shares):.2f} to {max(shares):.2f} (close to 1 on an idle machine).",
    ]
    peaks = [r["matrix_peak"] for r in records if r["dtype"] == "bf16" and r["matrix_peak"]]
    if peaks:
        lines.append(f"Matrix products alone in bf16: {spread(peaks)} GFLOP/s.")
    return lines


def main() -> None:
    args = arguments()
    records = collect(args)
    if args.out:
        args.out.write_text(json.dumps(records, indent=1))
    sections = [conditions(records), table(records), quantised_line(records), operations(records)]
    print("\n\n".join("\n".join(lines) for lines in sections if lines))


if __name__ == "__main__":
    main()

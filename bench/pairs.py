"""Side-by-side cases that need one figure each: what measures the peer, what measures us, and what of both is compared."""

import atexit
import dataclasses
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

from measure import measure, run, spread

HERE = pathlib.Path(__file__).parent
# A Llama of SmolLM2-135M's shape: 2-dimensional weights, the tied embedding once.
WEIGHTS = 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536) + 49152 * 576


@dataclasses.dataclass
class Case:
    suite: str
    name: str
    unit: str
    peer: list
    ours: list
    peer_figure: Callable[[dict], float]
    our_figure: Callable[[dict], float]
    # What the reading says beside the ratio, from (ours, machine).
    notes: Callable[[dict, dict], str] = lambda _ours, _machine: ""


def median_of(unit: str) -> Callable[[dict], float]:
    return lambda reading: reading[f"median_{unit}_per_s"]


def preference(args, objective: str) -> list:
    python, cases = args.venv / "bin" / "python", []
    for mode in ("lora", "full"):
        peer = [python, HERE / "peer_preference.py", "--objective", objective, "--mode", mode, "--steps", args.steps]
        ours = [args.bin / "preference_speed", objective, mode, "bf16", args.steps]
        figure = median_of("pairs")
        notes = (lambda ours, _: f"reference {ours['reference_s']:.2f} s of a step") if objective == "dpo" else Case.notes
        cases.append(Case(objective, f"{objective}, 4 pairs, {mode}", "pairs/s", peer, ours, figure, figure, notes))
    return cases


def dpo(args) -> list:
    return preference(args, "dpo")


def reward(args) -> list:
    return preference(args, "reward")


def grpo(args) -> list:
    def notes(ours: dict, _machine: dict) -> str:
        difference = ours["sampler_trainer_difference"]
        return f"sampling {ours['median_sampling_s']:.2f} of {ours['median_step_s']:.2f} s, logp differ by {difference:g}"

    cases = []
    for mode in ("lora", "full"):
        peer = [args.venv / "bin" / "python", HERE / "peer_grpo.py", "--mode", mode, "--steps", max(2, args.steps - 1)]
        ours = [args.bin / "grpo_speed", mode, "bf16", max(2, args.steps - 1)]
        our_figure = lambda reading: 1 / reading["median_step_s"]
        cases.append(Case("grpo", f"grpo, group of 8, {mode}", "steps/s", peer, ours, median_of("steps"), our_figure, notes))
    return cases


def decoding(ours: dict, machine: dict) -> str:
    """Shares of what the machine reads and multiplies, in the passes that decode."""
    parts = [f"{1e3 * ours['decode_s']:.1f} ms a pass"]
    for key, figure, of in (("memory", "read_gb_per_s", "memory bandwidth"), ("matrix", "gflop_per_s", "matrix peak")):
        if machine.get(key):
            parts.append(f"{100 * ours[figure] / machine[key]:.0f} % of {of}")
    return ", ".join(parts)


def generation(args) -> list:
    shapes = [("1 sequence", 1, 1), ("64 prompts", 64, 1), ("8 prompts x 8 samples", 8, 8)]
    cases, figure = [], median_of("tokens")
    for name, prompts, samples in shapes:
        lengths = ["--prompt", 128, "--new", args.new, "--how", args.how]
        counts = ["--sequences", prompts * samples, "--samples", samples]
        peer = [args.venv / "bin" / "python", HERE / "peer_generate.py", "--dtype", "bf16", *counts, *lengths]
        ours = [args.bin / "generate_speed", "bf16", prompts, 128, args.new, 1, samples]
        cases.append(Case("generation", f"{name}, bf16", "tokens/s", peer, ours, figure, figure, decoding))
    return cases


def llama(args) -> list:
    """Decoding of one sequence; the whole call's prompt is left out on both sides."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)  # over a gigabyte of files
    folder = pathlib.Path(temporary.name)
    cases, figure = [], lambda reading: 1 / reading["decode_s"]
    # F16 is what llama.cpp's users take for 16 bits; ours has no f16, and reads as many bytes in bf16.
    for theirs, ours in (("bf16", "bf16"), ("f16", "bf16"), ("f32", "f32")):
        file = folder / f"{theirs}.gguf"
        run([args.bin / "speed_gguf", theirs, file])
        peer = [args.venv / "bin" / "python", HERE / "peer_llama.py", file, "--new", args.new, "--rounds", 1]
        command = [args.bin / "generate_speed", ours, 1, 128, args.new, 1]
        name = f"decoding, theirs {theirs}, ours {ours}"
        cases.append(Case("llama", name, "tokens/s", peer, command, figure, figure, decoding))
    return cases


SUITES = {"dpo": dpo, "reward": reward, "grpo": grpo, "generation": generation, "llama": llama}


def collect(args, cases: list, round_idx: int) -> list:
    records = []
    for case in cases:
        record = {"suite": case.suite, "round": round_idx, "case": case.name}
        record |= {"peer": measure(case.peer, args.wait), "ours": measure(case.ours, args.wait)}
        record["figures"] = [case.our_figure(record["ours"]), case.peer_figure(record["peer"])]
        print(f"round {round_idx} {case.name}: {record['figures']}", file=sys.stderr, flush=True)
        records.append(record)
    return records


def by_processor_time(row: dict) -> list:
    """Their processor time for our one: less is said by it on an idle machine, and more on one that others use."""
    times = [row[who].get("processor_s") for who in ("peer", "ours")]
    return [statistics.median(times[0]) / statistics.median(times[1])] if all(times) else []


def report(records: list, cases: list, machine: dict) -> list:
    """Sections of Markdown."""
    lines = [
        "| case | ours | peers | ratio | of processor time | ours, GB | peers, GB | ours in the best round |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        rows = [r for r in records if r.get("case") == case.name]
        ours, peers = zip(*(r["figures"] for r in rows))
        ratios = [r["figures"][0] / r["figures"][1] for r in rows]
        memory = [max((r[who].get("peak_rss_bytes", 0) for r in rows)) / 1e9 for who in ("ours", "peer")]
        best = max(rows, key=lambda r: r["figures"][0])["ours"]
        cells = [case.name, f"{spread(list(ours))} {case.unit}", f"{spread(list(peers))} {case.unit}", spread(ratios)]
        cells.append(spread([ratio for row in rows for ratio in by_processor_time(row)]))
        cells += [f"{gb:.2f}" if gb else "–" for gb in memory]
        lines.append(f"| {' | '.join([*cells, case.notes(best, machine) or '–'])} |")
    return [lines]


def systems(records: list) -> list:
    """What llama.cpp was built for: a build for other machines would be no peer."""
    found = dict.fromkeys(r["peer"]["system"].strip() for r in records if "system" in r.get("peer", {}))
    return [f"llama.cpp: {system}" for system in found]


def medians(machine_rounds: list) -> dict:
    keys = dict.fromkeys(key for one in machine_rounds for key in one)
    return {key: statistics.median([one[key] for one in machine_rounds if key in one]) for key in keys}

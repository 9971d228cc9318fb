"""One reading: a command run on a machine that is as idle as it gets, and how idle that was."""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time


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


def last_object(text: str) -> dict:
    """The reading of a program that may print logs before it: the JSON object that ends its output."""
    lines = text.strip().splitlines()
    for first in range(len(lines) - 1, -1, -1):
        if lines[first].startswith("{"):
            try:
                return json.loads("\n".join(lines[first:]))
            except json.JSONDecodeError:
                continue
    raise SystemExit(f"no JSON object at the end of:\n{text[-2000:]}")


def measure(command: list, wait_s: float, parse=last_object) -> dict:
    """A reading; how many cores others used meanwhile, and the processor time it took in all."""
    wait_until_idle(wait_s)
    start, busy, children = time.monotonic(), busy_s(), resource.getrusage(resource.RUSAGE_CHILDREN)
    text = run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    others = max(0.0, busy_s() - busy - ours) / (time.monotonic() - start)
    return {"others_cores": round(others, 2), "cpu_s": round(ours, 2), **parse(text)}


def spread(values: list) -> str:
    """Median, and smallest to largest."""
    if not values:
        return "–"
    middle = statistics.median(values)
    digits = 2 if max(values) < 20 else 0
    if max(values) < 1:
        digits = 3
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

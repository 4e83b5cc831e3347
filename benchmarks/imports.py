"""What it costs to start sdkit, in whole processes: `python benchmarks/imports.py`.

Each line is a fresh Python process, timed from outside, from its start to its end; the first line, a process that does
nothing, is what Python itself takes of every other one. The peers are timed in the same run, in turn, so that a busy
machine is busy for all. A process of sdkit that has torch loaded when it ends is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

COMMAND = "import sys; sys.argv = ['sdkit', {arguments}]; from sdkit.cli import main; main()"
NO_TORCH = "; import atexit, sys; atexit.register(lambda: 'torch' in sys.modules and os._exit(3))"


@dataclass
class Case:
    """A line of the table; ``budget`` is in milliseconds."""

    name: str
    code: str
    budget: float | None = None
    peer: bool = False


CASES = [
    Case("python, doing nothing", "pass"),
    Case("import sdkit", "import sdkit", 150),
    Case("sdkit --help", COMMAND.format(arguments="'--help'"), 300),
    Case("sdkit plugins", COMMAND.format(arguments="'plugins'"), 300),
    Case("import torch", "import torch", peer=True),
    Case("import diffusers", "import diffusers", peer=True),
    Case("diffusers' EulerDiscreteScheduler", "from diffusers import EulerDiscreteScheduler", peer=True),
]


def seconds(case: Case) -> float:
    """One process, from outside."""
    code = case.code if case.peer else f"import os{NO_TORCH}; {case.code}"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode == 3:
        raise SystemExit(f"{case.name} loaded torch.")
    if done.returncode:
        raise SystemExit(f"{case.name} failed:\n{done.stderr}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="processes per line; the peers get a third of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    times: dict[str, list[float]] = {case.name: [] for case in CASES}
    for run in range(options.runs + 1):  # The first warms the disk cache and is not counted.
        for case in CASES:
            if case.peer and run % 3:
                continue
            took = seconds(case)
            if run:
                times[case.name].append(took)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    rows = [
        {
            "case": case.name,
            "ms": round(medians[case.name], 1),
            "budget_ms": case.budget,
            "within": None if case.budget is None else medians[case.name] <= case.budget,
            "of_import_torch": round(medians[case.name] / medians["import torch"], 3),
            "of_import_diffusers": round(medians[case.name] / medians["import diffusers"], 3),
        }
        for case in CASES
    ]
    if options.json:
        print(json.dumps({"runs": options.runs, "load": os.getloadavg()[0], "rows": rows}, indent=2))
    else:
        print(f"median of {options.runs} processes, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'':36}{'ms':>8}  {'budget':>8}  {'of torch':>9}  {'of diffusers':>12}")
        for row in rows:
            budget = "" if row["budget_ms"] is None else f"{row['budget_ms']:.0f} {'ok' if row['within'] else 'OVER'}"
            ratios = f"{row['of_import_torch']:>9.3f}  {row['of_import_diffusers']:>12.3f}"
            print(f"{row['case']:36}{row['ms']:>8.1f}  {budget:>8}  {ratios}")
    if not all(row["within"] in (None, True) for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

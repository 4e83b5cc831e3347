"""What clips cost: `python benchmarks/frames.py`.

With the embedded model, one thread; the parts of a ratio take turns, so that other work falls on all alike:

- walk: processor time of a frame of a walk over 100 frames, over that of a picture of one request of as many pictures
  as the walk makes together (same steps and guidance, decoding included);
- batch: a frame of a walk that makes 2, 4, 8, 16 frames together, over one that makes them one by one;
- overlap: a clip is rendered and written, and both apart (wall time). How much of the shorter part is hidden behind
  the longer: 0 is one after the other, 1 is all of it. It needs a second core that is free;
- memory: the most a process holds that writes 2,000 frames, over one that writes 100.

Claims: walk at most 1.05, 8 together faster than one by one, at least half hidden, memory at most 1.05. Exit status 1
if one does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import sdkit

PROMPTS = "0: a fox | {half}: a pizza"
BATCH = 10  # divides 100
MEMORY = """
import resource, sys
from sdkit import Request, animate
from sdkit.testing import fake_pipeline
from PIL import Image
still = Request("a", image=Image.effect_noise((256, 256), 60).convert("RGB"))
animate("zoom", fake_pipeline(), still, frames=int(sys.argv[1]), fps=25).save(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def timed(function: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that a call takes."""
    began = clock()
    function()
    return clock() - began


def walk(pipe: Any, frames: int, batch: int, steps: int) -> sdkit.Clip:
    request = sdkit.Request(PROMPTS.format(half=frames // 2), seeds=(3,), steps=steps)
    return sdkit.animate(f"walk(batch={batch}, seeds=(1, 2))", pipe, request, frames=frames)


def rendered(pipe: Any, frames: int, batch: int, steps: int) -> None:
    for _ in walk(pipe, frames, batch, steps):
        pass


def write(writer: Any, frames: list[sdkit.Frame]) -> None:
    for frame in frames:
        writer.write(frame)
    writer.finish()


def measure_walk(pipe: Any, frames: int, steps: int, runs: int) -> dict[str, float]:
    """Least milliseconds of a frame and of a picture, and their ratio."""
    request = sdkit.Request("a fox", seeds=tuple(range(BATCH)), steps=steps)
    ours, alone, half = list[float](), list[float](), max(1, frames // BATCH // 2)
    rendered(pipe, BATCH, BATCH, 1)
    pipe(request)
    for _ in range(runs):
        # as many batches of pictures as the walk has, half of them before and half after it
        before = [timed(partial(pipe, request)) / BATCH for _ in range(half)]
        ours.append(timed(partial(rendered, pipe, frames, BATCH, steps)) / frames)
        after = [timed(partial(pipe, request)) / BATCH for _ in range(half)]
        alone.append(statistics.fmean([*before, *after]))
    return {"frame_ms": 1e3 * min(ours), "picture_ms": 1e3 * min(alone), "walk": min(ours) / min(alone)}


def measure_batches(pipe: Any, frames: int, steps: int, runs: int) -> dict[str, float]:
    """Milliseconds of a frame made one by one, and for each batch the share of it."""
    sizes = (1, 2, 4, 8, 16)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(runs):
        for size in sizes:
            found[size].append(timed(partial(rendered, pipe, frames, size, steps)) / frames)
    alone = found[1]
    ratios = {
        f"batch_{size}": statistics.median(one / two for one, two in zip(found[size], alone, strict=True))
        for size in sizes[1:]
    }
    return {"one_by_one_ms": 1e3 * statistics.median(alone), **ratios}


def measure_overlap(pipe: Any, frames: int, steps: int, runs: int, folder: Path) -> dict[str, float]:
    """Least seconds of rendering, writing and both, and the share of the shorter that is hidden."""
    clip = walk(pipe, frames, 2, steps) | "resize(width=512)"
    sink = sdkit.registry().make("frame-sink", "mp4")
    rows = list[tuple[float, float, float]]()
    for _ in range(runs):
        made = list[sdkit.Frame]()
        rendering = timed(partial(made.extend, clip), time.perf_counter)
        writer = sink.open(folder / "apart.mp4", clip.timeline, (512, 512), "{}")
        writing = timed(partial(write, writer, made), time.perf_counter)
        rows.append((rendering, writing, timed(lambda: clip.save(folder / "both.mp4", sink=sink), time.perf_counter)))
    rendering, writing, both = (min(column) for column in zip(*rows, strict=True))
    hidden = (rendering + writing - both) / min(rendering, writing)
    return {"rendering_s": rendering, "writing_s": writing, "both_s": both, "overlap": hidden}


def measure_memory(few: int, many: int, folder: Path) -> dict[str, float]:
    """Megabytes of a process that writes a few and many frames, and their ratio."""
    found = []
    for count in (few, many):
        command = [sys.executable, "-c", MEMORY, str(count), str(folder / "memory.mp4")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(int(done.stdout) / 1024)
    return {"few_mb": found[0], "many_mb": found[1], "memory": found[1] / found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="for a machine")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of each picture")
    parser.add_argument("--small", action="store_true", help="few frames, one run: whether it runs, not how fast")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs, steps, small = arguments.runs, arguments.steps, arguments.small
    if small:
        runs, steps = 1, 1
    pipe = sdkit.pipeline(sdkit.load("emoji"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {
            **measure_walk(pipe, 10 if small else 100, steps, runs),
            **measure_batches(pipe, 4 if small else 48, steps, runs),
            **measure_overlap(pipe, 4 if small else 48, steps, runs, folder),
            **measure_memory(60 if small else 100, 240 if small else 2000, folder),
        }
    claims = {
        "walk": figures["walk"] <= 1.05,
        "batch_8": figures["batch_8"] < 1,
        "overlap": figures["overlap"] >= 0.5,
        "memory": figures["memory"] <= 1.05,
    }
    if arguments.json:
        print(json.dumps({"figures": figures, "claims": claims}, indent=2))
    else:
        report(figures, claims)
    raise SystemExit(0 if all(claims.values()) else 1)


def report(figures: dict[str, float], claims: dict[str, bool]) -> None:
    texts = {
        "frame_ms": ("a frame of a walk, ms", ""),
        "picture_ms": ("a picture of a request, ms", ""),
        "walk": ("a frame over a picture", "at most 1.05"),
        "one_by_one_ms": ("frames one by one, ms each", ""),
        "batch_2": ("2 together, of that", ""),
        "batch_4": ("4 together", ""),
        "batch_8": ("8 together", "below 1"),
        "batch_16": ("16 together", ""),
        "rendering_s": ("rendering alone, s", ""),
        "writing_s": ("writing alone, s", ""),
        "both_s": ("both, s", ""),
        "overlap": ("share hidden", "at least 0.5"),
        "few_mb": ("memory of few frames, MB", ""),
        "many_mb": ("memory of many frames, MB", ""),
        "memory": ("many over few", "at most 1.05"),
    }
    for name, (text, claim) in texts.items():
        verdict = "" if name not in claims else "ok" if claims[name] else "NOT HELD"
        print(f"{text:28}{figures[name]:9.2f}  {claim} {verdict}".rstrip())


if __name__ == "__main__":
    main()

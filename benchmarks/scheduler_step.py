"""What one step of a solver costs without a network: `python benchmarks/scheduler_step.py`.

A latent of 1 x 4 x 64 x 64 in float32, 50 steps of Stable Diffusion's levels, one thread. The network is a function
that returns a tensor made beforehand, so what is left is the solver: for sdkit `Scheduler.step` with the denoiser's
``skip * x + out * answer``, for diffusers ``scale_model_input`` and ``step``. All run in turn in one process. Heun is
counted per evaluation on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import diffusers
import torch
from torch import Tensor

import sdkit
from sdkit.loop import evaluations

STEPS = 50
THEIRS: Any = diffusers  # It is untyped.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

Run = Callable[[], float]


def noise_like(seed: int) -> Tensor:
    return sdkit.AddressedNoise(seed).initial(torch.empty(1, 4, 64, 64))


def ours(scheduler: sdkit.Scheduler[Any]) -> Run:
    """A run that gives microseconds per evaluation."""
    schedule = sdkit.scaled_linear()
    grid = sdkit.Karras()(schedule, STEPS)
    start, answer, noise = noise_like(0) * grid[0].sigma, noise_like(1), sdkit.NoNoise()
    network = sdkit.NetworkDenoiser(lambda x, time, cond: answer, sdkit.Epsilon())
    calls = evaluations(scheduler, grid, start)
    assert calls is not None

    def denoise(x: Tensor, level: sdkit.Level) -> Tensor:
        return network(x, level, None)

    def run() -> float:
        x, state = start, scheduler.init(start, grid)
        began = time.perf_counter()
        for here, there in pairwise(grid):
            step = scheduler.step(denoise, x, here, there, state, noise)
            x, state = step.x, step.state
        return (time.perf_counter() - began) / calls * 1e6

    return run


def theirs(make: Callable[[], Any]) -> Run:
    answer, noise = noise_like(1), noise_like(0)

    def run() -> float:
        scheduler = make()  # It keeps a cursor: a new one for every run.
        scheduler.set_timesteps(STEPS)
        x = noise * scheduler.init_noise_sigma
        times = list(scheduler.timesteps)
        began = time.perf_counter()
        for t in times:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(answer, t, x, return_dict=False)[0]
        return (time.perf_counter() - began) / len(times) * 1e6

    return run


def cases() -> dict[str, tuple[Run, Run]]:
    return {
        "euler": (
            ours(sdkit.Euler()),
            theirs(lambda: THEIRS.EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True)),
        ),
        "ddim": (ours(sdkit.Ddim()), theirs(lambda: THEIRS.DDIMScheduler(**BETAS, clip_sample=False))),
        "heun": (ours(sdkit.Heun()), theirs(lambda: THEIRS.HeunDiscreteScheduler(**BETAS, use_karras_sigmas=True))),
        "dpmpp-2m": (
            ours(sdkit.DpmPP2M()),
            theirs(lambda: THEIRS.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help=f"runs of {STEPS} steps per line")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    # All of them in turn, so that a busy moment of the machine is shared; the first two rounds warm up.
    every = cases()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    with torch.inference_mode():
        for turn in range(options.runs + 2):
            for name, (mine, other) in every.items():
                pair = mine(), other()
                if turn >= 2:
                    times[name].append(pair)
    rows = []
    for name, pairs in times.items():
        us, their_us = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append({"scheduler": name, "sdkit_us": us, "diffusers_us": their_us, "times_faster": their_us / us})
    if options.json:
        print(json.dumps({"runs": options.runs, "load": os.getloadavg()[0], "rows": rows}, indent=2))
        return
    print(f"median of {options.runs} runs of {STEPS} steps, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':12}{'sdkit us':>10}{'diffusers us':>14}{'times faster':>14}")
    for row in rows:
        print(f"{row['scheduler']:12}{row['sdkit_us']:>10.1f}{row['diffusers_us']:>14.1f}{row['times_faster']:>14.1f}")


if __name__ == "__main__":
    main()

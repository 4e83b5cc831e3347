"""What one step of a solver costs without a network: `python benchmarks/scheduler_step.py`.

A latent of 1 x 4 x 64 x 64 in float32, 50 steps of Stable Diffusion's levels, one thread. The network is a function
that returns a tensor made beforehand, so what is left is the solver: for sdkit `Scheduler.step` with the denoiser's
``skip * x + out * answer``, for diffusers ``scale_model_input`` and ``step``. Noise is a tensor made beforehand on both
sides, too; what a draw costs is a line of its own. All run in turn in one process, all is processor time, so that what
else the machine does matters less, and all is counted per call of the network, of which methods with stages make
several per step.

The claim is the last line: over all methods the median is at least three times faster. Exit status 1 if it is not.
"""

from __future__ import annotations

import argparse
import importlib
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

STEPS = 50
CLAIM = 3.0
THEIRS: Any = diffusers  # It is untyped.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS: dict[str, Any] = {**BETAS, "use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}

Run = Callable[[], float]

# sdkit's name, theirs, its options; methods both have (the tests of parity say how far they are the same)
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("euler", "EulerDiscreteScheduler", KARRAS),
    ("euler-ancestral", "EulerAncestralDiscreteScheduler", BETAS),
    ("ddim", "DDIMScheduler", {**BETAS, "clip_sample": False}),
    ("ddpm", "DDPMScheduler", {**BETAS, "clip_sample": False}),
    ("heun", "HeunDiscreteScheduler", KARRAS),
    ("dpm-2", "KDPM2DiscreteScheduler", KARRAS),
    ("dpm-2-ancestral", "KDPM2AncestralDiscreteScheduler", KARRAS),
    ("dpmpp-2m", "DPMSolverMultistepScheduler", KARRAS),
    ("dpmpp-2m-sde", "DPMSolverMultistepScheduler", {**KARRAS, **SDE}),
    ("dpmpp-sde", "DPMSolverSDEScheduler", KARRAS),
    ("dpm-singlestep", "DPMSolverSinglestepScheduler", KARRAS),
    ("unipc", "UniPCMultistepScheduler", KARRAS),
    ("deis", "DEISMultistepScheduler", {**KARRAS, "solver_order": 3}),
    ("lms", "LMSDiscreteScheduler", KARRAS),
    ("ipndm", "IPNDMScheduler", {}),
    ("plms", "PNDMScheduler", {**BETAS, "skip_prk_steps": True}),
    ("sa-solver", "SASolverScheduler", {**KARRAS, "predictor_order": 3, "corrector_order": 4}),
    ("lcm", "LCMScheduler", {**BETAS, "original_inference_steps": STEPS}),
    ("tcd", "TCDScheduler", {**BETAS, "original_inference_steps": STEPS}),
)


def noise_like(seed: int) -> Tensor:
    return sdkit.AddressedNoise(seed).initial(torch.empty(1, 4, 64, 64))


FRESH = noise_like(2)


def ours(name: str) -> Run:
    """A run that gives microseconds per evaluation."""
    schedule, scheduler = sdkit.scaled_linear(), sdkit.registry().make("scheduler", name)
    grid = sdkit.Karras()(schedule, STEPS)
    start, answer = noise_like(0) * grid[0].sigma, noise_like(1)
    network = sdkit.NetworkDenoiser(lambda x, time, cond: answer, sdkit.Epsilon(), schedule)
    levels = []

    def counted(x: Tensor, level: sdkit.Level) -> Tensor:
        levels.append(level)
        return x

    def denoise(x: Tensor, level: sdkit.Level) -> Tensor:
        return network(x, level, None)

    def noise(like: Tensor, start: sdkit.Level, stop: sdkit.Level) -> Tensor:
        return FRESH

    for _ in sdkit.solve(scheduler, counted, start, grid, noise):
        pass
    calls = len(levels)

    def run() -> float:
        x, state = start, scheduler.init(start, grid)
        began = time.thread_time()
        for here, there in pairwise(grid):
            step = scheduler.step(denoise, x, here, there, state, noise)
            x, state = step.x, step.state
        return (time.thread_time() - began) / calls * 1e6

    return run


def theirs(name: str, options: dict[str, Any]) -> Run:
    answer, noise = noise_like(1), noise_like(0)
    make = getattr(THEIRS, name)
    module = importlib.import_module(make.__module__)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *args, **kwargs: FRESH  # type: ignore[attr-defined]

    def run() -> float:
        scheduler = make(**options)  # It keeps a cursor: a new one for every run.
        scheduler.set_timesteps(STEPS)
        scheduler.noise_sampler = lambda sigma, after: FRESH
        x = noise * scheduler.init_noise_sigma
        times = list(scheduler.timesteps)
        began = time.thread_time()
        for t in times:
            scheduler.scale_model_input(x, t)
            t.expand(x.shape[0])  # What its networks do first, and sdkit's denoiser does for them.
            x = scheduler.step(answer, t, x, return_dict=False)[0]
        return (time.thread_time() - began) / len(times) * 1e6

    return run


def draw_ours() -> float:
    noise, grid = sdkit.AddressedNoise(7), sdkit.Karras()(sdkit.scaled_linear(), STEPS)
    began = time.thread_time()
    for here, there in pairwise(grid):
        noise(FRESH, here, there)
    return (time.thread_time() - began) / STEPS * 1e6


def draw_theirs() -> float:
    generator = torch.Generator().manual_seed(7)
    began = time.thread_time()
    for _ in range(STEPS):
        torch.randn(FRESH.shape, generator=generator)
    return (time.thread_time() - began) / STEPS * 1e6


def cases() -> dict[str, tuple[Run, Run]]:
    runs = {name: (ours(name), theirs(other, options)) for name, other, options in METHODS}
    return {**runs, "(a draw)": (draw_ours, draw_theirs)}


def measure(runs: int) -> list[dict[str, Any]]:
    # All of them in turn, so that a busy moment of the machine is shared; the first two rounds warm up.
    every = cases()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    with torch.inference_mode():
        for turn in range(runs + 2):
            for name, (mine, other) in every.items():
                pair = mine(), other()
                if turn >= 2:
                    times[name].append(pair)
    rows = []
    for name, pairs in times.items():
        us, their_us = (statistics.median(column) for column in zip(*pairs, strict=True))
        # Of pairs run one after the other, so that a busy moment slows both.
        ratio = statistics.median(other / mine for mine, other in pairs)
        rows.append({"scheduler": name, "sdkit_us": us, "diffusers_us": their_us, "times_faster": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=31, help=f"runs of {STEPS} steps per line")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    THEIRS.utils.logging.set_verbosity_error()
    rows = measure(options.runs)
    median = statistics.median(row["times_faster"] for row in rows if not row["scheduler"].startswith("("))
    if options.json:
        about = {"runs": options.runs, "load": os.getloadavg()[0], "median": median, "claim": CLAIM}
        print(json.dumps({**about, "rows": rows}, indent=2))
    else:
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        print(f"medians of {options.runs} runs of {STEPS} steps, {load}")
        print(f"{'':16}{'sdkit us':>10}{'diffusers us':>14}{'times faster':>14}")
        for row in rows:
            print(
                f"{row['scheduler']:16}{row['sdkit_us']:>10.1f}{row['diffusers_us']:>14.1f}{row['times_faster']:>14.1f}"
            )
        print(f"median over {len(METHODS)} methods: {median:.2f} times faster (claimed: {CLAIM:g})")
    if median < CLAIM:
        raise SystemExit(f"sdkit's steps are {median:.2f} times faster than diffusers', not {CLAIM:g}")


if __name__ == "__main__":
    main()

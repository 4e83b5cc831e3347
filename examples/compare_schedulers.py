"""How far each scheduler is from the solution after n evaluations, on the embedded model.

The solution is 400 steps of Heun's method from the same noise. Prints one row per scheduler.

    python examples/compare_schedulers.py [PROMPT]
"""

from __future__ import annotations

import sys

import sdkit

BUDGETS = (8, 16, 32)


def main(prompt: str = "red apple, 3d style", *, reference_steps: int = 400) -> dict[str, list[float]]:
    """Root-mean-square distance in latents, by scheduler, for each budget of evaluations."""
    pipe = sdkit.pipeline(sdkit.load("emoji"), spacing="uniform-log-snr")
    solution = pipe(sdkit.Request(prompt, scheduler="heun", steps=reference_steps)).latents
    print(f"{'':10}" + "".join(f"{n:>10} evaluations" for n in BUDGETS))
    found: dict[str, list[float]] = {}
    for name in ("euler", "heun", "dpmpp-2m"):
        per_step = sdkit.registry().make("scheduler", name).traits.evaluations
        for n in BUDGETS:
            # a step of Heun's method costs two evaluations, its last one costs one
            latents = pipe(sdkit.Request(prompt, scheduler=name, steps=(n + per_step - 1) // per_step)).latents
            found.setdefault(name, []).append(float((latents - solution).square().mean().sqrt()))
        print(f"{name:10}" + "".join(f"{error:>22.4f}" for error in found[name]))
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])

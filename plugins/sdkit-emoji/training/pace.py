"""How long a training runs, and what is said and kept on the way.

It takes as many steps as are asked for, or as fit into some minutes; when it is resumed, as many as before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Mapping

import torch
from attrs import evolve
from common import Sharing, asked_to_stop
from torch import Tensor
from tqdm import tqdm

from sdkit_training import Objective, Plan, Training

__all__ = ["affordable", "follow", "paced"]


def affordable(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    plan: Plan,
    minutes: float,
    trial: int,
    muon: Collection[str] = (),
) -> int:
    """How many steps fit into ``minutes``, by making ``trial`` of them, at least 3; the parameters are put back."""
    before = {name: value.detach().clone() for name, value in parameters.items()}
    training = Training(parameters, objective, evolve(plan, steps=trial, average=None), muon=muon)
    elapsed = [progress.elapsed for progress in training.run()]
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(before[name])
    settled = elapsed[len(elapsed) // 3 :]  # the first ones are slower
    seconds: float = (settled[-1] - settled[0]) / (len(settled) - 1)
    return max(1, round(60 * minutes / seconds))


def paced(
    objective: Objective,
    parameters: Mapping[str, Tensor],
    plan: Plan,
    arguments: argparse.Namespace,
    *,
    trial: int,
    muon: Collection[str] = (),
) -> Plan:
    """The plan with its steps, which are kept in ``plan.json`` of ``--out``: a resumed run takes the same."""
    kept = arguments.out / "plan.json"
    if arguments.resume:
        plan = evolve(plan, steps=json.loads(kept.read_text(encoding="utf-8"))["steps"])
    elif arguments.minutes is not None:
        most = affordable(objective, parameters, plan, float(arguments.minutes), trial, muon)
        plan = evolve(plan, steps=min(plan.steps, most))
    kept.write_text(json.dumps({"steps": plan.steps}), encoding="utf-8")
    return plan


def follow(training: Training, keep: Callable[[float], str], *, minutes: float, share: bool = False) -> None:
    """Run a training to its end, or until SIGTERM.

    Args:
        training: What runs.
        keep: Writes what is to be kept, given the smoothed loss, and says what it has measured; called every so many
            minutes and at the end.
        minutes: Between two calls of it.
        share: One CPU thread only while other programs are busy.
    """
    stop, sharing = asked_to_stop(), Sharing(torch.get_num_threads()) if share else None
    first, smooth, saved = training.step, 0.0, time.monotonic()
    with tqdm(training.run(), total=training.plan.steps, initial=first, mininterval=10) as bar:
        for progress in bar:
            smooth = progress.loss if smooth == 0 else 0.99 * smooth + 0.01 * progress.loss
            stopped = stop()
            if sharing is not None:
                sharing.update()
            if stopped or progress.step == progress.steps or time.monotonic() >= saved + 60 * minutes:
                pace = (progress.step - first) / progress.elapsed
                said = keep(smooth)
                bar.write(
                    f"step {progress.step} seconds {progress.elapsed:.0f} steps/s {pace:.2f} loss {smooth:.4f} {said}"
                )
                saved = time.monotonic()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if stopped:
                break

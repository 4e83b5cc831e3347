"""How many steps a training takes: as many as are asked for, or as fit into some minutes; when resumed, as before."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import torch
from attrs import evolve
from torch import Tensor

from sdkit_training import Objective, Plan, Training

__all__ = ["affordable", "paced"]


def affordable(objective: Objective, parameters: Mapping[str, Tensor], plan: Plan, minutes: float, trial: int) -> int:
    """How many steps fit into ``minutes``, by making ``trial`` of them, at least 3; the parameters are put back."""
    before = {name: value.detach().clone() for name, value in parameters.items()}
    training = Training(parameters, objective, evolve(plan, steps=trial, average=None))
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
) -> Plan:
    """The plan with its steps, which are kept in ``plan.json`` of ``--out``: a resumed run takes the same."""
    kept = arguments.out / "plan.json"
    if arguments.resume:
        plan = evolve(plan, steps=json.loads(kept.read_text(encoding="utf-8"))["steps"])
    elif arguments.minutes is not None:
        plan = evolve(
            plan, steps=min(plan.steps, affordable(objective, parameters, plan, float(arguments.minutes), trial))
        )
    kept.write_text(json.dumps({"steps": plan.steps}), encoding="utf-8")
    return plan

"""What training a diffusion model needs: noising at random levels, targets, weights, averages, a loop to resume."""

from __future__ import annotations

from sdkit_training.average import Average
from sdkit_training.data import Example, fingerprint, load_images, read_folder
from sdkit_training.draws import normals, order, uniforms
from sdkit_training.levels import LogitNormal, Times, Uniform, times_for
from sdkit_training.loop import Objective, Plan, Progress, Training
from sdkit_training.losses import MinSnr, Plain, Weighting, losses, noised, targets
from sdkit_training.optimizer import Optimizer

__all__ = [
    "Average",
    "Example",
    "LogitNormal",
    "MinSnr",
    "Objective",
    "Optimizer",
    "Plain",
    "Plan",
    "Progress",
    "Times",
    "Training",
    "Uniform",
    "Weighting",
    "fingerprint",
    "load_images",
    "losses",
    "noised",
    "normals",
    "order",
    "read_folder",
    "targets",
    "times_for",
    "uniforms",
]

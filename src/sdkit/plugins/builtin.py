"""The core's own components, offered through the same door as everybody's."""

from __future__ import annotations

from sdkit.plugins.component import Component
from sdkit.plugins.hookspecs import hookimpl

__all__ = ["sdkit_components"]


@hookimpl
def sdkit_components() -> list[Component]:
    """Schedulers, spacings, schedules and parametrizations of the core."""
    return [
        Component(
            "scheduler",
            "euler",
            "sdkit.schedulers.euler:Euler",
            "Euler's method; first order, deterministic",
            aliases=("Euler", "k_euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        ),
        Component(
            "scheduler",
            "ddim",
            "sdkit.schedulers.ddim:Ddim",
            "DDIM; eta=1 is ancestral sampling",
            aliases=("DDIM", "DDIMScheduler"),
        ),
        Component(
            "scheduler",
            "heun",
            "sdkit.schedulers.heun:Heun",
            "Heun's method; second order, two evaluations per step",
            aliases=("Heun", "k_heun", "HeunDiscreteScheduler"),
        ),
        Component(
            "scheduler",
            "dpmpp-2m",
            "sdkit.schedulers.dpmpp:DpmPP2M",
            "DPM-Solver++(2M); second order, one evaluation per step",
            aliases=("DPM++ 2M", "dpmpp_2m", "k_dpmpp_2m", "DPMSolverMultistepScheduler"),
        ),
        Component(
            "spacing",
            "uniform",
            "sdkit.spacings:Uniform",
            "evenly spaced times, noisiest to cleanest trained level",
            aliases=("Uniform", "Normal", "normal", "linspace"),
        ),
        Component(
            "spacing",
            "trailing",
            "sdkit.spacings:Trailing",
            "evenly spaced times, noisiest level to clean",
            aliases=("Simple", "simple"),
        ),
        Component(
            "spacing",
            "karras",
            "sdkit.spacings:Karras",
            "Karras et al. 2022, dense near the clean end (rho=7)",
            aliases=("Karras", "ka", "k"),
        ),
        Component(
            "spacing",
            "uniform-log-snr",
            "sdkit.spacings:UniformLogSnr",
            "evenly spaced logarithm of sigma / alpha",
            aliases=("Exponential", "exponential"),
        ),
        Component("schedule", "linear", "sdkit.schedules:linear", "betas rising linearly (DDPM)"),
        Component("schedule", "scaled-linear", "sdkit.schedules:scaled_linear", "Stable Diffusion 1, 2 and XL"),
        Component("schedule", "cosine", "sdkit.schedules:cosine", "squared cosine (improved DDPM)"),
        Component("schedule", "edm", "sdkit.schedules:EdmSchedule", "variance exploding, time is sigma"),
        Component("schedule", "rectified-flow", "sdkit.schedules:RectifiedFlow", "straight lines, with shift"),
        Component("parametrization", "epsilon", "sdkit.parametrizations:Epsilon", "the network predicts noise"),
        Component("parametrization", "velocity", "sdkit.parametrizations:Velocity", "the network predicts velocity"),
        Component("parametrization", "flow", "sdkit.parametrizations:Flow", "the network predicts noise - picture"),
        Component("parametrization", "sample", "sdkit.parametrizations:Sample", "the network predicts the picture"),
        Component("parametrization", "edm", "sdkit.parametrizations:Edm", "EDM preconditioning"),
    ]

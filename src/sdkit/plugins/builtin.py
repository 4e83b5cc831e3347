"""The core's own components, offered through the same door as everybody's."""

from __future__ import annotations

from sdkit.plugins.component import Component
from sdkit.plugins.hookspecs import hookimpl

__all__ = ["sdkit_components"]

# kind, name, target, summary, aliases, labels (both separated by "; "), spacing that A1111 calls automatic
NAMED = (
    ("scheduler", "euler", "schedulers.euler:Euler", "Euler's method; first order, deterministic",
     "k_euler; flow euler", "a1111 = Euler; comfyui = euler; diffusers = EulerDiscreteScheduler; diffusers = "
     "FlowMatchEulerDiscreteScheduler; invokeai = euler; k-diffusion = sample_euler; sdcpp = euler", "uniform"),
    ("scheduler", "ddim", "schedulers.ddim:Ddim", "DDIM; eta=1 is ancestral sampling", "",
     "a1111 = DDIM # walks leading levels, whatever the schedule type; comfyui = ddim # on ddim_uniform; "
     "diffusers = DDIMScheduler; invokeai = ddim", "uniform"),
    ("scheduler", "heun", "schedulers.heun:Heun", "Heun's method; second order, two evaluations per step",
     "k_heun; flow heun", "a1111 = Heun; comfyui = heun; diffusers = HeunDiscreteScheduler; "
     "diffusers = FlowMatchHeunDiscreteScheduler # with variable='flow'; invokeai = heun; k-diffusion = sample_heun; "
     "sdcpp = heun", "uniform"),
    ("scheduler", "dpmpp-2m", "schedulers.dpmpp:DpmPP2M", "DPM-Solver++(2M); second order, one evaluation per step",
     "k_dpmpp_2m", "a1111 = DPM++ 2M; comfyui = dpmpp_2m; diffusers = DPMSolverMultistepScheduler; "
     "invokeai = dpmpp_2m; k-diffusion = sample_dpmpp_2m; sdcpp = dpm++2m; sdcpp ~ dpm++2mv2 # new weights", "karras"),
    ("spacing", "uniform", "spacings:Uniform", "evenly spaced times, noisiest to cleanest trained level",
     "linspace", 'a1111 = Uniform; a1111 = Normal; comfyui = normal; diffusers = timestep_spacing="linspace"; '
     "sdcpp = discrete", ""),
    ("spacing", "trailing", "spacings:Trailing", "evenly spaced times, noisiest level to clean", "",
     'a1111 = Simple # rounds times down; comfyui = simple # rounds times down; '
     'diffusers = timestep_spacing="trailing"; sdcpp = simple # rounds times down', ""),
    ("spacing", "karras", "spacings:Karras", "Karras et al. 2022, dense near the clean end (rho=7)", "ka; k",
     "a1111 = Karras; comfyui = karras; diffusers = use_karras_sigmas=True # tells the network rounded times; "
     "invokeai = _k # at the end of a scheduler's name; k-diffusion = get_sigmas_karras; sdcpp = karras", ""),
    ("spacing", "uniform-log-snr", "spacings:UniformLogSnr", "evenly spaced logarithm of sigma / alpha", "exp",
     "a1111 = Exponential; comfyui = exponential; diffusers = use_exponential_sigmas=True # tells the network rounded "
     "times; diffusers = use_lu_lambdas=True; k-diffusion = get_sigmas_exponential; sdcpp = exponential", ""),
)  # fmt: skip
OTHERS = (
    ("schedule", "linear", "schedules:linear", "betas rising linearly (DDPM)"),
    ("schedule", "scaled-linear", "schedules:scaled_linear", "Stable Diffusion 1, 2 and XL"),
    ("schedule", "cosine", "schedules:cosine", "squared cosine (improved DDPM)"),
    ("schedule", "edm", "schedules:EdmSchedule", "variance exploding, time is sigma"),
    ("schedule", "rectified-flow", "schedules:RectifiedFlow", "straight lines, with shift"),
    ("parametrization", "epsilon", "parametrizations:Epsilon", "the network predicts noise"),
    ("parametrization", "velocity", "parametrizations:Velocity", "the network predicts velocity"),
    ("parametrization", "flow", "parametrizations:Flow", "the network predicts noise - picture"),
    ("parametrization", "sample", "parametrizations:Sample", "the network predicts the picture"),
    ("parametrization", "edm", "parametrizations:Edm", "EDM preconditioning"),
    ("noise", "addressed-1", "noise:Addressed", "every draw has an address", "addressed", "", ""),
    ("noise", "torch", "interop.torchnoise:AsTorch", "in sequence, as torch's generator on the CPU draws"),
)


def _component(
    kind: str, name: str, target: str, summary: str, aliases: str = "", labels: str = "", automatic: str = ""
) -> Component:
    also, tools = (tuple(text.split("; ")) if text else () for text in (aliases, labels))
    return Component(kind, name, f"sdkit.{target}", summary, also, labels=tools, automatic=automatic)


@hookimpl
def sdkit_components() -> list[Component]:
    """Schedulers, spacings, schedules, parametrizations and sources of noise of the core."""
    return [_component(*row) for row in (*NAMED, *OTHERS)]

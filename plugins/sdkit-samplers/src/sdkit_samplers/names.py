"""What other tools write where sdkit has a scheduler and a spacing: classes with options, config files, A1111's texts.

Plain names are labels of the components (see `sdkit_samplers.plugin`); here is what takes reading. A diffusers class
with options, ``DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)``, and the mapping
in a ``scheduler_config.json`` are read by the same code, so they lead to the same pair. Imports no torch.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from sdkit import NoiseSchedule, ParameterError, UnknownComponent, registry

__all__ = ["DiffusersScheduler", "from_a1111", "from_diffusers", "read"]

Options = Mapping[str, Any]

CLASSES = {
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "LMSDiscreteScheduler": "lms",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm-2",
    "KDPM2AncestralDiscreteScheduler": "dpm-2-ancestral",
    "DPMSolverSDEScheduler": "dpmpp-sde",
    "DPMSolverSinglestepScheduler": "dpm-singlestep",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "EDMDPMSolverMultistepScheduler": "dpmpp-2m",
    "EDMEulerScheduler": "euler",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "plms",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis",
    "SASolverScheduler": "sa-solver",
    "IPNDMScheduler": "ipndm",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
}
"""Classes of diffusers and the sdkit scheduler each is without options."""

SOLVER_OPTIONS = {
    "algorithm_type", "solver_order", "solver_type", "predictor_order", "corrector_order", "variance_type", "eta",
    "stochastic_sampling",
}  # fmt: skip
SPACING_OPTIONS = {
    "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "use_lu_lambdas", "flow_shift",
    "shift", "use_dynamic_shifting", "timestep_spacing", "steps_offset", "sigma_schedule", "rho", "base_shift",
    "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type",
}  # fmt: skip
SCHEDULE_OPTIONS = {
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "sigma_min", "sigma_max", "sigma_data",
}  # fmt: skip
ANY = object()
OTHER_OPTIONS: dict[str, Any] = {
    "skip_prk_steps": ANY, "noise_sampler_seed": ANY, "set_alpha_to_one": ANY, "lower_order_final": ANY,
    "clip_sample_range": ANY, "dynamic_thresholding_ratio": ANY, "sample_max_value": ANY, "timestep_scaling": ANY,
    "original_inference_steps": 50, "clip_sample": False, "thresholding": False, "euler_at_final": False,
    "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf, "interpolation_type": "linear",
    "timestep_type": "discrete", "predict_x0": True, "disable_corrector": [], "solver_p": None, "tau_func": None,
    "invert_sigmas": False, "shift_terminal": None,
}  # fmt: skip
"""Options without a place in sdkit, and the value with which they change nothing (ANY: they never do, or only a little
at the last step, where sdkit's solvers go to clean)."""

SPACED = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "uniform-log-snr",
    "use_beta_sigmas": "beta-sigma",
    "use_lu_lambdas": "uniform-log-snr",
}
PARAMETRIZATIONS = {"epsilon": "epsilon", "v_prediction": "velocity", "sample": "sample", "flow_prediction": "flow"}

NONE: tuple[tuple[str, str, str], ...] = (
    ("scheduler", r"heun\+\+|heunpp2", "Heun++ is not offered; take heun or dpm-2"),
    ("scheduler", r".*cfg(\+\+|_pp).*", "CFG++ is a way of guidance, not a solver; take the solver's own name"),
    (
        "scheduler",
        r"res_2s",
        "a singlestep RES is not offered; take res-multistep or exp-heun, which are of order 2, too",
    ),
    ("scheduler", r"automatic", "the automatic scheduler is the one a model recommends; leave the name out"),
    ("spacing", r"karras[ _-]exponential", "its blend of karras and exponential is not published; take one of the two"),
    (
        "spacing",
        r"logit[ _-]normal",
        "a logit-normal distribution of times is for training; take flow-shift or uniform",
    ),
    ("spacing", r"automatic", "the automatic spacing belongs to a scheduler's name; name the scheduler, too"),
    ("spacing", r"turbo", "its times depend on the model; take trailing, which distilled models are sampled at"),
)
"""Kind, pattern of the name, and why sdkit has nothing of that name."""


def read(kind: str, text: str) -> tuple[str, str | None] | None:
    """What a text means that is no name of a component; the `vocabulary` of this package.

    Args:
        kind: ``"scheduler"`` or ``"spacing"``.
        text: A diffusers class, options may follow in parentheses; or a name that another tool knows.

    Returns:
        (scheduler, spacing) as sdkit writes them, the spacing None if no option names it; None for other texts.

    Raises:
        UnknownComponent: it is known to have no counterpart; says why and what to take.
        ParameterError: an option is unknown, or has a value that sdkit has no counterpart for.
    """
    for about, pattern, reason in NONE:
        if kind == about and re.fullmatch(pattern, text.strip(), re.IGNORECASE):
            raise UnknownComponent(f"There is no {kind} {text!r}: {reason}.")
    if kind != "scheduler":
        return None
    if text.strip().casefold() == "res_multistep_ancestral":
        return "res-multistep(eta=1.0)", None
    found = re.fullmatch(r"\s*(\w+Scheduler)\s*(\(.*\))?\s*", text, re.DOTALL)
    if found is None or found[1] not in CLASSES:
        return None
    options = _literals(text, found[2])
    for name, value in options.items():
        problem = _problem(name, value)
        if problem:
            raise ParameterError(f"{found[1]}: {problem}.")
    spacing = _spacing(found[1], options) if SPACING_OPTIONS & options.keys() else None
    return _solver(found[1], options), spacing


@frozen
class DiffusersScheduler:
    """What a scheduler config of diffusers says, in sdkit's names.

    Attributes:
        scheduler: Text for ``registry().make("scheduler", ...)``.
        spacing: Text for ``registry().make("spacing", ...)``.
        schedule: Text for ``registry().make("schedule", ...)``; empty if ``betas`` are given one by one.
        parametrization: Text for ``registry().make("parametrization", ...)``.
        zero_terminal_snr: Whether the schedule is rescaled to end without signal.
        betas: The schedule's betas, if the config lists them.
        notes: What the config asks for and sdkit does otherwise, one sentence each.
    """

    scheduler: str
    spacing: str
    schedule: str
    parametrization: str
    zero_terminal_snr: bool = False
    betas: tuple[float, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule the model was trained on."""
        from sdkit import DiscreteSchedule

        made = DiscreteSchedule(self.betas) if self.betas else registry().make("schedule", self.schedule)
        rescaled: NoiseSchedule = made.zero_terminal_snr() if self.zero_terminal_snr else made
        return rescaled


def from_diffusers(config: Options) -> DiffusersScheduler:
    """Reads the mapping of a ``scheduler_config.json``; an option that is missing has diffusers' default.

    Raises:
        UnknownComponent: its class has no counterpart in sdkit.
        ParameterError: an option that chooses the method or the schedule has a value that sdkit has not.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        known = ", ".join(sorted(CLASSES))
        raise UnknownComponent(f"There is no sdkit scheduler for the diffusers class {name!r}; known: {known}.")
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    stated = {"clip_sample": True, **options} if name in ("DDIMScheduler", "DDPMScheduler") else options
    notes = tuple(f"{problem}." for key, value in stated.items() if (problem := _problem(key, value)))
    betas = options.get("trained_betas")
    if options.get("use_dynamic_shifting") is True:
        notes += ("The shift depends on the picture's size; the spacing is that of the largest one.",)
    return DiffusersScheduler(
        scheduler=_solver(name, options),
        spacing=_spacing(name, options),
        schedule="" if betas is not None else _schedule(name, options),
        parametrization=_parametrization(name, options),
        zero_terminal_snr=options.get("rescale_betas_zero_snr") is True,
        betas=tuple(float(beta) for beta in betas) if betas is not None else (),
        notes=notes,
    )


def from_a1111(sampler: str, schedule_type: str | None = None, version: str | None = None) -> tuple[str, str]:
    """The pair that an A1111 ``parameters`` text means.

    Before 1.9 the schedule was part of the sampler's name, and a name without one meant uniform; since then it is an
    entry of its own, and a file without it means "Automatic": the sampler's own default.

    Args:
        sampler: The text's "Sampler".
        schedule_type: Its "Schedule type", if it has one.
        version: Its "Version", if it has one; without it the text is taken to be from before 1.9.

    Returns:
        (scheduler, spacing), texts for ``registry().make``.

    Raises:
        UnknownComponent, ParameterError: as ``registry().pair``.
    """
    if schedule_type is None:
        numbers = re.search(r"(?:^|v)(\d+)\.(\d+)", version or "")
        schedule_type = "Automatic" if numbers and (int(numbers[1]), int(numbers[2])) >= (1, 9) else None
    scheduler, spacing = registry().pair(sampler, schedule_type)
    return scheduler, "uniform" if spacing is None else spacing


def _literals(text: str, brackets: str | None) -> dict[str, Any]:
    """The options in the parentheses of a class, literals only."""
    if brackets is None:
        return {}
    try:
        call = ast.parse(f"f{brackets}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ParameterError(
            f"{text!r} cannot be read; write Class(option=value, ...) with numbers, quoted text, True, False or None."
        ) from None


def _problem(name: str, value: object) -> str:
    """Why an option cannot be followed; empty if it can, or changes nothing."""
    if name in SOLVER_OPTIONS | SPACING_OPTIONS | SCHEDULE_OPTIONS:
        return ""
    if name not in OTHER_OPTIONS:
        return f"the option {name!r} is unknown to sdkit"
    harmless = OTHER_OPTIONS[name]
    same = harmless is ANY or value is None or value == harmless or (isinstance(harmless, list) and not value)
    return "" if same else f"{name}={value!r} has no counterpart in sdkit, which does as with {name}={harmless!r}"


def _spell(name: str, **parameters: Any) -> str:
    inside = ", ".join(f"{key}={value!r}" for key, value in parameters.items())
    return f"{name}({inside})" if inside else name


def _refuse(name: str, option: str, value: object, take: str) -> ParameterError:
    return ParameterError(f"{name} with {option}={value!r} has no counterpart in sdkit; take {take}.")


def _solver(name: str, options: Options) -> str:
    """The scheduler's text, from the class and the options that choose the method."""
    plain = CLASSES[name]
    if name in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return _multistep(name, options)
    order = options.get("solver_order", 2)
    if name == "DPMSolverSinglestepScheduler":
        if options.get("algorithm_type", "dpmsolver++") != "dpmsolver++":
            raise _refuse(name, "algorithm_type", options["algorithm_type"], "'dpmsolver++'")
        if order not in (1, 2, 3):
            raise _refuse(name, "solver_order", order, "1, 2 or 3")
        return {1: "ddim", 2: plain, 3: _spell(plain, order=3)}[order]
    if name == "UniPCMultistepScheduler":
        variant = options.get("solver_type", "bh2")  # diffusers reads the names of DPM-Solver's types as bh2
        if variant not in ("bh1", "bh2", "midpoint", "heun", "logrho"):
            raise _refuse(name, "solver_type", variant, "'bh1' or 'bh2'")
        plain = "unipc-bh1" if variant == "bh1" else plain
        return plain if order == 2 else _spell(plain, order=order)
    if name == "DEISMultistepScheduler":
        return plain if order == 3 else _spell(plain, order=order)
    if name == "SASolverScheduler":
        orders = options.get("predictor_order", 2), options.get("corrector_order", 2)
        return plain if orders == (3, 3) else _spell(plain, predictor=orders[0], corrector=orders[1])
    if name == "DDPMScheduler":
        variance = options.get("variance_type", "fixed_small")
        if variance not in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None):
            raise _refuse(name, "variance_type", variance, "'fixed_small' or 'fixed_large'")
        return _spell(plain, variance="large") if str(variance).startswith("fixed_large") else plain
    if name in ("DDIMScheduler", "TCDScheduler"):
        share = {"eta" if name == "DDIMScheduler" else "gamma": float(options["eta"])} if "eta" in options else {}
        return _spell(plain, **share, **({"schedule": _schedule(name, options)} if name == "TCDScheduler" else {}))
    if name == "FlowMatchHeunDiscreteScheduler":
        return _spell(plain, variable="flow")
    return "lcm" if options.get("stochastic_sampling") is True else plain


def _multistep(name: str, options: Options) -> str:
    algorithm = options.get("algorithm_type", "dpmsolver++")
    order, form = options.get("solver_order", 2), options.get("solver_type", "midpoint")
    if algorithm not in ("dpmsolver++", "sde-dpmsolver++"):
        raise _refuse(name, "algorithm_type", algorithm, "'dpmsolver++' or 'sde-dpmsolver++'")
    if order not in (1, 2, 3):
        raise _refuse(name, "solver_order", order, "1, 2 or 3")
    if form not in ("midpoint", "heun", "bh1", "bh2", "logrho"):  # diffusers reads the last three as midpoint
        raise _refuse(name, "solver_type", form, "'midpoint' or 'heun'")
    heun = form == "heun" and order == 2
    if algorithm == "dpmsolver++":
        return {1: "ddim", 2: "dpmpp-2m-sde-heun(eta=0.0)" if heun else "dpmpp-2m", 3: "dpmpp-3m"}[order]
    return {1: "ddim(eta=1.0)", 2: "dpmpp-2m-sde-heun" if heun else "dpmpp-2m-sde", 3: "dpmpp-3m-sde"}[order]


def _spacing(name: str, options: Options) -> str:
    """The spacing's text, from the options that choose the levels and the class's default."""
    for option, ours in SPACED.items():
        if options.get(option) is True:
            return ours
    if name.startswith("FlowMatch") or options.get("use_flow_sigmas") is True:
        return _shifted(name, options)
    if name.startswith("EDM"):
        if options.get("sigma_schedule", "karras") == "exponential":
            return "uniform-log-snr"
        return "karras" if options.get("rho", 7.0) == 7 else _spell("karras", rho=float(options["rho"]))
    if name in ("LCMScheduler", "TCDScheduler"):
        return "lcm"  # whatever timestep_spacing says
    usual = "leading" if name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler") else "linspace"
    chosen = options.get("timestep_spacing", usual)
    if chosen not in ("linspace", "leading", "trailing"):
        raise _refuse(name, "timestep_spacing", chosen, "'linspace', 'leading' or 'trailing'")
    offset = options.get("steps_offset", 0)
    if chosen == "leading":
        return "leading" if offset == 1 else _spell("leading", offset=offset)
    return "uniform" if chosen == "linspace" else "trailing"


def _shifted(name: str, options: Options) -> str:
    if options.get("use_dynamic_shifting") is True:
        for option, value in (("base_shift", 0.5), ("max_shift", 1.15), ("base_image_seq_len", 256)):
            if options.get(option, value) != value:
                raise _refuse(name, option, options[option], f"{value}, or a static shift")
        return _spell("flow-shift", tokens=options.get("max_image_seq_len", 4096))
    shift = float(options.get("shift", options.get("flow_shift", 1.0)))
    return "trailing" if shift == 1 else _spell("flow-shift", shift=shift)


def _schedule(name: str, options: Options) -> str:
    """The noise schedule's text: what the model was trained on, before any shift."""
    if name.startswith("FlowMatch") or options.get("use_flow_sigmas") is True:
        return "rectified-flow"
    if name.startswith("EDM"):
        ends = {"sigma_min": 0.002, "sigma_max": 80.0}
        return _spell("edm", **{k: float(options[k]) for k, v in ends.items() if options.get(k, v) != v})
    # each class has defaults of its own for what Stable Diffusion's configs always state
    latent = name in ("LCMScheduler", "TCDScheduler", "DPMSolverSDEScheduler", "HeunDiscreteScheduler")
    start, stop = (0.00085, 0.012) if latent or name.startswith("KDPM2") else (0.0001, 0.02)
    usual = "scaled_linear" if name in ("LCMScheduler", "TCDScheduler") else "linear"
    kind = options.get("beta_schedule", usual)
    usuals = {"linear": ("linear", 0.0001, 0.02), "scaled_linear": ("scaled-linear", 0.00085, 0.012)}
    steps = options.get("num_train_timesteps", 1000)
    counted = {} if steps == 1000 else {"steps": steps}
    if kind == "squaredcos_cap_v2":
        return _spell("cosine", **counted)
    if kind not in usuals:
        raise _refuse(name, "beta_schedule", kind, "'linear', 'scaled_linear' or 'squaredcos_cap_v2'")
    ours, first, last = usuals[kind]
    given = {"start": options.get("beta_start", start), "stop": options.get("beta_end", stop)}
    ends = {key: float(given[key]) for key, value in (("start", first), ("stop", last)) if given[key] != value}
    return _spell(ours, **ends, **counted)


def _parametrization(name: str, options: Options) -> str:
    if name.startswith("FlowMatch"):
        return "flow"
    if name.startswith("EDM"):
        if options.get("prediction_type", "epsilon") != "epsilon":
            raise _refuse(name, "prediction_type", options["prediction_type"], "'epsilon'")
        data = float(options.get("sigma_data", 0.5))
        return "edm" if data == 0.5 else _spell("edm", sigma_data=data)
    said = options.get("prediction_type", "epsilon")
    if said not in PARAMETRIZATIONS:
        raise _refuse(name, "prediction_type", said, ", ".join(map(repr, PARAMETRIZATIONS)))
    return PARAMETRIZATIONS[said]

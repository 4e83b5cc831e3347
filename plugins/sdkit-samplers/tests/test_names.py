"""Names of samplers and schedules in other tools: every row of the design page, written down here on its own."""

from __future__ import annotations

import json
import math
import os
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import Mixture, latents

from sdkit import (
    AddressedNoise,
    AmbiguousComponent,
    GridError,
    Karras,
    ParameterError,
    Registry,
    UnknownComponent,
    registry,
    scaled_linear,
    solve,
)
from sdkit_samplers import names, plugin

REGISTRY = Registry.of({"samplers": plugin})
ROOT = Path(__file__).parents[3]
SD, DATA = scaled_linear(), Mixture()
THEIRS: Any = diffusers

# One row per sampler of the page: what sdkit calls it, the spacing of A1111's "Automatic" (None where A1111 lacks it),
# then its names in A1111 (with aliases), k-diffusion, ComfyUI, diffusers, InvokeAI and sd.cpp.
SAMPLERS: list[tuple[str, str | None, list[str]]] = [
    ("euler", "uniform", ["Euler", "k_euler", "sample_euler", "euler", "EulerDiscreteScheduler"]),
    ("euler-ancestral", "uniform", ["Euler a", "k_euler_a", "k_euler_ancestral", "sample_euler_ancestral",
        "euler_ancestral", "EulerAncestralDiscreteScheduler", "euler_a"]),
    ("lms", "uniform", ["LMS", "k_lms", "sample_lms", "lms", "LMSDiscreteScheduler"]),
    ("heun", "uniform", ["Heun", "k_heun", "sample_heun", "heun", "HeunDiscreteScheduler"]),
    ("dpm-2", "karras", ["DPM2", "k_dpm_2", "sample_dpm_2", "dpm_2", "KDPM2DiscreteScheduler", "kdpm_2", "dpm2"]),
    ("dpm-2-ancestral", "karras", ["DPM2 a", "k_dpm_2_a", "sample_dpm_2_ancestral", "dpm_2_ancestral",
        "KDPM2AncestralDiscreteScheduler", "kdpm_2_a"]),
    ("dpm-fast", "uniform", ["DPM fast", "k_dpm_fast", "sample_dpm_fast", "dpm_fast"]),
    ("dpm-adaptive", "uniform", ["DPM adaptive", "k_dpm_ad", "sample_dpm_adaptive", "dpm_adaptive"]),
    ("dpmpp-2s-ancestral", "karras", ["DPM++ 2S a", "k_dpmpp_2s_a", "sample_dpmpp_2s_ancestral", "dpmpp_2s_ancestral",
        "dpm++2s_a"]),
    ("dpm-singlestep", None, ["DPMSolverSinglestepScheduler", "DPMSolverSinglestepScheduler(solver_order=2)",
        "dpmpp_2s"]),
    ("dpmpp-2m", "karras", ["DPM++ 2M", "k_dpmpp_2m", "sample_dpmpp_2m", "dpmpp_2m", "dpm++2m", "dpm++2mv2",
        'DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", '
        'final_sigmas_type="zero")', "DPMSolverMultistepScheduler"]),
    ("dpmpp-sde", "karras", ["DPM++ SDE", "k_dpmpp_sde", "sample_dpmpp_sde", "dpmpp_sde", "dpmpp_sde_gpu",
        "DPMSolverSDEScheduler", "DPMSolverSDEScheduler(noise_sampler_seed=7)"]),
    ("dpmpp-2m-sde", "uniform-log-snr", ["DPM++ 2M SDE", "k_dpmpp_2m_sde", "sample_dpmpp_2m_sde", "dpmpp_2m_sde",
        "dpmpp_2m_sde_gpu", "dpm++2m_sde", "dpm++2m_sde_bt", 'DPMSolverMultistepScheduler(algorithm_type='
        '"sde-dpmsolver++", solver_order=2, solver_type="midpoint")']),
    ("dpmpp-2m-sde-heun", "uniform-log-snr", ["DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun",
        "dpmpp_2m_sde_heun_gpu", "sample_dpmpp_2m_sde(solver_type='heun')",
        'DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_type="heun")']),
    ("dpmpp-3m-sde", "uniform-log-snr", ["DPM++ 3M SDE", "k_dpmpp_3m_sde", "sample_dpmpp_3m_sde", "dpmpp_3m_sde",
        "dpmpp_3m_sde_gpu", 'DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)']),
    ("dpmpp-3m", None, ["dpmpp_3m", "DPMSolverMultistepScheduler(solver_order=3)"]),
    ("restart", "karras", ["Restart", "restart"]),
    ("ddim", "uniform", ["DDIM", "ddim", "DDIMScheduler"]),
    ("plms", "uniform", ["PLMS", "PNDMScheduler(skip_prk_steps=True)", "PNDMScheduler", "pndm"]),
    ("unipc", "uniform", ["UniPC", "uni_pc_bh2", 'UniPCMultistepScheduler(solver_type="bh2")', "unipc"]),
    ("unipc-bh1", None, ["uni_pc", 'UniPCMultistepScheduler(solver_type="bh1")']),
    ("lcm", "uniform", ["LCM", "k_lcm", "lcm", "LCMScheduler"]),
    ("tcd", "uniform", ["TCD", "tcd"]),
    ("tcd(schedule='scaled-linear')", None, ["TCDScheduler"]),
    ("tcd(gamma=0.5, schedule='scaled-linear')", None, ["TCDScheduler(eta=0.5)"]),
    ("deis", None, ["deis", "DEISMultistepScheduler(solver_order=3)"]),
    ("deis(order=2)", None, ["DEISMultistepScheduler", "DEISMultistepScheduler(solver_order=2)"]),
    ("ipndm", None, ["ipndm", "ipndm_v", "IPNDMScheduler", "iPNDM"]),
    ("ddpm", None, ["ddpm", "DDPMScheduler", "DDPM"]),
    ("sa-solver", None, ["SA-Solver", "sa_solver", "sa_solver_pece",
        "SASolverScheduler(predictor_order=3, corrector_order=3)"]),
    ("sa-solver(predictor=2, corrector=2)", None, ["SASolverScheduler"]),
    ("er-sde", None, ["ER-SDE", "er_sde"]),
    ("res-multistep", None, ["RES", "res_multistep"]),
    ("res-multistep(eta=1.0)", None, ["res_multistep_ancestral"]),
    ("seeds-2", None, ["seeds_2"]),
    ("seeds-3", None, ["seeds_3"]),
    ("gradient-estimation", None, ["gradient_estimation", "euler_ge"]),
    ("exp-heun", None, ["exp_heun_2_x0"]),
    ("exp-heun-sde", None, ["exp_heun_2_x0_sde"]),
    ("euler", "uniform", ["flow euler", "FlowMatchEulerDiscreteScheduler"]),
    ("heun(variable='flow')", None, ["FlowMatchHeunDiscreteScheduler"]),
    ("heun", "uniform", ["flow heun"]),
]  # fmt: skip

# Names that hold scheduler and spacing.
PAIRS = [
    ("Euler Karras", "euler", "karras"), ("euler+karras", "euler", "karras"), ("euler_k", "euler", "karras"),
    ('EulerDiscreteScheduler(use_karras_sigmas=True, timestep_spacing="linspace")', "euler", "karras"),
    ('EulerDiscreteScheduler(timestep_spacing="linspace", steps_offset=0)', "euler", "uniform"),
    ("LMS Karras", "lms", "karras"), ("k_lms_ka", "lms", "karras"), ("lms_k", "lms", "karras"),
    ("LMSDiscreteScheduler(use_karras_sigmas=True)", "lms", "karras"), ("heun_k", "heun", "karras"),
    ("HeunDiscreteScheduler(use_karras_sigmas=True)", "heun", "karras"), ("DPM2 Karras", "dpm-2", "karras"),
    ("k_dpm_2_ka", "dpm-2", "karras"), ("kdpm_2_k", "dpm-2", "karras"), ("kdpm_2_a_k", "dpm-2-ancestral", "karras"),
    ("KDPM2DiscreteScheduler(use_karras_sigmas=True)", "dpm-2", "karras"),
    ("DPM2 a Karras", "dpm-2-ancestral", "karras"), ("DPM++ 2S a Karras", "dpmpp-2s-ancestral", "karras"),
    ("k_dpmpp_2s_a_ka", "dpmpp-2s-ancestral", "karras"), ("dpmpp_2s_k", "dpm-singlestep", "karras"),
    ("DPM++ 2M Karras", "dpmpp-2m", "karras"), ("k_dpmpp_2m_ka", "dpmpp-2m", "karras"),
    ("dpmpp_2m+karras", "dpmpp-2m", "karras"), ("dpm++2m+karras", "dpmpp-2m", "karras"),
    ("dpmpp_2m_k", "dpmpp-2m", "karras"),
    ('DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", '
     'final_sigmas_type="zero", use_karras_sigmas=True)', "dpmpp-2m", "karras"),
    ("DPM++ SDE Karras", "dpmpp-sde", "karras"), ("dpmpp_sde_k", "dpmpp-sde", "karras"),
    ("DPMSolverSDEScheduler(noise_sampler_seed=0, use_karras_sigmas=True)", "dpmpp-sde", "karras"),
    ("DPM++ 2M SDE Karras", "dpmpp-2m-sde", "karras"), ("dpmpp_2m_sde_k", "dpmpp-2m-sde", "karras"),
    ("DPM++ 2M SDE Exponential", "dpmpp-2m-sde", "uniform-log-snr"),
    ("k_dpmpp_2m_sde_exp", "dpmpp-2m-sde", "uniform-log-snr"),
    ('DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_exponential_sigmas=True)', "dpmpp-2m-sde",
     "uniform-log-snr"),
    ("DPM++ 2M SDE Heun Karras", "dpmpp-2m-sde-heun", "karras"),
    ("k_dpmpp_2m_sde_heun_exp", "dpmpp-2m-sde-heun", "uniform-log-snr"),
    ("DPM++ 3M SDE Karras", "dpmpp-3m-sde", "karras"),
    ("DPM++ 3M SDE Exponential", "dpmpp-3m-sde", "uniform-log-snr"), ("dpmpp_3m_k", "dpmpp-3m", "karras"),
    ("DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)", "ddim", "leading"),
    ("ddim_trailing", "ddim", "trailing"), ("unipc_k", "unipc", "karras"), ("deis_k", "deis", "karras"),
    ('UniPCMultistepScheduler(solver_type="bh1", use_karras_sigmas=True)', "unipc-bh1", "karras"),
    ("LCM SGM Uniform", "lcm", "sgm-uniform"), ("euler+flux", "euler", "flow-shift"),
    ("FlowMatchEulerDiscreteScheduler(shift=3.0)", "euler", "flow-shift(shift=3.0)"),
    ("FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)", "euler", "flow-shift(tokens=4096)"),
    ("UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0)", "unipc", "flow-shift(shift=5.0)"),
    ('DPMSolverMultistepScheduler(timestep_spacing="leading", steps_offset=0)', "dpmpp-2m", "leading(offset=0)"),
    ("EulerDiscreteScheduler(use_beta_sigmas=True)", "euler", "beta-sigma"),
]  # fmt: skip

SPACINGS = [
    ("uniform", ["Uniform", "Normal", "normal", "discrete", 'timestep_spacing="linspace"', "linspace"]),
    ("leading", ["DDIM", "ddim_uniform", "leading", 'timestep_spacing="leading", steps_offset=1']),
    ("trailing", ["Simple", "simple", "trailing", 'timestep_spacing="trailing"']),
    ("sgm-uniform", ["SGM Uniform", "sgm_uniform"]),
    ("karras", ["Karras", "karras", "use_karras_sigmas=True"]),
    ("uniform-log-snr", ["Exponential", "exponential", "use_exponential_sigmas=True"]),
    ("polyexponential", ["Polyexponential", "polyexponential"]),
    ("beta-sigma", ["Beta", "use_beta_sigmas=True"]),
    ("beta", ["beta"]),
    ("align-your-steps", ["Align Your Steps", "AlignYourStepsScheduler", "ays", "AysSchedules"]),
    ("kl-optimal", ["KL Optimal", "kl_optimal"]),
    ("linear-quadratic", ["linear_quadratic"]),
    ("flow-shift", ["flow_shift", "ModelSamplingSD3", "ModelSamplingFlux", "flux", "use_flow_sigmas=True"]),
    ("table", ["gits"]),
    ("smoothstep", ["smoothstep"]),
    ("bong-tangent", ["bong_tangent"]),
    ("lcm", ["lcm"]),
]

NONE = [
    "Heun++", "heunpp2", "DDIM CFG++", "euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_2s",
    "res_multistep_cfg_pp", "Automatic",
]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "automatic", "name"), [(o, a, name) for o, a, texts in SAMPLERS for name in texts]
)  # fmt: skip
def test_every_sampler_of_the_page_answers(ours: str, automatic: str | None, name: str) -> None:
    scheduler, spacing = REGISTRY.pair(name)
    assert spacing is None
    assert REGISTRY.make("scheduler", scheduler) == REGISTRY.make("scheduler", ours)
    if automatic is not None:
        assert REGISTRY.pair(name, "Automatic")[1] == automatic


@pytest.mark.parametrize(("name", "scheduler", "spacing"), PAIRS)
def test_every_pair_of_the_page_answers(name: str, scheduler: str, spacing: str) -> None:
    assert REGISTRY.pair(name) == (scheduler, spacing)
    assert REGISTRY.pair(name, "Automatic") == (scheduler, spacing)
    assert REGISTRY.pair(name, spacing) == (scheduler, spacing)
    with pytest.raises(ParameterError, match=r"names the spacing .*; leave 'polyexponential\(rho=3\)' out"):
        REGISTRY.pair(name, "polyexponential(rho=3)")


@pytest.mark.parametrize(("ours", "name"), [(ours, name) for ours, texts in SPACINGS for name in texts])
def test_every_schedule_of_the_page_answers(ours: str, name: str) -> None:
    assert REGISTRY.find("spacing", name).component.name == ours


@pytest.mark.parametrize("name", NONE)
def test_what_sdkit_lacks_says_what_to_take(name: str) -> None:
    with pytest.raises(UnknownComponent, match=r"no scheduler .*: .*[;,] ?.*(take|leave)"):
        REGISTRY.pair(name)


@pytest.mark.parametrize("name", ["Karras Exponential", "karras_exponential", "logit_normal", "turbo", "Automatic"])
def test_spacings_sdkit_lacks_say_what_to_take(name: str) -> None:
    with pytest.raises(UnknownComponent, match=r"no spacing .*: .*[;,] (take|name)"):
        REGISTRY.make("spacing", name)


def test_gits_asks_for_its_table() -> None:
    with pytest.raises(ParameterError, match="'table' needs file"):
        REGISTRY.make("spacing", "gits")


def test_beta_is_told_apart_by_case_alone() -> None:
    with pytest.raises(AmbiguousComponent, match="samplers:beta and samplers:beta-sigma"):
        REGISTRY.find("spacing", "BETA")


@pytest.mark.parametrize("kind", ["scheduler", "spacing"])
def test_no_name_belongs_to_two_components(kind: str) -> None:
    owners: dict[str, set[str]] = {}
    for entry in REGISTRY.entries(kind):
        for name in entry.names:
            owners.setdefault(name.casefold(), set()).add(entry.component.name)
    shared = {name: found for name, found in owners.items() if len(found) > 1}
    assert shared == ({} if kind == "scheduler" else {"beta": {"beta", "beta-sigma"}})


LABELS = [
    (e, *label) for kind in ("scheduler", "spacing") for e in REGISTRY.entries(kind) for label in e.component.known_as
]


@pytest.mark.parametrize(("entry", "tool", "fidelity", "name", "remark"), LABELS, ids=[x[3] for x in LABELS])
def test_every_label_leads_back_to_its_component(entry: Any, tool: str, fidelity: str, name: str, remark: str) -> None:
    if entry.component.kind == "spacing":
        assert REGISTRY.find("spacing", name) == entry
        return
    text, spacing = REGISTRY.pair(name)
    assert spacing is None
    found = REGISTRY.find("scheduler", text.split("(")[0] if text.split("(")[0] == entry.component.name else text)
    assert found == entry
    made = REGISTRY.make("scheduler", text)
    assert REGISTRY.pair(REGISTRY.spell("scheduler", made) or "")[1] is None


def test_automatic_spacings_exist() -> None:
    for entry in REGISTRY.entries("scheduler"):
        assert REGISTRY.find("spacing", entry.component.automatic).component.name == entry.component.automatic


def test_automatic_is_read_in_any_case_and_after_a_full_name_of_both() -> None:
    assert REGISTRY.pair("DPM++ 2M", "automatic") == ("DPM++ 2M", "karras")
    assert REGISTRY.pair("dpmpp-2m", "AUTOMATIC") == ("dpmpp-2m", "karras")
    assert REGISTRY.pair("ddim(eta=0.5)", "Automatic") == ("ddim(eta=0.5)", "uniform")
    assert REGISTRY.pair("DPM++ 2M Karras", "Karras") == ("dpmpp-2m", "Karras")
    assert REGISTRY.pair("Euler", None) == ("Euler", None)


@pytest.mark.parametrize(
    ("sampler", "schedule_type", "version", "pair"),
    [
        ("DPM++ 2M", "Automatic", "v1.9.4", ("DPM++ 2M", "karras")),
        ("DPM++ 2M", "Automatic", None, ("DPM++ 2M", "karras")),
        ("DPM++ 2M", None, "v1.10.1", ("DPM++ 2M", "karras")),
        ("DPM++ 2M", None, "v1.9.0", ("DPM++ 2M", "karras")),
        ("DPM++ 2M", None, "f2.0.1v1.10.1-previous-635-gf5330788", ("DPM++ 2M", "karras")),
        ("DPM++ 2M", None, "f0.0.17v1.8.0rc-latest", ("DPM++ 2M", "uniform")),
        ("DPM++ 2M", None, "v1.8.0", ("DPM++ 2M", "uniform")),
        ("DPM++ 2M", None, None, ("DPM++ 2M", "uniform")),
        ("DPM++ 2M Karras", None, "v1.6.0", ("dpmpp-2m", "karras")),
        ("DPM++ 2M", "Karras", "v1.9.0", ("DPM++ 2M", "Karras")),
        ("DPM++ 3M SDE", "Automatic", "v1.9.0", ("DPM++ 3M SDE", "uniform-log-snr")),
        ("Euler a", "Automatic", "v1.9.0", ("Euler a", "uniform")),
        ("Euler a", "Beta", "v1.10.0", ("Euler a", "Beta")),
    ],
)
def test_an_a1111_file_means(
    sampler: str, schedule_type: str | None, version: str | None, pair: tuple[str, str]
) -> None:
    assert names.from_a1111(sampler, schedule_type, version) == pair


# Configs as diffusers writes them for published models.
SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD21 = {
    "_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": False,
    "steps_offset": 1, "trained_betas": None, "skip_prk_steps": True,
}  # fmt: skip
SDXL = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0, "prediction_type": "epsilon"}
CONFIGS: list[tuple[dict[str, Any], tuple[str, str, str, str]]] = [
    (SD15, ("plms", "leading", "scaled-linear", "epsilon")),
    (SD21, ("ddim", "leading", "scaled-linear", "velocity")),
    (SDXL, ("euler", "leading", "scaled-linear", "epsilon")),
    (SD3, ("euler", "flow-shift(shift=3.0)", "rectified-flow", "flow")),
    (EDM, ("euler", "karras", "edm", "edm(sigma_data=1.0)")),
    ({"_class_name": "LCMScheduler"}, ("lcm", "lcm", "scaled-linear", "epsilon")),
    ({"_class_name": "TCDScheduler"}, ("tcd(schedule='scaled-linear')", "lcm", "scaled-linear", "epsilon")),
    ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": False},
     ("ddpm(variance='large')", "leading(offset=0)", "linear", "epsilon")),
    ({"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "solver_order": 3},
     ("unipc(order=3)", "uniform", "cosine", "epsilon")),
    ({"_class_name": "HeunDiscreteScheduler"}, ("heun", "uniform", "linear(start=0.00085, stop=0.012)", "epsilon")),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CONFIGS, ids=[str(c["_class_name"]) for c, _ in CONFIGS])
def test_a_scheduler_config_of_diffusers_is_read(config: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    found = names.from_diffusers(json.loads(json.dumps(config)))
    assert (found.scheduler, found.spacing, found.schedule, found.parametrization) == expected
    assert found.notes == ()
    for kind in ("scheduler", "spacing", "schedule", "parametrization"):
        assert REGISTRY.make(kind, getattr(found, kind)) is not None


@pytest.mark.parametrize("config", [SD15, SD21, SDXL, {"_class_name": "DDPMScheduler", "clip_sample": False}])
def test_the_schedule_of_a_config_is_the_schedule_of_the_class(config: dict[str, Any]) -> None:
    theirs = getattr(THEIRS, config["_class_name"]).from_config(config).alphas_cumprod.numpy()
    for rescaled in (False, True):
        if rescaled and config["_class_name"] == "PNDMScheduler":
            continue
        given = {**config, "rescale_betas_zero_snr": rescaled}
        if rescaled:
            theirs = getattr(THEIRS, config["_class_name"]).from_config(given).alphas_cumprod.numpy()
        schedule = names.from_diffusers(given).noise_schedule()
        ours = [schedule.level(t).alpha ** 2 for t in range(1000)]
        # EulerDiscreteScheduler keeps a little signal at the end, so that its sigma stays finite
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


def test_betas_given_one_by_one_are_the_schedule() -> None:
    betas = [float(b) for b in np.linspace(1e-4, 0.03, 50)]
    found = names.from_diffusers({"_class_name": "DDIMScheduler", "clip_sample": False, "trained_betas": betas})
    assert (found.schedule, found.betas) == ("", tuple(betas))
    assert found.noise_schedule().train_steps == 50


def test_what_a_config_asks_for_and_sdkit_does_otherwise_is_noted() -> None:
    found = names.from_diffusers({"_class_name": "DDIMScheduler", "thresholding": True, "wild": 3})
    assert len(found.notes) == 3
    assert all(
        any(word in note for note in found.notes) for word in ("clip_sample=True", "thresholding=True", "'wild'")
    )
    dynamic = names.from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True})
    assert dynamic.spacing == "flow-shift(tokens=4096)"
    assert "size" in dynamic.notes[0]


CHOICES = st.fixed_dictionaries(
    {
        "_class_name": st.sampled_from(
            ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
        )
    },
    optional={
        "solver_order": st.sampled_from([1, 2, 3]),
        "use_karras_sigmas": st.booleans(),
        "use_exponential_sigmas": st.booleans(),
        "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
        "steps_offset": st.sampled_from([0, 1]),
        "lower_order_final": st.booleans(),
        "num_train_timesteps": st.just(1000),
    },
)


@given(CHOICES)
def test_text_and_config_lead_to_the_same_pair(config: dict[str, Any]) -> None:
    options = {key: value for key, value in config.items() if key != "_class_name"}
    text = f"{config['_class_name']}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    found = names.from_diffusers(config)
    scheduler, spacing = REGISTRY.pair(text)
    assert scheduler == found.scheduler
    stated = {"use_karras_sigmas", "use_exponential_sigmas", "timestep_spacing", "steps_offset"} & options.keys()
    assert spacing == (found.spacing if stated else None)
    assert REGISTRY.pair(scheduler, spacing) == (scheduler, spacing)
    # options in another order say the same
    back = ", ".join(f"{key}={value!r}" for key, value in reversed(options.items()))
    assert REGISTRY.pair(f"{config['_class_name']}({back})") == (scheduler, spacing)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("DPMSolverMultistepScheduler(use_karas_sigmas=True)", "the option 'use_karas_sigmas' is unknown"),
        ("DPMSolverMultistepScheduler(algorithm_type='dpmsolver')", "take 'dpmsolver\\+\\+' or"),
        ("DPMSolverMultistepScheduler(solver_order=4)", "take 1, 2 or 3"),
        ("DPMSolverMultistepScheduler(solver_type='bh3')", "take 'midpoint' or 'heun'"),
        ("DPMSolverMultistepScheduler(thresholding=True)", "thresholding=True has no counterpart"),
        ("DPMSolverMultistepScheduler(final_sigmas_type='sigma_min')", "final_sigmas_type='sigma_min' has no"),
        ("EulerDiscreteScheduler(timestep_spacing='even')", "take 'linspace', 'leading' or 'trailing'"),
        ("DDPMScheduler(variance_type='fixed_smal')", "take 'fixed_small' or"),
        ("DDIMScheduler(seed)", "cannot be read"),
        ("DDIMScheduler(steps_offset=one)", "cannot be read"),
    ],
)
def test_options_without_a_counterpart_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        REGISTRY.pair(text)


def test_a_class_without_a_counterpart_is_unknown() -> None:
    with pytest.raises(UnknownComponent, match="'RePaintScheduler'; known: DDIMScheduler"):
        names.from_diffusers({"_class_name": "RePaintScheduler"})
    with pytest.raises(UnknownComponent, match="no scheduler 'RePaintScheduler'"):
        REGISTRY.pair("RePaintScheduler(eta=0.0)")


def test_the_names_load_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, sdkit; r = sdkit.registry(); assert all(p.ok for p in r.plugins if p.name == 'samplers'); "
        "assert r.pair('LMSDiscreteScheduler(use_karras_sigmas=True)') == ('lms', 'karras'); "
        "assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "SDKIT_PLUGINS": "samplers"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_the_page_is_what_the_command_prints() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "names_page.py"))["page"]()
    assert (ROOT / "docs" / "names.md").read_text(encoding="utf-8") == made, "run python tools/names_page.py"


# --- what the names stand for ---


def run_text(text: str, grid: Any, noise: Any = None) -> list[torch.Tensor]:
    x = DATA.start(grid[0], latents(shape=(4, 5)))
    scheduler = registry().make("scheduler", text)
    return [step.x for step in solve(scheduler, DATA, x, grid, noise or AddressedNoise((1, 2)))]


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("times", [[999, 759, 499, 259], [999, 959, 499, 38, 19], [900, 7]])
def test_tcd_with_a_schedule_is_the_authors(gamma: float, times: list[int]) -> None:
    """The same numbers as diffusers' TCDScheduler, but for its last step, which stops at time 0 instead of clean."""
    theirs = THEIRS.TCDScheduler()
    theirs.alphas_cumprod = torch.tensor([SD.level(t).alpha ** 2 for t in range(1000)], dtype=torch.float64)
    theirs.set_timesteps(timesteps=times)
    grid = (*(SD.level(t) for t in times), SD.clean)
    noise = AddressedNoise((1, 2))
    x = DATA.start(grid[0], latents(shape=(4, 5)))
    ours = run_text(f"tcd(gamma={gamma}, schedule='scaled-linear')", grid, noise)
    for i, (level, after) in enumerate(pairwise(grid[:-1])):
        epsilon = (x - level.alpha * DATA(x, level)) / level.sigma
        drawn = noise(x, level, after)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *_, z=drawn, **__: z)
            x = theirs.step(epsilon, theirs.timesteps[i], x, eta=gamma).prev_sample
        assert float((x - ours[i]).abs().max()) < 1e-6


def test_tcd_of_another_level_in_between_is_another() -> None:
    grid = Karras()(SD, 6)
    one, other = (run_text(text, grid)[-2] for text in ("tcd", "tcd(schedule='scaled-linear')"))
    assert float((one - other).abs().max()) > 1e-3


def test_tcd_refuses_a_schedule_that_is_none() -> None:
    with pytest.raises(UnknownComponent, match="no schedule 'scaled'"):
        REGISTRY.make("scheduler", "tcd(schedule='scaled')")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
@pytest.mark.parametrize(
    "options", [{"solver_type": "heun"}, {"solver_order": 1}, {"solver_order": 2}, {"lower_order_final": False}]
)
def test_a_class_with_options_makes_the_numbers_of_its_text(options: dict[str, Any]) -> None:
    grid = Karras()(SD, 20)
    text = f"DPMSolverMultistepScheduler({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    theirs = THEIRS.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options
    )
    theirs.set_timesteps(20)
    theirs.sigmas = torch.tensor([level.noise_to_signal for level in grid], dtype=torch.float64)
    theirs.timesteps = torch.arange(20, 0, -1)
    theirs.set_begin_index(0)
    x = DATA.start(grid[0], latents(shape=(4, 5)))
    ours = run_text(REGISTRY.pair(text)[0], grid)
    for i, level in enumerate(grid[:-1]):
        x = theirs.step((x - level.alpha * DATA(x, level)) / level.sigma, theirs.timesteps[i], x).prev_sample
        assert float((x - ours[i]).abs().max()) < 1e-5


@pytest.mark.parametrize("of", ["karras", "uniform", "polyexponential(rho=2)"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_without_the_penultimate_level(of: str, steps: int) -> None:
    """A1111's definition: n + 1 sigmas and 0 are made, and the last of the n + 1 is left out."""
    full = REGISTRY.make("spacing", of)(SD, steps + 1)
    spacing = REGISTRY.make("spacing", f"drop-penultimate(of={of!r})")
    assert spacing(SD, steps) == (*full[:steps], SD.clean)
    assert REGISTRY.spell("spacing", spacing) == (
        f"drop-penultimate(of={of!r})" if of != "karras" else "drop-penultimate"
    )


def test_a_shortened_spacing_starts_where_the_other_does() -> None:
    assert REGISTRY.make("spacing", "drop-penultimate").starts_noisiest
    assert not REGISTRY.make("spacing", "drop-penultimate(of='leading')").starts_noisiest
    with pytest.raises(UnknownComponent, match="no spacing 'nothing'"):
        REGISTRY.make("spacing", "drop-penultimate(of='nothing')")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 49, 50])
def test_lcm_times_are_those_of_diffusers(steps: int) -> None:
    theirs = THEIRS.LCMScheduler()
    theirs.set_timesteps(steps)
    assert [level.t for level in REGISTRY.make("spacing", "lcm")(SD, steps)[:-1]] == theirs.timesteps.tolist()


def test_lcm_times_are_finite_in_number() -> None:
    with pytest.raises(GridError, match="at 50 times: at most that many steps, not 51"):
        REGISTRY.make("spacing", "lcm")(SD, 51)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_smoothstep_times(steps: int) -> None:
    found = [level.t for level in REGISTRY.make("spacing", "smoothstep")(SD, steps)[:-1]]
    assert found == [round((3 * u**2 - 2 * u**3) * 999) for u in (1 - i / steps for i in range(steps))]


def test_bong_tangent_has_the_values_of_its_formula() -> None:
    """Ten steps: twelve places, the first seven to the middle, five from there; both steepest at the seam."""
    grid = REGISTRY.make("spacing", "bong-tangent")(SD, 10)
    high, low = SD.noisiest.noise_to_signal, SD.cleanest.noise_to_signal
    middle, slope = (high + low) / 2, 0.2 / (12 / 40)

    def place(x: float, pivot: float, last: float, start: float, stop: float) -> float:
        value, top, bottom = (2 / math.pi * math.atan(-slope * (y - pivot)) + 1 for y in (x, 0, last))
        return (value - bottom) / (top - bottom) * (start - stop) + stop

    expected = [place(x, 7, 6, high, middle) for x in range(6)] + [place(x, 0, 4, middle, low) for x in range(4)]
    assert [level.noise_to_signal for level in grid[:-1]] == pytest.approx(expected, rel=1e-9)

"""What sdkit reads at discovery: the samplers and spacings of this package. Imports neither torch nor numpy."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]

# name, target, summary, names in other tools
SCHEDULERS = (
    ("euler-churn", "churn:EulerChurn", "Euler with churn (Karras et al. 2022)", ()),
    ("heun-churn", "churn:HeunChurn", "Heun with churn, the stochastic sampler of Karras et al. 2022", ()),
    (
        "euler-ancestral",
        "stochastic:EulerAncestral",
        "Euler with ancestral noise",
        ("Euler a", "euler_ancestral", "k_euler_a", "k_euler_ancestral", "euler_a", "EulerAncestralDiscreteScheduler"),
    ),
    ("dpm-2", "singlestep:Dpm2", "DPM-Solver-2; second order", ("DPM2", "dpm_2", "k_dpm_2", "KDPM2DiscreteScheduler")),
    (
        "dpm-2-ancestral",
        "singlestep:Dpm2Ancestral",
        "DPM-Solver-2 with ancestral noise",
        ("DPM2 a", "dpm_2_ancestral", "k_dpm_2_a", "KDPM2AncestralDiscreteScheduler"),
    ),
    ("dpm-fast", "adaptive:DpmFast", "DPM-Solver-3, fast variant", ("DPM fast", "dpm_fast", "k_dpm_fast")),
    (
        "dpm-adaptive",
        "adaptive:DpmAdaptive",
        "DPM-Solver with its own step control",
        ("DPM adaptive", "dpm_adaptive", "k_dpm_ad"),
    ),
    (
        "dpmpp-2s-ancestral",
        "singlestep:DpmPP2SAncestral",
        "DPM-Solver++(2S) with ancestral noise",
        ("DPM++ 2S a", "dpmpp_2s_ancestral", "k_dpmpp_2s_a"),
    ),
    ("dpmpp-3m", "exponential:DpmPP3M", "DPM-Solver++(3M); third order, one evaluation per step", ("dpmpp_3m",)),
    (
        "dpmpp-sde",
        "singlestep:DpmPPSde",
        "DPM-Solver++ for the SDE, one stage inside the step",
        ("DPM++ SDE", "dpmpp_sde", "dpmpp_sde_gpu", "k_dpmpp_sde", "DPMSolverSDEScheduler"),
    ),
    (
        "dpmpp-2m-sde",
        "exponential:DpmPP2MSde",
        "DPM-Solver++(2M) for the SDE; solver='heun' for the other form",
        ("DPM++ 2M SDE", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"),
    ),
    (
        "dpmpp-3m-sde",
        "exponential:DpmPP3MSde",
        "DPM-Solver++(3M) for the SDE",
        ("DPM++ 3M SDE", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde"),
    ),
    (
        "dpm-singlestep",
        "singlestep:DpmSinglestep",
        "DPM-Solver++(2S) or, with order=3, (3S)",
        ("DPMSolverSinglestepScheduler", "dpmpp_2s"),
    ),
    ("unipc", "unipc:UniPC", "UniPC, order 1 to 4, bh1 or bh2", ("UniPC", "uni_pc_bh2", "UniPCMultistepScheduler")),
    ("deis", "adams:Deis", "DEIS in log sigma, order 1 to 4", ("DEIS", "DEISMultistepScheduler")),
    ("lms", "adams:Lms", "linear multistep, order 1 to 4", ("LMS", "k_lms", "LMSDiscreteScheduler")),
    ("ipndm", "adams:Ipndm", "fixed Adams-Bashforth weights", ("iPNDM", "IPNDMScheduler")),
    ("plms", "adams:Plms", "the sampler Stable Diffusion was released with", ("PLMS", "pndm", "PNDMScheduler")),
    ("ddpm", "stochastic:Ddpm", "DDPM, small or large variance", ("DDPM", "DDPMScheduler")),
    ("lcm", "stochastic:Lcm", "multistep consistency sampling, for distilled models", ("LCM", "LCMScheduler")),
    ("tcd", "stochastic:Tcd", "trajectory consistency sampling, for distilled models", ("TCD",)),
    ("restart", "restart:Restart", "Heun with restarts into the noise", ("Restart",)),
    (
        "sa-solver",
        "sasolver:SASolver",
        "stochastic Adams predictor and corrector",
        ("SA-Solver", "sa_solver", "SASolverScheduler"),
    ),
    ("er-sde", "ersde:ErSde", "extended reverse-time SDE, up to three stages", ("ER-SDE", "er_sde")),
    ("res-multistep", "exponential:ResMultistep", "refined exponential solver, multistep", ("RES", "res_multistep")),
    ("seeds-2", "singlestep:Seeds2", "two stages of the SDE along one path of noise", ("seeds_2",)),
    ("seeds-3", "singlestep:Seeds3", "three stages of the SDE along one path of noise", ("seeds_3",)),
    (
        "dpmpp-2m-sde-heun",
        "factories:dpmpp_2m_sde_heun",
        "dpmpp-2m-sde with solver='heun'",
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "k_dpmpp_2m_sde_heun"),
    ),
    ("unipc-bh1", "factories:unipc_bh1", "unipc with variant='bh1'", ("uni_pc",)),
    ("exp-heun-sde", "factories:exp_heun_sde", "exponential Heun for the SDE", ("exp_heun_2_x0_sde",)),
    ("exp-heun", "factories:exp_heun", "exponential Heun; eta for its SDE", ("exp_heun_2_x0",)),
    (
        "gradient-estimation",
        "estimation:GradientEstimation",
        "Euler with the noise extrapolated",
        ("gradient_estimation", "euler_ge"),
    ),
)  # fmt: skip

SPACINGS = (
    ("leading", "Leading", "times 1 + i (T // n), as DDIM", ("DDIM uniform", "ddim_uniform")),
    ("sgm-uniform", "SgmUniform", "the first n of n + 1 even times", ("SGM Uniform", "sgm_uniform")),
    ("polyexponential", "Polyexponential", "a power of the position in log sigma (rho=1)", ("Polyexponential",)),
    ("beta", "Beta", "times at quantiles of a beta distribution (ComfyUI's)", ()),
    ("beta-sigma", "BetaSigma", "sigmas at quantiles of a beta distribution (A1111's)", ("Beta",)),
    ("align-your-steps", "AlignYourSteps", "optimised tables", ("Align Your Steps", "AlignYourSteps", "ays")),
    ("kl-optimal", "KlOptimal", "even angles arctan sigma", ("KL Optimal", "kl_optimal")),
    ("linear-quadratic", "LinearQuadratic", "small even steps, then quadratic ones (Mochi)", ("linear_quadratic",)),
    ("flow-shift", "FlowShift", "trailing times of a flow moved toward noise", ("flow_shift",)),
    ("table", "Table", "levels from a JSON file of sigmas (GITS and the like)", ("gits",)),
)  # fmt: skip


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    schedulers = [
        Component("scheduler", name, f"sdkit_samplers.{target}", summary, aliases)
        for name, target, summary, aliases in SCHEDULERS
    ]
    spacings = [
        Component("spacing", name, f"sdkit_samplers.spacings:{target}", summary, aliases)
        for name, target, summary, aliases in SPACINGS
    ]
    return schedulers + spacings

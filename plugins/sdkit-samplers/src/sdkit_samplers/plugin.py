"""What sdkit reads at discovery: the samplers and spacings of this package. Imports neither torch nor numpy."""

from __future__ import annotations

from sdkit import Component, hookimpl

__all__ = ["sdkit_components"]

DROPS = "drops the last level before clean: drop-penultimate(of=...)"
HALF = "half the quadratic term there"

# name, target, summary, names it also has, what other tools call it (both separated by "; "), and for schedulers the
# spacing that A1111's "Automatic" means. "=": the same method; "~": related, gives another result.
SCHEDULERS = (
    ("euler-churn", "churn:EulerChurn", "Euler with churn (Karras et al. 2022)", "",
     "k-diffusion = sample_euler(s_churn=10) # churn=10, and so on", ""),
    ("heun-churn", "churn:HeunChurn", "Heun with churn, the stochastic sampler of Karras et al. 2022", "",
     "k-diffusion = sample_heun(s_churn=10) # churn=10, and so on", ""),
    ("euler-ancestral", "stochastic:EulerAncestral", "Euler with ancestral noise", "k_euler_a; k_euler_ancestral",
     "a1111 = Euler a; comfyui = euler_ancestral; diffusers = EulerAncestralDiscreteScheduler; invokeai = euler_a; "
     "k-diffusion = sample_euler_ancestral; sdcpp = euler_a", ""),
    ("dpm-2", "singlestep:Dpm2", "DPM-Solver-2; second order", "k_dpm_2",
     f"a1111 = DPM2 # {DROPS}; comfyui = dpm_2 # {DROPS}; diffusers ~ KDPM2DiscreteScheduler # drops none; "
     "invokeai ~ kdpm_2 # drops none; k-diffusion = sample_dpm_2; sdcpp = dpm2", "karras"),
    ("dpm-2-ancestral", "singlestep:Dpm2Ancestral", "DPM-Solver-2 with ancestral noise", "k_dpm_2_a",
     f"a1111 = DPM2 a # {DROPS}; comfyui = dpm_2_ancestral # {DROPS}; diffusers ~ KDPM2AncestralDiscreteScheduler # "
     "drops none; invokeai ~ kdpm_2_a # drops none; k-diffusion = sample_dpm_2_ancestral", "karras"),
    ("dpm-fast", "adaptive:DpmFast", "DPM-Solver-3, fast variant", "k_dpm_fast",
     "a1111 = DPM fast; comfyui = dpm_fast; k-diffusion = sample_dpm_fast", ""),
    ("dpm-adaptive", "adaptive:DpmAdaptive", "DPM-Solver with its own step control", "k_dpm_ad",
     "a1111 = DPM adaptive; comfyui = dpm_adaptive; k-diffusion = sample_dpm_adaptive", ""),
    ("dpmpp-2s-ancestral", "singlestep:DpmPP2SAncestral", "DPM-Solver++(2S) with ancestral noise", "k_dpmpp_2s_a",
     "a1111 = DPM++ 2S a; comfyui = dpmpp_2s_ancestral; k-diffusion = sample_dpmpp_2s_ancestral; sdcpp = dpm++2s_a",
     "karras"),
    ("dpmpp-3m", "exponential:DpmPP3M", "DPM-Solver++(3M); third order, one evaluation per step", "",
     f"diffusers ~ DPMSolverMultistepScheduler(solver_order=3) # {HALF}, so of order 2; "
     "invokeai ~ dpmpp_3m # as diffusers", ""),
    ("dpmpp-sde", "singlestep:DpmPPSde", "DPM-Solver++ for the SDE, one stage inside the step", "k_dpmpp_sde",
     "a1111 = DPM++ SDE; comfyui = dpmpp_sde; comfyui = dpmpp_sde_gpu; diffusers = DPMSolverSDEScheduler; "
     "invokeai = dpmpp_sde; k-diffusion = sample_dpmpp_sde", "karras"),
    ("dpmpp-2m-sde", "exponential:DpmPP2MSde", "DPM-Solver++(2M) for the SDE; solver='heun' for the other form",
     "k_dpmpp_2m_sde", "a1111 = DPM++ 2M SDE; comfyui = dpmpp_2m_sde; comfyui = dpmpp_2m_sde_gpu; diffusers = "
     "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++') # in law; invokeai = dpmpp_2m_sde # in law; "
     "k-diffusion = sample_dpmpp_2m_sde; sdcpp = dpm++2m_sde # in law; sdcpp = dpm++2m_sde_bt", "uniform-log-snr"),
    ("dpmpp-3m-sde", "exponential:DpmPP3MSde", "DPM-Solver++(3M) for the SDE", "k_dpmpp_3m_sde",
     f"a1111 ~ DPM++ 3M SDE # {HALF}, and it {DROPS}; comfyui ~ dpmpp_3m_sde # {HALF}; "
     f"comfyui ~ dpmpp_3m_sde_gpu # {HALF}; diffusers ~ DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', "
     f"solver_order=3) # a term has the wrong sign; k-diffusion ~ sample_dpmpp_3m_sde # {HALF}", "uniform-log-snr"),
    ("dpm-singlestep", "singlestep:DpmSinglestep", "DPM-Solver++(2S) or, with order=3, (3S)", "",
     "diffusers = DPMSolverSinglestepScheduler; invokeai = dpmpp_2s # the ODE's, not A1111's 2S a", ""),
    ("unipc", "unipc:UniPC", "UniPC, order 1 to 4, bh1 or bh2", "",
     "a1111 = UniPC # its settings start at variant='bh1', order=3; comfyui = uni_pc_bh2; "
     "diffusers = UniPCMultistepScheduler; invokeai = unipc", ""),
    ("deis", "adams:Deis", "DEIS in log sigma, order 1 to 4", "DEISMultistepScheduler",
     "comfyui = deis; diffusers = DEISMultistepScheduler(solver_order=3) # without options of order 2; "
     "invokeai = deis # of order 2: deis(order=2)", ""),
    ("lms", "adams:Lms", "linear multistep, order 1 to 4", "k_lms",
     "a1111 = LMS; comfyui = lms; diffusers = LMSDiscreteScheduler; invokeai = lms; k-diffusion = sample_lms; "
     "sdcpp = lms", ""),
    ("ipndm", "adams:Ipndm", "fixed Adams-Bashforth weights", "",
     "comfyui = ipndm; comfyui ~ ipndm_v # weights for uneven steps there, as in lms; diffusers ~ IPNDMScheduler # on "
     "levels of its own; sdcpp = ipndm; sdcpp ~ ipndm_v # weights for uneven steps there, as in lms", ""),
    ("plms", "adams:Plms", "the sampler Stable Diffusion was released with", "PNDMScheduler",
     "a1111 = PLMS # walks leading levels, whatever the schedule type; diffusers = PNDMScheduler(skip_prk_steps=True); "
     "invokeai = pndm", ""),
    ("ddpm", "stochastic:Ddpm", "DDPM, small or large variance", "",
     "comfyui = ddpm; diffusers = DDPMScheduler; invokeai = ddpm", ""),
    ("lcm", "stochastic:Lcm", "multistep consistency sampling, for distilled models", "k_lcm",
     "a1111 = LCM; comfyui = lcm; diffusers = LCMScheduler; invokeai = lcm; sdcpp = lcm", ""),
    ("tcd", "stochastic:Tcd", "trajectory consistency sampling, for distilled models", "",
     "a1111 = TCD # with schedule='scaled-linear' the authors' levels; diffusers = TCDScheduler # as "
     "tcd(schedule='scaled-linear'); invokeai = tcd # as tcd(schedule='scaled-linear'); sdcpp = tcd # likewise", ""),
    ("restart", "restart:Restart", "Heun with restarts into the noise", "", "a1111 = Restart", "karras"),
    ("sa-solver", "sasolver:SASolver", "stochastic Adams predictor and corrector", "SA-Solver; SASolverScheduler",
     "comfyui ~ sa_solver; comfyui ~ sa_solver_pece # evaluates after correcting, too; "
     "diffusers ~ SASolverScheduler(predictor_order=3, corrector_order=3)", ""),
    ("er-sde", "ersde:ErSde", "extended reverse-time SDE, up to three stages", "",
     "comfyui ~ er_sde; invokeai ~ er_sde; sdcpp ~ er_sde", ""),
    ("res-multistep", "exponential:ResMultistep", "refined exponential solver, multistep", "RES",
     "comfyui = res_multistep; sdcpp = res_multistep", ""),
    ("seeds-2", "singlestep:Seeds2", "two stages of the SDE along one path of noise", "", "comfyui = seeds_2", ""),
    ("seeds-3", "singlestep:Seeds3", "three stages of the SDE along one path of noise", "", "comfyui = seeds_3", ""),
    ("dpmpp-2m-sde-heun", "factories:dpmpp_2m_sde_heun", "dpmpp-2m-sde with solver='heun'", "k_dpmpp_2m_sde_heun",
     "a1111 = DPM++ 2M SDE Heun; comfyui = dpmpp_2m_sde_heun; comfyui = dpmpp_2m_sde_heun_gpu; diffusers = "
     "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++', solver_type='heun') # in law; "
     "k-diffusion = sample_dpmpp_2m_sde(solver_type='heun')", "uniform-log-snr"),
    ("unipc-bh1", "factories:unipc_bh1", "unipc with variant='bh1'", "",
     "comfyui = uni_pc; diffusers = UniPCMultistepScheduler(solver_type='bh1')", ""),
    ("exp-heun-sde", "factories:exp_heun_sde", "exponential Heun for the SDE", "", "comfyui = exp_heun_2_x0_sde", ""),
    ("exp-heun", "factories:exp_heun", "exponential Heun; eta for its SDE", "", "comfyui = exp_heun_2_x0", ""),
    ("gradient-estimation", "estimation:GradientEstimation", "Euler with the noise extrapolated", "",
     "comfyui = gradient_estimation; sdcpp = euler_ge", ""),
)  # fmt: skip

SPACINGS = (
    ("leading", "Leading", "times 1 + i (T // n), as DDIM", "DDIM uniform",
     "a1111 = DDIM; comfyui = ddim_uniform # a step too many there if n does not divide T; "
     'diffusers = timestep_spacing="leading", steps_offset=1'),
    ("sgm-uniform", "SgmUniform", "the first n of n + 1 even times", "SGMUniform",
     "a1111 = SGM Uniform; comfyui = sgm_uniform; sdcpp = sgm_uniform"),
    ("polyexponential", "Polyexponential", "a power of the position in log sigma (rho=1)", "",
     "a1111 = Polyexponential; comfyui = PolyexponentialScheduler # a node; k-diffusion = get_sigmas_polyexponential"),
    ("beta", "Beta", "times at quantiles of a beta distribution (ComfyUI's)", "",
     "comfyui = beta # on times, where A1111's Beta is on sigmas; sdcpp = beta # on times"),
    ("beta-sigma", "BetaSigma", "sigmas at quantiles of a beta distribution (A1111's)", "",
     "a1111 = Beta # on sigmas, where ComfyUI's beta is on times; "
     "diffusers = use_beta_sigmas=True # tells the network rounded times"),
    ("align-your-steps", "AlignYourSteps", "optimised tables", "AlignYourSteps",
     "a1111 = Align Your Steps # resampled to n levels instead of n + 1; comfyui = AlignYourStepsScheduler # a node; "
     "diffusers = AysSchedules; sdcpp = ays"),
    ("kl-optimal", "KlOptimal", "even angles arctan sigma", "",
     "a1111 = KL Optimal; comfyui = kl_optimal; sdcpp = kl_optimal"),
    ("linear-quadratic", "LinearQuadratic", "small even steps, then quadratic ones (Mochi)", "",
     "comfyui = linear_quadratic"),
    ("flow-shift", "FlowShift", "trailing times of a flow moved toward noise", "flow_shift",
     "comfyui = ModelSamplingSD3 # a node, with simple; comfyui = ModelSamplingFlux # a node, with simple; "
     "diffusers ~ use_flow_sigmas=True # ends otherwise; sdcpp = flux"),
    ("table", "Table", "levels from a JSON file of sigmas (GITS and the like)", "",
     "comfyui = GITSScheduler # a node, give the file of its table; sdcpp = gits # give the file of its table"),
    ("smoothstep", "Smoothstep", "times along 3 u^2 - 2 u^3, dense at both ends", "", "sdcpp = smoothstep"),
    ("bong-tangent", "BongTangent", "sigmas along two arctangents that meet half way", "Bong Tangent",
     "comfyui = bong_tangent # of RES4LYF; sdcpp = bong_tangent"),
    ("lcm", "LcmTimes", "every k-th of the times that LCM was distilled at", "",
     "sdcpp = lcm"),
    ("drop-penultimate", "DropPenultimate", "another spacing without its last level before clean", "", ""),
)  # fmt: skip


def _some(text: str) -> tuple[str, ...]:
    return tuple(text.split("; ")) if text else ()


@hookimpl
def sdkit_components() -> list[Component]:
    """The components of this plugin."""
    schedulers = [
        Component(
            "scheduler",
            name,
            f"sdkit_samplers.{target}",
            summary,
            _some(also),
            labels=_some(tools),
            automatic=automatic or "uniform",
        )
        for name, target, summary, also, tools, automatic in SCHEDULERS
    ]
    spacings = [
        Component("spacing", name, f"sdkit_samplers.spacings:{target}", summary, _some(also), labels=_some(tools))
        for name, target, summary, also, tools in SPACINGS
    ]
    reader = Component("vocabulary", "names", "sdkit_samplers.names:read", "names with options, as diffusers has them")
    brownian = "increments of one Brownian path: a finer grid refines the same picture"
    noises = [Component("noise", "brownian-1", "sdkit_samplers.brownian:Brownian", brownian, ("brownian",))]
    return [*schedulers, *spacings, *noises, reader]

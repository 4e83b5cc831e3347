"""Wrong schedulers, as people write them: one wrong sign, letter, index or habit each.

``MUTANTS`` maps a name to (scheduler, rule that must catch it). They are made of correct methods with one thing changed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

import sdkit
from sdkit import Ddim, DpmPP2M, Euler, Grid, Heun, Level, Noise, Step, Traits

Denoise = Callable[[Tensor, Level], Tensor]
ORDER1 = Traits(1, None, False, True, 1)
ORDER2 = Traits(2, 1, False, True, 1)
HEUN = Traits(2, None, False, True, 2)
NOISY = Traits(1, None, True, True, 1)


def line(x: Tensor, d: Tensor, a: Level, b: Level) -> Tensor:
    """Euler's step, the right one."""
    ratio = b.sigma / a.sigma
    return x * ratio + d * (b.alpha - a.alpha * ratio)


class Mutant:
    """A scheduler whose step is a function of the usual arguments."""

    def __init__(
        self, traits: Traits, step: Callable[..., Any], init: Callable[[Tensor, Grid], Any] | None = None
    ) -> None:
        self.traits, self._step, self._init = traits, step, init

    def init(self, x: Tensor, grid: Grid, /) -> Any:
        return None if self._init is None else self._init(x, grid)

    def step(self, denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise, /) -> Step[Any]:
        made = self._step(denoise, x, a, b, state, noise)
        return made if isinstance(made, Step) else Step(*made)


MUTANTS: dict[str, tuple[Any, str]] = {}


def mutant(rule: str, traits: Traits = ORDER1, init: Callable[[Tensor, Grid], Any] | None = None) -> Callable[..., Any]:
    def enter(step: Callable[..., Any]) -> Callable[..., Any]:
        MUTANTS[step.__name__] = (Mutant(traits, step, init), rule)
        return step

    return enter


@mutant("point_mass")
def wrong_sign_of_the_noise(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return b.alpha * d - b.sigma * (x - a.alpha * d) / a.sigma, d, None


@mutant("point_mass")
def alpha_of_the_start_instead_of_the_end(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    return a.alpha * d + b.sigma * (x - a.alpha * d) / a.sigma, d, None


@mutant("output")
def division_by_alpha(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    y, s, s2 = x / a.alpha if a.alpha else x * math.inf, a.noise_to_signal, b.noise_to_signal
    return b.alpha * (y + (y - d) / s * (s2 - s)), d, None


@mutant("evaluations")
def asks_at_the_clean_level(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    moved = line(x, d, a, b)
    denoise(moved, b)
    return moved, d, None


@mutant("evaluations", Traits(1, None, False, True, None))
def as_many_calls_as_the_picture_needs(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    if bool(d.abs().max() > 0.1):
        denoise(x, a)
    return line(x, d, a, b), d, None


@mutant("traits", Traits(1, None, False, True, None, adaptive=True))
def calls_itself_adaptive_to_be_left_in_peace(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    return line(x, d, a, b), d, None


@mutant("evaluations")
def one_call_too_many(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    denoise(x, a)
    d = denoise(x, a)
    return line(x, d, a, b), d, None


@mutant("purity")
def writes_into_x(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    ratio = b.sigma / a.sigma
    return x.mul_(ratio).add_(d, alpha=b.alpha - a.alpha * ratio), d, None


@mutant("purity")
def writes_into_the_prediction(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    moved = line(x, d, a, b)
    return moved, d.mul_(2), None


@mutant("purity", init=lambda x, grid: [0])
def writes_into_its_state(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    state[0] += 1
    return line(x, d, a, b), d, state


class HiddenCursor:
    """Counts its steps on itself and takes the level from its own grid, as diffusers' schedulers do."""

    traits = ORDER1

    def init(self, x: Tensor, grid: Grid, /) -> None:
        self.grid, self.i = grid, 0

    def step(self, denoise: Denoise, x: Tensor, a: Level, b: Level, state: None, noise: Noise, /) -> Step[None]:
        a, b = self.grid[self.i], self.grid[min(self.i + 1, len(self.grid) - 1)]
        self.i = min(self.i + 1, len(self.grid) - 2)
        d = denoise(x, a)
        return Step(line(x, d, a, b), d, None)


MUTANTS["hidden_cursor"] = (HiddenCursor(), "purity")


class SharedPast:
    """A second-order method that keeps its past on the object: right as long as nobody else uses it."""

    traits = ORDER2

    def init(self, x: Tensor, grid: Grid, /) -> None:
        self.past: Any = None

    def step(self, denoise: Denoise, x: Tensor, a: Level, b: Level, state: None, noise: Noise, /) -> Step[None]:
        made = DpmPP2M().step(denoise, x, a, b, self.past, noise)
        self.past = made.state
        return Step(made.x, made.denoised, None)


MUTANTS["past_on_the_object"] = (SharedPast(), "interleaving")


@mutant("global_state", NOISY)
def draws_from_torchs_global_state(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    torch.rand(1)
    return Ddim(1.0).step(denoise, x, a, b, None, noise)


@mutant("global_state", NOISY)
def draws_from_numpys_global_state(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    np.random.rand()
    return Ddim(1.0).step(denoise, x, a, b, None, noise)


@mutant("global_state", NOISY)
def draws_from_pythons_global_state(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    random.random()
    return Ddim(1.0).step(denoise, x, a, b, None, noise)


@mutant("asks_noise_as_declared")
def noise_without_saying_so(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    if b.sigma:
        noise(x, a, b)
    return Euler().step(denoise, x, a, b, None, noise)


@mutant("asks_noise_as_declared", NOISY)
def noise_after_the_last_step(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    made = Ddim(1.0).step(denoise, x, a, b, None, noise)
    if b.sigma == 0:
        noise(x, a, b)
    return made


@mutant("distribution", NOISY)
def noise_a_tenth_too_strong(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    return Ddim(1.0).step(denoise, x, a, b, None, lambda like, p, q: noise(like, p, q) * 1.1)


@mutant("distribution", NOISY)
def variance_where_a_deviation_belongs(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    share = -math.expm1(2 * (a.log_snr - b.log_snr))
    kept = b.sigma * math.sqrt(1 - share)
    moved = b.alpha * d + kept * (x - a.alpha * d) / a.sigma
    return (moved + b.sigma * share * noise(x, a, b) if b.sigma else moved), d, None


@mutant("distribution", NOISY)
def keeps_all_noise_and_adds_more(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    moved = line(x, d, a, b)
    added = 0.3 * b.sigma * math.sqrt(-math.expm1(2 * (a.log_snr - b.log_snr)))
    return (moved + added * noise(x, a, b) if b.sigma else moved), d, None


@mutant("distribution", NOISY)
def noise_half_a_percent_too_strong(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    return Ddim(1.0).step(denoise, x, a, b, None, lambda like, p, q: noise(like, p, q) * 1.005)


@mutant("distribution", NOISY)
def noise_half_a_percent_too_weak(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    return Ddim(1.0).step(denoise, x, a, b, None, lambda like, p, q: noise(like, p, q) * 0.995)


def middle_of(a: Level, b: Level) -> Level:
    return sdkit.between(a, b, (a.log_snr + b.log_snr) / 2)


@mutant("distribution", Traits(1, None, True, True, 2))
def noise_of_the_first_half_in_both_halves(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    if b.sigma == 0 or a.alpha == 0:
        return Ddim(1.0).step(denoise, x, a, b, None, noise)
    m = middle_of(a, b)
    half = Ddim(1.0).step(denoise, x, a, m, None, noise)
    return Ddim(1.0).step(denoise, half.x, m, b, None, lambda like, p, q: noise(like, a, m)).x, half.denoised, None


@mutant("distribution", NOISY)
def one_draw_twice_with_half_the_variance(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    share = math.sqrt(0.5)
    return Ddim(1.0).step(
        denoise, x, a, b, None, lambda like, p, q: noise(like, p, q) * share + noise(like, p, q) * share
    )


@mutant("distribution", NOISY)
def two_draws_that_overlap_taken_for_independent(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    if a.alpha == 0:
        return Ddim(1.0).step(denoise, x, a, b, None, noise)
    share = math.sqrt(0.5)
    return Ddim(1.0).step(
        denoise, x, a, b, None, lambda like, p, q: noise(like, p, q) * share + noise(like, p, middle_of(p, q)) * share
    )


@mutant("distribution", NOISY, init=lambda x, grid: grid[:2])
def noise_of_the_first_step_in_all(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    made = Ddim(1.0).step(denoise, x, a, b, None, lambda like, p, q: noise(like, *state))
    return made.x, made.denoised, state


@mutant("distribution", Traits(1, None, True, True, 3))
def right_only_where_the_prediction_is_linear(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    def bent(y: Tensor, level: Level) -> Tensor:
        d, away = denoise(y, level), 0.5 * level.sigma
        return d + 2 * (denoise(y + away, level) + denoise(y - away, level) - 2 * d)

    return Ddim(1.0).step(bent, x, a, b, None, noise)


MUTANTS["ancestral_that_says_second_order"] = (
    Mutant(Traits(2, None, True, True, 1), lambda d, x, a, b, state, noise: Ddim(1.0).step(d, x, a, b, None, noise)),
    "order",
)


@frozen
class EtaLeftOver:
    """Keeps as much of the old noise at every eta as is right at eta = 0.5; with eta = 0 it adds none."""

    eta: float = 0.5

    @property
    def traits(self) -> Traits:
        return Traits(1, None, self.eta > 0, True, 1)

    def init(self, x: Tensor, grid: Grid, /) -> None:
        """Nothing."""

    def step(self, denoise: Denoise, x: Tensor, a: Level, b: Level, state: None, noise: Noise, /) -> Step[None]:
        given = noise if self.eta else lambda like, p, q: like * 0
        return Ddim(0.5).step(denoise, x, a, b, None, given)


MUTANTS["eta_left_over"] = (EtaLeftOver(), "without_noise")


def two_step(factor: Callable[[float], float]) -> Callable[..., Any]:
    """DPM-Solver++(2M) with the weight of the past changed; ``factor`` takes h / h_last."""

    def step(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
        d = denoise(x, a)
        estimate = d
        if state is not None and b.sigma > 0 and math.isfinite(state[1]):
            weight = factor((b.log_snr - a.log_snr) / (a.log_snr - state[1]))
            estimate = d * (1 + weight) - state[0] * weight
        return line(x, estimate, a, b), d, (d, a.log_snr)

    return step


MUTANTS["past_with_the_wrong_sign"] = (Mutant(ORDER2, two_step(lambda r: -r / 2)), "order")
MUTANTS["past_without_the_half"] = (Mutant(ORDER2, two_step(lambda r: r)), "order")
MUTANTS["past_weighed_as_if_steps_were_even"] = (Mutant(ORDER2, two_step(lambda r: 0.5)), "order")
MUTANTS["past_forgotten"] = (Mutant(ORDER2, two_step(lambda r: 0.0)), "order")
MUTANTS["past_a_third_too_small"] = (Mutant(ORDER2, two_step(lambda r: r / 3)), "order")


def half_the_quadratic(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    """DPM-Solver++(3M) as k-diffusion and diffusers have it: the quadratic through three predictions, half of it."""
    d, past = denoise(x, a), state or ()
    h = b.log_snr - a.log_snr
    moved = line(x, d, a, b)
    if not past or not math.isfinite(h):
        return moved, d, ((d, a.log_snr), *past[:1])
    r0 = (a.log_snr - past[0][1]) / h
    first = (d - past[0][0]) / r0
    phi_2 = math.expm1(-h) / h + 1
    if len(past) == 1:
        return moved + b.alpha * phi_2 * first, d, ((d, a.log_snr), *past[:1])
    r1 = (past[0][1] - past[1][1]) / h
    older = (past[0][0] - past[1][0]) / r1
    slope = first + (first - older) * r0 / (r0 + r1)
    bend = (first - older) / (r0 + r1)
    moved = moved + b.alpha * phi_2 * slope - b.alpha * (phi_2 / h - 0.5) * bend
    return moved, d, ((d, a.log_snr), *past[:1])


MUTANTS["half_the_quadratic"] = (Mutant(Traits(3, 1, False, True, 1), half_the_quadratic), "order")
MUTANTS["second_order_that_says_fourth"] = (Mutant(Traits(4, 1, False, True, 1), two_step(lambda r: r / 2)), "order")
MUTANTS["says_it_is_stochastic"] = (
    Mutant(NOISY, lambda d, x, a, b, state, noise: Euler().step(d, x, a, b, None, noise)),
    "asks_noise_as_declared",
)


@mutant("purity")
def writes_into_what_the_denoiser_saw(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    seen = line(x, d, a, b)
    if b.sigma:
        denoise(seen, b)
        seen.mul_(1.0 + 1e-12)
    return seen, d, None


@mutant("resume", ORDER2)
def state_that_cannot_be_pickled(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    made = Euler().step(denoise, x, a, b, None, noise)
    return made.x, made.denoised, (lambda: None)


@mutant("order", HEUN)
def heun_with_half_the_correction(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    euler = line(x, d, a, b)
    if b.sigma == 0:
        return euler, d, None
    right = Heun().step(denoise, x, a, b, None, noise).x
    return euler + (right - euler) / 2, d, None


MUTANTS["heun_with_half_the_correction"] = (
    Mutant(Traits(2, None, False, True, 3), MUTANTS["heun_with_half_the_correction"][0]._step),
    "order",
)


@mutant("order", HEUN)
def second_evaluation_at_the_first_level(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    if b.sigma == 0:
        return Euler().step(denoise, x, a, b, None, noise)
    return Heun().step(lambda y, level: denoise(y, a), x, a, b, None, noise)


@mutant("order", Traits(2, None, False, True, 2))
def midpoint_at_the_end_of_the_step(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    if b.sigma == 0:
        return line(x, d, a, b), d, None
    return line(x, denoise(line(x, d, a, b), b), a, b), d, None


@mutant("scale", Traits(1, None, False, True, 1))
def swapped_start_and_stop(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, b if b.sigma else a)
    return line(x, d, a, b), d, None


@mutant("order", Traits(1, None, False, True, 1), init=lambda x, grid: None)
def prediction_of_the_last_step(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    used = d if state is None or b.sigma == 0 else state * 0.5 + d * 0.5 + 0.01
    return line(x, used, a, b), d, d


@mutant("items_of_a_batch")
def normalised_over_the_batch(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return line(x, d + 1e-3 * (d - d.mean(0, keepdim=True)).mean() + 1e-3 * d.mean(0, keepdim=True), a, b), d, None


@mutant("orthogonal_maps")
def clips_single_elements(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return line(x, d.clamp(-0.2, 0.2) * 0.5 + d * 0.5, a, b) if b.sigma else line(x, d, a, b), d, None


@mutant("scale")
def weight_from_sigma_alone(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    damp = 1 - 1e-3 * a.sigma / (1 + a.sigma)
    noise_part = (x - a.alpha * d) / a.sigma
    return b.alpha * d + b.sigma * damp * noise_part, d, None


@mutant("output")
def accumulates_in_float32(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return line(x.float(), d.float(), a, b), d, None


@mutant("point_mass")
def rounds_to_float32_inside(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return line(x.float(), d.float(), a, b).to(x.dtype), d, None


@mutant("point_mass")
def last_step_dropped(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return (line(x, d, a, b) if b.sigma else x / a.norm), d, None


@mutant("point_mass")
def one_level_late(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    middle = Level(b.t, b.alpha, (a.sigma + b.sigma) / 2)
    return line(x, d, a, middle), d, None


@mutant("ends_clean", Traits(1, None, False, False, 1))
def no_step_at_all_on_a_grid_of_one(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    d = denoise(x, a)
    return (line(x, d, a, b) if state else d * 0.99), d, True


@mutant("traits", Traits(1, 1, False, True, 1))
def startup_order_not_below_the_order(denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise) -> Any:
    return Euler().step(denoise, x, a, b, None, noise)


@mutant("evaluations", HEUN)
def promises_two_evaluations_and_makes_one(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    return line(x, d, a, b), d, None


@mutant("half_precision", Traits(1, None, False, False, 1))
def differences_of_predictions_blown_up(
    denoise: Denoise, x: Tensor, a: Level, b: Level, state: Any, noise: Noise
) -> Any:
    d = denoise(x, a)
    h = b.log_snr - a.log_snr
    if state is None or not math.isfinite(h) or b.sigma == 0:
        return line(x, d, a, b), d, d
    return line(x, d + (d - state) * 60 * math.tanh(h), a, b), d, d


class TruncatesTime(Euler):  # type: ignore[misc]
    """Rounds the level's time and drops what it does not need, as int timesteps do."""

    def step(self, denoise: Denoise, x: Tensor, a: Level, b: Level, state: None, noise: Noise, /) -> Step[None]:
        return Euler().step(lambda y, level: denoise(y, Level(float(int(level.t)), level.alpha, level.sigma)), x, a, b, None, noise)  # fmt: skip


MUTANTS["truncates_the_time"] = (TruncatesTime(), "parametrizations")
assert sdkit.__version__

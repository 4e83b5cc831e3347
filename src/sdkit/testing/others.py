"""The rules for spacings, noise schedules, parametrizations, decoders, noise and plugins."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sdkit.errors import GridError, LevelError, ParameterError
from sdkit.levels import Grid, Level
from sdkit.noise import AddressedNoise, NoiseMaker
from sdkit.plugins import Entry, registry
from sdkit.protocols import Decoder, NoiseSchedule, Parametrization, Spacing
from sdkit.spacings import Karras, Trailing
from sdkit.testing.rules import NonConformance, Skip, global_state_watched, rule
from sdkit.testing.strategies import SCHEDULES

__all__ = [
    "check_decoder_deterministic",
    "check_decoder_items_of_a_batch",
    "check_decoder_output",
    "check_decoder_round_trip",
    "check_noise_distribution",
    "check_noise_global_state",
    "check_noise_items_of_a_batch",
    "check_noise_output",
    "check_noise_purity",
    "check_noise_start",
    "check_parametrization_in_scale",
    "check_parametrization_inverse",
    "check_plugin_components_load",
    "check_plugin_imports_no_torch",
    "check_plugin_spelling",
    "check_plugin_summaries",
    "check_schedule_clean",
    "check_schedule_inverse",
    "check_schedule_monotone",
    "check_spacing_ends",
    "check_spacing_increases",
    "check_spacing_number_of_steps",
    "check_spacing_pure",
]

COUNTS = (*range(1, 31), 50, 61, 100, 103)


def _demand(truth: object, message: str) -> None:
    if not truth:
        raise NonConformance(message)


def _grids(spacing: Spacing) -> list[tuple[str, int, NoiseSchedule, Grid]]:
    """Every schedule and count the spacing accepts; one that accepts no schedule at all breaks the rule."""
    found, refusals = [], []
    for name, schedule in SCHEDULES.items():
        for steps in COUNTS:
            try:
                found.append((name, steps, schedule, spacing(schedule, steps)))
            except (GridError, ParameterError) as error:  # a table made for another schedule says so, in a sentence
                refusals.append(f"{steps} on {name}: {error}")
                _demand(steps in (1, 50, 61, 100, 103), f"{name} is accepted, but not with {steps} steps: {error}")
                break
    _demand(found, f"no shipped schedule is accepted: {refusals[:1]}.")
    return found


@rule(
    "spacing",
    text="n steps asked are n steps given: n + 1 levels, for every n from 1.",
    why="Other tools give 31 steps where 30 were asked, or 28; steps are time and money.",
    hint="A floating-point range; an end point counted twice or not at all.",
)
def check_spacing_number_of_steps(spacing: Spacing) -> str:
    """N + 1 levels."""
    grids = _grids(spacing)
    for name, steps, _, grid in grids:
        _demand(len(grid) == steps + 1, f"{steps} steps on {name} give {len(grid)} levels, not {steps + 1}.")
    return f"{len(grids)} grids"


@rule(
    "spacing",
    text="log_snr strictly increases, without repeats in float32.",
    why="A repeated level is a step of length 0: wasted at best, 0 / 0 in a multistep method.",
    hint="Rounding to whole times; a ramp that ends on the level it started from.",
)
def check_spacing_increases(spacing: Spacing) -> None:
    """Strictly increasing."""
    for name, steps, _, grid in _grids(spacing):
        values = np.asarray([level.log_snr for level in grid], dtype=np.float32)
        _demand(bool((values[1:] > values[:-1]).all()), f"{steps} steps on {name}: log_snr does not strictly rise.")


@rule(
    "spacing",
    text="The first level is the schedule's noisiest and the last is clean, unless the spacing declares otherwise; "
    "even then it begins with at least half as much noise as signal.",
    why="Starting lower gives washed-out pictures, or none at all; not ending clean leaves noise in them.",
    hint="Declare `starts_noisiest = False` or `ends_clean = False` on the class if that is what the spacing is for.",
)
def check_spacing_ends(spacing: Spacing) -> str:
    """Ends, or their declaration."""
    starts, ends = getattr(spacing, "starts_noisiest", True), getattr(spacing, "ends_clean", True)
    for name, steps, schedule, grid in _grids(spacing):
        much = grid[0].noise_to_signal
        _demand(much >= 0.5, f"{steps} steps on {name} start with {much:.2g} of noise to signal, as good as clean.")
        if starts:
            _demand(
                grid[0] == schedule.noisiest, f"{steps} steps on {name} start at {grid[0]}, not {schedule.noisiest}."
            )
        if ends:
            _demand(grid[-1].sigma == 0, f"{steps} steps on {name} end at {grid[-1]}, which is not clean.")
    return ", ".join(text for text, told in (("starts later", not starts), ("does not end clean", not ends)) if told)


@rule(
    "spacing",
    text="A spacing is a pure function: asked twice, it gives the same levels.",
    why="A file's manifest is rerun by asking the spacing again.",
    hint="Something cached and changed; something random.",
)
def check_spacing_pure(spacing: Spacing) -> None:
    """Twice the same."""
    for name, steps, schedule, grid in _grids(spacing):
        again = {grid, spacing(schedule, steps), spacing(schedule, steps)}
        _demand(len(again) == 1, f"{steps} steps on {name}: asked again, another grid.")


def _times(schedule: NoiseSchedule) -> list[float]:
    first, last = schedule.cleanest.t, schedule.noisiest.t
    return [first + (last - first) * i / 257 for i in range(258)]


@rule(
    "schedule",
    text="`time(level(t).log_snr) == t` for every usable time.",
    why="Solvers with stages evaluate between levels; a network told a wrong time answers another question.",
    hint="Another interpolation in one direction than in the other; a search off by one.",
)
def check_schedule_inverse(schedule: NoiseSchedule) -> str:
    """Inverse of each other."""
    worst, span = 0.0, abs(schedule.noisiest.t - schedule.cleanest.t)
    for t in _times(schedule):
        worst = max(worst, abs(schedule.time(schedule.level(t).log_snr) - t) / span)
    _demand(worst < 1e-8, f"time(level(t).log_snr) misses t by {worst:.1e} of the range.")
    return f"to {worst:.0e} of the range"


@rule(
    "schedule",
    text="log_snr falls strictly from the cleanest to the noisiest level.",
    why="Otherwise a time has no level of its own.",
    hint="Betas outside (0, 1); an interpolation that overshoots.",
)
def check_schedule_monotone(schedule: NoiseSchedule) -> None:
    """Monotone."""
    values = [schedule.level(t).log_snr for t in _times(schedule)]
    _demand(all(a > b for a, b in itertools.pairwise(values)), "log_snr does not fall with noise.")
    _demand(schedule.noisiest.log_snr < schedule.cleanest.log_snr < math.inf, "noisiest and cleanest are confused.")


@rule(
    "schedule",
    text="`clean` has no noise, is the level at its own time, and `time(inf)` is that time.",
    why="Sampling ends there.",
    hint="clean has sigma = 0 and alpha in the schedule's own scale.",
)
def check_schedule_clean(schedule: NoiseSchedule) -> None:
    """The clean level."""
    clean = schedule.clean
    _demand(clean.sigma == 0 and clean.alpha > 0, f"clean is {clean}.")
    _demand(schedule.level(clean.t) == clean, f"level({clean.t}) is {schedule.level(clean.t)}, not clean.")
    _demand(schedule.time(math.inf) == clean.t, f"time(inf) is {schedule.time(math.inf)}, not {clean.t}.")


def _levels() -> list[Level]:
    return [schedule.level(t) for schedule in SCHEDULES.values() for t in _times(schedule)[::16]]


@rule(
    "parametrization",
    text="`denoised(target(x0, noise)) == x0` at every level where it is defined; where not, LevelError.",
    why="What is trained must be what is sampled.",
    hint="A sign, alpha and sigma exchanged, a scale in one of the two and not in the other.",
)
def check_parametrization_inverse(parametrization: Parametrization) -> str:
    """Target and scaling are inverse."""
    x0, noise = AddressedNoise((1, 2)).initial(torch.empty(2, 32, dtype=torch.float64))
    undefined, worst = 0, 0.0
    for level in _levels():
        try:
            scaling = parametrization(level)
        except LevelError:
            undefined += 1
            continue
        x = x0 * level.alpha + noise * level.sigma
        got = x * scaling.skip + parametrization.target(x0, noise, level) * scaling.out
        # where nearly nothing of the picture is left, its rounding is divided by alpha
        worst = max(worst, float((got - x0).abs().max()) * min(1.0, level.alpha / level.norm * 1e3))
    _demand(undefined < len(_levels()) / 2, "it is undefined at most levels.")
    _demand(worst < 1e-9, f"target and scaling are not inverse: off by {worst:.1e}.")
    return f"undefined at {undefined} of {len(_levels())} levels" if undefined else ""


@rule(
    "parametrization",
    text="What the network sees and is told does not depend on the scale a level is written in.",
    why="The same network then samples the same picture from the same schedule in another scale.",
    hint="in_ must divide by the scale; time must be the level's own or a function of the ratio of alpha and sigma.",
)
def check_parametrization_in_scale(parametrization: Parametrization) -> None:
    """Invariance of the network's input."""
    for level in _levels():
        try:
            one = parametrization(level)
            two = parametrization(Level(level.t, level.alpha * 3, level.sigma * 3))
        except LevelError:
            continue
        _demand(math.isclose(one.in_, two.in_ * 3, rel_tol=1e-9), f"at {level} the network sees another scale.")
        _demand(math.isclose(one.time, two.time, rel_tol=1e-9, abs_tol=1e-12), f"at {level} it is told another time.")
        _demand(math.isclose(one.out, two.out, rel_tol=1e-9, abs_tol=1e-12), f"at {level} its answer is weighed anew.")


def _latents(decoder: Decoder[Tensor], count: int = 2) -> Tensor:
    spec = getattr(decoder, "latent", None)
    if spec is None:
        raise Skip("the decoder has no `latent` that says what it reads")
    shape = spec.shape(spec.size)
    return AddressedNoise(tuple(range(count))).initial(torch.empty(count, *shape, dtype=torch.float32))


@rule(
    "decoder",
    text="Latents become float pictures (batch, 3, height, width) in [0, 1], of the size `latent` says, all finite.",
    why="Everything after it relies on that range.",
    hint="A missing clamp; a factor that is not the one declared.",
)
def check_decoder_output(decoder: Decoder[Tensor]) -> None:
    """Shape and range."""
    latents = _latents(decoder)
    with torch.no_grad():
        pictures = decoder(latents)
    width, height = decoder.latent.size  # type: ignore[attr-defined]
    _demand(tuple(pictures.shape) == (2, 3, height, width), f"pictures have shape {tuple(pictures.shape)}.")
    _demand(bool(torch.isfinite(pictures).all()), "pictures are not finite.")
    _demand(0 <= float(pictures.min()) <= float(pictures.max()) <= 1, "pictures leave [0, 1].")


@rule(
    "decoder",
    text="Decoding is deterministic and leaves the latents as they are.",
    why="A preview must not disturb the run.",
    hint="Dropout, batch norm in training mode, an in-place operation.",
)
def check_decoder_deterministic(decoder: Decoder[Tensor]) -> None:
    """Twice the same."""
    latents = _latents(decoder)
    before = latents.clone()
    with torch.no_grad():
        same = torch.equal(decoder(latents), decoder(latents))
    _demand(same, "decoded twice, two pictures.")
    _demand(torch.equal(latents, before), "the latents were changed in place.")


@rule(
    "decoder",
    text="Picture k of a batch equals the picture decoded alone, within float rounding.",
    why="Image k of a batch equals the image made alone.",
    hint="A normalisation over the batch.",
)
def check_decoder_items_of_a_batch(decoder: Decoder[Tensor]) -> None:
    """Items do not see each other."""
    latents = _latents(decoder, 3)
    with torch.no_grad():
        error = float((decoder(latents)[1:2] - decoder(latents[1:2])).abs().max())
    _demand(error < 1e-4, f"picture 1 of 3 differs by {error:.1e} from it alone.")


@rule(
    "decoder",
    text="A decoder that encodes gives latents of the declared shape; encoding a decoded picture gives it back nearly.",
    why="Image-to-image starts from there.",
    hint="A scale or shift applied in one direction only.",
)
def check_decoder_round_trip(decoder: Decoder[Tensor]) -> str:
    """decode(encode(decode(z))) is near decode(z)."""
    encode = getattr(decoder, "encode", None)
    if encode is None:
        raise Skip("the decoder cannot encode")
    latents = _latents(decoder) * 0.5
    with torch.no_grad():
        pictures = decoder(latents)
        again = encode(pictures)
        _demand(again.shape == latents.shape, f"encode gave shape {tuple(again.shape)}, not {tuple(latents.shape)}.")
        error = float((decoder(again) - pictures).abs().mean())
    _demand(error < 0.2, f"pictures encoded and decoded again are off by {error:.2f} on average.")
    return f"off by {error:.3f} on average"


def _noise_grid() -> Grid:
    return Karras()(SCHEDULES["scaled-linear"], 6)[:-1]


def _draws(noise: NoiseMaker, seeds: tuple[int, ...], like: Tensor) -> list[Tensor]:
    """The start of a run and the noise of each of its steps."""
    grid = _noise_grid()
    source = noise(seeds, grid)
    return [source.initial(like), *(source(like, *interval) for interval in itertools.pairwise(grid))]


@rule(
    "noise",
    text="Noise has the shape, dtype and device it is asked for, and is finite.",
    why="Latents are float32, and float64 where they were given so; a source must not decide that.",
    hint="A tensor made without like.",
)
def check_noise_output(noise: NoiseMaker) -> None:
    """Shape, dtype, finite."""
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(2, 3, 5, 7, dtype=dtype)
        for draw in _draws(noise, (1, 2), like):
            _demand(draw.shape == like.shape, f"noise of shape {tuple(draw.shape)}, not {tuple(like.shape)}.")
            _demand((draw.dtype, draw.device) == (dtype, like.device), f"noise is {draw.dtype} on {draw.device}.")
            _demand(bool(torch.isfinite(draw).all()), "noise is not finite.")


@rule(
    "noise",
    text="The same seeds and interval give the same noise, whatever was asked before; `like` is not read or changed.",
    why="Retry, preview and a run that goes on after a pause must see what the straight run saw.",
    hint="A generator that is drawn from in the order of the questions; noise made in place.",
)
def check_noise_purity(noise: NoiseMaker) -> None:
    """Asked backwards and twice."""
    grid, like = _noise_grid(), torch.full((2, 3, 8), 0.5, dtype=torch.float64)
    first, source = _draws(noise, (1, 2), like), noise((1, 2), grid)
    for _ in range(2):
        for i in reversed(range(len(grid))):
            again = source(like, grid[i - 1], grid[i]) if i else source.initial(like)
            _demand(torch.equal(again, first[i]), f"draw {i} is another one when asked for in another order.")
    _demand(bool((like == 0.5).all()), "the latents it was asked for were changed.")


@rule(
    "noise",
    text="The noise of image k depends on its seed alone, not on the others in the batch.",
    why="People look for the good one among eight and want it again.",
    hint="One draw for the whole batch; a generator for the first seed only.",
)
def check_noise_items_of_a_batch(noise: NoiseMaker) -> None:
    """Items do not see each other."""
    like = torch.empty(3, 2, 9, dtype=torch.float64)
    together = _draws(noise, (5, 6, 7), like)
    for k, seed in enumerate((5, 6, 7)):
        alone = _draws(noise, (seed,), like[:1])
        same = all(torch.equal(draw[k : k + 1], single) for draw, single in zip(together, alone, strict=True))
        _demand(same, f"image {k} of three gets other noise than alone.")


@rule(
    "noise",
    text="What a run starts from does not depend on its levels.",
    why="A seed keeps its composition when steps, spacing or schedule are changed; people count on it.",
    hint="The grid in the address of the start.",
)
def check_noise_start(noise: NoiseMaker) -> None:
    """The same start on another grid."""
    like, other = torch.empty(1, 2, 9, dtype=torch.float64), Trailing()(SCHEDULES["flow"], 3)
    starts = [noise((3,), grid).initial(like) for grid in (_noise_grid(), other)]
    _demand(torch.equal(*starts), "on another grid the run starts from other noise.")


@rule(
    "noise",
    text="Noise is standard normal; intervals that do not overlap, the start, and other seeds are independent.",
    why="Noise with another spread, or seen twice, ends in the picture as grain or as a smear.",
    hint="A root forgotten over the length of an interval; one seed for several streams.",
)
def check_noise_distribution(noise: NoiseMaker) -> str:
    """Distance from the normal distribution, and correlations, over 20,000 numbers of each draw."""
    count = 20_000
    draws = _draws(noise, (1, 2), torch.empty(2, 1, count, dtype=torch.float64))
    rows = torch.stack(draws).reshape(-1, count)
    shares = torch.special.ndtr(rows.sort(dim=1).values)
    distance = float((shares - (torch.arange(count) + 0.5) / count).abs().max())
    _demand(distance < 0.025, f"a draw is {distance:.3f} away from the normal distribution (chance explains 0.015).")
    other = float((torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)).abs().max())
    _demand(other < 0.05, f"two draws are correlated by {other:.2f} (chance explains 0.03).")
    return f"{distance:.3f} from normal, correlated by {other:.3f}"


@rule(
    "noise",
    text="Asking for noise neither draws from nor changes a global random state.",
    why="Seeds would not reproduce, and threads would disturb each other.",
    hint="torch.manual_seed, torch.randn without a generator, np.random.",
)
def check_noise_global_state(noise: NoiseMaker) -> None:
    """Global generators are untouched."""
    with global_state_watched():
        _draws(noise, (1, 2), torch.empty(2, 3, 5))


@rule(
    "plugin",
    text="The component can be imported.",
    why="A name that is listed and cannot be used is worse than none.",
    hint="The target's module or attribute; a dependency that is not declared.",
)
def check_plugin_components_load(entry: Entry) -> None:
    """Targets import."""
    entry.component.load()


@rule(
    "plugin",
    text="The component has a one-line summary.",
    why="It is what people see in lists.",
    hint="Component(..., summary=...).",
)
def check_plugin_summaries(entry: Entry) -> None:
    """Summaries."""
    summary = entry.component.summary
    _demand(summary.strip() and "\n" not in summary, "it has no one-line summary.")


@rule(
    "plugin",
    text="Discovering the plugin loads no torch.",
    why="`sdkit --help` and every import would wait seconds for it.",
    hint="Keep the entry point's module to Components; import the rest in the targets.",
)
def check_plugin_imports_no_torch(entry: Entry) -> None:
    """Discovery in a process of its own."""
    code, said = _discovered_alone(entry.plugin)
    if "not found" in said:
        raise Skip("the plugin is registered in this process only")
    _demand(code == 0, "discovery imports torch." if "torch" in said else said.strip()[-200:])


@cache
def _discovered_alone(plugin: str) -> tuple[int, str]:
    """Exit code and stderr of a process that discovers the plugin; once for all its components."""
    code = (
        "import sys; from sdkit import registry\n"
        f"assert {plugin!r} in [p.name for p in registry().plugins if p.ok], 'not found'\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@rule(
    "plugin",
    text="What a scheduler, spacing, noise or modifier is made into can be written as text, and the text makes it "
    "again.",
    why="The text is what a picture's file carries and `sdkit rerun` reads.",
    hint="An object whose class is not registered, or one without attrs fields that takes parameters; give it `==`.",
)
def check_plugin_spelling(entry: Entry) -> str:
    """There and back."""
    kind, known = entry.component.kind, registry()
    if kind not in ("scheduler", "spacing", "noise", "modifier"):
        raise Skip(f"a {kind} does not travel as text")
    if entry not in known.entries(kind):
        raise Skip("the plugin is registered in this process only")
    try:
        made = known.make(kind, entry.full_name)
    except ParameterError as error:
        raise Skip(f"it has no defaults: {error}") from error
    text = known.spell(kind, made)
    _demand(text is not None, f"its {type(made).__name__} cannot be written as text.")
    again = known.make(kind, str(text))
    plain = "__eq__" not in vars(type(made))
    _demand(type(again) is type(made) and (plain or again == made), f"{text!r} makes another one again.")
    return str(text)

"""Changing what a model's network is given, or does, without touching the model.

A denoiser is a chain of frozen values around diffusers' network. `rewired` gives the same chain around another module:
one that hands the network further inputs (`Joined`), or one that shares its weights and behaves otherwise (`twin`).
Nothing shared is ever written, so two threads with different control on one model do not see each other, and there is
nothing to undo afterwards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
from attrs import evolve, field, frozen
from torch import Tensor, nn

from sdkit import Conditions, Grid, InvalidRequest, Level, NetworkDenoiser, NoiseSchedule, Parts, concatenate

__all__ = [
    "AlongEncoder",
    "Joined",
    "OnTheWay",
    "Rule",
    "Windowed",
    "check_share",
    "core",
    "in_window",
    "network_call",
    "pair",
    "rewired",
    "span",
    "tokens_below",
    "twin",
    "windowed",
    "with_states",
    "within",
]

INSIDE = ("denoiser", "inner", "changed", "weakened")
"""Fields in which wrappers of denoisers keep what they wrap; where there are several, all are rewired."""
Change = Callable[[nn.Module], nn.Module]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def network_call(denoiser: Any) -> Any:
    """What calls diffusers' network: a `sdkit_diffusers.unet.UNet`, or the like of another family.

    Raises:
        InvalidRequest: there is none in this denoiser.
    """
    part = denoiser
    while not isinstance(part, NetworkDenoiser):
        part = next((getattr(part, name) for name in INSIDE if getattr(part, name, None) is not None), None)
        if part is None:
            break
    network = getattr(part, "network", None)
    if not isinstance(getattr(network, "network", None), nn.Module) or not hasattr(network, "placement"):
        raise InvalidRequest(
            f"Control acts on models of this package (Stable Diffusion), and a {type(denoiser).__name__} holds none."
        )
    return network


def rewired(denoiser: Any, change: Change) -> Any:
    """The denoiser around ``change(network)``; the one given is as it was.

    Raises:
        InvalidRequest: it holds no network of this package.
    """

    def other(inside: NetworkDenoiser[Any]) -> NetworkDenoiser[Any]:
        call = network_call(inside)
        return evolve(inside, network=evolve(call, network=change(call.network)))

    return within(denoiser, other)


def within(denoiser: Any, change: Callable[[NetworkDenoiser[Any]], NetworkDenoiser[Any]]) -> Any:
    """The denoiser with ``change`` of the `sdkit.NetworkDenoiser` in the middle; the one given is as it was.

    Raises:
        InvalidRequest: there is none in it.
    """
    if isinstance(denoiser, NetworkDenoiser):
        return change(denoiser)
    names = [f.name for f in attrs.fields(type(denoiser)) if f.name in INSIDE] if attrs.has(type(denoiser)) else []
    if not names:
        network_call(denoiser)  # says what is wrong
        raise InvalidRequest(f"A {type(denoiser).__name__} does not say what it wraps, so control cannot reach inside.")
    return evolve(denoiser, **{name: within(getattr(denoiser, name), change) for name in names})


class Rule(Protocol):
    """Further inputs of a network: from the arguments of a call, those it is called with instead."""

    @property
    def tokens(self) -> int:
        """How many of the last tokens of the text this rule takes away for itself."""
        ...

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The arguments and the named arguments; ``args`` and ``more`` are not changed."""
        ...


class Joined(nn.Module):
    """A network together with others that work beside it, called as the network is.

    Args:
        network: diffusers' network, or a joined one.
        rule: What the network is given.
        beside: Networks that work for the rule; they are on the device when the network is.
    """

    def __init__(self, network: nn.Module, rule: Rule, *beside: nn.Module) -> None:
        super().__init__()
        self.network, self.rule = network, rule
        self.beside = nn.ModuleList(beside)
        self.eval()

    @property
    def _orig_mod(self) -> Any:
        """The network itself: the name under which torch has what a wrapper wraps, and adapters look for it."""
        return core(self)

    @property
    def config(self) -> Any:
        """The configuration of the network."""
        return core(self).config

    def forward(self, *args: Any, **more: Any) -> Any:
        """What the network gives."""
        args, more = self.rule(self, args, more)
        return self.network(*args, **more)


def core(module: nn.Module) -> Any:
    """The network under all that was joined to it."""
    while isinstance(module, Joined):
        module = module.network
    return module


def tokens_below(joined: Joined) -> int:
    """How many of the last tokens that ``joined`` is given are not text, but for rules further inside."""
    count, module = 0, joined.network
    while isinstance(module, Joined):
        count, module = count + module.rule.tokens, module.network
    return count


def twin(module: nn.Module, change: Callable[[Any], None]) -> nn.Module:
    """A network of the same weights (the very same tensors) that may behave otherwise.

    Args:
        module: The network; what was joined to it is kept.
        change: Changes the new network: its attributes, its attention processors. It must not write into weights.
    """
    made: nn.Module = _shell(module)
    if isinstance(module, Joined):
        made.network = twin(module.network, change)
        return made
    _copy_children(made)
    change(made)
    return made


def _shell(module: nn.Module) -> Any:
    """A module with the same parameters and children, its tables its own; not compiled, for that is bound to one."""
    made = copy.copy(module)
    for table in ("_parameters", "_buffers", "_modules"):
        made.__dict__[table] = dict(module.__dict__[table])
    made.__dict__["_compiled_call_impl"] = None
    return made


def _copy_children(made: nn.Module) -> None:
    for name, child in made._modules.items():
        if child is not None:
            inner = _shell(child)
            _copy_children(inner)
            made._modules[name] = inner


def pair(denoiser: Any, x: Tensor, level: Level, cond: Conditions[Any]) -> Sequence[Tensor]:
    """The predictions for the prompt and for the negative one, in the denoiser's own way if it has one."""
    own = getattr(denoiser, "pair", None)
    if own is not None:
        made: Sequence[Tensor] = own(x, level, cond)
        return made
    both: Tensor = denoiser(x.repeat(2, *[1] * (x.ndim - 1)), level, concatenate(cond.positive, cond.negative))
    return both.chunk(2)


@frozen(eq=False)
class OnTheWay:
    """A conditioning, and where on the way something acts.

    Attributes:
        cond: The conditioning inside.
        low: The ``log_snr`` from which on it acts.
        high: The ``log_snr`` from which on it does not act any more.
    """

    cond: Any
    low: float
    high: float


def with_states(cond: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The conditioning with the text's states (batch, tokens, width) changed."""
    if hasattr(cond, "cond"):
        return evolve(cond, cond=with_states(cond.cond, change))
    return evolve(cond, states=change(cond.states))


def check_share(name: str, start: float, end: float) -> None:
    """Refuses shares of the way that are none.

    Raises:
        InvalidRequest: not 0 <= start < end <= 1.
    """
    if not 0 <= start < end <= 1:
        raise InvalidRequest(
            f"The {name} acts from start to end, shares of the way with 0 <= start < end <= 1, not from {start!r} to "
            f"{end!r}."
        )


def span(grid: Grid, start: float, end: float) -> tuple[float, float]:
    """(low, high) in ``log_snr`` of the steps that lie between two shares of the way.

    Step i of n (from 0) acts if ``i / n >= start`` and ``(i + 1) / n <= end``, as in diffusers.
    """
    n = len(grid) - 1
    first, last = math.ceil(start * n - 1e-9), math.floor(end * n + 1e-9)
    if last <= first:
        return math.inf, -math.inf
    low = -math.inf if first == 0 else grid[first].log_snr
    return low, math.inf if last == n else grid[last].log_snr


@frozen(eq=False)
class Windowed:
    """Two denoisers, of which one acts on a part of the way. Made by `windowed` and `in_window`.

    Attributes:
        denoiser: Acts on the rest of the way.
        changed: Acts between two levels.
        low: See `OnTheWay`; None if the conditioning says it (`OnTheWay`, from `AlongEncoder`).
        high: See ``low``.
    """

    denoiser: Any
    changed: Any
    low: float | None = None
    high: float | None = None

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        found: NoiseSchedule | None = getattr(self.denoiser, "schedule", None)
        return found

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        """The predicted clean latents."""
        chosen, inner = self._at(level, cond)
        made: Tensor = chosen(x, level, inner)
        return made

    def pair(self, x: Tensor, level: Level, cond: Conditions[Any], /) -> Sequence[Tensor]:
        """The predictions for the prompt and for the negative one."""
        chosen, positive = self._at(level, cond.positive)
        _, negative = self._at(level, cond.negative)
        return pair(chosen, x, level, Conditions(positive, negative))

    def _at(self, level: Level, cond: Any) -> tuple[Any, Any]:
        """Which denoiser acts at a level, and what it is conditioned on."""
        if self.low is not None and self.high is not None:
            low, high = self.low, self.high
        elif isinstance(cond, OnTheWay):
            low, high, cond = cond.low, cond.high, cond.cond
        else:
            raise InvalidRequest(
                "Control that acts on a part of the way was not told the way: give start and end in a request's "
                "modifier, or grid= to the function."
            )
        return (self.changed if low <= level.log_snr < high else self.denoiser), cond


@frozen(eq=False)
class AlongEncoder:
    """An encoder whose conditionings say something of the way that is walked, which is told by ``along``.

    Attributes:
        inner: The encoder as it was.
        say: What a conditioning becomes, from itself and the way.
        grid: The way, or None until it is told.
    """

    inner: Any
    say: Callable[[Any, Grid], Any] = field(repr=False)
    grid: Grid | None = field(default=None, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.inner, name)
        # the second way to ask an encoder, of prompts with weights
        return (lambda *args, **more: self._said(found(*args, **more))) if name == "weighted" else found

    def along(self, grid: Grid) -> AlongEncoder:
        """The encoder for a way to be walked."""
        inner = self.inner.along(grid) if hasattr(self.inner, "along") else self.inner
        return evolve(self, inner=inner, grid=grid)

    def __call__(self, prompts: Sequence[Any], /) -> Any:
        """Encoded prompts, and what is said of the way."""
        return self._said(self.inner(prompts))

    def _said(self, cond: Any) -> Any:
        if self.grid is None:
            raise InvalidRequest(
                "What acts on a part of the way was not told the way: the encoder needs along(grid) first."
            )
        return self.say(cond, self.grid)


def windowed(denoiser: Any, changed: Any, start: float, end: float, grid: Grid) -> Any:
    """A denoiser that is ``changed`` between two shares of the way along ``grid``, which is needed for that alone.

    Raises:
        InvalidRequest: a part of the way, and no grid.
    """
    if start <= 0 and end >= 1:
        return changed
    if not grid:
        raise InvalidRequest("Control that acts on a part of the way needs the way: give grid=.")
    return Windowed(denoiser, changed, *span(grid, start, end))


def in_window(parts: Parts[Any, Any, Any], changed: Any, start: float, end: float) -> Parts[Any, Any, Any]:
    """The parts with the denoiser ``changed`` between two shares of the way."""
    if start <= 0 and end >= 1:
        return evolve(parts, denoiser=changed)

    def say(cond: Any, grid: Grid) -> OnTheWay:
        return OnTheWay(cond, *span(grid, start, end))

    return evolve(parts, encoder=AlongEncoder(parts.encoder, say), denoiser=Windowed(parts.denoiser, changed))

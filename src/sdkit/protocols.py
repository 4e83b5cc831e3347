"""The contracts. Nothing here runs: protocols, and the few values that cross them.

Shapes: latents are ``(batch, channels, *space)`` of any rank. A *conditioning* is a tree (tensor, tuple, list, mapping,
``None``, or an attrs class of these) whose tensors all have the batch as their first dimension, so that wrappers such
as guidance can join and split it without knowing what is inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from attrs import frozen

from sdkit.levels import Grid, Level

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Autoencoder",
    "Decoder",
    "Denoise",
    "Denoiser",
    "Encoder",
    "Modifier",
    "Network",
    "Noise",
    "NoiseSchedule",
    "Parametrization",
    "Parts",
    "Scaling",
    "Scheduler",
    "Spacing",
    "Step",
    "Traits",
]

MAX_SEED = 2**64 - 1
"""Seeds are whole numbers from 0 to this: 64 bits."""
MAX_GUIDANCE = 1e6
"""Beyond this scale, float32 latents hold nothing but the difference of the two predictions."""

P = TypeVar("P")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741 - the letter of the architecture: what a decoder puts out
S = TypeVar("S")
P_contra = TypeVar("P_contra", contravariant=True)
C_contra = TypeVar("C_contra", contravariant=True)
C_co = TypeVar("C_co", covariant=True)
O_co = TypeVar("O_co", covariant=True)


class Encoder(Protocol[P_contra, C_co]):
    """Text to numbers: a sequence of prompts to one conditioning with that batch size.

    Encoding a prompt alone or among others gives the same numbers, and all prompts give the same shapes.
    """

    def __call__(self, prompts: Sequence[P_contra], /) -> C_co: ...


class Network(Protocol[C_contra]):
    """What was trained: ``(x, time, cond) -> Tensor``, time of shape (batch,); predicts whatever it predicts."""

    def __call__(self, x: Tensor, time: Tensor, cond: C_contra, /) -> Tensor: ...


class Denoiser(Protocol[C_contra]):
    """``E[x0 | x]`` at a level, whatever the network behind it predicts; same shape and dtype as ``x``."""

    def __call__(self, x: Tensor, level: Level, cond: C_contra, /) -> Tensor: ...


class Decoder(Protocol[O_co]):
    """Latents to pictures."""

    def __call__(self, latents: Tensor, /) -> O_co: ...


class Autoencoder(Decoder[O], Protocol[O]):
    """A decoder that can also encode: what image-to-image needs."""

    def encode(self, images: O, /) -> Tensor:
        """Pictures to latents, (batch, channels, *space)."""
        ...


class Noise(Protocol):
    """Standard normal noise of the shape, dtype and device of ``like``.

    Addressed, never drawn: the same interval always gives the same numbers, in any order, on any device. Intervals that
    do not overlap have independent draws; those that do may share theirs, as increments of one path do.
    """

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor: ...


class NoiseSchedule(Protocol):
    """How much noise there is at a time: a bijection between the schedule's own time and ``log_snr``."""

    @property
    def noisiest(self) -> Level:
        """The noisiest usable level, where sampling starts."""
        ...

    @property
    def cleanest(self) -> Level:
        """The cleanest level at which the network was trained."""
        ...

    @property
    def clean(self) -> Level:
        """No noise at all, in this schedule's scale: where sampling ends."""
        ...

    @property
    def train_steps(self) -> int | None:
        """Number of levels trained on, or None where time is continuous."""
        ...

    def level(self, t: float, /) -> Level:
        """The level at a time; LevelError if there is none."""
        ...

    def time(self, log_snr: float, /) -> float:
        """The time that has this ``log_snr``: the inverse of ``level``."""
        ...


class Spacing(Protocol):
    """Which levels a run of ``steps`` steps visits; a pure function giving ``steps + 1`` levels."""

    def __call__(self, schedule: NoiseSchedule, steps: int, /) -> Grid: ...


@frozen
class Scaling:
    """The four numbers between a network and a denoiser: ``denoised = skip * x + out * network(in_ * x, time)``."""

    skip: float
    out: float
    in_: float
    time: float


class Parametrization(Protocol):
    """What a network predicts, as a scaling at each level, and the same as a training target."""

    def __call__(self, level: Level, /) -> Scaling: ...

    def target(self, x0: Tensor, noise: Tensor, level: Level, /) -> Tensor:
        """What the network should have answered; ``denoised`` of it is ``x0``."""
        ...


@frozen
class Traits:
    """What a scheduler promises; the conformance kit believes nothing else.

    Attributes:
        order: Order of convergence (weak order for a stochastic scheduler).
        startup_order: Order of the first steps where it is lower (multistep methods), else None.
        stochastic: Whether it asks for noise.
        exact_on_point_mass: Whether data that is one point is reproduced exactly.
        evaluations: Most denoiser calls per step; None if the grid decides, or the data (see ``adaptive``).
        adaptive: Whether the number of calls depends on the data, as in a solver with its own step control. Such a
            solver may look at the whole batch, and what it will cost is not known beforehand.
    """

    order: int
    startup_order: int | None
    stochastic: bool
    exact_on_point_mass: bool
    evaluations: int | None
    adaptive: bool = False


@frozen(eq=False)
class Step(Generic[S]):
    """``x`` after the step, what was predicted clean on the way, and the solver's state."""

    x: Tensor
    denoised: Tensor
    state: S


class Denoise(Protocol):
    """A denoiser with its conditioning already in it: what a scheduler calls."""

    def __call__(self, x: Tensor, level: Level, /) -> Tensor: ...


class Scheduler(Protocol[S]):
    """The solver. Frozen, so that one object serves any number of threads; ``step`` is pure.

    Same arguments, same result; nothing mutated; no hidden cursor. That one rule gives threads, resume, retry, preview
    and property tests.
    """

    @property
    def traits(self) -> Traits:
        """What this scheduler promises."""
        ...

    def init(self, x: Tensor, grid: Grid, /) -> S:
        """The state before the first step."""
        ...

    def step(self, denoise: Denoise, x: Tensor, start: Level, stop: Level, state: S, noise: Noise, /) -> Step[S]:
        """One step from ``start`` to ``stop``; pure."""
        ...


@frozen
class Parts(Generic[P, C, O]):
    """The four slots of a pipeline as one value."""

    encoder: Encoder[P, C]
    denoiser: Denoiser[C]
    scheduler: Scheduler[Any]
    decoder: Decoder[O]


@runtime_checkable
class Modifier(Protocol):
    """A change of behaviour as a frozen, serialisable value: a LoRA, a control image, a guidance method, tiling.

    On leaving the scope everything is bit for bit as before. One with ``check(request)`` is asked when a request is
    planned, everything filled in, and refuses there what it cannot serve (`InvalidRequest`): nothing is computed yet.
    """

    def apply(self, parts: Parts[Any, Any, Any], /) -> AbstractContextManager[Parts[Any, Any, Any]]:
        """A scope in which the changed parts live."""
        ...

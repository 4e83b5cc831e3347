"""A pipeline as a source of images for generators, made of public parts alone.

Noise between two seeds is a `sdkit.NoiseMaker`; prompts between two prompts, latents to start from, and latents that
are not decoded yet are a `sdkit.Modifier` put last, so that adapters and dialects act as in any request. Notation: b
pictures of a batch; u the weight of the second of two values, a of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.conditioning import map_tensors, take
from sdkit.errors import ContractError, NonFiniteError, ParameterError
from sdkit.frames.frame import Capability, ImageSource, Shot
from sdkit.frames.tracks import Mix
from sdkit.guidance import Guided
from sdkit.levels import Grid, Level
from sdkit.noise import NoiseMaker, NoiseSource
from sdkit.pipelines import Pipeline
from sdkit.plugins import registry
from sdkit.protocols import Parts
from sdkit.request import Picture, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdkit.protocols import Autoencoder

__all__ = ["PipelineSource", "image_source", "lerp", "slerp"]

BLENDS = ("lerp", "slerp")
AT_ONCE, MOST = 2**15, 8
"""Pixels, and pictures, decoded together: small pictures one by one leave a processor waiting, large ones together
take memory and no less time. Groups begin at the first of the latents, wherever decoding begins, so that a clip that is
resumed keeps its bits."""


def slerp(a: Tensor, b: Tensor, u: Tensor, *, axes: int = 1) -> Tensor:
    """The point at share u of the arc from a to b; where they point the same way, the straight line.

    Args:
        a: (batch, ...), any dtype; computed in float64.
        b: As a.
        u: (batch,), 0 to 1.
        axes: The angle is measured over all but the first ``axes`` dimensions.

    Source: Shoemake 1985, "Animating rotation with quaternion curves", SIGGRAPH.
    """
    flat = (*a.shape[:axes], -1)
    first, second = a.double().reshape(flat), b.double().reshape(flat)
    share = u.double().reshape(-1, *[1] * axes).to(a.device)
    lengths = first.norm(dim=-1, keepdim=True) * second.norm(dim=-1, keepdim=True)
    cosine = ((first * second).sum(-1, keepdim=True) / lengths.clamp_min(1e-300)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    straight = angle.sin() < 1e-6
    below = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / below)
    right = torch.where(straight, share, (share * angle).sin() / below)
    mixed = (left * first + right * second).reshape(a.shape).to(a.dtype)
    whole = share.reshape(-1, *[1] * (a.ndim - 1))
    return torch.where(whole == 0, a, torch.where(whole == 1, b, mixed))


def lerp(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """``a + u (b - a)`` row by row; of masks (bool) all that either shows, of whole numbers the nearer one."""
    share = u.to(a.device).reshape(-1, *[1] * (a.ndim - 1))
    if a.dtype is torch.bool:
        return torch.where(share == 0, a, torch.where(share == 1, b, a | b))
    if not a.is_floating_point():
        return torch.where(share < 0.5, a, b)
    return torch.where(share == 0, a, (a + share * (b - a)).to(a.dtype))


def _blend(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if name not in BLENDS:
        raise ParameterError(f"Conditionings are mixed by {' or '.join(BLENDS)}, not by {name!r}.")

    def mixed(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
        # states of tokens turn one by one: the angle is that between two states, not between two texts
        if name == "slerp" and a.is_floating_point() and a.ndim > 1:
            return slerp(a, b, u, axes=a.ndim - 1)
        return lerp(a, b, u)

    return mixed


@frozen(eq=False)
class _Arc:
    """Noise between that of two sources, of every image its own share."""

    first: NoiseSource
    second: NoiseSource
    shares: Tensor

    def initial(self, like: Tensor, /) -> Tensor:
        return slerp(self.first.initial(like), self.second.initial(like), self.shares)

    def __call__(self, like: Tensor, start: Level, stop: Level, /) -> Tensor:
        return slerp(self.first(like, start, stop), self.second(like, start, stop), self.shares)


@frozen(eq=False)
class _Travelled:
    """The noise of shots; the seeds a run asks for are the first of each."""

    base: NoiseMaker
    seeds: tuple[Mix[int], ...]

    def __call__(self, seeds: tuple[int, ...], grid: Grid, /) -> NoiseSource:
        rows = self.seeds[: len(seeds)]
        first = self.base(tuple(row[0][0] for row in rows), grid)
        if all(len(row) == 1 for row in rows):
            return first
        return _Arc(first, self.base(tuple(row[-1][0] for row in rows), grid), _shares(rows))


def _shares(rows: Sequence[Mix[Any]]) -> Tensor:
    if any(not 1 <= len(row) <= 2 for row in rows):
        raise ContractError(f"A shot has one or two prompts and seeds, not {[len(row) for row in rows]}.")
    return torch.tensor([row[1][1] if len(row) == 2 else 0.0 for row in rows], dtype=torch.float64)


@frozen(eq=False)
class _Mixed:
    """An encoder that is asked for each image, and answers with what lies between two prompts."""

    encoder: Any
    mixes: tuple[Mix[str], ...]
    blend: str
    per_image = True

    def along(self, grid: Grid, /) -> _Mixed:
        return attrs.evolve(self, encoder=self.encoder.along(grid)) if hasattr(self.encoder, "along") else self

    def __call__(self, prompts: Sequence[str], /) -> Any:
        rest = list(prompts[len(self.mixes) :])  # what to move away from, which does not travel
        ends = [[mix[k][0] for mix in self.mixes] + rest for k in (0, -1)]
        if all(len(mix) == 1 for mix in self.mixes):
            ends = ends[:1]
        if getattr(self.encoder, "per_image", False):
            found = [self.encoder(texts) for texts in ends]
        else:
            distinct = list(dict.fromkeys(text for texts in ends for text in texts))
            encoded = self.encoder(distinct)
            found = [take(encoded, [distinct.index(text) for text in texts]) for texts in ends]
        if len(found) == 1:
            return found[0]
        shares = torch.cat([_shares(self.mixes), torch.zeros(len(rest), dtype=torch.float64)]).float()
        mixed = _blend(self.blend)
        return map_tensors(lambda a, b: mixed(a, b, shares), *found)


@frozen(eq=False)
class _Watched:
    """A denoiser that says when it is called; all else is as inside."""

    denoiser: Any
    tick: Callable[[], None]

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        self.tick()
        found: Tensor = self.denoiser(x, level, cond)
        return found

    def __getattr__(self, name: str) -> Any:
        inside = getattr(self.denoiser, name)
        if name != "pair":
            return inside

        def pair(*arguments: Any) -> Any:
            self.tick()
            return inside(*arguments)

        return pair


@frozen(eq=False)
class _Undecoded:
    """A decoder that gives the latents back, and "encodes" to latents that are there already."""

    inside: Any
    start: Tensor | None

    def __call__(self, latents: Tensor, /) -> tuple[Tensor, ...]:
        return tuple(latents)

    def encode(self, images: Tensor, /) -> Tensor:
        if self.start is None:
            raise ContractError("A run without a start image encodes none.")
        return self.start.to(images.device)


@frozen(eq=False)
class _Shots:
    """The modifier that is put last."""

    shots: tuple[Shot, ...]
    start: Tensor | None
    blend: str
    tick: Callable[[], None] | None

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        yield attrs.evolve(
            parts,
            encoder=_Mixed(parts.encoder, tuple(shot.prompts for shot in self.shots), self.blend),
            denoiser=parts.denoiser if self.tick is None else _Watched(parts.denoiser, self.tick),
            decoder=_Undecoded(parts.decoder, self.start),
        )


@frozen(eq=False)
class PipelineSource:
    """`ImageSource` of a pipeline. Frozen: it holds nothing of a run."""

    pipe: Pipeline[str, Any, Any]
    capabilities: frozenset[Capability] = field(init=False)

    def __attrs_post_init__(self) -> None:
        missing = set() if hasattr(self.pipe.decoder, "encode") else {Capability.IMAGE_TO_IMAGE}
        object.__setattr__(self, "capabilities", frozenset(Capability) - missing)

    def size(self, request: Request, /) -> tuple[int, int]:
        """(width, height) of the pictures, in pixels; refuses what the model cannot make."""
        asked = attrs.evolve(request, seeds=request.seeds[:1], image=None, mask=None, strength=None, modifiers=())
        size = self.pipe.plan(asked).request.size
        if size is None:
            raise ContractError("A plan has a size.")
        return size

    def latents(
        self,
        request: Request,
        shots: Sequence[Shot],
        *,
        start: Tensor | None = None,
        strength: float | None = None,
        blend: str = "lerp",
        tick: Callable[[], None] | None = None,
    ) -> Tensor:
        """See `ImageSource.latents`."""
        base = self.pipe.noise if request.noise is None else registry().make("noise", request.noise)
        pipe = attrs.evolve(self.pipe, noise=_Travelled(base, tuple(shot.seeds for shot in shots)))
        asked = attrs.evolve(
            request,
            prompt=shots[0].prompts[0][0],
            seeds=tuple(shot.seeds[0][0] for shot in shots),
            noise=None,
            image=None if start is None else _blank(self.size(request)),
            mask=None,
            strength=None if start is None else strength,
            modifiers=(*request.modifiers, _Shots(tuple(shots), start, blend, tick)),
        )
        return pipe(asked).latents

    def decode(self, latents: Tensor, request: Request, /, *, first: int = 0) -> Iterator[NDArray[np.uint8]]:
        """See `ImageSource.decode`: as many together as have `AT_ONCE` pixels, at most `MOST`."""
        width, height = self.size(request)
        count = min(MOST, max(1, AT_ONCE // (width * height)))
        for at in range(first - first % count, len(latents), count):
            with self._parts(request) as parts, torch.no_grad():
                made = parts.decoder(latents[at : at + count])
            yield from (_pixels(one) for one in made[max(0, first - at) :])

    def encode(self, images: Sequence[NDArray[np.uint8]], request: Request, /) -> Tensor:
        """See `ImageSource.encode`."""
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(self.pipe.device).float() / 255
        with self._parts(request) as parts, torch.no_grad():
            return cast("Autoencoder[Tensor]", parts.decoder).encode(batch)

    def facts(self) -> Mapping[str, str]:
        """See `ImageSource.facts`."""
        spec = self.pipe.spec
        if spec is None:
            return {"model": "", "model_sha256": "", "licence": "unknown"}
        return {"model": spec.name, "model_sha256": spec.sha256, "licence": spec.licence.id}

    @contextmanager
    def _parts(self, request: Request) -> Iterator[Parts[Any, Any, Any]]:
        """The parts as the request's modifiers make them."""
        bare = self.pipe.denoiser.denoiser if isinstance(self.pipe.denoiser, Guided) else self.pipe.denoiser
        parts = Parts(self.pipe.encoder, bare, self.pipe.scheduler, self.pipe.decoder)
        with ExitStack() as stack:
            for modifier in request.modifiers:
                made = registry().make("modifier", modifier) if isinstance(modifier, str) else modifier
                parts = stack.enter_context(made.apply(parts))
            yield parts


def _blank(size: tuple[int, int]) -> Picture:
    from PIL import Image

    return Picture.of(Image.new("RGB", size))


def _pixels(made: Any) -> NDArray[np.uint8]:
    """What a decoder gave for one latent, as an array."""
    if not isinstance(made, Tensor):
        return np.asarray(made.convert("RGB"), dtype=np.uint8)
    if not bool(torch.isfinite(made).all()):
        raise NonFiniteError("NaN or infinity came out of the decoder; try float32.")
    array = (made.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)))


def image_source(pipe: Pipeline[str, Any, Any] | ImageSource) -> ImageSource:
    """A pipeline as a source of images for generators; what is a source already is given back."""
    return PipelineSource(pipe) if isinstance(pipe, Pipeline) else pipe

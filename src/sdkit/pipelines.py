"""From a request to pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.errors import FileError, InvalidRequest, NonFiniteError
from sdkit.guidance import Guided, Inpainted, condition, guided
from sdkit.levels import Grid, Level, check_grid
from sdkit.loop import evaluations, solve
from sdkit.manifest import Manifest, Metadata, package_versions, write_png
from sdkit.model import LatentSpec, ModelSpec
from sdkit.noise import AddressedNoise
from sdkit.plugins import registry
from sdkit.protocols import Autoencoder, Decoder, Denoiser, Encoder, NoiseSchedule, Parts, Scheduler, Spacing
from sdkit.request import Picture, Request

if TYPE_CHECKING:
    import os

    from PIL.Image import Image

__all__ = ["Pipeline", "Plan", "Result", "ResultEvent", "StepEvent"]

P = TypeVar("P")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741


DEFAULT_STRENGTH = 0.6
"""How much of a start image is redone if the request does not say; with a mask, all of what it shows."""


@frozen
class Plan:
    """What a request will do, known before anything is computed.

    Attributes:
        request: The request with everything filled in.
        grid: The levels that will be walked.
        size: (width, height) of the pictures in pixels.
        latent_shape: (batch, channels, height, width).
        evaluations: Denoiser calls the scheduler will make; None for one with its own step control.
    """

    request: Request
    grid: Grid
    size: tuple[int, int]
    latent_shape: tuple[int, ...]
    evaluations: int | None


@frozen(eq=False)
class StepEvent:
    """One step was made. The tensors are copies: they may be kept, and changing them changes nothing.

    Attributes:
        index: 1 for the first step.
        steps: How many there will be.
        level: Where the step ended.
        x: Latents at that level, (batch, channels, height, width).
        denoised: The clean latents predicted on the way: decode them for a preview.
        evaluations: Denoiser calls so far.
        elapsed: Seconds since the run began.
    """

    index: int
    steps: int
    level: Level
    x: Tensor = field(repr=False)
    denoised: Tensor = field(repr=False)
    evaluations: int
    elapsed: float


@frozen(eq=False)
class Result:
    """Pictures, their latents, and what made them.

    Attributes:
        images: Pillow images where the decoder gives tensors, else what the decoder gave, one per seed.
        latents: Final latents, (batch, channels, height, width).
        manifest: What made them.
    """

    images: tuple[Any, ...]
    latents: Tensor = field(repr=False)
    manifest: Manifest = field(repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every image."""
        return self.manifest.request.seeds

    def save(
        self, path: str | os.PathLike[str], *, index: int | None = None, metadata: Metadata = "full"
    ) -> tuple[Path, ...]:
        """Write PNG files with their manifest inside.

        Args:
            path: Name for a single image; of several, image k goes to ``NAME-k.png``, k from 1.
            index: Write only this image, to ``path`` itself.
            metadata: ``"full"``, ``"a1111"`` or ``"none"``.

        Returns:
            The files written.

        Raises:
            FileError: a file cannot be written; each is written whole or not at all.
        """
        path = Path(path)
        if index is not None or len(self.images) == 1:
            return (self._save_one(path, index or 0, metadata),)
        names = [path.with_name(f"{path.stem}-{k + 1}{path.suffix}") for k in range(len(self.images))]
        return tuple(self._save_one(name, k, metadata) for k, name in enumerate(names))

    def _save_one(self, path: Path, index: int, metadata: Metadata) -> Path:
        image = self.images[index]
        if not hasattr(image, "save"):
            raise FileError(f"The decoder gave a {type(image).__name__}, which is no picture sdkit could save.")
        return write_png(path, image, attrs.evolve(self.manifest, index=index), metadata=metadata)


@frozen(eq=False)
class ResultEvent:
    """The last event of a run."""

    result: Result


@frozen(eq=False)
class Pipeline(Generic[P, C, O]):
    """The four slots, and which levels to visit. Frozen: one pipeline serves any number of threads.

    Attributes:
        encoder: Prompts to conditioning.
        denoiser: ``E[x0 | x]``, guided or not.
        scheduler: The solver, unless a request names another.
        decoder: Latents to pictures; one with ``encode`` also takes start images.
        spacing: Which levels, unless a request names another; or a grid, used verbatim.
        schedule: What a spacing divides; by default the one the denoiser was trained on.
        spec: Facts about the model: default size, steps and guidance.
        device: Where latents are made.
    """

    encoder: Encoder[P, C]
    denoiser: Denoiser[Any]
    scheduler: Scheduler[Any]
    decoder: Decoder[O]
    spacing: Spacing | Grid = field(kw_only=True)
    schedule: NoiseSchedule | None = field(default=None, kw_only=True)
    spec: ModelSpec | None = field(default=None, kw_only=True)
    device: str = field(default="cpu", kw_only=True)

    def __call__(self, request: Request) -> Result:
        """Make the pictures of a request.

        Raises:
            InvalidRequest: it cannot be carried out; nothing was computed.
            NonFiniteError: NaN or infinity came out of a part.
        """
        *_, last = self.stream(request)
        return cast(ResultEvent, last).result

    def stream(self, request: Request) -> Iterator[StepEvent | ResultEvent]:
        """Make the pictures of a request, one event per step, the result last.

        Stop iterating (or ``close()`` the iterator) to cancel: modifiers are undone, nothing is left behind.
        """
        plan = self.plan(request)
        return self._run(plan)

    def _run(self, plan: Plan) -> Iterator[StepEvent | ResultEvent]:
        request, grid, began = plan.request, plan.grid, time.perf_counter()
        like = torch.zeros(plan.latent_shape, device=self.device)
        check, calls = _FiniteCheck(), 0
        with ExitStack() as stack:
            parts = Parts(self.encoder, self.denoiser, self._scheduler(request), self.decoder)
            for modifier in request.modifiers:
                parts = stack.enter_context(modifier.apply(parts))
            denoiser = self._guided(parts.denoiser, request)
            noise = AddressedNoise(request.seeds)
            x = noise.initial(like) * grid[0].sigma
            with torch.no_grad():
                count = len(request.seeds)
                cond = condition(parts.encoder, denoiser, [request.prompt] * count, [request.negative] * count)
                if request.image is not None:
                    known = _encode(parts.decoder, request.image, like)
                    check.see(known, "autoencoder's encode", 0, grid[0])
                    x = x + known * grid[0].alpha
                    if request.mask is not None:
                        denoiser = Inpainted(denoiser, known, _latent_mask(request.mask, like))

            @torch.no_grad()
            def denoise(x: Tensor, level: Level) -> Tensor:
                nonlocal calls
                calls += 1
                denoised = denoiser(x, level, cond)
                check.see(denoised, "denoiser", calls, level)
                return denoised

            step = None
            for i, step in enumerate(solve(parts.scheduler, denoise, x, grid, noise), start=1):
                check.see(step.x, "scheduler", i, grid[i])
                yield StepEvent(
                    index=i,
                    steps=len(grid) - 1,
                    level=grid[i],
                    x=step.x.clone(),
                    denoised=step.denoised.clone(),
                    evaluations=calls,
                    elapsed=time.perf_counter() - began,
                )
            assert step is not None  # a grid has at least one step
            check.settle()
            with torch.no_grad():
                output = parts.decoder(step.x)
        images = _pictures(output, request)
        yield ResultEvent(Result(images, step.x, self._manifest(plan, images, calls)))

    def plan(self, request: Request) -> Plan:
        """What ``request`` will do, with everything filled in and checked; nothing is computed.

        Raises:
            InvalidRequest: it cannot be carried out.
            UnknownComponent, ParameterError: a name in it means nothing, or not with these parameters.
        """
        spec, latent = self.spec, self._latent()
        size = request.size or (request.image.size if request.image else None) or latent.size
        shape = (len(request.seeds), *latent.shape(size))
        if request.image is not None and not hasattr(self.decoder, "encode"):
            raise InvalidRequest("This pipeline's decoder cannot encode, so it cannot start from an image.")
        scheduler = self._scheduler(request)
        steps = request.steps or (spec.steps if spec else 50)
        strength = request.strength
        if request.image is not None and strength is None:
            strength = DEFAULT_STRENGTH if request.mask is None else 1.0
        grid, spacing = self._grid(request, steps, strength)
        if isinstance(self.spacing, tuple) and request.spacing is None:
            steps = len(self.spacing) - 1
        guidance, rescale, interval = request.guidance, request.guidance_rescale, request.guidance_interval
        if isinstance(self.denoiser, Guided):
            guidance = self.denoiser.scale if guidance is None else guidance
            rescale, interval = rescale or self.denoiser.rescale, interval or self.denoiser.interval
        elif guidance is None and spec is not None and not getattr(self.denoiser, "takes_negative", False):
            guidance = spec.guidance
        filled = attrs.evolve(
            request,
            size=size,
            steps=steps,
            strength=strength,
            guidance=guidance,
            guidance_rescale=rescale,
            guidance_interval=interval,
            scheduler=request.scheduler or registry().spell("scheduler", scheduler) or repr(scheduler),
            spacing=spacing,
        )
        self._guided(self.denoiser, filled)  # refuses what cannot be guided, before anything runs
        return Plan(filled, grid, size, shape, evaluations(scheduler, grid, torch.zeros(1)))

    def _latent(self) -> LatentSpec:
        latent = self.spec.latent if self.spec else getattr(self.decoder, "latent", None)
        if not isinstance(latent, LatentSpec):
            raise InvalidRequest(
                "The shape of the latents is not known: give the Pipeline spec=model.spec, or a decoder with `latent`."
            )
        return latent

    def _scheduler(self, request: Request) -> Scheduler[Any]:
        if request.scheduler is None:
            return self.scheduler
        return cast("Scheduler[Any]", registry().make("scheduler", request.scheduler))

    def _grid(self, request: Request, steps: int, strength: float | None) -> tuple[Grid, str]:
        """The levels that will be walked, and the spacing as text."""
        spacing = self.spacing if request.spacing is None else registry().make("spacing", request.spacing)
        if isinstance(spacing, tuple):
            name, grid = "grid", check_grid(spacing)
            if request.steps is not None and request.steps != len(grid) - 1:
                raise InvalidRequest(
                    f"The request asks for {request.steps} steps, but the pipeline has a grid of {len(grid) - 1}; "
                    "leave steps out, or give the pipeline a spacing."
                )
            if strength is not None and request.steps_policy == "exact" and strength < 1:
                raise InvalidRequest("A given grid is used verbatim; steps_policy='exact' needs a spacing.")
        else:
            name = request.spacing or registry().spell("spacing", spacing) or repr(spacing)
            schedule = self.schedule or getattr(self.denoiser, "schedule", None)
            if schedule is None:
                raise InvalidRequest(
                    "A spacing divides a noise schedule, and none is known: give the Pipeline schedule=..., or a grid."
                )
            exact = strength is not None and request.steps_policy == "exact"
            grid = spacing(schedule, max(steps, round(steps / strength)) if exact and strength else steps)
        if strength is None:
            return grid, name
        walked = steps if request.steps_policy == "exact" and not isinstance(spacing, tuple) else None
        # round, not int: 100 * 0.29 is 28.999... in binary and means 29.
        walked = walked or max(1, round((len(grid) - 1) * strength))
        return grid[len(grid) - 1 - walked :], name

    def _guided(self, denoiser: Denoiser[Any], request: Request) -> Denoiser[Any]:
        already = getattr(denoiser, "takes_negative", False)
        if request.guidance is not None and already and not isinstance(denoiser, Guided):
            raise InvalidRequest(
                "This pipeline's denoiser is guided inside a wrapper of its own; leave guidance out of the request."
            )
        if request.negative and not already and request.guidance in (None, 1):
            raise InvalidRequest("A negative prompt acts through guidance, and there is none: set guidance above 1.")
        if request.guidance is None:
            return denoiser
        return guided(denoiser, request.guidance, rescale=request.guidance_rescale, interval=request.guidance_interval)

    def _manifest(self, plan: Plan, images: tuple[Any, ...], calls: int) -> Manifest:
        spec = self.spec
        hashes = tuple(pixels_sha256(image) if hasattr(image, "tobytes") else "" for image in images)
        return Manifest(
            request=plan.request,
            grid=plan.grid,
            model=spec.name if spec else "",
            model_sha256=spec.sha256 if spec else "",
            licence=spec.licence.id if spec else "unknown",
            noise="addressed-1",
            evaluations=calls,
            device=torch.device(self.device).type,
            versions=package_versions(),
            pixels_sha256=hashes,
        )


class _FiniteCheck:
    """Looks for NaN and infinity: at once on the CPU; on other devices at the end, so that no step waits for one."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, str, int, Level]] = []

    def see(self, tensor: Tensor, slot: str, step: int, level: Level) -> None:
        flag = torch.isfinite(tensor).all()
        self._pending.append((flag, slot, step, level))
        if tensor.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        if not self._pending:
            return
        flags = torch.stack([flag for flag, *_ in self._pending]).tolist()
        for good, (_, slot, step, level) in zip(flags, self._pending, strict=True):
            if not good:
                unit = "evaluation" if slot == "denoiser" else "step"
                raise NonFiniteError(
                    f"NaN or infinity came out of the {slot} in {unit} {step} at {level}; try float32, fewer extremes "
                    "in guidance, or another scheduler."
                )
        self._pending.clear()


def pixels_sha256(image: Image) -> str:
    """SHA-256 of an image's mode, size and pixels, in hexadecimal."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _to_tensor(picture: Picture, mode: str) -> Tensor:
    """(1, channels, height, width) in [0, 1]."""
    import numpy as np

    pixels = np.asarray(picture.image().convert(mode), dtype=np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]


def _encode(decoder: Decoder[Any], picture: Picture, like: Tensor) -> Tensor:
    latents = cast("Autoencoder[Tensor]", decoder).encode(_to_tensor(picture, "RGB").to(like.device))
    if latents.shape[1:] != like.shape[1:]:
        raise InvalidRequest(
            f"Encoding gave latents of shape {tuple(latents.shape[1:])} where {tuple(like.shape[1:])} is needed."
        )
    return latents.to(like.dtype).expand_as(like)


def _latent_mask(mask: Picture, like: Tensor) -> Tensor:
    """The mask at the size of the latents: a latent element is painted if any of its pixels is."""
    pixels = _to_tensor(mask, "L").to(like.device)
    return torch.nn.functional.adaptive_max_pool2d(pixels, like.shape[-2:]).to(like.dtype)


def _pictures(output: Any, request: Request) -> tuple[Any, ...]:
    """What a decoder gave as pictures; pixels that a mask keeps are the input's, exactly."""
    if not isinstance(output, Tensor):
        return tuple(output)
    if not bool(torch.isfinite(output).all()):
        raise NonFiniteError("NaN or infinity came out of the decoder; try float32, or decode result.latents again.")
    from PIL import Image

    array = (output.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    images = [Image.fromarray(row) for row in array]
    if request.image is not None and request.mask is not None:
        kept, mask = request.image.image().convert("RGB"), request.mask.image().convert("L")
        images = [Image.composite(image, kept, mask) for image in images]
    return tuple(images)

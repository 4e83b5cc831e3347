"""From a request to pictures."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from sdkit.errors import ContractError, FileError, InvalidRequest, NonFiniteError
from sdkit.files import image_names
from sdkit.guidance import Guided, Inpainted, condition, guided
from sdkit.levels import Grid, Level, check_grid
from sdkit.loop import evaluations, solve
from sdkit.manifest import Manifest, Metadata, package_versions, write_png
from sdkit.model import LatentSpec, ModelSpec
from sdkit.noise import Addressed, NoiseMaker, NoiseSource
from sdkit.plugins import registry
from sdkit.protocols import Autoencoder, Decoder, Denoiser, Encoder, NoiseSchedule, Parts, Scheduler, Spacing, Step
from sdkit.request import Picture, Request

if TYPE_CHECKING:
    import os

__all__ = ["Pipeline", "Plan", "Result", "ResultEvent", "StepEvent"]

P = TypeVar("P")
C = TypeVar("C")
O = TypeVar("O")  # noqa: E741


MOST_STEPS = 100_000
DEFAULT_STRENGTH = 0.6
"""How much of a start image is redone if the request does not say; with a mask, all of what it shows."""


@frozen(eq=False)
class Plan:
    """What a request will do, known before anything is computed.

    Attributes:
        request: The request with everything filled in; asked again, it does the same.
        grid: The levels that will be walked.
        latent_shape: (batch, channels, height, width), or with frames before the height.
        evaluations: Denoiser calls the scheduler will make, unless a modifier replaces it; None for one with its own
            step control.
        scheduler: The solver.
        noise: What the run draws from.
    """

    request: Request
    grid: Grid
    latent_shape: tuple[int, ...]
    evaluations: int | None
    scheduler: Scheduler[Any] = field(repr=False)
    noise: NoiseSource = field(repr=False)


@frozen(eq=False)
class StepEvent:
    """One step was made. Tensors and state are copies: they may be kept, and changing them changes nothing.

    Attributes:
        index: 1 for the first step.
        steps: How many there will be.
        level: Where the step ended.
        x: Latents at that level, (batch, channels, height, width).
        denoised: The clean latents predicted on the way: decode them for a preview.
        evaluations: Denoiser calls so far.
        elapsed: Seconds since the run began.
        state: The solver's state. An event is all that is needed to go on: ``pipe.stream(request, resume=event)``.
    """

    index: int
    steps: int
    level: Level
    x: Tensor = field(repr=False)
    denoised: Tensor = field(repr=False)
    evaluations: int
    elapsed: float
    state: Any = field(repr=False)


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
        numbered = enumerate(image_names(Path(path), len(self.images))) if index is None else [(index, Path(path))]
        return tuple(self._save_one(name, k, metadata) for k, name in numbered)

    def _save_one(self, path: Path, index: int, metadata: Metadata) -> Path:
        image = self.images[index]
        if not hasattr(image, "save"):
            raise FileError(f"The decoder gave a {type(image).__name__}, which is no picture sdkit could save.")
        return write_png(path, image, attrs.evolve(self.manifest, index=index), metadata=metadata)


@frozen(eq=False)
class ResultEvent:
    """The last event of a run."""

    result: Result


Shape: TypeAlias = tuple[int, ...]
Events: TypeAlias = Generator[StepEvent | ResultEvent, None, None]


@frozen(eq=False)
class Pipeline(Generic[P, C, O]):
    """The four slots, and which levels to visit. Frozen: one pipeline serves any number of threads.

    Attributes:
        encoder: Prompts to conditioning.
        denoiser: ``E[x0 | x]``, guided or not. One with ``painting(image, mask) -> Denoiser`` (pixels in [0, 1], a
            network with inputs for them) is told what a request paints into, and paints without its latents held fast.
        scheduler: The solver, unless a request names another.
        decoder: Latents to pictures; one with ``encode`` also takes start images.
        spacing: Which levels, unless a request names another; or a grid, used verbatim.
        noise: What makes the noise of a run from its seeds and levels, unless a request names another.
        schedule: What a spacing divides; by default the one the denoiser was trained on. One that depends on the size
            of pictures has ``sized(latent_shape) -> NoiseSchedule``.
        spec: Facts about the model: default size, steps and guidance.
        device: Where latents are made.
    """

    encoder: Encoder[P, C]
    denoiser: Denoiser[Any]
    scheduler: Scheduler[Any]
    decoder: Decoder[O]
    spacing: Spacing | Grid = field(kw_only=True)
    noise: NoiseMaker = field(default=Addressed(), kw_only=True)
    schedule: NoiseSchedule | None = field(default=None, kw_only=True)
    spec: ModelSpec | None = field(default=None, kw_only=True)
    device: str = field(default="cpu", kw_only=True)

    def __call__(self, request: Request) -> Result:
        """Make the pictures of a request.

        Raises:
            InvalidRequest: it cannot be carried out; nothing was computed.
            NonFiniteError: NaN or infinity came out of a part.
        """
        for event in self._run(self.plan(request), None, keep=lambda value: value):
            last = event  # one at a time, and without the copies that a caller's events need
        return cast(ResultEvent, last).result

    def stream(self, request: Request, *, resume: StepEvent | None = None) -> Events:
        """Make the pictures of a request, one event per step, the result last.

        To cancel, stop iterating and drop the iterator, or ``close()`` it (``contextlib.closing`` does): modifiers are
        undone then, and nothing is left behind.

        Args:
            request: What to make.
            resume: An event of an earlier run of the same request: the run goes on after that step, and ends in the
                same bits as if it had never stopped.
        """
        return self._run(self.plan(request), resume, keep=copy.deepcopy)

    def _run(self, plan: Plan, resume: StepEvent | None, *, keep: Callable[[Any], Any]) -> Events:
        request, grid, began = plan.request, plan.grid, time.perf_counter()
        done, calls = _done(plan, resume), resume.evaluations if resume else 0
        check, like = _FiniteCheck(), torch.zeros(plan.latent_shape, dtype=torch.float32, device=self.device)
        with ExitStack() as stack:
            # modifiers change the model's denoiser; guidance goes around whatever they make of it
            bare = self.denoiser.denoiser if isinstance(self.denoiser, Guided) else self.denoiser
            paints = request.mask is not None and hasattr(bare, "painting")
            bare = _painting(bare, request, self.device) if paints else bare
            parts = Parts(self.encoder, bare, plan.scheduler, self.decoder)
            for modifier in _modifiers(request):
                parts = stack.enter_context(modifier.apply(parts))
            denoiser = _guided(parts.denoiser, request)
            with torch.no_grad():
                with _slot("encoder"):
                    positive, negative = ([text] * len(request.seeds) for text in (request.prompt, request.negative))
                    cond = condition(parts.encoder, denoiser, positive, negative, grid)
                x = plan.noise.initial(like) * grid[0].sigma
                if request.image is not None:
                    with _slot("autoencoder's encode"):
                        known = _encode(parts.decoder, request.image, like)
                    check.see(known, "autoencoder's encode", 0, grid[0])
                    x = x + known * grid[0].alpha
                    if request.mask is not None and not paints:
                        denoiser = Inpainted(denoiser, known, _latent_mask(request.mask, like))

            @torch.no_grad()
            def denoise(x: Tensor, level: Level, /) -> Tensor:
                nonlocal calls
                calls += 1
                with _slot("denoiser"):
                    denoised = denoiser(x, level, cond)
                    if denoised.shape != x.shape:
                        raise ContractError(
                            f"The denoiser gave a tensor of shape {tuple(denoised.shape)} for latents of shape "
                            f"{tuple(x.shape)}; it must keep the shape."
                        )
                check.see(denoised, "denoiser", calls, level)
                return denoised

            start = Step(resume.x, resume.denoised, resume.state) if resume else None
            steps = solve(parts.scheduler, denoise, x, grid[done:], plan.noise, resume=start)
            for i, step in enumerate(steps, start=done + 1):
                x, elapsed = step.x, time.perf_counter() - began
                check.see(x, "scheduler", i, grid[i])
                yield StepEvent(
                    i, len(grid) - 1, grid[i], keep(x), keep(step.denoised), calls, elapsed, keep(step.state)
                )
            check.settle()
            with torch.no_grad(), _slot("decoder"):
                images = _pictures(parts.decoder(x), request)
        yield ResultEvent(Result(images, x, self._manifest(plan, images, calls)))

    def plan(self, request: Request) -> Plan:
        """What ``request`` will do, with everything filled in and checked; nothing is computed.

        Raises:
            InvalidRequest: it cannot be carried out.
            UnknownComponent, ParameterError: a name in it means nothing, or not with these parameters.
        """
        if not isinstance(request, Request):
            raise InvalidRequest(f"A pipeline takes a Request, not {request!r}; write sdkit.Request({request!r}).")
        spec, latent = self.spec, self._latent()
        size = request.size or (request.image.size if request.image else None) or latent.size
        shape = (len(request.seeds), *latent.shape(size))
        if request.image is not None and not hasattr(self.decoder, "encode"):
            raise InvalidRequest("This pipeline's decoder cannot encode, so it cannot start from an image.")
        text = request.scheduler or registry().spell("scheduler", self.scheduler)
        if text is not None and not text.startswith("custom:"):
            text, spacing = registry().pair(text, request.spacing)
            request = attrs.evolve(request, spacing=spacing)
        scheduler, scheduler_name = _part("scheduler", self.scheduler, text)
        noise, noise_name = _part("noise", self.noise, request.noise)
        steps = request.steps or (spec.steps if spec else 50)
        usual = None if request.image is None else DEFAULT_STRENGTH if request.mask is None else 1.0
        strength = usual if request.strength is None else request.strength
        grid, spacing_name, steps = self._grid(request, steps, strength, shape)
        guidance, rescale, interval = request.guidance, request.guidance_rescale, request.guidance_interval
        if isinstance(self.denoiser, Guided):
            guidance = self.denoiser.scale if guidance is None else guidance
            rescale = self.denoiser.rescale if rescale is None else rescale
            interval = self.denoiser.interval if interval is None else interval
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
            scheduler=scheduler_name,
            spacing=spacing_name,
            noise=noise_name,
        )
        _guided(self.denoiser, filled)  # refuses what cannot be guided, before anything runs
        for check in (modifier.check for modifier in _modifiers(filled) if hasattr(modifier, "check")):
            check(filled)
        calls = evaluations(scheduler, grid, torch.zeros((1, shape[1], 1, 1)), noise(request.seeds[:1], grid))
        return Plan(filled, grid, shape, calls, scheduler, noise(request.seeds, grid))

    def _latent(self) -> LatentSpec:
        latent = self.spec.latent if self.spec else getattr(self.decoder, "latent", None)
        if not isinstance(latent, LatentSpec):
            raise InvalidRequest(
                "The shape of the latents is not known: give the Pipeline spec=model.spec, or a decoder with `latent`."
            )
        return latent

    def _grid(self, request: Request, steps: int, strength: float | None, shape: Shape) -> tuple[Grid, str, int]:
        """The levels that will be walked, the spacing as text, and the number of steps the strength is a share of."""
        spacing, name = _part("spacing", self.spacing, request.spacing)
        exact = strength is not None and strength < 1 and request.steps_policy == "exact"
        if isinstance(spacing, tuple):
            grid = check_grid(spacing)
            if request.steps not in (None, len(grid) - 1):
                raise InvalidRequest(
                    f"The request asks for {request.steps} steps, but the pipeline has a grid of {len(grid) - 1}; "
                    "leave steps out, or give the pipeline a spacing."
                )
            if exact:
                raise InvalidRequest("A given grid is used verbatim; steps_policy='exact' needs a spacing.")
            steps = len(grid) - 1
        else:
            schedule = self.schedule or getattr(self.denoiser, "schedule", None)
            if schedule is None:
                raise InvalidRequest(
                    "A spacing divides a noise schedule, and none is known: give the Pipeline schedule=..., or a grid."
                )
            schedule = getattr(schedule, "sized", lambda _: schedule)(shape)  # FLUX's shift depends on the size
            count = round(steps / strength) if exact and strength else steps
            if count > MOST_STEPS:
                raise InvalidRequest(
                    f"{steps} steps at strength {strength} divide the way into {count}; allowed are {MOST_STEPS}: "
                    "ask for fewer steps, more strength, or steps_policy='proportional'."
                )
            grid = check_grid(spacing(schedule, count))
        # round, not int: 100 * 0.29 is 28.999... in binary and means 29
        walked = steps if exact else max(1, round((len(grid) - 1) * (strength or 1)))
        return grid[len(grid) - 1 - walked :], name, steps

    def _manifest(self, plan: Plan, images: tuple[Any, ...], calls: int) -> Manifest:
        spec = self.spec
        return Manifest(
            request=plan.request,
            grid=plan.grid,
            model=spec.name if spec else "",
            model_sha256=spec.sha256 if spec else "",
            licence=spec.licence.id if spec else "unknown",
            noise=plan.request.noise or "",
            evaluations=calls,
            device=torch.device(self.device).type,
            versions=package_versions(),
            pixels_sha256=tuple(pixels_sha256(image) for image in images),
        )


class _FiniteCheck:
    """Looks for NaN and infinity: at once on the CPU; on other devices at the end, so that no step waits for one."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, str, int, Level]] = []

    def see(self, tensor: Tensor, slot: str, step: int, level: Level) -> None:
        self._pending.append((torch.isfinite(tensor).all(), slot, step, level))
        if not self.waits(tensor):
            self.settle()

    def waits(self, tensor: Tensor) -> bool:
        """Whether reading a flag would make the host wait for the device."""
        return tensor.device.type != "cpu"

    def settle(self) -> None:
        if not self._pending:
            return
        flags = torch.stack([flag for flag, *_ in self._pending]).tolist()
        for good, (_, slot, step, level) in zip(flags, self._pending, strict=True):
            if not good:
                raise NonFiniteError(
                    f"NaN or infinity came out of the {slot} in {'evaluation' if slot == 'denoiser' else 'step'} "
                    f"{step} at {level}; try float32, fewer extremes in guidance, or another scheduler."
                )
        self._pending.clear()


def _part(kind: str, own: Any, text: str | None) -> tuple[Any, str]:
    """What a request names, or the pipeline's own, and the text that makes it again or says that none does."""
    name = "grid" if isinstance(own, tuple) else registry().spell(kind, own) or f"custom:{type(own).__name__}"
    if text in (None, name):
        return own, name
    made = registry().make(kind, text)
    return made, registry().spell(kind, made) or text


def _done(plan: Plan, resume: StepEvent | None) -> int:
    """How many steps of the plan are behind the event to resume from."""
    if resume is None:
        return 0
    last = len(plan.grid) - 1
    if not 0 < resume.index < last or plan.grid[resume.index] != resume.level:
        raise InvalidRequest(
            f"The run cannot go on after step {resume.index} at {resume.level}: this request has {last} steps and is "
            "at another level there, or done; resume with the request the event came from."
        )
    if tuple(resume.x.shape) != plan.latent_shape:
        raise InvalidRequest(
            f"The event to go on from has latents of shape {tuple(resume.x.shape)}, the request {plan.latent_shape}."
        )
    return resume.index


def _modifiers(request: Request) -> list[Any]:
    """The modifiers of a request, those made that are only named."""
    return [registry().make("modifier", one) if isinstance(one, str) else one for one in request.modifiers]


def _guided(denoiser: Denoiser[Any], request: Request) -> Denoiser[Any]:
    """The denoiser as the request wants it guided."""
    already = getattr(denoiser, "takes_negative", False)
    if request.guidance is not None and already and not isinstance(denoiser, Guided):
        raise InvalidRequest(
            "This pipeline's denoiser is guided inside a wrapper of its own; leave guidance out of the request."
        )
    if request.negative and not already and request.guidance in (None, 1):
        raise InvalidRequest("A negative prompt acts through guidance, and there is none: set guidance above 1.")
    if request.guidance is None:
        return denoiser
    rescale, interval = request.guidance_rescale or 0.0, request.guidance_interval
    return guided(denoiser, request.guidance, rescale=rescale, interval=interval)


@contextmanager
def _slot(name: str) -> Iterator[None]:
    """Errors from inside say which part they came from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the {name}")
        raise


def pixels_sha256(image: object) -> str:
    """SHA-256 of a Pillow image's mode, size and pixels, in hexadecimal; empty for anything else."""
    from PIL.Image import Image

    if not isinstance(image, Image):
        return ""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _to_tensor(picture: Picture, mode: str) -> Tensor:
    """(1, channels, height, width) in [0, 1]."""
    import numpy as np

    pixels = np.asarray(picture.image().convert(mode), dtype=np.float32) / 255
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]


def _painting(denoiser: Any, request: Request, device: str) -> Any:
    """A denoiser whose network has inputs for what to paint into, told what that is."""
    pictures = (_to_tensor(cast(Picture, p), mode) for p, mode in ((request.image, "RGB"), (request.mask, "L")))
    with torch.no_grad(), _slot("autoencoder's encode"):
        return denoiser.painting(*(pixels.to(device) for pixels in pictures))


def _encode(decoder: Decoder[Any], picture: Picture, like: Tensor) -> Tensor:
    latents = cast("Autoencoder[Tensor]", decoder).encode(_to_tensor(picture, "RGB").to(like.device))
    if latents.shape[1:] != like.shape[1:]:
        raise InvalidRequest(
            f"Encoding gave latents of shape {tuple(latents.shape[1:])} where {tuple(like.shape[1:])} is needed."
        )
    return latents.to(like.dtype).expand_as(like)


def _latent_mask(mask: Picture, like: Tensor) -> Tensor:
    """The mask at the size of the latents: a latent element is painted if any of its pixels is."""
    return torch.nn.functional.adaptive_max_pool2d(_to_tensor(mask, "L").to(like), like.shape[-2:])


def _pictures(output: Any, request: Request) -> tuple[Any, ...]:
    """What a decoder gave as pictures; pixels that a mask keeps are the input's, exactly."""
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] not in (1, 3, 4):
        return tuple(output)
    if not bool(torch.isfinite(output).all()):
        raise NonFiniteError("NaN or infinity came out of the decoder; try float32, or decode result.latents again.")
    from PIL import Image

    array = (output.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    images = [Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row) for row in array]
    if request.image is not None and request.mask is not None:
        kept, mask = request.image.image().convert("RGB"), request.mask.image().convert("L")
        images = [Image.composite(image, kept, mask) for image in images]
    return tuple(images)

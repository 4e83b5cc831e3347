"""A walk through what a model can draw: prompts and seeds travel, each frame is a picture of its own.

Between two seeds the start noise lies on the arc between theirs (slerp), between two prompts the conditioning on the
line between theirs. A frame on a key is the very picture that the pipeline makes of that prompt and seed. In a closed
loop the last key goes over to the first. No weights of its own; needs a solver without noise of its own, or one that
takes addressed noise, to be smooth.
"""

from __future__ import annotations

from attrs import field, frozen

from sdkit import (
    Burst,
    Capability,
    Frame,
    FrameInfo,
    FrameJob,
    FramePlan,
    InvalidRequest,
    Loop,
    Mix,
    ParameterError,
    Shot,
    between_keys,
)

__all__ = ["Walk"]


def _seeds(value: object) -> tuple[int, ...]:
    found = tuple(value) if isinstance(value, (tuple, list, range)) else (value,)
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64 for seed in found):
        raise ParameterError(f"The seeds of a walk are whole numbers from 0 to 2^64 - 1, not {value!r}.")
    return found


@frozen
class Walk:
    """Prompts and seeds travel.

    Attributes:
        seeds: One per key of the prompts; with a single prompt they are spread evenly over the clip. Without any, the
            request's first seed stays.
        ease: How one seed goes over to the next: ``linear``, ``cubic``, ``cosine`` or ``step``.
        blend: ``lerp`` or ``slerp``: how conditionings are mixed.
        batch: Frames that are made together, 1 to 256.

    Raises:
        ParameterError: a value is out of range.
    """

    seeds: tuple[int, ...] = field(default=(), converter=_seeds)
    ease: str = "linear"
    blend: str = "lerp"
    batch: int = 8

    def __attrs_post_init__(self) -> None:
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or not 1 <= self.batch <= 256:
            raise ParameterError(f"A walk makes 1 to 256 frames together, not {self.batch!r}.")
        if self.blend not in ("lerp", "slerp"):
            raise ParameterError(f"Conditionings are mixed by lerp or slerp, not by {self.blend!r}.")

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        """Start noise and conditionings of its own where they travel."""
        needs = {Capability.TEXT_TO_IMAGE, Capability.LATENTS}
        if len(self.seeds) > 1:
            needs.add(Capability.START_NOISE)
        if len(job.prompts.keys) > 1:
            needs.add(Capability.CONDITIONING)
        return frozenset(needs)

    def plan(self, job: FrameJob, /) -> FramePlan:
        """What the walk takes.

        Raises:
            InvalidRequest: nothing travels, or seeds and prompts do not fit.
        """
        if len(job.prompts.keys) == 1 and len(self.seeds) < 2:
            raise InvalidRequest(
                "Nothing travels in this walk: give prompts at frames, '0: a cat | 24: a dog', or several seeds, "
                "walk(seeds=(1, 2, 3))."
            )
        if job.request.image is not None:
            raise InvalidRequest("A walk starts from noise, not from an image; take restyle, keyframes or feedback.")
        self._keys(job)
        between_keys(((0, 0), (1, 1)), 0.5, job.timeline, self.ease)  # refuses an ease that is none
        width, height = job.images.size(job.request)
        return FramePlan(min(self.batch, job.timeline.frames), None, self.batch * width * height * 3)

    def init(self, job: FrameJob, /) -> dict[str, object]:
        """Nothing: each frame is a picture of its own."""
        return {}

    def step(self, job: FrameJob, index: int, state: object, /) -> Burst:
        """The next batch of frames."""
        numbers = range(index, min(index + self.batch, job.timeline.frames))
        shots = [Shot(job.prompts.at(i, job.timeline), self._at(job, i)) for i in numbers]
        latents = job.latents(index, lambda: job.images.latents(job.request, shots, blend=self.blend, tick=job.tick))
        pictures = zip(numbers, shots, job.images.decode(latents, job.request), strict=True)
        frames = (
            Frame.of(i, job.timeline, image, FrameInfo(seeds=shot.seeds, prompts=shot.prompts))
            for i, shot, image in pictures
        )
        return Burst(frames, {})

    def _at(self, job: FrameJob, i: int) -> Mix[int]:
        return between_keys(self._keys(job), i, job.timeline, self.ease)

    def _keys(self, job: FrameJob) -> tuple[tuple[int, int], ...]:
        """(frame, seed): at the keys of the prompts, or evenly over the clip."""
        seeds, keys, n = self.seeds or (job.seed,), job.prompts.keys, job.timeline.frames
        if len(seeds) == 1:
            return ((0, seeds[0]),)
        if len(keys) > 1:
            if len(keys) != len(seeds):
                raise InvalidRequest(f"The walk has {len(seeds)} seeds for {len(keys)} prompts; give one per prompt.")
            return tuple((frame, seed) for (frame, _), seed in zip(keys, seeds, strict=True))
        if len(seeds) > n:
            raise InvalidRequest(f"A walk of {n} frames cannot visit {len(seeds)} seeds; ask for more frames.")
        way = n / len(seeds) if job.timeline.loop is Loop.CLOSED else (n - 1) / (len(seeds) - 1)
        return tuple((round(k * way), seed) for k, seed in enumerate(seeds))

"""The rules for generators, filters and sinks of frames, and a model without weights to try them with.

    class TestMine(FrameConformance):
        frames = Mine()

A generator is tried on a fake model whose every part has a closed form, so that a plugin's tests need no weights.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from attrs import field, frozen
from PIL import Image
from torch import Tensor

from sdkit.errors import InvalidRequest, SdkitError
from sdkit.frames.clip import Clip, animate
from sdkit.frames.frame import Capability, Frame, FrameFilter, FrameGenerator, FrameJob, FrameSink, ImageSource, Shot
from sdkit.frames.journal import load_state, save_state
from sdkit.frames.source import image_source
from sdkit.frames.time import Loop, Timeline
from sdkit.frames.tracks import PromptTrack
from sdkit.levels import Level
from sdkit.loading import pipeline
from sdkit.model import LatentSpec, Model, ModelSpec
from sdkit.pipelines import Pipeline
from sdkit.protocols import NoiseSchedule, Parts
from sdkit.request import Request
from sdkit.schedules import scaled_linear
from sdkit.testing.conformance import _Conformance
from sdkit.testing.rules import NonConformance, Skip, global_state_watched, rule

__all__ = [
    "FrameConformance",
    "FrameFilterConformance",
    "FrameSinkConformance",
    "check_frame_filter_determinism",
    "check_frame_filter_duration",
    "check_frame_filter_laziness",
    "check_frame_filter_window",
    "check_frame_sink_failure",
    "check_frame_sink_manifest",
    "check_frame_sink_overwriting",
    "check_frame_sink_reads_back",
    "check_frames_aliasing",
    "check_frames_cancel",
    "check_frames_capabilities",
    "check_frames_closed_loop",
    "check_frames_closing",
    "check_frames_determinism",
    "check_frames_laziness",
    "check_frames_number",
    "check_frames_plan",
    "check_frames_resume",
    "check_frames_side_effects",
    "check_frames_window",
    "fake_pipeline",
    "tried_on",
]

FRAMES = 10
TRACK = "0: aa | 5: bbbbbbbbbbbbbbbbbbbbbbbb"


@frozen(eq=False)
class _FakeDenoiser:
    """``E[x0 | x]`` of Gaussian data whose mean the prompt's length sets."""

    schedule: NoiseSchedule

    def __call__(self, x: Tensor, level: Level, cond: Tensor, /) -> Tensor:
        mean = cond.to(x).reshape(-1, *[1] * (x.ndim - 1))
        gain = level.alpha * 0.04 / (level.alpha**2 * 0.04 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)


class _FakeAutoencoder:
    """Pixels are latents, each repeated 4 x 4; of latents with an axis of time, every element is a frame."""

    latent = LatentSpec(channels=3, factor=4, size=(16, 16), multiple=4)
    time_factor = 1

    def __call__(self, latents: Tensor, /) -> Tensor:
        return latents.repeat_interleave(4, -1).repeat_interleave(4, -2).clamp(0, 1)

    def encode(self, images: Tensor, /) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)


def _fake_encoder(prompts: Sequence[str], /) -> Tensor:
    return torch.tensor([0.2 + 0.6 * min(len(prompt), 30) / 30 for prompt in prompts])


def fake_pipeline() -> Pipeline[str, Any, Any]:
    """A pipeline without weights: 16 x 16 pixels, 3 steps, deterministic; a longer prompt gives a lighter picture.

    It makes whole clips as well: its latents may have an axis of time, of any length.
    """
    schedule, autoencoder = scaled_linear(), _FakeAutoencoder()
    spec = ModelSpec("fake", "fake", autoencoder.latent, steps=3, scheduler="euler", spacing="uniform")
    return pipeline(Model(spec, _fake_encoder, _FakeDenoiser(schedule), autoencoder, schedule))


_ON: ContextVar[Pipeline[str, Any, Any] | None] = ContextVar("sdkit_testing_on", default=None)


@contextmanager
def tried_on(pipe: Pipeline[str, Any, Any]) -> Iterator[None]:
    """Within this, rules for frames are tried on a pipeline of yours instead of `fake_pipeline`.

    For generators that need a network of a certain kind. Every rule makes some clips of ten frames: make it small, of
    few steps, and deterministic. `run` is lazy: ask for its results within this.
    """
    token = _ON.set(pipe)
    try:
        yield
    finally:
        _ON.reset(token)


def _source() -> ImageSource:
    return image_source(_ON.get() or fake_pipeline())


class _Counted:
    """A source that counts what is asked of it."""

    def __init__(self, inside: ImageSource) -> None:
        self.inside, self.pictures, self.capabilities = inside, 0, inside.capabilities

    def latents(self, request: Request, shots: Sequence[Shot], **rest: Any) -> Tensor:
        self.pictures += len(shots)
        used = {Capability.TEXT_TO_IMAGE} if rest.get("start") is None else {Capability.IMAGE_TO_IMAGE}
        used |= {Capability.CONDITIONING} if any(len(shot.prompts) > 1 for shot in shots) else set()
        used |= {Capability.START_NOISE} if any(len(shot.seeds) > 1 for shot in shots) else set()
        missing = sorted(capability.value for capability in used - self.capabilities)
        _demand(not missing, f"it uses {', '.join(missing)} and does not declare it.")
        return self.inside.latents(request, shots, **rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)


@frozen(eq=False)
class _Probe:
    """A modifier that knows whether it is applied."""

    inside: list[int] = field(factory=list)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        self.inside.append(1)
        try:
            yield parts
        finally:
            self.inside.pop()


def _demand(truth: object, message: str) -> None:
    if not truth:
        raise NonConformance(message)


def _clip(
    generator: FrameGenerator,
    source: Any = None,
    *,
    frames: int = FRAMES,
    loop: Loop = Loop.NONE,
    tick: Callable[[], None] | None = None,
    modifiers: tuple[Any, ...] = (),
) -> Clip:
    request = Request(TRACK, seeds=(7,), modifiers=modifiers, image=_still(generator))
    return animate(generator, source or _source(), request, frames=frames, loop=loop, tick=tick)


def _pixels(frames: Iterator[Frame]) -> list[bytes]:
    return [frame.image.tobytes() for frame in frames]


@rule(
    "frames",
    text="Exactly the frames of the timeline: numbers from 0, times exact, all of one size.",
    why="A frame too many shifts the sound, one too few stops a loop.",
    hint="`timeline.frames` is the count; a last burst that is shorter than the others.",
)
def check_frames_number(frames: FrameGenerator) -> None:
    """F1."""
    for count in (6, 7, FRAMES):
        try:
            found = list(_clip(frames, frames=count))
        except SdkitError as error:
            raise NonConformance(f"of {count} frames: {error}") from error
        _demand(len({frame.image.shape for frame in found}) == 1, "its frames have several sizes.")


@rule(
    "frames",
    text="Taking k frames makes no more than k + window pictures.",
    why="A preview of the first second must not cost the whole clip.",
    hint="Work in `init`, or a burst larger than `plan` says.",
)
def check_frames_laziness(frames: FrameGenerator) -> str:
    """F2."""
    source = _Counted(_source())
    clip = _clip(frames, source, frames=40)
    for k in (1, 3, 7):
        source.pictures = 0
        taken = len(list(islice(iter(clip), k)))
        _demand(
            source.pictures <= taken + clip.plan.window,
            f"{taken} frames made {source.pictures} pictures; the window is {clip.plan.window}.",
        )
    return f"window {clip.plan.window}"


@rule(
    "frames",
    text="The same parameters and seed give the same bits, whatever was made in between.",
    why="A clip cannot be corrected at one place if all the rest changes too.",
    hint="State kept on the generator; a random number without an address; a cache filled by another job.",
)
def check_frames_determinism(frames: FrameGenerator) -> None:
    """F3."""
    first = _pixels(iter(_clip(frames)))
    list(_clip(frames, frames=6))
    _demand(_pixels(iter(_clip(frames))) == first, "a second render has other pixels.")


@rule(
    "frames",
    text="Continued from any checkpoint, saved and read again, the frames are those of the straight run, bit for bit.",
    why="A render that was resumed drifts: colours shift, frames stutter.",
    hint="Something remembered outside the state: the frame before, a colour reference, a phase, a counter.",
)
def check_frames_resume(frames: FrameGenerator) -> str:
    """F4."""
    job = _job(frames)
    saved, straight, index, state = {}, list[bytes](), 0, frames.init(job)
    while index < FRAMES:
        saved[index] = _saved(state)
        burst = frames.step(job, index, state)
        images = _pixels(iter(burst.frames))
        _demand(images, f"the step at frame {index} gives no frame.")
        straight, index, state = straight + images, index + len(images), burst.state
    for begin, data in reversed(saved.items()):
        index, state, tail = begin, load_state(data), list[bytes]()
        while index < FRAMES:
            burst = frames.step(job, index, state)
            images = _pixels(iter(burst.frames))
            tail, index, state = tail + images, index + len(images), burst.state
        _demand(tail == straight[begin:], f"continued at frame {begin}, the frames are others.")
    return f"{len(saved)} checkpoints"


def _still(generator: FrameGenerator) -> Image.Image | None:
    """A picture to begin with, for a generator that declares ``starts_from_image = True``."""
    pixels = (40 + np.arange(16 * 16 * 3) % 150).astype(np.uint8).reshape(16, 16, 3)
    return Image.fromarray(pixels) if getattr(generator, "starts_from_image", False) else None


def _job(frames: FrameGenerator) -> FrameJob:
    request = Request(TRACK, seeds=(7,), image=_still(frames))
    return FrameJob(_source(), request, Timeline(FRAMES), PromptTrack(TRACK))


def _saved(state: Any) -> bytes:
    try:
        return save_state(state)
    except SdkitError as error:
        raise NonConformance(str(error)) from error


@rule(
    "frames",
    text="Closing the iterator after any frame leaves nothing applied to the model.",
    why="The next request would be made with an adapter that nobody asked for.",
    hint="A scope entered and not left; `with` around a `yield` is fine, an `enter` without it is not.",
)
def check_frames_closing(frames: FrameGenerator) -> None:
    """F5."""
    for count in (1, 3):
        probe = _Probe()
        running = iter(_clip(frames, modifiers=(probe,)))
        list(islice(running, count))
        running.close()  # type: ignore[attr-defined]  # a generator, whatever it is declared as
        _demand(not probe.inside, f"closed after {count} frames, a modifier is still applied.")


@rule(
    "frames",
    text="Cancelled from within an evaluation of the model, the run ends there; the next is as if nothing had been.",
    why="A cancelled job that goes on, or spoils the next one.",
    hint="Hand `job.tick` to the source; do not catch what it raises.",
)
def check_frames_cancel(frames: FrameGenerator) -> str:
    """F6."""
    clean = _pixels(iter(_clip(frames, frames=6)))
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    list(_clip(frames, frames=6, tick=count))
    if not calls:
        raise Skip("it asks nothing of a model")
    for at in sorted({1, calls // 2 + 1, calls}):
        made = 0

        def stop(at: int = at) -> None:
            nonlocal made
            made += 1
            if made == at:
                raise KeyboardInterrupt

        try:
            list(_clip(frames, frames=6, tick=stop))
        except KeyboardInterrupt:
            _demand(made == at, f"cancelled in evaluation {at}, it made {made}.")
        else:
            raise NonConformance(f"cancelled in evaluation {at}, it went on to the end.")
    _demand(_pixels(iter(_clip(frames, frames=6))) == clean, "after a cancelled run, the pixels are others.")
    return f"{calls} evaluations"


@rule(
    "frames",
    text="No more frames are held than the window, and the state does not grow.",
    why="Long clips end where memory does, after hours.",
    hint="A list of all frames so far; a burst that is larger than `plan` says.",
)
def check_frames_window(frames: FrameGenerator) -> str:
    """F7."""
    clip, seen, most = _clip(frames, frames=60), list[weakref.ref[Any]](), 0
    for frame in clip:
        seen.append(weakref.ref(frame))
        most = max(most, sum(each() is not None for each in seen))
        del frame
    _demand(most <= clip.plan.window + 2, f"{most} frames live at once; the window is {clip.plan.window}.")
    job, index, sizes = _job(frames), 0, list[int]()
    state = frames.init(job)
    while index < FRAMES:
        burst = frames.step(job, index, state)
        index, state = index + len(list(burst.frames)), burst.state
        sizes.append(len(_saved(state)))
    _demand(sizes[-1] <= 1.1 * max(sizes[:2]) + 200, f"the state grows from {sizes[0]} to {sizes[-1]} bytes.")
    return f"{most} live, state {sizes[-1]} bytes"


@rule(
    "frames",
    text="In a closed loop the last and the first frame differ as neighbours do, and are not the same one twice.",
    why="A loop that jumps or stutters at its seam.",
    hint="Frame n would be frame 0: divide the way by n, not by n - 1; let curves travel back.",
)
def check_frames_closed_loop(frames: FrameGenerator) -> str:
    """F8."""
    try:
        found = [frame.image.astype(np.float64) for frame in _clip(frames, frames=24, loop=Loop.CLOSED)]
    except InvalidRequest as error:
        raise Skip(f"it refuses a closed loop: {error}") from error
    steps = [float(np.abs(one - two).mean()) for one, two in zip(found, [*found[1:], found[0]], strict=True)]
    seam, others = steps[-1], sorted(steps[:-1])
    _demand(seam <= 1.5 * others[-1] + 0.5, f"the seam is a step of {seam:.2f}, the largest other {others[-1]:.2f}.")
    doubled = seam == 0 and others[len(others) // 2] > 0
    _demand(not doubled, "the last frame is the first again.")
    return f"seam {seam:.2f}, others up to {others[-1]:.2f}"


@rule(
    "frames",
    text="Frames do not share memory with each other or with the state, and cannot be written to.",
    why="Who keeps a frame finds another picture in it later.",
    hint="One buffer used for every frame; `Frame` copies what is writeable, but not what a view's owner writes.",
)
def check_frames_aliasing(frames: FrameGenerator) -> None:
    """F9."""
    kept = []
    for frame in _clip(frames):
        kept.append((frame, frame.image.tobytes()))
        _demand(not frame.image.flags.writeable, f"frame {frame.index} can be written to.")
    changed = [frame.index for frame, then in kept if frame.image.tobytes() != then]
    _demand(not changed, f"frames {changed} changed after they were handed out.")
    for k, (one, _) in enumerate(kept):
        shared = [two.index for two, _ in kept[k + 1 :] if np.shares_memory(one.image, two.image)]
        _demand(not shared, f"frame {one.index} shares its memory with {shared}.")


@rule(
    "frames",
    text="A source that cannot do what is needed is refused before any work.",
    why="Minutes of work, and then an error that was certain from the beginning.",
    hint="`needs(job)` must name every capability that is used.",
)
def check_frames_capabilities(frames: FrameGenerator) -> str:
    """F10."""
    needs = frames.needs(_job(frames))
    for capability in sorted(needs, key=lambda each: each.value):
        source = _Counted(_source())
        source.capabilities = frozenset(Capability) - {capability}
        try:
            _clip(frames, source)
        except InvalidRequest:
            _demand(source.pictures == 0, "pictures were made before it was refused.")
        else:
            raise NonConformance(f"a source without {capability.value} is accepted.")
    source = _Counted(_source())
    source.capabilities = needs
    try:
        list(_clip(frames, source))
    except SdkitError as error:
        raise NonConformance(f"with just what it declares: {error}") from error
    return ", ".join(sorted(capability.value for capability in needs))


@rule(
    "frames",
    text="Planning makes no picture, and the fake model of the kit is enough for all of these rules.",
    why="A plan is asked for before a person decides; a plugin's tests must run without weights.",
    hint="Move the work from `plan` to `init`.",
)
def check_frames_plan(frames: FrameGenerator) -> str:
    """F11."""
    source = _Counted(_source())
    clip = _clip(frames, source)
    _demand(source.pictures == 0, f"planning made {source.pictures} pictures.")
    again = _clip(frames, source)
    _demand(again.plan == clip.plan, "asked again, the plan is another.")
    _demand(1 <= clip.plan.window <= FRAMES, f"the window is {clip.plan.window} of {FRAMES} frames.")
    return f"window {clip.plan.window}, {clip.plan.peak_bytes} bytes"


@rule(
    "frames",
    text="Nothing is printed, no global random state is touched, no file appears where the program runs.",
    why="A server's log, another thread's seed, a full disk.",
    hint="print, np.random, torch.manual_seed; write only what a sink or journal asks for.",
)
def check_frames_side_effects(frames: FrameGenerator) -> None:
    """F12."""
    said, here = io.StringIO(), set(os.listdir())
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), global_state_watched():
        list(_clip(frames))
    more = sorted(set(os.listdir()) - here)
    _demand(not more, f"it wrote {', '.join(more)}.")
    _demand(not said.getvalue(), f"it printed {said.getvalue()[:60]!r}.")


def _stream(timeline: Timeline, taken: list[int] | None = None) -> Iterator[Frame]:
    """Frames in which something moves and gets lighter."""
    for i in range(timeline.frames):
        image = np.full((12, 20, 3), (40 + 5 * (i % 30), 90, 190), dtype=np.uint8)
        image[2:8, i % 14 : i % 14 + 6] = (200, 30 + i % 100, 90)
        if taken is not None:
            taken.append(i)
        yield Frame.of(i, timeline, image)


TIMELINES = (Timeline(12), Timeline(12, 24, Loop.CLOSED), Timeline(24, Fraction(24000, 1001)))


def _timelines(act: FrameFilter) -> list[tuple[Timeline, Timeline]]:
    """(before, after) where the filter accepts; one that accepts none says why."""
    found, refusals = [], []
    for timeline in TIMELINES:
        try:
            found.append((timeline, act.timeline(timeline)))
        except SdkitError as error:
            refusals.append(str(error))
    if not found:
        raise NonConformance(f"it accepts no timeline: {refusals[0]}")
    return found


@rule(
    "frame_filter",
    text="The frames are those of the timeline the filter states; the duration stays, unless it declares otherwise.",
    why="Sound and picture part; a loop changes its length unasked.",
    hint="`timeline` and `__call__` disagree; declare `keeps_duration = False` if that is what the filter is for.",
)
def check_frame_filter_duration(frame_filter: FrameFilter) -> None:
    """F13."""
    for old, new in _timelines(frame_filter):
        found = list(frame_filter(_stream(old), old))
        _demand(len(found) == new.frames, f"of {old.frames} frames it makes {len(found)}, and states {new.frames}.")
        times = [(frame.index, frame.pts) for frame in found]
        _demand(times == [(i, new.pts(i)) for i in range(new.frames)], "numbers or times are not the timeline's.")
        if getattr(frame_filter, "keeps_duration", True):
            _demand(new.duration == old.duration, f"{old.duration} s become {new.duration} s.")


@rule(
    "frame_filter",
    text="A frame takes no more frames than the window, and those shown before it.",
    why="Nothing would be written until all is rendered.",
    hint="list(frames).",
)
def check_frame_filter_laziness(frame_filter: FrameFilter) -> None:
    """Lazy."""
    for old, new in _timelines(frame_filter):
        # of a filter that changes the duration, only the first frame's place in the old clip is known
        most = new.frames if getattr(frame_filter, "keeps_duration", True) else 1
        taken: list[int] = []
        for index, _ in enumerate(islice(frame_filter(_stream(old, taken), old), most)):
            before = int(new.pts(index) * old.fps)
            _demand(
                len(taken) <= before + frame_filter.window,
                f"frame {index} takes {len(taken)} frames, {before} are shown before it, and the window is "
                f"{frame_filter.window}.",
            )


@rule(
    "frame_filter",
    text="No more frames are held than the window, whatever the length of the clip.",
    why="Long clips end where memory does.",
    hint="Frames kept in a list; keep what they are reduced to.",
)
def check_frame_filter_window(frame_filter: FrameFilter) -> None:
    """Bounded."""
    old = Timeline(240, 24)
    new = frame_filter.timeline(old)
    seen: list[weakref.ref[Any]] = []
    most = 0

    def watched() -> Iterator[Frame]:
        for frame in _stream(old):
            seen.append(weakref.ref(frame))
            yield frame
            del frame

    for made in frame_filter(watched(), old):
        del made
        most = max(most, sum(each() is not None for each in seen))
    _demand(
        most <= frame_filter.window + 2, f"{most} frames of {new.frames} live; the window is {frame_filter.window}."
    )


@rule(
    "frame_filter",
    text="The same frames give the same frames, and what comes in is not changed.",
    why="A resumed render would differ from the straight one.",
    hint="Something kept on the filter between two clips; an array changed in place.",
)
def check_frame_filter_determinism(frame_filter: FrameFilter) -> None:
    """Pure."""
    for old, _ in _timelines(frame_filter):
        given = list(_stream(old))
        before = _pixels(iter(given))
        first = _pixels(frame_filter(iter(given), old))
        _demand(_pixels(iter(given)) == before, "it changes the frames it is given.")
        _demand(_pixels(frame_filter(iter(given), old)) == first, "asked again, it gives other frames.")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _ending(sink: FrameSink) -> str:
    suffixes: tuple[str, ...] = getattr(sink, "suffixes", ())
    _demand(suffixes, "it does not say in `suffixes` what its files end in.")
    return suffixes[0]


MANIFEST = '{"prompt":"a \\"fox\\" & <é> 狐"}'


def _written(sink: FrameSink, folder: Path, timeline: Timeline) -> Path:
    path = folder / f"clip{_ending(sink)}"
    writer = sink.open(path, timeline, (20, 12), MANIFEST)
    for frame in _stream(timeline):
        writer.write(frame)
    return writer.finish()


@rule(
    "frame_sink",
    text="What is written can be read again: number of frames, size, duration (to a tick of the format), and pictures "
    "(nearly, where compression loses something).",
    why="A clip that plays too fast, or lacks its last frame.",
    hint="Delays rounded one by one; a last frame without a duration; frames left in the encoder.",
)
def check_frame_sink_reads_back(frame_sink: FrameSink) -> str:
    """There and back."""
    worst = 0.0
    for timeline in TIMELINES:
        with _folder() as folder:
            found = list(frame_sink.read(_written(frame_sink, folder, timeline))[0])
        _demand(len(found) == timeline.frames, f"{timeline.frames} frames were written, {len(found)} are read.")
        long = sum((frame.duration for frame in found), Fraction(0))
        off = abs(long - timeline.duration)
        _demand(off <= Fraction(1, 80), f"{float(timeline.duration):.3f} s were written, {float(long):.3f} s are read.")
        for one, two in zip(_stream(timeline), found, strict=True):
            _demand(one.image.shape == two.image.shape, f"frames of {one.image.shape} are read as {two.image.shape}.")
            apart = np.abs(one.image.astype(float) - two.image).mean()
            worst = max(worst, float(apart))
    _demand(worst < 12, f"a frame is {worst:.1f} levels from what was written.")
    return f"to {worst:.1f} of 255"


@rule(
    "frame_sink",
    text="The manifest is in the file, letter by letter.",
    why="Nobody knows any more how the clip was made.",
    hint="An encoding other than UTF-8; quotes that were not escaped; a tag that is cut at a length.",
)
def check_frame_sink_manifest(frame_sink: FrameSink) -> None:
    """Its manifest."""
    with _folder() as folder:
        text = frame_sink.read(_written(frame_sink, folder, TIMELINES[0]))[1]
    _demand(text == MANIFEST, f"it reads {text[:80]!r}.")


@rule(
    "frame_sink",
    text="A writer stopped midway leaves no file of the final name: nothing, or one of another name that plays.",
    why="A broken file that looks like a finished one.",
    hint="Write to a temporary name and rename in `finish`.",
)
def check_frame_sink_failure(frame_sink: FrameSink) -> str:
    """F14."""
    left: list[str] = []
    for count in (0, 1, 5):
        with _folder() as folder:
            path, timeline = folder / f"clip{_ending(frame_sink)}", TIMELINES[0]
            writer = frame_sink.open(path, timeline, (20, 12), MANIFEST)
            for frame in islice(_stream(timeline), count):
                writer.write(frame)
            _demand(not path.exists(), "the final name exists while the clip is written.")
            writer.abort()
            _demand(not path.exists(), f"stopped after {count} frames, the final name exists.")
            left = sorted(each.name for each in folder.iterdir())
            _demand(count or not left, f"stopped before the first frame, it leaves {left}.")
            for each in folder.glob("*.partial.*"):
                found = len(list(frame_sink.read(each)[0]))
                _demand(found == count, f"stopped after {count} frames, the partial file plays {found}.")
    return ", ".join(left)


@rule(
    "frame_sink",
    text="A file that stands under the name stays as it is until the new one is finished.",
    why="A failed render must not cost the clip that was there.",
    hint="Opening the final name for writing.",
)
def check_frame_sink_overwriting(frame_sink: FrameSink) -> None:
    """What was there."""
    with _folder() as folder:
        path = _written(frame_sink, folder, TIMELINES[0])
        before = {each.name: each.read_bytes() for each in folder.iterdir()}

        def stays() -> bool:
            return all((folder / name).exists() and (folder / name).read_bytes() == was for name, was in before.items())

        writer = frame_sink.open(folder / f"clip{_ending(frame_sink)}", TIMELINES[0], (20, 12), "{}")
        writer.write(Frame.of(0, TIMELINES[0], np.zeros((12, 20, 3), np.uint8)))
        _demand(stays(), "it was overwritten by the first frame.")
        writer.abort()
        _demand(stays(), "it was overwritten by an aborted render.")
        _written(frame_sink, folder, TIMELINES[1])
        _demand(path.read_bytes() != before[path.name], "a finished clip does not take its place.")


class FrameConformance(_Conformance):
    """Every rule for generators of frames; a subclass sets ``frames``.

    And ``pipeline``, where `fake_pipeline` is no use to the generator; see `tried_on`.
    """

    subject = "frames"
    pipeline: ClassVar[Pipeline[str, Any, Any] | None] = None

    def around(self) -> AbstractContextManager[object]:
        """On the pipeline, if there is one."""
        return nullcontext() if self.pipeline is None else tried_on(self.pipeline)


class FrameFilterConformance(_Conformance):
    """Every rule for filters of frames; a subclass sets ``frame_filter``."""

    subject = "frame_filter"


class FrameSinkConformance(_Conformance):
    """Every rule for sinks of frames; a subclass sets ``frame_sink``."""

    subject = "frame_sink"

"""From a generator to a file: ``animate(...) -> Clip``, ``clip | filter``, ``clip.save("out.mp4")``."""

from __future__ import annotations

import math
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from sdkit.errors import ContractError, FileError, InvalidRequest, ManifestError, ParameterError
from sdkit.frames.frame import (
    Frame,
    FrameFilter,
    FrameGenerator,
    FrameInfo,
    FrameJob,
    FramePlan,
    FrameSink,
    ImageSource,
)
from sdkit.frames.journal import Journal
from sdkit.frames.source import image_source
from sdkit.frames.time import Loop, Timeline
from sdkit.frames.tracks import PromptTrack
from sdkit.manifest import package_versions
from sdkit.pipelines import Pipeline
from sdkit.plugins import registry, spelling
from sdkit.request import Request
from sdkit.wire import from_json, to_json

if TYPE_CHECKING:
    from sdkit.frames.frame import SinkWriter

__all__ = ["Clip", "ClipManifest", "PingPong", "animate", "frame_sink"]

SCHEMA = 1
QUEUE = 8
"""Frames that wait for the encoder at most; rendering waits when there are more, and a kill takes them along.

A step's frames come at once and are encoded while the next step is computed: where a step makes one, one may wait.
"""


@frozen
class ClipManifest:
    """What made a clip.

    Attributes:
        generator: As text that makes it again.
        request: Everything asked of the model; its prompt is the whole track.
        frames: Frames of the timeline asked for, before filters.
        fps: Frames per second, as a fraction.
        loop: Name of the loop.
        filters: As text, in order.
        model: Name of the model.
        model_sha256: Hash of its weights, empty if not known.
        licence: Identifier of the model's licence.
        versions: Versions of the packages that matter for the numbers.
        sink: What wrote the file, as text; empty before.
        schema: Version of this form.
    """

    generator: str
    request: Request
    frames: int
    fps: str
    loop: str
    filters: tuple[str, ...] = ()
    model: str = ""
    model_sha256: str = ""
    licence: str = "unknown"
    versions: dict[str, str] = field(factory=dict)
    sink: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """As JSON text, the start picture included."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> ClipManifest:
        """What `to_json` wrote; unknown fields are an error.

        Raises:
            ManifestError: it is no such text, or of a newer sdkit.
        """
        found = from_json(text, cls)
        if found.schema != SCHEMA:
            raise ManifestError(f"The clip's manifest has schema {found.schema!r}; this sdkit reads {SCHEMA}.")
        return found


@frozen
class PingPong:
    """There and back again: frames 0 .. n-1, then n-2 .. 1, as a loop; pixels wait in a file, not in memory."""

    window: int = field(default=1, init=False)
    keeps_duration = False

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """2 n - 2 frames."""
        if timeline.frames < 3:
            raise InvalidRequest(f"There and back again takes at least 3 frames, not {timeline.frames}.")
        return Timeline(2 * timeline.frames - 2, timeline.fps, Loop.PINGPONG)

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The frames, and those between the ends once more, backwards."""
        import numpy as np

        new, kept, shape = self.timeline(timeline), list[FrameInfo](), (0, 0, 0)
        with tempfile.TemporaryFile() as file:
            for index, frame in enumerate(frames):
                shape = frame.image.shape
                file.write(frame.image.tobytes())
                kept.append(attrs.evolve(frame.info, origin="repeated"))
                yield Frame.of(index, new, frame.image, frame.info)
            size = shape[0] * shape[1] * shape[2]
            for index, k in enumerate(range(len(kept) - 2, 0, -1), start=len(kept)):
                file.seek(k * size)
                image = np.frombuffer(file.read(size), dtype=np.uint8).reshape(shape)
                yield Frame.of(index, new, image, kept[k])


@frozen(eq=False)
class Clip:
    """Frames that are made when they are asked for. Each ``for`` over it renders from the beginning.

    Attributes:
        timeline: How many frames, how fast, and how they loop.
        manifest: What makes them.
        plan: What the generator said it takes.
    """

    timeline: Timeline
    manifest: ClipManifest = field(repr=False)
    plan: FramePlan = field(repr=False)
    _make: Callable[[], Iterator[Frame]] = field(repr=False, alias="make")

    def __iter__(self) -> Iterator[Frame]:
        return self._make()

    def __or__(self, other: FrameFilter | str) -> Clip:
        """The clip behind a filter, by name or as an object.

        Raises:
            UnknownComponent, ParameterError: there is no such filter, or not with these parameters.
            InvalidRequest: it cannot work on this timeline.
        """
        act: FrameFilter = registry().make("frame-filter", other) if isinstance(other, str) else other
        if not callable(act) or isinstance(act, type) or not hasattr(act, "timeline"):
            raise ParameterError(f"A clip goes through a filter's name or a filter, not through {other!r}.")
        new, make, old = act.timeline(self.timeline), self._make, self.timeline
        text = _spelled("frame-filter", act)
        manifest = attrs.evolve(self.manifest, filters=(*self.manifest.filters, text))
        return Clip(new, manifest, self.plan, lambda: _counted(act(make(), old), new, text))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        sink: FrameSink | str | None = None,
        on_frame: Callable[[Frame], object] | None = None,
    ) -> Path:
        """Render into a file. Encoding runs beside rendering; a failure leaves nothing, or a partial file that plays.

        Args:
            path: Its ending names the format: ``.mp4``, ``.webm``, ``.gif``, ``.webp``, ``.apng``, ``.png`` (a picture
                per frame).
            sink: Another format, by name with parameters (``"mp4(crf=20)"``) or as an object.
            on_frame: Called with every frame as it is made.

        Raises:
            FileError: the file cannot be written. Errors of generators and filters pass through.
        """
        path = Path(path)
        act = (
            frame_sink(path) if sink is None else registry().make("frame-sink", sink) if isinstance(sink, str) else sink
        )
        if isinstance(act, type) or not hasattr(act, "open"):
            raise ParameterError(f"A clip is written by a sink's name or a sink, not by {sink!r}.")
        if not path.parent.is_dir():
            raise FileError(f"The folder {str(path.parent)!r} does not exist; make it first.")
        if path.is_dir():
            raise FileError(f"{path.name!r} cannot be written: it is a folder.")
        if hasattr(act, "check"):
            act.check(self.timeline)
        frames = iter(self)
        with closing(frames):  # type: ignore[type-var]  # a generator, whatever it is declared as
            first = next(frames)
            size = (first.image.shape[1], first.image.shape[0])
            manifest = attrs.evolve(self.manifest, sink=_spelled("frame-sink", act))
            writer = act.open(path, self.timeline, size, manifest.to_json())
            burst = math.ceil(self.plan.window * self.timeline.frames / self.manifest.frames)
            try:
                with _Beside(writer, min(QUEUE, max(1, burst - 1))) as encoder:
                    for frame in _with_first(first, frames):
                        if (frame.image.shape[1], frame.image.shape[0]) != size:
                            raise ContractError(f"Frame {frame.index} has another size than the first, {size}.")
                        encoder.put(frame)
                        if on_frame is not None:
                            on_frame(frame)
                return writer.finish()
            except BaseException:
                writer.abort()
                raise


def _with_first(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest


class _Beside:
    """Writes frames in a thread of its own, a few behind at most; what goes wrong there is raised here."""

    def __init__(self, writer: SinkWriter, room: int) -> None:
        self._writer, self._error = writer, list[BaseException]()
        self._queue: queue.Queue[Frame | None] = queue.Queue(room)
        self._thread = threading.Thread(target=self._run, name="sdkit-encoder", daemon=True)

    def _run(self) -> None:
        while (frame := self._queue.get()) is not None:
            if self._error:
                continue  # what still comes is taken, so that nobody waits for room
            try:
                self._writer.write(frame)
            except BaseException as error:
                self._error.append(error)

    def put(self, frame: Frame) -> None:
        self._raise()
        self._queue.put(frame)

    def _raise(self) -> None:
        if self._error:
            raise self._error[0]

    def __enter__(self) -> _Beside:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()


def frame_sink(path: Path) -> FrameSink:
    """The sink for a file's ending.

    Raises:
        UnknownComponent: no installed sink writes such files; names those there are.
    """
    ending = path.suffix.lower().removeprefix(".")
    if not ending or not path.stem:
        raise FileError(f"{path.name!r} has no ending that says what it is: .mp4, .webm, .gif, .webp, .apng or .png.")
    made: FrameSink = registry().make("frame-sink", ending)
    return made


def animate(
    generator: FrameGenerator | str,
    source: Pipeline[str, Any, Any] | ImageSource | None = None,
    request: Request | str = "",
    *,
    frames: int = 48,
    fps: Any = 12,
    loop: Loop | str = Loop.NONE,
    ease: str = "linear",
    journal: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    tick: Callable[[], None] | None = None,
) -> Clip:
    """A clip of frames that a generator makes with a model; nothing is computed until frames are asked for.

    Args:
        generator: A name, parameters may follow (``'zoom(zoom="0:(1), 48:(1.4)")'``), or a generator.
        source: A pipeline, or another source of images; None for a generator that needs none.
        request: What to show: a prompt, a track of prompts (``"0: a cat | 24: a dog"``), or a `sdkit.Request` whose
            prompt is one of these and which sets seeds, steps, guidance and all else of the model's side.
        frames: How many, 1 to 1,000,000.
        fps: Frames per second, exact: a number or a fraction as text.
        loop: ``"none"``, ``"closed"`` or ``"pingpong"``.
        ease: How one prompt goes over to the next: ``linear``, ``cubic``, ``cosine``, ``step``.
        journal: A folder in which the render can be taken up after a crash.
        resume: Go on with the render in ``journal``, if there is one; the frames are those of the straight render.
        force: Do so even if the journal is of another render.
        tick: Called before each evaluation of the model; what it raises cancels the render.

    Raises:
        UnknownComponent, ParameterError: a name means nothing, or not with these parameters.
        InvalidRequest: the source cannot do what the generator needs, or the clip cannot be made; nothing was computed.
        FileError, ManifestError: the journal cannot be used.
    """
    made: FrameGenerator = registry().make("frames", generator) if isinstance(generator, str) else generator
    if isinstance(made, type) or not hasattr(made, "step"):
        raise ParameterError(f"Frames are made by a generator or the name of one, not by {generator!r}.")
    request = Request(request) if isinstance(request, str) else request
    if not isinstance(request, Request):
        raise ParameterError(f"What to show is text, such as '0: a cat | 24: a dog', or a Request, not {request!r}.")
    if source is not None and not isinstance(source, Pipeline) and not hasattr(source, "latents"):
        raise ParameterError(f"A clip is made with sdkit.pipeline(model), not with {source!r:.80}.")
    shown = Timeline(frames, fps, loop)
    # of there and back, one way is rendered
    timeline = Timeline(shown.frames // 2 + 1, shown.fps) if shown.loop is Loop.PINGPONG else shown
    images = None if source is None else image_source(source)
    job = FrameJob(images, request, timeline, PromptTrack(request.prompt, ease), tick)
    job.prompts.check(shown)
    _check_needs(made, job)
    plan, facts = made.plan(job), {} if images is None else images.facts()
    manifest = ClipManifest(
        generator=_spelled("frames", made),
        request=request,
        frames=shown.frames,
        fps=str(shown.fps),
        loop=shown.loop.value,
        model=facts.get("model", ""),
        model_sha256=facts.get("model_sha256", ""),
        licence=facts.get("licence", "unknown"),
        versions=package_versions(),
    )
    folder = None if journal is None else Path(journal)
    if folder is not None:
        Journal.open(folder, manifest.to_json(), timeline, resume=resume, force=force)

    def make() -> Iterator[Frame]:
        kept = None if folder is None else Journal(folder, timeline)
        rendered = _counted(_rendered(made, attrs.evolve(job, keeper=kept), kept), timeline, "generator")
        return PingPong()(rendered, timeline) if shown.loop is Loop.PINGPONG else rendered

    return Clip(shown, manifest, plan, make)


def _spelled(kind: str, part: object) -> str:
    """A generator, filter or sink as text; names of files lose their folders, which are nobody's business."""
    text = registry().spell(kind, part)
    if text is None:
        return f"custom:{type(part).__name__}"
    name, parameters = spelling.parse(text)
    return spelling.spell(name, {key: _without_folder(value) for key, value in parameters.items()})


def _without_folder(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_without_folder(each) for each in value)
    if isinstance(value, str) and (PurePath(value).is_absolute() or os.path.isfile(value)):
        return PurePath(value).name
    return value


def _check_needs(generator: FrameGenerator, job: FrameJob) -> None:
    needs = generator.needs(job)
    has = job.source.capabilities if job.source is not None else frozenset()
    missing = sorted(capability.value for capability in needs - has)
    if missing:
        what = "this source of images cannot do" if job.source is not None else "there is no source of images for"
        raise InvalidRequest(f"The generator {type(generator).__name__} needs what {what}: {', '.join(missing)}.")


def _rendered(generator: FrameGenerator, job: FrameJob, journal: Journal | None) -> Iterator[Frame]:
    """The one loop: steps from the beginning, or from the last checkpoint behind the frames that are there."""
    latest = None if journal is None else journal.latest()
    if latest is None:
        index, state = 0, generator.init(job)
        if journal is not None:
            journal.checkpoint(0, state)
    else:
        index, state = latest
        if journal is not None:
            yield from journal.frames(min(index, job.timeline.frames))
    while index < job.timeline.frames:
        burst, first = generator.step(job, index, state), index
        for frame in burst.frames:
            if journal is not None:
                journal.keep(frame)
            yield frame
            index += 1
        if index == first:
            raise ContractError(f"The generator {type(generator).__name__} made no frame at {index}.")
        state = burst.state
        if journal is not None:
            journal.checkpoint(index, state)


def _counted(frames: Iterator[Frame], timeline: Timeline, who: str) -> Iterator[Frame]:
    """The frames, if they are those of the timeline."""
    count = 0
    for frame in frames:
        if frame.index != count or frame.pts != timeline.pts(count) or count >= timeline.frames:
            raise ContractError(
                f"The {who} gave frame {frame.index} at {frame.pts} s where frame {count} of {timeline.frames} at "
                f"{timeline.pts(count)} s is due."
            )
        yield frame
        count += 1
    if count != timeline.frames:
        raise ContractError(f"The {who} gave {count} frames, not {timeline.frames}.")

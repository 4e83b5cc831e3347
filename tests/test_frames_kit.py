"""Wrong generators, filters and sinks, as people write them, each with the rule that must catch it: the kit's own test."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from sdkit import Burst, Capability, Frame, FrameInfo, FrameJob, FramePlan, InvalidRequest, Shot, Timeline
from sdkit.testing import (
    FrameConformance,
    FrameFilterConformance,
    FrameSinkConformance,
    NonConformance,
    apply,
    catalogue,
    fake_pipeline,
    run,
    tried_on,
)

RULES = {(rule.subject, rule.name): rule for rule in catalogue()}
NEEDS = frozenset({Capability.TEXT_TO_IMAGE, Capability.LATENTS, Capability.IMAGE_TO_IMAGE})
ALL = NEEDS | {Capability.CONDITIONING}


@attrs.frozen
class Drift:
    """A right one: each frame is image to image of the last, which travels in the state."""

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        return ALL

    def plan(self, job: FrameJob, /) -> FramePlan:
        if job.timeline.loop.value == "closed":
            raise InvalidRequest("It cannot close.")
        return FramePlan()

    def init(self, job: FrameJob, /) -> dict[str, Any]:
        return {"last": self.picture(job, 0, None)}

    def step(self, job: FrameJob, index: int, state: Any, /) -> Burst:
        latents = self.picture(job, index, state["last"])
        return Burst([self.frame(job, index, latents)], {"last": latents})

    def picture(self, job: FrameJob, index: int, start: torch.Tensor | None) -> torch.Tensor:
        shot = Shot(job.prompts.at(index, job.timeline), ((index, 1.0),))
        share = None if start is None else 0.5
        return job.images.latents(job.request, [shot], start=start, strength=share, tick=job.tick)

    def frame(self, job: FrameJob, index: int, latents: torch.Tensor) -> Frame:
        return Frame.of(index, job.timeline, next(iter(job.images.decode(latents, job.request))), FrameInfo())


class TestDrift(FrameConformance):
    frames = Drift()


class Choosy(Drift):
    """Makes clips with one model only."""

    def plan(self, job: FrameJob, /) -> FramePlan:
        if job.images is None or job.images.facts()["model"] != "of its own":
            raise InvalidRequest("It needs a model of its own.")
        return super().plan(job)


def own_pipeline() -> Any:
    pipe = fake_pipeline()
    assert pipe.spec is not None
    return attrs.evolve(pipe, spec=attrs.evolve(pipe.spec, name="of its own"))


class TestOnItsOwnPipeline(FrameConformance):
    frames = Choosy()
    pipeline = own_pipeline()


def test_the_rules_are_tried_on_the_pipeline_that_is_named_and_on_no_other_afterwards() -> None:
    assert {outcome.state for outcome in run(Choosy(), "frames")} >= {"fail"}
    with tried_on(own_pipeline()):
        assert [outcome.detail for outcome in run(Choosy(), "frames") if outcome.state == "fail"] == []
    assert any("model of its own" in outcome.detail for outcome in run(Choosy(), "frames"))


MUTANTS: dict[str, tuple[Callable[[], Any], str, str]] = {}


def mutant(rule: str, subject: str = "frames") -> Callable[[Any], Any]:
    def enter(make: Any) -> Any:
        MUTANTS[make.__name__] = (make, subject, rule)
        return make

    return enter


class Changed:
    """`Drift` with one method changed."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self._inside = Drift()
        for name, method in methods.items():
            setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)


@mutant("number")
def one_frame_too_many() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        first = Drift().step(job, index, state)
        last = index == job.timeline.frames - 1
        return Burst([*first.frames, *(Drift().step(job, index + 1, state).frames if last else ())], first.state)

    return Changed(step=step)


@mutant("number")
def times_in_floats_of_another_rate() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        made = Drift().step(job, index, state)
        return Burst([attrs.evolve(frame, pts=frame.pts * 2) for frame in made.frames], made.state)

    return Changed(step=step)


@mutant("laziness")
def all_frames_in_init() -> Any:
    def init(job: FrameJob) -> Any:
        latents = [Drift().picture(job, i, None) for i in range(job.timeline.frames)]
        return {"all": torch.cat(latents)}

    def step(job: FrameJob, index: int, state: Any) -> Burst:
        return Burst([Drift().frame(job, index, state["all"][index][None])], state)

    return Changed(init=init, step=step)


@mutant("determinism")
def a_counter_on_the_generator() -> Any:
    count = iter(range(10**6))

    def init(job: FrameJob) -> Any:
        return {"last": Drift().picture(job, next(count), None)}

    return Changed(init=init)


@mutant("resume")
def the_last_frame_outside_the_state() -> Any:
    kept: dict[str, Any] = {}

    def init(job: FrameJob) -> Any:
        kept["last"] = Drift().picture(job, 0, None)
        return {}

    def step(job: FrameJob, index: int, state: Any) -> Burst:
        kept["last"] = Drift().picture(job, index, kept["last"])
        return Burst([Drift().frame(job, index, kept["last"])], {})

    return Changed(init=init, step=step)


@mutant("resume")
def a_state_that_is_no_data() -> Any:
    def init(job: FrameJob) -> Any:
        return {"job": job, **Drift().init(job)}

    return Changed(init=init)


@mutant("closing")
def a_scope_that_is_never_left() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        for modifier in job.request.modifiers:
            scope = modifier.apply(None)
            scope.__enter__()
            held.append(scope)
        return Drift().step(job, index, state)

    return Changed(step=step)


held: list[Any] = []


@mutant("cancel")
def cancel_is_caught() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        try:
            return Drift().step(job, index, state)
        except BaseException:
            return Drift().step(attrs.evolve(job, tick=None), index, state)

    return Changed(step=step)


@mutant("window")
def every_frame_in_a_list() -> Any:
    frames: list[Frame] = []

    def step(job: FrameJob, index: int, state: Any) -> Burst:
        made = Drift().step(job, index, state)
        frames.extend(made.frames)
        return Burst(frames[-1:], made.state)

    return Changed(step=step)


@mutant("window")
def a_state_that_grows() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        made = Drift().step(job, index, state)
        seen = torch.cat([state.get("seen", made.state["last"]), made.state["last"]])
        return Burst(made.frames, {**made.state, "seen": seen})

    return Changed(step=step)


@mutant("closed_loop")
def a_loop_that_never_comes_back() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        image = np.full((16, 16, 3), 5 * index, np.uint8)
        return Burst([Frame.of(index, job.timeline, image)], {})

    return Changed(plan=lambda job: FramePlan(), init=lambda job: {}, step=step)


@mutant("closed_loop")
def the_first_frame_twice() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        share = index / (job.timeline.frames - 1)
        image = np.full((16, 16, 3), round(100 + 80 * np.sin(2 * np.pi * share)), np.uint8)
        return Burst([Frame.of(index, job.timeline, image)], {})

    return Changed(plan=lambda job: FramePlan(), init=lambda job: {}, step=step)


@mutant("aliasing")
def one_buffer_for_all() -> Any:
    buffer = np.zeros((16, 16, 3), np.uint8)

    def step(job: FrameJob, index: int, state: Any) -> Burst:
        made = Drift().step(job, index, state)
        (frame,) = made.frames
        buffer.setflags(write=True)
        buffer[:] = frame.image
        buffer.setflags(write=False)
        return Burst([attrs.evolve(frame, image=buffer)], made.state)

    return Changed(step=step)


@mutant("capabilities")
def image_to_image_not_declared() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        return Drift().step(job, index, state)

    return Changed(needs=lambda job: ALL - {Capability.IMAGE_TO_IMAGE}, step=step)


@mutant("capabilities")
def prompts_mixed_and_not_declared() -> Any:
    return Changed(needs=lambda job: NEEDS)


@mutant("capabilities")
def a_need_that_is_looked_for_after_the_work() -> Any:
    def needs(job: FrameJob) -> frozenset[Capability]:
        job.images.latents(job.request, [Shot((("a", 1.0),), ((0, 1.0),))])
        return NEEDS

    return Changed(needs=needs)


@mutant("plan")
def work_in_plan() -> Any:
    def plan(job: FrameJob) -> FramePlan:
        Drift().picture(job, 0, None)
        return FramePlan()

    return Changed(plan=plan)


@mutant("plan")
def a_window_of_nothing() -> Any:
    return Changed(plan=lambda job: FramePlan(window=0))


@mutant("side_effects")
def it_prints() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        print("frame", index)  # noqa: T201
        return Drift().step(job, index, state)

    return Changed(step=step)


@mutant("side_effects")
def it_writes_frames_where_it_runs() -> Any:
    def step(job: FrameJob, index: int, state: Any) -> Burst:
        made = Drift().step(job, index, state)
        Path(f"frame-{index}.txt").write_text("x")
        return made

    return Changed(step=step)


@attrs.frozen
class Same:
    """A right filter."""

    window: int = 1
    keeps_duration: ClassVar[bool] = True

    def timeline(self, timeline: Timeline, /) -> Timeline:
        return timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        for frame in frames:
            yield attrs.evolve(frame, image=255 - frame.image)


class TestSame(FrameFilterConformance):
    frame_filter = Same()


class ChangedFilter:
    """`Same` with its call changed."""

    window = 1

    def __init__(self, call: Callable[..., Any], timeline: Callable[..., Any] = lambda timeline: timeline) -> None:
        self._call, self.timeline = call, timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline) -> Iterator[Frame]:
        return iter(self._call(frames, timeline))


@mutant("duration", "frame_filter")
def a_last_frame_dropped() -> Any:
    return ChangedFilter(lambda frames, timeline: list(frames)[:-1])


@mutant("duration", "frame_filter")
def twice_as_fast_unasked() -> Any:
    def call(frames: Iterator[Frame], timeline: Timeline) -> Iterator[Frame]:
        faster = attrs.evolve(timeline, fps=timeline.fps * 2)
        return (Frame.of(frame.index, faster, frame.image) for frame in frames)

    return ChangedFilter(call, lambda timeline: attrs.evolve(timeline, fps=timeline.fps * 2))


@mutant("laziness", "frame_filter")
def all_frames_first() -> Any:
    return ChangedFilter(lambda frames, timeline: list(frames))


@mutant("laziness", "frame_filter")
def all_frames_after_the_first() -> Any:
    def call(frames: Iterator[Frame], timeline: Timeline) -> Iterator[Frame]:
        yield next(frames)
        yield from list(frames)

    return ChangedFilter(call)


@mutant("window", "frame_filter")
def all_frames_kept() -> Any:
    def call(frames: Iterator[Frame], timeline: Timeline) -> Iterator[Frame]:
        kept = []
        for frame in frames:
            kept.append(frame)
            yield frame

    return ChangedFilter(call)


@mutant("determinism", "frame_filter")
def a_mean_that_lives_on_the_filter() -> Any:
    total = [0]

    def call(frames: Iterator[Frame], timeline: Timeline) -> Iterator[Frame]:
        for frame in frames:
            total[0] += 1
            yield attrs.evolve(frame, image=frame.image // np.uint8(1 + total[0] % 7))

    return ChangedFilter(call)


class Stack:
    """A right sink: an uncompressed TIFF of pages, held in memory."""

    suffixes = (".tiff",)

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> Any:
        return StackWriter(path, timeline, manifest)

    def read(self, path: Path, /, start: Any = 0) -> tuple[Iterator[Frame], str]:
        with Image.open(path) as image:
            notes = image.tag_v2[270].partition("|")  # type: ignore[attr-defined]
            timeline, images = Timeline(image.n_frames, notes[0]), []  # type: ignore[attr-defined]
            for k in range(image.n_frames):  # type: ignore[attr-defined]
                image.seek(k)
                images.append(np.array(image.convert("RGB")))
        return (Frame.of(k, timeline, each) for k, each in enumerate(images)), bytes.fromhex(notes[2]).decode()


class StackWriter:
    def __init__(self, path: Path, timeline: Timeline, manifest: str) -> None:
        self.path, self.timeline, self.manifest = path, timeline, manifest
        self.images: list[Image.Image] = []

    def write(self, frame: Frame, /) -> None:
        self.images.append(Image.fromarray(frame.image))

    def data(self) -> bytes:
        buffer = io.BytesIO()
        note = f"{self.timeline.fps}|{self.manifest.encode().hex()}"
        self.images[0].save(buffer, "TIFF", save_all=True, append_images=self.images[1:], tiffinfo={270: note})
        return buffer.getvalue()

    def finish(self) -> Path:
        self.path.write_bytes(self.data())
        return self.path

    def abort(self) -> None:
        """Nothing was written."""


class TestStack(FrameSinkConformance):
    frame_sink = Stack()


class ChangedSink(Stack):  # a test may inherit
    def __init__(self, writer: type) -> None:
        self._writer = writer

    def open(self, path: Path, timeline: Timeline, size: tuple[int, int], manifest: str, /) -> Any:
        return self._writer(path, timeline, manifest)


@mutant("reads_back", "frame_sink")
def a_frame_stays_in_the_encoder() -> Any:
    class Writer(StackWriter):
        def finish(self) -> Path:
            self.images.pop()
            return super().finish()

    return ChangedSink(Writer)


@mutant("reads_back", "frame_sink")
def a_rate_rounded_to_ten() -> Any:
    class Writer(StackWriter):
        def finish(self) -> Path:
            self.timeline = attrs.evolve(self.timeline, fps=10)
            return super().finish()

    return ChangedSink(Writer)


@mutant("reads_back", "frame_sink")
def red_and_blue_exchanged() -> Any:
    class Writer(StackWriter):
        def write(self, frame: Frame, /) -> None:
            self.images.append(Image.fromarray(np.ascontiguousarray(frame.image[..., ::-1])))

    return ChangedSink(Writer)


@mutant("manifest", "frame_sink")
def a_manifest_in_latin_letters() -> Any:
    class Writer(StackWriter):
        def finish(self) -> Path:
            self.manifest = self.manifest.encode("ascii", "replace").decode()
            return super().finish()

    return ChangedSink(Writer)


@mutant("failure", "frame_sink")
def written_under_the_final_name() -> Any:
    class Writer(StackWriter):
        def write(self, frame: Frame, /) -> None:
            super().write(frame)
            self.path.write_bytes(self.data())

    return ChangedSink(Writer)


@mutant("failure", "frame_sink")
def an_abort_that_finishes() -> Any:
    class Writer(StackWriter):
        def abort(self) -> None:
            if self.images:
                self.finish()

    return ChangedSink(Writer)


@mutant("overwriting", "frame_sink")
def the_old_file_goes_first() -> Any:
    class Writer(StackWriter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.path.write_bytes(b"")

    return ChangedSink(Writer)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_each_mutant_is_caught_by_the_rule_it_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, subject, rule = MUTANTS[name]
    with pytest.raises(NonConformance) as caught:
        apply(RULES[subject, rule], make())
    assert "\n" not in str(caught.value)


def test_every_rule_has_a_mutant() -> None:
    tried = {(subject, rule) for _, subject, rule in MUTANTS.values()}
    assert tried == {key for key in RULES if key[0].startswith("frame")}

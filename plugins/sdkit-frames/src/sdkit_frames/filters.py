"""Filters: what becomes of finished frames. Each holds a frame or two, whatever the length of the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sdkit import FileError, Frame, FrameInfo, InvalidRequest, Loop, ParameterError, Timeline
from sdkit_frames.color import check_space, match, to_space
from sdkit_frames.partial import checked

__all__ = ["Blend", "Caption", "ColorMatch", "Deflicker", "Resize", "Retime", "check_times", "mixed", "sampled"]


def check_times(times: int) -> None:
    """Raises `ParameterError` unless a clip can have so many times as many frames."""
    checked(times, 2, 16, "How many times as many frames", whole=True)


def mixed(one: NDArray[np.uint8], two: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """(1 - share) one + share two, rounded."""
    if share <= 0:
        return one
    return np.rint((1 - share) * one.astype(np.float32) + share * two.astype(np.float32)).astype(np.uint8)


def _mapped(frames: Iterator[Frame], change: Callable[[Frame], NDArray[np.uint8]]) -> Iterator[Frame]:
    for frame in frames:
        yield evolve(frame, image=change(frame))


Mix: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.uint8], float], NDArray[np.uint8]]
"""What lies between two pictures, at a share of the way from the first to the second."""


def sampled(frames: Iterator[Frame], old: Timeline, new: Timeline, *, mix: Mix | None) -> Iterator[Frame]:
    """The clip at other times: the frame that is shown then, or with ``mix`` what lies between it and the next.

    Behind the last frame of a loop comes the first again; of a clip that is none, the last stays.
    """
    first = now = next(frames)
    at, following = 0, next(frames, None)
    for i in range(new.frames):
        place = new.pts(i) * old.fps
        while int(place) > at and following is not None:
            now, following, at = following, next(frames, None), at + 1
        behind = following if following is not None else now if old.loop is Loop.NONE else first
        share = float(place - at) if mix is not None else 0.0
        if mix is None or share <= 0 or share > 1:
            yield Frame.of(i, new, now.image, now.info)
        else:
            info: FrameInfo = evolve(now.info, origin="interpolated")
            yield Frame.of(i, new, mix(now.image, behind.image, share), info)


@frozen
class Blend:
    """More frames per second, those between being mixed of their neighbours; in a loop, of the last and the first too.

    Attributes:
        times: How many times as many frames, 2 to 16.
    """

    times: int = 2
    window: int = field(default=3, init=False)

    def __attrs_post_init__(self) -> None:
        check_times(self.times)

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As long, with more frames."""
        return evolve(timeline, frames=timeline.frames * self.times, fps=timeline.fps * self.times)

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The frames with those between."""
        return sampled(frames, timeline, self.timeline(timeline), mix=mixed)


@frozen
class Retime:
    """Another rate, or another speed.

    Attributes:
        fps: Frames per second from now on: a number or a fraction as text; None keeps the rate.
        speed: 2 shows the clip in half the time; anything but 1 changes its duration.
        mix: Whether frames that fall between two are mixed of them; else the one shown at that time is taken.
    """

    fps: int | float | str | None = None
    speed: float = 1.0
    mix: bool = False
    window: int = field(default=3, init=False)

    def __attrs_post_init__(self) -> None:
        checked(self.speed, 0.01, 100, "The speed")
        if self.fps is not None:
            Timeline(1, self.fps)

    @property
    def keeps_duration(self) -> bool:
        """Only at the speed as it is."""
        return self.speed == 1

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As many frames as fit the duration, nearest.

        Raises:
            InvalidRequest: the duration is no whole number of frames at this rate, and would change unasked.
        """
        fps = timeline.fps if self.fps is None else Timeline(1, self.fps).fps
        exact = timeline.duration / Fraction(str(self.speed)) * fps
        count = max(1, round(exact))
        if self.keeps_duration and exact != count:
            low = int(exact)
            raise InvalidRequest(
                f"{timeline.frames} frames at {timeline.fps} fps are {float(exact):.2f} at {fps}: no whole number; "
                f"render a number of frames that gives {max(1, low)} or {low + 1}, or state a speed."
            )
        loop = timeline.loop
        if loop is Loop.PINGPONG and (count % 2 or count < 4):
            loop = Loop.CLOSED  # its frames are no longer the same there and back, but it goes on as before
        return evolve(timeline, frames=count, fps=fps, loop=loop)

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The frames at the new times."""
        new = self.timeline(timeline)
        stretched = evolve(timeline, fps=timeline.frames / new.duration)
        made = sampled(frames, stretched, new, mix=mixed if self.mix else None)
        yield from made
        for _ in frames:  # what falls behind the last time asked is still rendered, so that a journal is whole
            pass


@frozen
class ColorMatch:
    """The colours of the first frame for all, by histograms.

    Attributes:
        space: ``LAB``, ``HSV`` or ``RGB``.
    """

    space: str = field(default="LAB", converter=check_space)
    window: int = field(default=2, init=False)

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As it is."""
        return timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The matched frames."""
        first = next(frames)
        yield first
        yield from _mapped(frames, lambda frame: match(frame.image, first.image, self.space))


@frozen
class Deflicker:
    """Each frame's mean lightness is brought to a running mean of those before it.

    Attributes:
        hold: How much of the running mean is kept from frame to frame, 0 (does nothing) to 1 (that of frame 0).
    """

    hold: float = 0.8
    window: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        checked(self.hold, 0, 1, "How much of the running mean is kept")

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As it is."""
        return timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The steadied frames."""
        mean: float | None = None
        for frame in frames:
            light = to_space(frame.image.astype(np.float64) / 255, "LAB")[..., 0].mean()
            mean = light if mean is None else self.hold * mean + (1 - self.hold) * light
            # brightness scales about as the cube of lightness does, and pixels as its root of 2.2
            gain = ((mean + 16) / (light + 16)) ** (3 / 2.2)
            image = frame.image
            if gain != 1:
                image = np.clip(np.rint(image.astype(np.float64) * gain), 0, 255).astype(np.uint8)
            yield evolve(frame, image=image)


@frozen
class Resize:
    """Another size, by Lanczos.

    Attributes:
        width: In pixels; None follows the height.
        height: In pixels; None follows the width.
    """

    width: int | None = None
    height: int | None = None
    window: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        if self.width is None and self.height is None:
            raise ParameterError("Resizing needs a width or a height: resize(width=512).")
        for side in (self.width, self.height):
            if side is not None:
                checked(side, 1, 2**15, "A side in pixels", whole=True)

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As it is."""
        return timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The resized frames."""
        return _mapped(frames, self._resized)

    def _resized(self, frame: Frame) -> NDArray[np.uint8]:
        height, width = frame.image.shape[:2]
        size = (
            self.width or max(1, round(width * (self.height or height) / height)),
            self.height or max(1, round(height * (self.width or width) / width)),
        )
        return np.array(Image.fromarray(frame.image).resize(size, Image.Resampling.LANCZOS))


@frozen
class Caption:
    """A line of text on every frame.

    Attributes:
        text: ``{index}``, ``{time}``, ``{prompt}`` (the one with most weight), ``{seed}`` and names of curves are
            filled in.
        size: Height of the letters in pixels.
        color: Any name or number that Pillow knows.
        font: A file of a font (.ttf, .otf), for letters beyond Latin ones, which the font inside Pillow does not have;
            None takes that one.

    Raises:
        ParameterError: a value is out of range.
        FileError: the font cannot be read.
    """

    text: str = "{prompt}"
    size: int = 12
    color: str = "white"
    font: str | None = None
    window: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._font()
        if not isinstance(self.text, str):
            raise ParameterError(f"A caption is text, not {self.text!r}.")
        checked(self.size, 4, 500, "The height of letters")
        try:
            Image.new("RGB", (1, 1), self.color)
        except (ValueError, TypeError) as error:
            raise ParameterError(f"There is no color {self.color!r}.") from error

    def timeline(self, timeline: Timeline, /) -> Timeline:
        """As it is."""
        return timeline

    def __call__(self, frames: Iterator[Frame], timeline: Timeline, /) -> Iterator[Frame]:
        """The frames with their lines."""
        return _mapped(frames, self._drawn)

    def _drawn(self, frame: Frame) -> NDArray[np.uint8]:
        image = Image.fromarray(frame.image.copy())
        draw = ImageDraw.Draw(image)
        line, middle = self._line(frame), image.width / 2
        # one line stands on its baseline; several are measured as a block, whose last line must not fall off
        several = "\n" in line
        draw.text(
            (middle, image.height - self.size * (0.15 if several else 0.4)),
            line,
            self.color,
            self._font(),
            "md" if several else "ms",
            align="center",
            stroke_width=1,
            stroke_fill="black",
        )
        return np.array(image)

    def _font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if self.font is None:
            return ImageFont.load_default(self.size)
        try:
            return ImageFont.truetype(self.font, self.size)
        except (OSError, ValueError) as error:
            raise FileError(f"{Path(self.font).name!r} cannot be read as a font: {error}.") from error

    def _line(self, frame: Frame) -> str:
        def most(mix: tuple[tuple[object, float], ...]) -> str:
            return str(max(mix, key=lambda pair: pair[1])[0]) if mix else ""

        known = {"index": str(frame.index), "time": f"{float(frame.pts):.2f}", **_numbers(frame)}
        known |= {"prompt": most(frame.info.prompts), "seed": most(frame.info.seeds)}
        try:
            return self.text.format_map(known)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise ParameterError(
                f"The caption {self.text!r} cannot be filled in ({error}); known are {', '.join(known)}."
            ) from error


def _numbers(frame: Frame) -> dict[str, str]:
    return {name: f"{value:g}" for name, value in frame.info.values.items()}

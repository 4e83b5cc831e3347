"""When frames are shown. Notation: i the number of a frame from 0, n their count; times in seconds, as fractions."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction

from attrs import field, frozen

from sdkit.errors import InvalidRequest, nearest

__all__ = ["Loop", "Timeline", "check_frame_rule"]

MOST_FRAMES = 1_000_000
MOST_FPS = 1000


class Loop(Enum):
    """How a clip goes on after its last frame.

    ``CLOSED``: frame n would be frame 0 again, and is not emitted twice. ``PINGPONG``: the second half is the first
    backwards, the two turning points being shown once.
    """

    NONE = "none"
    CLOSED = "closed"
    PINGPONG = "pingpong"


def _fps(value: object) -> Fraction:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Fraction)):
            raise ValueError
        rate = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InvalidRequest(
            f"Frames per second are a number or a fraction such as '24000/1001', not {value!r}."
        ) from None
    if not 0 < rate <= MOST_FPS:
        given = str(value) if isinstance(value, Fraction) else repr(value)
        raise InvalidRequest(f"Frames per second lie above 0 and up to {MOST_FPS}, not at {given}.")
    return rate


def _loop(value: object) -> Loop:
    if isinstance(value, Loop):
        return value
    names = [loop.value for loop in Loop]
    if value not in names:
        raise InvalidRequest(f"There is no loop {value!r}; {nearest(str(value), names)}")
    return Loop(value)


@frozen
class Timeline:
    """How many frames are shown, how fast, and what comes after the last.

    Attributes:
        frames: Frames the consumer receives, at least 1.
        fps: Frames per second, exact: 12, ``"24000/1001"``, or a decimal number taken as it is written.
        loop: A `Loop` or its name.

    Raises:
        InvalidRequest: a value is out of range.
    """

    frames: int
    fps: Fraction = field(default=Fraction(12), converter=_fps)
    loop: Loop = field(default=Loop.NONE, converter=_loop)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or not 0 < self.frames <= MOST_FRAMES:
            raise InvalidRequest(f"A clip has 1 to {MOST_FRAMES} frames, not {self.frames!r}.")
        if self.loop is Loop.PINGPONG and (self.frames % 2 or self.frames < 4):
            low = max(4, self.frames - 1)
            raise InvalidRequest(
                f"There and back again takes an even number of frames, at least 4, not {self.frames}: {low} or "
                f"{max(6, self.frames + 1)}."
            )

    def pts(self, i: int) -> Fraction:
        """When frame i is shown, in seconds from the beginning; exact."""
        return i / self.fps

    @property
    def step(self) -> Fraction:
        """How long one frame is shown, in seconds."""
        return 1 / self.fps

    @property
    def duration(self) -> Fraction:
        """How long all frames are shown, in seconds."""
        return self.frames / self.fps


def check_frame_rule(timeline: Timeline, multiple: int, plus: int = 0) -> None:
    """Raises unless the number of frames is ``multiple * k + plus``: the rule of a video model, never rounded silently.

    Raises:
        InvalidRequest: it is not; names the two nearest counts that are.
    """
    if (timeline.frames - plus) % multiple:
        low = (timeline.frames - plus) // multiple * multiple + plus
        near = [str(count) for count in (low, low + multiple) if count > 0]
        rule = f"{multiple}k+{plus}" if plus else f"{multiple}k"
        raise InvalidRequest(f"This takes {rule} frames, not {timeline.frames}: {' or '.join(near)}.")

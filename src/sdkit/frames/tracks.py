"""What is shown when: prompts and pictures at frames."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen

from sdkit.errors import InvalidRequest
from sdkit.frames.curves import eased
from sdkit.frames.time import Loop, Timeline
from sdkit.request import Picture

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["Keyframe", "Mix", "PromptTrack", "between_keys"]

T = TypeVar("T")
Mix: TypeAlias = tuple[tuple[T, float], ...]
"""One or two values with their weights, which add up to 1."""

_KEY = re.compile(r"(?:^|\|)\s*(\d{1,7})\s*:")
_NO_KEY = re.compile(r"\|\s*([-+]\s*\d[\d.]*|\d*\.\d+|\d+\.|\d{8,}|(?:max_f|t)\b[^:|]*)\s*:")
"""What people write where a frame belongs, and what would else be read as words of the prompt before it."""


def between_keys(keys: tuple[tuple[int, T], ...], i: float, timeline: Timeline, ease: str) -> Mix[T]:
    """What holds at frame i: the value of a key, or two with their weights.

    Before the first and after the last key the nearest holds; in a closed loop the last goes over to the first, which
    comes again at frame n.
    """
    if timeline.loop is Loop.CLOSED and len(keys) > 1:
        n = timeline.frames
        keys = ((keys[-1][0] - n, keys[-1][1]), *keys, (keys[0][0] + n, keys[0][1]))
    k = bisect_right([frame for frame, _ in keys], i) - 1
    if k < 0 or k + 1 == len(keys):
        return ((keys[max(k, 0)][1], 1.0),)
    (start, one), (stop, two) = keys[k], keys[k + 1]
    share = eased(ease, (i - start) / (stop - start))
    if share <= 0 or one == two:
        return ((one, 1.0),)
    return ((one, 1 - share), (two, share)) if share < 1 else ((two, 1.0),)


def _prompts(value: Any) -> tuple[tuple[int, str], ...]:
    if isinstance(value, tuple):
        return value
    if isinstance(value, str):
        value = _read(value)
    if not isinstance(value, Mapping) or not value:
        raise InvalidRequest(
            f"A prompt track is text such as '0: a cat | 24: a dog', or {{frame: text}}, not {value!r}."
        )
    found = {}
    for frame, text in value.items():
        if not str(frame).strip().isdigit() or not isinstance(text, str):
            raise InvalidRequest(f"In a prompt track, {frame!r}: {text!r} is no frame, from 0, with its text.")
        if int(frame) in found:
            raise _twice(int(frame))
        found[int(frame)] = text.strip()
    return tuple(sorted(found.items()))


def _twice(frame: object) -> InvalidRequest:
    return InvalidRequest(f"The prompt track has frame {frame} twice; give each prompt a frame of its own.")


def _read(text: str) -> dict[Any, Any]:
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except ValueError as error:
            if re.match(r'\s*\{\s*"\s*\d+\s*"\s*:', text):  # no other prompt begins so
                raise InvalidRequest(f"The prompt track begins as JSON and cannot be read as such: {error}.") from None
            data = None
        if isinstance(data, dict):
            return data
    keys = list(_KEY.finditer(text))
    if not keys or keys[0].start() != 0 or text.lstrip().startswith("|"):
        return {0: text}
    ends = [key.start() for key in keys[1:]] + [len(text)]
    frames = [int(key[1]) for key in keys]
    twice = [frame for frame in frames if frames.count(frame) > 1]
    if twice:
        raise _twice(twice[0])
    wrong = _NO_KEY.search(text)
    if wrong is not None:
        raise InvalidRequest(f"In the prompt track, {wrong[1].strip()!r} is no frame; frames are whole numbers from 0.")
    return {frame: text[key.end() : end] for frame, key, end in zip(frames, keys, ends, strict=True)}


@frozen
class PromptTrack:
    """Prompts at frames, and how one goes over to the next.

    Attributes:
        keys: (frame, prompt) in order, from ``"0: a cat | 24: a dog"``, from ``{0: "a cat", 24: "a dog"}``, from that
            as JSON text, or from one prompt without frames.
        ease: ``linear``, ``cubic``, ``cosine`` or ``step``.

    Raises:
        InvalidRequest: it is none of these.
        ParameterError: there is no such ease.
    """

    keys: tuple[tuple[int, str], ...] = field(converter=_prompts)
    ease: str = "linear"

    def __attrs_post_init__(self) -> None:
        eased(self.ease, 0.0)

    def check(self, timeline: Timeline) -> None:
        """Raises `InvalidRequest` if a key lies behind the last frame (in a closed loop, frame n is frame 0)."""
        back = timeline.loop is Loop.PINGPONG
        last = timeline.frames // 2 if back else timeline.frames - 1
        late = [frame for frame, _ in self.keys if frame > last]
        if late:
            whose = "frames before the clip goes back" if back else "clip's frames"
            raise InvalidRequest(f"The prompt track has a key at frame {late[0]}, and the {whose} are 0 to {last}.")

    def at(self, i: float, timeline: Timeline) -> Mix[str]:
        """One or two prompts with their weights."""
        return between_keys(self.keys, i, timeline, self.ease)


def _picture(value: Any) -> Picture:
    return Picture.of(value)


@frozen
class Keyframe:
    """A picture that a clip should show at a frame.

    Attributes:
        frame: Which, from 0.
        picture: A `sdkit.Picture`, a Pillow image or a file name.
        strength: How closely, from 0 (not at all) to 1 (exactly).

    Raises:
        InvalidRequest, FileError: a value is out of range, the picture cannot be read.
    """

    frame: int
    picture: Picture = field(converter=_picture)
    strength: float = 1.0

    def __attrs_post_init__(self) -> None:
        if isinstance(self.frame, bool) or not isinstance(self.frame, int) or self.frame < 0:
            raise InvalidRequest(f"A keyframe stands at a frame from 0, not at {self.frame!r}.")
        if not 0 <= self.strength <= 1:
            raise InvalidRequest(f"A keyframe's strength lies between 0 and 1, not at {self.strength!r}.")

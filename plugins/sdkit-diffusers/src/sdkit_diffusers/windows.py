"""Which frames of a clip a motion module sees together, and how much each of its answers counts.

A motion module has learned clips of a few frames. A longer clip is denoised in windows that overlap; where they do,
their answers are averaged. Everything here is a pure function of numbers.

Notation: n frames of the clip, L of a window, o by which neighbours overlap at least; a window is the tuple of its
frames, in the order in which the motion module sees them. On a line the first window begins at frame 0 and the last
ends at frame n - 1; on a ring (a closed loop) windows go on from frame n - 1 to frame 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeAlias

from sdkit import ParameterError

__all__ = ["LAWS", "NOISES", "Window", "fused", "line", "noise_sources", "ring", "turn", "weights"]

Window: TypeAlias = tuple[int, ...]
LAWS = ("flat", "pyramid", "overlap-linear", "delayed-reverse-sawtooth", "gauss")
NOISES = ("random", "shuffle_context", "repeat_context")
FAINT = 0.01
"""Weight of a window's first half in the delayed reverse sawtooth, the last weight of which is 1."""


def turn(step: int) -> float:
    """How far the windows of a step are turned: a share of their distance, in [0, 1).

    The bits of the step's number, mirrored at the point (van der Corput 1935): 0, 1/2, 1/4, 3/4, 1/8, ... Seams of
    2^k steps in a row lie at 2^k places as far from each other as they can.
    """
    digits = f"{step:b}"[::-1]
    return int(digits, 2) / (1 << len(digits))


def line(n: int, length: int, overlap: int, *, stride: int = 1, phase: float | None = None) -> tuple[Window, ...]:
    """Windows on a line: as few as overlap by ``overlap``, evenly spread.

    Args:
        n: Frames.
        length: Of a window, at most n.
        overlap: At least so many frames are shared by neighbours, below ``length``; counted in frames of the clip.
        stride: A window takes every ``stride``-th frame; the span of one is at most n.
        phase: In [0, 1): by which share of their distance all but the first and the last window are moved; None for
            one window less, which are not meant to move.
    """
    span = (length - 1) * stride + 1
    room, hop = n - span, length * stride - overlap
    between = math.ceil(room / hop)
    if between <= 0:
        starts = [0]
    elif phase is None:
        starts = [round(m * room / between) for m in range(between + 1)]
    else:
        starts = [min(max(math.floor((m - 1 + phase) * room / between), 0), room) for m in range(between + 2)]
    return tuple(tuple(range(start, start + span, stride)) for start in dict.fromkeys(starts))


def ring(n: int, length: int, overlap: int, *, stride: int = 1, phase: float = 0.0) -> tuple[Window, ...]:
    """Windows on a ring: as few as overlap by ``overlap``, evenly spread.

    Args:
        n: Frames.
        length: Of a window, at most n.
        overlap: See `line`; below ``length``.
        stride: See `line`; ``length * stride`` is at most n, so that no frame is in a window twice.
        phase: By which share of their distance the windows are turned. Adding ``k * count / n`` for a whole k, where
            ``count`` is their number, turns all by k frames.
    """
    count = math.ceil(n / (length * stride - overlap))
    # without the last term the rounding of n times phase would decide between two frames
    starts = [math.floor((m + phase) * n / count + 1e-9) for m in range(count)]
    return tuple(tuple((start + stride * j) % n for j in range(length)) for start in starts)


def weights(law: str, length: int, overlap: int) -> list[float]:
    """How much the frames of a window count, before what all windows say of a frame is brought to a sum of 1.

    Args:
        law: One of `LAWS`, see `fused`.
        length: Of the window.
        overlap: For ``overlap-linear``.

    Raises:
        ParameterError: there is no such law.
    """
    middle, places = (length + 1) // 2, range(length)
    if law == "flat":
        return [1.0] * length
    if law == "pyramid":
        return [1.0 + min(j, length - 1 - j) for j in places]
    if law == "overlap-linear":
        return [min(1.0, (1 + min(j, length - 1 - j)) / (overlap + 1)) for j in places]
    if law == "delayed-reverse-sawtooth":
        if length % 2 == 0:
            return [*[FAINT] * (middle - 1), float(middle), *map(float, range(middle, 0, -1))]
        return [*[FAINT] * (middle - 1), *map(float, range(middle, 0, -1))]
    if law == "gauss":  # the ends lie at two standard deviations
        return [math.exp(-2 * ((2 * j - length + 1) / length) ** 2) for j in places]
    raise ParameterError(f"Windows are fused by one of {', '.join(LAWS)}, not by {law!r}.")


def fused(windows: Sequence[Window], n: int, law: str, overlap: int) -> tuple[tuple[float, ...], ...]:
    """The share of each window in each of its frames: positive, and 1 in the sum over the windows of a frame.

    ``flat``: all alike. ``pyramid``: rising to the middle. ``overlap-linear``: rising over the overlap, then flat.
    ``delayed-reverse-sawtooth``: nearly nothing in the first half, then falling. ``gauss``: a bell whose ends lie at
    two standard deviations. Names as in AnimateDiff-Evolved and diffusers.

    Args:
        windows: Of one length.
        n: Frames.
        law: One of `LAWS`.
        overlap: For ``overlap-linear``.

    Raises:
        ParameterError: there is no such law.
    """
    within = weights(law, len(windows[0]), overlap)
    sums = [0.0] * n
    for window in windows:
        for frame, weight in zip(window, within, strict=True):
            sums[frame] += weight
    return tuple(tuple(w / sums[frame] for frame, w in zip(window, within, strict=True)) for window in windows)


def noise_sources(n: int, length: int, hop: int, kind: str, seed: int) -> tuple[int, ...]:
    """Which of the first frames' noise each frame begins with.

    ``random``: each its own. ``repeat_context``: the first ``length``, again and again. ``shuffle_context``: after the
    first ``length`` the noise of ``hop`` frames, ``length`` before, in another order, and so on (FreeNoise: Qiu et al.
    2023, https://arxiv.org/abs/2310.15169).

    Args:
        n: Frames.
        length: Of a window.
        hop: Frames between the beginnings of neighbouring windows, 1 to ``length``.
        kind: One of `NOISES`.
        seed: What the order depends on, together with the place; nothing is drawn.

    Raises:
        ParameterError: there is no such kind.
    """
    if kind not in NOISES:
        raise ParameterError(f"Frames begin with noise that is one of {', '.join(NOISES)}, not {kind!r}.")
    if kind == "random":
        return tuple(range(n))
    found = list(range(min(n, length)))
    while len(found) < n:
        start = len(found) - length
        block = found[start : start + (hop if kind == "shuffle_context" else length)]
        if kind == "shuffle_context":
            order = sorted(range(len(block)), key=lambda k: _key(seed, start, k))
            block = [block[k] for k in order]
        found += block
    return tuple(found[:n])


def _key(*numbers: int) -> bytes:
    return hashlib.blake2b("|".join(["sdkit-free-noise", *map(str, numbers)]).encode(), digest_size=16).digest()

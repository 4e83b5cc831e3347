"""Laws of windows: every frame is seen, shares add up to 1, turning the ring turns the windows."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from diffusers.models.attention import FreeNoiseTransformerBlock
from hypothesis import given
from hypothesis import strategies as st

import sdkit
from sdkit_diffusers.windows import LAWS, NOISES, fused, line, noise_sources, ring, turn, weights

PHASES = st.floats(0, 1, exclude_max=True)


@st.composite
def sizes(draw: Any) -> tuple[int, int, int]:
    """Frames, length of a window, overlap."""
    length = draw(st.integers(1, 20))
    return draw(st.integers(length, 90)), length, draw(st.integers(0, length - 1))


def gaps(starts: list[int]) -> list[int]:
    return [two - one for one, two in itertools.pairwise(starts)]


@given(sizes(), st.none() | PHASES)
def test_windows_on_a_line_see_every_frame_and_overlap_as_asked(
    size: tuple[int, int, int], phase: float | None
) -> None:
    n, length, overlap = size
    windows = line(n, length, overlap, phase=phase)
    assert all(window == tuple(range(window[0], window[0] + length)) for window in windows)
    starts = [window[0] for window in windows]
    assert starts[0] == 0 and starts[-1] == n - length
    assert all(0 < gap <= length - overlap for gap in gaps(starts))
    # as few as that takes, and one more where they move
    fewest = -(-(n - length) // (length - overlap)) + 1
    assert len(windows) <= fewest + (phase is not None and n > length)


@given(sizes(), PHASES)
def test_windows_on_a_ring_see_every_frame_and_overlap_as_asked(size: tuple[int, int, int], phase: float) -> None:
    n, length, overlap = size
    windows = ring(n, length, overlap, phase=phase)
    assert all(window == tuple((window[0] + j) % n for j in range(length)) for window in windows)
    starts = [window[0] for window in windows]
    around = [(two - one) % n or n for one, two in zip(starts, [*starts[1:], starts[0]], strict=True)]
    assert sum(around) == n
    assert all(gap <= length - overlap for gap in around)
    assert len(windows) == -(-n // (length - overlap))


@given(sizes(), PHASES, st.integers(0, 200))
def test_turning_the_ring_turns_the_windows(size: tuple[int, int, int], phase: float, frames: int) -> None:
    n, length, overlap = size
    count = len(ring(n, length, overlap))
    turned = ring(n, length, overlap, phase=phase + frames * count / n)
    assert turned == tuple(
        tuple((frame + frames) % n for frame in window) for window in ring(n, length, overlap, phase=phase)
    )


@given(sizes(), PHASES, st.sampled_from(LAWS))
def test_what_the_ring_says_of_a_frame_turns_with_it(size: tuple[int, int, int], phase: float, law: str) -> None:
    """A module that answers the place in the window: the fused answers of the turned ring are the turned answers."""
    n, length, overlap = size
    count = len(ring(n, length, overlap))

    def answers(at: float) -> list[float]:
        windows, total = ring(n, length, overlap, phase=at), [0.0] * n
        for window, shares in zip(windows, fused(windows, n, law, overlap), strict=True):
            for place, (frame, share) in enumerate(zip(window, shares, strict=True)):
                total[frame] += share * place
        return total

    one, two = answers(phase), answers(phase + 3 * count / n)
    assert two == pytest.approx([one[(frame - 3) % n] for frame in range(n)], abs=1e-9)


@given(sizes(), PHASES, st.sampled_from([2, 4]), st.booleans())
def test_windows_of_every_other_frame_hold_a_frame_once(
    size: tuple[int, int, int], phase: float, stride: int, closed: bool
) -> None:
    n, length, overlap = size
    n *= stride
    make = ring if closed else line
    windows = make(n, length, overlap, stride=stride, phase=phase)
    assert all(len(set(window)) == length and set(window) <= set(range(n)) for window in windows)
    assert all((two - one) % n == stride for window in windows for one, two in itertools.pairwise(window))


@given(sizes(), PHASES, st.booleans(), st.sampled_from(LAWS))
def test_shares_are_positive_and_add_up_to_one(
    size: tuple[int, int, int], phase: float, closed: bool, law: str
) -> None:
    n, length, overlap = size
    windows = (ring if closed else line)(n, length, overlap, phase=phase)
    sums: Counter[int] = Counter()
    for window, shares in zip(windows, fused(windows, n, law, overlap), strict=True):
        assert len(shares) == length
        for frame, share in zip(window, shares, strict=True):
            assert 0 < share <= 1 + 1e-12
            sums[frame] += share  # type: ignore[assignment]
    assert [sums[frame] for frame in range(n)] == pytest.approx([1.0] * n)


@pytest.mark.parametrize(
    ("law", "length"),
    [("flat", 5), ("flat", 16), ("pyramid", 5), ("pyramid", 16), ("delayed-reverse-sawtooth", 4),
     ("delayed-reverse-sawtooth", 16)],
)  # fmt: skip
def test_weights_are_those_of_diffusers(law: str, length: int) -> None:
    theirs = FreeNoiseTransformerBlock._get_frame_weights(None, length, law.replace("-", "_"))
    assert weights(law, length, 2) == theirs


def test_weights_that_diffusers_has_not() -> None:
    # its own for this length are six, and its run fails
    assert weights("delayed-reverse-sawtooth", 5, 2) == [0.01, 0.01, 3, 2, 1]
    assert weights("overlap-linear", 8, 3) == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    bell = weights("gauss", 8, 2)
    assert bell == pytest.approx(bell[::-1]) and bell == sorted(bell[:4]) + sorted(bell[4:], reverse=True)
    # a normal density: its logarithm has the same second difference everywhere
    second = [math.log(bell[j]) - 2 * math.log(bell[j + 1]) + math.log(bell[j + 2]) for j in range(6)]
    assert second == pytest.approx([second[0]] * 6) and second[0] < 0


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(sdkit.ParameterError, match="flat, pyramid, overlap-linear.*not by 'mean'"):
        fused(((0, 1),), 2, "mean", 0)
    with pytest.raises(sdkit.ParameterError, match="random, shuffle_context.*not 'blue'"):
        noise_sources(4, 2, 1, "blue", 0)


def test_turns_are_spread() -> None:
    assert [turn(step) for step in range(8)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    for k in range(9):
        assert sorted(turn(step) * 2**k for step in range(2**k)) == list(range(2**k))


@given(sizes(), st.integers(0, 2**64 - 1), st.sampled_from(NOISES))
def test_noise_comes_from_the_frames_before(size: tuple[int, int, int], seed: int, kind: str) -> None:
    n, length, overlap = size
    hop = length - overlap
    found = noise_sources(n, length, hop, kind, seed)
    assert len(found) == n and found[:length] == tuple(range(min(n, length)))
    assert found == noise_sources(n, length, hop, kind, seed)
    assert noise_sources(n + 7, length, hop, kind, seed)[:n] == found  # a longer clip begins as the shorter one
    if kind == "random":
        assert found == tuple(range(n))
    elif kind == "repeat_context":
        assert all(source == frame % length for frame, source in enumerate(found))
    else:
        for start in range(length, n - hop + 1, hop):  # each block is one of before, in another order
            assert sorted(found[start : start + hop]) == sorted(found[start - length : start - length + hop])


def test_the_order_of_shuffled_noise_depends_on_the_seed_alone() -> None:
    orders = {noise_sources(32, 16, 16, "shuffle_context", seed)[16:] for seed in range(40)}
    assert len(orders) == 40
    firsts = Counter(noise_sources(6, 3, 3, "shuffle_context", seed)[3] for seed in range(600))
    assert all(150 < firsts[k] < 250 for k in range(3)), "every order is as likely"

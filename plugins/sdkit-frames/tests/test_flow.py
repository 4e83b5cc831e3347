"""In-betweens by optical flow, against motions whose middle is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sdkit import Frame, Loop, ParameterError, Request, Timeline, animate, registry
from sdkit_frames import flow
from sdkit_frames.filters import mixed
from sdkit_frames.flow import between, flows

INNER = slice(14, -14)


def texture(seed: int = 0, size: tuple[int, int] = (140, 160)) -> Any:
    noise = np.random.Generator(np.random.PCG64(seed)).normal(size=(*size, 3))
    smooth = ndimage.gaussian_filter(noise, (2.5, 2.5, 0))
    return (smooth - smooth.min()) / np.ptp(smooth) * 255


def shifted(image: Any, right: float, down: float) -> Any:
    moved = ndimage.shift(image, (down, right, 0), order=3, mode="mirror")
    return np.clip(np.rint(moved[20:-20, 20:-20]), 0, 255).astype(np.uint8)


def apart(one: Any, two: Any) -> Any:
    return np.abs(one.astype(float) - two)


@settings(max_examples=12)
@given(st.floats(-8, 8), st.floats(-8, 8), st.sampled_from([0.25, 1 / 3, 0.5, 0.75]))
def test_a_moving_texture_is_where_it_should_be(right: float, down: float, share: float) -> None:
    image = texture()
    one, two, there = (shifted(image, k * right, k * down) for k in (0, 1, share))
    found = between(one, two, share, flows(one, two))
    off = apart(found, there)[INNER, INNER]
    assert off.mean() < 1
    assert np.quantile(off, 0.999) <= 6
    if abs(right) + abs(down) > 4:
        assert off.mean() < 0.25 * apart(mixed(one, two, share), there)[INNER, INNER].mean()


@settings(max_examples=8)
@given(st.integers(0, 100), st.sampled_from([0.2, 0.5]), st.integers(40, 57))
def test_backwards_it_is_the_same(seed: int, share: float, side: int) -> None:
    image = texture(seed, (side + 40, 100))
    one, two = shifted(image, 0, 0), shifted(ndimage.rotate(image, 4, (0, 1), reshape=False, mode="mirror"), 2, 1)
    there = between(one, two, share, flows(one, two))
    back = between(two, one, 1 - share, flows(two, one))
    assert apart(there, back).max() <= 1


def test_what_stands_still_stays_bit_for_bit() -> None:
    one = shifted(texture(), 0, 0)
    assert between(one, one.copy(), 0.5, flows(one, one.copy())) is one
    two = one.copy()
    one[20:40, 20:40], two[20:40, 30:50] = (250, 10, 10), (250, 10, 10)
    found = between(one, two, 0.5, flows(one, two))
    assert np.array_equal(found[70:], one[70:])
    assert np.array_equal(found[:, 100:], one[:, 100:])


def test_a_thing_before_a_plain_ground_is_half_way() -> None:
    one = np.full((96, 128, 3), (235, 225, 200), np.uint8)
    two, there = one.copy(), one.copy()
    thing = shifted(texture(4), 0, 0)[:40, :40]
    for image, at in ((one, 30), (two, 38), (there, 34)):
        image[30:70, at : at + 40] = thing
    found = between(one, two, 0.5, flows(one, two))
    assert apart(found, there).mean() < 0.25 * apart(mixed(one, two, 0.5), there).mean()
    assert np.array_equal(found[:20], one[:20])


def test_where_nothing_corresponds_it_is_a_blend() -> None:
    one, two = shifted(texture(1), 0, 0), shifted(texture(2), 0, 0)
    blend, found = mixed(one, two, 0.5), between(one, two, 0.5, flows(one, two))
    assert apart(found, blend).mean() < 0.5 * apart(one, blend).mean()
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (40, 200)]
    assert np.array_equal(between(*flat, 0.25, flows(*flat)), mixed(*flat, 0.25))
    tiny = [image[:8, :30] for image in (one, two)]
    assert np.array_equal(between(*tiny, 0.5, flows(*tiny)), mixed(*tiny, 0.5))


def test_what_comes_in_at_the_edge_is_taken_from_where_it_is() -> None:
    image = texture()
    one, two, there = shifted(image, 0, 0), shifted(image, 12, 0), shifted(image, 6, 0)
    found = between(one, two, 0.5, flows(one, two))
    assert apart(found, there)[10:-10, 1:7].mean() < 6
    assert apart(mixed(one, two, 0.5), there)[10:-10, 1:7].mean() > 18


def turning(frames: int, loop: Loop, size: int = 96) -> tuple[Timeline, list[Frame]]:
    """A picture on white that turns once round."""
    still = np.full((size, size, 3), 255, np.uint8)
    still[20:-20, 20:-20] = shifted(texture(3, (size, size)), 0, 0)
    clip = animate(
        f"zoom(zoom=1, angle='0:(0), {frames}:(360)')",
        None,
        Request("", image=Image.fromarray(still)),
        frames=frames,
        loop=loop,
    )
    return clip.timeline, list(clip)


def test_a_loop_closes_and_the_turn_goes_on_through_its_seam() -> None:
    timeline, every = turning(64, Loop.CLOSED)
    half = Timeline(32, 6, Loop.CLOSED)
    given = [Frame.of(i, half, frame.image) for i, frame in enumerate(every[::2])]
    act = registry().make("frame-filter", "flow")
    found = list(act(iter(given), half))
    assert [frame.pts for frame in found] == [timeline.pts(i) for i in range(64)]
    assert all(np.array_equal(found[i].image, every[i].image) for i in range(0, 64, 2))
    off = [float(apart(found[i].image, every[i].image).mean()) for i in range(1, 64, 2)]
    blended = [
        float(apart(frame.image, every[frame.index].image).mean())
        for frame in registry().make("frame-filter", "blend")(iter(given), half)
        if frame.index % 2
    ]
    assert max(off) < 3.5
    assert off[-1] <= 1.5 * max(off[:-1]), "from the last to the first as anywhere"
    assert sum(off) < 0.4 * sum(blended)
    assert {found[i].info.origin for i in range(1, 64, 2)} == {"interpolated"}
    # beyond the corners neither frame shows anything: white stays white
    assert min(int(frame.image[[0, 0, -1, -1], [0, -1, 0, -1]].min()) for frame in found) >= 250
    open_end = list(act(iter(given), Timeline(32, 6)))
    assert np.array_equal(open_end[-1].image, open_end[-2].image), "behind the last frame of no loop nothing comes"


def test_flow_is_looked_for_once_a_pair_and_never_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, taken = [], []
    module: Any = flow

    def counted(one: Any, two: Any, quality: str, inside: Any = module.flows) -> Any:
        pairs.append(quality)
        return inside(one, two, quality)

    monkeypatch.setattr(module, "flows", counted)
    timeline, given = turning(6, Loop.NONE, 60)

    def watched() -> Iterator[Frame]:
        for frame in given:
            taken.append(frame.index)
            yield frame

    made = registry().make("frame-filter", "flow(times=4, quality='fast')")(watched(), timeline)
    for i, _ in enumerate(made):
        assert len(taken) <= i // 4 + 2
    assert pairs == ["fast"] * 5


def test_wrong_values_are_one_sentence() -> None:
    for text, sentence in (
        ("flow(times=1)", "between 2 and 16, not at 1"),
        ("flow(times=2.5)", "a whole number, not 2.5"),
        ("flow(quality='best')", "fast, medium, fine, not 'best'"),
    ):
        with pytest.raises(ParameterError, match=sentence):
            registry().make("frame-filter", text)

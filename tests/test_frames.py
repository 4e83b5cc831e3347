"""The contract of clips: timelines, curves, tracks, sources, clips, journals."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sdkit
from sdkit import (
    Burst,
    Capability,
    ClipManifest,
    ContractError,
    Curve,
    FileError,
    Frame,
    FrameJob,
    FramePlan,
    InvalidRequest,
    Keyframe,
    Loop,
    ManifestError,
    ParameterError,
    PingPong,
    PromptTrack,
    Request,
    SdkitError,
    Shot,
    Timeline,
    animate,
    check_frame_rule,
    image_source,
    lerp,
    slerp,
)
from sdkit.cli import animate as animate_command
from sdkit.frames.journal import Journal, load_state, save_state
from sdkit.testing import fake_pipeline

TEN = Timeline(11)


# --- time ---------------------------------------------------------------------------------------------------------


def test_a_timeline_is_exact() -> None:
    line = Timeline(1001, "24000/1001")
    assert line.pts(1000) == Fraction(1000 * 1001, 24000)
    assert line.duration == sum([line.step] * line.frames)
    assert Timeline(2, 23.976).fps == Fraction("23.976")
    assert Timeline(2, 12, "closed").loop is Loop.CLOSED


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0,), "1 to 1000000 frames, not 0"),
        ((True,), "not True"),
        ((5, 0), "above 0"),
        ((5, "abc"), "a fraction such as '24000/1001', not 'abc'"),
        ((5, "1/0"), "not '1/0'"),
        ((5, float("nan")), "not nan"),
        ((5, 12, "close"), "did you mean closed"),
        ((5, 12, "pingpong"), "an even number of frames, at least 4, not 5: 4 or 6"),
    ],
)
def test_wrong_timelines_are_one_sentence(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        Timeline(*arguments)


def test_a_frame_rule_names_the_two_nearest() -> None:
    check_frame_rule(Timeline(81), 4, 1)
    with pytest.raises(InvalidRequest, match=r"4k\+1 frames, not 80: 77 or 81"):
        check_frame_rule(Timeline(80), 4, 1)


# --- curves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "frame", "value"),
    [
        ("0:(1), 10:(2)", 5, 1.5),
        ("0: (1.0), 10: (2.0),", 10, 2.0),
        ("10:(3), 0:(1)", 5, 2.0),  # keys in any order
        ("2:(1), 4:(2)", 0, 1.0),  # before the first and behind the last the nearest holds
        ("2:(1), 4:(2)", 9, 2.0),
        ("0:(1), max_f:(2)", 5, 1.5),
        ("0:(t*2), 6:(1)", 5, 10.0),  # an expression holds until the next key, evaluated at each frame
        ("0:(1), 4:(t*10)", 2, 20.5),  # a number goes over to what the next key is where it stands
        ("0:(1.2*sin(t/8))", 3, 1.2 * math.sin(3 / 8)),
        ("where(t<5, min(t, 2), max(1, t, 3))", 4, 2.0),
        ("where(t<5, min(t, 2), max(1, t, 3))", 7, 7.0),
        ("-2**2 + 7 % 4", 0, -1.0),
        ("2**3**2", 0, 512.0),
        ("2**-1", 0, 0.5),
        ("1 - 2 - 3", 0, -4.0),
        ("8/4/2", 0, 1.0),
        ("s + max_f", 0, 17.0),
        ("round(2.6) + floor(-0.5) + ceil(0.5) + abs(-1)", 0, 4.0),
        ("0:(0), 10:(1); ease=cubic", 2, 3 * 0.04 - 2 * 0.008),
        ("0:(0), 10:(1); ease=step", 9, 0.0),
        ("0:(0), 10:(1); cosine", 5, 0.5),
        ("1e-2", 0, 0.01),
        (0.65, 3, 0.65),
        ({0: 1, 10: 2}, 5, 1.5),
    ],
)
def test_curves_have_these_values(text: Any, frame: int, value: float) -> None:
    assert Curve(text).at(frame, TEN, seed=7) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0:(1), 30:(1.2*sn(t/8))", "no function 'sn' .did you mean sin.*in column 16"),
        ("0:(1), 30:(x)", "there is no 'x' .*column 12"),
        ("0:(1) 30:(2)", "',' is missing before '30', in column 7"),
        ("0:(1", "'.' is missing, in column 5"),
        ("0:()", "a number, a name or '\\(' is missing before '\\)', in column 4"),
        ("", "something is missing, in column 1"),
        ("0:(1), :(2)", "column 8"),
        ("0:(1); ease=wobbly", "no ease 'wobbly'"),
        ("sin(1, 2)", "sin takes 1 argument.s., not 2, in column 1"),
        ("__import__('os')", "no function '__import__'|means nothing there"),
        ("t.real", "'.' means nothing there, in column 2"),
        ("(" * 60 + "1" + ")" * 60, "nested more than 50 deep"),
        ("-" * 60 + "1", "nested more than 50 deep"),
        ("1" * 30_000, "at most 20000 characters"),
        ("[1]", "column 1"),
        (True, "not True"),
        (None, "not None"),
    ],
)
def test_wrong_curves_name_the_column(text: Any, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        Curve(text)


@pytest.mark.parametrize("text", ["log(t)", "1/t", "(-1)**0.5", "exp(1000)", "9e307*100", "1e999", "7 % t"])
def test_a_value_that_is_none_is_named_with_its_frame(text: str) -> None:
    with pytest.raises(ParameterError, match="at frame 0"):
        Curve(text).at(0, TEN)


def test_a_frame_that_stands_twice_is_an_error() -> None:
    with pytest.raises(ParameterError, match="frame 3 twice, again in column 8"):
        Curve("3:(1), 3:(2)").at(0, TEN)


NUMBERS = st.floats(-100, 100).map(lambda value: round(value, 3))
LEAVES = st.one_of(NUMBERS.map(lambda v: f"({v})"), st.sampled_from(["t", "max_f", "s", "pi"]))
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda p: f"{p[0]}{p[1]}{p[2]}"),
        st.tuples(st.sampled_from(["sin", "cos", "abs", "floor"]), inner).map(lambda p: f"{p[0]}({p[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS, st.integers(0, 10))
def test_expressions_mean_what_python_says_they_mean(text: str, frame: int) -> None:
    names = {"t": float(frame), "max_f": 10.0, "s": 7.0, "pi": math.pi}
    functions = {"sin": math.sin, "cos": math.cos, "abs": abs, "floor": math.floor, "min": min, "max": max}
    expected = eval(text, {"__builtins__": {}}, {**names, **functions})
    assert Curve(text).at(frame, TEN, seed=7) == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


@given(st.dictionaries(st.integers(0, 100), NUMBERS, min_size=1, max_size=8), st.integers(0, 100))
def test_keys_are_interpolated_as_numpy_does(keys: dict[int, float], frame: int) -> None:
    found = Curve.keys(keys).at(frame, Timeline(101))
    assert found == pytest.approx(np.interp(frame, sorted(keys), [keys[k] for k in sorted(keys)]), abs=1e-9)


@given(st.text(max_size=40))
def test_any_text_is_a_curve_or_one_sentence(text: str) -> None:
    try:
        assert math.isfinite(Curve(text).at(3, TEN))
    except ParameterError as error:
        assert "\n" not in str(error).replace(text, "")


def test_a_curve_is_spelled_as_its_reader_reads_it() -> None:
    curve = Curve.keys({0: 1, 30: 0.1 + 0.2}, ease="cubic")
    assert Curve(curve.text) == curve
    assert repr(curve) == repr(curve.text)
    assert Curve(curve) == curve
    made = sdkit.registry().make("frames", 'zoom(zoom="0:(1), 48:(1.4)")')
    assert sdkit.registry().make("frames", str(sdkit.registry().spell("frames", made))) == made


# --- tracks -------------------------------------------------------------------------------------------------------


def test_prompts_go_over_to_each_other() -> None:
    track = PromptTrack("0: a cat | 4: a dog")
    assert track.at(0, TEN) == (("a cat", 1.0),)
    assert track.at(1, TEN) == (("a cat", 0.75), ("a dog", 0.25))
    assert track.at(4, TEN) == track.at(9, TEN) == (("a dog", 1.0),)
    closed = Timeline(8, loop="closed")
    assert track.at(6, closed) == (("a dog", 0.5), ("a cat", 0.5))
    mix = PromptTrack("2: a | 4: b").at(0, closed)  # b at 4 goes over to a at 2 + 8
    assert [prompt for prompt, _ in mix] == ["b", "a"]
    assert [weight for _, weight in mix] == pytest.approx([1 / 3, 2 / 3])
    assert PromptTrack('{"0": "a", "60": "b | c"}').keys == ((0, "a"), (60, "b | c"))
    assert PromptTrack("a: b | c").keys == ((0, "a: b | c"),)
    assert PromptTrack({0: "a", 10: "b"}, "step").at(9, TEN) == (("a", 1.0),)


@given(st.integers(0, 200), st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True))
def test_weights_add_up_to_one(frame: int, keys: list[int]) -> None:
    for loop in ("none", "closed"):
        mix = PromptTrack({k: f"p{k}" for k in keys}).at(frame % 100, Timeline(100, loop=loop))
        assert sum(weight for _, weight in mix) == pytest.approx(1)
        assert all(0 < weight <= 1 for _, weight in mix)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("0: a | 0: b", "frame 0 twice"), ({}, "not {}"), ({-1: "a"}, "-1: 'a' is no frame"), (5, "not 5")],
)
def test_wrong_tracks_are_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        PromptTrack(value)


def test_keyframes_are_checked() -> None:
    assert Keyframe(3, Image.new("RGB", (4, 4))).strength == 1
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        Keyframe(0, Image.new("RGB", (4, 4)), 1.5)
    with pytest.raises(InvalidRequest, match="from 0, not at -1"):
        Keyframe(-1, Image.new("RGB", (4, 4)))


# --- noise and conditionings between two --------------------------------------------------------------------------


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_slerp_is_the_arc() -> None:
    a, b = torch.tensor([[1.0, 0, 0]] * 3), torch.tensor([[0, 2.0, 0]] * 3)
    found = slerp(a, b, torch.tensor([0.0, 1 / 3, 1.0]))
    expected = torch.tensor([[1, 0, 0], [math.sqrt(3) / 2, 2 * 0.5, 0], [0, 2, 0]])
    assert torch.allclose(found, expected)
    assert torch.equal(found[0], a[0])
    assert torch.equal(found[2], b[2])
    assert torch.allclose(slerp(a, a * 2, torch.full((3,), 0.5)), a * 1.5)  # the same way: straight
    assert torch.equal(slerp(a * 0, a * 0, torch.full((3,), 0.5)), a * 0)


def test_noise_on_the_arc_is_as_strong_as_its_ends() -> None:
    a, b = normal(1, 5, 4, 32, 32), normal(2, 5, 4, 32, 32)
    shares = torch.linspace(0, 1, 5)
    assert (slerp(a, b, shares).std(dim=(1, 2, 3)) - 1).abs().max() < 0.04
    assert lerp(a, b, shares)[2].std() < 0.75  # what a straight line would do


def test_lerp_keeps_masks_and_whole_numbers() -> None:
    share = torch.tensor([0.0, 0.3, 1.0])
    mask = lerp(torch.tensor([[True, False]] * 3), torch.tensor([[False, True]] * 3), share)
    assert mask.tolist() == [[True, False], [True, True], [False, True]]
    assert lerp(torch.tensor([1, 1, 1]), torch.tensor([5, 5, 5]), share).tolist() == [1, 1, 5]


def test_a_shot_is_the_picture_that_the_pipeline_makes() -> None:
    pipe = fake_pipeline()
    source = image_source(pipe)
    result = pipe(Request("hello world", seeds=(4,)))
    latents = source.latents(Request("x"), [Shot((("hello world", 1.0),), ((4, 1.0),))])
    assert torch.equal(latents, result.latents)
    assert np.array_equal(next(iter(source.decode(latents, Request("x")))), np.array(result.images[0]))


@attrs.frozen(eq=False)
class InCompany:
    """A decoder whose pictures depend on what is decoded with them, as the last bits of real ones do."""

    inside: Any
    sizes: list[int] = attrs.field(factory=list)

    def __call__(self, latents: torch.Tensor) -> Any:
        self.sizes.append(len(latents))
        images = self.inside(latents)
        return (images + torch.linspace(0, 0.5, len(images)).reshape(-1, 1, 1, 1)) / 2


def test_pictures_are_decoded_together_and_those_from_the_middle_on_are_the_same() -> None:
    pipe = fake_pipeline()
    decoder = InCompany(pipe.decoder)
    source, request = image_source(attrs.evolve(pipe, decoder=decoder)), Request("x")
    latents = source.latents(request, [Shot((("hello", 1.0),), ((k, 1.0),)) for k in range(11)])
    straight = list(source.decode(latents, request))
    assert decoder.sizes == [8, 3] and len(straight) == 11
    for first in range(12):
        rest = list(source.decode(latents, request, first=first))
        assert len(rest) == 11 - first
        assert all(np.array_equal(a, b) for a, b in zip(rest, straight[first:], strict=True)), first
    decoder.sizes.clear()
    next(iter(source.decode(latents, request, first=9)))
    assert decoder.sizes == [3]


def test_large_pictures_are_decoded_one_at_a_time() -> None:
    pipe = fake_pipeline()
    decoder = InCompany(pipe.decoder)
    source = image_source(attrs.evolve(pipe, decoder=decoder))
    request = Request("x", size=(256, 128), steps=1)
    latents = source.latents(request, [Shot((("hello", 1.0),), ((k, 1.0),)) for k in range(2)])
    assert len(list(source.decode(latents, request))) == 2 and decoder.sizes == [1, 1]


def test_a_batch_of_shots_equals_them_alone_and_travels_smoothly() -> None:
    source, request = image_source(fake_pipeline()), Request("x", scheduler="ddim(eta=0.5)")
    shots = [Shot((("a", 1 - u), ("bbbbbbbb", u)), ((1, 1 - u), (2, u))) for u in (0.25, 0.5, 0.75)]
    shots += [Shot((("a", 1.0),), ((1, 1.0),)), Shot((("a", 1 - 1e-4), ("bbbbbbbb", 1e-4)), ((1, 1 - 1e-4), (2, 1e-4)))]
    batch = source.latents(request, shots)
    for k, shot in enumerate(shots):
        assert torch.allclose(batch[k], source.latents(request, [shot])[0], atol=1e-5)
    assert 0 < (batch[4] - batch[3]).abs().max() < 1e-3


def test_near_either_end_a_shot_is_nearly_the_picture_there() -> None:
    source, request = image_source(fake_pipeline()), Request("x", scheduler="ddim(eta=1)")
    ends = source.latents(request, [Shot((("a", 1.0),), ((1, 1.0),)), Shot((("bbbbbbbb", 1.0),), ((2, 1.0),))])
    near = [Shot((("a", 1 - u), ("bbbbbbbb", u)), ((1, 1 - u), (2, u))) for u in (1e-5, 1 - 1e-5)]
    assert (source.latents(request, near) - ends).abs().max() < 1e-3
    assert (ends[0] - ends[1]).abs().max() > 0.1


def test_guidance_and_negative_prompts_act_in_shots() -> None:
    pipe = fake_pipeline()
    request = Request("hello", negative="no", seeds=(4,), guidance=3.0)
    latents = image_source(pipe).latents(request, [Shot((("hello", 1.0),), ((4, 1.0),))])
    assert torch.equal(latents, pipe(request).latents)


def test_latents_to_start_from_are_those_of_the_image() -> None:
    pipe, image = fake_pipeline(), Image.new("RGB", (16, 16), (200, 100, 50))
    request = Request("hello", image=image, strength=0.7, steps=6, seeds=(4,))
    source = image_source(pipe)
    start = source.encode([np.array(image)], request)
    found = source.latents(request, [Shot((("hello", 1.0),), ((4, 1.0),))], start=start, strength=0.7)
    assert torch.equal(found, pipe(request).latents)


# --- clips --------------------------------------------------------------------------------------------------------


def walk(frames: int = 9, **more: Any) -> sdkit.Clip:
    return animate(
        "walk(batch=2)", fake_pipeline(), Request("0: a | 6: bbbbbbbbbbbb", seeds=(3,)), frames=frames, **more
    )


def test_a_clip_renders_each_time_it_is_asked() -> None:
    clip = walk()
    first, again = list(clip), list(clip)
    assert [frame.index for frame in first] == list(range(9))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert first[3].pts == Fraction(3, 12)
    assert first[3].info.prompts == (("a", 0.5), ("bbbbbbbbbbbb", 0.5))


def test_frames_on_keys_are_single_pictures() -> None:
    frames = list(walk())
    for index, prompt in ((0, "a"), (6, "bbbbbbbbbbbb")):
        (picture,) = fake_pipeline()(Request(prompt, seeds=(3,))).images
        assert np.array_equal(frames[index].image, np.array(picture))


def test_there_and_back_shows_each_turning_point_once() -> None:
    clip = walk(frames=16, loop="pingpong")
    images = [frame.image for frame in clip]
    assert len(images) == 16
    assert all(np.array_equal(images[k], images[-k % 16]) for k in range(1, 8))
    assert not np.array_equal(images[5], images[4])
    filtered = walk(frames=9) | PingPong()
    assert all(np.array_equal(a, b.image) for a, b in zip(images, filtered, strict=True))
    assert filtered.manifest.filters == ("ping-pong",)


@attrs.frozen
class Wrong:
    """A generator that counts wrong, or gives nothing."""

    count: int = 0

    def needs(self, job: FrameJob, /) -> frozenset[Capability]:
        return frozenset()

    def plan(self, job: FrameJob, /) -> FramePlan:
        return FramePlan()

    def init(self, job: FrameJob, /) -> Mapping[str, Any]:
        return {}

    def step(self, job: FrameJob, index: int, state: Mapping[str, Any], /) -> Burst:
        black = np.zeros((4, 4, 3), np.uint8)
        return Burst([Frame.of(index + k, job.timeline, black) for k in range(self.count)], state)


def test_a_generator_that_counts_wrong_is_found_out() -> None:
    assert len(list(animate(Wrong(1), None, frames=4))) == 4
    with pytest.raises(ContractError, match="made no frame at 0"):
        list(animate(Wrong(0), None, frames=4))
    with pytest.raises(ContractError, match="frame 4 .* where frame 4 of 4"):
        list(animate(Wrong(3), None, frames=4))


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"generator": "wlak"}, sdkit.UnknownComponent, "did you mean walk"),
        ({"generator": "walk(bacth=2)"}, ParameterError, "no parameter 'bacth'"),
        ({"generator": 5}, ParameterError, "not by 5"),
        ({"source": None}, InvalidRequest, "no source of images for: .*text-to-image"),
        ({"request": "a cat"}, InvalidRequest, "Nothing travels"),
        ({"request": "0: a | 50: b"}, InvalidRequest, "key at frame 50, and the clip's frames are 0 to 9"),
        ({"request": "0: a | -1: b"}, InvalidRequest, "'-1' is no frame; frames are whole numbers from 0"),
        ({"request": "0: a | 1.5: b"}, InvalidRequest, "'1.5' is no frame"),
        ({"request": "0: a | max_f - 1: b"}, InvalidRequest, "'max_f - 1' is no frame"),
        ({"request": '{"0": "a", "5": "b"'}, InvalidRequest, "begins as JSON and cannot be read as such: Expecting"),
        ({"request": '{"0": "a", "00": "b"}'}, InvalidRequest, "has frame 0 twice"),
        ({"request": "0: a | 7: b", "loop": "pingpong"}, InvalidRequest, "before the clip goes back are 0 to 5"),
        ({"request": {0: "a", 5: "b"}}, ParameterError, "What to show is text, such as .* not {0: 'a', 5: 'b'}"),
        ({"source": "emoji"}, ParameterError, r"made with sdkit.pipeline\(model\), not with 'emoji'"),
        ({"frames": 0}, InvalidRequest, "not 0"),
        ({"ease": "bouncy"}, ParameterError, "no ease 'bouncy'"),
    ],
)
def test_wrong_clips_are_one_sentence(arguments: dict[str, Any], kind: type, sentence: str) -> None:
    given = {"generator": "walk", "source": fake_pipeline(), "request": "0: a | 5: b", "frames": 10, **arguments}
    with pytest.raises(kind, match=sentence) as caught:
        animate(**given)
    assert isinstance(caught.value, SdkitError)


def test_a_bar_or_a_colon_within_a_prompt_is_no_key() -> None:
    texts = ("0: a [cat|dog] | 5: b", "0: ratio 16:9 | 5: b | c", "0: [a|b:0.5] | 5: max_f", "{a|b} c", "a | -1: b")
    assert [len(PromptTrack(text).keys) for text in texts] == [2, 2, 2, 1, 1]


def test_what_is_no_filter_or_sink_is_one_sentence_before_anything_runs(tmp_path: Path) -> None:
    calls: list[int] = []
    clip = walk(tick=lambda: calls.append(1))
    wrongs: tuple[Any, ...] = (None, 5, lambda frames, timeline: frames, sdkit.registry().get("frame-filter", "blend"))
    for wrong in wrongs:
        with pytest.raises(ParameterError, match="through a filter's name or a filter"):
            clip | wrong
    no_sinks: tuple[Any, ...] = (5, sdkit.registry().get("frame-sink", "gif"))
    for sink in no_sinks:
        with pytest.raises(ParameterError, match="a sink's name or a sink"):
            clip.save(tmp_path / "c.gif", sink=sink)
    (tmp_path / "d.gif").mkdir()
    with pytest.raises(FileError, match="it is a folder"):
        clip.save(tmp_path / "d.gif")
    with pytest.raises(ParameterError, match="A GIF shows at most 50 frames per second, not 192"):
        (clip | "blend(times=16)").save(tmp_path / "e.gif")
    assert not calls
    assert [path.name for path in tmp_path.iterdir()] == ["d.gif"]


def test_curves_and_what_has_them_are_pickled() -> None:
    for made in (Curve("0:(1), 4:(2*sin(t)); ease=cubic"), sdkit.registry().make("frames", "feedback(zoom='0:(1.1)')")):
        again = pickle.loads(pickle.dumps(made))
        assert again == made
        assert repr(again) == repr(made)
    assert pickle.loads(pickle.dumps(Curve("0:(1), 4:(2)"))).at(2, TEN) == 1.5


def test_a_frame_is_read_only_and_owns_its_pixels() -> None:
    buffer = np.zeros((4, 4, 3), np.uint8)
    frame = Frame.of(0, TEN, buffer)
    buffer[:] = 9
    assert frame.image.max() == 0
    assert not frame.image.flags.writeable
    with pytest.raises(ContractError, match=r"uint8 \(height, width, 3\), not float64"):
        Frame.of(0, TEN, np.zeros((4, 4, 3)))  # type: ignore[arg-type]


def test_manifests_travel() -> None:
    manifest = walk().manifest
    assert ClipManifest.from_json(manifest.to_json()) == manifest
    assert manifest.model == "fake"
    with pytest.raises(ManifestError, match="schema 9"):
        ClipManifest.from_json(attrs.evolve(manifest, schema=9).to_json())


def test_a_clip_is_saved_with_its_manifest_and_on_frame_sees_all(tmp_path: Path) -> None:
    seen: list[int] = []
    path = walk().save(tmp_path / "c.gif", on_frame=lambda frame: seen.append(frame.index))
    assert seen == list(range(9))
    assert [p.name for p in tmp_path.iterdir()] == ["c.gif"]
    manifest = sdkit.registry().make("frame-sink", "gif").read(path)[1]
    assert ClipManifest.from_json(manifest).generator == "walk(batch=2)"


def test_a_render_that_fails_leaves_a_partial_file_that_plays(tmp_path: Path) -> None:
    def stop(frame: Frame) -> None:
        if frame.index == 4:
            raise KeyboardInterrupt

    for ending in ("mp4", "gif", "webp", "apng", "webm"):
        with pytest.raises(KeyboardInterrupt):
            walk().save(tmp_path / f"c.{ending}", on_frame=stop)
        assert [p.name for p in tmp_path.iterdir()] == [f"c.partial.{ending}"]
        frames, _ = sdkit.registry().make("frame-sink", ending).read(tmp_path / f"c.partial.{ending}")
        assert len(list(frames)) == 5
        (tmp_path / f"c.partial.{ending}").unlink()


class Failing:
    """A sink whose disk is full at the third frame."""

    suffixes = (".x",)

    def open(self, *_: Any) -> Failing:
        self.count = 0
        self.aborted = False
        return self

    def write(self, frame: Frame) -> None:
        self.count += 1
        if self.count == 3:
            raise FileError("no room left.")

    def finish(self) -> Path:
        raise AssertionError

    def abort(self) -> None:
        self.aborted = True


def test_an_error_of_the_sink_ends_the_render(tmp_path: Path) -> None:
    sink, made = Failing(), []
    clip = animate(Wrong(1), None, frames=5000)
    with pytest.raises(FileError, match="no room"):
        clip.save(tmp_path / "c.x", sink=sink, on_frame=lambda frame: made.append(frame))  # type: ignore[arg-type]
    assert sink.aborted
    assert len(made) < 500


class Slow(Failing):
    """A sink slower than its generator; it counts what it wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def write(self, frame: Frame, /) -> None:
        time.sleep(0.02)
        self.written += 1

    def finish(self) -> Path:
        return Path()


@pytest.mark.parametrize(("times", "most"), [(1, 2), (3, 3)])
def test_a_file_trails_what_is_made_by_as_little_as_a_step_makes(times: int, most: int, tmp_path: Path) -> None:
    sink, trails = Slow(), []
    clip = animate("zoom", None, Request("", image=Image.new("RGB", (16, 16))), frames=12)
    if times > 1:
        clip = clip | f"blend(times={times})"  # its frames come three at a time
    clip.save(tmp_path / "c.x", sink=sink, on_frame=lambda f: trails.append(f.index - sink.written))  # type: ignore[arg-type]
    assert sink.written == len(trails) == 12 * times
    assert 1 <= max(trails) <= most  # that the encoder has in hand, and what waits


@pytest.mark.parametrize("name", ["c", "c.xyz", "nowhere/c.gif"])
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SdkitError, match="ending|frame-sink 'xyz'|does not exist"):
        walk().save(tmp_path / name)


# --- journals -----------------------------------------------------------------------------------------------------


def test_states_come_back_as_they_were() -> None:
    state: dict[str, Any] = {
        "a": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        "n": 3,
        "x": 0.1,
        "text": "é",
        "list": [1, None],
    }
    found = load_state(save_state(state))
    assert torch.equal(found.pop("a"), state.pop("a"))
    assert found == state
    for wrong in ({"f": {1, 2}}, {"f": (1, 2)}, {"f": float("nan")}, {"f": np.zeros(2)}):
        with pytest.raises(ContractError, match="tensors and what JSON holds"):
            save_state(wrong)
    with pytest.raises(FileError, match="cannot be read"):
        load_state(b"nonsense")


def feedback(**more: Any) -> sdkit.Clip:
    request = Request("0: a | 8: bbbbbbbbbbbb", seeds=(3,))
    return animate("feedback(cadence=2, zoom=1.05)", fake_pipeline(), request, frames=12, **more)


def test_a_manifest_names_files_without_their_folders(tmp_path: Path) -> None:
    for k in (0, 1):
        Image.new("RGB", (16, 16), (100 * k, 50, 50)).save(tmp_path / f"{k}.png")
    images = {0: str(tmp_path / "0.png"), 4: str(tmp_path / "1.png")}
    text = animate(f"keyframes(images={images!r})", fake_pipeline(), "a", frames=5).manifest.to_json()
    assert "1.png" in text
    assert str(tmp_path) not in text


def test_a_forced_journal_of_more_frames_gives_those_asked_for(tmp_path: Path) -> None:
    list(walk(journal=tmp_path / "j"))
    assert len(list(walk(frames=7, journal=tmp_path / "j", resume=True, force=True))) == 7


@pytest.mark.parametrize("make", [walk, feedback])
@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_resumed_render_is_the_straight_one(make: Any, stop: int, tmp_path: Path) -> None:
    straight = [frame.image.tobytes() for frame in make()]
    running: Iterator[Frame] = iter(make(journal=tmp_path / "j"))
    for _ in range(stop):
        next(running)
    running.close()  # type: ignore[attr-defined]
    calls: list[int] = []
    resumed = make(journal=tmp_path / "j", resume=True, tick=lambda: calls.append(1))
    assert [frame.image.tobytes() for frame in resumed] == straight
    full: list[int] = []
    list(make(tick=lambda: full.append(1)))
    assert len(calls) < len(full) or stop == 0
    calls.clear()
    assert [frame.image.tobytes() for frame in resumed] == straight  # from the journal alone
    assert calls == []


def test_latents_are_there_before_they_are_decoded(tmp_path: Path) -> None:
    pipe = fake_pipeline()

    @attrs.frozen(eq=False)
    class Broken:
        """A decoder that runs out of memory."""

        inside: Any

        def __call__(self, latents: torch.Tensor, /) -> torch.Tensor:
            raise MemoryError

        def encode(self, images: torch.Tensor, /) -> torch.Tensor:
            return self.inside.encode(images)  # type: ignore[no-any-return]

    broken = attrs.evolve(pipe, decoder=Broken(pipe.decoder))
    request = Request("0: a | 6: bbbbbbbbbbbb", seeds=(3,))
    with pytest.raises(MemoryError):
        list(animate("walk(batch=2)", broken, request, frames=9, journal=tmp_path / "j"))
    assert len(list((tmp_path / "j" / "latents").iterdir())) == 1
    calls: list[int] = []
    clip = animate(
        "walk(batch=2)", pipe, request, frames=9, journal=tmp_path / "j", resume=True, tick=lambda: calls.append(1)
    )
    found = [frame.image.tobytes() for frame in clip]
    assert found == [frame.image.tobytes() for frame in walk()]
    assert len(calls) == 3 * 4  # four of five batches; the first was on disk


def test_a_journal_is_not_taken_for_another(tmp_path: Path) -> None:
    next(iter(walk(journal=tmp_path / "j")))
    with pytest.raises(FileError, match="holds the journal of a render already"):
        walk(journal=tmp_path / "j")
    with pytest.raises(ManifestError, match="frames differ"):
        walk(frames=10, journal=tmp_path / "j", resume=True)
    assert len(list(walk(frames=10, journal=tmp_path / "j", resume=True, force=True))) == 10


def test_a_changed_frame_and_a_cut_line_are_noticed(tmp_path: Path) -> None:
    list(walk(journal=tmp_path / "j"))
    lines = (tmp_path / "j" / "frames.jsonl").read_text()
    (tmp_path / "j" / "frames.jsonl").write_text(lines[:-20])  # a crash in the middle of the last line
    assert len(list(walk(journal=tmp_path / "j", resume=True))) == 9
    Image.new("RGB", (16, 16)).save(tmp_path / "j" / "frames" / "0000002.png")
    with pytest.raises(FileError, match="Frame 2 of the journal was changed"):
        list(walk(journal=tmp_path / "j", resume=True))


def test_after_a_cut_line_every_checkpoint_counts(tmp_path: Path) -> None:
    running: Iterator[Frame] = iter(walk(journal=tmp_path / "j"))
    for _ in range(3):
        next(running)
    running.close()  # type: ignore[attr-defined]
    lines = tmp_path / "j" / "frames.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    list(walk(journal=tmp_path / "j", resume=True))
    latest = Journal(tmp_path / "j", Timeline(9)).latest()
    assert latest is not None
    assert latest[0] == 9  # nothing is made again a second time


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("state/0000008.safetensors", b"x"),
        ("state/0000009.safetensors", b""),
        ("state/notes.safetensors", b"x"),
        ("latents/0000008.safetensors", b"x"),
        ("latents/0000008.safetensors", save_state({"other": 1})),
        ("frames.jsonl", b"\xff\xfe\x00"),
        ("frames.jsonl", b'{"index": 3}'),
        ("frames.jsonl", b'{"index": 3, "sha256": "", "info": {}}'),
    ],
)
def test_a_damaged_journal_costs_work_and_no_frame(path: str, data: bytes, tmp_path: Path) -> None:
    straight = [frame.image.tobytes() for frame in walk(journal=tmp_path / "j")]
    (tmp_path / "j" / "state" / "0000009.safetensors").unlink()  # as if stopped behind frame 7
    with open(tmp_path / "j" / path, "ab" if path.endswith("jsonl") else "wb") as file:
        file.write(data)
    assert [frame.image.tobytes() for frame in walk(journal=tmp_path / "j", resume=True)] == straight


def test_a_journal_says_what_differs_and_what_to_do(tmp_path: Path) -> None:
    list(walk(journal=tmp_path / "j"))
    with pytest.raises(ManifestError, match=r"another render: request.prompt, request.steps differ\(s\)"):
        animate("walk(batch=2)", fake_pipeline(), Request("0: a | 6: c", seeds=(3,), steps=2), frames=9,
                journal=tmp_path / "j", resume=True)  # fmt: skip
    (tmp_path / "j" / "frames" / "0000002.png").write_bytes(b"")
    with pytest.raises(FileError, match="Frame 2 of the journal cannot be read: .*; delete 'frames' and 'state'"):
        list(walk(journal=tmp_path / "j", resume=True))
    for name in ("frames", "state"):
        shutil.rmtree(tmp_path / "j" / name)
    calls: list[int] = []
    again = walk(journal=tmp_path / "j", resume=True, tick=lambda: calls.append(1))
    assert [frame.image.tobytes() for frame in again] == [frame.image.tobytes() for frame in walk()]
    assert not calls
    (tmp_path / "j" / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="its manifest cannot be read; ask for the same"):
        walk(journal=tmp_path / "j", resume=True)


def test_three_threads_share_a_journal(tmp_path: Path) -> None:
    clip = walk(journal=tmp_path / "j")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: [frame.image.tobytes() for frame in clip], range(3)))
    assert found[0] == found[1] == found[2]


RENDER = """
import sys, time
from sdkit import Request, animate
from sdkit.testing import fake_pipeline
clip = animate("feedback(cadence=1, zoom=1.05)", fake_pipeline(), Request("0: a | 8: bbbbbbbbbbbb", seeds=(3,)),
    frames=30, journal=sys.argv[1], resume=True, tick=lambda: time.sleep(0.02))
print("go", flush=True)
clip.save(sys.argv[2], on_frame=lambda frame: print(frame.index, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_killed_render_leaves_what_plays_and_goes_on(ending: str, tmp_path: Path) -> None:
    victim = random.Random(os.getpid()).randint(3, 25)  # any frame will do
    target = tmp_path / f"c.{ending}"
    command = [sys.executable, "-c", RENDER, str(tmp_path / "j"), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == str(victim):
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    sink = sdkit.registry().make("frame-sink", ending)
    partial = list(sink.read(tmp_path / f"c.partial.{ending}")[0])
    assert victim - 9 <= len(partial) <= victim + 3  # the encoder is a few frames behind
    latest = Journal(tmp_path / "j", Timeline(30)).latest()
    assert latest is not None
    assert latest[0] >= victim, "at most the frame in hand is lost"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "29"
    request = Request("0: a | 8: bbbbbbbbbbbb", seeds=(3,))
    straight = [f.image for f in animate("feedback(cadence=1, zoom=1.05)", fake_pipeline(), request, frames=30)]
    kept = [frame.image for frame in Journal(tmp_path / "j", Timeline(30)).frames(30)]
    assert all(np.array_equal(a, b) for a, b in zip(straight, kept, strict=True))
    assert len(list(sink.read(target)[0])) == 30
    assert not (tmp_path / f"c.partial.{ending}").exists()


MEMORY = """
import resource, sys
from fractions import Fraction
from sdkit import Request, animate
from sdkit.testing import fake_pipeline
count, path = int(sys.argv[1]), sys.argv[2]
pipe = fake_pipeline()
def render(frames):
    clip = animate("zoom", pipe, Request("a"), frames=frames, fps=25) | "color-match" | "resize(width=64)"
    clip.save(path)
render(100)
render(count)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "webp"])
def test_memory_does_not_grow_with_the_clip(ending: str, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(count), str(tmp_path / f"c.{ending}")]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(2000) <= 1.05 * peak(100)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    """How fast it is, is not for a test to say."""
    script = Path(__file__).parent.parent / "benchmarks" / "frames.py"
    done = subprocess.run([sys.executable, str(script), "--small", "--json"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert set(found["claims"]) == {"walk", "batch_8", "overlap", "memory"}
    assert all(value > 0 for name, value in found["figures"].items() if name != "overlap")
    assert found["claims"]["memory"], found["figures"]
    assert done.returncode == (0 if all(found["claims"].values()) else 1)


# --- command line -------------------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    process = subprocess.run(
        [sys.executable, "-c", "from sdkit.cli import main; main()", *arguments], capture_output=True, text=True
    )
    return process.returncode, process.stdout + process.stderr


def test_the_command_makes_a_clip_resumes_it_and_draws_its_sheet(tmp_path: Path) -> None:
    out = tmp_path / "c.webp"
    walk = ("animate", "walk", "--prompt", "0: a cat | 2: a dog", "--frames", "4", "--steps", "1", "--out", str(out))
    code, said = run(*walk, "--loop", "closed", "--resume", "--filter", "blend", "--curve", "batch=0")
    assert (code, said) == (2, "Error: A walk makes 1 to 256 frames together, not 0.\n")
    code, said = run(*walk, "--loop", "closed", "--resume", "--filter", "blend")
    assert (code, said) == (0, f"{out}\n")  # and no note: the model knows cats and dogs
    facts = json.loads((tmp_path / "c.webp.journal" / "manifest.json").read_text())
    assert facts["generator"] == "walk"
    again = tmp_path / "c.gif"
    journal = ("--journal", str(out) + ".journal", "--resume")  # other sink and filters, no new render, the same seed
    code, said = run(*walk[:-1], str(again), "--loop", "closed", *journal)
    assert (code, said) == (0, f"{again}\n")
    song, film = tmp_path / "song.wav", tmp_path / "c.mp4"
    with wave.open(str(song), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\x00\x20" * 8000)
    code, said = run(*walk[:-1], str(film), "--loop", "closed", *journal, "--sink", "mp4(crf=30)", "--audio", str(song))
    assert (code, said) == (0, f"{film}\n")
    manifest = ClipManifest.from_json(sdkit.registry().make("frame-sink", "mp4").read(film)[1])
    assert manifest.sink == "mp4(crf=30, audio='song.wav')"
    assert b"mp4a" in film.read_bytes()
    code, said = run("contact-sheet", str(out), "--count", "5")
    assert (code, said) == (0, f"{tmp_path / 'c-sheet.png'}\n")
    with Image.open(tmp_path / "c-sheet.png") as sheet:
        assert sheet.width > 3 * 128


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("walk", "--prompt", "a", "--out", "c.xyz"), "There is no frame-sink 'xyz'"),
        (("wlk", "--prompt", "a", "--out", "c.gif"), "did you mean walk"),
        (("zoom", "--curve", "zoom", "--out", "c.gif"), "--curve takes NAME=CURVE"),
        (("zoom", "--curve", "zoom=0:(1", "--out", "c.gif"), "in column 5"),
        (("zoom", "--fps", "x", "--out", "c.gif"), "not 'x'"),
        (("zoom", "--filter", "blnd", "--out", "c.gif"), "did you mean blend"),
        (("zoom", "--out", "nowhere/c.gif"), "does not exist"),
        (("zoom", "--out", "c.gif", "--out", "c.mp4"), "'--out': it is given 2 times, and a render writes one file"),
        (("zoom", "--out", "c.mp4", "--sink", "gif"), "ends in .mp4 and --sink writes gif; name it c.gif"),
        (("zoom", "--curve", "x=1", "--curve", "x=2", "--out", "c.gif"), "--curve gives 'x' twice"),
        (("zoom", "--out", "c.gif", "--audio", "song.mp3"), "A gif carries no sound; write an mp4 or a webm"),
        (("zoom", "--out", "c.mp4", "--audio", "song.mp3"), "'song.mp3' cannot be read as sound: No such file"),
    ],
)
def test_wrong_commands_are_one_line(arguments: tuple[str, ...], sentence: str) -> None:
    code, said = run("animate", *arguments)
    assert code == 2
    assert said.count("\n") == 1
    assert sentence in said


# --- what the page shows --------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "animations.md"


def commands() -> dict[str, list[str]]:
    """The page's commands by the file they write."""
    lines = re.findall(r"`(sdkit animate .*?)` \|", PAGE.read_text(encoding="utf-8"))
    words = [shlex.split(line.replace("\\|", "|")) for line in lines]
    return {each[each.index("--out") + 1]: each for each in words}


@pytest.mark.parametrize("name", ["walk.webp", "zoom.webp", "feedback.webp"])
def test_the_pages_clips_were_made_by_the_pages_commands(name: str) -> None:
    path, words = PAGE.parent / "assets" / "clips" / name, commands()[name]
    assert path.stat().st_size < 500_000
    option = dict(itertools.pairwise(words))
    frames, text = sdkit.registry().make("frame-sink", "webp").read(path)
    manifest = ClipManifest.from_json(text)
    assert len(list(frames)) == manifest.frames == int(option["--frames"])
    assert (manifest.request.prompt, manifest.fps) == (option["--prompt"], option["--fps"])
    assert manifest.request.seeds == (int(option["--seed"]),)
    assert manifest.request.steps == (int(option["--steps"]) if "--steps" in option else None)
    assert manifest.loop == option.get("--loop", "none")
    assert manifest.model_sha256 == sdkit.load("emoji").spec.sha256
    curves = [words[k + 1] for k, word in enumerate(words) if word == "--curve"]
    assert sdkit.registry().make("frames", manifest.generator) == sdkit.registry().make(
        "frames", animate_command._with_curves(words[2], tuple(curves))
    )


def test_the_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(compile(code[1].replace("steps=20", "steps=1"), "docs/animations.md", "exec"), {"__name__": "page"})
    assert (tmp_path / "walk.mp4").stat().st_size > 1000

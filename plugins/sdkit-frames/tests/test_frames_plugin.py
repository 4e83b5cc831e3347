"""Warps, colours, filters, sinks and generators against exact answers and other implementations."""

from __future__ import annotations

import colorsys
import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sdkit import (
    FileError,
    Frame,
    FrameInfo,
    InvalidRequest,
    Loop,
    ParameterError,
    Request,
    Timeline,
    UnknownComponent,
    animate,
    registry,
)
from sdkit.testing import fake_pipeline
from sdkit_frames import color, feedback
from sdkit_frames.color import from_space, match, match_histogram, to_space
from sdkit_frames.feedback import Feedback, seed_at
from sdkit_frames.filters import Blend, Caption, ColorMatch, Deflicker, Resize, Retime
from sdkit_frames.partial import Ticks
from sdkit_frames.warp import flat_3d, from_tensor, inverse, moved, plane, to_tensor, warp

SIZE = (24, 18)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (size[1], size[0], 3))
    smooth: np.ndarray[Any, Any] = ndimage.gaussian_filter(noise.astype(float), (2, 2, 0)).astype(np.uint8)
    return smooth


# --- warps --------------------------------------------------------------------------------------------------------


def test_nothing_moves_without_motion() -> None:
    image = to_tensor(picture())
    for border in ("replicate", "wrap", "reflection", "zeros"):
        for sampling in ("bicubic", "bilinear"):
            assert torch.allclose(warp(image, plane(SIZE), border=border, sampling=sampling), image, atol=1e-6)
    assert np.allclose(flat_3d(SIZE, turn=(0, 0, 0)) / flat_3d(SIZE, turn=(0, 0, 0))[2, 2], np.eye(3))


def test_a_warp_is_what_scipy_makes_of_the_same_matrix() -> None:
    image = picture()
    motion = plane(SIZE, zoom=1.3, angle=20, shift=(2.5, -1.25), center=(0.4, 0.7))
    found = warp(to_tensor(image), motion, sampling="bilinear").permute(1, 2, 0).numpy()
    back = np.linalg.inv(motion)
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    column, row, _ = np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)]))
    for k in range(3):
        expected = ndimage.map_coordinates(image[..., k] / 255, [row, column], order=1, mode="nearest")
        assert np.abs(found[..., k] - expected).max() < 1e-5


def test_a_whole_shift_moves_pixels_exactly_and_each_border_fills_as_it_says() -> None:
    image = picture()
    shifted = {
        b: from_tensor(warp(to_tensor(image), plane(SIZE, shift=(3, 0)), border=b))
        for b in ("replicate", "wrap", "reflection", "zeros")
    }
    for border, found in shifted.items():
        assert np.array_equal(found[:, 3:], image[:, :-3]), border
    assert np.array_equal(shifted["wrap"][:, :3], image[:, -3:])
    assert np.array_equal(shifted["reflection"][:, :3], image[:, 2::-1])
    assert np.array_equal(shifted["replicate"][:, 0], image[:, 0])
    assert shifted["zeros"][:, :2].max() == 0


def test_directions_are_deforums() -> None:
    dot = np.zeros((21, 21, 3), np.uint8)
    dot[10, 15] = 255  # right of the centre

    def where(motion: Any) -> tuple[int, int]:
        found = from_tensor(warp(to_tensor(dot), motion, border="zeros"))[..., 0]
        row, column = np.unravel_index(found.argmax(), found.shape)
        return int(column), int(row)

    assert where(plane((21, 21), angle=90)) == (10, 5)  # counter-clockwise: up
    assert where(plane((21, 21), zoom=2)) == (20, 10)
    assert where(plane((21, 21), shift=(-4, 2))) == (11, 12)
    assert where(flat_3d((21, 21), turn=(0, 0, -90))) == (10, 5)
    assert where(flat_3d((21, 21), turn=(0, 0, 0), nearer=0.5)) == (20, 10)


def test_a_plane_in_space_is_seen_through_a_pinhole() -> None:
    motion = flat_3d((101, 101), turn=(0, 30, 0), fov=90)
    f, angle, u = 50.5, math.radians(30), 20.0
    x, z = u * math.cos(angle), f - u * math.sin(angle)
    seen = motion @ [50 + u, 50, 1]
    assert seen[0] / seen[2] == pytest.approx(50 + f * x / z)


def test_motions_follow_each_other_and_go_back() -> None:
    one, two = plane(SIZE, zoom=1.2, angle=5), flat_3d(SIZE, turn=(3, 4, 5), nearer=0.1)
    both = moved([one, two])
    assert np.allclose(both, two @ one)
    assert np.allclose(inverse(both) @ both, np.eye(3))


# --- colours ------------------------------------------------------------------------------------------------------


def test_known_colours_in_lab() -> None:
    # CIE L*a*b* of sRGB primaries under D65, as published (B. Lindbloom's calculator), to two decimals
    known = {
        (1, 1, 1): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 1, 0): (87.73, -86.18, 83.18),
        (0, 0, 1): (32.30, 79.19, -107.86),
        (0.5, 0.5, 0.5): (53.39, 0, 0),
    }
    for rgb, lab in known.items():
        assert to_space(np.array([[rgb]], float), "LAB")[0, 0] == pytest.approx(lab, abs=0.02)


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_spaces_go_there_and_back_and_hsv_is_pythons(rgb: tuple[float, float, float]) -> None:
    array = np.array([[rgb]])
    for space in color.SPACES:
        assert from_space(to_space(array, space), space)[0, 0] == pytest.approx(rgb, abs=1e-6)
    hue, saturation, value = to_space(array, "HSV")[0, 0]
    expected = colorsys.rgb_to_hsv(*rgb)
    assert (saturation, value) == pytest.approx(expected[1:], abs=1e-9)
    assert min(abs(hue - expected[0]), 1 - abs(hue - expected[0])) < 1e-6


@given(st.integers(0, 1000))
def test_a_matched_channel_has_the_others_distribution(seed: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    one, two = draw.random((40, 50)), draw.random((30, 20)) ** 2
    found = match_histogram(one, two)
    assert np.abs(np.quantile(found, np.linspace(0, 1, 9)) - np.quantile(two, np.linspace(0, 1, 9))).max() < 0.02
    order = one.ravel().argsort()
    assert (np.diff(found.ravel()[order]) >= 0).all()
    assert np.array_equal(match_histogram(one, one), one)


@pytest.mark.parametrize("space", color.SPACES)
def test_matching_a_picture_to_itself_changes_nothing_and_undoes_a_cast(space: str) -> None:
    image = picture(1, (48, 40))
    assert np.abs(match(image, image, space).astype(int) - image).max() <= 1
    cast = np.clip(image * np.array([0.7, 1.0, 0.9]), 0, 255).astype(np.uint8)
    back = match(cast, image, space)
    assert np.abs(back.mean((0, 1)) - image.mean((0, 1))).max() < 6
    assert np.abs(cast.mean((0, 1)) - image.mean((0, 1))).max() > 20


# --- feedback -----------------------------------------------------------------------------------------------------


def test_seed_behaviours() -> None:
    assert [seed_at("iter", 5, k) for k in range(4)] == [5, 6, 7, 8]
    assert [seed_at("fixed", 5, k) for k in range(3)] == [5, 5, 5]
    assert [seed_at("ladder", 0, k) for k in range(6)] == [0, 2, 1, 3, 2, 4]
    assert [seed_at("alternate", 5, k) for k in range(4)] == [5, 6, 5, 6]
    assert seed_at("random", 5, 0) == 5
    assert len({seed_at("random", 5, k) for k in range(50)}) == 50


def clip(text: str, frames: int = 7, prompt: str = "0: a | 6: bbbbbbbbb", **more: Any) -> list[Frame]:
    return list(animate(text, fake_pipeline(), Request(prompt, seeds=(3,), **more), frames=frames))


def test_the_order_of_operations_is_the_one_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    module: Any = feedback

    def told(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            said.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(module, "warp", told("warp", module.warp))
    monkeypatch.setattr(module, "match", told("match", module.match))
    monkeypatch.setattr(module, "_sharpened", told("sharpen", module._sharpened))

    class Told:
        def __init__(self, *arguments: Any) -> None:
            self.noise = noise(*arguments)

        def initial(self, like: torch.Tensor) -> torch.Tensor:
            said.append("noise")
            made: torch.Tensor = self.noise.initial(like)
            return made

    noise = module.AddressedNoise
    monkeypatch.setattr(module, "AddressedNoise", Told)
    frames = iter(
        animate(
            "feedback(cadence=1)",
            fake_pipeline(),
            Request("a", seeds=(3,)),
            frames=3,
            tick=lambda: said.append("model"),
        )
    )
    next(frames)
    said.clear()
    next(frames)
    assert list(dict.fromkeys(said)) == ["warp", "match", "sharpen", "noise", "model"]
    assert said[-1] == "match"
    assert said.count("match") == 2


def test_with_nothing_painted_a_frame_is_the_warped_first() -> None:
    frames = clip("feedback(strength=1, noise=0, sharpen=0, color='none', zoom=1, translation_x=1, cadence=1)")
    for k in (1, 2):
        assert np.array_equal(frames[k].image[:, k:], frames[0].image[:, :-k])
    assert frames[1].info.origin == "warped"


def test_cadence_paints_every_other_frame_and_blends_between() -> None:
    calls: list[int] = []
    request = Request("a", seeds=(3,))
    text = "feedback(cadence=3, zoom=1, noise=0, color='none', strength=0.3)"
    frames = list(animate(text, fake_pipeline(), request, frames=7, tick=lambda: calls.append(1)))
    assert [frame.info.origin[0] for frame in frames] == list("diidiid")
    mean = (2 * frames[0].image.astype(float) + frames[3].image) / 3
    assert np.abs(frames[1].image - mean).max() <= 0.51
    assert len(calls) == 3 + 2 * round(3 * 0.7)


def test_strength_is_how_much_is_kept() -> None:
    request: dict[str, Any] = {"steps": 10}
    near, far = (
        clip(f"feedback(strength={s}, zoom=1, noise=0, color='none', cadence=1)", 2, "a", **request) for s in (0.9, 0.2)
    )
    first = near[0].image.astype(float)
    assert np.abs(near[1].image - first).mean() < np.abs(far[1].image - first).mean()


def test_colours_stay_those_of_the_first_frame() -> None:
    prompt = "0: a | 6: bbbbbbbbbbbbbbbbbbbbbbbbbbbb"
    kept, free = (clip(f"feedback(cadence=1, color={c!r})", prompt=prompt) for c in ("LAB", "none"))
    drift = [abs(float(f[-1].image.mean()) - float(f[0].image.mean())) for f in (kept, free)]
    assert drift[0] < 2 < drift[1]


def test_values_out_of_range_are_named_before_anything_runs() -> None:
    for text, sentence in (
        ("feedback(strength='0:(1), 4:(2)')", "between 0 and 1, not 1.25 as at frame 1"),
        ("feedback(zoom='1-t/3')", "Zoom must be above 0, not 0"),
        ("feedback(noise=-1)", "at least 0"),
        ("feedback(cadence=0)", "1 to 64, not 0"),
        ("feedback(color='CMYK')", "LAB, HSV, RGB, not in 'CMYK'"),
        ("feedback(border='mirror')", "no border 'mirror'"),
        ("feedback(seeds='up')", "not as 'up'"),
        ("feedback(seeds='schedule', seed_schedule='0-t')", "gives -1 at frame 1"),
        ("feedback(fov=180)", None),
    ):
        if sentence is None:
            clip(text, 2, "a")  # no 3D motion, so the field of view does not matter
            continue
        with pytest.raises(ParameterError, match=sentence):
            clip(text)
    with pytest.raises(ParameterError, match="field of view"):
        clip("feedback(fov=180, rotation_3d_x=1)")


def test_defaults_are_deforums() -> None:
    made = Feedback()
    assert (made.cadence, made.color, made.border, made.seeds) == (2, "LAB", "replicate", "iter")
    assert made.strength.at(0, Timeline(120)) == 0.65
    assert made.noise.at(0, Timeline(120)) == 0.065
    assert made.zoom.at(24, Timeline(120)) == pytest.approx(1.0025 + 0.002 * math.sin(1.25 * 3.14 * 24 / 30))


# --- the other generators -----------------------------------------------------------------------------------------


def test_a_zoom_is_pillows_affine_transform() -> None:
    still = Image.fromarray(picture(3, (16, 16)))
    request = Request("", image=still)
    frames = list(animate("zoom(zoom='0:(1), 4:(2)', sampling='bilinear')", None, request, frames=5))
    assert np.array_equal(frames[0].image, np.array(still))
    half = still.transform((16, 16), Image.Transform.AFFINE, (0.5, 0, 4, 0, 0.5, 4), Image.Resampling.BILINEAR)
    assert np.abs(frames[4].image[2:-2, 2:-2].astype(int) - np.array(half)[2:-2, 2:-2]).max() <= 1


def test_a_turn_of_360_degrees_goes_on_in_a_loop() -> None:
    request = Request("", image=Image.fromarray(picture(3, (16, 16))))
    frames = list(animate("zoom(zoom=1, angle='0:(0), 8:(360)')", None, request, frames=8, loop="closed"))
    assert [frame.info.values["angle"] for frame in frames] == [45.0 * k for k in range(8)]
    frames = list(animate("zoom(zoom='0:(1), 8:(1.4)')", None, request, frames=8, loop="closed"))
    values = [frame.info.values["zoom"] for frame in frames]
    assert max(values) == values[4] == pytest.approx(1.2)
    assert values[1:4] == pytest.approx(values[7:4:-1], abs=0.05)


def test_seeds_travel_evenly_in_a_walk() -> None:
    frames = list(animate("walk(seeds=(1, 2))", fake_pipeline(), "a", frames=4, loop="closed"))
    assert [frame.info.seeds for frame in frames] == [
        ((1, 1.0),),
        ((1, 0.5), (2, 0.5)),
        ((2, 1.0),),
        ((2, 0.5), (1, 0.5)),
    ]
    with pytest.raises(InvalidRequest, match="2 seeds for 3 prompts"):
        animate("walk(seeds=(1, 2))", fake_pipeline(), "0: a | 1: b | 2: c", frames=4)
    with pytest.raises(InvalidRequest, match="cannot visit 5 seeds"):
        animate("walk(seeds=(1, 2, 3, 4, 5))", fake_pipeline(), "a", frames=4)


def test_keyframes_show_the_given_pictures(tmp_path: Path) -> None:
    for k in (0, 1):
        Image.fromarray(picture(k, (16, 16))).save(tmp_path / f"{k}.png")
    images = {0: str(tmp_path / "0.png"), 4: str(tmp_path / "1.png")}
    frames = list(animate(f"keyframes(images={images!r})", fake_pipeline(), "a", frames=6))
    assert np.array_equal(frames[0].image, picture(0, (16, 16)))
    assert np.array_equal(frames[4].image, picture(1, (16, 16)))
    assert np.array_equal(frames[5].image, frames[4].image)
    assert [frame.info.origin for frame in frames][:3] == ["repeated", "diffused", "diffused"]
    with pytest.raises(InvalidRequest, match="picture at frame 4, and the last frame is 3"):
        animate(f"keyframes(images={images!r})", fake_pipeline(), "a", frames=4)


def test_restyle_sees_the_frame_shown_at_its_time(tmp_path: Path) -> None:
    video = tmp_path / "in.mp4"
    shade = animate("zoom(zoom=1)", None, Request("", image=Image.new("RGB", (16, 16))), frames=24, fps=24)
    writer = registry().make("frame-sink", "mp4").open(video, shade.timeline, (16, 16), "")
    for i in range(24):
        writer.write(Frame.of(i, shade.timeline, np.full((16, 16, 3), 10 * i, np.uint8)))
    writer.finish()
    text = f"restyle(video={str(video)!r}, denoise=0)"
    frames = list(animate(text, fake_pipeline(), "a", frames=8, fps=8))
    assert [round(frame.image.mean() / 10) for frame in frames] == [0, 3, 6, 9, 12, 15, 18, 21]
    with pytest.raises(InvalidRequest, match="lasts 1.00 s and the clip 1.25 s; ask for 8 frames"):
        animate(text, fake_pipeline(), "a", frames=10, fps=8)
    for hold, last in (("last", 23), ("repeat", 3)):
        frames = list(animate(f"{text[:-1]}, hold={hold!r})", fake_pipeline(), "a", frames=10, fps=8))
        assert round(frames[-1].image.mean() / 10) == last


# --- filters ------------------------------------------------------------------------------------------------------


def stream(timeline: Timeline) -> Iterator[Frame]:
    for i in range(timeline.frames):
        info = FrameInfo(prompts=(("a cat", 1.0),), seeds=((7, 1.0),))
        yield Frame.of(i, timeline, np.full((32, 48, 3), (10 + 20 * i) % 256, np.uint8), info)


def shades(act: Any, timeline: Timeline) -> list[float]:
    return [float(frame.image.mean()) for frame in act(stream(timeline), timeline)]


def test_frames_between_are_means_and_a_loop_closes() -> None:
    assert shades(Blend(2), Timeline(3)) == [10, 20, 30, 40, 50, 50]
    assert shades(Blend(2), Timeline(3, 12, Loop.CLOSED)) == [10, 20, 30, 40, 50, 30]


def test_another_rate_or_speed() -> None:
    assert shades(Retime(fps=6), Timeline(4)) == [10, 50]
    assert shades(Retime(fps=24), Timeline(2)) == [10, 10, 30, 30]
    assert shades(Retime(fps=24, mix=True), Timeline(2)) == [10, 20, 30, 30]
    assert shades(Retime(speed=2), Timeline(4)) == [10, 50]
    with pytest.raises(InvalidRequest, match="5 frames at 12 fps are 2.50 at 6: no whole number"):
        Retime(fps=6).timeline(Timeline(5))


def test_flicker_is_taken_away() -> None:
    line = Timeline(12)
    frames = [Frame.of(i, line, np.full((8, 8, 3), 120 + 20 * (i % 2), np.uint8)) for i in range(12)]
    found = [frame.image.mean() for frame in Deflicker(0.9)(iter(frames), line)]
    assert np.abs(np.diff(found)).max() < 3  # of 20
    assert [f.image.mean() for f in Deflicker(0)(iter(frames), line)] == [f.image.mean() for f in frames]


def test_sizes_follow_each_other_and_captions_are_filled_in() -> None:
    line = Timeline(2)
    (first, _) = Resize(width=24)(stream(line), line)
    assert first.image.shape == (16, 24, 3)
    plain, written = (list(act(stream(line), line)) for act in (ColorMatch(), Caption("{prompt} {seed} {index}")))
    assert (written[0].image != plain[0].image).any()
    assert np.array_equal(written[0].image[:8], plain[0].image[:8])
    with pytest.raises(ParameterError, match="known are index, time"):
        list(Caption("{nothing}")(stream(line), line))


# --- sinks --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.fractions(min_value=1, max_value=50, max_denominator=1001), st.sampled_from([100, 1000]))
def test_ticks_add_up_to_the_duration(count: int, fps: Fraction, unit: int) -> None:
    ticks = Ticks(fps, unit)
    total = sum(next(ticks) for _ in range(count))
    assert abs(total - count / fps * unit) <= Fraction(1, 2)


def test_a_gif_of_24_frames_per_second_is_no_faster(tmp_path: Path) -> None:
    path = write(tmp_path / "c.gif", Timeline(48, 24))
    with Image.open(path) as image:
        delays = []
        for k in range(48):
            image.seek(k)
            delays.append(image.info["duration"])
    assert sum(delays) == 2000
    assert set(delays) == {40, 50}
    with pytest.raises(ParameterError, match="at most 50 frames per second, not 60"):
        write(tmp_path / "d.gif", Timeline(4, 60))


def write(path: Path, timeline: Timeline, size: tuple[int, int] = (48, 32), sink: str | None = None) -> Path:
    writer = registry().make("frame-sink", sink or path.suffix[1:]).open(path, timeline, size, '{"a":1}')
    for frame in stream(timeline):
        writer.write(Frame.of(frame.index, timeline, frame.image[: size[1], : size[0]]))
    return writer.finish()  # type: ignore[no-any-return]


CODECS = {"mp4": "h264", "webm": "vp9", "gif": "gif", "webp": "webp", "apng": "apng"}


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("fps", ["12", "24000/1001"])
def test_players_agree_on_codec_frames_rate_and_duration(ending: str, fps: str, tmp_path: Path) -> None:
    timeline = Timeline(13, fps)
    path = write(tmp_path / f"c.{ending}", timeline)
    if ending == "webp":
        with Image.open(path) as image:
            assert (image.format, image.n_frames) == ("WEBP", 13)  # type: ignore[attr-defined]
        return
    with av.open(str(path)) as container:
        video: Any = container.streams.video[0]
        assert video.codec_context.name == CODECS[ending]
        if ending in ("mp4", "webm"):
            assert video.average_rate == timeline.fps
            assert video.codec_context.pix_fmt == "yuv420p"
            assert container.duration is not None
            assert abs(container.duration / 1e6 - float(timeline.duration)) < 0.002
        assert sum(1 for _ in container.decode(video)) == 13


def test_an_mp4_begins_with_its_index_and_odd_sides_are_padded_or_cropped(tmp_path: Path) -> None:
    path = write(tmp_path / "c.mp4", Timeline(5), (47, 31))
    data = path.read_bytes()
    position, boxes = 0, []
    while position < len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        boxes.append(name)
        position += length
    assert boxes.index(b"moov") < boxes.index(b"mdat")
    assert b"moof" not in boxes
    for odd, size in (("pad", (32, 48, 3)), ("crop", (30, 46, 3))):
        path = write(tmp_path / "d.mp4", Timeline(2), (47, 31), f"mp4(odd={odd!r})")
        assert next(registry().make("frame-sink", "mp4").read(path)[0]).image.shape == size
    with pytest.raises(ParameterError, match="even sides, not 47x31"):
        write(tmp_path / "e.mp4", Timeline(2), (47, 31), "mp4(odd='error')")


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_a_players_matrix_gives_the_colours_back(ending: str, tmp_path: Path) -> None:
    """Decoded here by ITU-R BT.709 as written in the recommendation, whatever matrix FFmpeg would take."""
    colors = [(220, 30, 40), (30, 200, 60), (40, 60, 230), (240, 220, 20), (128, 128, 128)]
    timeline = Timeline(len(colors))
    sink = registry().make("frame-sink", ending)
    writer = sink.open(tmp_path / f"c.{ending}", timeline, (32, 32), "")
    for k, rgb in enumerate(colors):
        writer.write(Frame.of(k, timeline, np.full((32, 32, 3), rgb, np.uint8)))
    path = writer.finish()
    with av.open(str(path)) as container:
        context: Any = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        for picture_, rgb in zip(container.decode(video=0), colors, strict=True):
            y, u, v = (float(np.frombuffer(bytes(plane), np.uint8)[0]) for plane in picture_.planes)
            luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
            r, b = luma + 1.5748 * red, luma + 1.8556 * blue
            g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
            assert [255 * c for c in (r, g, b)] == pytest.approx(rgb, abs=5)
    for frame, rgb in zip(sink.read(path)[0], colors, strict=True):
        assert frame.image[8, 8] == pytest.approx(rgb, abs=6)


def test_loops_are_in_the_files(tmp_path: Path) -> None:
    for ending in ("gif", "webp", "apng"):
        for loop, repeats in (("none", 1), ("closed", 0)):
            path = write(tmp_path / f"c.{ending}", Timeline(4, 10, loop), sink=f"{ending}(forever=False)")
            with Image.open(path) as image:
                assert image.info.get("loop", 1) == repeats, (ending, loop)


def test_a_sequence_takes_the_place_of_a_longer_one(tmp_path: Path) -> None:
    for count in (7, 4):
        path = write(tmp_path / "c.png", Timeline(count))
        frames = [f"c-{k:07d}.png" for k in range(count)]
        assert sorted(each.name for each in tmp_path.iterdir()) == sorted([*frames, "c.json"])
    (tmp_path / "c-0000009.png").write_text("not ours")
    write(tmp_path / "c.png", Timeline(2))
    assert (tmp_path / "c-0000009.png").exists()
    assert len(list(registry().make("frame-sink", "png").read(path)[0])) == 2


def test_lossless_formats_give_every_pixel_back(tmp_path: Path) -> None:
    timeline = Timeline(3)
    for name in ("apng", "webp(lossless=True)", "png"):
        sink = registry().make("frame-sink", name)
        path = tmp_path / f"c{sink.suffixes[0]}"
        writer = sink.open(path, timeline, SIZE, "")
        images = [picture(k) for k in range(3)]
        for k, image in enumerate(images):
            writer.write(Frame.of(k, timeline, image))
        found = [frame.image for frame in sink.read(writer.finish())[0]]
        assert all(np.array_equal(a, b) for a, b in zip(images, found, strict=True)), name


@pytest.mark.parametrize("room", [300, 30_000])
@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "webp", "apng", "png"])
def test_a_full_disk_is_one_sentence(ending: str, room: int, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    request = Request("", image=Image.fromarray(picture(0, (160, 160))))
    moving = animate("zoom(angle='20*t')", None, request, frames=200)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # what the system then says is like a full disk
        with pytest.raises(FileError, match=f"c.*{ending}' cannot be written"):
            moving.save(tmp_path / f"c.{ending}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / f"c.{ending}").exists()


def test_what_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.mp4").write_text("nonsense")
    for ending in ("mp4", "gif", "apng", "webp", "webm"):
        (tmp_path / f"c.{ending}").write_text("nonsense")
        with pytest.raises(FileError, match="cannot be read as"):
            list(registry().make("frame-sink", ending).read(tmp_path / f"c.{ending}")[0])
    with pytest.raises(UnknownComponent):
        registry().make("frame-sink", "avi")

"""What somebody who uses clips for the first time asks for: each odd wish is done, or refused in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdkit import (
    FileError,
    Frame,
    InvalidRequest,
    Loop,
    ParameterError,
    Request,
    Timeline,
    animate,
    registry,
)
from sdkit.cli import main
from sdkit.testing import fake_pipeline
from sdkit_frames.apng import Apng
from sdkit_frames.filters import Caption, Retime
from sdkit_frames.restyle import Restyle
from sdkit_frames.video import Mp4

STILL = Image.fromarray(np.random.Generator(np.random.PCG64(1)).integers(0, 256, (32, 32, 3)).astype(np.uint8))


def zoomed(frames: int = 3, fps: Any = 12, **more: Any) -> Any:
    return animate("zoom", None, Request("", image=STILL), frames=frames, fps=fps, **more)


# --- generators ---------------------------------------------------------------------------------------------------


def test_feedback_begins_with_an_image_of_any_size_the_model_has() -> None:
    for size in ((16, 16), (32, 16), (24, 40)):
        request = Request("a", image=STILL.resize(size), seeds=(1,))
        frames = list(animate("feedback(cadence=1)", fake_pipeline(), request, frames=3))
        assert [frame.image.shape for frame in frames] == [(size[1], size[0], 3)] * 3
    with pytest.raises(InvalidRequest, match=r"Size 33x17 does not fit"):
        animate("feedback", fake_pipeline(), Request("a", image=STILL.resize((33, 17))), frames=3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("feedback(rotation_3d_y=90)", "Turned by 0, 90, 0 degrees, the picture is seen from its edge"),
        ("feedback(zoom=1e-300)", "Zoom must be between 1e-6 and 1e6"),
        ("feedback(guidance='1/(t-3)')", "has no value at frame 3"),
        ("restyle(video=3)", "The video is the name of a file with its ending, as 'in.mp4', not 3"),
        ("restyle(video='')", "not ''"),
        ("keyframes(images={0.5: 'a.png', 3: 'b.png'})", "The images are {frame: file name}"),
        ("keyframes(images={True: 'a.png', 3: 'b.png'})", "The images are {frame: file name}"),
    ],
)
def test_what_no_frame_can_have_is_refused_before_the_first(text: str, sentence: str) -> None:
    calls: list[int] = []
    with pytest.raises(ParameterError, match=sentence):
        animate(text, fake_pipeline(), "a", frames=6, tick=lambda: calls.append(1))
    assert not calls


def test_a_curve_is_asked_for_no_frame_that_is_not_shown() -> None:
    frames = list(animate("feedback(strength='t/5', cadence=1)", fake_pipeline(), "a", frames=6))
    assert frames[5].info.values["strength"] == 1


def test_one_frame_is_a_clip() -> None:
    assert np.array_equal(next(iter(zoomed(frames=1))).image, np.asarray(STILL))
    assert len(list(zoomed(frames=1, loop="closed"))) == 1


def test_images_are_not_overlooked_and_named_where_they_are_wrong(tmp_path: Path) -> None:
    STILL.save(tmp_path / "a.png")
    Image.new("RGBA", (16, 16), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    zoomed(frames=2).save(tmp_path / "in.gif")
    pictures = {0: str(tmp_path / "a.png"), 1: str(tmp_path / "clear.png")}
    with pytest.raises(InvalidRequest, match="transparent pixels") as caught:
        animate(f"keyframes(images={pictures!r})", fake_pipeline(), "a", frames=2)
    assert caught.value.__notes__ == ["in the picture at frame 1, 'clear.png'"]
    with_image = Request("a", image=STILL.resize((16, 16)))
    for text in (f"keyframes(images={pictures!r})", f"restyle(video={str(tmp_path / 'in.gif')!r})"):
        with pytest.raises(InvalidRequest, match="leave the request's image out"):
            animate(text, fake_pipeline(), with_image, frames=2)
    assert Restyle(tmp_path / "in.gif") == Restyle(str(tmp_path / "in.gif"))


def test_a_damaged_video_is_one_sentence(tmp_path: Path) -> None:
    name = tmp_path / "in.mp4"
    zoomed(frames=6).save(name)
    data = bytearray(name.read_bytes())
    data[-3000:] = b"\x00" * 3000
    name.write_bytes(data)
    with pytest.raises(FileError, match=r"'in.mp4' cannot be read as a video: ") as caught:
        list(Mp4().read(name)[0])
    assert "Errno" not in str(caught.value)
    with pytest.raises(FileError, match=r"'no.mp4' cannot be read as a video: No such file or directory\."):
        Mp4().read(tmp_path / "no.mp4")


# --- filters ------------------------------------------------------------------------------------------------------


def test_there_and_back_at_another_rate_is_still_a_loop(tmp_path: Path) -> None:
    clip = zoomed(frames=6) | "ping-pong" | Retime(fps=6)
    assert (clip.timeline.frames, clip.timeline.loop) == (5, Loop.CLOSED)
    assert len(list(clip | "blend")) == 10
    assert (zoomed(frames=6) | "ping-pong" | Retime(fps=24)).timeline.loop is Loop.PINGPONG


def test_every_line_of_a_caption_is_in_the_picture(tmp_path: Path) -> None:
    def drawn(text: str) -> Any:
        frame = Frame.of(0, Timeline(1), np.zeros((64, 64, 3), np.uint8))
        return next(iter(Caption(text, 14)(iter([frame]), Timeline(1)))).image.max(axis=(1, 2)) > 200

    one, two = drawn("ab"), drawn("ab\nab")
    assert two.sum() >= 2 * one.sum()  # rows of pixels that show letters
    assert not two[-1]
    (tmp_path / "f.ttf").write_bytes(b"no font")
    with pytest.raises(FileError, match="'f.ttf' cannot be read as a font"):
        Caption(font=str(tmp_path / "f.ttf"))
    with pytest.raises(ParameterError, match="A caption is text, not 5"):
        Caption(5)  # type: ignore[arg-type]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gif(colors=2.5)", "is a whole number, not 2.5"),
        ("webp(quality=2.5)", "is a whole number, not 2.5"),
        ("apng(compression=2.5)", "is a whole number, not 2.5"),
        ("png(compression=2.5)", "is a whole number, not 2.5"),
        ("webm(crf=2.5)", "is a whole number, not 2.5"),
        ("webm(speed=2.5)", "is a whole number, not 2.5"),
        ("mp4(preset='quick')", "one of ultrafast, .*, veryslow, not 'quick'"),
    ],
)
def test_parameters_that_would_fail_at_the_first_frame_fail_at_once(text: str, sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        registry().make("frame-sink", text)
    with pytest.raises(ParameterError, match="A side in pixels is a whole number, not 33.5"):
        registry().make("frame-filter", "resize(width=33.5)")


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "webp", "apng", "png"])
@pytest.mark.parametrize(
    "fps", [23.976023976023978, "12345678901/1234567890", "1/3", "0.01234567", "100000001/9999999"]
)
def test_any_rate_is_right_in_the_file(ending: str, fps: Any, tmp_path: Path) -> None:
    clip = zoomed(frames=4, fps=fps)
    frames = list(registry().make("frame-sink", ending).read(clip.save(tmp_path / f"c.{ending}"))[0])
    assert len(frames) == 4
    wanted = [clip.timeline.pts(i) for i in range(4)]
    assert [float(frame.pts) for frame in frames] == pytest.approx([float(time) for time in wanted], abs=0.0051)


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif", "webp", "apng"])
def test_a_rate_that_a_file_cannot_hold_is_one_sentence_before_the_first_frame(ending: str, tmp_path: Path) -> None:
    shown: list[Frame] = []
    with pytest.raises(ParameterError, match=r"shows a frame for at most .* s, not for 100000 s"):
        zoomed(fps=Fraction(1, 100_000)).save(tmp_path / f"c.{ending}", on_frame=shown.append)
    assert not shown
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="A video has sides of at most 16384 pixels, not 20000x2"):
        Mp4().open(tmp_path / "c.mp4", Timeline(1), (20_000, 2), "")
    monkeypatch.setattr("sdkit_frames.video.PRESETS", ("quick",))  # one that x264 does not know
    with pytest.raises(FileError, match=r"'c.mp4' cannot be written: "):
        zoomed().save(tmp_path / "c.mp4", sink=Mp4(preset="quick"))
    assert not list(tmp_path.iterdir())
    Apng().check(Timeline(2, Fraction(1, 65535)))  # the slowest there is


def test_a_contact_sheet_is_drawn_of_the_name_that_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = zoomed().save(tmp_path / "c.png")
    assert printed.name == "c.json"
    with pytest.raises(SystemExit) as ended:
        main(["contact-sheet", str(printed)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'c-sheet.png'}\n"


STOPPED = """
import sys
from sdkit.cli import main
main(["animate", "feedback(cadence=1)", "--prompt", "a fox", "--frames", "5000", "--steps", "1", "--size", "32x32",
    "--seed", "1", "--journal", sys.argv[1], "--out", sys.argv[2]])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals are those of a Unix")
def test_sigterm_loses_no_frame(tmp_path: Path) -> None:
    journal, out = tmp_path / "j", tmp_path / "c.mp4"
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(journal), str(out)], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (journal / "frames" / "0000004.png").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=120)[1].decode()
    assert (process.returncode, said.strip().splitlines()[-1]) == (130, "Error: stopped.")
    made = len(list((journal / "frames").glob("*.png")))
    shown = len(list(Mp4().read(tmp_path / "c.partial.mp4")[0]))
    assert made - 1 <= shown <= made  # the signal may come between the journal and the encoder
    assert made < 5000

"""What SIGKILL at any moment leaves: files that play to the last frame but one, and journals that go on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdkit import Request, Timeline, animate, registry
from sdkit.frames.journal import Journal
from sdkit.testing import fake_pipeline

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
FRAMES = 40
SINKS = ["mp4", "webm", "gif", "webp", "apng", "png", "mp4+", "webm+"]  # + with sound
WRITE = f"""
import sys, time
from pathlib import Path
import numpy as np
from sdkit import Frame, Timeline, registry
folder, line, size = Path(sys.argv[1]), Timeline({FRAMES}, "24000/1001"), (32, 24)
writers = []
for name in sys.argv[2:]:
    ending, sign, _ = name.partition("+")
    text = f"{{ending}}(audio={{str(folder / 'song.wav')!r}})" if sign else ending
    writers.append(registry().make("frame-sink", text).open(folder / f"{{name}}.{{ending}}", line, size, '{{"a":1}}'))
for i in range({FRAMES}):
    for writer in writers:
        writer.write(Frame.of(i, line, np.full((24, 32, 3), (5 * i, 90, 200), np.uint8)))
    print(i, flush=True)
    time.sleep(0.01)
"""
RENDER = f"""
import json, sys
from sdkit import Request, animate
from sdkit.testing import fake_pipeline
folder, texts = sys.argv[1], json.loads(sys.argv[2])
clips = [
    animate(text, fake_pipeline(), Request("0: a | 20: bbbbbbbbb", seeds=(3,)), frames={FRAMES}, journal=f"{{folder}}/{{k}}")
    for k, text in enumerate(texts)
]
running = [iter(clip) for clip in clips]
for i in range({FRAMES}):
    for frames in running:
        next(frames)
    print(i, flush=True)
"""


def killed(script: str, *arguments: str) -> int:
    """Run a program that prints numbers, and kill it at a moment that nobody chose; the last number read."""
    draw = random.Random(os.urandom(8))
    victim = draw.randint(2, FRAMES - 12)
    with subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == str(victim):
                break
        else:
            raise AssertionError(f"it ended by itself: {process.wait()}")
        time.sleep(draw.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    return int(rest[-1]) if rest else victim


def test_every_sink_leaves_what_plays_and_loses_the_frame_in_hand_at_most(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "song.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((8000 * np.sin(np.arange(40_000) / 3)).astype("<i2").tobytes())
    last = killed(WRITE, str(tmp_path), *SINKS)  # frames 0 to last were handed to all writers
    timeline = Timeline(FRAMES, "24000/1001")
    for name in SINKS:
        ending = name.rstrip("+")
        partial = tmp_path / f"{name}.partial.{ending}"
        assert not (tmp_path / f"{name}.{ending}").exists()
        frames = list(registry().make("frame-sink", ending).read(partial)[0])
        assert last <= len(frames) <= last + 2, name
        assert all(abs(float(frame.pts - timeline.pts(i))) < 0.006 for i, frame in enumerate(frames)), name
        for i, frame in enumerate(frames):
            assert np.abs(frame.image.astype(int) - (5 * i, 90, 200)).max() <= 12, (name, i)
        if ending == "mp4" and shutil.which("ffprobe") is not None:
            said = ["-v", "error", "-count_frames", "-show_entries", "stream=codec_name,nb_read_frames", "-of", "json"]
            done = subprocess.run(["ffprobe", *said, str(partial)], capture_output=True, text=True, check=True)
            streams: list[Any] = json.loads(done.stdout)["streams"]
            assert [each["codec_name"] for each in streams] == ["h264", *["aac"] * (name != ending)]
            assert last <= int(streams[0]["nb_read_frames"]) <= last + 2


@pytest.mark.slow
def test_every_generator_goes_on_bit_for_bit(tmp_path: Path) -> None:
    still = tmp_path / "0.png"
    Image.effect_noise((16, 16), 80).convert("RGB").save(still)
    Image.new("RGB", (16, 16), (200, 120, 40)).save(tmp_path / "1.png")
    facts = {"frames": 1, "fps": "12", "loop": "none", "manifest": ""}
    (tmp_path / "in.json").write_text(json.dumps(facts))
    shutil.copyfile(still, tmp_path / "in-0000000.png")
    texts = [
        "walk(batch=3)",
        "zoom(angle='5*t')",
        "feedback(cadence=2, zoom=1.05)",
        f"restyle(video={str(tmp_path / 'in.json')!r}, denoise=0.5, hold='repeat', batch=2)",
        f"keyframes(images={ {0: str(still), 30: str(tmp_path / '1.png')}!r})",
    ]
    last = killed(RENDER, str(tmp_path), json.dumps(texts))
    for k, text in enumerate(texts):
        latest = Journal(tmp_path / str(k), Timeline(FRAMES)).latest()
        assert latest is not None
        # a step is at most 3 frames here; those of a step that was under way are made again, of latents that are kept
        assert latest[0] >= last + 1 - 3, text

        def clip(text: str = text, **more: Any) -> Any:
            request = Request("0: a | 20: bbbbbbbbb", seeds=(3,))
            return [f.image for f in animate(text, fake_pipeline(), request, frames=FRAMES, **more)]

        resumed = clip(journal=tmp_path / str(k), resume=True)
        assert all(np.array_equal(a, b) for a, b in zip(clip(), resumed, strict=True)), text

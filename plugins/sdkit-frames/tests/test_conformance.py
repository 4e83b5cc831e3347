"""Every generator, filter and sink of this package against the rules of the kit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdkit import FrameFilter, FrameSink, PingPong, registry, testing
from sdkit.testing import catalogue
from sdkit_frames.keyframes import Keyframes
from sdkit_frames.pngs import Pngs
from sdkit_frames.restyle import Restyle

GENERATORS = [
    "walk",
    "walk(batch=3, blend='slerp')",
    "walk(seeds=(1, 2), ease='cubic', batch=1)",
    "zoom",
    "zoom(angle='0:(0), max_f:(30)', border='wrap', x='t/40')",
    "feedback",
    "feedback(cadence=1, color='none', noise=0, translation_x=1, border='zeros')",
    "feedback(cadence=3, color='HSV', seeds='random', rotation_3d_y=2, translation_z=0.01, border='reflection')",
    "feedback(strength='0:(0.5), 5:(1), 6:(0.6)', seeds='ladder', color='RGB', guidance=1)",
]
FILTERS = [
    "blend",
    "blend(times=3)",
    "flow",
    "flow(times=3, quality='fast')",
    "ping-pong",
    "retime(speed=2)",
    "retime(fps=6)",
    "retime(fps=48, mix=True)",
    "color-match(space='HSV')",
    "deflicker",
    "resize(width=32)",
    "caption(text='{index} {time}')",
]
SINKS = ["mp4", "webm", "gif", "webp", "webp(lossless=True)", "apng", "png"]


def tried(part: Any, subject: str) -> list[str]:
    return [f"{o.rule.id} {o.rule.name}: {o.detail}" for o in testing.run(part, subject) if o.state == "fail"]


@pytest.mark.parametrize("text", GENERATORS)
def test_generators_conform(text: str) -> None:
    assert tried(registry().make("frames", text), "frames") == []


@pytest.mark.parametrize("text", FILTERS)
def test_filters_conform(text: str) -> None:
    assert tried(registry().make("frame-filter", text), "frame_filter") == []


@pytest.mark.parametrize("text", SINKS)
def test_sinks_conform(text: str) -> None:
    assert tried(registry().make("frame-sink", text), "frame_sink") == []


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A PNG sequence of 40 frames with its list."""
    found = []
    for k in range(40):
        image = np.full((16, 16, 3), 60 + 3 * k, np.uint8)
        image[4:9, k % 10 : k % 10 + 5] = (220, 40, 90)
        found.append(tmp_path / f"in-{k:07d}.png")
        Image.fromarray(image).save(found[-1])
    facts = {"frames": 40, "fps": "12", "loop": "closed", "manifest": ""}
    (tmp_path / "in.json").write_text(json.dumps(facts))
    return found


@pytest.mark.parametrize("more", [{}, {"seeds": "iter", "batch": 3, "denoise": "0:(0), 4:(0.6)"}])
def test_restyle_conforms(pictures: list[Path], tmp_path: Path, more: dict[str, Any]) -> None:
    generator = Restyle(str(tmp_path / "in.json"), hold="repeat", **more)
    broken = tried(generator, "frames")
    # a loop of 24 frames out of a video of 40 jumps where the video does
    assert [line for line in broken if "closed_loop" not in line] == []


def test_keyframes_conform(pictures: list[Path]) -> None:
    images = {0: pictures[0], 4: pictures[20]}
    assert tried(Keyframes(images), "frames") == []
    assert tried(Keyframes(images, mix="lerp", denoise=0, ease="cosine"), "frames") == []


def test_every_component_of_the_package_is_tried() -> None:
    for kind, texts in (("frames", GENERATORS), ("frame-filter", FILTERS), ("frame-sink", SINKS)):
        names = {entry.component.name for entry in registry().entries(kind) if entry.plugin == "frames"}
        assert names - {text.partition("(")[0] for text in texts} <= {"restyle", "keyframes"}


def test_what_is_registered_is_what_the_protocols_say() -> None:
    made: FrameFilter = PingPong()
    sink: FrameSink = Pngs()
    assert made.window == 1
    assert hasattr(sink, "read")
    assert {rule.id for rule in catalogue("frames")} == {f"F{k}" for k in range(1, 13)}

"""Read animated drawings into short clips of 16 frames, joined to the names of the pictures.

Input: a folder with the npm packages of animations unpacked (names and versions: README), and the folder that
``prepare.py`` wrote. Output, in ``--out``: ``clips.npy`` (n, 16, 128, 128, 3) uint8 on white, and ``clips.json``, one
entry per clip, as in ``captions.json``, with the number of frames that the drawing has and how much its frames change.

The drawings are closed loops. A clip's frame k is the drawing at the share k / 16 of its loop, by the time each frame
is shown, so that frame 16 would be frame 0 again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prepare import drop_selectors
from tqdm import tqdm
from train_denoiser import read_concepts

SIDE = 128


def at_shares(durations: list[float], count: int) -> list[int]:
    """Which frame is shown at the shares 0, 1 / count, ... of a loop whose frames are shown for these times."""
    ends = np.cumsum(durations)
    return [int(np.searchsorted(ends, ends[-1] * k / count + 1e-6, side="right")) for k in range(count)]


def on_white(picture: Image.Image) -> np.ndarray[Any, Any]:
    """A picture as (128, 128, 3) uint8: shrunk with premultiplied alpha, then put on white."""
    small = picture.convert("RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(small).astype(np.int32)  # premultiplied: colour + white times what is clear
    white: np.ndarray[Any, Any] = np.clip(pixels[..., :3] + 255 - pixels[..., 3:], 0, 255).astype(np.uint8)
    return white


def read_clip(path: Path, count: int) -> tuple[np.ndarray[Any, Any], int] | None:
    """(count, 128, 128, 3) uint8 and the drawing's number of frames; None where it is a still picture.

    Times of frames are read while they are decoded, so a file is gone through twice.
    """
    with Image.open(path) as opened:
        total = getattr(opened, "n_frames", 1)
        if total < count:
            return None
        durations = []
        for index in range(total):
            opened.seek(index)
            opened.load()
            durations.append(float(opened.info.get("duration", 0)) or 1.0)
        frames, shown = [], at_shares(durations, count)
        for index in shown:
            opened.seek(index)
            frames.append(on_white(opened))
    return np.stack(frames), total


def change(clip: np.ndarray[Any, Any]) -> float:
    """Mean absolute difference of neighbouring frames, the seam included, in levels of 255."""
    return float(np.abs(clip.astype(np.int16) - np.roll(clip, -1, axis=0)).mean())


def found(source: Path) -> Iterator[tuple[str, Path]]:
    """Code points and files of all drawings."""
    for path in sorted(source.glob("*/package/assets/*.webp")):
        yield drop_selectors(path.stem), path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the unpacked packages of animations")
    parser.add_argument("--data", type=Path, required=True, help="folder of prepare.py")
    parser.add_argument("--concepts", type=Path, help="list of names to keep; every one that has a picture without it")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True, help="folder for clips.npy and clips.json")
    arguments = parser.parse_args()
    captions = json.loads((arguments.data / "captions.json").read_text(encoding="utf-8"))
    known = read_concepts(arguments.concepts, {one["label"] for one in captions})
    entries = {one["code"]: one for one in captions if one["label"] in known}
    clips, about, still = [], [], 0
    work = [(code, path) for code, path in found(arguments.source) if code in entries]
    for code, path in tqdm(work, mininterval=10):
        read = read_clip(path, arguments.frames)
        if read is None:
            still += 1
            continue
        clip, total = read
        clips.append(clip)
        about.append({**entries[code], "style": "3d", "frames": total, "change": round(change(clip), 3)})
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "clips.npy", np.stack(clips))
    (arguments.out / "clips.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    changes = np.array([one["change"] for one in about])
    print(f"{len(clips)} clips of {len(entries)} names, {still} are still pictures")
    print(
        "change of neighbours, levels of 255: "
        + ", ".join(f"{np.quantile(changes, q):.2f}" for q in (0, 0.25, 0.5, 0.75, 1))
    )


if __name__ == "__main__":
    main()

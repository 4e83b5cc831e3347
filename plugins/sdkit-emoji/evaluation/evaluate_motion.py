"""How good the animations are: is the concept in every frame, does it move as drawings do, does the loop close?

    python evaluate_motion.py --data data/motion --markdown table.md --sheet sheet.png

makes clips of 24 prompts through sdkit's own generator `emoji-motion` and measures them by the judge and in pixels,
beside the same clips without a motion module (frames that differ by their noise alone), and beside the real animated
drawings of ``training/prepare_motion.py``. Clips are kept in ``--cache``, by the hash of all weights, so that a run
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import Judge, load
from lists import labels as known_labels
from measures import wilson
from PIL import Image
from tqdm import tqdm

import sdkit

RECOGNISED = 0.70
"""Share of frames in which the judge should name the concept."""
BETWEEN = (0.5, 2.0)
"""How much neighbouring frames should change, in that of real animations."""


@dataclass(frozen=True)
class Clips:
    """Clips and what was measured of them.

    Attributes:
        name: Where they come from.
        labels: The concept of each.
        right: Whether the judge names it, of the labels of ``concepts.txt``, (clips, frames).
        change: Mean absolute difference of neighbours, the seam last, in levels of 255, (clips, frames).
        back: Difference of frames half a loop apart: whether what changes goes anywhere, (clips,).
    """

    name: str
    labels: tuple[str, ...]
    right: np.ndarray[Any, Any]
    change: np.ndarray[Any, Any]
    back: np.ndarray[Any, Any]


def changes(clip: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean absolute differences (f,) of frames (f, h, w, 3) uint8 to the next one; the last is the loop's seam."""
    signed = clip.astype(np.float64)
    found: np.ndarray[Any, Any] = np.abs(signed - np.roll(signed, -1, axis=0)).mean((1, 2, 3))
    return found


def closes(change: np.ndarray[Any, Any]) -> bool:
    """Whether the seam, the last of the changes (f,), is no larger than the largest of the others."""
    return bool(change[-1] <= change[:-1].max() + 1e-9)


def measured(name: str, labels: Sequence[str], clips: Sequence[np.ndarray[Any, Any]], judge: Judge) -> Clips:
    """Figures of clips (f, h, w, 3) uint8, whose labels are some of ``concepts.txt``."""
    among = known_labels()
    columns = judge.columns(among)
    right, change, back = [], [], []
    for label, clip in zip(labels, clips, strict=True):
        images = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255
        right.append((judge(images).concepts[:, columns].argmax(1) == among.index(label)).numpy())
        change.append(changes(clip))
        half = clip.astype(np.float64)
        back.append(np.abs(half - np.roll(half, len(clip) // 2, axis=0)).mean())
    return Clips(name, tuple(labels), np.stack(right), np.stack(change), np.array(back))


def key(*parts: str) -> str:
    """A file name for a clip."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def made(pipe: Any, generator: str, told: str, label: str, arguments: argparse.Namespace) -> np.ndarray[Any, Any]:
    """A clip (f, h, w, 3) uint8, from the cache or made now."""
    sha256 = pipe.spec.sha256
    name = key(sha256, told, label, str(arguments.seed), str(arguments.steps), str(arguments.frames))
    path: Path = arguments.cache / f"{name}.npy"
    if path.exists():
        kept: np.ndarray[Any, Any] = np.load(path)
        return kept
    request = sdkit.Request(f"{label}, 3d style", seeds=(arguments.seed,), steps=arguments.steps)
    clip = sdkit.animate(generator, pipe, request, frames=arguments.frames, loop="closed")
    frames = np.stack([frame.image for frame in clip])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    np.save(part, frames)
    part.replace(path)
    return frames


def per_cent(right: np.ndarray[Any, Any]) -> str:
    """A share of frames; the interval takes clips, not frames, as the independent ones."""
    share, n = float(right.mean()), len(right)
    low, high = wilson(round(share * n), n)
    return f"{100 * share:.1f} % ({100 * low:.0f} to {100 * high:.0f})"


def table(all_clips: Sequence[Clips], real: Clips) -> list[str]:
    """Markdown lines: one column per kind of clip, one row per figure, bars and whether they are met."""
    usual = float(np.median(real.change.mean(1)))
    low, high = (usual * share for share in BETWEEN)
    columns = [*all_clips, real]
    met = [
        ("concept named, share of frames", f"{100 * RECOGNISED:.0f} %", lambda c: c.right.mean() >= RECOGNISED),
        (
            "change of neighbouring frames, median of clips (levels of 255)",
            f"{low:.2f} to {high:.2f}",
            lambda c: low <= np.median(c.change.mean(1)) <= high,
        ),
        ("clips in which it lies in these bounds", "", None),
        ("clips whose seam is no larger than the largest other change", "all", lambda c: all(map(closes, c.change))),
        ("mean seam / mean other change", "1 or less", lambda c: seam(c) <= 1.05),
        ("difference half a loop apart / of neighbours", "", None),
    ]
    lines = ["| | bar | " + " | ".join(clip.name for clip in columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for place, (what, bar, ok) in enumerate(met):
        cells = []
        for c in columns:
            own = c.change.mean(1)
            text = (
                per_cent(c.right),
                f"{np.median(own):.2f}",
                f"{int(((own >= low) & (own <= high)).sum())} of {len(own)}",
                f"{sum(map(closes, c.change))} of {len(own)}",
                f"{seam(c):.2f}",
                f"{float(np.mean(c.back / np.maximum(own, 1e-9))):.2f}",
            )[place]
            cells.append(text + ("" if ok is None or c is real else (" met" if ok(c) else " **not met**")))
        lines.append(f"| {what} | {bar} | " + " | ".join(cells) + " |")
    return lines


def seam(clips: Clips) -> float:
    """Mean change at the seam in the mean of the others; 0 where nothing changes."""
    rest = float(clips.change[:, :-1].mean())
    return float(clips.change[:, -1].mean()) / rest if rest > 0 else 0.0


def sheet(clips: Sequence[np.ndarray[Any, Any]], path: Path, shown: int = 8) -> None:
    """A row for each clip, of every n-th frame, in half the size."""
    rows = [np.concatenate(list(clip[:: max(1, len(clip) // shown), ::2, ::2]), 1) for clip in clips]
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of training/prepare_motion.py")
    parser.add_argument("--motion", default="", help="another motion module than the package's own")
    parser.add_argument("--folder", help="folder with other weights of the image model")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--travel", type=float, default=None, help="see emoji-motion; its own default without")
    parser.add_argument("--bare", action="store_true", help="also the clips without a motion module")
    parser.add_argument("--cache", type=Path, default=Path("clips"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()

    about = json.loads((arguments.data / "clips.json").read_text(encoding="utf-8"))
    real = np.load(arguments.data / "clips.npy", mmap_mode="r")
    judge = load()
    asked = set(known_labels())
    known = [k for k, one in enumerate(about) if one["label"] in asked]
    chosen = [known[int(place)] for place in np.linspace(0, len(known) - 1, min(arguments.prompts, len(known)))]
    labels = [about[k]["label"] for k in chosen]
    pipe = sdkit.pipeline(sdkit.load("emoji", **({"folder": arguments.folder} if arguments.folder else {})))
    travel = "" if arguments.travel is None else f", travel={arguments.travel}"
    kinds = {"emoji-motion": arguments.motion}
    if arguments.bare:
        kinds["noise on a circle alone"] = "none"
    found, shown = [], []
    for name, motion in kinds.items():
        generator = f"emoji-motion(motion={motion!r}{travel})"
        file = sdkit.registry().make("frames", generator).file
        told = travel + ("none" if file is None else hashlib.sha256(file.read_bytes()).hexdigest())
        clips = [made(pipe, generator, told, label, arguments) for label in tqdm(labels, desc=name, mininterval=10)]
        found.append(measured(name, labels, clips, judge))
        shown.append(clips)
    drawings = measured("real drawings", labels, [real[k] for k in chosen], judge)
    lines = table(found, drawings)
    lines += ["", f"{len(labels)} prompts ('NAME, 3d style'), {arguments.frames} frames, {arguments.steps} steps,"]
    lines += [f"seed {arguments.seed}; intervals of 95 % take clips as the independent ones."]
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if arguments.sheet:
        sheet(shown[0], arguments.sheet)


if __name__ == "__main__":
    main()

"""Real drawings for the judge: the four sets that the model was taught, and four that it never saw, as one array.

Input: the folder that ``training/prepare.py`` wrote, and a folder with the other four npm packages unpacked, each in
``<folder>/NAME/package`` (names and versions: README). Output, in ``--out``: ``real.npy`` (n, 64, 64, 4) uint8, colours
multiplied by alpha, and ``real.json``, one entry per drawing::

    {"code": "1f98a", "label": "fox", "set": "noto", "held_out": false}

The other sets are joined by the Unicode names in their icons' names. One drawing of every concept is held out from the
judge's training: which of the four taught styles is decided by a hash of the code point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lists import STYLES
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from prepare import MARGIN, render

OTHERS = ("noto-v1", "emojione", "fxemoji", "fluent-emoji")
"""Folders of the sets for the judge alone."""


def held_out_style(code: str, styles: list[str]) -> str:
    """Which of a concept's drawings in the taught styles is kept from the judge's training."""
    ordered = sorted(styles, key=STYLES.index)
    return ordered[int(hashlib.sha256(code.encode()).hexdigest(), 16) % len(ordered)]


def key(name: str) -> str:
    """``"Face with tears of joy"``, ``"face-with-tears-of-joy"`` -> one key for both."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def other_drawings(folder: Path, labels: dict[str, str]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Label and picture (128, 128, 4) uint8 of every icon of a set whose name is a label's; ``labels`` by `key`."""
    icons = json.loads((folder / "package" / "icons.json").read_text(encoding="utf-8"))
    named = {name: name for name in icons["icons"]}
    named |= {alias: one["parent"] for alias, one in icons.get("aliases", {}).items() if set(one) == {"parent"}}
    done = set()
    for name in sorted(named):
        label = labels.get(key(name))
        icon = icons["icons"].get(named[name])
        if label is None or label in done or icon is None:
            continue
        done.add(label)
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        left, top, pad = icon.get("left", 0), icon.get("top", 0), MARGIN * max(width, height)
        box = f"{left - pad} {top - pad} {width + 2 * pad} {height + 2 * pad}"
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        picture = render(("", "", "svg", f'<svg {links} viewBox="{box}">{icon["body"]}</svg>'))
        if picture is not None:
            yield label, picture


def half_size(rgba: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Straight alpha (128, 128, 4) uint8 -> colours multiplied by alpha, (64, 64, 4) uint8, by means over squares."""
    values = rgba.astype(np.float32)
    values[..., :3] *= values[..., 3:] / 255
    halved: np.ndarray[Any, Any] = values.reshape(64, 2, 64, 2, 4).mean((1, 3)).round().astype(np.uint8)
    return halved


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder made by training/prepare.py")
    parser.add_argument("--sets", type=Path, required=True, help=f"folder with {', '.join(OTHERS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for real.npy and real.json")
    arguments = parser.parse_args()
    captions = json.loads((arguments.pictures / "captions.json").read_text(encoding="utf-8"))
    taught = np.load(arguments.pictures / "pictures.npy", mmap_mode="r")
    codes = {one["label"]: one["code"] for one in captions}
    styles: dict[str, list[str]] = {}
    for one in captions:
        styles.setdefault(one["label"], []).append(one["style"])
    pictures, entries = [], []
    for one, picture in zip(captions, taught, strict=True):
        out = one["style"] == held_out_style(one["code"], styles[one["label"]])
        pictures.append(half_size(picture))
        entries.append({"code": one["code"], "label": one["label"], "set": one["style"], "held_out": out})
    shared = Counter(key(label) for label in codes)  # "keycap: *" and "keycap: #" differ by their signs alone
    labels = {key(label): label for label in codes if shared[key(label)] == 1}
    for name in OTHERS:
        before = len(entries)
        for label, picture in tqdm(other_drawings(arguments.sets / name, labels), desc=name, mininterval=5):
            pictures.append(half_size(picture))
            entries.append({"code": codes[label], "label": label, "set": name, "held_out": False})
        print(f"{name}: {len(entries) - before} drawings of {len(labels)} names")
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "real.npy", np.stack(pictures))
    (arguments.out / "real.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    print(f"{len(entries)} drawings, {sum(one['held_out'] for one in entries)} held out")


if __name__ == "__main__":
    main()

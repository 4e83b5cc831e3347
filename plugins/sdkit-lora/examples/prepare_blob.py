"""Pictures and captions of the older Noto emoji, the "blobs", for `sdkit lora train`.

    npm pack @iconify-json/noto-v1@1.2.5, unpacked, then
    python prepare_blob.py --icons package --out blob

Writes 128 x 128 PNGs on white, a caption beside each, into OUT/train; the concepts of the emoji model that are left out
of it go into OUT/held-out.txt. Drawings: Google LLC, Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

import sdkit

MARGIN = 0.04  # of the view box, as in the emoji model's own pictures
SHARE = 0.72  # of the concepts are trained on


def slug(label: str) -> str:
    """``"Dog Face"`` -> ``"dog-face"``: how the set names its drawings."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "").replace("'", "")).strip("-")


def draw(icons: dict[str, Any], name: str) -> Image.Image:
    """One drawing on white, 128 x 128."""
    one = icons["icons"][name]
    width, height = (one.get(side, icons.get(side, 16)) for side in ("width", "height"))
    pad = MARGIN * width
    box = f"{-pad} {-pad} {width + 2 * pad} {height + 2 * pad}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
    png = resvg_py.svg_to_bytes(svg_string=f"{head}{one['body']}</svg>", width=128, height=128, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(png)).convert("RGBA").resize((128, 128))
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def trained_on(label: str) -> bool:
    """Whether a concept is for training: by a hash of its name, so that the choice is nobody's."""
    return hashlib.sha256(f"blob{label}".encode()).digest()[0] < 256 * SHARE


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    icons = json.loads((arguments.icons / "icons.json").read_text(encoding="utf-8"))
    known = sdkit.load("emoji").spec.knows
    folder = arguments.out / "train"
    folder.mkdir(parents=True, exist_ok=True)
    held_out: list[str] = []
    count = 0
    for label in known:
        icon = slug(label)
        icon = icons.get("aliases", {}).get(icon, {}).get("parent", icon)
        if icon not in icons["icons"]:
            continue
        if not trained_on(label):
            held_out.append(label)
            continue
        name = slug(label)
        draw(icons, icon).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{label}, blob style\n", encoding="utf-8")
        count += 1
    (arguments.out / "held-out.txt").write_text("\n".join(sorted(held_out)) + "\n", encoding="utf-8")
    sys.stdout.write(f"{count} pictures to train on, {len(held_out)} concepts held out\n")


if __name__ == "__main__":
    main()

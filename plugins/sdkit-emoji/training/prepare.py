"""Render the four emoji sets to one array of pictures, joined to names and tags.

Input: a folder with the npm packages unpacked, each in ``<folder>/<anything>/package`` (names and versions: README).
Output, in ``--out``: ``pictures.npy`` (n, 128, 128, 4) uint8, straight alpha, and ``captions.json``, one entry per
picture::

    {"code": "1f98a", "label": "fox", "tags": ["animal", "face", ...], "group": 3, "style": "3d"}

A picture's set is joined to its Unicode name by code points with variation selectors dropped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SVG_SETS = {"noto": "noto", "flat twitter": "twemoji", "flat fluent": "fluent-emoji-flat"}
MARGIN = 0.04  # of the view box, on every side: some drawings touch or cross it
FLAG_GROUP = 9
COMPONENT_GROUP = 2
GENDER_SIGNS = {"2640", "2642"}
PEOPLE = {
    "man",
    "woman",
    "boy",
    "girl",
    "men",
    "women",
    "boys",
    "girls",
    "person",
    "people",
    "family",
    "couple",
    "kiss:",
}


def drop_selectors(code: str) -> str:
    """``"2764-FE0F"`` -> ``"2764"``: the key under which every set is joined."""
    parts = [part for part in code.lower().split("-") if part != "fe0f"]
    return "-".join(part.lstrip("0") if len(part.lstrip("0")) >= 2 else part for part in parts)


def package(source: Path, word: str) -> Path:
    """The unpacked package whose ``package.json`` (or folder) carries ``word``."""
    for folder in sorted(source.iterdir()):
        if word in folder.name and (folder / "package").is_dir():
            return folder / "package"
    raise FileNotFoundError(f"no folder with '{word}' in its name and a 'package' inside under {source}")


def wanted(entry: dict[str, Any], everything: bool) -> bool:
    """Leave out flags, bare components and people drawn once per gender, unless ``everything`` is asked for."""
    if everything:
        return True
    if entry.get("group") in (None, FLAG_GROUP, COMPONENT_GROUP):
        return False
    if GENDER_SIGNS & set(drop_selectors(entry["hexcode"]).split("-")[1:]):
        return False
    first = entry["label"].lower().split()[0].rstrip(":")
    return not (entry.get("group") == 1 and first in PEOPLE)


def jobs(source: Path, keep: set[str]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield ``(code, style, kind, payload)`` for every picture; the payload is SVG text or a file name."""
    for style, name in SVG_SETS.items():
        folder = package(source, name)
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        done = set()
        for chars, icon in names.items():
            code = drop_selectors(chars)
            if code not in keep or code in done or icon not in icons["icons"]:
                continue
            done.add(code)
            one = icons["icons"][icon]
            width = one.get("width", icons.get("width", 16))
            height = one.get("height", icons.get("height", 16))
            pad = MARGIN * width
            box = f"{-pad} {-pad} {width + 2 * pad} {height + 2 * pad}"
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
            yield code, style, "svg", f"{svg}{one['body']}</svg>"
    for path in sorted((package(source, "fluent-emoji-3d") / "assets").glob("*.webp")):
        code = drop_selectors(path.stem)
        if code in keep:
            yield code, "3d", "file", str(path)


def render(job: tuple[str, str, str, Any]) -> np.ndarray[Any, Any] | None:
    """One picture, (128, 128, 4) uint8, or None where a drawing cannot be rendered."""
    _, _, kind, payload = job
    try:
        if kind == "svg":
            picture: Image.Image = Image.open(
                io.BytesIO(resvg_py.svg_to_bytes(svg_string=payload, width=128, height=128, skip_system_fonts=True))
            )
        else:
            picture = Image.open(payload)
        picture = picture.convert("RGBA")
        if picture.size != (128, 128):
            # resize with premultiplied alpha, so that the hidden colour of clear pixels does not bleed into edges
            picture = picture.convert("RGBa").resize((128, 128), Image.Resampling.LANCZOS).convert("RGBA")
    except (ValueError, OSError):
        return None
    return np.asarray(picture)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the unpacked npm packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures.npy and captions.json")
    parser.add_argument(
        "--everything", action="store_true", help="also flags and gendered people (skin tones stay out)"
    )
    arguments = parser.parse_args()
    data = json.loads((package(arguments.source, "emojibase") / "en" / "data.json").read_text(encoding="utf-8"))
    flags = {"flag: Japan"}
    entries = {
        drop_selectors(entry["hexcode"]): entry
        for entry in data
        if wanted(entry, arguments.everything) or entry["label"] in flags
    }
    work = list(jobs(arguments.source, set(entries)))
    with Pool(os.cpu_count()) as pool:
        rendered = pool.map(render, work, chunksize=32)
    pictures, captions = [], []
    for (code, style, _, _), picture in zip(work, rendered, strict=True):
        if picture is None:
            continue
        entry = entries[code]
        pictures.append(picture)
        captions.append(
            {
                "code": code,
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": entry.get("group"),
                "style": style,
            }
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out / "pictures.npy", np.stack(pictures))
    (arguments.out / "captions.json").write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    print(f"{len(pictures)} pictures of {len(entries)} concepts")


if __name__ == "__main__":
    main()

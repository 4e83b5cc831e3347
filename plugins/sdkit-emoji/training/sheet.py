"""The contact sheet: 24 prompts, 4 rows of 6, the prompt printed under each picture.

``python sheet.py --out sheet.png`` makes it with the installed model, through sdkit's own pipeline.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import sdkit

PROMPTS = (
    "red apple, 3d style",
    "fox, flat fluent style",
    "smiling face with sunglasses, 3d style",
    "birthday cake, noto style",
    "rocket, 3d style",
    "automobile, flat twitter style",
    "cat face, flat twitter style",
    "snowman, noto style",
    "pizza, 3d style",
    "thumbs up, 3d style",
    "loudly crying face, noto style",
    "red heart, 3d style",
    "evergreen tree, flat fluent style",
    "house with garden, 3d style",
    "octopus, noto style",
    "penguin, 3d style",
    "soccer ball, flat twitter style",
    "guitar, 3d style",
    "hot beverage, noto style",
    "rainbow, flat fluent style",
    "key, 3d style",
    "umbrella with rain drops, noto style",
    "robot, 3d style",
    "flag: Japan, flat twitter style",
)


def draw(
    images: Sequence[np.ndarray[Any, Any]], prompts: Sequence[str], path: Path, columns: int = 6, scale: int = 1
) -> None:
    """Pictures (h, w, 3) uint8 with their prompts under them, as one PNG."""
    height, width = (side * scale for side in images[0].shape[:2])
    line, gap = 26, 8
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + line + gap)
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), (left, top))
        for row, words in enumerate(textwrap.wrap(prompt, width // 6)[:2]):
            pen.text((left, top + height + 1 + 12 * row), words, fill="black")
    sheet.save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, help="default: as the model recommends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--prompt", action="append", help="other prompts than the 24; may be repeated")
    arguments = parser.parse_args()

    prompts = arguments.prompt or PROMPTS
    start = time.perf_counter()
    pipe = sdkit.pipeline(sdkit.load("emoji"))
    loaded = time.perf_counter()
    images = []
    for prompt in prompts:
        request = sdkit.Request(prompt, seeds=arguments.seed, steps=arguments.steps, guidance=arguments.guidance)
        images.append(np.asarray(pipe(request).images[0]))
    each = (time.perf_counter() - loaded) / len(prompts)
    print(f"loading {loaded - start:.2f} s, then {each:.2f} s a picture")
    draw(images, prompts, arguments.out, scale=arguments.scale)


if __name__ == "__main__":
    main()

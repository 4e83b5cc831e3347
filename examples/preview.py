"""Watch a picture appear: the clean latents predicted at every fifth step, decoded, in one strip.

python examples/preview.py [PROMPT] [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import sdkit


def picture(pixels: torch.Tensor) -> Image.Image:
    """The first of (batch, 3, height, width) in [0, 1] as a Pillow image."""
    array = (pixels[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def main(prompt: str = "penguin, 3d style", out: str = "preview.png") -> Path:
    """Write the strip and say where."""
    model = sdkit.load("emoji")
    pipe = sdkit.pipeline(model)
    frames, captions = [], []
    for event in pipe.stream(sdkit.Request(prompt, steps=30)):
        if isinstance(event, sdkit.StepEvent) and event.index % 5 == 0:
            frames.append(picture(model.autoencoder(event.denoised)))
            captions.append(f"step {event.index}")
    sdkit.contact_sheet(frames, captions, columns=len(frames)).save(out)
    print(f"{out}: {prompt}, {', '.join(captions)}")
    return Path(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Draw every picture of a list of concepts with a trained denoiser, for the decoder to learn from.

What a denoiser draws is near to the latent of the picture it was asked for, not equal to it: areas of one colour come
out uneven and edges soft. A decoder that sees such latents beside the pictures they stand for
(`train_autoencoder.py --decoder-only --drawn`) learns to put that right.

Output ``--out``, one safetensors file: ``latents`` (n, channels, h / 8, w / 8), ``pictures`` (n,) int64, their places
in the data's pictures, and ``grounds`` (n, 3), the colours in [0, 1] that they stand on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import COLOURS, caption
from common import add_precision, channels_last, load_pictures, trained
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from train_denoiser import COLOURED, Texts, read_concepts, walk

from sdkit import take
from sdkit_emoji.front import WEIGHTS
from sdkit_emoji.networks import TextStates, UNet
from sdkit_training import normals


def told(entry: dict[str, Any], random: np.random.Generator, colour: str | None) -> str:
    """A caption that names the style: without it, it might be any picture of the concept."""
    while entry["style"] not in (text := caption(entry, random, colour)):
        pass
    return text


def asked(
    captions: list[dict[str, Any]], kept: list[int], times: int, random: np.random.Generator
) -> Iterator[tuple[int, str, tuple[float, float, float]]]:
    """Each of the pictures ``kept`` so many times: its place, a caption, and the colour behind it."""
    for place in np.tile(kept, times).tolist():
        colour = random.choice(list(COLOURS)) if random.random() < COLOURED else None
        yield place, told(captions[place], random, colour), COLOURS[colour] if colour else (1.0, 1.0, 1.0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare.py")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of exported weights")
    parser.add_argument("--concepts", type=Path, required=True, help="the list the denoiser was trained on")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--times", type=int, default=5, help="drawings of each picture")
    parser.add_argument("--steps", type=int, default=12, help="of Euler")
    parser.add_argument("--guidance", type=float, help="default: as the weights recommend")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    add_precision(parser)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    guidance = arguments.guidance
    if guidance is None:
        guidance = json.loads((arguments.model / "config.json").read_text(encoding="utf-8"))["guidance"]

    _, captions = load_pictures(arguments.data)
    listed = read_concepts(arguments.concepts, {one["label"] for one in captions})
    kept = [index for index, one in enumerate(captions) if one["label"] in listed]
    places, prompts, grounds = zip(
        *asked(captions, kept, arguments.times, np.random.default_rng(arguments.seed)), strict=True
    )
    texts = Texts(arguments.model, device)
    cond, empty = texts(list(prompts)), texts([""])
    unet = channels_last(trained(UNet, arguments.model, "denoiser", device), device)

    def network(x: Tensor, times: Tensor, states: TextStates) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            found: Tensor = unet(x, times, states)
        return found.float()

    found = []
    for first in tqdm(range(0, len(places), arguments.batch), desc="drawings", mininterval=10):
        rows = slice(first, min(first + arguments.batch, len(places)))
        noise = normals(arguments.seed, f"drawing {first}", rows.stop - first, unet.first.in_channels, 16, 16)
        *_, last = walk(network, take(cond, rows), empty, noise.to(device), arguments.steps, guidance)
        found.append(last.cpu())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "latents": torch.cat(found).contiguous(),
            "pictures": torch.tensor(places),
            "grounds": torch.tensor(grounds, dtype=torch.float32),
        },
        arguments.out,
    )


if __name__ == "__main__":
    main()

"""Train the autoencoder on every rendered picture.

Output in ``--out``: ``autoencoder.safetensors`` (averaged weights) with ``config.json``, ``checkpoint.safetensors`` to
go on from, and ``autoencoder.png``, pictures it was not shown above what it makes of them.

A little noise is added to the latents, so that the decoder forgives small errors of the denoiser; a penalty on a mean
square above one, per channel, keeps the encoder from drowning that noise by a larger scale. Every evaluation stores
the channels' mean and deviation in the module's ``mean`` and ``std``: its public latents are normalised.

With ``--decoder-only`` the encoder and the statistics stay as they are in the weights given by ``--start``:
denoisers trained on its latents stay valid. ``--blocks`` then gives the decoder more blocks, and with ``--drawn`` half
of what it sees are latents that a denoiser drew (draw_latents.py), beside the pictures that were asked for: it learns
to put the denoiser's errors right as well.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    add_arguments,
    add_precision,
    channels_last,
    compose,
    load_pictures,
    save_grid,
    weights,
    write_weights,
)
from pace import follow, paced
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sdkit_emoji.networks import Autoencoder
from sdkit_training import Plan, Training, normals

HELD_OUT = 64  # pictures, drawn once with a fixed seed
TRIAL = 30  # steps made to measure the speed, with --minutes
DRAWN = 0.5  # share of the batch that a denoiser drew, with --drawn


def loss_of(out: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their horizontal and vertical differences."""
    error = out - images
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


@torch.no_grad()
def statistics(model: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (channels,) of the raw latents of ``images``."""
    raw = torch.cat([model.encoder(2 * part - 1) for part in torch.split(images, 32)])
    return raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3))


@torch.no_grad()
def psnr(model: Autoencoder, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of ``images``."""
    errors = [(model(model.encode(part)) - part).square().mean() for part in torch.split(images, 32)]
    return float(-10 * torch.log10(torch.stack(errors).mean()))


def places(before: Sequence[int], after: Sequence[int]) -> dict[int, int]:
    """Where the modules of a decoder with ``before`` blocks of each size stand in one with ``after``, no fewer."""
    found: dict[int, int] = {}
    one, other = 0, 0
    # between the blocks stand a convolution; twice one and a shuffle; at the end an activation, one and a shuffle
    for fixed, old, new in zip((1, 2, 2, 3), (*before, 0), (*after, 0), strict=True):
        if new < old:
            raise ValueError(f"a decoder of {[*before]} blocks cannot lose some: {[*after]} were asked for")
        found.update({one + k: other + k for k in range(fixed + old)})
        one, other = one + fixed + old, other + fixed + new
    return found


@torch.no_grad()
def deepen(model: Autoencoder, start: Mapping[str, Tensor], before: Sequence[int], after: Sequence[int]) -> None:
    """Weights of an autoencoder with fewer decoder blocks; it decodes as before until its new blocks learn.

    Args:
        model: With ``after`` decoder blocks.
        start: Weights of one with ``before`` decoder blocks.
        before: Blocks at 1/8, 1/4 and 1/2 of the picture's size.
        after: The same, each no fewer; new ones are the last of their size.
    """
    moved = places(before, after)
    # a block whose second convolution is zero does nothing
    state = {name: value * 0 if ".second." in name else value for name, value in model.state_dict().items()}
    for name, value in start.items():
        part, place, rest = [*name.split(".", 2), "", ""][:3]
        state[f"decoder.{moved[int(place)]}.{rest}" if part == "decoder" else name] = value
    model.load_state_dict(state)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=20_000, batch=8, rate=1e-3)
    parser.add_argument("--channels", type=int, default=8, help="of the latent")
    parser.add_argument("--width", type=int, default=32, help="at half size; doubled at each halving")
    parser.add_argument("--noise", type=float, default=0.15, help="most standard deviation of the noise on latents")
    parser.add_argument("--white", type=float, default=0.7, help="share of pictures on white")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument(
        "--blocks", type=int, nargs=3, help="of the decoder at 1/8, 1/4 and 1/2 of the size, with --start no fewer"
    )
    parser.add_argument("--drawn", type=Path, help="file of draw_latents.py, with --decoder-only")
    parser.add_argument("--muon", action="store_true", help="change matrices by Muon, not by AdamW")
    add_precision(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: pays on a GPU")
    parser.add_argument("--start", type=Path, help="folder of this program, or of exported weights, to start from")
    parser.add_argument("--save-minutes", type=float, default=5, help="minutes between checkpoints")
    arguments = parser.parse_args()
    if arguments.drawn and not arguments.decoder_only:
        parser.error("--drawn needs --decoder-only: latents that were drawn belong to one encoder")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    pictures, _ = load_pictures(arguments.data)
    order = np.random.default_rng(0).permutation(len(pictures))
    held_out, learned = order[:HELD_OUT], order[HELD_OUT:]
    white = np.ones((HELD_OUT, 3))
    test = compose(pictures[np.sort(held_out)], white).to(device)
    some = np.random.default_rng(arguments.seed).choice(learned, 256, replace=False)
    probe = compose(pictures[np.sort(some)], np.ones((256, 3))).to(device)

    config: dict[str, Any] = {
        "channels": arguments.channels,
        "widths": [arguments.width * factor for factor in (1, 2, 4)],
    }
    start = weights(arguments.start, "autoencoder", device) if arguments.start else None
    config = (start or {"config": config})["config"]
    before = config.get("decoder_blocks", (3, 2, 1))  # the network's own
    after = arguments.blocks or before
    config = config | {"decoder_blocks": list(after)}
    model, shadow = Autoencoder(**config), Autoencoder(**config)
    for network in (model, shadow):
        if start is not None:
            deepen(network, start["average"], before, after)
        channels_last(network, device)
    if arguments.decoder_only:
        model.encoder.requires_grad_(False)
    encode = torch.compile(model.encoder) if arguments.compile else model.encoder
    decode = torch.compile(model.decoder) if arguments.compile else model.decoder

    drawn: dict[str, Tensor] = {}
    if arguments.drawn:
        drawn = load_file(arguments.drawn)
        seen = ~torch.isin(drawn["pictures"], torch.from_numpy(held_out))
        drawn = {name: value[seen] for name, value in drawn.items()}

    def encoded(random: np.random.Generator, count: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, their raw latents with some noise, and the penalty on these."""
        chosen = np.sort(random.choice(learned, count, replace=False))
        background = np.where(random.random((count, 1)) < arguments.white, 1.0, random.random((count, 3)))
        images = compose(pictures[chosen], background)
        if random.random() < 0.5:
            images = images.flip(3)
        images = images.to(device, memory_format=torch.channels_last)
        penalty = torch.zeros((), device=device)
        if arguments.decoder_only:
            with torch.no_grad():
                latents = model.encode(images)
        else:
            latents = encode(2 * images - 1)
            penalty = 0.05 * F.relu(latents.square().mean(dim=(0, 2, 3)) - 1).mean()
        strength = torch.from_numpy(random.random((count, 1, 1, 1), dtype=np.float32) * np.float32(arguments.noise))
        latents = latents + (strength * normals(arguments.seed, name, *latents.shape)).to(device)
        if arguments.decoder_only:
            latents = latents * model.std[:, None, None] + model.mean[:, None, None]
        return images, latents, penalty

    def with_drawn(random: np.random.Generator, images: Tensor, latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Pictures and raw latents with ``count`` more: what a denoiser drew, and what it was asked for."""
        chosen = torch.from_numpy(np.sort(random.choice(len(drawn["pictures"]), count, replace=False)))
        wanted = compose(pictures[drawn["pictures"][chosen].numpy()], drawn["grounds"][chosen].numpy()).to(device)
        raw = drawn["latents"][chosen].to(device) * model.std[:, None, None] + model.mean[:, None, None]
        return torch.cat([images, wanted]).contiguous(memory_format=torch.channels_last), torch.cat([latents, raw])

    def objective(step: int, rows: range) -> Tensor:
        random, count = np.random.default_rng([arguments.seed, step, rows.start]), len(rows)
        extra = round(DRAWN * count) if drawn else 0
        images, latents, penalty = encoded(random, count - extra, f"step {step} from {rows.start}")
        if extra:
            images, latents = with_drawn(random, images, latents, extra)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            out = decode(latents)
        return loss_of(out.float() + 0.5, images) + penalty

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=100,
        decay=0.5,
        weight_decay=1e-4,
        average=0.999,
    )
    parameters: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    # the ends touch pixels and latents, whose channels are few and each of its own kind
    ends = ("encoder.1.weight", f"encoder.{len(model.encoder) - 1}.weight")
    ends += ("decoder.0.weight", f"decoder.{len(model.decoder) - 2}.weight")
    muon = [name for name, value in parameters.items() if value.ndim > 1 and name not in ends] if arguments.muon else []
    plan = paced(objective, parameters, plan, arguments, trial=TRIAL, muon=muon)
    facts: dict[str, Any] = {"config": config, "seed": arguments.seed}
    if arguments.drawn:
        facts["drawn"] = hashlib.sha256(arguments.drawn.read_bytes()).hexdigest()
    training = Training(parameters, objective, plan, facts, muon=muon)
    path = arguments.out / "checkpoint.safetensors"
    if arguments.resume:
        training.restore(path)
    print(f"{sum(value.numel() for value in parameters.values()) / 1e6:.2f} M parameters, config {config}, {plan}")

    def keep(loss: float) -> str:
        training.save(path)
        shadow.load_state_dict({**shadow.state_dict(), **training.weights})
        if not arguments.decoder_only:
            for value, measured in zip((shadow.mean, shadow.std), statistics(shadow, probe), strict=True):
                value.copy_(measured)
        figure = psnr(shadow, test)
        about = {"psnr": figure, "loss": loss, "step": training.step}
        write_weights(arguments.out, "autoencoder", config, shadow.state_dict(), about)
        with torch.no_grad():
            shown = test[:12]
            save_grid(torch.cat([shown, shadow(shadow.encode(shown))]).cpu(), arguments.out / "autoencoder.png", 12)
        return f"held-out {figure:.2f} dB"

    follow(training, keep, minutes=arguments.save_minutes, share=arguments.share)


if __name__ == "__main__":
    main()

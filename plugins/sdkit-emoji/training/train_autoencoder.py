"""Train the autoencoder on every rendered picture.

A little noise is added to the latents, so that the decoder forgives small errors of the denoiser; a penalty on a mean
square above one, per channel, keeps the encoder from drowning that noise by a larger scale. Every evaluation stores
the channels' mean and deviation in the module's ``mean`` and ``std``: its public latents are normalised.

With ``--decoder-only`` the encoder and the statistics stay as they are in the checkpoint given by ``--start``:
denoisers trained on its latents stay valid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Average,
    Clock,
    Sharing,
    add_arguments,
    asked_to_stop,
    backward,
    channels_last,
    compose,
    load_pictures,
    rate_factor,
    save,
    save_grid,
    weights,
)
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from sdkit_emoji.networks import Autoencoder

HELD_OUT = 64  # pictures, drawn once with a fixed seed


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=20_000, batch=8, rate=1e-3)
    parser.add_argument("--channels", type=int, default=8, help="of the latent")
    parser.add_argument("--width", type=int, default=32, help="at half size; doubled at each halving")
    parser.add_argument("--noise", type=float, default=0.15, help="most standard deviation of the noise on latents")
    parser.add_argument("--white", type=float, default=0.7, help="share of pictures on white")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: pays on a GPU")
    parser.add_argument("--start", type=Path, help="checkpoint to take weights from")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    pictures, _ = load_pictures(arguments.data)
    order = np.random.default_rng(0).permutation(len(pictures))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    white = np.ones((HELD_OUT, 3))
    test = compose(pictures[np.sort(held_out)], white).to(device)
    probe = compose(pictures[np.sort(random.choice(training, 256, replace=False))], np.ones((256, 3))).to(device)

    config: dict[str, Any] = {
        "channels": arguments.channels,
        "widths": [arguments.width * factor for factor in (1, 2, 4)],
    }
    path = arguments.out / "autoencoder.pt"
    done: dict[str, Any] | None = torch.load(path, weights_only=True, map_location=device) if arguments.resume else None
    start = done
    if done is None and arguments.start:
        start = weights(arguments.start, "autoencoder", device)
    if start is not None:
        config = start["config"]
    model = channels_last(Autoencoder(**config), device)
    shadow = channels_last(Autoencoder(**config), device).eval()
    if start is not None:
        model.load_state_dict(start["model"] if done is not None else start["average"])
    if arguments.decoder_only:
        model.encoder.requires_grad_(False)
    average = Average(model)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    clock = Clock(arguments.steps, arguments.minutes)
    step = 0
    if done is not None:
        optimizer.load_state_dict(done["optimizer"])
        average.values = {name: done["average"][name].to(device) for name in average.values}
        step, clock.spent = done["step"], done["seconds"]
    encode = torch.compile(model.encoder) if arguments.compile else model.encoder
    decode = torch.compile(model.decoder) if arguments.compile else model.decoder

    bar = tqdm(total=arguments.steps, initial=step, mininterval=5)
    smooth = 0.0
    sharing = Sharing(torch.get_num_threads()) if arguments.share else None
    stop = asked_to_stop()
    while True:
        progress = clock.progress(step)
        finished = progress >= 1 or stop()
        if finished or (step and step % 1000 == 0):
            average.write(shadow)
            shadow.mean.copy_(model.mean)
            shadow.std.copy_(model.std)
            if not arguments.decoder_only:
                mean, std = statistics(shadow, probe)
                shadow.mean.copy_(mean)
                shadow.std.copy_(std)
            figure = psnr(shadow, test)
            bar.write(f"step {step} seconds {clock.seconds():.0f} loss {smooth:.4f} held-out {figure:.2f} dB")
            with torch.no_grad():
                shown = test[:12]
                save_grid(torch.cat([shown, shadow(shadow.encode(shown))]).cpu(), arguments.out / "autoencoder.png", 12)
            content = {"config": config, "model": model.state_dict(), "average": shadow.state_dict(), "psnr": figure}
            save(path, {**content, "optimizer": optimizer.state_dict(), "step": step, "seconds": clock.seconds()})
        if finished:
            break
        if sharing is not None:
            sharing.update()
        factor = rate_factor(step, progress, warm_up=100, decay=0.5)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * factor
        chosen = np.sort(random.choice(training, arguments.batch, replace=False))
        background = np.where(
            random.random((arguments.batch, 1)) < arguments.white, 1.0, random.random((arguments.batch, 3))
        )
        images = compose(pictures[chosen], background)
        if random.random() < 0.5:
            images = images.flip(3)
        images = images.to(device, memory_format=torch.channels_last)
        if arguments.decoder_only:
            with torch.no_grad():
                latents = model.encode(images)
        else:
            latents = encode(2 * images - 1)
            penalty = 0.05 * F.relu(latents.square().mean(dim=(0, 2, 3)) - 1).mean()
        strength = torch.rand(arguments.batch, 1, 1, 1, device=device) * arguments.noise
        latents = latents + strength * torch.randn_like(latents)
        if arguments.decoder_only:
            latents = latents * model.std[:, None, None] + model.mean[:, None, None]
        loss = loss_of(decode(latents) + 0.5, images)
        if not arguments.decoder_only:
            loss = loss + penalty
        optimizer.zero_grad(set_to_none=True)
        backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        average.update(model, step)
        smooth = loss.item() if step == 1 else 0.99 * smooth + 0.01 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)


if __name__ == "__main__":
    main()

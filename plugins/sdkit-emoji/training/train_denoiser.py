"""Train the denoiser by flow matching on the latents of a list of concepts.

The autoencoder and the text encoder stay frozen; latents and text states are computed once, of every picture on white
and on some coloured backgrounds, which its captions then name. A caption is dropped to
the empty one now and then, for classifier-free guidance. What is predicted and what the network is told as time come
from the core's own `RectifiedFlow` and `Flow`, so what is trained is what is sampled.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import COLOURS, caption
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
    weights,
)
from sheet import PROMPTS, draw
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from sdkit import Flow, RectifiedFlow
from sdkit_emoji.networks import Autoencoder, TextEncoder, TextStates, UNet

FORMS = 8  # captions written for each picture
SHADES = 6  # coloured backgrounds drawn for each picture
COLOURED = 0.4  # share of the batch that is on a coloured background
TIME_MEAN, TIME_STD = 0.0, 1.0  # of the logit of the training times


def read_concepts(path: Path | None, labels: set[str]) -> dict[str, int]:
    """Names and how often each is drawn; every name there is where no list is given.

    Raises:
        ValueError: the list has a name that no picture has.
    """
    if path is None:
        return dict.fromkeys(sorted(labels), 1)
    found: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#")[0].strip()
        if words:
            name, _, weight = words.partition(" * ")
            found[name] = int(weight or 1)
    unknown = sorted(set(found) - labels)
    if unknown:
        raise ValueError(f"{path} names concepts without pictures: {unknown}")
    return found


class Texts:
    """The frozen text encoder with its tokenizer, always padded to the same length."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        content = weights(folder, "text", device)
        self.network = TextEncoder(**content["config"]).to(device).eval().requires_grad_(False)
        self.network.load_state_dict(content["average"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(content["config"]["length"])
        self.tokenizer.enable_padding(length=content["config"]["length"])
        self.device = device

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> TextStates:
        """Prompts to text states."""
        encodings = self.tokenizer.encode_batch(prompts)
        ids = torch.tensor([one.ids for one in encodings], device=self.device)
        mask = torch.tensor([one.attention_mask for one in encodings], device=self.device).bool()
        parts = [self.network(a, b) for a, b in zip(torch.split(ids, 256), torch.split(mask, 256), strict=True)]
        return TextStates(torch.cat([one[0] for one in parts]), mask, torch.cat([one[1] for one in parts]))


@torch.no_grad()
def whiten(network: UNet, pooled: Tensor, generator: torch.Generator) -> None:
    """Start the text's first layer so that it sees pooled states (n, d) with unit variance in every direction.

    Sentence embeddings of captions differ in few directions and share a large mean; without this, much of the training
    goes by before the network tells them apart.
    """
    mean = pooled.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(pooled.T))
    white = vectors @ torch.diag((values.clamp_min(0) + 0.05 * values.mean()).rsqrt()) @ vectors.T
    layer = network.from_text[0]
    assert isinstance(layer, nn.Linear)
    mixing = torch.randn(layer.weight.shape, generator=generator) / layer.weight.shape[1] ** 0.5
    layer.weight.copy_(mixing.to(white.device) @ white)
    layer.bias.copy_(-layer.weight @ mean)


@torch.no_grad()
def sample(network: UNet, cond: TextStates, empty: TextStates, noise: Tensor, steps: int, guidance: float) -> Tensor:
    """Euler from time 1 to 0, equal steps, with classifier-free guidance -> latents of the shape of ``noise``."""
    x = noise
    both = TextStates(
        torch.cat([cond.tokens, empty.tokens.expand_as(cond.tokens)]),
        torch.cat([cond.mask, empty.mask.expand_as(cond.mask)]),
        torch.cat([cond.pooled, empty.pooled.expand_as(cond.pooled)]),
    )
    for index in range(steps):
        time = torch.full((2 * len(x),), 1 - index / steps, device=x.device)
        with_text, without = network(torch.cat([x, x]), time, both).chunk(2)
        x = x - (without + guidance * (with_text - without)) / steps
    return x


def grounds(count: int, random: np.random.Generator) -> tuple[list[list[str]], np.ndarray[Any, Any]]:
    """Backgrounds of ``count`` pictures: the names of `SHADES` different colours each, and (1 + SHADES, count, 3).

    The first is white, of which captions say nothing; the others are near to the colours named, in [0, 1].
    """
    names, values = list(COLOURS), np.array(list(COLOURS.values()))
    drawn = random.permuted(np.tile(np.arange(len(names)), (count, 1)), axis=1)[:, :SHADES]
    near = np.clip(values[drawn] + random.normal(0, 0.03, (count, SHADES, 3)), 0, 1)
    return [[names[k] for k in row] for row in drawn], np.concatenate([np.ones((1, count, 3)), near.swapaxes(0, 1)])


@torch.no_grad()
def encoded(autoencoder: Autoencoder, pictures: Any, kept: list[int], behind: Any, device: torch.device) -> Tensor:
    """Latents (n, channels, h / 8, w / 8) of the n pictures ``kept``, each on its colour of (n, 3) in [0, 1]."""
    parts = [slice(first, first + 64) for first in range(0, len(kept), 64)]
    return torch.cat([autoencoder.encode(compose(pictures[kept[part]], behind[part]).to(device)) for part in parts])


def to_uint8(images: Tensor) -> list[np.ndarray[Any, Any]]:
    """Images (b, 3, h, w) in [0, 1] as a list of (h, w, 3) uint8."""
    return list((images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=12_000, batch=16, rate=1e-3)
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="folder of train_autoencoder.py, or of exported weights"
    )
    parser.add_argument("--text", type=Path, required=True, help="folder of train_text.py, or of exported weights")
    parser.add_argument("--concepts", type=Path, help="list of names to train on; every picture without it")
    parser.add_argument("--width", type=int, default=96, help="at the latent's size")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of the network")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network: pays on a GPU")
    parser.add_argument("--start", type=Path, help="checkpoint, or folder of exported weights, to start from")
    parser.add_argument("--drop", type=float, default=0.1, help="share of captions dropped to the empty one")
    parser.add_argument("--decay", type=float, default=0.35, help="last share of the training, in which the rate falls")
    parser.add_argument("--sheet-minutes", type=float, default=12, help="minutes between sample sheets and checkpoints")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    pictures, captions = load_pictures(arguments.data)
    concepts = read_concepts(arguments.concepts, {one["label"] for one in captions})
    kept = [index for index, one in enumerate(captions) if one["label"] in concepts]
    content = weights(arguments.autoencoder, "autoencoder", device)
    autoencoder = Autoencoder(**content["config"]).to(device).eval().requires_grad_(False)
    autoencoder.load_state_dict(content["average"])
    writing = np.random.default_rng(arguments.seed)
    shades, behind = grounds(len(kept), writing)
    latents = torch.stack([encoded(autoencoder, pictures, kept, one, device) for one in behind], 1)
    texts = Texts(arguments.text, device)
    written = [
        [[caption(captions[index], writing, shade) for _ in range(FORMS)] for shade in (None, *shades[place])]
        for place, index in enumerate(kept)
    ]
    unique = sorted({one for sets in written for forms in sets for one in forms})
    row = {text: index for index, text in enumerate(unique)}
    forms = torch.tensor([[[row[one] for one in forms] for forms in sets] for sets in written])
    bank, empty, prompts = texts(unique), texts([""]), texts(list(PROMPTS))
    (arguments.out / "captions.txt").write_text("\n".join(unique) + "\n", encoding="utf-8")  # what it was told
    draws = np.repeat(np.arange(len(kept)), [concepts[captions[index]["label"]] for index in kept])
    print(f"{len(concepts)} concepts, {len(kept)} pictures, {len(unique)} captions, latents {tuple(latents.shape)}")
    print(f"latents mean {latents.mean():.3f} std {latents.std():.3f}")

    config: dict[str, Any] = {
        "channels": latents.shape[2],
        "widths": [arguments.width, arguments.width * 5 // 3 // 16 * 16, arguments.width * 7 // 3 // 16 * 16],
        "blocks": [1, 1, 1],
        "text": bank.pooled.shape[1],
        "condition": 320,
    }
    path = arguments.out / "denoiser.pt"
    done = torch.load(path, weights_only=True, map_location=device) if arguments.resume else None
    start = weights(arguments.start, "denoiser", device) if arguments.start else None
    config = (done or start or {"config": config})["config"]
    model = UNet(**config)
    if done is None and start is None:
        whiten(model, bank.pooled.cpu(), generator)
    channels_last(model, device)
    shadow = channels_last(UNet(**config), device).eval()
    if done is not None:
        model.load_state_dict(done["model"])
    elif start is not None:
        model.load_state_dict(start["average"])
    average = Average(model)
    matrices = [value for value in model.parameters() if value.ndim > 1]
    vectors = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.99), fused=True)
    clock, step, smooth = Clock(arguments.steps, arguments.minutes), 0, 1.0
    if done is not None:
        optimizer.load_state_dict(done["optimizer"])
        average.values = {name: done["average"][name].to(device) for name in average.values}
        step, clock.spent, smooth = done["step"], done["seconds"], done["loss"]
    run = torch.compile(model.run) if arguments.compile else model.run
    schedule, flow = RectifiedFlow(), Flow()
    random = np.random.default_rng([arguments.seed, step])
    noise_generator = torch.Generator().manual_seed(arguments.seed + 1 + step)
    sheet_noise = torch.randn(1, *latents.shape[2:], generator=torch.Generator().manual_seed(0)).to(device)
    sheet_noise = sheet_noise.expand(len(PROMPTS), -1, -1, -1)
    print(f"{sum(value.numel() for value in model.parameters()) / 1e6:.2f} M parameters, config {config}")

    bar = tqdm(total=arguments.steps, initial=step, mininterval=10)
    queue = np.empty(0, dtype=np.int64)
    next_sheet = clock.seconds() + 60 * min(5.0, arguments.sheet_minutes)
    sharing = Sharing(torch.get_num_threads()) if arguments.share else None
    first_step, first_second = step, clock.seconds()
    stop = asked_to_stop()
    while True:
        progress = clock.progress(step)
        stopped = stop()
        if stopped or progress >= 1 or clock.seconds() >= next_sheet:
            average.write(shadow)
            kind = {"config": config, "model": model.state_dict(), "average": shadow.state_dict(), "loss": smooth}
            save(path, {**kind, "optimizer": optimizer.state_dict(), "step": step, "seconds": clock.seconds()})
            if stopped:
                break
            images = autoencoder(sample(shadow, prompts, empty, sheet_noise, 30, 4.0))
            draw(to_uint8(images), PROMPTS, arguments.out / f"sheet-{step:06d}.png")
            speed = (step - first_step) * arguments.batch / max(1e-9, clock.seconds() - first_second)
            bar.write(f"step {step} seconds {clock.seconds():.0f} loss {smooth:.4f} samples/s {speed:.1f}")
            next_sheet = clock.seconds() + 60 * arguments.sheet_minutes
        if progress >= 1:
            break
        factor = rate_factor(step, progress, warm_up=200, decay=arguments.decay)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * factor
        if sharing is not None:
            sharing.update()
        if len(queue) < arguments.batch:
            queue = np.concatenate([queue, random.permutation(draws)])
        chosen = torch.from_numpy(queue[: arguments.batch])
        queue = queue[arguments.batch :]
        coloured = random.random(len(chosen)) < COLOURED
        ground = torch.from_numpy(np.where(coloured, random.integers(1, SHADES + 1, size=len(chosen)), 0))
        x0 = latents[chosen, ground]
        text = forms[chosen, ground, torch.from_numpy(random.integers(FORMS, size=len(chosen)))]
        dropped = torch.from_numpy(random.random(len(chosen)) < arguments.drop).to(device)
        tokens = torch.where(dropped[:, None, None], empty.tokens, bank.tokens[text])
        mask = torch.where(dropped[:, None], empty.mask, bank.mask[text])
        pooled = torch.where(dropped[:, None], empty.pooled, bank.pooled[text])
        times = 1 / (1 + np.exp(-(TIME_MEAN + TIME_STD * random.standard_normal(len(chosen)))))
        levels = [schedule.level(float(time)) for time in times]
        noise = torch.randn(x0.shape, generator=noise_generator).to(device)
        alpha = torch.tensor([level.alpha for level in levels], device=device)[:, None, None, None]
        sigma = torch.tensor([level.sigma for level in levels], device=device)[:, None, None, None]
        scalings = [flow(level) for level in levels]
        time = torch.tensor([scaling.time for scaling in scalings], device=device)
        scale = torch.tensor([scaling.in_ for scaling in scalings], device=device)[:, None, None, None]
        target = torch.stack([flow.target(a, b, level) for a, b, level in zip(x0, noise, levels, strict=True)])
        x = ((alpha * x0 + sigma * noise) * scale).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            predicted = run(x, time, tokens, mask, pooled)
        loss = (predicted.float() - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        average.update(model, step)
        smooth = 0.995 * smooth + 0.005 * loss.item()
        bar.update()
        bar.set_postfix(loss=f"{smooth:.4f}", threads=torch.get_num_threads(), refresh=False)


if __name__ == "__main__":
    main()

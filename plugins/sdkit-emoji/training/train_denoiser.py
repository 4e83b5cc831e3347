"""Train the denoiser by flow matching on the latents of a list of concepts.

The autoencoder and the text encoder stay frozen; latents and text states are computed once, of every picture on white
and on some coloured backgrounds, which its captions then name. A caption is dropped to the empty one now and then, for
classifier-free guidance. Levels, targets, loss, averages and the loop that can be resumed are those of sdkit-training;
what is predicted and what the network is told as time come from the core's own `RectifiedFlow` and `Flow`, so what is
trained is what is sampled.

Output in ``--out``: ``denoiser.safetensors`` (averaged weights) with ``config.json``, ``checkpoint.safetensors`` to go
on from, sample sheets, and ``captions.txt``, all that the network was told.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from captions import COLOURS, caption, clean
from common import add_arguments, add_precision, channels_last, compose, load_pictures, trained, weights, write_weights
from dictionary import near, read
from pace import follow, paced
from sheet import PROMPTS, draw
from tokenizers import Tokenizer
from torch import Tensor, nn

from sdkit import Flow, RectifiedFlow
from sdkit_emoji.networks import Autoencoder, TextEncoder, TextStates, UNet
from sdkit_training import LogitNormal, Plan, Training, losses, normals, order, uniforms

FORMS = 12  # captions written for each picture
SHADES = 6  # coloured backgrounds drawn for each picture
COLOURED = 0.4  # share of the batch that is on a coloured background


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
        self.network = trained(TextEncoder, folder, "text", device)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.network.length)
        self.tokenizer.enable_padding(length=self.network.length)
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
def grow(network: UNet, start: Mapping[str, Tensor], generator: torch.Generator) -> None:
    """Weights of a smaller network in a larger one, which then answers as the smaller one does.

    Units that are new between the text and the condition take their inputs from old ones, a little changed, and are
    not listened to yet; a new layout begins at zero.
    """
    state = network.state_dict()
    for name, value in start.items():
        new = state[name].shape
        if new == value.shape:
            state[name] = value
        elif name in ("from_text.0.weight", "from_text.0.bias"):
            copied = value[torch.arange(new[0]) % len(value)]
            fresh = torch.randn(copied[len(value) :].shape, generator=generator).to(value.device)
            copied[len(value) :] += 0.3 * value.std() * fresh
            state[name] = copied
        elif name == "from_text.2.weight":
            state[name] = torch.zeros(new, device=value.device)
            state[name][:, : value.shape[1]] = value
        else:
            raise ValueError(f"{name} of {[*value.shape]} cannot be grown to {[*new]}; only hidden and layout can grow")
    network.load_state_dict(state)


@torch.no_grad()
def walk(
    network: Callable[[Tensor, Tensor, TextStates], Tensor],
    cond: TextStates,
    empty: TextStates,
    noise: Tensor,
    steps: int,
    guidance: float,
) -> Iterator[Tensor]:
    """Euler from time 1 to 0, equal steps, with classifier-free guidance: latents of the shape of ``noise`` by step."""
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
        yield x


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


@frozen(eq=False)
class Lessons:
    """What a denoiser is shown: pictures on their grounds, and what is said of them.

    Attributes:
        latents: Of n pictures on 1 + SHADES grounds, (n, 1 + SHADES, channels, h, w).
        bank: States of all captions.
        forms: Which of them describe a picture on a ground, (n, 1 + SHADES, FORMS).
        empty: States of the empty caption.
        draws: Pictures in the order in which an epoch is shuffled; some may stand in it more than once.
        drop: Share of captions dropped to the empty one.
        seed: Of everything that is drawn.
    """

    latents: Tensor
    bank: TextStates
    forms: Tensor
    empty: TextStates
    draws: Tensor
    drop: float
    seed: int

    def batch(self, step: int, rows: range) -> tuple[Tensor, Tensor, list[float], TextStates]:
        """Clean latents, noise, uniform numbers for the times, and text states of some items of a step."""
        count, size = len(rows), rows.stop - rows.start
        first = step * size + rows.start
        chosen = self.draws[order(self.seed, "pictures", len(self.draws), first, first + count)]
        name = f"step {step} from {rows.start}"
        drawn = np.array(uniforms(self.seed, name, 5 * count)).reshape(5, count)
        ground = np.where(drawn[0] < COLOURED, 1 + (drawn[1] * (self.latents.shape[1] - 1)).astype(int), 0)
        form = (drawn[2] * self.forms.shape[2]).astype(int)
        text = self.forms[chosen, torch.from_numpy(ground), torch.from_numpy(form)]
        dropped = torch.from_numpy(drawn[3] < self.drop).to(self.latents.device)
        x0 = self.latents[chosen, torch.from_numpy(ground)]
        noise = normals(self.seed, name, *x0.shape).to(x0.device)
        states = TextStates(
            torch.where(dropped[:, None, None], self.empty.tokens, self.bank.tokens[text]),
            torch.where(dropped[:, None], self.empty.mask, self.bank.mask[text]),
            torch.where(dropped[:, None], self.empty.pooled, self.bank.pooled[text]),
        )
        return x0, noise, drawn[4].tolist(), states


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=12_000, batch=16, rate=1e-3)
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="folder of train_autoencoder.py, or of exported weights"
    )
    parser.add_argument("--text", type=Path, required=True, help="folder of train_text.py, or of exported weights")
    parser.add_argument(
        "--words", type=Path, help="words.safetensors of dictionary.py: captions in other words than the names"
    )
    parser.add_argument("--concepts", type=Path, help="list of names to train on; every picture without it")
    parser.add_argument("--width", type=int, default=96, help="at the latent's size")
    parser.add_argument("--hidden", type=int, help="width between the pooled text and the condition")
    parser.add_argument("--layout", type=int, help="channels of a coarse layout drawn from the condition")
    add_precision(parser)
    parser.add_argument("--muon", action="store_true", help="change matrices by Muon, not by AdamW")
    parser.add_argument(
        "--times", type=float, nargs=2, default=(0.0, 1.0), metavar=("MEAN", "STD"), help="of their logit"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network: two minutes that pay in long runs"
    )
    parser.add_argument("--start", type=Path, help="folder of this program, or of exported weights, to start from")
    parser.add_argument("--drop", type=float, default=0.1, help="share of captions dropped to the empty one")
    parser.add_argument("--decay", type=float, default=0.35, help="last share of the training, in which the rate falls")
    parser.add_argument("--time-steps", type=int, default=30, help="steps made to measure the speed, with --minutes")
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
    autoencoder = trained(Autoencoder, arguments.autoencoder, "autoencoder", device)
    writing = np.random.default_rng(arguments.seed)
    shades, behind = grounds(len(kept), writing)
    latents = torch.stack([encoded(autoencoder, pictures, kept, one, device) for one in behind], 1)
    texts = Texts(arguments.text, device)
    others = near(read(arguments.words), sorted(map(clean, concepts))) if arguments.words else {}
    written = [
        [
            [
                caption(captions[index], writing, shade, others.get(clean(captions[index]["label"]), ()))
                for _ in range(FORMS)
            ]
            for shade in (None, *shades[place])
        ]
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
    start = weights(arguments.start, "denoiser", device) if arguments.start else None
    grown = {"hidden": arguments.hidden, "layout": arguments.layout}
    config = (start or {"config": config})["config"] | {key: value for key, value in grown.items() if value is not None}
    model, shadow = UNet(**config), channels_last(UNet(**config), device).eval().requires_grad_(False)
    if start is not None:
        grow(model, start["average"], generator)
    else:
        whiten(model, bank.pooled.cpu(), generator)
    channels_last(model, device)
    run = torch.compile(model.run) if arguments.compile else model.run
    schedule, flow, levels_of = RectifiedFlow(), Flow(), LogitNormal(*arguments.times)
    lessons = Lessons(latents, bank, forms, empty, torch.from_numpy(draws), arguments.drop, arguments.seed)

    def network(x: Tensor, times: Tensor, cond: TextStates) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            return run(x, times, cond.tokens, cond.mask, cond.pooled).float()

    def objective(step: int, rows: range) -> Tensor:
        x0, noise, shares, cond = lessons.batch(step, rows)
        levels = [levels_of(schedule, share) for share in shares]
        return losses(network, flow, x0, noise, levels, cond).mean()

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=200,
        decay=arguments.decay,
        weight_decay=0.01,
        clip=1.0,
        average=0.999,
    )
    path = arguments.out / "checkpoint.safetensors"
    parameters = dict(model.named_parameters())
    told = "\n".join(unique)
    facts: dict[str, Any] = {"config": config, "times": list(arguments.times), "seed": arguments.seed}
    facts["captions"] = hashlib.sha256(told.encode()).hexdigest()
    # the ends touch latents, whose channels are few and each of its own kind
    ends = ("first.weight", "last.weight")
    matrices = [name for name, value in parameters.items() if value.ndim > 1 and name not in ends]
    muon = matrices if arguments.muon else []
    plan = paced(objective, parameters, plan, arguments, trial=arguments.time_steps, muon=muon)
    training = Training(parameters, objective, plan, facts, muon=muon)
    if arguments.resume:
        training.restore(path)
    sheet_noise = torch.randn(1, *latents.shape[2:], generator=torch.Generator().manual_seed(0)).to(device)
    sheet_noise = sheet_noise.expand(len(PROMPTS), -1, -1, -1)
    print(f"{sum(value.numel() for value in model.parameters()) / 1e6:.2f} M parameters, config {config}, {plan}")

    def keep(loss: float) -> str:
        training.save(path)
        about = {"loss": loss, "step": training.step}
        write_weights(arguments.out, "denoiser", config, training.weights, about)
        shadow.load_state_dict(training.weights)
        *_, last = walk(shadow, prompts, empty, sheet_noise, 30, 4.0)
        images = autoencoder(last)
        draw(to_uint8(images), PROMPTS, arguments.out / f"sheet-{training.step:06d}.png")
        return ""

    follow(training, keep, minutes=arguments.sheet_minutes, share=arguments.share)


if __name__ == "__main__":
    main()

"""Train a small text-to-image model on a folder of captioned pictures, and draw with it: minutes on two cores.

    python examples/train_folder.py [FOLDER] [--steps N] [--out SHEET.png] [--checkpoint FILE.safetensors]

The folder holds ``NAME.png`` with ``NAME.txt`` beside it. Without one, coloured shapes are drawn first, and four pairs
of colour and shape are kept out of them: the last row of the sheet asks for these, which the model has never seen.

It is latent diffusion in small: pictures become latents through the embedded model's autoencoder (64 x 64 pixels to
8 x 8 x 8), a prompt becomes the set of its words, and a network of 1.5 million weights learns to predict the flow.
Noising, targets, averages, the loop and its checkpoints are `sdkit_training`'s; what is trained is put into a
`sdkit.Pipeline` as any model is. A run that was broken off goes on from its checkpoint, bit for bit.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import frozen
from PIL import Image, ImageDraw
from torch import Tensor, nn

import sdkit
from sdkit_training import (
    LogitNormal,
    Plan,
    Training,
    fingerprint,
    load_images,
    losses,
    normals,
    order,
    read_folder,
    uniforms,
)

SIDE, BATCH = 64, 32
COLOURS = {"red": "#d62728", "orange": "#ff8c1a", "yellow": "#f2cc0c", "green": "#2ca02c", "blue": "#1f5fd6"}
SHAPES = ("circle", "square", "triangle", "ring")
UNSEEN = (("red", "ring"), ("yellow", "triangle"), ("green", "square"), ("blue", "circle"))


def draw_shapes(folder: Path, each: int = 12, seed: int = 0) -> Path:
    """Fill a folder with captioned shapes of all pairs but the unseen ones, ``each`` of a pair."""
    folder.mkdir(parents=True, exist_ok=True)
    for colour in COLOURS:
        for shape in SHAPES:
            if (colour, shape) in UNSEEN:
                continue
            for k, u in enumerate(zip(*[iter(uniforms(seed, f"{colour} {shape}", 3 * each))] * 3, strict=True)):
                draw_shape(colour, shape, u).save(folder / f"{colour}-{shape}-{k}.png")
                (folder / f"{colour}-{shape}-{k}.txt").write_text(f"a {colour} {shape}\n", encoding="utf-8")
    return folder


def draw_shape(colour: str, shape: str, u: Sequence[float]) -> Image.Image:
    """One shape on white; u, three numbers in (0, 1), says how large it is and where. Drawn large and made smaller."""
    scale = 4
    side = SIDE * scale
    radius = side * (0.22 + 0.14 * u[0])
    x, y = (radius + (side - 2 * radius) * (0.2 + 0.6 * place) for place in u[1:])
    image = Image.new("RGB", (side, side), "white")
    pen, box = ImageDraw.Draw(image), (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=COLOURS[colour])
    else:
        pen.ellipse(box, outline=COLOURS[colour], width=round(radius * 0.4))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


@frozen
class Words:
    """An encoder: prompts to (batch, words) float32, 1 where a word of the vocabulary occurs.

    Attributes:
        vocabulary: The words of the captions, sorted.
    """

    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, captions: Sequence[str]) -> Words:
        """The words of these captions."""
        return cls(tuple(sorted({word for caption in captions for word in words(caption)})))

    def __call__(self, prompts: Sequence[str], /) -> Tensor:
        """Which words occur.

        Raises:
            ParameterError: a word stands in no caption, so the model cannot know it.
        """
        rows = torch.zeros(len(prompts), len(self.vocabulary))
        for row, prompt in zip(rows, prompts, strict=True):
            for word in words(prompt):
                if word not in self.vocabulary:
                    near = difflib.get_close_matches(word, self.vocabulary, 3) or self.vocabulary[:8]
                    raise sdkit.ParameterError(f"The word {word!r} stands in no caption; near are {', '.join(near)}.")
                row[self.vocabulary.index(word)] = 1
        return rows


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


class Block(nn.Module):
    """Two convolutions beside a shortcut; time and words scale and shift what is between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.told = nn.GroupNorm(8, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """The next features."""
        scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
        inside = self.norm(self.first(torch.nn.functional.silu(x))) * (1 + scale) + shift
        made: Tensor = x + self.second(torch.nn.functional.silu(inside))
        return made


class Network(nn.Module):
    """Predicts the flow of latents (batch, 8, 8, 8), told the time (batch,) and the words (batch, words)."""

    def __init__(self, count: int, width: int = 96, blocks: int = 8, frequencies: int = 16) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.time, self.words = nn.Linear(2 * frequencies, width), nn.Linear(count, width)
        self.place = nn.Parameter(torch.zeros(1, width, SIDE // 8, SIDE // 8))
        self.enter, self.leave = nn.Conv2d(8, width, 3, padding=1), nn.Conv2d(width, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        """The predicted flow, of the shape of ``x``."""
        rates = torch.exp2(torch.linspace(0, 8, self.frequencies))
        angles = time[:, None] * rates
        told = torch.nn.functional.silu(self.time(torch.cat([angles.sin(), angles.cos()], dim=1)) + self.words(cond))
        x = self.enter(x) + self.place
        for block in self.blocks:
            x = block(x, told)
        made: Tensor = self.leave(torch.nn.functional.silu(x))
        return made


@torch.no_grad()
def fresh(count: int, seed: int = 0) -> Network:
    """A network that knows nothing: addressed normal weights, and 0 where a block or the network ends."""
    with torch.device("meta"):  # torch's own start would draw from its global generator
        network = Network(count)
    network.to_empty(device="cpu")
    for name, weight in network.named_parameters():
        if name.endswith("norm.weight"):
            weight.fill_(1)
        elif weight.ndim < 2 or name in ("place", "leave.weight") or name.endswith("second.weight"):
            weight.zero_()
        else:
            weight.copy_(normals(seed, f"weights {name}", *weight.shape) / weight[0].numel() ** 0.5)
    return network


@torch.no_grad()
def latents_of(autoencoder: sdkit.Autoencoder[Tensor], images: Tensor) -> Tensor:
    """Latents (n, 8, 8, 8) of pictures (n, 3, 64, 64) in [0, 1]."""
    return torch.cat([autoencoder.encode(part) for part in torch.split(images, 64)])


def main(
    folder: str | None = None,
    *,
    steps: int = 1500,
    draw_steps: int = 25,
    out: str = "trained.png",
    checkpoint: str = "trained.safetensors",
) -> Path:
    """Train, draw a sheet, and say where it is."""
    examples = read_folder(folder if folder is not None else draw_shapes(Path("shapes")))
    captions = sorted({caption for example in examples for caption in example.captions})
    autoencoder, encoder = sdkit.load("emoji").autoencoder, Words.of(captions)
    x0 = latents_of(autoencoder, load_images(examples, (SIDE, SIDE), background="white"))
    shift, scale = x0.mean(), x0.std()
    x0 = (x0 - shift) / scale  # a flow goes from normal noise, so the data have its scale
    texts = encoder([example.captions[0] for example in examples])
    network = fresh(len(encoder.vocabulary))
    schedule, flow = sdkit.RectifiedFlow(), sdkit.Flow()

    def objective(step: int, rows: range) -> Tensor:
        first = step * BATCH
        chosen = order(0, "pictures", len(examples), first + rows.start, first + rows.stop)
        levels = [LogitNormal()(schedule, u) for u in uniforms(0, f"levels {step}", BATCH)[rows.start : rows.stop]]
        noise = normals(0, f"noise {step}", BATCH, *x0.shape[1:])[rows.start : rows.stop]
        kept = torch.tensor([u > 0.1 for u in uniforms(0, f"dropped {step}", BATCH)[rows.start : rows.stop]])
        # one caption in ten is left out, so that guidance has something to move away from
        return losses(network, flow, x0[chosen], noise, levels, texts[chosen] * kept[:, None]).mean()

    plan = Plan(steps, BATCH, learning_rate=2e-3, warm_up=min(50, steps), average=0.995)
    training = Training(dict(network.named_parameters()), objective, plan, {"data": fingerprint(examples)})
    if Path(checkpoint).exists():
        training.restore(checkpoint)
    print(f"{len(examples)} pictures, {sum(p.numel() for p in network.parameters()):,} weights, step {training.step}")
    for event in training.run():
        if event.step % 100 == 0 or event.step == steps:
            print(f"step {event.step} of {steps}, loss {event.loss:.3f}, {event.elapsed:.0f} s", flush=True)
            training.save(checkpoint)
    network.load_state_dict(training.weights)

    pipe = sdkit.Pipeline(
        encoder=encoder,
        denoiser=sdkit.NetworkDenoiser(network.eval().requires_grad_(False), flow, schedule),
        scheduler=sdkit.Heun(),
        decoder=Scaled(autoencoder, float(shift), float(scale)),
        spacing=sdkit.Trailing(),
        spec=sdkit.ModelSpec("trained", "toy", sdkit.LatentSpec(8, 8, (SIDE, SIDE))),
    )
    prompts = captions[:16] if folder is not None else [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    if folder is None:
        prompts = [text for text in prompts if text in captions] + [f"a {colour} {shape}" for colour, shape in UNSEEN]
    made = [
        pipe(sdkit.Request(text, steps=draw_steps, guidance=2.0, seeds=(k,))).images[0]
        for k, text in enumerate(prompts)
    ]
    sdkit.contact_sheet(made, prompts, columns=4).save(out)
    print(f"{out}: {len(prompts)} prompts; {checkpoint}: the weights")
    return Path(out)


@frozen(eq=False)
class Scaled:
    """A decoder of latents that were shifted and scaled for training.

    Attributes:
        inside: The autoencoder.
        shift: Mean of its latents.
        scale: Their standard deviation.
    """

    inside: sdkit.Autoencoder[Tensor]
    shift: float
    scale: float

    def __call__(self, latents: Tensor, /) -> Tensor:
        """Pictures (batch, 3, height, width) in [0, 1]."""
        return self.inside(latents * self.scale + self.shift)


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("folder", nargs="?", help="captioned pictures; without it, shapes are drawn into ./shapes")
    reader.add_argument("--steps", type=int, default=1500)
    reader.add_argument("--out", default="trained.png")
    reader.add_argument("--checkpoint", default="trained.safetensors")
    given = reader.parse_args()
    main(given.folder, steps=given.steps, out=given.out, checkpoint=given.checkpoint)

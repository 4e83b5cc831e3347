"""Train the judge on real drawings, and measure it on drawings it never saw.

Input: the folder that ``real.py`` wrote. Output: ``judge.safetensors`` with the figures in its header. No picture of
the model and no part of its autoencoder is used. Drawings are moved, scaled, turned and bent a little, put on coloured
backgrounds, smoothed, sharpened, speckled and tinted, so that the judge does not stumble over what a generator does to
lines and areas; nothing is mirrored, for letters and signs.

    python train_judge.py --real data/real --out judge.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import SIDE, Judge, Network, load, save
from lists import STYLES, concepts
from measures import wilson
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from sdkit_training import Plan, Training

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from common import channels_last

WIDTHS = (32, 64, 128, 192)
FEATURES = 192
SMOOTHING = 0.1  # of the labels: near drawings of two concepts shall not be torn apart
STYLE_WEIGHT = 0.3
OFTEN = 6.0
"""How often a drawing of a listed concept is seen for one of another: it is what the judge is asked about."""


def on_colour(premultiplied: Tensor, behind: Tensor) -> Tensor:
    """Colours multiplied by alpha (b, 4, h, w) on colours that broadcast to (b, 3, h, w), all in [0, 1]."""
    return premultiplied[:, :3] + behind * (1 - premultiplied[:, 3:])


def read(folder: Path) -> tuple[Tensor, list[dict[str, Any]]]:
    """Drawings (n, 4, 64, 64) uint8 with colours multiplied by alpha, and what each is."""
    entries: list[dict[str, Any]] = json.loads((folder / "real.json").read_text(encoding="utf-8"))
    return torch.from_numpy(np.load(folder / "real.npy")).permute(0, 3, 1, 2).contiguous(), entries


def smoothed(images: Tensor) -> Tensor:
    """Means over 3 x 3 pixels, (b, 3, h, w)."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


class Changes:
    """Random changes of drawings, drawn from one numpy generator."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in [low, high)."""
        return torch.from_numpy(self.random.uniform(low, high, shape).astype(np.float32))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.from_numpy(self.random.standard_normal(shape, dtype=np.float32))

    def some(self, share: float, n: int) -> Tensor:
        """1 for a share of n items, else 0, (n, 1, 1, 1)."""
        return torch.from_numpy((self.random.random(n) < share).astype(np.float32))[:, None, None, None]

    def moved(self, x: Tensor) -> Tensor:
        """Scaled, turned, shifted and bent, (b, 4, 64, 64)."""
        n = len(x)
        scale, angle = 1 / self.uniform(0.78, 1.15, n), 0.12 * self.normal(n)
        aspect = torch.exp(0.06 * self.normal(n))
        rows = [
            torch.stack([scale * aspect * angle.cos(), -scale * angle.sin(), self.uniform(-0.15, 0.15, n)], 1),
            torch.stack([scale * angle.sin(), scale / aspect * angle.cos(), self.uniform(-0.15, 0.15, n)], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [n, 4, SIDE, SIDE], align_corners=False)
        bent = F.interpolate(self.normal(n, 2, 5, 5), SIDE, mode="bilinear", align_corners=True)
        bent = bent * self.uniform(0, 0.05, n)[:, None, None, None]
        return F.grid_sample(x, grid + bent.permute(0, 2, 3, 1), align_corners=False)

    def backgrounds(self, n: int) -> Tensor:
        """White for four in ten, else a colour, sometimes one that runs into another, (n, 3, 64, 64)."""
        ends = self.uniform(0, 1, n, 3, 2, 1) * torch.ones(2)
        steady = 1 - self.some(0.25, n)
        ends = ends * (1 - steady) + ends[:, :, :1] * steady
        colours = F.interpolate(ends, SIDE, mode="bilinear", align_corners=True)
        white = self.some(0.4, n)
        return white + (1 - white) * colours

    def painted(self, x: Tensor) -> Tensor:
        """Smoothed or sharpened, blotched, speckled and tinted, (b, 3, 64, 64) in [0, 1]."""
        n = len(x)
        x = x + (smoothed(x) - x) * self.uniform(-0.6, 1.2, n)[:, None, None, None] * self.some(0.6, n)
        coarse = F.interpolate(F.avg_pool2d(x, 2), SIDE, mode="bilinear")
        x = x + (coarse - x) * self.uniform(0, 1, n)[:, None, None, None] * self.some(0.3, n)
        blotches = F.interpolate(self.normal(n, 3, 16, 16), SIDE, mode="bilinear")
        x = x + blotches * self.uniform(0, 0.08, n)[:, None, None, None] * self.some(0.4, n)
        x = x + self.normal(n, 3, SIDE, SIDE) * self.uniform(0, 0.06, n)[:, None, None, None] * self.some(0.4, n)
        tint = torch.eye(3) * (1 + 0.08 * self.normal(n, 1, 1)) + 0.05 * self.normal(n, 3, 3)
        tinted = torch.einsum("bij,bjhw->bihw", tint, x - 0.5) + 0.5 + 0.04 * self.normal(n, 3, 1, 1)
        return torch.where(self.some(0.6, n) > 0, tinted, x).clamp(0, 1)

    def __call__(self, drawings: Tensor) -> Tensor:
        """Drawings (b, 4, 64, 64) uint8 to pictures (b, 3, 64, 64) in [0, 1]."""
        moved = self.moved(drawings.float() / 255)
        return self.painted(on_colour(moved, self.backgrounds(len(moved)))).contiguous(
            memory_format=torch.channels_last
        )


def share(right: Tensor) -> dict[str, Any]:
    """Share of true items with its 95 % interval."""
    low, high = wilson(int(right.sum()), len(right))
    return {
        "share": round(float(right.float().mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(right),
    }


def measured(judge: Judge, drawings: Tensor, entries: list[dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    """Figures of a judge on held-out drawings, on white and on coloured backgrounds, and on some it has seen."""
    columns = judge.columns(labels)
    column = {label: index for index, label in enumerate(labels)}
    taught = [index for index, one in enumerate(entries) if one["set"] in STYLES]
    changes = Changes(np.random.default_rng(1))
    figures: dict[str, Any] = {}
    for name, held_out in (("held out", True), ("seen", False)):
        rows = [index for index in taught if entries[index]["held_out"] == held_out]
        if not held_out:
            rows = [index for index in rows if entries[index]["label"] in column]
        x = drawings[rows].float() / 255
        colours = changes.uniform(0, 1, len(rows), 3, 1, 1)
        chosen = [place for place, index in enumerate(rows) if entries[index]["label"] in column]
        truth = judge.columns([entries[index]["label"] for index in rows])
        among = torch.tensor([column[entries[rows[place]]["label"]] for place in chosen])
        for ground, behind in (("white", torch.ones(3, 1, 1)), ("colours", colours))[: 1 + held_out]:
            answer = judge(on_colour(x, behind))
            best = answer.concepts[chosen][:, columns].topk(5).indices
            styles = torch.tensor([STYLES.index(entries[index]["set"]) for index in rows])
            right_style = answer.styles.argmax(-1) == styles
            figures[f"{name}, {ground}"] = {
                "all concepts": share(answer.concepts.argmax(-1) == truth),
                "labels": share(best[:, 0] == among),
                "labels, top 5": share((best == among[:, None]).any(-1)),
                "labels, style": share(right_style[chosen]),
            }
            figures[f"{name}, {ground}"] |= {
                f"labels, {style}": share((best[:, 0] == among)[styles[chosen] == number])
                for number, style in enumerate(STYLES)
            }
    return figures


def run(training: Training, checkpoint: Path, name: str, resume: bool) -> None:
    """Train to the end and put the averaged weights into the parameters; a checkpoint every 100 steps.

    Raises:
        sdkit.FileError: there is nothing to go on from, or not of this training.
    """
    if resume:
        training.restore(checkpoint)
    smooth = 0.0
    with tqdm(training.run(), total=training.plan.steps, initial=training.step, desc=name, mininterval=20) as bar:
        for event in bar:
            smooth = event.loss if smooth == 0 else 0.98 * smooth + 0.02 * event.loss
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
            if event.step % 100 == 0:
                training.save(checkpoint)
    with torch.no_grad():
        for key, value in training.weights.items():
            training.parameters[key].copy_(value)


@torch.no_grad()
def settle(network: torch.nn.Module, batches: Iterable[Tensor], look: Callable[[Tensor], Any]) -> None:
    """Statistics of the normalisations for averaged weights: plain means over some batches of training."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for images in batches:
        look(images)


def learn_styles(network: Network, drawings: Tensor, styles: Tensor, steps: int, seed: int) -> None:
    """Fit the head for styles to drawings on white (n, 4, 64, 64) uint8, as they are and softened; the body stays."""
    found = []
    with torch.no_grad():
        for part in torch.split(drawings, 128):
            x = on_colour(part.float() / 255, torch.ones(3, 1, 1))
            soft = x + 0.4 * (smoothed(x) - x)
            found.append(torch.stack([network.strokes(*network.look(one)[:2]) for one in (x, soft)]))
    strokes = torch.cat(found, 1).flatten(0, 1)
    truth = styles.repeat(2)
    mean, std = strokes.mean(0), strokes.std(0) + 1e-3
    strokes = (strokes - mean) / std
    first, _, last = network.styles
    optimizer = torch.optim.AdamW(network.styles.parameters(), lr=3e-3, weight_decay=0.1)
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(strokes), (256,), generator=random)
        hidden = F.dropout(F.relu(first(strokes[rows])), 0.3)
        loss = F.cross_entropy(last(hidden), truth[rows])
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    with torch.no_grad():
        # the network reads strokes as they are
        first.weight.copy_(first.weight / std)
        first.bias.copy_(first.bias - first.weight @ mean)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder made by real.py")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=int, default=1800, help="for the concepts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--style-steps", type=int, default=600, help="for the styles, after them")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUT.checkpoint, written every 100 steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    drawings, entries = read(arguments.real)
    names = sorted({one["label"] for one in entries})
    labels = sorted({prompt.labels[0] for prompt in concepts()} & set(names))
    rows = np.array([index for index, one in enumerate(entries) if not one["held_out"]])
    often = np.array([OFTEN if entries[row]["label"] in set(labels) else 1.0 for row in rows])
    place = {name: index for index, name in enumerate(names)}
    truth = torch.tensor([place[one["label"]] for one in entries])
    styles = torch.tensor([STYLES.index(one["set"]) if one["set"] in STYLES else -1 for one in entries])
    taught = rows[styles[rows].numpy() >= 0]
    network = channels_last(Network(WIDTHS, FEATURES, len(names), len(STYLES)), torch.device("cpu")).train()
    torch.nn.init.normal_(network.concepts)
    print(f"{len(rows)} drawings of {len(names)} concepts, {sum(p.numel() for p in network.parameters())} parameters")

    # The concepts. A passing head for styles makes the body look at how things are painted as well; it is thrown away.
    side = torch.nn.Linear(WIDTHS[1] + WIDTHS[3], len(STYLES))
    ours = {name: value for name, value in network.named_parameters() if not name.startswith("styles")}
    ours |= {f"side.{name}": value for name, value in side.named_parameters()}

    def batch(step: int, part: range) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([arguments.seed, step, part.start])
        chosen = torch.from_numpy(random.choice(rows, len(part), p=often / often.sum()))
        return chosen, Changes(random)(drawings[chosen])

    def concept_loss(step: int, part: range) -> Tensor:
        chosen, images = batch(step, part)
        with torch.autocast("cpu", torch.bfloat16):
            _, early, late = network.look(images)
            _, concept = network.name(late)
            style = side(torch.cat([early.mean((2, 3)), late.mean((2, 3))], 1))
        loss = F.cross_entropy(concept.float(), truth[chosen], label_smoothing=SMOOTHING)
        return loss + STYLE_WEIGHT * F.cross_entropy(style.float(), styles[chosen], ignore_index=-1)

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=60,
        decay=0.8,
        weight_decay=0.05,
        clip=5.0,
        average=0.998,
    )
    run(Training(ours, concept_loss, plan), arguments.out.with_suffix(".checkpoint"), "concepts", arguments.resume)
    after = range(plan.steps, plan.steps + 20)
    settle(network.body, (batch(step, range(plan.batch))[1] for step in after), network.look)

    network.eval()
    learn_styles(network, drawings[taught], styles[taught], arguments.style_steps, arguments.seed)

    facts: dict[str, Any] = {
        "steps": arguments.steps,
        "batch": arguments.batch,
        "style steps": arguments.style_steps,
        "seed": arguments.seed,
        "drawings": len(rows),
        "labels": len(labels),
    }
    about = {"widths": WIDTHS, "features": FEATURES, "concepts": names, "styles": STYLES, "facts": facts}
    save(arguments.out, network, about)
    # measured as it is stored, then stored with its figures
    facts |= measured(load(arguments.out), drawings, entries, labels)
    save(arguments.out, network, about)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

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
        smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = x + (smooth - x) * self.uniform(-0.6, 1.2, n)[:, None, None, None] * self.some(0.6, n)
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
        x = drawings[rows].float() / 255
        colours = changes.uniform(0, 1, len(rows), 3, 1, 1)
        chosen = [place for place, index in enumerate(rows) if entries[index]["label"] in column]
        truth = judge.columns([entries[index]["label"] for index in rows])
        among = torch.tensor([column[entries[rows[place]]["label"]] for place in chosen])
        for ground, behind in (("white", torch.ones(3, 1, 1)), ("colours", colours)):
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder made by real.py")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64)
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
    network = channels_last(Network(WIDTHS, FEATURES, len(names), len(STYLES)), torch.device("cpu")).train()
    torch.nn.init.normal_(network.concepts)
    parameters = dict(network.named_parameters())
    print(f"{len(rows)} drawings of {len(names)} concepts, {sum(p.numel() for p in network.parameters())} parameters")

    def batch(step: int, part: range) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([arguments.seed, step, part.start])
        chosen = torch.from_numpy(random.choice(rows, len(part), p=often / often.sum()))
        return chosen, Changes(random)(drawings[chosen])

    def objective(step: int, part: range) -> Tensor:
        chosen, images = batch(step, part)
        with torch.autocast("cpu", torch.bfloat16):
            _, concept, style = network(images)
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
    training = Training(parameters, objective, plan)
    checkpoint = arguments.out.with_suffix(".checkpoint")
    if arguments.resume:
        training.restore(checkpoint)
    bar = tqdm(training.run(), total=plan.steps, initial=training.step, mininterval=20)
    smooth = 0.0
    for event in bar:
        smooth = event.loss if smooth == 0 else 0.98 * smooth + 0.02 * event.loss
        if event.step % 20 == 0:
            bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        if event.step % 100 == 0:
            training.save(checkpoint)

    with torch.no_grad():
        for name, value in training.weights.items():
            parameters[name].copy_(value)
        # the averaged weights have statistics of their own
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for step in range(plan.steps, plan.steps + 60):
            network(batch(step, range(arguments.batch))[1])
    network.eval()
    facts: dict[str, Any] = {"steps": plan.steps, "batch": plan.batch, "seed": arguments.seed, "drawings": len(rows)}
    about = {
        "widths": WIDTHS,
        "features": FEATURES,
        "concepts": names,
        "styles": STYLES,
        "facts": facts,
    }
    save(arguments.out, network, about)
    # measured as it is stored, then stored with its figures
    facts |= {"labels": len(labels), **measured(load(arguments.out), drawings, entries, labels)}
    save(arguments.out, network, about)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

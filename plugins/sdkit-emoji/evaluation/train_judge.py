"""Train the judge on real drawings, and measure it on drawings it never saw.

Input: the folder that ``real.py`` wrote. Output: ``judge.safetensors`` with the figures in its header. No picture of
the model and no part of its autoencoder is used. Drawings are moved, scaled, turned and bent a little, put on coloured
backgrounds, smoothed, sharpened, speckled and tinted, so that the judge does not stumble over what a generator does to
lines and areas; nothing is mirrored, for letters and signs. What says the styles is a small network of its own, which
sees colours and small patches alone; for it drawings are mirrored and changed less, so that palettes and textures last.

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
from attrs import evolve
from judge import SIDE, Judge, Network, load, save
from lists import STYLES
from lists import labels as known_labels
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
OFTEN = 6.0
"""How often a drawing of a listed concept is seen for one of another: it is what the judge is asked about."""
OFTEN_IN_STYLE = 3.0
"""The same for the styles, which do not depend on concepts as much."""
STYLE_SMOOTHING = 0.05


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

    def touched(self, drawings: Tensor) -> Tensor:
        """Drawings (b, 4, 64, 64) uint8 to pictures (b, 3, 64, 64) in [0, 1] that show how they are painted.

        Moved, turned and mirrored; on white for eight in ten; smoothed or sharpened, blotched, speckled and tinted by a
        little: palettes and textures are what tells styles apart.
        """
        n = len(drawings)
        scale, angle = 1 / self.uniform(0.85, 1.12, n), 0.06 * self.normal(n)
        side = torch.from_numpy(self.random.choice([-1.0, 1.0], n).astype(np.float32))
        rows = [
            torch.stack([scale * side * angle.cos(), -scale * angle.sin(), self.uniform(-0.1, 0.1, n)], 1),
            torch.stack([scale * side * angle.sin(), scale * angle.cos(), self.uniform(-0.1, 0.1, n)], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [n, 4, SIDE, SIDE], align_corners=False)
        coloured = self.some(0.2, n)
        behind = 1 - coloured + coloured * self.uniform(0, 1, n, 3, 1, 1)
        x = on_colour(F.grid_sample(drawings.float() / 255, grid, align_corners=False), behind)
        x = x + (smoothed(x) - x) * self.uniform(-0.5, 0.9, n)[:, None, None, None] * self.some(0.6, n)
        x = x + self.normal(n, 3, SIDE, SIDE) * self.uniform(0, 0.02, n)[:, None, None, None] * self.some(0.5, n)
        blotches = F.interpolate(self.normal(n, 3, 16, 16), SIDE, mode="bilinear")
        x = x + blotches * self.uniform(0, 0.03, n)[:, None, None, None] * self.some(0.4, n)
        tint = torch.eye(3) * (1 + 0.02 * self.normal(n, 1, 1)) + 0.01 * self.normal(n, 3, 3)
        x = torch.einsum("bij,bjhw->bihw", tint, x - 0.5) + 0.5 + 0.01 * self.normal(n, 3, 1, 1)
        return x.clamp(0, 1).contiguous(memory_format=torch.channels_last)

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

    Args:
        training: What runs.
        checkpoint: Its file.
        name: What is learned.
        resume: Go on from the file where there is one.

    Raises:
        sdkit.FileError: it is not of this training.
    """
    if resume and checkpoint.exists():
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
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.reset_running_stats()
            module.momentum = None
    for images in batches:
        look(images)  # in training mode


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder made by real.py")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--steps", type=int, default=1800, help="for the concepts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--style-steps", type=int, default=2800, help="for the styles, after them")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from OUT.concepts and OUT.styles, its checkpoints")
    parser.add_argument("--concepts", type=Path, help="a judge that knows the concepts: styles alone are learned")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    drawings, entries = read(arguments.real)
    names = sorted({one["label"] for one in entries})
    labels = sorted(set(known_labels()) & set(names))
    rows = np.array([index for index, one in enumerate(entries) if not one["held_out"]])
    place = {name: index for index, name in enumerate(names)}
    truth = torch.tensor([place[one["label"]] for one in entries])
    styles = torch.tensor([STYLES.index(one["set"]) if one["set"] in STYLES else -1 for one in entries])
    listed = np.array([one["label"] in set(labels) for one in entries])
    network = channels_last(Network(WIDTHS, FEATURES, len(names), len(STYLES)), torch.device("cpu")).train()
    torch.nn.init.normal_(network.concepts)
    print(f"{len(rows)} drawings of {len(names)} concepts, {sum(p.numel() for p in network.parameters())} parameters")
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

    def draw(among: np.ndarray[Any, Any], often: float, step: int, part: range) -> tuple[Tensor, Changes]:
        """Numbers of some drawings, listed ones more often, and the changes for them."""
        random = np.random.default_rng([arguments.seed, step, part.start])
        share = np.where(listed[among], often, 1.0)
        return torch.from_numpy(random.choice(among, len(part), p=share / share.sum())), Changes(random)

    def concept_loss(step: int, part: range) -> Tensor:
        chosen, changes = draw(rows, OFTEN, step, part)
        with torch.autocast("cpu", torch.bfloat16):
            _, concept = network.name(network.look(changes(drawings[chosen])))
        return F.cross_entropy(concept.float(), truth[chosen], label_smoothing=SMOOTHING)

    facts: dict[str, Any] = {}
    if arguments.concepts is not None:
        kept = load(arguments.concepts)
        if kept.concepts != tuple(names):
            raise SystemExit(f"{arguments.concepts} knows other concepts than these drawings show.")
        ours = {name: value for name, value in kept.network.state_dict().items() if not name.startswith("styles.")}
        network.load_state_dict({**network.state_dict(), **ours})
        facts |= {name: kept.facts[name] for name in ("steps", "batch", "seed")}
    else:
        ours = {name: value for name, value in network.named_parameters() if not name.startswith("styles.")}
        run(Training(ours, concept_loss, plan), arguments.out.with_suffix(".concepts"), "concepts", arguments.resume)
        after = [draw(rows, OFTEN, step, range(plan.batch)) for step in range(plan.steps, plan.steps + 20)]
        settle(network.body, (changes(drawings[chosen]) for chosen, changes in after), network.look)
        facts |= {"steps": arguments.steps, "batch": arguments.batch, "seed": arguments.seed}

    taught = rows[styles[rows].numpy() >= 0]

    def style_loss(step: int, part: range) -> Tensor:
        chosen, changes = draw(taught, OFTEN_IN_STYLE, step, part)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network.styles(changes.touched(drawings[chosen]))
        return F.cross_entropy(scores.float(), styles[chosen], label_smoothing=STYLE_SMOOTHING)

    painting = {f"styles.{name}": value for name, value in network.styles.named_parameters()}
    plan = evolve(plan, steps=arguments.style_steps)
    run(Training(painting, style_loss, plan), arguments.out.with_suffix(".styles"), "styles", arguments.resume)
    after = [draw(taught, OFTEN_IN_STYLE, step, range(plan.batch)) for step in range(plan.steps, plan.steps + 20)]
    settle(network.styles, (changes.touched(drawings[chosen]) for chosen, changes in after), network.styles)
    network.eval()

    facts |= {"style steps": arguments.style_steps, "drawings": len(rows), "labels": len(labels)}
    about = {"widths": WIDTHS, "features": FEATURES, "concepts": names, "styles": STYLES, "facts": facts}
    save(arguments.out, network, about)
    # measured as it is stored, then stored with its figures
    facts |= measured(load(arguments.out), drawings, entries, labels)
    save(arguments.out, network, about)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()

"""How good the model is, by a judge that is not the model: one command, one table, one sheet.

    python evaluate.py --data data/pictures --real data/real --markdown table.md --sheet sheet.png

draws the prompts of the five lists and 32 of them with four seeds, at 50 and at 15 steps, through sdkit's own
pipeline, and measures them. Pictures are kept in ``--cache``, by the hash of the weights: a run that was stopped goes
on, and a run that is repeated only measures. ``--folder EXPORT`` takes weights of ``training/export.py``. ``--data`` is
the folder of ``training/prepare.py``, ``--real`` that of ``real.py``; the README says how they are made.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import WEIGHTS, Judge, Judgement, load
from lists import COLOURS, STYLES, Prompt, backgrounds, concepts, longer, short, synonyms
from lists import labels as known_labels
from measures import border_colour, frechet, mean_distance, named, wilson
from pictures import Job, Source, draw, read
from PIL import Image, ImageDraw
from torch import Tensor
from train_judge import on_colour
from train_judge import read as read_real

import sdkit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from common import load_pictures
from train_autoencoder import HELD_OUT, psnr

SEEDS = 4
VARIED = 32
DIRECTIONS = 32
SHARE_OF_JUDGE = 0.8
BARS = {"synonyms": 0.60, "style": 0.95, "colour": 0.90, "autoencoder": 30.0, "megabytes": 40.0, "seconds": 3.0}
LOADING = 1.0


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        value: The figure with its unit.
        bar: What it should be, or empty.
        ok: Whether it is, or None where there is no bar.
        note: What to compare it with.
    """

    what: str
    value: str
    bar: str = ""
    ok: bool | None = None
    note: str = ""


def per_cent(value: float) -> str:
    """``0.713`` -> ``71.3 %``."""
    return f"{100 * value:.1f} %"


def share(what: str, right: Tensor, bar: float | None = None, note: str = "") -> Row:
    """A row for a share of right answers, with its 95 % interval."""
    count, n = int(right.sum()), len(right)
    low, high = wilson(count, n)
    value = f"{per_cent(count / n)} ({100 * low:.1f} to {100 * high:.1f}), n = {n}"
    return Row(what, value, "" if bar is None else per_cent(bar), None if bar is None else count / n >= bar, note)


def quantiles(values: Tensor, digits: int = 3) -> str:
    """Tenth, half and ninetieth of a hundred."""
    return " / ".join(
        f"{value:.{digits}f}" for value in values.double().quantile(torch.tensor([0.1, 0.5, 0.9]).double())
    )


@dataclass(frozen=True)
class Answers:
    """The judge's answers about pictures of a list of prompts, read off over the labels of ``concepts.txt``.

    Attributes:
        prompts: The prompts.
        said: What it said.
        order: Labels by likelihood, as their numbers, the likeliest first, (n, labels).
        labels: Their names.
    """

    prompts: list[Prompt]
    said: Judgement
    order: Tensor
    labels: list[str]

    def right(self, best: int = 1) -> Tensor:
        """Whether an accepted label is among the ``best`` likeliest, (n,)."""
        found = [
            any(self.labels[k] in prompt.labels for k in order[:best].tolist())
            for prompt, order in zip(self.prompts, self.order, strict=True)
        ]
        return torch.tensor(found)

    def style(self) -> Tensor:
        """Whether the style is the one asked for, (n,)."""
        asked = torch.tensor([STYLES.index(prompt.style) for prompt in self.prompts])
        return self.said.styles.argmax(-1) == asked

    def name(self, index: int) -> str:
        """The likeliest label of a picture."""
        return self.labels[int(self.order[index, 0])]


def answers(judge: Judge, labels: list[str], prompts: list[Prompt], images: Tensor) -> Answers:
    """Ask the judge."""
    said = judge(images)
    order = torch.argsort(said.concepts[:, judge.columns(labels)], -1, descending=True)
    return Answers(prompts, said, order, labels)


@dataclass(frozen=True)
class Real:
    """Real drawings, as the judge sees them on white.

    Attributes:
        images: (n, 3, 64, 64).
        said: The judge on them.
        of: Label and set of each.
        held_out: Which of them the judge was not trained on.
    """

    images: Tensor
    said: Judgement
    of: list[tuple[str, str]]
    held_out: Tensor

    def rows(self, keep: Callable[[int], bool]) -> list[int]:
        """Numbers of the drawings that ``keep`` is true for."""
        return [index for index in range(len(self.of)) if keep(index)]


def read_drawings(folder: Path, judge: Judge, labels: set[str]) -> Real:
    """The drawings of ``labels`` in all sets."""
    drawings, entries = read_real(folder)
    rows = [index for index, one in enumerate(entries) if one["label"] in labels]
    images = on_colour(drawings[rows].float() / 255, torch.ones(3, 1, 1))
    of = [(entries[index]["label"], entries[index]["set"]) for index in rows]
    held_out = torch.tensor([entries[index]["held_out"] for index in rows])
    return Real(images, judge(images), of, held_out)


def about_prompts(lists: dict[str, Answers], images: dict[str, Tensor], judge: Judge) -> list[Row]:
    """Rows about what was asked for: concepts, synonyms, styles, backgrounds."""
    facts, rows = judge.facts, []
    real, seen = facts["held out, white"], facts["seen, white"]
    if "concepts" in lists:
        taught = lists["concepts"]
        bar = SHARE_OF_JUDGE * real["labels"]["share"]
        rows += [
            share(
                "concept, first answer",
                taught.right(),
                bar,
                f"the judge on real drawings it never saw {per_cent(real['labels']['share'])}, times {SHARE_OF_JUDGE}; "
                f"on drawings it was trained with {per_cent(seen['labels']['share'])}",
            ),
            share(
                "concept among the first five",
                taught.right(5),
                note=f"real drawings {per_cent(real['labels, top 5']['share'])}",
            ),
        ]
        for style in STYLES:
            asked = torch.tensor([prompt.style == style for prompt in taught.prompts])
            if asked.any():
                note = f"real drawings {per_cent(real[f'labels, {style}']['share'])}"
                rows.append(share(f"concept, {style}", taught.right()[asked], note=note))
        note = (
            f"real drawings {per_cent(real['labels, style']['share'])}, "
            f"those the judge was trained with {per_cent(seen['labels, style']['share'])}"
        )
        rows.append(share("style", taught.style(), BARS["style"], note))
    if "synonyms" in lists:
        other = lists["synonyms"]
        rows.append(share("synonym, first answer", other.right(), BARS["synonyms"]))
        rows.append(share("synonym among the first five", other.right(5)))
    if "longer" in lists:
        among = lists["longer"]
        rows.append(share("concept among words that were not taught", among.right()))
        rows.append(share("the same, among the first five", among.right(5)))
    if "short" in lists:
        plain = lists["short"]
        rows.append(share("concept, short prompts without a style", plain.right()))
        rows.append(share("the same, among the first five", plain.right(5)))
    if "backgrounds" in lists:
        composed = lists["backgrounds"]
        measured = named(border_colour(images["backgrounds"]), COLOURS)
        right = [name == prompt.colour for name, prompt in zip(measured, composed.prompts, strict=True)]
        rows.append(share("background colour", torch.tensor(right), BARS["colour"]))
        note = f"real drawings on random colours {per_cent(facts['held out, colours']['labels']['share'])}"
        rows.append(share("concept on a background", composed.right(), note=note))
    return rows


def about_seeds(judge: Judge, prompts: list[Prompt], images: Tensor, real: Real | None) -> list[Row]:
    """Rows about how far pictures of one prompt differ; images (prompts * seeds, 3, h, w), a prompt's together."""
    features = judge(images).features.reshape(len(prompts), SEEDS, -1)
    spread = torch.tensor([mean_distance(one) for one in features])
    across = mean_distance(features[:, 0])
    note = f"pictures of different prompts {across:.3f}"
    if real is not None:
        others = []
        for prompt in prompts:
            same = real.rows(lambda k, label=prompt.labels[0]: real.of[k][0] == label)  # type: ignore[misc]
            if len(same) > 1:
                others.append(mean_distance(real.said.features[same]))
        note += f"; drawings of one concept by different makers {np.mean(others):.3f}"
    return [Row("spread over four seeds, features", f"{spread.mean():.3f}, n = {len(prompts)}", note=note)]


def about_copies(taught: Answers, images: Tensor, real: Real) -> list[Row]:
    """Rows about how near pictures are to the drawings that the model was trained on: those of the four styles."""
    known = real.rows(lambda k: real.of[k][1] in STYLES)
    place = {real.of[k]: position for position, k in enumerate(known)}
    drawings, features = real.images[known].flatten(1), real.said.features[known]
    own = [place.get((prompt.labels[0], prompt.style)) for prompt in taught.prompts]
    kept = [row for row, position in enumerate(own) if position is not None]
    at = torch.tensor([own[row] for row in kept])
    side = real.images.shape[-1]
    small = torch.nn.functional.avg_pool2d(images[kept], images.shape[-1] // side).flatten(1)
    rows = []
    for name, made, real_ones, unit in (
        ("pixels (root mean square)", small, drawings, drawings.shape[1] ** 0.5),
        ("features", taught.said.features[kept], features, 1.0),
    ):
        near = torch.cdist(made, real_ones) / unit
        between = torch.cdist(real_ones, real_ones) / unit
        between.fill_diagonal_(float("inf"))
        to_own = near.gather(1, at[:, None])[:, 0]
        variant = between.min(1).values[at]  # the nearest other drawing to the one that was asked for
        of_concept = torch.full_like(near, float("inf"))
        for line, row in enumerate(kept):
            label = taught.prompts[row].labels[0]
            same = [place[label, style] for style in STYLES if (label, style) in place]
            of_concept[line, same] = near[line, same]
        rows += [
            Row(
                f"distance to the nearest training drawing, {name}",
                f"{quantiles(near.min(1).values)} (10 / 50 / 90 %), n = {len(kept)}",
                note=f"of a training drawing to the nearest other one {quantiles(variant)}",
            ),
            share(f"the nearest is the drawing asked for, {name}", near.argmin(1) == at),
            share(f"nearer to it than any other drawing is, {name}", to_own < variant),
            share(
                f"of the concept's drawings the nearest is in the style asked for, {name}", of_concept.argmin(1) == at
            ),
        ]
    return rows


def about_clouds(taught: Answers, real: Real) -> list[Row]:
    """The row about the Frechet distance; generated and real pictures of the same prompts, so that counts agree."""
    place = {real.of[k]: k for k in range(len(real.of))}
    asked = [(row, place.get((prompt.labels[0], prompt.style))) for row, prompt in enumerate(taught.prompts)]
    both = [(row, k) for row, k in asked if k is not None and not real.held_out[k]]
    unseen = real.held_out.nonzero()[:, 0].tolist()
    if len(both) <= DIRECTIONS or len(unseen) <= DIRECTIONS:
        return []
    learned = real.said.features[(~real.held_out).nonzero()[:, 0]].double()
    centred = learned - learned.mean(0)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :DIRECTIONS]
    held_out = real.said.features[unseen].double() @ basis
    made = taught.said.features[[row for row, _ in both]].double() @ basis
    drawn = real.said.features[[k for _, k in both]].double() @ basis
    note = f"real drawings in place of the pictures {frechet(drawn, held_out):.4f}; first {DIRECTIONS} directions"
    value = f"{frechet(made, held_out):.4f}, n = {len(both)} and {len(unseen)}"
    return [Row("Frechet distance to drawings the judge never saw, features", value, note=note)]


def about_autoencoder(model: sdkit.Model[Any], data: Path, judge: Judge, labels: list[str]) -> list[Row]:
    """Rows about the autoencoder on the pictures that its training left out, and the judge on what comes through it."""
    pictures, captions = load_pictures(data)
    left_out = np.sort(np.random.default_rng(0).permutation(len(pictures))[:HELD_OUT])
    white = torch.ones(3, 1, 1)

    def on_white(rows: np.ndarray[Any, Any]) -> Tensor:
        rgba = torch.from_numpy(np.ascontiguousarray(pictures[rows])).permute(0, 3, 1, 2).float() / 255
        return rgba[:, :3] * rgba[:, 3:] + white * (1 - rgba[:, 3:])

    with torch.no_grad():
        decibels = psnr(model.autoencoder, on_white(left_out))
    known = [row for row, one in enumerate(captions) if one["label"] in set(labels)]
    some = np.random.default_rng(1).permutation(known)[:256]
    prompts = [Prompt("", (captions[row]["label"],), captions[row]["style"]) for row in some]
    images = on_white(some)
    with torch.no_grad():
        through = torch.cat([model.autoencoder(model.autoencoder.encode(part)) for part in torch.split(images, 32)])
    before = answers(judge, labels, prompts, images)
    after = answers(judge, labels, prompts, through.clamp(0, 1))
    bar = BARS["autoencoder"]
    value = f"{decibels:.2f} dB, n = {len(left_out)}"
    return [
        Row("autoencoder, drawings its training left out", value, f"{bar:g} dB", decibels >= bar),
        share(
            "real drawings through the autoencoder, concept",
            after.right(),
            note=f"the same drawings themselves {per_cent(float(before.right().float().mean()))}",
        ),
        share(
            "real drawings through the autoencoder, style",
            after.style(),
            note=f"the same drawings themselves {per_cent(float(before.style().float().mean()))}",
        ),
    ]


def about_speed(source: Source, steps: int) -> list[Row]:
    """Rows about seconds and size, on this machine as it is now."""
    began = time.perf_counter()
    model = source.load()
    loading = time.perf_counter() - began
    pipe = sdkit.pipeline(model)
    spent = []
    for seed in range(4):
        began = time.perf_counter()
        pipe(sdkit.Request("fox, 3d style", seeds=seed, steps=steps, guidance=source.guidance))
        spent.append(time.perf_counter() - began)
    seconds = float(np.median(spent[1:]))
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    bar = BARS["seconds"]
    return [
        Row("a picture, alone", f"{seconds:.2f} s", f"{bar:g} s at 50 steps", seconds <= bar, threads),
        Row("loading, torch imported", f"{loading:.2f} s", f"{LOADING:g} s", loading <= LOADING),
    ]


def about_size(folder: Path) -> Row:
    """The row about the files that the image model consists of; the motion module has a bar of its own."""
    files = [path for path in folder.iterdir() if path.name != "motion.safetensors"]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    return Row(
        "weights, tokenizer, configuration, readings",
        f"{megabytes:.1f} MB",
        f"{BARS['megabytes']:g} MB",
        megabytes <= BARS["megabytes"],
    )


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A table in markdown."""
    lines = [title, "", "| figure | value | bar | | to compare |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = "" if row.ok is None else ("ok" if row.ok else "below")
        lines.append(f"| {row.what} | {row.value} | {row.bar} | {verdict} | {row.note} |")
    return "\n".join(lines) + "\n"


def sheet(path: Path, lists: dict[str, Answers], images: dict[str, Tensor], count: int = 60, columns: int = 10) -> None:
    """Some of the evaluated pictures with what was asked and, in red, what the judge took a wrong one for."""
    chosen = []
    shares = {"concepts": 3, "synonyms": 1, "longer": 1, "short": 1, "backgrounds": 1}
    for name, parts in shares.items():
        if name in lists:
            part = count * parts // sum(shares.values()) + 1
            places = np.linspace(0, len(images[name]) - 1, min(part, len(images[name]))).round().astype(int)
            chosen += [(name, int(place)) for place in places]
    chosen = chosen[: count + 3]
    side, line, gap = 128, 40, 8
    rows = -(-len(chosen) // columns)
    canvas = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + line + gap) + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (name, place) in enumerate(chosen):
        answer = lists[name]
        right = bool(answer.right()[place])
        left, top = gap + index % columns * (side + gap), gap + index // columns * (side + line + gap)
        pixels = (images[name][place].permute(1, 2, 0) * 255).round().byte().numpy()
        canvas.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS), (left, top))
        colour = "green" if right else "red"
        pen.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline=colour, width=2)
        lines = textwrap.wrap(answer.prompts[place].text.removesuffix(" style"), 21)[:2]
        for row, text in enumerate([*lines, *[""] * (2 - len(lines)), "" if right else f"? {answer.name(place)}"[:22]]):
            pen.text((left, top + side + 2 + 12 * row), text, fill=colour if row == 2 else "black")
    canvas.save(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="name of the model")
    parser.add_argument("--folder", type=Path, help="other weights than the package's own, as export.py writes them")
    parser.add_argument(
        "--data", type=Path, help="folder of training/prepare.py; without it no figures of the autoencoder"
    )
    parser.add_argument("--real", type=Path, help="folder of real.py; without it no figures about real drawings")
    parser.add_argument("--cache", type=Path, default=Path("data/evaluation"), help="folder for pictures")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 15])
    parser.add_argument("--guidance", type=float, help="default: as the model recommends")
    parser.add_argument("--limit", type=int, help="only so many prompts of every list, for a quick look")
    parser.add_argument("--batch", type=int, default=8, help="pictures of one run of the pipeline")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each of them")
    parser.add_argument("--judge", type=Path, default=WEIGHTS, help="weights of the judge")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--sheet", type=Path, help="PNG with some of the pictures, right and wrong ones marked")
    arguments = parser.parse_args()

    folder = None if arguments.folder is None else str(arguments.folder.resolve())
    source = Source(arguments.model, folder, arguments.guidance, "", arguments.cache)
    model = source.load()
    source = Source(arguments.model, folder, arguments.guidance, model.spec.sha256, arguments.cache)
    judge = load(arguments.judge)
    whole = {
        "concepts": concepts(),
        "synonyms": synonyms(),
        "longer": longer(),
        "short": short(),
        "backgrounds": backgrounds(),
    }
    labels = known_labels()
    asked = {name: spread(prompts, arguments.limit) for name, prompts in whole.items()}
    # a quick look draws a quarter of its prompts again with other seeds
    varied = spread(asked["concepts"], VARIED if arguments.limit is None else min(VARIED, -(-arguments.limit // 4)))
    real = None if arguments.real is None else read_drawings(arguments.real, judge, set(labels))

    tables = []
    for steps in arguments.steps:
        jobs = {name: [Job(prompt.text, 0, steps) for prompt in prompts] for name, prompts in asked.items()}
        jobs["seeds"] = [Job(prompt.text, seed, steps) for prompt in varied for seed in range(SEEDS)]
        every = [job for part in jobs.values() for job in part]
        draw(source, every, batch=arguments.batch, workers=arguments.workers, threads=arguments.threads)
        images = {name: read(source, part) for name, part in jobs.items()}
        lists = {name: answers(judge, labels, prompts, images[name]) for name, prompts in asked.items()}
        rows = about_prompts(lists, images, judge)
        rows += about_seeds(judge, varied, images["seeds"], real)
        if real is not None:
            rows += about_copies(lists["concepts"], images["concepts"], real)
            rows += about_clouds(lists["concepts"], real)
        if arguments.data is not None and steps == arguments.steps[0]:
            rows += about_autoencoder(model, arguments.data, judge, labels)
        rows += about_speed(source, steps)
        if steps == arguments.steps[0]:
            package = Path(sys.modules[type(model.encoder).__module__].__file__ or "").parent / "weights"
            rows.append(about_size(Path(folder) if folder else package))
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        title = (
            f"{date}, {steps} steps, guidance {source.guidance or model.spec.guidance:g}, "
            f"weights `{model.spec.sha256}`, judge `{judge.sha256[:16]}`"
            + (f", {arguments.limit} prompts of every list at most" if arguments.limit else "")
        )
        tables.append(markdown(title, rows))
        print(tables[-1], flush=True)
        if arguments.markdown is not None:
            arguments.markdown.write_text("\n".join(tables), encoding="utf-8")
        if arguments.sheet is not None:
            named_so = arguments.sheet if steps == arguments.steps[0] else None
            name = named_so or arguments.sheet.with_stem(f"{arguments.sheet.stem}-{steps}")
            sheet(name, lists, images)


def spread(prompts: list[Prompt], count: int | None) -> list[Prompt]:
    """``count`` prompts, chosen by a hash of their text so that no rule of the list shows through; all without one.

    Fewer are always some of more.
    """
    if count is None or count >= len(prompts):
        return prompts
    chosen = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.text.encode()).digest())[:count]
    return [prompt for prompt in prompts if prompt in set(chosen)]


if __name__ == "__main__":
    main()

"""``sdkit lora``: look into an adapter file, and train one. Imports no torch until a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdkit import FileError

if TYPE_CHECKING:
    from sdkit_lora.inspecting import Report

__all__ = ["lora"]

SHOWN = 12  # modules of a list, unless all are asked for


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def lora() -> None:
    """Look into adapter files (LoRA and its relatives), and train one."""


@lora.command()
@click.argument("file")
@click.option("--model", metavar="NAME", help="Also say what it changes in this model, and what finds no place.")
@click.option("--all", "everything", is_flag=True, help="List every module and all metadata.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def inspect(file: str, model: str | None, everything: bool, as_json: bool) -> None:
    """What FILE (.safetensors, or a PEFT folder) is: format, kinds, ranks, scales, family, trigger words.

    Exit code 1 if --model is given and the file cannot be used with it as it is.
    """
    import sdkit
    from sdkit_lora.files import open_adapter
    from sdkit_lora.inspecting import inspect as look

    adapter = open_adapter(file)
    if model is None:
        report = look(adapter)
    else:
        with sdkit.load(model) as loaded:
            report = look(adapter, loaded)
    if as_json:
        click.echo(json.dumps(_plain(report), indent=2))
    else:
        for line in _lines(report, everything):
            click.echo(line)
    if report.problem or report.unmatched:
        raise SystemExit(1)


def _plain(report: Report) -> dict[str, Any]:
    import attrs

    made = attrs.asdict(report)
    # JSON has no other keys than text, and None would become "null"
    made["alphas"] = [{"alpha": alpha, "modules": count} for alpha, count in report.alphas.items()]
    made["ranks"] = [{"rank": rank, "modules": count} for rank, count in report.ranks.items()]
    return made


def _lines(report: Report, everything: bool) -> list[str]:
    rows = [
        ("file", f"{report.name} ({report.tensors} tensors, {report.parameters / 1e6:.2f} million numbers)"),
        ("sha256", report.sha256),
        ("format", report.format),
        ("kinds", _counts(report.kinds)),
        ("ranks", _counts({rank or "none": count for rank, count in report.ranks.items()})),
        ("alphas", _counts({"not stated" if a is None else f"{a:g}": n for a, n in report.alphas.items()})),
        ("family", report.family or "cannot be told from the file"),
        ("trigger words", report.trigger or "none stated"),
    ]
    known = [name for name in ("ss_sd_model_name", "ss_steps", "ss_num_train_images") if name in report.metadata]
    names = {"ss_sd_model_name": "base model", "ss_steps": "steps trained", "ss_num_train_images": "pictures"}
    rows += [(names[name], report.metadata[name]) for name in known]
    if report.matched is not None and report.unmatched is not None:
        rows.append(("places changed", str(len(report.matched))))
        rows += [("", name) for name in _some(report.matched, everything)]
        rows.append(("without a place", str(len(report.unmatched))))
        rows += [("", name) for name in _some(report.unmatched, everything)]
    if report.problem:
        rows.append(("cannot be used", report.problem))
    if everything:
        rows += [("metadata", f"{name} = {value}") for name, value in report.metadata.items()]
    return [f"{name:16}{value}" for name, value in rows]


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _some(names: tuple[str, ...], everything: bool) -> list[str]:
    if everything or len(names) <= SHOWN:
        return list(names)
    return [*names[:SHOWN], f"... and {len(names) - SHOWN} more (--all)"]


@lora.command()
@click.option("--model", default="emoji", show_default=True, help="Registered name, folder or .safetensors file.")
@click.option("--images", required=True, metavar="FOLDER", help="Pictures, each with its caption in NAME.txt beside.")
@click.option("--captions", metavar="FILE", help="One file of captions instead: JSON, or JSON lines.")
@click.option("--out", required=True, metavar="FILE", help="The .safetensors file to write.")
@click.option("--rank", type=int, default=8, show_default=True, help="Inner dimension of the factors.")
@click.option("--alpha", type=float, metavar="F", help="Scale: alpha / rank [default: the rank].")
@click.option("--steps", type=int, default=500, show_default=True, help="Updates.")
@click.option("--batch", type=int, default=4, show_default=True, help="Pictures of one pass.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Passes of one update.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Its height.")
@click.option("--average", type=float, metavar="DECAY", help="Write averaged weights; 0.99 is usual.")
@click.option("--targets", type=click.Choice(["text", "unet", "both"]), default="unet", show_default=True)
@click.option("--conv", is_flag=True, help="Adapt convolutions too, not linear layers alone.")
@click.option("--layers", default="", metavar="REGEX", help="Only layers whose path contains this.")
@click.option("--prior", metavar="FOLDER", help="Pictures the model shall stay able to make, captioned likewise.")
@click.option("--prior-weight", type=float, default=1.0, show_default=True)
@click.option("--min-snr", type=float, metavar="GAMMA", help="Min-SNR weighting; 5 is usual [default: none].")
@click.option("--drop", type=float, default=0.1, show_default=True, help="Share of captions left empty.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--trigger", default="", metavar="TEXT", help="Words that call it, noted in the file.")
@click.option("--background", metavar="COLOUR", help="Behind transparent pixels [default: they are refused].")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--format", "form", type=click.Choice(["diffusers", "kohya"]), default="diffusers", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to compute, as torch writes it.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint beside --out, if there is one.")
@click.option("--save-every", type=int, default=100, show_default=True, help="Updates between checkpoints.")
@click.option("--sheet", metavar="FILE", help="Write a PNG with pictures before and after, of --prompts.")
@click.option("--prompts", multiple=True, metavar="TEXT", help="A prompt for --sheet; may be given again.")
@click.option("--sheet-seed", type=int, default=0, show_default=True)
def train(
    model: str,
    images: str,
    captions: str | None,
    out: str,
    rank: int,
    alpha: float | None,
    steps: int,
    batch: int,
    accumulate: int,
    learning_rate: float,
    average: float | None,
    targets: str,
    conv: bool,
    layers: str,
    prior: str | None,
    prior_weight: float,
    min_snr: float | None,
    drop: float,
    seed: int,
    trigger: str,
    background: str | None,
    precision: str,
    form: str,
    device: str,
    resume: bool,
    save_every: int,
    sheet: str | None,
    prompts: tuple[str, ...],
    sheet_seed: int,
) -> None:
    """Train a LoRA from a folder of captioned pictures.

    A checkpoint is written beside --out now and then, and when it is stopped; --resume goes on from it.
    """
    _check(out, ".safetensors")
    if sheet:
        _check(sheet, ".png")
        if not prompts:
            raise click.UsageError("--sheet shows pictures of --prompts; give at least one.")
    import sdkit
    from sdkit_lora.training import Settings
    from sdkit_lora.training import train as run
    from sdkit_training import Plan

    plan = Plan(steps=steps, batch=batch, accumulate=accumulate, learning_rate=learning_rate, average=average)
    settings = Settings(
        rank=rank, alpha=alpha, targets=targets, conv=conv, layers=layers, plan=plan, min_snr=min_snr, drop=drop,
        prior_weight=prior_weight, seed=seed, trigger=trigger, precision=precision, format=form,
    )  # fmt: skip
    with sdkit.load(model, device=device) as loaded:
        bar = click.progressbar(
            length=steps, label="training", file=sys.stderr, show_pos=True, item_show_func=lambda text: text or "",
            hidden=not sys.stderr.isatty(),
        )  # fmt: skip
        smooth: float | None = None
        with bar:

            def show(event: Any) -> None:
                nonlocal smooth
                smooth = event.loss if smooth is None else 0.95 * smooth + 0.05 * event.loss
                bar.update(event.step - bar.pos, f"loss {smooth:.4f}")

            written = run(
                loaded, images, out, settings, captions=captions, prior=prior, background=background, resume=resume,
                save_every=save_every, on_step=show,
            )  # fmt: skip
        click.echo(str(written))
        if smooth is not None:
            click.echo(f"loss {smooth:.4f} at the end (smoothed)", err=True)
        if sheet:
            click.echo(str(_sheet(loaded, written, prompts, sheet, sheet_seed)))


def _check(name: str, ending: str) -> None:
    """Refuse names that could not be written before minutes of work."""
    path = Path(name)
    if path.suffix.lower() != ending:
        raise FileError(f"{name!r} is no name that ends in {ending}.")
    if not path.parent.is_dir():
        raise FileError(f"The folder {str(path.parent)!r} does not exist; make it first.")


def _sheet(model: Any, adapter: Path, prompts: tuple[str, ...], name: str, seed: int) -> Path:
    from io import BytesIO

    import sdkit
    from sdkit_lora.files import write_whole
    from sdkit_lora.training import before_and_after

    rows = list(before_and_after(model, adapter, prompts, seed=seed))
    pictures = [picture for _, *pair in rows for picture in pair]
    captions = [text for prompt, *_ in rows for text in (prompt, "with the adapter")]
    buffer = BytesIO()
    sdkit.contact_sheet(pictures, captions, columns=2 * max(1, min(3, len(rows)))).save(buffer, "PNG")
    return write_whole(Path(name), buffer.getvalue())

"""``sdkit generate`` and ``sdkit rerun``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdkit.errors import FileError, InvalidRequest, SdkitError, UnknownComponent
from sdkit.files import image_names
from sdkit.plugins import registry

if TYPE_CHECKING:
    from sdkit.model import Model
    from sdkit.pipelines import Pipeline, Result
    from sdkit.request import Request

__all__ = ["generate", "rerun"]

MOST = 1000  # images of one run, which are one batch in memory


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """``WxH`` in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(width, height)."""
        match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size; write width x height in pixels, for example 128x128.", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@click.argument("prompt")
@click.option("--model", default="emoji", show_default=True, help="Registered name, folder or .safetensors file.")
@click.option("--negative", default="", metavar="TEXT", help="What to move away from.")
@click.option("--steps", type=int, metavar="N", help="Number of steps [default: the model's, 50 as a rule].")
@click.option("--scheduler", metavar="NAME", help="Solver; parameters may follow: 'ddim(eta=0.5)'.")
@click.option("--spacing", metavar="NAME", help="Which levels to visit: uniform, trailing, karras, ...")
@click.option("--noise", metavar="NAME", help="Source of noise: addressed, brownian, torch (that of other tools).")
@click.option(
    "--dialect", metavar="NAME", help="Syntax of the prompts: a1111, compel, ... [default: none, plain text]."
)
@click.option(
    "--modifier", "modifiers", multiple=True, metavar="NAME", help="Change of behaviour, by name; may be given again."
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="Adapter to apply [strength: 1]; may be given again.",
)
@click.option(
    "--lora-folder", default=".", metavar="DIR", help="Where --dialect finds <lora:NAME:0.8> [default: here]."
)
@click.option("--guidance", type=float, metavar="F", help="How closely to follow the prompt; 1 is no guidance.")
@click.option("--seed", type=int, metavar="N", help="Seed of the first image [default: a new one each time].")
@click.option("--count", type=int, default=1, show_default=True, help="Number of images, seeds counted up.")
@click.option("--size", type=Size(), help="Picture size [default: the model's].")
@click.option("--image", metavar="FILE", help="Picture to start from.")
@click.option(
    "--strength", type=float, metavar="F", help="How much of --image to redo, 0 to 1 [default: 0.6; masked 1]."
)
@click.option("--mask", metavar="FILE", help="White where to paint over --image; black is kept exactly.")
@click.option("--fit", is_flag=True, help="Resize --image and --mask to the picture size first.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, as torch writes it.")
@click.option("--estimate", is_flag=True, help="Tell memory and evaluations beforehand, and make no picture.")
@click.option("--out", metavar="FILE", help="PNG to write [default: named after the prompt and seed].")
@click.option("--sheet", metavar="FILE", help="Also write all images as one contact sheet.")
@click.option(
    "--metadata",
    type=click.Choice(["full", "a1111", "none"]),
    default="full",
    show_default=True,
    help="What to write into the file about how it was made.",
)
def generate(
    prompt: str,
    model: str,
    negative: str,
    steps: int | None,
    scheduler: str | None,
    spacing: str | None,
    noise: str | None,
    dialect: str | None,
    modifiers: tuple[str, ...],
    loras: tuple[str, ...],
    lora_folder: str,
    guidance: float | None,
    seed: int | None,
    count: int,
    size: tuple[int, int] | None,
    image: str | None,
    strength: float | None,
    mask: str | None,
    fit: bool,
    device: str,
    estimate: bool,
    out: str | None,
    sheet: str | None,
    metadata: Any,
) -> None:
    """Make pictures of PROMPT."""
    if not 1 <= count <= MOST:
        raise InvalidRequest(f"--count must be at least 1 and at most {MOST}, not {count}.")
    adapters = tuple(_lora(text) for text in loras)
    seed = _new_seed() if seed is None else seed
    target = Path(out) if out is not None else _free_name(prompt, seed)
    _check_targets([*image_names(target, count), *([Path(sheet)] if sheet else [])], keep=[image, mask])

    syntax = registry().make("prompt-dialect", dialect) if dialect is not None else None

    from sdkit.request import Request  # everything cheap is checked before a model is loaded

    request = Request(
        prompt,
        negative=negative,
        seeds=tuple(range(seed, seed + count)),
        size=None if fit else size,
        scheduler=scheduler,
        spacing=spacing,
        noise=noise,
        steps=steps,
        guidance=guidance,
        image=image,
        strength=strength,
        mask=None if fit else mask,
        # the dialect is the last modifier, because the others look into conditionings
        modifiers=(*adapters, *modifiers, *([f"prompts(dialect={dialect!r})"] if dialect is not None else [])),
    )
    requested = getattr(syntax, "requested", None)
    if requested is not None:  # what a prompt asks for besides words: adapters, in the syntaxes that can
        request = requested(request, lora_folder)

    import sdkit

    loaded = sdkit.load(model, device=device)
    _hints(loaded.encoder, request.prompt)
    pipe = sdkit.pipeline(loaded)
    if fit:
        size = size or loaded.spec.latent.size
        loaded.spec.latent.shape(size)  # refuses a size the model cannot make, before anything is resized to it
        request = _fitted(request, size, mask)
    if estimate:
        click.echo(_estimated(loaded, request))
        return
    result = _run(pipe, request)
    for name in result.save(target, metadata=metadata):
        click.echo(str(name))
    if sheet:
        click.echo(str(_save_sheet(result, Path(sheet))))


@click.command()
@click.argument("file")
@click.option("--model", metavar="NAME", help="Model to use, if not the one the file names.")
@click.option("--device", metavar="D", help="Where to compute [default: the kind of device it was made on].")
@click.option("--out", metavar="FILE", help="Where to write the picture [default: FILE with -rerun].")
def rerun(file: str, model: str | None, device: str | None, out: str | None) -> None:
    """Make the picture in FILE again, from the manifest inside it, and say whether the pixels are the same.

    Exit code 1 if they are not (another machine or version of torch can change last bits).
    """
    source = Path(file)
    target = Path(out) if out is not None else source.with_name(f"{source.stem}-rerun.png")
    _check_targets([target], keep=[file])

    import sdkit

    loaded = sdkit.load(model, device=device or "cpu") if model else None
    again = sdkit.rerun(source, model=loaded, device=device)
    again.result.save(target, index=again.manifest.index)
    click.echo(str(target))
    if again.same:
        click.echo("same pixels", err=True)
        return
    there = ", ".join(f"{name} {version}" for name, version in again.manifest.versions.items())
    click.echo(f"the pixels differ from the file's, which was made with {there} on {again.manifest.device}", err=True)
    raise SystemExit(1)


def _run(pipe: Pipeline[str, Any, Any], request: Request) -> Result:
    """The result, with a progress bar (steps, time left) on stderr where that is a terminal."""
    from sdkit.pipelines import ResultEvent

    plan = pipe.plan(request)
    steps = len(plan.grid) - 1
    with click.progressbar(
        length=steps, label="denoising", file=sys.stderr, show_pos=True, hidden=not sys.stderr.isatty()
    ) as bar:
        for event in pipe.stream(request):
            if isinstance(event, ResultEvent):
                return event.result
            bar.update(1)
    raise AssertionError("a stream ends with its result")


def _estimated(model: Model[Any], request: Request) -> str:
    """What a request will take, as the first estimator says that knows such a model.

    An estimator is a component ``(model, request) -> told | None``. What is told has ``peak`` and ``weights`` in bytes
    on the device, the ``stage`` of the peak, ``evaluations`` (None if that depends on the pictures) and the ``rows`` of
    the denoiser's largest batch.
    """
    answers = (entry.component.load()(model, request) for entry in registry().entries("estimator"))
    told = next((answer for answer in answers if answer is not None), None)
    if told is None:
        raise InvalidRequest("No installed plugin can tell what this takes; sdkit-diffusers can of models in torch.")
    calls = "as many calls as the pictures need" if told.evaluations is None else f"{told.evaluations} calls"
    return (
        f"peak memory: {_bytes(told.peak)} in the {told.stage}, {_bytes(told.weights)} of it weights (a process takes "
        f"more: torch itself, and what an operation needs inside)\n"
        f"evaluations: {calls} of the denoiser, with up to {told.rows} rows each"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _lora(text: str) -> str:
    """The modifier that ``FILE`` or ``FILE:STRENGTH`` means, as a request writes it; other colons belong to FILE."""
    match = re.fullmatch(r"(.+):([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)", text, re.DOTALL)
    file, strength = (match[1], float(match[2])) if match else (text, 1.0)
    try:
        registry().find("modifier", "lora")
    except UnknownComponent as error:
        raise InvalidRequest("--lora needs the plugin sdkit-lora: pip install sdkit-lora") from error
    if not Path(file).exists():
        raise FileError(f"The adapter {file!r} does not exist.")
    return f"lora(file={file!r}, strength={strength!r})"


def _hints(encoder: object, prompt: str) -> None:
    """What the model's encoder has to say about the prompt (words it does not know), on stderr."""
    hints = getattr(encoder, "hints", None)
    for line in hints(prompt) if callable(hints) else ():
        click.echo(f"Note: {line}", err=True)


def _fitted(request: Request, size: tuple[int, int], mask: str | None) -> Request:
    import attrs
    from PIL import Image

    from sdkit.request import Picture

    if request.image is None:
        raise InvalidRequest("--fit resizes --image; give one.")
    attrs.evolve(request, image=None, mask=None, strength=None, size=size)  # refuses a size that is none
    image = Picture.of(request.image.image().resize(size, Image.Resampling.LANCZOS))
    resized = Picture.of(Picture.of(mask).image().resize(size, Image.Resampling.BILINEAR)) if mask else None
    return attrs.evolve(request, image=image, mask=resized, size=size)


def _save_sheet(result: Result, path: Path) -> Path:
    from sdkit.files import write_whole
    from sdkit.sheet import contact_sheet

    sheet = contact_sheet(list(result.images), [f"seed {seed}" for seed in result.seeds])
    return write_whole(path, lambda file: sheet.save(file, "PNG"))


def _new_seed() -> int:
    import secrets

    return secrets.randbelow(2**32)


def _free_name(prompt: str, seed: int) -> Path:
    """A name after the prompt and the seed that no file has yet."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"
    names = (Path(f"{words}-{seed}{again}.png") for again in ("", *(f"-again{k}" for k in range(1, 10_000))))
    return next(name for name in names if not name.exists())


def _check_targets(paths: list[Path], keep: list[str | None]) -> None:
    """Refuse names that could not be written, or would overwrite each other or an input, before minutes of work."""
    seen = {Path(name).resolve(): "an input" for name in keep if name is not None}
    for path in paths:
        _check_target(path)
        if path.resolve() in seen:
            raise FileError(f"{str(path)!r} is also {seen[path.resolve()]}; give it another name.")
        seen[path.resolve()] = "another output"


def _check_target(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise FileError(
            f"{str(path)!r} is no name that ends in .png, the format sdkit writes with its manifest inside."
        )
    folder = path.parent
    try:
        if not folder.is_dir():
            raise FileError(f"The folder {str(folder)!r} does not exist; make it first.")
        if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
            raise FileError(f"{str(path)!r} cannot be written: no permission, or it is a folder.")
    except SdkitError:
        raise
    except OSError as error:
        raise FileError(f"{str(path)!r} cannot be written: {error.strerror}.") from error

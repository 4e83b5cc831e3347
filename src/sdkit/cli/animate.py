"""``sdkit animate`` and ``sdkit contact-sheet``."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdkit.cli.generate import Size
from sdkit.errors import FileError, ParameterError
from sdkit.plugins import registry
from sdkit.plugins.spelling import parse, spell

if TYPE_CHECKING:
    from sdkit.frames.clip import Clip
    from sdkit.frames.frame import Frame
    from sdkit.model import Model
    from sdkit.request import Request

__all__ = ["animate", "contact_sheet"]


def _single(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str:
    """The one file. Click would take the last of several, and the others would be missed after the render."""
    if len(values) > 1:
        raise click.BadParameter(
            f"it is given {len(values)} times, and a render writes one file; with --resume, the same command with "
            "another --out and the first one's --journal writes another without rendering again.",
            context,
            option,
        )
    return values[0]


@click.command()
@click.argument("generator")
@click.option("--prompt", default="", metavar="TRACK", help="'a cat', or over time: '0: a cat | 24: a dog'.")
@click.option("--model", default="emoji", show_default=True, help="Registered name, folder or .safetensors file.")
@click.option("--frames", type=int, default=48, show_default=True, metavar="N", help="How many frames.")
@click.option("--fps", default="12", show_default=True, metavar="F", help="Per second: a number, or '24000/1001'.")
@click.option("--loop", type=click.Choice(["none", "closed", "pingpong"]), default="none", show_default=True)
@click.option("--ease", default="linear", show_default=True, help="From prompt to prompt: linear, cubic, cosine, step.")
@click.option(
    "--curve",
    "curves",
    multiple=True,
    metavar="NAME=CURVE",
    help="A parameter: zoom='0:(1), 48:(1.4)'; again for more.",
)
@click.option("--filter", "filters", multiple=True, metavar="NAME", help="Behind the generator: 'blend(times=2)'.")
@click.option("--negative", default="", metavar="TEXT", help="What to move away from.")
@click.option("--steps", type=int, metavar="N", help="Number of steps of each picture [default: the model's].")
@click.option("--scheduler", metavar="NAME", help="Solver; parameters may follow.")
@click.option("--spacing", metavar="NAME", help="Which levels to visit.")
@click.option("--guidance", type=float, metavar="F", help="How closely to follow the prompt; 1 is no guidance.")
@click.option("--seed", type=int, metavar="N", help="Seed [default: a new one each time].")
@click.option("--size", type=Size(), help="Picture size [default: the model's].")
@click.option("--image", metavar="FILE", help="Picture to start from, where the generator takes one.")
@click.option("--modifier", "modifiers", multiple=True, metavar="NAME", help="Change of behaviour; may be given again.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, as torch writes it.")
@click.option("--sink", metavar="NAME", help="Format with parameters, 'mp4(crf=20)' [default: what --out ends in].")
@click.option("--audio", metavar="FILE", help="Its sound under the clip (.mp4, .webm): music, or a video restyled.")
@click.option("--journal", metavar="DIR", help="Keep all that is needed to go on after a crash in this folder.")
@click.option("--resume", is_flag=True, help="Go on with the render in --journal [default: OUT.journal], or begin it.")
@click.option("--force", is_flag=True, help="With --resume: even if the journal is of another render.")
@click.option(
    "--out",
    required=True,
    multiple=True,
    callback=_single,
    metavar="FILE",
    help=".mp4, .webm, .gif, .webp, .apng, or .png for a sequence.",
)
def animate(
    generator: str,
    prompt: str,
    model: str,
    frames: int,
    fps: str,
    loop: str,
    ease: str,
    curves: tuple[str, ...],
    filters: tuple[str, ...],
    seed: int | None,
    device: str,
    sink: str | None,
    audio: str | None,
    journal: str | None,
    resume: bool,
    force: bool,
    out: str,
    **rest: Any,
) -> None:
    """Make a clip with GENERATOR: walk, zoom, feedback, ... ("sdkit plugins" lists them); parameters may follow."""
    made = registry().make("frames", _with_curves(generator, curves))
    target = _target(out, sink)
    if audio is not None:
        sink = _with_audio(sink or target.suffix.lower().removeprefix("."), audio)
    folder = Path(journal) if journal else Path(f"{out}.journal") if resume else None
    from sdkit.frames.clip import animate as make_clip
    from sdkit.frames.time import Timeline
    from sdkit.frames.tracks import PromptTrack

    Timeline(frames, fps, loop)  # everything cheap is checked before a model is loaded
    request = _request(prompt, _seed(seed, folder, resume), **rest)
    acts = [registry().make("frame-filter", text) for text in filters]

    import sdkit

    loaded = sdkit.load(model, device=device)
    _remarks(loaded, [text for _, text in PromptTrack(prompt, ease).keys])
    pipe, stopped = sdkit.pipeline(loaded), threading.Event()
    clip = make_clip(
        made,
        pipe,
        request,
        frames=frames,
        fps=fps,
        loop=loop,
        ease=ease,
        journal=folder,
        resume=resume,
        force=force,
        tick=lambda: _stop(stopped),
    )
    for act in acts:
        clip = clip | act
    click.echo(str(_save(clip, target, sink, stopped)))


def _with_curves(generator: str, curves: tuple[str, ...]) -> str:
    """The generator's text with the curves as its parameters."""
    name, parameters = parse(generator)
    seen = set[str]()
    for text in curves:
        key, sign, value = text.partition("=")
        if not sign or not key.strip() or not value.strip():
            raise ParameterError(f"--curve takes NAME=CURVE, as in zoom='0:(1), 48:(1.4)', not {text!r}.")
        if key.strip() in seen:
            raise ParameterError(f"--curve gives {key.strip()!r} twice; write one curve with all its keys.")
        seen.add(key.strip())
        value = value.strip()
        parameters[key.strip()] = int(value) if re.fullmatch(r"-?[0-9]{1,15}", value) else value
    return spell(name, parameters)


def _with_audio(sink: str, audio: str) -> str:
    """The sink's text with the file of sound as its parameter; refused now if it could not be read then."""
    name, parameters = parse(sink)
    if "audio" not in inspect.signature(registry().get("frame-sink", name)).parameters:
        raise ParameterError(f"A {name} carries no sound; write an mp4 or a webm, or leave --audio out.")
    text = spell(name, {**parameters, "audio": audio})
    registry().make("frame-sink", text)
    return text


def _target(out: str, sink: str | None) -> Path:
    """The file, refused now if it could not be written after all the work."""
    from sdkit.frames.clip import frame_sink

    target = Path(out)
    if sink is None:
        frame_sink(target)
    else:
        registry().make("frame-sink", sink)
        _fitting(target, parse(sink)[0])
    if not target.parent.is_dir():
        raise FileError(f"The folder {str(target.parent)!r} does not exist; make it first.")
    if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise FileError(f"{out!r} cannot be written: no permission, or it is a folder.")
    return target


def _fitting(target: Path, sink: str) -> None:
    """Refuse a file whose ending is that of another format than the one asked for."""
    ending, sink = target.suffix.lower().removeprefix("."), sink.rpartition(":")[2]
    known = {entry.component.name for entry in registry().entries("frame-sink")}
    if ending in known and ending != sink:
        raise ParameterError(
            f"--out {target.name!r} ends in .{ending} and --sink writes {sink}; name it {target.stem}.{sink}, or leave "
            "--sink out."
        )


def _seed(seed: int | None, folder: Path | None, resume: bool) -> int:
    """What was given, else that of the render to go on with, else a new one."""
    if seed is not None:
        return seed
    if resume and folder is not None and (folder / "manifest.json").exists():
        from sdkit.frames.clip import ClipManifest

        return ClipManifest.from_json((folder / "manifest.json").read_text(encoding="utf-8")).request.seeds[0]
    import secrets

    return secrets.randbelow(2**32)


def _request(prompt: str, seed: int, **rest: Any) -> Request:
    from sdkit.request import Request

    return Request(prompt, seeds=(seed,), **rest)


def _remarks(model: Model[Any], prompts: list[str]) -> None:
    """What a person should know of the model's terms, and of words it was not taught, on stderr."""
    licence, hints = model.spec.licence, getattr(model.encoder, "hints", None)
    if licence.terms or licence.id == "unknown":
        click.echo(f"Licence: {licence.name}. {licence.summary}", err=True)
    for prompt in prompts:
        for line in hints(prompt) if callable(hints) else ():
            click.echo(f"Note: {line}", err=True)


def _save(clip: Clip, target: Path, sink: str | None, stopped: threading.Event) -> Path:
    """Render, with frames, time left and memory on stderr where that is a terminal."""
    shown: Any = click.progressbar(
        length=clip.timeline.frames,
        label="frames",
        file=sys.stderr,
        show_pos=True,
        item_show_func=lambda _: _memory(),
        hidden=not sys.stderr.isatty(),
    )
    with shown as bar:

        def count(_: Frame) -> None:
            bar.update(1, 1)
            _stop(stopped)

        with _terminated(stopped):
            return clip.save(target, sink=sink, on_frame=count)


def _stop(stopped: threading.Event) -> None:
    """End the render here, if that was asked for: between two evaluations or frames, where nothing is half done."""
    if stopped.is_set():
        raise KeyboardInterrupt


@contextmanager
def _terminated(stopped: threading.Event) -> Iterator[None]:
    """A scope in which SIGTERM says ``stopped``, so that what was rendered is encoded and the file is closed."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _memory() -> str:
    """Peak memory of this process, for people."""
    try:
        import resource
    except ImportError:  # not a Unix
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB"


@click.command("contact-sheet")
@click.argument("clip")
@click.option("--count", type=click.IntRange(1, 400), default=12, show_default=True, help="Frames, evenly spread.")
@click.option("--columns", type=int, metavar="N", help="Pictures per row.")
@click.option("--out", metavar="FILE", help="PNG to write [default: CLIP with -sheet.png].")
def contact_sheet(clip: str, count: int, columns: int | None, out: str | None) -> None:
    """Frames of CLIP in one picture, each with its number and time."""
    from PIL import Image

    from sdkit.files import write_whole
    from sdkit.frames.clip import frame_sink
    from sdkit.sheet import contact_sheet as drawn

    path = Path(clip)
    sink = frame_sink(path.with_suffix(".png") if path.suffix == ".json" else path)  # a sequence by its list
    total = sum(1 for _ in sink.read(path)[0])
    if not total:
        raise FileError(f"{path.name!r} holds no frame.")
    wanted = {round(k * (total - 1) / max(1, min(count, total) - 1)) for k in range(min(count, total))}
    chosen = [frame for k, frame in enumerate(sink.read(path)[0]) if k in wanted]
    captions = [f"{frame.index}  {float(frame.pts):.2f} s" for frame in chosen]
    sheet = drawn([Image.fromarray(frame.image) for frame in chosen], captions, columns=columns)
    target = Path(out) if out else path.with_name(f"{path.stem}-sheet.png")
    click.echo(str(write_whole(target, lambda file: sheet.save(file, "PNG"))))

"""Pictures of many prompts through sdkit's own pipeline, in batches, kept in a folder so that a run can go on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import sdkit

__all__ = ["Job", "Source", "Texts", "draw", "missing", "read"]


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        prompt: What to draw.
        seed: Of its noise.
        steps: Steps of the sampler.
    """

    prompt: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Source:
    """Where pictures come from and where they are kept.

    Attributes:
        model: Name of the model.
        folder: Folder with other weights than the model's own, or None.
        guidance: Scale of guidance; None as the model recommends.
        sha256: Of the weights.
        cache: Folder for pictures; one inside it for every set of weights and guidance.
    """

    model: str
    folder: str | None
    guidance: float | None
    sha256: str
    cache: Path

    def load(self) -> sdkit.Model[Any]:
        """The model."""
        return sdkit.load(self.model) if self.folder is None else sdkit.load(self.model, folder=self.folder)

    def path(self, job: Job) -> Path:
        """Where a picture is kept."""
        name = hashlib.sha256(f"{job.prompt}\n{job.seed}".encode()).hexdigest()[:20]
        guidance = "own" if self.guidance is None else f"{self.guidance:g}"
        return self.cache / f"{self.sha256[:12]}-guidance-{guidance}" / f"{job.steps}-steps" / f"{name}.png"


@attrs.frozen(eq=False)
class Texts:
    """An encoder that answers for another text in every row: a request has one prompt, an evaluation has hundreds.

    Attributes:
        encoder: The model's.
        prompts: One for every seed of the request; they take the place of the request's own prompt.
    """

    encoder: Any
    prompts: tuple[str, ...]
    per_image: ClassVar[bool] = True
    """The pipeline asks for every image, not once for a text that stands several times."""

    def __call__(self, texts: Sequence[str], /) -> Any:
        """The prompts' conditioning, and after it that of the texts that guidance moves away from."""
        count = len(self.prompts)
        if len(texts) not in (count, 2 * count):
            raise ValueError(f"{count} prompts cannot stand for {len(texts)} texts.")
        return self.encoder([*self.prompts, *texts[count:]])


def missing(source: Source, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose pictures are not there yet, each once."""
    return [job for job in dict.fromkeys(jobs) if not source.path(job).exists()]


def batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Jobs of as many steps together."""
    for steps in sorted({job.steps for job in jobs}, reverse=True):
        alike = [job for job in jobs if job.steps == steps]
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def _work(source: Source, jobs: Sequence[Job], size: int, threads: int, place: int) -> None:
    torch.set_num_threads(threads)
    pipe = sdkit.pipeline(source.load())
    with tqdm(total=len(jobs), desc=f"pictures {place + 1}", position=place, mininterval=10) as bar:
        for part in batches(jobs, size):
            one = attrs.evolve(pipe, encoder=Texts(pipe.encoder, tuple(job.prompt for job in part)))
            seeds = tuple(job.seed for job in part)
            request = sdkit.Request("each its own", seeds=seeds, steps=part[0].steps, guidance=source.guidance)
            for job, image in zip(part, one(request).images, strict=True):
                path = source.path(job)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                image.save(temporary, "PNG")
                os.replace(temporary, path)  # an interrupted run leaves no half picture
            bar.update(len(part))


def draw(source: Source, jobs: Sequence[Job], *, batch: int, workers: int, threads: int) -> None:
    """Make the pictures that are missing.

    Args:
        source: Model and folder.
        jobs: What to draw.
        batch: Pictures that one run of the pipeline makes.
        workers: Processes that share the work.
        threads: CPU threads of each.

    Raises:
        RuntimeError: a process failed; what the others made stays.
    """
    left = missing(source, jobs)
    if workers <= 1 or len(left) <= batch:
        if left:
            _work(source, left, batch, threads, 0)
        return
    # torch's threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    parts = [left[k::workers] for k in range(workers)]
    processes = [
        context.Process(target=_work, args=(source, part, batch, threads, k)) for k, part in enumerate(parts) if part
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("A process that draws pictures failed; its message is above. Run again to go on.")


def read(source: Source, jobs: Sequence[Job]) -> Tensor:
    """The pictures, (n, 3, h, w) in [0, 1]."""
    arrays = []
    for job in jobs:
        with Image.open(source.path(job)) as opened:
            arrays.append(np.array(opened.convert("RGB")))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255

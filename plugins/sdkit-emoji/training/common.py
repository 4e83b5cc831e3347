"""What the three training programs share: seeds, the learning-rate curve, averaged weights, checkpoints, pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # the package need not be installed to train it


def add_arguments(parser: argparse.ArgumentParser, *, steps: int, batch: int, rate: float) -> None:
    """The flags every training program has."""
    parser.add_argument("--data", type=Path, required=True, help="folder made by prepare.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and sheets")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument(
        "--minutes", type=float, default=None, help="end (with the decay done) after so long, if sooner"
    )
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--share", action="store_true", help="one CPU thread only while other programs are busy")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")


def asked_to_stop() -> Callable[[], bool]:
    """A function that says whether SIGTERM has come; the training then writes its checkpoint and ends."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    return lambda: bool(received)


class Sharing:
    """Keeps to one CPU thread while other programs are busy (Linux), and takes ``most`` when they have been quiet.

    Threads that wait at every barrier for one that another program holds up are far slower than one thread alone.
    """

    def __init__(self, most: int, patience: float = 4.0) -> None:
        self.most, self.patience = most, patience
        self.quiet_since = self.last = time.monotonic()
        self.before = self.used()

    @staticmethod
    def used() -> float:
        """CPU seconds that all programs but this one have used so far."""
        fields = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:]]
        busy = sum(fields[:3]) + sum(fields[5:7])  # user, nice, system, interrupts; not idle, waiting or stolen
        own = os.times()
        return busy / os.sysconf("SC_CLK_TCK") - own.user - own.system

    def update(self) -> None:
        """Look at what happened since the last call, and set torch's number of threads."""
        now = time.monotonic()
        if now - self.last < 0.2:
            return
        used = self.used()
        if (used - self.before) / (now - self.last) > 0.2:
            self.quiet_since = now
        self.last, self.before = now, used
        wanted = self.most if now - self.quiet_since > self.patience else 1
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)


Module = TypeVar("Module", bound=nn.Module)


class Clock:
    """How far the training is, in [0, 1]: by steps, or by minutes where those run out first."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        self.steps, self.minutes, self.start, self.spent = steps, minutes, time.monotonic(), 0.0

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.spent + time.monotonic() - self.start

    def progress(self, step: int) -> float:
        """Share of the training that is done after ``step`` steps."""
        by_time = 0.0 if self.minutes is None else self.seconds() / (60 * self.minutes)
        return min(1.0, max(step / self.steps, by_time))


def rate_factor(step: int, progress: float, *, warm_up: int, decay: float) -> float:
    """Warm-up, plateau, then a cosine down to 1/100 over the last ``decay`` share of the training."""
    up = min(1.0, (step + 1) / warm_up)
    down = max(0.0, (progress - (1 - decay)) / decay)
    return up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, down))))


class Average:
    """An exponential moving average of a module's parameters; its memory grows with the age of the training."""

    def __init__(self, module: nn.Module, longest: float = 0.999) -> None:
        self.longest = longest
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the parameters after ``step`` steps in."""
        weight = 1 - min(self.longest, (step + 1) / (step + 10))
        names = list(self.values)
        current = dict(module.named_parameters())
        torch._foreach_lerp_([self.values[name] for name in names], [current[name].detach() for name in names], weight)

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Copy the averages into a module of the same make."""
        for name, value in module.named_parameters():
            value.copy_(self.values[name])


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it: an interrupted write loses nothing."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def channels_last(module: Module, device: torch.device) -> Module:
    """The module on a device, its convolutions in the memory layout that is fastest there."""
    with torch.no_grad():
        for value in module.to(device).parameters():
            if value.ndim == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return module


def backward(loss: Tensor) -> None:
    """Gradients of a scalar."""
    torch.autograd.backward([loss])


def load_pictures(data: Path) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]]]:
    """The pictures (n, 128, 128, 4) uint8, mapped from the file, and their captions."""
    captions: list[dict[str, Any]] = json.loads((data / "captions.json").read_text(encoding="utf-8"))
    return np.load(data / "pictures.npy", mmap_mode="r"), captions


def compose(rgba: np.ndarray[Any, Any], background: np.ndarray[Any, Any]) -> Tensor:
    """Straight-alpha pictures (b, h, w, 4) uint8 on colours (b, 3) in [0, 1] -> (b, 3, h, w) float32 in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(rgba)).permute(0, 3, 1, 2).float() / 255
    behind = torch.from_numpy(background.astype(np.float32))[:, :, None, None]
    return pixels[:, :3] * pixels[:, 3:] + behind * (1 - pixels[:, 3:])


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (b, 3, h, w) in [0, 1] as one PNG."""
    from PIL import Image

    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(3, rows * height, columns * width)
    for index, image in enumerate(images.clamp(0, 1)):
        top, left = index // columns * height, index % columns * width
        sheet[:, top : top + height, left : left + width] = image
    Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy()).save(path)


def weights(place: Path, part: str, device: torch.device) -> dict[str, Any]:
    """A network's ``config`` and averaged weights (``average``), from a checkpoint or from what export.py wrote.

    So a later training can begin from the weights in the package: they are float16 there, and float32 here.

    Args:
        place: A checkpoint, or a folder that holds ``PART.pt`` or ``PART.safetensors`` with ``config.json``.
        part: ``"autoencoder"``, ``"text"`` or ``"denoiser"``.
        device: Where to put them.
    """
    checkpoint = place if place.is_file() else place / f"{part}.pt"
    if checkpoint.exists():
        content: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
        return content
    tensors = load_file(place / f"{part}.safetensors", device=str(device))
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))[part]
    return {"config": config, "average": {name: t.float() for name, t in tensors.items() if name != "concepts"}}

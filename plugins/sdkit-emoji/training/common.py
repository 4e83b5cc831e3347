"""What the training programs share: flags, threads, pictures, and networks' weights in folders."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
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


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The flag ``--precision``, float32 without it: on processors without bfloat16 it is many times slower."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the network; on one core bfloat16 is 1.4 times as fast with AVX-512 BF16, 2.3 times with AMX, and far "
        "slower without them",
    )


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


def channels_last(module: Module, device: torch.device) -> Module:
    """The module on a device, its convolutions in the memory layout that is fastest there."""
    with torch.no_grad():
        for value in module.to(device).parameters():
            if value.ndim == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
    return module


def trained(kind: type[Module], folder: Path, part: str, device: torch.device) -> Module:
    """A network with the averaged weights of a folder (see `weights`), for use: in eval mode, without gradients."""
    content = weights(folder, part, device)
    network = kind(**content["config"])
    network.load_state_dict(content["average"])
    return network.to(device).eval().requires_grad_(False)


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


def write_weights(
    folder: Path, part: str, config: dict[str, Any], tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write ``PART.safetensors`` and ``config.json``, which `weights` reads.

    Args:
        folder: Where to.
        part: ``"autoencoder"``, ``"text"`` or ``"denoiser"``.
        config: What the network is made with.
        tensors: Its weights.
        about: What else to say in ``config.json``: figures.
    """
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / f"{part}.tmp")
    os.replace(folder / f"{part}.tmp", folder / f"{part}.safetensors")  # what is interrupted loses nothing
    (folder / "config.json").write_text(json.dumps({part: config, **about}, indent=1), encoding="utf-8")


def weights(folder: Path, part: str, device: torch.device) -> dict[str, Any]:
    """A network's ``config`` and averaged weights (``average``), of a training program or of what export.py wrote.

    So a later training can begin from the weights in the package: they are float16 there, and float32 here.

    Args:
        folder: Holds ``PART.safetensors`` and ``config.json``.
        part: ``"autoencoder"``, ``"text"`` or ``"denoiser"``.
        device: Where to put them.
    """
    tensors = load_file(folder / f"{part}.safetensors", device=str(device))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))[part]
    return {"config": config, "average": {name: t.float() for name, t in tensors.items() if name != "concepts"}}

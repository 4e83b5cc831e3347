"""Clips by sdkit and by diffusers, same networks: `python benchmarks/animatediff.py`.

Stable Diffusion's networks with AnimateDiff's motion module (version 2) in two sizes, with random weights, on the CPU:
tiny, where what lies between the networks shows, and mid-sized (about a sixth of the real one). From text to pictures,
16 frames, same noise, same levels, guidance in one batch of twice the frames.

Time: one process holds the networks, the two take turns, figures are medians of processor time, and the frames must be
the same. Memory: a process for each; the most that is resident while a clip is made, its high mark being reset when the
model is loaded (Linux), and how far that is above the loaded model. The claims: sdkit takes at most the time of
diffusers, and its peak is below. Exit status 1 if not. ``--decode-alike`` has diffusers decode as many frames together
as sdkit, which is not its default.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor

import sdkit
from sdkit_diffusers.animatediff import AnimateDiff
from sdkit_diffusers.autoencoder import Autoencoder
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.sd import PromptEncoder
from sdkit_diffusers.text import TextEncoder
from sdkit_diffusers.tokens import clip_tokenizer
from sdkit_diffusers.unet import UNet

PROMPT, NEGATIVE, SCALE, FRAMES = "a red fox in the snow, in the evening", "blurry", 7.5, 16
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
LINEAR = sdkit.linear(0.00085, 0.012, 1000)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"levels": (32, 64, 64), "width": 64, "vae": (32, 32, 32, 32), "side": 64},
    "mid": {"levels": (128, 256, 512, 512), "width": 384, "vae": (64, 128, 256, 256), "side": 128},
}
THEIRS: Any = diffusers  # It is untyped.


@torch.no_grad()
def networks(size: str) -> dict[str, Any]:
    """The networks with random weights."""
    torch.manual_seed(0)
    given = SIZES[size]
    count, width = len(given["levels"]), given["width"]
    text = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=4,
        num_attention_heads=width // 64, projection_dim=width, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    motion = THEIRS.MotionAdapter(block_out_channels=given["levels"])
    for name, weight in motion.named_parameters():
        if name.endswith("proj_out.weight"):
            weight *= 0.3
    made = {
        "unet": THEIRS.UNet2DConditionModel(
            sample_size=given["side"] // 8, block_out_channels=given["levels"], cross_attention_dim=width,
            down_block_types=("CrossAttnDownBlock2D",) * (count - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (count - 1), attention_head_dim=8,
        ),
        "vae": THEIRS.AutoencoderKL(
            block_out_channels=given["vae"], layers_per_block=2, scaling_factor=0.18215, sample_size=given["side"],
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "text": transformers.CLIPTextModel(text),
        "motion": motion,
    }  # fmt: skip
    return {name: network.eval().requires_grad_(False) for name, network in made.items()}


class Given:
    """A noise source that starts with given noise."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def initial(self, like: Tensor, /) -> Tensor:
        """The noise."""
        return self.noise.to(like)

    def __call__(self, like: Tensor, start: sdkit.Level, stop: sdkit.Level, /) -> Tensor:
        """None is needed."""
        raise AssertionError


def noise(size: str) -> Tensor:
    """What both start from, (frames, 4, height, width)."""
    side = SIZES[size]["side"] // 8
    return torch.randn(FRAMES, 4, side, side, generator=torch.Generator().manual_seed(1))


def ours(parts: dict[str, Any], size: str, steps: int, folder: Path) -> Any:
    """The way of sdkit, as a function without arguments that gives the frames."""
    side = SIZES[size]["side"]
    latent = sdkit.LatentSpec(4, 8, (side, side))
    placement = Placement("cpu", (parts["unet"], parts["vae"], parts["text"]))
    pipe = sdkit.Pipeline(
        PromptEncoder(TextEncoder(parts["text"], clip_tokenizer(), placement)),
        sdkit.NetworkDenoiser(UNet(parts["unet"], placement), sdkit.Epsilon(), sdkit.scaled_linear()),
        sdkit.Ddim(), Autoencoder(parts["vae"], latent, placement, scale=0.18215), spacing=sdkit.Trailing(),
        noise=lambda seeds, grid: Given(noise(size)), spec=sdkit.ModelSpec("benchmark", "sd1", latent),
    )  # fmt: skip
    if not folder.exists():
        parts["motion"].save_pretrained(folder)
    request = sdkit.Request(PROMPT, negative=NEGATIVE, guidance=SCALE, steps=steps)
    clip = sdkit.animate(AnimateDiff(str(folder)), pipe, request, frames=FRAMES)
    return lambda: [frame.image for frame in clip]


def theirs(parts: dict[str, Any], size: str, steps: int, *, alike: bool) -> Any:
    """The way of diffusers."""
    side, model = SIZES[size]["side"], json.loads(clip_tokenizer().backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    pipe = THEIRS.AnimateDiffPipeline(
        vae=parts["vae"], text_encoder=parts["text"], unet=parts["unet"], motion_adapter=parts["motion"],
        tokenizer=transformers.CLIPTokenizer(
            vocab=model["vocab"], merges=merges, model_max_length=77, pad_token="<|endoftext|>"
        ),
        scheduler=THEIRS.DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=1
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    start = (noise(size) * LINEAR.noisiest.sigma).transpose(0, 1)[None]
    return lambda: [
        np.asarray(image)
        for image in pipe(
            PROMPT, negative_prompt=NEGATIVE, guidance_scale=SCALE, num_inference_steps=steps, num_frames=FRAMES,
            height=side, width=side, latents=start, decode_chunk_size=max(1, 2**15 // side**2) if alike else 16,
        ).frames[0]
    ]  # fmt: skip


def timed(size: str, steps: int, runs: int, folder: Path, *, alike: bool) -> dict[str, float]:
    """Median seconds of processor time of each, in turn; the frames are held against each other."""
    parts = networks(size)
    ways = {"sdkit": ours(parts, size, steps, folder), "diffusers": theirs(parts, size, steps, alike=alike)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    gave: dict[str, Any] = {name: way() for name, way in ways.items()}  # first calls load code
    difference = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(*gave.values(), strict=True))
    if difference > 2:
        raise SystemExit(f"The frames differ by up to {difference} of 255: this compares different things.")
    for run in range(runs):
        for name in sorted(ways, reverse=run % 2 == 1):
            gc.collect()
            began = time.process_time()
            ways[name]()
            took[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in took.items()}


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def rise(who: str, size: str, steps: int, folder: Path, *, alike: bool) -> dict[str, int]:
    """Resident memory before a clip is made, and how far it rises: in a process that does nothing else."""
    parts = networks(size)
    way = ours(parts, size, steps, folder) if who == "sdkit" else theirs(parts, size, steps, alike=alike)
    del parts
    gc.collect()
    # what was freed while loading goes back to the system, else a clip would be made in it and seem to take nothing
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    way()
    return {"before": before, "rise": status("VmHWM") - before}


def peak(memory: dict[str, int]) -> int:
    """The most that was resident, in bytes."""
    return memory["before"] + memory["rise"]


def measured(size: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time and memory of both at a size."""
    found: dict[str, Any] = {"seconds": timed(size, given.steps, given.runs, folder, alike=given.decode_alike)}
    for who in ("sdkit", "diffusers"):
        command = [sys.executable, __file__, "--memory", who, "--sizes", size, "--steps", str(given.steps), "--motion"]
        command += [str(folder), *(["--decode-alike"] if given.decode_alike else [])]
        found[who] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--runs", type=int, default=5)
    reader.add_argument("--steps", type=int, default=8)
    reader.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    reader.add_argument("--decode-alike", action="store_true")
    reader.add_argument("--json", action="store_true")
    reader.add_argument("--memory", choices=["sdkit", "diffusers"], help=argparse.SUPPRESS)
    reader.add_argument("--motion", help=argparse.SUPPRESS)
    given = reader.parse_args()
    warnings.simplefilter("ignore")
    for library in (transformers, THEIRS.utils):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if given.memory:
        print(json.dumps(rise(given.memory, given.sizes[0], given.steps, Path(given.motion), alike=given.decode_alike)))
        return
    with tempfile.TemporaryDirectory() as place:
        found = {size: measured(size, given, Path(place) / size) for size in given.sizes}
    if given.json:
        print(json.dumps({"load": os.getloadavg(), **found}, indent=2))
    else:
        print(f"{FRAMES} frames, {given.steps} steps, medians of {given.runs}, load {os.getloadavg()[0]:.1f}\n")
        print(
            "size  pixels   sdkit s  diffusers s  ratio   sdkit peak MB  diffusers peak MB  ratio   rises by MB, each"
        )
        for size, row in found.items():
            s, a, b = row["seconds"], peak(row["sdkit"]) / 1e6, peak(row["diffusers"]) / 1e6
            print(
                f"{size:4}  {SIZES[size]['side']:6}  {s['sdkit']:8.2f}  {s['diffusers']:11.2f}  "
                f"{s['sdkit'] / s['diffusers']:5.3f}  {a:14.0f}  {b:17.0f}  {a / b:5.2f}   "
                f"{row['sdkit']['rise'] / 1e6:.0f}, {row['diffusers']['rise'] / 1e6:.0f}"
            )
    over = [
        size
        for size, row in found.items()
        if row["seconds"]["sdkit"] > row["seconds"]["diffusers"] or peak(row["sdkit"]) >= peak(row["diffusers"])
    ]
    if over:
        raise SystemExit(f"over the claims: {', '.join(over)}")


if __name__ == "__main__":
    main()

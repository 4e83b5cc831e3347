"""What adapters cost: `python benchmarks/lora.py`.

A U-Net of Stable Diffusion 1.5's size (860 million random weights, float32) and a rank-16 LoRA over the linear layers
of its attention blocks, in the form diffusers writes. sdkit and diffusers with PEFT work on the same network in one
process, one thread, all in processor time:

- load: from the file on disk to ready, nothing in memory before;
- activate: a file that was used before, put on again;
- strength: another strength of an active adapter;
- forward: one evaluation at 32 x 32 latents with one adapter (for sdkit not merged), over the bare network's;
- switch: ten adapters in turn, a hundred times: what the process holds before the second half and after it.

Claims: activate at most 20 ms, strength at most 5 ms, forward at most 1.15 of bare, load at most half of diffusers',
switching takes less than 32 MB more. Exit status 1 if one does not hold. It needs 8 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor, nn

import sdkit
from sdkit_lora import KeyMap, Lora, on
from sdkit_lora.files import forget

THEIRS: Any = diffusers  # It is untyped.
RANK = 16
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


@frozen(eq=False)
class Network:
    """The U-Net as sdkit calls it."""

    network: Any

    def __call__(self, x: Tensor, time: Tensor, cond: Tensor, /) -> Tensor:
        """What it predicts."""
        made: Tensor = self.network(x, time, cond, return_dict=False)[0]
        return made


def unet(width: int) -> Any:
    """Stable Diffusion 1.5's U-Net, or a narrower one to try the benchmark with."""
    with torch.device("meta"):
        made = THEIRS.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    made = made.to_empty(device="cpu").eval().requires_grad_(False)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02
    for parameter in made.parameters():
        parameter.copy_(block.repeat(-(-parameter.numel() // block.numel()))[: parameter.numel()].view_as(parameter))
    return made


def adapter(network: nn.Module, path: Path, seed: int) -> Path:
    """A LoRA file in the form diffusers writes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in network.named_modules():
        if name.endswith(LAYERS) and "attentions" in name:
            out, rest = layer.weight.shape[0], tuple(layer.weight.shape[1:])
            down, up = (RANK, *rest), (out, RANK, *[1] * (len(rest) - 1))
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(down, generator=generator) * 0.02
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(up, generator=generator) * 0.02
    save_file(tensors, path)
    return path


def timed(function: Callable[[], object], runs: int) -> float:
    """Milliseconds of processor time of the middle one of some runs."""
    found = []
    for _ in range(runs):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return statistics.median(found) * 1e3


def resident() -> float:
    """Megabytes the process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="for a machine")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--width", type=int, default=320, help="320 is Stable Diffusion 1.5")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.filterwarnings("ignore")
    THEIRS.utils.logging.set_verbosity_error()
    folder = Path(tempfile.mkdtemp())
    network = unet(arguments.width)
    files = [adapter(network, folder / f"{k}.safetensors", k) for k in range(10)]
    figures, theirs = measure(network, files, arguments.runs)
    claims = {
        "activate": figures["activate"] <= 20,
        "strength": figures["strength"] <= 5,
        "forward": figures["forward"] <= 1.15,
        "load": figures["load"] <= theirs["load"] / 2,
        "switch": figures["switch"] < 32,
    }
    if arguments.json:
        print(json.dumps({"sdkit": figures, "diffusers": theirs, "claims": claims}, indent=2))
    else:
        report(figures, theirs, claims)
    raise SystemExit(0 if all(claims.values()) else 1)


def report(figures: dict[str, float], theirs: dict[str, float], claims: dict[str, bool]) -> None:
    texts = {
        "load": ("load from disk, ms", "at most half"),
        "activate": ("activate again, ms", "at most 20"),
        "strength": ("change strength, ms", "at most 5"),
        "forward": ("forward over bare", "at most 1.15"),
        "merged": ("forward merged over bare", ""),
        "switch": ("100 switches, MB more", "less than 32"),
    }
    print(f"{'':26}{'sdkit':>10}{'diffusers':>12}  claim")
    for name, (text, claim) in texts.items():
        other = f"{theirs[name]:12.2f}" if name in theirs else " " * 12
        verdict = "" if name not in claims else "ok" if claims[name] else "NOT HELD"
        print(f"{text:26}{figures[name]:10.2f}{other}  {claim} {verdict}")
    print(f"bare forward {theirs['bare']:.0f} ms")


def measure(network: Any, files: list[Path], runs: int) -> tuple[dict[str, float], dict[str, float]]:
    schedule = sdkit.scaled_linear()
    denoiser = sdkit.NetworkDenoiser(Network(network), sdkit.Epsilon(), schedule)
    none: Any = None
    spec = sdkit.ModelSpec("bench", "sd15", sdkit.LatentSpec(4, 8, (256, 256)))
    model = sdkit.Model(spec, none, denoiser, none, schedule)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 32, 32, generator=generator)
    states = torch.randn(1, 77, 768, generator=generator)
    level = schedule.level(500)
    ours: dict[str, float] = {}

    def activate(number: int, strength: float = 1.0) -> None:
        with on(model, Lora(str(files[number]), strength)):
            pass

    def load() -> None:
        forget()
        activate(0)

    KeyMap.of({"unet": network})  # of the model, not of a file
    ours["load"] = timed(load, runs)
    activate(1)
    activate(0)
    ours["activate"] = timed(lambda: activate(1), 3 * runs)
    strengths = iter(k / 1000 for k in range(1, 10_000))
    ours["strength"] = timed(lambda: activate(1, next(strengths)), 3 * runs)
    bare, adapted, merged = [], [], []
    with on(model, Lora(str(files[0]))) as one, on(model, Lora(str(files[0]), merge=True)) as two:
        two.denoiser(x, level, states)
        for _ in range(runs):  # in turn, so that what else the machine does falls on all alike
            bare.append(timed(lambda: denoiser(x, level, states), 1))
            adapted.append(timed(lambda: one.denoiser(x, level, states), 1))
            merged.append(timed(lambda: two.denoiser(x, level, states), 1))
    ours["forward"] = statistics.median(adapted) / statistics.median(bare)
    ours["merged"] = statistics.median(merged) / statistics.median(bare)
    ours["switch"] = switching(activate)
    with on(model, Lora(str(files[0]))) as one:
        wanted = one.denoiser(x, level, states)
    theirs = peers(network, files, runs, x, states, wanted, denoiser, level)
    theirs["bare"] = statistics.median(bare)
    return ours, theirs


def switching(activate: Callable[[int], None]) -> float:
    """Megabytes that the second half of a hundred rounds adds."""
    for turn in range(500):
        activate(turn % 10)
    before = resident()
    for turn in range(500):
        activate(turn % 10)
    return resident() - before


def peers(
    network: Any, files: list[Path], runs: int, x: Tensor, states: Tensor, wanted: Tensor, denoiser: Any, level: Any
) -> dict[str, float]:
    """PEFT under diffusers, which writes its layers into the network: it comes last."""
    assert peft.__version__
    pipe = THEIRS.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=network, scheduler=THEIRS.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    found: dict[str, float] = {}
    bare = timed(lambda: denoiser(x, level, states), 3)

    def load() -> None:
        pipe.load_lora_weights(str(files[0].parent), weight_name=files[0].name, adapter_name="a")

    times = []
    for _ in range(min(runs, 3)):
        times.append(timed(load, 1))
        pipe.unload_lora_weights()
    found["load"] = statistics.median(times)
    load()
    pipe.load_lora_weights(str(files[1].parent), weight_name=files[1].name, adapter_name="b")
    names = iter(["a", "b"] * 1000)
    found["activate"] = timed(lambda: pipe.set_adapters([next(names)]), runs)
    strengths = iter(k / 1000 for k in range(1, 10_000))
    found["strength"] = timed(lambda: pipe.set_adapters(["a"], adapter_weights=[next(strengths)]), runs)
    pipe.set_adapters(["a"], adapter_weights=[1.0])
    difference = float((denoiser(x, level, states) - wanted).abs().max() / wanted.abs().max())
    assert difference < 1e-3, f"sdkit and diffusers differ by {difference:.1e}: the comparison would mean nothing"
    found["forward"] = timed(lambda: denoiser(x, level, states), runs) / bare
    return found


if __name__ == "__main__":
    main()

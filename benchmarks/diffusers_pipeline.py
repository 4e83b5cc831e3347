"""Whole pictures by sdkit and by diffusers, same networks: `python benchmarks/diffusers_pipeline.py`.

A Stable Diffusion 1.5 in its real size (860 million parameters in the U-Net) with random weights, on the CPU. One
process holds the networks once, and three ways take turns to go from text to a Pillow image: the bare calls of the
networks that cannot be avoided, sdkit's pipeline, and diffusers' pipeline; same noise, same levels, same guidance in
one batch of two. Their order changes from run to run, the figures are of processor time, so that what else the machine
does matters less, and both pipelines must give the same picture by the same calls of U-Net and decoder.

The claims: sdkit takes at most as long as diffusers, and at most 1.02 of the bare calls. Seconds in the networks differ
by some percent between runs of the very same calls, more than what is claimed. So the claims are judged twice. By whole
times: paired differences of one round each, summed; a claim fails if its excess is above twice its standard error. And
by what is left outside the networks' calls, which noise does not bury: sdkit's share must be at most that of diffusers,
and at most 0.02 of the bare calls. Exit status 1 if a claim fails. The last columns are what one saves by leaving work
out: prompts that were encoded before, and guidance on a part of the way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor

import sdkit
from sdkit_diffusers.autoencoder import Autoencoder
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.sd import PromptEncoder
from sdkit_diffusers.text import TextEncoder
from sdkit_diffusers.tokens import clip_tokenizer
from sdkit_diffusers.unet import UNet

PROMPT, NEGATIVE, SCALE = "a red fox in the snow, in the evening", "blurry", 7.5
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OF_DIFFUSERS, OF_BARE = 1.0, 1.02
THEIRS: Any = diffusers  # It is untyped.


def networks(small: bool) -> dict[str, Any]:
    """The three networks with random weights; ``small`` is for a test of this script."""
    torch.manual_seed(0)
    width = 64 if small else 768
    text = transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2 if small else 12,
        num_attention_heads=width // 64, projection_dim=width, bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    levels = (32, 32, 32, 64) if small else (320, 640, 1280, 1280)
    made = {
        "unet": THEIRS.UNet2DConditionModel(
            sample_size=64, block_out_channels=levels, cross_attention_dim=width, attention_head_dim=8
        ),
        "vae": THEIRS.AutoencoderKL(
            block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=0.18215, sample_size=512,
        ),
        "text": transformers.CLIPTextModel(text),
    }  # fmt: skip
    return {name: network.eval().requires_grad_(False) for name, network in made.items()}


def ours(parts: dict[str, Any], grid: sdkit.Grid) -> sdkit.Pipeline[Any, Any, Any]:
    latent = sdkit.LatentSpec(4, 8, (512, 512))
    placement = Placement("cpu", tuple(parts.values()))
    encoder = PromptEncoder(TextEncoder(parts["text"], clip_tokenizer(), placement))
    denoiser = sdkit.NetworkDenoiser(UNet(parts["unet"], placement), sdkit.Epsilon(), sdkit.scaled_linear())
    return sdkit.Pipeline(
        encoder, denoiser, sdkit.Ddim(), Autoencoder(parts["vae"], latent, placement, scale=0.18215), spacing=grid,
        spec=sdkit.ModelSpec("benchmark", "sd1", latent),
    )  # fmt: skip


def theirs(parts: dict[str, Any]) -> Any:
    model = json.loads(clip_tokenizer().backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    tokenizer = transformers.CLIPTokenizer(
        vocab=model["vocab"], merges=merges, model_max_length=77,
        pad_token="<|endoftext|>",
    )  # fmt: skip
    scheduler = THEIRS.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=1
    )
    pipe = THEIRS.StableDiffusionPipeline(
        vae=parts["vae"], text_encoder=parts["text"], tokenizer=tokenizer, unet=parts["unet"], scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def bare(parts: dict[str, Any], rows: Tensor, noise: Tensor, grid: sdkit.Grid) -> Tensor:
    """The calls that cannot be avoided, on numbers of the same size; nothing between them."""
    states = parts["text"](rows).last_hidden_state
    x = noise.repeat(2, 1, 1, 1)
    for level in grid[:-1]:
        made = parts["unet"](x, torch.full((2,), level.t), states, return_dict=False)[0]
    decoded: Tensor = parts["vae"].decode(made[:1], return_dict=False)[0]
    return decoded


class Watch:
    """Seconds inside the networks, and which calls there were; hooks on the networks that all ways share.

    Args:
        parts: The networks.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self.inside, self.calls = 0.0, []  # type: ignore[var-annotated]
        self._began = 0.0
        vae = parts["vae"]
        watched = {"text": parts["text"], "unet": parts["unet"], "decoder": vae.decoder, "quant": vae.post_quant_conv}
        for name, network in watched.items():
            network.register_forward_pre_hook(self._enter)
            network.register_forward_hook(lambda _, given, made, name=name: self._leave(name, given))

    def reset(self) -> None:
        """Forget what was seen."""
        self.inside, self.calls = 0.0, []

    def _enter(self, *_: Any) -> None:
        self._began = time.process_time()

    def _leave(self, name: str, given: Any) -> None:
        self.inside += time.process_time() - self._began
        self.calls.append((name, tuple(given[0].shape) if given else ()))

    @property
    def pictures(self) -> list[Any]:
        """The calls of U-Net and decoder: texts may be encoded in one batch or in two."""
        return [call for call in self.calls if call[0] in ("unet", "decoder")]


@attrs.frozen
class Times:
    """Seconds of processor time, one entry per round.

    Attributes:
        whole: Of the whole way.
        outside: Of it, outside the networks.
    """

    whole: list[float] = attrs.field(factory=list)
    outside: list[float] = attrs.field(factory=list)


def timed(
    ways: dict[str, Callable[[], Any]], runs: int, watch: Watch
) -> tuple[dict[str, Times], dict[str, Any], dict[str, list[Any]]]:
    """Times of each way, in turn; what each gave last; and which calls of U-Net and decoder it made."""
    took, calls = {name: Times() for name in ways}, {}
    gave: dict[str, Any] = {}
    for run in range(runs):
        names = list(ways)
        for name in names[run % len(names) :] + names[: run % len(names)]:
            watch.reset()
            began = time.process_time()
            gave[name] = ways[name]()
            whole = time.process_time() - began
            took[name].whole.append(whole)
            took[name].outside.append(whole - watch.inside)
            calls[name] = watch.pictures
    return took, gave, calls


def excess(ours: Sequence[float], theirs: Sequence[float], most: float) -> tuple[float, float]:
    """How much ``ours`` is above ``most`` of ``theirs``, of paired rounds: the mean, and its standard error."""
    differences = [one - most * other for one, other in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        return differences[0], float("inf")
    return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def judged(found: dict[str, Times]) -> list[tuple[str, str, bool]]:
    """(claim, what was seen, whether it fails) of every claim."""
    bare, mine, peer = (found[name] for name in ("bare", "sdkit", "diffusers"))
    rows = []
    for claim, ours, theirs, most in (
        ("whole, at most diffusers", mine.whole, peer.whole, OF_DIFFUSERS),
        ("whole, at most 1.02 of bare", mine.whole, bare.whole, OF_BARE),
        ("outside, at most diffusers", mine.outside, peer.outside, OF_DIFFUSERS),
        ("outside, at most 0.02 of bare", mine.outside, bare.whole, OF_BARE - 1),
    ):
        mean, error = excess(ours, theirs, most)
        fails = mean > 2 * error
        verdict = "FAILS" if fails else "holds" if mean + 2 * error <= 0 else "not shown, nor its contrary"
        rows.append((claim, f"{1e3 * mean:+9.1f} +- {2e3 * error:.1f} ms: {verdict}", fails))
    return rows


class Kept:
    """An encoder that remembers: the same protocol again, as anybody may write it around a pipeline's encoder."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.known = encoder, {}  # type: ignore[var-annotated]

    def __call__(self, prompts: Sequence[str], /) -> Any:
        """What the encoder gave for them the first time."""
        key = tuple(prompts)
        if key not in self.known:
            self.known[key] = self.encoder(prompts)
        return self.known[key]


def measured(parts: dict[str, Any], side: int, steps: int, runs: int, watch: Watch) -> dict[str, Times]:
    schedule = sdkit.scaled_linear()
    pipe_of_diffusers = theirs(parts)
    pipe_of_diffusers.scheduler.set_timesteps(steps)
    times = [float(t) for t in pipe_of_diffusers.scheduler.timesteps]
    grid = (*(schedule.level(t) for t in times), schedule.clean)
    pipe = ours(parts, grid)
    request = sdkit.Request(PROMPT, negative=NEGATIVE, guidance=SCALE, size=(side, side), seeds=(1,))
    noise = sdkit.AddressedNoise(1).initial(torch.empty(1, 4, side // 8, side // 8))
    rows = clip_tokenizer()([PROMPT, NEGATIVE])
    middle = (grid[steps // 2].noise_to_signal, float("inf"))
    kept = attrs.evolve(pipe, encoder=Kept(pipe.encoder))
    kept(attrs.evolve(request, size=(128, 128)))
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(parts, rows, noise, grid),
        "sdkit": lambda: pipe(request).images[0],
        "diffusers": lambda: pipe_of_diffusers(
            PROMPT, negative_prompt=NEGATIVE, guidance_scale=SCALE, num_inference_steps=steps, height=side, width=side,
            latents=noise * grid[0].sigma,
        ).images[0],
        "text kept": lambda: kept(request).images[0],
        "guidance on the first half": lambda: pipe(
            attrs.evolve(request, guidance_interval=(middle[0] * 1.0001, middle[1]))
        ).images[0],
    }  # fmt: skip
    found, gave, calls = timed(ways, runs, watch)
    difference = np.abs(np.asarray(gave["sdkit"], dtype=int) - np.asarray(gave["diffusers"], dtype=int))
    if difference.max() > 2:
        raise SystemExit(f"The pictures differ by up to {difference.max()} of 255: this compares different things.")
    if not calls["sdkit"] == calls["diffusers"] == calls["bare"]:
        raise SystemExit(f"The calls differ: {calls}")
    return found


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--runs", type=int, default=3)
    reader.add_argument("--steps", type=int, default=2)
    reader.add_argument("--sides", type=int, nargs="+", default=[256, 512], metavar="PIXELS")
    reader.add_argument("--small", action="store_true", help="tiny networks, to try the script; no claims")
    reader.add_argument("--json", action="store_true")
    given = reader.parse_args()
    warnings.simplefilter("ignore")
    for library in (transformers, THEIRS.utils):
        library.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    parts = networks(given.small)
    watch = Watch(parts)
    measured(parts, 128, 1, 1, watch)  # first calls load code
    found = {side: measured(parts, side, given.steps, given.runs, watch) for side in given.sides}
    claims = {side: judged(times) for side, times in found.items()}
    if given.json:
        seconds = {side: {name: attrs.asdict(one) for name, one in times.items()} for side, times in found.items()}
        print(json.dumps({"load": os.getloadavg(), "seconds": seconds, "claims": claims}, indent=2))
    else:
        print(f"{given.steps} steps, medians of {given.runs}, load {os.getloadavg()[0]:.1f}\n")
        print("pixels   bare s  sdkit s  diffusers s  of diffusers  of bare  text kept  half guided")
        for side, times in found.items():
            s = {name: statistics.median(one.whole) for name, one in times.items()}
            print(
                f"{side:6}  {s['bare']:7.2f}  {s['sdkit']:7.2f}  {s['diffusers']:11.2f}  "
                f"{s['sdkit'] / s['diffusers']:12.3f}  {s['sdkit'] / s['bare']:7.3f}  "
                f"{s['text kept'] / s['sdkit']:9.3f}  {s['guidance on the first half'] / s['sdkit']:11.3f}"
            )
        print("\nper picture outside the networks, medians")
        for side, times in found.items():
            bare_s = statistics.median(times["bare"].whole)
            out = {name: statistics.median(times[name].outside) for name in ("bare", "sdkit", "diffusers")}
            print(f"{side:6}  " + "  ".join(f"{n} {1e3 * x:.1f} ms ({x / bare_s:.2%})" for n, x in out.items()))
        for side, rows in claims.items():
            print(f"\n{side} pixels, mean excess over the claim with twice its standard error")
            for claim, seen, _ in rows:
                print(f"  {claim:30} {seen}")
    failed = [f"{claim} at {side} pixels" for side, rows in claims.items() for claim, _, fails in rows if fails]
    if failed and not given.small:
        raise SystemExit(f"over the claims: {'; '.join(failed)}")


if __name__ == "__main__":
    main()

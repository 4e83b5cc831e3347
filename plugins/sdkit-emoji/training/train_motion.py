"""Train the motion module by flow matching on clips of animated drawings, the image model frozen.

Clips are encoded once. An item is a clip of 16 frames, or the same clip at 8 frames twice with different noise and
level; it begins at any frame, since a loop has no first one. Its noise lies on the circle that clips are sampled from
(`sdkit_emoji.motion.circle`). Motion layers stand in the middle of the U-Net and behind, so what comes before needs no
gradients. Levels, loss, averages and the loop that can be resumed are those of sdkit-training.

Output in ``--out``: ``motion.safetensors`` (averaged weights as float16, how they are built in the header), and
``checkpoint.safetensors`` to go on from. To use it: ``sdkit animate 'emoji-motion(motion="OUT/motion.safetensors")'``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from captions import caption
from common import add_arguments, add_precision, channels_last, trained
from export import half
from pace import follow, paced
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from train_denoiser import Texts

from sdkit import Flow, RectifiedFlow, take
from sdkit_emoji.front import WEIGHTS
from sdkit_emoji.motion import TRAVEL, Motion, Moving, circle, digest, layers_for
from sdkit_emoji.networks import Autoencoder, TextStates, UNet
from sdkit_training import LogitNormal, Plan, Training, losses, normals, order, uniforms

FORMS = 8  # captions written for each clip
TIMES = LogitNormal(mean=0.4, std=1.0)  # what moves where is decided in much noise
TRIAL = 12  # steps made to measure the speed, with --minutes
SHORT = 0.75  # share of items that are clips of half as many frames, twice


@torch.no_grad()
def encoded(autoencoder: Autoencoder, clips: Path, kept: Path) -> Tensor:
    """Latents (n, f, channels, h / 8, w / 8) of a file of clips (n, f, h, w, 3) uint8, on the CPU.

    They are kept in the file ``kept``, which is used again while autoencoder and clips are the same.
    """
    content = hashlib.sha256(clips.read_bytes()).hexdigest() + digest(list(autoencoder.state_dict().values()))
    if kept.exists():
        with safe_open(kept, "pt") as opened:
            if (opened.metadata() or {}).get("of") == content:
                found: Tensor = opened.get_tensor("latents")
                return found
    images = (torch.from_numpy(np.array(clip)).permute(0, 3, 1, 2) for clip in np.load(clips, mmap_mode="r"))
    latents = torch.stack([autoencoder.encode(clip.float() / 255) for clip in tqdm(images, mininterval=10)])
    save_file({"latents": latents.contiguous()}, kept, {"of": content})
    return latents


@frozen(eq=False)
class Lessons:
    """What is drawn for every item, a function of the step and the item's number alone.

    Attributes:
        latents: Of the clips, (n, f, channels, h, w).
        bank: Text states of all captions.
        forms: Captions of each clip, (n, `FORMS`).
        empty: Text state of the empty caption.
        drop: Share of captions that are dropped to it.
        travel: See `sdkit_emoji.motion.circle`.
        seed: Of all draws.
    """

    latents: Tensor
    bank: TextStates
    forms: Tensor
    empty: TextStates
    drop: float
    travel: float
    seed: int

    def item(self, step: int, row: int, batch: int) -> tuple[Tensor, Tensor, list[float], TextStates, int]:
        """Clean latents (f, ...), noise, one level's share per frame, text states and the frames of a clip."""
        count, frames = self.latents.shape[:2]
        number = step * batch + row
        clip = order(self.seed, "clips", count, number, number + 1)[0]
        kind, phase, form, dropped, *shares = uniforms(self.seed, f"item {number}", 6)
        x0 = self.latents[clip].roll(int(phase * frames), 0)
        pieces = 2 if kind < SHORT and frames % 2 == 0 else 1
        if pieces == 2:
            x0 = torch.cat([x0[::2], x0[1::2]])
        length = frames // pieces
        weights_ = circle(length, self.travel).float()
        bases = normals(self.seed, f"noise {number}", pieces, weights_.shape[1], *x0.shape[1:])
        noise = torch.einsum("fk,pkchw->pfchw", weights_, bases).flatten(0, 1)
        said = int(self.forms[clip, int(form * self.forms.shape[1])])
        told = self.empty if dropped < self.drop else take(self.bank, [said])
        cond = TextStates(*(part.expand(len(x0), *part.shape[1:]) for part in (told.tokens, told.mask, told.pooled)))
        return x0, noise, [shares[k // length] for k in range(len(x0))], cond, length


@torch.no_grad()
def gained(unet: UNet, motion: Motion, lessons: Lessons, count: int = 12) -> tuple[float, float]:
    """Mean loss of the image model alone and with motion, on the same items: known clips with noise of another seed."""
    others, found = evolve(lessons, seed=lessons.seed + 1), []
    for number in range(count):
        x0, noise, shares, cond, frames = others.item(number, 0, 1)
        levels = [TIMES(RectifiedFlow(), share) for share in shares]
        kinds = [Moving(unet, each, frames) for each in (None, motion)]
        found.append([float(losses(kind, Flow(), x0, noise.to(x0), levels, cond).mean()) for kind in kinds])
    alone, moved = np.mean(found, axis=0)
    return float(alone), float(moved)


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """The motion module as float16.

    Raises:
        ValueError: a value does not fit float16.
    """
    save_file(half(tensors), path, {"motion": json.dumps(about)})
    path.chmod(0o644)  # safetensors writes for the owner alone


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=4000, batch=1, rate=1e-3)
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of exported weights of the image model")
    parser.add_argument("--start", type=Path, help="motion.safetensors to start from, of another image model maybe")
    parser.add_argument("--drop", type=float, default=0.1, help="share of captions dropped to the empty one")
    parser.add_argument("--decay", type=float, default=0.4, help="last share of the training, in which the rate falls")
    parser.add_argument("--travel", type=float, default=TRAVEL, help="share of the noise that differs between frames")
    add_precision(parser)
    parser.add_argument("--save-minutes", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--muon", action="store_true", help="change matrices by Muon, not by AdamW")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    autoencoder = trained(Autoencoder, arguments.model, "autoencoder", torch.device("cpu"))
    latents = encoded(autoencoder, arguments.data / "clips.npy", arguments.out / "latents.safetensors").to(device)
    about = json.loads((arguments.data / "clips.json").read_text(encoding="utf-8"))
    texts, writing = Texts(arguments.model, device), np.random.default_rng(arguments.seed)
    written = [[caption(one, writing) for _ in range(FORMS)] for one in about]
    unique = sorted({text for forms in written for text in forms})
    place = {text: index for index, text in enumerate(unique)}
    forms = torch.tensor([[place[text] for text in row] for row in written])
    lessons = Lessons(latents, texts(unique), forms, texts([""]), arguments.drop, arguments.travel, arguments.seed)

    unet = channels_last(trained(UNet, arguments.model, "denoiser", device), device)
    config = {"layers": layers_for(unet)}
    motion, shadow = Motion(config["layers"]).to(device), Motion(config["layers"]).to(device).requires_grad_(False)
    if arguments.start is not None:
        from sdkit_emoji.motion import load_motion

        motion.load_state_dict(load_motion(arguments.start, unet).state_dict())
    schedule, flow = RectifiedFlow(), Flow()
    facts = {"image_model": digest(list(unet.state_dict().values())), "clips": len(latents), "travel": arguments.travel}
    print(f"{len(latents)} clips {tuple(latents.shape)}, mean {latents.mean():.3f} std {latents.std():.3f}")

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=40,
        decay=arguments.decay,
        weight_decay=0.01,
        average=0.995,
    )

    def network(frames: int) -> Callable[[Tensor, Tensor, TextStates], Tensor]:
        moving = Moving(unet, motion, frames)

        def run(x: Tensor, times: Tensor, cond: TextStates) -> Tensor:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
                return moving(x, times, cond).float()

        return run

    def objective(step: int, rows: range) -> Tensor:
        total = torch.zeros((), device=device)
        for row in rows:
            x0, noise, shares, cond, frames = lessons.item(step, row, plan.batch)
            x0 = x0.contiguous(memory_format=torch.channels_last)
            levels = [TIMES(schedule, share) for share in shares]
            total = total + losses(network(frames), flow, x0, noise.to(device), levels, cond).mean()
        return total / len(rows)

    parameters: dict[str, Tensor] = dict(motion.named_parameters())
    path = arguments.out / "checkpoint.safetensors"
    muon = [name for name, value in parameters.items() if value.ndim > 1] if arguments.muon else []
    plan = paced(objective, parameters, plan, arguments, trial=TRIAL, muon=muon)
    training = Training(parameters, objective, plan, {**facts, "seed": arguments.seed}, muon=muon)
    if arguments.resume:
        training.restore(path)
    print(f"{sum(value.numel() for value in parameters.values()) / 1e6:.2f} M parameters, {plan}", flush=True)

    def keep(loss: float) -> str:
        training.save(path)
        told = {"config": config, **facts, "step": training.step, "loss": round(loss, 5)}
        write(arguments.out / "motion.safetensors", training.weights, told)
        shadow.load_state_dict(training.weights)
        alone, moved = gained(unet, shadow, lessons)
        return f"same items: image model alone {alone:.4f}, with motion {moved:.4f}"

    follow(training, keep, minutes=arguments.save_minutes, share=arguments.share)


if __name__ == "__main__":
    main()

"""Distil the denoiser into four steps without guidance: a low-rank change of its weights.

The denoiser's own way from noise to a latent, in many steps and with guidance, is followed once for many captions; the
change learns to walk each quarter of it in one step (progressive distillation in one stage: Salimans and Ho 2022,
https://arxiv.org/abs/2202.00512; guidance distilled with it: Meng et al. 2023, https://arxiv.org/abs/2210.03142). The
scheduler stays `euler` with four steps. A change of low rank (Hu et al. 2021, https://arxiv.org/abs/2106.09685) is a
twentieth of the weights; its file is a LoRA in diffusers' form, so that it can be put on the model like any other.

Output in ``--out``: ``turbo.safetensors`` (averaged, float16), ``checkpoint.safetensors`` to go on from, and
``ways.safetensors``, the latents at the ends of the quarters, which are made once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import COLOURS, caption
from common import add_arguments, add_precision, channels_last, load_pictures, trained
from export import half
from pace import follow, paced
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm
from train_denoiser import COLOURED, Texts, read_concepts, walk

from sdkit import take
from sdkit_emoji.front import WEIGHTS
from sdkit_emoji.networks import TextStates, UNet
from sdkit_training import Plan, Training, normals, uniforms

STEPS = 4  # of the distilled model
TRIAL = 20  # steps made to measure the speed, with --minutes
SHAKEN = (
    0.05  # deviation of the noise put on where a quarter begins: the distilled model's own way is not quite this one
)


def factors(unet: UNet, rank: int, seed: int) -> dict[str, Tensor]:
    """``NAME.down`` (rank, in, ...) and ``NAME.up`` (out, rank) of every linear layer and convolution; ``up`` is 0."""
    found: dict[str, Tensor] = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            inner = min(rank, layer.weight.shape[0], layer.weight[0].numel())
            scale = layer.weight[0].numel() ** -0.5
            found[f"{name}.down"] = normals(seed, f"down {name}", inner, *layer.weight.shape[1:]) * scale
            found[f"{name}.up"] = torch.zeros(layer.weight.shape[0], inner)
    return {name: value.requires_grad_() for name, value in found.items()}


def changed(unet: UNet, low: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's parameters with the change added."""
    found: dict[str, Tensor] = dict(unet.named_parameters())
    for name in [name.removesuffix(".up") for name in low if name.endswith(".up")]:
        weight = found[f"{name}.weight"]
        found[f"{name}.weight"] = weight + (low[f"{name}.up"] @ low[f"{name}.down"].flatten(1)).view_as(weight)
    return found


def written(data: Path, concepts: Path, count: int, seed: int) -> list[str]:
    """``count`` captions as the denoiser was taught with."""
    _, captions = load_pictures(data)
    listed = read_concepts(concepts, {one["label"] for one in captions})
    entries = [one for one in captions if one["label"] in listed]
    random = np.random.default_rng(seed)
    chosen = [entries[index] for index in random.permutation(np.resize(np.arange(len(entries)), count))]
    colours = [random.choice(list(COLOURS)) if random.random() < COLOURED else None for _ in chosen]
    return [caption(one, random, colour) for one, colour in zip(chosen, colours, strict=True)]


def ways(network: Any, cond: TextStates, empty: TextStates, noise: Tensor, steps: int, guidance: float) -> Tensor:
    """Latents (n, STEPS + 1, ...) at the ends of the quarters, the noise first; Euler with guidance, equal steps."""
    walked = [noise, *walk(network, cond, empty, noise, steps, guidance)]
    return torch.stack(walked[:: steps // STEPS], 1)


def write(path: Path, low: Mapping[str, Tensor], rank: int) -> None:
    """The change as a LoRA in diffusers' form, float16."""
    named = {
        f"unet.{name.removesuffix('.down')}.lora_A.weight"
        if name.endswith(".down")
        else f"unet.{name.removesuffix('.up')}.lora_B.weight": value
        for name, value in low.items()
    }
    # the second factor of a convolution is one of 1 x 1
    named = {
        name: value[..., None, None] if "lora_B" in name and named[name.replace("_B", "_A")].ndim == 4 else value
        for name, value in named.items()
    }
    about = {"unet.r": rank, "unet.lora_alpha": float(rank), "steps": STEPS}
    save_file(half(named), path, {"lora_adapter_metadata": json.dumps(about, sort_keys=True)})
    path.chmod(0o644)  # safetensors writes for the owner alone


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=2000, batch=32, rate=1e-3)
    add_precision(parser)
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of exported weights")
    parser.add_argument("--concepts", type=Path, required=True, help="the list the denoiser was trained on")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ways", type=int, default=3000, help="captions whose way is followed")
    parser.add_argument("--way-steps", type=int, default=16, help="steps of a way, a multiple of 4")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the ways")
    parser.add_argument("--save-minutes", type=float, default=4, help="minutes between checkpoints")
    arguments = parser.parse_args()
    if arguments.way_steps % STEPS:
        parser.error(f"--way-steps is a multiple of {STEPS}, not {arguments.way_steps}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    texts = Texts(arguments.model, device)
    prompts = written(arguments.data, arguments.concepts, arguments.ways, arguments.seed)
    cond, empty = texts(prompts), texts([""])
    unet = channels_last(trained(UNet, arguments.model, "denoiser", device), device)

    def run(parameters: dict[str, Tensor], x: Tensor, times: Tensor, told: TextStates) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
            found: Tensor = functional_call(unet, parameters, (x, times, told))
        return found.float()

    own = dict(unet.named_parameters())
    facts = {name: getattr(arguments, name) for name in ("ways", "way_steps", "guidance", "seed")}
    kept = arguments.out / "ways.safetensors"
    told = json.dumps({**facts, "prompts": prompts})
    if kept.exists():
        with safe_open(kept, "pt") as opened:
            same = (opened.metadata() or {}).get("of") == told
            walked = opened.get_tensor("ways") if same else None
    else:
        walked = None
    if walked is None:
        shape = (unet.first.in_channels, 16, 16)
        found = []
        for first in tqdm(range(0, len(prompts), 32), desc="ways", mininterval=10):
            rows = slice(first, min(first + 32, len(prompts)))
            noise = normals(arguments.seed, f"way {first}", rows.stop - first, *shape).to(device)
            found.append(
                ways(
                    lambda x, times, told: run(own, x, times, told),
                    take(cond, rows),
                    empty,
                    noise,
                    arguments.way_steps,
                    arguments.guidance,
                )
            )
        walked = torch.cat(found)
        save_file({"ways": walked.cpu().contiguous()}, kept, {"of": told})
    walked = walked.to(device)
    low = factors(unet, arguments.rank, arguments.seed)
    test = slice(0, min(64, len(walked) // 8))  # ways that are not learned

    def loss_of(change: Mapping[str, Tensor], rows: Tensor, quarter: Tensor, shake: Tensor) -> Tensor:
        """Mean square of what is wrong in the flow; rows and quarters (b,)."""
        before = walked[rows, quarter] + shake
        aim = (before - walked[rows, quarter + 1]) * STEPS
        return (
            (run(changed(unet, change), before, 1 - quarter / STEPS, take(cond, rows.tolist())) - aim).square().mean()
        )

    def objective(step: int, rows: range) -> Tensor:
        drawn = np.array(uniforms(arguments.seed, f"step {step} from {rows.start}", 2 * len(rows))).reshape(2, -1)
        chosen = torch.from_numpy(test.stop + (drawn[0] * (len(walked) - test.stop)).astype(int))
        quarter = torch.from_numpy((drawn[1] * STEPS).astype(int))
        shake = SHAKEN * normals(arguments.seed, f"shake {step} from {rows.start}", len(rows), *walked.shape[2:])
        return loss_of(low, chosen, quarter, shake.to(device))

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=50,
        decay=0.6,
        weight_decay=0.0,
        average=0.995,
    )
    plan = paced(objective, low, plan, arguments, trial=TRIAL)
    training = Training(low, objective, plan, {**facts, "rank": arguments.rank})
    path = arguments.out / "checkpoint.safetensors"
    if arguments.resume:
        training.restore(path)
    print(f"{len(prompts)} ways, {sum(value.numel() for value in low.values()) / 1e6:.2f} M parameters, {plan}")

    @torch.no_grad()
    def keep(loss: float) -> str:
        training.save(path)
        write(arguments.out / "turbo.safetensors", training.weights, arguments.rank)
        # the whole way of captions that were not learned, in four steps
        x = walked[test, 0]
        change = changed(unet, training.weights)
        for quarter in range(STEPS):
            times = torch.full((len(x),), 1 - quarter / STEPS, device=device)
            x = x - run(change, x, times, take(cond, test)) / STEPS
        return f"distance to the end of other ways {float((x - walked[test, -1]).square().mean()):.4f}"

    follow(training, keep, minutes=arguments.save_minutes, share=arguments.share)


if __name__ == "__main__":
    main()

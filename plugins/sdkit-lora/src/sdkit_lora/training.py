"""Training of LoRAs: thin factors beside frozen weights, learned from captioned pictures.

The factors act through the same `Bypass` that applies an adapter, so what is trained is what is used, and no weight of
the model is written. Noising, target, weights and loop are those of `sdkit_training`.

Notation: ``y = W x + alpha / rank * up (down x)``; ``down`` starts as normal numbers of variance 1 / in, ``up`` as
zeros, so that a training begins at the model itself (Hu et al. 2021, https://arxiv.org/abs/2106.09685). Prior
preservation adds the loss of pictures of the model's own making, so that it does not forget them (Ruiz et al. 2022,
https://arxiv.org/abs/2208.12242).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from safetensors.torch import save
from torch import Tensor, nn

import sdkit
from sdkit import FileError, Model, NetworkDenoiser, ParameterError, concatenate, take
from sdkit_lora.applying import Active, Bypass, Table
from sdkit_lora.deltas import LowRank
from sdkit_lora.errors import AdapterError
from sdkit_lora.files import write_whole
from sdkit_lora.keys import DENOISERS, KeyMap, Place, inside, targets
from sdkit_training import (
    Example,
    MinSnr,
    Plain,
    Plan,
    Progress,
    Training,
    fingerprint,
    load_images,
    losses,
    normals,
    order,
    read_folder,
    times_for,
    uniforms,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Session", "Settings", "before_and_after", "train"]

WHICH = ("unet", "text", "both")
PREFIXES = {"unet": "lora_unet_", "transformer": "lora_unet_"}


@frozen
class Settings:
    """What is learned, and how.

    Attributes:
        rank: Inner dimension of the factors.
        alpha: Scale ``alpha / rank``; None is the rank, a scale of 1.
        targets: ``"unet"`` (the denoiser, whatever it is), ``"text"`` or ``"both"``.
        conv: Whether convolutions are adapted too, not linear layers alone.
        layers: Regular expression that a layer's path must contain, or empty for all.
        plan: How long and how fast.
        min_snr: Gamma of min-SNR weighting, or None for every level alike.
        drop: Share of captions left empty, which guidance needs.
        prior_weight: How much pictures of the prior count.
        seed: Of all that is drawn.
        trigger: Words that are said to call what was learned; stands in the file for people.
        precision: ``"float32"``, or ``"bfloat16"`` for the network's arithmetic (the factors stay float32).
        format: ``"diffusers"`` or ``"kohya"``: how the file names its tensors.

    Raises:
        ParameterError: a value is out of range.
    """

    rank: int = 8
    alpha: float | None = None
    targets: str = "unet"
    conv: bool = False
    layers: str = ""
    plan: Plan = field(factory=Plan)
    min_snr: float | None = None
    drop: float = 0.1
    prior_weight: float = 1.0
    seed: int = 0
    trigger: str = ""
    precision: str = "float32"
    format: str = "diffusers"

    def __attrs_post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or not 1 <= self.rank <= 4096:
            raise ParameterError(f"The rank is a whole number from 1 to 4096, not {self.rank!r}.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ParameterError(f"alpha is a number above 0, not {self.alpha!r}; leave it out for the rank.")
        if not 0 <= self.drop < 1:
            raise ParameterError(f"The share of captions left empty lies in [0, 1), not {self.drop!r}.")
        if not 0 <= self.prior_weight < math.inf:
            raise ParameterError(f"The weight of the prior is a number from 0 on, not {self.prior_weight!r}.")
        for name, value, known in (
            ("targets", self.targets, WHICH),
            ("precision", self.precision, ("float32", "bfloat16")),
            ("format", self.format, ("diffusers", "kohya")),
        ):
            if value not in known:
                raise ParameterError(f"{name} is {' or '.join(map(repr, known))}, not {value!r}.")
        if self.min_snr is not None:
            MinSnr(self.min_snr)

    @property
    def scale(self) -> float:
        """alpha, or the rank."""
        return float(self.rank if self.alpha is None else self.alpha)


@frozen(eq=False)
class _Pictures:
    """Encoded pictures, and their captions as places in a table of texts."""

    latents: Tensor
    captions: tuple[tuple[int, ...], ...]


class Session:
    """A training of a LoRA: the factors, the data, and the loop (`training`).

    Args:
        model: What is adapted; it is not changed.
        examples: Captioned pictures.
        settings: What is learned, and how.
        prior: Further captioned pictures whose loss keeps the model what it is.
        background: Colour behind transparent pixels, or None to refuse them.

    Raises:
        AdapterError: the model has no layer of the kind that is asked for.
        FileError, InvalidRequest: a picture cannot be used.
    """

    def __init__(
        self,
        model: Model[Any],
        examples: Sequence[Example],
        settings: Settings,
        *,
        prior: Sequence[Example] = (),
        background: str | None = None,
    ) -> None:
        denoiser = inside(model.denoiser)
        if not isinstance(denoiser, NetworkDenoiser) or inside(model.denoiser, deep=False) is not denoiser:
            raise AdapterError(
                f"Models whose denoiser is a {type(inside(model.denoiser, deep=False)).__name__} cannot be trained; "
                "take the base model."
            )
        self.model, self.settings, self._denoiser = model, settings, denoiser
        self.examples = tuple(examples)
        self._keys = KeyMap.of(targets(model.encoder, model.denoiser))
        self.factors = _factors(self._keys, settings, torch.device(model.device))
        self._texts = _texts([*examples, *prior])
        places = {text: k for k, text in enumerate(self._texts)}
        self._pictures = _encoded(model, examples, places, background)
        self._prior = _encoded(model, prior, places, background) if prior else None
        self._words = settings.targets != "unet"
        self._bank = None if self._words else _bank(model, self._texts)
        self._times = times_for(model.schedule)
        self._weighting = Plain() if settings.min_snr is None else MinSnr(settings.min_snr)
        facts = {
            "model": model.spec.name,
            "weights": model.spec.sha256,
            "data": fingerprint(examples),
            "prior": fingerprint(prior) if prior else "",
            **{name: getattr(settings, name) for name in _FACTS},
        }
        self.training = Training(self._parameters(), self._objective, settings.plan, facts)

    def _parameters(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, low in self.factors.items():
            found[f"{place.target}.{place.path}.down"] = low.down
            found[f"{place.target}.{place.path}.up"] = low.up
        return found

    def _objective(self, step: int, rows: range) -> Tensor:
        loss = self._loss(self._pictures, "", step, rows)
        if self._prior is not None and self.settings.prior_weight:
            loss = loss + self.settings.prior_weight * self._loss(self._prior, "prior ", step, rows)
        return loss

    def _loss(self, pictures: _Pictures, name: str, step: int, rows: range) -> Tensor:
        """The mean loss of some rows of a step; all that is drawn is drawn for the whole step, by place."""
        plan, seed = self.settings.plan, self.settings.seed
        whole = plan.batch * plan.accumulate
        cut = slice(rows.start, rows.stop)
        chosen = order(seed, f"{name}order", len(pictures.captions), step * whole, (step + 1) * whole)[cut]
        levels = [self._times(self.model.schedule, u) for u in uniforms(seed, f"{name}level {step}", whole)[cut]]
        x0 = pictures.latents[chosen]
        noise = normals(seed, f"{name}noise {step}", whole, *x0.shape[1:])[cut].to(x0)
        dropped = [u < self.settings.drop for u in uniforms(seed, f"{name}drop {step}", whole)[cut]]
        forms = uniforms(seed, f"{name}caption {step}", whole)[cut]
        texts = [
            0 if drop else pictures.captions[k][int(u * len(pictures.captions[k]))]
            for k, drop, u in zip(chosen, dropped, forms, strict=True)
        ]
        denoiser, kind = self._denoiser, torch.device(self.model.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.settings.precision == "bfloat16"), self._scope():
            return losses(
                denoiser.network,
                denoiser.parametrization,
                x0,
                noise,
                levels,
                self._conditions(texts),
                weighting=self._weighting,
                dtype=denoiser.dtype,
            ).mean()

    def _scope(self) -> Bypass:
        return Bypass(Table.of(self._keys, [Active("", self.factors, 1.0)]))

    def _conditions(self, texts: list[int]) -> Any:
        if self._bank is not None:
            return take(self._bank, texts)
        return self.model.encoder([self._texts[k] for k in texts])

    def save(self, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float16) -> Path:
        """Write the adapter as it is now (its averages, if the plan has them), whole or not at all.

        Raises:
            FileError: it cannot be written.
        """
        weights = self.training.weights
        tensors: dict[str, Tensor] = {}
        for place in self.factors:
            stem, down, up = _names(place, self.settings.format)
            tensors[down] = weights[f"{place.target}.{place.path}.down"].to("cpu", dtype).contiguous()
            tensors[up] = weights[f"{place.target}.{place.path}.up"].to("cpu", dtype).contiguous()
            if self.settings.format == "kohya":
                tensors[f"{stem}.alpha"] = torch.tensor(self.settings.scale)
        return write_whole(Path(path), _in_order(save(tensors, metadata=self._metadata())))

    def _metadata(self) -> dict[str, str]:
        settings, spec = self.settings, self.model.spec
        found = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(settings.rank),
            "ss_network_alpha": f"{settings.scale:g}",
            "ss_base_model_version": spec.family,
            "ss_sd_model_name": spec.name,
            "sshs_model_hash": spec.sha256,
            "ss_steps": str(self.training.step),
            "ss_num_train_images": str(len(self.examples)),
            "ss_trigger_words": settings.trigger,
            "ss_seed": str(settings.seed),
            "ss_learning_rate": f"{settings.plan.learning_rate:g}",
            "ss_min_snr_gamma": "" if settings.min_snr is None else f"{settings.min_snr:g}",
            "modelspec.trigger_phrase": settings.trigger,
            "sdkit.trained_with": f"sdkit {sdkit.__version__}",
        }
        if settings.format == "diffusers":
            config: dict[str, Any] = {}
            for target in dict.fromkeys(place.target for place in self.factors):
                config[f"{target}.r"] = settings.rank
                config[f"{target}.lora_alpha"] = settings.scale
                config[f"{target}.target_modules"] = sorted(p.path for p in self.factors if p.target == target)
            found["lora_adapter_metadata"] = json.dumps(config, sort_keys=True)
        return {name: value for name, value in found.items() if value}


_FACTS = (
    "rank", "alpha", "targets", "conv", "layers", "min_snr", "drop", "prior_weight", "seed", "precision",
)  # fmt: skip
"""Settings that a checkpoint must agree with besides its plan."""


def _factors(keys: KeyMap, settings: Settings, device: torch.device) -> dict[Place, LowRank]:
    """New factors for every layer that is asked for, in the order of the layers."""
    import re

    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d) if settings.conv else (nn.Linear,)
    wanted = re.compile(settings.layers)
    found: dict[Place, LowRank] = {}
    for target, network in keys.modules.items():
        if settings.targets != "both" and (target in DENOISERS) != (settings.targets == "unet"):
            continue
        for path, layer in network.named_modules():
            if not isinstance(layer, kinds) or not wanted.search(path) or getattr(layer, "groups", 1) != 1:
                continue
            found[Place(target, path)] = _new(f"{target}.{path}", layer, settings, device)
    if not found:
        what = "linear layers or convolutions" if settings.conv else "linear layers"
        raise AdapterError(
            f"The model has no {what} in {settings.targets!r} whose path matches {settings.layers!r}; its networks are "
            f"{', '.join(keys.modules) or 'none'}."
        )
    return found


def _new(name: str, layer: nn.Module, settings: Settings, device: torch.device) -> LowRank:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out, rest = weight.shape[0], tuple(weight.shape[1:])
    rank = min(settings.rank, out, math.prod(rest))
    down = normals(settings.seed, f"down {name}", rank, *rest) / math.prod(rest) ** 0.5
    up = torch.zeros(out, rank, *[1] * (len(rest) - 1))
    # a layer thinner than the rank keeps the scale of the others
    alpha = settings.scale * rank / settings.rank
    return LowRank(down.to(device).requires_grad_(), up.to(device).requires_grad_(), alpha=alpha)


def _names(place: Place, form: str) -> tuple[str, str, str]:
    """(stem, key of ``down``, key of ``up``) of a layer's factors in a file."""
    if form == "diffusers":
        stem = f"{place.target}.{place.path}"
        return stem, f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
    number = place.target.removeprefix("text_encoder").removeprefix("_")
    prefix = PREFIXES.get(place.target) or f"lora_te{number}_"
    stem = prefix + place.path.replace(".", "_")
    return stem, f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"


def _in_order(content: bytes) -> bytes:
    """A safetensors file whose metadata stand in the order of their names.

    safetensors writes them in any order, and the same training shall give the same file.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _texts(examples: Sequence[Example]) -> list[str]:
    """Every caption once; the first is the empty one."""
    return list(dict.fromkeys(["", *(text for example in examples for text in example.captions)]))


@torch.no_grad()
def _encoded(
    model: Model[Any], examples: Sequence[Example], places: Mapping[str, int], background: str | None
) -> _Pictures:
    latents = []
    for start in range(0, len(examples), 16):
        images = load_images(examples[start : start + 16], model.spec.latent.size, background=background)
        latents.append(model.autoencoder.encode(images.to(model.device)).float())
    captions = tuple(tuple(places[text] for text in example.captions) for example in examples)
    return _Pictures(torch.cat(latents), captions)


@torch.no_grad()
def _bank(model: Model[Any], texts: Sequence[str]) -> Any:
    """Every text's conditioning, one row each."""
    parts = [model.encoder(texts[start : start + 32]) for start in range(0, len(texts), 32)]
    return concatenate(*parts)


def train(
    model: Model[Any],
    images: str | os.PathLike[str] | Sequence[Example],
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    captions: str | os.PathLike[str] | None = None,
    prior: str | os.PathLike[str] | Sequence[Example] | None = None,
    background: str | None = None,
    resume: bool = False,
    save_every: int = 100,
    on_step: Callable[[Progress], object] | None = None,
) -> Path:
    """Train a LoRA and write it.

    Args:
        model: What is adapted; it is not changed.
        images: A folder of captioned pictures (see `sdkit_training.read_folder`), or the examples.
        out: The ``.safetensors`` file to write.
        settings: What is learned, and how; `Settings` as it is by default.
        captions: File with all captions, else they stand beside the pictures.
        prior: Further captioned pictures whose loss keeps the model what it is.
        background: Colour behind transparent pixels, or None to refuse them.
        resume: Go on from the checkpoint beside ``out``, if there is one.
        save_every: Updates between checkpoints; one is written at an interruption, too.
        on_step: Called after every update.

    Returns:
        The file written.

    Raises:
        FileError: a file cannot be read or written, or a checkpoint is one of another training.
        AdapterError, ParameterError, InvalidRequest: the training cannot be carried out.
    """
    session = Session(
        model,
        _examples(images, captions),
        settings or Settings(),
        prior=_examples(prior, None) if prior is not None else (),
        background=background,
    )
    run(session, out, resume=resume, save_every=save_every, on_step=on_step)
    return session.save(out)


def _examples(
    given: str | os.PathLike[str] | Sequence[Example], captions: str | os.PathLike[str] | None
) -> Sequence[Example]:
    return read_folder(given, captions) if isinstance(given, (str, os.PathLike)) else given


def checkpoint_of(out: str | os.PathLike[str]) -> Path:
    """Where the checkpoint of a training that writes ``out`` stands."""
    path = Path(out)
    return path.with_name(f"{path.stem}.checkpoint.safetensors")


def run(
    session: Session,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    save_every: int = 100,
    on_step: Callable[[Progress], object] | None = None,
) -> None:
    """Train to the end, with checkpoints beside ``out``; the last one is removed at the end.

    Raises:
        FileError: a checkpoint cannot be written, or is one of another training; or there is nothing to resume, since
            the training was finished.
    """
    place, training = checkpoint_of(out), session.training
    if resume and not place.exists() and Path(out).exists():
        raise FileError(
            f"There is no checkpoint {place.name!r} to go on from, and {Path(out).name!r} is there: its training was "
            "finished. To train it again from the start, leave --resume (resume=True) out."
        )
    if resume and place.exists():
        training.restore(place)
    saved = training.step
    try:
        for event in training.run():
            if on_step is not None:
                on_step(event)
            if event.step % save_every == 0 and event.step < event.steps:
                training.save(place)
                saved = event.step
    finally:
        if saved < training.step < session.settings.plan.steps:
            training.save(place)
    place.unlink(missing_ok=True)


def before_and_after(
    model: Model[Any],
    adapter: str | os.PathLike[str],
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int | None = None,
    strength: float = 1.0,
) -> Iterator[tuple[str, Image, Image]]:
    """(prompt, picture without the adapter, picture with it) for each prompt."""
    from sdkit_lora.modifier import Lora

    pipe = sdkit.pipeline(model)
    for prompt in prompts:
        request = sdkit.Request(prompt, seeds=seed, steps=steps)
        bare = pipe(request).images[0]
        adapted = pipe(evolve(request, modifiers=(Lora(os.fspath(adapter), strength),))).images[0]
        yield prompt, bare, adapted

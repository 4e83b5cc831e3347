"""What changes a network from within: FreeU, perturbed-attention guidance, skip-layer guidance.

Each works on a twin of the network (`sdkit_diffusers.wiring.twin`), which shares its weights.

Notation: D the prediction, D_w that of a network weakened on purpose, w a scale. Guidance by a weakened network is
``D + w (D - D_w)``; beside classifier-free guidance by s it is ``D_neg + s (D - D_neg) + w (D - D_w)``, which is
classifier-free guidance of ``D + d`` and ``D_neg + d`` with ``d = w (D - D_w)``, for every s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import evolve, field, frozen
from torch import Tensor

from sdkit import Conditions, Grid, InvalidRequest, Level, NoiseSchedule, ParameterError, Parts
from sdkit_diffusers.beside import number
from sdkit_diffusers.wiring import (
    Call,
    Joined,
    check_share,
    core,
    in_window,
    network_call,
    pair,
    rewired,
    twin,
    windowed,
)

__all__ = [
    "FreeU",
    "PerturbedAttention",
    "SkipLayers",
    "Weakened",
    "with_freeu",
    "with_perturbed_attention",
    "with_skipped_layers",
]


def _factor(value: Any) -> float:
    return number("A factor of FreeU", value, 0, 10)


@frozen
class FreeU:
    """Weighs what a U-Net's deep layers say against what is passed by them, as a modifier.

    The first two stages of the way up get half of the channels times b, and the low frequencies of what is passed by
    times s (Si et al. 2023, https://arxiv.org/abs/2309.11497). Good values: 1.5, 1.6, 0.9, 0.2 for Stable Diffusion
    1.5; 1.4, 1.6, 0.9, 0.2 for 2.1; 1.3, 1.4, 0.9, 0.2 for XL.

    Attributes:
        b1: Factor of the deep layers in the first stage.
        b2: In the second.
        s1: Factor of the low frequencies passed by in the first stage.
        s2: In the second.

    Raises:
        ParameterError: a value is out of range.
    """

    b1: float = field(default=1.5, converter=_factor)
    b2: float = field(default=1.6, converter=_factor)
    s1: float = field(default=0.9, converter=_factor)
    s2: float = field(default=0.2, converter=_factor)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the U-Net is weighed so.

        Raises:
            InvalidRequest: the model has no U-Net.
        """
        yield evolve(parts, denoiser=with_freeu(parts.denoiser, self.b1, self.b2, self.s1, self.s2))


def with_freeu(denoiser: Any, b1: float = 1.5, b2: float = 1.6, s1: float = 0.9, s2: float = 0.2) -> Any:
    """A denoiser with FreeU; see `FreeU`.

    Raises:
        InvalidRequest: its model has no U-Net.
    """
    _unet(denoiser, "FreeU")
    factors = {name: _factor(value) for name, value in (("b1", b1), ("b2", b2), ("s1", s1), ("s2", s2))}
    return rewired(denoiser, lambda network: twin(network, lambda unet: unet.enable_freeu(**factors)))


def _unet(denoiser: Any, what: str) -> Any:
    network = core(network_call(denoiser).network)
    if not hasattr(network, "up_blocks"):
        raise InvalidRequest(f"{what} acts on models with a U-Net, and this model has none.")
    return network


@frozen(eq=False)
class Weakened:
    """Guidance away from a network that was weakened on purpose.

    Attributes:
        denoiser: Moves toward.
        weakened: Moves away from.
        scale: w.
    """

    denoiser: Any
    weakened: Any
    scale: float

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        found: NoiseSchedule | None = getattr(self.denoiser, "schedule", None)
        return found

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        """The prediction, guided; two passes."""
        made: Tensor = self.denoiser(x, level, cond)
        weak: Tensor = self.weakened(x, level, cond)
        return made + (made - weak) * self.scale

    def pair(self, x: Tensor, level: Level, cond: Conditions[Any], /) -> Sequence[Tensor]:
        """The predictions for the prompt and for the negative one, both moved; three passes, two of them at once."""
        positive, negative = pair(self.denoiser, x, level, cond)
        moved = (positive - self.weakened(x, level, cond.positive)) * self.scale
        return positive + moved, negative + moved


def _scale(value: Any) -> float:
    return number("The scale of a guidance", value, -1000, 1000)


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ParameterError(f"Layers are names such as 'mid' or 'up_blocks.1', one or several, not {value!r}.")
    return names


@frozen
class PerturbedAttention:
    """Guidance away from a U-Net some of whose self-attention sees each place only itself, as a modifier.

    Source: Ahn et al. 2024, https://arxiv.org/abs/2403.17377. One more pass per step.

    Attributes:
        scale: How far; 3 is usual.
        layers: Where, as names of diffusers' modules: ``"mid"``, ``"up_blocks.1"``, ``"down_blocks.2.attentions.0"``.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.

    Raises:
        InvalidRequest, ParameterError: a value is out of range.
    """

    scale: float = field(default=3.0, converter=_scale)
    layers: tuple[str, ...] = field(default=("mid",), converter=_names)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_share("guidance", self.start, self.end)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope with this guidance.

        Raises:
            InvalidRequest: the model has no U-Net, or no such layer.
        """
        changed = with_perturbed_attention(parts.denoiser, self.scale, self.layers)
        yield in_window(parts, changed, self.start, self.end)


def with_perturbed_attention(denoiser: Any, scale: float = 3.0, layers: Sequence[str] = ("mid",)) -> Weakened:
    """A denoiser with perturbed-attention guidance; see `PerturbedAttention`. `sdkit.guided` may go around it.

    Raises:
        InvalidRequest: its model has no U-Net, or no such layer.
    """
    unet = _unet(denoiser, "Perturbed-attention guidance")
    found = _self_attention(unet, _names(layers))

    def perturb(network: Any) -> None:
        for name in found:
            network.get_submodule(name).set_processor(IdentityAttention())

    return Weakened(denoiser, rewired(denoiser, lambda network: twin(network, perturb)), _scale(scale))


def _self_attention(unet: Any, layers: Sequence[str]) -> list[str]:
    known = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn1.processor")]
    found: list[str] = []
    for layer in layers:
        wanted = "mid_block" if layer == "mid" else layer
        inside = [name for name in known if name == wanted or name.startswith(f"{wanted}.")]
        if not inside:
            blocks = dict.fromkeys(".".join(name.split(".")[: 1 if name[:3] == "mid" else 2]) for name in known)
            raise InvalidRequest(f"There is no self-attention in the layer {layer!r}; there is in {', '.join(blocks)}.")
        found += inside
    return found


@frozen(eq=False)
class IdentityAttention:
    """Self-attention whose map is the identity: each place sees only itself."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The values, projected, for states (batch, places, width) of diffusers' ``Attention``."""
        made: Tensor = attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))
        if attn.residual_connection:
            made = made + hidden_states
        return made / float(attn.rescale_output_factor)


def _layers(value: Any) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ParameterError(f"Layers are whole numbers from 0, one or several, not {value!r}.")
    return numbers


@frozen
class SkipLayers:
    """Guidance away from a transformer some of whose layers are left out, as a modifier: for Stable Diffusion 3.5.

    Known from Stability AI's reference code for Stable Diffusion 3.5 medium. One more pass per step in its part of the
    way.

    Attributes:
        layers: Which, counted from 0; 7, 8 and 9 are its authors' choice for 3.5 medium.
        scale: How far; 2.8 is diffusers' default.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.

    Raises:
        InvalidRequest, ParameterError: a value is out of range.
    """

    layers: tuple[int, ...] = field(default=(7, 8, 9), converter=_layers)
    scale: float = field(default=2.8, converter=_scale)
    start: float = field(default=0.01, kw_only=True)
    end: float = field(default=0.2, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_share("guidance", self.start, self.end)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope with this guidance.

        Raises:
            InvalidRequest: the model is no Stable Diffusion 3, or has no such layer.
        """
        yield in_window(parts, _skipping(parts.denoiser, self.layers, self.scale), self.start, self.end)


def with_skipped_layers(
    denoiser: Any,
    layers: Sequence[int] = (7, 8, 9),
    scale: float = 2.8,
    *,
    start: float = 0.0,
    end: float = 1.0,
    grid: Grid = (),
) -> Any:
    """A denoiser with skip-layer guidance; see `SkipLayers`. `sdkit.guided` may go around it.

    Raises:
        InvalidRequest: its model is no Stable Diffusion 3, has no such layer, or the way is not given.
    """
    check_share("guidance", start, end)
    return windowed(denoiser, _skipping(denoiser, _layers(tuple(layers)), _scale(scale)), start, end, grid)


def _skipping(denoiser: Any, layers: tuple[int, ...], scale: float) -> Weakened:
    network = core(network_call(denoiser).network)
    if type(network).__name__ != "SD3Transformer2DModel":
        raise InvalidRequest("Skip-layer guidance acts on Stable Diffusion 3 and 3.5, and this model is another.")
    count = len(network.transformer_blocks)
    if max(layers) >= count:
        raise InvalidRequest(f"This model has the layers 0 to {count - 1}, so layer {max(layers)} cannot be skipped.")
    return Weakened(denoiser, rewired(denoiser, lambda inner: Joined(inner, SkipRule(layers))), scale)


@frozen(eq=False)
class SkipRule:
    """Tells a transformer which layers to leave out."""

    layers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """None."""
        return 0

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The arguments, with the layers."""
        return args, {**more, "skip_layers": list(self.layers)}

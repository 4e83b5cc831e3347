"""ControlNet: a copy of a U-Net's first half that reads a picture and adds to the U-Net's residuals.

Source: Zhang et al. 2023, https://arxiv.org/abs/2302.05543. Several act at once by adding up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import Grid, InvalidRequest, Parts, Picture, Request
from sdkit_diffusers import controlfile
from sdkit_diffusers.beside import (
    check_size,
    fitted,
    image_text,
    kept,
    number,
    of_config,
    part_in_folder,
    picture,
    pixels,
)
from sdkit_diffusers.parts import Part, Plan
from sdkit_diffusers.wiring import (
    Call,
    Joined,
    check_share,
    core,
    in_window,
    network_call,
    rewired,
    tokens_below,
    windowed,
)

__all__ = ["Control", "load_control", "with_control"]

SAME = (
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "transformer_layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
"""What a control net has in common with the U-Net it was made for."""

DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"


def _weight(value: Any) -> float:
    return number("The weight of a control", value, -100, 100)


@frozen
class Control:
    """A control net with its picture, as a modifier. Several in one request act together.

    Attributes:
        file: A folder as diffusers saves it, or a ``.safetensors`` file with original or diffusers' names.
        image: What the control net reads (edges, depth, a pose, ...): a file's name, a Pillow image or a
            `sdkit.Picture`; of the size of the picture to make.
        weight: Factor of what it adds; 1 is as trained.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.
        fit: Resize the image to the size of the picture to make.

    Raises:
        InvalidRequest, ParameterError: a value is out of range.
    """

    file: str = field(converter=str)
    image: str = field(converter=image_text, repr=lambda text: repr(text[:40]))
    weight: float = field(default=1.0, converter=_weight, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)
    fit: bool = field(default=False, kw_only=True, validator=attrs.validators.instance_of(bool))

    def __attrs_post_init__(self) -> None:
        check_share("control", self.start, self.end)

    def check(self, request: Request, /) -> None:
        """Refuses a picture that is not of the size of the picture to make; asked when a request is planned.

        Raises:
            FileError: the picture cannot be read.
            InvalidRequest: it is of another size, and was not to be resized.
        """
        check_size(picture(self.image), request, fit=self.fit, what="control")

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the control net acts.

        Raises:
            FileError: a file cannot be read, or is no control net.
            InvalidRequest: the control net was made for another family.
        """
        given = picture(self.image)
        network = load_control(parts.denoiser, self.file)
        changed = rewired(parts.denoiser, _joining(network, given, self.weight, self.fit))
        yield in_window(parts, changed, self.start, self.end)


def load_control(denoiser: Any, file: str | Path) -> nn.Module:
    """The control net in a file or folder, for a model; kept until the model is closed.

    Args:
        denoiser: The model's.
        file: See `Control`.

    Raises:
        FileError: a file cannot be read, or is no control net.
        InvalidRequest: the control net was made for another family.
    """
    call, path = network_call(denoiser), Path(file)

    def check(planned: Plan) -> None:
        _check_family(path.name, planned.network.config, core(call.network).config)

    network: nn.Module = kept(call, path, "control", lambda: [(_part(path, call), check)])[0]
    return network


def _part(path: Path, call: Any) -> Part:
    makers = {"ControlNetModel": _control_net}
    if path.is_dir():
        return part_in_folder(path, makers, "control net")
    return controlfile.read(path, core(call.network).config, _control_net)


def _control_net(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return of_config(ControlNetModel, config)


def _check_family(name: str, control: Any, unet: Any) -> None:
    if "down_block_types" not in unet:
        raise InvalidRequest(f"The control net {name!r} is for models with a U-Net, and this model has none.")
    for key in SAME:
        if _even(control, key) != _even(unet, key):
            raise InvalidRequest(
                f"The control net {name!r} was made for another family: its {key} is {control.get(key)!r}, the model's "
                f"{unet.get(key)!r}; take one made for this model's family."
            )


def _even(config: Mapping[str, Any], key: str) -> Any:
    """A setting in the one form of the several in which it may be written."""
    value = config.get(key)
    if key in ("layers_per_block", "transformer_layers_per_block") and isinstance(value, int):
        value = [value] * len(config["down_block_types"])
    return tuple(value) if isinstance(value, (list, tuple)) else value


def with_control(
    denoiser: Any,
    network: nn.Module,
    image: Any,
    *,
    weight: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    grid: Grid = (),
    fit: bool = False,
) -> Any:
    """A denoiser under the control of a picture; guidance goes around it.

    Args:
        denoiser: Of Stable Diffusion 1.x, 2.x or XL, perhaps under control already.
        network: From `load_control`.
        image: See `Control`.
        weight: Factor of what it adds.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.
        grid: The way, where start or end are given.
        fit: Resize the image to the size of the picture to make.

    Raises:
        InvalidRequest: a share is none, or a part of the way is asked for without ``grid``.
    """
    check_share("control", start, end)
    given = picture(image_text(image))
    return windowed(denoiser, rewired(denoiser, _joining(network, given, _weight(weight), fit)), start, end, grid)


def _joining(network: nn.Module, given: Picture, weight: float, fit: bool) -> Any:
    return lambda inner: Joined(inner, ControlRule(given, weight, fit), network)


@frozen(eq=False)
class ControlRule:
    """Adds a control net's residuals to a U-Net's.

    Attributes:
        image: What the control net reads.
        weight: Factor of what it adds.
        fit: Whether the image is resized.
    """

    image: Picture = field(repr=False)
    weight: float
    fit: bool
    _pixels: dict[Any, Tensor] = field(factory=dict, repr=False, init=False)

    @property
    def tokens(self) -> int:
        """None."""
        return 0

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The U-Net's arguments with residuals.

        Raises:
            InvalidRequest: the image is of another size than the picture.
        """
        network: Any = joined.beside[0]
        x, time, states = args
        # what belongs to the picture and not to the text is not for a control net
        text = states[0] if isinstance(states, tuple) else states
        text = text[:, : text.shape[1] - tokens_below(joined)]
        latents = x[:, : network.config.in_channels]
        passed = {name: more[name] for name in ("added_cond_kwargs",) if name in more}
        down, middle = network(
            latents,
            time,
            text,
            controlnet_cond=self._read(network, latents),
            conditioning_scale=self.weight,
            return_dict=False,
            **passed,
        )
        before, before_middle = (
            more.get(f"{name}_block_additional_residual{s}") for name, s in (("down", "s"), ("mid", ""))
        )
        if before is not None:
            down = [one + other for one, other in zip(before, down, strict=True)]
            middle = before_middle + middle
        return args, {**more, "down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}

    def _read(self, network: Any, x: Tensor) -> Tensor:
        factor = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
        size = (x.shape[-1] * factor, x.shape[-2] * factor)
        key = (size, x.device, x.dtype)
        if key not in self._pixels:
            given = fitted(self.image, size, fit=self.fit, what="control")
            self._pixels[key] = pixels(given, int(network.config.conditioning_channels), x)
        return self._pixels[key].expand(x.shape[0], -1, -1, -1)

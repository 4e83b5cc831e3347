"""IP-Adapter: pictures as prompts. Their tokens have keys and values of their own beside the text's.

Source: Ye et al. 2023, https://arxiv.org/abs/2308.06721. Tokens are made once per run: of a picture's CLIP embedding
(plain), or of the states of CLIP's last but one layer by a resampler (plus). They travel behind the text's states to
the network, which takes them off again; so the prompt's rows have the picture and the negative prompt's have what
stands for none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from sdkit import Conditions, FileError, Grid, InvalidRequest, Level, NoiseSchedule, Parts, Picture
from sdkit_diffusers.beside import image_text, kept, number, part_in_folder, picture
from sdkit_diffusers.networks import MAKERS
from sdkit_diffusers.parts import Origin, Part, Plan
from sdkit_diffusers.tensors import Weights, some
from sdkit_diffusers.wiring import (
    Call,
    Joined,
    check_share,
    core,
    in_window,
    network_call,
    pair,
    rewired,
    tokens_below,
    twin,
    windowed,
    with_states,
)

__all__ = ["ImagePrompt", "with_image_prompt"]

PLAIN_TOKENS = 4
"""Of the plain adapters, as trained."""
HEAD = 64
"""Width of the heads of plus adapters."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels CLIP was trained on."""
BESIDE = "image_encoder"


def _weight(value: Any) -> float:
    return number("The weight of an image prompt", value, -100, 100)


@frozen
class ImagePrompt:
    """An IP-Adapter with its picture, as a modifier. Several in one request act together.

    Attributes:
        file: A ``.safetensors`` file, plain or plus, for Stable Diffusion 1.x or XL.
        image: The picture: a file's name, a Pillow image or a `sdkit.Picture`, of any size (CLIP sees a square).
        encoder: A folder with CLIP's vision model; by default ``image_encoder`` beside the file or one folder higher.
        weight: Factor of what it adds; 1 is as trained.
        start: Share of the way at which it begins.
        end: Share of the way at which it ends.

    Raises:
        InvalidRequest, ParameterError: a value is out of range.
    """

    file: str = field(converter=str)
    image: str = field(converter=image_text, repr=lambda text: repr(text[:40]))
    encoder: str = field(default="", converter=str, kw_only=True)
    weight: float = field(default=1.0, converter=_weight, kw_only=True)
    start: float = field(default=0.0, kw_only=True)
    end: float = field(default=1.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_share("image prompt", self.start, self.end)

    @contextmanager
    def apply(self, parts: Parts[Any, Any, Any], /) -> Iterator[Parts[Any, Any, Any]]:
        """A scope in which the picture is a prompt.

        Raises:
            FileError: a file cannot be read, or is no IP-Adapter.
            InvalidRequest: the adapter was made for another family.
        """
        changed = _prompted(parts.denoiser, self.file, picture(self.image), self.encoder, self.weight)
        yield in_window(parts, changed, self.start, self.end)


def with_image_prompt(
    denoiser: Any,
    file: str | Path,
    image: Any,
    *,
    encoder: str | Path = "",
    weight: float = 1.0,
    start: float = 0.0,
    end: float = 1.0,
    grid: Grid = (),
) -> Any:
    """A denoiser with a picture as a prompt; see `ImagePrompt`. Guidance goes around it.

    Raises:
        FileError: a file cannot be read, or is no IP-Adapter.
        InvalidRequest: the adapter was made for another family, or a part of the way is asked for without ``grid``.
    """
    check_share("image prompt", start, end)
    changed = _prompted(denoiser, str(file), picture(image_text(image)), str(encoder), _weight(weight))
    return windowed(denoiser, changed, start, end, grid)


def _prompted(denoiser: Any, file: str, image: Picture, encoder: str, weight: float) -> ImagePrompted:
    call, path = network_call(denoiser), Path(file)
    folder = _encoder_folder(path, encoder)
    projection, processors = kept(call, path, "ip-adapter", lambda: _parts(path, core(call.network)))
    (vision,) = kept(call, folder, "image encoder", lambda: [(part_in_folder(folder, VISION, "image encoder"), _any)])
    with torch.no_grad(), call.placement.use(vision, projection):
        tokens, none = _tokens(vision, projection, image)
    count = int(tokens.shape[1])

    def install(unet: Any) -> None:
        _install(unet, list(processors), weight, count)

    changed = rewired(denoiser, lambda network: Joined(twin(network, install), TokenRule(count)))
    return ImagePrompted(changed, tokens, none)


def _encoder_folder(path: Path, encoder: str) -> Path:
    places = [Path(encoder)] if encoder else [path.parent / BESIDE, path.parent.parent / BESIDE]
    for place in places:
        if (place / "config.json").is_file():
            return place
    where = f"in {encoder!r}" if encoder else f"beside {path.name!r} ({BESIDE!r})"
    raise FileError(
        f"There is no image encoder {where}; give encoder=FOLDER, a folder with CLIP's vision model (config.json and "
        "model.safetensors)."
    )


VISION: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    name: MAKERS[name] for name in ("CLIPVisionModelWithProjection",)
}


def _any(planned: Plan) -> None:
    """Every encoder will do; whether the adapter reads what it gives is seen by the adapter's shapes."""


def _parts(path: Path, unet: Any) -> Sequence[tuple[Part, Callable[[Plan], None]]]:
    if path.suffix.lower() != ".safetensors":
        raise FileError(f"An IP-Adapter is a .safetensors file, not {path.name!r}; convert others in a sandbox.")
    weights = Weights.of([path])
    projection, keys = weights.under("image_proj."), weights.under("ip_adapter.")
    places = _cross_attention(unet, path.name)
    if not keys.stored or not ("proj.weight" in projection or "latents" in projection):
        raise FileError(
            f"{path.name!r} is no IP-Adapter, plain or plus: its tensors are {some(sorted(weights.stored)) or 'none'}."
        )
    width = int(unet.config.cross_attention_dim)
    made = _out_width(projection)
    if made != width or len(places) * 2 != sum(key.endswith("_ip.weight") for key in keys.stored):
        raise InvalidRequest(
            f"The IP-Adapter {path.name!r} was made for another family: its tokens have the width {made} and it has "
            f"{sum(key.endswith('_ip.weight') for key in keys.stored) // 2} attention layers, the model {width} and "
            f"{len(places)}; take one made for this model's family."
        )
    shapes = [tuple(unet.get_submodule(place).to_k.weight.shape) for place in places]
    attention = Part("IP-Adapter's attention", _processors, {"shapes": shapes}, keys, _processor_name)
    if "proj.weight" in projection:
        return [(Part("IP-Adapter", _plain, _sizes(projection), projection, _plain_name), _any), (attention, _any)]
    return [(Part("IP-Adapter", _plus, _sizes(projection), projection, _plus_name), _any), (attention, _any)]


def _cross_attention(unet: Any, name: str) -> list[str]:
    if not hasattr(unet, "up_blocks"):
        raise InvalidRequest(f"The IP-Adapter {name!r} is for models with a U-Net, and this model has none.")
    return [key.removesuffix(".processor") for key in unet.attn_processors if key.endswith("attn2.processor")]


def _out_width(projection: Weights) -> int:
    if "proj.weight" in projection:
        return projection.shape("proj.weight")[0] // PLAIN_TOKENS
    return projection.shape("proj_out.weight")[0]


def _sizes(projection: Weights) -> dict[str, Any]:
    if "proj.weight" in projection:
        rows, width = projection.shape("proj.weight")
        return {
            "image_embed_dim": width,
            "cross_attention_dim": rows // PLAIN_TOKENS,
            "num_image_text_embeds": PLAIN_TOKENS,
        }
    _, queries, hidden = projection.shape("latents")
    return {
        "embed_dims": projection.shape("proj_in.weight")[1],
        "output_dims": projection.shape("proj_out.weight")[0],
        "hidden_dims": hidden,
        "heads": projection.shape("layers.0.0.to_q.weight")[0] // HEAD,
        "num_queries": queries,
        "depth": projection.count("layers.{}."),
        "ffn_ratio": projection.shape("layers.0.1.1.weight")[0] // hidden,
    }


def _plain(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.embeddings import ImageProjection

    return ImageProjection(**config)


def _plain_name(name: str, weights: Weights) -> Origin:
    return Origin(name.replace("image_embeds.", "proj."))


def _plus(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    return IPAdapterPlusImageProjection(**config)


PLUS = (
    (r"ln0\.(.*)", r"0.norm1.\1"),
    (r"ln1\.(.*)", r"0.norm2.\1"),
    (r"attn\.to_q\.(.*)", r"0.to_q.\1"),
    (r"attn\.to_out\.0\.(.*)", r"0.to_out.\1"),
    (r"ff\.0\.(.*)", r"1.0.\1"),
    (r"ff\.1\.net\.0\.proj\.(.*)", r"1.1.\1"),
    (r"ff\.1\.net\.2\.(.*)", r"1.3.\1"),
)
"""Names inside a layer of the resampler: diffusers', and the file's."""


def _plus_name(name: str, weights: Weights) -> Origin:
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if match is None:
        return Origin(name)
    half = re.fullmatch(r"attn\.to_([kv])\.weight", match[2])
    if half:
        piece = "kv".index(half[1])
        return Origin(f"layers.{match[1]}.0.to_kv.weight", piece, piece + 1, 2)
    for pattern, replacement in PLUS:
        found = re.fullmatch(pattern, match[2])
        if found:
            return Origin(f"layers.{match[1]}.{found.expand(replacement)}")
    return Origin(name)


def _processors(config: Mapping[str, Any]) -> nn.Module:
    return nn.ModuleList(_processor(width, text) for width, text in config["shapes"])


def _processor(width: int, text: int) -> Any:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    kind: Any = IPAdapterAttnProcessor2_0
    return kind(hidden_size=width, cross_attention_dim=text, num_tokens=(PLAIN_TOKENS,))


def _processor_name(name: str, weights: Weights) -> Origin:
    """Files count all attention layers, of which every second one reads text."""
    index, kind, _, rest = name.split(".")
    return Origin(f"{2 * int(index) + 1}.{kind}.{rest}")


def _install(unet: Any, loaded: Sequence[Any], weight: float, count: int) -> None:
    """Put processors with the loaded weights on a twin, beside those of adapters that are on it already."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    for place, mine in zip(_cross_attention(unet, ""), loaded, strict=True):
        attention = unet.get_submodule(place)
        before = attention.processor
        both = [before, mine] if isinstance(before, IPAdapterAttnProcessor2_0) else [mine]
        with torch.device("meta"):
            made: Any = _processor(mine.hidden_size, mine.cross_attention_dim)
        made.num_tokens = [*(before.num_tokens if len(both) > 1 else ()), count]
        made.scale = [*(before.scale if len(both) > 1 else ()), weight]
        made.to_k_ip = nn.ModuleList(layer for one in both for layer in one.to_k_ip)
        made.to_v_ip = nn.ModuleList(layer for one in both for layer in one.to_v_ip)
        attention.set_processor(made.eval())


def _tokens(vision: Any, projection: Any, image: Picture) -> tuple[Tensor, Tensor]:
    """Tokens (1, count, width) of a picture, and those that stand for none."""
    weight = vision.visual_projection.weight
    pixels = _seen(image, int(vision.config.image_size)).to(weight)
    if hasattr(projection, "image_embeds"):
        embedded = vision(pixels).image_embeds
        if embedded.shape[1] != projection.image_embeds.in_features:
            raise _other_encoder(embedded.shape[1], projection.image_embeds.in_features)
        return projection(embedded), projection(torch.zeros_like(embedded))
    made, none = (
        vision(given, output_hidden_states=True).hidden_states[-2] for given in (pixels, torch.zeros_like(pixels))
    )
    if made.shape[2] != projection.proj_in.in_features:
        raise _other_encoder(made.shape[2], projection.proj_in.in_features)
    return projection(made), projection(none)


def _other_encoder(given: int, wanted: int) -> InvalidRequest:
    return InvalidRequest(
        f"The image encoder gives vectors of {given} numbers and the IP-Adapter reads {wanted}; give the encoder it "
        "was trained with."
    )


def _seen(image: Picture, side: int) -> Tensor:
    """(1, 3, side, side): the picture as CLIP sees it, its shorter side shrunk (bicubic) and its middle cut out."""
    import numpy as np
    from PIL import Image

    given = image.image().convert("RGB")
    short = min(given.size)
    width, height = (int(side * length / short) for length in given.size)
    given = given.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    array = np.asarray(given.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    made = torch.from_numpy(array).permute(2, 0, 1)[None]
    return (made - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


@frozen(eq=False)
class ImagePrompted:
    """A denoiser with a picture as a prompt.

    Attributes:
        denoiser: Whose network takes tokens off the text's states.
        tokens: Of the picture, (1, count, width).
        none: What stands for no picture.
    """

    denoiser: Any
    tokens: Tensor = field(repr=False)
    none: Tensor = field(repr=False)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule it was trained on."""
        found: NoiseSchedule | None = getattr(self.denoiser, "schedule", None)
        return found

    def __call__(self, x: Tensor, level: Level, cond: Any, /) -> Tensor:
        """The prediction for the prompt and the picture."""
        made: Tensor = self.denoiser(x, level, _behind(cond, self.tokens))
        return made

    def pair(self, x: Tensor, level: Level, cond: Conditions[Any], /) -> Sequence[Tensor]:
        """The predictions for the prompt and the picture, and for the negative prompt and none."""
        given = Conditions(_behind(cond.positive, self.tokens), _behind(cond.negative, self.none))
        return pair(self.denoiser, x, level, given)


def _behind(cond: Any, tokens: Tensor) -> Any:
    def change(states: Tensor) -> Tensor:
        return torch.cat([states, tokens.to(states).expand(states.shape[0], -1, -1)], dim=1)

    return with_states(cond, change)


@frozen(eq=False)
class TokenRule:
    """Takes the tokens of a picture off the text's states.

    Attributes:
        tokens: How many.
    """

    tokens: int

    def __call__(self, joined: Joined, args: tuple[Any, ...], more: dict[str, Any], /) -> Call:
        """The arguments, with text and pictures apart."""
        x, time, states = args
        text, pictures = states if isinstance(states, tuple) else (states, [])
        below = tokens_below(joined)
        cut = text.shape[1] - below - self.tokens
        rest, mine = (
            torch.cat([text[:, :cut], text[:, text.shape[1] - below :]], dim=1),
            text[:, cut : cut + self.tokens],
        )
        return (x, time, (rest, [mine, *pictures])), more

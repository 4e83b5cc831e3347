"""Networks that grow: a denoiser with a wider way from the text and a layout, a decoder with more blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdkit_emoji.networks import Autoencoder, TextStates, UNet

SMALL: dict[str, Any] = {"widths": (16, 32, 48), "blocks": (1, 1, 1), "text": 24, "condition": 32, "heads": 4}


@pytest.fixture(scope="module")
def training(programs: Callable[..., Any]) -> Any:
    return programs("train_denoiser").train_denoiser


def untrained(**more: Any) -> UNet:
    """With torch's own draw of the weights, which is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return UNet(**{**SMALL, **more})


def trained(**more: Any) -> UNet:
    """A small network whose last layers are not zero, as after a training."""
    draw = torch.Generator().manual_seed(0)
    network = untrained(**more)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draw))
    return network.eval().requires_grad_(False)


def given(side: int = 16, count: int = 2) -> tuple[Tensor, Tensor, TextStates]:
    draw = torch.Generator().manual_seed(1)
    states = TextStates(
        torch.randn(count, 5, 24, generator=draw), torch.ones(count, 5).bool(), torch.randn(count, 24, generator=draw)
    )
    return torch.randn(count, 8, side, side, generator=draw), torch.tensor([0.3, 0.99])[:count], states


@pytest.mark.parametrize("more", [{}, {"hidden": 80}, {"layout": 12}, {"hidden": 80, "layout": 12}])
def test_a_grown_network_answers_as_the_smaller_one_does(training: Any, more: dict[str, Any]) -> None:
    small = trained()
    large = untrained(**more).eval()
    training.grow(large, small.state_dict(), torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(large(*given()), small(*given()), rtol=1e-5, atol=1e-5)
    large(*given()).square().sum().backward()  # and what is new can learn
    learning = {name for name, value in large.named_parameters() if value.grad is not None and value.grad.any()}
    assert "from_text.2.weight" in learning
    if more.get("layout"):
        assert "layout.3.weight" in learning


def test_what_cannot_grow_is_refused(training: Any) -> None:
    wider = untrained(widths=(32, 48, 64))
    with pytest.raises(ValueError, match="cannot be grown"):
        training.grow(wider, trained().state_dict(), torch.Generator().manual_seed(2))


@pytest.mark.parametrize("side", [8, 16, 20, 32])
def test_a_layout_is_stretched_over_pictures_of_any_size(side: int) -> None:
    network = trained(layout=12)
    x, time, cond = given(side)
    with torch.no_grad():
        assert network(x, time, cond).shape == x.shape
        maps = network.layout(torch.zeros(2, 32))  # type: ignore[misc]
        assert maps.shape == (2, 48, 4, 4)


def test_a_layout_tells_places_apart_where_the_noise_says_nothing() -> None:
    """Without noise, text and edges alone can tell one place from another; the layout can do so in the middle."""
    network = trained(layout=12)
    _, time, cond = given()
    with torch.no_grad():
        with_layout = network(torch.zeros(2, 8, 16, 16), time, cond)
        network.layout = None
        without = network(torch.zeros(2, 8, 16, 16), time, cond)
    assert (with_layout - without).abs().amax() > 1e-3


NARROW: dict[str, Any] = {"channels": 4, "widths": (4, 6, 8), "encoder_blocks": (1, 1)}


def autoencoder(*blocks: int) -> Autoencoder:
    with torch.random.fork_rng(devices=[]):
        return Autoencoder(**NARROW, decoder_blocks=blocks).eval()


@pytest.mark.parametrize("after", [(1, 2, 1), (2, 2, 1), (1, 4, 1), (1, 2, 3), (2, 3, 4)])
def test_a_deeper_decoder_decodes_as_before(programs: Callable[..., Any], after: tuple[int, int, int]) -> None:
    module = programs("train_autoencoder").train_autoencoder
    before = (1, 2, 1)
    small, large = autoencoder(*before), autoencoder(*after)
    module.deepen(large, small.state_dict(), before, after)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = small.encode(images)
        torch.testing.assert_close(large.encode(images), latents, rtol=0, atol=0)
        torch.testing.assert_close(large.decode(latents), small.decode(latents), rtol=0, atol=0)
    large.decode(latents).square().sum().backward()
    still = [name for name, value in large.decoder.named_parameters() if value.grad is None or not value.grad.any()]
    new = sum(after) - sum(before)
    assert sum("first" in name for name in still) == 2 * new  # they learn as soon as their second convolutions have
    assert not [name for name in still if "first" not in name]


def test_a_decoder_cannot_lose_blocks(programs: Callable[..., Any]) -> None:
    module = programs("train_autoencoder").train_autoencoder
    with pytest.raises(ValueError, match="cannot lose"):
        module.places((3, 2, 1), (2, 2, 4))


def test_what_a_decoder_learns_from_is_drawn_with_its_style(programs: Callable[..., Any]) -> None:
    """Every picture as often as was asked for, its caption with its style and the colour that it stands on."""
    draw, captions = (getattr(programs("draw_latents", "captions"), name) for name in ("draw_latents", "captions"))
    entries = [{"label": "Fox", "tags": ["face"], "style": style} for style in ("3d", "noto", "flat fluent")]
    asked = list(draw.asked(entries, [0, 2], 200, np.random.default_rng(0)))
    assert [place for place, *_ in asked] == [0, 2] * 200
    on_white = 0
    for place, text, ground in asked:
        assert entries[place]["style"] in text
        named = [
            value for name, value in captions.COLOURS.items() if f" on {captions.article(name)} background" in text
        ]
        assert [ground] == (named or [(1.0, 1.0, 1.0)])
        on_white += not named
    assert 0.5 < on_white / len(asked) < 0.7

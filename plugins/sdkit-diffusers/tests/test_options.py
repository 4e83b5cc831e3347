"""How models are held: precision, memory, tiles, and what is given back."""

from __future__ import annotations

import gc
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import drawn

import sdkit
from sdkit_diffusers.placement import Placement
from sdkit_diffusers.tiling import Tiles

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_original("sd1", tiny.sd1(), tmp_path_factory.mktemp("sd1") / "one.safetensors")


def result(model: Any, **more: Any) -> Any:
    request = sdkit.Request("a fox", **{"seeds": (3,), "steps": 2, "size": (64, 64), **more})
    return sdkit.pipeline(model, scheduler="ddim", spacing="trailing")(request)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype: str, file: Path) -> None:
    whole, half = sdkit.load(file), sdkit.load(file, dtype=dtype)
    assert half.denoiser.network.network.dtype == getattr(torch, dtype)  # type: ignore[attr-defined]
    one, other = result(whole), result(half)
    assert other.latents.dtype == torch.float32
    assert float((one.latents - other.latents).abs().max()) < 0.1 * float(one.latents.abs().max())


def test_an_autoencoder_that_fails_in_float16_is_used_in_float32(file: Path) -> None:
    model = sdkit.load(file, vae_dtype="float16")
    # beyond 65504 there is infinity in float16, and nothing of the kind in float32
    model.autoencoder.network.decoder.conv_in.weight.mul_(1e4)  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="autoencoder gave NaN or infinity in float16; it works in float32 from now"):
        first = model.autoencoder(drawn(1, 4, 8, 8))
    assert bool(torch.isfinite(first).all())
    torch.testing.assert_close(model.autoencoder(drawn(1, 4, 8, 8)), first)  # and without another warning


def test_channels_last_and_slices_change_nothing(file: Path) -> None:
    plain = sdkit.load(file)
    other = sdkit.load(file, channels_last=True, vae_slicing=True)
    latents = drawn(3, 4, 8, 8)
    torch.testing.assert_close(other.autoencoder(latents), plain.autoencoder(latents), rtol=0, atol=1e-5)
    torch.testing.assert_close(result(other).latents, result(plain).latents, rtol=0, atol=1e-3)


# --- tiles ------------------------------------------------------------------------------------------------------------


@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(8, 16).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, s // 2))),
)
def test_tiles_of_a_local_function_are_the_whole(height: int, width: int, cut: tuple[int, int]) -> None:
    """Blending weights sum to one everywhere, and every element comes from its own place."""
    x = drawn(1, 2, height, width)
    double = lambda part: part.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    made = Tiles(*cut).apply(double, x, factor=Fraction(2))
    torch.testing.assert_close(made, double(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 24), (16, 33), (17, 17)])
def test_a_tiled_picture_is_the_whole_one(size: tuple[int, int], file: Path) -> None:
    """To rounding, whatever differs between its parts: no tile has statistics, or an attention, of its own."""
    whole, tiled = sdkit.load(file, sha256=False), sdkit.load(file, sha256=False, vae_tiling=16)
    latents = drawn(2, 4, *size) * torch.linspace(0.2, 3, size[1]) + torch.linspace(-2, 2, size[0])[:, None]
    before = {name: tensor.clone() for name, tensor in tiled.autoencoder.network.state_dict().items()}  # type: ignore[attr-defined]
    one, other = whole.autoencoder(latents), tiled.autoencoder(latents)
    assert one.shape == other.shape == (2, 3, 8 * size[0], 8 * size[1])
    torch.testing.assert_close(other, one, rtol=0, atol=2e-5)
    back, again = whole.autoencoder.encode(one), tiled.autoencoder.encode(one)
    torch.testing.assert_close(again, back, rtol=0, atol=2e-4 * float(back.std()))
    for name, tensor in tiled.autoencoder.network.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(tensor, before[name]), name


# --- memory -----------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory this process has."""
    with Path("/proc/self/statm").open() as stream:
        return int(stream.read().split()[1]) * 4096


def test_closing_gives_the_memory_back(file: Path) -> None:
    sizes = []
    for _ in range(10):
        with sdkit.load(file, sha256=False) as model:
            result(model)
        gc.collect()
        sizes.append(resident())
        with pytest.raises(sdkit.InvalidRequest, match="closed"):
            model.encoder(["a fox"])
    # a model takes 25 MB: one that stayed each time would be seen
    assert sizes[-1] - sizes[2] < 25e6, sizes


class Traveller(torch.nn.Module):
    """Notes where it is sent."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def to(self, device: Any, *args: Any, **kwargs: Any) -> Any:
        self.log.append(f"{self.name} to {device}")
        return self


def test_stages_move_only_what_works() -> None:
    log: list[str] = []
    text, unet, vae = (Traveller(log, name) for name in ("text", "unet", "vae"))
    placement = Placement("cpu:0", [text, unet, vae], stages=True)
    for part in (text, unet, unet, unet, vae):
        with placement.use(part):
            pass
    moves = ["text to cpu:0", "text to cpu", "unet to cpu:0", "unet to cpu", "vae to cpu:0"]
    assert log == moves
    placement.close()
    assert log[len(moves) :] == ["text to meta", "unet to meta", "vae to meta"]


def test_a_stage_waits_until_the_other_is_done() -> None:
    log: list[str] = []
    text, unet = Traveller(log, "text"), Traveller(log, "unet")
    placement, inside = Placement("cpu:0", [text, unet], stages=True), threading.Event()

    def second() -> None:
        inside.set()
        with placement.use(unet):
            log.append("unet works")

    with placement.use(text):
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait()
        log.append("text works")
    thread.join()
    assert log == ["text to cpu:0", "text works", "text to cpu", "unet to cpu:0", "unet works"]


def test_stages_change_no_picture(file: Path) -> None:
    plain, staged = sdkit.load(file), sdkit.load(file, offload="stages")
    torch.testing.assert_close(result(staged).latents, result(plain).latents, rtol=0, atol=0)

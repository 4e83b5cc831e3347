"""Animations of the emoji model: laws of the circle, of the motion layers, and of the generator. No network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import sdkit
from sdkit import LatentSpec, ModelSpec, testing
from sdkit.testing import FrameConformance, fake_pipeline
from sdkit_emoji.clips import EmojiMotion
from sdkit_emoji.model import load
from sdkit_emoji.motion import WAVES, Circle, Motion, Moving, circle, digest, layers_for, load_motion
from sdkit_emoji.networks import TextStates, UNet

SMALL = {"channels": 4, "widths": [16, 32, 48], "blocks": [1, 1, 1], "text": 8, "condition": 16, "heads": 2}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(make: Callable[[], Any], seed: int | None = None, size: float = 1.0) -> Any:
    """A network without gradients, its weights drawn from a seed, so that nothing in it is zero; or as it begins."""
    with torch.random.fork_rng():
        network = make()
    generator = torch.Generator().manual_seed(seed or 0)
    with torch.no_grad():
        for name, value in network.named_parameters() if seed is not None else ():
            scale = size / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.1
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(mean + scale * torch.randn(value.shape, generator=generator))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet:
    unet: UNet = built(lambda: UNet(**SMALL), 1)  # type: ignore[arg-type]
    return unet


@pytest.fixture(scope="module")
def motion(unet: UNet) -> Motion:
    motion: Motion = built(lambda: Motion(layers_for(unet), heads=2), 2)
    return motion


@pytest.fixture(scope="module")
def tools(programs: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    pytest.importorskip("resvg_py")
    return programs("evaluate_motion", "prepare_motion", "train_motion")


def cond_of(rows: int, clips: int = 1) -> TextStates:
    """Text states, the same for all frames of a clip."""
    tokens, pooled = drawn(5, clips, 6, 8), drawn(6, clips, 8)
    each = rows // clips
    mask = torch.arange(6)[None].expand(rows, -1) < 4
    return TextStates(tokens.repeat_interleave(each, 0), mask, pooled.repeat_interleave(each, 0))


def asked(unet: UNet, motion: Motion | None, x: Tensor, frames: int, clips: int = 1) -> Tensor:
    found: Tensor = Moving(unet, motion, frames)(x, torch.full((len(x),), 0.6), cond_of(len(x), clips))
    return found


# --- noise on a circle ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(0, 1))
def test_the_noise_of_every_frame_is_standard_normal(frames: int, travel: float) -> None:
    weights = circle(frames, travel)
    assert weights.shape == (frames, 1 + 2 * WAVES)
    torch.testing.assert_close(weights.square().sum(1), torch.ones(frames, dtype=torch.float64))


@given(st.integers(1, 20), st.floats(0, 1))
def test_more_frames_are_more_of_the_same_loop(frames: int, travel: float) -> None:
    torch.testing.assert_close(circle(2 * frames, travel)[::2], circle(frames, travel))


def test_likeness_depends_on_the_angle_alone_and_falls_with_it() -> None:
    weights = circle(16, 0.5)
    likeness = weights @ weights.T
    for k in range(16):
        torch.testing.assert_close(likeness[k].roll(-k), likeness[0])
    half = likeness[0, :9]
    assert bool((half.diff() < 0).all())
    # the exact sum: shared half, and waves whose variances fall as 1 / m^2
    waves = [math.cos(m * math.pi / 8) / m**2 for m in range(1, WAVES + 1)]
    expected = 0.5 + 0.5 * sum(waves) / sum(1 / m**2 for m in range(1, WAVES + 1))
    assert float(half[1]) == pytest.approx(expected)
    assert torch.linalg.matrix_rank(weights) == 16  # the noise can become any 16 frames


def test_noise_of_a_run_has_that_likeness() -> None:
    source = Circle(16, 0.5)((9,) * 16 + (10,) * 16, ())
    noise = source.initial(torch.zeros(32, 8, 24, 24))
    flat = noise.flatten(1).double()
    assert flat.mean(1).abs().max() < 0.06 and (flat.var(1) - 1).abs().max() < 0.08
    found = flat[:16] @ flat[:16].T / flat.shape[1]
    weights = circle(16, 0.5)
    assert (found - weights @ weights.T).abs().max() < 0.08
    assert (flat[:16] @ flat[16:].T / flat.shape[1]).abs().max() < 0.08  # another seed shares nothing
    torch.testing.assert_close(Circle(16, 0.5)((9,), ()).initial(noise[:1]), noise[:1])
    levels = sdkit.RectifiedFlow().level(0.8), sdkit.RectifiedFlow().level(0.6)
    steps = source(noise, *levels).flatten(1).double()
    assert (steps[:16] @ flat[:16].T / flat.shape[1]).abs().max() < 0.08  # nor does a step of a solver


def test_what_the_noise_refuses() -> None:
    wrong: tuple[tuple[Any, Any], ...] = ((0, 0.5), (True, 0.5), (8, 1.5), (8, float("nan")), (8, "half"))
    for frames, travel in wrong:
        with pytest.raises(sdkit.ParameterError, match="frames is a whole number|travel is the share"):
            Circle(frames, travel)
    with pytest.raises(sdkit.ContractError, match="16 seeds for a batch of 4"):
        Circle(16)((1,) * 16, ()).initial(torch.zeros(4, 8, 4, 4))


# --- layers that look along the frames --------------------------------------------------------------------------------


def test_nothing_learned_changes_nothing(unet: UNet) -> None:
    x = drawn(3, 8, 4, 8, 8)
    fresh = built(lambda: Motion(layers_for(unet), heads=2))
    assert torch.equal(asked(unet, fresh, x, 8), asked(unet, None, x, 8))


@pytest.mark.parametrize("frames", [1, 5, 8, 16, 32])
def test_turning_the_loop_turns_what_comes_out(unet: UNet, motion: Motion, frames: int) -> None:
    x = drawn(4, frames, 4, 8, 8)
    straight = asked(unet, motion, x, frames)
    for by in {0, 1, frames // 2, frames - 1}:
        turned = asked(unet, motion, x.roll(by, 0), frames)
        torch.testing.assert_close(turned, straight.roll(by, 0), atol=1e-5, rtol=1e-4)


def test_every_frame_sees_the_others_and_which_way_time_runs(unet: UNet, motion: Motion) -> None:
    x = drawn(5, 8, 4, 8, 8)
    straight = asked(unet, motion, x, 8)
    other = x.clone()
    other[3] = drawn(6, 4, 8, 8)
    assert ((asked(unet, motion, other, 8) - straight).flatten(1).abs().amax(1) > 1e-4).all()
    assert (asked(unet, motion, x.flip(0), 8).flip(0) - straight).abs().max() > 1e-3


def test_clips_do_not_see_each_other(unet: UNet, motion: Motion) -> None:
    x = drawn(7, 16, 4, 8, 8)
    both = asked(unet, motion, x, 8, clips=2)
    tokens, pooled, mask = cond_of(16, 2).tokens, cond_of(16, 2).pooled, cond_of(16, 2).mask
    time = torch.full((8,), 0.6)
    for part in (slice(0, 8), slice(8, 16)):
        alone = Moving(unet, motion, 8)(x[part], time, TextStates(tokens[part], mask[part], pooled[part]))
        torch.testing.assert_close(both[part], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(sdkit.ContractError, match="12 is no whole number of clips of 8"):
        asked(unet, motion, x[:12], 8)


def test_places_are_what_the_network_goes_through(unet: UNet) -> None:
    seen: list[tuple[int, int]] = []

    def between(place: int, x: Tensor) -> Tensor:
        seen.append((place, x.shape[1]))
        return x

    x, cond = drawn(8, 2, 4, 8, 8), cond_of(2)
    time = torch.full((2,), 0.3)
    watched = unet.run(x, time, cond.tokens, cond.mask, cond.pooled, between)
    assert torch.equal(watched, unet(x, time, cond))
    assert seen == list(enumerate(unet.places())) and len(seen) == 10
    assert layers_for(unet) == dict(seen[3:])


def test_what_is_learned_is_only_motion_and_it_learns(unet: UNet) -> None:
    motion = built(lambda: Motion(layers_for(unet), heads=2))
    moving = [value.requires_grad_(True) for value in motion.parameters()]
    # every frame is to answer with what the image model says of the frame before: only layers along frames can do it
    x = drawn(9, 8, 4, 8, 8)
    wanted = asked(unet, None, x, 8).roll(1, 0)
    optimizer = torch.optim.Adam(moving, lr=3e-3)
    found = []
    for _ in range(60):
        loss = (asked(unet, motion, x, 8) - wanted).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.5 * found[0], found[::10]
    assert all(value.grad is None for value in unet.parameters())


# --- files ------------------------------------------------------------------------------------------------------------


def test_there_and_back(unet: UNet, motion: Motion, tools: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "motion.safetensors"
    tools.train_motion.write(file, motion.state_dict(), {"config": {"layers": layers_for(unet), "heads": 2}})
    read, x = load_motion(file, unet), drawn(1, 8, 4, 8, 8)
    for name, value in read.state_dict().items():
        assert torch.equal(value, motion.state_dict()[name].half().float())
    torch.testing.assert_close(asked(unet, read, x, 8), asked(unet, motion, x, 8), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="not finite"):
        tools.train_motion.write(file, {"far": torch.tensor([1e6])}, {})
    other = built(lambda: UNet(**{**SMALL, "widths": [16, 32, 64]}))  # type: ignore[arg-type]
    with pytest.raises(sdkit.FileError, match="blocks of other widths"):
        load_motion(file, other)


def test_files_that_are_none(unet: UNet, tools: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "motion.safetensors"
    with pytest.raises(sdkit.FileError, match=r"motion\.safetensors"):
        load_motion(file, unet)
    file.write_bytes(b"no tensors")
    with pytest.raises(sdkit.FileError, match="damaged or no motion module"):
        load_motion(file, unet)
    tools.train_motion.save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(sdkit.FileError, match="header does not say"):
        load_motion(file, unet)
    tools.train_motion.write(file, {"a": torch.zeros(1)}, {"config": {"layers": layers_for(unet)}})
    with pytest.raises(sdkit.FileError, match="damaged or no motion module of this version"):
        load_motion(file, unet)


# --- the generator ----------------------------------------------------------------------------------------------------


class TestWithoutMotion(FrameConformance):
    frames = EmojiMotion("none")


def test_it_conforms_with_motion(unet: UNet, motion: Motion, tools: SimpleNamespace, tmp_path: Path) -> None:
    """The kit's own model has no U-Net that motion could go into; a small one takes its place."""

    def told(prompts: Sequence[str], /) -> TextStates:
        states = torch.tensor([len(prompt) / 30 for prompt in prompts])
        mask = torch.ones(len(prompts), 6, dtype=torch.bool)
        return TextStates(states[:, None, None].expand(-1, 6, 8), mask, states[:, None].expand(-1, 8))

    class Repeats:
        latent = LatentSpec(channels=4, factor=4, size=(32, 32), multiple=16)

        def __call__(self, latents: Tensor, /) -> Tensor:
            return (latents[:, :3] / 4 + 0.5).repeat_interleave(4, -1).repeat_interleave(4, -2).clamp(0, 1)

        def encode(self, images: Tensor, /) -> Tensor:
            raise AssertionError("a clip starts from noise")

    spec = ModelSpec(
        "small", "small", Repeats.latent, prediction="flow", steps=2, scheduler="euler", spacing="trailing"
    )
    denoiser = sdkit.NetworkDenoiser(unet, sdkit.Flow(), sdkit.RectifiedFlow(), torch.float32)
    pipe = sdkit.pipeline(sdkit.Model(spec, told, denoiser, Repeats(), sdkit.RectifiedFlow()))
    file = tmp_path / "motion.safetensors"
    tools.train_motion.write(file, motion.state_dict(), {"config": {"layers": layers_for(unet), "heads": 2}})
    with testing.tried_on(pipe):
        outcomes = list(testing.run(EmojiMotion(str(file)), "frames"))
    assert [f"{o.rule.name}: {o.detail}" for o in outcomes if o.state != "pass"] == []
    assert len(outcomes) >= 12


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sdkit.pipeline(load())


@pytest.fixture(scope="module")
def file(pipe: Any, tools: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion module for the package's model, of random weights."""
    network = pipe.denoiser
    network = getattr(network, "denoiser", network).network
    path = tmp_path_factory.mktemp("motion") / "motion.safetensors"
    layers = layers_for(network)
    tools.train_motion.write(path, built(lambda: Motion(layers), 3, 0.5).state_dict(), {"config": {"layers": layers}})
    return path


def generator(file: Path | str) -> str:
    return f"emoji-motion(motion={str(file)!r})"


def test_motion_is_put_in_and_taken_out_again(pipe: Any, file: Path) -> None:
    request = sdkit.Request("penguin, 3d style", seeds=(3,), steps=2)
    before = pipe(request).latents
    made = [frame.image for frame in sdkit.animate(generator(file), pipe, request, frames=8, loop="closed")]
    bare = [frame.image for frame in sdkit.animate(generator("none"), pipe, request, frames=8, loop="closed")]
    assert len(made) == 8 and made[0].shape == (128, 128, 3)
    assert any(not np.array_equal(one, two) for one, two in zip(made, bare, strict=True))
    assert torch.equal(pipe(request).latents, before)
    still = sdkit.animate("emoji-motion(motion='none', travel=0)", pipe, request, frames=8)
    assert len({frame.image.tobytes() for frame in still}) == 1


def test_the_package_carries_motion_for_its_own_weights(pipe: Any) -> None:
    unet = pipe.denoiser.denoiser.network if hasattr(pipe.denoiser, "denoiser") else pipe.denoiser.network
    path = EmojiMotion().file
    assert path is not None and path.stat().st_size <= 15e6
    with safe_open(path, "pt") as opened:
        about = json.loads(opened.metadata()["motion"])
    assert about["image_model"] == digest(list(unet.state_dict().values()))


def test_a_clip_of_the_package_moves_by_more_than_its_noise_and_closes(pipe: Any) -> None:
    request = sdkit.Request("penguin, 3d style", seeds=(0,), steps=8)

    def changes(generator: str) -> Any:
        frames = [
            frame.image.astype(float) for frame in sdkit.animate(generator, pipe, request, frames=8, loop="closed")
        ]
        return np.array([np.abs(one - two).mean() for one, two in zip(frames, frames[1:] + frames[:1], strict=True)])

    moved, bare = changes("emoji-motion"), changes("emoji-motion(motion='none')")
    assert moved.mean() > 1.3 * bare.mean()
    assert moved[-1] < 2 * moved[:-1].max()


def test_a_clip_of_more_frames_begins_as_the_same_clip(pipe: Any) -> None:
    """Without motion layers, frame 2 k of 2 n is frame k of n: they lie at the same angle."""
    request = sdkit.Request("star, 3d style", seeds=(1,), steps=2)
    few, many = (
        [frame.image.astype(int) for frame in sdkit.animate(generator("none"), pipe, request, frames=count)]
        for count in (4, 8)
    )
    for one, two in zip(few, many[::2], strict=True):
        assert np.abs(one - two).max() <= 2


def test_a_render_taken_up_makes_no_latents_again(pipe: Any, file: Path, tmp_path: Path) -> None:
    request = sdkit.Request("rocket, 3d style", seeds=(4,), steps=2)
    straight = [frame.image for frame in sdkit.animate(generator(file), pipe, request, frames=8)]
    running = iter(sdkit.animate(generator(file), pipe, request, frames=8, journal=tmp_path / "j"))
    list(islice(running, 3))
    running.close()  # type: ignore[attr-defined]

    def refused() -> None:
        raise AssertionError("the model was asked again")

    resumed = sdkit.animate(generator(file), pipe, request, frames=8, journal=tmp_path / "j", resume=True, tick=refused)
    found = [frame.image for frame in resumed]
    assert len(found) == 8 and all(np.array_equal(one, two) for one, two in zip(straight, found, strict=True))


def test_what_it_refuses_before_anything_is_computed(pipe: Any, file: Path, tmp_path: Path) -> None:
    def refused(
        error: type[Exception], match: str, name: str = generator(file), source: Any = pipe, **more: Any
    ) -> None:
        frames = more.pop("frames", 8)
        with pytest.raises(error, match=match):
            sdkit.animate(name, source, sdkit.Request("star", **more), frames=frames)

    refused(sdkit.InvalidRequest, "up to 64 frames together, not 65", frames=65)
    refused(sdkit.InvalidRequest, "noise of its own", noise="brownian")
    refused(sdkit.InvalidRequest, "not from an image", image=Image.new("RGB", (128, 128)))
    refused(sdkit.FileError, "cannot be read", name=generator(tmp_path / "none.safetensors"))
    refused(sdkit.InvalidRequest, "moves the emoji model, and this one has a _FakeDenoiser", source=fake_pipeline())
    with pytest.raises(sdkit.ParameterError, match="travel is the share"):
        EmojiMotion(travel=2.0)
    with pytest.raises(sdkit.ParameterError, match="lerp or slerp"):
        EmojiMotion(blend="mix")


# --- training and measuring -------------------------------------------------------------------------------------------


def test_frames_are_taken_evenly_by_the_time_they_are_shown(tools: SimpleNamespace) -> None:
    at_shares = tools.prepare_motion.at_shares
    assert at_shares([10.0] * 32, 16) == list(range(0, 32, 2))
    assert at_shares([30.0, 10.0, 10.0, 10.0], 6) == [0, 0, 0, 1, 2, 3]
    assert at_shares([1.0] * 4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_drawing_is_read_on_white(tools: SimpleNamespace, tmp_path: Path) -> None:
    frames = []
    for k in range(20):
        frame = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        frame.paste((200, 10, 10, 255), (10 * k, 64, 10 * k + 64, 192))
        frames.append(frame)
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    clip, total = tools.prepare_motion.read_clip(tmp_path / "a.webp", 10)
    assert total == 20 and clip.shape == (10, 128, 128, 3)
    for k in range(10):
        assert tuple(clip[k, 64, 10 * k + 16]) == (200, 10, 10)
        assert tuple(clip[k, 10, 10]) == (255, 255, 255)
    frames[0].save(tmp_path / "b.webp")
    assert tools.prepare_motion.read_clip(tmp_path / "b.webp", 10) is None


def test_an_item_is_a_clip_of_the_data(tools: SimpleNamespace) -> None:
    latents = torch.arange(3 * 16, dtype=torch.float32).reshape(3, 16, 1, 1, 1).expand(3, 16, 2, 4, 4)
    bank = TextStates(drawn(1, 5, 6, 8), torch.ones(5, 6, dtype=torch.bool), drawn(2, 5, 8))
    empty = TextStates(drawn(3, 1, 6, 8), torch.ones(1, 6, dtype=torch.bool), drawn(4, 1, 8))
    forms = torch.tensor([[0, 1], [2, 3], [4, 4]])
    lessons = tools.train_motion.Lessons(latents, bank, forms, empty, 0.3, 0.5, 7)
    seen, lengths, dropped = set(), set(), 0
    for step in range(40):
        x0, noise, shares, cond, frames = lessons.item(step, 0, 1)
        again = lessons.item(step, 0, 1)
        assert torch.equal(x0, again[0]) and torch.equal(noise, again[1]) and shares == again[2]
        assert len(x0) == 16 == len(noise) == len(shares) == len(cond.tokens) and 16 % frames == 0
        values = x0[:, 0, 0, 0].reshape(-1, frames)
        clip = int(values[0, 0]) // 16
        stride = 16 // frames
        for row, own in zip(values, torch.tensor(shares).reshape(-1, frames), strict=True):
            phases = (row - 16 * clip).long()
            assert torch.equal(phases.diff() % 16, torch.full((frames - 1,), stride)) and len(own.unique()) == 1
        if torch.equal(cond.pooled[:1], empty.pooled):
            dropped += 1
        else:
            told = next(k for k in range(5) if torch.equal(cond.pooled[0], bank.pooled[k]))
            assert told in forms[clip]
        seen.add(clip)
        lengths.add(frames)
    assert seen == {0, 1, 2} and lengths == {8, 16} and 3 <= dropped <= 25


def test_bars_of_clips(tools: SimpleNamespace) -> None:
    ramp = np.zeros((8, 64, 64, 3), np.uint8)
    for k in range(8):
        ramp[k] = 10 * k  # goes up by 10, and falls by 70 at the seam
    changes = tools.evaluate_motion.changes(ramp)
    assert changes.tolist() == [10.0] * 7 + [70.0]
    assert not tools.evaluate_motion.closes(changes)
    assert tools.evaluate_motion.closes(np.array([3.0, 5.0, 4.0]))
    assert tools.evaluate_motion.closes(np.zeros(4))


def test_latents_are_encoded_once(tools: SimpleNamespace, tmp_path: Path) -> None:
    class Counted:
        calls, scale = 0, torch.ones(1)

        def encode(self, images: Tensor) -> Tensor:
            self.calls += 1
            return images.mean((2, 3))[:, :, None, None] * self.scale

        def state_dict(self) -> dict[str, Tensor]:
            return {"scale": self.scale}

    clips = np.arange(2 * 4 * 8 * 8 * 3, dtype=np.uint32).reshape(2, 4, 8, 8, 3).astype(np.uint8)
    np.save(tmp_path / "clips.npy", clips)
    coder = Counted()
    arguments = coder, tmp_path / "clips.npy", tmp_path / "latents.safetensors"
    first = tools.train_motion.encoded(*arguments)
    expected = clips.astype(np.float64).mean((2, 3)) / 255
    assert first.shape == (2, 4, 3, 1, 1) and np.abs(first[..., 0, 0].numpy() - expected).max() < 1e-6
    assert torch.equal(tools.train_motion.encoded(*arguments), first) and coder.calls == 2
    coder.scale = torch.full((1,), 2.0)  # another autoencoder
    assert torch.equal(tools.train_motion.encoded(*arguments), 2 * first) and coder.calls == 4
    np.save(tmp_path / "clips.npy", clips[::-1])  # other clips
    assert torch.equal(tools.train_motion.encoded(*arguments), 2 * first.flip(0))

"""The emoji model as a user meets it, and the contracts of its parts. Real weights, two cores, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdkit
from sdkit_emoji.front import emoji
from sdkit_emoji.model import WEIGHTS, EmojiEncoder, load
from sdkit_emoji.networks import TextStates

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def model() -> sdkit.Model[TextStates]:
    return load()


@pytest.fixture(scope="module")
def encoder(model: sdkit.Model[TextStates]) -> EmojiEncoder:
    assert isinstance(model.encoder, EmojiEncoder)
    return model.encoder


def picture(model: sdkit.Model[TextStates], prompt: str, seed: int = 0, steps: int = 20) -> Tensor:
    """A sampler of five lines, on the model's parts alone: (3, 128, 128)."""
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(seed))
    cond, empty = model.encoder([prompt]), model.encoder([""])
    for index in range(steps):
        start, stop = (model.schedule.level(1 - i / steps) for i in (index, index + 1))
        plain, with_text = model.denoiser(x, start, empty), model.denoiser(x, start, cond)
        denoised = plain + 4 * (with_text - plain)
        x = denoised + (x - denoised) * (stop.sigma / start.sigma)
    return model.autoencoder(x)[0]


def test_weights_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert sizes.pop("motion.safetensors") <= 15e6
    assert sum(sizes.values()) <= 40e6


def test_the_plugin_module_loads_no_torch() -> None:
    code = "import sys, sdkit_emoji.plugin as p; p.sdkit_components(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_it_says_without_being_loaded_is_what_is_loaded(model: sdkit.Model[TextStates]) -> None:
    assert emoji.spec() == model.spec
    assert model.spec.knows and model.spec.licence.duties and len(model.spec.sha256) == 64


def test_models_are_listed_without_torch() -> None:
    code = (
        "import sys\nfrom sdkit.cli import main\n"
        "try: main(['models'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'sdkit_emoji.model' not in sys.modules"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, env={**os.environ, "SDKIT_PLUGINS": "emoji"},
    ).stdout  # fmt: skip
    assert "emoji (emoji:emoji)" in told and "duty: Name the sources" in told and "by: Twemoji" in told


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["sdkit"] == {"emoji": "sdkit_emoji.plugin"}


def test_spec_states_licence_and_knowledge(model: sdkit.Model[TextStates]) -> None:
    spec = model.spec
    named = " ".join(spec.licence.attribution)
    for source in ("Twemoji", "Noto Emoji", "Fluent Emoji", "MiniLM", "WordNet", "emojibase"):
        assert source in named
    assert "fox" in spec.knows and len(set(spec.knows)) == len(spec.knows)
    assert spec.latent.shape((128, 128)) == (8, 16, 16)
    assert len(spec.sha256) == 64


def test_nothing_is_trainable_or_in_training_mode(model: sdkit.Model[TextStates], encoder: EmojiEncoder) -> None:
    assert isinstance(model.denoiser, sdkit.NetworkDenoiser)
    for network in (encoder.network, model.denoiser.network, model.autoencoder):
        assert isinstance(network, torch.nn.Module)
        assert not network.training
        assert not any(value.requires_grad for value in network.parameters())
        assert all(value.dtype == torch.float32 for value in network.parameters())


def test_two_loads_are_the_same_and_touch_no_global_random_state(model: sdkit.Model[TextStates]) -> None:
    before = torch.get_rng_state()
    again = load()
    assert torch.equal(before, torch.get_rng_state())
    assert again.spec == model.spec
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.autoencoder(x), model.autoencoder(x))


def test_text_states_have_one_shape(encoder: EmojiEncoder) -> None:
    states = encoder(["", "fox", "a very long prompt about " + "many things " * 40])
    assert states.tokens.shape == (3, encoder.network.length, 256)
    assert states.mask.shape == (3, encoder.network.length)
    assert states.pooled.shape == (3, 256)
    assert states.mask.any(dim=1).all()
    assert (states.tokens[~states.mask] == 0).all()
    assert encoder([]).tokens.shape == (0, encoder.network.length, 256)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_a_prompt_among_others_is_the_prompt_alone(encoder: EmojiEncoder, prompts: list[str]) -> None:
    together = encoder(prompts)
    alone = encoder(prompts[-1:])
    torch.testing.assert_close(together.tokens[-1:], alone.tokens, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.pooled[-1:], alone.pooled, atol=1e-4, rtol=1e-4)
    assert torch.equal(together.mask[-1:], alone.mask)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (8, 4)])
def test_an_item_of_a_batch_is_the_item_alone(model: sdkit.Model[TextStates], size: tuple[int, int]) -> None:
    x = torch.randn(3, 8, *size, generator=torch.Generator().manual_seed(0))
    cond = model.encoder(["fox", "red apple, 3d style", ""])
    level = model.schedule.level(0.6)
    together = model.denoiser(x, level, cond)
    assert together.shape == x.shape and together.isfinite().all()
    alone = model.denoiser(x[1:2], level, model.encoder(["red apple, 3d style"]))
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
    images = model.autoencoder(x)
    assert images.shape == (3, 3, 8 * size[0], 8 * size[1])
    torch.testing.assert_close(images[1:2], model.autoencoder(x[1:2]), atol=1e-4, rtol=1e-4)


def test_conditionings_join(model: sdkit.Model[TextStates]) -> None:
    joined = sdkit.concatenate(model.encoder(["fox"]), model.encoder([""]))
    torch.testing.assert_close(joined.pooled, model.encoder(["fox", ""]).pooled, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.02, 0.5, 1.0])
def test_the_denoiser_is_defined_at_every_level(model: sdkit.Model[TextStates], t: float) -> None:
    x = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = model.denoiser(x, model.schedule.level(t), model.encoder(["key, 3d style"]))
    assert out.dtype == x.dtype and out.isfinite().all()


def test_what_is_drawn_comes_back_through_the_autoencoder(model: sdkit.Model[TextStates]) -> None:
    image = picture(model, "red heart, 3d style")[None]
    latents = model.autoencoder.encode(image)
    assert latents.shape == (1, 8, 16, 16)
    again = model.autoencoder(latents)
    assert again.min() >= 0 and again.max() <= 1
    psnr = -10 * torch.log10((again - image).square().mean())
    assert psnr > 24  # dB


def test_the_picture_follows_the_prompt(model: sdkit.Model[TextStates]) -> None:
    heart, tree = (picture(model, f"{name}, flat fluent style") for name in ("red heart", "evergreen tree"))
    assert heart[0, 44:84, 44:84].mean() > 1.5 * heart[1, 44:84, 44:84].mean()  # more red than green
    assert tree[1].sum() > tree[0].sum() + 100  # more green than red
    for image in (heart, tree):
        assert image[:, :6, :6].mean() > 0.9  # on white


def test_threads_share_one_model(model: sdkit.Model[TextStates]) -> None:
    expected = picture(model, "fox", steps=4)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(picture(model, "fox", steps=4))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for image in found:
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


def test_known_prompts_get_no_hint(encoder: EmojiEncoder) -> None:
    for prompt in ("red apple, 3d style", "A fox in flat fluent style", "foxes", "", "umbrella with rain drops"):
        assert encoder.hints(prompt) == []


def test_unknown_words_get_the_nearest_concepts(encoder: EmojiEncoder) -> None:
    (hint,) = encoder.hints("submarine, 3d style")
    assert "'submarine'" in hint and "knows" in hint
    (hint,) = encoder.hints("fox, watercolor style")
    assert "watercolor" in hint and "flat twitter" in hint
    assert "automobile" in encoder.nearest("car")


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=300))
def test_hints_never_raise(encoder: EmojiEncoder, prompt: str) -> None:
    assert all(isinstance(line, str) for line in encoder.hints(prompt))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(sdkit.FileError, match="safetensors"):
        load(folder=tmp_path)
    for path in WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"denoiser": {"width": 3}}), encoding="utf-8")
    with pytest.raises(sdkit.FileError, match="damaged or of another version"):
        load(folder=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "text.safetensors").write_bytes(b"not weights")
    with pytest.raises(sdkit.FileError):
        load(folder=tmp_path)


def test_a_pipeline_is_composed_of_the_bare_parts(model: sdkit.Model[TextStates]) -> None:
    own = sdkit.Pipeline(
        encoder=model.encoder,
        denoiser=sdkit.guided(model.denoiser, scale=4.0),
        scheduler=sdkit.Euler(),
        decoder=model.autoencoder,
        spacing=sdkit.Trailing(),
    )
    request = sdkit.Request("red heart, 3d style", seeds=(3,), steps=5, guidance=4.0)
    assert torch.equal(own(request).latents, sdkit.pipeline(model)(request).latents)


def test_words_of_backgrounds_are_known_and_words_kept_out_of_training_are_not(model: sdkit.Model[TextStates]) -> None:
    encoder = model.encoder
    assert isinstance(encoder, EmojiEncoder)
    assert encoder.hints("a koala on a sky blue background, 3d style") == []
    (hint,) = encoder.hints("puppy, 3d style")
    assert "not trained on 'puppy'" in hint

"""Prompts in dialects, long ones, CLIP skip and textual inversions, against transformers and diffusers by hand."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import attrs
import diffusers
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import NEGATIVE, PROMPT
from safetensors.torch import save_file
from torch import Tensor

import sdkit
from sdkit_diffusers.modifiers import ClipSkip, TextualInversion
from sdkit_diffusers.tokens import clip_tokenizer
from sdkit_prompts.modifier import flat
from sdkit_prompts.tree import Text

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LONG = "a fox " * 74 + "in deep snow"  # 151 tokens


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    parts = tiny.sd1()
    place = tmp_path_factory.mktemp("sd1") / "one.safetensors"
    return parts, sdkit.load(tiny.save_original("sd1", parts, place), sha256=False)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    parts = tiny.sdxl()
    place = tmp_path_factory.mktemp("sdxl") / "one.safetensors"
    return parts, sdkit.load(tiny.save_original("sdxl", parts, place), sha256=False)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    place = tmp_path_factory.mktemp("sd3")
    parts = tiny.sd3(place / "t5")
    file = tiny.save_original("sd3", parts, place / "one.safetensors")
    return parts, sdkit.load(file, sha256=False, t5_tokenizer=place / "t5")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    place = tmp_path_factory.mktemp("flux")
    parts = tiny.flux(place / "t5")
    file = tiny.save_original("flux", parts, place / "one.safetensors")
    return parts, sdkit.load(file, sha256=False, t5_tokenizer=place / "t5")


def latents(model: Any, prompt: str, *modifiers: Any, **more: Any) -> Tensor:
    request = sdkit.Request(prompt, seeds=(3,), steps=2, size=(64, 64), modifiers=modifiers, **more)
    made: Tensor = sdkit.pipeline(model, scheduler="euler")(request).latents
    return made


def modified(model: Any, modifier: Any) -> Any:
    """The model's encoder as a modifier has it."""
    with modifier.apply(sdkit.Parts(model.encoder, model.denoiser, sdkit.Euler(), model.autoencoder)) as parts:
        return parts.encoder


def ids_of(parts: Any, text: str, *, tokenizer: str = "tokenizer") -> list[int]:
    found: list[int] = parts[tokenizer](text, add_special_tokens=False).input_ids
    return found


def rows(parts: Any, tokens: list[int], pad: int = 49407) -> Tensor:
    marked = [49406, *tokens, 49407]
    return torch.tensor([[*marked, *[pad] * (77 - len(marked))]])


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("dialect", ["plain", "a1111", "compel"])
def test_a_prompt_without_syntax_is_what_it_was(family: str, dialect: str, request: pytest.FixtureRequest) -> None:
    _, model = request.getfixturevalue(family)
    more: dict[str, Any] = {} if family == "flux" else {"negative": NEGATIVE, "guidance": 3.0}
    plain = latents(model, "a red fox", **more)
    assert torch.equal(latents(model, "a red fox", f"prompts(dialect={dialect!r})", **more), plain)


@pytest.mark.parametrize("law", ["a1111", "comfyui"])
def test_weights_act_on_the_states_of_their_tokens(law: str, sd1: Any) -> None:
    """The network is transformers' own, and the law is written out."""
    parts, model = sd1
    found = model.encoder.weighted([flat("a (red:1.5) fox, [snow]")], law).states
    pieces = [("a ", 1.0), ("red", 1.5), (" fox, ", 1.0), ("snow", 1 / 1.1)]
    tokens = [(token, weight) for text, weight in pieces for token in ids_of(parts, text)]
    row = rows(parts, [token for token, _ in tokens])
    weights = torch.tensor([1.0, *[weight for _, weight in tokens], *[1.0] * (76 - len(tokens))])
    z, empty = (parts["text_encoder"](given).last_hidden_state[0] for given in (row, rows(parts, [])))
    if law == "a1111":
        expected = z * weights[:, None]
        expected *= z.mean() / expected.mean()
    else:
        expected = empty + (z - empty) * weights[:, None]
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert float((found[0] - z).abs().max()) > 0.1


def test_weights_of_compel_leave_words_out(sd1: Any) -> None:
    """Below 1 the prompt is mixed with itself without the words, which are masked in the attention."""
    parts, model = sd1
    found = model.encoder.weighted([flat("(red)0.5 fox", "compel")], "compel").states
    tokens = ids_of(parts, "red fox")
    row = rows(parts, tokens)
    count = len(ids_of(parts, "red"))
    mask = torch.ones_like(row)
    mask[0, 1 : 1 + count] = 0
    network = parts["text_encoder"]
    z, empty = (network(given).last_hidden_state[0] for given in (row, rows(parts, [])))
    without = network(row, attention_mask=mask).last_hidden_state[0]
    weights = torch.ones(77)
    weights[1 : 1 + count] = 0.5
    laid = [empty + (one - empty) * weights[:, None] for one in (z, without)]
    torch.testing.assert_close(found[0], (laid[0] + laid[1]) / 2, rtol=1e-4, atol=1e-5)


def test_both_encoders_of_xl_are_weighted_and_the_pooled_vector_is_not(sdxl: Any) -> None:
    parts, model = sdxl
    found = model.encoder.weighted([flat("a (red:1.5) fox"), ()], "comfyui")
    tokens = ids_of(parts, "a red fox")
    weights = torch.ones(77)
    weights[2] = 1.5
    expected = []
    for name, pad in (("text_encoder", 49407), ("text_encoder_2", 0)):
        z, empty = (
            parts[name](rows(parts, given, pad), output_hidden_states=True).hidden_states[-2][0]
            for given in (tokens, [])
        )
        expected.append(empty + (z - empty) * weights[:, None])
    torch.testing.assert_close(found.states[0], torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)
    pooled = parts["text_encoder_2"](rows(parts, tokens, 0)).text_embeds
    torch.testing.assert_close(found.pooled[:1], pooled, rtol=1e-4, atol=1e-5)
    assert not found.states[1].any() and not found.pooled[1].any()  # an empty prompt is zeros, here too


@pytest.mark.parametrize("law", ["a1111", "comfyui", "compel"])
def test_weights_act_on_t5(law: str, flux: Any) -> None:
    parts, model = flux
    found = model.encoder.weighted([(Text("a "), Text("red", 0.5), Text(" fox"))], law)
    row = [*parts["tokenizer_2"]("a red fox", add_special_tokens=False).input_ids, 1]
    ids = torch.tensor([row + [0] * (256 - len(row)), [1] + [0] * 255])
    network = parts["text_encoder_2"]
    z, empty = network(ids)[0]
    weights = torch.ones(256)
    weights[2:5] = 0.5
    if law == "a1111":
        expected = z * weights[:, None]
        expected *= z.mean() / expected.mean()
    else:
        expected = empty + (z - empty) * weights[:, None]
    if law == "compel":
        mask = torch.ones(1, 256)
        mask[0, 2:5] = 0
        without = network(ids[:1], attention_mask=mask)[0][0]
        expected = (expected + empty + (without - empty) * weights[:, None]) / 2
    torch.testing.assert_close(found.states[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled, model.encoder(["a red fox"]).pooled)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_long_prompt_changes_with_its_last_word(family: str, request: pytest.FixtureRequest) -> None:
    parts, model = request.getfixturevalue(family)
    assert len(ids_of(parts, LONG)) == 151
    other = LONG.replace("snow", "sand")
    read = "prompts(dialect='plain')"
    assert torch.equal(latents(model, LONG), latents(model, other))  # a plain prompt is cut off, and told: see below
    far = latents(model, LONG, read, guidance=3.0) - latents(model, other, read, guidance=3.0)
    assert float(far.abs().max()) > 1e-3
    states = model.encoder.weighted([flat(LONG, "plain")], "comfyui").states
    assert states.shape[1] == 3 * 77
    first = model.encoder([("a fox " * 38)[:-5]]).states  # 75 tokens
    torch.testing.assert_close(states[:, :77], first, rtol=1e-4, atol=1e-5)


def test_what_is_cut_is_told(sd1: Any, sd3: Any, flux: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdkit"):
        sd1[1].encoder([LONG, LONG])
        sd3[1].encoder.weighted([flat(f"({LONG}:1.2)")], "a1111")
        flux[1].encoder([LONG])
    assert [record.getMessage() for record in caplog.records] == [
        f"The text encoder reads 75 tokens of a plain prompt; the rest is cut off: {LONG[38 * 6 - 4 :]!r}.",
        f"The prompt is too long: its last 76 tokens are cut off: {LONG[38 * 6 - 4 :]!r}.",
        f"T5 reads 255 tokens; the rest is cut off: {' '.join(LONG[255:])!r}.",
        f"T5 reads 255 tokens of a plain prompt; the rest is cut off: {LONG[255:]!r}.",
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "sdkit"):
        sd1[1].encoder.weighted([flat(LONG)], "a1111")
    assert not caplog.records


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_clip_skip_is_that_of_diffusers(
    family: str, number: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, model = request.getfixturevalue(family)
    # diffusers looks for the name that transformers had before release 5
    monkeypatch.setitem(parts["text_encoder"].__dict__, "text_model", parts["text_encoder"])
    if family == "sdxl" and number == 3:
        number = 2  # the tiny text encoder has three layers, of which XL leaves one out
    kind = {"sd1": diffusers.StableDiffusionPipeline, "sdxl": diffusers.StableDiffusionXLPipeline}[family]
    theirs = tiny.pipeline(kind, parts).encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=number - 1 or None
    )[0]
    mine = modified(model, ClipSkip(number))([PROMPT]).states
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    weighted = modified(model, ClipSkip(number)).weighted([flat(f"({PROMPT}:1.0000001)", "a1111")], "comfyui").states
    torch.testing.assert_close(weighted, theirs, rtol=1e-4, atol=1e-4)
    if number > 1:
        assert not torch.allclose(mine, model.encoder([PROMPT]).states, atol=0.01)


def test_clip_skip_travels_and_refuses(sd1: Any, flux: Any) -> None:
    request = sdkit.Request("a fox", seeds=(3,), steps=2, size=(64, 64), modifiers=("clip-skip(number=2)",))
    result = sdkit.pipeline(sd1[1], scheduler="euler")(request)
    again = sdkit.from_json(sdkit.to_json(result.manifest), sdkit.Manifest)
    assert again.request.modifiers == (ClipSkip(2),)
    with_dialect = latents(sd1[1], "a fox", "prompts", "clip-skip(number=2)")  # the other way round, too
    assert torch.equal(with_dialect, latents(sd1[1], "a fox", "clip-skip(number=2)", "prompts"))
    assert torch.equal(with_dialect, result.latents)
    with pytest.raises(sdkit.InvalidRequest, match="leaves out up to 3 layers"):
        latents(sd1[1], "a fox", "clip-skip(number=4)")
    with pytest.raises(sdkit.InvalidRequest, match="reads no states of CLIP"):
        latents(flux[1], "a fox", "clip-skip(number=2)")
    with pytest.raises(sdkit.ParameterError, match="counts layers from 1"):
        ClipSkip(0)


# --- textual inversions -----------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 21) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def taught(network: Any, vectors: Tensor) -> Any:
    """A copy of a text encoder whose vocabulary has the vectors at its end."""
    made = copy.deepcopy(network)
    table = made.get_input_embeddings()
    table.weight = torch.nn.Parameter(torch.cat([table.weight, vectors]), requires_grad=False)
    table.num_embeddings = len(table.weight)
    return made


def test_a_textual_inversion_is_words_of_the_vocabulary(sd1: Any, tmp_path: Path) -> None:
    parts, model = sd1
    vectors = drawn(3, 64) * 0.5
    save_file({"emb_params": vectors}, tmp_path / "my-style.safetensors")
    encoder = modified(model, TextualInversion(str(tmp_path / "my-style.safetensors")))
    tokens = [*ids_of(parts, "a fox, "), 49408, 49409, 49410, *ids_of(parts, " in snow")]
    expected = taught(parts["text_encoder"], vectors)(rows(parts, tokens)).last_hidden_state
    for states in (
        encoder(["a fox, my-style in snow"]).states,
        encoder.weighted([(Text("a fox, my-style in snow"), Text(", red", 1.2))], "comfyui").states[
            :, : len(tokens) + 1
        ],
    ):
        torch.testing.assert_close(states, expected[:, : states.shape[1]], rtol=1e-4, atol=1e-5)
    # a part of another word is none, and the model itself knows nothing of it
    assert torch.equal(encoder(["my-styled"]).states, model.encoder(["my-styled"]).states)
    assert not torch.allclose(model.encoder(["a fox, my-style in snow"]).states, expected, atol=0.01)


def test_inversions_of_xl_have_a_part_for_each_encoder(sdxl: Any, tmp_path: Path) -> None:
    parts, model = sdxl
    left, right = drawn(2, 64) * 0.5, drawn(2, 64, seed=22) * 0.5
    save_file({"clip_l": left, "clip_g": right}, tmp_path / "thing.safetensors")
    made = modified(model, TextualInversion(str(tmp_path)))(["a thing"])
    tokens = [*ids_of(parts, "a"), 49408, 49409]
    expected = []
    for name, vectors, pad in (("text_encoder", left, 49407), ("text_encoder_2", right, 0)):
        network = taught(parts[name], vectors)
        network.config.eos_token_id = 49407
        getattr(network, "text_model", network).eos_token_id = 49407  # the pooled vector is that of the end
        out = network(rows(parts, tokens, pad), output_hidden_states=True)
        expected.append(out.hidden_states[-2])
    torch.testing.assert_close(made.states, torch.cat(expected, dim=2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.pooled, out.text_embeds, rtol=1e-4, atol=1e-5)


def test_inversions_that_do_not_fit_are_refused(sd1: Any, flux: Any, tmp_path: Path) -> None:
    save_file({"emb_params": drawn(2, 1024)}, tmp_path / "other.safetensors")
    modifier = TextualInversion(str(tmp_path))
    with pytest.raises(sdkit.FileError, match=r"\(2, 1024\); this model's text encoder reads \(n, 64\)"):
        latents(sd1[1], "an other", modifier)
    latents(sd1[1], "a fox", modifier)  # what is not named is not read
    with pytest.raises(sdkit.InvalidRequest, match="read no textual inversions"):
        latents(flux[1], "an other", modifier)
    (tmp_path / "x.pt").write_bytes(b"\x80\x02")
    with pytest.raises(sdkit.FileError, match="convert a pickle"):
        latents(sd1[1], "an other", TextualInversion(str(tmp_path / "x.pt")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(sdkit.FileError, match="no textual inversions"):
        latents(sd1[1], "a fox", attrs.evolve(modifier, path=str(tmp_path / "empty")))


@given(st.text(max_size=40))
def test_words_come_back_from_their_numbers(text: str) -> None:
    tokenizer = clip_tokenizer()
    tokens = tokenizer.tokens(text)
    assert tokenizer.tokens(tokenizer.words(tokens)) == tokens or "\ufffd" in tokenizer.words(tokens)


THEIRS = tiny.clip_tokenizer()


@given(st.text(max_size=60))
def test_our_tokenizer_is_that_of_transformers(text: str) -> None:
    mine = clip_tokenizer()([text])
    given = THEIRS([text], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert mine.tolist() == given.tolist()

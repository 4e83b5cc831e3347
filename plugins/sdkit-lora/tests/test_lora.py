"""Adapters: what each kind means, where keys belong, and the laws of putting them on and off."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sdkit
from sdkit_lora import AdapterError, IncompatibleAdapter, KeyMap, Lora, UnmatchedKeys, cached, on, open_adapter, targets
from sdkit_lora.applying import Active, Bypass, Table
from sdkit_lora.deltas import Delta, Dense, Dora, LoHa, LoKr, LowRank, Replacement
from sdkit_lora.keys import Place

GENERATOR = torch.Generator()


def draw(*shape: int, scale: float = 0.3, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float() * scale


def kinds(weight: Tensor) -> dict[str, Delta]:
    """One delta of every kind for a weight, matrix or convolution."""
    out, into, kernel = weight.shape[0], weight.shape[1], tuple(weight.shape[2:])
    ones = [1] * len(kernel)
    low = LowRank(draw(3, into, *kernel, seed=1), draw(out, 3, *ones, seed=2), alpha=2.0)
    found: dict[str, Delta] = {
        "lora": low,
        "loha": LoHa(
            draw(out, 2, seed=3), draw(2, weight[0].numel(), seed=4), draw(out, 2), draw(2, weight[0].numel())
        ),
        "lokr": LoKr(w1=draw(2, 2, seed=5), w2=draw(out // 2, into // 2, *kernel, seed=6)),
        "lokr-ab": LoKr(w1=draw(2, 2), w2_a=draw(out // 2, 2), w2_b=draw(2, into // 2, *kernel, seed=7), alpha=1.0),
        "full": Dense(draw(*weight.shape, seed=8)),
        "replacement": Replacement(draw(*weight.shape, seed=9)),
        "dora": Dora(low, draw(out, 1, *ones, seed=10).abs() + 0.5),
        "dora-columns": Dora(low, draw(1, into, *ones, seed=11).abs() + 0.5),
    }
    if kernel:
        found["tucker"] = LowRank(draw(3, into, *ones, seed=1), draw(out, 3, *ones), draw(3, 3, *kernel), 2.0)
        found["loha-tucker"] = LoHa(
            draw(2, out),
            draw(2, into, seed=2),
            draw(2, out, seed=3),
            draw(2, into),
            draw(2, 2, *kernel),
            draw(2, 2, *kernel),
        )
    return found


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {}
for _name, _layer, _x in (
    ("linear", nn.Linear(6, 8), draw(2, 5, 6, seed=20)),
    ("conv", nn.Conv2d(6, 8, 3, padding=1, stride=2), draw(2, 6, 7, 7, seed=21)),
    ("conv1x1", nn.Conv2d(6, 8, 1), draw(2, 6, 4, 4, seed=22)),
):
    with torch.no_grad():
        _layer.weight.copy_(draw(*_layer.weight.shape, seed=30))
        _layer.bias.copy_(draw(8, seed=31))  # type: ignore[union-attr]
    LAYERS[_name] = (_layer.requires_grad_(False), _x)


def with_weight(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the layer would give with another weight: the definition the bypass is held to."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


@pytest.mark.parametrize("where", list(LAYERS))
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_every_kind_adds_strength_times_its_matrix(where: str, merge: bool, strength: float) -> None:
    layer, x = LAYERS[where]
    keys = KeyMap.of({"unet": nn.Sequential(layer)})
    for kind, delta in kinds(layer.weight).items():  # type: ignore[arg-type]
        assert delta.fits(layer.weight.shape), kind  # type: ignore[arg-type]
        table = Table.of(keys, [Active("a", {Place("unet", "0"): delta}, strength, merge)])
        with Bypass(table) as scope:
            got = layer(x)
        expected = with_weight(layer, layer.weight + strength * delta.matrix(layer.weight), x)  # type: ignore
        assert scope.hits, kind
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5), (kind, float((got - expected).abs().max()))
        assert (got - layer(x)).abs().max() > 1e-3, kind


@given(seed=st.integers(0, 2**31), start=st.integers(0, 6), rows=st.integers(1, 2))
@settings(max_examples=20)
def test_rows_of_a_delta_are_rows_of_its_matrix(seed: int, start: int, rows: int) -> None:
    weight = draw(8, 6, seed=seed)
    for kind, delta in kinds(weight).items():
        if kind == "dora-columns":
            continue
        part = delta.rows(start, start + rows)
        window = weight[start : start + rows]
        assert part.fits(window.shape), kind
        torch.testing.assert_close(
            part.matrix(window), delta.matrix(weight)[start : start + rows], rtol=1e-5, atol=1e-6
        )


def test_lokr_with_two_whole_factors_ignores_alpha() -> None:
    weight = draw(8, 6)
    plain = LoKr(w1=draw(2, 2), w2=draw(4, 3))
    wild = LoKr(w1=draw(2, 2), w2=draw(4, 3), alpha=1e9)
    assert torch.equal(plain.matrix(weight), wild.matrix(weight))
    torch.testing.assert_close(plain.matrix(weight), torch.kron(draw(2, 2), draw(4, 3)))


def test_dora_keeps_the_magnitude_it_states() -> None:
    weight = draw(8, 6)
    dora = kinds(weight)["dora"]
    assert isinstance(dora, Dora)
    norms = (weight + dora.matrix(weight)).norm(dim=1)
    torch.testing.assert_close(norms, dora.magnitude.flatten())


# The emoji model is the target of the laws: it is here, it is small, and it has both networks.


@pytest.fixture(scope="module")
def model() -> sdkit.Model[Any]:
    return sdkit.load("emoji")


def layers(model: sdkit.Model[Any], target: str, count: int = 6) -> list[tuple[str, nn.Linear]]:
    network = targets(model.encoder, model.denoiser)[target]
    return [(name, one) for name, one in network.named_modules() if isinstance(one, nn.Linear)][:count]


@pytest.fixture(scope="module")
def files(model: sdkit.Model[Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter files in kohya's format: for the denoiser, for the text encoder, for both."""
    folder = tmp_path_factory.mktemp("adapters")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, wanted, seed in (
        ("unet", ("unet",), 1),
        ("text", ("text_encoder",), 2),
        ("both", ("unet", "text_encoder"), 3),
    ):
        tensors[name] = {}
        for target in wanted:
            prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[target]
            for k, (path, layer) in enumerate(layers(model, target)):
                stem = prefix + path.replace(".", "_")
                tensors[name][f"{stem}.lora_down.weight"] = draw(4, layer.in_features, seed=100 * seed + k)
                tensors[name][f"{stem}.lora_up.weight"] = draw(layer.out_features, 4, seed=200 * seed + k)
                tensors[name][f"{stem}.alpha"] = torch.tensor(2.0)
    for name, one in tensors.items():
        save_file(one, folder / f"{name}.safetensors", metadata={"ss_trigger_words": f"{name} style"})
    return {name: folder / f"{name}.safetensors" for name in tensors}


def latents(model: sdkit.Model[Any], *modifiers: Any, seeds: tuple[int, ...] = (3,), **more: Any) -> Tensor:
    request = sdkit.Request("a fox", seeds=seeds, steps=3, modifiers=modifiers, **more)
    return sdkit.pipeline(model)(request).latents


def fingerprint(model: sdkit.Model[Any]) -> str:
    digest = hashlib.sha256()
    for network in targets(model.encoder, model.denoiser).values():
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
            assert not getattr(tensor, "_forward_hooks", None)
    return digest.hexdigest()


@pytest.mark.parametrize("which", ["unet", "text", "both"])
@pytest.mark.parametrize("merge", [False, True])
def test_strength_zero_is_not_loaded_and_one_is_something(
    model: sdkit.Model[Any], files: dict[str, Path], which: str, merge: bool
) -> None:
    bare = latents(model)
    assert torch.equal(latents(model, Lora(files[which], 0.0, merge=merge)), bare)
    assert not torch.allclose(latents(model, Lora(files[which], 1.0, merge=merge)), bare, atol=1e-3)


def test_after_the_scope_every_weight_is_as_before(model: sdkit.Model[Any], files: dict[str, Path]) -> None:
    before, bare = fingerprint(model), latents(model)
    latents(model, Lora(files["both"], 1.3), Lora(files["unet"], -0.4, merge=True))
    with pytest.raises(ZeroDivisionError), on(model, Lora(files["both"])):
        1 / 0  # noqa: B018
    assert fingerprint(model) == before
    assert torch.equal(latents(model), bare)


def test_adapters_commute_and_merged_is_bypassed(model: sdkit.Model[Any], files: dict[str, Path]) -> None:
    one, two = Lora(files["unet"], 0.8), Lora(files["both"], 0.5)
    assert torch.equal(latents(model, one, two), latents(model, two, one))
    merged = latents(model, Lora(files["unet"], 0.8, merge=True), two)
    torch.testing.assert_close(merged, latents(model, one, two), rtol=1e-3, atol=1e-3)


@given(first=st.floats(-2, 2), second=st.floats(-2, 2))
@settings(max_examples=10)
def test_strengths_of_one_file_add(
    model: sdkit.Model[Any], files: dict[str, Path], first: float, second: float
) -> None:
    keys = KeyMap.of(targets(model.encoder, model.denoiser))
    deltas = open_adapter(files["unet"]).fitted(keys).deltas
    layer = layers(model, "unet", 1)[0][1]
    x = draw(2, layer.in_features)
    twice = Table.of(keys, [Active("a", deltas, first), Active("b", deltas, second)])
    once = Table.of(keys, [Active("a", deltas, first + second)])
    results = []
    for table in (twice, once):
        with Bypass(table):
            results.append(layer(x))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["unet", "text", "both"])
def test_each_image_of_a_batch_may_have_its_own(model: sdkit.Model[Any], files: dict[str, Path], which: str) -> None:
    together = latents(model, Lora(files[which], (1.0, 0.0, -0.5)), seeds=(1, 2, 3))
    for k, (seed, strength) in enumerate([(1, 1.0), (2, 0.0), (3, -0.5)]):
        alone = latents(model, Lora(files[which], strength), seeds=(seed,))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-3, atol=1e-3)
    with pytest.raises(sdkit.SdkitError, match="3 images"):
        latents(model, Lora(files[which], (1.0, 0.0, -0.5)), seeds=(1, 2))


def test_two_threads_with_different_adapters_do_not_see_each_other(
    model: sdkit.Model[Any], files: dict[str, Path]
) -> None:
    wanted = {k: latents(model, Lora(files[k])) for k in files}
    bare = latents(model)
    wrong: list[str] = []

    def run(name: str | None) -> None:
        for _ in range(3):
            got = latents(model, Lora(files[name])) if name else latents(model)
            if not torch.equal(got, wanted[name] if name else bare):
                wrong.append(str(name))

    threads = [threading.Thread(target=run, args=(name,)) for name in (*files, None, *files)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_a_request_with_an_adapter_travels_and_reruns(
    model: sdkit.Model[Any], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files["unet"].parent)
    request = sdkit.Request("a fox", steps=2, modifiers=(Lora("unet.safetensors", 0.8, text_strength=0.5),))
    assert sdkit.from_json(sdkit.to_json(request), sdkit.Request) == request
    sdkit.pipeline(model)(request).save(tmp_path / "fox.png")
    assert sdkit.rerun(tmp_path / "fox.png").same


def test_one_file_is_read_once_and_a_changed_one_again(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    path.write_bytes(files["unet"].read_bytes())
    first = open_adapter(path)
    assert open_adapter(path) is first
    path.write_bytes(files["text"].read_bytes())
    assert open_adapter(path).sha256 == open_adapter(files["text"]).sha256 != first.sha256


# Files that do not fit


def test_keys_without_a_place_are_an_error_that_lists_them(
    model: sdkit.Model[Any], files: dict[str, Path], tmp_path: Path
) -> None:
    tensors = dict(open_adapter(files["unet"]).tensors)
    tensors["lora_unet_nowhere.lora_down.weight"] = draw(4, 8)
    tensors["lora_unet_nowhere.lora_up.weight"] = draw(8, 4)
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path)
    with pytest.raises(UnmatchedKeys, match=r"2 of 20 keys .*lora_unet_nowhere"):
        latents(model, Lora(path))
    latents(model, Lora(path, unmatched="skip"))


def test_another_family_is_named(model: sdkit.Model[Any], tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{stem}.lora_down.weight": draw(4, 2048), f"{stem}.lora_up.weight": draw(8, 4)}, path)
    with pytest.raises(IncompatibleAdapter, match="made for sdxl"):
        latents(model, Lora(path))


@pytest.mark.parametrize(
    ("key", "kind"),
    [("a1.weight", "GLoRA"), ("oft_blocks", "OFT"), ("on_input", "IA3"), ("lora_embedding_A", "embedding")],
)
def test_kinds_that_are_not_applied_are_refused_by_name(
    model: sdkit.Model[Any], tmp_path: Path, key: str, kind: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({f"lora_unet_{layers(model, 'unet', 1)[0][0].replace('.', '_')}.{key}": draw(4, 4)}, path)
    with pytest.raises(AdapterError, match=kind):
        latents(model, Lora(path))


def test_damaged_and_missing_files_are_one_sentence(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(sdkit.FileError, match=r"'none.safetensors' cannot be read \(No such file"):
        open_adapter(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["unet"].read_bytes()[:-100])
    with pytest.raises(sdkit.FileError, match="damaged"):
        open_adapter(cut)
    with pytest.raises(sdkit.FileError, match="pickle"):
        open_adapter(tmp_path / "old.pt")
    with pytest.raises(sdkit.ParameterError, match="strength"):
        Lora("x.safetensors", float("nan"))


@given(st.dictionaries(st.text(min_size=1, max_size=40), st.just(None), min_size=1, max_size=5))
@settings(max_examples=50)
def test_arbitrary_keys_never_crash(model: sdkit.Model[Any], names: dict[str, None]) -> None:
    from sdkit_lora.formats import read

    keys = KeyMap.of(targets(model.encoder, model.denoiser))
    try:
        parsed = read({name: draw(2, 2) for name in names}, keys)
    except AdapterError:
        return
    assert not parsed.deltas and set(parsed.unmatched) == set(names)


def test_peft_configuration_gives_the_scale(model: sdkit.Model[Any], tmp_path: Path) -> None:
    path, layer = layers(model, "unet", 1)[0]
    folder = tmp_path / "peft"
    folder.mkdir()
    down, up = draw(4, layer.in_features), draw(layer.out_features, 4)
    stem = f"base_model.model.{path}"
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, folder / "adapter_model.safetensors")
    keys = KeyMap.of(targets(model.encoder, model.denoiser))
    for config, scale in (
        ({"lora_alpha": 8, "r": 4}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "r": 4, "alpha_pattern": {path: 2}}, 0.5),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config))
        deltas = open_adapter(folder).fitted(keys).deltas
        matrix = deltas[Place("unet", path)].matrix(layer.weight)
        torch.testing.assert_close(matrix, scale * up @ down)


# What is kept, and for how long


def test_switching_adapters_a_hundred_times_keeps_a_bounded_memory(
    model: sdkit.Model[Any], files: dict[str, Path], tmp_path: Path
) -> None:
    from sdkit_lora import files as kept

    paths = []
    for k in range(10):
        path = tmp_path / f"{k}.safetensors"
        tensors = {name: value + k for name, value in open_adapter(files["unet"]).tensors.items()}
        save_file(tensors, path)
        paths.append(path)
    network = targets(model.encoder, model.denoiser)["text_encoder"]
    first = sizes = None
    for turn in range(100):
        with on(model, Lora(paths[turn % 10], 0.5 + turn / 1000, merge=turn % 2 == 0)):
            pass
        sizes = (len(kept._FILES), sum(len(known) for known in kept._MEANINGS.values()))
        if turn == 9:
            first = sizes
    assert sizes == first
    assert len(kept._MEANINGS[network]) <= kept.KEPT
    for k in range(2 * kept.KEPT):
        save_file({**tensors, "extra.diff": torch.tensor([float(k)])}, tmp_path / "many.safetensors")
        with on(model, Lora(tmp_path / "many.safetensors", unmatched="skip")):
            pass
    assert len(kept._FILES) <= kept.KEPT and len(kept._MEANINGS[network]) <= kept.KEPT


def test_an_adapter_does_not_keep_a_model_in_memory(files: dict[str, Path]) -> None:
    import gc
    import weakref

    with sdkit.load("emoji") as brief:
        networks = [weakref.ref(one) for one in targets(brief.encoder, brief.denoiser).values()]
        with on(brief, Lora(files["both"])) as adapted:
            del adapted
    del brief
    gc.collect()
    assert [ref() for ref in networks] == [None, None]


def test_a_layer_that_was_exchanged_is_seen() -> None:
    network = nn.Sequential(nn.Sequential(LAYERS["linear"][0]))
    before = KeyMap.of({"unet": network})
    exchanged = nn.Linear(6, 8, bias=False, device="meta")
    inner = network[0]
    assert isinstance(inner, nn.Sequential)
    inner[0] = exchanged
    after = KeyMap.of({"unet": network})
    assert after.parameter(Place("unet", "0.0")) is exchanged.weight
    assert after.parameter(Place("unet", "0.0", "bias")) is None
    assert before.find("unet.0.0") == after.find("unet.0.0")


def test_a_file_that_is_overwritten_in_place_does_not_change_what_is_in_use(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "copy.safetensors"
    path.write_bytes(files["unet"].read_bytes())
    adapter = open_adapter(path)
    before = {name: value.clone() for name, value in adapter.tensors.items()}
    with path.open("r+b") as stream:
        stream.truncate(100)
        stream.seek(0)
        stream.write(bytes(100))
    assert all(torch.equal(adapter.tensors[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight"], "kohya"),
        (["unet.a.lora_A.weight", "unet.a.lora_B.weight"], "diffusers"),
        (["unet.a.attn1.processor.to_q_lora.down.weight"], "diffusers-old"),
        (["base_model.model.a.lora_A.weight"], "peft"),
        (["lycoris_a.lokr_w1"], "lycoris"),
        (["lora_transformer_a.lora_down.weight"], "onetrainer"),
        (["double_blocks.0.processor.qkv_lora1.down.weight"], "xlabs"),
        (["diffusion_model.a.lora_A.weight"], "generic"),
    ],
)
def test_a_file_belongs_to_the_most_particular_format(tmp_path: Path, keys: list[str], expected: str) -> None:
    save_file({key: draw(2, 2) for key in keys}, tmp_path / "one.safetensors")
    assert open_adapter(tmp_path / "one.safetensors").format() == expected


def test_tied_weights_take_the_deltas_of_both_places() -> None:
    layer, x = LAYERS["linear"]
    network = nn.ModuleDict({"a": layer, "b": nn.Linear(6, 8, bias=False, device="meta")})
    network["b"].weight = layer.weight
    deltas = kinds(layer.weight)  # type: ignore[arg-type]
    keys = KeyMap.of({"unet": network})
    active = Active("x", {Place("unet", "a"): deltas["lora"], Place("unet", "b"): deltas["full"]}, 1.0)
    with Bypass(Table.of(keys, [active])):
        got = layer(x)
    both = deltas["lora"].matrix(layer.weight) + deltas["full"].matrix(layer.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(got, with_weight(layer, layer.weight + both, x), rtol=1e-4, atol=1e-5)  # type: ignore


def test_a_column_dora_of_a_fused_weight_is_refused() -> None:
    with pytest.raises(AdapterError, match="cannot be taken apart"):
        kinds(draw(8, 6))["dora-columns"].rows(0, 4)


class OwnPair:
    """A denoiser that answers both sides of guidance at once in a way of its own, as wrappers of guidance do."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.schedule = inner.schedule

    def __call__(self, x: Tensor, level: sdkit.Level, cond: Any, /) -> Tensor:
        result: Tensor = self.inner(x, level, cond)
        return result

    def pair(self, x: Tensor, level: sdkit.Level, cond: Any, /) -> tuple[Tensor, Tensor]:
        return self(x, level, cond.positive), self(x, level, cond.negative)


@pytest.mark.parametrize("strength", [1.0, (1.0, -0.5)])
def test_an_adapter_reaches_a_denoiser_that_answers_both_sides_itself(
    model: sdkit.Model[Any], files: dict[str, Path], strength: Any
) -> None:
    seeds = (1, 2) if isinstance(strength, tuple) else (1,)
    wanted = latents(model, Lora(files["unet"], strength), seeds=seeds)
    own = attrs.evolve(model, denoiser=OwnPair(model.denoiser))
    got = latents(own, Lora(files["unet"], strength), seeds=seeds)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(got, latents(own, seeds=seeds), atol=1e-2)


class Counting:
    """An encoder that counts the prompts it encodes."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.count = inner, 0
        self.adapter_targets = {"text_encoder": inner.network}

    def __call__(self, prompts: Any, /) -> Any:
        self.count += len(prompts)
        return self.inner(prompts)


def test_remembered_prompts_are_encoded_once_for_each_set_of_adapters(
    model: sdkit.Model[Any], files: dict[str, Path]
) -> None:
    counting = Counting(model.encoder)
    own = attrs.evolve(model, encoder=cached(counting))
    bare = latents(model)
    assert torch.equal(latents(own), bare)
    asked = counting.count
    assert asked == 2  # the prompt and the empty negative one
    assert torch.equal(latents(own), bare)
    assert counting.count == asked
    for strength in (1.0, 0.5):
        adapter = Lora(files["text"], 1.0, text_strength=strength)
        assert torch.equal(latents(own, adapter), latents(model, adapter))
    assert counting.count == 3 * asked
    latents(own, Lora(files["text"], 1.0, text_strength=0.5))
    latents(own, Lora(files["unet"], 0.3))  # changes no text encoder
    assert counting.count == 3 * asked
    assert torch.equal(latents(own), bare)


def test_a_cache_is_bounded_and_leaves_images_with_adapters_of_their_own_alone(
    model: sdkit.Model[Any], files: dict[str, Path]
) -> None:
    counting = Counting(model.encoder)
    encoder = cached(counting, most=2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        torch.testing.assert_close(encoder([prompt]).pooled, model.encoder([prompt]).pooled)
    assert counting.count == 4
    own = attrs.evolve(model, encoder=cached(Counting(model.encoder)))
    adapter = Lora(files["text"], (1.0, 0.0))
    assert torch.equal(latents(own, adapter, seeds=(1, 2)), latents(model, adapter, seeds=(1, 2)))
    with pytest.raises(AdapterError, match="at least one"):
        cached(model.encoder, 0)

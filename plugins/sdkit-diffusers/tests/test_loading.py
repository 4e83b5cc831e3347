"""What is loaded and what is refused: folders, single files, damaged ones; from Python and from the shell."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit_diffusers.family import StableDiffusion
from sdkit_diffusers.tensors import read_header, sha256

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    return tiny.sd1()


@pytest.fixture(scope="module")
def folder(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_folder(diffusers.StableDiffusionPipeline, parts, tmp_path_factory.mktemp("sd1") / "my-model")


@pytest.fixture(scope="module")
def file(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_original("sd1", parts, tmp_path_factory.mktemp("sd1") / "my-model.safetensors")


def latents(model: Any) -> torch.Tensor:
    request = sdkit.Request("a fox", seeds=(3,), steps=2, size=(64, 64))
    made: torch.Tensor = sdkit.pipeline(model, scheduler="ddim", spacing="trailing")(request).latents
    return made


def shell(*arguments: str) -> int:
    from sdkit.cli import main

    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_generate_from_the_shell(
    layout: str, folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = shell(
        "generate", "a fox", "--model", str(folder if layout == "folder" else file), "--size", "64x64", "--steps", "2",
        "--seed", "1", "--out", "fox.png",
    )  # fmt: skip
    assert code == 0
    manifest = sdkit.read_manifest("fox.png")
    assert manifest.model == "my-model" and manifest.request.prompt == "a fox"
    assert manifest.licence == "CreativeML-OpenRAIL-M"
    assert manifest.model_sha256 == sha256([file]) or layout == "folder"


def test_the_plugin_module_loads_no_torch() -> None:
    code = (
        "import sys, sdkit_diffusers.plugin as p, sdkit_diffusers.family; p.sdkit_components(); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_folder_and_file_hold_the_same_model(folder: Path, file: Path) -> None:
    one, other = sdkit.load(folder, sha256=False), sdkit.load(file)
    assert one.spec.sha256 == "" and other.spec.sha256 == sha256([file])
    torch.testing.assert_close(latents(one), latents(other), rtol=0, atol=0)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_precision_variant_and_shards(parts: Any, folder: Path, tmp_path: Path) -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionPipeline, parts)
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="2MB", variant="fp16")
    names = [path.name for path in (tmp_path / "sharded" / "unet").glob("*.safetensors")]
    assert len(names) > 2 and all("fp16" in name for name in names)
    torch.testing.assert_close(latents(sdkit.load(tmp_path / "sharded")), latents(sdkit.load(folder)), rtol=0, atol=0)
    (tmp_path / "sharded" / "unet" / sorted(names)[0]).unlink()
    with pytest.raises(sdkit.FileError, match=f"has {len(names) - 1} of {len(names)} files"):
        sdkit.load(tmp_path / "sharded")


def test_the_variant_of_the_wanted_precision_is_read(parts: Any, tmp_path: Path) -> None:
    pipe = tiny.pipeline(diffusers.StableDiffusionPipeline, parts)
    pipe.save_pretrained(tmp_path)
    half = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    whole = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: torch.zeros_like(tensor, dtype=torch.float16) for name, tensor in whole.items()}, half)
    plain, low = sdkit.load(tmp_path), sdkit.load(tmp_path, dtype="float16")
    assert plain.denoiser.network.network.conv_in.weight.abs().sum() > 0  # type: ignore[attr-defined]
    assert low.denoiser.network.network.conv_in.weight.abs().sum() == 0  # type: ignore[attr-defined]


def test_weights_only_in_a_pickle(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(sdkit.FileError, match="only the pickle 'diffusion_pytorch_model.bin'; convert it"):
        sdkit.load(copy)


def test_a_folder_of_another_kind(tmp_path: Path) -> None:
    index = {"_class_name": "ShapEPipeline", "prior": ["shap_e", "PriorTransformer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(sdkit.FileError, match="ShapEPipeline"):
        sdkit.load(tmp_path)


def test_weights_that_do_not_fit_the_configuration(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 96}))
    with pytest.raises(sdkit.FileError, match=r"attn2\.to_k\.weight' has the shape \(\d+, 64\), but \(\d+, 96\)"):
        sdkit.load(copy)
    (copy / "unet" / "config.json").write_text(json.dumps({**config, "layers_per_block": 3}))
    with pytest.raises(sdkit.FileError, match=r"unet lacks the tensors 'down_blocks\.0\..* and \d+ more"):
        sdkit.load(copy)


# --- damaged files ----------------------------------------------------------------------------------------------------


def with_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED: dict[str, tuple[Any, bytes, str]] = {
    "cut off": ({"a": ONE}, b"\0" * 5, "cut off: 3 bytes are missing"),
    "too long": ({"a": ONE}, b"\0" * 9, "1 bytes too long"),
    "a wrong size": ({"a": {**ONE, "shape": [3]}}, b"\0" * 8, r"'a' of shape \(3,\) and dtype F32 has 8 bytes"),
    "an unknown dtype": ({"a": {**ONE, "dtype": "Q9"}}, b"\0" * 8, "unknown dtype 'Q9'"),
    "a negative side": ({"a": {**ONE, "shape": [-2]}}, b"\0" * 8, "damaged"),
    "an overlap": ({"a": ONE, "b": ONE}, b"\0" * 8, "overlap or leave a gap"),
    "no JSON": (b"{nothing", b"", "damaged"),
    "a list": ([1, 2], b"", "not a table of tensors"),
    "an entry without shape": ({"a": {"dtype": "F32"}}, b"", "damaged"),
    "deep nesting": (b"[" * 100_000, b"", "damaged"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_a_damaged_header(case: str, tmp_path: Path) -> None:
    header, data, message = DAMAGED[case]
    with pytest.raises(sdkit.FileError, match=message):
        read_header(with_header(tmp_path / "x.safetensors", header, data))


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 2**30))
        stream.truncate(2**31)  # a hole, which takes no room
    with pytest.raises(sdkit.FileError, match="header of 1073741824 bytes"):
        read_header(path)


def test_a_file_cut_off_in_the_middle(file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(file.read_bytes()[:100_000_0])
    with pytest.raises(sdkit.FileError, match="cut off"):
        sdkit.load(short)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x4B50], ids=["one byte", "two bytes", "PK"])
def test_a_header_whose_length_begins_as_a_pickle_does(length: int, tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length)
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)
    assert list(read_header(path)) == ["x"]


def test_a_pickle_under_another_name(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(sdkit.FileError, match="pickle"):
        sdkit.load(tmp_path / "x.safetensors")


def test_a_file_of_no_family_names_its_tensors(tmp_path: Path) -> None:
    save_file({"lora_unet_down.alpha": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(sdkit.FileError, match="'lora_unet_down.alpha'"):
        sdkit.load(tmp_path / "x.safetensors")


def test_missing_and_misshapen_tensors_are_named(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    save_file({name: one for name, one in tensors.items() if name != key}, tmp_path / "missing.safetensors")
    with pytest.raises(sdkit.FileError, match=r"unet lacks the tensors 'middle_block\.1\..*attn1\.to_q\.weight'"):
        sdkit.load(tmp_path / "missing.safetensors")
    save_file({**tensors, key: tensors[key][:3].clone()}, tmp_path / "wrong.safetensors")
    with pytest.raises(sdkit.FileError, match=r"attn1\.to_q\.weight' has the shape \(3, 64\), but \(64, 64\)"):
        sdkit.load(tmp_path / "wrong.safetensors")


def test_a_file_without_an_autoencoder(file: Path, folder: Path, tmp_path: Path, parts: Any) -> None:
    tensors = {name: one for name, one in load_file(file).items() if not name.startswith("first_stage_model.")}
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(sdkit.FileError, match="no vae.*give vae=PATH"):
        sdkit.load(tmp_path / "bare.safetensors")
    alone = tiny.original_vae(parts["vae"])
    save_file({name: one.clone() for name, one in alone.items()}, tmp_path / "vae.safetensors")
    for vae in (tmp_path / "vae.safetensors", folder / "vae"):
        model = sdkit.load(tmp_path / "bare.safetensors", vae=vae)
        torch.testing.assert_close(latents(model), latents(sdkit.load(file)), rtol=0, atol=0)


def test_probe_reads_no_tensor(file: Path, folder: Path, tmp_path: Path) -> None:
    family = StableDiffusion()
    assert family.probe(file) and family.probe(folder)
    (tmp_path / "empty").mkdir()
    assert not family.probe(tmp_path / "empty") and not family.probe(Path(__file__))


def test_an_unknown_option_names_the_near_one(folder: Path) -> None:
    with pytest.raises(sdkit.ParameterError, match="vae_tiling"):
        sdkit.load(folder, vae_tilling=True)
    with pytest.raises(sdkit.ParameterError, match="float32, bfloat16, float16"):
        sdkit.load(folder, dtype="half")

"""What is told beforehand: memory against what a process really took, evaluations against what was counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from parity import mask, picture

import sdkit
from sdkit_diffusers.estimating import Estimate, estimate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LEAST, MOST = 0.7, 1.6
"""What the real peak may be of the estimate, beyond the weights."""
MEASURE = """
import gc, re, sys
from pathlib import Path
import sdkit
def of(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
pipe = sdkit.pipeline(sdkit.load(sys.argv[1]), scheduler="euler")
side, count, guidance = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
make = lambda side, count: pipe(sdkit.Request(
    "a fox", seeds=tuple(range(count)), steps=1, size=(side, side), guidance=guidance))
make(64, 1)
gc.collect()
before = of("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
make(side, count)
print(of("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_original("sd1", tiny.sd1(), tmp_path_factory.mktemp("sd1") / "one.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "side", "count", "guidance"),
    [("", 512, 1, 1.0), ("", 512, 2, 3.0), ("", 384, 3, 3.0), ("emoji", 512, 4, 3.0)],
)
def test_the_peak_is_that_of_a_process(name: str, side: int, count: int, guidance: float, file: Path) -> None:
    request = sdkit.Request("a fox", seeds=tuple(range(count)), steps=1, size=(side, side), guidance=guidance)
    told = estimate(sdkit.load(name or file), request)
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, name or str(file), str(side), str(count), str(guidance)]
    took = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert LEAST < took / (told.peak - told.weights) < MOST


def told(model: Any, **more: Any) -> Estimate:
    return estimate(model, sdkit.Request("a fox", **{"steps": 4, "size": (128, 128), "scheduler": "heun", **more}))


def test_evaluations_rows_and_weights(file: Path) -> None:
    model = sdkit.load(file, sha256=False)
    found = told(model, seeds=(1, 2, 3), guidance=3.0)
    request = sdkit.Request("a fox", steps=4, size=(64, 64), scheduler="heun", guidance=3.0)
    assert found.evaluations == sdkit.pipeline(model)(request).manifest.evaluations
    assert found.rows == 6 and told(model, seeds=(1, 2, 3), guidance=1).rows == 3
    parts = model.autoencoder.placement.parts  # type: ignore[attr-defined]
    counted = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    assert counted <= found.weights < 1.01 * counted  # buffers are no parameters
    staged = told(sdkit.load(file, sha256=False, offload="stages"))
    largest = max(sum(p.numel() * 4 for p in part.parameters()) for part in parts)
    assert largest <= staged.weights < 1.01 * largest


@pytest.mark.slow  # 18 s: pictures of 256 pixels through a VAE in tiles
def test_more_takes_more(file: Path) -> None:
    model = sdkit.load(file, sha256=False)
    one, larger, several = told(model), told(model, size=(256, 256)), told(model, seeds=(1, 2, 3, 4))
    # of twice the side everything is four times as large
    assert 3.5 < (larger.peak - larger.weights) / (one.peak - one.weights) < 4.5
    assert 3.5 < (several.peak - several.weights) / (one.peak - one.weights) < 4.5
    tiled = told(sdkit.load(file, sha256=False, vae_tiling=16), size=(256, 256))
    assert tiled.peak - tiled.weights < (larger.peak - larger.weights) / 2
    sliced = sdkit.load(file, sha256=False, vae_slicing=True)
    assert told(sliced, seeds=(1, 2, 3, 4)).peak < several.peak / 1.5


def test_nothing_is_touched(file: Path) -> None:
    model = sdkit.load(file, sha256=False)
    request = sdkit.Request("a fox", steps=1, size=(64, 64))
    before = sdkit.pipeline(model)(request).latents
    told(model, image=picture(), mask=mask(), size=(64, 64), modifiers=("clip-skip(number=2)",))
    assert torch.equal(sdkit.pipeline(model)(request).latents, before)
    with pytest.raises(sdkit.InvalidRequest, match="such as a prompt dialect"):
        told(model, modifiers=("prompts",))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_it_is_half(dtype: str, file: Path) -> None:
    whole, half = (told(sdkit.load(file, sha256=False, dtype=one)) for one in ("float32", dtype))
    assert 0.45 < half.weights / whole.weights < 0.55
    assert half.peak < 0.75 * whole.peak


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_other_families(family: str, tmp_path: Path) -> None:
    parts = tiny.sdxl() if family == "sdxl" else getattr(tiny, family)(tmp_path / "t5")
    options: dict[str, Any] = {} if family == "sdxl" else {"t5_tokenizer": tmp_path / "t5"}
    model = sdkit.load(tiny.save_original(family, parts, tmp_path / "one.safetensors"), sha256=False, **options)
    assert told(model, scheduler="euler").peak > told(model, scheduler="euler").weights > 10e6


def test_a_model_that_paints_with_nine_channels(tmp_path: Path) -> None:
    model = sdkit.load(tiny.save_original("sd1", tiny.sd1(inputs=9), tmp_path / "one.safetensors"), sha256=False)
    assert told(model, image=picture(), mask=mask(), size=(64, 64)).stage in ("autoencoder", "decoder", "denoiser")


def test_a_model_of_another_package() -> None:
    """Its weights are found in its parts, each once, and its peak is that of what lives meanwhile."""
    model: Any = sdkit.load("emoji")
    few, many = (told(model, size=(128, 128), seeds=tuple(range(n)), guidance=4.0) for n in (2, 8))
    networks = (model.encoder.network, model.denoiser.network, model.autoencoder)
    counted = sum(t.numel() * t.element_size() for net in networks for t in (*net.parameters(), *net.buffers()))
    assert few.weights == many.weights == counted + model.encoder.vectors.untyped_storage().nbytes()
    assert 3.5 < (many.peak - many.weights) / (few.peak - few.weights) < 4.5
    assert (many.rows, many.evaluations) == (16, 7)  # heun's last step needs one


def test_from_the_shell(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sdkit.cli import main

    words = ["generate", "a fox", "--model", str(file), "--steps", "3", "--size", "64x64", "--guidance", "2"]
    out = tmp_path / "fox.png"
    with pytest.raises(SystemExit) as ended:
        main([*words, "--estimate", "--out", str(out)])
    assert not ended.value.code
    expected = told(sdkit.load(file), steps=3, size=(64, 64), guidance=2.0, scheduler=None)
    said = capsys.readouterr().out
    assert (
        f"{expected.peak / 1e6:.1f} MB in the {expected.stage}, {expected.weights / 1e6:.1f} MB of it weights" in said
    )
    assert f"evaluations: {expected.evaluations} calls of the denoiser, with up to 2 rows each" in said
    assert not out.exists()


def test_the_pages_python_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    (tmp_path / "my-model.safetensors").write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "models", "exec"), {"__name__": "page"})
    for name in re.findall(r'--modifier "(.*?)"', text):
        if "textual-inversion" not in name:
            sdkit.registry().make("modifier", name)

"""The code of ``docs/control.md`` runs as it stands, block after block, on tiny models under the names it uses."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
from safetensors.torch import save_file
from tinycontrol import (
    control_net,
    edges,
    image_encoder,
    ip_adapter,
    original_control,
    shapes_are_no_draws,  # noqa: F401 - a fixture
    t2i_adapter,
)

from sdkit import registry

PAGE = (Path(__file__).parents[3] / "docs" / "control.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    parts, refiner = tiny.sd1(), tiny.refiner()
    tiny.save_folder(diffusers.StableDiffusionPipeline, parts, folder / "models" / "sd15")
    tiny.save_folder(diffusers.StableDiffusionXLPipeline, tiny.sdxl(), folder / "models" / "xl")
    tiny.save_folder(diffusers.StableDiffusionXLImg2ImgPipeline, refiner, folder / "models" / "xl-refiner")
    control_net(parts["unet"]).save_pretrained(folder / "nets" / "canny")
    net = {
        f"control_model.{k}": v.clone().contiguous() for k, v in original_control(control_net(parts["unet"])).items()
    }
    save_file(net, folder / "nets" / "depth.safetensors")
    t2i_adapter("sd1").save_pretrained(folder / "nets" / "sketch")
    image_encoder().save_pretrained(folder / "ip" / "image_encoder")
    save_file(ip_adapter(parts["unet"]), folder / "ip" / "plus.safetensors")
    for k, name in enumerate(("edges", "depth", "style")):
        edges(k).save(folder / f"{name}.png")
    return folder


def test_the_pages_code_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    for number, block in enumerate(blocks):
        exec(compile(block, f"control.md, block {number + 1}", "exec"), names)
    assert names["result"].images


def test_the_pages_commands_name_modifiers_that_there_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(block.replace("\\\n", " "))
    spelled = [after for word, after in itertools.pairwise(words) if word == "--modifier"]
    assert len(spelled) == 6
    for text in spelled:
        assert registry().spell("modifier", registry().make("modifier", text))
    listed = re.findall(r"^\| `([a-z0-9-]+)`", PAGE, re.MULTILINE)
    theirs = {e.component.name for e in registry().entries("modifier") if e.plugin == "diffusers"}
    assert len(listed) == 7 and set(listed) <= theirs

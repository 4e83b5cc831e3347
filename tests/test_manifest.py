"""What made this picture, inside the file."""

from __future__ import annotations

import json
import os
import random
import stat
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sdkit
from sdkit import FileError, Level, Manifest, ManifestError, Request, UnknownComponent, read_manifest
from sdkit.manifest import parameters_text, write_png
from tests.toys import toy_model

text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


def manifest(**fields: Any) -> Manifest:
    request = Request(
        "a fox", seeds=(5, 6), size=(32, 32), scheduler="dpmpp-2m", spacing="karras", steps=6, guidance=4.0
    )
    values: dict[str, Any] = {
        "request": request,
        "grid": (Level(9, 0.1, 0.9), Level(0, 1, 0)),
        "model": "toy",
        "model_sha256": "0123456789abcdef" * 4,
        "licence": "MIT",
        "noise": "addressed-1",
        "evaluations": 6,
        "device": "cpu",
        "versions": {"sdkit-core": "1.2.3"},
    }
    values |= fields
    if "pixels_sha256" not in fields:
        values["pixels_sha256"] = tuple("ab" for _ in values["request"].seeds)
    return Manifest(**values)


@given(
    prompt=text,
    negative=text,
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
    steps=st.integers(1, 1000),
    guidance=st.one_of(st.none(), st.floats(-100, 100)),
    levels=st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=4),
    interval=st.one_of(st.none(), st.just((0.1, 5.0))),
)
def test_json_gives_back_the_same_manifest(
    prompt: str,
    negative: str,
    seeds: list[int],
    steps: int,
    guidance: float | None,
    levels: list[float],
    interval: tuple[float, float] | None,
) -> None:
    request = Request(
        prompt, negative=negative, seeds=tuple(seeds), steps=steps, guidance=guidance, guidance_interval=interval
    )
    before = manifest(request=request, grid=tuple(Level(i, a, 0.5) for i, a in enumerate(levels)))
    after = Manifest.from_json(before.to_json())
    assert after == before
    assert type(after.request.seeds) is tuple
    assert after.request.guidance_interval == interval


def test_input_pictures_travel_inside() -> None:
    request = Request("x", image=Image.effect_noise((8, 8), 50), mask=Image.new("L", (8, 8), 255))
    assert Manifest.from_json(manifest(request=request).to_json()).request == request


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"extra": 1}, "extra"),
        (lambda d: d | {"schema": 99}, "schema 99"),
        (lambda d: {k: v for k, v in d.items() if k != "grid"}, "grid"),
        (lambda d: d | {"request": d["request"] | {"steps": 0}}, "steps"),
        (lambda d: d | {"request": d["request"] | {"who": 1}}, "who"),
        (lambda d: d | {"grid": [[0, 0, 0]]}, "not both zero"),
        (lambda d: [d], "not an sdkit manifest|schema"),
    ],
)
def test_a_changed_manifest_is_refused_with_the_place(change: Any, message: str) -> None:
    data = json.loads(manifest().to_json())
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.from_json(json.dumps(change(data)))
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_arbitrary_text_is_refused_and_nothing_else_happens(noise: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(noise)


def test_a_saved_file_carries_the_manifest_and_the_parameters_other_tools_read(tmp_path: Path) -> None:
    result = sdkit.pipeline(toy_model())(Request("a fox, (red)", negative="dog: big", seeds=(5, 6)))
    files = result.save(tmp_path / "fox.png")
    assert [f.name for f in files] == ["fox-1.png", "fox-2.png"]
    second = read_manifest(files[1])
    assert second == attrs.evolve(result.manifest, index=1)
    with Image.open(files[1]) as image:
        lines = image.text["parameters"].split("\n")  # type: ignore[attr-defined]
        assert image.convert("RGB").tobytes() == result.images[1].tobytes()
    assert lines[0] == "a fox, (red)"
    assert lines[1] == "Negative prompt: dog: big"
    assert lines[2].startswith(
        "Steps: 6, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 2, Seed: 6, Size: 32x32, "
    )
    assert "Model hash: ababababab, Model: toy" in lines[2]


def test_parameters_name_samplers_as_other_tools_do() -> None:
    def line(**fields: Any) -> str:
        made = manifest(request=attrs.evolve(manifest().request, **fields))
        return parameters_text(made).split("\n")[-1]

    assert "Sampler: Euler a, Schedule type: Simple" in line(scheduler="ddim(eta=1.0)", spacing="trailing")
    assert "Sampler: DDIM," in line(scheduler="ddim(eta=0.5)")
    assert "Eta: 0.5" in line(scheduler="ddim(eta=0.5)")
    assert "Sampler: my-own," in line(scheduler="my-own")
    assert 'Model: "a, b"' in parameters_text(manifest(model="a, b"))


def test_metadata_can_be_left_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    write_png(tmp_path / "a.png", image, manifest(), metadata="none")
    write_png(tmp_path / "b.png", image, manifest(), metadata="a1111")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.text == {}  # type: ignore[attr-defined]
        assert set(b.text) == {"parameters"}  # type: ignore[attr-defined]
    with pytest.raises(ManifestError, match="carries no sdkit manifest"):
        read_manifest(tmp_path / "a.png")
    with pytest.raises(ManifestError, match="another tool"):
        read_manifest(tmp_path / "b.png")


def test_no_absolute_path_is_written(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "start.png")
    result = sdkit.pipeline(toy_model())(Request("x", image=tmp_path / "start.png"))
    (file,) = result.save(tmp_path / "out.png")
    with Image.open(file) as image:
        assert str(tmp_path) not in str(image.text)  # type: ignore[attr-defined]


def test_a_failed_write_leaves_nothing_behind_and_the_old_file_whole(tmp_path: Path) -> None:
    class Broken:
        def save(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

    old = tmp_path / "a.png"
    old.write_bytes(b"old")
    with pytest.raises(FileError, match=r"'a\.png' cannot be written: No space left"):
        write_png(old, Broken(), manifest())  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert old.read_bytes() == b"old"
    with pytest.raises(FileError, match="cannot be written"):
        write_png(tmp_path / "none" / "a.png", Image.new("RGB", (4, 4)), manifest())
    with pytest.raises(FileError, match=r"\.png"):
        write_png(tmp_path / "a.jpg", Image.new("RGB", (4, 4)), manifest())


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    file = write_png(tmp_path / "a.png", Image.new("RGB", (4, 4)), manifest())
    assert stat.S_IMODE(os.stat(file).st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


def test_no_input_picture_or_truncated_file_breaks_the_reader(tmp_path: Path) -> None:
    file = write_png(tmp_path / "a.png", Image.effect_noise((32, 32), 50), manifest())
    data = file.read_bytes()
    for length in (0, 10, 40, 200, len(data) // 2):
        file.write_bytes(data[:length])
        with pytest.raises(FileError, match=r"'a\.png' cannot be read"):
            read_manifest(file)


@pytest.mark.parametrize("scheduler", ["dpmpp-2m", "ddim(eta=1.0)"])
def test_rerun_makes_the_same_pixels(scheduler: str, tmp_path: Path) -> None:
    model = toy_model()
    result = sdkit.pipeline(model, scheduler=scheduler)(Request("a fox", seeds=(3, 4), guidance=3.0))
    files = result.save(tmp_path / "fox.png")
    again = sdkit.rerun(files[1], model=model)
    assert again.same
    assert again.result.images[1].tobytes() == result.images[1].tobytes()


def test_rerun_follows_image_mask_and_strength(tmp_path: Path) -> None:
    model = toy_model()
    image, mask = Image.effect_noise((32, 32), 60).convert("RGB"), Image.new("L", (32, 32), 255)
    mask.paste(0, (0, 0, 8, 32))
    result = sdkit.pipeline(model)(Request("x" * 9, image=image, mask=mask, strength=0.7, size=(32, 32)))
    (file,) = result.save(tmp_path / "a.png")
    assert sdkit.rerun(file, model=model).same


def test_rerun_of_a_grid_given_by_hand(tmp_path: Path) -> None:
    model = toy_model()
    grid = (Level(900, 0.1, 0.9), Level(300, 0.6, 0.4), Level(-1, 1, 0))
    (file,) = sdkit.pipeline(model, spacing=grid)(Request("x")).save(tmp_path / "a.png")
    assert sdkit.rerun(file, model=model).same


def test_rerun_with_other_weights_is_refused(tmp_path: Path) -> None:
    model = toy_model()
    (file,) = sdkit.pipeline(model)(Request("x")).save(tmp_path / "a.png")
    other = attrs.evolve(model, spec=attrs.evolve(model.spec, sha256="cd" * 32))
    with pytest.raises(ManifestError, match="weights ababababab.*cdcdcdcdcd"):
        sdkit.rerun(file, model=other)


def test_rerun_sees_that_pixels_differ(tmp_path: Path) -> None:
    model = toy_model()
    (file,) = sdkit.pipeline(model)(Request("x")).save(tmp_path / "a.png")
    other = attrs.evolve(model, denoiser=lambda x, level, cond: x * 0 + 0.5)
    assert not sdkit.rerun(file, model=other).same


def test_a_large_start_image_does_not_make_the_file_unreadable(tmp_path: Path) -> None:
    """Pillow refuses text chunks above a megabyte, so pictures travel in chunks of their own."""
    noise = Image.frombytes("RGB", (768, 768), random.Random(0).randbytes(768 * 768 * 3))
    image = Image.new("RGB", (768, 768), "white")
    result = sdkit.pipeline(toy_model())(Request("x", image=noise, mask=image.convert("L"), steps=2))
    (file,) = result.save(tmp_path / "a.png")
    with Image.open(file) as opened:
        opened.load()
    assert read_manifest(file) == result.manifest
    assert sdkit.rerun(file, model=toy_model()).same


def test_an_unbounded_interval_travels(tmp_path: Path) -> None:
    result = sdkit.pipeline(toy_model())(Request("x", guidance_interval=(0.2, float("inf"))))
    (file,) = result.save(tmp_path / "a.png")
    assert read_manifest(file).request.guidance_interval == (0.2, float("inf"))


def test_levels_between_others_travel() -> None:
    between = sdkit.between(Level(9, 0.1, 0.9), Level(0, 1, 0), 0.3)
    before = manifest(grid=(Level(9, 0.1, 0.9), between, Level(0, 1, 0)))
    assert Manifest.from_json(before.to_json()) == before


class LoraLike:
    def __init__(self, file: str) -> None:
        self.file = file


@attrs.frozen
class Style:
    file: str
    strength: float = 1.0

    def apply(self, parts: Any) -> Any:
        return nullcontext(parts)


def test_modifiers_travel_without_folders_and_missing_ones_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @staticmethod
        @sdkit.hookimpl
        def sdkit_components() -> list[sdkit.Component]:
            return [sdkit.Component("modifier", "style", f"{__name__}:Style")]

    made = sdkit.Registry.of({"styles": Plugin()})
    request = Request(
        "x", modifiers=(LoraLike("/home/secret/me.safetensors"), Style("/home/secret/b.safetensors", 0.5))
    )
    for known in (True, False):
        registry = made if known else sdkit.Registry.of()
        for module in ("sdkit.wire", "sdkit.manifest"):
            monkeypatch.setattr(sys.modules[module], "registry", lambda registry=made: registry)
        text = sdkit.to_json(request)
        assert "secret" not in text
        assert "custom:LoraLike" in text
        monkeypatch.setattr(sys.modules["sdkit.wire"], "registry", lambda registry=registry: registry)
        again = sdkit.from_json(text, Request)
        assert sdkit.to_json(again) == text
        assert (again.modifiers[1] == Style("b.safetensors", 0.5)) is known
        with pytest.raises(sdkit.UnknownComponent, match="custom:LoraLike"):
            again.modifiers[0].apply(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [32.5, 32]}, "not int: 32.5"),
        ({"seeds": "123"}, "seeds"),
        ({"steps": True}, "not int: True"),
        ({"guidance": "much"}, "not a number: 'much'"),
        ({"prompt": 7}, "not str: 7"),
    ],
)
def test_numbers_and_texts_are_not_bent_to_fit(change: dict[str, Any], message: str) -> None:
    data = json.loads(sdkit.to_json(Request("x", size=(32, 32)))) | change
    with pytest.raises(ManifestError, match=message):
        sdkit.from_json(json.dumps(data), Request)


def test_a_manifest_points_at_an_image_it_has() -> None:
    for fields in ({"index": 2}, {"index": -1}, {"pixels_sha256": ()}):
        with pytest.raises(ManifestError, match="2 seeds"):
            manifest(**fields)


def test_rerun_follows_no_path_and_no_unknown_noise(tmp_path: Path) -> None:
    made = sdkit.pipeline(toy_model())(Request("x"))
    file = tmp_path / "a.png"
    write_png(file, made.images[0], attrs.evolve(made.manifest, model="/etc/passwd"))
    with pytest.raises(ManifestError, match="not registered"):
        sdkit.rerun(file)
    write_png(file, made.images[0], attrs.evolve(made.manifest, noise="addressed-2"))
    with pytest.raises(UnknownComponent, match="no noise 'addressed-2'; did you mean addressed-1"):
        sdkit.rerun(file, model=toy_model())


def test_rerun_refuses_levels_that_are_not_those_of_the_file(tmp_path: Path) -> None:
    made = sdkit.pipeline(toy_model())(Request("x"))
    other = attrs.evolve(made.manifest, grid=(*made.manifest.grid[:1], *made.manifest.grid[2:]))
    write_png(tmp_path / "a.png", made.images[0], other)
    with pytest.raises(ManifestError, match="other levels"):
        sdkit.rerun(tmp_path / "a.png", model=toy_model())


def test_saving_in_many_threads_leaves_the_processes_rights_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    os.umask(0o027)
    try:
        image = Image.new("RGB", (8, 8))
        threads = [
            threading.Thread(target=write_png, args=(tmp_path / f"{k}.png", image, manifest())) for k in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.umask(0o027) == 0o027
        assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()} == {0o640}
    finally:
        os.umask(before)


def test_the_manifest_source_never_touches_the_umask() -> None:
    assert "umask" not in Path(str(sys.modules["sdkit.files"].__file__)).read_text()


def test_names_that_are_no_spelling_do_not_stop_a_file_from_being_saved() -> None:
    request = attrs.evolve(manifest().request, scheduler="DPM++ (mine)", spacing="odd (")
    assert "Sampler: DPM++ (mine), Schedule type: odd (" in parameters_text(manifest(request=request))

"""What a request accepts, and the one sentence it refuses with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdkit import FileError, InvalidRequest, Picture, Request


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": -3}, "not -3"),
        ({"steps": 2.5}, "not 2.5"),
        ({"steps": True}, "not True"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "not -1"),
        ({"seeds": (2**64,)}, "seed is a whole number"),
        ({"seeds": (0.5,)}, "not 0.5"),
        ({"guidance": float("nan")}, "finite number, not nan"),
        ({"guidance": float("inf")}, "finite number, not inf"),
        ({"guidance_rescale": 1.5}, "between 0 and 1, not 1.5"),
        ({"size": (0, 32)}, r"not \(0, 32\)"),
        ({"size": (32,)}, "width, height"),
        ({"size": "32x32"}, "width, height"),
        ({"strength": 0.5}, "a strength but no image"),
        ({"mask": Image.new("L", (8, 8))}, "a mask but no image"),
        ({"image": Image.new("RGB", (8, 8)), "strength": 0.0}, "above 0"),
        ({"image": Image.new("RGB", (8, 8)), "strength": 1.01}, "at most 1"),
        ({"image": Image.new("RGB", (8, 8)), "strength": float("nan")}, "not nan"),
        ({"image": Image.new("RGB", (8, 8)), "size": (16, 16)}, "image is 8x8 but the size asked for is 16x16"),
        ({"image": Image.new("RGB", (8, 8)), "mask": Image.new("L", (8, 9))}, "mask is 8x9 and the image 8x8"),
        ({"image": Image.new("RGBA", (8, 8), (1, 2, 3, 100))}, "transparent"),
        ({"image": 7}, "not a int"),
        ({"guidance": 1e308}, "finite number"),
        ({"guidance_interval": (0.2,)}, "low, high"),
        ({"guidance_interval": "ab"}, "low, high"),
        ({"guidance_interval": (3, 1)}, "low, high"),
        ({"size": (40000, 8)}, "up to 32768"),
        ({"seeds": 5.5}, "not 5.5"),
        ({"seeds": None}, "not None"),
        ({"seeds": "12"}, "not '12'"),
        ({"negative": "\ud800"}, "not valid Unicode"),
        ({"image": Image.new("I;16", (8, 8))}, "more than 8 bits"),
        ({"image": Image.new("F", (8, 8))}, "more than 8 bits"),
        ({"steps_policy": "fast"}, "'fast'"),
        ({"negative": None}, "negative must be text"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        Request("x", **fields)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="stepz"):
        Request("x", stepz=3)  # type: ignore[call-arg]


def test_requests_are_values() -> None:
    a = Request("x", seeds=[1, 2], image=Image.new("RGB", (8, 8)))
    assert a == Request("x", seeds=(1, 2), image=Image.new("RGB", (8, 8)))
    assert hash(a) == hash(Request("x", seeds=(1, 2), image=Image.new("RGB", (8, 8))))
    with pytest.raises(AttributeError):
        a.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
def test_opaque_pictures_of_any_mode_are_taken(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (5, 4), (10, 200, 30)).convert(mode)
    assert Picture.of(image).image().convert("RGB").size == (5, 4)
    if mode in ("RGB", "L"):
        assert Picture.of(image).image().tobytes() == image.tobytes()


def test_a_palette_with_a_transparent_colour_counts_as_transparent() -> None:
    image = Image.new("P", (4, 4), 0)
    image.info["transparency"] = 0
    with pytest.raises(InvalidRequest, match="transparent"):
        Picture.of(image)


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"'a\.png' cannot be read as a picture"):
        Request("x", image=tmp_path / "a.png")
    with pytest.raises(FileError, match=r"'b\.png' cannot be read as a picture: No such file"):
        Request("x", image=tmp_path / "b.png")
    whole = tmp_path / "c.png"
    Image.effect_noise((64, 64), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:300])
    with pytest.raises(FileError, match=r"'c\.png' cannot be read"):
        Request("x", image=whole)


def test_seeds_may_be_numpys() -> None:
    assert Request("x", seeds=np.arange(3)).seeds == (0, 1, 2)
    assert all(type(seed) is int for seed in Request("x", seeds=np.arange(3)).seeds)


def test_a_cameras_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    turned = Picture.of(tmp_path / "a.png").image()
    assert turned.size == (4, 6)
    assert turned.getpixel((3, 0)) == (255, 0, 0)

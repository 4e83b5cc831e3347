"""Contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdkit import InvalidRequest, contact_sheet


@given(count=st.integers(1, 9), columns=st.one_of(st.none(), st.integers(1, 5)), captioned=st.booleans())
def test_every_picture_is_on_the_sheet_untouched(count: int, columns: int | None, captioned: bool) -> None:
    images = [Image.new("RGB", (20, 10), (k * 20, 255 - k * 20, 99)) for k in range(count)]
    captions = [f"picture {k}, and much more to say about it" for k in range(count)] if captioned else []
    pixels = np.asarray(contact_sheet(images, captions, columns=columns))
    for image in images:
        assert (pixels == np.asarray(image)[0, 0]).all(-1).sum() == 200


def test_captions_are_drawn_below() -> None:
    image = Image.new("RGB", (60, 20), "white")
    assert np.asarray(contact_sheet([image], ["hello"])).min() < 100
    assert np.asarray(contact_sheet([image])).min() == 255


def test_wrong_numbers_are_refused() -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(InvalidRequest, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(InvalidRequest, match="2 captions for 1 pictures"):
        contact_sheet([image], ["a", "b"])
    with pytest.raises(InvalidRequest, match="not 0"):
        contact_sheet([image], columns=0)

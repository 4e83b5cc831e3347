"""Contact sheets: several pictures in one, with a line under each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdkit.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["contact_sheet"]


def contact_sheet(
    images: Sequence[Image], captions: Sequence[str] = (), *, columns: int | None = None, gap: int = 8
) -> Image:
    """All pictures in rows on white, each in a cell as large as the largest, captions below.

    Args:
        images: At least one Pillow image.
        captions: One line per picture, or none at all; a line too long for its cell ends in an ellipsis.
        columns: Pictures per row; by default about as many as rows.
        gap: Pixels between cells.

    Raises:
        InvalidRequest: no images, or another number of captions than of images.
    """
    from PIL import Image as Pil
    from PIL import ImageDraw, ImageFont

    if not images:
        raise InvalidRequest("A contact sheet needs at least one picture.")
    if captions and len(captions) != len(images):
        raise InvalidRequest(f"There are {len(captions)} captions for {len(images)} pictures; give one each, or none.")
    if columns is not None and columns < 1:
        raise InvalidRequest(f"A contact sheet needs at least one column, not {columns}.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = max(i.width for i in images), max(i.height for i in images)
    line = 16 if captions else 0
    sheet = Pil.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for k, image in enumerate(images):
        left, top = gap + k % columns * (width + gap), gap + k // columns * (height + line + gap)
        sheet.paste(image.convert("RGB"), (left + (width - image.width) // 2, top + (height - image.height) // 2))
        if captions:
            text = captions[k]
            while len(text) > 1 and draw.textlength(text, font) > width + gap:
                text = text[:-2].rstrip() + "…"
            room = width - draw.textlength(text, font)
            draw.text((left + room / 2, top + height + 2), text, fill="black", font=font)
    return sheet

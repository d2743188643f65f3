"""Patches as pictures in the page."""

from __future__ import annotations

import base64
import io

import numpy as np

from histoblend.data.patches import CENTRE


def centre_box(height: int, width: int) -> list[float]:
    """Distance of the labelled centre from the top and bottom, and from the sides, in per cent."""
    return [100 * (height - CENTRE) / 2 / height, 100 * (width - CENTRE) / 2 / width]


def data_uri(pixels: np.ndarray, *, colours: int | None = None) -> str:
    """Encode an RGB patch as a PNG inside a URI; of `colours` colours, a fraction of the bytes, where that is given."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if colours is not None:
        image = image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def photo_uri(pixels: np.ndarray) -> str:
    """Encode an RGB patch as a JPEG inside a URI, close to what it was at a third of the bytes of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

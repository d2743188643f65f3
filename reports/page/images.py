"""Patches as images in the page."""

from __future__ import annotations

import base64
import io

import numpy as np

from histoblend.data.patches import CENTRE


def centre_box(height: int, width: int) -> list[float]:
    """Distance of the labelled centre from top and bottom and from left and right, in per cent."""
    return [100 * (height - CENTRE) / 2 / height, 100 * (width - CENTRE) / 2 / width]


def data_uri(pixels: np.ndarray) -> str:
    """Encode an RGB patch as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def photo_uri(pixels: np.ndarray) -> str:
    """Encode an RGB patch as a JPEG data URI of high quality, at a third of the size of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def small_uri(pixels: np.ndarray) -> str:
    """Encode an RGB patch as a WebP data URI, the smallest of these formats, for pictures that many features share."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=55, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

"""Patches as pictures in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import pandas as pd

from histoblend.data.patches import CENTRE


class Patches(Protocol):
    """Pixels and their table, row by row; a PatchSet is one."""

    @property
    def pixels(self) -> np.ndarray:
        """RGB, shape (n, height, width, 3), dtype uint8."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """A row a patch, with ``patch_id``."""
        ...


def find_patches(patches: Patches, patch_ids: Iterable[str]) -> list[int]:
    """Rows of `patches` that hold the named ones, in the order of the names.

    Raises
    ------
    ValueError
        One is not among them.
    """
    places = pd.Series(np.arange(len(patches.table)), index=patches.table.patch_id.to_numpy())
    wanted = pd.Index(list(patch_ids))
    missing = wanted[~wanted.isin(places.index)]
    if len(missing):
        raise ValueError(f"every predicted patch must be among the patches; {missing[0]!r} is not.")
    return [int(place) for place in places[wanted]]


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

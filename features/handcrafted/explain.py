"""Explain a feature column in words and as a picture of example patches."""

from __future__ import annotations

import difflib

import numpy as np

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import Column
from histoblend.features.handcrafted.nuclei_segmentation import nucleus_labels

_BOX = np.array([255, 220, 0], np.uint8)
_MARK = np.array([0, 230, 80], np.uint8)
_GAP = 4


def explain(column: str, patches: np.ndarray) -> tuple[str, np.ndarray]:
    """Explain a column in words, give its values on example patches, and draw what it measures.

    Parameters
    ----------
    column : str
        Name of a handcrafted column.
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least one example.

    Returns
    -------
    text : str
        Description, unit, range, reference and cost of the column, and its value on each patch.
    image : ndarray of shape (3 · height + 8, n · (width + 4) − 4, 3), dtype uint8
        RGB, three rows: the patches, the measured channel in grey levels, and the patches with what is measured marked
        in green (outlines of nuclei, pixels with the local binary pattern, strong edges or blobs). A yellow box marks
        the centre if the column's region is not the whole patch.

    Raises
    ------
    ValueError
        If there is no such column (the message names the nearest), or no patch.
    """
    description = _column_named(column)
    if not len(patches):
        raise ValueError("patches must contain at least one example; got none.")
    planes = Planes(patches)
    family = families.family_named(families.parse_column(column).family)
    position = [entry.name for entry in family.columns].index(column)
    values = family.compute(planes)[:, position]
    text = "\n".join(
        [
            column,
            description.sentence,
            f"unit: {description.unit}    range: {description.low:g} to {description.high:g}",
            f"reference: {description.reference}",
            f"cost: family {family.name}, about {family.cost:g} ms of one core per patch of 96 × 96 pixels",
            "values: " + ", ".join(f"{value:.4g}" for value in values),
        ]
    )
    return text, _picture(column, planes)


def _column_named(name: str) -> Column:
    columns = {column.name: column for column in families.columns()}
    if name in columns:
        return columns[name]
    nearest = difflib.get_close_matches(name, columns, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else " docs/features.md lists all."
    raise ValueError(f"column must be one of {len(columns)} handcrafted columns; got {name!r}.{hint}")


def _picture(column: str, planes: Planes) -> np.ndarray:
    """Stack three rows of pictures: the patches, the measured channel, and the patches with marks."""
    parts = families.parse_column(column)
    channel = _channel(parts.channel, planes)
    marked = planes.patches.copy()
    marked[_marks(parts, planes)] = _MARK
    rows = [planes.patches.copy(), np.repeat(channel[..., None], 3, axis=3), marked]
    if parts.region != "whole":
        for row in rows:
            _draw_centre(row)
    height, width = planes.patches.shape[1:3]
    image = np.full((3 * (height + _GAP) - _GAP, len(planes) * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for k, picture in enumerate(row):
            top, left = r * (height + _GAP), k * (width + _GAP)
            image[top : top + height, left : left + width] = picture
    return image


def _channel(name: str, planes: Planes) -> np.ndarray:
    """Return the plane of this channel, (n, height, width) uint8; grey if the column has no single channel."""
    from skimage.color import rgb2hsv, rgb2lab

    colours = {"red": 0, "green": 1, "blue": 2}
    if name in colours:
        return planes.patches[..., colours[name]]
    stains = {"haematoxylin": 0, "eosin": 1, "residual": 2}
    if name in stains:
        return planes.stains[stains[name]]
    if name == "absorbed":
        return planes.absorbed
    if name in ("hue", "saturation"):
        return (rgb2hsv(planes.patches)[..., 0 if name == "hue" else 1] * 255).astype(np.uint8)
    lab = {"lightness": (0, 2.55, 0), "green-red": (1, 1, 128), "blue-yellow": (2, 1, 128)}
    if name in lab:
        axis, scale, shift = lab[name]
        return np.clip(rgb2lab(planes.patches)[..., axis] * scale + shift, 0, 255).astype(np.uint8)
    return planes.grey


def _marks(parts: families.Parts, planes: Planes) -> np.ndarray:
    """Pixels that show what is measured; shape (n, height, width), dtype bool."""
    marks = np.zeros(planes.patches.shape[:3], bool)
    for k, levels in enumerate(_channel(parts.channel, planes)):
        if parts.family == "nuclei":
            continue
        if parts.family == "lbp":
            marks[k] = _pattern(parts.statistic, levels)
        elif parts.family == "gradient":
            marks[k] = _edges_or_blobs(parts, levels)
    if parts.family == "nuclei":
        from skimage.segmentation import find_boundaries

        marks = np.stack([find_boundaries(labels, mode="inner") for labels in nucleus_labels(planes)])
    return marks


def _pattern(statistic: str, levels: np.ndarray) -> np.ndarray:
    from skimage.feature import local_binary_pattern

    radius, pattern = int(statistic[1]), statistic.split("-")[1]
    points = 8 * radius
    code = points + 1 if pattern == "mixed" else int(pattern[1:])
    return local_binary_pattern(levels, points, radius, "uniform") == code


def _edges_or_blobs(parts: families.Parts, levels: np.ndarray) -> np.ndarray:
    """Pixels whose edge or blob response is in the strongest 10 % and not zero."""
    from scipy import ndimage

    sigma = int(parts.statistic.rsplit("-s", 1)[1])
    plane = levels / 255.0
    if parts.statistic.startswith("edge"):
        response = ndimage.gaussian_gradient_magnitude(plane, sigma)
    else:
        response = ndimage.gaussian_laplace(plane, sigma)
        dark = "bright" not in parts.statistic
        response = response if dark == (parts.channel == "grey") else -response
    return response > max(float(np.quantile(response, 0.9)), 1e-6)


def _draw_centre(pictures: np.ndarray) -> None:
    """Draw a box just outside the centre 32 × 32, in place."""
    height, width = pictures.shape[1:3]
    top, left = (height - 32) // 2 - 1, (width - 32) // 2 - 1
    bottom, right = min(top + 33, height - 1), min(left + 33, width - 1)
    top, left = max(top, 0), max(left, 0)
    pictures[:, [top, bottom], left : right + 1] = _BOX
    pictures[:, top : bottom + 1, [left, right]] = _BOX

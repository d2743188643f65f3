"""Write a heat map for other programs: OME-TIFF, PNG with its transform, and regions for QuPath."""

from __future__ import annotations

import json
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from histoblend.reports.heatmap.heat import ABOVE, HeatMap

#: Up to this side, in pixels, a raster level gets no coarser level.
_MIN_LEVEL = 256
_CLASS = "Predicted tumour"


def write_raster(path: Path, heat: HeatMap, name: str) -> None:
    """Write the probabilities as pyramidal OME-TIFF: float32, one pixel per cell, NaN without a prediction."""
    import tifffile

    levels = [heat.values]
    while max(levels[-1].shape) > _MIN_LEVEL:
        levels.append(_halved(levels[-1]))
    size = [heat.stride * side for side in heat.spacing]
    metadata = {
        "axes": "YX",
        "Name": name,
        "PhysicalSizeX": size[0],
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size[1],
        "PhysicalSizeYUnit": "µm",
    }
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, level in enumerate(levels):
            options: dict[str, Any] = {"subfiletype": 1} if number else {"subifds": len(levels) - 1}
            file.write(
                level,
                tile=(256, 256),
                compression="zlib",
                photometric="minisblack",
                resolution=tuple(1e4 / (side * 2**number) for side in size),
                resolutionunit="CENTIMETER",
                metadata=None if number else metadata,
                **options,
            )


def write_picture(path: Path, heat: HeatMap) -> None:
    """Write the probabilities as grey PNG: 255 is 1, and cells without a prediction are transparent."""
    from PIL import Image

    grey = np.rint(np.nan_to_num(heat.values) * 255).astype(np.uint8)
    opacity = np.where(np.isfinite(heat.values), 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([grey, opacity]), "LA").save(path, format="PNG", optimize=True)


def transform(heat: HeatMap) -> dict[str, Any]:
    """Return the positions of the raster's pixels on the slide, for a JSON file."""
    return {
        "width": heat.values.shape[1],
        "height": heat.values.shape[0],
        "level0_width": heat.slide[0],
        "level0_height": heat.slide[1],
        "level0_pixels_per_pixel": list(heat.cell),
        "affine_to_level0": [[heat.cell[0], 0.0, 0.0], [0.0, heat.cell[1], 0.0], [0.0, 0.0, 1.0]],
        "level0_of_qupath_origin": list(heat.origin),
        "um_per_pixel": [heat.stride * side for side in heat.spacing],
        "png": "grey / 255 is the probability; opacity 0 where nothing was predicted",
        "tiff": "float32 probability; NaN where nothing was predicted",
        "note": "affine_to_level0 times (x, y) of a pixel's upper left corner, counted from 0, is its position on "
        "level 0. QuPath counts from level0_of_qupath_origin: subtract it there",
    }


def regions(heat: HeatMap) -> tuple[dict[str, Any], pd.DataFrame]:
    """Outline the cells labelled positive.

    Parameters
    ----------
    heat : HeatMap

    Returns
    -------
    collection : dict
        GeoJSON of polygons for QuPath, the largest first, in level-0 pixels counted from ``heat.origin``.
    table : DataFrame
        ``name, area_mm2, cells, mean, most`` and ``left, top, right, bottom`` in level-0 pixels as in OpenSlide, one
        row per region.
    """
    labels, polygons = outlines(heat.positive)
    counts = np.bincount(labels.ravel(), minlength=len(polygons) + 1)
    areas = np.bincount(labels.ravel(), heat.areas().ravel(), len(polygons) + 1)
    probabilities = np.nan_to_num(heat.values).astype(np.float64)
    sums = np.bincount(labels.ravel(), probabilities.ravel(), len(polygons) + 1)
    most = np.zeros(len(polygons) + 1)
    np.maximum.at(most, labels.ravel(), probabilities.ravel())
    features, rows = [], []
    largest_first = sorted(range(1, len(polygons) + 1), key=lambda number: (-areas[number], number))
    for rank, number in enumerate(largest_first, start=1):
        name, polygon = f"Region {rank}", polygons[number - 1]
        rings = [heat.on_slide(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors)]
        mean = sums[number] / counts[number]
        measures = {"Area mm^2": areas[number], "Mean probability": mean, "Max probability": most[number]}
        shifted = [ring - np.array(heat.origin) for ring in rings]
        features.append(_feature(name, shifted, {key: round(float(value), 6) for key, value in measures.items()}))
        (left, top), (right, bottom) = rings[0].min(axis=0), rings[0].max(axis=0)
        rows.append((name, areas[number], int(counts[number]), mean, most[number], left, top, right, bottom))
    columns = ["name", "area_mm2", "cells", "mean", "most", "left", "top", "right", "bottom"]
    return {"type": "FeatureCollection", "features": features}, pd.DataFrame(rows, columns=columns)


def outlines(mask: np.ndarray) -> tuple[np.ndarray, list[shapely.Polygon]]:
    """Find the connected regions of a mask, and outline each along the sides of its cells.

    Parameters
    ----------
    mask : ndarray of shape (rows, columns), dtype bool

    Returns
    -------
    labels : ndarray of shape (rows, columns), dtype int
        Number of each cell's region, from 1; 0 outside the mask. Cells that share only a corner are two regions.
    polygons : list of shapely.Polygon
        One per region, in the order of their numbers; (x, y) in cells. Outer rings have a positive signed area, holes
        a negative one. No point lies on a straight line between its neighbours.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    rows, columns = np.nonzero(labels)
    cells = shapely.box(columns, rows, columns + 1, rows + 1)
    regions = [shapely.coverage_union_all(cells[chosen]) for chosen in _members(labels[rows, columns], count)]
    # Normalised rings begin at a corner, so that simplifying can remove every point on a straight line.
    return labels, [*shapely.orient_polygons(shapely.simplify(shapely.normalize(regions), 0))]


def _members(labels: np.ndarray, count: int) -> list[np.ndarray]:
    """Positions of each label from 1 to count, without one pass over all labels for each."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=count + 1)[1:])[:-1]) if count else []


def _feature(name: str, rings: list[np.ndarray], measures: dict[str, float]) -> dict[str, Any]:
    coordinates = [[[round(x, 3), round(y, 3)] for x, y in ring.tolist()] for ring in rings]
    # The same region gets the same id in every import, so that QuPath recognises regions it already has.
    identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(coordinates))
    return {
        "type": "Feature",
        "id": str(identity),
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {
            "objectType": "annotation",
            "name": name,
            "classification": {"name": _CLASS, "color": list(ABOVE)},
            "isLocked": False,
            "measurements": measures,
        },
    }


def _halved(values: np.ndarray) -> np.ndarray:
    """Means over 2 × 2 cells, without cells that were not predicted."""
    padded = np.pad(values, [(0, side % 2) for side in values.shape], constant_values=np.nan)
    quarters = np.stack([padded[row::2, column::2] for row in (0, 1) for column in (0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no values is NaN, as intended
        return np.nanmean(quarters, axis=0).astype(np.float32)

"""The viewer of a heat map: one HTML file that works offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.names import split_model_name
from histoblend.reports.heatmap.heat import ABOVE, AT, BELOW, DOUBTFUL, OPACITY, UNRELIABLE, HeatMap
from histoblend.reports.page.html import environment, own_files, script_hash
from histoblend.reports.page.images import data_uri
from histoblend.reports.words import model_words

#: Number of regions that the viewer lists. regions.geojson has all of them.
LISTED = 50

#: Training data of bundles, in words.
SOURCES = {
    "phantom": "synthetic phantom patches, which say nothing about medicine",
    "kaggle": "Kaggle’s copy of PatchCamelyon: lymph nodes of breast cancer patients from two hospitals",
    "pcam": "PatchCamelyon: lymph nodes of breast cancer patients from two hospitals",
    "wilds": "CAMELYON17-WILDS: lymph nodes of breast cancer patients from five hospitals",
    "folder": "a folder of images of the bundle’s author",
}


def write_viewer(
    path: Path, heat: HeatMap, picture: np.ndarray, factor: int, regions: pd.DataFrame, summary: Mapping[str, Any]
) -> None:
    """Write the viewer.

    The content security policy of the page allows only its own script, by its hash, and no connections.

    Parameters
    ----------
    path : Path
    heat : HeatMap
    picture : ndarray of shape (height, width, 3), dtype uint8
        Picture of the slide.
    factor : int
        Pixels of the plane that patches were cut from, per pixel of the picture.
    regions : DataFrame
        From :func:`reports.heatmap.files.regions`.
    summary : mapping
        Content of ``summary.json``.
    """
    import markupsafe

    # Only our own files are not escaped.
    script = markupsafe.Markup(own_files(["viewer.js"]))  # noqa: S704
    style = markupsafe.Markup(own_files(["style.css", "viewer.css"]))  # noqa: S704
    page = (
        environment()
        .get_template("viewer.html")
        .render(
            summary=summary,
            model=_model_text(summary["model"]),
            doubtful=summary["flags"]["out-of-distribution"] >= DOUBTFUL,
            unreliable=summary["flags"]["out-of-distribution"] >= UNRELIABLE,
            source=SOURCES.get(summary["bundle"]["source"], "patches of unknown origin"),
            regions=[_region_values(row) for _, row in regions.head(LISTED).iterrows()],
            left_out=max(len(regions) - LISTED, 0),
            data=_script_data(heat, picture, factor),
            picture=_jpeg_uri(picture),
            values=data_uri(packed(heat.values)),
            hashes=[script_hash(str(script))],
            script=script,
            style=style,
        )
    )
    path.write_text(page, encoding="utf-8")


def _model_text(name: str) -> str:
    """A model's name in words. A name of another version of the package stays as it is."""
    try:
        split_model_name(name)
    except ValueError:
        return name
    return model_words(name)


def packed(values: np.ndarray) -> np.ndarray:
    """Pack probabilities into a picture: 65,535 times the probability, high byte in red and low byte in green.

    Blue is 255 in cells with a prediction and 0 in others. The picture is opaque, so that no browser changes colours.
    """
    predicted = np.isfinite(values)
    scaled = np.rint(np.where(predicted, values, 0).astype(np.float64) * 65535).astype(np.uint16)
    return np.dstack([scaled >> 8, scaled & 255, np.where(predicted, 255, 0)]).astype(np.uint8)


def _script_data(heat: HeatMap, picture: np.ndarray, factor: int) -> dict[str, Any]:
    """Data for the script of the page."""
    return {
        "slide": list(heat.slide),
        "cell": list(heat.cell),
        "stride": heat.stride,
        "plane": list(heat.plane),
        "spacing": list(heat.spacing),
        "grid": [heat.values.shape[1], heat.values.shape[0]],
        "picture": [picture.shape[1] * factor * heat.to_slide[0], picture.shape[0] * factor * heat.to_slide[1]],
        "um": [heat.spacing[axis] / heat.to_slide[axis] for axis in (0, 1)],
        "threshold": heat.threshold,
        "opacity": OPACITY,
        "colours": [list(BELOW), list(AT), list(ABOVE)],
    }


def _region_values(row: pd.Series) -> dict[str, Any]:
    box = [round(float(row[side]), 1) for side in ("left", "top", "right", "bottom")]
    return {"name": row["name"], "area": row["area_mm2"], "mean": row["mean"], "box": " ".join(map(str, box))}


def _jpeg_uri(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

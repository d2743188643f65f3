"""Result files of a heat map: rasters, regions, the table of tiles, a summary and the viewer."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.phantom.slide import GroundTruth
from histoblend.data.slides.plane import Plane, area_mean
from histoblend.data.slides.slide import Slide
from histoblend.data.slides.survey import Survey
from histoblend.data.slides.tiles import Grid, TileSource
from histoblend.data.sources.labels import printable
from histoblend.data.storage.atomic import sync_tree
from histoblend.data.storage.spreadsheet import write_csv
from histoblend.models.blends import Blend
from histoblend.models.bundle import Bundle
from histoblend.models.predictor import FLAGS
from histoblend.pipelines.predict.shards import Options, PredictedPatches
from histoblend.pipelines.runtime.artefacts import write_json
from histoblend.pipelines.runtime.provenance import commit, library_versions
from histoblend.pipelines.runtime.screen import Screen
from histoblend.reports.heatmap.files import regions, transform, write_picture, write_raster
from histoblend.reports.heatmap.heat import DOUBTFUL, UNRELIABLE, HeatMap, overlay
from histoblend.reports.heatmap.viewer import write_viewer

#: All files of a heat map's folder.
FILES = (
    "probability.ome.tif",
    "probability.png",
    "probability.json",
    "overlay.png",
    "regions.geojson",
    "tiles.csv",
    "tiles.parquet",
    "summary.json",
    "viewer.html",
)

#: Longest side of the overlay in pixels. The overlay is for sharing; the viewer is for inspection.
MAX_OVERLAY = 2048


@dataclass(frozen=True)
class Result:
    """Everything that the result files are written from."""

    bundle: Bundle
    blend: Blend
    options: Options
    slide: Slide
    plane: Plane
    grid: Grid
    survey: Survey
    source: TileSource
    predictions: PredictedPatches
    predicting_s: float
    started: float
    peak_mb: Callable[[], float]


def write_results(result: Result, folder: Path, screen: Screen) -> dict[str, Any]:
    """Write every file of a heat map into a new folder. Return the content of ``summary.json``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    heat = heat_of(result)
    name = printable(result.slide.path.name)
    # Image compression releases the GIL, so a thread writes the overlay meanwhile.
    with ThreadPoolExecutor(1) as pool:
        overlay_task = pool.submit(_write_overlay, folder / "overlay.png", result, heat)
        write_raster(folder / "probability.ome.tif", heat, f"{name}: probability by {result.blend.name}")
        write_picture(folder / "probability.png", heat)
        write_json(folder / "probability.json", transform(heat))
        collection, region_table = regions(heat)
        (folder / "regions.geojson").write_text(json.dumps(collection), encoding="utf-8")
        tiles = tile_table(result)
        write_csv(tiles, folder / "tiles.csv")
        tiles.to_parquet(folder / "tiles.parquet", index=False)
        summary = summarise(result, heat, region_table, name)
        write_viewer(folder / "viewer.html", heat, result.survey.picture, result.survey.factor, region_table, summary)
        overlay_task.result()
    # Written last, so that time and memory cover everything.
    summary["seconds"] = round(time.perf_counter() - result.started, 2)
    summary["peak_mb"] = round(result.peak_mb(), 1)
    write_json(folder / "summary.json", summary)
    sync_tree(folder)
    return summary


def heat_of(result: Result) -> HeatMap:
    """Place probabilities and labels in the cells of the grid."""
    grid, plane, predictions = result.grid, result.plane, result.predictions
    bounds = result.slide.bounds
    table = result.source.table.iloc[predictions.rows]
    cells = (table["row"].to_numpy(), table["column"].to_numpy())
    values = np.full((grid.rows, grid.columns), np.nan, np.float32)
    positive = np.zeros((grid.rows, grid.columns), bool)
    values[cells], positive[cells] = predictions.probability, predictions.label == 1
    return HeatMap(
        values=values,
        positive=positive,
        threshold=float(result.blend.thresholds[result.options.point]),
        stride=grid.stride,
        plane=(plane.width, plane.height),
        spacing=plane.spacing,
        to_slide=plane.to_slide,
        slide=result.slide.size,
        origin=(bounds.x, bounds.y) if bounds else (0, 0),
    )


def tile_table(result: Result) -> pd.DataFrame:
    """One row per predicted tile: position of its patch and of the patch's centre, probability, label and flags.

    Positions count from the corner of level 0, as in OpenSlide, even if the slide has bounds.
    """
    grid, predictions = result.grid, result.predictions
    table = result.source.table.iloc[predictions.rows]
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    across, down = result.plane.to_slide
    left, top = grid.corner(columns, grid.size), grid.corner(rows, grid.size)
    x, y = (left + grid.size / 2) * across, (top + grid.size / 2) * down
    return pd.DataFrame(
        {
            "tile": table["patch_id"].to_numpy(),
            "x": np.round(left * across, 2),
            "y": np.round(top * down, 2),
            "centre_x": np.round(x, 2),
            "centre_y": np.round(y, 2),
            "centre_x_um": np.round(x * result.slide.spacing[0], 2),
            "centre_y_um": np.round(y * result.slide.spacing[1], 2),
            "probability": predictions.probability,
            "label": predictions.label,
            "flags": predictions.flags,
        }
    )


def summarise(result: Result, heat: HeatMap, region_table: pd.DataFrame, name: str) -> dict[str, Any]:
    """Summarise a heat map in numbers."""
    slide, plane, tiles = result.slide, result.plane, result.predictions
    areas = heat.areas()
    predicted = float(areas[np.isfinite(heat.values)].sum())
    positive = float(areas[heat.positive].sum())
    flags = {flag: sum(flag in each.split() for each in tiles.flags) / max(len(tiles.flags), 1) for flag in FLAGS}
    factor = result.survey.tissue_factor
    cell_mm2 = factor**2 * plane.spacing[0] * plane.spacing[1] / 1e6
    reads = len(slide.reads)
    pixels_read = sum(width * height for _, _, _, width, height in slide.reads)
    summary: dict[str, Any] = {
        "slide": {
            "name": name,
            "width": slide.size[0],
            "height": slide.size[1],
            "bounds": asdict(slide.bounds) if slide.bounds else None,
            "um_per_pixel": list(slide.spacing),
            "vendor": slide.properties.get("openslide.vendor", ""),
            "quickhash": slide.properties.get("openslide.quickhash-1", ""),
            "bytes": slide.path.stat().st_size,
            "levels": [[level.width, level.height] for level in slide.levels],
        },
        "bundle": {
            "run": result.bundle.index.get("run", ""),
            "source": result.bundle.index["patch"].get("source", ""),
            "made": result.bundle.index.get("made", ""),
            "digest": result.bundle.digest,
        },
        "model": result.blend.name,
        "slide_context": result.blend.needs_slides,
        "auc": result.bundle.index["models"].get(result.blend.name, {}).get("auc"),
        "point": result.options.point,
        "threshold": heat.threshold,
        "tissue_mm2": round(float(result.survey.tissue.sum()) * cell_mm2, 4),
        "predicted_mm2": round(predicted, 4),
        "positive_mm2": round(positive, 4),
        "positive_share": round(positive / predicted, 6) if predicted else 0.0,
        "regions": len(region_table),
        "largest_region_mm2": round(float(region_table["area_mm2"].max()), 4) if len(region_table) else 0.0,
        "tiles": len(tiles.rows),
        "tiles_unread": len(tiles.reasons),
        "flags": {flag: round(share, 6) for flag, share in flags.items()},
        "patch_px": result.grid.size,
        "patch_um_per_pixel": list(plane.spacing),
        "stride_px": result.grid.stride,
        "stride_um": [result.grid.stride * side for side in plane.spacing],
        "level": plane.level,
        "reads": reads,
        "pixels_read": pixels_read,
        "regions_unread": result.survey.unread,
        "predicting_seconds": round(result.predicting_s, 2),
        "tiles_of_earlier_calls": len(result.source.table) - result.source.expected,
        "tiles_a_second": round(result.source.expected / result.predicting_s, 1),
        "workers": result.options.workers,
        "commit": commit(),
        "libraries": library_versions() | {"openslide": _openslide_version()},
    }
    truth = GroundTruth.of(slide.properties)
    if truth is not None:
        summary["phantom_dice"] = round(disc_dice(heat, truth), 4)
    return summary


def disc_dice(heat: HeatMap, truth: GroundTruth) -> float:
    """Dice overlap of the cells labelled positive with a phantom's tumour disc, within the tissue.

    A cell counts as tumour if its centre is tumour. Cells without a prediction count as negative.
    """
    y, x = np.indices(heat.values.shape) + 0.5
    x, y = x * heat.cell[0], y * heat.cell[1]
    tumour = truth.disc(x, y) & truth.tissue(x, y)
    return float(2 * (tumour & heat.positive).sum() / max(int(tumour.sum()) + int(heat.positive.sum()), 1))


def conclude(summary: dict[str, Any], out: Path, screen: Screen) -> None:
    """Print the results in a few lines, with warnings about how far to trust them."""
    outlier_share = summary["flags"]["out-of-distribution"]
    screen.say(
        f"{summary['tissue_mm2']:.3f} mm² of tissue, covered by {summary['tiles']} tiles of together "
        f"{summary['predicted_mm2']:.3f} mm² ({summary['tiles_a_second']:.0f} tiles/s)"
    )
    if summary["tiles"] and outlier_share < UNRELIABLE:
        screen.say(
            f"{summary['positive_mm2']:.3f} of {summary['predicted_mm2']:.3f} mm² ({summary['positive_share']:.1%}) "
            f"predicted positive (probability ≥ {summary['threshold']:.3f}, {summary['model']}, point "
            f"{summary['point']}), in {summary['regions']} regions, the largest {summary['largest_region_mm2']:.3f} mm²"
        )
    if "phantom_dice" in summary:
        screen.say(f"Dice overlap with the planted tumour disc: {summary['phantom_dice']:.3f}")
    if summary["tiles_unread"]:
        screen.warn(f"{summary['tiles_unread']} tiles are in regions that cannot be read and are left out")
    if outlier_share >= DOUBTFUL:
        screen.warn(
            f"{outlier_share:.0%} of the tiles are unlike all patches that the bundle was trained on "
            "(out-of-distribution): another tissue, stain or scanner, for which these probabilities are unreliable"
            + ("; no share of positive tissue is stated" if outlier_share >= UNRELIABLE else "")
        )
    screen.say(f"heat map: {out / 'viewer.html'}")


def _write_overlay(path: Path, result: Result, heat: HeatMap) -> None:
    from PIL import Image

    picture, factor = result.survey.picture, result.survey.factor
    step = -(-max(picture.shape) // MAX_OVERLAY)
    if step > 1:
        picture = area_mean(picture, (step, step), (-(-picture.shape[0] // step), -(-picture.shape[1] // step)))
    # On noise, stronger compression takes ten times as long and saves hardly any space.
    Image.fromarray(overlay(picture, factor * step, heat)).save(path, format="PNG", compress_level=1)


def _openslide_version() -> str:
    import openslide

    return f"{openslide.__version__} ({openslide.__library_version__})"

"""Predict a whole slide: find tissue, cut tiles, predict them and write a folder of results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored
from histoblend.data.patches import CENTRE
from histoblend.data.slides.plane import Plane
from histoblend.data.slides.slide import MAX_MPP, MIN_MPP, Slide, stated_bounds
from histoblend.data.slides.survey import CachedBlocks, Survey, survey, survey_plane
from histoblend.data.slides.tiles import Grid, TileSource, choose_cells
from histoblend.data.sources.labels import printable
from histoblend.data.storage.parts import Parts
from histoblend.features.handcrafted.slide_context import FEWEST
from histoblend.models.blends import ENSEMBLE, Blend, choose_blends
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.predictor import FLAGS, open_predictor
from histoblend.pipelines.predict.folder import check_options, version_warnings
from histoblend.pipelines.predict.shards import Options, PredictedPatches, predict_source
from histoblend.pipelines.predict.slide_results import FILES, Result, conclude, write_results
from histoblend.pipelines.runtime import signals
from histoblend.pipelines.runtime.artefacts import replace_folder, restore_folder
from histoblend.pipelines.runtime.lock import run_lock
from histoblend.pipelines.runtime.provenance import code_digest
from histoblend.pipelines.runtime.resources import check_disk, peak_memory
from histoblend.pipelines.runtime.screen import Screen

#: Largest number of cells of a slide, and of cells with tissue. A slide of 100,000 × 80,000 px at 40× that is all
#: tissue has half a million.
MAX_CELLS, MAX_TILES = 20_000_000, 5_000_000


@dataclass(frozen=True)
class Geometry:
    """How a slide is cut into patches.

    Attributes
    ----------
    mpp : float
        Micrometres per pixel of the slide's level 0; 0 for the slide's own value.
    patch_mpp : float
        Micrometres per pixel of the patches that the bundle was trained on; 0 for the bundle's own value.
    stride : int
        Distance between neighbouring patches in patch pixels; 0 for the side of the labelled centre.
    """

    mpp: float = 0.0
    patch_mpp: float = 0.0
    stride: int = 0


def heatmap(
    bundle_folder: Path, slide_path: Path, out: Path, *, options: Options, geometry: Geometry, screen: Screen
) -> Path:
    """Predict the tissue of a slide patch by patch and write a folder of results.

    Parameters
    ----------
    bundle_folder : Path
    slide_path : Path
    out : Path
        Folder for the results. Results of an earlier call are replaced completely; a folder with any other file is
        refused.
    options : Options
    geometry : Geometry
    screen : Screen

    Returns
    -------
    Path
        Path of the viewer.

    Raises
    ------
    InputError
        The bundle is damaged, the slide cannot be read, or an argument is not valid.
    """
    started = time.perf_counter()
    bundle = open_bundle(bundle_folder)
    blends = choose_blends(bundle, options.model, tiled=True)
    check_options(blends, options)
    spacing = patch_spacing(bundle, geometry.patch_mpp)
    stride = _stride(geometry.stride, bundle)
    check_out(out)
    work = out.with_name(f".{out.name}.work")
    with Slide(slide_path, mpp=geometry.mpp) as slide, _locked(work, out, screen), peak_memory(0.5) as peak:
        for warning in version_warnings(bundle):
            screen.warn(warning)
        plane = Plane(slide, spacing, patch=bundle.index["patch"]["size"])
        grid = Grid(plane.width, plane.height, bundle.index["patch"]["size"], stride)
        _check_grid(grid)
        screen.say(_introduction(slide, plane, grid))
        if blends[0].why:
            screen.say(f"  {blends[0].why}")
        if blends[0].name == ENSEMBLE:
            screen.say(
                "  predicted by the ensemble for heat maps. It uses no means over the slide, because a whole slide has "
                "another share of tumour than sampled patches"
            )
        if (stated := stated_bounds(slide.properties)) and slide.bounds is None:
            screen.warn(
                f"the slide has bounds that cannot be used ({stated}): regions.geojson counts from the slide's corner"
            )
        parts = Parts(work / "parts", _key(bundle, slide, plane, grid, options))
        tissue_survey = _survey(plane, parts, screen)
        source = _tile_source(plane, grid, tissue_survey, parts, printable(slide_path.stem))
        predict_started = time.perf_counter()
        predictions = _predict(bundle, blends, source, parts, options, screen)
        result = Result(
            bundle=bundle,
            blend=_choose_blend(blends, len(source.table)),
            options=options,
            slide=slide,
            plane=plane,
            grid=grid,
            survey=tissue_survey,
            source=source,
            predictions=predictions,
            predicting_s=time.perf_counter() - predict_started,
            started=started,
            peak_mb=peak,
        )
        results = work / "results"
        summary = write_results(result, results, screen)
        replace_folder(results, out)
        parts.forget()
    conclude(summary, out, screen)
    return out / "viewer.html"


def patch_spacing(bundle: Bundle, given: float) -> float:
    """Micrometres per pixel of the bundle's patches: the given value, or else the bundle's.

    Raises
    ------
    InputError
        There is no value, or it is out of range.
    """
    stored = bundle.index["patch"].get("mpp", 0.0)
    spacing = given or (stored if isinstance(stored, int | float) else 0.0)
    if not spacing:
        raise InputError(
            f"{bundle.folder}: the bundle does not state the pixel size of its patches. Give PATCH_MPP=… "
            "(--patch-mpp) in µm (PatchCamelyon and Kaggle: 0.972), or make the bundle again with data.mpp set."
        )
    if not MIN_MPP <= spacing <= MAX_MPP:
        raise InputError(
            f"the pixel size of patches must be {MIN_MPP} to {MAX_MPP:g} µm; got {spacing}. "
            "Give PATCH_MPP=… (--patch-mpp)."
        )
    return float(spacing)


def check_out(out: Path) -> None:
    """Check that the folder for the results is new, empty or contains only earlier results.

    Raises
    ------
    InputError
        The path is a file, or the folder contains other files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the results; got a file. Choose another OUT (--out).")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(name for name in names if name not in FILES and not ignored(name))
    if foreign:
        raise InputError(
            f"{out}: expected a new folder, or one with an earlier heat map; it also contains {foreign[0]!r}. "
            "Choose another OUT (--out): the results replace the whole folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _locked(work: Path, out: Path, screen: Screen) -> Iterator[None]:
    """Lock the folder of a heat map, and restore the results that a killed call had set aside."""
    with run_lock(work, screen.say, otherwise="choose another folder (OUT=… or --out)"):
        signals.set_step("heatmap")
        restore_folder(out)
        yield


def _stride(given: int, bundle: Bundle) -> int:
    if given < 0 or given > bundle.index["patch"]["size"]:
        raise InputError(
            f"STRIDE (--stride) must be 1 to {bundle.index['patch']['size']} px, the side of a patch; got {given}."
        )
    return given or min(CENTRE, bundle.index["patch"]["size"])


def _check_grid(grid: Grid) -> None:
    if grid.rows * grid.columns > MAX_CELLS:
        raise InputError(
            f"a stride of {grid.stride} px divides the slide into {grid.rows * grid.columns:,} cells; expected at most "
            f"{MAX_CELLS:,}. Give a larger STRIDE (--stride)."
        )


def _introduction(slide: Slide, plane: Plane, grid: Grid) -> str:
    level = slide.levels[plane.level]
    scaling = "as stored" if plane.scale == (1.0, 1.0) else f"averaged {plane.scale[0]:.3f} to 1"
    return (
        f"{printable(slide.path.name)}: {slide.size[0]} × {slide.size[1]} px at {slide.spacing[0]:.4g} µm per pixel; "
        f"patches of {grid.size} px at {plane.spacing[0]:.4g} µm per pixel from level {plane.level} "
        f"({level.width} × {level.height} px), {scaling}; one patch every {grid.stride} px"
    )


def _key(bundle: Bundle, slide: Slide, plane: Plane, grid: Grid, options: Options) -> dict[str, object]:
    """Everything that finished parts of a heat map depend on."""
    return {
        "bundle": bundle.digest,
        "code": code_digest(
            ("data", "features", "models", "pipelines/predict/shards.py", "pipelines/predict/slide.py")
        ),
        "slide": slide.stamp,
        "spacing": [*slide.spacing, *plane.spacing],
        "size": grid.size,
        "stride": grid.stride,
        "shard": options.shard,
    }


def _survey(plane: Plane, parts: Parts, screen: Screen) -> Survey:
    source = survey_plane(plane)
    with screen.progress("finding tissue", source.rows * source.columns, "regions") as progress:
        tissue_survey = survey(plane, parts, progress)
    if tissue_survey.unread:
        screen.warn(f"{tissue_survey.unread} regions of the slide cannot be read and are left out")
    return tissue_survey


def _tile_source(plane: Plane, grid: Grid, tissue_survey: Survey, parts: Parts, name: str) -> TileSource:
    rows, columns = choose_cells(grid, tissue_survey.tissue, tissue_survey.tissue_factor)
    if len(rows) > MAX_TILES:
        raise InputError(
            f"a stride of {grid.stride} px makes {len(rows):,} patches; expected at most {MAX_TILES:,}. "
            "Give a larger STRIDE (--stride)."
        )
    # A survey that reads the plane itself keeps the blocks that tiles need.
    reader = CachedBlocks(plane, parts).read if survey_plane(plane) is plane else plane.read
    return TileSource(plane, grid, rows, columns, slide=name, read_block=reader)


def _choose_blend(blends: tuple[Blend, Blend | None], tiles: int) -> Blend:
    """Blend that predicts the tiles. They are all from one slide, and slide context needs more than a few."""
    with_slides, without = blends
    if not with_slides.needs_slides or tiles > FEWEST:
        return with_slides
    if without is None:
        raise InputError(
            f"{with_slides.name} compares a patch with the rest of its slide, but this slide has only {tiles} patches "
            "of tissue. Give another MODEL (--model)."
        )
    return without


def _predict(
    bundle: Bundle,
    blends: tuple[Blend, Blend | None],
    source: TileSource,
    parts: Parts,
    options: Options,
    screen: Screen,
) -> PredictedPatches:
    tiles = len(source.table)
    if not tiles:
        screen.warn("no tissue was found, so nothing is predicted")
        empty = np.empty(0)
        return PredictedPatches(empty.astype(int), pd.DataFrame(), empty, empty.astype(int), [], empty.astype(bool), {})
    blend = _choose_blend(blends, tiles)
    slides = source.table["slide"] if blend.needs_slides else None
    with open_predictor(bundle, blend.members) as predictor:
        needed = tiles * (8 * len(blend.members) + len(FLAGS) + 4 * predictor.width)
        check_disk(parts.folder, needed, "finished parts of a heat map")
        return predict_source(predictor, (blend, blends[1]), source, slides, parts, options=options, screen=screen)

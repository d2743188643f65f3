"""A whole slide to a heat map: tissue, tiles, probabilities, and a folder of files about them."""

from __future__ import annotations

import shutil
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
from histoblend.data.slides.slide import LEAST_MPP, MOST_MPP, Slide, told_bounds
from histoblend.data.slides.survey import KeptBlocks, Survey, survey, survey_plane
from histoblend.data.slides.tiles import Grid, TileSource, choose_cells
from histoblend.data.sources.labels import printable
from histoblend.data.storage.parts import Parts
from histoblend.features.handcrafted.slide_context import FEWEST
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.predictor import ENSEMBLE, FLAGS, Blend, choose_blends, open_predictor
from histoblend.pipelines.predict.folder import check_options, version_warnings
from histoblend.pipelines.predict.shards import Found, Options, predict_source
from histoblend.pipelines.predict.slide_results import FILES, Result, conclude, write_results
from histoblend.pipelines.runtime import signals
from histoblend.pipelines.runtime.artefacts import replace_folder, restore_folder
from histoblend.pipelines.runtime.lock import run_lock
from histoblend.pipelines.runtime.provenance import code_digest
from histoblend.pipelines.runtime.resources import check_disk, peak_memory
from histoblend.pipelines.runtime.screen import Screen

#: Cells that a slide may be divided into, and those that may hold tissue: 100,000 × 80,000 px at 40×, all tissue, have
#: half a million.
MOST_CELLS, MOST_TILES = 20_000_000, 5_000_000


@dataclass(frozen=True)
class Geometry:
    """How a slide is cut into patches; 0 stands for what slide, bundle and label say themselves.

    Attributes
    ----------
    mpp : float
        Micrometres a pixel of the slide's level 0.
    patch_mpp : float
        Micrometres a pixel of the patches that the bundle was made from.
    stride : int
        Pixels of a patch from one to the next.
    """

    mpp: float = 0.0
    patch_mpp: float = 0.0
    stride: int = 0


def heatmap(place: Path, slide_path: Path, out: Path, *, options: Options, geometry: Geometry, screen: Screen) -> Path:
    """Predict a slide's tissue patch by patch and write a folder of results.

    Parameters
    ----------
    place : Path
        Bundle.
    slide_path : Path
    out : Path
        Folder for the results; replaced whole where it holds those of an earlier call, and refused where it holds
        anything else.
    options : Options
    geometry : Geometry
    screen : Screen

    Returns
    -------
    Path
        Of the viewer.

    Raises
    ------
    InputError
        The bundle is damaged, the file is no slide that can be read, or an argument does not fit.
    """
    started = time.perf_counter()
    bundle = open_bundle(place)
    blends = choose_blends(bundle, options.model, tiled=True)
    check_options(blends, options)
    spacing = patch_spacing(bundle, geometry.patch_mpp)
    stride = _stride(geometry.stride, bundle)
    check_out(out)
    work = out.with_name(f".{out.name}.work")
    with Slide(slide_path, mpp=geometry.mpp) as slide, _held(work, out, screen), peak_memory(0.5) as peak:
        for warning in version_warnings(bundle):
            screen.warn(warning)
        plane = Plane(slide, spacing, patch=bundle.index["patch"]["size"])
        grid = Grid(plane.width, plane.height, bundle.index["patch"]["size"], stride)
        _check_grid(grid)
        screen.say(_introduction(slide, plane, grid))
        if blends[0].name == ENSEMBLE:
            screen.say(
                "  predicted by the ensemble for heat maps: without means over the slide, whose share of tumour is not "
                "that of sampled patches"
            )
        if (told := told_bounds(slide.properties)) and slide.bounds is None:
            screen.warn(f"the slide tells bounds that cannot be used ({told}): regions.geojson counts from its corner")
        parts = Parts(work / "parts", _key(bundle, slide, plane, grid, options))
        seen = _survey(plane, parts, screen)
        source = _tiles(plane, grid, seen, parts, printable(slide_path.stem))
        predicting = time.perf_counter()
        found = _predict(bundle, blends, source, parts, options, screen)
        result = Result(
            bundle=bundle,
            blend=_blend_of(blends, len(source.table)),
            options=options,
            slide=slide,
            plane=plane,
            grid=grid,
            survey=seen,
            source=source,
            found=found,
            predicting_s=time.perf_counter() - predicting,
            started=started,
            peak_mb=peak,
        )
        ready = work / "results"
        summary = write_results(result, ready, screen)
        replace_folder(ready, out)
        _clear(work)
    conclude(summary, out, screen)
    return out / "viewer.html"


def patch_spacing(bundle: Bundle, given: float) -> float:
    """Micrometres a pixel of the bundle's patches, as given or else as the bundle says.

    Raises
    ------
    InputError
        Nobody says, or nonsense is said.
    """
    stored = bundle.index["patch"].get("mpp", 0.0)
    known = given or (stored if isinstance(stored, int | float) else 0.0)
    if not known:
        raise InputError(
            f"{bundle.folder}: the bundle does not say how large a pixel of its patches is. Give PATCH_MPP=… "
            "(--patch-mpp) in µm (PatchCamelyon and Kaggle: 0.972), or make it again with data.mpp set."
        )
    if not LEAST_MPP <= known <= MOST_MPP:
        raise InputError(
            f"pixels of patches must measure {LEAST_MPP} to {MOST_MPP:g} µm; got {known}. "
            "Give PATCH_MPP=… (--patch-mpp)."
        )
    return float(known)


def check_out(out: Path) -> None:
    """See that the folder for the results is new, empty or holds nothing but earlier results.

    Raises
    ------
    InputError
        It would not be ours to replace.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder for the results; got a file. Choose another OUT (--out).")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(name for name in there if name not in FILES and not ignored(name))
    if foreign:
        raise InputError(
            f"{out}: expected a new folder, or one with an earlier heat map; it also holds {foreign[0]!r}. "
            "Choose another OUT (--out): results replace a folder whole."
        )
    out.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _held(work: Path, out: Path, screen: Screen) -> Iterator[None]:
    """Hold the folder of a heat map, and bring back what a killed call had put aside."""
    with run_lock(work, screen.say, otherwise="choose another folder (OUT=… or --out)"):
        signals.now_at("heatmap")
        restore_folder(out)
        yield


def _clear(work: Path) -> None:
    """Remove what was needed meanwhile; the lock's file stays, since another process may wait for it."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _stride(given: int, bundle: Bundle) -> int:
    if given < 0 or given > bundle.index["patch"]["size"]:
        raise InputError(
            f"STRIDE (--stride) must be 1 to {bundle.index['patch']['size']} pixels of a patch, its side; got {given}."
        )
    return given or min(CENTRE, bundle.index["patch"]["size"])


def _check_grid(grid: Grid) -> None:
    if grid.rows * grid.columns > MOST_CELLS:
        raise InputError(
            f"a stride of {grid.stride} px divides the slide into {grid.rows * grid.columns:,} cells; expected at most "
            f"{MOST_CELLS:,}. Give a larger STRIDE (--stride)."
        )


def _introduction(slide: Slide, plane: Plane, grid: Grid) -> str:
    level = slide.levels[plane.level]
    how = "as it is" if plane.scale == (1.0, 1.0) else f"averaged {plane.scale[0]:.3f} to 1"
    return (
        f"{printable(slide.path.name)}: {slide.size[0]} × {slide.size[1]} px of {slide.spacing[0]:.4g} µm; patches of "
        f"{grid.size} px at {plane.spacing[0]:.4g} µm from level {plane.level} ({level.width} × {level.height} px), "
        f"{how}; a patch every {grid.stride} px"
    )


def _key(bundle: Bundle, slide: Slide, plane: Plane, grid: Grid, options: Options) -> dict[str, object]:
    """What finished parts of a heat map depend on."""
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
    with screen.progress("looking for tissue", source.rows * source.columns, "regions") as progress:
        seen = survey(plane, parts, progress)
    if seen.unread:
        screen.warn(f"{seen.unread} regions of the slide cannot be read: they are left out")
    return seen


def _tiles(plane: Plane, grid: Grid, seen: Survey, parts: Parts, name: str) -> TileSource:
    rows, columns = choose_cells(grid, seen.tissue, seen.tissue_factor)
    if len(rows) > MOST_TILES:
        raise InputError(
            f"a stride of {grid.stride} px makes {len(rows):,} patches; expected at most {MOST_TILES:,}. "
            "Give a larger STRIDE (--stride)."
        )
    # Where the survey had to read the plane itself, it kept what is needed of it.
    reader = KeptBlocks(plane, parts).read if survey_plane(plane) is plane else plane.read
    return TileSource(plane, grid, rows, columns, slide=name, read_block=reader)


def _blend_of(blends: tuple[Blend, Blend | None], tiles: int) -> Blend:
    """What predicts the tiles: all are of one slide, which says nothing about itself where they are few."""
    with_slides, without = blends
    if not with_slides.needs_slides or tiles > FEWEST:
        return with_slides
    if without is None:
        raise InputError(
            f"{with_slides.name} compares a patch with the rest of its slide, and this one has {tiles} patches of "
            "tissue. Give another MODEL (--model)."
        )
    return without


def _predict(
    bundle: Bundle,
    blends: tuple[Blend, Blend | None],
    source: TileSource,
    parts: Parts,
    options: Options,
    screen: Screen,
) -> Found:
    tiles = len(source.table)
    if not tiles:
        screen.warn("no tissue was found: nothing is predicted")
        none = np.empty(0)
        return Found(none.astype(int), pd.DataFrame(), none, none.astype(int), [], none.astype(bool), {})
    blend = _blend_of(blends, tiles)
    slides = source.table["slide"] if blend.needs_slides else None
    with open_predictor(bundle, blend.members) as predictor:
        needed = tiles * (8 * len(blend.members) + len(FLAGS) + 4 * predictor.width)
        check_disk(parts.folder, needed, "finished parts of a heat map")
        return predict_source(predictor, (blend, blends[1]), source, slides, parts, options=options, screen=screen)

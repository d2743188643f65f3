"""Time heat maps against `predict` on the same patches, end to end.

Run from the repository root: ``python -m benchmarks.slides [bundle] [model]``. The defaults are ``runs/phantom/bundle``
and the bundle's default model. A phantom slide is predicted. Its tiles are then written as files and predicted as
patches. The benchmark checks that both give bit-identical predictions. Each way is timed twice, in turn, and the best
time counts.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoblend.data.phantom.slide import write_phantom_slide
from histoblend.data.slides.slide import Slide
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.predict.slide import Geometry, heatmap
from histoblend.pipelines.runtime.screen import Screen

SIDES = {"width": 4096, "height": 3072}


def write_patches(slide: Path, tiles: pd.DataFrame, folder: Path) -> None:
    """Write the tiles of a heat map as image files, and a table of their slides."""
    with Slide(slide) as opened:
        pixels = np.pad(opened.read(0, 0, 0, *opened.size), [(96, 96), (96, 96), (0, 0)], constant_values=255)
    (folder / "in").mkdir()
    for name, x, y in tiles[["tile", "x", "y"]].itertuples(index=False):
        left, top = round(x) + 96, round(y) + 96
        Image.fromarray(pixels[top : top + 96, left : left + 96]).save(folder / "in" / f"{name}.tif")
    pd.DataFrame({"id": tiles["tile"], "slide": "one"}).to_csv(folder / "slides.csv", index=False)


def timed(way: Callable[[], object]) -> float:
    """Seconds of one call without printed output."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        way()
    return time.perf_counter() - started


def main() -> None:
    """Compare predictions, then time both ways."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/phantom/bundle")
    options = Options(sys.argv[2] if len(sys.argv) > 2 else "", workers=2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = folder / "slide.tif"
        write_phantom_slide(slide, **SIDES)

        def by_slide() -> None:
            heatmap(bundle, slide, folder / "map", options=options, geometry=Geometry(), screen=Screen())

        def by_patch() -> None:
            out, slides = folder / "out.csv", folder / "slides.csv"
            predict_folder(bundle, folder / "in", out, options=options, slides=slides, screen=Screen())

        timed(by_slide)
        tiles = pd.read_csv(folder / "map" / "tiles.csv", keep_default_na=False)
        write_patches(slide, tiles, folder)
        timed(by_patch)
        predicted = pd.read_csv(folder / "out.csv", keep_default_na=False).set_index("id").loc[tiles["tile"]]
        for column in ("probability", "label", "flags"):
            assert predicted[column].tolist() == tiles[column].tolist(), column
        print(f"{len(tiles)} tiles: probabilities, labels and flags are bit-identical")
        seconds = np.array([[timed(by_slide), timed(by_patch)] for _ in range(2)]).min(axis=0)
        rates = len(tiles) / seconds
        print(f"heatmap {rates[0]:.0f} tiles/s, predict {rates[1]:.0f} patches/s: ratio {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()

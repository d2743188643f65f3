"""How much memory the heat map of a slide of 100,000 × 80,000 px takes, and that no region is read twice.

Usage: ``python -m benchmarks.large_slide [bundle] [model]`` from the repository's root; the bundle is
``runs/phantom/bundle`` and the model its default where none is named. The slide (0.25 µm a pixel; levels 1, 4 and 16;
five islands of phantom tissue side by side over its whole width) is written tile by tile: bare glass is one tile,
compressed once. Printed are peak memory, reads and seconds, beside those of a slide of a hundredth of the area.
"""

import json
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

import histoblend.pipelines.predict.slide
from histoblend.data.phantom.drawing import draw
from histoblend.data.phantom.patches import plan_pieces
from histoblend.data.slides.slide import Slide
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.predict.slide import Geometry, heatmap
from histoblend.pipelines.runtime.screen import Screen

TILE = 512
GLASS = 245


def texture() -> np.ndarray:
    """Phantom tissue, (1024, 1024, 3) uint8, a pixel about a micrometre."""
    patches, stains = plan_pieces(4, seed=1)
    pieces = [draw(patches[i : i + 1], stains[i : i + 1], 512)[0][0] for i in range(4)]
    return np.concatenate([np.concatenate(pieces[:2], axis=1), np.concatenate(pieces[2:], axis=1)])


def tiles(width: int, height: int, step: int, tissue: np.ndarray) -> Iterator[bytes]:
    """Compressed tiles of the level that takes every so many-th pixel."""
    blank = zlib.compress(np.full((TILE, TILE, 3), GLASS, np.uint8).tobytes(), 1)
    radius = width / 26
    middles = [((number + 0.5) * width / 5, height / 2) for number in range(5)]
    for top in range(0, -(-height // step), TILE):
        for left in range(0, -(-width // step), TILE):
            y, x = (top + np.arange(TILE)) * step, (left + np.arange(TILE)) * step
            near = [
                np.hypot(np.clip(mx, x[0], x[-1]) - mx, np.clip(my, y[0], y[-1]) - my) <= radius for mx, my in middles
            ]
            if not any(near):
                yield blank
                continue
            inside = sum((x[None] - mx) ** 2 + (y[:, None] - my) ** 2 <= radius**2 for mx, my in middles) > 0
            found = tissue[np.ix_(y // 4 % len(tissue), x // 4 % len(tissue))]
            yield zlib.compress(np.where(inside[..., None], found, np.uint8(GLASS)).tobytes(), 1)


def write_slide(path: Path, width: int, height: int) -> None:
    """Write the slide with its levels."""
    tissue = texture()
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for step in (1, 4, 16):
            file.write(
                tiles(width, height, step, tissue),
                shape=(-(-height // step), -(-width // step), 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if step > 1 else 0,
                metadata=None,
                resolution=(1e4 / 0.25 / step,) * 2,
                resolutionunit="CENTIMETER",
            )


def read_twice(slide: Slide) -> int:
    """How many pairs of regions that were read overlap."""
    count = 0
    for level in range(len(slide.levels)):
        boxes = np.array([read[1:] for read in slide.reads if read[0] == level]).reshape(-1, 4)
        left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
        for i in range(len(boxes)):
            rest = slice(i + 1, None)
            apart = (left[rest] >= right[i]) | (right[rest] <= left[i])
            count += int((~(apart | (top[rest] >= bottom[i]) | (bottom[rest] <= top[i]))).sum())
    return count


def main() -> None:
    """Predict a small and the large slide."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/phantom/bundle")
    options = Options(sys.argv[2] if len(sys.argv) > 2 else "", workers=2)
    opened: list[Slide] = []

    class Noted(Slide):
        """Remembered, so that its reads can be counted."""

        def __init__(self, path: Path, *, mpp: float = 0.0) -> None:
            super().__init__(path, mpp=mpp)
            opened.append(self)

    histoblend.pipelines.predict.slide.Slide = Noted  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        for width, height in ((10_000, 8_000), (100_000, 80_000)):
            path, out = Path(name, f"{width}.tif"), Path(name, f"map-{width}")
            write_slide(path, width, height)
            heatmap(bundle, path, out, options=options, geometry=Geometry(), screen=Screen())
            summary = json.loads((out / "summary.json").read_text())
            assert read_twice(opened[-1]) == 0
            print(
                f"{width} × {height} px, {path.stat().st_size / 1e6:.0f} MB: {summary['tiles']} tiles in "
                f"{summary['seconds']:.0f} s ({summary['tiles_a_second']:.0f}/s), peak {summary['peak_mb']:.0f} MB, "
                f"{summary['reads']} regions read ({summary['pixels_read'] / 1e6:.0f} Mpx), none twice"
            )


if __name__ == "__main__":
    main()

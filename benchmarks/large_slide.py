"""Measure memory, reads and time of the heat map of a slide of 100,000 × 80,000 px.

Run from the repository root: ``python -m benchmarks.large_slide [bundle] [model]``. The defaults are
``runs/phantom/bundle`` and the bundle's default model. The benchmark checks that no region is read twice. It prints the
same numbers for a slide with a hundredth of the area.

The slide has 0.25 µm per pixel, levels 1, 4 and 16, and five islands of phantom tissue side by side over its whole
width. It is written tile by tile. All tiles of bare glass share the same compressed bytes.
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
    """Phantom tissue, (1024, 1024, 3) uint8, about 1 µm per pixel."""
    patches, stains = plan_pieces(4, seed=1)
    pieces = [draw(patches[i : i + 1], stains[i : i + 1], 512)[0][0] for i in range(4)]
    return np.concatenate([np.concatenate(pieces[:2], axis=1), np.concatenate(pieces[2:], axis=1)])


def tiles(width: int, height: int, step: int, tissue: np.ndarray) -> Iterator[bytes]:
    """Yield the compressed tiles of the level that keeps every `step`-th pixel."""
    blank = zlib.compress(np.full((TILE, TILE, 3), GLASS, np.uint8).tobytes(), 1)
    radius = width / 26
    centres = [((number + 0.5) * width / 5, height / 2) for number in range(5)]
    for top in range(0, -(-height // step), TILE):
        for left in range(0, -(-width // step), TILE):
            y, x = (top + np.arange(TILE)) * step, (left + np.arange(TILE)) * step
            near = [
                np.hypot(np.clip(mx, x[0], x[-1]) - mx, np.clip(my, y[0], y[-1]) - my) <= radius for mx, my in centres
            ]
            if not any(near):
                yield blank
                continue
            inside = sum((x[None] - mx) ** 2 + (y[:, None] - my) ** 2 <= radius**2 for mx, my in centres) > 0
            pixels = tissue[np.ix_(y // 4 % len(tissue), x // 4 % len(tissue))]
            yield zlib.compress(np.where(inside[..., None], pixels, np.uint8(GLASS)).tobytes(), 1)


def write_slide(path: Path, width: int, height: int) -> None:
    """Write the slide with all levels."""
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


def count_overlaps(slide: Slide) -> int:
    """Count the pairs of overlapping regions among those that were read."""
    count = 0
    for level in range(len(slide.levels)):
        boxes = np.array([read[1:] for read in slide.reads if read[0] == level]).reshape(-1, 4)
        left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
        for i in range(len(boxes)):
            others = slice(i + 1, None)
            apart = (left[others] >= right[i]) | (right[others] <= left[i])
            count += int((~(apart | (top[others] >= bottom[i]) | (bottom[others] <= top[i]))).sum())
    return count


def main() -> None:
    """Predict a small slide and the large slide."""
    bundle = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/phantom/bundle")
    options = Options(sys.argv[2] if len(sys.argv) > 2 else "", workers=2)
    opened: list[Slide] = []

    class RecordedSlide(Slide):
        """A slide that is recorded in `opened`, so that its reads can be counted."""

        def __init__(self, path: Path, *, mpp: float = 0.0) -> None:
            super().__init__(path, mpp=mpp)
            opened.append(self)

    histoblend.pipelines.predict.slide.Slide = RecordedSlide  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        for width, height in ((10_000, 8_000), (100_000, 80_000)):
            path, out = Path(name, f"{width}.tif"), Path(name, f"map-{width}")
            write_slide(path, width, height)
            heatmap(bundle, path, out, options=options, geometry=Geometry(), screen=Screen())
            summary = json.loads((out / "summary.json").read_text())
            assert count_overlaps(opened[-1]) == 0
            print(
                f"{width} × {height} px, {path.stat().st_size / 1e6:.0f} MB: {summary['tiles']} tiles in "
                f"{summary['seconds']:.0f} s ({summary['tiles_a_second']:.0f}/s), peak {summary['peak_mb']:.0f} MB, "
                f"{summary['reads']} regions read ({summary['pixels_read'] / 1e6:.0f} Mpx), none twice"
            )


if __name__ == "__main__":
    main()

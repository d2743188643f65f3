"""Draw a synthetic whole slide, for users who have no slide."""

from __future__ import annotations

from pathlib import Path

from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import SPACING, GroundTruth, pieces, write_phantom_slide
from histoblend.data.slides.slide import Slide
from histoblend.models.bundle import INDEX
from histoblend.pipelines.runtime.screen import Screen

#: Default seed of the slide. It differs from seed 0, which draws the patches of the default phantom.
SEED = 1


def draw_slide(path: Path, screen: Screen, *, width: int = 4096, height: int = 3072, seed: int = SEED) -> None:
    """Write a phantom slide and print what it shows.

    Raises
    ------
    InputError
        An argument is out of range, or the path is a folder or a file that is not a phantom slide.
    """
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a TIFF file; got a folder. Give OUT=folder/phantom.tif.")
    if path.is_symlink() or (path.exists() and not _is_phantom(path)):
        raise InputError(
            f"{path}: expected a new file, or an earlier phantom slide to replace; got another file. "
            "Choose another OUT."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = pieces(width, height)
    with screen.progress("drawing", rows * columns, "pieces") as progress:
        truth = write_phantom_slide(path, width=width, height=height, seed=seed, progress=progress)
    screen.say(
        f"{path}: a synthetic slide of {width} × {height} px at {SPACING} µm per pixel, with a tumour disc of "
        f"{2 * truth.radius * SPACING / 1000:.2f} mm diameter at ({truth.x:.0f}, {truth.y:.0f}) px"
    )


def _is_phantom(path: Path) -> bool:
    """Whether a file is a phantom slide. A real slide is never replaced."""
    try:
        with Slide(path) as slide:
            return GroundTruth.of(slide.properties) is not None
    except InputError:
        return False


def default_slide(folder: Path, bundle: Path, screen: Screen) -> Path:
    """Phantom slide to use when no slide is given. It is drawn if it is missing.

    Raises
    ------
    InputError
        There is no bundle to predict the slide with.
    """
    if not (bundle / INDEX).is_file():
        raise InputError(
            f"{bundle}: expected a bundle; there is none. Make one (`make baseline` makes runs/phantom/bundle from "
            "synthetic patches), or give BUNDLE=runs/<name>/bundle SLIDE=x.svs."
        )
    path = folder / "phantom-slide.tif"
    if not path.exists():
        draw_slide(path, screen)
    return path

"""A synthetic whole slide, for those who have none at hand."""

from __future__ import annotations

from pathlib import Path

from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import SPACING, Truth, pieces, write_phantom_slide
from histoblend.data.slides.slide import Slide
from histoblend.models.bundle import INDEX
from histoblend.pipelines.runtime.screen import Screen

#: Seed of the slide that is drawn where none is given: the default phantom's patches come from seed 0.
SEED = 1


def draw_slide(path: Path, screen: Screen, *, width: int = 4096, height: int = 3072, seed: int = SEED) -> None:
    """Write a phantom slide and say what it shows.

    Raises
    ------
    InputError
        An argument is out of range, or the path is a folder or another file than a phantom slide.
    """
    if path.is_dir():
        raise InputError(f"{path}: expected the name of a TIFF file; got a folder. Give OUT=folder/phantom.tif.")
    if path.is_symlink() or (path.exists() and not _is_phantom(path)):
        raise InputError(
            f"{path}: expected a new file, or a phantom slide, which is replaced; got another file. Choose another OUT."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = pieces(width, height)
    with screen.progress("drawing", rows * columns, "pieces") as progress:
        truth = write_phantom_slide(path, width=width, height=height, seed=seed, progress=progress)
    screen.say(
        f"{path}: a synthetic slide of {width} × {height} px of {SPACING} µm, with a disc of tumour of "
        f"{2 * truth.radius * SPACING / 1000:.2f} mm at ({truth.x:.0f}, {truth.y:.0f}) px"
    )


def _is_phantom(path: Path) -> bool:
    """Whether a file is a phantom slide, so that no real one is ever replaced."""
    try:
        with Slide(path) as slide:
            return Truth.of(slide.properties) is not None
    except InputError:
        return False


def default_slide(folder: Path, bundle: Path, screen: Screen) -> Path:
    """The phantom slide that stands in where no slide is given, drawn where it is missing.

    Raises
    ------
    InputError
        There is no bundle to predict it with.
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

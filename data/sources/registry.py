"""Table of the supported kinds of data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from histoblend.data.patches import Source
from histoblend.data.phantom.patches import Phantom, phantom
from histoblend.data.sources import folder, kaggle, pcam, wilds


class PhantomSource:
    """Source of the phantom's patches; see :class:`data.patches.Source`.

    Parameters
    ----------
    drawn : Phantom
    centres : bool
        Name the scanner of each patch as its centre.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, label, slide`` and, if asked for, ``centre``; the phantom's ground truth in more columns.
    size : int
    """

    def __init__(self, drawn: Phantom, *, centres: bool = False) -> None:
        self.drawn, self.size = drawn, drawn.size
        self.table = drawn.table.assign(slide=drawn.table["slide"].astype("string"))
        if centres:
            self.table["centre"] = self.table["domain"].astype("string")

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Draw rows ``start`` to ``stop``; no row fails."""
        return self.drawn.render(start, stop), {}


@dataclass(frozen=True)
class SourceKind:
    """A kind of data set.

    Attributes
    ----------
    name : str
        Value of ``data.source`` in the configuration.
    open : callable
        Takes the options as keyword arguments; returns an open :class:`data.patches.Source`.
    options : tuple of str
        Keys of the ``data`` section (and ``seed``) that it uses; no other key changes its patches.
    content : callable
        Takes the same keyword arguments; yields lines that describe the files it would read. If the patches change,
        the lines change.
    """

    name: str
    open: Callable[..., Source]
    options: tuple[str, ...]
    content: Callable[..., Iterable[str]] = lambda **_options: ()


SOURCES: tuple[SourceKind, ...] = (
    SourceKind(
        "phantom",
        lambda centres, **options: PhantomSource(phantom(**options), centres=centres),
        ("n", "slides", "size", "difficulty", "confound", "centres", "faults", "seed"),
    ),
    SourceKind("kaggle", kaggle.KaggleSource, ("path", "size", "missing", "slide_map"), kaggle.content),
    SourceKind("pcam", pcam.PcamSource, ("path", "size"), pcam.content),
    SourceKind("wilds", wilds.WildsSource, ("path", "size", "missing"), wilds.content),
    SourceKind(
        "folder",
        folder.FolderSource,
        ("path", "size", "missing", "slide_map", "resize", "positive"),
        folder.content,
    ),
)


def source_kind(name: str) -> SourceKind:
    """Return the kind of data set with this name."""
    return next(kind for kind in SOURCES if kind.name == name)

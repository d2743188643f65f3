"""The kinds of data sets, a row each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from histoblend.data.patches import Source
from histoblend.data.phantom.patches import Phantom, phantom
from histoblend.data.sources import folder, kaggle, pcam


class PhantomSource:
    """The phantom as a source of patches; see :class:`data.patches.Source`.

    Parameters
    ----------
    drawn : Phantom

    Attributes
    ----------
    table : DataFrame
        ``patch_id, label, slide`` and the phantom's truth in further columns.
    size : int
    """

    def __init__(self, drawn: Phantom) -> None:
        self.drawn, self.size = drawn, drawn.size
        self.table = drawn.table.assign(slide=drawn.table["slide"].astype("string"))

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Draw rows ``start`` to ``stop``; every one can be drawn."""
        return self.drawn.render(start, stop), {}


@dataclass(frozen=True)
class SourceKind:
    """A kind of data set.

    Attributes
    ----------
    name : str
        ``data.source`` in the configuration.
    open : callable
        Keyword arguments to an open :class:`data.patches.Source`.
    options : tuple of str
        Keys of the ``data`` section that it takes (and ``seed``); no other one changes its patches.
    content : callable
        The same keyword arguments to lines that stand for the files it would read: other lines, other patches.
    """

    name: str
    open: Callable[..., Source]
    options: tuple[str, ...]
    content: Callable[..., Iterable[str]] = lambda **_options: ()


SOURCES: tuple[SourceKind, ...] = (
    SourceKind(
        "phantom",
        lambda **options: PhantomSource(phantom(**options)),
        ("n", "slides", "size", "difficulty", "confound", "faults", "seed"),
    ),
    SourceKind("kaggle", kaggle.KaggleSource, ("path", "size", "missing", "slide_map"), kaggle.content),
    SourceKind("pcam", pcam.PcamSource, ("path", "size"), pcam.content),
    SourceKind(
        "folder",
        folder.FolderSource,
        ("path", "size", "missing", "slide_map", "resize", "positive"),
        folder.content,
    ),
)


def source_kind(name: str) -> SourceKind:
    """The row of that name."""
    return next(kind for kind in SOURCES if kind.name == name)

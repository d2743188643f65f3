"""Copies of small files inside the page, which the reader can save."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterable
from pathlib import Path

#: Largest file that is embedded, and the most that all may add to the page, both in bytes.
LARGEST, TOTAL = 100_000, 500_000


def embed(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Compress small files for the page, smallest first, until they would add more than `TOTAL` bytes.

    Parameters
    ----------
    folder : Path
    names : iterable of str
        Files in `folder`.

    Returns
    -------
    dict from str to str
        Name of each embedded file and its bytes, compressed by gzip, in Base64. In the order of `names`.
    """
    ordered = list(names)
    sizes = {name: (folder / name).stat().st_size for name in ordered}
    copies, used = {}, 0
    for name in sorted((name for name in ordered if sizes[name] <= LARGEST), key=lambda name: sizes[name]):
        # Without a time, the same file gives the same page.
        copy = base64.b64encode(gzip.compress((folder / name).read_bytes(), mtime=0)).decode()
        used += len(copy)
        if used > TOTAL:
            break
        copies[name] = copy
    return {name: copies[name] for name in ordered if name in copies}

"""Many small image files of one folder, uncompressed RGB TIFFs among them straight from disk into the array.

Kaggle's patches are uncompressed: their pixels can be read into place, once the file's own tags have said so. Tags
are parsed once for every different beginning of a file; one that begins with the very same bytes has the same layout.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoblend.data.sources.images import read_image, tame_pillow

#: Where the system cannot scatter one reading over two buffers (Windows), every file goes to the general decoder.
SCATTERS = hasattr(os, "readv") and os.open in os.supports_dir_fd

#: Header bytes that are looked at; pixels that begin later are left to the general decoder.
HEADER_BYTES = 4096

# Field types that the tags below may have, and how struct reads them.
TYPES = {3: "H", 4: "I"}

#: Tags that must have these values, where present; ``None`` where absence would be wrong too.
REQUIRED = {259: 1, 262: 2, 277: 3, 284: 1}  # uncompressed, RGB, three samples a pixel, stored side by side
OPTIONAL = {254: 0, 266: 1, 274: 1, 317: 1, 339: 1}  # one whole image, bit order, upright, no predictor, unsigned
#: Tags that leave pixels alone: description, maker, resolution, software, date, artist, host, page, copyright.
HARMLESS = {269, 270, 271, 272, 282, 283, 296, 297, 305, 306, 315, 316, 33432}
WIDTH, HEIGHT, BITS, OFFSETS, ROWS, COUNTS = 256, 257, 258, 273, 278, 279


@dataclass(frozen=True)
class Layout:
    """Where an uncompressed RGB TIFF keeps its pixels.

    Attributes
    ----------
    beginning : bytes
        All of the file's bytes that say so; a file that begins with them has this layout.
    start : int
        Bytes before the first pixel.
    """

    beginning: bytes
    start: int


def uncompressed_layout(header: bytes, size: int) -> Layout | None:
    """Layout of a TIFF that holds nothing but ``size`` × ``size`` uncompressed 8-bit RGB pixels in one stretch.

    Parameters
    ----------
    header : bytes
        The file's beginning.
    size : int

    Returns
    -------
    Layout or None
        None when the tags say anything else, or cannot be read: the file then needs a general decoder.

    References
    ----------
    Adobe (1992), TIFF Revision 6.0, sections 2 and 8.
    """
    try:
        tags, end = _tags(header)
        (rows,) = tags.get(ROWS, (size,))
    except (struct.error, KeyError, ValueError):
        return None
    known = {WIDTH, HEIGHT, BITS, OFFSETS, ROWS, COUNTS, *REQUIRED, *OPTIONAL, *HARMLESS}
    plain = (
        tags.keys() <= known
        and tags.get(WIDTH) == tags.get(HEIGHT) == (size,)
        and tags.get(BITS) == (8, 8, 8)
        and all(tags.get(tag) == (value,) for tag, value in REQUIRED.items())
        and all(set(tags.get(tag, (value,))) == {value} for tag, value in OPTIONAL.items())
        and rows > 0
    )
    if not plain:
        return None
    offsets, counts = tags.get(OFFSETS, ()), tags.get(COUNTS, ())
    lengths = [min(rows, size - row) * size * 3 for row in range(0, size, rows)]
    starts = [offsets[0] + sum(lengths[:number]) for number in range(len(lengths))] if offsets else []
    if not starts or list(counts) != lengths or list(offsets) != starts or not end <= starts[0] <= HEADER_BYTES:
        return None
    return Layout(header[:end], starts[0])


def _tags(header: bytes) -> tuple[dict[int, tuple[int, ...]], int]:
    """Tags of a file's only directory (harmless ones without value) and the end of what was read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}[header[:4]]
    (first,) = struct.unpack_from(f"{order}I", header, 4)
    (number,) = struct.unpack_from(f"{order}H", header, first)
    end = first + 2 + 12 * number + 4
    if struct.unpack_from(f"{order}I", header, end - 4) != (0,):
        raise ValueError("more than one directory")
    tags: dict[int, tuple[int, ...]] = {}
    for place in range(first + 2, end - 4, 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", header, place)
        if tag in HARMLESS:
            tags[tag] = ()
            continue
        if tag in tags:
            raise ValueError("a tag twice")
        form = f"{order}{count}{TYPES[kind]}"
        length = struct.calcsize(form) if count <= HEADER_BYTES else HEADER_BYTES + 1
        value = place + 8
        if length > 4:
            (value,) = struct.unpack_from(f"{order}I", header, value)
            end = max(end, value + length)
        tags[tag] = struct.unpack_from(form, header, value)
    return tags, end


class PatchReader:
    """Reads image files of one folder, each a patch, by :func:`data.sources.images.read_image` or faster.

    Parameters
    ----------
    folder : Path
    size : int
        Height and width of a patch in pixels.
    resize : {"refuse", "resize", "crop"}
    convert : bool
        See :func:`data.sources.images.read_image`.
    """

    def __init__(self, folder: Path, size: int, *, resize: str = "refuse", convert: bool = True) -> None:
        tame_pillow()
        self.folder, self.size, self.resize, self.convert = folder, size, resize, convert
        self._layout: Layout | None = None  # of the file read last: nearly always that of the next

    def read(self, names: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
        """Decode files, given by their paths relative to the folder.

        Returns
        -------
        pixels : ndarray of shape (len(names), size, size, 3), dtype uint8
            Rows that could not be read hold arbitrary values.
        reasons : dict from row to str
            Why a row could not be read.
        """
        pixels = np.empty((len(names), self.size, self.size, 3), np.uint8)
        left = self._scatter(names, pixels.reshape(len(names), -1)) if SCATTERS else range(len(names))
        reasons = {}
        for row in left:
            path = self.folder / names[row]
            reason = read_image(path, pixels[row], resize=self.resize, convert=self.convert)
            if reason:
                reasons[row] = reason
        return pixels, reasons

    def _scatter(self, names: Sequence[str], rows: np.ndarray) -> list[int]:
        """Read what is plain straight into ``rows``; return the numbers of the others."""
        left = []
        # A name relative to an open folder spares the system the walk down the path for every file.
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            for row, name in enumerate(names):
                try:
                    plain = self._scatter_one(name, folder, rows[row].data)
                except OSError:
                    plain = False  # the general decoder says why
                if not plain:
                    left.append(row)
        finally:
            os.close(folder)
        return left

    def _scatter_one(self, name: str, folder: int, row: memoryview) -> bool:
        """Whether the file is plain, and read; ``O_NONBLOCK`` keeps a pipe from waiting for a writer."""
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)
        try:
            layout = self._layout
            if layout is None:
                return self._learn(file, row)
            header = bytearray(layout.start)
            if os.readv(file, (header, row)) == layout.start + len(row) and header.startswith(layout.beginning):
                return True
            return self._learn(file, row)
        finally:
            os.close(file)

    def _learn(self, file: int, row: memoryview) -> bool:
        """Parse the tags of one file, keep its layout for the next ones, and read it."""
        os.lseek(file, 0, os.SEEK_SET)
        layout = uncompressed_layout(os.read(file, HEADER_BYTES), self.size)
        if layout is None:
            return False
        self._layout = layout
        os.lseek(file, layout.start, os.SEEK_SET)
        return os.readv(file, (row,)) == len(row)

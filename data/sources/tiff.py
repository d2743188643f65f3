"""Fast reading of many small image files, with uncompressed RGB TIFFs read directly into the array.

Kaggle's patches are uncompressed, so their pixels can be copied from the file once its tags confirm this. Files that
begin with the same bytes have the same layout, so the tags are parsed only if the beginning differs.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoblend.data.sources.images import read_image, tame_pillow

#: Whether the system can read into two buffers at once. If not (Windows), the general decoder reads every file.
SCATTERS = hasattr(os, "readv") and os.open in os.supports_dir_fd

#: Number of header bytes to parse. Files whose pixels begin later are left to the general decoder.
HEADER_BYTES = 4096

# Allowed types of the tags below, with their struct format.
TYPES = {3: "H", 4: "I"}

#: Tags that must be present with these values, and tags that may be missing or have these values.
REQUIRED = {259: 1, 262: 2, 277: 3, 284: 1}  # uncompressed, RGB, three samples per pixel, interleaved
OPTIONAL = {254: 0, 266: 1, 274: 1, 317: 1, 339: 1}  # one whole image, bit order, upright, no predictor, unsigned
#: Tags that do not affect pixels: description, maker, resolution, software, date, artist, host, page, copyright.
HARMLESS = {269, 270, 271, 272, 282, 283, 296, 297, 305, 306, 315, 316, 33432}
WIDTH, HEIGHT, BITS, OFFSETS, ROWS, COUNTS = 256, 257, 258, 273, 278, 279


@dataclass(frozen=True)
class Layout:
    """Position of the pixels in an uncompressed RGB TIFF.

    Attributes
    ----------
    beginning : bytes
        First bytes of the file, up to the end of the tags. A file that begins with them has this layout.
    start : int
        Number of bytes before the first pixel.
    """

    beginning: bytes
    start: int


def uncompressed_layout(header: bytes, size: int) -> Layout | None:
    """Layout of a TIFF with only ``size`` × ``size`` uncompressed, contiguous 8-bit RGB pixels.

    Parameters
    ----------
    header : bytes
        First bytes of the file.
    size : int

    Returns
    -------
    Layout or None
        None if the tags describe anything else or cannot be read; such a file needs the general decoder.

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
    """Read the tags of a file's only directory, harmless ones without value; also return the end of the data read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}[header[:4]]
    (first,) = struct.unpack_from(f"{order}I", header, 4)
    (number,) = struct.unpack_from(f"{order}H", header, first)
    end = first + 2 + 12 * number + 4
    if struct.unpack_from(f"{order}I", header, end - 4) != (0,):
        raise ValueError("more than one directory")
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(first + 2, end - 4, 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", header, entry)
        if tag in HARMLESS:
            tags[tag] = ()
            continue
        if tag in tags:
            raise ValueError("a repeated tag")
        form = f"{order}{count}{TYPES[kind]}"
        length = struct.calcsize(form) if count <= HEADER_BYTES else HEADER_BYTES + 1
        position = entry + 8
        if length > 4:
            (position,) = struct.unpack_from(f"{order}I", header, position)
            end = max(end, position + length)
        tags[tag] = struct.unpack_from(form, header, position)
    return tags, end


class PatchReader:
    """Read image files of one folder, one patch each, with :func:`data.sources.images.read_image` or faster.

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
        self._layout: Layout | None = None  # of the last file; usually that of the next one too

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
        others = self._scatter(names, pixels.reshape(len(names), -1)) if SCATTERS else range(len(names))
        reasons = {}
        for row in others:
            path = self.folder / names[row]
            reason = read_image(path, pixels[row], resize=self.resize, convert=self.convert)
            if reason:
                reasons[row] = reason
        return pixels, reasons

    def _scatter(self, names: Sequence[str], rows: np.ndarray) -> list[int]:
        """Read uncompressed files directly into ``rows``; return the row numbers of the others."""
        others = []
        # Opening relative to an open folder is faster than resolving the full path for each file.
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            for row, name in enumerate(names):
                try:
                    plain = self._scatter_one(name, folder, rows[row].data)
                except OSError:
                    plain = False  # the general decoder gives the reason
                if not plain:
                    others.append(row)
        finally:
            os.close(folder)
        return others

    def _scatter_one(self, name: str, folder: int, row: memoryview) -> bool:
        """Read the file if it is uncompressed; return whether it was. ``O_NONBLOCK`` avoids waiting at a pipe."""
        file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)
        try:
            layout = self._layout
            if layout is None:
                return self._read_layout(file, row)
            header = bytearray(layout.start)
            if os.readv(file, (header, row)) == layout.start + len(row) and header.startswith(layout.beginning):
                return True
            return self._read_layout(file, row)
        finally:
            os.close(file)

    def _read_layout(self, file: int, row: memoryview) -> bool:
        """Parse the tags of a file, keep its layout for the next files, and read its pixels."""
        os.lseek(file, 0, os.SEEK_SET)
        layout = uncompressed_layout(os.read(file, HEADER_BYTES), self.size)
        if layout is None:
            return False
        self._layout = layout
        os.lseek(file, layout.start, os.SEEK_SET)
        return os.readv(file, (row,)) == len(row)

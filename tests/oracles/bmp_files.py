"""Write BMP files of any kind."""

import struct

import numpy as np


def bmp_file(pixels, bits, *, palette=None, masks=(), down=False):
    """Bytes of a BMP.

    Parameters
    ----------
    pixels : ndarray of shape (height, width)
        Integers of ``bits`` bits: indices into the palette, or colours.
    palette : ndarray of shape (n, 3), optional
    masks : tuple of int
        Bit masks of red, green, blue and alpha; empty for the default.
    down : bool
        Whether the first stored row is the top row. By default it is the bottom row.
    """
    height, width = pixels.shape
    lines = b"".join(_line(row, bits) for row in (pixels if down else pixels[::-1]))
    colours = b"".join(
        bytes([blue, green, red, 0]) for red, green, blue in ([] if palette is None else palette.tolist())
    )
    size = 108 if masks else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, width, -height if down else height, 1, bits, 3 if masks else 0, len(lines), 0, 0, 0, 0
    )
    header = (header + struct.pack(f"<{len(masks)}I", *masks)).ljust(size, b"\0")
    start = 14 + size + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(lines), 0, 0, start) + header + colours + lines


def _line(row, bits):
    """A row of pixels, padded to a multiple of four bytes."""
    if bits < 8:
        data = np.packbits((row[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)).tobytes()
    else:
        data = b"".join(int(pixel).to_bytes(bits // 8, "little") for pixel in row)
    return data.ljust(-(-len(data) // 4) * 4, b"\0")

"""Write PNG files of any kind, and compute the image that they show."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6

#: Adam7: first column, first row, column step and row step of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_file(samples, bits, kind, *, interlaced=False, palette=None, transparent=None, exif=b"", exif_last=False):
    """Bytes of a PNG.

    Parameters
    ----------
    samples : ndarray of shape (height, width, samples)
    bits, kind : int
        Bit depth and colour type.
    interlaced : bool
    palette : ndarray of shape (n, 3), optional
    transparent : bytes, optional
        The chunk tRNS.
    exif : bytes
        The chunk eXIf, before the pixels, or after them if ``exif_last``.
    """
    height, width, _ = samples.shape
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(
        b"".join(b"\0" + line for line in _packed(samples[top::down, left::across], bits))
        for left, top, across, down in passes
        if left < width
    )
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    chunks = [_chunk(b"IHDR", header)]
    chunks += [_chunk(b"PLTE", palette.astype(np.uint8).tobytes())] if palette is not None else []
    chunks += [_chunk(b"tRNS", transparent)] if transparent is not None else []
    pixel_chunks, exif_chunks = [_chunk(b"IDAT", zlib.compress(lines))], [_chunk(b"eXIf", exif)] if exif else []
    chunks += pixel_chunks + exif_chunks if exif_last else exif_chunks + pixel_chunks
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _packed(block, bits):
    flat = block.reshape(len(block), -1)
    if bits >= 8:
        return [line.astype(f">u{bits // 8}").tobytes() for line in flat]
    spread = (flat[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    return [np.packbits(line.reshape(-1)).tobytes() for line in spread]


def shown(samples, bits, kind, palette=None, transparent=None):
    """The image that a PNG shows, as 8-bit RGB over white.

    Returns
    -------
    ndarray of shape (height, width, 3), dtype float64
        Whole numbers, except where transparency makes them fractional.
    """
    alpha = np.ones((*samples.shape[:2], 1))
    if kind == PALETTE:
        colour = palette[samples[..., 0]].astype(float)
        opacity = np.full(len(palette), 255)
        opacity[: len(transparent or b"")] = list(transparent or b"")
        alpha = opacity[samples] / 255
    else:
        levels = samples >> bits - 8 if bits >= 8 else samples * (255 // (2**bits - 1))
        if kind in (GREY_ALPHA, RGB_ALPHA):
            levels, alpha = levels[..., :-1], levels[..., -1:] / 255
        elif transparent is not None:
            alpha = 1.0 - (samples == struct.unpack(f">{samples.shape[2]}H", transparent)).all(axis=2, keepdims=True)
        colour = np.broadcast_to(levels, (*levels.shape[:2], 3)).astype(float)
    return 255 * (1 - alpha) + colour * alpha

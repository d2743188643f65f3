"""Write TIFF files of any kind, and compute the image that they show from the samples that tifffile reads."""

import io
import struct

import imagecodecs
import numpy as np
import tifffile

RAW, CCITT, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, LZMA, ZSTD, WEBP = (
    1, 2, 5, 7, 8, 32773, 32946, 34925, 50000, 50001,
)  # fmt: skip
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8

ENCODERS = {
    RAW: lambda data, _: data,
    LZW: lambda data, _: imagecodecs.lzw_encode(data),
    DEFLATE: lambda data, _: imagecodecs.zlib_encode(data),
    PACKBITS: lambda data, block: b"".join(
        imagecodecs.packbits_encode(data[row : row + len(data) // len(block)])
        for row in range(0, len(data), len(data) // len(block))
    ),
    OLD_DEFLATE: lambda data, _: imagecodecs.zlib_encode(data),
    LZMA: lambda data, _: imagecodecs.lzma_encode(data),
    ZSTD: lambda data, _: imagecodecs.zstd_encode(data),
    WEBP: lambda _, block: imagecodecs.webp_encode(block.astype(np.uint8), lossless=True),
}

# Tag types and their struct codes.
_CODES = {1: "B", 3: "H", 4: "I"}


def tiff_file(samples, bits, photometric, *, planar=1, form=1, order="<", predictor=1, compression=RAW, tile=None,
              rows=None, fill=1, jpeg=None, tags=None):  # fmt: skip
    """Bytes of a TIFF.

    Parameters
    ----------
    samples : ndarray of shape (height, width, samples)
        Samples as stored: integers below 2 ** bits or, depending on ``form``, signed integers or floats.
    bits, photometric, planar, form, predictor, compression, fill : int
        Values of tags 258, 262, 284, 339, 317, 259 and 266.
    order : {"<", ">"}
    tile : int or None
        Side of a tile; None for strips.
    rows : int or None
        Rows per strip.
    jpeg : dict, optional
        Arguments for the JPEG encoder of imagecodecs.
    tags : dict from int to int, tuple or bytes
        Additional or replaced tags; None removes a tag.
    """
    height, width, count = samples.shape
    layers = [samples] if planar == 1 else [samples[..., layer : layer + 1] for layer in range(count)]
    down, across = (tile, tile) if tile else (rows or height, width)
    segments = []
    for layer in layers:
        for top in range(0, height, down):
            for left in range(0, width, across):
                block = layer[top : top + down, left : left + across]
                if tile:
                    block = np.pad(block, [(0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)], "edge")
                if compression == JPEG:
                    packed = imagecodecs.jpeg8_encode(np.ascontiguousarray(block), level=95, **jpeg or {})
                else:
                    packed = ENCODERS[compression](_packed(block, bits, form, order, predictor), block)
                segments.append(_reversed(packed) if fill == 2 else packed)
    entries = {256: width, 257: height, 258: (bits,) * count, 259: compression, 262: photometric}
    entries |= {277: count, 284: planar}
    if tile:
        entries |= {322: tile, 323: tile}
    elif rows:
        entries |= {278: rows}
    unusual = {266: fill, 317: predictor, 339: (form,) * count}
    entries |= {tag: value for tag, value in unusual.items() if value not in (1, (1,) * count)}
    entries |= tags or {}
    return _file({tag: value for tag, value in entries.items() if value is not None}, segments, order, bool(tile))


def _packed(block, bits, form, order, predictor):
    """One strip or tile as bytes, before compression."""
    kind = {1: "u", 2: "i", 3: "f"}[form]
    if bits not in (8, 16, 32, 64):
        flat = block.reshape(len(block), -1).astype(np.uint32)
        shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
        lines = (flat[..., None] >> shifts & 1).astype(np.uint8).reshape(len(block), -1)
        return np.packbits(lines, axis=1).tobytes()
    native = np.ascontiguousarray(block, f"{kind}{bits // 8}")
    if predictor == 2:
        whole = native.view(f"u{bits // 8}")
        native = np.concatenate([whole[:, :1], whole[:, 1:] - whole[:, :-1]], axis=1)
    if predictor == 3:
        return _float_predicted(native)
    return native.astype(native.dtype.newbyteorder(order)).tobytes()


def _float_predicted(block):
    """Adobe's floating-point predictor: bytes of a row grouped from most to least significant, then differenced."""
    rows, width, count = block.shape
    big = block.astype(block.dtype.newbyteorder(">")).view(np.uint8).reshape(rows, width * count, -1)
    planes = big.transpose(0, 2, 1).reshape(rows, -1)
    return np.concatenate([planes[:, :count], planes[:, count:] - planes[:, :-count]], axis=1).tobytes()


def _reversed(data):
    """Reverse the bit order of every byte."""
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)).reshape(-1, 8)[:, ::-1], axis=1).tobytes()


def _file(entries, segments, order, tiled):
    """Assemble header, pixels, tag values and directory."""
    body, offsets = bytearray(8), []
    for segment in segments:
        offsets.append(len(body))
        body += segment + bytes(len(segment) % 2)
    offset_tag, count_tag = (324, 325) if tiled else (273, 279)
    entries = {offset_tag: tuple(offsets), count_tag: tuple(map(len, segments))} | entries
    directory = bytearray(struct.pack(f"{order}H", len(entries)))
    for tag, values in sorted(entries.items()):
        values_of_tag = values if isinstance(values, tuple) else (values,)
        kind = (
            1 if isinstance(values, bytes) else 4 if max(values_of_tag) > 65535 or tag in (offset_tag, count_tag) else 3
        )
        values_of_tag = tuple(values) if isinstance(values, bytes) else values_of_tag
        data = struct.pack(f"{order}{len(values_of_tag)}{_CODES[kind]}", *values_of_tag)
        if len(data) > 4:
            position, data = len(body), data + bytes(len(data) % 2)
            body += data
            data = struct.pack(f"{order}I", position)
        directory += struct.pack(f"{order}HHI", tag, kind, len(values_of_tag)) + data.ljust(4, b"\0")
    start = len(body)
    body[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return bytes(body + directory + bytes(4))


def stored_samples(content):
    """Samples that tifffile reads, shape (height, width, samples), as stored.

    Photometric interpretation, alpha and orientation are not applied, except for the colour spaces of JPEG and WebP.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        samples = page.asarray()
        if page.samplesperpixel > 1 and page.planarconfig == 2:
            samples = np.moveaxis(samples, 0, -1)
    samples = samples.reshape(page.imagelength, page.imagewidth, -1)
    return samples.astype(np.uint8) if samples.dtype == bool else samples


def shown(content):
    """The image that an integer TIFF shows, as 8-bit RGB, by the rules of :data:`data.sources.images.CONVERSION`.

    Returns
    -------
    ndarray of shape (height, width, 3), dtype float64
        Whole numbers, except where transparency makes them fractional.
    """
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages.first
        bits, photometric, colours = page.bitspersample, int(page.photometric), page.colormap
        extra = [int(value) for value in page.extrasamples]
        orientation = page.tags[274].value if 274 in page.tags else 1
    samples = stored_samples(content)
    basic = samples.shape[2] - len(extra)
    if photometric == PALETTE:
        colours = colours.reshape(3, -1)
        levels = colours[:, samples[..., 0]].transpose(1, 2, 0) >> 8
    else:
        levels = samples >> bits - 8 if bits >= 8 else samples * (255 // (2**bits - 1))
        levels = levels[..., :basic]
        if photometric == WHITE_IS_ZERO:
            levels = 255 - levels
    colour = np.broadcast_to(levels, (*levels.shape[:2], 3)).astype(float)
    if any(extra):
        (alpha_channel,) = (number for number, kind in enumerate(extra) if kind)
        alpha = samples[..., basic + alpha_channel, None]
        alpha = (alpha >> bits - 8) / 255
        colour = 255 * (1 - alpha) + colour * (1 if extra[alpha_channel] == 1 else alpha)
    return turned(colour, orientation)


def turned(pixels, orientation):
    """Orient pixels for display. The table gives the position of the stored first row and column (TIFF tag 274)."""
    down, across = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if down in ("left", "right"):
        pixels, down, across = pixels.swapaxes(0, 1), across, down
    return pixels[:: 1 if down == "top" else -1, :: 1 if across == "left" else -1]

"""Nuclei of a batch of patches: found on the haematoxylin plane, measured one by one, pooled over a region."""

from __future__ import annotations

import numba
import numpy as np

from features.stain import as_batch, stain_levels

REGIONS = ("whole", "centre")
PATCH = ("count", "fraction", "threshold", "contrast", "gap-mean", "gap-spread")
NUCLEUS = (
    "area", "perimeter", "circularity", "eccentricity", "solidity", "extent", "major", "minor", "intensity", "grain",
)  # fmt: skip
POOLS = ("mean", "spread", "max")
_SMALLEST = 12
_LOWEST_LEVEL = 31


def nuclei(patches: np.ndarray) -> np.ndarray:
    """Find nuclei, and give their number, cover, spacing, size, shape and stain.

    The 8-bit haematoxylin plane (`features.stain.stain_levels`) is smoothed with the binomial filter
    (1, 4, 6, 4, 1) / 16 both ways, borders reflected, and cut at Otsu's threshold (`skimage.filters.threshold_otsu`),
    but never below level 31 (an amount of 0.03), so that blank and evenly stained patches have no nuclei. Connected
    parts (diagonals count) of at least 12 pixels are nuclei, measured as `skimage.measure.regionprops` does. A
    nucleus belongs to the centre when its centroid lies there.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, 72), dtype float32
        By region: `PATCH`, then `NUCLEUS` by `POOLS`. Without nuclei 0.
    """
    patches = as_batch(patches)
    levels = stain_levels(patches)[0]
    out = np.zeros((len(patches), len(REGIONS), len(PATCH) + len(NUCLEUS) * len(POOLS)))
    _nuclei_kernel(levels, out)
    return out.reshape(len(patches), -1).astype(np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reflect(position: int, size: int) -> int:
    if position < 0:
        return -1 - position
    return position if position < size else 2 * size - 1 - position


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _smooth(levels: np.ndarray, across: np.ndarray, out: np.ndarray) -> None:
    """Binomial filter in whole numbers, rounded half up."""
    height, width = levels.shape
    for row in range(height):
        for column in range(width):
            near = np.int32(levels[row, _reflect(column - 1, width)]) + levels[row, _reflect(column + 1, width)]
            far = np.int32(levels[row, _reflect(column - 2, width)]) + levels[row, _reflect(column + 2, width)]
            across[row, column] = 6 * np.int32(levels[row, column]) + 4 * near + far
    for row in range(height):
        up, down = _reflect(row - 1, height), _reflect(row + 1, height)
        up2, down2 = _reflect(row - 2, height), _reflect(row + 2, height)
        for column in range(width):
            total = 6 * across[row, column] + 4 * (across[up, column] + across[down, column])
            out[row, column] = (total + across[up2, column] + across[down2, column] + 128) >> 8


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _otsu(levels: np.ndarray) -> int:
    """Otsu's threshold: the lower class ends with it. Sums are whole numbers, so equal splits are equal."""
    histogram = np.zeros(256, np.int64)
    for level in levels.flat:
        histogram[level] += 1
    count, total = 0, 0
    for level in range(256):
        count += histogram[level]
        total += level * histogram[level]
    # a constant plane has no split: its level is the threshold, and nothing exceeds it
    best, threshold = -1.0, int(levels[0, 0])
    below, weight = 0, 0
    for level in range(255):
        below += histogram[level]
        weight += level * histogram[level]
        if histogram[level] == 0 or below == count:
            # an empty bin splits the pixels as the bin before it did: the first of equals stands
            continue
        apart = float(weight) / below - float(total - weight) / (count - below)
        between = float(below) * float(count - below) * apart * apart
        if between > best:
            best, threshold = between, level
    return threshold


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(mask: np.ndarray, labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray) -> int:
    """Label the part that holds pixel (rows[0], columns[0]); list its pixels and return how many they are."""
    height, width = mask.shape
    labels[rows[0], columns[0]] = label
    found, done = 1, 0
    while done < found:
        row, column = rows[done], columns[done]
        done += 1
        for r in range(max(row - 1, 0), min(row + 2, height)):
            for c in range(max(column - 1, 0), min(column + 2, width)):
                if mask[r, c] and labels[r, c] == 0:
                    labels[r, c] = label
                    rows[found], columns[found] = r, c
                    found += 1
    return found


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _on_border(labels: np.ndarray, row: int, column: int, label: int) -> bool:
    height, width = labels.shape
    if row < 0 or column < 0 or row >= height or column >= width or labels[row, column] != label:
        return False
    if row == 0 or column == 0 or row == height - 1 or column == width - 1:
        return True
    return not (
        labels[row - 1, column] == label
        and labels[row + 1, column] == label
        and labels[row, column - 1] == label
        and labels[row, column + 1] == label
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _perimeter(labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray) -> float:
    """Length of the line through the centres of the border pixels, as scikit-image estimates it."""
    straight, diagonal, mixed = 0, 0, 0
    for row, column in zip(rows, columns):  # noqa: B905 - Numba has no strict zip
        if not _on_border(labels, row, column, label):
            continue
        code = 1
        for r in range(-1, 2):
            for c in range(-1, 2):
                if (r != 0 or c != 0) and _on_border(labels, row + r, column + c, label):
                    code += 2 if r == 0 or c == 0 else 10
        if code in (5, 7, 15, 17, 25, 27):
            straight += 1
        elif code in (21, 33):
            diagonal += 1
        elif code in (13, 23):
            mixed += 1
    return straight + np.sqrt(2.0) * diagonal + (1.0 + np.sqrt(2.0)) / 2.0 * mixed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _chain(sides: np.ndarray, chain: np.ndarray) -> int:
    """Lower convex chain through the points (k, sides[k]); returns its length."""
    length = 0
    for k in range(sides.size):
        while length >= 2:
            a, b = chain[length - 2], chain[length - 1]
            if (sides[b] - sides[a]) * (k - a) >= (sides[k] - sides[a]) * (b - a):
                length -= 1
            else:
                break
        chain[length] = k
        length += 1
    return length


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_columns(sides: np.ndarray, chain: np.ndarray, out: np.ndarray) -> None:
    """First pixel column on or right of the chain, for each pixel row (odd k); coordinates are doubled."""
    _chain(sides, chain)
    edge = 0
    for row in range(out.size):
        k = 2 * row + 1
        while chain[edge + 1] < k:
            edge += 1
        a, b = chain[edge], chain[edge + 1]
        position = sides[a] * (b - a) + (sides[b] - sides[a]) * (k - a)
        out[row] = -((-position) // (2 * (b - a)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _convex_area(rows: np.ndarray, columns: np.ndarray) -> int:
    """Pixels whose centre lies in or on the hull of all edge midpoints of the part's pixels."""
    top = rows.min()
    height = rows.max() - top + 1
    left = np.full(height, 1 << 30)
    right = np.full(height, -(1 << 30))
    for row, column in zip(rows, columns):  # noqa: B905 - Numba has no strict zip
        left[row - top] = min(left[row - top], column)
        right[row - top] = max(right[row - top], column)
    # k = 2 row + 1 are the pixel rows, even k the lines between them; the right side is mirrored
    lefts, rights = np.empty(2 * height + 1, np.int64), np.empty(2 * height + 1, np.int64)
    for k in range(2 * height + 1):
        if k % 2:
            lefts[k], rights[k] = 2 * left[k // 2] - 1, -2 * right[k // 2] - 1
        else:
            above, below = max(k // 2 - 1, 0), min(k // 2, height - 1)
            lefts[k] = 2 * min(left[above], left[below])
            rights[k] = -2 * max(right[above], right[below])
    chain = np.empty(2 * height + 1, np.int64)
    first, last = np.empty(height, np.int64), np.empty(height, np.int64)
    _first_columns(lefts, chain, first)
    _first_columns(rights, chain, last)
    area = 0
    for row in range(height):
        area += -last[row] - first[row] + 1
    return area


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    levels: np.ndarray, labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray, out: np.ndarray
) -> None:
    """`NUCLEUS` of one part, then its centroid (row, column)."""
    area = rows.size
    middle_row, middle_column, level = rows.mean(), columns.mean(), 0.0
    for k in range(area):
        level += levels[rows[k], columns[k]]
    level /= area
    across, down, mixed, spread = 0.0, 0.0, 0.0, 0.0
    for k in range(area):
        y, x, deviation = rows[k] - middle_row, columns[k] - middle_column, levels[rows[k], columns[k]] - level
        across += x * x
        down += y * y
        mixed += x * y
        spread += deviation * deviation
    across, down, mixed = across / area, down / area, mixed / area
    root = np.sqrt((across - down) ** 2 + 4.0 * mixed * mixed)
    long, short = (across + down + root) / 2.0, max((across + down - root) / 2.0, 0.0)
    perimeter = _perimeter(labels, label, rows, columns)
    box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    out[0], out[1] = area, perimeter
    # a lattice of pixels that touch by corners alone has no estimated perimeter
    out[2] = 4.0 * np.pi * area / (perimeter * perimeter) if perimeter > 0.0 else 0.0
    out[3], out[4], out[5] = np.sqrt(1.0 - short / long), area / _convex_area(rows, columns), area / box
    out[6], out[7] = 4.0 * np.sqrt(long), 4.0 * np.sqrt(short)
    out[8], out[9] = level / 255.0, np.sqrt(spread / area) / 255.0
    out[10], out[11] = middle_row, middle_column


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _find(levels: np.ndarray, mask: np.ndarray, labels: np.ndarray, table: np.ndarray) -> int:
    """Measure all parts into `table`, erase from `mask` those that are too small; return the number kept."""
    height, width = mask.shape
    rows, columns = np.empty(mask.size, np.int64), np.empty(mask.size, np.int64)
    labels[:] = 0
    label, kept = 0, 0
    for row in range(height):
        for column in range(width):
            if not mask[row, column] or labels[row, column] != 0:
                continue
            label += 1
            rows[0], columns[0] = row, column
            area = _grow(mask, labels, label, rows, columns)
            if area >= _SMALLEST:
                _measure(levels, labels, label, rows[:area], columns[:area], table[kept])
                kept += 1
            else:
                for k in range(area):
                    mask[rows[k], columns[k]] = False
    return kept


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gaps(table: np.ndarray, gaps: np.ndarray) -> None:
    """Distance from each nucleus' centroid to the nearest other; 0 for one alone."""
    for i in range(len(table)):
        nearest = np.inf
        for j in range(len(table)):
            if i != j:
                nearest = min(nearest, (table[i, 10] - table[j, 10]) ** 2 + (table[i, 11] - table[j, 11]) ** 2)
        gaps[i] = np.sqrt(nearest) if nearest < np.inf else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cover(levels: np.ndarray, mask: np.ndarray, out: np.ndarray) -> None:
    """Fraction covered, and mean level inside minus outside (0 when either is empty)."""
    inside, within, outside = 0, 0.0, 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                inside += 1
                within += levels[row, column]
            else:
                outside += levels[row, column]
    out[1] = inside / mask.size
    if 0 < inside < mask.size:
        out[3] = (within / inside - outside / (mask.size - inside)) / 255.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pool(table: np.ndarray, gaps: np.ndarray, out: np.ndarray) -> None:
    if len(table) == 0:
        return
    out[0] = len(table)
    out[4], out[5] = gaps.mean(), gaps.std()
    for k in range(10):
        values = table[:, k]
        out[6 + 3 * k], out[7 + 3 * k], out[8 + 3 * k] = values.mean(), values.std(), values.max()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _nuclei_kernel(planes: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    smooth, across = np.empty((height, width), np.uint8), np.empty((height, width), np.int32)
    labels = np.empty((height, width), np.int64)
    table = np.empty((height * width // _SMALLEST + 1, 12))
    gaps = np.empty(len(table))
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        _smooth(planes[i], across, smooth)
        threshold = max(_otsu(smooth), _LOWEST_LEVEL)
        mask = smooth > threshold
        kept = _find(planes[i], mask, labels, table)
        _gaps(table[:kept], gaps)
        out[i, :, 2] = threshold / 255.0
        _cover(planes[i], mask, out[i, 0])
        _cover(planes[i, top : top + 32, left : left + 32], mask[top : top + 32, left : left + 32], out[i, 1])
        _pool(table[:kept], gaps[:kept], out[i, 0])
        rows, columns = table[:kept, 10], table[:kept, 11]
        inside = (rows >= top) & (rows < top + 32) & (columns >= left) & (columns < left + 32)
        _pool(table[:kept][inside], gaps[:kept][inside], out[i, 1])

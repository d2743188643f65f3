"""Which patches show the same tissue: equal bytes, or the same picture turned, mirrored, exposed or stored anew.

A patch is described by the lowest 16 × 16 coefficients of the cosine transform of its grey values. The eight symmetries
of the square act on them exactly: a mirror image turns signs, a transposition swaps rows and columns. So no canonical
form is needed, which noise could tip over; every patch is looked up in all eight positions instead.

Candidates come from the signs of the lowest 8 × 8 coefficients: 63 bits, of which unrelated patches share about half,
cut into five bands. Two patches that agree in one band are compared, and kept when the coefficients, each weighted by
its frequency (which makes them the gradients of the patches), correlate. Work is near linear in the number of patches.

References
----------
Zauner (2010), Implementation and benchmarking of perceptual image hash functions (signs of cosine coefficients).
Norouzi, Punjani & Fleet (2012), Fast search in Hamming space with multi-index hashing, CVPR (bands).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from histoblend.data.audit.measures import FREQUENCIES

#: Correlation of gradients from which on two patches count as near duplicates. Measured on 400 real patches: the same
#: one stored as JPEG (quality 30 to 70), blurred by 1.2 px, made 3/4 as large or shifted by 1 px reaches 0.90 or more
#: in at least 95 of 100 cases, shifted by 2 px 0.79 in the middle; 200,000 unrelated pairs reach 0.35 at most.
SIMILAR = 0.9

#: Bits in which two candidates may differ: of 200,000 unrelated pairs the closest differed in 11.
BITS_APART = 12

_BANDS = (13, 13, 13, 12, 12)

#: Patches of one band that a patch is compared with at most, the nearest in the order of all bits: thousands of copies
#: of one picture are then still linked, each to its neighbours, and cost no more than as many different ones.
_NEIGHBOURS = 256

_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True)
class NearPairs:
    """Pairs of near duplicates that link each set of them once: a set of k patches has k − 1 pairs.

    Attributes
    ----------
    first, second : ndarray of shape (pairs,), int64
        Row numbers, ``second < first``.
    symmetry : ndarray of shape (pairs,), int8
        Which of the eight symmetries of the square turns ``second`` into ``first``: quarter turns, and from 4 on a
        left-right mirror after them.
    similarity : ndarray of shape (pairs,), float32
        Correlation of the gradients, `SIMILAR` to 1.
    """

    first: np.ndarray
    second: np.ndarray
    symmetry: np.ndarray
    similarity: np.ndarray


def exact_duplicates(hashes: Sequence[str]) -> np.ndarray:
    """Lowest row with the same bytes.

    Parameters
    ----------
    hashes : sequence of str, length n
        A hash of each patch's decoded pixels.

    Returns
    -------
    ndarray of shape (n,), dtype int64
        A row's own number where no lower row is equal.
    """
    codes, _ = pd.factorize(np.asarray(hashes, dtype=object))
    _, first = np.unique(codes, return_index=True)
    return first[codes]


def near_duplicates(bits: np.ndarray, vectors: np.ndarray, rows: np.ndarray, *, least: float = SIMILAR) -> NearPairs:
    """Find near duplicates among some patches, in any of the eight positions.

    Parameters
    ----------
    bits : ndarray of shape (n,), dtype uint64
    vectors : ndarray of shape (n, FREQUENCIES, FREQUENCIES), dtype int8
        From :func:`data.audit.measures.describe`.
    rows : ndarray of shape (m,), int
        The patches to look at. Leave out those with nothing to see: flat patches all look alike.
    least : float
        Least correlation of gradients.

    Returns
    -------
    NearPairs
        Sorted by ``first``.
    """
    rows = np.sort(rows).astype(np.int64)
    bits, vectors = bits[rows], vectors[rows]
    norms = np.sqrt(np.einsum("iuv,iuv->i", vectors, vectors, dtype=np.float64, casting="unsafe"))
    sources, signs = _symmetries()
    parent = np.arange(len(rows))
    links = np.empty((max(len(rows) - 1, 0), 3), dtype=np.int64)
    similarity = np.empty(len(links), dtype=np.float32)
    found = 0
    for start, length in zip(np.cumsum((1, *_BANDS[:-1])), _BANDS, strict=True):
        # The band becomes the leading bits, so that equal bands stand together and like patches within them.
        left = np.int64(64 - start - length)
        turned = _rotate(bits, left)
        order = np.argsort(turned, kind="stable")
        keys = turned[order]
        starts = np.searchsorted(keys >> np.uint64(64 - length), np.arange(2**length + 1, dtype=np.uint64))
        found = _search(
            bits, vectors.reshape(len(rows), FREQUENCIES**2), norms, order, keys, starts, left, length, sources, signs,
            np.float32(least), parent, links, similarity, found,
        )  # fmt: skip
    links, similarity = links[:found], similarity[:found]
    by_row = np.lexsort((links[:, 1], links[:, 0]))
    first, second, symmetry = links[by_row].T
    return NearPairs(rows[first], rows[second], symmetry.astype(np.int8), similarity[by_row])


def _symmetries() -> tuple[np.ndarray, np.ndarray]:
    """How the coefficients of a patch move under each symmetry: source of each, and its sign.

    Returns
    -------
    sources : ndarray of shape (8, FREQUENCIES²), dtype int64
    signs : ndarray of shape (8, FREQUENCIES²), dtype int8
    """
    places = np.arange(FREQUENCIES**2).reshape(FREQUENCIES, FREQUENCIES)
    turns = (1 - 2 * (np.arange(FREQUENCIES) % 2)).astype(np.int8)
    sources, signs = np.empty((2, 8, FREQUENCIES**2), dtype=np.int64)
    for symmetry in range(8):
        source, sign = places, np.ones_like(places)
        for _ in range(symmetry % 4):
            source, sign = source.T, sign.T * turns[:, None]
        sources[symmetry] = source.ravel()
        signs[symmetry] = (sign * turns if symmetry >= 4 else sign).ravel()
    return sources, signs.astype(np.int8)


@_compiled
def _rotate(bits, left):  # type: ignore[no-untyped-def]
    """Rotate each number of 64 bits to the left."""
    turned = np.empty_like(bits)
    for i in range(len(bits)):
        turned[i] = _rotated(bits[i], left)
    return turned


@_compiled
def _rotated(value, left):  # type: ignore[no-untyped-def]
    if left == 0:
        return value
    return (value << np.uint64(left)) | (value >> np.uint64(64 - left))


@_compiled
def _turn(bits, symmetry):  # type: ignore[no-untyped-def]
    """Signs of a patch in another position; bit 0 stays 0, since neither mask holds it."""
    odd_rows, odd_columns = np.uint64(0xFF00FF00FF00FF00), np.uint64(0xAAAAAAAAAAAAAAAA)
    for _ in range(symmetry % 4):
        for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
            swapped = (bits ^ (bits >> np.uint64(shift))) & np.uint64(mask)
            bits = bits ^ swapped ^ (swapped << np.uint64(shift))
        bits ^= odd_rows
    return bits ^ odd_columns if symmetry >= 4 else bits


@_compiled
def _count(bits):  # type: ignore[no-untyped-def]
    """Bits that are set."""
    bits -= (bits >> np.uint64(1)) & np.uint64(0x5555555555555555)
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (bits * np.uint64(0x0101010101010101)) >> np.uint64(56)


@_compiled
def _root(parent, row):  # type: ignore[no-untyped-def]
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@_compiled
def _correlation(one, other, source, sign):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for k in range(len(one)):
        total += np.int64(one[k]) * np.int64(sign[k]) * np.int64(other[source[k]])
    return total


@_compiled
def _search(  # type: ignore[no-untyped-def]
    bits, vectors, norms, order, keys, starts, left, length, sources, signs, least, parent, links, similarity, found
):
    """Compare patches that agree in one band, in any position; add what links them to ``links``; return how many."""
    for row in range(len(bits)):
        for symmetry in range(8):
            # `row` turned back by the symmetry looks like a `second` that the symmetry turns into `row`.
            back = symmetry if symmetry >= 4 else (4 - symmetry) % 4
            key = _rotated(_turn(bits[row], back), left)
            band = np.int64(key >> np.uint64(64 - length))
            low, high = starts[band], starts[band + 1]
            if high - low > _NEIGHBOURS:
                middle = low + np.searchsorted(keys[low:high], key)
                low, high = max(low, middle - _NEIGHBOURS // 2), min(high, middle + _NEIGHBOURS // 2)
            for place in range(low, high):
                if _count(keys[place] ^ key) > BITS_APART:
                    continue
                other = order[place]
                if other >= row or norms[row] == 0 or norms[other] == 0:
                    continue
                one, two = _root(parent, row), _root(parent, other)
                if one == two:
                    continue
                alike = _correlation(vectors[row], vectors[other], sources[symmetry], signs[symmetry])
                alike /= norms[row] * norms[other]
                if alike >= least:
                    parent[max(one, two)] = min(one, two)
                    links[found, 0], links[found, 1], links[found, 2] = row, other, symmetry
                    similarity[found] = alike
                    found += 1
    return found

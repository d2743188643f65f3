"""Outlier detection: the distance of patches from the training patches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoblend.data.storage.arrays import Rows
from histoblend.data.storage.expansion import read_array, read_json

#: Folder in a bundle with the fitted detector.
OUTLIERS = "outliers"

#: Maximum number of principal directions. Distance along these does not count.
DIRECTIONS = 128

#: Share of training patches, each judged without its slide's fold, above the threshold.
OUTLIER_SHARE = 0.01

#: The detector learns from at most this many patches, a random sample.
MOST_PATCHES = 20_000

_BLOCK = 4096


@dataclass(frozen=True)
class Outliers:
    """A fitted outlier detector: the squared residual of a patch after projection on principal components.

    Columns are standardised and squashed by the inverse hyperbolic sine, which acts as a logarithm on long tails. The
    distance is the squared length of what remains after projection on the leading principal directions. Its unit is
    the 99th percentile over training patches, each judged without its slide's fold.

    Attributes
    ----------
    space : str
        Name of the set of columns.
    centre, spread : ndarray of shape (columns,), dtype float64
        Mean and standard deviation of the training patches.
    middle : ndarray of shape (columns,), dtype float64
        Mean of the squashed values.
    directions : ndarray of shape (k, columns), dtype float64
        Principal directions, orthonormal.
    threshold : float
        Squared length that corresponds to a distance of 1.

    References
    ----------
    Jackson & Mudholkar (1979), Technometrics 21(3):341-349 (the residual of principal components, "Q").
    """

    space: str
    centre: np.ndarray
    spread: np.ndarray
    middle: np.ndarray
    directions: np.ndarray
    threshold: float

    def distance(self, values: np.ndarray) -> np.ndarray:
        """Distance of each patch. Above 1, a patch counts as out of distribution.

        Parameters
        ----------
        values : ndarray of shape (n, columns), float

        Returns
        -------
        ndarray of shape (n,), dtype float64
            Each depends only on the patch's own values, bit for bit.
        """
        residuals = np.empty(len(values))
        for index, row in enumerate(values):
            squashed = _squash(row, self.centre, self.spread) - self.middle
            # One product per patch: the order of additions then does not depend on the other patches.
            projected = self.directions @ squashed
            residuals[index] = np.square(squashed).sum() - np.square(projected).sum()
        # Rounding can make a residual near 0 negative.
        return np.maximum(residuals, 0.0) / self.threshold

    def save(self, folder: Path) -> None:
        """Write the detector into ``folder``, which is created if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "directions.npy", self.directions.astype(np.float32))
        np.save(folder / "columns.npy", np.stack([self.centre, self.spread, self.middle]))
        state = {"space": self.space, "threshold": self.threshold, "beyond": OUTLIER_SHARE}
        (folder / "outliers.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Outliers:
        """Load a detector from the content of the files that :meth:`save` wrote, by name."""
        state = read_json(f"{OUTLIERS}/outliers.json", files["outliers.json"])
        centre, spread, middle = read_array(f"{OUTLIERS}/columns.npy", files["columns.npy"])
        directions = read_array(f"{OUTLIERS}/directions.npy", files["directions.npy"]).astype(np.float64)
        return cls(str(state["space"]), centre, spread, middle, directions, float(state["threshold"]))


def learn_outliers(values: Rows, folds: np.ndarray, space: str) -> Outliers:
    """Fit the detector on training patches; its threshold comes from patches of slides that a fit has not seen.

    Parameters
    ----------
    values : Rows of shape (n, columns), float
        Training patches only. At most MOST_PATCHES of them are read, in blocks, several times.
    folds : ndarray of shape (n,), int
        Folds by slide. For the threshold, each patch is judged by a fit on the other folds.
    space : str
        Name of the set of columns.
    """
    sample = np.sort(np.random.default_rng(0).permutation(len(folds))[:MOST_PATCHES])
    parts = []
    for fold in np.unique(folds[sample]):
        own = folds[sample] == fold
        fitted = _fit(values, sample[~own], space, 1.0)
        parts += [fitted.distance(values[rows]) for rows in _blocks(sample[own])]
    threshold = max(float(np.quantile(np.concatenate(parts), 1 - OUTLIER_SHARE)), np.finfo(float).tiny)
    return _fit(values, sample, space, threshold)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


def _fit(values: Rows, rows: np.ndarray, space: str, threshold: float) -> Outliers:
    count, width = len(rows), values.shape[1]
    total = np.zeros(width)
    for block in _blocks(rows):
        # Row by row on top of the total, so that the sum does not depend on the size of blocks.
        total = np.concatenate([total[None], values[block]]).sum(axis=0)
    centre = total / count
    spread = np.sqrt(sum(np.square(values[block] - centre).sum(axis=0) for block in _blocks(rows)) / count)
    # A column that is constant in training is scaled by its magnitude instead.
    spread = np.where(spread > 1e-7 * np.maximum(np.abs(centre), 1e-30), spread, np.maximum(np.abs(centre), 1.0))
    total, products = np.zeros(width), np.zeros((width, width))
    for block in _blocks(rows):
        squashed = _squash(values[block], centre, spread)
        total += squashed.sum(axis=0)
        products += squashed.T @ squashed
    middle = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(middle, middle))
    # At most half of all directions, so that a residual remains.
    kept = min(DIRECTIONS, width // 2, count // 2)
    # Rounded to the file's float32, so that the bundle gives the same distances as the run.
    directions = vectors[:, ::-1][:, :kept].T.astype(np.float32).astype(np.float64)
    return Outliers(space, centre, spread, middle, np.ascontiguousarray(directions), threshold)


def _squash(values: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.asarray(np.arcsinh((values - centre) / spread))

"""How far a patch lies from the patches that were learned from: what a model has never seen, it cannot judge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoblend.models.file_checks import read_array, read_json

#: Folder of a bundle that holds the reference.
OUTLIERS = "outliers"

#: Directions in which training patches differ most, and in which distance does not count.
DIRECTIONS = 128

#: Share of training patches, each judged without its slide's fold, that may lie beyond the threshold.
BEYOND = 0.01

_BLOCK = 4096


@dataclass(frozen=True)
class Outliers:
    """Distance of patches to the training patches: what the training patches' leading directions leave unexplained.

    Columns are standardised and squashed (inverse hyperbolic sine: long tails count as their logarithm), and the
    squared length that remains after projection on the leading principal directions is the distance, in units of its
    99th percentile over training patches whose slides were left out.

    Attributes
    ----------
    space : str
        Set of columns.
    centre, spread : ndarray of shape (columns,), dtype float64
        Mean and standard deviation of the training patches.
    middle : ndarray of shape (columns,), dtype float64
        Mean of the squashed values.
    directions : ndarray of shape (k, columns), dtype float64
        Orthonormal.
    threshold : float
        Squared length that counts as 1.

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
        """Distance of each patch; above 1 it counts as out of distribution.

        Parameters
        ----------
        values : ndarray of shape (n, columns), float

        Returns
        -------
        ndarray of shape (n,), dtype float64
            A row's depends on its own values only, bit for bit.
        """
        out = np.empty(len(values))
        for row, one in enumerate(values):
            squashed = _squash(one, self.centre, self.spread) - self.middle
            # One product of one shape for every patch: sums then have one order, whatever stands beside it.
            inside = self.directions @ squashed
            out[row] = np.square(squashed).sum() - np.square(inside).sum()
        # Where nearly all is explained, rounding may leave less than nothing.
        return np.maximum(out, 0.0) / self.threshold

    def save(self, folder: Path) -> None:
        """Write the reference into ``folder``, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "directions.npy", self.directions.astype(np.float32))
        np.save(folder / "columns.npy", np.stack([self.centre, self.spread, self.middle]))
        state = {"space": self.space, "threshold": self.threshold, "beyond": BEYOND}
        (folder / "outliers.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Outliers:
        """Make the reference from what :meth:`save` wrote: the content of its files, by name."""
        state = read_json(f"{OUTLIERS}/outliers.json", files["outliers.json"])
        centre, spread, middle = read_array(f"{OUTLIERS}/columns.npy", files["columns.npy"])
        directions = read_array(f"{OUTLIERS}/directions.npy", files["directions.npy"]).astype(np.float64)
        return cls(str(state["space"]), centre, spread, middle, directions, float(state["threshold"]))


def learn_outliers(values: np.ndarray, folds: np.ndarray, space: str) -> Outliers:
    """Learn where training patches lie, and how far a new slide's patches lie from that.

    Parameters
    ----------
    values : ndarray of shape (n, columns), float
        Training patches only.
    folds : ndarray of shape (n,), int
        Folds by slide; the threshold comes from patches judged by the other folds.
    space : str
        Name of the set of columns.
    """
    distance = np.empty(len(values))
    for fold in np.unique(folds):
        out = folds == fold
        distance[out] = _fit(values[~out], space, 1.0).distance(values[out])
    threshold = max(float(np.quantile(distance, 1 - BEYOND)), np.finfo(float).tiny)
    return _fit(values, space, threshold)


def _fit(values: np.ndarray, space: str, threshold: float) -> Outliers:
    centre = values.mean(axis=0, dtype=np.float64)
    blocks = range(0, len(values), _BLOCK)
    spread = np.sqrt(sum(np.square(values[at : at + _BLOCK] - centre).sum(axis=0) for at in blocks) / len(values))
    # A column that never changed among the training patches is judged by its own size.
    spread = np.where(spread > 1e-7 * np.maximum(np.abs(centre), 1e-30), spread, np.maximum(np.abs(centre), 1.0))
    total, products = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
    for at in blocks:
        squashed = _squash(values[at : at + _BLOCK], centre, spread)
        total += squashed.sum(axis=0)
        products += squashed.T @ squashed
    middle = total / len(values)
    _, vectors = np.linalg.eigh(products / len(values) - np.outer(middle, middle))
    # At most half of what there is: with every direction explained, nothing would be left to judge by.
    kept = min(DIRECTIONS, values.shape[1] // 2, len(values) // 2)
    # Rounded here as the file rounds them, so that a bundle judges exactly as the run does.
    directions = vectors[:, ::-1][:, :kept].T.astype(np.float32).astype(np.float64)
    return Outliers(space, centre, spread, middle, np.ascontiguousarray(directions), threshold)


def _squash(values: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.asarray(np.arcsinh((values - centre) / spread))

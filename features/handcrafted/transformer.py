"""Handcrafted features as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from histoblend.data.workers import count_workers
from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.channels import check_patches

_SHARD = 256


class HandcraftedFeatures(TransformerMixin, BaseEstimator):
    """Compute named handcrafted features of patches.

    The transformer learns nothing. `fit` only checks its arguments, and `transform` works without it.

    Parameters
    ----------
    families : sequence of str, optional
        Names of feature families (`features.handcrafted.families.FAMILIES`); None for all.
    n_jobs : int
        Number of threads, -1 for one per core. The result does not depend on it.

    Examples
    --------
    >>> patches = np.full((2, 96, 96, 3), 200, np.uint8)
    >>> HandcraftedFeatures(families=["nuclei"]).fit_transform(patches).shape
    (2, 110)
    """

    def __init__(self, families: Sequence[str] | None = None, n_jobs: int = 1) -> None:
        self.families = families
        self.n_jobs = n_jobs

    def fit(self, X: np.ndarray, y: Any = None) -> HandcraftedFeatures:
        """Check the arguments.

        Parameters
        ----------
        X : ndarray of shape (n, height, width, 3), dtype uint8
        y : ignored

        Returns
        -------
        HandcraftedFeatures

        Raises
        ------
        ValueError
            If a family is unknown, `n_jobs` is 0, or X has the wrong shape.
        TypeError
            If X is not uint8.
        """
        families.families_named(self.families)
        count_workers(self.n_jobs, "n_jobs")
        check_patches(X)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Compute the features.

        Parameters
        ----------
        X : ndarray of shape (n, height, width, 3), dtype uint8
            RGB patches of at least 32 × 32 pixels. A read-only memory map works too.

        Returns
        -------
        ndarray of shape (n, k), dtype float32
            Finite values. `get_feature_names_out` returns the column names.

        Raises
        ------
        ValueError, TypeError
            As for `fit`.
        """
        self.fit(X)
        threads = count_workers(self.n_jobs, "n_jobs")
        if threads == 1 or len(X) <= _SHARD:
            return families.compute(X, self.families)
        from joblib import Parallel, delayed

        shards = (X[start : start + _SHARD] for start in range(0, len(X), _SHARD))
        pool = Parallel(n_jobs=threads, prefer="threads")
        return np.concatenate(pool(delayed(families.compute)(shard, self.families) for shard in shards))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        ndarray of shape (k,), dtype object
        """
        return np.array([column.name for column in families.columns(self.families)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        return tags

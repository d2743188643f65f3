"""What every head can do: fit, predict, be saved and loaded, and answer questions about what it learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from histoblend.data.errors import InputError

#: Takes column numbers and their new values, (n, columns), and gives the probability of a positive, (n,).
ReplacedScores = Callable[[Sequence[int], np.ndarray], np.ndarray]


class SpreadTable(Protocol):
    """Rows to learn from, spread over the memories of a cluster. A head on the scheduler's side asks it for numbers."""

    @property
    def labels(self) -> np.ndarray:
        """0 or 1, ndarray of shape (n,)."""
        ...

    @property
    def groups(self) -> np.ndarray:
        """Slides, ndarray of shape (n,)."""
        ...

    @property
    def width(self) -> int:
        """Number of columns."""
        ...

    def total(self, module: str, name: str, *arguments: Any) -> np.ndarray:
        """Sum of ``name(X, y, *arguments)`` over all blocks of rows, in their order; y is -1 for rows not learned from.

        Parameters
        ----------
        module, name : str
            Of a function, which is called where the blocks are.
        *arguments
            Plain values and arrays.
        """
        ...

    def call(self, module: str, name: str, rows: np.ndarray, columns: np.ndarray | None, *arguments: Any) -> Any:
        """Return ``name(*arguments, *pieces)``, called on one worker with some rows of the table, in pieces.

        Parameters
        ----------
        module, name : str
        rows : ndarray of int
            Of the n rows, ascending.
        columns : ndarray of int or None
            None for all.
        *arguments
            Plain values and arrays.
        """
        ...

    def grow_trees(
        self, parameters: dict[str, Any], rows: np.ndarray, columns: np.ndarray, trees: int, bins: int
    ) -> Any:
        """Return an ``xgboost.Booster`` of so many trees, grown by ``xgboost.dask`` on some rows and columns."""
        ...


class Head(ClassifierMixin, BaseEstimator, ABC):
    """A binary classifier on a feature table; everything that learns does so inside ``fit``, grouped by slide.

    A subclass sets the class attributes and writes ``fit``, ``_positive`` and the abstract methods. Its ``__init__``
    takes ``seed``. The other methods have a form here that is right for any head; a subclass overrides them where it
    knows a quicker one.

    Attributes
    ----------
    display_name : str
        The head in words, such as "logistic regression".
    marker : str
        File that every saved head of this class has and no other class's has, with a suffix that
        :mod:`models.file_checks` knows.
    trusted : tuple of str
        Types of ours that its skops files hold, by their full names.
    importance : str
        The one of its column measures that :attr:`importances` holds.
    additive : bool
        Whether its log odds are a sum of one term for each column.
    """

    display_name: ClassVar[str]
    marker: ClassVar[str]
    importance: ClassVar[str]
    trusted: ClassVar[tuple[str, ...]] = ()
    additive: ClassVar[bool] = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    @abstractmethod
    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit on ``X`` (n, n_features), ``y`` (n,) and ``groups`` (n,): slides, or None for independent rows."""

    def fit_spread(self, table: SpreadTable) -> Self:
        """Fit on a table that is spread over a cluster.

        Raises
        ------
        InputError
            The head has no way to.
        """
        raise InputError(
            f"{self.display_name}: expected a head that can be fitted on a spread table; this one cannot. "
            "Set engine.heads=whole."
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, 2), dtype float64
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        positive = self._positive(X)
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Any) -> np.ndarray:
        """Class with the larger probability, ndarray of shape (n,)."""
        positive = self.predict_proba(X)[:, 1] > 0.5
        return self.classes_[positive.astype(int)]

    @property
    def importances(self) -> np.ndarray:
        """How much each column counts, ndarray of shape (n_features,); where it has a sign, its size counts."""
        return self.column_measures()[self.importance]

    @abstractmethod
    def column_measures(self) -> dict[str, np.ndarray]:
        """What the fitted head says of its own columns.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            By measure: ``coefficient`` (signed; change of log odds for one standard deviation), ``gain`` or ``cover``
            (shares, at least 0). The report has words for these three.
        """

    @abstractmethod
    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Share of each column in the log odds of each patch.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features), float
            The patches' columns.

        Returns
        -------
        shares : ndarray of shape (n, n_features), dtype float64
        base : float
            Log odds without any column, the same for every patch; with all shares it adds up to a patch's log odds.
        """

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """Prepare a table for many small changes.

        Parameters
        ----------
        X : ndarray of shape (n, n_features), float
            Finite. It stays as it is.

        Returns
        -------
        callable
            (columns, values of shape (n, columns)) to ndarray of shape (n,), float64: the probabilities that
            ``predict_proba`` gives X with these columns replaced, to rounding.
        """

        def score(columns: Sequence[int], values: np.ndarray) -> np.ndarray:
            table = X.copy()
            table[:, list(columns)] = values
            return self.predict_proba(table)[:, 1]

        return score

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted head into a folder, made where there is none: :attr:`marker`, and other files that it needs.

        No file is a pickle; :mod:`models.file_checks` lists the kinds of files that a bundle accepts.
        """

    @classmethod
    @abstractmethod
    def load(cls, files: Mapping[str, bytes], where: str) -> Self:
        """Make a head from the content of its files, each checked before it is loaded.

        Parameters
        ----------
        files : mapping from str to bytes
            By name, as :meth:`save` wrote them.
        where : str
            Where they come from, for messages.

        Raises
        ------
        InputError
            A file is missing or damaged, or holds a type that is not on the trusted list.
        """

    @abstractmethod
    def _positive(self, X: np.ndarray) -> np.ndarray:
        """Probability of the second class, ndarray of shape (n,)."""

    def _start_fit(self, X: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Check the input; return X (float32 or float64), y as 0 and 1, and groups as integer codes."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(f"Only binary classification is supported; got {len(self.classes_)} classes.")
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold two classes; got one class, {self.classes_[0]!r}.")
        if groups is None:
            return X, codes, np.arange(len(codes))
        groups = np.asarray(groups)
        if groups.shape != codes.shape:
            raise ValueError(f"groups must have shape {codes.shape}; got {groups.shape}.")
        return X, codes, np.unique(groups.astype(str), return_inverse=True)[1]

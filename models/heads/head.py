"""The common interface of heads: fit, predict, save, load and explain."""

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

#: Maps column numbers and their new values (n, columns) to probabilities of the positive class (n,).
ReplacedScores = Callable[[Sequence[int], np.ndarray], np.ndarray]


class SpreadTable(Protocol):
    """Training rows in blocks, in files or over the workers of a cluster. A head requests computations on them."""

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
        """Sum of ``name(X, y, *arguments)`` over all blocks, in order; y is -1 for rows that are not training rows.

        Parameters
        ----------
        module, name : str
            Module and name of a function, which is called on the workers that have the blocks.
        *arguments
            Plain values and arrays.
        """
        ...

    def call(self, module: str, name: str, rows: np.ndarray, columns: np.ndarray | None, *arguments: Any) -> Any:
        """Call ``name(*arguments, *pieces)`` on one worker, with the selected rows of the table in pieces.

        Parameters
        ----------
        module, name : str
            Module and name of the function.
        rows : ndarray of int
            Row numbers, ascending.
        columns : ndarray of int or None
            None for all.
        *arguments
            Plain values and arrays.
        """
        ...


class Head(ClassifierMixin, BaseEstimator, ABC):
    """A binary classifier on a feature table. Everything is learned in ``fit``, including settings tuned by slide.

    A subclass sets the class attributes and implements ``fit``, ``_positive`` and the abstract methods. Its
    ``__init__`` takes ``seed``. The other methods have default versions that work for any head; a subclass may override
    them with faster ones.

    Attributes
    ----------
    display_name : str
        Name for readers, such as "logistic regression".
    marker : str
        Name of a file that only saved heads of this class have, with a suffix that :mod:`models.file_checks` accepts.
    trusted : tuple of str
        Full names of Histoblend's types in its skops files.
    importance : str
        Key of :meth:`column_measures` that :attr:`importances` returns.
    additive : bool
        Whether its log-odds are a sum of one term per column.
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
        """Fit on a table of which only blocks of rows are in memory.

        Raises
        ------
        InputError
            The head does not support this.
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
        """Importance of each column, ndarray of shape (n_features,). If it is signed, its absolute value counts."""
        return self.column_measures()[self.importance]

    @abstractmethod
    def column_measures(self) -> dict[str, np.ndarray]:
        """Importance measures of the columns, from the fitted head itself.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            ``coefficient`` (signed; change of log-odds per standard deviation), ``gain`` or ``cover`` (shares, at least
            0). The report can describe only these three.
        """

    @abstractmethod
    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Contribution of each column to the log-odds of each patch.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features), float
            The patches' columns.

        Returns
        -------
        contributions : ndarray of shape (n, n_features), dtype float64
        base : float
            Log-odds without any column, the same for all patches. Base and contributions add up to a patch's log-odds.
        """

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """Prepare a table for predictions with some columns replaced.

        Parameters
        ----------
        X : ndarray of shape (n, n_features), float
            Finite. Not modified.

        Returns
        -------
        callable
            (columns, values of shape (n, columns)) to ndarray of shape (n,), float64: ``predict_proba`` of X with these
            columns replaced, up to rounding.
        """

        def score(columns: Sequence[int], values: np.ndarray) -> np.ndarray:
            table = X.copy()
            table[:, list(columns)] = values
            return self.predict_proba(table)[:, 1]

        return score

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted head into a folder, which is created if missing: :attr:`marker` and any other files.

        Files must not be pickles. :mod:`models.file_checks` lists the kinds of files that a bundle accepts.
        """

    @classmethod
    @abstractmethod
    def load(cls, files: Mapping[str, bytes], where: str) -> Self:
        """Load a head from the content of its files. Each file is checked before it is loaded.

        Parameters
        ----------
        files : mapping from str to bytes
            Content by name, as :meth:`save` wrote them.
        where : str
            Where the files come from, for messages.

        Raises
        ------
        InputError
            A file is missing or damaged, or contains a type that is not trusted.
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
            raise ValueError(f"y must have two classes; got one class, {self.classes_[0]!r}.")
        if groups is None:
            return X, codes, np.arange(len(codes))
        groups = np.asarray(groups)
        if groups.shape != codes.shape:
            raise ValueError(f"groups must have shape {codes.shape}; got {groups.shape}.")
        return X, codes, np.unique(groups.astype(str), return_inverse=True)[1]

"""Predict patches in memory, from Python."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import StoredRows
from histoblend.data.storage.parts import Parts
from histoblend.models.blends import choose_blends
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.predictor import open_predictor
from histoblend.pipelines.predict.folder import check_options, chosen_members, replaced_without_slides
from histoblend.pipelines.predict.shards import POINT, Options, predict_source
from histoblend.pipelines.runtime.screen import Screen


class PixelSource:
    """Source of decoded patches, see :class:`data.patches.Source`.

    Parameters
    ----------
    pixels : ndarray or StoredRows of shape (n, side, side, 3), dtype uint8
    table : DataFrame
        One row per patch.
    """

    def __init__(self, pixels: np.ndarray | StoredRows, table: pd.DataFrame) -> None:
        self.pixels, self.table, self.size = pixels, table, pixels.shape[1]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Return rows ``start`` to ``stop``, and no reading errors."""
        return np.asarray(self.pixels[start:stop]), {}


class Predictor:
    """The models of a bundle, for patches in memory. Create it with :meth:`load`.

    Parameters
    ----------
    bundle : Bundle
    model : str
        A model of the bundle, "ensemble", or "fast" for the cheapest with an AUC within 0.005 of the best. Empty for
        the ensemble and, in a bundle without one, for the head with the largest out-of-fold AUC.
    point : str
        Operating point that turns probabilities into labels.
    n_jobs : int
        Threads, -1 for one per core. The result does not depend on it.

    Examples
    --------
    >>> predictor = Predictor.load("runs/mine/bundle")  # doctest: +SKIP
    >>> predictor.predict(patches, slides=slides)["probability"]  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, model: str = "", point: str = POINT, n_jobs: int = 1) -> None:
        self.bundle = bundle
        self.model = model
        self.point = point
        self.n_jobs = n_jobs
        check_options(choose_blends(bundle, model), self._options())

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, model: str = "", point: str = POINT, n_jobs: int = 1) -> Predictor:
        """Read and check a bundle.

        Parameters
        ----------
        folder : path
            Such as ``runs/mine/bundle``.
        model, point, n_jobs
            See :class:`Predictor`.

        Raises
        ------
        InputError
            The bundle is missing or damaged, or an argument does not fit it.
        """
        return cls(open_bundle(Path(folder)), model, point, n_jobs)

    @property
    def models(self) -> list[str]:
        """Names of the bundle's models."""
        return list(self.bundle.index["models"])

    def predict(
        self, patches: np.ndarray, slides: Sequence[str | None] | None = None, *, prevalence: float = 0.0
    ) -> pd.DataFrame:
        """Predict patches.

        Parameters
        ----------
        patches : ndarray of shape (n, side, side, 3), dtype uint8
            RGB, of the size that the bundle was trained on. A memory map is read in parts.
        slides : sequence of str or None, optional
            Slide of each patch, None if unknown. Models that compare a patch with the rest of its slide need it.
            Without it, another model of the bundle predicts, and a warning names it. Pass all patches of a slide
            together.
        prevalence : float
            Share of positives where the patches come from; 0 leaves probabilities unchanged.

        Returns
        -------
        DataFrame
            ``probability`` (float64), ``label`` (0 or 1) and ``flags`` (str), one row per patch.

        Raises
        ------
        InputError
            The patches have another size or type, ``slides`` has another length, or the model needs slides.
        """
        side = self.bundle.index["patch"]["size"]
        if patches.ndim != 4 or patches.shape[1:] != (side, side, 3) or patches.dtype != np.uint8:
            raise InputError(
                f"patches must be uint8 RGB of shape (n, {side}, {side}, 3); got {patches.dtype} {patches.shape}. "
                "Resize them to the resolution that the bundle was trained on."
            )
        if slides is not None and len(slides) != len(patches):
            raise InputError(f"slides must have one entry per patch, {len(patches)}; got {len(slides)}.")
        patch_slides = None if slides is None or all(map(pd.isna, slides)) else pd.Series(list(slides), dtype=object)
        blends, options = choose_blends(self.bundle, self.model), self._options(prevalence)
        check_options(blends, options)
        if patch_slides is None and (instead := replaced_without_slides(blends, "slides")):
            warnings.warn(instead, stacklevel=2)
        source = PixelSource(patches, pd.DataFrame({"patch_id": range(len(patches))}))
        with (
            tempfile.TemporaryDirectory() as folder,
            open_predictor(self.bundle, chosen_members(blends, patch_slides)) as predictor,
        ):
            parts = Parts(Path(folder, "parts"))
            predictions = predict_source(
                predictor, blends, source, patch_slides, parts, options=options, screen=_Silent()
            )
        return pd.DataFrame(
            {"probability": predictions.probability, "label": predictions.label, "flags": predictions.flags}
        )

    def _options(self, prevalence: float = 0.0) -> Options:
        return Options(model=self.model, point=self.point, prevalence=prevalence, workers=self.n_jobs)


class _Silent(Screen):
    """Prints nothing and issues warnings as Python warnings."""

    def say(self, line: str) -> None:
        """Print nothing."""

    def warn(self, line: str) -> None:
        """Issue a warning."""
        warnings.warn(line, stacklevel=2)

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "patches") -> Iterator[Callable[[int], None]]:
        """Print nothing."""
        yield lambda count: None

"""What each model of a bundle costs and scores, and the choice of a fast one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histoblend.models.names import NORMALISED, needs_slides, tables_of

if TYPE_CHECKING:
    from histoblend.models.predictor import Predictor

#: The name that chooses the cheapest model with nearly the best AUC.
FAST = "fast"
#: Largest distance from the best AUC.
CLOSE = 0.005

#: Passes that a time is the shortest of, because other programs slow some of them down.
PASSES = 3


class Rating(NamedTuple):
    """A model with its core-milliseconds per patch and its out-of-fold AUC."""

    name: str
    ms: float
    auc: float


def choose_fast(ratings: Mapping[str, Rating]) -> tuple[str, str]:
    """Key of the cheapest model whose AUC is at most CLOSE below the best one, and why, in words."""
    best = max(ratings.values(), key=lambda rating: (rating.auc, -rating.ms))
    near = [key for key, rating in ratings.items() if rating.auc >= best.auc - CLOSE]
    key = min(near, key=lambda key: (ratings[key].ms, -ratings[key].auc))
    chosen = ratings[key]
    why = f"MODEL={FAST} chose {chosen.name}, {chosen.ms:.1f} core-ms per patch, AUC {chosen.auc:.3f}"
    if chosen == best:
        return key, f"{why}: no cheaper model is within {CLOSE} of this best AUC"
    return key, f"{why}: the cheapest within {CLOSE} of the best, {best.name} ({best.ms:.1f} core-ms, {best.auc:.3f})"


def model_costs(predictor: Predictor, pixels: np.ndarray, choices: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Measure the cost of each choice of models, in core-milliseconds per patch, without reading image files.

    Each part is measured once: each table of features, each head, slide context and so on. A choice costs the sum of
    its parts.

    Parameters
    ----------
    predictor : Predictor
        With all these models as members.
    pixels : ndarray of shape (n, side, side, 3), dtype uint8
        Some patches; 16 or more, as of one slide.
    choices : mapping from str to sequence of str
        Models of each choice.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        parts = _part_costs(predictor, pixels)
    always = {"flags", *(f"table {table}" for table in predictor.outlier_tables)}
    return {
        name: round(sum(parts[part] for part in always | _needed(predictor, models)), 2)
        for name, models in choices.items()
    }


def _needed(predictor: Predictor, models: Sequence[str]) -> set[str]:
    """Parts that predicting with some models takes."""
    columns = {name: predictor.bundle.index["models"][name]["columns"] for name in models}
    tables = {table for name in models for table in tables_of(columns[name])}
    needed = {f"table {table}" for table in tables} | {f"head {name}" for name in models}
    if "cnn" in tables and "cnn" not in models:
        needed = needed - {"table cnn"} | {"one view"}
    if any(table.endswith(NORMALISED) for table in tables):
        needed.add("normalising")
    return needed | ({"context"} if any(map(needs_slides, models)) else set())


def _part_costs(predictor: Predictor, pixels: np.ndarray) -> dict[str, float]:
    from histoblend.features.slide_stain import normalise_by_slide, stain_sums, stains_of

    def stains() -> np.ndarray:
        slide = np.full(len(pixels), "slide", dtype=object)
        return stains_of(stain_sums(pixels), slide, pixels.shape[1] * pixels.shape[2])

    def related() -> np.ndarray:
        compared = table[:, predictor.compared]
        return predictor.reference(lambda columns: compared[:, columns], len(pixels)).relate(compared)

    def timed(function: Callable[[], Any]) -> float:
        spans = []
        for _ in range(PASSES):
            started = time.process_time()
            function()
            spans.append(time.process_time() - started)
        return 1e3 * min(spans) / len(pixels)

    table = predictor.features(pixels, stains())
    in_context = any(map(needs_slides, predictor.members))
    context = related() if in_context else table
    parts = {
        "flags": timed(lambda: predictor.flags(pixels, table)),
        "normalising": timed(lambda: normalise_by_slide(pixels, stains())) if predictor.normalises else 0.0,
        "context": timed(related) if in_context else 0.0,
        "head cnn": 0.0,  # part of its table
    }
    for name in predictor.tables:
        parts[f"table {name}"] = timed(lambda name=name: predictor.table(name, pixels))  # type: ignore[misc]
    if "cnn" in predictor.tables:
        parts["one view"] = timed(lambda: predictor.table("cnn", pixels, plain=True))
    for name, head in predictor.heads.items():
        values = predictor.row_values(name, context if needs_slides(name) else table)
        parts[f"head {name}"] = timed(lambda head=head, values=values: head.predict_proba(values))  # type: ignore[misc]
    return parts

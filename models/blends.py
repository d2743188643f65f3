"""The models that predict patches of known and of unknown slides, chosen from those of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from histoblend.data.errors import InputError
from histoblend.models.bundle import INDEX, Bundle
from histoblend.models.costs import FAST, Rating, choose_fast
from histoblend.models.file_checks import read_as
from histoblend.models.names import ENSEMBLES, FOR_HEAT_MAPS, WITH_SLIDES, WITHOUT_SLIDES, needs_slides

ENSEMBLE = "ensemble"
ENSEMBLE_FILE = "ensemble.json"


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Patch(_Strict):
    size: Annotated[int, Field(ge=16, le=4096)]
    resize: Literal["refuse", "resize", "crop"]


class _Features(_Strict):
    families: list[str]
    code: str


class _Network(_Strict):
    engine: str


class _Score(_Strict):
    auc: float
    auc_low: float | None = None
    auc_high: float | None = None


class _Model(_Score):
    columns: str
    thresholds: dict[str, float]


class _Index(_Strict):
    """Required entries of a bundle's index; there may be others."""

    libraries: dict[str, str]
    patch: _Patch
    prevalence: Annotated[float, Field(gt=0, lt=1)]
    features: _Features
    networks: list[_Network]
    columns: dict[str, list[str]]
    models: Annotated[dict[str, _Model], Field(min_length=1)]
    ensembles: dict[str, _Score] = {}
    costs: dict[str, float] = {}


@dataclass(frozen=True)
class Blend:
    """Combines the members' probabilities of a patch into one.

    Attributes
    ----------
    name : str
    members : tuple of str
    combine : callable
        Maps probabilities (n, members) float64 and, with ``slide_means``, their means over slides to (n,) float64.
    thresholds : dict from str to float
        By operating point; a probability at or above it counts as positive.
    slide_means : bool
        Whether ``combine`` also takes the members' means over each patch's slide.
    ensemble : str
        The ensemble's name in :data:`models.names.ENSEMBLES`; empty for a single model.
    why : str
        Why it was chosen, if by :data:`models.costs.FAST`.
    """

    name: str
    members: tuple[str, ...]
    combine: Callable[..., np.ndarray]
    thresholds: dict[str, float]
    slide_means: bool = False
    ensemble: str = ""
    why: str = ""

    @property
    def needs_slides(self) -> bool:
        """Whether patches are compared with the rest of their slide."""
        return self.slide_means or any(map(needs_slides, self.members))


def choose_blends(bundle: Bundle, model: str = "", *, tiled: bool = False) -> tuple[Blend, Blend | None]:
    """Choose the blends that predict patches of known and of unknown slides.

    Parameters
    ----------
    bundle : Bundle
    model : str
        A member's name, or "ensemble". If empty, the ensemble or, in a bundle without one, the head with the largest
        out-of-fold AUC. "fast" is the cheapest of all of these within 0.005 of the largest AUC.
    tiled : bool
        Whether the patches are all tiles of a slide. Means over the slide are then left out, because they reflect
        another share of tumour than means over the sampled patches that the ensemble was fitted on.

    Returns
    -------
    with_slides : Blend
    without : Blend or None
        None if the model needs slides and has no substitute.

    Raises
    ------
    InputError
        The bundle has no such model, or its index is incomplete.
    """
    # A matching digest proves nothing: anyone can seal a bundle.
    read_as(_Index, bundle.index, f"{bundle.folder}: {INDEX}")
    models = bundle.index["models"]
    stored = bundle.json(ENSEMBLE_FILE)
    if stored is not None and model in ("", ENSEMBLE):
        blends = _ensemble_blends(stored, tiled)
        missing = sorted({name for blend in blends if blend for name in blend.members} - set(models))
        if missing:
            raise InputError(
                f"{bundle.folder}: expected every member of the ensemble; {', '.join(missing)} is missing. "
                "Get the bundle again."
            )
        return blends
    known = [*([ENSEMBLE] if stored is not None else []), *models]
    if model == FAST:
        return _fast_blends(bundle, [choose_blends(bundle, name, tiled=tiled) for name in known])
    known.append(FAST)
    if model and model not in models:
        raise InputError(f"{bundle.folder}: the model must be one of {', '.join(known)}; got {model!r}.")
    if model:
        blend = _single_blend(model, models[model])
        return blend, None if blend.needs_slides else blend
    ranked = sorted(models, key=lambda name: -models[name]["auc"])
    without = [name for name in ranked if not needs_slides(name)]
    return _single_blend(ranked[0], models[ranked[0]]), _single_blend(
        without[0], models[without[0]]
    ) if without else None


def _ensemble_blends(stored: dict[str, Any], tiled: bool) -> tuple[Blend, Blend | None]:
    from histoblend.models.ensemble import Ensemble

    blends: dict[str, Blend] = {}
    for name in ENSEMBLES:
        if stored.get(name) is not None:
            fitted = Ensemble.from_dict(stored[name])
            means = fitted.slide_means
            thresholds = dict(fitted.thresholds)
            blends[name] = Blend(ENSEMBLE, tuple(fitted.members), fitted.predict, thresholds, means, ensemble=name)
    if WITH_SLIDES not in blends:
        raise InputError(
            f"{ENSEMBLE_FILE}: expected an ensemble called {WITH_SLIDES!r}; there is none. Get the bundle again."
        )
    with_slides = blends.get(FOR_HEAT_MAPS, blends[WITH_SLIDES]) if tiled else blends[WITH_SLIDES]
    return with_slides, blends.get(WITHOUT_SLIDES) if with_slides.needs_slides else with_slides


def _single_blend(name: str, entry: dict[str, Any]) -> Blend:
    return Blend(name, (name,), lambda probabilities, _=None: probabilities[:, 0], dict(entry["thresholds"]))


def _fast_blends(bundle: Bundle, pairs: list[tuple[Blend, Blend | None]]) -> tuple[Blend, Blend | None]:
    """Choose among the blends of all models, and among those that need no slides."""
    chosen = _fastest(bundle, [blend for blend, _ in pairs])
    if not chosen.needs_slides:
        return chosen, chosen
    without = [blend for _, blend in pairs if blend is not None]
    return chosen, _fastest(bundle, without) if without else None


def _fastest(bundle: Bundle, blends: list[Blend]) -> Blend:
    scores, costs = bundle.index["models"] | bundle.index.get("ensembles", {}), bundle.index.get("costs", {})
    keys = {blend.ensemble or blend.name: blend for blend in blends}
    rated = {key: blend for key, blend in keys.items() if key in scores and key in costs}
    if not rated:
        raise InputError(
            f"{bundle.folder}: MODEL={FAST} needs the costs and scores of the bundle's models; there are none. "
            "Give another MODEL, or make the bundle again."
        )
    ratings = {key: Rating(blend.name, costs[key], scores[key]["auc"]) for key, blend in rated.items()}
    key, why = choose_fast(ratings)
    return replace(rated[key], why=why)

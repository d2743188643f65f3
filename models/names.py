"""What a model's name says: its rung of the ladder and its head."""

from __future__ import annotations

from collections.abc import Sequence

from histoblend.features.handcrafted.families import FAMILIES

RUNGS = (
    "prevalence", "colour", "handcrafted", "embeddings", "both",
    "context", "in-slide", "embeddings-context", "both-context",
    "context-normalised", "embeddings-normalised", "both-normalised", "cnn", "cnn-context", "ensemble",
)  # fmt: skip
#: Rungs that are one model each, whose name is the rung's.
HEADLESS = ("prevalence", "cnn", "ensemble")
#: One family of handcrafted features each, fitted alone: not rungs, but what the handcrafted rung is made of.
ALONE = tuple(family.name for family in FAMILIES if family.name not in RUNGS)
#: Rungs beside the ladder, and what each is compared with: their columns compare a patch with the rest of its slide.
BESIDE = {
    "context": "handcrafted",
    "in-slide": "context",
    "embeddings-context": "embeddings",
    "both-context": "both",
    "context-normalised": "context",
    "embeddings-normalised": "embeddings-context",
    "both-normalised": "both-context",
    "cnn-context": "cnn",
}
#: Of these, sets that only linear heads are fitted on: boosting gains less from slide context and takes several times
#: as long.
LINEAR_ONLY = tuple(name for name in BESIDE if name != "context")
#: Ends the names of tables and sets of columns of stain-normalised patches.
NORMALISED = "-normalised"
#: Feature tables: handcrafted columns and embeddings, of patches as they are and of stain-normalised ones.
TABLES = ("features", "embeddings", f"features{NORMALISED}", f"embeddings{NORMALISED}")
#: Sets whose columns are all relative to the slide: scores by these hardly differ from one slide to the next.
RELATIVE_ONLY = ("in-slide",)
_NAMED = ", ".join(map(repr, HEADLESS))

#: The head on the fine-tuned network's channels in slide context.
CNN_CONTEXT = "logistic_cnn-context"

#: Members of an ensemble that knows slides, and of one that does not: few, strong and different. More members, whose
#: errors are alike, only let weights cancel out.
SLIDE_MEMBERS = ("logistic_both-normalised", "logistic_in-slide", "cnn")
PLAIN_MEMBERS = ("logistic_both", "xgboost_embeddings", "cnn")
#: The ensembles of a bundle: for patches of known slides; for slides that are cut into tiles completely, without means
#: over the slide; for patches of unknown slides.
ENSEMBLES = WITH_SLIDES, FOR_HEAT_MAPS, WITHOUT_SLIDES = ("slides", "heat-map", "no-slides")


def with_means(members: Sequence[str]) -> list[int]:
    """Places of the members whose mean over a slide tells slides apart: not of those with relative columns only."""
    return [place for place, member in enumerate(members) if member.partition("_")[2] not in RELATIVE_ONLY]


def needs_slides(model: str) -> bool:
    """Whether a model compares a patch with the rest of its slide."""
    return model.partition("_")[2] in BESIDE


def tables_of(columns: str) -> tuple[str, ...]:
    """Tables that a set of columns is taken from: of :data:`TABLES`, or "cnn", the fine-tuned network's own."""
    first, _, kind = columns.partition("-")
    named = {"embeddings": ("embeddings",), "both": ("features", "embeddings"), "cnn": ("cnn",)}
    tables = named.get(first, ("features",))
    return tuple(f"{name}{NORMALISED}" for name in tables) if f"-{kind}" == NORMALISED else tables


def split_model_name(model: str) -> tuple[str, str | None]:
    """Return the rung (or family) and the head that a model's name stands for; rungs of `HEADLESS` have none.

    Parameters
    ----------
    model : str
        A rung of :data:`HEADLESS`, ``<head>_<rung>`` or ``<head>_<family>``.

    Raises
    ------
    ValueError
        The name has another form or an unknown rung.
    """
    if model in HEADLESS:
        return model, None
    head, _, rung = model.partition("_")
    known = tuple(name for name in RUNGS if name not in HEADLESS) + ALONE
    if not head or rung not in known:
        raise ValueError(f"model must be {_NAMED} or '<head>_<rung>' with a rung of {known}; got {model!r}.")
    return rung, head

"""Names of models, rungs, feature tables and ensembles."""

from __future__ import annotations

from collections.abc import Sequence

from histoblend.features.handcrafted.families import FAMILIES

RUNGS = (
    "prevalence", "colour", "handcrafted", "embeddings", "both",
    "context", "in-slide", "embeddings-context", "both-context",
    "context-normalised", "embeddings-normalised", "both-normalised", "cnn", "cnn-context", "ensemble",
)  # fmt: skip
#: Rungs with a single model, which has the rung's name.
RUNGS_WITHOUT_HEAD = ("prevalence", "cnn", "ensemble")
#: Single families of handcrafted features. They are not rungs; the handcrafted rung combines them.
SINGLE_FAMILIES = tuple(family.name for family in FAMILIES if family.name not in RUNGS)
#: Rungs beside the ladder, which compare a patch with the rest of its slide, and the rung that each is judged against.
CONTEXT_RUNGS = {
    "context": "handcrafted",
    "in-slide": "context",
    "embeddings-context": "embeddings",
    "both-context": "both",
    "context-normalised": "context",
    "embeddings-normalised": "embeddings-context",
    "both-normalised": "both-context",
    "cnn-context": "cnn",
}
#: Those of CONTEXT_RUNGS that only linear heads are fitted on. Boosting gains less from slide context and takes several
#: times longer.
LINEAR_ONLY = tuple(name for name in CONTEXT_RUNGS if name != "context")
#: Suffix of tables and sets of columns that are computed on stain-normalised patches.
NORMALISED = "-normalised"
#: Feature tables: handcrafted columns and embeddings, of original and of stain-normalised patches.
TABLES = ("features", "embeddings", f"features{NORMALISED}", f"embeddings{NORMALISED}")
#: Sets whose columns are all relative to the slide. Their mean score hardly differs between slides.
RELATIVE_ONLY = ("in-slide",)
_NAMED = ", ".join(map(repr, RUNGS_WITHOUT_HEAD))

#: The head on the fine-tuned network's channels in slide context.
CNN_CONTEXT = "logistic_cnn-context"

#: Members of the ensembles with and without known slides: few, strong and different. With more members, whose errors
#: are correlated, weights only cancel each other.
SLIDE_MEMBERS = ("logistic_both-normalised", "logistic_in-slide", "cnn")
PLAIN_MEMBERS = ("logistic_both", "xgboost_embeddings", "cnn")
#: The ensembles of a bundle: for patches of known slides; for heat maps of whole slides, without means over the slide;
#: for patches of unknown slides.
ENSEMBLES = WITH_SLIDES, FOR_HEAT_MAPS, WITHOUT_SLIDES = ("slides", "heat-map", "no-slides")


def with_means(members: Sequence[str]) -> list[int]:
    """Indices of members whose slide mean is informative: all but those with only slide-relative columns."""
    return [index for index, member in enumerate(members) if member.partition("_")[2] not in RELATIVE_ONLY]


def needs_slides(model: str) -> bool:
    """Whether a model compares a patch with the rest of its slide."""
    return model.partition("_")[2] in CONTEXT_RUNGS


def tables_of(columns: str) -> tuple[str, ...]:
    """Tables that a set of columns comes from: of :data:`TABLES`, or "cnn" for the fine-tuned network's channels."""
    source, _, kind = columns.partition("-")
    known = {"embeddings": ("embeddings",), "both": ("features", "embeddings"), "cnn": ("cnn",)}
    tables = known.get(source, ("features",))
    return tuple(f"{name}{NORMALISED}" for name in tables) if f"-{kind}" == NORMALISED else tables


def split_model_name(model: str) -> tuple[str, str | None]:
    """Split a model's name into its rung (or family) and its head. Models of `RUNGS_WITHOUT_HEAD` have no head: None.

    Parameters
    ----------
    model : str
        A rung of :data:`RUNGS_WITHOUT_HEAD`, ``<head>_<rung>`` or ``<head>_<family>``.

    Raises
    ------
    ValueError
        The name has another form or an unknown rung.
    """
    if model in RUNGS_WITHOUT_HEAD:
        return model, None
    head, _, rung = model.partition("_")
    known = tuple(name for name in RUNGS if name not in RUNGS_WITHOUT_HEAD) + SINGLE_FAMILIES
    if not head or rung not in known:
        raise ValueError(f"model must be {_NAMED} or '<head>_<rung>' with a rung of {known}; got {model!r}.")
    return rung, head

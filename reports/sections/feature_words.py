"""Names, units and descriptions of features for readers: columns, families, and features that are taken together."""

from __future__ import annotations

from collections.abc import Mapping

from histoblend.features.handcrafted import plain_names
from histoblend.features.handcrafted.families import parse_column
from histoblend.models.inspection.shapley import EMBEDDING, NETWORK, SLIDE_MEAN
from histoblend.models.names import NORMALISED
from histoblend.reports.page import figures
from histoblend.reports.words import FAMILY_WORDS

#: Names of features that are not single columns.
TOGETHER_WORDS = {NETWORK: "the fine-tuned network", SLIDE_MEAN: "mean score of the slide"}
#: Colours that are easy to distinguish. Features that are not single columns are grey.
FAMILY_COLOURS = {
    "colour": figures.VERMILLION, "stain": figures.PURPLE, "cooccurrence": figures.BLUE, "runs": figures.SLATE,
    "lbp": figures.TEAL, "gradient": figures.GREEN, "gabor": figures.OLIVE, "multiscale": figures.INDIGO,
    "nuclei": figures.ORANGE, EMBEDDING: figures.INK, NETWORK: figures.INK, SLIDE_MEAN: figures.INK,
}  # fmt: skip
_SENTENCES = {
    NETWORK: "The log-odds of the fine-tuned network, compared with their mean over training patches. The network "
    "computes its own features, so it has no columns to show. The section on the network shows where it looks.",
    SLIDE_MEAN: "The members’ mean log-odds over all patches of the slide. It raises or lowers every patch of a slide "
    "alike.",
}
_IN_SLIDE = "-in-slide"


def family_words(family: str) -> str:
    """Name of a family for readers."""
    return TOGETHER_WORDS.get(family) or FAMILY_WORDS.get(family, family)


def measured_column(column: str) -> str:
    """Column that is measured on the patch itself: the name without slide context and stain normalisation."""
    family, statistic, *rest = column.split("_")
    return "_".join([family, statistic.replace(_IN_SLIDE, "").replace(NORMALISED, ""), *rest])


def feature_name(feature: str) -> str:
    """Plain name of a column, or of a feature that is not a single column."""
    if "_" not in feature:
        return family_words(feature)
    name = plain_names.plain_name(_unnormalised(feature))
    return f"{name}, stains normalised" if _unnormalised(feature) != feature else name


def feature_unit(feature: str) -> str:
    """Unit of a column; empty for a feature that is not a single column."""
    return plain_names.unit(_unnormalised(feature)) if "_" in feature else ""


def feature_synonyms(feature: str) -> tuple[str, ...]:
    """Other words for a measured column, to search for."""
    return plain_names.synonyms(feature) if "_" in feature else ()


def feature_sentence(feature: str, sentences: Mapping[str, str]) -> str:
    """Description of a column from `sentences`, or of a feature that is not a single column."""
    if "_" not in feature:
        return _SENTENCES.get(feature, "")
    return sentences.get(feature) or sentences.get(measured_column(feature), "")


def how_compared(feature: str) -> int:
    """How a column differs from the measured one: 1 if stains are normalised, plus 2 if it is relative to the slide."""
    statistic = parse_column(feature).statistic if "_" in feature else ""
    return (NORMALISED in statistic) + 2 * statistic.endswith(_IN_SLIDE)


def _unnormalised(column: str) -> str:
    family, statistic, *rest = column.split("_")
    return "_".join([family, statistic.replace(NORMALISED, ""), *rest])

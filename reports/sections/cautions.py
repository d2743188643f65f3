"""Reasons for caution: a short line each, the most important first, with the details behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.recipe import ONNX_PREFIX
from histoblend.models.names import CONTEXT_RUNGS
from histoblend.reports.sections.evidence import Evidence

#: Warnings about the patches that a caution of this module or the data card repeats.
_SLIDES_UNKNOWN = ("no slide is known", "slides are inferred")
_FEW_TEST_SLIDES = "the test set has only"
_SET_ASIDE = "patches were set aside"
#: Words of a warning that concerns all scores.
_ALL_SCORES = "every score below is optimistic"


@dataclass(frozen=True)
class Caution:
    """One reason for caution.

    Attributes
    ----------
    headline : str
        One short line.
    detail : str
        More sentences; may be empty.
    serious : bool
        Whether the scores cannot be trusted because of it.
    """

    headline: str
    detail: str = ""
    serious: bool = False

    @classmethod
    def from_text(cls, text: str, *, serious: bool = False, ends: str = ".") -> Caution:
        """Use the part of a text up to one of these characters as the headline."""
        headline, _, detail = re.sub(rf"[{ends}]\s+", "\n", text, count=1).partition("\n")
        return cls(_capitalised(headline).removesuffix("."), _capitalised(detail), serious)


def cautions(evidence: Evidence) -> list[Caution]:
    """List the reasons for caution, the most important first."""
    warnings = list(_warnings(evidence))
    return [
        *(caution for caution in warnings if caution.serious),
        *_about_all_scores(evidence),
        *_about_the_sample(evidence),
        *_about_the_model(evidence),
        *(caution for caution in warnings if not caution.serious),
    ]


def pretraining_warnings(names: Sequence[str]) -> list[str]:
    """Warnings about networks that know CAMELYON, from which PatchCamelyon's and Kaggle's patches are, or may know it.

    Parameters
    ----------
    names : sequence of str
        Backbones with pretrained weights.
    """
    rows = {name: find_backbone(name).camelyon for name in names if not name.startswith(ONNX_PREFIX)}
    files = [Path(name.removeprefix(ONNX_PREFIX)).name for name in names if name.startswith(ONNX_PREFIX)]
    origin = "The patches of PatchCamelyon and Kaggle are from CAMELYON"
    return [
        *(
            f"The network {name} was pretrained on CAMELYON: every score below is optimistic. {origin}, so that "
            "scores on them are not a test."
            for name, included in rows.items()
            if included
        ),
        *(
            f"The network {name} may have been pretrained on CAMELYON. Its authors do not list all slides. {origin}; "
            "if they were included, scores on them are not a test."
            for name, included in rows.items()
            if included is None
        ),
        *(
            f"The file {name} does not say whether its network was pretrained on CAMELYON. {origin}; if they were "
            "included, scores on them are not a test."
            for name in files
        ),
    ]


def _warnings(evidence: Evidence) -> Iterator[Caution]:
    """Warnings about the patches and their split that nothing else on the first screen repeats."""
    for text in evidence.warnings:
        repeated = (
            ((not evidence.slide_map or evidence.inferred) and text.startswith(_SLIDES_UNKNOWN))
            or (text.startswith(_FEW_TEST_SLIDES) and any(split == "test" for split, _ in evidence.few()))
            or (evidence.data_shown and _SET_ASIDE in text)
        )
        if not repeated:
            yield Caution.from_text(text, serious=_ALL_SCORES in text, ends=".;:")


def _about_all_scores(evidence: Evidence) -> Iterator[Caution]:
    if evidence.phantom:
        yield Caution(
            "The patches are synthetic",
            "They are a phantom: images with a known truth. These scores test the program and say nothing about "
            "medicine.",
            serious=True,
        )
    if not evidence.slide_map:
        yield Caution(
            "Every score here is optimistic: no slide is known",
            "Patches of one slide can be in both training and test sets, and the intervals are too narrow. On one real "
            "sample, a split that ignored slides raised the AUC by 0.06 to 0.08.",
            serious=True,
        )
    if evidence.inferred:
        yield Caution(
            "Every score here is optimistic: slides are inferred",
            "Clusters of patches with similar stain are used instead of slides. They mix real slides. On one real "
            "sample, such clusters removed a third of the optimism of a random split.",
            serious=True,
        )
    if evidence.stain is not None and evidence.confounded:
        yield Caution.from_text(evidence.stain.words(), serious=True)


def _about_the_sample(evidence: Evidence) -> Iterator[Caution]:
    for rate, oof, test in evidence.falling_rates():
        yield Caution(
            f"{_capitalised(rate)} is {oof:.2f} out of fold but {test:.2f} on the test set",
            "This is at the default threshold, which was chosen on training slides. Choose the threshold for slides "
            "like yours.",
        )
    for split, words in evidence.few():
        row = evidence.test if split == "test" and evidence.test is not None else evidence.best
        yield Caution(
            _capitalised(words.removeprefix("there are ")),
            "The sample size is the number of slides, not of patches, and only slides with tumour show whether tumour "
            f"is recognised. An interval from resampling {row['slides']} slides is rough and tends to be too narrow.",
        )
    if evidence.test is None:
        yield Caution("No test set was held out", "The model was chosen by the same predictions that score it.")
    if side := evidence.test_side:
        yield Caution(
            f"The test AUC is {side} the out-of-fold interval",
            f"The test slides may be {'harder' if side == 'below' else 'easier'} than the training slides, or they "
            "differ by chance.",
        )
    aucs = evidence.slide_aucs
    if len(aucs) > 1:
        yield Caution(
            f"Slides differ: AUC from {min(aucs):.2f} to {max(aucs):.2f} within single slides",
            "This is the best model's AUC within each slide with at least five patches of each class. Slides from "
            "another laboratory may fall anywhere in this range, or outside it.",
        )


def _about_the_model(evidence: Evidence) -> Iterator[Caution]:
    if evidence.best["rung"] in CONTEXT_RUNGS:
        yield Caution(
            "The best model needs many patches of each slide",
            "It uses slide context: it compares a patch with the other patches of its slide. To reach these scores, "
            "prediction also needs 16 or more patches per slide, with about the same share of tumour as the whole "
            "slide.",
        )
    if evidence.best["rung"] == "ensemble":
        yield from map(Caution.from_text, evidence.doubts_on_ensemble)
    if len(evidence.steps) > 1:
        yield Caution(
            f"The best of {len(evidence.steps)} models was chosen by this out-of-fold AUC",
            "The out-of-fold AUC of the chosen model is therefore slightly optimistic. The test AUC was not used for "
            "the choice.",
        )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]

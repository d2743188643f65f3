"""What to do next: two to four actions that follow from the results by fixed rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from histoblend.reports.sections.evidence import BORDERLINE, NONE, Evidence, known
from histoblend.reports.words import model_words

FEWEST, MOST = 2, 4


@dataclass(frozen=True)
class NextStep:
    """One action.

    Attributes
    ----------
    action : str
        What to do.
    reason : str
        The result that it follows from.
    section : str
        Anchor of the section to look at; empty if a document explains it.
    document : str
        Path of that document in the repository; empty if a section shows it.
    """

    action: str
    reason: str
    section: str = ""
    document: str = ""


def next_steps(evidence: Evidence) -> list[NextStep]:
    """List actions, the most important first."""
    steps = [*_about_the_data(evidence), *_about_the_model(evidence)]
    for step in _always():
        if len(steps) < FEWEST and step.section not in [other.section for other in steps]:
            steps.append(step)
    return steps[:MOST]


def _about_the_data(evidence: Evidence) -> Iterator[NextStep]:
    if evidence.phantom:
        yield NextStep("Run it on your own patches", "these are synthetic", document="docs/data.md")
    if not evidence.slide_map or evidence.inferred:
        yield NextStep(
            "Give the slide of each patch (data.slide_map)",
            "without slide names, every score is optimistic",
            document="docs/data.md",
        )
    if evidence.confounded:
        yield NextStep("Compare the scores within each stain group", "stain and label are confounded", "stain")
    few = evidence.few()
    if few and not evidence.phantom and not evidence.inferred:
        yield NextStep("Collect more slides with tumour", few[0][1], "data")
    if evidence.test is None:
        yield NextStep(
            "Hold out test slides (split.test_share)", "no slide was kept for a test", document="docs/data.md"
        )
    for rate, oof, test in evidence.falling_rates()[:1]:
        yield NextStep(
            "Choose a threshold on slides like yours",
            f"{rate} is {oof:.2f} out of fold, {test:.2f} on test",
            "decisions",
        )
    if evidence.test_side == "below":
        yield NextStep(
            "Look at the slides with the most errors", "the test AUC is below the out-of-fold interval", "errors"
        )


def _about_the_model(evidence: Evidence) -> Iterator[NextStep]:
    if evidence.below is not None and evidence.gain in (BORDERLINE, NONE) and _is_cheaper(evidence):
        reason = "a gain over it is not clear" if evidence.gain == BORDERLINE else "no gain over it was shown"
        yield NextStep(f"Use the simpler model: {model_words(evidence.below['model'])}", reason, "ladder")
    if evidence.slide_context:
        yield NextStep(
            "Predict all patches of a slide together",
            "the best model compares a patch with its slide",
            document="docs/predict.md",
        )


def _is_cheaper(evidence: Evidence) -> bool:
    """Whether the model that the best model is compared with takes less time, as far as is known."""
    below, best = (known(row, "seconds_per_1000") for row in (evidence.below, evidence.best))
    return below is None or best is None or below < best


def _always() -> Iterator[NextStep]:
    """Actions that make sense after every run, for results that ask for nothing else."""
    yield NextStep("Look at the most confident errors", "they show what the model does not know", "errors")
    yield NextStep("Choose a threshold for your share of tumour", "yours may differ from this sample", "decisions")

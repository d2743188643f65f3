"""What members add to each other, as a section."""

from __future__ import annotations

from histoblend.reports import figures
from histoblend.reports.ensemble import CALIBRATOR_WORDS, COMBINER_WORDS, EnsembleView, gain_words
from histoblend.reports.section import Chart, Section


def ensemble_section(view: EnsembleView | None) -> Section:
    """Show weights, what is lost without each member, ways to combine and how alike members err."""
    if view is None:
        absent = "Step 6, the ensemble, is no part of this run: `make ensemble` adds it."
        return Section("ensemble", "Ensemble", None, absent=absent)
    choices = [
        f"{row['fold']}: {COMBINER_WORDS[row['combiner']]}, calibration {CALIBRATOR_WORDS[row['calibrator']]}"
        for row in view.choices.to_dict("records")
    ]
    content = {
        "words": gain_words(view.gains),
        "doubts": view.doubts(),
        "combiner": COMBINER_WORDS[view.combiner],
        "calibrator": CALIBRATOR_WORDS[view.calibrator],
        "without_slides": view.without_slides,
        "members": view.members.to_dict("records"),
        "combiners": view.combiners.assign(words=view.combiners.combiner.replace(COMBINER_WORDS)).to_dict("records"),
        "choices": choices,
    }
    alt = "Map of how members' errors correlate; ensemble-errors.csv holds the numbers."
    charts = {"errors": Chart(alt, [("correlation of errors", figures.error_map(view.errors))])}
    return Section("ensemble", "Ensemble", content, charts=charts, tables=view.tables())

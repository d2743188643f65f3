"""Calibration and operating points, as a section."""

from __future__ import annotations

from reports import figures
from reports.ensemble import CALIBRATOR_WORDS, MEASURE_WORDS, EnsembleView
from reports.section import Chart, Section


def decisions_section(view: EnsembleView | None) -> Section:
    """Show how far probabilities are shares, and what thresholds come to."""
    title = "Calibration and decisions"
    if view is None:
        absent = "Step 6, the ensemble, is no part of this run: calibrators and operating points are chosen there."
        return Section("decisions", title, None, absent=absent, nav="Calibration")
    content = {
        "calibrators": view.calibrators.assign(words=view.calibrators.calibrator.map(CALIBRATOR_WORDS)).to_dict(
            "records"
        ),
        "parts": view.decomposition.assign(words=view.decomposition.measure.map(MEASURE_WORDS)).to_dict("records"),
        "operating": view.operating.to_dict("records"),
    }
    alt = "Share of positives against probability, out-of-fold and on test slides; see reliability.csv."
    charts = {"reliability": Chart(alt, [("reliability", figures.reliability(view.reliability))])}
    return Section("decisions", title, content, charts=charts, tables=view.decision_tables(), nav="Calibration")

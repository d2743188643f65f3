"""What the report says of the ensemble: its members, what each is worth, and whether it helps at all."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from histoblend.models.names import PLAIN_MEMBERS, SLIDE_MEMBERS, needs_slides
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.within_slides import BETWEEN_SLIDES, gain_within_words
from histoblend.reports.words import model_words, signed, span

COMBINER_WORDS = {
    "mean": "plain mean of log-odds",
    "rank": "mean rank among out-of-fold predictions",
    "weights": "non-negative weights on log-odds",
    "stack": "logistic regression on log-odds",
}
CALIBRATOR_WORDS = {
    "none": "none",
    "temperature": "temperature",
    "platt": "Platt",
    "beta": "beta",
    "isotonic": "isotonic",
}


@dataclass(frozen=True)
class EnsembleView:
    """What step 6 found.

    Attributes
    ----------
    members : DataFrame
        ``member, weight, weight_slide_mean, auc, log_loss, without, value``, with ``_low`` and ``_high`` of AUC and
        value; ``weight_slide_mean`` is missing where slides are unknown.
    combiners : DataFrame
        What was compared, a row each; ``chosen`` marks one.
    errors : DataFrame
        ``first, second, correlation``.
    choices : DataFrame
        ``fold, combiner, calibrator, single``: what was chosen without each fold.
    gains : DataFrame
        ``over, auc, single_auc, gain, gain_low, gain_high, verdict, patches, slides``: over the best member as picked
        on the same predictions, and as picked on the other folds.
    combiner, calibrator : str
        Those of the ensemble that is taken away.
    without_slides : tuple of str or None
        Members of the ensemble for patches without a slide; None where it is the same one.
    left_out : int
        Training patches that lack a member's prediction.
    """

    members: pd.DataFrame
    combiners: pd.DataFrame
    errors: pd.DataFrame
    choices: pd.DataFrame
    gains: pd.DataFrame
    combiner: str
    calibrator: str
    without_slides: tuple[str, ...] | None
    left_out: int

    @property
    def slide_means(self) -> bool:
        """Whether members' means over slides are combined too."""
        return bool(self.members["weight_slide_mean"].notna().any())

    def tables(self) -> dict[str, pd.DataFrame]:
        """What members add to each other, by the name of the file."""
        return {
            "ensemble-members": self.members,
            "ensemble-combiners": self.combiners,
            "ensemble-errors": self.errors,
            "ensemble-choices": self.choices,
            "ensemble-gains": self.gains,
        }

    def doubts(self) -> tuple[str, ...]:
        """What to distrust where the ensemble is the best model."""
        doubts = [
            "The ensemble's out-of-fold score is nested: ways to combine were chosen and fitted without the fold that "
            "they predict. Its members' predictions for the other folds come from models that have seen that fold, "
            "which may flatter it a little; the test slides are untouched by all of it."
        ]
        if self.slide_means or any(map(needs_slides, self.members.member)):
            doubts.append(
                "It compares a patch with the rest of its slide: its scores presume a slide's worth of patches, "
                "sampled as these were, at prediction time too. Patches without a slide get another, weaker ensemble, "
                "and heat maps one without means over slides."
            )
        if set(self.members.member) in ({*SLIDE_MEMBERS}, {*PLAIN_MEMBERS}):
            doubts.append(
                "Its default members were chosen on 36 PatchCamelyon slides. If your slides are among these, its "
                "scores are flattered, on the test slides too."
            )
        if self.left_out:
            doubts.append(
                f"{self.left_out:,} training patches lack a member's prediction, as the network did not predict every "
                "fold (cnn.folds) or every patch (cnn.patches); the ensemble was fitted and judged on the others."
            )
        return tuple(doubts)


def gain_words(gains: pd.DataFrame) -> str:
    """Say whether the ensemble helps over its best member, in two or three sentences."""
    same, nested = gains.to_dict("records")
    interval = f"{signed(same['gain_low'])} to {signed(same['gain_high'])}"
    text = (
        f"Nested out-of-fold AUC {same['auc']:.3f} ({span(same['auc_low'], same['auc_high'])}) on {same['patches']:,} "
        f"patches, against {same['single_auc']:.3f} of its best member, {model_words(same['over'])}: "
        f"{signed(same['gain'])} (95 % interval {interval}). Verdict: {same['verdict']}."
    )
    if abs(nested["gain"] - same["gain"]) >= 0.0005:
        interval = f"{signed(nested['gain_low'])} to {signed(nested['gain_high'])}"
        text += (
            " The best member was picked by the same predictions, which flatters it; picked on the other folds, as the "
            f"ensemble is, it scores {nested['single_auc']:.3f} (gain {signed(nested['gain'])}, {interval})."
        )
    return text


def _divided(ladder: pd.DataFrame) -> str:
    """How the gain over the best member divides, and what the part between slides depends on."""
    rows = ladder[(ladder.model == "ensemble") & (ladder.split == "oof")].to_dict("records")
    words = gain_within_words(rows[0]) if rows else ""
    return f"{words} {BETWEEN_SLIDES}" if words else ""


def ensemble_section(view: EnsembleView | None, ladder: pd.DataFrame) -> Section:
    """Show weights, what is lost without each member, ways to combine and how alike members err.

    Parameters
    ----------
    view : EnsembleView or None
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`: how the ensemble's gain divides within and between slides.
    """
    if view is None:
        absent = "Step 6, the ensemble, is no part of this run: `make ensemble` adds it."
        return Section("ensemble", "Ensemble", None, absent=absent)
    choices = [
        f"{row['fold']}: {COMBINER_WORDS[row['combiner']]}, calibration {CALIBRATOR_WORDS[row['calibrator']]}"
        for row in view.choices.to_dict("records")
    ]
    content = {
        "words": f"{gain_words(view.gains)} {_divided(ladder)}".strip(),
        "doubts": view.doubts(),
        "combiner": COMBINER_WORDS[view.combiner],
        "calibrator": CALIBRATOR_WORDS[view.calibrator],
        "without_slides": view.without_slides,
        "members": view.members.to_dict("records"),
        "slide_means": view.slide_means,
        "combiners": view.combiners.assign(words=view.combiners.combiner.replace(COMBINER_WORDS)).to_dict("records"),
        "choices": choices,
    }
    alt = "Map of how members' errors correlate; ensemble-errors.csv holds the numbers."
    charts = {"errors": Chart(alt, [("correlation of errors", figures.error_map(view.errors))])}
    return Section("ensemble", "Ensemble", content, charts=charts, tables=view.tables())

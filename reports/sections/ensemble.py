"""The Ensemble section: its members, what each adds, and whether the ensemble beats its best member."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from histoblend.models.names import PLAIN_MEMBERS, SLIDE_MEMBERS, needs_slides
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.within_slides import between_words, gain_within_words
from histoblend.reports.words import difference, model_words, span

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
    """Results of step 6.

    Attributes
    ----------
    members : DataFrame
        ``member, weight, weight_slide_mean, auc, log_loss, without, value``, with ``_low`` and ``_high`` of AUC and
        value. ``weight_slide_mean`` is missing if slides are unknown.
    combiners : DataFrame
        Compared combination methods, one per row; ``chosen`` marks the chosen one.
    errors : DataFrame
        ``first, second, correlation``.
    choices : DataFrame
        ``fold, combiner, calibrator, single``: the choice made without each fold.
    gains : DataFrame
        ``over, auc, single_auc, gain, gain_low, gain_high, verdict, patches, slides``. Row 1: gain over the best
        member chosen on the same predictions. Row 2: gain over the best member chosen on the other folds.
    combiner, calibrator : str
        Those of the final ensemble.
    without_slides : tuple of str or None
        Members of the ensemble for patches without a slide; None if it is the same ensemble.
    left_out : int
        Number of training patches without a prediction of some member.
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
        """Whether the ensemble also uses members' means over slides."""
        return bool(self.members["weight_slide_mean"].notna().any())

    @property
    def uses_slides(self) -> bool:
        """Whether the ensemble compares a patch with the other patches of its slide."""
        return self.slide_means or any(map(needs_slides, self.members.member))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables of the section, by file name."""
        return {
            "ensemble-members": self.members,
            "ensemble-combiners": self.combiners,
            "ensemble-errors": self.errors,
            "ensemble-choices": self.choices,
            "ensemble-gains": self.gains,
        }

    def doubts(self) -> tuple[str, ...]:
        """Reasons for caution if the ensemble is the best model."""
        cautions = []
        if set(self.members.member) in ({*SLIDE_MEMBERS}, {*PLAIN_MEMBERS}):
            cautions.append(
                "Default members were chosen on 36 PatchCamelyon slides. If your slides are among them, the "
                "scores are optimistic, on the test slides too."
            )
        cautions.append(
            "The ensemble's out-of-fold score may be slightly optimistic. It is nested: each fold is predicted by a "
            "combination that was chosen and fitted without it. But the members' predictions for the other folds come "
            "from models that were trained on this fold. The test slides are not part of this."
        )
        if self.uses_slides:
            cautions.append(
                "The ensemble compares a patch with the rest of its slide. To reach these scores, prediction "
                "also needs many patches per slide, sampled as these were. Patches without a slide are predicted by "
                "another, weaker ensemble. Heat maps use an ensemble without means over slides."
            )
        if self.left_out:
            cautions.append(
                f"{self.left_out:,} training patches have no prediction of the network, because it did not predict "
                "every fold (cnn.folds) or every patch (cnn.patches). The ensemble was fitted and scored on the others."
            )
        return tuple(cautions)


def ensemble_finding(gains: pd.DataFrame, ladder: pd.DataFrame) -> str:
    """Say how the ensemble's AUC differs from that of its best member, out-of-fold and on test slides."""
    same = gains.to_dict("records")[0]
    gain = difference(same["gain"], same["gain_low"], same["gain_high"])
    member = model_words(same["over"])
    text = f"Compared with its best member, {member}, the ensemble changes the AUC out-of-fold by {gain}"
    tested = ladder[(ladder.model == "ensemble") & (ladder.split == "test") & (ladder.below == same["over"])]
    for row in tested.to_dict("records"):
        text += f"; on the test slides by {difference(row['gain'], row['gain_low'], row['gain_high'])}"
    return f"{text}."


def gain_words(gains: pd.DataFrame) -> str:
    """Give the ensemble's AUC and that of its best member, in a few sentences."""
    same, nested = gains.to_dict("records")
    text = (
        f"Nested out-of-fold AUC {same['auc']:.3f} ({span(same['auc_low'], same['auc_high'])}) on {same['patches']:,} "
        f"patches, compared with {same['single_auc']:.3f} for its best member, {model_words(same['over'])}. "
        f"Difference: {difference(same['gain'], same['gain_low'], same['gain_high'])}."
    )
    if abs(nested["gain"] - same["gain"]) >= 0.0005:
        text += (
            " The best member was chosen on the same predictions, so its AUC is optimistic. Chosen on the other folds, "
            f"as the ensemble is, it has {nested['single_auc']:.3f}. Difference: "
            f"{difference(nested['gain'], nested['gain_low'], nested['gain_high'])}."
        )
    return text


def _gain_by_pairs(ladder: pd.DataFrame) -> str:
    """Difference to the best member within and between slides, and what the part between slides depends on."""
    rows = ladder[(ladder.model == "ensemble") & (ladder.split == "oof")].to_dict("records")
    words = gain_within_words(rows[0]) if rows else ""
    return f"{words} {between_words(ladder)}" if words else ""


def ensemble_section(view: EnsembleView | None, ladder: pd.DataFrame) -> Section:
    """Show weights, the loss without each member, combination methods, and how members' errors correlate.

    Parameters
    ----------
    view : EnsembleView or None
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`, for the ensemble's gain within and between slides.
    """
    if view is None:
        absent = "This run has no ensemble (step 6). Add it with make ensemble."
        return Section("ensemble", "Ensemble", None, absent=absent)
    choices = [
        f"{row['fold']}: {COMBINER_WORDS[row['combiner']]}, calibration {CALIBRATOR_WORDS[row['calibrator']]}"
        for row in view.choices.to_dict("records")
    ]
    content = {
        "words": gain_words(view.gains),
        "by_pairs": _gain_by_pairs(ladder),
        "whole": _whole_auc(view.members),
        "doubts": view.doubts(),
        "combiner": COMBINER_WORDS[view.combiner],
        "calibrator": CALIBRATOR_WORDS[view.calibrator],
        "without_slides": view.without_slides,
        "members": view.members.to_dict("records"),
        "slide_means": view.slide_means,
        "combiners": view.combiners.assign(words=view.combiners.combiner.replace(COMBINER_WORDS)).to_dict("records"),
        "choices": choices,
    }
    alt = "Correlation matrix of the members' errors. ensemble-errors.csv has the numbers."
    charts = {"errors": Chart(alt, [("members, out-of-fold: correlation of errors", figures.error_map(view.errors))])}
    finding = ensemble_finding(view.gains, ladder)
    return Section("ensemble", "Ensemble", content, charts=charts, tables=view.tables(), finding=finding)


def _whole_auc(members: pd.DataFrame) -> float:
    """AUC with all members, from which the AUC without each is subtracted; NaN for a single member."""
    if "without" not in members:
        return float("nan")
    return float((members["without"] + members["value"]).iloc[0])

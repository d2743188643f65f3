"""Decision curves, computed by hand and against repeated rows."""

import numpy as np
import pandas as pd
import pytest

from histoblend.models.names import RUNGS
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.net_benefit import (
    ALL,
    NONE,
    THRESHOLDS,
    main_models,
    net_benefit_table,
    useful_range,
)
from tests.oracles.metrics import resampled_slides
from tests.reports.cohorts import make_predictions, model_names

MODEL = "logistic_embeddings"


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(3, slides=8, test_slides=4, per_slide=30, rungs=("embeddings",), heads=("logistic",))


def test_net_benefit_by_hand():
    # At 0.2, four patches are called positive, two of them correctly: 2/10 − 2/10 × 0.2/0.8. 0.2 itself is positive.
    frame = pd.DataFrame(
        {
            "slide": None,
            "split": "train",
            "label": [1, 1, 0, 0, 0, 0, 0, 0, 0, 1],
            "prob_cnn": [0.9, 0.5, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.05, 0.01],
        }
    )
    table = net_benefit_table(frame, ["cnn"], "cnn", draws=10).set_index(["model", "threshold"]).net_benefit
    assert table["cnn", 0.2] == pytest.approx(0.2 - 0.2 * 0.25)
    assert table["cnn", 0.5] == pytest.approx(0.2)
    assert table["cnn", 0.51] == pytest.approx(0.1)
    assert table["cnn", 0.95] == 0
    assert table[ALL, 0.2] == pytest.approx(0.3 - 0.7 * 0.25)
    assert table[ALL, 0.5] == pytest.approx(-0.4)
    assert (table[NONE] == 0).all()


def test_bands_agree_with_repeated_rows(predictions):
    table = net_benefit_table(predictions, [MODEL], MODEL, draws=30, seed=2)
    part = predictions[predictions.split == "train"].reset_index(drop=True)
    groups = pd.factorize(part.slide)[0]
    benefits = []
    for drawn in resampled_slides(groups, 30, 2):
        rows = part.iloc[np.concatenate([np.flatnonzero(groups == slide) for slide in drawn])]
        called = rows[f"prob_{MODEL}"] >= 0.3
        benefit = (called & (rows.label == 1)).mean() - (called & (rows.label == 0)).mean() * 3 / 7
        treat_all = rows.label.mean() - (1 - rows.label.mean()) * 3 / 7
        benefits.append((benefit, benefit - max(treat_all, 0)))
    row = table[(table.split == "oof") & (table.model == MODEL) & (table.threshold == 0.3)].iloc[0]
    expected = np.quantile(benefits, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([[row.low, row.gain_low], [row.high, row.gain_high]], expected)


def test_all_models_are_evaluated_on_their_common_patches(predictions):
    gaps = predictions.assign(prob_cnn=predictions[f"prob_{MODEL}"].where(predictions.fold != 1))
    table = net_benefit_table(gaps, [MODEL, "cnn"], "cnn", draws=10)
    assert set(table.patches[table.split == "oof"]) == {((gaps.split == "train") & (gaps.fold != 1)).sum()}
    same = table.pivot(index=["split", "threshold"], columns="model", values="net_benefit")
    np.testing.assert_array_equal(same["cnn"], same[MODEL])
    assert table.low.notna().tolist() == (table.model == "cnn").tolist()


def test_without_slides_patches_are_resampled(predictions):
    table = net_benefit_table(predictions.assign(slide=None), [MODEL], MODEL, draws=200)
    known = net_benefit_table(predictions, [MODEL], MODEL, draws=200)
    width = [(curve.high - curve.low)[curve.threshold == 0.3].iloc[0] for curve in (table, known)]
    assert 0 < width[0] < width[1]


def test_main_models_are_the_best_head_of_each_rung_and_the_given_model():
    predictions = make_predictions(1, slides=10, test_slides=0, per_slide=20)
    steps = ladder(predictions, model_names(predictions), draws=20)
    oof = steps[steps.split == "oof"].set_index("model").auc
    worse = min(("logistic_both", "xgboost_both"), key=lambda model: oof[model])
    models = main_models(steps, worse)
    assert worse in models
    assert "prevalence" not in models
    assert len(models) == len(RUNGS) - 1
    colour = [model for model in models if model.endswith("_colour")]
    assert colour == [oof[["logistic_colour", "xgboost_colour"]].idxmax()]


def test_useful_thresholds_are_given_as_ranges():
    curve = pd.DataFrame({"model": "cnn", "split": "oof", "threshold": THRESHOLDS[:6]})
    curve["gain_low"] = [-1, 0.1, 0.2, 0, 0.3, -1]
    assert useful_range(curve, "cnn") == [(0.02, 0.03), (0.05, 0.05)]
    assert useful_range(curve.assign(gain_low=0.0), "cnn") == []

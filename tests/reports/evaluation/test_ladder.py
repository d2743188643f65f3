import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score, roc_curve

from histoblend.models.names import split_model_name
from histoblend.reports.evaluation.ladder import COLUMNS, CURVE_POINTS, ladder, roc_table, rungs_below
from tests.oracles.metrics import pair_aucs, resampled_metrics, resampled_slides
from tests.reports.cohorts import make_predictions, model_names


def test_split_model_name():
    assert split_model_name("prevalence") == ("prevalence", None)
    assert split_model_name("xgboost_both") == ("both", "xgboost")


@pytest.mark.parametrize("name", ["xgboost", "xgboost_flavour", "_both", "xgboost_prevalence", ""])
def test_split_model_name_rejects(name):
    with pytest.raises(ValueError, match=r"model must be 'prevalence', 'cnn', 'ensemble' or '<head>_<rung>'"):
        split_model_name(name)


def test_rungs_below_names_the_next_rung_of_the_same_head():
    models = ["xgboost_both", "prevalence", "logistic_embeddings", "xgboost_handcrafted", "xgboost_embeddings"]
    assert list(rungs_below(models).items()) == [
        ("prevalence", None),
        ("xgboost_handcrafted", "prevalence"),
        ("logistic_embeddings", "prevalence"),
        ("xgboost_embeddings", "xgboost_handcrafted"),
        ("xgboost_both", "xgboost_embeddings"),
    ]


def test_slide_context_is_compared_with_the_rung_it_extends():
    models = ["xgboost_handcrafted", "xgboost_both", "xgboost_context", "logistic_both", "logistic_context"]
    below = rungs_below(models)
    assert list(below)[-1] == "xgboost_context"
    assert below["xgboost_context"] == "xgboost_handcrafted"
    assert below["xgboost_both"] == "xgboost_handcrafted"
    assert below["logistic_context"] == "logistic_both"


def test_a_single_family_is_not_compared():
    models = ["xgboost_nuclei", "xgboost_handcrafted", "logistic_lbp", "xgboost_colour", "prevalence"]
    assert list(rungs_below(models).items()) == [
        ("prevalence", None),
        ("xgboost_colour", "prevalence"),
        ("xgboost_handcrafted", "xgboost_colour"),
        ("logistic_lbp", None),
        ("xgboost_nuclei", None),
    ]


def test_network_and_ensemble_are_compared_with_the_best_other_model():
    models = ["ensemble", "logistic_embeddings", "cnn", "xgboost_embeddings", "logistic_context", "xgboost_nuclei"]
    aucs = dict(zip(models, (0.95, 0.90, 0.92, 0.91, 0.93, 0.99), strict=True))
    below = rungs_below(models, aucs)
    assert list(below)[-3:] == ["cnn", "ensemble", "xgboost_nuclei"]
    assert below["cnn"] == "xgboost_embeddings"
    assert below["ensemble"] == "logistic_context"  # a single family is not a member
    assert rungs_below(models)["ensemble"] is None
    assert rungs_below(["cnn", "logistic_colour", "logistic_context"], {"logistic_colour": 0.8} | aucs)["cnn"] == (
        "logistic_colour"
    )


def test_a_network_without_all_folds_is_evaluated_on_its_folds():
    rungs = ("prevalence", "embeddings", "cnn", "cnn-context")
    predictions = make_predictions(8, rungs=rungs, heads=("logistic",))
    missing = predictions.fold == 2
    predictions.loc[missing, ["prob_cnn", "prob_logistic_cnn-context"]] = np.nan
    table = ladder(predictions, model_names(predictions), draws=50)
    part = predictions[(predictions.split == "train") & ~missing]
    context = table[(table.rung == "cnn-context") & (table.split == "oof")].iloc[0]
    assert (context.patches, context.below) == (len(part), "cnn")
    row = table[(table.model == "cnn") & (table.split == "oof")].iloc[0]
    assert (row.patches, row.slides, row.below) == (len(part), part.slide.nunique(), "logistic_embeddings")
    cnn, frozen = (roc_auc_score(part.label, part[f"prob_{name}"]) for name in ("cnn", "logistic_embeddings"))
    assert (row.auc, row.gain) == pytest.approx((cnn, cnn - frozen))
    whole = table[(table.model == "logistic_embeddings") & (table.split == "oof")].iloc[0]
    assert whole.patches == (predictions.split == "train").sum()
    assert table.index.tolist() == list(range(8))


def test_without_prevalence_the_first_rung_is_not_compared():
    assert rungs_below(["logistic_both", "logistic_colour"]) == {
        "logistic_colour": None,
        "logistic_both": "logistic_colour",
    }


def test_ladder_agrees_with_repeated_rows():
    predictions = make_predictions(
        1, slides=8, test_slides=4, per_slide=10, rungs=("colour", "both"), heads=("xgboost",)
    )
    table = ladder(predictions, ["xgboost_colour", "xgboost_both"], draws=40, seed=7)
    assert list(table.columns) == COLUMNS
    assert table.model.tolist() == ["xgboost_colour", "xgboost_colour", "xgboost_both", "xgboost_both"]
    assert table.split.tolist() == ["oof", "test", "oof", "test"]
    part = predictions[predictions.split == "test"]
    groups = pd.factorize(part.slide)[0]
    rows = table[table.split == "test"].set_index("model")
    values = {}
    for model, row in rows.iterrows():
        scores = part[f"prob_{model}"].to_numpy()
        drawn = [
            resampled_metrics(part.label.to_numpy(), scores, row.threshold, groups, draw)
            for draw in resampled_slides(groups, 40, 7)
        ]
        assert row.skipped_draws == drawn.count(None)
        values[model] = np.array([value for value in drawn if value is not None])
        for j, metric in enumerate(["auc", "average_precision", "brier", "accuracy"]):
            low, high = np.percentile(values[model][:, j], [2.5, 97.5])
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == pytest.approx((low, high), abs=1e-12)
        whole = resampled_metrics(part.label.to_numpy(), scores, row.threshold, groups, range(4))
        assert row[["auc", "average_precision", "brier", "accuracy"]].tolist() == pytest.approx(whole, abs=1e-12)
    gain = values["xgboost_both"][:, 0] - values["xgboost_colour"][:, 0]
    both = rows.loc["xgboost_both"]
    assert both.below == "xgboost_colour"
    assert both.gain == pytest.approx(both.auc - rows.loc["xgboost_colour"].auc)
    assert [both.gain_low, both.gain_high] == pytest.approx(np.percentile(gain, [2.5, 97.5]), abs=1e-12)


def test_ladder_threshold_comes_from_out_of_fold_predictions_only():
    predictions = make_predictions(2)
    models = model_names(predictions)
    before = ladder(predictions, models, draws=20)
    shuffled = predictions.copy()
    test = shuffled.split == "test"
    shuffled.loc[test, "label"] = 1 - shuffled.loc[test, "label"]
    after = ladder(shuffled, models, draws=20)
    assert before.threshold.tolist() == after.threshold.tolist()
    oof = before.split == "oof"
    pd.testing.assert_frame_equal(before[oof], after[oof])


def test_ladder_prevalence_falls_below_one_half_by_pooling():
    table = ladder(make_predictions(3), ["prevalence"], draws=50).set_index("split")
    assert table.auc["oof"] < 0.5
    assert table.auc["test"] == 0.5
    assert table.below.isna().all()
    assert table.gain.isna().all()


def test_ladder_without_slide_map_resamples_patches():
    with_map = ladder(make_predictions(4, per_slide=200), ["logistic_both"], draws=100)
    without = ladder(make_predictions(4, per_slide=200, slide_map=False), ["logistic_both"], draws=100)
    assert without.slides.tolist() == [0, 0]
    assert without.auc.tolist() == with_map.auc.tolist()
    # Slides differ by construction, so an interval that ignores them is too narrow.
    assert (2 * (without.auc_high - without.auc_low) < with_map.auc_high - with_map.auc_low).all()


def test_ladder_reports_costs_and_omits_a_missing_test_set():
    predictions = make_predictions(5, test_slides=0)
    table = ladder(predictions, ["prevalence", "xgboost_both"], draws=20, costs={"xgboost_both": (12.5, 900.0)})
    assert table.split.tolist() == ["oof", "oof"]
    assert table.seconds.tolist()[1] == 12.5
    assert table.seconds_per_1000.tolist()[1] == pytest.approx(12.5 / (len(predictions) / 1000))
    assert table.peak_mb.tolist()[1] == 900.0
    assert np.isnan(table.seconds[0])


def test_ladder_names_missing_columns():
    with pytest.raises(ValueError, match=r"\['prob_xgboost_both'\] are missing"):
        ladder(make_predictions(6, rungs=("colour",)), ["xgboost_both"])


def test_gains_split_into_pairs_within_and_between_slides():
    predictions = make_predictions(3, slides=7, test_slides=4, per_slide=12, rungs=("colour", "both"))
    better, worse = "prob_logistic_both", "prob_logistic_colour"  # exchanged: the gain is negative
    predictions = predictions.rename(columns={better: worse, worse: better})
    table = ladder(predictions, model_names(predictions), draws=60, seed=4)
    part = predictions[predictions.split == "train"]
    labels, slides = part.label.tolist(), part.slide.tolist()
    names = list(dict.fromkeys(slides))
    drawn = [[names[unit] for unit in draw] for draw in resampled_slides(pd.factorize(part.slide)[0], 60, 4)]
    values = {
        name: np.array([pair_aucs(labels, part[f"prob_{name}"].tolist(), slides, draw) for draw in [names, *drawn]])
        for name in ("logistic_colour", "logistic_both")
    }
    row = table[(table.model == "logistic_both") & (table.split == "oof")].iloc[0]
    gains = values["logistic_both"] - values["logistic_colour"]
    expected = {"auc_within": values["logistic_both"][:, 0], "gain_within": gains[:, 0], "gain_between": gains[:, 1]}
    for name, (point, *more) in expected.items():
        assert row[name] == pytest.approx(point, abs=1e-12)
        low, high = np.nanpercentile(more, [2.5, 97.5])
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high), abs=1e-12)
    mixed = part.groupby("slide").label.nunique().eq(2).sum()
    assert (row.mixed_slides, row.slides) == (mixed, 7)
    sums = table.within_share * table.gain_within + (1 - table.within_share) * table.gain_between
    assert sums.dropna().tolist() == pytest.approx(table.gain.dropna().tolist(), abs=1e-12)


def test_knowing_the_slide_gains_between_slides_only():
    predictions = make_predictions(5, rungs=("colour", "both"), heads=("logistic",))
    odds = np.log(predictions.prob_logistic_colour / (1 - predictions.prob_logistic_colour))
    positive = predictions.groupby("slide").label.transform("mean")
    table = ladder(
        predictions.assign(prob_logistic_both=1 / (1 + np.exp(-odds - 3 * positive))),
        ["logistic_colour", "logistic_both"],
        draws=100,
    )
    both = table[table.model == "logistic_both"]
    assert (both.gain_within.abs() < 1e-12).all()
    assert (both.gain_between_low > 0).all()


@pytest.mark.parametrize("slide", [None, "(inferred)", "(unmapped)"])
def test_without_known_slides_the_auc_within_them_is_missing(slide):
    predictions = make_predictions(4, slides=8, test_slides=4, per_slide=20, rungs=("prevalence", "both"))
    models = model_names(predictions)
    known = ladder(predictions, models, draws=50)
    named = predictions.slide.map(lambda name: f"(inferred {name})" if slide == "(inferred)" else slide)
    table = ladder(predictions.assign(slide=named), models, draws=50)
    missing = [name + end for name in ("auc_within", "gain_within", "gain_between") for end in ("", "_low", "_high")]
    assert table[[*missing, "within_share"]].isna().all(axis=None)
    assert (table.mixed_slides == 0).all()
    assert table.auc.tolist() == known.auc.tolist()
    assert table.gain.notna().tolist() == known.gain.notna().tolist()


def test_patches_missing_from_the_slide_map_have_no_pairs_within_a_slide():
    predictions = make_predictions(4, slides=6, test_slides=0, per_slide=15, rungs=("both",), heads=("logistic",))
    unmapped = predictions.assign(slide=predictions.slide.where(predictions.slide > "S02", "(unmapped)"))
    row = ladder(unmapped, ["logistic_both"], draws=50).iloc[0]
    mapped = predictions[predictions.slide > "S02"]
    scores, slides = mapped.prob_logistic_both.tolist(), mapped.slide.tolist()
    within, _ = pair_aucs(mapped.label.tolist(), scores, slides, list(dict.fromkeys(slides)))
    assert row.auc_within == pytest.approx(within)


def test_one_slide_of_both_classes_has_no_interval():
    predictions = make_predictions(6, slides=6, test_slides=0, per_slide=20, rungs=("both",))
    pure = predictions[(predictions.slide == "S00") | (predictions.label == (predictions.slide > "S03"))]
    table = ladder(pure, model_names(pure), draws=50)
    assert (table.mixed_slides == 1).all()
    assert table.auc_within.between(0, 1).all()
    assert table[["auc_within_low", "auc_within_high", "gain_within_low"]].isna().all(axis=None)
    assert table.auc_low.notna().all()


def test_one_constant_per_fold_has_auc_one_half_within_slides():
    table = ladder(make_predictions(3), ["prevalence"], draws=50)
    assert (table[["auc_within", "auc_within_low", "auc_within_high"]] == 0.5).all(axis=None)


def test_roc_curves_are_scikit_learns():
    predictions = make_predictions(8, per_slide=10, rungs=("embeddings", "cnn"), heads=("logistic",))
    predictions.loc[predictions.fold == 2, "prob_cnn"] = np.nan
    table = roc_table(predictions, ["logistic_embeddings", "cnn"])
    assert list(table.groupby(["model", "split"], sort=False).groups) == [
        ("logistic_embeddings", "oof"),
        ("cnn", "oof"),
        ("logistic_embeddings", "test"),
        ("cnn", "test"),
    ]
    assert table.index.tolist() == list(range(len(table)))
    for (model, split), curve in table.groupby(["model", "split"]):
        part = predictions[
            (predictions.split == {"oof": "train"}.get(split, split)) & predictions[f"prob_{model}"].notna()
        ]
        expected = np.transpose(roc_curve(part.label, part[f"prob_{model}"]))
        np.testing.assert_array_equal(curve.iloc[:, 2:], expected)
    assert set(roc_table(predictions[predictions.split == "train"], ["cnn"]).split) == {"oof"}


def test_long_roc_curves_are_thinned_evenly():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20_000)
    predictions = pd.DataFrame(
        {"split": "train", "label": labels, "prob_xgboost_both": expit(labels + rng.normal(size=20_000))}
    )
    curve = roc_table(predictions, ["xgboost_both"])
    ends = curve[["false_positive_rate", "true_positive_rate"]].to_numpy()
    assert ends[[0, -1]].tolist() == [[0, 0], [1, 1]]
    steps = np.diff(ends.sum(axis=1))
    assert len(curve) == CURVE_POINTS
    np.testing.assert_allclose(steps, 2 / (CURVE_POINTS - 1), atol=4e-3)
    area = np.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    assert area == pytest.approx(roc_auc_score(labels, predictions.prob_xgboost_both), abs=1e-3)

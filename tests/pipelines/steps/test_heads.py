"""The heads of a run: no fit uses a held-out slide."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.pipelines.steps.heads import left_out_groups, out_of_fold, prevalence, refit_without
from tests.pipelines.fits import local


def grouped_table(slides=15, each=20, seed=0):
    rng = np.random.default_rng(seed)
    n = slides * each
    slide = np.repeat([f"s{number:02d}" for number in range(slides)], each)
    fold = np.repeat(np.arange(slides) % 3, each)
    test = np.repeat(np.arange(slides) >= 12, each)
    return pd.DataFrame(
        {
            "patch_id": [f"p{row}" for row in range(n)],
            "label": rng.integers(0, 2, n),
            "slide": pd.array(slide, dtype="string"),
            "split": np.where(test, "test", "train"),
            "fold": np.where(test, -1, fold),
        }
    )


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
@pytest.mark.parametrize(
    ("held_out", "in_memory"), [(0, True), (1, False), (2, True), (-1, True), (-1, False)], ids=str
)
def test_no_head_uses_a_held_out_slide(head, held_out, in_memory, monkeypatch):
    """Labels and columns of a held-out fold do not change predictions for it or without it."""
    monkeypatch.setattr("histoblend.pipelines.engine.fits.IN_MEMORY_ROWS", 20_000 if in_memory else 0)
    table = grouped_table()
    values = np.random.default_rng(1).normal(size=(len(table), 6)).astype(np.float32)
    values[:, 0] += table["label"]
    inside = (table["fold"] == held_out).to_numpy()
    half = inside & (np.cumsum(inside) % 2 == 0)
    first, *_ = out_of_fold(head, local(values), table, seed=0)
    flipped = table.assign(label=np.where(inside, 1 - table["label"], table["label"]))
    second, *_ = out_of_fold(head, local(values), flipped, seed=0)
    # Predictions of held-out rows come from models that were not fitted on their labels.
    np.testing.assert_array_equal(first[inside], second[inside])
    others = values.copy()
    others[half] = 1e3
    third, *_ = out_of_fold(head, local(others), table, seed=0)
    # Their model does not use the columns of other held-out rows either: a scaler fitted on them would change these.
    np.testing.assert_array_equal(first[inside & ~half], third[inside & ~half])
    assert (first[half] != third[half]).any()
    test = (table["fold"] == -1).to_numpy()
    if held_out == -1:
        # Predictions of training slides do not depend on the test slides: scaler, strength or early stopping.
        np.testing.assert_array_equal(first[~test], third[~test])
        np.testing.assert_array_equal(first[~test], second[~test])
    else:
        # The change did take effect: labels of a training fold influence the other folds and the refit.
        assert (first[test] != second[test]).any()


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_refits_without_a_group_use_neither_it_nor_the_held_out_slides(head):
    table = grouped_table()
    values = np.random.default_rng(1).normal(size=(len(table), 6)).astype(np.float32)
    values[:, :2] += 1.5 * table["label"].to_numpy()[:, None]
    groups = {"signal": [0, 1], "noise": [2, 3, 4]}
    test = (table["split"] == "test").to_numpy()
    first = refit_without([head], local(values), groups, table, seed=0)
    assert list(first) == [f"{head}_handcrafted_without_{name}" for name in groups]
    scores = {name: roc_auc_score(table["label"][test], probability) for name, probability in first.items()}
    assert scores[f"{head}_handcrafted_without_signal"] < 0.65 < 0.8 < scores[f"{head}_handcrafted_without_noise"]
    half = np.flatnonzero(test)[::2]
    changed, flipped = values.copy(), table.copy()
    changed[half] = 1e3
    flipped.loc[test, "label"] = 1 - flipped.loc[test, "label"]
    second = refit_without([head], local(changed, 2), groups, flipped, seed=0)
    without = f"{head}_handcrafted_without_noise"
    np.testing.assert_array_equal(first[without][1::2], second[without][1::2])
    assert (first[without][::2] != second[without][::2]).any()
    # Columns that were left out have no influence; the others do.
    other = values.copy()
    other[:, [2, 3, 4]] += 5 * table["label"].to_numpy()[:, None]
    third = refit_without([head], local(other), groups, table, seed=0)
    np.testing.assert_array_equal(first[without], third[without])
    signal = f"{head}_handcrafted_without_signal"
    assert roc_auc_score(table["label"][test], third[signal]) > 0.95


def test_a_group_of_all_columns_is_not_left_out():
    columns = ["colour_mean_red_whole", "colour_mean_red_centre", "colour_q05_red_centre"]
    assert left_out_groups(columns) == {"whole": [0], "centre": [1, 2]}


def test_prevalence_is_the_share_among_the_other_folds():
    table = grouped_table()
    probability = prevalence(table)
    for fold in (0, 1, 2):
        others = table[(table["split"] == "train") & (table["fold"] != fold)]
        assert (probability[table["fold"] == fold] == others["label"].mean()).all()
    train = table[table["split"] == "train"]
    assert (probability[table["fold"] == -1] == train["label"].mean()).all()


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_columns_that_only_identify_slides_gain_nothing(head):
    """Labels depend on the slide, and columns identify it: only random folds score far above 0.5."""
    rng = np.random.default_rng(2)
    table = grouped_table(slides=45, each=20, seed=4)
    share = np.repeat(rng.permutation(np.linspace(0.05, 0.95, 45)), 20)
    table["label"] = (rng.random(900) < share).astype(int)
    table["fold"] = np.repeat(np.arange(45) % 3, 20)
    table["split"] = np.where(np.repeat(np.arange(45) >= 40, 20), "test", "train")
    table.loc[table["split"] == "test", "fold"] = -1
    values = (np.repeat(rng.normal(size=(45, 8)), 20, axis=0) + 0.01 * rng.normal(size=(900, 8))).astype(np.float32)
    train = (table["split"] == "train").to_numpy()
    by_slide, *_ = out_of_fold(head, local(values), table, seed=0)
    scattered = table.assign(fold=np.where(train, np.arange(900) % 3, -1))
    leaky, *_ = out_of_fold(head, local(values), scattered, seed=0)
    assert roc_auc_score(table["label"][train], by_slide[train]) < 0.65
    # Random folds do leak for boosting, but not for logistic regression, whose penalty is chosen on other slides.
    assert head == "logistic" or roc_auc_score(table["label"][train], leaky[train]) > 0.7

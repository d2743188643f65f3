"""The leakage meter reports a planted leak, no leak without one, and compares the right folds."""

import numpy as np
import pandas as pd
import pytest

from histoblend.data.splits import assign_splits
from histoblend.pipelines.analysis.leakage import MAX_PATCHES, measure_leakage
from histoblend.reports.sections.data import leakage_words


def cohort(slides=30, each=30, leak=True, seed=0):
    """Slides with about 90 % or 10 % tumour. With ``leak``, the columns identify the slide but not tumour."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), each)
    mostly = rng.permutation(slides) % 2
    label = (rng.random(len(slide)) < np.where(mostly, 0.9, 0.1)[slide]).astype(int)
    values = rng.normal(size=(len(slide), 40))
    if leak:
        values += 2 * rng.normal(size=(slides, 40))[slide]
    else:
        values[:, 0] += label
    table = pd.DataFrame({"patch_id": [f"p{row}" for row in range(len(slide))], "label": label})
    table["slide"] = pd.array([f"s{number}" for number in slide], dtype="string")
    return assign_splits(table, test_share=0.2, folds=3, seed=seed), values.astype(np.float32)


def test_a_planted_leak_is_detected():
    table, values = cohort()
    meter = measure_leakage(values, table, draws=200, seed=0).set_index("folds")
    assert meter.loc["grouped", "auc"] < 0.65
    assert meter.loc["random", "auc"] > 0.85
    assert meter.loc["inflation", "low"] > 0.1
    assert meter.loc["inflation", "auc"] == meter.loc["random", "auc"] - meter.loc["grouped", "auc"]
    train = table["split"] == "train"
    assert (meter["patches"] == train.sum()).all()
    assert (meter["slides"] == table.loc[train, "slide"].nunique()).all()


def test_without_a_leak_the_inflation_is_small():
    table, values = cohort(leak=False)
    gap = measure_leakage(values, table, draws=200, seed=0).iloc[2]
    assert abs(gap["auc"]) < 0.03


def test_workers_and_test_patches_do_not_change_the_result():
    table, values = cohort(slides=16, each=12)
    first = measure_leakage(values, table, draws=100, seed=0, workers=1)
    values[table["split"] == "test"] = 99
    flipped = table.assign(label=np.where(table["split"] == "test", 1 - table["label"], table["label"]))
    pd.testing.assert_frame_equal(first, measure_leakage(values, flipped, draws=100, seed=0, workers=2))


def test_a_split_by_patch_is_still_measured_by_slide():
    table, values = cohort()
    by_patch = assign_splits(table.assign(group="patch:" + table["patch_id"]), test_share=0.2, folds=3, seed=0)
    assert measure_leakage(values, by_patch, draws=100, seed=0).iloc[2]["low"] > 0.1


def test_large_tables_are_subsampled():
    table, values = cohort(slides=40, each=250)
    meter = measure_leakage(values[:, :5], table, draws=100, seed=0)
    assert (meter["patches"] == MAX_PATCHES).all()


def test_without_slides_there_is_no_result_and_the_text_says_so():
    table, values = cohort()
    none = table.assign(slide=pd.array([pd.NA] * len(table), dtype="string"))
    assert measure_leakage(values, none, draws=100, seed=0) is None
    assert "cannot be measured" in leakage_words(None)


@pytest.mark.parametrize("inferred", [False, True])
def test_the_text_states_the_numbers(inferred):
    table, values = cohort(slides=16, each=12)
    if inferred:
        table["slide"] = "(inferred " + table["slide"] + ")"
    meter = measure_leakage(values, table, draws=100, seed=0)
    words = leakage_words(meter)
    assert f"{meter['auc'].iloc[0]:.3f}" in words
    assert f"{meter['auc'].iloc[1]:.3f}" in words
    assert ("inferred slides" in words) == inferred


def test_a_label_on_one_slide_only_gives_no_result():
    table, values = cohort(slides=8, each=20)
    table = table.assign(label=((table["slide"] == "s0") & (np.arange(160) % 2 == 0)).astype(int))
    split = assign_splits(table.assign(group="patch:" + table["patch_id"]), test_share=0.2, folds=3, seed=0)
    assert measure_leakage(values, split, draws=100, seed=0) is None
    assert "cannot be measured" in leakage_words(None)


def test_fewer_slides_than_folds_give_a_result():
    table, values = cohort(slides=12, each=20)
    table["slide"] = "s" + (np.arange(240) // 60).astype(str).astype(object)
    split = assign_splits(table.assign(group="patch:" + table["patch_id"]), test_share=0.2, folds=5, seed=0)
    assert measure_leakage(values, split, draws=100, seed=0)["slides"].tolist() == [4, 4, 4]


def test_new_folds_are_made_if_a_label_is_in_one_fold_only(monkeypatch):
    table, values = cohort(slides=12, each=20, leak=False)
    monkeypatch.setattr("histoblend.pipelines.analysis.leakage.MAX_PATCHES", 30)
    train = np.flatnonzero(table["split"] == "train")
    drawn = table.iloc[np.sort(np.random.default_rng(0).choice(train, 30, replace=False))]
    rare = drawn.groupby("slide")["patch_id"].first().index[:2]
    # Among the drawn patches, tumour occurs on two slides only, both in fold 0.
    table["label"] = np.where(table["slide"].isin(rare), 1, 0)
    table.loc[table["slide"].isin(rare), "fold"] = 0
    assert measure_leakage(values, table, draws=100, seed=0)["patches"].tolist() == [30] * 3

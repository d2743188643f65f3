import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from histoblend.models.inspection.importance import GROUPS, fitted_importance
from histoblend.models.inspection.importance_stability import agreement, fold_stability, kendall_w


@pytest.mark.parametrize(
    ("ratings", "w"),
    [
        # Siegel (1956), chapter 9: three executives rank six applicants; rank sums 8, 14, 11, 11, 11, 8; W = .16.
        ([[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]], 25.5 / 157.5),
        # The same chapter, with ties: S = 591, corrected for ties W = 591 / (742.5 - 28.5) = .828.
        (
            [
                [1, 4.5, 2, 4.5, 3, 7.5, 6, 9, 7.5, 10],
                [2.5, 1, 2.5, 4.5, 4.5, 8, 9, 6.5, 10, 6.5],
                [2, 1, 4.5, 4.5, 4.5, 4.5, 8, 8, 8, 10],
            ],
            591 / 714,
        ),
        ([[1, 2, 3], [10, 20, 30], [0.1, 0.2, 9]], 1.0),
        ([[1, 2], [2, 1]], 0.0),
        ([[1, 1, 1], [2, 2, 2]], np.nan),
    ],
    ids=["Siegel's executives", "Siegel's ties", "all agree", "all disagree", "all items tied"],
)
def test_kendalls_w(ratings, w):
    assert kendall_w(np.array(ratings)) == pytest.approx(w, nan_ok=True)


@settings(max_examples=30)
@given(st.integers(3, 9), st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_kendalls_w_is_friedmans_statistic_over_its_maximum(raters, items, seed):
    """SciPy's Friedman test corrects for ties too; chi-squared = raters (items - 1) W."""
    ratings = np.random.default_rng(seed).integers(0, 5, (raters, items))
    if all(len(set(row)) == 1 for row in ratings.tolist()):
        return
    assert kendall_w(ratings) == pytest.approx(friedmanchisquare(*ratings.T).statistic / (raters * (items - 1)))


def test_kendalls_w_refuses_one_rater():
    with pytest.raises(ValueError, match=r"got \(1, 4\)"):
        kendall_w(np.ones((1, 4)))


def test_stability_of_folds_by_feature_and_by_family():
    folds = np.array([[3.0, -1.0, 2.0, 0.0], [-6.0, 2.0, 4.0, 1.0], [3.0, 1.0, 2.0, 0.5]])
    rows = fold_stability(folds, {"colour": [0, 3], "nuclei": [1, 2]}, model="m", measure="coefficient")
    assert [row["level"] for row in rows] == ["feature", "family"]
    assert rows[0]["w"] == pytest.approx(1.0)  # the sign of a coefficient does not affect its rank
    # Shares of colour: 3/6, 7/13, 3.5/6.5: one tie, then the same order twice.
    assert rows[1]["w"] == pytest.approx(kendall_w(np.array([[1, 1], [2, 1], [2, 1]])))
    assert (rows[1]["raters"], rows[1]["items"]) == (3, 2)


def test_agreement_of_every_pair_of_measures():
    names = [f"colour_q{i}_red_whole" for i in range(5)]
    values = {
        "permutation": [4.0, 3.0, 2.0, -1.0, 0.0],
        "gain": [0.1, 0.2, 0.3, 0.4, 0.0],
        "coefficient": [-4.0, 3.0, 2.0, 1.0, 0.0],
    }
    parts = [fitted_importance(np.array(each), names, measure=name, model="m") for name, each in values.items()]
    groups = pd.DataFrame(
        [("m", "gain", "theme", name, 2, value, 0, 0, 0) for name, value in [("a", 0.9), ("b", 0.1)]], columns=GROUPS
    )
    family = parts[0].iloc[[0, 0]].assign(feature=None)  # rows of shuffled families are not features
    table = agreement(pd.concat([*parts, family]), groups).set_index(["first", "second"])
    assert set(table.level) == {"feature"}  # two groups are too few for a correlation
    # The last feature is 0 in all measures and is left out.
    assert table["items"].tolist() == [4, 4, 4]
    assert table.correlation["permutation", "gain"] == pytest.approx(-1)
    assert table.correlation["permutation", "coefficient"] == pytest.approx(1)
    assert table.correlation["gain", "coefficient"] == pytest.approx(-1)

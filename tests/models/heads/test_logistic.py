"""Logistic regression: agreement with scikit-learn, and the choice of C."""

import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoblend.data.errors import InputError
from histoblend.models.heads import logistic
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import LogisticHead, tried


def test_logistic_with_one_strength_is_scikit_learns_pipeline(slides):
    X, y, groups = slides
    head = LogisticHead(strengths=(0.01,)).fit(X, y, groups)
    assert head.inner_loss_ == {}
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(X.astype(float), y)
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X.astype(float)), atol=2e-4)


def test_logistic_chooses_its_strength_on_other_slides():
    """Columns that only identify slides look useful on seen slides; by slide, the strongest penalty must win."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    y = (rng.random(600) < np.repeat(rng.uniform(0.02, 0.98, 20), 30)).astype(int)
    X = np.repeat(rng.normal(size=(20, 40)), 30, axis=0) + 0.01 * rng.normal(size=(600, 40))
    by_slide = LogisticHead(strengths=(1e-4, 0.1)).fit(X, y, groups)
    leaky = LogisticHead(strengths=(1e-4, 0.1)).fit(X, y)
    assert by_slide.C_ == 1e-4
    assert leaky.C_ == 0.1


@pytest.mark.parametrize(
    ("losses", "count"),
    [([3, 2, 1, 2, 3, 0], 5), ([3, 2, 1, 2, 1.5, 2, 3, 0], 7), ([1, 2, 3, 0], 3), ([3, 2, 1], 3), ([1, 1, 1, 1], 4)],
)
def test_weaker_penalties_are_tried_until_the_loss_has_risen_twice(losses, count):
    tries = iter(losses)
    found = tried(range(len(losses)), lambda strength: [next(tries) - 0.5, losses[strength] + 0.5])
    assert list(found.values()) == losses[:count]


def test_the_strength_is_chosen_on_a_subset_and_fitted_on_all_rows(slides, monkeypatch):
    X, y, groups = slides
    seen = []
    monkeypatch.setattr(logistic, "inner_folds", lambda *args: seen.append(len(args[0])) or inner_folds(*args))
    head = LogisticHead(choose_on=200).fit(X, y, groups)
    assert seen == [200]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=head.C_, max_iter=2000)).fit(X.astype(float), y)
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X.astype(float)), atol=2e-4)


def test_the_penalty_has_the_same_weight_on_a_subset(slides):
    """With each row repeated four times, choosing on a quarter of the rows equals choosing on the single rows."""
    X, y, groups = (np.repeat(values, 4, axis=0) for values in slides)
    once = LogisticHead(strengths=(0.004, 0.04)).fit(*slides)
    fourfold = LogisticHead(strengths=(0.001, 0.01), choose_on=600).fit(X, y, groups)
    np.testing.assert_allclose(fourfold.coef_, LogisticHead(strengths=(once.C_,)).fit(*slides).coef_, rtol=1e-3)
    assert list(fourfold.inner_loss_.values()) == pytest.approx(list(once.inner_loss_.values()), rel=0.1)


def test_importances_are_the_coefficients(slides):
    linear = LogisticHead().fit(*slides)
    np.testing.assert_array_equal(linear.column_measures()["coefficient"], linear.coef_[0])
    np.testing.assert_array_equal(linear.importances, linear.coef_[0])


def test_a_row_has_the_same_bits_in_any_batch(slides):
    X, y, groups = slides
    wide = np.tile(X, (1, 30))
    head = LogisticHead().fit(wide, y, groups)
    together = head.predict_proba(wide)[:, 1]
    for step in (1, 7, 64):
        parts = [head.predict_proba(wide[start : start + step])[:, 1] for start in range(0, len(wide), step)]
        np.testing.assert_array_equal(np.concatenate(parts), together)


def test_only_its_own_type_is_trusted():
    assert LogisticHead.trusted == (f"{LogisticHead.__module__}.{LogisticHead.__qualname__}",)


def test_a_valid_file_of_another_type_is_refused():
    """Built-in types are trusted, but they are not heads."""
    with pytest.raises(InputError, match=r"x/head.skops: expected a LogisticHead; got dict"):
        LogisticHead.load({"head.skops": skops.io.dumps({"coef_": [1.0]})}, "x")


def test_the_penalty_is_chosen_on_rows_drawn_once_each():
    rows = LogisticHead(choose_on=300).tuning_rows(400)
    assert len(rows) == 300
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] < rows[-1] < 400

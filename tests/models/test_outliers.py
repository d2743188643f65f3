"""Outliers: unusual patches are far away, files keep all numbers, and a row does not depend on others."""

import numpy as np
import pytest

from histoblend.models.outliers import OUTLIER_SHARE, Outliers, learn_outliers


@pytest.fixture(scope="module")
def plane():
    """Patches on a plane in ten dimensions, with a little noise, in five folds."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(2, 10))
    values = rng.normal(size=(1000, 2)) @ axes + 0.05 * rng.normal(size=(1000, 10))
    return axes, values, np.arange(1000) % 5


def test_only_distance_from_the_plane_counts(plane):
    axes, values, folds = plane
    learned = learn_outliers(values, folds, "colour")
    along = np.array([[1.5, -1.5]]) @ axes
    off = np.linalg.svd(axes)[2][-1] * values.std()
    assert learned.distance(along)[0] < 1 < learned.distance(along + off)[0]
    # The threshold comes from held-out folds, so about the intended share is above it.
    assert (learned.distance(values) > 1).mean() == pytest.approx(OUTLIER_SHARE, abs=0.005)


def test_a_large_table_is_learned_from_a_sample(plane, monkeypatch):
    _, values, folds = plane
    whole = learn_outliers(values, folds, "colour")
    monkeypatch.setattr("histoblend.models.outliers.MOST_PATCHES", 400)
    read = []

    class Rows:
        shape = values.shape

        def __getitem__(self, rows):
            read.append(rows)
            return values[rows]

    learned = learn_outliers(Rows(), folds, "colour")
    assert len(np.unique(np.concatenate(read))) == 400
    assert learned.threshold == pytest.approx(whole.threshold, rel=0.2)
    assert (learned.distance(values) > 1).mean() == pytest.approx(OUTLIER_SHARE, abs=0.01)


def test_the_size_of_blocks_changes_no_sum_of_rows(plane, monkeypatch):
    _, values, folds = plane
    stored = values.astype(np.float32)
    monkeypatch.setattr("histoblend.models.outliers._BLOCK", 300)
    learned = learn_outliers(stored, folds, "colour")
    np.testing.assert_array_equal(learned.centre, stored.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(learned.spread, stored.std(axis=0, dtype=np.float64), rtol=1e-12)


def test_a_file_keeps_every_number(plane, tmp_path):
    _, values, folds = plane
    learned = learn_outliers(values, folds, "colour")
    learned.save(tmp_path)
    again = Outliers.from_files({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert again.space == "colour"
    np.testing.assert_array_equal(again.distance(values[:50]), learned.distance(values[:50]))


def test_a_row_does_not_depend_on_other_rows(plane):
    _, values, folds = plane
    learned = learn_outliers(values, folds, "colour")
    alone = [learned.distance(values[row : row + 1])[0] for row in range(30)]
    np.testing.assert_array_equal(learned.distance(values[:30]), alone)


def test_constant_columns_give_finite_distances(plane):
    _, values, folds = plane
    constant = np.column_stack([values, np.zeros(len(values)), np.full(len(values), 7.0)])
    learned = learn_outliers(constant, folds, "colour")
    moved = constant[:1] + np.array([0.0] * 10 + [100.0, 0.0])
    assert np.isfinite(learned.distance(constant)).all()
    assert learned.distance(moved)[0] > 1

"""Fits on blocks of rows of a file: as in memory, with any number of workers."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from histoblend.data.storage.arrays import StoredRows
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.heads.registry import HEADS
from histoblend.models.table_blocks import block_edges
from histoblend.pipelines.engine import fits
from histoblend.pipelines.engine.fits import BlockTask, FitTask, LocalFits, Recent, local_fitters, on_demand, selected
from tests.pipelines.test_third_head import CentroidHead


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(0).normal(size=(900, 5)).astype(np.float32)


@pytest.fixture
def tasks(values):
    """Fits of all heads, without every seventh row, and one without a column."""
    labels = (values[:, 0] + values[:, 3] + values[:, 4] ** 2 > 1).astype(int)
    rows, out, groups = (
        np.flatnonzero(np.arange(900) % 7),
        np.arange(0, 900, 7),
        np.char.mod("s%02d", np.arange(900) // 30),
    )
    kinds = [("logistic", None), ("xgboost", None), ("logistic", np.array([0, 1, 4]))]
    return [FitTask("", head, rows, labels[rows], groups[rows], out, 0, columns) for head, columns in kinds]


def test_blocks_give_the_selected_rows_and_their_sums(values):
    rows, columns = np.array([0, 5, 255, 256, 700, 899]), np.array([1, 4])
    assert len(block_edges(values.shape)) > 3
    table = values
    np.testing.assert_array_equal(selected(table, rows, columns), values[np.ix_(rows, columns)])
    np.testing.assert_array_equal(selected(table, rows, None), values[rows])
    labels = np.array([0, 1, 0, 1, 1, 0])
    task = BlockTask(table, rows, labels, rows, columns)
    sums = task.total("histoblend.models.heads.logistic_sums", "column_moments", np.zeros(2))
    np.testing.assert_allclose(sums[0], values[np.ix_(rows, columns)].sum(axis=0, dtype=float))
    again = task.total("histoblend.models.heads.logistic_sums", "column_moments", np.zeros(2))
    np.testing.assert_array_equal(again, sums)  # in whatever order the blocks were read
    part = task.call("histoblend.models.table_blocks", "keep", np.array([1, 3]), np.array([1]))
    np.testing.assert_array_equal(part, values[[5, 256], 4:])


def test_blocks_that_were_read_last_are_read_first():
    recent = Recent()
    assert list(recent.order(4)) == [0, 1, 2, 3]
    assert list(recent.order(4)) == [3, 2, 1, 0]
    first = recent.order(4)
    assert [next(first), next(first)] == [0, 1]
    second = recent.order(4)
    assert [next(second), next(first), next(second), next(second)] == [1, 2, 2, 0]  # follows, then uses what is left
    assert [*first, *second] == [3, 3]


def test_workers_and_files_do_not_change_fits_in_blocks(tmp_path, values, tasks, monkeypatch):
    monkeypatch.setattr(fits, "IN_MEMORY_ROWS", 0)
    np.save(tmp_path / "values.npy", values)
    stored = LocalFits(StoredRows(tmp_path / "values.npy"), list("abcde"), 2)
    alone = list(LocalFits(values, list("abcde"), 1)(tasks))
    for task, (actual, head, _), (expected, _, _) in zip(tasks, stored(tasks), alone, strict=True):
        np.testing.assert_array_equal(actual, expected)
        rows = selected(stored.table, task.out, task.columns)
        np.testing.assert_array_equal(head.predict_proba(rows)[:, 1], actual)
        assert np.corrcoef(actual, values[task.out, 0])[0, 1] > 0.3


def test_fits_in_blocks_agree_with_fits_in_memory(values, tasks, monkeypatch):
    fitter = LocalFits(values, list("abcde"), 1)
    whole = [predicted for predicted, *_ in fitter(tasks)]
    monkeypatch.setattr(fits, "IN_MEMORY_ROWS", 0)
    monkeypatch.setattr(LogisticHead, "fit", None)  # not called
    for expected, (actual, *_) in zip(whole, fitter(tasks), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_a_fitter_is_opened_once_and_only_for_fits():
    seen = []

    @contextlib.contextmanager
    def fitters(name):
        seen.append(f"{name} opened")
        yield lambda tasks: iter([f"{name} {task}" for task in tasks])
        seen.append(f"{name} closed")

    opened = on_demand(fitters, lambda name: [f"column of {name}"])
    with opened("colour") as fitter:
        assert fitter.columns == ["column of colour"]
        assert list(fitter([])) == seen == []
        assert [list(fitter(tasks)) for tasks in ("ab", "c")] == [["colour a", "colour b"], ["colour c"]]
        assert seen == ["colour opened"]
    with opened("stain"):
        assert seen == ["colour opened", "colour closed"]


def test_a_head_that_needs_all_rows_gets_them(values, monkeypatch):
    monkeypatch.setattr(fits, "IN_MEMORY_ROWS", 0)
    monkeypatch.setitem(HEADS, "centroid", f"{CentroidHead.__module__}:CentroidHead")
    rows, labels = np.arange(800), (values[:800, 0] > 0).astype(int)
    predicted, *_ = fits.fit("centroid", values, labels, rows, rows, np.arange(800, 900), 0)
    np.testing.assert_array_equal(predicted, CentroidHead().fit(values[:800], labels).predict_proba(values[800:])[:, 1])


def test_a_joined_table_is_removed_after_its_fits(tmp_path, values):
    checked, scratch = [], tmp_path / "scratch"

    def file(name, folder, workers):
        folder.mkdir()
        np.save(folder / f"{name}.npy", values)
        return folder / f"{name}.npy"

    sets = SimpleNamespace(file=file, columns=lambda name: list("abcde"))
    with local_fitters(sets, 1, scratch, lambda *given: checked.append(given))("both") as fitter:
        np.testing.assert_array_equal(fitter.table[3:9], values[3:9])
        assert fitter.columns == list("abcde")
    assert checked == [("both", (900, 5))]
    assert not scratch.exists()

"""Finished fits are not repeated after an interruption, unless their files were damaged."""

import numpy as np
import pytest

from histoblend.pipelines.engine import fits as fitters
from histoblend.pipelines.engine.kept_fits import FitCache
from histoblend.pipelines.steps.heads import out_of_fold, refit_without
from tests.pipelines.fits import local
from tests.pipelines.steps.test_heads import grouped_table


@pytest.fixture
def fits(monkeypatch):
    """Heads of the fits that are made."""
    made = []

    def counted(*arguments):
        made.append(arguments[0])
        return fit(*arguments)

    fit = fitters.fit
    monkeypatch.setattr(fitters, "fit", counted)
    return made


class InterruptedRunError(Exception):
    """Simulates a kill."""


def interrupt(count):
    raise InterruptedRunError


@pytest.fixture
def table():
    return grouped_table()


@pytest.fixture
def values(table):
    values = np.random.default_rng(1).normal(size=(len(table), 6)).astype(np.float32)
    values[:, 0] += table["label"]
    return values


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_a_finished_fit_is_not_repeated(tmp_path, table, values, fits, head):
    expected, whole = out_of_fold(head, local(values), table, seed=0)
    number = len(fits)
    fits.clear()
    with pytest.raises(InterruptedRunError):
        out_of_fold(head, local(values), table, seed=0, kept=FitCache(tmp_path), model="m", progress=interrupt)
    assert len(fits) == 1
    fits.clear()
    actual, again = out_of_fold(head, local(values), table, seed=0, kept=FitCache(tmp_path), model="m")
    assert len(fits) == number - 1
    np.testing.assert_array_equal(actual, expected)
    assert list(again) == list(whole)
    for fold, fit in whole.items():
        assert fit.measures.keys() == again[fold].measures.keys()
        for name, measured in fit.measures.items():
            np.testing.assert_array_equal(measured, again[fold].measures[name])


@pytest.mark.parametrize("name", ["fits/m-all.npz", "m/head.skops"])
def test_a_damaged_fit_is_repeated(tmp_path, table, values, fits, name):
    expected, _ = out_of_fold("logistic", local(values), table, seed=0, kept=FitCache(tmp_path), model="m")
    stored = (tmp_path / "m" / "head.skops").read_bytes()
    fits.clear()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    actual, _ = out_of_fold("logistic", local(values), table, seed=0, kept=FitCache(tmp_path), model="m")
    assert len(fits) == 1
    np.testing.assert_array_equal(actual, expected)
    assert len((tmp_path / "m" / "head.skops").read_bytes()) == len(stored)


def test_a_refit_without_a_group_is_not_repeated(tmp_path, table, values, fits):
    groups = {"signal": [0, 1], "noise / rest": [2, 3, 4]}
    expected = refit_without(["logistic"], local(values), groups, table, seed=0)
    with pytest.raises(InterruptedRunError):
        refit_without(["logistic"], local(values), groups, table, seed=0, kept=FitCache(tmp_path), progress=interrupt)
    fits.clear()
    actual = refit_without(["logistic"], local(values), groups, table, seed=0, kept=FitCache(tmp_path))
    assert len(fits) == 1
    assert list(actual) == list(expected)
    for name, predicted in expected.items():
        np.testing.assert_array_equal(actual[name], predicted)

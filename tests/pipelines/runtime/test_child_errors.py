"""Errors of workers are passed on: a wrong input unchanged, a lack of disk or memory as one line."""

import importlib
import pickle
import pkgutil

import numpy as np
import pytest

import histoblend
from histoblend.data.errors import InputError
from histoblend.features.extract import NonFiniteError, extract_shards
from histoblend.features.handcrafted.families import compile_kernels
from histoblend.features.handcrafted.transformer import HandcraftedFeatures
from histoblend.features.networks.embeddings import Embeddings, ahead
from histoblend.pipelines.engine.fits import FitTask
from histoblend.pipelines.predict.shards import _run
from histoblend.pipelines.runtime.resources import report_shortages
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.page.static_figures import write_static_figures
from tests.pipelines.fits import local
from tests.pipelines.runtime.failures import WORDS, be_killed, refuse, run_out_of_disk, run_out_of_memory

PIXELS = np.zeros((600, 32, 32, 3), np.uint8)


def by_processes(folder, fail, monkeypatch):
    extract_shards(fail, PIXELS, folder, 1, workers=2)


def by_threads(folder, fail, monkeypatch):
    extract_shards(fail, PIXELS, folder, 1, workers=2, prefer="threads")


def by_fits(folder, fail, monkeypatch):
    monkeypatch.setattr("histoblend.pipelines.engine.fits.fit", fail)
    rows = np.arange(2)
    list(local(np.zeros((2, 1), np.float32), workers=2)([FitTask("a", "logistic", rows, rows, rows, rows, 0)] * 2))


def by_kernels(folder, fail, monkeypatch):
    monkeypatch.setattr("histoblend.features.handcrafted.families._is_cached", lambda family: False)
    monkeypatch.setattr("histoblend.features.handcrafted.families._compile_family", fail)
    compile_kernels(["colour", "lbp"], workers=2)


def by_figures(folder, fail, monkeypatch):
    monkeypatch.setattr("histoblend.reports.page.static_figures._draw_all", fail)
    charts = {"one": Chart("words", (("a", {"data": [], "layout": {}}), ("b", {"data": [], "layout": {}})))}
    write_static_figures(folder, [Section("part", "Part", "", charts=charts)], workers=2)


def by_shards(folder, fail, monkeypatch):
    class Shards:
        make = staticmethod(fail)

    list(_run(Shards(), [(0, 1), (1, 2)], 2))


def by_transformer(folder, fail, monkeypatch):
    monkeypatch.setattr("histoblend.features.handcrafted.families.compute", fail)
    HandcraftedFeatures(["colour"], n_jobs=2).transform(PIXELS)


def by_embedding(folder, fail, monkeypatch):
    embedding = Embeddings(n_jobs=2)
    embedding.compute_ = fail
    embedding.transform(PIXELS)


def by_preparing_ahead(folder, fail, monkeypatch):
    list(ahead(fail, [1, 2, 3], 2))


PROCESSES = [by_processes, by_fits, by_kernels, by_figures]
THREADS = [by_threads, by_shards, by_transformer, by_embedding, by_preparing_ahead]


def case(values):
    return getattr(values, "__name__", None)


@pytest.mark.parametrize("start", [*PROCESSES, *THREADS], ids=lambda start: start.__name__)
def test_a_wrong_input_is_passed_on(tmp_path, monkeypatch, start):
    with pytest.raises(InputError) as caught, report_shortages(tmp_path):
        start(tmp_path, refuse, monkeypatch)
    assert str(caught.value) == WORDS


@pytest.mark.parametrize(
    ("start", "fail", "words"),
    [
        (by_processes, run_out_of_disk, r"^values\.npy: no space is left"),
        (by_threads, run_out_of_disk, r"^values\.npy: no space is left"),
        (by_processes, run_out_of_memory, "^memory ran out"),
        (by_threads, run_out_of_memory, "^memory ran out"),
        (by_processes, be_killed, "^a worker was killed, probably out of memory"),
    ],
    ids=["disk, process", "disk, thread", "memory, process", "memory, thread", "killed"],
)
def test_a_lack_of_disk_or_memory_is_one_line(tmp_path, monkeypatch, start, fail, words):
    with pytest.raises(InputError, match=words) as caught, report_shortages(tmp_path):
        start(tmp_path, fail, monkeypatch)
    assert "\n" not in str(caught.value)


def all_input_errors():
    for module in pkgutil.walk_packages(histoblend.__path__, "histoblend."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds, queue = [], [InputError]
    while queue:
        kinds.append(queue.pop())
        queue += kinds[-1].__subclasses__()
    return [kind for kind in kinds if kind.__module__.startswith("histoblend.")]


def test_every_own_error_survives_pickling():
    kinds = all_input_errors()
    assert len(kinds) >= 3
    errors = [*(kind("words: 'é'.") for kind in kinds), NonFiniteError(1, 2, np.nan, 3)]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        assert (type(again), str(again)) == (type(error), str(error))

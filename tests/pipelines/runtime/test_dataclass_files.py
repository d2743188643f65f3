"""Dataclasses as files: loading returns exactly what was saved."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.reports.page.page import write_html, write_tables
from histoblend.reports.page.section import Chart, PageContent, Section
from histoblend.reports.report import build_sections
from tests.reports.cohorts import make_inputs


@dataclass
class Inner:
    values: np.ndarray
    names: list[str]


@dataclass
class Outer:
    table: pd.DataFrame
    by_model: dict[str, Inner]
    rest: Any


def test_tables_arrays_and_numbers_are_loaded_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"name": ["a", None], "value": rng.normal(size=2)}, index=["x", "y"])
    inner = {name: Inner(rng.normal(size=(3, 2)).astype(np.float32), ["p", "q"]) for name in ("one", "two")}
    rest = {
        "none": None,
        "small": 1e-300,
        "third": 1 / 3,
        "flag": True,
        "mixed": [table, {"deep": np.int8(3)}],
        "empty": [],
    }
    save_dataclass(Outer(table, inner, rest), tmp_path / "view")
    loaded = load_dataclass(tmp_path / "view", Outer, Inner)
    pd.testing.assert_frame_equal(loaded.table, table)
    for name, each in inner.items():
        assert loaded.by_model[name].names == each.names
        assert loaded.by_model[name].values.dtype == np.float32
        np.testing.assert_array_equal(loaded.by_model[name].values, each.values)
    pd.testing.assert_frame_equal(loaded.rest["mixed"][0], table)
    assert loaded.rest["mixed"][1] == {"deep": 3}
    assert {key: loaded.rest[key] for key in ("none", "small", "third", "flag", "empty")} == {
        "none": None, "small": 1e-300, "third": 1 / 3, "flag": True, "empty": [],
    }  # fmt: skip


def test_python_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        save_dataclass(Inner(np.array([object()]), []), tmp_path / "view")


def test_a_page_from_files_is_the_page_from_memory(tmp_path):
    sections = build_sections(make_inputs(3, slides=12, per_slide=20))
    content = PageContent("title", ["a warning"], sections, write_tables(tmp_path / "memory", sections))
    save_dataclass(content, tmp_path / "content")
    read = load_dataclass(tmp_path / "content", PageContent, Section, Chart)
    write_tables(tmp_path / "files", sections)
    pages = [write_html(tmp_path / name, each) for name, each in (("memory", content), ("files", read))]
    assert pages[0].read_bytes() == pages[1].read_bytes()

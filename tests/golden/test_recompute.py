"""A report's numbers against a short script that imports nothing of ours."""

import ast
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from histoblend.reports.evaluation.decisions import decide
from histoblend.reports.evaluation.ladder import ladder
from tests.golden.recompute import Agreement, recompute
from tests.golden.recompute import ladder as recompute_ladder
from tests.reports.cohorts import make_inputs, model_names
from tests.reports.written_report import write_report


@pytest.fixture(scope="module", params=[True, False], ids=["slides and gaps", "no slides"])
def report(request, tmp_path_factory):
    """Predictions, and the folder of a report on them."""
    shape = {"slides": 10, "test_slides": 4, "per_slide": 15, "slide_map": request.param}
    rungs = ("prevalence", "colour", "cnn") if request.param else ("prevalence", "both")
    inputs = make_inputs(3, rungs=rungs, heads=("logistic",), **shape)
    predictions = inputs.predictions
    if request.param:
        predictions = predictions.assign(prob_cnn=predictions.prob_cnn.where(predictions.fold != 2))
    steps = ladder(predictions, model_names(predictions), draws=50)
    decisions = decide(predictions, steps, draws=50)
    folder = tmp_path_factory.mktemp("golden")
    write_report(folder, replace(inputs, predictions=predictions, ladder=steps, decisions=decisions))
    return predictions, folder


def test_the_script_imports_nothing_of_ours():
    tree = ast.parse((Path(__file__).parent / "recompute.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"sys", "pathlib", "numpy", "pandas", "sklearn.metrics"}


def test_every_number_agrees(report):
    found = recompute(*report)
    assert found.faults == []
    assert found.compared > 500


def test_wrong_numbers_are_found(report):
    predictions, folder = report
    wrong = {
        "ladder": "auc",
        "slides": "brier",
        "reliability": "share",
        "calibration": "value",
        "operating-points": "precision",
        "decision-curve": "net_benefit",
    }
    if predictions.slide.isna().all():
        del wrong["slides"]
    before = {table: (folder / f"{table}.csv").read_bytes() for table in wrong}
    for table, column in wrong.items():
        frame = pd.read_csv(folder / f"{table}.csv")
        frame.loc[0, column] += 1e-6
        frame.to_csv(folder / f"{table}.csv", index=False)
    faults = recompute(predictions, folder).faults
    for table, content in before.items():
        (folder / f"{table}.csv").write_bytes(content)
    assert len(faults) == len(wrong)


def test_wrong_numbers_within_slides_are_found(report):
    predictions, folder = report
    table = pd.read_csv(folder / "ladder.csv")
    wrong = ["auc_within", "gain_within", "gain_between", "within_share"]
    last = table.index[-1]
    assert table.loc[last, wrong].isna().all() == predictions.slide.isna().all()
    table.loc[last, wrong] = table.loc[last, wrong].fillna(0.5) + 1e-6
    found = Agreement()
    recompute_ladder(found, predictions, table)
    assert len(found.faults) == len(wrong)

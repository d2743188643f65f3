import pandas as pd
import pytest

from histoblend.pipelines.printed_tables import best_words, show_ladder
from histoblend.reports.evaluation.ladder import ladder
from tests.reports.cohorts import make_predictions, model_names


@pytest.mark.parametrize("known", [True, False], ids=["slides", "no slides"])
def test_the_ladder_shows_the_auc_within_slides_if_slides_are_known(known, monkeypatch):
    predictions = make_predictions(2, slides=8, per_slide=20, rungs=("prevalence", "context"), slide_map=known)
    steps = ladder(predictions, model_names(predictions), draws=50)
    tables, lines = {}, []

    class Run:
        class screen:  # noqa: N801
            table = staticmethod(lambda frame, title: tables.update({title: frame}))
            say = staticmethod(lines.append)

    monkeypatch.setattr("histoblend.pipelines.printed_tables.read_ladder", lambda run: steps)
    for name in ("read_leakage", "read_centres"):
        monkeypatch.setattr(f"histoblend.pipelines.printed_tables.{name}", lambda run: None)
    show_ladder(Run)
    first, *more = tables.values()
    assert ("within" in first) == known
    assert len(more) == (2 if known else 1)
    assert any("AUC within slides is missing" in line for line in lines) != known
    assert any("carries over only if 16 or more patches" in line for line in lines) == known
    if known:
        row = steps[(steps.model == "logistic_context") & (steps.split == "test")].iloc[0]
        expected = f"{row.auc_within:.3f} ({row.auc_within_low:.2f} to {row.auc_within_high:.2f})"
        assert more[1].loc["logistic_context", "AUC, held-out slides"] == expected
        assert more[1].loc["prevalence", "gain within slides"] == ""


def make_ladder(*rows):
    names = ["model", "rung", "split", "auc", "auc_low", "auc_high", "slides", "patches"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize(
    ("slides", "low", "tested", "expected"),
    [
        (7, 0.939, True, "Best: ensemble, AUC 0.961 (0.939–0.983) out of fold, 0.904 on 7 test slides"),
        (0, 0.939, True, "Best: ensemble, AUC 0.961 (0.939–0.983) out of fold, 0.904 on 1,581 test patches"),
        (7, float("nan"), False, "Best: ensemble, AUC 0.961 out of fold"),
    ],
    ids=["slides", "no slides", "no test set"],
)
def test_the_last_line_names_the_best_model_and_its_scores(slides, low, tested, expected):
    ladder = make_ladder(
        ("prevalence", "prevalence", "oof", 0.99, 0.98, 1.0, 29, 2384),
        ("xgboost_lbp", "lbp", "oof", 0.98, 0.98, 1.0, 29, 2384),
        ("xgboost_both", "both", "oof", 0.95, 0.94, 0.97, 29, 2384),
        ("ensemble", "ensemble", "oof", 0.961, low, 0.983, 29, 2384),
        *([("ensemble", "ensemble", "test", 0.904, 0.8, 0.99, slides, 1581)] if tested else []),
        ("xgboost_both", "both", "test", 0.99, 0.8, 0.99, slides, 1581),
    )
    assert best_words(ladder) == expected

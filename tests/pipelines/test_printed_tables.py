import pytest

from histoblend.pipelines.printed_tables import show_ladder
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
    monkeypatch.setattr("histoblend.pipelines.printed_tables.read_leakage", lambda run: None)
    show_ladder(Run)
    first, *more = tables.values()
    assert ("within" in first) == known
    assert len(more) == (2 if known else 1)
    assert any("AUC within slides is missing" in line for line in lines) != known
    if known:
        row = steps[(steps.model == "logistic_context") & (steps.split == "test")].iloc[0]
        expected = f"{row.auc_within:.3f} ({row.auc_within_low:.2f} to {row.auc_within_high:.2f})"
        assert more[1].loc["logistic_context", "AUC, held-out slides"] == expected
        assert more[1].loc["prevalence", "gain within slides"] == ""

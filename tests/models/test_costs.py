"""The cheapest model near the best is chosen for each kind of prediction, and costs are sums of measured parts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from histoblend.data.errors import InputError
from histoblend.models import costs
from histoblend.models.blends import choose_blends
from histoblend.models.bundle import Bundle
from histoblend.models.costs import Rating, choose_fast, model_costs

POINTS = {"sensitivity-0.95": 0.2, "specificity-0.95": 0.6, "best-f1": 0.5, "youden": 0.4}
MEMBERS = {"slides": ["logistic_in-slide", "cnn"], "heat-map": ["logistic_in-slide", "cnn"], "no-slides": ["cnn"]}


@pytest.mark.parametrize(
    ("ratings", "chosen", "why"),
    [
        ([("a", 9, 0.96), ("b", 2, 0.9551), ("c", 1, 0.9549)], "b", "the cheapest within 0.005 of the best, a"),
        ([("a", 9, 0.96), ("b", 2, 0.95)], "a", "no cheaper model is within 0.005 of this best AUC"),
        ([("a", 3, 0.96), ("b", 3, 0.958)], "a", "no cheaper model"),  # equal costs: the better one
        ([("a", 3, 0.96), ("b", 2, 0.96)], "b", "no cheaper model"),  # equal scores: the cheaper one
    ],
)
def test_the_cheapest_model_near_the_best_is_chosen(ratings, chosen, why):
    name, words = choose_fast({rating[0]: Rating(*rating) for rating in ratings})
    assert name == chosen
    assert why in words
    assert f"MODEL=fast chose {chosen}, " in words


def bundle(**change) -> Bundle:
    """A bundle whose ensembles and models have costs and scores."""
    import json

    names = {
        "logistic_in-slide": (2, 0.84),
        "logistic_context": (2.5, 0.93),
        "cnn": (20, 0.925),
        "xgboost_both": (9, 0.89),
    }
    ensembles = {"slides": (22, 0.96), "heat-map": (22, 0.932), "no-slides": (29, 0.921)}
    index = {
        "libraries": {}, "patch": {"size": 96, "resize": "refuse"}, "prevalence": 0.4,
        "features": {"families": [], "code": ""}, "networks": [], "columns": {},
        "models": {
            name: {"columns": name.partition("_")[2] or name, "auc": auc, "auc_low": None, "thresholds": POINTS}
            for name, (_, auc) in names.items()
        },
        "ensembles": {name: {"auc": auc} for name, (_, auc) in ensembles.items()},
        "costs": {name: float(cost) for name, (cost, _) in (names | ensembles).items()},
    }  # fmt: skip
    combiner = {"kind": "mean", "intercept": 0.0, "strength": None, "knots": [], "ranks": []}
    stored = {
        name: {
            "members": members, "slide_means": False,
            "combiner": {**combiner, "weights": [1 / len(members)] * len(members)},
            "calibrator": {"kind": "none", "numbers": {}}, "thresholds": POINTS, "prevalence": 0.4,
        }
        for name, members in MEMBERS.items()
    }  # fmt: skip
    return Bundle(Path("b"), index | change, {"ensemble.json": json.dumps(stored).encode()})


def test_fast_depends_on_what_is_predicted():
    with_slides, without = choose_blends(bundle(), "fast")
    # Near 0.96 there is only the ensemble. Of the models that need no slides the network is best, and cheapest near it.
    assert (with_slides.ensemble, without.name) == ("slides", "cnn")
    assert "chose ensemble, 22.0 core-ms per patch, AUC 0.960" in with_slides.why
    # The ensemble for heat maps is worse, and a head is nearly as good.
    tiled, without = choose_blends(bundle(), "fast", tiled=True)
    assert (tiled.name, without.name) == ("logistic_context", "cnn")
    assert tiled.why.endswith("the cheapest within 0.005 of the best, ensemble (22.0 core-ms, 0.932)")
    assert not choose_blends(bundle(), "ensemble")[0].why


def test_a_fast_model_without_slide_context_predicts_all_patches():
    models = bundle().index["models"]
    models["xgboost_both"]["auc"] = 0.97
    with_slides, without = choose_blends(bundle(models=models), "fast")
    assert with_slides == without
    assert with_slides.name == "xgboost_both"


def test_fast_needs_costs():
    with pytest.raises(
        InputError, match="MODEL=fast needs the costs and scores of the bundle's models; there are none"
    ):
        choose_blends(bundle(costs={}), "fast")


def test_a_choice_costs_its_parts_once(monkeypatch):
    parts = {"flags": 1, "normalising": 2, "context": 4, "table features": 8, "table features-normalised": 16}
    parts |= {"table embeddings-normalised": 32, "table cnn": 64, "one view": 128}
    parts |= {"head cnn": 0, "head logistic_in-slide": 0.1, "head logistic_both-normalised": 0.2}
    parts |= {"head logistic_cnn-context": 0.4}
    monkeypatch.setattr(costs, "_part_costs", lambda *_: parts)
    names = [part.removeprefix("head ") for part in parts if part.startswith("head ")]
    index = {"models": {name: {"columns": name.partition("_")[2] or name} for name in names}}
    predictor = SimpleNamespace(bundle=SimpleNamespace(index=index), outlier_tables=("features",))
    choices = {name: (name,) for name in names} | {"all": names[:3]}
    assert model_costs(predictor, None, choices) == {
        "cnn": 1 + 8 + 64,
        "logistic_in-slide": 1 + 4 + 8 + 0.1,
        "logistic_both-normalised": 1 + 2 + 4 + 8 + 16 + 32 + 0.2,
        "logistic_cnn-context": 1 + 4 + 8 + 128 + 0.4,  # its channels are those of the unturned patch
        "all": 1 + 2 + 4 + 8 + 16 + 32 + 64 + 0.1 + 0.2,
    }

"""The Ladder section: its finding, one row per model, and families alone."""

import numpy as np
import pandas as pd
import pytest

from histoblend.models.metrics import METRICS
from histoblend.reports.evaluation.centres import MEAN, SCORES
from histoblend.reports.page.page import write_page
from histoblend.reports.page.static_figures import picture_of
from histoblend.reports.sections.ladder import ladder_section

CURVES = pd.DataFrame(
    {"model": "logistic_colour", "split": "oof", "false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
)


def row(model, split, auc, gain=(np.nan, np.nan, np.nan), below=None, **changes):
    """A row of a ladder with hand-made numbers."""
    head, _, rung = model.rpartition("_")
    values = {"rung": rung, "head": head or None, "model": model, "split": split, "patches": 100, "slides": 5}
    values |= {"mixed_slides": 3, "within_share": 0.2, "threshold": 0.5, "below": below}
    for name in ("auc_within", *METRICS):
        values |= {name: 0.7, f"{name}_low": 0.6, f"{name}_high": 0.8}
    values |= {"auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.05}
    for name in ("gain", "gain_within", "gain_between"):
        values |= dict(zip((name, f"{name}_low", f"{name}_high"), gain, strict=True))
    return values | {"seconds": 10.0, "seconds_per_1000": 100.0, "peak_mb": 300.0} | changes


@pytest.fixture
def ladder():
    return pd.DataFrame(
        [
            row("prevalence", "oof", 0.45, auc_within=0.5),
            row("prevalence", "test", 0.5, auc_within=0.5),
            row("logistic_colour", "oof", 0.75, (0.3, 0.2, 0.4), "prevalence"),
            row("logistic_colour", "test", 0.7, (0.2, 0.0003, 0.4), "prevalence"),
            row("logistic_handcrafted", "oof", 0.8, (0.05, -0.01, 0.1), "logistic_colour"),
            row("logistic_handcrafted", "test", 0.75, (-0.05, -0.1, -0.01), "logistic_colour"),
            row("logistic_nuclei", "oof", 0.65),
            row("logistic_nuclei", "test", 0.9),
            row("xgboost_nuclei", "oof", 0.6),
            row("xgboost_nuclei", "test", 0.6),
            row("logistic_gabor", "oof", 0.7),
        ]
    )


def test_finding_names_the_best_model_and_says_that_its_gain_is_inconclusive(ladder):
    assert ladder_section(ladder, CURVES, {}).finding == (
        "Logistic regression on all handcrafted features ranks patches best: AUC 0.800 (0.700 to 0.850) out of fold, "
        "0.750 (0.650 to 0.800) on test slides; difference from logistic regression on colour: +0.050 (−0.010 to "
        "+0.100), inconclusive (95 % CI includes 0)."
    )


def test_one_row_per_model_has_both_splits_side_by_side(ladder):
    content = ladder_section(ladder, CURVES, {}).content
    assert content["splits"] == ["out-of-fold", "test"]
    assert [(one["rung"], one["head"]) for one in content["rows"]] == [
        ("Colour", "logistic regression"),
        ("All handcrafted features", "logistic regression"),
    ]
    assert [one["best"] for one in content["rows"]] == [False, True]
    assert [cell["value"] for cell in content["rows"][0]["cells"] if cell["name"] == "auc"] == [0.75, 0.7]
    # 0.0003 is printed as 0.000, so the interval includes 0.
    marks = [[cell["mark"] for cell in one["cells"] if cell["name"] == "gain"] for one in content["rows"]]
    assert marks == [["up", "open"], ["open", "down"]]


def test_the_constant_model_has_no_row_but_its_numbers(ladder):
    content = ladder_section(ladder, CURVES, {}).content
    assert content["constant"] == (
        "out-of-fold AUC 0.450, average precision 0.700, Brier score 0.700; test AUC 0.500, average precision 0.700, "
        "Brier score 0.700"
    )
    assert content["sizes"] == "100 out-of-fold patches of 5 slides and 100 test patches of 5 slides"


def test_families_are_ordered_by_their_best_out_of_fold_auc(ladder):
    content = ladder_section(ladder, CURVES, {"nuclei": (110, 0.5), "gabor": (30, 0.2), "colour": (132, 0.1)}).content
    assert [one["family"] for one in content["alone"]] == ["colour", "Gabor texture", "nuclei"]
    # By head and split. Gabor has no XGBoost and no test scores.
    assert [score[:3] for score in content["alone"][2]["scores"]] == [
        ("logistic regression", "out-of-fold", 0.65),
        ("logistic regression", "test", 0.9),
        ("XGBoost", "out-of-fold", 0.6),
        ("XGBoost", "test", 0.6),
    ]
    assert [score[2] for score in content["alone"][1]["scores"]] == [0.7, None, None, None]
    assert content["alone_words"] == (
        "Best family: “colour” (132 columns), out-of-fold AUC 0.750 with logistic regression. Worst: “nuclei” (110 "
        "columns), out-of-fold AUC 0.650 with logistic regression."
    )


def test_roc_curves_at_first_are_those_of_the_main_models_and_of_the_best(ladder):
    more = {"logistic_both": 0.7, "xgboost_handcrafted": 0.78, "logistic_context": 0.9, "cnn": 0.85}
    table = pd.concat([ladder, pd.DataFrame([row(model, "oof", auc) for model, auc in more.items()])])
    models = [model for model in dict.fromkeys(table.model) if not model.endswith(("nuclei", "gabor"))]
    curves = pd.concat([CURVES.assign(model=model) for model in models])
    chart = ladder_section(table, curves, {}).charts["roc"]
    (_, figure), *_ = chart.variants
    assert [(trace["name"], trace["visible"]) for trace in figure["data"]] == [
        ("colour · logistic", True),
        ("handcrafted · logistic", True),
        ("handcrafted + context · logistic", True),
        ("fine-tuned network", True),
        ("prevalence", "legendonly"),
        ("all features · logistic", "legendonly"),
        ("handcrafted · XGBoost", "legendonly"),
    ]
    # An image has no legend to click on, so it has only these.
    (picture,) = picture_of(figure).legends
    assert len(picture.get_texts()) == 4


def test_without_any_slide_and_test_set_the_table_has_fewer_columns(ladder):
    alone = ladder[ladder.split == "oof"].assign(slides=0, mixed_slides=0, within_share=np.nan, auc_within=np.nan)
    content = ladder_section(alone, CURVES, {}).content
    assert content["splits"] == ["out-of-fold"]
    assert content["sizes"] == "100 out-of-fold patches"
    names = [score["name"] for score in content["scores"]]
    assert names == ["auc", "gain", "average_precision", "brier", "accuracy"]


def test_left_out_centres_are_shown_with_the_mean_first_and_in_a_csv_file(ladder, tmp_path):
    rows = []
    for centre, auc, low in (("<b>a</b>", 0.9, 0.85), ("b", 0.6, np.nan), ("c", np.nan, np.nan), (MEAN, 0.75, 0.7)):
        values = {"model": "logistic_colour", "centre": centre, "patches": 1200, "slides": 9, "prevalence": 0.4}
        for name in SCORES:
            change = -0.8 if name.startswith("change") else 0
            values |= {name: auc + change, f"{name}_low": low + change, f"{name}_high": low + 0.2 + change}
        rows.append(values | {"pooled": 0.97 if centre == MEAN else np.nan})
    section = ladder_section(ladder, CURVES, {}, pd.DataFrame(rows))
    text = write_page(tmp_path, "x", [section]).read_text(encoding="utf-8")
    table = text[text.index('<h3 id="centres">') : text.index('<h3 id="ranking">')]
    assert "mean AUC 0.750 (0.700 to 0.900) over 2 centres; worst centre: b, AUC 0.600." in table
    assert "on the same patches: −0.050 (−0.100 to +0.100), inconclusive" in table
    assert "usual out-of-fold AUC, 0.970" in table
    assert table.count("<tr>") == 1 + 4
    assert table.index(f"<td>{MEAN}</td>") < table.index("&lt;b&gt;a&lt;/b&gt;")
    assert len(pd.read_csv(tmp_path / "centres.csv")) == 4
    assert '<h3 id="centres">' not in write_page(tmp_path, "x", [ladder_section(ladder, CURVES, {})]).read_text()

import re

import pandas as pd
import pytest

from histoblend.reports.model_card import model_card
from histoblend.reports.within_slides import (
    BETWEEN_SLIDES,
    SLIDE_CONTEXT,
    between_words,
    gain_within_words,
    within_words,
)
from tests.reports.cohorts import make_inputs
from tests.reports.written_report import write_report

ROW = {"split": "oof", "patches": 900, "slides": 29, "mixed_slides": 14, "within_share": 0.0346}
TEST = ROW | {"split": "test", "patches": 90, "slides": 7}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            # A network is scored on fewer patches; the share is that of the whole split.
            [ROW | {"patches": 50, "within_share": 0.5}, ROW, TEST | {"mixed_slides": 3, "within_share": 0.16}],
            "from the same slide: 3.5 % of all pairs out of fold (14 of 29 slides contain both classes), and 16.0 % of "
            "all pairs on the test slides (3 of 7 slides contain both classes).",
        ),
        (
            [ROW, TEST | {"mixed_slides": 0, "within_share": 0.0}],
            "contain both classes). It is missing on the test slides: no known slide contains both classes.",
        ),
        (
            [ROW | {"mixed_slides": 0, "within_share": float("nan")}],
            "is missing: no slide is known. Give a slide map (data.slide_map); inferred slides do not count, since "
            "they mix real ones.",
        ),
    ],
    ids=["both", "one", "none"],
)
def test_within_words_say_what_is_counted_or_why_it_is_missing(rows, words):
    assert within_words(pd.DataFrame(rows)).endswith(words)


def test_gain_is_reported_within_and_between_slides():
    nan = float("nan")
    row = {"gain_within": 0.017, "gain_within_low": 0.001, "gain_within_high": 0.036}
    row |= {"gain_between": -0.013, "gain_between_low": nan, "gain_between_high": nan}
    assert gain_within_words(row) == (
        "Difference within slides: +0.017 (95 % CI +0.001 to +0.036). Difference between slides: −0.013."
    )
    unclear = row | {"gain_within_low": 0.0002}
    assert "+0.017 (0.000 to +0.036), inconclusive (95 % CI includes 0)." in gain_within_words(unclear)
    assert gain_within_words(row | {"gain_within": nan}) == ""


@pytest.mark.parametrize("briefly", [True, False])
def test_the_exception_of_slide_context_is_stated_if_a_model_uses_it(briefly):
    rungs = ["prevalence", "colour", "cnn", "ensemble"]
    for more in ([], ["in-slide"], ["cnn-context"], ["both-normalised"]):
        words = between_words(pd.DataFrame({"rung": rungs + more}), briefly=briefly)
        assert "may not carry over to heat maps" in words
        assert ("carries over only if 16 or more patches of a slide" in words) == bool(more)


@pytest.fixture(scope="module", params=[True, False], ids=["slides", "no slides"])
def shown(request, tmp_path_factory):
    """Whether slides are known, the inputs of a report and its text."""
    shape = {"slides": 8, "test_slides": 3, "per_slide": 20, "slide_map": request.param}
    inputs = make_inputs(2, rungs=("prevalence", "colour", "handcrafted", "context"), **shape)
    return request.param, inputs, write_report(tmp_path_factory.mktemp("report"), inputs).read_text(encoding="utf-8")


def test_ladder_shows_scores_and_gains_within_slides_if_slides_are_known(shown):
    known, inputs, text = shown
    table = text[text.index('id="ladder-table"') : text.index("</table>", text.index('id="ladder-table"'))]
    headings = re.findall(r'<th scope="colgroup"[^>]*>([^<]+)</th>', table)
    expected = ["AUC within slides", "Gain within slides", "Gain between slides"]
    assert [name for name in headings if "slides" in name] == (expected if known else [])
    for row in inputs.ladder[inputs.ladder.rung != "prevalence"].to_dict("records"):
        for name in ("auc_within", "gain_within", "gain_between"):
            assert (f'data-value="{row[name]}"' in table) == (not pd.isna(row[name]))
    assert "nan" not in table
    assert (f"{BETWEEN_SLIDES} {SLIDE_CONTEXT}" in text) == known
    assert ("AUC within slides is missing: no slide is known." in text) != known
    assert ("<option" in text and "AUC within slides</option>" in text) == known


def test_model_card_shows_auc_within_slides_next_to_the_auc(shown):
    known, inputs, _ = shown
    content = {
        "run": "x",
        "made": "today",
        "commit": "0123abc",
        "patch": {"size": 96, "pixels": "uint8", "source": "x"},
    }
    content |= {"networks": [], "libraries": {}, "prevalence": 0.4}
    content |= {"learned": {"patches": "train", "count": 160, "slides": 8}}
    content["models"] = {"logistic_context": {"auc": 0.9, "auc_low": 0.8, "auc_high": 0.95}}
    content["ensembles"] = {"no-slides": {"auc": 0.85, "auc_low": None, "auc_high": None}}
    content["costs"] = {"no-slides": 30.04, "logistic_context": 2.5}
    card = model_card(content, inputs.ladder, inputs.predictions, phantom=False)
    row = inputs.ladder[inputs.ladder.model == "logistic_context"].iloc[0]
    within = f"{row.auc_within:.3f} ({row.auc_within_low:.3f} to {row.auc_within_high:.3f})" if known else "–"
    auc = f"{row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})"
    assert f"| logistic_context | out of fold, by slide | {auc} | {within} | " in card
    assert (f"{BETWEEN_SLIDES} {SLIDE_CONTEXT}" in card) == known
    assert ("no slide is known" in card) != known
    assert "| logistic_context | 2.5 | 0.900 (0.800 to 0.950) |\n| ensemble, slides unknown | 30.0 | 0.850 |" in card

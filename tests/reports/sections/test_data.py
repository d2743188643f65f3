"""The Data section: what it shows of the patches, and that text from the data is never markup on the page."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoblend.data.audit.flags import FLAGS
from histoblend.reports.sections.data import AuditView, consequence, example_groups
from tests.reports.cohorts import make_inputs
from tests.reports.written_report import write_report

NASTY = "<img src=x onerror=alert(1)>"


def view(name="S01"):
    summary = pd.DataFrame(
        [
            {
                "flag": flag.name,
                "patches": 4 if flag.name == "blank" else 0,
                "share": 0.01,
                "positive": 0.25 if flag.name == "blank" else np.nan,
                "policy": flag.policies[0] if flag.policies else "drop",
                "dropped": 0,
                "meaning": flag.sentence,
            }
            for flag in FLAGS
        ]
    )
    examples = pd.DataFrame(
        {
            "flag": "blank",
            "patch_id": [f"{name}a", f"{name}b"],
            "slide": name,
            "label": [0, 1],
            "similarity": [np.nan, 1.0],
        }
    ).assign(dropped_by=[np.nan, "blank"])
    slides = pd.DataFrame([{"slide": name, "patches": 9, "dropped": 1, "positive": 0.5}])
    slides[["red", "green", "blue", "nuclei_red", "nuclei_blue", "fibres_red", "fibres_blue"]] = 0.25
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return AuditView(summary, examples, pictures, slides)


@pytest.mark.parametrize(
    ("policy", "patches", "dropped", "words"),
    [
        ("keep", 0, 0, ""),
        ("keep", 5, 0, "kept"),
        ("group", 5, 0, "kept on one side of the split"),
        ("group", 1200, 1100, "1,100 dropped, the others kept on one side of the split"),
        ("group", 5, 5, "5 dropped"),
        ("drop", 5, 3, "3 dropped"),
        ("drop", 5, 0, "dropped for another reason"),
    ],
)
def test_consequences_in_words(policy, patches, dropped, words):
    assert consequence({"policy": policy, "patches": patches, "dropped": dropped}) == words


def test_examples_are_grouped_by_flag():
    (group,) = example_groups(view())
    assert (group["flag"], group["patches"], [card["picture"] for card in group["cards"]]) == ("blank", 4, [0, 1])


def test_page_shows_flags_pictures_slides_and_leakage(tmp_path):
    meter = pd.DataFrame(
        {
            "folds": ["grouped", "random", "inflation"],
            "auc": [0.8, 0.9, 0.1],
            "low": [0.7, 0.85, 0.02],
            "high": [0.88, 0.95, 0.2],
            "patches": 500,
            "slides": 20,
            "inferred": False,
        }
    )
    inputs = make_inputs(3, rungs=("prevalence", "colour"), slides=8, per_slide=20)
    text = write_report(tmp_path, replace(inputs, audit=view(), leakage=meter)).read_text(encoding="utf-8")
    for words in ("bare glass", "S01a", '<b class="wrong">dropped</b>', "Ignoring slides changes the AUC by +0.100"):
        assert words in text
    table = text[text.index('aria-label="Table of flags"') : text.index("flags that no patch has")]
    assert table.count('<th scope="row"') == 1  # "blank"; the other flags are collapsed
    assert f"{len(FLAGS) - 1} flags that no patch has" in text
    assert pd.read_csv(tmp_path / "leakage.csv")["auc"].tolist() == [0.8, 0.9, 0.1]
    assert len(pd.read_csv(tmp_path / "audit.csv")) == len(FLAGS)
    bare = write_report(tmp_path / "bare", inputs).read_text(encoding="utf-8")
    assert "cannot be measured here" in bare
    assert "Unusual patches" not in bare


def test_names_from_the_data_are_escaped(tmp_path):
    inputs = make_inputs(3, rungs=("prevalence", "colour"), slides=8, per_slide=20)
    text = write_report(tmp_path, replace(inputs, audit=view(NASTY))).read_text(encoding="utf-8")
    assert NASTY not in text
    assert "&lt;img src=x" in text


def test_inferred_slides_are_named_as_inferred(tmp_path):
    inputs = make_inputs(3, rungs=("prevalence", "colour"), slides=8, per_slide=20)
    predictions = inputs.predictions.assign(slide="(inferred " + inputs.predictions["slide"] + ")")
    text = write_report(tmp_path, replace(inputs, predictions=predictions)).read_text(encoding="utf-8")
    assert "13 inferred slides" in text
    assert "Every score here is optimistic: slides are inferred" in text

from dataclasses import replace

import pandas as pd
import pytest

from histoblend.data.splits import UNMAPPED
from histoblend.reports.sections.data import data_section, duplicate_words
from histoblend.reports.sections.data_card import KNOWN_CARDS, DataCard, card_line, card_rows, count_words
from tests.reports.cohorts import make_inputs
from tests.reports.sections.test_data import NASTY, view
from tests.reports.written_report import write_report

PREDICTIONS = pd.DataFrame(
    [
        ("a", "train", 1, 0),
        ("a", "train", 0, 0),
        ("b", "train", 0, 1),
        ("c", "test", 1, -1),
        (UNMAPPED, "train", 1, 1),
    ],
    columns=["slide", "split", "label", "fold"],
)


@pytest.mark.parametrize("source", ["kaggle", "pcam"])
def test_the_cards_of_public_data_sets_are_known(source):
    rows = dict(card_rows(KNOWN_CARDS[source], PREDICTIONS, "none"))
    assert "CAMELYON16" in rows["Source"]
    assert (rows["Tissue"], rows["Stain"]) == ("sentinel lymph nodes of patients with breast cancer", "H&E")
    assert rows["Pixel size"] == "0.972 µm per pixel (10×)"
    assert "the centre (32 × 32 pixels) contains tumour" in rows["Label"]


@pytest.mark.parametrize(
    ("stated", "length"),
    [("0.972", "96 px (93 µm)"), ("about 1", "96 px (about 96 µm)"), ("", "96 px"), ("0.25 or 0.5", "96 px")],
)
def test_a_length_has_micrometres_if_the_pixel_size_is_known(stated, length):
    assert DataCard(um_per_pixel=stated).length(96) == length


def test_the_phantom_says_that_it_is_synthetic():
    rows = dict(card_rows(KNOWN_CARDS["phantom"], PREDICTIONS, "none"))
    assert all("synthetic" in rows[name] for name in ("Source", "Tissue", "Stain"))


def test_patches_slides_and_positives_are_counted():
    rows = dict(card_rows(DataCard(set_aside=1200), PREDICTIONS, "none"))
    assert rows["Patches"] == "5 (4 for training, 1 for the test)"
    assert rows["Slides"] == "3, 2 with tumour"  # patches without a slide are not a slide
    assert rows["Positive patches"] == "3 (60.0 %)"
    assert rows["Set aside"].startswith("1,200 files or patches")
    assert [rows[name] for name in ("Source", "Tissue", "Stain", "Pixel size", "Label")] == ["not stated"] * 5
    assert count_words(PREDICTIONS.assign(slide=None)) == "5 patches of unknown slides"
    assert (
        count_words(PREDICTIONS.assign(slide="(inferred 1)")) == "5 patches of 1 inferred slides, 1 of them with tumour"
    )


def test_the_card_in_one_line():
    line = card_line(replace(KNOWN_CARDS["pcam"], set_aside=2), PREDICTIONS)
    assert line.startswith(
        "5 patches of 3 slides, 2 of them with tumour; sentinel lymph nodes of patients with breast cancer, H&E, "
        "0.972 µm"
    )
    assert line.endswith("2 files or patches were set aside.")
    assert "tissue, stain and pixel size not stated. Label: not stated. Source: not stated." in card_line(
        DataCard(), PREDICTIONS
    )


def test_duplicates_in_words():
    found = view()
    assert duplicate_words(None) == "not checked"
    assert duplicate_words(found) == "none"
    summary = found.summary.copy()
    summary.loc[summary.flag == "exact_duplicate", ["patches", "dropped"]] = 1200, 1200
    summary.loc[summary.flag == "near_duplicate", "patches"] = 3
    text = "1,200 exact (1,200 dropped), 3 near (kept on one side of the split)"
    assert duplicate_words(replace(found, summary=summary)) == text


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (0.02, "; a split that ignores slides would inflate the AUC by 0.100."),
        (-0.01, "is inconclusive (95 % CI includes 0)."),
    ],
)
def test_the_finding_counts_slides_and_says_what_a_random_split_does(low, words):
    meter = pd.DataFrame({"auc": [0.8, 0.9, 0.1], "low": [0.7, 0.8, low], "high": [0.9, 0.95, 0.2]})
    meter = meter.assign(patches=4, slides=2, inferred=False)
    finding = data_section(PREDICTIONS, None, meter).finding
    assert finding.startswith("The data are 5 patches of 3 slides, 2 of them with tumour;")
    assert finding.endswith(words)
    assert data_section(PREDICTIONS, None, None).finding.endswith("2 of them with tumour.")


def test_text_of_a_card_is_never_markup(tmp_path):
    inputs = make_inputs(3, rungs=("prevalence", "colour"), slides=8, per_slide=20)
    card = DataCard(*[NASTY] * 6, set_aside=0)
    text = write_report(tmp_path, replace(inputs, data_card=card)).read_text(encoding="utf-8")
    assert NASTY not in text
    assert text.count("&lt;img src=x") >= 9  # five rows of the card, and the line of the first screen

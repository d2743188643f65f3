from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from histoblend.reports.sections.generalise import (
    calibration_words,
    generalise_section,
    label_words,
    shortcut_words,
)
from tests.reports.cohorts import make_learning, make_shortcuts
from tests.reports.written_report import write_section


def gains(slides, patches):
    """The view with these gains (value, low, high) of the best set."""
    view = make_learning()
    table = view.gains.copy()
    for axis, values in (("slides", slides), ("patches", patches)):
        table.loc[(table.axis == axis) & (table.set == "embeddings"), ["gain", "low", "high"]] = values
    return replace(view, gains=table)


@pytest.mark.parametrize(
    ("slides", "patches", "advice"),
    [
        ((0.018, 0.002, 0.030), (0.004, -0.001, 0.009), "Collect more slides: 10 more slides (about 400 patches)"),
        ((0.018, 0.002, 0.030), (0.004, 0.001, 0.009), "Collect more slides:"),
        ((0.004, -0.001, 0.009), (0.018, 0.002, 0.030), "Label more patches of the slides that you have:"),
        ((0.010, 0.002, 0.030), (0.009, 0.001, 0.020), "Label more patches, of any slides:"),
        ((0.010, -0.002, 0.030), (0.001, -0.003, 0.004), "More labels are not shown to help:"),
    ],
    ids=["slides", "mostly slides", "patches", "both", "neither"],
)
def test_the_advice_follows_from_the_gains_and_their_intervals(slides, patches, advice):
    words = label_words(gains(slides, patches))
    assert words["short"].startswith(advice)
    assert "AUC of embeddings on new slides by" in words["short"]
    assert words["short"].count("inconclusive") == (slides[1] < 0) + (patches[1] < 0)


@pytest.mark.parametrize(
    ("slides", "patches", "advice"),
    [
        ((0.004, 0.001, 0.007), (0.010, -0.001, 0.020), "slides that you have are not shown to help."),
        ((0.018, 0.002, 0.030), (0.004, -0.001, 0.009), "slides that you have bring less for the same work."),
        ((0.010, -0.001, 0.020), (0.004, 0.001, 0.007), "patches of more slides are not shown to help."),
        ((0.004, -0.001, 0.009), (0.018, 0.002, 0.030), "patches of more slides bring less."),
    ],
)
def test_only_a_clearly_larger_gain_brings_more(slides, patches, advice):
    assert label_words(gains(slides, patches))["advice"].endswith(advice)


@pytest.mark.parametrize(
    ("axis", "start", "cause"),
    [
        ("slides", "10 more slides (about 400 patches) would change the AUC", "too few patches per slide"),
        ("patches", "400 more patches of the same slides would change the AUC", "too few slides"),
    ],
)
def test_one_curve_gives_its_gain_and_the_other_its_cause(axis, start, cause):
    view = gains((0.018, 0.002, 0.030), (0.018, 0.002, 0.030))
    words = label_words(replace(view, gains=view.gains[view.gains.axis == axis]))["short"]
    assert words.startswith(start)
    assert "by +0.018 (95 % CI +0.002 to +0.030)" in words
    assert cause in words


def with_network(view, auc):
    """The view with a curve of the fine-tuned network, of this AUC on all slides."""
    curve, gains = (table[table.set == "embeddings"].assign(set="cnn") for table in (view.curve, view.gains))
    curve["auc"] += auc - curve["auc"].iloc[-1]
    return replace(view, curve=pd.concat([view.curve, curve]), gains=pd.concat([view.gains, gains]))


@pytest.mark.parametrize(("auc", "first"), [(0.95, "the fine-tuned network"), (0.7, "embeddings")])
def test_a_curve_of_the_network_is_one_more_row_with_its_own_sentence(tmp_path, auc, first):
    section = generalise_section(None, with_network(make_learning(), auc))
    assert f"AUC of {first} on new slides" in section.finding
    text = write_section(tmp_path, section)
    assert "AUC of the fine-tuned network on new slides by +0.020 (95 % CI +0.010 to +0.030)" in text
    assert "two random draws of each size" in text
    assert [row["words"] for row in section.content["learning"]["rows"]][-1] == "fine-tuned network"
    assert "fine-tuned" not in write_section(tmp_path / "without", generalise_section(None, make_learning()))


def test_without_enough_sizes_there_is_no_forecast():
    view = make_learning()
    assert "Too few slides" in label_words(replace(view, gains=view.gains[:0]))["short"]
    assert generalise_section(None, replace(view, gains=view.gains[:0])).content["learning"]


def test_shortcuts_are_named_only_with_an_interval_above_zero():
    table = make_shortcuts()
    words = shortcut_words(table)
    assert words["shortcut"].startswith("Which slides a patch resembles predicts its label")
    assert "colour 0.80 (0.60 to 1.00)." in words["shortcut"]
    assert words["robustness"] == (
        "Label outweighs slide among neighbours in: nuclei 0.70 (0.60 to 0.80). Slide outweighs label in: colour 0.30 "
        "(0.20 to 0.40). 1 of 3 sets are inconclusive (95 % CI includes 0.5)."
    )
    words = shortcut_words(table.assign(shortcut_low=-0.1))
    assert "inconclusive" in words["shortcut"]
    assert words["shortcut"].endswith("colour 0.80 (−0.10 to 1.00).")
    assert words["first"].startswith("Shortcuts are neither shown nor ruled out")
    words = shortcut_words(table.assign(shortcut=0.1))
    assert words["shortcut"].startswith("No set of columns offers a shortcut")
    assert "so one is possible on others" in words["first"]


def test_sets_that_are_not_measured_are_not_worded():
    table = make_shortcuts()
    words = shortcut_words(table[table.set == "colour"])["recognised"]
    assert words == "The slide of a patch is recognised from colour, 70 % of the time (by chance 3 %)."
    words = shortcut_words(table.assign(recognised=np.nan, shortcut=0.1))
    assert words["recognised"] == ""
    assert words["first"] == "No shortcut is found on these slides."
    words = shortcut_words(table.assign(robustness=np.nan))  # all neighbours are of the same slide
    assert words["shortcut"].startswith("Which slides a patch resembles")


def test_an_ensemble_follows_slides_on_purpose():
    table = make_shortcuts()
    words = shortcut_words(table.assign(set=table.set.replace("colour", "ensemble")))
    assert words["shortcut"].startswith("No set of columns offers a shortcut")
    assert words["shortcut"].endswith("so its output follows the slide: ensemble 0.80 (0.60 to 1.00).")


def test_calibration_names_chance_and_slides_with_both_labels():
    words = calibration_words(make_learning())
    assert "is 0.150 on average over 3 slides" in words
    assert "With as many patches per slide, a perfectly calibrated model would have 0.060" in words
    assert "by −0.100 (95 % CI −0.200 to −0.010), from 0.300 (15 slides)" in words
    assert words.endswith("On slides with both labels: −0.050 (−0.100 to +0.010), inconclusive (95 % CI includes 0).")


def test_the_section_has_valid_charts_and_its_tables(tmp_path):
    section = generalise_section(make_shortcuts(), make_learning())
    assert list(section.charts) == ["shortcuts", "learning-curves", "new-slides"]
    for chart in section.charts.values():
        for _, figure in chart.variants:
            go.Figure(figure)
    assert section.finding.startswith("Collect more slides")
    text = write_section(tmp_path, section)
    for name in ("shortcuts", "learning-curve", "label-gains", "slide-calibration", "new-slide-recalibration"):
        assert (tmp_path / f"{name}.csv").is_file()
    assert text.index("More slides, or more patches?") < text.index("Tumour or slide?")


@pytest.mark.parametrize("omitted", [True, False])
def test_a_baseline_shows_the_meter_and_how_to_add_the_rest(tmp_path, omitted):
    section = generalise_section(make_shortcuts(), None, omitted=omitted)
    assert section.finding.startswith("Shortcuts exist")
    assert ("make generalise" in write_section(tmp_path, section)) is omitted


def test_without_slides_of_both_labels_there_is_no_robustness_and_no_chart(tmp_path):
    measured = make_shortcuts().assign(robustness=float("nan"), margin=float("nan"))
    section = generalise_section(measured, None)
    assert not section.charts
    assert section.finding.startswith("Tumour and slide cannot be separated")
    assert "Tumour or slide?" in write_section(tmp_path, section)


def test_without_slides_the_section_says_what_it_needs():
    assert "data.slide_map" in generalise_section(None, None).absent

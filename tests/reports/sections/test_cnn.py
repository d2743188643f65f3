"""The section on the fine-tuned network: learning curves, shares by hand, and words that match the numbers."""

import base64
import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.models.inspection.saliency import Maps
from histoblend.models.inspection.saliency_checks import sanity_table
from histoblend.reports.evaluation.saliency import SaliencyView
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.cnn import (
    CIVIDIS,
    CnnView,
    cnn_section,
    heat_uri,
    learned,
    learning_curves,
    learning_words,
    sanity_summary,
    sanity_words,
    share_table,
    share_words,
    slide_mean,
)
from tests.reports.cohorts import make_patches, make_predictions

OUTCOMES = ["true positive", "false negative", "false positive", "true negative"]


@pytest.fixture
def history():
    """Two folds, the second with its best epoch at 0, and training on all slides, which has no validation."""
    rows = [("0", 0, np.nan, 0.80, True), ("0", 1, 0.5, 0.85, True), ("0", 2, 0.4, 0.84, False)]
    rows += [("1", 0, np.nan, 0.90, True), ("1", 1, 0.6, 0.88, False)]
    rows += [("final", 0, np.nan, np.nan, True), ("final", 1, 0.55, np.nan, True)]
    return pd.DataFrame(rows, columns=["run", "epoch", "loss", "auc", "kept"])


def make_view(predictions, seed=0, inner=True, slides=None):
    """Random maps of 40 patches, ten of each outcome, with shares around a quarter."""
    rng = np.random.default_rng(seed)
    table = predictions.iloc[:40][["patch_id", "slide"]].reset_index(drop=True)
    if slides is not None:
        table["slide"] = slides
    outcome = np.repeat(OUTCOMES, 10)
    label = np.isin(outcome, ["true positive", "false negative"]).astype(int)
    table = table.assign(label=label, outcome=outcome, prob_cnn=rng.random(40), sampled=True)
    table["shown"] = np.arange(40) % 10 < 3
    for name in ("last", "grad-cam", "inner") if inner else ("last", "grad-cam"):
        table[f"share_{name}"] = rng.uniform(0.2, 0.3, 40)
        table[f"share_{name}_within"] = rng.uniform(0.2, 0.3, 40)
    names = [(name, part) for name in ("last", "inner")[: 1 + inner] for part in ("head", "top", "whole", "other")]
    sanity = pd.concat(
        [
            table[["patch_id", "slide"]].assign(
                map=name, part=part, draw=draw, rank=abs(rng.normal(0, 0.1, 40)), structure=rng.normal(0, 0.1, 40)
            )
            for name, part in names
            for draw in range(2)
        ],
        ignore_index=True,
    )
    facts = {"threshold": 0.4, "intercept": -1.0, "held_out": 581, "side": 96, "checked": 40, "d4": True}
    cells = {"last": [6, 6], "inner": [12, 12]} if inner else {"last": [6, 6]}
    shown = int(table.shown.sum())
    last, fine = rng.normal(size=(shown, 6, 6)), rng.normal(size=(shown, 12, 12)) if inner else None
    return SaliencyView(table, sanity, last, fine, facts | {"cells": cells})


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(1, slides=10, test_slides=4, per_slide=20, rungs=("prevalence", "both"))


def test_kept_epoch_is_the_last_that_was_best_so_far(history):
    table = learned(history).set_index("run")
    assert table.kept.to_dict() == {"0": 1, "1": 0, "final": 1}
    assert table.gain["0"] == pytest.approx(0.05)
    assert table.gain["1"] == 0
    text = learning_words(learned(history))
    assert "In 1 of 2 folds, an epoch of fine-tuning was kept. In the others, the head alone was best." in text
    assert "differs from that of the head alone by +0.025 on average" in text
    assert "cnn.epochs" not in text


def test_curves_have_one_line_per_fold_with_a_ring_around_the_kept_epoch(history):
    figure = learning_curves(history, "auc", "AUC")
    assert [trace["name"] for trace in figure["data"]] == ["fold 1", "fold 2"]
    assert figure["data"][0]["y"] == [0.8, 0.85, 0.84]
    assert figure["data"][0]["marker"]["symbol"] == ["circle", "circle-open", "circle"]
    loss = learning_curves(history, "loss", "loss")
    assert [trace["x"] for trace in loss["data"]] == [[1, 2], [1], [1]]
    assert loss["data"][-1]["name"] == "all training slides"


def test_shares_are_means_by_outcome_and_label(predictions):
    view = make_view(predictions)
    view.patches.loc[0, "share_last"] = np.nan
    table = share_table(view, draws=200, seed=0).set_index(["map", "outcome"])
    rows = view.patches
    expected = rows.share_last[1:10].mean()
    row = table.loc[("last", "true positive")]
    assert row["share"] == pytest.approx(expected)
    assert row["none"] == 1
    assert row["patches"] == 10
    assert row["area"] == pytest.approx(1 / 9)
    assert row["within_area"] == pytest.approx(1 / 4)
    assert table.loc[("inner", "negative"), "share"] == pytest.approx(rows.share_inner[20:].mean())
    assert table.loc[("inner", "positive"), "within_area"] == pytest.approx(16 / 100)
    some = view.patches.assign(sampled=view.patches.index < 20)
    part = SaliencyView(some, view.sanity, view.last, view.inner, view.facts)
    assert np.isnan(share_table(part, draws=50, seed=0).set_index(["map", "outcome"]).share["last", "negative"])


def test_interval_of_a_mean_resamples_slides():
    values = pd.Series([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, np.nan])
    slides = pd.Series(["a", "a", "b", "b", "c", "c", "d"])
    mean, low, high = slide_mean(values, slides, draws=2000, seed=0)
    assert mean == pytest.approx(4 / 6)
    assert (low, high) == (0.0, 1.0)  # three slides: any of them may be drawn three times
    assert np.isnan(slide_mean(values[:4], slides[:4], draws=10, seed=0)[1])
    assert np.isnan(slide_mean(values[6:], slides[6:], draws=10, seed=0)[0])


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.5, "This is more than the 11 % of evenly spread evidence."),
        (0.01, "This is less than the 11 % of evenly spread evidence."),
        (None, "This is inconclusive: the 95 % CI includes the 11 % of evenly spread evidence."),
    ],
)
def test_words_compare_the_share_with_evenly_spread_evidence(predictions, share, words):
    view = make_view(predictions, slides=[f"S{i % 12}" for i in range(40)])
    values = np.where(np.arange(40) % 12 < 6, 0.0, 0.22) if share is None else np.full(40, share)
    table = view.patches.assign(share_last=values)
    sentences = share_words(
        share_table(SaliencyView(table, view.sanity, view.last, None, view.facts), draws=200, seed=0)
    )
    assert sentences[0].endswith(words)
    assert not any("rough" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (
            0.4,
            "above chance: on positive patches of test slides, without the outermost map cells, 40 % (95 % CI 40 to ",
        ),
        (
            0.1,
            "below chance: on positive patches of test slides, without the outermost map cells, 10 % (95 % CI 10 to ",
        ),
        # An end that is printed as 25 % includes the 25 % of evenly spread evidence.
        (
            0.2541,
            "not shown to differ from chance: on positive patches of test slides, without the outermost map cells, 25 "
            "% (95 % CI 25 to ",
        ),
    ],
)
def test_finding_compares_the_centre_with_chance(predictions, history, share, words):
    view = make_view(predictions, slides=[f"S{i % 8}" for i in range(40)])
    patches = view.patches.assign(share_last_within=share)
    maps = SaliencyView(patches, view.sanity, view.last, view.inner, view.facts)
    finding = cnn_section(CnnView(history, maps), make_patches(predictions), draws=100).finding
    assert finding.startswith(f"The network's evidence for tumour in the labelled centre is {words}")
    assert finding.endswith("of it is inside the centre, against 25 % if it were spread evenly.")


def test_finding_without_enough_slides_or_maps_claims_nothing(predictions, history):
    patches = make_patches(predictions)
    few = make_view(predictions, slides=["a"] * 40)
    finding = cnn_section(CnnView(history, few), patches, draws=20).finding
    assert "not compared with chance" in finding
    assert "95 % CI" not in finding
    assert cnn_section(CnnView(history), patches).finding == "In 1 of 2 folds, an epoch of fine-tuning was kept."


def test_sanity_check_counts_each_patch_once_and_draws_the_right_conclusion(predictions):
    view = make_view(predictions, slides=[f"S{i % 8}" for i in range(40)])
    table = sanity_summary(view.sanity, draws=200, seed=0)
    row = table[(table["map"] == "last") & (table.part == "head")].iloc[0]
    part = view.sanity[(view.sanity["map"] == "last") & (view.sanity.part == "head")]
    assert (row.patches, row.networks) == (40, 2)
    assert row["rank"] == pytest.approx(part["rank"].mean())
    assert row.rank_low < row["rank"] < row.rank_high
    assert row.excess == pytest.approx(
        part["rank"].mean() - view.sanity[(view.sanity["map"] == "last") & (view.sanity.part == "other")]["rank"].mean()
    )
    assert sanity_words(table).startswith("The maps depend on what the network learned")
    alike = view.sanity.assign(rank=view.sanity["rank"] + np.where(view.sanity.part == "top", 0.6, 0))
    text = sanity_words(sanity_summary(alike, draws=200, seed=0))
    assert text.startswith("The maps may show the image rather than what the network learned")
    assert "random weights after the inner map" in text
    # Not similar, but more similar than the network's own maps of two patches.
    apart = view.sanity.assign(rank=view.sanity["rank"] * np.where(view.sanity.part == "other", 0.1, 1))
    assert "but not entirely" in sanity_words(sanity_summary(apart, draws=200, seed=0))
    other = view.sanity.assign(rank=view.sanity["rank"] + np.where(view.sanity.part == "other", 0.9, 0))
    text = sanity_words(sanity_summary(other, draws=200, seed=0))
    assert text.startswith("The maps depend on what the network learned: ")
    assert "not shown to be more similar to them than maps of two patches" in text
    assert "too coarse" in sanity_words(sanity_summary(view.sanity.iloc[:0], draws=10, seed=0))


def test_heat_is_transparent_below_zero_and_strongest_at_the_scale():
    uri = heat_uri(np.array([[-1.0, 0.0], [1.0, 5.0]]), 1.0)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert picture.shape == (2, 2, 4)
    assert picture[0, :, 3].tolist() == [0, 0]
    assert picture[1, :, 3].tolist() == [191, 191]
    assert picture[1, 0, :3].tolist() == CIVIDIS[-1].tolist()


def test_section_without_the_step_or_without_maps_says_so(predictions, history, tmp_path):
    patches = make_patches(predictions)
    section = cnn_section(None, patches)
    assert section.content is None
    text = write_page(tmp_path, "No network", [section]).read_text(encoding="utf-8")
    assert "This run has no fine-tuned network (step 5)" in text
    text = write_page(tmp_path, "No maps", [cnn_section(CnnView(history), patches)]).read_text(encoding="utf-8")
    assert "This report has no maps of where the network looks." in text
    assert "epochs-table" in text


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium")
@pytest.mark.parametrize("inner", [True, False])
def test_maps_overlay_their_patches_and_can_be_hidden(predictions, history, tmp_path, inner):
    from playwright.sync_api import sync_playwright

    section = cnn_section(CnnView(history, make_view(predictions, inner=inner)), make_patches(predictions), draws=100)
    path = write_page(tmp_path, "Network", [section])
    problems = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport={"width": 375, "height": 700})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        cards = page.locator("#cnn .gallery li")
        assert cards.count() == 12
        patch, heat = cards.first.locator("img").first, cards.first.locator("img.heat-last")
        assert heat.is_visible()
        assert patch.bounding_box() == pytest.approx(heat.bounding_box(), abs=1)
        select = page.locator("#cnn .maps select")
        if inner:
            select.select_option("inner")
            assert cards.first.locator("img.heat-inner").is_visible()
        else:
            assert select.locator("option").count() == 2
        select.select_option("none")
        assert page.locator("#cnn img.heat:visible").count() == 0
        assert patch.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        browser.close()
    assert problems == []


def test_maps_that_only_show_the_image_are_detected_with_either_sign(predictions):
    rng = np.random.default_rng(5)
    pictures = rng.normal(size=(12, 6, 6))
    names = predictions.iloc[:12][["patch_id"]].assign(slide=[f"S{i % 4}" for i in range(12)]).reset_index(drop=True)
    drawn = {
        ("head", number): Maps(weight * pictures, None, 0.0) for number, weight in enumerate([1.3, -0.2, 0.7, -2.0])
    }
    table = sanity_table(Maps(pictures, None, 0.0), drawn, names)
    words = sanity_words(sanity_summary(table, draws=100, seed=0))
    assert words.startswith("The maps may show the image")


def test_unknown_slides_are_not_counted(predictions):
    view = make_view(predictions, slides=[None] * 40)
    text = " ".join(share_words(share_table(view, draws=100, seed=0)))
    assert "0 slides" not in text
    assert "rough" not in text

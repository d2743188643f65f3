"""The stain probe: the sample, the altered pixels, and the predictions by the models of a run."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.models.augment import jitter_stains
from histoblend.models.ensemble import Ensemble
from histoblend.models.inspection.stain import VECTORS, StainGroups, shift_curves
from histoblend.models.inspection.stain_shifts import SIGNS, STRENGTHS, alterations, directions, restain, shift
from histoblend.pipelines.analysis import stain
from histoblend.pipelines.analysis.stain import (
    MAX_PATCHES,
    MAX_SLIDES,
    SLIDE_PATCHES,
    choose_sample,
    slide_names,
    why_no_probe,
)
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import patches_of, predictions_of, read_ladder
from tests import ROOT

SMALL = ["data.n=320", "data.slides=16", "split.folds=3", "data.difficulty=0.2", "engine.workers=1"]
SMALL += ['features.families=["colour", "stain", "gabor"]', 'heads.heads=["logistic"]']
SMALL += ['heads.features=["colour", "handcrafted", "context", "families"]', "ensemble.draws=100", "report.draws=200"]


def held_out(sizes, *, positives=None, training=20):
    """A table of held-out slides with the given sizes and numbers of positives, and one training slide."""
    positives = positives or [size // 2 for size in sizes]
    parts = [
        pd.DataFrame({"label": [1] * count + [0] * (size - count), "slide": f"t{number:03d}", "split": "test"})
        for number, (size, count) in enumerate(zip(sizes, positives, strict=True))
    ]
    parts.append(pd.DataFrame({"label": [0, 1] * (training // 2), "slide": "s0", "split": "train"}))
    table = pd.concat(parts).sample(frac=1, random_state=0).reset_index(drop=True)
    return table.assign(patch_id=[f"p{row:05d}" for row in range(len(table))])


@pytest.mark.parametrize(
    ("sizes", "positives", "expected"),
    [
        ([], [], "No slides were held out"),
        ([40], [20], "Only one slide was held out"),
        ([40, 30], [0, 0], "one class only"),
        ([40, 30], [10, 0], ""),
    ],
    ids=["no test set", "one slide", "one class", "enough"],
)
def test_the_reason_is_given_if_stains_cannot_be_shifted(sizes, positives, expected):
    reason = why_no_probe(held_out(sizes, positives=positives))
    assert reason.startswith(expected) or expected in reason
    assert bool(reason) == bool(expected)


def test_the_sample_is_spread_evenly_over_held_out_slides():
    table = held_out([148, 133, 148, 41, 40, 5], positives=[118, 46, 61, 0, 0, 1])
    sample = choose_sample(table, seed=0)
    predicted = table.iloc[sample.rows[: sample.n_predicted]]
    assert set(predicted.split) == {"test"}
    # The small slide provides its 5 patches, the others 21 each of the 112 in total.
    assert predicted.slide.value_counts().to_dict() == {f"t{i:03d}": 21 for i in range(5)} | {"t005": 5}
    share = predicted.groupby("slide").label.mean()
    assert share["t000"] == pytest.approx(118 / 148, abs=1 / 21)
    assert share["t003"] == 0.0
    whole = table.iloc[sample.rows].slide.value_counts()
    assert whole.max() == SLIDE_PATCHES
    assert len(set(sample.rows)) == len(sample.rows)


def test_the_sample_size_is_limited():
    sample = choose_sample(held_out([200] * 120), seed=0)
    assert sample.n_predicted <= MAX_PATCHES
    assert len(sample.rows) <= MAX_SLIDES * SLIDE_PATCHES


def test_patches_without_a_slide_count_as_separate_slides():
    table = held_out([300, 300]).assign(slide=None)
    sample = choose_sample(table, seed=0)
    assert sample.n_predicted == len(sample.rows) == MAX_PATCHES
    assert len(set(slide_names(table.iloc[sample.rows]))) == MAX_PATCHES


def stained(count, seed=0):
    """Patches with random amounts of haematoxylin and eosin, (count, 32, 32, 3) uint8."""
    rng = np.random.default_rng(seed)
    pair = np.array([[0.65, 0.70, 0.29], [0.25, 0.93, 0.27]])
    amounts = rng.dirichlet((0.4, 0.4), (count, 32, 32)) * rng.uniform(0.6, 1.2, (count, 1, 1, 1))
    return np.clip(np.rint(256 * np.exp(-amounts @ pair) - 1), 0, 255).astype(np.uint8)


def test_shifted_stains_equal_the_training_jitter(monkeypatch):
    """The same random numbers give the same pixels in training and in the probe."""
    patches = stained(3)

    class Fixed:
        def __init__(self):
            self.given = iter([np.array([0.1, -0.05, 0.02]), np.array([-0.03, 0.04, 0.01])])

        def uniform(self, low, high, size):
            return next(self.given)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Fixed())
    expected = jitter_stains(patches, 0.1, view=0, seed=0)
    ways = np.tile([[1.0, -0.5, 0.2, -0.3, 0.4, 0.1]], (3, 1))
    np.testing.assert_array_equal(shift(ways, 0.1, 0)(patches), expected)
    np.testing.assert_array_equal(shift(-ways, 0.1, 1)(patches), expected)


def test_a_shift_of_zero_changes_no_level():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(shift(np.zeros((1, 6)), 0.1, 0)(levels), levels)
    np.testing.assert_array_equal(shift(np.ones((1, 6)), 0.0, 0)(levels), levels)


PURPLE = np.array([[0.65, 0.70, 0.29], [0.25, 0.93, 0.27]])
BLUE = np.array([[0.77, 0.60, 0.22], [0.10, 0.95, 0.30]])


def grouped(vectors, letters):
    """Groups of slides s0, s1, … with these stain vectors."""
    flat = pd.DataFrame([np.ravel(pair) for pair in vectors], columns=list(VECTORS))
    names = [f"s{i}" for i in range(len(letters))]
    return StainGroups(flat.assign(slide=names, group=list(letters), prevalence=0.5, patches=9), 0.0, 1.0)


def test_a_restained_patch_has_the_same_amounts_of_the_other_stains():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.05, 0.7, (2, 32, 32, 2))

    def paint(amounts, pair):
        unit = pair / np.linalg.norm(pair, axis=1, keepdims=True)
        return np.clip(np.rint(256 * np.exp(-amounts @ unit) - 1), 0, 255).astype(np.uint8)

    groups = grouped([PURPLE, BLUE, PURPLE, BLUE], "ABAB")
    patches = np.stack([paint(amounts[0], PURPLE), paint(amounts[1], BLUE)])
    expected = np.stack([paint(amounts[0], BLUE), paint(amounts[1], PURPLE)])
    restained = restain(np.array(["s0", "s1"]), groups)(patches)
    # Levels are rounded twice: in the input and in the result.
    assert np.abs(restained.astype(int) - expected).max() <= 2
    assert np.abs(patches.astype(int) - expected).max() > 10
    np.testing.assert_array_equal(restain(np.array(["s0"]), groups)(np.full((1, 8, 8, 3), 255, np.uint8)), 255)


def test_slides_without_two_known_stains_are_unchanged():
    nearly_equal = np.array([[0.65, 0.70, 0.29], [0.651, 0.70, 0.29]])
    groups = grouped([PURPLE, BLUE, nearly_equal, BLUE], "ABAB")
    patches = stained(3)
    restained = restain(np.array(["s0", "s2", "elsewhere"]), groups)(patches)
    assert (restained[0] != patches[0]).any()
    np.testing.assert_array_equal(restained[1:], patches[1:])


def test_the_direction_of_a_slide_does_not_depend_on_other_slides():
    names = np.array(["a", "b", "a", "c"])
    ways = directions(names, seed=0)
    np.testing.assert_array_equal(ways[0], ways[2])
    np.testing.assert_array_equal(ways[1], directions(np.array(["b"]), seed=0)[0])
    assert (ways[0] != ways[1]).all()
    assert (np.abs(ways) <= 1).all()
    assert (directions(names, seed=1) != ways).any()


def redness(pixels):
    """A model that uses the mean red of a patch."""
    return pixels[..., 0].mean((1, 2)) / 255


def roughness(pixels):
    """A model that uses how often the level rises from one pixel to the next, which a stain shift does not change."""
    return (np.diff(pixels[..., 1].astype(int), axis=2) > 0).mean((1, 2))


@pytest.mark.parametrize(("model", "falls"), [(redness, True), (roughness, False)])
def test_a_colour_model_loses_auc_and_a_texture_model_does_not(model, falls):
    """Positives are slightly paler and have another texture. Slides do not differ until their stains are shifted."""
    rng = np.random.default_rng(0)
    slides, each = 8, 12
    labels = np.tile([0, 1], slides * each // 2)
    grey = np.sort(rng.integers(60, 200, (len(labels), 32, 32)), axis=2)
    grey = np.where(labels[:, None, None] == 1, grey, grey[:, :, ::-1]) + 4 * labels[:, None, None]
    noise = rng.integers(-25, 26, grey.shape)
    pixels = np.repeat((grey + noise)[..., None], 3, axis=3).clip(0, 255).astype(np.uint8)
    names = np.repeat([f"s{i}" for i in range(slides)], each)
    parts = []
    for alter in alterations(names, None, 0):
        table = {"patch_id": np.arange(len(labels)).astype(str), "slide": names, "label": labels}
        how = {"alteration": alter.kind, "strength": alter.strength, "draw": alter.draw}
        parts.append(pd.DataFrame({**table, **how, "prob_m": model(alter(pixels))}))
    curves = shift_curves(pd.concat(parts), ["m"], {"m": 0.5}, draws=300).set_index("strength")
    assert curves.auc[0.0] > 0.9
    if falls:
        assert curves.auc.is_monotonic_decreasing
        assert curves.change_high[0.2] < -0.1
    else:
        assert curves.change.abs().max() < 0.01


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = load_config(ROOT / "configs" / "phantom.toml", [*SMALL, "cnn.enabled=false"])
    return plan_run(config, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def probed(run):
    folder, manifest = run.step("stain")
    return pd.read_parquet(folder / "predictions.parquet"), manifest


def test_unaltered_patches_get_the_predictions_of_the_run(run, probed):
    table, manifest = probed
    own = predictions_of(run).set_index("patch_id")
    plain = table[table.strength == 0].set_index("patch_id")
    assert manifest["notes"]["patches"] == len(plain)
    for model in ("logistic_colour", "logistic_handcrafted", "logistic_gabor", "logistic_stain"):
        np.testing.assert_array_equal(plain[f"prob_{model}"], own.loc[plain.index, f"prob_{model}"])
    # All 20 patches of each test slide are in the sample, so slide context is the same as in the run.
    np.testing.assert_allclose(plain["prob_logistic_context"], own.loc[plain.index, "prob_logistic_context"], atol=1e-9)
    # The probe uses the ensemble without slide means.
    stored = json.loads((run.step("ensemble").folder / "ensemble.json").read_text())["heat-map"]
    members = own.loc[plain.index, [f"prob_{name}" for name in stored["members"]]].to_numpy()
    np.testing.assert_allclose(plain["prob_ensemble"], Ensemble.from_dict(stored).predict(members), atol=1e-9)


def test_the_probe_has_every_patch_at_every_strength_in_both_directions(run, probed):
    table, _ = probed
    n = table.patch_id.nunique()
    done = [("shift", 0.0, 0), *(("shift", strength, draw) for strength in STRENGTHS for draw in range(len(SIGNS)))]
    sizes = table.groupby(["alteration", "strength", "draw"]).size().to_dict()
    assert sizes == dict.fromkeys([*done, ("restain", 1.0, 0)], n)
    models = [name for name in predictions_of(run) if name.startswith("prob_") and name != "prob_prevalence"]
    assert [name for name in table if name.startswith("prob_")] == models
    assert np.isfinite(table[models].to_numpy()).all()
    assert set(table.slide) <= set(patches_of(run).table.slide[patches_of(run).table.split == "test"])
    assert not list((run.folder / "analysis" / "stain").glob("work-*"))


def test_the_view_agrees_with_scikit_learn(run, probed):
    table, _ = probed
    steps = pd.DataFrame({"model": ["logistic_colour", "logistic_gabor"], "threshold": [0.5, 0.4]})
    view = stain.stain_view(run, run.step("stain").folder, predictions_of(run), steps)
    row = view.shifted[(view.shifted.model == "logistic_gabor") & (view.shifted.strength == 0.1)].iloc[0]
    parts = [part for _, part in table[table.strength == 0.1].groupby("draw")]
    aucs = [roc_auc_score(part.label, part.prob_logistic_gabor) for part in parts]
    assert row.auc == pytest.approx(np.mean(aucs))
    assert view.absent == ""
    assert view.trained == 0.0
    assert set(view.families.family) == {"colour", "stain", "gabor"}
    assert set(view.scores.model) == {"logistic_colour"}  # single families are left out


def test_the_probe_is_reused(run, probed, capsys):
    again = plan_run(run.config, run.root)
    assert again.step("stain").manifest == run.step("stain").manifest
    assert "stain: up to date" in capsys.readouterr().out


def test_without_held_out_slides_there_is_no_probe(run, tmp_path):
    table = patches_of(run).table.assign(split="train")
    other = plan_run(run.config, run.root)
    other.open("patches", lambda: SimpleNamespace(table=table))
    view = stain.stain_view(other, tmp_path, predictions_of(run), read_ladder(run))
    assert view.shifted is None
    assert view.absent.startswith("No slides were held out")

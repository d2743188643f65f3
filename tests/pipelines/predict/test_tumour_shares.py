"""Heat maps of slides with very little or very much tumour, which are predicted without means over the slide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import histoblend.pipelines.predict.slide
from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import write_phantom_slide
from histoblend.models.blends import choose_blends
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.predict.slide import Geometry, heatmap
from histoblend.pipelines.run_files import BUNDLE
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT

SMALL = ["data.n=600", "data.slides=18", "split.folds=3", "report.draws=100", "report.repeats=1", "name=small"]
SMALL += ["data.difficulty=0.1", "features.families=['colour','cooccurrence','nuclei']", "cnn.enabled=false"]
SMALL += [
    "engine.workers=1",
    "heads.heads=['logistic']",
    "heads.features=['handcrafted','in-slide','context-normalised']",
]
SMALL += ["ensemble.members=['logistic_handcrafted','logistic_in-slide','logistic_context-normalised']"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", SMALL), tmp_path_factory.mktemp("runs"))
    return run.step("bundle").folder / BUNDLE


@pytest.fixture(scope="module", params=[0.02, 0.9])
def slide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    truth = write_phantom_slide(path, width=1300, height=1300, seed=5, difficulty=0.1, share=request.param)
    return SimpleNamespace(path=path, truth=truth, share=request.param)


def scores(bundle: Path, slide: SimpleNamespace, out: Path) -> SimpleNamespace:
    heatmap(bundle, slide.path, out, options=Options(workers=2), geometry=Geometry(), screen=Screen())
    tiles = pd.read_csv(out / "tiles.csv")
    inside = slide.truth.disc(tiles["centre_x"], tiles["centre_y"])
    positive = (tiles["label"] == 1).to_numpy()
    return SimpleNamespace(
        share=inside.mean(),
        auc=roc_auc_score(inside, tiles["probability"]),
        overlap=2 * (inside & positive).sum() / (inside.sum() + positive.sum()),
        brier=float(np.mean((tiles["probability"] - inside) ** 2)),
    )


def test_heat_maps_without_means_over_the_slide_score_as_well(bundle, slide, tmp_path, monkeypatch):
    default = scores(bundle, slide, tmp_path / "map")
    monkeypatch.setattr(
        histoblend.pipelines.predict.slide, "choose_blends", lambda bundle, model, tiled: choose_blends(bundle, model)
    )
    means = scores(bundle, slide, tmp_path / "means")
    assert default.share == pytest.approx(slide.share, abs=0.07)
    # On one slide, its mean is a constant and does not change the ranking.
    assert default.auc > max(0.9, means.auc - 0.002)
    assert default.brier < 0.1
    if slide.share > 0.5:
        # Means are left out because they make normal tissue on such a slide look like tumour.
        assert default.overlap > 0.9
        assert means.brier > default.brier + 0.01


def test_a_share_out_of_range_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"share must be between 0 and 1; got 1\.5"):
        write_phantom_slide(tmp_path / "slide.tif", share=1.5)

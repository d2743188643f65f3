"""The learning curve of the fine-tuned network: what each training sees, and resumed runs."""

from unittest.mock import Mock

import pandas as pd
import pytest

from histoblend.models import finetune
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.steps import learning_network
from histoblend.pipelines.steps.report_inputs import learning_view
from tests import ROOT
from tests.reports.cohorts import make_learning

TINY = [
    "data.n=84",
    "data.slides=14",
    "split.folds=2",
    "cnn.backbone=efficientnet-lite0",
    "cnn.weights=random",
    "cnn.size=32",
    "cnn.epochs=1",
    "cnn.batch=8",
    "cnn.d4=false",
    "report.draws=100",
    "learning.network=true",
    "engine.workers=1",
]


def make_run(root, *settings):
    return plan_run(load_config(ROOT / "configs" / "phantom.toml", [*TINY, *settings]), root)


def test_every_training_sees_other_slides_only_and_is_not_repeated_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_network, "SIZES", 1)
    monkeypatch.setattr(learning_network, "REPEATS", 1)
    trained = []

    def fine_tune(settings, trainable, data, rows, *arguments, **options):
        if len(trained) == 4 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        trained.append(rows)
        tuned, predict = fine_tune_really(settings, trainable, data, rows, *arguments, **options)
        return tuned, lambda held_out: judged.append(held_out) or predict(held_out)

    judged, killed, fine_tune_really = [], [], finetune.fine_tune
    monkeypatch.setattr(finetune, "fine_tune", fine_tune)
    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path).step("learning-network")
    run = make_run(tmp_path)
    step = run.step("learning-network")
    assert len(trained) == step.manifest["notes"]["trainings"] == 6  # all, some slides, some patches; 2 folds
    assert sorted(path.name for path in step.folder.glob("*.*")) == [
        "label-gains.csv", "learning-costs.csv", "learning-curve.csv", "manifest.json",
    ]  # fmt: skip

    table = patches_of(run).table
    table = table[table["split"] == "train"].reset_index(drop=True)
    for rows, held_out in zip(trained, judged, strict=True):
        fold = table["fold"][held_out].iloc[0]
        assert set(held_out) == set(table.index[table["fold"] == fold])
        assert not set(table["slide"][rows]) & set(table["slide"][held_out])
    curve = pd.read_csv(step.folder / "learning-curve.csv")
    assert curve["axis"].tolist() == ["slides", "slides", "patches", "patches"]
    assert (curve["patches"].to_numpy()[[0, 2]] < curve["patches"].max()).all()
    assert curve["auc"].between(0, 1).all()
    assert (pd.read_csv(step.folder / "learning-costs.csv")["seconds"] > 0).all()


def test_the_curve_is_part_of_a_run_on_request_only(tmp_path):
    run, without = make_run(tmp_path), make_run(tmp_path, "learning.network=false")
    assert run.has("learning-network")
    assert not without.has("learning-network")
    # Another step is neither rebuilt nor refused if it is requested later.
    for name, step in run.plan.items():
        assert step.settings(run.config) == step.settings(without.config), name
    step = run.plan["learning-network"]
    same, other = (make_run(tmp_path, setting).config for setting in ("cnn.folds=1", "cnn.epochs=2"))
    assert step.settings(same) == step.settings(run.config) != step.settings(other)


def test_the_report_reads_the_curve_beside_the_others(tmp_path):
    view = make_learning()
    for name, curve, gains in (
        ("learning", view.curve, view.gains),
        (
            "learning-network",
            *(table[table.set == "embeddings"].assign(set="cnn") for table in (view.curve, view.gains)),
        ),
    ):
        (tmp_path / name).mkdir()
        learning_network.write_curves(tmp_path / name, curve, gains)
    view.slides.to_csv(tmp_path / "learning" / "slide-calibration.csv", index=False)
    view.recalibration.to_csv(tmp_path / "learning" / "recalibration.csv", index=False)
    run = Mock(step=lambda name: Mock(folder=tmp_path / name))
    read = learning_view(run)
    assert read.curve["set"].unique().tolist() == ["colour", "embeddings", "cnn"]
    assert read.gains["set"].unique().tolist() == ["colour", "embeddings", "cnn"]
    assert read.curve["seconds"].notna().all()
    run.has = lambda name: name == "learning"
    assert "cnn" not in set(learning_view(run).curve["set"])

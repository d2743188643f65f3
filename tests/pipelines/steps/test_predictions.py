"""Final predictions: each test id once in Kaggle's format, by the code of ``predict``, and computed once."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.pipelines.commands import one_step
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT

QUICK = ["split.folds=2", "features.families=['colour']", "heads.features=['colour','handcrafted','context']"]
QUICK += ["heads.heads=['logistic']", "report.draws=100", "report.repeats=1", "engine.workers=1", "name=k"]


@pytest.fixture
def data(kaggle_folder):
    """Kaggle's layout with nine patches under test/; the fifth file is truncated."""
    folder = kaggle_folder()
    (folder / "test").mkdir()
    rng = np.random.default_rng(3)
    for number in range(9):
        path = folder / "test" / f"{number:02d}{'cd' * 19}.tif"
        Image.fromarray(rng.integers(90, 200, (96, 96, 3), dtype=np.uint8)).save(path)
        if number == 4:
            path.write_bytes(path.read_bytes()[:9000])
    return folder


def finish(data, root):
    run = plan_run(load_config(ROOT / "configs" / "kaggle.toml", [*QUICK, f"data.path='{data}'"]), root)
    one_step(run, "report")
    return run


def test_a_submission_contains_each_test_id_once(data, tmp_path, capsys):
    run = finish(data, tmp_path / "runs")
    said = capsys.readouterr().out
    ids = sorted(path.stem for path in (data / "test").iterdir())
    submission = pd.read_csv(run.folder / "submission.csv")
    assert (run.folder / "submission.csv").read_text().splitlines()[0] == "id,label"
    assert submission["id"].tolist() == ids
    assert submission["label"].between(0, 1).all()
    train = patches_of(run).table[patches_of(run).table["split"] == "train"]
    assert submission["label"][4] == pytest.approx(train["label"].mean())
    assert "1 unlabelled patches could not be read" in said
    final = pd.read_csv(run.folder / "predictions.csv")
    assert list(final) == ["id", "probability", "label", "flags"]
    assert final["id"].tolist() == [name for number, name in enumerate(ids) if number != 4]

    status = predict_folder(
        run.folder / "bundle", data / "test", tmp_path / "out.csv", options=Options(), screen=Screen()
    )
    assert status == 3
    assert (tmp_path / "out.csv").read_bytes() == (run.folder / "predictions.csv").read_bytes()

    capsys.readouterr()
    finish(data, tmp_path / "runs")
    assert "predictions: up to date (8 rows, " in capsys.readouterr().out


def test_without_unlabelled_patches_there_is_no_submission(kaggle_folder, tmp_path):
    run = finish(kaggle_folder(), tmp_path / "runs")
    assert (run.folder / "bundle" / "bundle.json").is_file()
    assert not (run.folder / "submission.csv").exists()

"""`make compare`: the runs it accepts, the folder of the page, and the messages for runs it refuses."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from histoblend.data.errors import InputError
from histoblend.pipelines.__main__ import app
from histoblend.pipelines.comparison import LONGEST, compare, folder_name, known_runs
from histoblend.pipelines.runtime.screen import Screen
from histoblend.reports.evaluation.ladder import ladder
from tests.reports.cohorts import make_predictions, model_names
from tests.reports.evaluation.test_pairing import another


def finish(folder, predictions, **settings):
    """Write the files of a finished run that a comparison reads."""
    (folder / "7-report").mkdir(parents=True)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    ladder(predictions, model_names(predictions), draws=20).to_csv(folder / "ladder.csv", index=False)
    facts = {
        "configuration": {"name": folder.name, "seed": 0, "heads": {"heads": ["logistic"]}} | settings,
        "patches digest": "d1",
        "steps": {"4-heads": {"commit": folder.name, "seconds": 3.0, "libraries": {"numpy": "2"}}},
    }
    (folder / "7-report" / "facts.json").write_text(json.dumps(facts))


@pytest.fixture
def runs(tmp_path):
    predictions = make_predictions(1, slides=8, test_slides=4, per_slide=20, rungs=("prevalence", "both"))
    finish(tmp_path / "plain", predictions)
    finish(tmp_path / "other", another(predictions), seed=3)
    (tmp_path / "begun").mkdir()
    return tmp_path


def test_two_runs_are_compared_on_a_page(runs):
    shown = CliRunner().invoke(app, ["compare", "plain", "other", "--runs", str(runs), "--draws", "100"])
    assert shown.exit_code == 0, shown.output
    folder = runs / "compare-plain-other"
    assert str(folder / "report.html") in shown.output
    assert "other compared with plain: both logistic regression" in shown.output
    assert pd.read_csv(folder / "differences-settings.csv").key.tolist() == ["seed"]
    assert pd.read_csv(folder / "differences-made.csv").key.tolist() == ["4-heads.commit"]
    assert set(pd.read_csv(folder / "paired.csv").model) == {"best", "logistic_both", "xgboost_both"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["runs"] == ["plain", "other"]
    assert "report.html" in manifest["files"]


def test_backbones_are_compared_in_one_table(tmp_path):
    predictions = make_predictions(1, slides=8, test_slides=4, per_slide=20, rungs=("prevalence", "embeddings"))
    for name, made, backbone in (("small", predictions, "a"), ("large", another(predictions), "b")):
        finish(tmp_path / name, made, embeddings={"backbone": [backbone], "size": [224]})
    folder = tmp_path / "small"
    (folder / "3-embeddings").mkdir()
    manifest = {"config": {}, "seed": 0, "files": {}, "rows": 240, "notes": {"core_seconds": 6.0}}
    (folder / "3-embeddings" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "analysis" / "stain" / "view").mkdir(parents=True)
    changes = {"change": [-0.1, -0.3], "change_low": [-0.2, -0.4], "change_high": [0.0, -0.2]}
    shifted = pd.DataFrame({"model": "logistic_embeddings", "alteration": ["shift", "exchange"], **changes})
    shifted.to_parquet(folder / "analysis" / "stain" / "view" / "shifted.parquet")
    compare(["small", "large"], tmp_path, **options(out=tmp_path / "page"))
    table = pd.read_csv(tmp_path / "page" / "backbones.csv").set_index("run")
    assert table.backbone.tolist() == ["a", "b"]
    assert table.loc["small", ["cost", "change", "change_low"]].tolist() == [25.0, -0.3, -0.4]
    assert table.loc["large", ["cost", "change"]].isna().all()
    paired = pd.read_csv(tmp_path / "page" / "paired.csv")
    expected = paired[(paired.model == "logistic_embeddings") & (paired.split == "oof")].auc.item()
    assert table.gain["large"] == expected
    assert "Core-seconds per 1,000" in (tmp_path / "page" / "report.html").read_text()


def options(**changes):
    return {"out": None, "draws": 100, "seed": 0, "screen": Screen()} | changes


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["plain", "othr"], r"got 'othr'\. Did you mean 'other'\?"),
        (["plain", "zzz"], r"got 'zzz'\. Finished runs: other, plain\."),
        (["plain", "begun"], r"got 'begun'\. It has no report yet"),
        (["plain", "../plain"], r"got '\.\./plain'"),
        (["plain"], "2 to 7 different runs; got plain"),
        (["plain", "plain"], "2 to 7 different runs; got plain plain"),
    ],
    ids=["misspelt", "unknown", "unfinished", "elsewhere", "one", "twice"],
)
def test_wrong_names_are_explained(runs, names, words):
    with pytest.raises(InputError, match=words):
        compare(names, runs, **options())


@pytest.mark.parametrize("text", ["{", "[]", '{"configuration": {}, "steps": null}'])
def test_a_broken_run_is_explained(runs, text):
    (runs / "other" / "7-report" / "facts.json").write_text(text)
    with pytest.raises(InputError, match=r"other: expected a finished run with .*Run `make report"):
        compare(["plain", "other"], runs, **options())


def test_a_folder_with_other_files_is_not_changed(runs):
    keep = runs / "mine" / "letter.txt"
    keep.parent.mkdir()
    keep.write_text("dear")
    with pytest.raises(InputError, match="must be new, empty or an older comparison"):
        compare(["plain", "other"], runs, **options(out=keep.parent))
    assert keep.read_text() == "dear"


def test_files_of_the_operating_system_are_ignored(runs):
    out = runs / "empty"
    for name in ("empty/.DS_Store", "empty/Thumbs.db", ".ipynb_checkpoints/predictions.parquet"):
        (runs / name).parent.mkdir(exist_ok=True)
        (runs / name).write_text("")
    assert known_runs(runs) == ["other", "plain"]
    assert compare(["plain", "other"], runs, **options(out=out)) == out / "report.html"


def test_an_older_comparison_is_replaced(runs, tmp_path):
    out = tmp_path / "here"
    compare(["plain", "other"], runs, **options(out=out))
    (out / "stale.csv").write_text("old")
    assert compare(["plain", "other"], runs, **options(out=out)) == out / "report.html"
    assert not (out / "stale.csv").exists()


def test_folder_names_are_limited_and_unique():
    assert folder_name(["a", "b"]) == "compare-a-b"
    names = ["ä" * 60, "b" * 60]
    long_names = {folder_name(names), folder_name(names[::-1]), folder_name([*names, "c"])}
    assert len(long_names) == 3
    assert all(len(name.encode()) <= LONGEST and name.startswith("compare-") for name in long_names)


def test_a_foreign_ladder_is_explained(runs):
    (runs / "other" / "ladder.csv").write_text("model,auc\nx,1\n")
    with pytest.raises(InputError, match=r"other: expected a finished run with .*; got: no column .*head"):
        compare(["plain", "other"], runs, **options())


def test_seven_runs_are_compared(runs):
    predictions = pd.read_parquet(runs / "plain" / "predictions.parquet")
    names = [f"run{number}" for number in range(7)]
    for number, name in enumerate(names):
        finish(runs / name, another(predictions), seed=number)
    page = compare(names, runs, **options(draws=20))
    assert len(list((page.parent / "figures").glob("ladders-*.svg"))) > 1


def test_other_pixels_under_the_same_name_are_not_paired(runs):
    for name, digest in (("plain", "a"), ("other", "b")):
        table = pd.read_parquet(runs / name / "predictions.parquet")[["patch_id"]].assign(sha256=digest)
        (runs / name / "1-patches").mkdir()
        table.to_parquet(runs / name / "1-patches" / "patches.parquet", index=False)
    page = compare(["plain", "other"], runs, **options())
    assert "common patches have different pixels" in page.read_text(encoding="utf-8")


def test_files_of_an_interrupted_comparison_are_removed(runs):
    page = compare(["plain", "other"], runs, **options())
    partial = page.parent.with_name(f".{page.parent.name}.partial")
    partial.mkdir()
    (partial / "stray.csv").write_text("x")
    compare(["plain", "other"], runs, **options())
    assert not (page.parent / "stray.csv").exists()
    assert not partial.exists()

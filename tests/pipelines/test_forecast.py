"""Time left of a command: from earlier runs, scaled by patches and by the speed of this command's steps."""

import json
from types import SimpleNamespace

import pytest

import histoblend.pipelines.forecast
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.forecast import BASELINE_S, Forecast, show_time_left
from histoblend.pipelines.plan import STEPS, Step
from histoblend.pipelines.run import Run
from histoblend.pipelines.runtime.artefacts import FinishedStep, StepResult
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT

KAGGLE = ROOT / "configs" / "kaggle.toml"


def make_step(name, *reads, folds=False):
    settings = (lambda config: {"folds": config.split.folds}) if folds else (lambda config: {})
    return Step(name, name, "pipelines.plan:none", reads, ("pipelines/plan.py",), settings)


def make_run(root, *settings, patches=100, steps=None):
    """A run whose patches are prepared. By default: features, then heads, then a report."""
    steps = steps or [
        make_step("prepare"),
        make_step("features", "prepare"),
        make_step("heads", "features", folds=True),
        make_step("report", "heads", "features"),
    ]
    run = Run(load_config(KAGGLE, ["name=now", *settings]), root, {step.name: step for step in steps})
    run.finished["prepare"] = FinishedStep(root / "now" / "prepare", {"rows": patches, "digest": ""})
    return run


def earlier(root, name, patches, folds=5, **seconds):
    """Manifests of an earlier run."""
    for step, value in {"prepare": 1.0, **seconds}.items():
        folder = root / name / step
        folder.mkdir(parents=True)
        config = {"folds": folds} if step == "heads" else {}
        content = {"rows": patches, "seconds": value, "config": config}
        (folder / "manifest.json").write_text(json.dumps(content))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(histoblend.pipelines.forecast.time, "perf_counter", lambda: now.seconds)
    return now


def finish(forecast, name, seconds, clock):
    with forecast.building(name):
        clock.seconds += seconds
    forecast.run.finished[name] = FinishedStep(forecast.run.folder, {"digest": ""})


def test_times_of_an_earlier_run_are_scaled_by_patches_and_speed(tmp_path, clock):
    earlier(tmp_path, "before", 200, features=60, heads=400, report=40)
    forecast = Forecast(make_run(tmp_path), ["report"])
    # Half as many patches: 30 + 200 + 20 s.
    assert forecast.words(None) == "whole command: about 4 min left"
    finish(forecast, "features", 60, clock)  # twice as long as expected: so will be the others
    assert forecast.words(None) == "whole command: about 7 min left"
    with forecast.building("heads"):
        clock.seconds += 100
        # 300 s of heads and 40 s of the report; or at least what the stage says.
        assert forecast.words(None) == "whole command: about 6 min left"
        assert forecast.words(560) == "whole command: about 10 min left"


def test_steps_without_an_earlier_time_are_named(tmp_path, clock):
    earlier(tmp_path, "before", 100, folds=3, features=60, heads=400, report=40)
    forecast = Forecast(make_run(tmp_path), ["report"])
    assert forecast.words(None) == "whole command: more than 2 min left (time of heads not known yet)"


@pytest.mark.parametrize("patches", [24, 401])
def test_runs_of_quite_another_size_are_not_used(tmp_path, patches):
    earlier(tmp_path, "before", patches, features=60, heads=400, report=40)
    assert Forecast(make_run(tmp_path), ["report"]).words(None) == ""


def test_the_run_itself_comes_first_then_the_most_similar(tmp_path):
    earlier(tmp_path, "other", 110, features=1, heads=1000, report=10)
    earlier(tmp_path, "further", 300, features=1, heads=1, report=1)
    earlier(tmp_path, "now", 50, features=150)
    expected = Forecast(make_run(tmp_path), ["report"]).expected
    assert expected["features"] == (pytest.approx(300), False)
    assert expected["heads"] == (pytest.approx(1000 / 1.1), False)


def test_another_machines_times_need_the_speed_of_this_one(tmp_path, clock):
    steps = [make_step("prepare"), make_step("features", "prepare"), make_step("heads", "features")]
    forecast = Forecast(make_run(tmp_path, patches=2 * 2965, steps=steps), ["heads"])
    assert forecast.words(None) == ""
    finish(forecast, "features", 4 * BASELINE_S["features"], clock)  # twice as slow, on twice the patches
    assert forecast.words(None) == f"whole command: about {4 * BASELINE_S['heads'] / 60:.0f} min left"


def test_an_overrun_slows_the_forecast_down(tmp_path, clock):
    earlier(tmp_path, "before", 100, features=60, heads=60, report=60)
    forecast = Forecast(make_run(tmp_path), ["report"])
    with forecast.building("features"):
        clock.seconds += 180  # expected 60: three times as slow
        assert forecast.words(None) == "whole command: about 6 min left"


def test_finished_steps_are_not_counted_unless_their_inputs_change(tmp_path, monkeypatch):
    monkeypatch.setattr(histoblend.pipelines.forecast, "code_digest", lambda sources: "same")
    monkeypatch.setattr(histoblend.pipelines.forecast, "library_versions", lambda: {})
    earlier(tmp_path, "now", 100, features=60, heads=400, report=40)
    for file in (tmp_path / "now").glob("*/manifest.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"code": "same", "libraries": {}}))
    forecast = Forecast(make_run(tmp_path), ["report"])
    assert forecast.words(None) == ""
    (tmp_path / "now" / "heads" / "manifest.json").write_text("{")
    forecast = Forecast(make_run(tmp_path), ["report"])
    assert forecast.words(None) == "whole command: more than 40 s left (time of heads not known yet)"


def test_a_run_states_step_and_time_left(tmp_path, capsys, monkeypatch):
    earlier(tmp_path, "before", 100, features=60, heads=400, report=40)
    run = make_run(tmp_path)
    monkeypatch.setattr(Step, "builder", property(lambda step: lambda run, folder: StepResult(1)))
    monkeypatch.setattr(Screen, "table", None)
    show_time_left(run, "report")
    run.step("report")
    said = capsys.readouterr().out
    assert "features: running\n  step 2 of 4; whole command: about 8 min left\n" in said
    # Features took no time, but at most a quarter of the earlier time is believed: 100 + 10 s.
    assert "  step 3 of 4; whole command: about 2 min left\n" in said
    assert "  step 4 of 4; whole command: about 10 s left\n" in said


def test_reference_times_are_of_steps():
    assert set(histoblend.pipelines.forecast.BASELINE_S) | set(histoblend.pipelines.forecast.ENSEMBLE_S) == {
        step.name for step in STEPS
    } - {"prepare"}

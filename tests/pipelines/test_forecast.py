"""Time left of a command: from earlier runs, scaled by patches and by the speed of this command's steps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import histoblend.pipelines.forecast
from histoblend.models.names import TABLES
from histoblend.pipelines.commands import FINAL
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.forecast import (
    BASELINE_S,
    ENSEMBLE_S,
    MEASURED_S,
    PATCHES,
    VARIANTS,
    Forecast,
    show_time_left,
)
from histoblend.pipelines.plan import ENSEMBLE_ONLY, STEPS, Step
from histoblend.pipelines.run import Listed, Run
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


@pytest.fixture
def no_reference(monkeypatch):
    """Without times of the reference machine, times grow in proportion to the patches."""
    monkeypatch.setattr(histoblend.pipelines.forecast, "BASELINE_S", {})


def finish(forecast, name, seconds, clock):
    with forecast.building(name):
        clock.seconds += seconds
    forecast.run.finished[name] = FinishedStep(forecast.run.folder, {"digest": ""})


def test_times_of_an_earlier_run_are_scaled_by_patches_and_speed(no_reference, tmp_path, clock):
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


def test_steps_without_an_earlier_time_are_named(no_reference, tmp_path, clock):
    earlier(tmp_path, "before", 100, folds=3, features=60, heads=400, report=40)
    forecast = Forecast(make_run(tmp_path), ["report"])
    assert forecast.words(None) == "whole command: more than 2 min left (time of heads not known yet)"


def test_runs_of_quite_another_size_only_say_how_fast_the_machine_is(tmp_path, clock):
    earlier(tmp_path, "before", 24, features=0.1, heads=400, report=40)  # too short to be measured
    steps = [make_step("prepare"), make_step("features", "prepare")]
    forecast = Forecast(make_run(tmp_path, patches=2965, steps=steps), ["features"])
    assert forecast.expected["features"] == (BASELINE_S["features"][0], True)
    assert forecast.words(None) == (
        "whole command: about 10 s left on two idle cores (this machine's speed is not known yet)"
    )
    earlier(tmp_path, "large", 20000, features=3 * BASELINE_S["features"][1])
    forecast = Forecast(forecast.run, ["features"])
    assert forecast.expected["features"][1] is False
    assert "idle" not in forecast.words(None)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_times_grow_with_the_patches_as_on_the_reference_machine(tmp_path, clock, size):
    names = ["features", "heads", "report"]
    steps = [make_step("prepare"), *(make_step(name, "prepare") for name in names)]
    run = make_run(tmp_path, patches=PATCHES[size], steps=steps)
    expected = Forecast(run, names).expected
    assert {name: expected[name][0] for name in names} == {name: BASELINE_S[name][size] for name in names}
    # Patches prepared in three times the expected time say the speed, once that is long enough to be measured.
    run.finished["prepare"].manifest["seconds"] = 3 * BASELINE_S["prepare"][size]
    words, left = Forecast(run, names).words(None), sum(BASELINE_S[name][size] for name in names)
    if BASELINE_S["prepare"][size] >= MEASURED_S:
        assert words == f"whole command: about {histoblend.pipelines.forecast.duration(3 * left)} left"
    else:
        assert words.startswith(f"whole command: about {left / 60:.0f} min left on two idle cores")


def test_a_time_of_this_machine_grows_as_on_the_reference_machine(tmp_path):
    earlier(tmp_path, "before", 80000, report=10, heads=100)
    steps = [make_step("prepare"), make_step("heads", "prepare", folds=True), make_step("other", "prepare")]
    forecast = Forecast(make_run(tmp_path, patches=PATCHES[2], steps=steps), ["heads", "other"])
    low, high = (np.interp(count, PATCHES, BASELINE_S["heads"]) for count in (80000, PATCHES[2]))
    assert forecast.expected["heads"] == (pytest.approx(100 * high / low), False)
    assert "other" not in forecast.expected


def test_the_time_left_is_stated_once_the_patches_are_counted(tmp_path, clock):
    run = make_run(tmp_path)
    run.finished.clear()
    forecast = Forecast(run, ["features"])
    with forecast.building("prepare"):
        assert forecast.words(None) == ""
        run.listed = Listed(PATCHES[2], 0)
        clock.seconds += 50
        later = BASELINE_S["features"][2]
        for stage_s, left in ((None, BASELINE_S["prepare"][2] - 50 + later), (500, 500 + later)):
            assert forecast.words(stage_s).startswith(f"whole command: about {left / 60:.0f} min left")


@pytest.mark.parametrize(
    ("features", "table"),
    [('["context"]', "features"), ('["embeddings-normalised"]', "embeddings-normalised")],
)
def test_no_patches_are_prepared_to_guess_the_steps(tmp_path, monkeypatch, features, table):
    config = load_config(KAGGLE, [f"heads.features={features}"])
    run = Run(config, tmp_path, {step.name: step for step in STEPS})
    run.leave_out(ENSEMBLE_ONLY)
    run.listed = Listed(100, 10)
    monkeypatch.setattr(Run, "step", None)
    steps = Forecast(run, FINAL).steps
    assert {name for name in steps if name in TABLES} == {table}
    assert {"prepare", "refit", "predictions"} < set(steps)
    assert "centres" not in steps
    assert ("leakage" in steps) == (table == "features")


def test_predictions_take_time_by_unlabelled_patches(tmp_path):
    steps = [make_step("prepare"), make_step("predictions", "prepare")]
    run = make_run(tmp_path, patches=PATCHES[2], steps=steps)
    (run.step("prepare").folder / "unlabelled").mkdir(parents=True)
    run.finished["prepare"].manifest["notes"] = {"unlabelled": 57458}
    assert Forecast(run, ["predictions"]).expected["predictions"] == (BASELINE_S["predictions"][2], True)


def test_the_run_itself_comes_first_then_the_most_similar(no_reference, tmp_path):
    earlier(tmp_path, "other", 110, features=1, heads=1000, report=10)
    earlier(tmp_path, "further", 300, features=1, heads=1, report=1)
    earlier(tmp_path, "now", 50, features=150)
    expected = Forecast(make_run(tmp_path), ["report"]).expected
    assert expected["features"] == (pytest.approx(300), False)
    assert expected["heads"] == (pytest.approx(1000 / 1.1), False)


def test_another_machines_times_need_the_speed_of_this_one(tmp_path, clock):
    steps = [make_step("prepare"), make_step("features", "prepare"), make_step("heads", "features")]
    forecast = Forecast(make_run(tmp_path, patches=PATCHES[2], steps=steps), ["heads"])
    left = (BASELINE_S["features"][2] + BASELINE_S["heads"][2]) / 60
    assert forecast.words(None) == (
        f"whole command: about {left:.0f} min left on two idle cores (this machine's speed is not known yet)"
    )
    finish(forecast, "features", 2 * BASELINE_S["features"][2], clock)  # twice as slow
    assert forecast.words(None) == f"whole command: about {2 * BASELINE_S['heads'][2] / 60:.0f} min left"


def test_an_overrun_slows_the_forecast_down(no_reference, tmp_path, clock):
    earlier(tmp_path, "before", 100, features=60, heads=60, report=60)
    forecast = Forecast(make_run(tmp_path), ["report"])
    with forecast.building("features"):
        clock.seconds += 180  # expected 60: three times as slow
        assert forecast.words(None) == "whole command: about 6 min left"


def test_work_of_a_first_run_does_not_slow_the_forecast_down(no_reference, tmp_path, clock):
    earlier(tmp_path, "before", 100, features=60, heads=60, report=60)
    forecast = Forecast(make_run(tmp_path), ["report"])
    with forecast.building("features"):
        with forecast.run.screen.once():
            clock.seconds += 180
        clock.seconds += 60
        assert forecast.words(None) == "whole command: about 2 min left"
    assert forecast.actual["features"] == 60
    finish(forecast, "heads", 70, clock)  # time of the earlier step counts as before
    assert forecast.actual["heads"] == 70


def test_finished_steps_are_not_counted_unless_their_inputs_change(no_reference, tmp_path, monkeypatch):
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


def test_a_run_states_step_and_time_left(no_reference, tmp_path, capsys, monkeypatch):
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


@pytest.mark.parametrize(("preset", "settings", "times"), VARIANTS)
def test_presets_and_8_bit_embeddings_have_times_of_their_own(tmp_path, preset, settings, times):
    config = load_config(KAGGLE, ["data.path=patches", *settings], preset=preset)
    run = Run(config, tmp_path, {step.name: step for step in STEPS})
    run.listed = Listed(PATCHES[1], 0)
    forecast = Forecast(run, FINAL)
    assert set(forecast.expected) == set(forecast.steps)
    shared = BASELINE_S | (ENSEMBLE_S if config.cnn.enabled else {})
    for name, (seconds, _) in forecast.expected.items():
        assert seconds == pytest.approx((shared | times)[name][1]), name


def test_reference_times_are_of_steps():
    assert set(BASELINE_S) | set(ENSEMBLE_S) == {step.name for step in STEPS}
    assert all(times.keys() <= BASELINE_S.keys() | ENSEMBLE_S.keys() for _, _, times in VARIANTS)

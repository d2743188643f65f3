"""Logging to MLflow: a real server on this machine, a local folder, and failures."""

import hashlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.config import Config, TrackConfig
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.runtime.artefacts import FinishedStep, file_digest
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.report_inputs import facts
from histoblend.pipelines.tracking import DATABASE, TAG, _without_secrets, check_tracking, metrics, parameters, track
from histoblend.reports.evaluation.ladder import ladder
from tests import ROOT
from tests.reports.cohorts import make_predictions, model_names


def lacking(*names):
    """Skip a test if a part of MLflow is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return {"condition": bool(missing), "reason": f"not installed: {', '.join(missing)} (requirements-dev.txt)"}


needs_client = pytest.mark.skipif(**lacking("mlflow", "sqlalchemy", "alembic"))
needs_server = pytest.mark.skipif(
    **lacking("mlflow", "sqlalchemy", "alembic", "flask", "flask_cors", "aiohttp", "graphene")
)


@dataclass
class FinishedRun:
    """The part of a run that tracking uses."""

    folder: Path
    config: Config
    screen: Screen = field(default_factory=Screen)

    def step(self, name):
        """Folder and manifest of the report."""
        assert name == "report"
        files = {path.name: file_digest(path) for path in (self.folder / "7-report").iterdir()}
        digest = hashlib.sha256(str(files).encode()).hexdigest()
        return FinishedStep(self.folder / "7-report", {"files": files, "digest": digest, "commit": "0123abc"})


@pytest.fixture
def finished(tmp_path):
    """A function that returns a finished run with the given tracking settings."""
    folder = tmp_path / "runs" / "mine"
    (folder / "7-report").mkdir(parents=True)
    (folder / "bundle" / "heads").mkdir(parents=True)
    (folder / "7-report" / "report.html").write_text("<!doctype html><p>made up")
    (folder / "7-report" / "ladder.csv").write_text("rung\n")
    (folder / "bundle" / "heads" / "model.json").write_text("{}")
    predictions = make_predictions(1, slides=8, test_slides=4, per_slide=15, rungs=("prevalence", "both"))
    ladder(predictions, model_names(predictions), draws=20).to_csv(folder / "ladder.csv", index=False)

    def make(uri, kind="mlflow"):
        return FinishedRun(folder, Config(name="mine", track=TrackConfig(kind=kind, uri=str(uri), experiment="tests")))

    return make


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a real MLflow server on a free port of this machine."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{(folder / DATABASE).as_posix()}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "startup complete" in line:
            break
    else:
        pytest.fail("the MLflow server did not start:\n" + "".join(lines))
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)


def client(uri):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)


def check_logged(uri, run, output):
    """Check that exactly one finished run is logged, with all its content."""
    mlflow = client(uri)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        number = mlflow.get_experiment_by_name("tests").experiment_id
        (logged,) = mlflow.search_runs([number])
        names = {item.path for item in mlflow.list_artifacts(logged.info.run_id, "report")}
        names |= {item.path for item in mlflow.list_artifacts(logged.info.run_id, "bundle/heads")}
        copy = Path(mlflow.download_artifacts(logged.info.run_id, "report/report.html", str(run.folder)))
    assert logged.info.status == "FINISHED"
    assert logged.info.run_id in output
    assert names == {"report/report.html", "report/ladder.csv", "bundle/heads/model.json"}
    assert copy.read_bytes() == (run.folder / "7-report" / "report.html").read_bytes()
    assert logged.data.params["split.folds"] == "5"
    assert logged.data.params["heads.heads"] == "logistic, xgboost"
    assert not any(key.startswith(("track", "engine")) for key in logged.data.params)
    steps = pd.read_csv(run.folder / "ladder.csv").set_index(["split", "model"])
    for split in ("oof", "test"):
        for name in ("auc", "auc_low", "auc_high", "brier"):
            value = logged.data.metrics[f"{split}/xgboost_both/{name}"]
            assert value == pytest.approx(steps.loc[(split, "xgboost_both"), name])
    assert logged.data.tags["mlflow.runName"] == "mine"
    assert re.fullmatch("[0-9a-f]{64}", logged.data.tags[TAG])
    return logged.info.run_id


@needs_server
def test_a_run_is_logged_to_a_server_once(finished, server, capsys):
    run = finished(server)
    track(run)
    first = check_logged(server, run, capsys.readouterr().out)
    track(run)
    assert f"already logged as run {first}" in capsys.readouterr().out
    check_logged(server, run, first)  # still only one


@needs_client
def test_a_run_is_logged_to_a_local_folder_once(finished, tmp_path, capsys):
    run = finished(tmp_path / "my mlflow")
    track(run)
    output = capsys.readouterr().out
    assert "mlflow server --backend-store-uri sqlite:///" in output
    uri = f"sqlite:///{(tmp_path / 'my mlflow' / DATABASE).as_posix()}"
    check_logged(uri, run, output)
    track(run)
    assert "already logged" in capsys.readouterr().out
    # Another report of the same run is another result.
    (run.folder / "7-report" / "report.html").write_text("changed")
    track(run)
    assert "track: logged as run" in capsys.readouterr().out


@needs_client
def test_a_failed_run_is_marked_and_logged_again(finished, tmp_path, capsys):
    run = finished(tmp_path / "mlflow")
    steps = (run.folder / "ladder.csv").read_bytes()
    (run.folder / "ladder.csv").write_text("rung\n0\n")
    with pytest.raises(InputError, match="the run could not be logged"):
        track(run)
    (run.folder / "ladder.csv").write_bytes(steps)
    track(run)
    assert "track: logged as run" in capsys.readouterr().out


@needs_client
def test_a_server_that_does_not_answer_does_not_affect_results(finished, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        run = finished(f"http://user:secret@127.0.0.1:{free.getsockname()[1]}")
        before = hashlib.sha256((run.folder / "ladder.csv").read_bytes()).hexdigest()
        with pytest.raises(InputError, match=r"All results are in .*mine\. After fixing .* `make report`") as error:
            track(run)
    assert "secret" not in str(error.value)
    assert hashlib.sha256((run.folder / "ladder.csv").read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    "uri",
    ["http://me:se/cret@host/x", "https://host/x?token=secret", "http://me:p@ss-secret@host", "http://secret@host"],
)
def test_secrets_of_an_address_are_not_shown(uri):
    shown = _without_secrets(uri)
    assert "secret" not in shown
    assert "cret@" not in shown
    assert "host" in shown


def test_an_address_without_a_scheme_is_not_a_folder():
    with pytest.raises(InputError, match=r"track\.uri must be http") as error:
        check_tracking(TrackConfig(kind="mlflow", uri="//me:secret@host"))
    assert "secret" not in str(error.value)


def test_nothing_is_logged_by_default(finished, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail("asked for MLflow"))
    track(finished("http://127.0.0.1:9", kind="none"))
    check_tracking(TrackConfig())
    assert capsys.readouterr().out == ""


def test_without_mlflow_the_run_does_not_start(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs mlflow; not installed\. .*requirements-mlflow\.txt"):
        check_tracking(TrackConfig(kind="mlflow", uri="http://127.0.0.1:5000"))
    with pytest.raises(InputError, match="needs mlflow and sqlalchemy and alembic"):
        check_tracking(TrackConfig(kind="mlflow"))
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['mlflow'] = None\n"
         "import importlib.util as util; find = util.find_spec\n"
         "util.find_spec = lambda name: None if name in ('mlflow', 'sqlalchemy', 'alembic') else find(name)\n"
         "sys.argv[1:] = ['baseline', '--set', 'track=mlflow', '--runs', 'nowhere']\n"
         "from histoblend.pipelines.__main__ import main; main()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 2
    assert "requirements-mlflow.txt" in shown.stderr
    assert not (ROOT / "nowhere").exists()


@pytest.mark.parametrize("uri", ["ftp://there", "databricks://x", "http://"])
def test_other_addresses_are_refused(uri):
    with pytest.raises(InputError, match=r"track\.uri must be http://"):
        check_tracking(TrackConfig(kind="mlflow", uri=uri))


def test_tracking_can_be_set_with_one_word(tmp_path):
    config = load_config(ROOT / "configs" / "phantom.toml", ["track=mlflow"])
    assert config.track == TrackConfig(kind="mlflow")
    with pytest.raises(InputError, match=r"track\.kind: Input should be 'none' or 'mlflow'; got 'wandb'"):
        load_config(ROOT / "configs" / "phantom.toml", ["track=wandb"])


def test_parameters_are_all_keys_that_can_change_a_result():
    texts = parameters(Config(seed=3).model_dump(mode="json"))
    assert texts["seed"] == "3"
    assert texts["embeddings.backbone"] == "efficientnet-lite2"
    assert texts["data.positive"] == ""
    assert "track.uri" not in texts
    assert "engine.workers" not in texts


def test_missing_values_are_not_logged():
    predictions = make_predictions(1, slides=8, test_slides=0, per_slide=15, rungs=("prevalence", "both"))
    values = metrics(ladder(predictions, model_names(predictions), draws=20))
    assert "oof/prevalence/auc" in values
    assert "oof/prevalence/gain" not in values  # the lowest rung has no gain
    assert "oof/logistic_both/gain_low" in values
    assert {"oof/prevalence/auc_within", "oof/logistic_both/gain_within", "oof/logistic_both/gain_between"} <= {*values}
    assert not any(key.startswith("test/") for key in values)
    assert all(value == value for value in values.values())


def test_the_report_does_not_contain_the_tracking_address(finished, monkeypatch):
    from types import SimpleNamespace

    from histoblend.pipelines.steps import report_inputs

    monkeypatch.setattr(report_inputs, "finished", lambda run: [])
    monkeypatch.setattr(report_inputs, "balance", lambda table: pd.DataFrame())
    run = finished("http://user:secret@127.0.0.1")
    monkeypatch.setattr(report_inputs, "patches_of", lambda run: SimpleNamespace(table=None, digest="d"))
    assert "secret" not in str(facts(run))

"""Log a finished run to MLflow: parameters, metrics, report and bundle. Only done if ``track.kind`` is "mlflow"."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.pipelines.config import TrackConfig, config_keys
from histoblend.pipelines.run_files import BUNDLE, LADDER
from histoblend.reports.evaluation.ladder import GAINS, SCORES

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Tag with a digest of the run's report, so that the same result is logged only once.
TAG = "histoblend.digest"

#: Database and folder of artefacts in a local tracking folder.
DATABASE, FILES = "mlflow.db", "artifacts"

#: Most parameters, and most metrics, that MLflow accepts per request.
PARAMETER_BATCH, METRIC_BATCH = 100, 1000

#: Environment variables to set before MLflow is imported. They turn off telemetry and printed addresses.
_FIXED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
#: Defaults for environment variables, so that a server that does not answer fails soon.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def check_tracking(options: TrackConfig) -> None:
    """Check that a run can be logged, before any long computation.

    Raises
    ------
    InputError
        MLflow is not installed, or ``track.uri`` is neither an address nor a folder.
    """
    if options.kind == "none":
        return
    target = _resolve(options.uri)
    needed = ["mlflow"] if isinstance(target, str) else ["mlflow", "sqlalchemy", "alembic"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'track.kind = "mlflow" needs {" and ".join(missing)}; not installed. Install the pinned versions: '
            "`.venv/bin/python -m pip install -r requirements-mlflow.txt`, or leave out track.kind."
        )


def track(run: Run) -> None:
    """Log a finished run, unless it is already logged.

    All results are written before. An error here does not affect them.

    Parameters
    ----------
    run : Run
        Report, ladder and bundle must be up to date.

    Raises
    ------
    InputError
        The run could not be logged completely.
    """
    options = run.config.track
    if options.kind == "none":
        return
    check_tracking(options)
    target = _resolve(options.uri)
    try:
        # Warnings from inside MLflow are of no use to the user.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = _log(run, target, options.experiment)
    except Exception as error:
        first = _remove_secrets((str(error).strip().splitlines() or [""])[0], options.uri)
        raise InputError(
            f"{_without_secrets(options.uri)}: the run could not be logged: {type(error).__name__}: {first}. All "
            f"results are in {run.folder}. After fixing the problem, run `make report` with the same settings to log "
            "them."
        ) from error
    run.screen.say(f"track: {line}")


def parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Values of all configuration keys that can change a result, as text, by dotted key."""
    texts = {}
    for key, _ in config_keys():
        value: Any = settings
        section = key.partition(".")[0]
        if section in ("engine", "track"):
            continue
        for part in key.split("."):
            value = value[part]
        texts[key] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return texts


def metrics(ladder: pd.DataFrame) -> dict[str, float]:
    """Values of a ladder as ``<split>/<model>/<metric>``, with ``_low`` and ``_high``; missing ones are left out."""
    names = [name + suffix for name in (*SCORES, *GAINS) for suffix in ("", "_low", "_high")]
    values = {}
    for row in ladder.to_dict("records"):
        for name in (*names, "threshold", "patches", "slides", "seconds", "peak_mb"):
            if not pd.isna(row[name]):
                values[f"{row['split']}/{row['model']}/{name}"] = float(row[name])
    return values


def _resolve(uri: str) -> str | Path:
    """The address of a server, or the path of a local folder."""
    scheme, separator, rest = uri.partition("://")
    if uri.startswith("//"):
        raise InputError(
            f"track.uri must be http://…, https://… or a folder; got //{uri.rpartition('@')[2].lstrip('/')!r}."
        )
    if separator and scheme in ("http", "https") and rest:
        return uri
    if separator and scheme == "file":
        from urllib.parse import unquote, urlsplit
        from urllib.request import url2pathname

        return Path(url2pathname(unquote(urlsplit(uri).path)))
    if separator:
        raise InputError(f"track.uri must be http://…, https://… or a folder; got {_without_secrets(uri)!r}.")
    return Path(uri).resolve()


def _without_secrets(uri: str) -> str:
    """An address without secrets, for messages."""
    return _remove_secrets(uri, uri)


def _remove_secrets(text: str, uri: str) -> str:
    """Remove user, password and query of an address from a text, because they may contain secrets."""
    rest = uri.partition("://")[2]
    user, at, _ = rest.rpartition("@")
    _, mark, query = rest.partition("?")
    text = text.replace(user + at, "") if at else text
    return text.replace(mark + query, "") if query else text


def _log(run: Run, target: str | Path, experiment: str) -> str:
    """Log the run unless this result is already logged, and return a message."""
    os.environ.update(_FIXED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if isinstance(target, Path):
        target.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{(target / DATABASE).as_posix()}"
        client, where = MlflowClient(tracking_uri=uri), f"view it with: mlflow server --backend-store-uri {uri}"
    else:
        client, where = MlflowClient(tracking_uri=target), _without_secrets(target)
    experiment_id = _experiment(client, experiment, target)
    digest = _digest(run)
    filter_ = f"tags.`{TAG}` = '{digest}' and attributes.status = 'FINISHED'"
    if earlier := client.search_runs([experiment_id], filter_string=filter_, max_results=1):
        return f"already logged as run {earlier[0].info.run_id} of experiment {experiment!r}; {where}"
    tags = {
        TAG: digest,
        "mlflow.runName": run.config.name,
        "histoblend.commit": str(run.step("report").manifest.get("commit")),
    }
    run_id = client.create_run(experiment_id, tags=tags).info.run_id
    try:
        _send(client, run_id, run)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return f"logged as run {run_id} of experiment {experiment!r}; {where}"


def _experiment(client: Any, name: str, target: str | Path) -> str:
    """Id of the experiment, which is created if it does not exist."""
    if known := client.get_experiment_by_name(name):
        return str(known.experiment_id)
    files = (target / FILES).as_uri() if isinstance(target, Path) else None
    return str(client.create_experiment(name, artifact_location=files))


def _digest(run: Run) -> str:
    """Digest that identifies a logged run: its name and all files of its report."""
    # Hashed, because a run's name may contain characters with a meaning in MLflow's filters.
    return hashlib.sha256(f"{run.config.name}:{run.step('report').digest}".encode()).hexdigest()


def _send(client: Any, run_id: str, run: Run) -> None:
    """Send parameters and metrics in batches, then the report and the bundle."""
    import time

    from mlflow.entities import Metric, Param

    now = int(1000 * time.time())
    params = [Param(key, value) for key, value in parameters(run.config.model_dump(mode="json")).items()]
    scores = [Metric(key, value, now, 0) for key, value in metrics(pd.read_csv(run.folder / LADDER)).items()]
    for batch in _batches(params, PARAMETER_BATCH):
        client.log_batch(run_id, params=batch)
    for batch in _batches(scores, METRIC_BATCH):
        client.log_batch(run_id, metrics=batch)
    client.log_artifacts(run_id, str(run.step("report").folder), "report")
    client.log_artifacts(run_id, str(run.folder / BUNDLE), BUNDLE)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

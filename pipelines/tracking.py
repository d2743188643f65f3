"""Log a finished run to MLflow: parameters, metrics, report and bundle. Off unless ``track.kind`` says otherwise."""

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

#: Names a run by what its report and bundle hold, so that nothing is logged twice.
TAG = "histoblend.digest"

#: A local folder's database, and what lies beside it.
DATABASE, FILES = "mlflow.db", "artifacts"

#: MLflow takes this many parameters, and metrics, at a time.
PARAMETERS_AT_ONCE, METRICS_AT_ONCE = 100, 1000

#: Set before MLflow loads: nobody is told that it is used, and an address that does not answer is given up soon.
_FIXED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def check_tracking(options: TrackConfig) -> None:
    """Find what would hinder logging before hours of work, not after.

    Raises
    ------
    InputError
        MLflow is not installed, or ``track.uri`` is neither an address nor a folder.
    """
    if options.kind == "none":
        return
    place = _place(options.uri)
    needed = ["mlflow"] if isinstance(place, str) else ["mlflow", "sqlalchemy", "alembic"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'track.kind = "mlflow" needs {" and ".join(missing)}; not installed. Install what is pinned: '
            "`.venv/bin/python -m pip install -r requirements-mlflow.txt`, or leave track.kind out."
        )


def track(run: Run) -> None:
    """Log a finished run, once.

    Every result is written before; what goes wrong here takes nothing away.

    Parameters
    ----------
    run : Run
        With its report, ladder and bundle up to date.

    Raises
    ------
    InputError
        Nothing, or not everything, could be logged.
    """
    options = run.config.track
    if options.kind == "none":
        return
    check_tracking(options)
    place = _place(options.uri)
    try:
        # What MLflow's own parts warn each other of is not for who uses them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = _log(run, place, options.experiment)
    except Exception as error:
        first = _without_password((str(error).strip().splitlines() or [""])[0], options.uri)
        raise InputError(
            f"{_shown(options.uri)}: the run could not be logged: {type(error).__name__}: {first}. All results are in "
            f"{run.folder}; once that is mended, `make report` with the same settings logs them."
        ) from error
    run.screen.say(f"track: {line}")


def parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Every key of the configuration that a result depends on, dotted, as text."""
    found = {}
    for key, _ in config_keys():
        value: Any = settings
        section = key.partition(".")[0]
        if section in ("engine", "track"):
            continue
        for part in key.split("."):
            value = value[part]
        found[key] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return found


def metrics(ladder: pd.DataFrame) -> dict[str, float]:
    """Numbers of a ladder, ``<split>/<model>/<metric>`` with ``_low`` and ``_high``; what is missing is left out."""
    names = [name + end for name in (*SCORES, *GAINS) for end in ("", "_low", "_high")]
    found = {}
    for row in ladder.to_dict("records"):
        for name in (*names, "threshold", "patches", "slides", "seconds", "peak_mb"):
            if not pd.isna(row[name]):
                found[f"{row['split']}/{row['model']}/{name}"] = float(row[name])
    return found


def _place(uri: str) -> str | Path:
    """An address of a server, or the folder that a path stands for."""
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
        raise InputError(f"track.uri must be http://…, https://… or a folder; got {_shown(uri)!r}.")
    return Path(uri).resolve()


def _shown(uri: str) -> str:
    """An address as it may be shown."""
    return _without_password(uri, uri)


def _without_password(text: str, uri: str) -> str:
    """Text without what stands before the @ of an address, or behind its ?: secrets are not for the screen."""
    rest = uri.partition("://")[2]
    user, at, _ = rest.rpartition("@")
    _, mark, query = rest.partition("?")
    text = text.replace(user + at, "") if at else text
    return text.replace(mark + query, "") if query else text


def _log(run: Run, place: str | Path, experiment: str) -> str:
    """Log, unless this very result is there; return what to say."""
    os.environ.update(_FIXED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if isinstance(place, Path):
        place.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{(place / DATABASE).as_posix()}"
        client, where = MlflowClient(tracking_uri=uri), f"see it with: mlflow server --backend-store-uri {uri}"
    else:
        client, where = MlflowClient(tracking_uri=place), _shown(place)
    number = _experiment(client, experiment, place)
    digest = _digest(run)
    filter_ = f"tags.`{TAG}` = '{digest}' and attributes.status = 'FINISHED'"
    if earlier := client.search_runs([number], filter_string=filter_, max_results=1):
        return f"already logged as run {earlier[0].info.run_id} of experiment {experiment!r}; {where}"
    tags = {
        TAG: digest,
        "mlflow.runName": run.config.name,
        "histoblend.commit": str(run.step("report").manifest.get("commit")),
    }
    logged = client.create_run(number, tags=tags).info.run_id
    try:
        _send(client, logged, run)
    except BaseException:
        client.set_terminated(logged, "FAILED")
        raise
    client.set_terminated(logged)
    return f"logged as run {logged} of experiment {experiment!r}; {where}"


def _experiment(client: Any, name: str, place: str | Path) -> str:
    """Number of the experiment, made where there is none."""
    if known := client.get_experiment_by_name(name):
        return str(known.experiment_id)
    beside = (place / FILES).as_uri() if isinstance(place, Path) else None
    return str(client.create_experiment(name, artifact_location=beside))


def _digest(run: Run) -> str:
    """What a logged run is known by: every file of its report, under its own name."""
    # Hashed, as a name may hold what MLflow's filters read as their own.
    return hashlib.sha256(f"{run.config.name}:{run.step('report').digest}".encode()).hexdigest()


def _send(client: Any, logged: str, run: Run) -> None:
    """Send parameters and metrics in batches, then report and bundle."""
    import time

    from mlflow.entities import Metric, Param

    now = int(1000 * time.time())
    given = [Param(key, value) for key, value in parameters(run.config.model_dump(mode="json")).items()]
    scores = [Metric(key, value, now, 0) for key, value in metrics(pd.read_csv(run.folder / LADDER)).items()]
    for batch in _batches(given, PARAMETERS_AT_ONCE):
        client.log_batch(logged, params=batch)
    for batch in _batches(scores, METRICS_AT_ONCE):
        client.log_batch(logged, metrics=batch)
    client.log_artifacts(logged, str(run.step("report").folder), "report")
    client.log_artifacts(logged, str(run.folder / BUNDLE), BUNDLE)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

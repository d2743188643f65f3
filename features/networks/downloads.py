"""Download a file once, check it, and keep it where Keras keeps its own."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from histoblend.features.networks.backend import DownloadedWeights
from histoblend.features.networks.weights import CheckpointError

TIMEOUT_SECONDS = 30
_CHUNK = 1 << 20


def models_folder() -> Path:
    """Keras' folder for downloaded weights: ``models`` under ``KERAS_HOME``, or under ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def fetch(weights: DownloadedWeights, folder: Path | None = None) -> Path:
    """Find a weights file in a folder, or download it there.

    Parameters
    ----------
    weights : DownloadedWeights
    folder : Path, optional
        :func:`models_folder` when left out; made when missing.

    Returns
    -------
    Path
        Of a file with the published digest, where there is one.

    Raises
    ------
    CheckpointError
        When the file cannot be had or has another digest. Says which file to put where, and what needs no network.
    """
    folder = folder or models_folder()
    path = folder / weights.file
    if path.is_file():
        _check(path, weights)
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f"{weights.file}.", suffix=".partial", dir=folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a folder to keep {weights.file} in; got: {error.strerror}. "
            "Set KERAS_HOME to one that can be written."
        ) from error
    try:
        _download(weights.url, handle)
        _check(Path(partial), weights, path)
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise CheckpointError(
            f"{weights.file}: expected to download it from {weights.url}; got: {error}. Put that file into {folder} by "
            'hand, name a local one with embeddings.weights, or take embeddings.backbone="efficientnet-lite0", '
            "which needs no network."
        ) from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return path


def _download(url: str, handle: int) -> None:
    with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
        received = 0
        while chunk := answer.read(_CHUNK):
            received += file.write(chunk)
        announced = answer.headers.get("Content-Length")
        if announced is not None and received != int(announced):
            raise OSError(f"the connection ended after {received} of {announced} bytes")


def _check(path: Path, weights: DownloadedWeights, target: Path | None = None) -> None:
    algorithm, _, expected = weights.digest.partition(":")
    if not expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        end = "Nothing was kept." if target else "Remove it, and it is downloaded again."
        raise CheckpointError(
            f"{target or path}: {algorithm} must be {expected}, as Keras publishes it; got {found}. {end}"
        )

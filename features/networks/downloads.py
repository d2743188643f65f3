"""Download a file once, check it, and keep it where Keras keeps its own."""

from __future__ import annotations

import errno
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
    """Find a weights file in a folder, or download it there; a damaged one is downloaded again.

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
        When the file cannot be downloaded, or what comes is not the published file. Says which file to put where, and
        what needs no network.
    """
    folder = folder or models_folder()
    path = folder / weights.file
    found = _fault(path, weights) if path.is_file() else ""
    if path.is_file() and not found:
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
        if fault := _fault(Path(partial), weights):
            raise CheckpointError(f"{path}: {fault}. Nothing was kept: look at what {weights.url} gives.")
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        damaged = f"{path} is damaged ({found}), and " if found else ""
        raise CheckpointError(
            f"{damaged}{weights.file}: expected to download it from {weights.url}; got: {_reason(error)}. Connect to "
            f"the internet, put that file into {folder} by hand, name a local one (embeddings.weights or cnn.weights), "
            'or choose a backbone that needs none, such as "efficientnet-lite2" (embeddings.backbone or cnn.backbone).'
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


def _reason(error: Exception) -> str:
    """What went wrong, in words, without the wrapping of urllib."""
    inner = getattr(error, "reason", None)
    inner = inner if isinstance(inner, Exception) else error
    return (getattr(inner, "strerror", None) or " ".join(str(inner).split()) or type(inner).__name__).rstrip(".")


def _fault(path: Path, weights: DownloadedWeights) -> str:
    """What shows that a file is not the published one; empty where nothing does."""
    algorithm, _, expected = weights.digest.partition(":")
    if expected:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        return "" if found == expected else f"{algorithm} must be {expected}, as Keras publishes it; got {found}"
    import h5py

    try:
        h5py.File(path, "r").close()  # fails also where the file is shorter than it says
    except OSError as error:
        return f"expected a whole HDF5 file, as Keras publishes it; got: {' '.join(str(error).split())}"
    return ""

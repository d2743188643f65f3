"""Download a weights file once, check it, and keep it in Keras' own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from histoblend.data.errors import innermost_reason
from histoblend.data.storage.atomic import write_text_atomically
from histoblend.features.networks.applications import file_sha256
from histoblend.features.networks.backend import DownloadedWeights
from histoblend.features.networks.weights import CheckpointError

TIMEOUT_SECONDS = 30


def models_folder() -> Path:
    """Keras' folder for downloaded weights: ``models`` under ``KERAS_HOME``, or under ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def fetch(weights: DownloadedWeights, folder: Path | None = None) -> Path:
    """Return the path of a weights file; download it if it is missing or damaged.

    Parameters
    ----------
    weights : DownloadedWeights
    folder : Path, optional
        Defaults to :func:`models_folder`; created if missing.

    Returns
    -------
    Path
        The file's digest is the published one, if there is one. Otherwise it is a complete HDF5 file, not verified at
        the first download; its SHA-256 is then recorded beside it, and compared from then on.

    Raises
    ------
    CheckpointError
        The download failed, or the file is neither the published one nor that of the first download. The message names
        the folder to put the file into by hand, and a backbone that needs no download.
    """
    import pooch
    import requests

    folder = folder or models_folder()
    path = folder / weights.file
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: expected a folder to keep {weights.file} in; got: {error.strerror}. "
            "Set KERAS_HOME to a writable folder."
        ) from error
    if not weights.digest and path.is_file() and _hdf5_fault(path):
        path.unlink()  # without a digest, pooch keeps every existing file
    download = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS) if weights.digest else _download_hdf5
    try:
        pooch.retrieve(weights.url, weights.digest or None, weights.file, folder, downloader=download)
    except requests.RequestException as error:
        raise CheckpointError(
            f"{weights.file}: expected to download it from {weights.url}; got: {innermost_reason(error)}. Connect to "
            f"the internet, put that file into {folder} by hand, name a local one (embeddings.weights or cnn.weights), "
            'or choose a backbone that needs no download, such as "efficientnet-lite2" (embeddings.backbone or '
            "cnn.backbone)."
        ) from error
    except ValueError as error:  # another digest, or no complete HDF5 file
        raise CheckpointError(f"{path}: {error} Nothing was kept: look at what {weights.url} gives.") from error
    if not weights.digest:
        _compare_with_record(path)
    return path


def _compare_with_record(path: Path) -> None:
    """Check a file against the SHA-256 of its first download, which is recorded now if it is the first."""
    record, digest = path.with_name(f"{path.name}.sha256"), file_sha256(path)
    if not record.exists():
        write_text_atomically(record, digest)
    elif (recorded := record.read_text(encoding="utf-8").strip()) != digest:
        raise CheckpointError(
            f"{path}: its SHA-256 must be {recorded}, as at the first download, because none is published; got "
            f"{digest}. Remove the file to download it again. If you trust the new file, remove {record.name} instead."
        )


def _download_hdf5(url: str, output: str, _: Any) -> None:
    """Download one file, as pooch calls it; raise ValueError if it is no complete HDF5 file."""
    import pooch

    pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS)(url, output, None)
    if fault := _hdf5_fault(Path(output)):
        raise ValueError(f"expected a complete HDF5 file; got: {fault}.")


def _hdf5_fault(path: Path) -> str:
    """Return why a file is no complete HDF5 file; empty if it is one."""
    import h5py

    try:
        h5py.File(path, "r").close()  # also fails if the file is shorter than its header says
    except OSError as error:
        return " ".join(str(error).split())
    return ""
